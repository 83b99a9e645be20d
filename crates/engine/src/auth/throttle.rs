//! Guessing is slow: delays per account and network and a ceiling per account, counted in the database before anything is hashed.
//!
//! Delays follow the number of failures of a network without a success in between: none for the first five, then 1 s, 3 s from
//! the ninth, 10 s from the twenty-fifth, 60 s from the fiftieth, 15 min from the hundredth. Over all networks that the owner
//! was never seen on, an account takes at most 100 guesses in 24 hours (NIST SP 800-63B-4 section 3.2.2). A network where the
//! owner has signed in within 30 days has its own count and is not touched by that ceiling: a stranger's guesses never lock the
//! owner out. Unknown names are counted like known ones.
//!
//! The count is a record that all servers of an installation share and that survives a restart; it is taken in one
//! transaction, so guesses that come at once cannot slip past it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{ListLockouts, Unlock};
use interlock_model::id::hexadecimal;
use interlock_store::identity::{self, Document, Put};
use interlock_store::{Error, Tx};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Db, Permit, Recorded, SystemPermit};
use crate::Ambient;

/// Failures are forgotten after this long without another.
const MEMORY: Duration = Duration::from_hours(24);
/// A network stays the owner's for this long after a success there.
const HOME: Duration = Duration::from_hours(24 * 30);
/// Guesses in [`MEMORY`] from networks that are not the owner's.
const CEILING: u32 = 100;
/// Networks remembered of one account; the ceiling leaves room for no more guessers.
const MAX_NETWORKS: usize = 128;

/// The guesses at one account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Guesses {
    /// Digest of the account's name: people type passwords into the wrong field.
    pub id: String,
    /// The name, if there is such an account.
    pub account: Option<String>,
    /// By network.
    networks: BTreeMap<String, Network>,
    /// Guesses from strangers' networks since `opened`.
    strangers: u32,
    /// Begin of the window of `strangers`.
    opened: Timestamp,
    /// Last change.
    pub last: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Network {
    failures: u32,
    last: Timestamp,
    /// Last success there.
    #[serde(default)]
    home: Option<Timestamp>,
}

impl Document for Guesses {
    const KIND: &'static str = "guesses";

    fn id(&self) -> String {
        self.id.clone()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        let has_home = self.networks.values().any(|network| network.home.is_some());
        Some(self.last.plus(if has_home { HOME } else { MEMORY }))
    }
}

/// An IPv6 address counts by its /64 (RFC 4291 section 2.5.4).
pub(super) fn network_of(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

/// The guesses at a person's account, as this transaction sees them.
pub(super) async fn guesses_at(tx: &mut dyn Tx, account: &str) -> Result<Option<Guesses>, Error> {
    Ok(identity::get::<Guesses>(tx, &digest_of(account)).await?.map(|found| found.document))
}

fn digest_of(account: &str) -> String {
    hexadecimal(&Sha256::digest([b"interlock account\n", account.as_bytes()].concat())[..16])
}

fn delay_after(failures: u32) -> Duration {
    Duration::from_secs(match failures {
        0..=4 => 0,
        5..=8 => 1,
        9..=24 => 3,
        25..=49 => 10,
        50..=99 => 60,
        _ => 900,
    })
}

impl Guesses {
    fn new(id: String, account: Option<String>, now: Timestamp) -> Self {
        Self { id, account, networks: BTreeMap::new(), strangers: 0, opened: now, last: now }
    }

    /// Failures from a network and from all others that came after a time. The guess that is being taken is not among them.
    pub(super) fn failures_since(&self, time: Timestamp, network: &str) -> (u32, u32) {
        let mut own = 0;
        let mut others = 0;
        for (name, found) in self.networks.iter().filter(|(_, found)| found.last > time) {
            if name == network {
                own += found.failures.saturating_sub(1);
            } else {
                others += found.failures;
            }
        }
        (own, others)
    }

    /// Takes one guess, or says how long to wait; then nothing is counted.
    fn take(&mut self, network: &str, now: Timestamp) -> Result<(), Duration> {
        if now.since(self.opened) >= MEMORY || now < self.opened {
            self.strangers = 0;
            self.opened = now;
        }
        let mut found =
            self.networks.get(network).copied().unwrap_or(Network { failures: 0, last: now, home: None });
        if now.since(found.last) >= MEMORY {
            found.failures = 0;
        }
        let open_at = found.last.plus(delay_after(found.failures));
        // A clock that jumped back must not lock anybody out for longer than the delay itself.
        if now < open_at && now >= found.last {
            return Err(open_at.since(now));
        }
        let is_home = found.home.is_some_and(|seen| now.since(seen) < HOME);
        if !is_home {
            if self.strangers >= CEILING {
                return Err(self.opened.plus(MEMORY).since(now).max(Duration::from_secs(1)));
            }
            self.strangers += 1;
        }
        found.failures = found.failures.saturating_add(1);
        found.last = now;
        self.last = now;
        self.networks.insert(network.to_owned(), found);
        self.trim();
        Ok(())
    }

    /// The guess was right: its network starts afresh and is the owner's.
    fn succeed(&mut self, network: &str, now: Timestamp) {
        let fresh = Network { failures: 0, last: now, home: Some(now) };
        let before = self.networks.insert(network.to_owned(), fresh);
        if before.is_none_or(|before| before.home.is_none()) {
            self.strangers = self.strangers.saturating_sub(1);
        }
        self.last = now;
        self.trim();
    }

    fn trim(&mut self) {
        while self.networks.len() > MAX_NETWORKS {
            let oldest = self
                .networks
                .iter()
                .min_by_key(|(_, network)| (network.home.is_some(), network.last))
                .map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.networks.remove(&oldest);
            }
        }
    }

    /// Networks that must wait at `now`, with the time and whether they are the owner's.
    fn waiting(&self, now: Timestamp) -> Vec<LockedNetwork> {
        self.networks
            .iter()
            .map(|(name, network)| LockedNetwork {
                network: name.clone(),
                failures: network.failures,
                until: network.last.plus(delay_after(network.failures)),
                owner: network.home.is_some(),
            })
            .filter(|locked| locked.until > now)
            .collect()
    }
}

/// A network that must wait.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LockedNetwork {
    /// Address, or /64 of IPv6.
    pub network: String,
    /// Failures without a success in between.
    pub failures: u32,
    /// The next guess is taken then.
    pub until: Timestamp,
    /// The owner has signed in from there.
    pub owner: bool,
}

/// An account at which somebody guesses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lockout {
    /// For [`Throttle::unlock`].
    pub id: String,
    /// The account, if there is one of the name that was tried.
    pub account: Option<String>,
    /// Networks that must wait.
    pub networks: Vec<LockedNetwork>,
    /// Guesses of strangers in the present 24 hours; at 100 all of them wait.
    pub strangers: u32,
}

/// Counts guesses.
#[derive(Clone, Debug)]
pub struct Throttle {
    db: Db,
    ambient: Ambient,
}

/// Whose guesses these are.
#[derive(Clone, Debug)]
pub(crate) struct Guesser {
    id: String,
    account: Option<String>,
    network: String,
}

impl Guesser {
    /// `account` is what was tried, in canonical form; `known` says that there is such an account.
    pub(crate) fn new(account: &str, known: bool, from: IpAddr) -> Self {
        Self { id: digest_of(account), account: known.then(|| account.to_owned()), network: network_of(from) }
    }
}

impl Throttle {
    /// Counts in this database.
    pub fn new(db: Db, ambient: Ambient) -> Self {
        Self { db, ambient }
    }

    /// Takes one guess: it counts as a failure from here on, until [`Throttle::succeed`]. The inner error says how long to
    /// wait; nothing is counted then.
    ///
    /// # Errors
    /// The storage's: then no guess is evaluated.
    pub(crate) async fn admit(&self, guesser: &Guesser) -> Result<Result<(), Duration>, Error> {
        let (guesser, now) = (guesser.clone(), self.ambient.clock.now());
        self.db
            .count(move |tx| {
                Box::pin(async move {
                    let mut known = identity::get::<Guesses>(tx, &guesser.id).await?;
                    if known.is_none() {
                        let mut first = Guesses::new(guesser.id.clone(), guesser.account.clone(), now);
                        let taken = first.take(&guesser.network, now);
                        if identity::insert(tx, &first).await? == Put::Done {
                            return Ok(taken);
                        }
                        // Another server has made it meanwhile; now it can be seen.
                        known = identity::get(tx, &guesser.id).await?;
                    }
                    let Some(mut found) = known else { return Ok(Err(Duration::from_secs(1))) };
                    let taken = found.document.take(&guesser.network, now);
                    found.document.account.clone_from(&guesser.account);
                    if taken.is_ok() {
                        identity::update(tx, &found).await?;
                    }
                    Ok(taken)
                })
            })
            .await
    }

    /// The guess was right. Part of the transaction that opens the session.
    pub(crate) async fn succeed(tx: &mut dyn Tx, guesser: &Guesser, now: Timestamp) -> Result<(), Error> {
        if let Some(mut found) = identity::get::<Guesses>(tx, &guesser.id).await? {
            found.document.succeed(&guesser.network, now);
            identity::update(tx, &found).await?;
        }
        Ok(())
    }

    /// The guess was not evaluated after all.
    pub(crate) async fn give_back(&self, guesser: Guesser) -> Result<(), Error> {
        self.db
            .count(move |tx| {
                Box::pin(async move {
                    if let Some(mut found) = identity::get::<Guesses>(tx, &guesser.id).await? {
                        if let Some(network) = found.document.networks.get_mut(&guesser.network) {
                            network.failures = network.failures.saturating_sub(1);
                            if network.home.is_none() {
                                found.document.strangers = found.document.strangers.saturating_sub(1);
                            }
                        }
                        identity::update(tx, &found).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// The guess was right and opens no session.
    pub(crate) async fn succeeded(&self, guesser: Guesser) -> Result<(), Error> {
        let now = self.ambient.clock.now();
        self.db.count(move |tx| Box::pin(async move { Self::succeed(tx, &guesser, now).await })).await
    }

    /// Accounts at which somebody must wait, known ones first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(&self, _permit: &Permit<ListLockouts>) -> Result<Vec<Lockout>, Error> {
        self.locked().await
    }

    /// As [`Throttle::list`], for the owner of the machine.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list_here(&self, _permit: &SystemPermit) -> Result<Vec<Lockout>, Error> {
        self.locked().await
    }

    async fn locked(&self) -> Result<Vec<Lockout>, Error> {
        let now = self.ambient.clock.now();
        let mut locked: Vec<Lockout> = identity::list::<Guesses>(self.db.read(), None)
            .await?
            .into_iter()
            .map(|guesses| Lockout {
                networks: guesses.waiting(now),
                strangers: if now.since(guesses.opened) < MEMORY { guesses.strangers } else { 0 },
                id: guesses.document.id,
                account: guesses.document.account,
            })
            .filter(|lockout| !lockout.networks.is_empty() || lockout.strangers >= CEILING)
            .collect();
        locked.sort_by(|a, b| {
            (a.account.is_none(), &a.account, &a.id).cmp(&(b.account.is_none(), &b.account, &b.id))
        });
        Ok(locked)
    }

    /// Forgets the guesses at an account, by its name or its id in the list. `false` if there are none.
    ///
    /// # Errors
    /// The storage's.
    pub async fn unlock(&self, permit: &Permit<Unlock>) -> Result<bool, Error> {
        self.forget(permit, &permit.target().id).await
    }

    /// As [`Throttle::unlock`], for the owner of the machine.
    ///
    /// # Errors
    /// The storage's.
    pub async fn unlock_here(&self, permit: &SystemPermit, account: &str) -> Result<bool, Error> {
        let proof = permit.acting("security.unlocked", Some(account.to_owned()));
        self.forget(&proof, account).await
    }

    async fn forget<P: super::Proof + ?Sized>(&self, proof: &P, account: &str) -> Result<bool, Error> {
        let canonical = account
            .parse::<interlock_model::AgentId>()
            .map_or_else(|_| account.to_ascii_lowercase(), |agent| agent.to_string());
        let by_name = Guesser::new(&canonical, false, IpAddr::from([0, 0, 0, 0])).id;
        let (by_id, now) = (account.to_owned(), self.ambient.clock.now());
        let network_free = |found: &mut Guesses| {
            found.networks.retain(|_, network| network.home.is_some());
            for network in found.networks.values_mut() {
                network.failures = 0;
            }
            found.strangers = 0;
        };
        self.db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let mut forgotten = 0;
                    for id in [by_name, by_id] {
                        let Some(mut found) = identity::get::<Guesses>(tx, &id).await? else { continue };
                        network_free(&mut found.document);
                        found.document.opened = now;
                        identity::update(tx, &found).await?;
                        forgotten += 1;
                    }
                    let details = json!({ "accounts": forgotten });
                    Ok::<_, Error>(Recorded { value: forgotten > 0, details })
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    fn guesses() -> Guesses {
        Guesses::new("id".into(), Some("ana".into()), at(0))
    }

    #[test]
    fn guesses_become_slow_and_a_success_forgets_them() {
        let mut ana = guesses();

        for _ in 0..5 {
            assert_eq!(ana.take("10.0.0.1", at(0)), Ok(()));
        }
        assert_eq!(ana.take("10.0.0.1", at(0)), Err(Duration::from_secs(1)));
        assert_eq!(ana.take("10.0.0.1", at(1)), Ok(()));
        ana.succeed("10.0.0.1", at(1));
        assert_eq!(ana.take("10.0.0.1", at(1)), Ok(()));
    }

    #[test]
    fn many_strangers_share_a_ceiling_and_do_not_lock_out_the_owner() {
        let mut ana = guesses();
        assert_eq!(ana.take("10.0.0.1", at(0)), Ok(()));
        ana.succeed("10.0.0.1", at(0));

        let taken = (0..5_000)
            .filter(|i| ana.take(&format!("203.0.{}.{}", i / 250, i % 250), at(60)).is_ok())
            .count();

        assert_eq!(taken, 100);
        assert_eq!(ana.take("10.0.0.1", at(61)), Ok(()));
        assert!(ana.take("198.51.100.1", at(61)).is_err());
        assert_eq!(ana.take("198.51.100.1", at(61 + 86_400)), Ok(()), "the window passes");
        assert!(ana.networks.len() <= MAX_NETWORKS);
    }

    #[test]
    fn a_clock_that_jumps_back_locks_nobody_out() {
        let mut ana = guesses();
        for _ in 0..200 {
            let _ = ana.take("10.0.0.1", at(0));
        }

        assert_eq!(ana.take("10.0.0.1", at(-3_600)), Ok(()));
    }

    #[test]
    fn one_ipv6_network_is_one_guesser() {
        let network = |text: &str| network_of(text.parse().expect("an address"));

        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
