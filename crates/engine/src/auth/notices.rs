//! What people are told about their own accounts: unusual sign-ins, changed credentials, credentials that end soon.
//!
//! A change is told by the transaction that makes it, for every act that [`changes_credentials`] names, so that none is
//! forgotten. A sign-in is unusual by what is kept of earlier ones: networks, programs, times, failures since then. Nothing is
//! allowed or refused because of a notice. The same is in the security log, for people who watch from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use interlock_model::action::{ListNotices, ReadNotices};
use interlock_model::audit::AuditDraft;
use interlock_model::policy::{self, PrincipalKind};
use interlock_model::{AgentId, Timestamp};
use interlock_store::identity::{self, Document, Put, Versioned};
use interlock_store::{Error, Tx};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::documents::{Agent, ApiKey, Session};
use super::throttle::{self, network_of};
use super::{Db, Permit, Recorded, SystemPermit};
use crate::Ambient;
use crate::security::{self, Event};

/// Notices kept of one person; the oldest go first.
const MAX_NOTICES: usize = 50;
/// Networks and programs remembered of one person.
const MAX_SEEN: usize = 64;
/// A network or program is familiar for this long after a sign-in with it.
const FAMILIAR: Duration = Duration::from_hours(24 * 90);
/// A sign-in after this long is unusual.
const SILENCE: Duration = Duration::from_hours(24 * 90);
/// The same thing again within this time is counted, not told again.
const AGAIN: Duration = Duration::from_hours(1);
/// Failures that people make themselves before they get it right.
const OWN_FAILURES: u32 = 3;
/// A second factor that comes within this time of the password belongs to it.
const HALF: Duration = Duration::from_mins(15);
/// Credentials that end within one of these times are told about, once for each.
const REMINDERS: [Duration; 2] = [Duration::from_hours(24 * 14), Duration::from_hours(24 * 3)];
/// How often it is looked for them.
const LOOKING: Duration = Duration::from_hours(1);

/// A sign-in whose password was right and whose second factor did not come.
pub(super) const HALF_SIGN_IN: &str = "sign_in.incomplete";
/// A sign-in that is unlike the ones before.
const UNUSUAL: &str = "sign_in.unusual";
/// The password is one that is guessed first.
pub(super) const WEAK_PASSWORD: &str = "password.guessable";
/// A credential ends soon.
const EXPIRING: &str = "credential.expiring";

/// Something that a person should know about the own account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// When, for the last time.
    pub at: Timestamp,
    /// `sign_in.unusual`, `sign_in.incomplete`, `password.guessable`, `credential.expiring`, or the act that changed something.
    pub kind: String,
    /// From which address.
    pub from: Option<String>,
    /// Who did it, if somebody else.
    pub by: Option<String>,
    /// How often within an hour.
    pub count: u32,
    /// What is special about it.
    pub details: Value,
}

impl Notice {
    /// The notice in words, for its owner. What others have written, such as names, is in it as they wrote it.
    pub fn sentence(&self) -> String {
        let text = |member: &str| self.details.get(member).and_then(Value::as_str).unwrap_or_default();
        let name = if text("name").is_empty() { String::new() } else { format!(" ({})", text("name")) };
        let said = match self.kind.as_str() {
            UNUSUAL => return self.unusual(),
            HALF_SIGN_IN if text("second_factor") == "wrong" => {
                "Somebody with your password gave a wrong second factor".to_owned()
            }
            HALF_SIGN_IN => {
                "Somebody with your password or certificate did not give the second factor".to_owned()
            }
            WEAK_PASSWORD => "Your password is one that is guessed early; choose another".to_owned(),
            EXPIRING => format!(
                "The credential {} of {} ends at {}; renew it with: {}",
                text("id"),
                text("owner"),
                text("ends_at"),
                text("renew")
            ),
            "user.password_set" | "user.password_changed" => "Your password was changed".to_owned(),
            "user.password_reset" => "Your password was replaced by a one-time token".to_owned(),
            "user.reset_started" => {
                "A one-time token was made with which a credential of yours can be replaced".to_owned()
            }
            "user.factors_reset" => "Your second factors were removed".to_owned(),
            "user.updated" => "Your roles or your account were changed".to_owned(),
            "factor.confirmed" => format!("A second factor was added{name}"),
            "factor.removed" => format!("A second factor was removed{name}"),
            "recovery_codes.made" => "New recovery codes were made; the ones before are dead".to_owned(),
            "api_key.created" => format!("An API key was made for you{name}"),
            "api_key.revoked" => format!("An API key of yours was revoked{name}"),
            "device_code.approved" => "A device was let in as you".to_owned(),
            other => other.to_owned(),
        };
        let by = self.by.as_ref().map_or_else(String::new, |by| format!(", by {by}"));
        let from = self.from.as_ref().map_or_else(String::new, |from| format!(", from {from}"));
        format!("{said}{by}{from}")
    }

    fn unusual(&self) -> String {
        let mut said = format!("You signed in from {}", self.from.as_deref().unwrap_or("this machine"));
        let reasons = self.details.get("reasons").and_then(Value::as_array);
        for reason in reasons.into_iter().flatten().filter_map(Value::as_str) {
            let (failures, days) = (&self.details["failures"], &self.details["silent_days"]);
            let words = match reason {
                "new_network" => ", where you had not signed in lately".to_owned(),
                "new_program" => ", with a program that you had not used lately".to_owned(),
                "after_failures" => format!(", after {failures} failed attempts"),
                "after_long_silence" => format!(", after {days} days"),
                other => format!(", {other}"),
            };
            said.push_str(&words);
        }
        said.push_str(". If that was not you: change your password, which ends every session");
        said
    }
}

/// What is kept of one person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Notices {
    user: String,
    items: Vec<Notice>,
    /// What is older was seen.
    #[serde(default)]
    read_until: Option<Timestamp>,
    #[serde(default)]
    pub(crate) last_sign_in: Option<Timestamp>,
    /// Networks and programs with the last sign-in by them.
    #[serde(default)]
    seen: BTreeMap<String, Timestamp>,
    /// Ends of credentials that were told about, with how early.
    #[serde(default)]
    reminded: BTreeMap<String, (Timestamp, u64)>,
}

impl Document for Notices {
    const KIND: &'static str = "notices";

    fn id(&self) -> String {
        self.user.clone()
    }

    fn owner(&self) -> Option<String> {
        Some(self.user.clone())
    }
}

/// Whom an act tells that a credential was changed, and whether by that person.
///
/// The acts of `user.*` name the person; those of one's own account are done by it.
fn changes_credentials(draft: &AuditDraft) -> Option<&str> {
    match draft.action.as_str() {
        "user.password_set"
        | "user.password_reset"
        | "user.factors_reset"
        | "user.reset_started"
        | "user.updated" => draft.subject.as_deref(),
        "user.password_changed"
        | "factor.confirmed"
        | "factor.removed"
        | "recovery_codes.made"
        | "api_key.created"
        | "api_key.revoked"
        | "device_code.approved" => {
            let whose = draft.details.get("principal").and_then(Value::as_str);
            whose.or(draft.actor.as_deref())
        }
        _ => None,
    }
}

/// Tells the person whose credential the act has changed. Part of the transaction that changed it.
pub(super) async fn changed(tx: &mut dyn Tx, draft: &AuditDraft) -> Result<(), Error> {
    let Some(whose) = changes_credentials(draft) else { return Ok(()) };
    if tx.user(whose).await?.is_none() {
        return Ok(());
    }
    let notice = Notice {
        at: draft.at,
        kind: draft.action.clone(),
        from: draft.client_ip.clone(),
        by: draft.actor.clone().filter(|actor| actor != whose),
        count: 1,
        details: json!({ "name": draft.details.get("name") }),
    };
    tell(tx, whose, notice).await
}

/// Says in the security log what [`changed`] has told.
pub(super) fn log_changed(draft: &AuditDraft) {
    if let Some(whose) = changes_credentials(draft) {
        let details = json!({ "changed": draft.action, "by": draft.actor, "from": draft.client_ip });
        security::event(Event::CredentialChanged, Some(whose), None, details);
    }
}

/// Changes what is kept of a person.
async fn with<T: Send>(
    tx: &mut dyn Tx,
    user: &str,
    change: impl Fn(&mut Notices) -> T + Send + Sync,
) -> Result<T, Error> {
    let mut known = identity::get::<Notices>(tx, user).await?;
    if known.is_none() {
        let mut first = Notices {
            user: user.to_owned(),
            items: Vec::new(),
            read_until: None,
            last_sign_in: None,
            seen: BTreeMap::new(),
            reminded: BTreeMap::new(),
        };
        let done = change(&mut first);
        if identity::insert(tx, &first).await? == Put::Done {
            return Ok(done);
        }
        // Another server has made it meanwhile; now it can be seen.
        known = identity::get(tx, user).await?;
    }
    let mut found =
        known.ok_or_else(|| Error::Corrupt("notices that are there cannot be read".to_owned()))?;
    let done = change(&mut found.document);
    identity::update(tx, &found).await?;
    Ok(done)
}

/// Tells a person something.
pub(super) async fn tell(tx: &mut dyn Tx, user: &str, notice: Notice) -> Result<(), Error> {
    with(tx, user, move |notices| notices.add(notice.clone())).await
}

/// Notes that a person signs in. What is unusual about it is returned. Part of the transaction that opens the session, before
/// it forgets failures.
pub(super) async fn signed_in(tx: &mut dyn Tx, session: &Session) -> Result<Option<Notice>, Error> {
    let guesses = throttle::guesses_at(tx, &session.principal).await?;
    with(tx, &session.principal, move |notices| {
        let (own, others) = match (&guesses, notices.last_sign_in) {
            (Some(guesses), Some(last)) => guesses.failures_since(last, &own_network(session)),
            _ => (0, 0),
        };
        notices.arrive(session, own, others)
    })
    .await
}

fn own_network(session: &Session) -> String {
    session.client_ip.parse().map(network_of).unwrap_or_default()
}

/// What a client calls itself, without its version: `Mozilla`, `interlock`.
fn program(user_agent: &str) -> String {
    user_agent.split(['/', ' ']).next().unwrap_or_default().chars().take(40).collect()
}

impl Notices {
    fn add(&mut self, notice: Notice) {
        let again = self.items.last_mut().filter(|last| {
            let same = (&last.kind, &last.from, &last.by, &last.details)
                == (&notice.kind, &notice.from, &notice.by, &notice.details);
            same && notice.at.since(last.at) < AGAIN
        });
        if let Some(last) = again {
            last.at = notice.at;
            last.count = last.count.saturating_add(1);
        } else {
            self.items.push(notice);
        }
        let surplus = self.items.len().saturating_sub(MAX_NOTICES);
        self.items.drain(..surplus);
    }

    fn see(&mut self, what: String, now: Timestamp) -> bool {
        self.seen.retain(|_, last| now.since(*last) < FAMILIAR);
        let known = self.seen.insert(what, now).is_some();
        while self.seen.len() > MAX_SEEN {
            let oldest = self.seen.iter().min_by_key(|(_, last)| **last).map(|(what, _)| what.clone());
            oldest.map(|oldest| self.seen.remove(&oldest));
        }
        known
    }

    /// `own` and `others` are the failures from this network and from others since the last sign-in.
    fn arrive(&mut self, session: &Session, own: u32, others: u32) -> Option<Notice> {
        let now = session.created_at;
        let before = self.last_sign_in.replace(now);
        let network = self.see(format!("network {}", own_network(session)), now);
        let program = self.see(format!("program {}", program(&session.user_agent)), now);
        // The factor has come: what was half is whole.
        self.items.retain(|notice| {
            let half = notice.kind == HALF_SIGN_IN && notice.from.as_deref() == Some(&session.client_ip);
            !(half && now.since(notice.at) < HALF)
        });
        let before = before?;
        let failures = others + if own >= OWN_FAILURES { own } else { 0 };
        let silent = now.since(before);
        let reasons: Vec<&str> = [
            (!network).then_some("new_network"),
            (!program).then_some("new_program"),
            (failures > 0).then_some("after_failures"),
            (silent >= SILENCE).then_some("after_long_silence"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if reasons.is_empty() {
            return None;
        }
        let notice = Notice {
            at: now,
            kind: UNUSUAL.to_owned(),
            from: Some(session.client_ip.clone()),
            by: None,
            count: 1,
            details: json!({
                "reasons": reasons, "failures": failures, "silent_days": silent.as_secs() / 86_400,
                "program": session.user_agent, "method": session.method,
            }),
        };
        self.add(notice.clone());
        Some(notice)
    }

    /// Whose these are.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    fn unread(&self) -> usize {
        self.items.iter().filter(|notice| self.is_unread(notice)).count()
    }

    fn is_unread(&self, notice: &Notice) -> bool {
        self.read_until.is_none_or(|until| notice.at > until)
    }

    /// Whether the end of a credential is to be told now; then it is noted.
    fn reminds(&mut self, credential: &str, end: Timestamp, now: Timestamp) -> bool {
        self.reminded.retain(|_, (end, _)| *end > now);
        let left = end.since(now);
        let Some(stage) = REMINDERS.iter().filter(|stage| left <= **stage).map(Duration::as_secs).min()
        else {
            return false;
        };
        let told = self.reminded.get(credential).copied();
        if told.is_some_and(|(told_end, told_stage)| told_end == end && told_stage <= stage) {
            return false;
        }
        self.reminded.insert(credential.to_owned(), (end, stage));
        true
    }
}

/// Reads notices, and looks for credentials that end soon.
#[derive(Clone, Debug)]
pub struct NoticeBoard {
    db: Db,
    ambient: Ambient,
}

impl NoticeBoard {
    /// Wires the parts.
    pub(crate) fn new(db: Db, ambient: Ambient) -> Self {
        Self { db, ambient }
    }

    /// What the caller is told, newest first, each with whether it was seen.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, permit: &Permit<ListNotices>) -> Result<Vec<(Notice, bool)>, Error> {
        let found = identity::read::<Notices>(self.db.read(), permit.caller().name()).await?;
        let Some(found) = found.map(|found| found.document) else { return Ok(Vec::new()) };
        Ok(found.items.iter().rev().map(|notice| (notice.clone(), !found.is_unread(notice))).collect())
    }

    /// How much of it a person has not seen.
    ///
    /// # Errors
    /// The storage's.
    pub async fn unread(&self, user: &str) -> Result<usize, Error> {
        let found = identity::read::<Notices>(self.db.read(), user).await?;
        Ok(found.map_or(0, |found| found.unread()))
    }

    /// The caller has seen what there is up to a time.
    ///
    /// # Errors
    /// The storage's.
    pub async fn read(&self, permit: &Permit<ReadNotices>, until: Timestamp) -> Result<(), Error> {
        let user = permit.caller().name().to_owned();
        let until = until.min(self.ambient.clock.now());
        self.db
            .write(permit, move |tx| {
                Box::pin(async move {
                    with(tx, &user, |notices| notices.read_until = notices.read_until.max(Some(until)))
                        .await?;
                    Ok::<_, Error>(Recorded { value: (), details: json!({ "until": until }) })
                })
            })
            .await
    }

    /// Looks for credentials that end soon, for ever. Run it as a background task.
    pub async fn remind_forever(self, permit: SystemPermit) {
        loop {
            if let Err(error) = self.remind(&permit).await {
                tracing::warn!(%error, "nobody could be reminded of credentials that end soon");
            }
            tokio::time::sleep(LOOKING).await;
        }
    }

    /// Tells owners, and of agents' credentials administrators, about credentials that end within two weeks, and again within
    /// three days. Returns how many reminders there were.
    ///
    /// # Errors
    /// The storage's.
    pub async fn remind(&self, permit: &SystemPermit) -> Result<usize, Error> {
        let now = self.ambient.clock.now();
        let ending = self.ending(now).await?;
        if ending.is_empty() {
            return Ok(0);
        }
        let users = self.db.read().users().await?;
        let is_admin = |roles: &[String]| roles.iter().any(|role| role == policy::ADMIN);
        let admins: Vec<String> = users
            .into_iter()
            .filter(|user| !user.disabled && is_admin(&user.roles))
            .map(|user| user.name)
            .collect();
        let mut told = 0;
        for credential in ending {
            let readers = credential.person.clone().map_or_else(|| admins.clone(), |person| vec![person]);
            let proof = permit.acting("credential.reminded", Some(credential.id.clone()));
            let mut reminded = Vec::new();
            for reader in readers {
                if self.would_remind(&reader, &credential, now).await? {
                    reminded.push(reader);
                }
            }
            if reminded.is_empty() {
                continue;
            }
            told += reminded.len();
            let details = credential.details.clone();
            self.db
                .write(&proof, move |tx| {
                    Box::pin(async move {
                        for reader in &reminded {
                            with(tx, reader, |notices| {
                                if notices.reminds(&credential.id, credential.end, now) {
                                    notices.add(credential.notice(now));
                                }
                            })
                            .await?;
                        }
                        let details = json!({ "told": reminded, "credential": credential.details });
                        Ok::<_, Error>(Recorded { value: (), details })
                    })
                })
                .await?;
            security::event(Event::CredentialExpiring, None, None, details);
        }
        Ok(told)
    }

    async fn would_remind(&self, reader: &str, ending: &Ending, now: Timestamp) -> Result<bool, Error> {
        let found = identity::read::<Notices>(self.db.read(), reader).await?;
        Ok(found.is_none_or(|Versioned { mut document, .. }| document.reminds(&ending.id, ending.end, now)))
    }

    async fn ending(&self, now: Timestamp) -> Result<Vec<Ending>, Error> {
        let soon = |end: Timestamp| end > now && end.since(now) <= REMINDERS[0];
        let mut found = Vec::new();
        let agents = identity::list::<Agent>(self.db.read(), None).await?;
        let name_of = |id: &str| {
            let id = id.parse::<AgentId>().ok()?;
            agents.iter().find(|agent| agent.id == id).map(|agent| agent.name.clone())
        };
        for key in identity::list::<ApiKey>(self.db.read(), None).await? {
            if key.revoked_at.is_none() && soon(key.expires_at) {
                let person = (key.kind == PrincipalKind::User).then(|| key.principal.clone());
                found.push(Ending {
                    id: format!("api_key {}", key.id),
                    end: key.expires_at,
                    details: json!({
                        "credential": "api_key", "id": key.id, "name": key.name, "ends_at": key.expires_at,
                        "owner": name_of(&key.principal).unwrap_or_else(|| key.principal.clone()),
                        "renew": "interlock key create",
                    }),
                    person,
                });
            }
        }
        for agent in agents.iter().filter(|agent| !agent.disabled) {
            // One that was replaced ends as it should; the newest is the one to renew.
            let newest = agent.live_secrets(now).max_by_key(|secret| secret.created_at);
            if let Some((secret, end)) = newest.and_then(|secret| Some((secret, secret.expires_at?)))
                && soon(end)
            {
                found.push(Ending {
                    id: format!("secret {} {}", agent.id, secret.id),
                    end,
                    details: json!({
                        "credential": "secret", "id": secret.id, "owner": agent.name, "ends_at": end,
                        "renew": "interlock agent rotate-secret",
                    }),
                    person: None,
                });
            }
        }
        Ok(found)
    }
}

/// A credential that ends soon.
#[derive(Clone)]
struct Ending {
    id: String,
    end: Timestamp,
    details: Value,
    /// Whose it is; that of an agent is for administrators.
    person: Option<String>,
}

impl Ending {
    fn notice(&self, now: Timestamp) -> Notice {
        Notice {
            at: now,
            kind: EXPIRING.to_owned(),
            from: None,
            by: None,
            count: 1,
            details: self.details.clone(),
        }
    }
}
