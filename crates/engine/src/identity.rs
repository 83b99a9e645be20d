//! Everything about who acts, put together once for the server, its tests and the command line.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_store::Error;
use interlock_store::identity as records;
use serde_json::json;

use crate::Ambient;
use crate::agents::Agents;
use crate::audit::Recorder;
use crate::auth::documents::{InstallationName, Issuer, PublicKey};
use crate::auth::{
    AccessRules, Account, ApiKeys, Arrivals, Ceremonies, Db, DeviceCodes, Directories, Manage, MasterKey,
    NoticeBoard, Passkeys, Passwords, Principals, Recorded, Reviews, SecondFactor, Sessions, SignIns,
    SystemPermit, Throttle, Tokens,
};

/// Names of issuers that stay known without an end.
const MAX_ISSUERS: usize = 32;
/// No refresh token lives longer.
const LONGEST_TOKEN: Duration = Duration::from_hours(24 * 365);

/// The name that makes tokens of this installation its own: `own` unless the database has one already.
///
/// # Errors
/// The storage's.
pub async fn installation_name(db: &Db, permit: &SystemPermit, own: String) -> Result<String, Error> {
    if let Some(found) = records::read::<InstallationName>(db.read(), "name").await? {
        return Ok(found.document.name);
    }
    let proof = permit.acting("installation.named", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            // Of several servers that start at once, one names it.
            records::insert(tx, &InstallationName { name: own.clone() }).await?;
            let found = records::get::<InstallationName>(tx, "name").await?;
            let name = found.map_or(own, |found| found.document.name);
            Ok::<_, Error>(Recorded { value: name, details: json!({}) })
        })
    })
    .await
}

/// The services of identity. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Sessions and what tokens stand for.
    pub sessions: Arc<Sessions>,
    /// Signing in.
    pub sign_ins: Arc<SignIns>,
    /// Software that acts.
    pub agents: Agents,
    /// Keys for scripts.
    pub api_keys: ApiKeys,
    /// Sessions, tokens and roles, as owners and administrators see them.
    pub manage: Manage,
    /// Second factors.
    pub second_factor: Arc<SecondFactor>,
    /// Passkeys.
    pub passkeys: Arc<Passkeys>,
    /// Signing in where there is no browser.
    pub device_codes: Arc<DeviceCodes>,
    /// People's own accounts.
    pub account: Account,
    /// People whom a directory knows.
    pub arrivals: Arrivals,
    /// Guesses and who must wait.
    pub throttle: Throttle,
    /// What people are told about their accounts.
    pub notices: NoticeBoard,
    /// Who has which rights and credentials.
    pub reviews: Reviews,
    /// Who there is, in memory.
    pub principals: Arc<Principals>,
    master: Arc<MasterKey>,
    db: Db,
    ambient: Ambient,
}

/// What identity is made of.
pub struct Setup<'a> {
    /// The database.
    pub db: &'a Db,
    /// Clock and randomness.
    pub ambient: &'a Ambient,
    /// Who there is.
    pub principals: &'a Arc<Principals>,
    /// The hashing thread.
    pub passwords: &'a Passwords,
    /// Signs and reads tokens.
    pub tokens: Tokens,
    /// What stored secrets are sealed with.
    pub master: MasterKey,
    /// The audit trail of what is no change.
    pub recorder: &'a Recorder,
    /// What is asked beyond a right credential.
    pub rules: AccessRules,
    /// Authority for what follows from a sign-in.
    pub system: SystemPermit,
    /// Directories of people.
    pub directories: Directories,
    /// Judges what people's devices answer, where there are passkeys.
    pub ceremonies: Option<Arc<dyn Ceremonies>>,
}

impl std::fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Setup({:?})", self.directories)
    }
}

impl Identity {
    /// Wires the parts.
    pub fn new(setup: Setup<'_>) -> Self {
        let Setup {
            db,
            ambient,
            principals,
            passwords,
            tokens,
            master,
            recorder,
            rules,
            system,
            directories,
            ceremonies,
        } = setup;
        let (database, clocks, known) = (|| db.clone(), || ambient.clone(), || Arc::clone(principals));
        let tokens = tokens.shared(known());
        let master = Arc::new(master);
        let throttle = Throttle::new(database(), clocks());
        let sessions = Sessions::new(
            database(),
            clocks(),
            known(),
            tokens,
            rules.clone(),
            system.acting("system", None),
        );
        let arrivals = Arrivals::new(
            database(),
            clocks(),
            known(),
            Arc::clone(&sessions),
            recorder.clone(),
            system,
            Arc::clone(&master),
            directories,
        );
        let second_factor = SecondFactor::new(database(), clocks(), known(), Arc::clone(&master));
        let sign_ins = SignIns::new(
            Arc::clone(&sessions),
            known(),
            passwords.clone(),
            Arc::clone(&second_factor),
            throttle.clone(),
            arrivals.clone(),
            recorder.clone(),
            clocks(),
        );
        let passkeys = Passkeys::new(
            database(),
            clocks(),
            known(),
            Arc::clone(&sessions),
            Arc::clone(&sign_ins),
            Arc::clone(&second_factor),
            Arc::clone(&master),
            ceremonies,
        );
        Self {
            device_codes: DeviceCodes::new(
                database(),
                clocks(),
                known(),
                Arc::clone(&sessions),
                Arc::clone(&sign_ins),
            ),
            account: Account::new(
                database(),
                clocks(),
                known(),
                passwords.clone(),
                Arc::clone(&sessions),
                Arc::clone(&sign_ins),
                Arc::clone(&second_factor),
                Arc::clone(&passkeys),
            ),
            passkeys,
            sign_ins,
            second_factor,
            throttle,
            notices: NoticeBoard::new(database(), clocks()),
            reviews: Reviews::new(database(), clocks(), known()),
            arrivals,
            agents: Agents::new(database(), clocks(), known(), passwords.clone(), Arc::clone(&master), rules),
            api_keys: ApiKeys::new(database(), clocks(), known(), Arc::clone(&sessions)),
            manage: Manage::new(database(), clocks(), known(), Arc::clone(&sessions)),
            sessions,
            principals: known(),
            master,
            db: database(),
            ambient: clocks(),
        }
    }

    /// Goes on with another master key.
    pub fn exchange_master(&self, key: &MasterKey) {
        self.master.exchange(key);
    }

    /// Makes the name under which this server issues tokens known to all servers of the installation.
    ///
    /// # Errors
    /// The storage's.
    pub async fn publish_issuer(&self, permit: &SystemPermit) -> Result<(), Error> {
        let issuer = self.sessions.tokens().names().0.to_owned();
        let now = self.ambient.clock.now();
        let mut known: Vec<_> = records::list::<Issuer>(self.db.read(), None).await?;
        if known.iter().any(|known| known.issuer == issuer && known.until.is_none()) {
            return Ok(());
        }
        // A server on a changing port has another name at each start: only the latest stay without an end.
        known.retain(|known| known.until.is_none());
        known.sort_by_key(|known| std::cmp::Reverse(known.at));
        let old: Vec<_> = known.into_iter().skip(MAX_ISSUERS).collect();
        let proof = permit.acting("issuer.published", Some(issuer.clone()));
        self.db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let details = json!({ "issuer": issuer, "ended": old.len() });
                    match records::get::<Issuer>(tx, &issuer).await? {
                        Some(mut found) => {
                            found.document.at = now;
                            found.document.until = None;
                            records::update(tx, &found).await?;
                        }
                        None => {
                            records::insert(tx, &Issuer { issuer, at: now, until: None }).await?;
                        }
                    }
                    for mut found in old {
                        found.document.until = Some(now.plus(LONGEST_TOKEN));
                        records::update(tx, &found).await?;
                    }
                    Ok::<_, Error>(Recorded { value: (), details })
                })
            })
            .await?;
        self.principals.catch_up().await
    }

    /// Publishes the public half of the signing key, so that every server of the installation takes its tokens.
    ///
    /// # Errors
    /// The storage's.
    pub async fn publish_key(&self, permit: &SystemPermit) -> Result<(), Error> {
        let Some((kid, public)) = self.sessions.tokens().keys().public() else { return Ok(()) };
        if self.principals.public_keys().iter().any(|key| key.kid == kid) {
            return Ok(());
        }
        publish(
            &self.db,
            permit,
            PublicKey { kid, public, created_at: self.ambient.clock.now(), retired_at: None },
        )
        .await?;
        self.principals.catch_up().await
    }
}

/// Stores a public key, unless it is there.
///
/// # Errors
/// The storage's.
pub async fn publish(db: &Db, permit: &SystemPermit, key: PublicKey) -> Result<(), Error> {
    let proof = permit.acting("keys.published", Some(key.kid.clone()));
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let put = records::insert(tx, &key).await?;
            let details = json!({ "kid": key.kid, "new": put == records::Put::Done });
            Ok::<_, Error>(Recorded { value: (), details })
        })
    })
    .await
}

/// Gives a key that signs no more the longest life of a token, `life`; then nothing of it is taken. Returns that end, or `None`
/// if no such key is known.
///
/// # Errors
/// The storage's.
pub async fn retire(
    db: &Db,
    permit: &SystemPermit,
    kid: String,
    now: Timestamp,
    life: Duration,
) -> Result<Option<Timestamp>, Error> {
    let proof = permit.acting("keys.retired", Some(kid.clone()));
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let Some(mut found) = records::get::<PublicKey>(tx, &kid).await? else {
                return Ok::<_, Error>(Recorded { value: None, details: json!({ "known": false }) });
            };
            let end = *found.document.retired_at.get_or_insert(now.plus(life));
            records::update(tx, &found).await?;
            Ok(Recorded { value: Some(end), details: json!({ "retired_at": end }) })
        })
    })
    .await
}
