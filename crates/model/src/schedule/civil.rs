//! Dates and times as a wall shows them, without a zone.
//!
//! A civil time is a count of seconds since 1970-01-01T00:00:00 on some wall; what instant that is, [`super::zone`] says.

use std::ops::ControlFlow;

use crate::time::{civil_from_days, days_from_civil};

/// Seconds of a civil day.
pub(super) const DAY: i64 = 86_400;

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Date {
    /// Days since 1970-01-01.
    pub(super) number: i64,
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
}

impl Date {
    pub(super) fn of(number: i64) -> Self {
        let (year, month, day) = civil_from_days(number);
        Self { number, year, month, day }
    }

    /// 0 is Monday.
    pub(super) fn weekday(self) -> i64 {
        weekday(self.number)
    }

    /// 1 to 366.
    pub(super) fn day_of_year(self) -> i64 {
        self.number - days_from_civil(self.year, 1, 1) + 1
    }

    pub(super) fn days_in_month(self) -> i64 {
        self.first_of_next_month() - days_from_civil(self.year, self.month, 1)
    }

    pub(super) fn days_in_year(self) -> i64 {
        days_from_civil(self.year + 1, 1, 1) - days_from_civil(self.year, 1, 1)
    }

    pub(super) fn first_of_next_month(self) -> i64 {
        first_of_month(self.year * 12 + self.month)
    }
}

/// 0 is Monday.
pub(super) fn weekday(number: i64) -> i64 {
    (number + 3).rem_euclid(7)
}

/// The first day of the month with this number; month 0 is January of the year 0.
pub(super) fn first_of_month(month: i64) -> i64 {
    days_from_civil(month.div_euclid(12), month.rem_euclid(12) + 1, 1)
}

/// A text is no time, or no time that exists in the calendar.
#[derive(Debug)]
pub(super) struct NoTime;

/// A time as somebody wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Seconds of civil time; midnight for a date alone.
    pub(super) civil: i64,
    pub(super) micros: i64,
    /// Seconds east of UTC, if it was written.
    pub(super) offset: Option<i64>,
    pub(super) date_only: bool,
}

/// Reads ISO 8601 in its extended form (`2026-01-31T09:00`, with seconds, fraction and offset if wanted) and in the basic form
/// of iCalendar (`20260131T090000Z`, `20260131`).
pub(super) fn read(text: &str) -> Result<Written, NoTime> {
    let mut rest = Rest(text.as_bytes());
    let year = rest.number(4)?;
    let extended = rest.take(b"-");
    let month = rest.number(2)?;
    if extended && !rest.take(b"-") {
        return Err(NoTime);
    }
    let day = rest.number(2)?;
    if !(1..=12).contains(&month)
        || year < 1
        || !(1..=Date::of(days_from_civil(year, month, 1)).days_in_month()).contains(&day)
    {
        return Err(NoTime);
    }
    let midnight = days_from_civil(year, month, day) * DAY;
    if rest.0.is_empty() {
        return Ok(Written { civil: midnight, micros: 0, offset: None, date_only: true });
    }
    if !rest.take(if extended { b"Tt " } else { b"Tt" }) {
        return Err(NoTime);
    }
    let hour = rest.number(2)?;
    if extended && !rest.take(b":") {
        return Err(NoTime);
    }
    let minute = rest.number(2)?;
    let (mut second, mut micros) = (0, 0);
    if if extended { rest.take(b":") } else { rest.digit() } {
        second = rest.number(2)?;
        if rest.take(b".,") {
            micros = rest.fraction()?;
        }
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err(NoTime);
    }
    let offset = rest.offset()?;
    let civil = midnight + hour * 3600 + minute * 60 + second;
    Ok(Written { civil, micros, offset, date_only: false })
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn digit(&self) -> bool {
        self.0.first().is_some_and(u8::is_ascii_digit)
    }

    fn take(&mut self, any_of: &[u8]) -> bool {
        let found = self.0.first().is_some_and(|next| any_of.contains(next));
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn number(&mut self, digits: usize) -> Result<i64, NoTime> {
        let (digits, rest) = self.0.split_at_checked(digits).ok_or(NoTime)?;
        self.0 = rest;
        digits
            .iter()
            .try_fold(0, |n, digit| digit.is_ascii_digit().then(|| n * 10 + i64::from(digit - b'0')))
            .ok_or(NoTime)
    }

    fn fraction(&mut self) -> Result<i64, NoTime> {
        let (mut micros, mut worth) = (0, 100_000);
        if !self.digit() {
            return Err(NoTime);
        }
        while self.digit() {
            micros += i64::from(self.0[0] - b'0') * worth;
            worth /= 10;
            self.0 = &self.0[1..];
        }
        Ok(micros)
    }

    /// Nothing, `Z`, `+01`, `+0100` or `+01:00`, and then the end.
    fn offset(&mut self) -> Result<Option<i64>, NoTime> {
        let offset = match self.0.first() {
            None => return Ok(None),
            Some(b'Z' | b'z') => {
                self.0 = &self.0[1..];
                0
            }
            Some(sign @ (b'+' | b'-')) => {
                let sign = if *sign == b'-' { -1 } else { 1 };
                self.0 = &self.0[1..];
                let hours = self.number(2)?;
                let minutes = if self.take(b":") || self.digit() { self.number(2)? } else { 0 };
                if hours > 23 || minutes > 59 {
                    return Err(NoTime);
                }
                sign * (hours * 3600 + minutes * 60)
            }
            Some(_) => return Err(NoTime),
        };
        if self.0.is_empty() { Ok(Some(offset)) } else { Err(NoTime) }
    }
}

/// How much more a search may cost. A step is one day or one period looked at, or one time found.
pub(super) struct Fuel(u32);

impl Fuel {
    pub(super) fn of(steps: u32) -> Self {
        Self(steps)
    }

    pub(super) fn spend(&mut self, steps: u32) -> ControlFlow<()> {
        let left = self.0.checked_sub(steps);
        self.0 = left.unwrap_or(0);
        if left.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// What a rule names, as times on a wall.
pub(super) trait Recurrence {
    /// Calls `found` with every time in `from..before`, in order, until it or the fuel says stop.
    fn each(
        &self,
        from: i64,
        before: i64,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()>;

    /// Whether the rule fires in every hour of the day, so that an hour that comes twice has its times twice.
    fn every_hour(&self) -> bool;
}

/// The numbers of the set bits, rising.
pub(super) fn bits(mask: u64) -> impl Iterator<Item = i64> {
    (0..64).filter(move |bit| mask & (1 << bit) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let nine = Written { civil: 1_769_850_000, micros: 0, offset: None, date_only: false };

        for (text, expected) in [
            ("2026-01-31T09:00", nine),
            ("2026-01-31 09:00:00", nine),
            ("20260131T090000", nine),
            ("20260131T0900", nine),
            ("2026-01-31T09:00:00Z", Written { offset: Some(0), ..nine }),
            ("20260131T090000Z", Written { offset: Some(0), ..nine }),
            ("2026-01-31T09:00:00.25+01:30", Written { offset: Some(5400), micros: 250_000, ..nine }),
            ("2026-01-31T09:00-08", Written { offset: Some(-28_800), ..nine }),
            ("2026-01-31", Written { civil: 1_769_817_600, date_only: true, ..nine }),
        ] {
            assert_eq!(read(text).ok(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "tomorrow",
            "2026-02-29T09:00",
            "2026-1-31T09:00",
            "2026-01-31T24:00",
            "2026-01-31T09:60",
            "2026-01-31T09:00:61",
            "2026-01-31T09",
            "2026-01-31T09:00:00.",
            "2026-01-31T09:00 Europe/Berlin",
            "2026-01-31T09:00+25:00",
            "2026-0131T09:00",
            "0000-01-01T00:00",
            "२०२६-01-31T09:00",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
