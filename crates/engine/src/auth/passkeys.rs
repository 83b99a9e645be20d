//! Passkeys: keys that people's own devices keep and use after a fingerprint, a face or a PIN (Web Authentication Level 3).
//!
//! One act shows two factors: that the device is there and that its owner is. What a device answers is judged by
//! [`Ceremonies`]; here is who it belongs to, that each challenge counts once, and what follows. A challenge is not stored: it
//! goes out sealed and comes back with the answer. People of a directory have none, because what their directory takes from
//! them would not end here.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{ConfirmFactor, EnrolFactor, StepUp};
use interlock_model::id::{hexadecimal, random_hex};
use interlock_model::secret::Secret;
use interlock_store::identity::{self, Document, Put, Versioned};
use interlock_store::{Error, UserRow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::documents::{PasskeyFactor, SecondFactors, Used};
use super::elsewhere::NO_PASSWORD;
use super::factors::{name_of_factor, store};
use super::opening::Opening;
use super::sealing::MasterKey;
use super::sessions::Issued;
use super::{
    Db, FactorError, Origin, Permit, Principals, Recorded, SecondFactor, Sessions, SignInError, SignIns,
};
use crate::Ambient;
use crate::emergency;
use crate::security::{self, Event};

/// Passkeys of one person at most.
const MAX_PASSKEYS: usize = 10;
/// Time to answer a challenge.
const PATIENCE: Duration = Duration::from_mins(5);
/// What a challenge is sealed as.
const CHALLENGE: &str = "passkey_challenge";
/// The owner of a challenge for whoever is going to answer.
const ANYBODY: &str = "sign-in";
/// What a passkey shows: possession of a key, and a second factor on the device (RFC 8176).
const AMR: &[&str] = &["pop", "mfa"];

/// What goes to a device, and what is needed to judge its answer.
#[derive(Debug)]
pub struct Ceremony {
    /// For the device.
    pub options: Value,
    /// For us.
    pub state: Value,
}

/// A passkey that was made.
#[derive(Debug)]
pub struct NewPasskey {
    /// Id of the credential, hexadecimal.
    pub id: String,
    /// What verifies it.
    pub passkey: Value,
}

/// Judges what devices answer. Pure computation.
pub trait Ceremonies: Send + Sync {
    /// Begins to make a passkey for whom the device will know by `handle`, unless it holds one of `known`.
    ///
    /// # Errors
    /// What is wrong, for the log.
    fn begin_registration(&self, handle: [u8; 16], name: &str, known: &[Value]) -> Result<Ceremony, String>;

    /// Judges the new passkey.
    ///
    /// # Errors
    /// What is wrong, for the log.
    fn finish_registration(&self, state: Value, answer: Value) -> Result<NewPasskey, String>;

    /// Begins a sign-in by whoever answers.
    ///
    /// # Errors
    /// What is wrong, for the log.
    fn begin_sign_in(&self) -> Result<Ceremony, String>;

    /// Whom an answer says it is from: the handle, and the id of the credential.
    fn named(&self, answer: &Value) -> Option<([u8; 16], String)>;

    /// Judges an answer. Returns the passkey as it is to be kept now, if it changed.
    ///
    /// # Errors
    /// What is wrong, for the log.
    fn finish_sign_in(&self, state: Value, answer: Value, passkey: &Value) -> Result<Option<Value>, String>;
}

/// A challenge for a device.
#[derive(Debug)]
pub struct Challenge {
    /// For the device.
    pub options: Value,
    /// Comes back with the answer.
    pub state: Secret,
}

/// The sealed half of a challenge.
#[derive(Serialize, Deserialize)]
struct Waiting {
    until: Timestamp,
    once: String,
    /// Of the passkey that is to be made.
    name: String,
    state: Value,
}

/// Whose a passkey is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PasskeyOwner {
    /// Digest of the credential's id.
    id: String,
    user: String,
}

impl Document for PasskeyOwner {
    const KIND: &'static str = "passkey";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.user.clone())
    }
}

fn digest(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

/// Makes passkeys and lets people in by them.
pub struct Passkeys {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    sessions: Arc<Sessions>,
    sign_ins: Arc<SignIns>,
    second_factor: Arc<SecondFactor>,
    master: Arc<MasterKey>,
    ceremonies: Option<Arc<dyn Ceremonies>>,
}

impl std::fmt::Debug for Passkeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passkeys(offered: {})", self.is_offered())
    }
}

/// Somebody whose device has answered well.
struct Answered {
    user: Arc<UserRow>,
    /// Id of the factor.
    factor: String,
    /// The passkey as it is to be kept now.
    changed: Option<Value>,
}

impl Passkeys {
    /// Wires the parts.
    #[expect(clippy::too_many_arguments, reason = "it is wired in one place only")]
    pub(crate) fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        sessions: Arc<Sessions>,
        sign_ins: Arc<SignIns>,
        second_factor: Arc<SecondFactor>,
        master: Arc<MasterKey>,
        ceremonies: Option<Arc<dyn Ceremonies>>,
    ) -> Arc<Self> {
        Arc::new(Self { db, ambient, principals, sessions, sign_ins, second_factor, master, ceremonies })
    }

    /// Whether there are passkeys here.
    pub fn is_offered(&self) -> bool {
        self.ceremonies.is_some()
    }

    fn ceremonies(&self) -> Result<&dyn Ceremonies, FactorError> {
        self.ceremonies.as_deref().ok_or(FactorError::NotOffered)
    }

    /// How devices know a person: the same for all passkeys of one, and nobody's name.
    fn handle(&self, user: &str) -> [u8; 16] {
        let installation = self.sessions.tokens().names().1;
        let digest = Sha256::digest(format!("interlock user handle\n{installation}\n{user}").as_bytes());
        let mut handle = [0; 16];
        handle.copy_from_slice(&digest[..16]);
        handle
    }

    fn challenge(&self, ceremony: Ceremony, owner: &str, name: &str) -> Result<Challenge, Error> {
        let waiting = Waiting {
            until: self.ambient.clock.now().plus(PATIENCE),
            once: random_hex(&*self.ambient.entropy, 16),
            name: name.to_owned(),
            state: ceremony.state,
        };
        let text = serde_json::to_vec(&waiting).map_err(|error| Error::Corrupt(error.to_string()))?;
        let sealed = self.master.seal(CHALLENGE, owner, &text);
        let sealed = sealed.map_err(|error| Error::Corrupt(error.to_string()))?;
        Ok(Challenge { options: ceremony.options, state: Secret::new(sealed) })
    }

    /// The challenge that an answer belongs to; it is spent.
    async fn spend(&self, state: &Secret, owner: &str) -> Result<Waiting, FactorError> {
        let opened =
            self.master.open(CHALLENGE, owner, state.expose()).map_err(|_| FactorError::WrongPasskey)?;
        let waiting: Waiting = serde_json::from_slice(&opened).map_err(|_| FactorError::WrongPasskey)?;
        if waiting.until < self.ambient.clock.now() {
            return Err(FactorError::WrongPasskey);
        }
        let used = Used { what: format!("passkey {}", waiting.once), until: waiting.until.plus(PATIENCE) };
        if self.sessions.use_once(used).await? { Ok(waiting) } else { Err(FactorError::WrongPasskey) }
    }

    /// Begins to make a passkey for the caller.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn begin_enrolment(
        &self,
        permit: &Permit<EnrolFactor>,
        name: &str,
    ) -> Result<Challenge, FactorError> {
        let ceremonies = self.ceremonies()?;
        let name = name_of_factor(name)?;
        let user = permit.caller().name();
        let local = self.principals.user(user).is_some_and(|row| row.password_hash != NO_PASSWORD);
        if !local || user == emergency::NAME {
            return Err(FactorError::NoPasskeys);
        }
        let known = identity::read::<SecondFactors>(self.db.read(), user).await?;
        let known: Vec<Value> = known
            .map(|known| known.document.passkeys.into_iter().map(|key| key.passkey).collect())
            .unwrap_or_default();
        if known.len() >= MAX_PASSKEYS {
            return Err(FactorError::TooManyPasskeys);
        }
        let begun = ceremonies.begin_registration(self.handle(user), user, &known);
        let begun = begun.map_err(Error::Corrupt)?;
        Ok(self.challenge(begun, user, &name)?)
    }

    /// Takes the passkey that the caller's device has made. With the first factor come the recovery codes.
    ///
    /// # Errors
    /// [`FactorError`].
    pub async fn enrol(
        &self,
        permit: &Permit<ConfirmFactor>,
        state: &Secret,
        answer: Value,
    ) -> Result<(String, Vec<Secret>), FactorError> {
        let ceremonies = self.ceremonies()?;
        let user = permit.caller().name().to_owned();
        let waiting = self.spend(state, &user).await?;
        let made = ceremonies.finish_registration(waiting.state, answer).map_err(|reason| {
            tracing::info!(reason, "a new passkey is refused");
            FactorError::WrongPasskey
        })?;
        let (codes, digests) = self.second_factor.new_codes(&user);
        let now = self.ambient.clock.now();
        let factor = PasskeyFactor {
            id: random_hex(&*self.ambient.entropy, 8),
            name: waiting.name,
            credential: made.id.clone(),
            passkey: made.passkey,
            created_at: now,
            last_used_at: None,
        };
        let id = factor.id.clone();
        let (changed, first) = self
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<SecondFactors>(tx, &user).await?;
                    let mut found = found.unwrap_or_else(|| Versioned {
                        document: SecondFactors::of(user.clone(), now),
                        version: 0,
                    });
                    if found.passkeys.len() >= MAX_PASSKEYS {
                        return Err(FactorError::TooManyPasskeys);
                    }
                    let owner = PasskeyOwner { id: digest(&made.id), user };
                    if identity::insert(tx, &owner).await? != Put::Done {
                        return Err(FactorError::WrongPasskey);
                    }
                    let first = !found.has_any();
                    let details = json!({ "factor": factor.id, "kind": "passkey", "recovery_codes": first });
                    found.document.passkeys.push(factor);
                    if first {
                        found.document.recovery = digests;
                    }
                    found.document.updated_at = now;
                    store(tx, &mut found).await?;
                    Ok::<_, FactorError>(Recorded { value: (found, first), details })
                })
            })
            .await?;
        self.principals.put_second_factors(changed.document, changed.version);
        Ok((id, if first { codes } else { Vec::new() }))
    }

    /// Begins a sign-in, or a fresh proof, by whoever answers.
    ///
    /// # Errors
    /// [`FactorError`].
    pub fn begin(&self) -> Result<Challenge, FactorError> {
        let begun = self.ceremonies()?.begin_sign_in().map_err(Error::Corrupt)?;
        Ok(self.challenge(begun, ANYBODY, "")?)
    }

    /// Who has answered.
    async fn judge(&self, state: &Secret, answer: Value) -> Result<Answered, FactorError> {
        let ceremonies = self.ceremonies()?;
        let waiting = self.spend(state, ANYBODY).await?;
        let (handle, credential) = ceremonies.named(&answer).ok_or(FactorError::WrongPasskey)?;
        let owner = identity::read::<PasskeyOwner>(self.db.read(), &digest(&credential)).await?;
        let name = owner.ok_or(FactorError::WrongPasskey)?.document.user;
        let factors = identity::read::<SecondFactors>(self.db.read(), &name).await?;
        // Of a passkey that was removed, the owner is still known.
        let found = factors.and_then(|factors| {
            factors.document.passkeys.into_iter().find(|passkey| passkey.credential == credential)
        });
        let passkey = found.ok_or(FactorError::WrongPasskey)?;
        let user = self.principals.user(&name).filter(|user| !user.disabled);
        let user = user.filter(|_| self.handle(&name) == handle).ok_or(FactorError::WrongPasskey)?;
        let changed =
            ceremonies.finish_sign_in(waiting.state, answer, &passkey.passkey).map_err(|reason| {
                tracing::info!(reason, user = name, "the answer of a passkey is refused");
                FactorError::WrongPasskey
            })?;
        Ok(Answered { user, factor: passkey.id, changed })
    }

    /// Opens a session for the owner of the passkey that has answered.
    ///
    /// # Errors
    /// [`SignInError::Refused`] for every answer that is not quite right.
    pub async fn sign_in(
        &self,
        state: &Secret,
        answer: Value,
        origin: &Origin,
    ) -> Result<Issued, SignInError> {
        let Answered { user, factor, changed } = match self.judge(state, answer).await {
            Ok(answered) => answered,
            Err(FactorError::NotOffered) => return Err(SignInError::NotOffered),
            Err(FactorError::Store(error)) => return Err(error.into()),
            Err(_) => {
                let (reason, event) = ("passkey_refused", Event::AuthenticationFailed);
                self.sign_ins.note_failure("", origin, reason, event, "device.login");
                return Err(SignInError::Refused);
            }
        };
        let (name, now) = (user.name.clone(), self.ambient.clock.now());
        let opening = Opening::user(&user, &self.principals.roles(), "passkey", AMR, origin);
        let opened = self.sessions.open(opening, move |tx, _| {
            Box::pin(async move {
                let Some(mut found) = identity::get::<SecondFactors>(tx, &name).await? else {
                    return Err(Error::Corrupt("the passkey was removed meanwhile".to_owned()));
                };
                let used = found.document.passkeys.iter_mut().find(|passkey| passkey.id == factor);
                let Some(used) = used else {
                    return Err(Error::Corrupt("the passkey was removed meanwhile".to_owned()));
                };
                used.last_used_at = Some(now);
                used.passkey = changed.unwrap_or_else(|| used.passkey.take());
                identity::update(tx, &found).await.map(drop)
            })
        });
        let issued = opened.await.inspect_err(|_| security::authentication("login", "error"))?;
        security::authentication("login", "success");
        Ok(issued)
    }

    /// Checks that the caller's own passkey has answered.
    pub(super) async fn prove(
        &self,
        permit: &Permit<StepUp>,
        state: &Secret,
        answer: Value,
    ) -> Result<(), FactorError> {
        let answered = self.judge(state, answer).await?;
        if answered.user.name == permit.caller().name() { Ok(()) } else { Err(FactorError::WrongPasskey) }
    }
}
