//! Signing in: what people and agents share, and people by password; agents are in [`super::agent_sign_in`]. Every attempt is
//! counted before anything is hashed.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::Clock;
use interlock_model::scope::{self, Scope};
use interlock_model::secret::Secret;
use interlock_model::text::{Form as _, GivenSecret};
use interlock_store::{Error, UserRow};
use serde_json::{Value, json};

use super::elsewhere::{Arrivals, Elsewhere, External, PasswordDirectory};
use super::notices::{self, Notice};
use super::opening::Opening;
use super::password::Place;
use super::sessions::Issued;
use super::throttle::Guesser;
use super::{
    FactorError, Origin, PasswordRefused, Passwords, Principals, Recorded, SecondFactor, Sessions, Throttle,
};
use crate::Ambient;
use crate::audit::Recorder;
use crate::emergency;
use crate::security::{self, Event};

/// Longest password or secret that is looked at, in bytes.
const MAX_SECRET_BYTES: usize = GivenSecret::RULE.longest;

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// Wrong name or password, or the principal is disabled. One answer for all.
    #[error("incorrect username or password")]
    Refused,
    /// The password is right and a second factor is missing, or wrong.
    #[error("a second factor is needed")]
    SecondFactor {
        /// One was given.
        wrong: bool,
    },
    /// Too many guesses.
    #[error("too many sign-in attempts")]
    Wait(Duration),
    /// This client may not use this way to a token.
    #[error("this client may not use this grant type")]
    Grant,
    /// Scopes were asked for that the principal does not hold.
    #[error("the scope is not granted")]
    Scope,
    /// The directory that knows this person does not answer.
    #[error("ask the directory")]
    Elsewhere,
    /// This way of signing in is not set up.
    #[error("this way of signing in is not set up")]
    NotOffered,
    /// The session cannot be recorded.
    #[error("record the sign-in")]
    Store(#[from] Error),
}

/// The form in which names are counted; one for all that are no names.
fn canonical(name: &str) -> String {
    crate::users::canonical_name(name).unwrap_or_else(|_| "invalid name".to_owned())
}

/// What a person's program asks for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Nothing beyond these scopes.
    pub scopes: Option<Vec<Scope>>,
    /// No refresh token: the session ends with its access token.
    pub brief: bool,
}

/// A fresh session of a person.
#[derive(Debug)]
pub struct SignedIn {
    /// Its tokens.
    pub issued: Issued,
    /// Who.
    pub user: String,
    /// Roles of the token.
    pub roles: Vec<String>,
}

/// Checks who people and agents say they are.
pub struct SignIns {
    pub(super) sessions: Arc<Sessions>,
    pub(super) principals: Arc<Principals>,
    passwords: Passwords,
    second_factor: Arc<SecondFactor>,
    pub(super) throttle: Throttle,
    arrivals: Arrivals,
    pub(super) recorder: Recorder,
    pub(super) ambient: Ambient,
}

impl std::fmt::Debug for SignIns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignIns")
    }
}

impl SignIns {
    /// Wires the parts.
    #[expect(clippy::too_many_arguments, reason = "it is wired in one place only")]
    pub fn new(
        sessions: Arc<Sessions>,
        principals: Arc<Principals>,
        passwords: Passwords,
        second_factor: Arc<SecondFactor>,
        throttle: Throttle,
        arrivals: Arrivals,
        recorder: Recorder,
        ambient: Ambient,
    ) -> Arc<Self> {
        Arc::new(Self {
            sessions,
            principals,
            passwords,
            second_factor,
            throttle,
            arrivals,
            recorder,
            ambient,
        })
    }

    /// Checks name, password and, of those who have one, the second factor of a person and opens a session.
    ///
    /// # Errors
    /// [`SignInError`]; unknown, wrong and disabled are alike in text and time.
    pub async fn person(
        &self,
        username: &str,
        password: Secret,
        code: Option<Secret>,
        wanted: &Wanted,
        origin: &Origin,
    ) -> Result<SignedIn, SignInError> {
        let name = canonical(username);
        if let Some(directory) = self.arrivals.asks(self.principals.user(&name).as_deref()) {
            let directory = Arc::clone(directory);
            let guesser = self.admit(&name, origin, "device.login").await?;
            let typed = (username, password, code);
            let issued = self.person_elsewhere(&*directory, typed, wanted, guesser, origin).await?;
            security::authentication("login", "success");
            let user = issued.session.principal.clone();
            return Ok(SignedIn { user, roles: issued.session.roles.clone(), issued });
        }
        let (user, guesser) = self.check_password(username, password.clone(), origin, "device.login").await?;
        let is_emergency = user.name == emergency::NAME;
        let amr = if is_emergency {
            self.break_glass(&user, origin).await?
        } else {
            by_password(self.check_second_factor(&user, code, origin).await?)
        };
        let factors = if self.principals.has_second_factor(&user.name) {
            super::Factors::Beside
        } else {
            super::Factors::Alone
        };
        let weak = matches!(
            self.passwords.accept(&user.name, &password, factors),
            Err(PasswordRefused::Guessable | PasswordRefused::Breached)
        );
        self.upgrade(&user, password, origin).await;
        let opening = Opening::user(&user, &self.principals.roles(), "password", amr, origin);
        // An emergency lasts no longer than one access token at a time.
        let opening = limited(opening, wanted)?;
        let opening = Opening { with_refresh: opening.with_refresh && !is_emergency, ..opening };
        let now = self.ambient.clock.now();
        let opened = self
            .sessions
            .open(opening, move |tx, _| Box::pin(async move { Throttle::succeed(tx, &guesser, now).await }))
            .await;
        let issued = opened.inspect_err(|_| security::authentication("login", "error"))?;
        security::authentication("login", "success");
        if weak {
            let renew = json!({ "renew": "interlock account password" });
            self.tell(&user.name, notices::WEAK_PASSWORD, renew, origin).await?;
        }
        Ok(SignedIn { user: user.name.clone(), roles: issued.session.roles.clone(), issued })
    }

    /// The account for emergencies was asked for with the right password: everybody hears of it.
    async fn break_glass(
        &self,
        user: &UserRow,
        origin: &Origin,
    ) -> Result<&'static [&'static str], SignInError> {
        let proof = self.sessions.acting_for("break_glass.used", &user.name, origin);
        let open = emergency::unseal(self.sessions.db(), &proof, self.ambient.clock.now()).await?;
        let details = json!({ "opened": open });
        security::event(Event::BreakGlassUsed, Some(&user.name), Some(origin), details);
        if open {
            return Ok(&["pwd"]);
        }
        self.note_failure(&user.name, origin, "not_renewed", Event::AuthenticationFailed, "device.login");
        Err(SignInError::Refused)
    }

    /// Whether a second factor was shown, of somebody who has proved the first. Those who have one must; a missing or wrong code
    /// leaves the guess counted.
    pub(super) async fn check_second_factor(
        &self,
        user: &UserRow,
        code: Option<Secret>,
        origin: &Origin,
    ) -> Result<bool, SignInError> {
        if !self.principals.has_second_factor(&user.name) {
            return Ok(false);
        }
        let (reason, wrong) = match code.filter(|code| !code.expose().is_empty()) {
            None => ("second_factor_missing", false),
            Some(code) => match self.spend_code(&user.name, &code, origin).await {
                Ok(()) => return Ok(true),
                Err(FactorError::Store(error)) => return Err(error.into()),
                Err(_) => ("second_factor_wrong", true),
            },
        };
        self.note_failure(&user.name, origin, reason, Event::AuthenticationFailed, "device.login");
        // Whoever has the password is told of; the owner who types the code next takes it back.
        self.tell(
            &user.name,
            notices::HALF_SIGN_IN,
            json!({ "second_factor": if wrong { "wrong" } else { "missing" } }),
            origin,
        )
        .await?;
        Err(SignInError::SecondFactor { wrong })
    }

    /// Tells a person something about a sign-in.
    async fn tell(
        &self,
        user: &str,
        kind: &'static str,
        details: Value,
        origin: &Origin,
    ) -> Result<(), Error> {
        let user = user.to_owned();
        let notice = Notice {
            at: self.ambient.clock.now(),
            kind: kind.to_owned(),
            from: Some(origin.client_ip.to_string()),
            by: None,
            count: 1,
            details,
        };
        let db = self.sessions.db();
        db.count(move |tx| Box::pin(async move { notices::tell(tx, &user, notice).await })).await
    }

    /// Takes a code of a person's second factor; it is spent then.
    pub(super) async fn spend_code(
        &self,
        user: &str,
        code: &Secret,
        origin: &Origin,
    ) -> Result<(), FactorError> {
        let proof = self.sessions.acting_for("second_factor.used", user, origin);
        self.second_factor.spend(&proof, user, code).await
    }

    /// Takes one guess at a person's password. It counts as wrong until [`SignIns::succeeded`].
    pub(super) async fn check_password(
        &self,
        username: &str,
        password: Secret,
        origin: &Origin,
        action: &'static str,
    ) -> Result<(Arc<UserRow>, Guesser), SignInError> {
        let name = canonical(username);
        // A place to hash first, then the count, then the hash: an overloaded server counts nobody's guess against them.
        let place = self.place()?;
        let guesser = self.admit(&name, origin, action).await?;
        let user = self.principals.user(&name);
        let hash = user.as_ref().map(|user| user.password_hash.clone());
        let right = self.verify(&place, password, hash).await?;
        let Some(user) = user.filter(|user| right && !user.disabled) else {
            self.note_failure(&name, origin, "invalid_credentials", Event::AuthenticationFailed, action);
            return Err(SignInError::Refused);
        };
        Ok((user, guesser))
    }

    /// Takes one guess at a person's password, here or at the directory that keeps it, and forgets earlier ones if it is right.
    ///
    /// # Errors
    /// [`SignInError`].
    pub(crate) async fn prove_password(
        &self,
        name: &str,
        password: Secret,
        origin: &Origin,
        action: &'static str,
    ) -> Result<(), SignInError> {
        let Some(directory) = self.arrivals.asks(self.principals.user(name).as_deref()) else {
            let (_, guesser) = self.check_password(name, password, origin, action).await?;
            return Ok(self.succeeded(guesser).await?);
        };
        let directory = Arc::clone(directory);
        let guesser = self.admit(name, origin, action).await?;
        let external = self.ask_directory(&*directory, (name, &password), &guesser, origin).await?;
        if self.arrivals.account(&external, origin).await?.name != name {
            return Err(SignInError::Refused);
        }
        Ok(self.succeeded(guesser).await?)
    }

    /// Who the directory says this is. If it cannot be asked, the guess is given back.
    async fn ask_directory(
        &self,
        directory: &dyn PasswordDirectory,
        (name, password): (&str, &Secret),
        guesser: &Guesser,
        origin: &Origin,
    ) -> Result<External, SignInError> {
        match directory.authenticate(name, password).await {
            Ok(external) => Ok(external),
            Err(Elsewhere::Refused(reason)) => {
                self.arrivals.note_refusal("ldap", &reason, origin);
                Err(SignInError::Refused)
            }
            Err(Elsewhere::Unavailable(reason)) => {
                tracing::warn!(reason, "the directory could not be asked");
                self.throttle.give_back(guesser.clone()).await?;
                Err(SignInError::Elsewhere)
            }
        }
    }

    fn guesser(&self, name: &str, origin: &Origin) -> Guesser {
        Guesser::new(&counted_as(name, origin), self.principals.user(name).is_some(), origin.client_ip)
    }

    /// Counts one guess at a person's credentials.
    pub(super) async fn admit(
        &self,
        name: &str,
        origin: &Origin,
        action: &'static str,
    ) -> Result<Guesser, SignInError> {
        let guesser = self.guesser(name, origin);
        if let Err(wait) = self.throttle.admit(&guesser).await? {
            self.note_failure(name, origin, "throttled", Event::AccountLocked, action);
            return Err(SignInError::Wait(wait));
        }
        Ok(guesser)
    }

    /// The guess was right and opens no session.
    pub(super) async fn succeeded(&self, guesser: Guesser) -> Result<(), Error> {
        self.throttle.succeeded(guesser).await
    }

    /// Replaces a hash of an earlier system now that the password is known. Sessions go on. The sign-in does not depend on it.
    async fn upgrade(&self, user: &UserRow, password: Secret, origin: &Origin) {
        if self.passwords.keeps(&user.password_hash) {
            return;
        }
        let good = self.passwords.accept(&user.name, &password, super::Factors::Alone).is_ok();
        let Ok(hash) = self.passwords.hash(password).await else { return };
        let (name, old, now) = (user.name.clone(), user.password_hash.clone(), self.ambient.clock.now());
        let proof = self.sessions.acting_for("user.password_upgraded", &user.name, origin);
        let stored = self
            .sessions
            .db()
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let found = tx.user(&name).await?.filter(|user| user.password_hash == old);
                    let mut user = found
                        .ok_or_else(|| Error::Corrupt("the password was changed meanwhile".to_owned()))?;
                    user.password_hash = hash;
                    user.updated_at = now;
                    user.version += 1;
                    tx.update_user(&user).await?;
                    let details = json!({ "from": "bcrypt", "to": "argon2id", "meets_policy": good });
                    Ok::<_, Error>(Recorded { value: user, details })
                })
            })
            .await;
        match stored {
            Ok(user) => self.principals.put(user),
            Err(error) => {
                tracing::warn!(%error, "an imported password hash was not replaced; the next sign-in tries again");
            }
        }
    }

    /// Has a directory check the password.
    async fn person_elsewhere(
        &self,
        directory: &dyn PasswordDirectory,
        (username, password, code): (&str, Secret, Option<Secret>),
        wanted: &Wanted,
        guesser: Guesser,
        origin: &Origin,
    ) -> Result<Issued, SignInError> {
        let external = self.ask_directory(directory, (username, &password), &guesser, origin).await?;
        let user = self.arrivals.account(&external, origin).await?;
        let amr = by_password(self.check_second_factor(&user, code, origin).await?);
        let now = self.ambient.clock.now();
        let roles = self.principals.roles();
        let opening = limited(Opening::user(&user, &roles, external.method, amr, origin), wanted)?;
        let opened = self
            .sessions
            .open(opening, move |tx, _| Box::pin(async move { Throttle::succeed(tx, &guesser, now).await }));
        Ok(opened.await?)
    }

    pub(super) fn place(&self) -> Result<Place, SignInError> {
        self.passwords.place().map_err(|_| SignInError::Wait(Duration::from_secs(1)))
    }

    /// Costs the same whether there is a hash or not.
    pub(super) async fn verify(
        &self,
        place: &Place,
        guess: Secret,
        hash: Option<String>,
    ) -> Result<bool, SignInError> {
        let too_long = guess.expose().len() > MAX_SECRET_BYTES;
        let guess = if too_long { Secret::new("too long") } else { guess };
        let imported = self.principals.dearest_bcrypt();
        let right = self.passwords.verify_at(place, guess, hash, imported).await;
        Ok(right.map_err(|_| SignInError::Wait(Duration::from_secs(1)))? && !too_long)
    }

    pub(super) fn note_failure(
        &self,
        name: &str,
        origin: &Origin,
        reason: &'static str,
        event: Event,
        action: &'static str,
    ) {
        security::authentication("login", "failed");
        // Only names that exist are written down: people type passwords into the wrong field.
        let known = self.principals.user(name).map(|user| user.name.clone());
        let details = json!({ "reason": reason, "method": "login" });
        security::event(event, known.as_deref(), Some(origin), details);
        let details = json!({ "result": "failed", "reason": reason });
        self.recorder.note(origin, known.as_deref(), action, known.clone(), details);
    }

    pub(super) fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.ambient.clock
    }

    pub(super) fn principals(&self) -> &Principals {
        &self.principals
    }
}

/// The same session with what was asked for and no more.
fn limited<'a>(mut opening: Opening<'a>, wanted: &Wanted) -> Result<Opening<'a>, SignInError> {
    if let Some(scopes) = &wanted.scopes {
        let held = scope::intersect(scopes, &opening.scopes);
        if scopes.iter().any(|scope| !held.contains(scope)) {
            return Err(SignInError::Scope);
        }
        (opening.scopes, opening.limited) = (held, true);
    }
    opening.with_refresh &= !wanted.brief;
    Ok(opening)
}

/// What was proved beside a password.
const fn by_password(second_factor: bool) -> &'static [&'static str] {
    if second_factor { &["pwd", "otp"] } else { &["pwd"] }
}

/// The account that a guess counts against. That for emergencies is another at each address: whatever limits an account as a
/// whole, strangers cannot reach that limit for its owner.
fn counted_as<'a>(name: &'a str, origin: &Origin) -> Cow<'a, str> {
    if name == emergency::NAME {
        Cow::Owned(format!("{name} at {}", origin.client_ip))
    } else {
        Cow::Borrowed(name)
    }
}
