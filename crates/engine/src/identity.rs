//! Everything about who acts, put together once for the server, its tests and the command line.

use std::sync::Arc;
use std::time::Duration;

use interlock_store::Error;
use interlock_store::identity as records;
use serde_json::json;

use crate::Ambient;
use crate::agents::Agents;
use crate::audit::Recorder;
use crate::auth::documents::{InstallationName, PublicKey};
use crate::auth::{
    Account, ApiKeys, Db, DeviceCodes, Manage, MasterKey, Passwords, Principals, Recorded, SecondFactor,
    Sessions, SignIns, SystemPermit, Tokens,
};

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
    /// Signing in where there is no browser.
    pub device_codes: Arc<DeviceCodes>,
    /// People's own accounts.
    pub account: Account,
    /// Who there is, in memory.
    pub principals: Arc<Principals>,
    db: Db,
    ambient: Ambient,
}

/// What identity is made of.
#[derive(Debug)]
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
    /// Authority for what follows from a sign-in.
    pub system: SystemPermit,
}

impl Identity {
    /// Wires the parts.
    pub fn new(setup: Setup<'_>) -> Self {
        let Setup { db, ambient, principals, passwords, tokens, master, recorder, system } = setup;
        let (database, clocks, known) = (|| db.clone(), || ambient.clone(), || Arc::clone(principals));
        let tokens = tokens.shared(known());
        let sessions = Sessions::new(database(), clocks(), known(), tokens, system);
        let second_factor = SecondFactor::new(database(), clocks(), known(), Arc::new(master));
        let sign_ins = SignIns::new(
            Arc::clone(&sessions),
            known(),
            passwords.clone(),
            Arc::clone(&second_factor),
            recorder.clone(),
            clocks(),
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
            ),
            sign_ins,
            second_factor,
            agents: Agents::new(database(), clocks(), known(), passwords.clone()),
            api_keys: ApiKeys::new(database(), clocks(), known(), Arc::clone(&sessions)),
            manage: Manage::new(database(), clocks(), known(), Arc::clone(&sessions)),
            sessions,
            principals: known(),
            db: database(),
            ambient: clocks(),
        }
    }

    /// Publishes the public half of the signing key, so that every server of the installation takes its tokens. The keys in
    /// `retire` are given the longest life of a token, then nothing of theirs is taken.
    ///
    /// # Errors
    /// The storage's.
    pub async fn publish_key(&self, permit: &SystemPermit, retire_others: bool) -> Result<(), Error> {
        let Some((kid, public)) = self.sessions.tokens().keys().public() else { return Ok(()) };
        let now = self.ambient.clock.now();
        let life = self.sessions.tokens().lifetimes().refresh_seconds.unsigned_abs();
        let end = now.plus(Duration::from_secs(life + 120));
        let known = self.principals.public_keys();
        let is_new = !known.iter().any(|key| key.kid == kid);
        if !is_new && !retire_others {
            return Ok(());
        }
        let own = PublicKey { kid: kid.clone(), public, created_at: now, retired_at: None };
        let proof = permit.acting("keys.published", Some(kid.clone()));
        self.db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let mut retired = Vec::new();
                    for key in known.iter().filter(|key| retire_others && key.kid != own.kid) {
                        let Some(mut found) = records::get::<PublicKey>(tx, &key.kid).await? else {
                            continue;
                        };
                        if found.retired_at.is_none() {
                            found.document.retired_at = Some(end);
                            records::update(tx, &found).await?;
                            retired.push(key.kid.clone());
                        }
                    }
                    if is_new {
                        records::insert(tx, &own).await?;
                    }
                    Ok::<_, Error>(Recorded {
                        value: (),
                        details: json!({ "kid": own.kid, "retired": retired }),
                    })
                })
            })
            .await?;
        self.principals.catch_up().await
    }
}
