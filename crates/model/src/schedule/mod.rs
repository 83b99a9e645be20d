//! When a task runs: crontab lines, recurrence rules and single times, in the zones of the world.
//!
//! A schedule is read once, when a task is made or changed, and then answers which time comes next. It is a pure function of
//! its text, its zone and the time at which it was set (its anchor), so that any server gives the same answer. Whether a due
//! time was carried out is `store`'s to know. What clock changes do is stated in [`zone`], and for users in
//! docs/reference/schedules.md.
//!
//! Every search has a bound: a rule whose next time is more than [`SEARCH`] steps away counts as one that never fires again.

mod civil;
mod cron;
mod rrule;
mod zone;

use std::ops::ControlFlow;

use civil::{DAY, Fuel, Recurrence, Written};
use cron::Cron;
use rrule::{End, Rule, Text};
use zone::{NoZone, Zone};

use crate::Timestamp;
use crate::pipeline::Condition;
use crate::task::ScheduleKind;
use crate::text::{Form as _, Topic};

/// Longest `schedule_expr`, bytes.
pub const LONGEST_EXPRESSION: usize = 8_192;
/// Most times that [`Schedule::times_after`] gives at once.
pub const MOST_TIMES: usize = 1_000;
/// How many days, periods and times one search looks at. More than 2 000 years of a rule without BYMONTH, some 20 ms.
pub const SEARCH: u32 = 1_000_000;
/// Most times that EXDATE may name.
const MOST_EXCEPTIONS: usize = 1_000;

/// When a task runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    kind: ScheduleKind,
    zone: Zone,
    plan: Plan,
}

#[derive(Clone, Debug)]
enum Plan {
    Rule {
        times: Times,
        /// First and last second at which the rule may fire.
        first: i64,
        last: i64,
        /// Seconds since the epoch and spans of them, `start..end`.
        except: Vec<std::ops::Range<i64>>,
    },
    Once(Timestamp),
    /// Something else says when.
    Told,
}

#[derive(Clone, Debug)]
enum Times {
    Cron(Cron),
    Rule(Box<Rule>),
}

/// Which field of a task is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The expression.
    Expr,
    /// The zone.
    Zone,
}

impl Field {
    /// Its name on the wire.
    pub const fn loc(self) -> &'static str {
        match self {
            Self::Expr => "schedule_expr",
            Self::Zone => "timezone",
        }
    }
}

/// A schedule cannot be. The message is a sentence that says what is right, and may be shown to whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    /// Where.
    pub field: Field,
    /// Why.
    pub message: String,
}

fn wrong(message: impl Into<String>) -> ScheduleError {
    ScheduleError { field: Field::Expr, message: message.into() }
}

impl Schedule {
    /// Reads a schedule. `anchor` is when it was set: the same four values give the same schedule for ever, so keep it beside
    /// them. A rule without DTSTART begins at the anchor, and what has no time after it is refused.
    ///
    /// Takes microseconds, and at most some 20 ms for a rule that never fires.
    ///
    /// # Errors
    /// The field, and a sentence on what is right.
    pub fn parse(
        kind: ScheduleKind,
        expr: Option<&str>,
        zone: &str,
        anchor: Timestamp,
    ) -> Result<Self, ScheduleError> {
        let zone = Zone::named(zone).map_err(|problem| ScheduleError {
            field: Field::Zone,
            message: match problem {
                NoZone::Spelled(exact) => format!("this zone is written {exact:?}"),
                NoZone::Unknown => {
                    "this is not a zone of the IANA database: write for example \"Europe/Berlin\" or \"UTC\""
                        .to_owned()
                }
            },
        })?;
        let plan = match (kind, expr.map(str::trim).filter(|expr| !expr.is_empty())) {
            (ScheduleKind::Manual, None) => Plan::Told,
            (ScheduleKind::Manual, Some(_)) => {
                return Err(wrong(
                    "a manual task has no schedule: leave schedule_expr out, or choose another schedule_kind",
                ));
            }
            (_, None) => {
                return Err(wrong(format!(
                    "schedule_kind {} needs a schedule_expr, for example {}",
                    kind.as_str(),
                    example(kind)
                )));
            }
            (_, Some(expr)) if expr.len() > LONGEST_EXPRESSION => {
                return Err(wrong(format!(
                    "the expression has {} bytes: it may have {LONGEST_EXPRESSION}",
                    expr.len()
                )));
            }
            (ScheduleKind::Cron, Some(expr)) => Plan::Rule {
                times: Times::Cron(Cron::read(expr).map_err(wrong)?),
                first: i64::MIN,
                last: zone::last_second(),
                except: Vec::new(),
            },
            (ScheduleKind::Rrule, Some(expr)) => recurrence(expr, &zone, anchor)?,
            (ScheduleKind::Once, Some(expr)) => Plan::Once(once(expr, &zone)?),
            (ScheduleKind::Event, Some(expr)) => {
                Topic::RULE.check(expr).map_err(|breach| wrong(format!("a topic {breach}")))?;
                Plan::Told
            }
            (ScheduleKind::Condition, Some(expr)) => {
                Condition::compile(expr).map_err(wrong)?;
                Plan::Told
            }
        };
        let schedule = Self { kind, zone, plan };
        let timed = !matches!(schedule.plan, Plan::Told);
        if timed && schedule.next_after(anchor).is_none() {
            return Err(wrong(match kind {
                ScheduleKind::Once => format!("the time has passed: it must be after {anchor}"),
                _ => format!("the schedule never fires after {anchor}"),
            }));
        }
        Ok(schedule)
    }

    /// Its kind.
    pub fn kind(&self) -> ScheduleKind {
        self.kind
    }

    /// Name of its zone in the IANA database.
    pub fn zone(&self) -> &str {
        self.zone.name()
    }

    /// The first due time that is later than `after`. None: never again, or something else says when.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.times_after(after, 1).pop()
    }

    /// The first `count` due times that are later than `after`, at most [`MOST_TIMES`].
    pub fn times_after(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        let count = count.min(MOST_TIMES);
        match &self.plan {
            _ if count == 0 => Vec::new(),
            Plan::Told => Vec::new(),
            Plan::Once(at) => [*at].into_iter().filter(|at| *at > after).collect(),
            Plan::Rule { times, first, last, except } => {
                let from = after.seconds().saturating_add(1).max(*first);
                let mut all = Vec::new();
                let _: ControlFlow<()> =
                    self.zone.each(times.recurrence(), from, *last, &mut Fuel::of(SEARCH), &mut |at| {
                        if !except.iter().any(|except| except.contains(&at)) {
                            all.push(Timestamp::from_seconds(at));
                        }
                        if all.len() == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    });
                all
            }
        }
    }
}

impl Times {
    fn recurrence(&self) -> &dyn Recurrence {
        match self {
            Self::Cron(cron) => cron,
            Self::Rule(rule) => &**rule,
        }
    }
}

fn example(kind: ScheduleKind) -> &'static str {
    match kind {
        ScheduleKind::Cron => "\"30 8 * * mon-fri\"",
        ScheduleKind::Rrule => "\"FREQ=WEEKLY;BYDAY=MO;BYHOUR=9;BYMINUTE=0;BYSECOND=0\"",
        ScheduleKind::Once => "\"2030-01-31T09:00:00\"",
        ScheduleKind::Event => "\"plate.read\"",
        ScheduleKind::Condition => "\"event.payload.ph > `7`\"",
        ScheduleKind::Manual => "none",
    }
}

fn once(expr: &str, zone: &Zone) -> Result<Timestamp, ScheduleError> {
    let written = civil::read(expr).map_err(|_| {
        wrong("this is not an ISO 8601 time: write for example \"2030-01-31T09:00:00\" or \"2030-01-31T09:00:00Z\"")
    })?;
    if written.date_only {
        return Err(wrong("this date has no time of day: write for example \"2030-01-31T09:00:00\""));
    }
    Ok(Timestamp::from_micros(instant(written, zone) * 1_000_000 + written.micros))
}

fn instant(written: Written, zone: &Zone) -> i64 {
    written.offset.map_or_else(|| zone.instant(written.civil), |offset| written.civil - offset)
}

/// Reads the lines of a recurrence: RRULE, and DTSTART and EXDATE if they are there.
fn recurrence(expr: &str, zone: &Zone, anchor: Timestamp) -> Result<Plan, ScheduleError> {
    // RFC 5545 section 3.1: a line that begins with a space goes on with the one before.
    let unfolded = expr.replace("\r\n", "\n").replace("\n ", "").replace("\n\t", "");
    let (mut rule, mut start, mut except) = (None, None, Vec::new());
    for line in unfolded.split('\n').map(str::trim).filter(|line| !line.is_empty()) {
        let (head, value) = line.split_once(':').unwrap_or(("RRULE", line));
        let (name, parameters) = head.split_once(';').unwrap_or((head, ""));
        match name.trim().to_ascii_uppercase().as_str() {
            "RRULE" if rule.is_none() => rule = Some(Text::read(value).map_err(wrong)?),
            "DTSTART" if start.is_none() => start = Some(time("DTSTART", parameters, value, zone)?),
            "EXDATE" => {
                for value in value.split(',') {
                    except.push(span(time("EXDATE", parameters, value, zone)?, zone));
                    if except.len() > MOST_EXCEPTIONS {
                        return Err(wrong(format!("EXDATE names more than {MOST_EXCEPTIONS} times")));
                    }
                }
            }
            "RRULE" | "DTSTART" => {
                return Err(wrong(format!("{name} is there twice: a schedule has it once")));
            }
            _ => {
                return Err(wrong(
                    "a line is not known: a recurrence has the lines RRULE, DTSTART and EXDATE",
                ));
            }
        }
    }
    let text = rule.ok_or_else(|| wrong("there is no rule: add a line such as RRULE:FREQ=DAILY"))?;
    let end = text.end;
    let (first, start) = match start {
        Some(start) => {
            let first = instant(start, zone);
            (first, if start.offset.is_some() { zone.civil(first) } else { start.civil })
        }
        None => (anchor.seconds() + 1, zone.civil(anchor.seconds())),
    };
    let times = Times::Rule(Box::new(Rule::starting(text, start)));
    let last = match end {
        End::Never => zone::last_second(),
        End::Until(until) => instant(until, zone).min(zone::last_second()),
        End::After(count) => last_of(&times, zone, first, count)?,
    };
    Ok(Plan::Rule { times, first, last, except })
}

/// The time number `count` of a rule, or the end of all time if it has fewer.
fn last_of(times: &Times, zone: &Zone, first: i64, count: u32) -> Result<i64, ScheduleError> {
    let (mut left, mut last, mut spent) = (count, zone::last_second(), true);
    let end = zone.each(times.recurrence(), first, last, &mut Fuel::of(SEARCH), &mut |at| {
        left -= 1;
        if left > 0 {
            return ControlFlow::Continue(());
        }
        last = at;
        spent = false;
        ControlFlow::Break(())
    });
    // A search that was broken off without a time ran out of steps.
    if end.is_break() && spent {
        return Err(wrong(format!(
            "COUNT={count} is too far away to be found in {SEARCH} steps: write UNTIL with the last time instead"
        )));
    }
    Ok(last)
}

/// A time in a line of a recurrence.
fn time(name: &str, parameters: &str, value: &str, zone: &Zone) -> Result<Written, ScheduleError> {
    for parameter in parameters.split(';').filter(|parameter| !parameter.is_empty()) {
        let (key, setting) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key.trim().to_ascii_uppercase().as_str() {
            "TZID" if setting == zone.name() => {}
            "TZID" => {
                return Err(wrong(format!(
                    "{name} is in another zone than the task, which is in {:?}: write the same zone in both",
                    zone.name()
                )));
            }
            "VALUE" if matches!(setting, "DATE" | "DATE-TIME") => {}
            _ => {
                return Err(wrong(format!(
                    "{name} has the parameters TZID and VALUE=DATE or VALUE=DATE-TIME, and no others"
                )));
            }
        }
    }
    civil::read(value.trim()).ok().filter(|time| time.micros == 0).ok_or_else(|| {
        wrong(format!(
            "a value of {name} is not a time: write for example 20260131T090000, or 20260131T090000Z for UTC"
        ))
    })
}

/// What EXDATE takes away: one second, or the whole of a day.
fn span(time: Written, zone: &Zone) -> std::ops::Range<i64> {
    let at = instant(time, zone);
    if time.date_only { at..zone.instant(time.civil + DAY) } else { at..at + 1 }
}

#[cfg(test)]
mod tests;
