//! Resets: somebody who has lost a credential replaces it with a token that works once. An administrator lets that happen and
//! never knows what comes of it.
//!
//! Whoever holds the token still needs what was not lost: a password is replaced with the second factors in force, factors are
//! removed with the password. So a token that falls into wrong hands opens no account that has two factors.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{RevokeReset, StartReset};
use interlock_model::policy::Grants;
use interlock_model::secret::Secret;
use interlock_store::identity::{self, Put, Versioned};
use interlock_store::{Error, Tx, UserRow};
use serde_json::json;

use crate::auth::documents::{Reset, ResetOf, SecondFactors};
use crate::auth::{
    FactorError, Factors, NO_PASSWORD, Origin, PasswordRefused, Permit, Recorded, Sessions, SignInError,
    SignIns, clear_factors, note_length,
};
use crate::one_time;
use crate::security::{self, Event};
use crate::users::{UserError, Users, canonical_name};

/// How long a token can be used.
const LIFE: Duration = Duration::from_hours(24);
/// What every token begins with.
const PREFIX: &str = "ilr_";

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// There is no such open reset, whatever the reason.
    #[error("the reset does not exist, has ended, or was used")]
    NotOpen,
    /// The password that the account has is another one.
    #[error("the password is not right")]
    Wrong,
    /// Too many guesses, or the directory does not answer.
    #[error(transparent)]
    SignIn(SignInError),
    /// The user's, or the storage's.
    #[error(transparent)]
    User(#[from] UserError),
}

impl From<Error> for ResetError {
    fn from(error: Error) -> Self {
        Self::User(error.into())
    }
}

impl From<PasswordRefused> for ResetError {
    fn from(error: PasswordRefused) -> Self {
        Self::User(error.into())
    }
}

impl From<FactorError> for ResetError {
    fn from(error: FactorError) -> Self {
        Self::User(error.into())
    }
}

/// Starts and finishes resets.
#[derive(Debug, Clone)]
pub struct Resets {
    users: Users,
    sessions: Arc<Sessions>,
    sign_ins: Arc<SignIns>,
}

/// The account after a reset, with what became of its factors.
type Replaced = (UserRow, Option<Versioned<SecondFactors>>);

impl Resets {
    /// Over these users.
    pub fn new(users: Users, sessions: Arc<Sessions>, sign_ins: Arc<SignIns>) -> Self {
        Self { users, sessions, sign_ins }
    }

    fn now(&self) -> Timestamp {
        self.users.ambient.clock.now()
    }

    async fn open_of(&self, name: &str, now: Timestamp) -> Result<Vec<String>, Error> {
        let found = identity::list::<Reset>(self.users.db.read(), Some(name)).await?;
        Ok(found.into_iter().filter(|reset| reset.is_open(now)).map(|reset| reset.document.id).collect())
    }

    /// Lets somebody replace a credential; the token is shown once. Tokens made before are dead. The account stays as it is
    /// until the token is used.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn start(
        &self,
        permit: &Permit<StartReset>,
        what: ResetOf,
    ) -> Result<(Reset, Secret), UserError> {
        let users = &self.users;
        let name = canonical_name(&permit.target().name).map_err(|_| UserError::NoSuchUser)?;
        let user = users.principals.user(&name).ok_or(UserError::NoSuchUser)?;
        if name == crate::emergency::NAME {
            return Err(UserError::Sealed);
        }
        if name == permit.caller().name() {
            return Err(UserError::Own);
        }
        if what == ResetOf::Password && user.password_hash == NO_PASSWORD {
            return Err(UserError::Elsewhere);
        }
        let one_time::New { id, token, digest } = one_time::make(PREFIX, &*users.ambient.entropy);
        let now = self.now();
        let reset = Reset {
            id,
            user: name.clone(),
            what,
            digest,
            epoch: user.tokens_valid_from,
            created_at: now,
            created_by: permit.caller().name().to_owned(),
            expires_at: now.plus(LIFE),
            ended_at: None,
        };
        let (row, before) = (reset.clone(), self.open_of(&name, now).await?);
        users
            .db
            .write_about(permit, Some(name), move |tx| {
                Box::pin(async move {
                    end_all(tx, &before, now).await?;
                    if identity::insert(tx, &row).await? != Put::Done {
                        return Err(UserError::Conflict);
                    }
                    let details = json!({ "reset": row.id, "what": row.what, "expires_at": row.expires_at });
                    Ok(Recorded { value: (), details })
                })
            })
            .await?;
        Ok((reset, token))
    }

    /// Takes every open token of a user back. Returns how many there were.
    ///
    /// # Errors
    /// [`UserError`].
    pub async fn revoke(&self, permit: &Permit<RevokeReset>) -> Result<usize, UserError> {
        let name = canonical_name(&permit.target().name).map_err(|_| UserError::NoSuchUser)?;
        self.users.principals.user(&name).ok_or(UserError::NoSuchUser)?;
        let now = self.now();
        let open = self.open_of(&name, now).await?;
        self.users
            .db
            .write_about(permit, Some(name), move |tx| {
                Box::pin(async move {
                    let ended = end_all(tx, &open, now).await?;
                    Ok(Recorded { value: ended, details: json!({ "ended": ended }) })
                })
            })
            .await
    }

    /// Replaces the credential: `password` is the new one, or for second factors the one that the account has. Every session
    /// of the user ends.
    ///
    /// # Errors
    /// [`ResetError`]; unknown, used, ended and taken back are alike.
    pub async fn finish(
        &self,
        token: &Secret,
        password: Secret,
        origin: &Origin,
    ) -> Result<Reset, ResetError> {
        let users = &self.users;
        let shown = one_time::read(PREFIX, token).ok_or(ResetError::NotOpen)?;
        let found = identity::read::<Reset>(users.db.read(), &shown.id).await?;
        let now = self.now();
        let is_good = move |found: &Reset| shown.is_of(&found.digest) && found.is_open(now);
        let reset = found.map(|found| found.document).filter(&is_good).ok_or(ResetError::NotOpen)?;
        let name = reset.user.clone();
        let user = users.principals.user(&name).filter(|user| fits(user, &reset));
        if user.is_none() || !self.may_start(&reset.created_by) {
            return Err(ResetError::NotOpen);
        }
        let (action, hash) = match reset.what {
            ResetOf::Password => {
                users.passwords.accept(&name, &password, Factors::Alone)?;
                let hash = users.passwords.hash(password).await.map_err(|_| UserError::Overloaded)?;
                ("user.password_reset", Some(hash))
            }
            ResetOf::Factors => {
                let action = "user.factors_reset";
                let proved = self.sign_ins.prove_password(&name, password, origin, action).await;
                proved.map_err(|error| match error {
                    SignInError::Refused => ResetError::Wrong,
                    SignInError::Store(error) => error.into(),
                    other => ResetError::SignIn(other),
                })?;
                (action, None)
            }
        };
        let proof = self.sessions.acting_for(action, &name, origin);
        let id = reset.id.clone();
        let (user, factors) = users
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<Reset>(tx, &id).await?.filter(|found| is_good(found));
                    let mut found = found.ok_or(ResetError::NotOpen)?;
                    let value = replace(tx, &found, hash, now).await?;
                    found.document.ended_at = Some(now);
                    identity::update(tx, &found).await?;
                    let details = json!({ "reset": found.id, "started_by": found.created_by });
                    Ok::<_, ResetError>(Recorded { value, details })
                })
            })
            .await?;
        users.principals.put(user);
        if let Some(factors) = factors {
            users.principals.put_second_factors(factors.document, factors.version);
        }
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "credentials").increment(1);
        let details = json!({ "reason": "credentials", "tokens": "all" });
        security::event(Event::TokenRevoked, Some(&name), Some(origin), details);
        Ok(reset)
    }

    /// Whether somebody may start resets now: what a dismissed administrator has started is void.
    fn may_start(&self, name: &str) -> bool {
        let principals = &self.users.principals;
        principals.user(name).filter(|user| !user.disabled).is_some_and(|user| {
            Grants::of_user(&user.roles, &user.roles, &principals.roles(), None).holds_scope("users:manage")
        })
    }
}

/// Whether the account is still as it was when the reset was started.
fn fits(user: &UserRow, reset: &Reset) -> bool {
    let has_one = reset.what == ResetOf::Factors || user.password_hash != NO_PASSWORD;
    !user.disabled && has_one && user.tokens_valid_from == reset.epoch
}

async fn replace(
    tx: &mut dyn Tx,
    reset: &Reset,
    hash: Option<String>,
    now: Timestamp,
) -> Result<Replaced, ResetError> {
    let found = tx.user(&reset.user).await?.filter(|user| fits(user, reset));
    let mut user = found.ok_or(ResetError::NotOpen)?;
    let factors = match hash {
        Some(hash) => {
            user.password_hash = hash;
            // It was accepted as one that stands alone.
            note_length(tx, &user.name, false).await?;
            None
        }
        None => clear_factors(tx, &user.name).await?.map(|(factors, _)| factors),
    };
    user.tokens_valid_from = now.max(Timestamp::from_micros(user.tokens_valid_from.micros() + 1));
    user.updated_at = now;
    user.version += 1;
    if tx.update_user(&user).await? { Ok((user, factors)) } else { Err(UserError::Conflict.into()) }
}

async fn end_all(tx: &mut dyn Tx, ids: &[String], now: Timestamp) -> Result<usize, Error> {
    let mut ended = 0;
    for id in ids {
        let found = identity::get::<Reset>(tx, id).await?.filter(|reset| reset.is_open(now));
        if let Some(mut reset) = found {
            reset.document.ended_at = Some(now);
            identity::update(tx, &reset).await?;
            ended += 1;
        }
    }
    Ok(ended)
}
