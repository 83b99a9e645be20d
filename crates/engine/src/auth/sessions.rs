//! Signing in, tokens in use, and the principals behind them, all answered from memory.
//!
//! A verified token is cached by its digest; whether it is revoked and what its owner may do is asked on every request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::LogOut;
use interlock_model::policy::Grants;
use interlock_model::secret::Secret;
use interlock_store::{Error, Revocation, Store, UserRow};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::tokens::Claims;
use super::{Caller, Db, Origin, Passwords, Permit, Recorded, SystemPermit, Throttle, TokenError, Tokens};
use crate::Ambient;
use crate::audit::Recorder;
use crate::security::{self, Event};

/// Verified tokens remembered at most.
const CACHE: usize = 10_000;

/// Users and revocations, kept current with the database.
pub struct Principals {
    store: Arc<dyn Store>,
    ambient: Ambient,
    users: RwLock<HashMap<String, Arc<UserRow>>>,
    revoked: RwLock<HashMap<String, Timestamp>>,
}

impl std::fmt::Debug for Principals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Principals")
    }
}

impl Principals {
    /// Loads everyone.
    ///
    /// # Errors
    /// The storage's.
    pub async fn load(store: Arc<dyn Store>, ambient: Ambient) -> Result<Arc<Self>, Error> {
        let principals = Self { store, ambient, users: RwLock::default(), revoked: RwLock::default() };
        principals.reload().await?;
        Ok(Arc::new(principals))
    }

    /// Reads users and revocations again.
    ///
    /// # Errors
    /// The storage's; what was known stays.
    pub async fn reload(&self) -> Result<(), Error> {
        let users = self.store.users().await?;
        let revoked = self.store.revocations(self.ambient.clock.now()).await?;
        let users = users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect();
        let revoked = revoked.into_iter().map(|revocation| (revocation.jti, revocation.expires_at)).collect();
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        // Never lose one that was added while the database was read.
        let mut current = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        let now = self.ambient.clock.now().seconds();
        let kept: HashMap<String, Timestamp> =
            current.drain().filter(|(_, end)| end.seconds() + 60 > now).collect();
        *current = revoked;
        current.extend(kept);
        Ok(())
    }

    /// Watches for changes by other processes until dropped. Run it as a background task.
    pub async fn watch(self: Arc<Self>, period: Duration) {
        let mut seen = self.store.change_mark().await.unwrap_or(i64::MIN);
        loop {
            tokio::time::sleep(period).await;
            match self.store.change_mark().await {
                Ok(mark) if mark != seen => match self.reload().await {
                    Ok(()) => seen = mark,
                    Err(error) => tracing::error!(%error, "users and revocations could not be read again"),
                },
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "the database does not tell whether it changed"),
            }
        }
    }

    /// One user, from memory.
    pub fn user(&self, name: &str) -> Option<Arc<UserRow>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Puts a committed change in force at once. Changes may arrive in another order than they were committed in: the newest
    /// stays.
    pub fn put(&self, user: UserRow) {
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        if users.get(&user.name).is_none_or(|known| known.version < user.version) {
            users.insert(user.name.clone(), Arc::new(user));
        }
    }

    fn revoke(&self, jti: &str, expires_at: Timestamp) {
        self.revoked.write().unwrap_or_else(PoisonError::into_inner).insert(jti.to_owned(), expires_at);
    }

    fn is_revoked(&self, jti: &str) -> bool {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains_key(jti)
    }
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// Wrong name or password, or the user is disabled. One answer for all.
    #[error("incorrect username or password")]
    Refused,
    /// Too many guesses.
    #[error("too many sign-in attempts")]
    Wait(Duration),
    /// The session cannot be recorded.
    #[error("record the sign-in")]
    Store(#[from] Error),
}

/// A fresh session.
#[derive(Debug)]
pub struct SignedIn {
    /// The token. Shown once.
    pub token: Secret,
    /// Lifetime in seconds.
    pub expires_in: i64,
    /// Who.
    pub user: String,
    /// Roles of the token.
    pub roles: Vec<String>,
}

/// Signs people in and out and turns tokens into callers.
pub struct Sessions {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    passwords: Passwords,
    tokens: Tokens,
    throttle: Throttle,
    recorder: Recorder,
    system: SystemPermit,
    cache: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    /// Wires the parts.
    pub fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        passwords: Passwords,
        tokens: Tokens,
        recorder: Recorder,
        system: SystemPermit,
    ) -> Arc<Self> {
        let cache = Mutex::new(HashMap::new());
        let throttle = Throttle::default();
        Arc::new(Self { db, ambient, principals, passwords, tokens, throttle, recorder, system, cache })
    }

    /// Checks name and password and issues a token. The attempt is counted before anything is hashed.
    ///
    /// # Errors
    /// [`SignInError`]; unknown, wrong and disabled are alike in text and time.
    pub async fn sign_in(
        &self,
        username: &str,
        password: Secret,
        origin: &Origin,
    ) -> Result<SignedIn, SignInError> {
        let name: String =
            crate::users::canonical_name(username).unwrap_or_else(|_| "invalid name".to_owned());
        if let Err(wait) = self.throttle.admit(&name, origin.client_ip, self.ambient.clock.now()) {
            self.note_failure(&name, origin, "throttled", Event::AccountLocked);
            return Err(SignInError::Wait(wait));
        }
        let user = self.principals.user(&name);
        let hash = user.as_ref().map(|user| user.password_hash.clone());
        let too_long = password.expose().len() > 1024;
        let guess = if too_long { Secret::new("too long") } else { password };
        let right = self
            .passwords
            .verify(guess, hash)
            .await
            .map_err(|_| SignInError::Wait(Duration::from_secs(1)))?;
        let Some(user) = user.filter(|user| right && !too_long && !user.disabled) else {
            self.note_failure(&name, origin, "invalid_credentials", Event::AuthenticationFailed);
            return Err(SignInError::Refused);
        };
        self.throttle.succeeded(&name, origin.client_ip);
        let now = self.ambient.clock.now();
        let (token, claims) = self
            .tokens
            .issue(&user.name, &user.roles, user.tokens_valid_from, now, &*self.ambient.entropy)
            .map_err(|error| SignInError::Store(Error::Corrupt(error.to_string())))?;
        let proof = self.system.acting("device.login", Some(user.name.clone())).on_behalf(&user.name, origin);
        let details = json!({ "result": "success", "token_type": "access", "jti": claims.jti });
        self.db
            .write(&proof, move |_| Box::pin(async move { Ok::<_, Error>(Recorded { value: (), details }) }))
            .await?;
        security::authentication("login", "success");
        security::event(
            Event::AuthenticationSucceeded,
            Some(&user.name),
            Some(origin),
            json!({ "method": "login" }),
        );
        security::event(
            Event::TokenIssued,
            Some(&user.name),
            Some(origin),
            json!({ "token_type": "access", "jti": claims.jti }),
        );
        metrics::counter!("orchestrator_jwt_tokens_issued_total", "agent_id" => "user", "token_type" => "access").increment(1);
        Ok(SignedIn {
            token: Secret::new(token),
            expires_in: self.tokens.lifetime_seconds(),
            user: user.name.clone(),
            roles: claims.roles,
        })
    }

    fn note_failure(&self, name: &str, origin: &Origin, reason: &'static str, event: Event) {
        security::authentication("login", "failed");
        // Only names that exist are written down: people type passwords into the wrong field.
        let known = self.principals.user(name).map(|user| user.name.clone());
        security::event(
            event,
            known.as_deref(),
            Some(origin),
            json!({ "reason": reason, "method": "login" }),
        );
        self.recorder.note(
            origin,
            known.as_deref(),
            "device.login",
            known.clone(),
            json!({ "result": "failed", "reason": reason }),
        );
    }

    /// Ends the caller's session: its token is dead from here on, also after a restart.
    ///
    /// # Errors
    /// The storage's; then the token lives on.
    pub async fn sign_out(&self, permit: &Permit<LogOut>) -> Result<(), Error> {
        let caller = permit.caller();
        let revocation = Revocation {
            jti: caller.jti().to_owned(),
            expires_at: caller.expires_at().plus(Duration::from_mins(1)),
            reason: "manual".to_owned(),
            at: self.ambient.clock.now(),
        };
        let (jti, expires_at) = (revocation.jti.clone(), revocation.expires_at);
        self.db
            .write(permit, move |tx| {
                Box::pin(async move {
                    tx.insert_revocation(&revocation).await?;
                    Ok::<_, Error>(Recorded {
                        value: (),
                        details: json!({ "token_type": "access", "jti": revocation.jti }),
                    })
                })
            })
            .await?;
        self.principals.revoke(&jti, expires_at);
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "manual").increment(1);
        security::event(
            Event::TokenRevoked,
            Some(caller.name()),
            Some(caller.origin()),
            json!({ "reason": "manual", "jti": jti }),
        );
        Ok(())
    }

    /// Turns a token into a caller with the rights it has now. Reads memory only.
    pub(super) fn caller(&self, token: &str, origin: &Origin) -> Result<Caller, TokenError> {
        let claims = self.claims(token)?;
        Tokens::check_time(&claims, self.ambient.clock.now())?;
        if self.principals.is_revoked(&claims.jti) {
            return Err(TokenError::Revoked);
        }
        let user = self.principals.user(&claims.sub).ok_or(TokenError::Principal)?;
        if user.disabled || user.tokens_valid_from.micros() != claims.epo {
            return Err(TokenError::Principal);
        }
        Ok(Caller {
            name: claims.sub.clone(),
            grants: Grants::intersect(&claims.roles, &user.roles),
            jti: claims.jti.clone(),
            expires_at: Timestamp::from_seconds(claims.exp),
            origin: origin.clone(),
        })
    }

    fn claims(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Ok(Arc::clone(claims));
        }
        let claims = Arc::new(self.tokens.read(token)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE {
            let now = self.ambient.clock.now();
            cache.retain(|_, claims| Tokens::check_time(claims, now).is_ok());
            if cache.len() >= CACHE {
                cache.clear();
            }
        }
        cache.insert(digest, Arc::clone(&claims));
        Ok(claims)
    }
}
