//! Second factors: authenticator apps and recovery codes. Every code is taken once.

use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::action::{ConfirmFactor, EnrolFactor, ListFactors, RemoveFactor, RenewRecoveryCodes};
use interlock_model::secret::Secret;
use interlock_model::text::{FactorName, Form as _};
use interlock_store::identity::{self, Put, Versioned};
use interlock_store::{Error, Tx};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::documents::{SecondFactors, TotpFactor};
use super::sealing::MasterKey;
use super::{Db, Permit, Principals, Proof, Recorded, totp};
use crate::Ambient;

/// Authenticator apps of one person at most.
const MAX_APPS: usize = 5;
/// Recovery codes that are made at once.
const CODES: usize = 10;
/// Characters of a recovery code: 140 bits.
const CODE_CHARS: usize = 28;
/// Without look-alikes.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum FactorError {
    /// The code fits nothing, or was used.
    #[error("the code is not right, or was used already; wait for the next one")]
    Wrong,
    /// Too many guesses.
    #[error("too many attempts")]
    Wait(std::time::Duration),
    /// There is no such factor.
    #[error("there is no such second factor")]
    NoSuchFactor,
    /// There is nobody of this name.
    #[error("there is no user of this name")]
    NoSuchUser,
    /// Nothing waits for a first code.
    #[error("no authenticator app waits for its first code; begin with POST /auth/factors/totp")]
    NothingPending,
    /// There are enough.
    #[error("there are five authenticator apps already; remove one first")]
    TooMany,
    /// There are enough.
    #[error("there are ten passkeys already; remove one first")]
    TooManyPasskeys,
    /// What the device answered is not right, or came late, or twice.
    #[error("what the device answered is not right, or came too late; begin again")]
    WrongPasskey,
    /// This person signs in another way.
    #[error("passkeys are for accounts with a password of this server; yours signs in elsewhere")]
    NoPasskeys,
    /// There are no passkeys here.
    #[error("passkeys are not offered here: the server needs PUBLIC_URL with a name of its own")]
    NotOffered,
    /// The name cannot be used.
    #[error("a name has 1 to 64 characters")]
    Name,
    /// The password is too short to stand alone.
    #[error(
        "the password is shorter than 15 characters, too short without a second factor; set a longer one first"
    )]
    ShortPassword,
    /// Codes need a second factor.
    #[error("there is no second factor that recovery codes could stand in for")]
    NoFactor,
    /// Somebody else changed it meanwhile.
    #[error("it was changed at the same time; look and try again")]
    Conflict,
    /// The storage's.
    #[error("store the change")]
    Store(#[from] Error),
}

/// What a fresh authenticator app is set up with; shown once.
#[derive(Debug)]
pub struct Enrolment {
    /// Id of the factor.
    pub id: String,
    /// In base32.
    pub secret: Secret,
    /// The same as a link.
    pub uri: Secret,
}

/// Looks after second factors.
pub struct SecondFactor {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    master: Arc<MasterKey>,
}

impl std::fmt::Debug for SecondFactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecondFactor")
    }
}

pub(super) fn place(user: &str, factor: &str) -> String {
    format!("{user}/{factor}")
}

/// A name for people, checked.
pub(super) fn name_of_factor(name: &str) -> Result<String, FactorError> {
    let name = name.trim();
    if !FactorName::RULE.holds(name) {
        return Err(FactorError::Name);
    }
    Ok(name.to_owned())
}

/// What is kept of a recovery code. Spaces, hyphens and case do not matter.
fn digest(user: &str, code: &str) -> String {
    let plain: String = code.chars().filter(char::is_ascii_alphanumeric).collect();
    let text = format!("interlock recovery code\n{user}\n{}", plain.to_ascii_lowercase());
    interlock_model::id::hexadecimal(&Sha256::digest(text.as_bytes()))
}

impl SecondFactor {
    /// Wires the parts.
    pub(crate) fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        master: Arc<MasterKey>,
    ) -> Arc<Self> {
        Arc::new(Self { db, ambient, principals, master })
    }

    /// Takes a code: of an app, or a recovery code. It is spent when this returns.
    ///
    /// # Errors
    /// [`FactorError::Wrong`]; nothing is recorded then.
    pub(super) async fn spend<P: Proof + ?Sized>(
        &self,
        proof: &P,
        user: &str,
        code: &Secret,
    ) -> Result<(), FactorError> {
        let guess: String = code.expose().chars().filter(|c| !matches!(c, ' ' | '-')).take(64).collect();
        let guess = Secret::new(guess);
        let (user, now, master) = (user.to_owned(), self.ambient.clock.now(), Arc::clone(&self.master));
        let (changed, left) = self
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<SecondFactors>(tx, &user).await?;
                    let mut found = found.ok_or(FactorError::Wrong)?;
                    let details = take(&mut found.document, &master, &guess, now)?;
                    store(tx, &mut found).await?;
                    let left = found.recovery.len();
                    Ok::<_, FactorError>(Recorded { value: (found, left), details })
                })
            })
            .await?;
        if left < 3 {
            tracing::warn!(user = changed.user, left, "few recovery codes are left");
        }
        self.principals.put_second_factors(changed.document, changed.version);
        Ok(())
    }

    /// The caller's factors, and how many recovery codes are left.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, permit: &Permit<ListFactors>) -> Result<SecondFactors, Error> {
        let name = permit.caller().name();
        let found = identity::read::<SecondFactors>(self.db.read(), name).await?;
        let now = self.ambient.clock.now();
        Ok(found.map_or_else(|| SecondFactors::of(name.to_owned(), now), |found| found.document))
    }

    /// Makes the secret of an authenticator app. It counts for nothing until [`SecondFactor::confirm`]; one that waited before
    /// is forgotten.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn enrol(&self, permit: &Permit<EnrolFactor>, name: &str) -> Result<Enrolment, FactorError> {
        let name = name_of_factor(name)?;
        let user = permit.caller().name().to_owned();
        let mut secret = Zeroizing::new([0; totp::SECRET_BYTES]);
        self.ambient.entropy.fill(&mut *secret);
        let id = interlock_model::id::random_hex(&*self.ambient.entropy, 8);
        let now = self.ambient.clock.now();
        let sealed = self.master.seal("totp", &place(&user, &id), &*secret);
        let factor = TotpFactor {
            id: id.clone(),
            name,
            sealed: sealed.map_err(|error| Error::Corrupt(error.to_string()))?,
            created_at: now,
            confirmed_at: None,
            last_step: 0,
            last_used_at: None,
        };
        let text = totp::base32(&*secret);
        let uri = Secret::new(totp::uri(&user, &text));
        self.change_sealed(permit, user, true, move |factors| {
            factors.totp.retain(|factor| factor.confirmed_at.is_some());
            if factors.totp.len() >= MAX_APPS {
                return Err(FactorError::TooMany);
            }
            let details = json!({ "factor": factor.id, "kind": "totp" });
            factors.totp.push(factor);
            Ok(details)
        })
        .await?;
        Ok(Enrolment { id, secret: Secret::new(text), uri })
    }

    /// Takes the first code of an app: from here on it is asked for at sign-in. With the first app come the recovery codes.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn confirm(
        &self,
        permit: &Permit<ConfirmFactor>,
        code: &Secret,
    ) -> Result<(String, Vec<Secret>), FactorError> {
        let user = permit.caller().name().to_owned();
        let guess: String = code.expose().chars().filter(|c| *c != ' ').take(16).collect();
        let (codes, digests) = self.new_codes(&user);
        let (now, master) = (self.ambient.clock.now(), Arc::clone(&self.master));
        let changed = self
            .change(permit, user, move |factors| {
                let (user, first) = (factors.user.clone(), !factors.has_any());
                let waiting = factors.totp.iter_mut().find(|factor| factor.confirmed_at.is_none());
                let factor = waiting.ok_or(FactorError::NothingPending)?;
                let step = step_of(factor, &user, &master, &guess, now)?.ok_or(FactorError::Wrong)?;
                factor.confirmed_at = Some(now);
                factor.last_step = step;
                factor.last_used_at = Some(now);
                let details = json!({ "factor": factor.id, "kind": "totp", "recovery_codes": first });
                if first {
                    factors.recovery = digests;
                }
                Ok(details)
            })
            .await?;
        let first = changed.count() == 1;
        let newest = changed.confirmed().max_by_key(|factor| factor.confirmed_at);
        let id = newest.map(|factor| factor.id.clone()).unwrap_or_default();
        Ok((id, if first { codes } else { Vec::new() }))
    }

    /// Removes an app. With the last one go the recovery codes, and then the password must be long enough to stand alone.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn remove(&self, permit: &Permit<RemoveFactor>) -> Result<(), FactorError> {
        let id = permit.target().id.clone();
        let user = permit.caller().name().to_owned();
        self.change(permit, user, move |factors| {
            let before = factors.totp.len() + factors.passkeys.len();
            factors.totp.retain(|factor| factor.id != id);
            factors.passkeys.retain(|passkey| passkey.id != id);
            if factors.totp.len() + factors.passkeys.len() == before {
                return Err(FactorError::NoSuchFactor);
            }
            if !factors.has_any() {
                if factors.short_password {
                    return Err(FactorError::ShortPassword);
                }
                factors.recovery.clear();
            }
            Ok(json!({ "factor": id, "left": factors.count() }))
        })
        .await
        .map(drop)
    }

    /// Makes new recovery codes; the ones before are dead.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn renew_codes(&self, permit: &Permit<RenewRecoveryCodes>) -> Result<Vec<Secret>, FactorError> {
        let user = permit.caller().name().to_owned();
        let (codes, digests) = self.new_codes(&user);
        self.change(permit, user, move |factors| {
            if !factors.has_any() {
                return Err(FactorError::NoFactor);
            }
            factors.recovery = digests;
            Ok(json!({ "recovery_codes": CODES }))
        })
        .await?;
        Ok(codes)
    }

    pub(super) fn new_codes(&self, user: &str) -> (Vec<Secret>, Vec<String>) {
        let mut bytes = Zeroizing::new([0; CODES * CODE_CHARS]);
        self.ambient.entropy.fill(&mut *bytes);
        let code = |part: &[u8]| {
            let letters: Vec<char> =
                part.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
            letters.chunks(7).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>().join("-")
        };
        let codes: Vec<Secret> = bytes.chunks(CODE_CHARS).map(|part| Secret::new(code(part))).collect();
        let digests = codes.iter().map(|code| digest(user, code.expose())).collect();
        (codes, digests)
    }

    async fn change<P, F>(&self, proof: &P, user: String, edit: F) -> Result<SecondFactors, FactorError>
    where
        P: Proof + ?Sized,
        F: FnOnce(&mut SecondFactors) -> Result<serde_json::Value, FactorError> + Send + 'static,
    {
        self.change_sealed(proof, user, false, edit).await
    }

    /// `seals` says that the change stores a secret that was sealed just now.
    async fn change_sealed<P, F>(
        &self,
        proof: &P,
        user: String,
        seals: bool,
        edit: F,
    ) -> Result<SecondFactors, FactorError>
    where
        P: Proof + ?Sized,
        F: FnOnce(&mut SecondFactors) -> Result<serde_json::Value, FactorError> + Send + 'static,
    {
        let (now, master) = (self.ambient.clock.now(), Arc::clone(&self.master));
        let changed = self
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<SecondFactors>(tx, &user).await?;
                    let mut found = found
                        .unwrap_or_else(|| Versioned { document: SecondFactors::of(user, now), version: 0 });
                    if seals && !master.seals(&mut *tx).await? {
                        return Err(Error::Corrupt(
                            "the master key is being exchanged, or is not that of the other servers"
                                .to_owned(),
                        )
                        .into());
                    }
                    let details = edit(&mut found.document)?;
                    found.document.updated_at = now;
                    store(tx, &mut found).await?;
                    Ok::<_, FactorError>(Recorded { value: found, details })
                })
            })
            .await?;
        self.principals.put_second_factors(changed.document.clone(), changed.version);
        Ok(changed.document)
    }
}

/// Removes every factor of somebody.
pub(crate) async fn reset<P: Proof + ?Sized>(
    db: &Db,
    principals: &Principals,
    proof: &P,
    name: String,
) -> Result<(), FactorError> {
    if principals.user(&name).is_none() {
        return Err(FactorError::NoSuchUser);
    }
    let changed = db
        .write(proof, move |tx| {
            Box::pin(async move {
                let found = clear(tx, &name).await?;
                let removed = found.as_ref().map_or(0, |(_, removed)| *removed);
                Ok::<_, FactorError>(Recorded { value: found, details: json!({ "removed": removed }) })
            })
        })
        .await?;
    if let Some((changed, _)) = changed {
        principals.put_second_factors(changed.document, changed.version);
    }
    Ok(())
}

/// Removes every factor of somebody who has any; what is left, and how many there were.
pub(crate) async fn clear(
    tx: &mut dyn Tx,
    name: &str,
) -> Result<Option<(Versioned<SecondFactors>, usize)>, FactorError> {
    let Some(mut found) = identity::get::<SecondFactors>(tx, name).await? else { return Ok(None) };
    if found.short_password {
        return Err(FactorError::ShortPassword);
    }
    let removed = found.count();
    found.document.totp.clear();
    found.document.passkeys.clear();
    found.document.recovery.clear();
    store(tx, &mut found).await?;
    Ok(Some((found, removed)))
}

/// Stores version 0 as new and any other as the next.
pub(super) async fn store(
    tx: &mut dyn Tx,
    factors: &mut Versioned<SecondFactors>,
) -> Result<(), FactorError> {
    let put = if factors.version == 0 {
        identity::insert(tx, &factors.document).await?
    } else {
        identity::update(tx, factors).await?
    };
    factors.version += 1;
    if put == Put::Done { Ok(()) } else { Err(FactorError::Conflict) }
}

fn step_of(
    factor: &TotpFactor,
    user: &str,
    master: &MasterKey,
    guess: &str,
    now: Timestamp,
) -> Result<Option<i64>, FactorError> {
    let secret = master.open("totp", &place(user, &factor.id), &factor.sealed);
    let secret = secret.map_err(|error| Error::Corrupt(error.to_string()))?;
    Ok(totp::matching_step(&secret, guess, now, factor.last_step))
}

/// Spends a code; the facts for the audit trail.
fn take(
    factors: &mut SecondFactors,
    master: &MasterKey,
    guess: &Secret,
    now: Timestamp,
) -> Result<serde_json::Value, FactorError> {
    let user = factors.user.clone();
    let guess = guess.expose();
    if guess.len() == 6 && guess.bytes().all(|c| c.is_ascii_digit()) {
        for factor in factors.totp.iter_mut().filter(|factor| factor.confirmed_at.is_some()) {
            if let Some(step) = step_of(factor, &user, master, guess, now)? {
                factor.last_step = step;
                factor.last_used_at = Some(now);
                return Ok(json!({ "factor": factor.id, "kind": "totp" }));
            }
        }
        return Err(FactorError::Wrong);
    }
    let shown = Secret::new(digest(&user, guess));
    let before = factors.recovery.len();
    factors.recovery.retain(|kept| !shown.matches(kept));
    if factors.recovery.len() == before {
        return Err(FactorError::Wrong);
    }
    Ok(json!({ "kind": "recovery_code", "left": factors.recovery.len() }))
}
