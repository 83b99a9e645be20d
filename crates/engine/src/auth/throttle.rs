//! Guessing is slow: a growing delay per account and network, counted before the password is hashed.
//!
//! Delays follow the number of failures without a success in between: none for the first four, then 1 s, 3 s from the ninth,
//! 10 s from the twenty-fifth, 60 s from the fiftieth, 15 min from the hundredth (NIST SP 800-63B asks for at most 100). A
//! stranger's guesses delay the stranger's network only, never the owner's. Unknown names are counted like known ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use interlock_model::Timestamp;

/// Most (account, network) pairs remembered; the oldest are forgotten first.
const MAX_ENTRIES: usize = 100_000;
/// Failures are forgotten after this long without another.
const MEMORY: Duration = Duration::from_hours(24);

/// Counts failures.
#[derive(Debug, Default)]
pub struct Throttle {
    entries: Mutex<HashMap<(String, Network), Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    failures: u32,
    last: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl From<IpAddr> for Network {
    /// An IPv6 address counts by its /64.
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let mut prefix = [0; 8];
                prefix.copy_from_slice(&v6.octets()[..8]);
                Self::V6(prefix)
            }
        }
    }
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

impl Throttle {
    /// Takes one guess. The guess counts as a failure from here on, until [`Throttle::succeeded`].
    ///
    /// # Errors
    /// How long to wait; nothing is counted then.
    pub fn admit(&self, account: &str, from: IpAddr, now: Timestamp) -> Result<(), Duration> {
        let mut entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| now.since(entry.last) < MEMORY);
            if entries.len() >= MAX_ENTRIES {
                let mut times: Vec<Timestamp> = entries.values().map(|entry| entry.last).collect();
                let (_, median, _) = times.select_nth_unstable(MAX_ENTRIES / 2);
                let median = *median;
                entries.retain(|_, entry| entry.last > median);
            }
        }
        let entry =
            entries.entry((account.to_owned(), from.into())).or_insert(Entry { failures: 0, last: now });
        if now.since(entry.last) >= MEMORY {
            entry.failures = 0;
        }
        let open_at = entry.last.plus(delay_after(entry.failures));
        // A clock that jumped back must not lock anybody out for longer than the delay itself.
        if now < open_at && now >= entry.last {
            return Err(open_at.since(now));
        }
        entry.failures = entry.failures.saturating_add(1);
        entry.last = now;
        Ok(())
    }

    /// The guess was right: its network starts afresh for this account.
    pub fn succeeded(&self, account: &str, from: IpAddr) {
        let mut entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        entries.remove(&(account.to_owned(), from.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    #[test]
    fn guesses_become_slow_and_a_success_forgets_them() {
        let throttle = Throttle::default();
        let home: IpAddr = "10.0.0.1".parse().expect("address");

        for _ in 0..5 {
            assert_eq!(throttle.admit("ana", home, at(0)), Ok(()));
        }
        assert_eq!(throttle.admit("ana", home, at(0)), Err(Duration::from_secs(1)));
        assert_eq!(throttle.admit("ana", home, at(1)), Ok(()));
        throttle.succeeded("ana", home);
        assert_eq!(throttle.admit("ana", home, at(1)), Ok(()));
    }

    #[test]
    fn a_stranger_does_not_lock_out_the_owner() {
        let throttle = Throttle::default();
        let (stranger, owner) =
            ("203.0.113.9".parse().expect("address"), "10.0.0.1".parse().expect("address"));

        for second in 0..200 {
            let _ = throttle.admit("ana", stranger, at(second * 60));
        }

        assert!(throttle.admit("ana", stranger, at(200 * 60)).is_err());
        assert_eq!(throttle.admit("ana", owner, at(200 * 60)), Ok(()));
    }

    #[test]
    fn one_ipv6_network_is_one_guesser() {
        let throttle = Throttle::default();
        let admitted = (0..100_u16)
            .filter(|i| {
                throttle.admit("ana", format!("2001:db8::{i:x}").parse().expect("address"), at(0)).is_ok()
            })
            .count();
        assert_eq!(admitted, 5);
    }
}
