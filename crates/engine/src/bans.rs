//! Bans: which networks and principals are refused, since when, until when, and who said so.
//!
//! Two things ban by themselves: attacks that no honest client sends, five within an hour, and going on after being told to
//! wait. An attack by somebody who is signed in counts against that principal and not against the network, which others share.
//! Each further ban is twice as long, up to a day. People ban and unban through their permits. Whether an
//! address is banned is answered from memory, which follows the database; what memory decides is stored behind the request.
//! An allow-list wins over everything; trusted proxies are on it, because behind them there are many.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{AddBan, ListBans, RemoveBan};
use interlock_model::policy::PrincipalKind;
use interlock_model::text::{BanReason, Form as _};
use interlock_store::{BanRow, Error};
use ipnet::IpNet;
use serde_json::json;

use crate::Ambient;
use crate::auth::{Caller, Db, Origin, Permit, Proof, Recorded, SystemPermit};
use crate::news::Waker;
use crate::security::{self, Event};

/// Attacks within [`WINDOW`] that lead to a ban.
pub const STRIKES: usize = 5;
/// How long an attack counts.
pub const WINDOW: Duration = Duration::from_hours(1);
/// The longest ban that is imposed without a person.
pub const LONGEST: Duration = Duration::from_hours(24);
/// How long after its end a ban still makes the next one longer.
const MEMORY: Duration = Duration::from_hours(24);
/// Networks with strikes that are remembered, and bans that are imposed without a person, at most.
const MOST: usize = 100_000;
/// Shortest and longest ban that a person can ask for, beside one without an end.
const ASKED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(24 * 366));

/// Why a network is banned without a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It attacked.
    Attacks,
    /// It went on after being told to wait.
    Hammering,
}

impl Cause {
    const fn text(self) -> &'static str {
        match self {
            Self::Attacks => "repeated attacks",
            Self::Hammering => "went on after being told to wait",
        }
    }

    /// Length of the first ban.
    const fn first(self) -> Duration {
        match self {
            Self::Attacks => Duration::from_hours(1),
            Self::Hammering => Duration::from_mins(1),
        }
    }
}

/// Why a ban was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum BanError {
    /// Not an address or a network.
    #[error(
        "'network' must be an address or a network such as 203.0.113.7, 203.0.113.0/24 or 2001:db8::/64, without bits behind the prefix"
    )]
    Network,
    /// It would shut out too many.
    #[error(
        "this network is too wide to be banned: at least 8 bits of an IPv4 network and 16 of an IPv6 network must be given"
    )]
    TooWide,
    /// The person would shut themselves out.
    #[error("you are calling from this network yourself; a ban would shut you out")]
    OwnAddress,
    /// The allow-list or the list of trusted proxies holds it.
    #[error("this network is on the allow-list or a trusted proxy, and is never banned")]
    Allowed,
    /// Too short, too long.
    #[error("'seconds' must be 60 to 31622400, or absent for a ban without an end")]
    Length,
    /// No reason, or too long a one.
    #[error("'reason' must be 1 to 200 characters on one line")]
    Reason,
    /// There is no such ban.
    #[error("there is no such ban")]
    NoSuchBan,
    /// The storage failed.
    #[error("store the ban")]
    Store(#[from] Error),
}

/// The unit in which addresses are counted and banned: an IPv4 address, an IPv6 /64.
pub fn unit(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let length = if address.is_ipv4() { 32 } else { 64 };
    IpNet::new(address, length).map_or_else(|_| IpNet::from(address), |net| net.trunc())
}

/// A network as people write it. In a URL's path the slash may be a hyphen.
fn network(text: &str) -> Result<IpNet, BanError> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(unit(address));
    }
    let slashed = if text.contains('/') { text.to_owned() } else { text.replacen('-', "/", 1) };
    let net: IpNet = slashed.parse().map_err(|_| BanError::Network)?;
    if net.trunc() == net { Ok(net) } else { Err(BanError::Network) }
}

/// Who is banned. In text a network in CIDR notation, or `user:NAME` or `agent:ID`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Network(IpNet),
    Principal(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(net) => net.fmt(f),
            Self::Principal(name) => f.write_str(name),
        }
    }
}

impl Subject {
    /// As people write it.
    fn read(text: &str) -> Result<Self, BanError> {
        let named = ["user:", "agent:"]
            .iter()
            .any(|kind| text.strip_prefix(kind).is_some_and(|name| (1..=64).contains(&name.len())));
        if named { Ok(Self::Principal(text.to_owned())) } else { network(text).map(Self::Network) }
    }

    fn principal(caller: &Caller) -> Self {
        let kind = match caller.kind() {
            PrincipalKind::User => "user",
            PrincipalKind::Agent => "agent",
        };
        Self::Principal(format!("{kind}:{}", caller.name()))
    }
}

#[derive(Debug, Default)]
struct State {
    bans: HashMap<Subject, BanRow>,
    /// Prefix lengths that occur: an address is looked up once for each.
    lengths: BTreeSet<u8>,
    /// Some principal is or was banned.
    principals: bool,
    /// Imposed here and not stored yet: a reload must not lose them.
    unstored: HashSet<Subject>,
}

impl State {
    fn put(&mut self, subject: Subject, row: BanRow) {
        match &subject {
            Subject::Network(net) => {
                self.lengths.insert(net.prefix_len());
            }
            Subject::Principal(_) => self.principals = true,
        }
        self.bans.insert(subject, row);
    }
}

struct Inner {
    db: Db,
    ambient: Ambient,
    allow: Vec<IpNet>,
    system: SystemPermit,
    state: RwLock<State>,
    strikes: Mutex<HashMap<Subject, VecDeque<Timestamp>>>,
}

/// The list. Cheap to clone.
#[derive(Clone)]
pub struct Bans(Arc<Inner>);

impl std::fmt::Debug for Bans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bans")
    }
}

impl Bans {
    /// Reads the list. `allow` holds networks that are never refused: the allow-list and the trusted proxies.
    ///
    /// # Errors
    /// The storage's.
    pub async fn load(
        db: Db,
        ambient: Ambient,
        allow: Vec<IpNet>,
        system: SystemPermit,
    ) -> Result<Self, Error> {
        let (state, strikes) = (RwLock::default(), Mutex::default());
        let bans = Self(Arc::new(Inner { db, ambient, allow, system, state, strikes }));
        bans.reload().await?;
        Ok(bans)
    }

    /// Reads the list again.
    ///
    /// # Errors
    /// The storage's; what was known stays.
    pub async fn reload(&self) -> Result<(), Error> {
        let now = self.now();
        let rows = self.0.db.read().bans(now).await?;
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = State::default();
        for row in rows {
            match Subject::read(&row.network) {
                Ok(subject) => fresh.put(subject, row),
                Err(_) => {
                    tracing::error!(network = row.network, "a stored ban names nobody; it is ignored");
                }
            }
        }
        for subject in std::mem::take(&mut state.unstored) {
            if let Some(row) = state.bans.remove(&subject).filter(|row| in_force(row, now)) {
                fresh.put(subject.clone(), row);
                fresh.unstored.insert(subject);
            }
        }
        *state = fresh;
        drop(state);
        self.count(now);
        Ok(())
    }

    /// Follows changes by other processes, at once when there are news, until dropped. Run it as a background task.
    pub async fn watch(self, period: Duration) {
        let mut waker = Waker::new(self.0.db.news());
        let mut seen = self.0.db.read().change_mark().await.unwrap_or(i64::MIN);
        loop {
            waker.wait(period).await;
            match self.0.db.read().change_mark().await {
                Ok(mark) if mark != seen => match self.reload().await {
                    Ok(()) => seen = mark,
                    Err(error) => tracing::error!(%error, "bans could not be read again"),
                },
                Ok(_) => {}
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the database does not tell whether it changed"
                ),
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.0.ambient.clock.now()
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.allow.iter().any(|net| net.contains(&address))
    }

    /// Tells the metrics how many are refused.
    fn count(&self, now: Timestamp) {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let count = state.bans.values().filter(|row| in_force(row, now)).count();
        metrics::gauge!("interlock_bans_in_force").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    /// The ban that an address is under. Reads memory only.
    pub fn standing(&self, address: IpAddr) -> Option<BanRow> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.bans.is_empty() || self.is_allowed(address) {
            return None;
        }
        let (address, now) = (address.to_canonical(), self.now());
        let matching = state.lengths.iter().filter_map(|length| {
            let net = IpNet::new(address, *length).ok()?.trunc();
            state.bans.get(&Subject::Network(net)).filter(|row| in_force(row, now))
        });
        // The one that lasts longest.
        matching.max_by_key(|row| row.ends_at.map_or(i64::MAX, Timestamp::micros)).cloned()
    }

    /// The ban that a principal is under. Reads memory only.
    pub fn standing_of(&self, caller: &Caller) -> Option<BanRow> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        if !state.principals || self.is_allowed(caller.origin().client_ip) {
            return None;
        }
        state.bans.get(&Subject::principal(caller)).filter(|row| in_force(row, self.now())).cloned()
    }

    /// Counts an attack that no honest client sends, against the principal where one has signed in, else against the network; the
    /// ban that it led to, if it did. Pass it to [`Bans::keep`].
    pub fn strike(&self, origin: &Origin, caller: Option<&Caller>) -> Option<BanRow> {
        if self.is_allowed(origin.client_ip) {
            return None;
        }
        // Whoever goes on after a ban of its name has not enough of it.
        let caller = caller.filter(|caller| self.standing_of(caller).is_none());
        let subject = caller.map_or_else(|| Subject::Network(unit(origin.client_ip)), Subject::principal);
        let now = self.now();
        let mut strikes = self.0.strikes.lock().unwrap_or_else(PoisonError::into_inner);
        if strikes.len() >= MOST {
            strikes.retain(|_, times| times.back().is_some_and(|last| now.since(*last) < WINDOW));
            if strikes.len() >= MOST {
                return None;
            }
        }
        let times = strikes.entry(subject.clone()).or_default();
        times.retain(|time| now.since(*time) < WINDOW);
        times.push_back(now);
        if times.len() < STRIKES {
            return None;
        }
        strikes.remove(&subject);
        drop(strikes);
        self.impose_on(&subject, origin, Cause::Attacks)
    }

    /// Bans the network of a client from now on. `None` if it is on the allow-list, banned already, or too many are. Pass the
    /// ban to [`Bans::keep`].
    pub fn impose(&self, origin: &Origin, cause: Cause) -> Option<BanRow> {
        if self.is_allowed(origin.client_ip) || self.standing(origin.client_ip).is_some() {
            return None;
        }
        self.impose_on(&Subject::Network(unit(origin.client_ip)), origin, cause)
    }

    fn impose_on(&self, subject: &Subject, origin: &Origin, cause: Cause) -> Option<BanRow> {
        let now = self.now();
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.bans.len() >= MOST {
            state.bans.retain(|_, row| in_force(row, now));
            if state.bans.len() >= MOST {
                return None;
            }
        }
        if state.bans.get(subject).is_some_and(|row| in_force(row, now)) {
            return None;
        }
        let before = state.bans.get(subject).filter(|row| row.forget_at.is_none_or(|time| now <= time));
        let offences = before.map_or(0, |row| row.offences).saturating_add(1);
        let length = cause.first().saturating_mul(1 << (offences - 1).min(12)).min(LONGEST);
        let ends_at = now.plus(length);
        let row = BanRow {
            network: subject.to_string(),
            reason: cause.text().to_owned(),
            added_by: "system".to_owned(),
            created_at: now,
            ends_at: Some(ends_at),
            forget_at: Some(ends_at.plus(MEMORY)),
            offences,
        };
        state.put(subject.clone(), row.clone());
        state.unstored.insert(subject.clone());
        drop(state);
        self.count(now);
        let principal = match subject {
            Subject::Network(_) => None,
            Subject::Principal(name) => name.split_once(':').map(|(_, name)| name),
        };
        security::event(
            Event::IpBlocked,
            principal,
            Some(origin),
            json!({ "network": row.network, "reason": row.reason, "seconds": length.as_secs(), "offences": offences }),
        );
        Some(row)
    }

    /// Stores a ban that is in force already. Not on a request's path: a failure is logged, and memory goes on refusing.
    pub async fn keep(&self, row: BanRow, origin: Origin) {
        let Ok(subject) = Subject::read(&row.network) else { return };
        let proof =
            self.0.system.acting("ban.imposed", Some(row.network.clone())).on_behalf("system", &origin);
        let stored = self
            .0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let added = tx.extend_ban(&row).await?;
                    let details = json!({ "reason": row.reason, "until": row.ends_at, "offences": row.offences, "added": added });
                    Ok::<_, Error>(Recorded { value: (), details })
                })
            })
            .await;
        match stored {
            Ok(()) => {
                self.0.state.write().unwrap_or_else(PoisonError::into_inner).unstored.remove(&subject);
            }
            Err(error) => {
                tracing::error!(%error, subject = %subject, "a ban could not be stored; it holds until the server ends");
            }
        }
    }

    /// Bans in force, by network.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, _permit: &Permit<ListBans>) -> Result<Vec<BanRow>, Error> {
        self.listed().await
    }

    /// Bans a network, for `length` or without an end. A ban of the same network is replaced.
    ///
    /// # Errors
    /// [`BanError`].
    pub async fn add(
        &self,
        permit: &Permit<AddBan>,
        network: &str,
        reason: &str,
        length: Option<Duration>,
    ) -> Result<BanRow, BanError> {
        let caller = permit.caller();
        self.insert(permit, caller.name(), Some(caller.origin().client_ip), network, reason, length).await
    }

    /// Lifts a ban of a network or a principal. What it did before is forgotten.
    ///
    /// # Errors
    /// [`BanError`].
    pub async fn remove(&self, permit: &Permit<RemoveBan>) -> Result<(), BanError> {
        let network = permit.target().network.clone();
        self.delete(permit, &network).await
    }

    /// The same acts for whoever owns the machine.
    pub fn console<'a>(&'a self, permit: &'a SystemPermit) -> Console<'a> {
        Console { bans: self, permit }
    }

    async fn listed(&self) -> Result<Vec<BanRow>, Error> {
        let now = self.now();
        let rows = self.0.db.read().bans(now).await?;
        Ok(rows.into_iter().filter(|row| in_force(row, now)).collect())
    }

    async fn insert<P: Proof + ?Sized>(
        &self,
        proof: &P,
        who: &str,
        from: Option<IpAddr>,
        text: &str,
        reason: &str,
        length: Option<Duration>,
    ) -> Result<BanRow, BanError> {
        let net = network(text)?;
        if net.prefix_len() < if net.addr().is_ipv4() { 8 } else { 16 } {
            return Err(BanError::TooWide);
        }
        if self.0.allow.iter().any(|allowed| allowed.contains(&net)) {
            return Err(BanError::Allowed);
        }
        if from.is_some_and(|address| net.contains(&address.to_canonical())) {
            return Err(BanError::OwnAddress);
        }
        if length.is_some_and(|length| length < ASKED.0 || length > ASKED.1) {
            return Err(BanError::Length);
        }
        let reason = reason.trim();
        if !BanReason::RULE.holds(reason) {
            return Err(BanError::Reason);
        }
        let now = self.now();
        let ends_at = length.map(|length| now.plus(length));
        let row = BanRow {
            network: net.to_string(),
            reason: reason.to_owned(),
            added_by: who.to_owned(),
            created_at: now,
            ends_at,
            forget_at: ends_at.map(|end| end.plus(MEMORY)),
            offences: 0,
        };
        let stored = row.clone();
        self.0
            .db
            .write_about(proof, Some(row.network.clone()), move |tx| {
                Box::pin(async move {
                    tx.put_ban(&stored).await?;
                    let details = json!({ "reason": stored.reason, "until": stored.ends_at });
                    Ok::<_, BanError>(Recorded { value: (), details })
                })
            })
            .await?;
        let subject = Subject::Network(net);
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.unstored.remove(&subject);
        state.put(subject, row.clone());
        drop(state);
        self.count(now);
        Ok(row)
    }

    async fn delete<P: Proof + ?Sized>(&self, proof: &P, text: &str) -> Result<(), BanError> {
        let subject = Subject::read(text)?;
        let name = subject.to_string();
        // One that could not be stored yet can be lifted too.
        let unstored = {
            let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
            state.unstored.contains(&subject)
        };
        self.0
            .db
            .write_about(proof, Some(name.clone()), move |tx| {
                Box::pin(async move {
                    if !tx.delete_ban(&name).await? && !unstored {
                        return Err(BanError::NoSuchBan);
                    }
                    Ok(Recorded { value: (), details: json!({}) })
                })
            })
            .await?;
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.bans.remove(&subject);
        state.unstored.remove(&subject);
        drop(state);
        self.0.strikes.lock().unwrap_or_else(PoisonError::into_inner).retain(|struck, _| {
            match (&subject, struck) {
                (Subject::Network(net), Subject::Network(struck)) => !net.contains(struck),
                (lifted, struck) => lifted != struck,
            }
        });
        self.count(self.now());
        Ok(())
    }
}

/// Acts of whoever owns the machine, recorded under the name of their permit.
#[derive(Debug)]
pub struct Console<'a> {
    bans: &'a Bans,
    permit: &'a SystemPermit,
}

impl Console<'_> {
    /// Bans in force, by network.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self) -> Result<Vec<BanRow>, Error> {
        self.bans.listed().await
    }

    /// Bans a network.
    ///
    /// # Errors
    /// [`BanError`].
    pub async fn add(
        &self,
        network: &str,
        reason: &str,
        length: Option<Duration>,
    ) -> Result<BanRow, BanError> {
        let proof = self.permit.acting("ban.added", None);
        self.bans.insert(&proof, "console", None, network, reason, length).await
    }

    /// Lifts a ban.
    ///
    /// # Errors
    /// [`BanError`].
    pub async fn remove(&self, network: &str) -> Result<(), BanError> {
        let proof = self.permit.acting("ban.removed", None);
        self.bans.delete(&proof, network).await
    }
}

fn in_force(row: &BanRow, now: Timestamp) -> bool {
    row.ends_at.is_none_or(|end| now < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_told_from_networks() {
        let read = |text: &str| Subject::read(text).map(|subject| subject.to_string()).ok();

        assert_eq!(read("user:ana").as_deref(), Some("user:ana"));
        assert_eq!(read("agent:00000000-0000-0000-0000-000000000001").map(|text| text.len()), Some(42));
        assert_eq!(read("203.0.113.7").as_deref(), Some("203.0.113.7/32"));
        assert_eq!((read("user:"), read("ana"), read("group:ana")), (None, None, None));
    }

    #[test]
    fn networks_are_read_as_people_write_them() {
        let read = |text: &str| network(text).map(|net| net.to_string()).ok();

        assert_eq!(read("203.0.113.7").as_deref(), Some("203.0.113.7/32"));
        assert_eq!(read("203.0.113.0/24").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(read("203.0.113.0-24").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(read("2001:db8::7").as_deref(), Some("2001:db8::/64"));
        assert_eq!(read("2001:db8::7/128").as_deref(), Some("2001:db8::7/128"));
        assert_eq!(read("::ffff:203.0.113.7").as_deref(), Some("203.0.113.7/32"));
        for wrong in ["", "lab.example", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "10.0.0.0/8/8", "*"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
