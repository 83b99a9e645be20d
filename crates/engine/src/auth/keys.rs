//! Secrets that we hand out: agent secrets and API keys. Their form, and the use cases of API keys.
//!
//! A text is `ilk_<id>_<secret><checksum>` (API key) or `ils_<secret><checksum>` (agent secret): 256 random bits in
//! hexadecimal and a CRC-32, so that a scanner for leaked keys has something to find and a mistyped key is known without a
//! look-up. Of an API key only its SHA-256 is stored: 256 random bits cannot be guessed, so nothing slow is needed.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::action::{CreateApiKey, ListApiKeys, RevokeApiKey};
use interlock_model::id::{hexadecimal, random_hex};
use interlock_model::policy::PrincipalKind;
use interlock_model::scope::{self, Scope};
use interlock_model::secret::Secret;
use interlock_model::text::{Form as _, KeyName};
use interlock_model::{AgentId, Entropy, Timestamp};
use interlock_store::Error;
use interlock_store::identity::{self, Versioned};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::documents::ApiKey;
use super::{Caller, Db, Permit, Principals, Recorded, Sessions, SystemPermit};
use crate::Ambient;
use crate::security::{self, Event};

/// Every API key begins with this.
pub(super) const API_KEY_PREFIX: &str = "ilk_";
const AGENT_SECRET_PREFIX: &str = "ils_";
/// Longest life of an API key.
const MAX_LIFE: Duration = Duration::from_hours(24 * 366);
/// Most live keys of one principal.
const MAX_KEYS: usize = 32;

fn with_checksum(text: &str) -> String {
    let sum = crc32fast::hash(text.as_bytes());
    format!("{text}{sum:08x}")
}

fn checksum_is_right(text: &str) -> bool {
    let Some((body, sum)) = text.len().checked_sub(8).and_then(|at| text.split_at_checked(at)) else {
        return false;
    };
    u32::from_str_radix(sum, 16).is_ok_and(|sum| sum == crc32fast::hash(body.as_bytes()))
}

/// A new agent secret.
pub(crate) fn new_agent_secret(entropy: &dyn Entropy) -> Secret {
    Secret::new(with_checksum(&format!("{AGENT_SECRET_PREFIX}{}", random_hex(entropy, 32))))
}

/// What an API key is found by; `None` if the text cannot be one.
pub(super) fn digest_of_key(key: &str) -> Option<String> {
    let well_formed = key.len() <= 128 && key.starts_with(API_KEY_PREFIX) && checksum_is_right(key);
    well_formed.then(|| hexadecimal(&Sha256::digest(key.as_bytes())))
}

/// Why a key was not made or ended.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It would hold more than its maker or its principal.
    #[error("a key can hold only scopes that you and its principal hold: {0}")]
    Scope(Scope),
    /// It would hold nothing.
    #[error("name at least one scope")]
    NoScope,
    /// It would live too long, or not at all.
    #[error("a key lives from 1 hour to 366 days")]
    Life,
    /// The name cannot be used.
    #[error("the name must have 1 to 100 characters")]
    Name,
    /// There are enough.
    #[error("there are 32 live keys of this principal already; end one first")]
    TooMany,
    /// The caller speaks with a key itself: a stolen one must not outlive itself.
    #[error("an API key cannot make another; sign in")]
    ByKey,
    /// The agent must prove itself with a key that never leaves it.
    #[error("this agent proves itself with a key; an API key would be worth nothing")]
    KeysOnly,
    /// There is no such principal, or it is not the caller's to give keys to.
    #[error("there is no such principal")]
    NoSuchPrincipal,
    /// There is none, or it belongs to somebody else.
    #[error("there is no such key")]
    NoSuchKey,
    /// The storage's.
    #[error("store the key")]
    Store(#[from] Error),
}

/// What a new key shall be.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Name for people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// How long it lives.
    pub life: Duration,
    /// For an agent instead of the caller.
    pub agent: Option<AgentId>,
}

/// API keys: made, listed, ended.
#[derive(Clone)]
pub struct ApiKeys {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    sessions: Arc<Sessions>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKeys")
    }
}

fn manages(caller: &Caller) -> bool {
    caller.grants().holds_scope("keys:manage")
}

impl ApiKeys {
    /// Wires the parts.
    pub fn new(db: Db, ambient: Ambient, principals: Arc<Principals>, sessions: Arc<Sessions>) -> Self {
        Self { db, ambient, principals, sessions }
    }

    /// The caller's keys, or everybody's for those who manage them; ended ones too.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, permit: &Permit<ListApiKeys>) -> Result<Vec<ApiKey>, Error> {
        let caller = permit.caller();
        let owner = (!manages(caller)).then(|| caller.name());
        let keys = identity::list::<ApiKey>(self.db.read(), owner).await?;
        Ok(keys.into_iter().map(|key| key.document).collect())
    }

    /// Makes a key and returns it with its text, which is shown only now.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn create(
        &self,
        permit: &Permit<CreateApiKey>,
        new: NewKey,
    ) -> Result<(ApiKey, Secret), KeyError> {
        let caller = permit.caller();
        let now = self.ambient.clock.now();
        if !KeyName::RULE.holds(&new.name) {
            return Err(KeyError::Name);
        }
        if new.life < Duration::from_hours(1) || new.life > MAX_LIFE {
            return Err(KeyError::Life);
        }
        if new.scopes.is_empty() {
            return Err(KeyError::NoScope);
        }
        if caller.session().is_empty() {
            return Err(KeyError::ByKey);
        }
        let (kind, principal, epoch) = match new.agent {
            Some(agent) if manages(caller) => {
                let agent = self.principals.agent(agent).filter(|agent| !agent.disabled);
                let agent = agent.ok_or(KeyError::NoSuchPrincipal)?;
                if !self.sessions.clients().takes_secrets_of(&agent) {
                    return Err(KeyError::KeysOnly);
                }
                check_held(&new.scopes, &agent.scopes)?;
                (PrincipalKind::Agent, agent.id.to_string(), agent.tokens_valid_from)
            }
            Some(_) => return Err(KeyError::NoSuchPrincipal),
            None => {
                check_held(&new.scopes, caller.grants().scopes())?;
                let user = self.principals.user(caller.name()).map(|user| user.tokens_valid_from);
                let agent = caller.name().parse().ok().and_then(|id| self.principals.agent(id));
                if agent.as_ref().is_some_and(|agent| !self.sessions.clients().takes_secrets_of(agent)) {
                    return Err(KeyError::KeysOnly);
                }
                let agent = agent.map(|agent| agent.tokens_valid_from);
                let epoch = user.or(agent).ok_or(KeyError::NoSuchPrincipal)?;
                (caller.kind(), caller.name().to_owned(), epoch)
            }
        };
        let others = identity::list::<ApiKey>(self.db.read(), Some(&principal)).await?;
        if others.iter().filter(|key| key.revoked_at.is_none() && key.expires_at > now).count() >= MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        let entropy = &*self.ambient.entropy;
        let id = random_hex(entropy, 6);
        let text = with_checksum(&format!("{API_KEY_PREFIX}{id}_{}", random_hex(entropy, 32)));
        let key = ApiKey {
            id,
            kind,
            principal,
            name: new.name,
            digest: hexadecimal(&Sha256::digest(text.as_bytes())),
            scopes: new.scopes,
            // Never before the moment from which the principal's credentials count, whatever the clocks say.
            created_at: now.max(epoch),
            created_by: caller.name().to_owned(),
            expires_at: now.plus(new.life),
            revoked_at: None,
            last_used_at: None,
        };
        let row = key.clone();
        self.db
            .write_about(permit, Some(key.id.clone()), move |tx| {
                Box::pin(async move {
                    identity::insert(tx, &row).await?;
                    let details = json!({
                        "name": row.name, "principal": row.principal, "scopes": row.scopes, "expires_at": row.expires_at,
                    });
                    Ok::<_, Error>(Recorded { value: (), details })
                })
            })
            .await?;
        self.principals.put_api_key(key.clone(), 1);
        Ok((key, Secret::new(text)))
    }

    /// Ends a key at once.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn revoke(&self, permit: &Permit<RevokeApiKey>) -> Result<ApiKey, KeyError> {
        let (id, now) = (permit.target().id.clone(), self.ambient.clock.now());
        let owner = (!manages(permit.caller())).then(|| permit.caller().name().to_owned());
        let changed: Versioned<ApiKey> = self
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<ApiKey>(tx, &id).await?;
                    let mut found = found
                        .filter(|key| owner.as_ref().is_none_or(|owner| *owner == key.principal))
                        .ok_or(KeyError::NoSuchKey)?;
                    found.document.revoked_at.get_or_insert(now);
                    identity::update(tx, &found).await?;
                    found.version += 1;
                    let details = json!({ "name": found.name, "principal": found.principal });
                    Ok::<_, KeyError>(Recorded { value: found, details })
                })
            })
            .await?;
        self.principals.put_api_key(changed.document.clone(), changed.version);
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "manual").increment(1);
        let details = json!({ "reason": "manual", "api_key": changed.id });
        security::event(
            Event::TokenRevoked,
            Some(&changed.principal),
            Some(permit.caller().origin()),
            details,
        );
        Ok(changed.document)
    }

    /// Stores when keys were last used, once in every `period`, until dropped. Run it as a background task.
    pub async fn note_use_forever(self, permit: SystemPermit, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            let used = self.sessions.take_used_keys();
            if used.is_empty() {
                continue;
            }
            if let Err(error) = self.note_use(&permit, used.into_iter().collect()).await {
                tracing::warn!(%error, "the last use of API keys could not be stored");
            }
        }
    }

    async fn note_use(&self, permit: &SystemPermit, used: Vec<(String, Timestamp)>) -> Result<(), Error> {
        let proof = permit.acting("api_keys.used", None);
        let changed = self
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let mut changed = Vec::new();
                    for (id, at) in &used {
                        let Some(mut found) = identity::get::<ApiKey>(tx, id).await? else { continue };
                        found.document.last_used_at = Some(*at);
                        identity::update(tx, &found).await?;
                        found.version += 1;
                        changed.push(found);
                    }
                    let ids: Vec<&str> = used.iter().map(|(id, _)| id.as_str()).collect();
                    let details = json!({ "keys": ids });
                    Ok::<_, Error>(Recorded { value: changed, details })
                })
            })
            .await?;
        for key in changed {
            self.principals.put_api_key(key.document, key.version);
        }
        Ok(())
    }
}

fn check_held(wanted: &[Scope], held: &[Scope]) -> Result<(), KeyError> {
    let both = scope::intersect(wanted, held);
    match wanted.iter().find(|scope| !both.contains(scope)) {
        Some(scope) => Err(KeyError::Scope(scope.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_model::time::TestEntropy;

    #[test]
    fn a_mistyped_key_is_known_without_a_look_up() {
        let text = with_checksum(&format!("{API_KEY_PREFIX}abc_{}", random_hex(&TestEntropy::seeded(1), 32)));

        assert!(digest_of_key(&text).is_some());
        for at in 4..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(digest_of_key(&String::from_utf8(bytes).expect("ascii")), None, "byte {at}");
        }
        for junk in ["", "ilk_", "ilk_é", "ils_0011", "x"] {
            assert_eq!(digest_of_key(junk), None);
        }
    }
}
