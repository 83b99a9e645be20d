//! Crontab lines: five fields, as `crontab(5)` reads them.

use std::ops::ControlFlow;

use super::civil::{DAY, Date, Fuel, Recurrence, bits};

/// The times of a crontab line.
#[derive(Clone, Debug)]
pub(super) struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Bit 0 is Sunday.
    weekdays: u64,
    /// The day of the month or the day of the week begins with `*`: both must hold. Otherwise one of them is enough.
    both_days: bool,
}

struct Field {
    name: &'static str,
    first: u32,
    last: u32,
    /// Names of the values from `first` on.
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTE: Field = Field { name: "minute", first: 0, last: 59, names: &[] };
const HOUR: Field = Field { name: "hour", first: 0, last: 23, names: &[] };
const DAY_OF_MONTH: Field = Field { name: "day of the month", first: 1, last: 31, names: &[] };
const MONTH: Field = Field { name: "month", first: 1, last: 12, names: MONTHS };
const DAY_OF_WEEK: Field = Field { name: "day of the week", first: 0, last: 7, names: WEEKDAYS };

impl Cron {
    /// Reads a line. The error is a sentence.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let line = match text.to_ascii_lowercase().as_str() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            at if at.starts_with('@') => {
                return Err("this name is not known: write five fields, or @hourly, @daily, @weekly, @monthly or @yearly"
                    .to_owned());
            }
            _ => text,
        };
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "a cron expression has 5 fields (minute, hour, day of the month, month, day of the week), this one has {}: write for \
                 example \"30 8 * * mon-fri\"",
                fields.len()
            ));
        };
        let weekdays = DAY_OF_WEEK.read(weekday)?;
        Ok(Self {
            minutes: MINUTE.read(minute)?,
            hours: HOUR.read(hour)?,
            days: DAY_OF_MONTH.read(day)?,
            months: MONTH.read(month)?,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            both_days: day.starts_with('*') || weekday.starts_with('*'),
        })
    }

    fn on(&self, date: Date) -> bool {
        let by_day = self.days & 1 << date.day != 0;
        let by_weekday = self.weekdays & 1 << ((date.weekday() + 1) % 7) != 0;
        if self.both_days { by_day && by_weekday } else { by_day || by_weekday }
    }
}

impl Recurrence for Cron {
    fn each(
        &self,
        from: i64,
        before: i64,
        fuel: &mut Fuel,
        found: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut day = from.div_euclid(DAY);
        while day * DAY < before {
            fuel.spend(1)?;
            let date = Date::of(day);
            if self.months & 1 << date.month == 0 {
                day = date.first_of_next_month();
                continue;
            }
            if self.on(date) {
                for hour in bits(self.hours) {
                    let hour = day * DAY + hour * 3600;
                    if hour + 3600 <= from {
                        continue;
                    }
                    for minute in bits(self.minutes) {
                        let at = hour + minute * 60;
                        if at >= before {
                            return ControlFlow::Continue(());
                        }
                        if at >= from {
                            fuel.spend(1)?;
                            found(at)?;
                        }
                    }
                }
            }
            day += 1;
        }
        ControlFlow::Continue(())
    }

    fn every_hour(&self) -> bool {
        self.hours == (1 << 24) - 1
    }
}

impl Field {
    fn read(&self, text: &str) -> Result<u64, String> {
        let mut set = 0;
        for item in text.split(',') {
            set |= self.item(item)?;
        }
        Ok(set)
    }

    fn item(&self, item: &str) -> Result<u64, String> {
        let (range, step) = match item.split_once('/') {
            None => (item, None),
            Some((range, step)) => (range, Some(step)),
        };
        // Sunday is 0 and 7; what goes on to the end means it once.
        let end = if self.last == 7 { 6 } else { self.last };
        let (first, last) = if range == "*" {
            (self.first, end)
        } else if let Some((first, last)) = range.split_once('-') {
            let first = self.value(first)?;
            let mut last = self.value(last)?;
            if self.last == 7 && last == 0 && first > 0 {
                last = 7;
            }
            if first > last {
                return Err(format!(
                    "a range in the field for the {} goes backwards: write the smaller value first, or two ranges with a comma",
                    self.name
                ));
            }
            (first, last)
        } else {
            let first = self.value(range)?;
            (first, if step.is_some() { end.max(first) } else { first })
        };
        let step = match step {
            None => 1,
            Some(step) => step
                .parse::<u32>()
                .ok()
                .filter(|span| (1..=self.last - self.first + 1).contains(span) && !step.starts_with('+'))
                .ok_or_else(|| {
                    format!(
                        "a step in the field for the {} must be a number from 1 to {}",
                        self.name,
                        self.last - self.first + 1
                    )
                })?,
        };
        Ok((first..=last).step_by(usize::try_from(step).unwrap_or(1)).fold(0, |set, value| set | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.first + u32::try_from(at).unwrap_or(0));
        }
        let plain = (1..=2).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
        match text.parse() {
            Ok(value) if plain && (self.first..=self.last).contains(&value) => Ok(value),
            _ => {
                let names = match self.names {
                    [first, .., last] => format!(" or a name from {first} to {last}"),
                    _ => String::new(),
                };
                let hint = if text.contains(['L', 'W', '#', '?']) {
                    "; for \"the last\" or \"the second\" day of its kind use schedule_kind rrule"
                } else {
                    ""
                };
                Err(format!(
                    "what stands there is not a {}: write a number from {} to {}{names}{hint}",
                    self.name, self.first, self.last
                ))
            }
        }
    }
}
