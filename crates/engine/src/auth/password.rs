//! Passwords: what is accepted, how they are hashed, and how hashing is kept from starving the server.

use std::sync::{Arc, mpsc};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use interlock_model::secret::Secret;
use interlock_model::text::{Form as _, NewPasswordText};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{Breached, bcrypt_hash, blocked};

/// Shortest password where it is the only factor (NIST SP 800-63B-4).
const MIN_ALONE: usize = 15;
/// Shortest password beside a second factor.
const MIN_BESIDE: usize = 8;
/// Longest password in bytes; bounds the work of one guess.
const MAX_BYTES: usize = NewPasswordText::RULE.longest;
/// Hash of a random text that nobody has: an unknown user costs what a known one does.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$IroMlCgFGK+Sy0ajRCpXzQ$tgysxUr3ctiEu2aZMnZumO/uwBzQN9C3ZMwLHWfHHWc";
/// Guesses that may wait for the hashing thread.
const QUEUE: usize = 64;

/// Why a password is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordRefused {
    /// Too short.
    #[error("the password is too short: use at least {0} characters, a few words for example")]
    TooShort(usize),
    /// Too long.
    #[error("the password is too long: use at most 1024 bytes")]
    TooLong,
    /// The scheme looks at a part of it only.
    #[error(
        "the password is too long for bcrypt, which passwords are hashed with here: use at most 72 bytes"
    )]
    TooLongForBcrypt,
    /// It can be guessed.
    #[error("the password is easy to guess: it is a common one, repeats itself, or holds the user name")]
    Guessable,
    /// It is in a list of breached ones.
    #[error("the password is known from a breach elsewhere: choose one that you use nowhere else")]
    Breached,
    /// The list cannot be read.
    #[error("the list of breached passwords cannot be read, so no password is taken; tell an administrator")]
    NoList,
    /// It cannot be typed.
    #[error("the password holds a control character")]
    Control,
}

/// What a password is to its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    /// The only proof of identity.
    Alone,
    /// One of two.
    Beside,
}

/// Checks a new password. No composition rules (NIST SP 800-63B-4 section 3.1.1.2).
///
/// # Errors
/// The first reason against it.
pub fn accept_password(user: &str, password: &Secret, factors: Factors) -> Result<(), PasswordRefused> {
    let text = password.expose();
    let shortest = if factors == Factors::Alone { MIN_ALONE } else { MIN_BESIDE };
    if text.len() > MAX_BYTES {
        return Err(PasswordRefused::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(PasswordRefused::Control);
    }
    if text.chars().count() < shortest {
        return Err(PasswordRefused::TooShort(shortest));
    }
    let folded = blocked::fold(text);
    let distinct = folded.chars().collect::<std::collections::HashSet<_>>().len();
    // Folded like the password, or a name with a separator in it would never be found.
    let user = blocked::fold(user);
    let names_user =
        user.chars().count() >= 4 && folded.contains(&user) && folded.replace(&user, "").chars().count() < 8;
    let steps = folded
        .chars()
        .zip(folded.chars().skip(1))
        .filter(|(a, b)| u32::from(*b).abs_diff(u32::from(*a)) <= 1)
        .count();
    let is_sequence = steps + 1 >= folded.chars().count();
    let is_number = folded.bytes().all(|c| c.is_ascii_digit());
    if blocked::is_common(text) || is_number || distinct < 5 || names_user || is_sequence {
        return Err(PasswordRefused::Guessable);
    }
    Ok(())
}

/// Whether a password is long enough to stand alone.
pub(crate) fn stands_alone(password: &Secret) -> bool {
    password.expose().chars().count() >= MIN_ALONE
}

/// How new passwords of people are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scheme {
    /// As [`Hasher`] says.
    #[default]
    Argon2id,
    /// For systems that take the hashes over and know nothing else.
    Bcrypt,
}

/// How passwords are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hasher {
    /// Argon2id, 19 MiB, two passes, one lane (OWASP password storage).
    Production,
    /// The cheapest parameters there are; for tests only.
    Weak,
}

impl Hasher {
    fn argon2(self) -> Argon2<'static> {
        let params = match self {
            Self::Production => Params::new(19 * 1024, 2, 1, None),
            Self::Weak => Params::new(8, 1, 1, None),
        };
        Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            params.expect("the constants are within the algorithm's bounds"),
        )
    }
}

enum Job {
    Hash(Secret, Scheme, oneshot::Sender<String>),
    Verify { password: Secret, hash: Option<String>, imported: Option<u32>, answer: oneshot::Sender<bool> },
}

/// The hashing thread. Dropping the last handle ends it.
#[derive(Clone)]
pub struct Passwords {
    jobs: mpsc::Sender<Job>,
    places: Arc<Semaphore>,
    breached: Option<Arc<Breached>>,
    scheme: Scheme,
}

/// The right to have hashes computed, one after the other. There are not many: who gets none is told at once.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords")
    }
}

/// Too many guesses wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("check the password: too many sign-ins wait already")]
pub struct Overloaded;

impl Passwords {
    /// Starts the thread.
    ///
    /// # Panics
    /// When the operating system refuses a thread at start-up.
    pub fn start(hasher: Hasher) -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("password-hash".to_owned())
            .spawn(move || serve(hasher, &waiting))
            .expect("the operating system gives a thread at start-up");
        Self { jobs, places: Arc::new(Semaphore::new(QUEUE)), breached: None, scheme: Scheme::default() }
    }

    /// Stores new passwords of people in this way.
    #[must_use]
    pub fn storing_as(self, scheme: Scheme) -> Self {
        Self { scheme, ..self }
    }

    /// Whether a hash may stay as it is: one of an earlier system is replaced when its password is known.
    pub(super) fn keeps(&self, hash: &str) -> bool {
        self.scheme == Scheme::Bcrypt || bcrypt_hash::cost(hash).is_none()
    }

    /// Also refuses passwords of this list.
    #[must_use]
    pub fn refusing(self, breached: Breached) -> Self {
        Self { breached: Some(Arc::new(breached)), ..self }
    }

    /// Checks a password that somebody chooses, or has.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn accept(&self, user: &str, password: &Secret, factors: Factors) -> Result<(), PasswordRefused> {
        accept_password(user, password, factors)?;
        if self.scheme == Scheme::Bcrypt && password.expose().len() > bcrypt_hash::MAX_BYTES {
            return Err(PasswordRefused::TooLongForBcrypt);
        }
        self.check_breached(password)
    }

    fn check_breached(&self, password: &Secret) -> Result<(), PasswordRefused> {
        match self.breached.as_ref().map(|list| list.holds(password.expose())) {
            None | Some(Ok(false)) => Ok(()),
            Some(Ok(true)) => Err(PasswordRefused::Breached),
            Some(Err(error)) => {
                tracing::error!(%error, "the list of breached passwords cannot be read");
                Err(PasswordRefused::NoList)
            }
        }
    }

    /// As [`Passwords::accept`], for the secret that somebody supplies for an agent.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn accept_secret(&self, secret: &Secret) -> Result<(), PasswordRefused> {
        accept_password("", secret, Factors::Alone)?;
        self.check_breached(secret)
    }

    /// Takes a place in the queue.
    ///
    /// # Errors
    /// [`Overloaded`] when all are taken.
    pub fn place(&self) -> Result<Place, Overloaded> {
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Overloaded)?;
        Ok(Place { _permit: permit })
    }

    /// Hashes a new password that was accepted: to a PHC string, or as bcrypt writes it.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn hash(&self, password: Secret) -> Result<String, Overloaded> {
        self.hash_as(password, self.scheme).await
    }

    /// Hashes the secret of an agent to a PHC string. It may be longer than bcrypt can see.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn hash_secret(&self, secret: Secret) -> Result<String, Overloaded> {
        self.hash_as(secret, Scheme::Argon2id).await
    }

    async fn hash_as(&self, password: Secret, scheme: Scheme) -> Result<String, Overloaded> {
        let _place = self.place()?;
        let (answer, hashed) = oneshot::channel();
        self.jobs.send(Job::Hash(password, scheme, answer)).map_err(|_| Overloaded)?;
        hashed.await.map_err(|_| Overloaded)
    }

    /// Whether the password fits the hash. `None` costs the same and is never right: an unknown user looks like a known one.
    /// `imported` is the highest cost among bcrypt hashes that may be asked about: while there are any, every answer takes the
    /// time of such a one.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub async fn verify_at(
        &self,
        _place: &Place,
        password: Secret,
        hash: Option<String>,
        imported: Option<u32>,
    ) -> Result<bool, Overloaded> {
        let (answer, verified) = oneshot::channel();
        self.jobs.send(Job::Verify { password, hash, imported, answer }).map_err(|_| Overloaded)?;
        verified.await.map_err(|_| Overloaded)
    }
}

fn serve(hasher: Hasher, waiting: &mpsc::Receiver<Job>) {
    let argon2 = hasher.argon2();
    let hash = |password: &str| {
        let hash: PasswordHash =
            argon2.hash_password(password.as_bytes()).expect("parameters and salt are valid");
        hash.to_string()
    };
    while let Ok(job) = waiting.recv() {
        match job {
            Job::Hash(password, scheme, answer) => {
                let made = match scheme {
                    Scheme::Argon2id => hash(password.expose()),
                    Scheme::Bcrypt => bcrypt_hash::hash(password.expose()),
                };
                let _ = answer.send(made);
            }
            Job::Verify { password, hash, imported, answer } => {
                let known = hash.is_some();
                let stored = hash.as_deref().unwrap_or(NOBODY);
                let old = bcrypt_hash::cost(stored);
                let right_old = old.is_some() && bcrypt_hash::verify(password.expose(), stored);
                bcrypt_hash::spend(old, imported);
                let stored = if old.is_some() { NOBODY } else { stored };
                let right_new = PasswordHash::new(stored).is_ok_and(|parsed| {
                    argon2.verify_password(password.expose().as_bytes(), &parsed).is_ok()
                });
                let right = if old.is_some() { right_old } else { right_new };
                let _ = answer.send(right && known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_ordinary_sentences_are_accepted() {
        for good in [
            "seven purple pipettes",
            "größere Pipetten für alle",
            "日本語のとても長いパスワードです。はい",
            "x9$Kq!mZ2@pLw7#vR",
        ] {
            assert_eq!(accept_password("ana", &Secret::new(good), Factors::Alone), Ok(()), "{good}");
        }
    }

    #[test]
    fn guessable_ones_are_refused_with_a_reason() {
        for (bad, why) in [
            ("short", PasswordRefused::TooShort(15)),
            ("Password-Password-1", PasswordRefused::Guessable),
            ("correct horse battery staple", PasswordRefused::Guessable),
            ("aaaaaaaaaaaaaaaaaaaa", PasswordRefused::Guessable),
            ("123456789012345678", PasswordRefused::Guessable),
            ("lab_operator lab_operator", PasswordRefused::Guessable),
            ("abcdefghijklmnopqrst", PasswordRefused::Guessable),
            ("with\nnewline in the middle", PasswordRefused::Control),
        ] {
            assert_eq!(
                accept_password("lab_operator", &Secret::new(bad), Factors::Alone)
                    .err()
                    .or(Some(PasswordRefused::TooLong)),
                Some(why),
                "{bad}"
            );
        }
        assert_eq!(
            accept_password("ana", &Secret::new("é".repeat(513)), Factors::Alone),
            Err(PasswordRefused::TooLong)
        );
    }

    #[test]
    fn beside_a_second_factor_eight_characters_are_enough_and_common_ones_still_are_not() {
        let check = |text: &str| accept_password("ana", &Secret::new(text), Factors::Beside);

        assert_eq!(check("gr4vel&ink"), Ok(()));
        assert_eq!(check("gr4vel&"), Err(PasswordRefused::TooShort(8)));
        for bad in ["password1", "qwertyuiop", "P@ssw0rd!", "opentrons1", "summer2026", "87654321"] {
            assert_eq!(check(bad), Err(PasswordRefused::Guessable), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_hash_verifies_its_own_password_only() {
        let passwords = Passwords::start(Hasher::Weak);
        let place = passwords.place().expect("a place");
        let hash = passwords.hash(Secret::new("seven purple pipettes")).await.expect("hashed");

        assert!(hash.starts_with("$argon2id$"));
        assert_eq!(
            passwords.verify_at(&place, Secret::new("seven purple pipettes"), Some(hash.clone()), None).await,
            Ok(true)
        );
        assert_eq!(
            passwords.verify_at(&place, Secret::new("seven purple pipette"), Some(hash), None).await,
            Ok(false)
        );
        assert_eq!(
            passwords.verify_at(&place, Secret::new("no user has this password"), None, None).await,
            Ok(false)
        );
        assert_eq!(
            passwords.verify_at(&place, Secret::new("x"), Some("not a hash".into()), None).await,
            Ok(false)
        );
    }

    #[tokio::test]
    async fn bcrypt_can_be_chosen_for_people_and_never_cuts_a_password_off() {
        let passwords = Passwords::start(Hasher::Weak).storing_as(Scheme::Bcrypt);
        let word = Secret::new("seven purple pipettes");
        let place = passwords.place().expect("a place");

        let hash = passwords.hash(word.clone()).await.expect("a hash");
        assert!(hash.starts_with("$2b$12$"), "{hash}");
        assert!(
            passwords.verify_at(&place, word.clone(), Some(hash.clone()), None).await.expect("an answer")
        );
        let long = format!("{} {}", word.expose(), "x y z 0 ".repeat(7));
        assert_eq!(long.len(), 78);
        assert_eq!(
            passwords.accept("ana", &Secret::new(long.clone()), Factors::Alone),
            Err(PasswordRefused::TooLongForBcrypt)
        );
        // Secrets of agents are longer, and stay what they were.
        assert_eq!(passwords.accept_secret(&Secret::new(long.clone())), Ok(()));
        let secret = passwords.hash_secret(Secret::new(long)).await.expect("a hash");
        assert!(secret.starts_with("$argon2id$"), "{secret}");
        assert!(passwords.keeps(&hash) && passwords.keeps(&secret));
        let strong = Passwords::start(Hasher::Weak);
        assert!(!strong.keeps(&hash) && strong.keeps(&secret), "one of bcrypt is replaced at sign-in");
    }
}
