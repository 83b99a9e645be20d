//! Wall time and randomness as arguments.
//!
//! Production implementations live in `cli`; test implementations behind the feature `test-util`. Nothing else in the
//! workspace may ask the system for the time of day or for random bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since the Unix epoch, UTC, without leap seconds. Range: years 0000 to 9999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

const MICROS: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;
/// 0000-01-01T00:00:00Z.
const MIN_MICROS: i64 = -62_167_219_200 * MICROS;
/// 9999-12-31T23:59:59.999999Z.
const MAX_MICROS: i64 = 253_402_300_800 * MICROS - 1;

impl Timestamp {
    /// From microseconds since the epoch, clamped to the years 0000 to 9999.
    pub const fn from_micros(micros: i64) -> Self {
        if micros < MIN_MICROS {
            Self(MIN_MICROS)
        } else if micros > MAX_MICROS {
            Self(MAX_MICROS)
        } else {
            Self(micros)
        }
    }

    /// From whole seconds since the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self::from_micros(seconds.saturating_mul(MICROS))
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(MICROS)
    }

    /// This time plus a duration; stays within the supported years.
    #[must_use]
    pub fn plus(self, duration: std::time::Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// This time less a duration; stays within the supported years.
    #[must_use]
    pub fn minus(self, duration: std::time::Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// Time from `earlier` to `self`; zero if the clock went backwards.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC, six decimals, as the wire has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds();
        let days = seconds.div_euclid(DAY_SECONDS);
        let of_day = seconds.rem_euclid(DAY_SECONDS);
        let (year, month, day) = civil_from_days(days);
        // Printed several times a request: one piece. Years have four digits, `Timestamp` holds no others.
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |from: usize, digits: usize, mut number: i64| {
            for place in text[from..from + digits].iter_mut().rev() {
                *place = b'0' + u8::try_from(number.rem_euclid(10)).unwrap_or(0);
                number /= 10;
            }
        };
        put(0, 4, year);
        put(5, 2, month);
        put(8, 2, day);
        put(11, 2, of_day / 3600);
        put(14, 2, of_day / 60 % 60);
        put(17, 2, of_day % 60);
        put(20, 6, self.0.rem_euclid(MICROS));
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not an RFC 3339 time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
pub struct BadTimestamp;

/// Longest time as text in bytes: nobody's clock has more digits.
pub const LONGEST: usize = 64;

impl FromStr for Timestamp {
    type Err = BadTimestamp;

    /// Accepts what RFC 3339 section 5.6 does, with `Z` or a numeric offset; a leap second counts as the next second.
    fn from_str(text: &str) -> Result<Self, BadTimestamp> {
        Some(text.as_bytes()).filter(|text| text.len() <= LONGEST).and_then(parse_rfc3339).ok_or(BadTimestamp)
    }
}

fn parse_rfc3339(b: &[u8]) -> Option<Timestamp> {
    fn number(b: &[u8], from: usize, len: usize) -> Option<i64> {
        let digits = b.get(from..from + len)?;
        digits.iter().try_fold(0_i64, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
    }
    let sep = |at: usize, c: u8| (*b.get(at)? == c).then_some(());
    let (year, month, day) = (number(b, 0, 4)?, number(b, 5, 2)?, number(b, 8, 2)?);
    let (hour, minute, second) = (number(b, 11, 2)?, number(b, 14, 2)?, number(b, 17, 2)?);
    sep(4, b'-').and(sep(7, b'-')).and(sep(13, b':')).and(sep(16, b':'))?;
    if !matches!(b.get(10)?, b'T' | b't' | b' ') {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last_day = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        .get(usize::try_from(month.checked_sub(1)?).ok()?)
        .copied()?;
    if !(1..=last_day).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut micros = 0;
    if b.get(at) == Some(&b'.') {
        at += 1;
        let start = at;
        while b.get(at).is_some_and(u8::is_ascii_digit) {
            if at - start < 6 {
                micros = micros * 10 + i64::from(b[at] - b'0');
            }
            at += 1;
        }
        let digits = at - start;
        if digits == 0 {
            return None;
        }
        for _ in digits..6 {
            micros *= 10;
        }
    }
    let offset = match b.get(at)? {
        b'Z' | b'z' => {
            at += 1;
            0
        }
        sign @ (b'+' | b'-') => {
            let (h, m) = (number(b, at + 1, 2)?, number(b, at + 4, 2)?);
            if b.get(at + 3) != Some(&b':') || h > 23 || m > 59 {
                return None;
            }
            at += 6;
            (h * 3600 + m * 60) * if *sign == b'+' { 1 } else { -1 }
        }
        _ => return None,
    };
    if at != b.len() {
        return None;
    }
    let seconds =
        days_from_civil(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second - offset;
    Some(Timestamp::from_micros(seconds * MICROS + micros))
}

/// Gregorian date of a day number (0 is 1970-01-01). Algorithm: eras of 400 years that start on 1 March.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The time of day.
pub trait Clock: Send + Sync {
    /// Now, in UTC. May jump: never measure durations with it.
    fn now(&self) -> Timestamp;

    /// What has expired by this time may be forgotten. It is [`Self::now`], but does not follow a jump forward: see [`Settled`].
    fn settled(&self) -> Timestamp {
        self.now()
    }
}

/// The time by which things are forgotten: idempotency keys, revocations, the audit trail.
///
/// A clock that jumps forward, because a robot without a battery learns the time after its start or because a time server is
/// wrong, makes everything that is kept look old. What is forgotten then is missed when the clock goes back, or when a client
/// repeats a request that was made seconds ago. So this time goes forward no faster than time passes, until the clock has stayed
/// ahead for [`Settled::PATIENCE`]: by then a day has truly passed.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// A time of day that is believed, and when it was read, on a clock that does not jump.
    believed: Timestamp,
    read_at: std::time::Duration,
    /// Since when the time of day is ahead, and for how long it had been before that was first read.
    ahead_since: Option<std::time::Duration>,
    ahead_before: std::time::Duration,
}

impl Settled {
    /// A clock that is ahead for longer than this is believed.
    pub const PATIENCE: std::time::Duration = std::time::Duration::from_hours(24);
    /// Clocks are adjusted by less than this all the time.
    const SLACK: std::time::Duration = std::time::Duration::from_mins(1);

    /// Believes `now`. `elapsed` is the time since any fixed moment, on a clock that does not jump.
    pub fn new(now: Timestamp, elapsed: std::time::Duration) -> Self {
        Self::resumed(now, elapsed, std::time::Duration::ZERO)
    }

    /// Goes on with what another process believed, while the time of day was ahead of that for `ahead`.
    pub fn resumed(believed: Timestamp, elapsed: std::time::Duration, ahead: std::time::Duration) -> Self {
        Self { believed, read_at: elapsed, ahead_since: None, ahead_before: ahead }
    }

    /// The settled time when the time of day is `now`; never later than that.
    pub fn at(&mut self, now: Timestamp, elapsed: std::time::Duration) -> Timestamp {
        let expected = self.believed.plus(elapsed.saturating_sub(self.read_at));
        if now > expected.plus(Self::SLACK) {
            self.ahead_since.get_or_insert(elapsed);
            if self.ahead_for(elapsed) < Self::PATIENCE {
                return expected;
            }
        }
        *self = Self::new(now, elapsed);
        now
    }

    /// For how long the time of day has been ahead.
    pub fn ahead_for(&self, elapsed: std::time::Duration) -> std::time::Duration {
        let here = self.ahead_since.map(|since| elapsed.saturating_sub(since)).unwrap_or_default();
        self.ahead_before + here
    }
}

/// Unpredictable bytes: ids, tokens, salts, jitter.
pub trait Entropy: Send + Sync {
    /// Fills `buffer`. Production takes them from the operating system.
    fn fill(&self, buffer: &mut [u8]);
}

/// A clock that tests set and advance.
#[cfg(any(test, feature = "test-util"))]
#[derive(Debug)]
pub struct TestClock {
    now: std::sync::atomic::AtomicI64,
    settled: std::sync::atomic::AtomicI64,
}

#[cfg(any(test, feature = "test-util"))]
impl TestClock {
    /// Starts at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { now: now.micros().into(), settled: now.micros().into() }
    }

    /// Moves on by `duration`.
    pub fn advance(&self, duration: std::time::Duration) {
        self.set(self.now().plus(duration));
    }

    /// Goes to any time, also backwards. All that time has passed.
    pub fn set(&self, now: Timestamp) {
        self.now.store(now.micros(), std::sync::atomic::Ordering::SeqCst);
        self.settled.store(now.micros(), std::sync::atomic::Ordering::SeqCst);
    }

    /// Jumps forward, without time having passed.
    pub fn jump(&self, duration: std::time::Duration) {
        self.now.store(self.now().plus(duration).micros(), std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn settled(&self) -> Timestamp {
        Timestamp::from_micros(self.settled.load(std::sync::atomic::Ordering::SeqCst))
    }
}

/// A seeded generator (SplitMix64), for tests only.
#[cfg(any(test, feature = "test-util"))]
#[derive(Debug)]
pub struct TestEntropy(std::sync::atomic::AtomicU64);

#[cfg(any(test, feature = "test-util"))]
impl TestEntropy {
    /// The same seed gives the same bytes.
    pub fn seeded(seed: u64) -> Self {
        Self(seed.into())
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Entropy for TestEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, std::sync::atomic::Ordering::SeqCst);
            let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settled times of a clock: how far it is from the true time, in hours, after so many hours.
    fn settled(clock: &[(u64, i64)]) -> Vec<i64> {
        let hours = |hours: i64| Timestamp::from_seconds(1_800_000_000 + hours * 3600);
        let mut settled = Settled::new(hours(0), std::time::Duration::ZERO);
        let read = |&(after, off): &(u64, i64)| {
            let now = hours(i64::try_from(after).expect("few") + off);
            let at = settled.at(now, std::time::Duration::from_hours(after));
            assert!(at <= now, "never later than the clock");
            (at.micros() - hours(0).micros()) / 3_600_000_000
        };
        clock.iter().map(read).collect()
    }

    #[test]
    fn the_settled_time_is_the_clock_s_while_that_goes_right() {
        assert_eq!(settled(&[(0, 0), (1, 0), (50, 0), (51, 0)]), [0, 1, 50, 51]);
    }

    #[test]
    fn a_jump_forward_and_back_leaves_the_settled_time_alone() {
        assert_eq!(settled(&[(1, 0), (2, 900), (3, 900), (4, 0)]), [1, 2, 3, 4]);
    }

    #[test]
    fn a_jump_back_is_followed_at_once_and_its_correction_is_not() {
        assert_eq!(settled(&[(1, -10), (2, -10), (3, 0)]), [-9, -8, -7]);
    }

    #[test]
    fn what_another_process_believed_holds_until_a_day_has_passed_in_both() {
        let hours = std::time::Duration::from_hours;
        let start = Timestamp::from_seconds(1_800_000_000);
        let ahead = start.plus(hours(900));
        let mut first = Settled::new(start, hours(0));
        assert_eq!(first.at(ahead, hours(1)), start.plus(hours(1)));
        let believed = first.at(ahead.plus(hours(9)), hours(10));

        let mut second = Settled::resumed(believed, hours(0), first.ahead_for(hours(10)));

        assert_eq!(second.at(ahead.plus(hours(9)), hours(0)), start.plus(hours(10)));
        assert_eq!(second.at(ahead.plus(hours(23)), hours(14)), start.plus(hours(24)));
        assert_eq!(second.at(ahead.plus(hours(24)), hours(15)), ahead.plus(hours(24)));
        assert_eq!(second.ahead_for(hours(15)), hours(0));
    }

    #[test]
    fn a_clock_that_stays_ahead_for_a_day_is_believed() {
        assert_eq!(settled(&[(1, 900), (20, 900), (24, 900), (25, 900), (26, 900)]), [1, 20, 24, 925, 926]);
    }

    #[test]
    fn a_second_jump_begins_a_new_wait() {
        assert_eq!(settled(&[(1, 900), (20, 0), (21, 900), (30, 900), (45, 900)]), [1, 20, 21, 30, 945]);
    }

    #[test]
    fn known_times_print_and_parse() {
        for (text, micros) in [
            ("1970-01-01T00:00:00.000000Z", 0),
            ("2000-02-29T23:59:59.000001Z", 951_868_799_000_001),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("9999-12-31T23:59:59.999999Z", MAX_MICROS),
            ("0000-01-01T00:00:00.000000Z", MIN_MICROS),
        ] {
            assert_eq!(Timestamp::from_micros(micros).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp::from_micros(micros)));
        }
    }

    #[test]
    fn offsets_and_fractions_are_understood() {
        let noon: Timestamp = "2026-01-31T12:00:00Z".parse().expect("valid");
        assert_eq!("2026-01-31T13:30:00.0+01:30".parse(), Ok(noon));
        assert_eq!("2026-01-31t04:00:00-08:00".parse(), Ok(noon));
        assert_eq!(
            "2026-01-31T12:00:00.1234567Z".parse::<Timestamp>().map(Timestamp::micros),
            Ok(noon.micros() + 123_456)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "2026",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00Zx",
            "2026-01-01T00:00:00+1:00",
            "2026_01-01T00:00:00Z",
            "२०२६-01-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(BadTimestamp), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_time_survives_its_text(micros in MIN_MICROS..=MAX_MICROS) {
            let time = Timestamp::from_micros(micros);
            proptest::prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
