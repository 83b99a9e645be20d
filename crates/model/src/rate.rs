//! Rate limits as a function of time: a window of a minute and one of an hour for each client.
//!
//! A window opens with its first request and admits up to its limit until it is over. A request is counted in both windows or,
//! when one of them is full, in neither. Everything that counts requests gives these decisions: this process in memory, and
//! several servers together in the script of `interlock-shared`, which a test holds against this code.

/// Length of the short window in milliseconds.
pub const MINUTE: u64 = 60_000;
/// Length of the long window in milliseconds.
pub const HOUR: u64 = 3_600_000;

/// How much a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in a window of a minute.
    pub minute: u32,
    /// Requests in a window of an hour.
    pub hour: u32,
}

impl Limits {
    /// The part of one of `servers`, at least one request and never more than the whole.
    #[must_use]
    pub fn share(self, servers: u32) -> Self {
        let servers = servers.max(1);
        Self { minute: (self.minute / servers).max(1), hour: (self.hour / servers).max(1) }
    }
}

/// One window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// When it opened, in milliseconds of the counter's clock.
    pub opened: u64,
    /// Requests that it has admitted.
    pub count: u32,
}

/// Which window refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The minute's.
    Minute,
    /// The hour's.
    Hour,
}

/// A request that is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// The window that is full; of two, the one that lasts longer.
    pub which: Which,
    /// Milliseconds until it is over, at least 1.
    pub wait: u64,
}

/// The decision on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Why it is refused; `None` if it is admitted.
    pub refused: Option<Full>,
    /// What the minute still admits after this request.
    pub remaining: u32,
    /// Milliseconds until the minute's window is over.
    pub resets_in: u64,
}

/// Both windows of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// The short one.
    pub minute: Window,
    /// The long one.
    pub hour: Window,
}

impl Window {
    /// An empty window that opens now.
    pub const fn new(now: u64) -> Self {
        Self { opened: now, count: 0 }
    }

    /// Brings it to the present: one that is over begins anew, and one from the future (a clock went back) opens now with
    /// what it has counted.
    pub fn renew(&mut self, now: u64, length: u64) {
        if now < self.opened {
            self.opened = now;
        } else if now - self.opened >= length {
            *self = Self::new(now);
        }
    }

    /// Milliseconds until it is over, for a window that was renewed at `now`.
    pub const fn left(&self, now: u64, length: u64) -> u64 {
        (self.opened + length).saturating_sub(now)
    }
}

impl Windows {
    /// Empty windows that open now.
    pub const fn new(now: u64) -> Self {
        Self { minute: Window::new(now), hour: Window::new(now) }
    }

    /// Decides on one request, and counts it if it is admitted. `now` is in milliseconds.
    pub fn judge(&mut self, now: u64, limits: Limits) -> Verdict {
        self.minute.renew(now, MINUTE);
        self.hour.renew(now, HOUR);
        let refused = if self.hour.count >= limits.hour {
            Some(Full { which: Which::Hour, wait: self.hour.left(now, HOUR) })
        } else if self.minute.count >= limits.minute {
            Some(Full { which: Which::Minute, wait: self.minute.left(now, MINUTE) })
        } else {
            self.minute.count += 1;
            self.hour.count += 1;
            None
        };
        Verdict {
            refused,
            remaining: limits.minute.saturating_sub(self.minute.count),
            resets_in: self.minute.left(now, MINUTE),
        }
    }

    /// Takes back what was counted when the windows were as in `then`. A window that is over keeps what it has.
    pub fn give_back(&mut self, then: &Self) {
        for (window, before) in [(&mut self.minute, &then.minute), (&mut self.hour, &then.hour)] {
            if window.opened == before.opened {
                window.count = window.count.saturating_sub(1);
            }
        }
    }

    /// Whether nothing is remembered any more.
    pub const fn is_over(&self, now: u64) -> bool {
        now >= self.hour.opened && now - self.hour.opened >= HOUR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { minute: 60, hour: 1000 };

    fn admitted(windows: &mut Windows, times: impl Iterator<Item = u64>) -> usize {
        times.filter(|now| windows.judge(*now, LIMITS).refused.is_none()).count()
    }

    #[test]
    fn a_window_admits_its_limit_and_not_one_more() {
        let mut windows = Windows::new(5);

        assert_eq!(admitted(&mut windows, (0..500).map(|i| 5 + i * 119)), 60);
        let last = windows.judge(60_004, LIMITS);
        assert_eq!(last.refused, Some(Full { which: Which::Minute, wait: 1 }));
        assert_eq!(windows.judge(60_005, LIMITS).refused, None);
    }

    #[test]
    fn the_hour_admits_a_thousand_however_they_are_spread() {
        let mut windows = Windows::new(0);

        assert_eq!(admitted(&mut windows, (0..36_000).map(|i| i * 100)), 1000);
        let refused = windows.judge(HOUR - 1, LIMITS).refused;
        assert_eq!(refused, Some(Full { which: Which::Hour, wait: 1 }));
        assert_eq!(windows.judge(HOUR, LIMITS).refused, None);
    }

    #[test]
    fn a_clock_that_goes_back_admits_nothing_more_and_shuts_nobody_out_for_long() {
        let mut windows = Windows::new(10 * HOUR);
        assert_eq!(admitted(&mut windows, std::iter::repeat_n(10 * HOUR, 70)), 60);

        assert_eq!(windows.judge(0, LIMITS).refused, Some(Full { which: Which::Minute, wait: MINUTE }));
        assert_eq!(windows.judge(MINUTE, LIMITS).refused, None);
    }

    #[test]
    fn what_is_given_back_can_be_used_again_in_the_same_window_only() {
        let limits = Limits { minute: 1, hour: 5 };
        let mut windows = Windows::new(0);
        assert_eq!(windows.judge(0, limits).refused, None);
        let then = windows;
        windows.give_back(&then);
        assert_eq!(windows.judge(1, limits).refused, None);
        assert_eq!(windows.judge(MINUTE, limits).refused, None);

        windows.give_back(&then);

        assert!(windows.judge(MINUTE + 1, limits).refused.is_some());
        assert_eq!((windows.minute.count, windows.hour.count), (1, 1));
    }

    #[test]
    fn shares_are_never_nothing_and_never_more_than_the_whole() {
        assert_eq!(LIMITS.share(3), Limits { minute: 20, hour: 333 });
        assert_eq!(LIMITS.share(0), LIMITS);
        assert_eq!(LIMITS.share(5000), Limits { minute: 1, hour: 1 });
    }
}
