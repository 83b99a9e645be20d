//! What people do to their own account: change the password, prove again who they are.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::action::ChangePassword;
use interlock_model::secret::Secret;
use interlock_store::Error;
use interlock_store::identity;
use serde_json::json;

use super::documents::Session;
use super::sessions::Issued;
use super::{
    Db, Factors, PasswordRefused, Passwords, Permit, Principals, Recorded, Sessions, SignInError, SignIns,
    accept_password,
};
use crate::Ambient;
use crate::security::{self, Event};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The password that is to prove it is wrong.
    #[error("the current password is not right")]
    Wrong,
    /// Too many guesses.
    #[error("too many attempts")]
    Wait(std::time::Duration),
    /// The new password is not accepted.
    #[error(transparent)]
    Password(#[from] PasswordRefused),
    /// The new password is the old one.
    #[error("the new password is the current one")]
    Same,
    /// Somebody else changed the account, or ended the session, meanwhile.
    #[error("the account was changed at the same time; look and try again")]
    Conflict,
    /// Hashing is overloaded.
    #[error("too many passwords are being hashed; try again in a second")]
    Overloaded,
    /// The storage's.
    #[error("store the change")]
    Store(#[from] Error),
}

impl From<SignInError> for AccountError {
    fn from(error: SignInError) -> Self {
        match error {
            SignInError::Refused | SignInError::Scope => Self::Wrong,
            SignInError::Wait(wait) => Self::Wait(wait),
            SignInError::Store(error) => Self::Store(error),
        }
    }
}

/// Looks after people's own accounts.
#[derive(Clone)]
pub struct Account {
    pub(super) db: Db,
    pub(super) ambient: Ambient,
    pub(super) principals: Arc<Principals>,
    pub(super) passwords: Passwords,
    pub(super) sessions: Arc<Sessions>,
    pub(super) sign_ins: Arc<SignIns>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Account")
    }
}

impl Account {
    /// Wires the parts.
    pub fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        passwords: Passwords,
        sessions: Arc<Sessions>,
        sign_ins: Arc<SignIns>,
    ) -> Self {
        Self { db, ambient, principals, passwords, sessions, sign_ins }
    }

    /// Changes the caller's password. Every token of the caller is dead; the present session goes on with the new ones.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn change_password(
        &self,
        permit: &Permit<ChangePassword>,
        current: Secret,
        new: Secret,
    ) -> Result<Issued, AccountError> {
        let caller = permit.caller();
        let (name, origin) = (caller.name().to_owned(), caller.origin());
        let same = current.matches(new.expose());
        let user = self.sign_ins.check_password(&name, current, origin, "user.password_changed").await?;
        self.sign_ins.succeeded(&name, origin);
        if same {
            return Err(AccountError::Same);
        }
        accept_password(&name, &new, Factors::Alone)?;
        let hash = self.passwords.hash(new).await.map_err(|_| AccountError::Overloaded)?;
        let (id, now) = (caller.session().to_owned(), self.ambient.clock.now());
        let (access_jti, refresh_jti) = (self.sessions.fresh_jti(), self.sessions.fresh_jti());
        let known = user.password_hash.clone();
        let end = self.sessions.end_of(caller.kind(), true, now);
        let (user, session) = self
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let found = tx.user(&name).await?.filter(|user| user.password_hash == known);
                    let mut user = found.ok_or(AccountError::Conflict)?;
                    user.password_hash = hash;
                    user.tokens_valid_from =
                        now.max(Timestamp::from_micros(user.tokens_valid_from.micros() + 1));
                    user.updated_at = now;
                    user.version += 1;
                    tx.update_user(&user).await?.then_some(()).ok_or(AccountError::Conflict)?;
                    let found = identity::get::<Session>(tx, &id).await?;
                    let mut session = found.filter(|s| s.ended_at.is_none()).ok_or(AccountError::Conflict)?;
                    session.document.epoch = user.tokens_valid_from;
                    session.document.access_jti = access_jti;
                    session.document.refresh_jti = session.refresh_jti.as_ref().map(|_| refresh_jti);
                    session.document.previous_jti = None;
                    session.document.issued_at = now;
                    session.document.expires_at = end;
                    identity::update(tx, &session).await?;
                    let details = json!({ "session": session.id, "others": "ended" });
                    Ok::<_, AccountError>(Recorded { value: (user, session.document), details })
                })
            })
            .await?;
        self.principals.put(user);
        metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => "credentials").increment(1);
        let details = json!({ "reason": "credentials", "tokens": "all" });
        security::event(Event::TokenRevoked, Some(&session.principal), Some(origin), details);
        let issued = self.sessions.issue(session)?;
        Sessions::note_issued(&issued.session, origin);
        Ok(issued)
    }
}
