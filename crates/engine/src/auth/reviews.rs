//! Access reviews: every principal with its rights, and every credential with its age, last use and end.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::action::ReviewAccess;
use interlock_model::policy::{self, PrincipalKind};
use interlock_model::scope::Scope;
use interlock_store::Error;
use interlock_store::identity;
use serde::Serialize;

use super::documents::{Agent, ApiKey, SecondFactors};
use super::elsewhere::NO_PASSWORD;
use super::{Db, Notices, Permit, Principals};
use crate::Ambient;

/// A principal as a reviewer sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReviewedPrincipal {
    /// Person or agent.
    pub kind: PrincipalKind,
    /// User name, or id of the agent.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Roles of a person.
    pub roles: Vec<String>,
    /// What it may do, by its roles or by itself.
    pub scopes: Vec<Scope>,
    /// It cannot act.
    pub disabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last proved who it is.
    pub last_seen_at: Option<Timestamp>,
    /// What it proves itself with.
    pub credentials: Vec<ReviewedCredential>,
}

/// A credential without anything secret.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReviewedCredential {
    /// `password`, `totp`, `passkey`, `recovery_code`, `secret`, `public_key`, `certificate`, `api_key`.
    pub kind: &'static str,
    /// What it is known by, if anything.
    pub id: Option<String>,
    /// Since when.
    pub created_at: Option<Timestamp>,
    /// When it was last used, where that is kept.
    pub last_used_at: Option<Timestamp>,
    /// Its end, if it has one.
    pub expires_at: Option<Timestamp>,
    /// What it is limited to, where it has limits of its own.
    pub scopes: Option<Vec<Scope>>,
}

impl ReviewedCredential {
    const fn new(kind: &'static str, id: Option<String>, created_at: Option<Timestamp>) -> Self {
        Self { kind, id, created_at, last_used_at: None, expires_at: None, scopes: None }
    }
}

/// Makes access reviews.
#[derive(Clone, Debug)]
pub struct Reviews {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
}

impl Reviews {
    /// Wires the parts.
    pub(crate) fn new(db: Db, ambient: Ambient, principals: Arc<Principals>) -> Self {
        Self { db, ambient, principals }
    }

    /// Everybody, people first, by id. Ended and revoked credentials are left out.
    ///
    /// # Errors
    /// The storage's.
    pub async fn access(&self, _permit: &Permit<ReviewAccess>) -> Result<Vec<ReviewedPrincipal>, Error> {
        let (store, now) = (self.db.read(), self.ambient.clock.now());
        let keys = identity::list::<ApiKey>(store, None).await?;
        let keys_of = |kind, principal: &str| -> Vec<ReviewedCredential> {
            keys.iter()
                .filter(|key| key.kind == kind && key.principal == principal)
                .filter(|key| key.revoked_at.is_none() && key.expires_at > now)
                .map(|key| ReviewedCredential {
                    last_used_at: key.last_used_at,
                    expires_at: Some(key.expires_at),
                    scopes: Some(key.scopes.clone()),
                    ..ReviewedCredential::new("api_key", Some(key.id.clone()), Some(key.created_at))
                })
                .collect()
        };
        let factors = identity::list::<SecondFactors>(store, None).await?;
        let notices = identity::list::<Notices>(store, None).await?;
        let roles = self.principals.roles();
        let mut found = Vec::new();
        for user in store.users().await? {
            let mut credentials = Vec::new();
            let last = notices.iter().find(|notices| notices.user() == user.name);
            let last_seen_at = last.and_then(|notices| notices.last_sign_in);
            if user.password_hash != NO_PASSWORD {
                // Every change of a password moves the time from which tokens count.
                let set = Some(user.tokens_valid_from);
                credentials.push(ReviewedCredential::new("password", None, set));
            }
            if let Some(factors) = factors.iter().find(|factors| factors.user == user.name) {
                credentials.extend(factors.confirmed().map(|app| ReviewedCredential {
                    last_used_at: app.last_used_at,
                    ..ReviewedCredential::new("totp", Some(app.id.clone()), Some(app.created_at))
                }));
                credentials.extend(factors.passkeys.iter().map(|passkey| ReviewedCredential {
                    last_used_at: passkey.last_used_at,
                    ..ReviewedCredential::new("passkey", Some(passkey.id.clone()), Some(passkey.created_at))
                }));
                let codes = factors.recovery.iter();
                credentials.extend(codes.map(|_| ReviewedCredential::new("recovery_code", None, None)));
            }
            credentials.extend(keys_of(PrincipalKind::User, &user.name));
            found.push(ReviewedPrincipal {
                kind: PrincipalKind::User,
                scopes: policy::scopes_of(&user.roles, &roles),
                id: user.name.clone(),
                name: user.name,
                roles: user.roles,
                disabled: user.disabled,
                created_at: user.created_at,
                last_seen_at,
                credentials,
            });
        }
        for agent in identity::list::<Agent>(store, None).await? {
            found.push(of_agent(&agent, keys_of(PrincipalKind::Agent, &agent.id.to_string()), now));
        }
        Ok(found)
    }
}

fn of_agent(agent: &Agent, keys: Vec<ReviewedCredential>, now: Timestamp) -> ReviewedPrincipal {
    let mut credentials: Vec<ReviewedCredential> = agent
        .live_secrets(now)
        .map(|secret| ReviewedCredential {
            last_used_at: secret.last_used_at,
            expires_at: secret.expires_at,
            ..ReviewedCredential::new("secret", Some(secret.id.clone()), Some(secret.created_at))
        })
        .collect();
    credentials.extend(agent.keys.iter().map(|key| {
        let id = key.get("kid").and_then(serde_json::Value::as_str).map(str::to_owned);
        ReviewedCredential::new("public_key", id, None)
    }));
    let names = agent.certificate_names.iter();
    credentials.extend(names.map(|name| ReviewedCredential::new("certificate", Some(name.clone()), None)));
    credentials.extend(keys);
    ReviewedPrincipal {
        kind: PrincipalKind::Agent,
        id: agent.id.to_string(),
        name: agent.name.clone(),
        roles: Vec::new(),
        scopes: agent.scopes.clone(),
        disabled: agent.disabled,
        created_at: agent.created_at,
        last_seen_at: agent.last_seen_at,
        credentials,
    }
}
