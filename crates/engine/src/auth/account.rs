//! What people do to their own account: change the password, prove again who they are.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::action::{ChangePassword, ConfirmFactor, StepUp};
use interlock_model::secret::Secret;
use interlock_store::identity;
use interlock_store::{Error, Revocation, Tx};
use serde_json::json;

use super::documents::{SecondFactors, Session};
use super::sessions::{Issued, record_issued};
use super::{
    Db, FactorError, Factors, Passkeys, PasswordRefused, Passwords, Permit, Principals, Recorded,
    SecondFactor, Sessions, SignInError, SignIns, stands_alone,
};
use crate::Ambient;
use crate::security::{self, Event};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The password that is to prove it is wrong.
    #[error("the current password is not right")]
    Wrong,
    /// The second factor that is to prove it is wrong, or missing.
    #[error("the code is not right, or was used already; wait for the next one")]
    WrongCode,
    /// The second factor is asked for, not the password; or nothing was given, or both.
    #[error("give the code of your second factor as otp, or if you have none the password")]
    OtherProof,
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
            SignInError::Refused
            | SignInError::Grant
            | SignInError::Scope
            | SignInError::Elsewhere
            | SignInError::NotOffered => Self::Wrong,
            SignInError::SecondFactor { .. } => Self::WrongCode,
            SignInError::Wait(wait) => Self::Wait(wait),
            SignInError::Store(error) => Self::Store(error),
        }
    }
}

/// Looks after people's own accounts.
#[derive(Clone)]
pub struct Account {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    passwords: Passwords,
    sessions: Arc<Sessions>,
    sign_ins: Arc<SignIns>,
    second_factor: Arc<SecondFactor>,
    passkeys: Arc<Passkeys>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Account")
    }
}

impl Account {
    /// Wires the parts.
    #[expect(clippy::too_many_arguments, reason = "it is wired in one place only")]
    pub(crate) fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        passwords: Passwords,
        sessions: Arc<Sessions>,
        sign_ins: Arc<SignIns>,
        second_factor: Arc<SecondFactor>,
        passkeys: Arc<Passkeys>,
    ) -> Self {
        Self { db, ambient, principals, passwords, sessions, sign_ins, second_factor, passkeys }
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
        let checked = self.sign_ins.check_password(&name, current, origin, "user.password_changed").await?;
        let (user, guesser) = checked;
        self.sign_ins.succeeded(guesser).await?;
        if same {
            return Err(AccountError::Same);
        }
        let factors = if self.principals.has_second_factor(&name) { Factors::Beside } else { Factors::Alone };
        self.passwords.accept(&name, &new, factors)?;
        let short = !stands_alone(&new);
        let hash = self.passwords.hash(new).await.map_err(|_| AccountError::Overloaded)?;
        let (id, now) = (caller.session().to_owned(), self.ambient.clock.now());
        let (access_jti, refresh_jti) = (self.sessions.fresh_jti(), self.sessions.fresh_jti());
        let known = user.password_hash.clone();
        let end = |with_refresh| self.sessions.end_of(caller.kind(), with_refresh, now);
        let ends = (end(true), end(false));
        let entry = self.sessions.issued_entry(&name, origin);
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
                    note_length(tx, &user.name, short).await?;
                    let found = identity::get::<Session>(tx, &id).await?;
                    let mut session = found.filter(|s| s.ended_at.is_none()).ok_or(AccountError::Conflict)?;
                    session.document.epoch = user.tokens_valid_from;
                    session.document.access_jti = access_jti;
                    session.document.refresh_jti = session.refresh_jti.as_ref().map(|_| refresh_jti);
                    session.document.previous_jti = None;
                    session.document.issued_at = now;
                    session.document.expires_at = if session.refresh_jti.is_some() { ends.0 } else { ends.1 };
                    identity::update(tx, &session).await?;
                    record_issued(tx, entry, &session).await?;
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

    /// Raises the present session: the caller has just proved again who it is. The access token before is dead.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn step_up(
        &self,
        permit: &Permit<StepUp>,
        code: Option<Secret>,
        password: Option<Secret>,
    ) -> Result<Issued, AccountError> {
        let caller = permit.caller();
        let (name, origin) = (caller.name(), caller.origin());
        let (shown, guesser) = match (code, password, self.principals.has_second_factor(name)) {
            (Some(code), None, true) => {
                let guesser = self.sign_ins.admit(name, origin, "session.stepped_up").await?;
                self.sign_ins.spend_code(name, &code, origin).await.map_err(|error| match error {
                    FactorError::Store(error) => AccountError::Store(error),
                    _ => AccountError::WrongCode,
                })?;
                ("otp", guesser)
            }
            (None, Some(password), false) => {
                let act = "session.stepped_up";
                let (_, guesser) = self.sign_ins.check_password(name, password, origin, act).await?;
                ("pwd", guesser)
            }
            _ => return Err(AccountError::OtherProof),
        };
        self.sign_ins.succeeded(guesser).await?;
        let session = self.raise(permit, shown).await?;
        let issued = self.sessions.issue(session)?;
        Sessions::note_issued(&issued.session, origin);
        Ok(issued)
    }

    /// As [`Account::step_up`], by a passkey of the caller.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn step_up_with_passkey(
        &self,
        permit: &Permit<StepUp>,
        state: &Secret,
        answer: serde_json::Value,
    ) -> Result<Issued, AccountError> {
        self.passkeys.prove(permit, state, answer).await.map_err(|error| match error {
            FactorError::Store(error) => AccountError::Store(error),
            _ => AccountError::WrongCode,
        })?;
        let session = self.raise(permit, "pop").await?;
        let issued = self.sessions.issue(session)?;
        Sessions::note_issued(&issued.session, permit.caller().origin());
        Ok(issued)
    }

    /// As [`SecondFactor::confirm`]; wrong codes are slowed like wrong passwords.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn confirm_factor(
        &self,
        permit: &Permit<ConfirmFactor>,
        code: &Secret,
    ) -> Result<(String, Vec<Secret>), FactorError> {
        let (name, origin) = (permit.caller().name(), permit.caller().origin());
        let admitted = self.sign_ins.admit(name, origin, "factor.confirmed").await;
        let guesser = admitted.map_err(|error| match error {
            SignInError::Wait(wait) => FactorError::Wait(wait),
            SignInError::Store(cause) => FactorError::Store(cause),
            _ => FactorError::Wrong,
        })?;
        let confirmed = self.second_factor.confirm(permit, code).await?;
        self.sign_ins.succeeded(guesser).await?;
        Ok(confirmed)
    }

    async fn raise(&self, permit: &Permit<StepUp>, shown: &'static str) -> Result<Session, AccountError> {
        let caller = permit.caller();
        let (id, now) = (caller.session().to_owned(), self.ambient.clock.now());
        let access_jti = self.sessions.fresh_jti();
        let end = self.sessions.end_of(caller.kind(), false, now);
        let entry = self.sessions.issued_entry(caller.name(), caller.origin());
        let (session, dead) = self
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<Session>(tx, &id).await?;
                    let mut found = found.filter(|s| s.ended_at.is_none()).ok_or(AccountError::Conflict)?;
                    let session = &mut found.document;
                    let dead = std::mem::replace(&mut session.access_jti, access_jti);
                    let revocation = Revocation {
                        jti: dead.clone(),
                        expires_at: end.plus(std::time::Duration::from_mins(1)),
                        reason: "rotated".to_owned(),
                        at: now,
                    };
                    tx.insert_revocation(&revocation).await?;
                    session.auth_time = now;
                    session.issued_at = now;
                    session.previous_jti = None;
                    session.expires_at = session.expires_at.max(end);
                    if !session.amr.iter().any(|factor| factor == shown) {
                        session.amr.push(shown.to_owned());
                    }
                    identity::update(tx, &found).await?;
                    record_issued(tx, entry, &found).await?;
                    let details = json!({ "session": found.id, "amr": found.amr, "jti": found.access_jti });
                    Ok::<_, AccountError>(Recorded { value: (found.document, (dead, end)), details })
                })
            })
            .await?;
        self.principals.revoke(&dead.0, dead.1);
        Ok(session)
    }
}

/// Notes on the second factors whether the password could stand without them.
pub(crate) async fn note_length(tx: &mut dyn Tx, user: &str, short: bool) -> Result<(), Error> {
    if let Some(mut factors) = identity::get::<SecondFactors>(tx, user).await?
        && factors.short_password != short
    {
        factors.document.short_password = short;
        identity::update(tx, &factors).await?;
    }
    Ok(())
}
