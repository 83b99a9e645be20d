//! Signing in where there is no browser or no safe keyboard: a code is shown there and approved elsewhere (RFC 8628).
//!
//! The device code proves who asks for tokens and the user code which request a person approves. Both are stored as digests,
//! end after ten minutes and are spent once. The new session is as fresh as the approver's proof of identity, not fresher.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{Action, ApproveDevice, DenyDevice, ShowDeviceCode};
use interlock_model::scope::{self, Scope};
use interlock_model::secret::Secret;
use interlock_store::Error;
use interlock_store::identity::{self, Put};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::documents::{Approval, DeviceGrant};
use super::opening::Opening;
use super::sessions::Issued;
use super::{Caller, Db, Origin, Permit, Principals, Recorded, Sessions, SignInError, SignIns};
use crate::Ambient;

/// How long a code can be approved and exchanged.
const LIFE: Duration = Duration::from_mins(10);
/// Least seconds between two polls. Signing in is limited to ten requests a minute for each address.
pub const INTERVAL: u64 = 7;
/// More seconds after each poll that came too early.
const SLOWER: u64 = 5;
/// Consonants: no words by accident, nothing that looks like a digit.
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Letters of a user code: 34 bits, guessed against a delay.
const LETTERS: usize = 8;
/// What every device code begins with.
const PREFIX: &str = "ild_";
/// Polls remembered at most before old ones are dropped.
const POLLS: usize = 10_000;
/// What the transaction says of a code that was exchanged meanwhile.
const SPENT: &str = "the device code was used before";

/// What a device shows and keeps.
#[derive(Debug)]
pub struct Begun {
    /// Kept by the device.
    pub device_code: Secret,
    /// Shown to the person.
    pub user_code: String,
    /// Seconds until both are dead.
    pub expires_in: u64,
}

/// Why a poll gives no token (RFC 8628 section 3.5).
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// Nobody has decided yet.
    #[error("nobody has approved the code yet")]
    Pending,
    /// Polled too early.
    #[error("wait longer between two requests")]
    SlowDown,
    /// Ten minutes are over.
    #[error("the code has ended; begin again")]
    Expired,
    /// The person said no, or may not any more.
    #[error("the sign-in was denied")]
    Denied,
    /// There is no such code, or it was used.
    #[error("the grant is not in force")]
    Invalid,
    /// The storage's.
    #[error("record the sign-in")]
    Store(#[from] Error),
}

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// There is no such open code.
    #[error("there is no such code, or it has ended or was decided")]
    NoSuchCode,
    /// Too many guesses.
    #[error("too many attempts")]
    Wait(Duration),
    /// The storage's.
    #[error("record the decision")]
    Store(#[from] Error),
}

/// Begins, decides and ends these sign-ins.
pub struct DeviceCodes {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    sessions: Arc<Sessions>,
    sign_ins: Arc<SignIns>,
    /// By grant: the last poll and the seconds to keep.
    polls: Mutex<HashMap<String, (Timestamp, u64)>>,
}

impl std::fmt::Debug for DeviceCodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceCodes")
    }
}

fn digest(what: &str, text: &str) -> String {
    interlock_model::id::hexadecimal(&Sha256::digest(format!("interlock {what}\n{text}").as_bytes()))
}

/// Case, spaces and hyphens do not matter to people.
fn id_of_user_code(text: &str) -> String {
    let letters: String = text.chars().filter(char::is_ascii_alphabetic).take(64).collect();
    digest("user code", &letters.to_ascii_uppercase())[..32].to_owned()
}

fn id_of_device_code(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (id.len() == 32 && secret.len() == 64).then_some(id)
}

fn account(caller: &Caller) -> String {
    format!("device codes of {}", caller.name())
}

impl DeviceCodes {
    /// Wires the parts.
    pub(crate) fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        sessions: Arc<Sessions>,
        sign_ins: Arc<SignIns>,
    ) -> Arc<Self> {
        Arc::new(Self { db, ambient, principals, sessions, sign_ins, polls: Mutex::default() })
    }

    fn letters(&self) -> String {
        let mut letters = String::new();
        while letters.len() < LETTERS {
            let mut bytes = [0; 2 * LETTERS];
            self.ambient.entropy.fill(&mut bytes);
            // 240 is the largest multiple of 20 in a byte: every letter is as likely as any other.
            let fair = bytes.iter().filter(|byte| **byte < 240);
            letters.extend(
                fair.map(|byte| char::from(ALPHABET[usize::from(byte % 20)])).take(LETTERS - letters.len()),
            );
        }
        letters
    }

    /// Begins a sign-in on a device.
    ///
    /// # Errors
    /// The storage's.
    pub async fn begin(
        &self,
        client: &str,
        scopes: Option<Vec<Scope>>,
        origin: &Origin,
    ) -> Result<Begun, Error> {
        let letters = self.letters();
        let id = id_of_user_code(&letters);
        let secret = interlock_model::id::random_hex(&*self.ambient.entropy, 32);
        let device_code = Secret::new(format!("{PREFIX}{id}_{secret}"));
        let now = self.ambient.clock.now();
        let grant = DeviceGrant {
            id: id.clone(),
            digest: digest("device code", device_code.expose()),
            client: client.chars().filter(|c| !c.is_control()).take(64).collect(),
            client_ip: origin.client_ip.to_string(),
            user_agent: origin.user_agent.clone(),
            scopes,
            created_at: now,
            expires_at: now.plus(LIFE),
            decision: None,
            spent_at: None,
        };
        let proof = self.sessions.acting_for("device_code.requested", "system", origin);
        self.db
            .write_about(&proof, Some(id), move |tx| {
                Box::pin(async move {
                    if identity::insert(tx, &grant).await? != Put::Done {
                        return Err(Error::Corrupt("two device codes are the same".to_owned()));
                    }
                    Ok(Recorded { value: (), details: json!({ "client": grant.client }) })
                })
            })
            .await?;
        let user_code = format!("{}-{}", &letters[..LETTERS / 2], &letters[LETTERS / 2..]);
        Ok(Begun { device_code, user_code, expires_in: LIFE.as_secs() })
    }

    /// An open request that a person may decide. Each try counts as a guess.
    async fn open<A: Action>(&self, permit: &Permit<A>, user_code: &str) -> Result<DeviceGrant, DecideError> {
        let caller = permit.caller();
        let admitted = self.sign_ins.admit(&account(caller), caller.origin(), A::NAME).await;
        let guesser = admitted.map_err(|error| match error {
            SignInError::Wait(wait) => DecideError::Wait(wait),
            SignInError::Store(cause) => DecideError::Store(cause),
            _ => DecideError::NoSuchCode,
        })?;
        let now = self.ambient.clock.now();
        let found = identity::read::<DeviceGrant>(self.db.read(), &id_of_user_code(user_code)).await?;
        let found = found.filter(|grant| grant.is_open(now)).ok_or(DecideError::NoSuchCode)?;
        self.sign_ins.succeeded(guesser).await?;
        Ok(found.document)
    }

    /// What would be approved.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn show(
        &self,
        permit: &Permit<ShowDeviceCode>,
        user_code: &str,
    ) -> Result<DeviceGrant, DecideError> {
        self.open(permit, user_code).await
    }

    /// Lets the device in as the caller.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn approve(
        &self,
        permit: &Permit<ApproveDevice>,
        user_code: &str,
    ) -> Result<DeviceGrant, DecideError> {
        let caller = permit.caller();
        let now = self.ambient.clock.now();
        let epoch = self.principals.user(caller.name()).map(|user| user.tokens_valid_from);
        let approval = Approval {
            by: caller.name().to_owned(),
            at: now,
            approved: true,
            amr: caller.amr().to_vec(),
            auth_time: caller.auth_time().unwrap_or(now),
            epoch: epoch.ok_or(DecideError::NoSuchCode)?,
        };
        self.decide(permit, user_code, approval).await
    }

    /// Keeps the device out.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn deny(
        &self,
        permit: &Permit<DenyDevice>,
        user_code: &str,
    ) -> Result<DeviceGrant, DecideError> {
        let now = self.ambient.clock.now();
        let by = permit.caller().name().to_owned();
        let denial = Approval { by, at: now, approved: false, amr: Vec::new(), auth_time: now, epoch: now };
        self.decide(permit, user_code, denial).await
    }

    async fn decide<A: Action>(
        &self,
        permit: &Permit<A>,
        user_code: &str,
        decision: Approval,
    ) -> Result<DeviceGrant, DecideError> {
        let id = self.open(permit, user_code).await?.id;
        let now = decision.at;
        self.db
            .write_about(permit, Some(id.clone()), move |tx| {
                Box::pin(async move {
                    let found = identity::get::<DeviceGrant>(tx, &id).await?;
                    let mut found =
                        found.filter(|grant| grant.is_open(now)).ok_or(DecideError::NoSuchCode)?;
                    found.document.decision = Some(decision);
                    identity::update(tx, &found).await?;
                    let details = json!({ "client": found.client, "client_ip": found.client_ip });
                    Ok(Recorded { value: found.document, details })
                })
            })
            .await
    }

    /// Exchanges an approved code for tokens.
    ///
    /// # Errors
    /// [`PollError`].
    pub async fn poll(
        &self,
        device_code: &Secret,
        client: Option<&str>,
        origin: &Origin,
    ) -> Result<Issued, PollError> {
        let id = id_of_device_code(device_code.expose()).ok_or(PollError::Invalid)?;
        let shown = Secret::new(digest("device code", device_code.expose()));
        let found = identity::read::<DeviceGrant>(self.db.read(), id).await?;
        let good = |grant: &DeviceGrant| {
            shown.matches(&grant.digest)
                && grant.spent_at.is_none()
                && client.is_none_or(|client| client == grant.client)
        };
        let grant = found.map(|found| found.document).filter(good).ok_or(PollError::Invalid)?;
        let now = self.ambient.clock.now();
        if now >= grant.expires_at {
            return Err(PollError::Expired);
        }
        let Some(decision) = &grant.decision else { return Err(self.pending(&grant.id, now)) };
        if !decision.approved {
            return Err(PollError::Denied);
        }
        self.exchange(&grant, decision, origin, now).await
    }

    fn pending(&self, id: &str, now: Timestamp) -> PollError {
        let mut polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner);
        if polls.len() >= POLLS {
            polls.retain(|_, (last, _)| now.since(*last) < LIFE);
        }
        match polls.get_mut(id) {
            Some((last, wait)) if now.since(*last) < Duration::from_secs(*wait) => {
                *last = now;
                *wait += SLOWER;
                PollError::SlowDown
            }
            Some((last, _)) => {
                *last = now;
                PollError::Pending
            }
            None => {
                polls.insert(id.to_owned(), (now, INTERVAL));
                PollError::Pending
            }
        }
    }

    async fn exchange(
        &self,
        grant: &DeviceGrant,
        decision: &Approval,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<Issued, PollError> {
        let user = self.principals.user(&decision.by);
        let user = user.filter(|user| !user.disabled && user.tokens_valid_from == decision.epoch);
        let user = user.ok_or(PollError::Denied)?;
        let amr: Vec<&str> = decision.amr.iter().map(String::as_str).collect();
        let mut opening = Opening::user(&user, &self.principals.roles(), "device_code", &amr, origin);
        opening.auth_time = Some(decision.auth_time);
        if let Some(wanted) = &grant.scopes {
            opening.scopes = scope::intersect(&opening.scopes, wanted);
            opening.limited = true;
        }
        let id = grant.id.clone();
        let opened = self
            .sessions
            .open(opening, move |tx, _| {
                Box::pin(async move {
                    let found = identity::get::<DeviceGrant>(tx, &id).await?;
                    let found = found.filter(|grant| grant.spent_at.is_none());
                    let mut found = found.ok_or_else(|| Error::Corrupt(SPENT.to_owned()))?;
                    found.document.spent_at = Some(now);
                    identity::update(tx, &found).await.map(drop)
                })
            })
            .await;
        match opened {
            Err(Error::Corrupt(reason)) if reason == SPENT => Err(PollError::Invalid),
            other => Ok(other?),
        }
    }
}
