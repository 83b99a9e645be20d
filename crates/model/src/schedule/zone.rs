//! From times on a wall to instants: the one policy for clock changes.
//!
//! A time that the clock skips is read with the offset that held before the change (RFC 5545 section 3.3.5): 02:30 runs at
//! 03:30 when 02:00 becomes 03:00. A time that comes twice is the first of the two, except for rules that fire in every hour,
//! which go on through both. Names and data of zones are the IANA database, compiled in.

use std::ops::ControlFlow;

use jiff::tz::{Offset, TimeZone};

use super::civil::{Fuel, Recurrence};
use crate::Timestamp;

/// A zone of the IANA database.
#[derive(Clone, Debug)]
pub(super) struct Zone(TimeZone);

/// Why a text names no zone.
pub(super) enum NoZone {
    /// It is spelled like this.
    Spelled(String),
    /// There is none.
    Unknown,
}

/// A stretch of time with one offset. Seconds since the epoch; `start` belongs to it, `end` does not.
struct Stretch {
    start: i64,
    end: i64,
    /// Seconds east of UTC.
    offset: i64,
    /// The offset of the stretch before.
    earlier: i64,
}

const NEVER: i64 = i64::MAX / 4;

impl Zone {
    pub(super) fn named(name: &str) -> Result<Self, NoZone> {
        let zone = TimeZone::get(name).map_err(|_| NoZone::Unknown)?;
        match zone.iana_name() {
            Some(exact) if exact == name && name != "Etc/Unknown" => Ok(Self(zone)),
            Some(exact) if exact.eq_ignore_ascii_case(name) && exact != "Etc/Unknown" => {
                Err(NoZone::Spelled(exact.to_owned()))
            }
            _ => Err(NoZone::Unknown),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    fn offset_at(&self, instant: i64) -> i64 {
        self.0.to_offset(library(instant)).seconds().into()
    }

    /// What a wall shows at an instant.
    pub(super) fn civil(&self, instant: i64) -> i64 {
        instant + self.offset_at(instant)
    }

    /// The instant of a time on the wall, by the policy above.
    pub(super) fn instant(&self, civil: i64) -> i64 {
        // As if the wall were in Greenwich: only to get a date and a time out of a count of seconds.
        let wall = Offset::UTC.to_datetime(library(civil));
        let found = self.0.to_ambiguous_timestamp(wall).compatible();
        found.map_or(civil, jiff::Timestamp::as_second)
    }

    fn stretch(&self, instant: i64) -> Stretch {
        let start = self.0.preceding(library(instant + 1)).next();
        let end = self.0.following(library(instant)).next();
        let start = start.map_or(-NEVER, |change| change.timestamp().as_second());
        Stretch {
            start,
            end: end.map_or(NEVER, |change| change.timestamp().as_second()),
            offset: self.offset_at(instant),
            earlier: self.offset_at(start.saturating_sub(1)),
        }
    }

    /// Calls `found` with every instant of a rule in `from..=last`, in order and each once, until it or the fuel says stop.
    pub(super) fn each(
        &self,
        rule: &dyn Recurrence,
        from: i64,
        last: i64,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut from = from;
        while from <= last {
            // Finding a change of the clocks costs as much as looking at some twenty days.
            fuel.spend(20)?;
            let now = self.stretch(from);
            let end = now.end.min(last + 1);
            let change = now.offset - now.earlier;
            // What the wall skipped when this stretch began happens at its beginning.
            let mut moved = Vec::new();
            if change > 0 && from < now.start + change {
                let skipped = from + now.earlier..now.start + now.offset;
                rule.each(skipped.start, skipped.end, fuel, &mut |civil| {
                    moved.push(civil - now.earlier);
                    ControlFlow::Continue(())
                })?;
            }
            let mut moved = moved.into_iter().filter(|instant| *instant < end).peekable();
            let mut begin = from + now.offset;
            if change < 0 && !rule.every_hour() {
                begin = begin.max(now.start + now.earlier);
            }
            rule.each(begin, end + now.offset, fuel, &mut |civil| {
                let instant = civil - now.offset;
                while let Some(earlier) = moved.next_if(|moved| *moved <= instant) {
                    if earlier < instant {
                        found(earlier)?;
                    }
                }
                found(instant)
            })?;
            moved.try_for_each(&mut *found)?;
            from = end;
        }
        ControlFlow::Continue(())
    }
}

/// Clamped to what the library can hold, which is a day less than what [`Timestamp`] can.
fn library(seconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::new(seconds, 0).unwrap_or(if seconds < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}

/// The last second that a schedule may name: the end of 9999, less a day for the zones.
pub(super) fn last_second() -> i64 {
    Timestamp::from_micros(i64::MAX).seconds() - 2 * super::civil::DAY
}
