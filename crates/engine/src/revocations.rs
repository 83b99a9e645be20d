//! What is dead, as a document: taken out beside every backup, and put into an installation that was restored from an older one.
//!
//! Putting it in only ever ends things. Nothing that is dead there comes back to life.

use interlock_model::Timestamp;
use interlock_store::identity::{self, Document as _};
use interlock_store::{Error, Revocation, Store, Tx};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Ambient;
use crate::auth::documents::{Agent, ApiKey, Cutoff, Session};
use crate::auth::{Db, Recorded, SystemPermit};

/// Form of the document. Another one is refused.
pub const FORM: u32 = 1;

/// Everything that is dead before its time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Revocations {
    /// [`FORM`].
    pub form: u32,
    /// When it was taken out.
    pub taken_at: Timestamp,
    /// Single tokens.
    pub tokens: Vec<DeadToken>,
    /// Ended sessions.
    pub sessions: Vec<Session>,
    /// Everything issued before.
    pub cutoff: Option<Timestamp>,
    /// People: what counts from when.
    pub users: Vec<Epoch>,
    /// Agents: what counts from when.
    pub agents: Vec<Epoch>,
    /// Revoked API keys.
    pub api_keys: Vec<DeadKey>,
}

/// A revoked token.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeadToken {
    /// Its id.
    pub jti: String,
    /// May be forgotten after.
    pub expires_at: Timestamp,
    /// Why.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// From when a principal's credentials count.
#[derive(Debug, Serialize, Deserialize)]
pub struct Epoch {
    /// User name or agent id.
    pub principal: String,
    /// Tokens issued under an older value are dead.
    pub tokens_valid_from: Timestamp,
    /// None of its credentials counts.
    pub disabled: bool,
}

/// A revoked API key.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeadKey {
    /// Its id.
    pub id: String,
    /// Since when.
    pub revoked_at: Timestamp,
}

/// How much an import ended that lived before.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Single tokens that are known as dead now; they may have been before.
    pub tokens: usize,
    /// Sessions.
    pub sessions: usize,
    /// People and agents whose earlier credentials ended.
    pub principals: usize,
    /// API keys.
    pub api_keys: usize,
    /// The time before which everything is dead has moved.
    pub cutoff: bool,
}

/// Takes out what is dead.
///
/// # Errors
/// The storage's.
pub async fn export(store: &dyn Store, ambient: &Ambient) -> Result<Revocations, Error> {
    let now = ambient.clock.now();
    let tokens = store.revocations(now).await?.into_iter().map(|dead| DeadToken {
        jti: dead.jti,
        expires_at: dead.expires_at,
        reason: dead.reason,
        at: dead.at,
    });
    let sessions = identity::list::<Session>(store, None).await?.into_iter().map(|session| session.document);
    let agents = identity::list::<Agent>(store, None).await?;
    let keys = identity::list::<ApiKey>(store, None).await?;
    Ok(Revocations {
        form: FORM,
        taken_at: now,
        tokens: tokens.collect(),
        sessions: sessions.filter(|session| session.ended_at.is_some()).collect(),
        cutoff: identity::read::<Cutoff>(store, "all").await?.map(|cutoff| cutoff.before),
        users: store
            .users()
            .await?
            .into_iter()
            .map(|user| Epoch {
                principal: user.name,
                tokens_valid_from: user.tokens_valid_from,
                disabled: user.disabled,
            })
            .collect(),
        agents: agents
            .iter()
            .map(|agent| Epoch {
                principal: agent.id.to_string(),
                tokens_valid_from: agent.tokens_valid_from,
                disabled: agent.disabled,
            })
            .collect(),
        api_keys: keys
            .iter()
            .filter_map(|key| Some(DeadKey { id: key.id.clone(), revoked_at: key.revoked_at? }))
            .collect(),
    })
}

/// Ends what is dead by the document. A principal that is disabled in it is disabled; one that is not known here is left out,
/// for it has no credentials here.
///
/// # Errors
/// The storage's; then nothing was ended.
pub async fn import(
    db: &Db,
    permit: &SystemPermit,
    ambient: &Ambient,
    dead: Revocations,
) -> Result<Ended, Error> {
    let now = ambient.clock.now();
    let proof = permit.acting("revocations.imported", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let taken_at = dead.taken_at;
            let ended = apply(tx, dead, now).await?;
            Ok::<_, Error>(Recorded {
                value: ended,
                details: json!({ "taken_at": taken_at, "ended": ended }),
            })
        })
    })
    .await
}

pub(crate) async fn apply(tx: &mut dyn Tx, dead: Revocations, now: Timestamp) -> Result<Ended, Error> {
    let mut ended = Ended::default();
    for DeadToken { jti, expires_at, reason, at } in dead.tokens {
        tx.insert_revocation(&Revocation { jti, expires_at, reason, at }).await?;
        ended.tokens += 1;
    }
    for session in dead.sessions.into_iter().filter(|session| session.ended_at.is_some()) {
        ended.sessions += usize::from(end_session(tx, session).await?);
    }
    if let Some(before) = dead.cutoff {
        ended.cutoff = cut_off(tx, before, "imported").await?;
    }
    for epoch in dead.users {
        let Some(mut user) = tx.user(&epoch.principal).await? else { continue };
        if moves((&mut user.tokens_valid_from, &mut user.disabled), &epoch) {
            user.updated_at = now;
            user.version += 1;
            stored(tx.update_user(&user).await?)?;
            ended.principals += 1;
        }
    }
    for epoch in dead.agents {
        let Some(mut agent) = identity::get::<Agent>(tx, &epoch.principal).await? else { continue };
        let found = &mut agent.document;
        if moves((&mut found.tokens_valid_from, &mut found.disabled), &epoch) {
            found.updated_at = now;
            if found.disabled {
                found.secrets.clear();
                found.keys.clear();
            }
            stored(identity::update(tx, &agent).await? == identity::Put::Done)?;
            ended.principals += 1;
        }
    }
    for dead in dead.api_keys {
        let Some(mut key) = identity::get::<ApiKey>(tx, &dead.id).await? else { continue };
        if key.revoked_at.is_none() {
            key.document.revoked_at = Some(dead.revoked_at);
            stored(identity::update(tx, &key).await? == identity::Put::Done)?;
            ended.api_keys += 1;
        }
    }
    Ok(ended)
}

fn stored(done: bool) -> Result<(), Error> {
    if done { Ok(()) } else { Err(Error::Corrupt("a record changed under its own lock".to_owned())) }
}

/// Moves a principal's epoch on, never back. Whether anything moved.
fn moves((from, disabled): (&mut Timestamp, &mut bool), epoch: &Epoch) -> bool {
    let moved = epoch.tokens_valid_from > *from || epoch.disabled && !*disabled;
    *from = (*from).max(epoch.tokens_valid_from);
    *disabled |= epoch.disabled;
    moved
}

/// Ends a session, also one that this database has never seen: its tokens may still be out there.
async fn end_session(tx: &mut dyn Tx, session: Session) -> Result<bool, Error> {
    match identity::get::<Session>(tx, &session.id()).await? {
        None => {
            identity::insert(tx, &session).await?;
            Ok(true)
        }
        Some(found) if found.ended_at.is_some() => Ok(false),
        Some(mut found) => {
            found.document.ended_at = session.ended_at;
            found.document.ended_reason = session.ended_reason;
            found.document.expires_at = found.document.expires_at.max(session.expires_at);
            stored(identity::update(tx, &found).await? == identity::Put::Done)?;
            Ok(true)
        }
    }
}

/// Ends everything that was issued before; `false` if it has ended already.
pub(crate) async fn cut_off(tx: &mut dyn Tx, before: Timestamp, reason: &str) -> Result<bool, Error> {
    let cutoff = Cutoff { before, reason: reason.to_owned() };
    match identity::get::<Cutoff>(tx, "all").await? {
        Some(found) if found.before >= before => Ok(false),
        Some(mut found) => {
            found.document = cutoff;
            stored(identity::update(tx, &found).await? == identity::Put::Done)?;
            Ok(true)
        }
        None => {
            identity::insert(tx, &cutoff).await?;
            Ok(true)
        }
    }
}
