//! Recurrence rules of iCalendar (RFC 5545 section 3.3.10), as times on a wall.
//!
//! Where the standard leaves room the rule means what python-dateutil makes of it, which is what the earlier system ran; the
//! exceptions are in docs/reference/schedules.md. Zones and the end of the rule are the business of [`super`].

use std::ops::ControlFlow;

use super::civil::{DAY, Date, Fuel, Recurrence, Written, bits, first_of_month, read, weekday};
use crate::time::days_from_civil;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Frequency {
    Yearly,
    Monthly,
    Weekly,
    Daily,
    Hourly,
    Minutely,
    Secondly,
}

const FREQUENCIES: [(&str, Frequency); 7] = [
    ("YEARLY", Frequency::Yearly),
    ("MONTHLY", Frequency::Monthly),
    ("WEEKLY", Frequency::Weekly),
    ("DAILY", Frequency::Daily),
    ("HOURLY", Frequency::Hourly),
    ("MINUTELY", Frequency::Minutely),
    ("SECONDLY", Frequency::Secondly),
];

/// From Monday.
const WEEKDAYS: [&str; 7] = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"];
const LONGEST_INTERVAL: i64 = 1_000_000_000;
const HIGHEST_COUNT: i64 = 100_000;

/// When a rule ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Never,
    After(u32),
    Until(Written),
}

/// What the text of a rule says, before it is known when it begins.
#[derive(Clone, Debug)]
pub(super) struct Text {
    frequency: Frequency,
    interval: i64,
    pub(super) end: End,
    week_start: i64,
    /// Bit 1 is January; none set means any. The same for the sets below.
    months: u64,
    week_numbers: Vec<i64>,
    year_days: Vec<i64>,
    month_days: Vec<i64>,
    /// Bit 0 is Monday.
    weekdays: u64,
    /// The n-th weekday of the month or year; from its end if negative.
    nth_weekdays: Vec<(i64, i64)>,
    hours: u64,
    minutes: u64,
    seconds: u64,
    positions: Vec<i64>,
}

/// The times of a rule that begins at a time on the wall.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    text: Text,
    start: i64,
    first: Date,
}

impl Text {
    /// Reads `FREQ=…;…`. The error is a sentence.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut parts: Vec<(String, String)> = Vec::new();
        for part in text.trim().trim_end_matches(';').split(';') {
            let (name, value) = part
                .split_once('=')
                .ok_or("a rule has parts such as FREQ=DAILY and BYDAY=MO,WE, with ; between them")?;
            let name = name.trim().to_ascii_uppercase();
            if parts.iter().any(|(earlier, _)| *earlier == name) {
                return Err("a part is there twice: a rule has each part once".to_owned());
            }
            parts.push((name, value.trim().to_ascii_uppercase()));
        }
        let mut rule = Self {
            frequency: frequency(&parts)?,
            interval: 1,
            end: End::Never,
            week_start: 0,
            months: 0,
            week_numbers: Vec::new(),
            year_days: Vec::new(),
            month_days: Vec::new(),
            weekdays: 0,
            nth_weekdays: Vec::new(),
            hours: 0,
            minutes: 0,
            seconds: 0,
            positions: Vec::new(),
        };
        for (name, value) in &parts {
            rule.part(name, value)?;
        }
        rule.agree()?;
        Ok(rule)
    }

    fn part(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "FREQ" => {}
            "INTERVAL" => self.interval = number(name, value, 1, LONGEST_INTERVAL)?,
            "COUNT" | "UNTIL" if !matches!(self.end, End::Never) => {
                return Err(
                    "COUNT and UNTIL exclude each other (RFC 5545 section 3.3.10): write one of them"
                        .to_owned(),
                );
            }
            "COUNT" => {
                self.end = End::After(number(name, value, 1, HIGHEST_COUNT)?.try_into().unwrap_or(u32::MAX));
            }
            "UNTIL" => {
                self.end = End::Until(read(value).map_err(|_| {
                    "UNTIL is not a time: write for example 20261231T235959Z, or 20261231T090000 in the zone of the task".to_owned()
                })?);
            }
            "WKST" => self.week_start = day_of_week(name, value)?,
            "BYMONTH" => self.months = mask(name, value, 1, 12)?,
            "BYWEEKNO" => self.week_numbers = list(name, value, 53)?,
            "BYYEARDAY" => self.year_days = list(name, value, 366)?,
            "BYMONTHDAY" => self.month_days = list(name, value, 31)?,
            "BYDAY" | "BYWEEKDAY" => self.days(name, value)?,
            "BYHOUR" => self.hours = mask(name, value, 0, 23)?,
            "BYMINUTE" => self.minutes = mask(name, value, 0, 59)?,
            "BYSECOND" => self.seconds = mask(name, value, 0, 59)?,
            "BYSETPOS" => self.positions = list(name, value, 366)?,
            _ => {
                return Err("a part is not known: a rule has FREQ, INTERVAL, COUNT, UNTIL, WKST, BYSETPOS, BYMONTH, BYWEEKNO, BYYEARDAY, \
                     BYMONTHDAY, BYDAY, BYHOUR, BYMINUTE and BYSECOND"
                    .to_owned());
            }
        }
        Ok(())
    }

    fn days(&mut self, name: &str, value: &str) -> Result<(), String> {
        for item in value.split(',').map(str::trim) {
            let at = item.len().saturating_sub(2);
            let (nth, day) = item.split_at_checked(at).unwrap_or(("", item));
            let day = day_of_week(name, day)?;
            if nth.is_empty() {
                self.weekdays |= 1 << day;
            } else {
                let nth = signed(name, nth, 53)?;
                if !self.nth_weekdays.contains(&(nth, day)) {
                    self.nth_weekdays.push((nth, day));
                }
            }
        }
        Ok(())
    }

    /// What the parts say of each other.
    fn agree(&self) -> Result<(), String> {
        if !self.nth_weekdays.is_empty() {
            if self.frequency > Frequency::Monthly {
                return Err(
                    "BYDAY with a number, such as 2TU, needs FREQ=MONTHLY or FREQ=YEARLY (RFC 5545 section 3.3.10)".to_owned()
                );
            }
            if !self.week_numbers.is_empty() {
                return Err("BYDAY with a number and BYWEEKNO exclude each other (RFC 5545 section 3.3.10)"
                    .to_owned());
            }
        }
        let chosen = [self.months, self.weekdays, self.hours, self.minutes, self.seconds]
            .iter()
            .any(|set| *set != 0)
            || [&self.week_numbers, &self.year_days, &self.month_days].iter().any(|list| !list.is_empty())
            || !self.nth_weekdays.is_empty();
        if !self.positions.is_empty() && !chosen {
            return Err(
                "BYSETPOS chooses among the times of another BY part: add one, such as BYDAY=MO,TU,WE,TH,FR"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn frequency(parts: &[(String, String)]) -> Result<Frequency, String> {
    let value = parts.iter().find(|(name, _)| name == "FREQ").map(|(_, value)| value.as_str());
    let names = || FREQUENCIES.map(|(name, _)| name).join(", ");
    let value = value.ok_or_else(|| format!("a rule needs FREQ with one of {}", names()))?;
    FREQUENCIES
        .iter()
        .find(|(name, _)| *name == value)
        .map(|(_, frequency)| *frequency)
        .ok_or_else(|| format!("this FREQ is not known: write one of {}", names()))
}

fn day_of_week(name: &str, value: &str) -> Result<i64, String> {
    (0..).zip(WEEKDAYS).find(|(_, day)| *day == value).map(|(at, _)| at).ok_or_else(|| {
        format!("a value of {name} is not a day of the week: write MO, TU, WE, TH, FR, SA or SU")
    })
}

fn number(name: &str, value: &str, least: i64, most: i64) -> Result<i64, String> {
    let plain = (1..=10).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|number| plain && (least..=most).contains(number))
        .ok_or_else(|| format!("a value of {name} is not a number from {least} to {most}"))
}

fn signed(name: &str, value: &str, most: i64) -> Result<i64, String> {
    let (sign, digits) = match value.as_bytes().first() {
        Some(b'-') => (-1, &value[1..]),
        Some(b'+') => (1, &value[1..]),
        _ => (1, value),
    };
    number(name, digits, 1, most)
        .map(|number| sign * number)
        .map_err(|_| format!("a value of {name} is not a number from 1 to {most} or from -{most} to -1"))
}

fn mask(name: &str, value: &str, least: i64, most: i64) -> Result<u64, String> {
    value.split(',').try_fold(0, |set, item| Ok(set | 1 << number(name, item.trim(), least, most)?))
}

fn list(name: &str, value: &str, most: i64) -> Result<Vec<i64>, String> {
    let mut list =
        value.split(',').map(|item| signed(name, item.trim(), most)).collect::<Result<Vec<_>, _>>()?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// Whether a list that counts from 1, or from the end with -1, names one of `length` places. An empty list names all.
fn named(list: &[i64], place: i64, length: i64) -> bool {
    list.is_empty() || list.contains(&place) || list.contains(&(place - length - 1))
}

/// The first day of week 1 of a year: the week, beginning with `week_start`, that holds 4 January.
fn first_week(year: i64, week_start: i64) -> i64 {
    let fourth = days_from_civil(year, 1, 4);
    fourth - (weekday(fourth) - week_start).rem_euclid(7)
}

impl Rule {
    /// What the text leaves open is taken from the time on the wall at which the rule begins.
    pub(super) fn starting(mut text: Text, start: i64) -> Self {
        let first = Date::of(start.div_euclid(DAY));
        let of_day = start.rem_euclid(DAY);
        let no_day = text.week_numbers.is_empty()
            && text.year_days.is_empty()
            && text.month_days.is_empty()
            && text.weekdays == 0
            && text.nth_weekdays.is_empty();
        match text.frequency {
            Frequency::Yearly if no_day => {
                if text.months == 0 {
                    text.months = 1 << first.month;
                }
                text.month_days = vec![first.day];
            }
            Frequency::Monthly if no_day => text.month_days = vec![first.day],
            Frequency::Weekly if no_day => text.weekdays = 1 << first.weekday(),
            _ => {}
        }
        if text.hours == 0 && text.frequency < Frequency::Hourly {
            text.hours = 1 << (of_day / 3600);
        }
        if text.minutes == 0 && text.frequency < Frequency::Minutely {
            text.minutes = 1 << (of_day / 60 % 60);
        }
        if text.seconds == 0 && text.frequency < Frequency::Secondly {
            text.seconds = 1 << (of_day % 60);
        }
        Self { text, start, first }
    }

    fn in_month(&self, date: Date) -> bool {
        self.text.months == 0 || self.text.months & 1 << date.month != 0
    }

    fn on(&self, date: Date) -> bool {
        let rule = &self.text;
        self.in_month(date)
            && named(&rule.month_days, date.day, date.days_in_month())
            && named(&rule.year_days, date.day_of_year(), date.days_in_year())
            && self.on_weekday(date)
            && self.in_week(date)
    }

    fn on_weekday(&self, date: Date) -> bool {
        let rule = &self.text;
        if rule.weekdays == 0 && rule.nth_weekdays.is_empty() {
            return true;
        }
        let weekday = date.weekday();
        let (place, length) = if rule.frequency == Frequency::Monthly || rule.months != 0 {
            (date.day, date.days_in_month())
        } else {
            (date.day_of_year(), date.days_in_year())
        };
        let (nth, from_end) = ((place - 1) / 7 + 1, -((length - place) / 7 + 1));
        rule.weekdays & 1 << weekday != 0
            || rule.nth_weekdays.iter().any(|(n, day)| *day == weekday && (*n == nth || *n == from_end))
    }

    fn in_week(&self, date: Date) -> bool {
        let rule = &self.text;
        if rule.week_numbers.is_empty() {
            return true;
        }
        let week = date.number - (date.weekday() - rule.week_start).rem_euclid(7);
        // A week belongs to the year that has four of its days.
        let year = Date::of(week + 3).year;
        let first = first_week(year, rule.week_start);
        let weeks = (first_week(year + 1, rule.week_start) - first) / 7;
        named(&rule.week_numbers, (week - first) / 7 + 1, weeks)
    }

    /// The days of period `k` of a rule that counts in days or more: the first, and the first that is no more in it.
    fn days(&self, k: i64) -> (i64, i64) {
        let (first, step) = (self.first, k * self.text.interval);
        match self.text.frequency {
            Frequency::Yearly => {
                (days_from_civil(first.year + step, 1, 1), days_from_civil(first.year + step + 1, 1, 1))
            }
            Frequency::Monthly => {
                let month = first.year * 12 + first.month - 1 + step;
                (first_of_month(month), first_of_month(month + 1))
            }
            Frequency::Weekly => {
                let week = first.number - (first.weekday() - self.text.week_start).rem_euclid(7) + 7 * step;
                (week, week + 7)
            }
            _ => (first.number + step, first.number + step + 1),
        }
    }

    /// The last period that does not begin after a day.
    fn period(&self, day: i64) -> i64 {
        let (first, date) = (self.first, Date::of(day));
        let passed = match self.text.frequency {
            Frequency::Yearly => date.year - first.year,
            Frequency::Monthly => (date.year - first.year) * 12 + date.month - first.month,
            Frequency::Weekly => (day - self.days(0).0).div_euclid(7),
            _ => day - first.number,
        };
        passed.div_euclid(self.text.interval).max(0)
    }

    fn each_by_days(
        &self,
        span: &std::ops::Range<i64>,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let last_day = (span.end - 1).div_euclid(DAY);
        let mut k = self.period(span.start.div_euclid(DAY));
        loop {
            let (first, end) = self.days(k);
            if first > last_day {
                return ControlFlow::Continue(());
            }
            fuel.spend(1)?;
            if self.text.positions.is_empty() {
                let mut day = first.max(span.start.div_euclid(DAY));
                while day < end.min(last_day + 1) {
                    fuel.spend(1)?;
                    let date = Date::of(day);
                    if !self.in_month(date) {
                        day = date.first_of_next_month();
                        continue;
                    }
                    if self.on(date) {
                        self.each_in_day(day, span, fuel, found)?;
                    }
                    day += 1;
                }
            } else {
                fuel.spend(u32::try_from(end - first).unwrap_or(u32::MAX))?;
                let days: Vec<i64> = (first..end).filter(|day| self.on(Date::of(*day))).collect();
                self.each_in_place(&days, span, fuel, found)?;
            }
            k += 1;
        }
    }

    fn each_in_day(
        &self,
        day: i64,
        span: &std::ops::Range<i64>,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for hour in bits(self.text.hours).map(|hour| day * DAY + hour * 3600) {
            if hour + 3600 <= span.start {
                continue;
            }
            if hour >= span.end {
                break;
            }
            self.each_in_hour(hour, span, fuel, found)?;
        }
        ControlFlow::Continue(())
    }

    fn each_in_hour(
        &self,
        hour: i64,
        span: &std::ops::Range<i64>,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for minute in bits(self.text.minutes).map(|minute| hour + minute * 60) {
            if minute + 60 <= span.start {
                continue;
            }
            if minute >= span.end {
                break;
            }
            for at in bits(self.text.seconds).map(|second| minute + second) {
                if span.contains(&at) {
                    fuel.spend(1)?;
                    found(at)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The times of one period that stand at the places of BYSETPOS. `bases` are what hours, minutes and seconds are added to.
    fn each_in_place(
        &self,
        bases: &[i64],
        span: &std::ops::Range<i64>,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let rule = &self.text;
        let size = |set: u64| i64::from(set.count_ones());
        let nth = |set: u64, n: i64| bits(set).nth(usize::try_from(n).unwrap_or(usize::MAX)).unwrap_or(0);
        // Sets of what is larger than the frequency are limits, and have been looked at.
        let (hours, minutes) = match rule.frequency {
            Frequency::Hourly => (0, rule.minutes),
            Frequency::Minutely => (0, 0),
            _ => (rule.hours, rule.minutes),
        };
        let (in_minute, in_hour) = (size(rule.seconds).max(1), size(minutes).max(1));
        let in_base = size(hours).max(1) * in_hour * in_minute;
        let total = i64::try_from(bases.len()).unwrap_or(0) * in_base;
        let mut places: Vec<i64> = rule
            .positions
            .iter()
            .map(|place| if *place > 0 { place - 1 } else { total + place })
            .filter(|place| (0..total).contains(place))
            .collect();
        places.sort_unstable();
        places.dedup();
        let unit = if rule.frequency < Frequency::Hourly { DAY } else { 1 };
        for place in places {
            let base = bases[usize::try_from(place / in_base).unwrap_or(0)] * unit;
            let (hour, in_hours) = (place % in_base / (in_hour * in_minute), place % (in_hour * in_minute));
            let at = base
                + nth(hours, hour) * 3600
                + nth(minutes, in_hours / in_minute) * 60
                + nth(rule.seconds, in_hours % in_minute);
            fuel.spend(1)?;
            if span.contains(&at) {
                found(at)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn each_by_seconds(
        &self,
        span: &std::ops::Range<i64>,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let rule = &self.text;
        let unit = match rule.frequency {
            Frequency::Hourly => 3600,
            Frequency::Minutely => 60,
            _ => 1,
        };
        let (base, step) = (self.start - self.start.rem_euclid(unit), unit * rule.interval);
        let mut at = base + (span.start - base).div_euclid(step).max(0) * step;
        // The first time of the rule's rhythm that is not before `wanted`.
        let reach = |wanted: i64| base + (wanted - base + step - 1).div_euclid(step) * step;
        while at < span.end {
            fuel.spend(1)?;
            let date = Date::of(at.div_euclid(DAY));
            let of_day = at.rem_euclid(DAY);
            let allowed = |set: u64, value: i64| set == 0 || set & 1 << value != 0;
            if !self.in_month(date) {
                at = reach(date.first_of_next_month() * DAY);
            } else if !self.on(date) {
                at = reach((date.number + 1) * DAY);
            } else if !allowed(rule.hours, of_day / 3600) {
                at = reach(at - of_day % 3600 + 3600);
            } else if rule.frequency > Frequency::Hourly && !allowed(rule.minutes, of_day / 60 % 60) {
                at = reach(at - of_day % 60 + 60);
            } else {
                match rule.frequency {
                    Frequency::Secondly => {
                        if allowed(rule.seconds, of_day % 60)
                            && span.contains(&at)
                            && (rule.positions.is_empty() || named(&rule.positions, 1, 1))
                        {
                            found(at)?;
                        }
                    }
                    _ if !rule.positions.is_empty() => self.each_in_place(&[at], span, fuel, found)?,
                    Frequency::Hourly => self.each_in_hour(at, span, fuel, found)?,
                    _ => {
                        for at in bits(rule.seconds).map(|second| at + second).filter(|at| span.contains(at))
                        {
                            fuel.spend(1)?;
                            found(at)?;
                        }
                    }
                }
                at += step;
            }
        }
        ControlFlow::Continue(())
    }
}

impl Recurrence for Rule {
    fn each(
        &self,
        from: i64,
        before: i64,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let span = from.max(self.start)..before;
        if span.is_empty() {
            return ControlFlow::Continue(());
        }
        if self.text.frequency < Frequency::Hourly {
            self.each_by_days(&span, fuel, found)
        } else {
            self.each_by_seconds(&span, fuel, found)
        }
    }

    fn every_hour(&self) -> bool {
        let rule = &self.text;
        match rule.frequency {
            Frequency::Hourly => rule.interval == 1 && rule.hours == 0,
            Frequency::Minutely => rule.interval <= 60 && rule.hours == 0,
            Frequency::Secondly => rule.interval <= 3600 && rule.hours == 0,
            _ => rule.hours == (1 << 24) - 1 && rule.positions.is_empty(),
        }
    }
}
