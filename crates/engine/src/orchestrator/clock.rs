//! One time for all servers of a database: the database's.
//!
//! Servers whose clocks are minutes apart would serve due times minutes early or late, and a run that sleeps at one would sleep on
//! at the next. So tasks go by the clock that all of them can ask. A file has none but the server's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use interlock_model::{Clock, Timestamp};

/// Differences up to this, in microseconds, are left alone: so much is lost on the way.
const TOLERANCE: i64 = 250_000;
/// An answer that took longer, in microseconds, says too little.
const SLOWEST: i64 = 1_000_000;
/// A difference that somebody should know of, in microseconds.
const REMARKABLE: u64 = 2_000_000;
/// How often it is asked.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// The clock of this server, put right by the database's.
pub(super) struct Agreed {
    own: Arc<dyn Clock>,
    /// Microseconds by which the database is ahead.
    ahead: AtomicI64,
}

impl Agreed {
    pub(super) fn new(own: Arc<dyn Clock>) -> Self {
        Self { own, ahead: AtomicI64::new(0) }
    }

    fn put_right(&self, time: Timestamp) -> Timestamp {
        Timestamp::from_micros(time.micros().saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// What this server's own clock says.
    pub(super) fn own(&self) -> Timestamp {
        self.own.now()
    }

    /// Takes in that the database said `there`, asked and answered at these times of this server's own clock.
    pub(super) fn compare(&self, asked: Timestamp, there: Timestamp, answered: Timestamp) {
        let took = answered.micros().saturating_sub(asked.micros());
        if !(0..=SLOWEST).contains(&took) {
            return;
        }
        let ahead = there.micros().saturating_sub(asked.micros().saturating_add(took / 2));
        let known = self.ahead.load(Ordering::Relaxed);
        let differs = ahead.saturating_sub(known).saturating_abs();
        if differs <= TOLERANCE.saturating_add(took / 2) {
            return;
        }
        self.ahead.store(ahead, Ordering::Relaxed);
        if ahead.unsigned_abs() > REMARKABLE {
            tracing::warn!(
                difference_ms = ahead / 1_000,
                "the database's clock differs from this server's by so much; tasks go by the database's"
            );
        }
    }
}

impl Clock for Agreed {
    fn now(&self) -> Timestamp {
        self.put_right(self.own.now())
    }

    fn settled(&self) -> Timestamp {
        self.put_right(self.own.settled())
    }
}

#[cfg(test)]
mod tests {
    use interlock_model::time::TestClock;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(1_000_000_000 + micros)
    }

    #[test]
    fn a_clock_that_is_minutes_behind_is_put_right() {
        let agreed = Agreed::new(Arc::new(TestClock::at(at(0))));
        assert_eq!(agreed.now(), at(0));

        agreed.compare(at(0), at(300_000_000), at(2_000));

        assert_eq!((agreed.now(), agreed.own()), (at(299_999_000), at(0)));
        // And back again when somebody has set it.
        agreed.compare(at(0), at(1_000), at(2_000));
        assert_eq!(agreed.now(), at(0));
    }

    #[test]
    fn small_differences_and_answers_that_say_nothing_change_nothing() {
        let agreed = Agreed::new(Arc::new(TestClock::at(at(0))));

        agreed.compare(at(0), at(200_000), at(2_000));
        agreed.compare(at(0), at(300_000_000), at(1_500_000));
        agreed.compare(at(0), at(300_000_000), at(-1));

        assert_eq!(agreed.now(), at(0));
    }
}
