//! Text from elsewhere made safe to print, and values in words.
//!
//! A device's log line may hold anything, also sequences that rewrite a terminal. Nothing of that passes here.

use std::fmt::Write as _;
use std::time::Duration;

use interlock_model::Timestamp;

/// One line: control and direction-changing characters are left out, line breaks and tabs become spaces.
pub(crate) fn line(text: &str) -> String {
    text.chars()
        .map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c })
        .filter(|&c| is_plain(c))
        .collect()
}

/// What is said when a stream was cut and is taken up again.
pub(crate) fn connection_lost(reason: &str) -> String {
    format!("connection lost ({}); trying again", line(reason))
}

/// Several lines: as [`line`], but line breaks and tabs stay.
pub(crate) fn block(text: &str) -> String {
    text.chars().filter(|&c| is_plain(c) || matches!(c, '\n' | '\t')).collect()
}

/// Neither a control character (C0, DEL, C1) nor one that reorders or hides what is around it.
pub(crate) fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// At most `width` characters; an ellipsis stands for the rest.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// `7 ms`, `1.25 s`, `12.3 s`, `2 min 05 s`, `1 h 02 min`.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "unknown".to_owned();
    }
    if value < 1.0 {
        return if value < 0.0005 { "<1 ms".to_owned() } else { format!("{:.0} ms", value * 1000.0) };
    }
    if value < 60.0 {
        return if value < 10.0 { format!("{value:.2} s") } else { format!("{value:.1} s") };
    }
    let whole = Duration::try_from_secs_f64(value).map_or(u64::MAX, |duration| duration.as_secs());
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole / 60 % 60)
    }
}

/// Whole seconds, for people: `2026-11-23 02:09:02Z`.
pub(crate) fn time(at: Timestamp) -> String {
    let text = at.to_string();
    format!("{}Z", text.get(..19).unwrap_or(&text).replace('T', " "))
}

/// A number as people write it: no `.0`, at most six digits after the point.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Reads `90`, `90s`, `5m`, `1h`, `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is not a time such as 90s, 5m or 1h");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let factor = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(bad()),
    };
    let value: f64 = digits.parse().map_err(|_| bad())?;
    let duration = Duration::try_from_secs_f64(value * factor).map_err(|_| bad())?;
    if duration.is_zero() || duration > Duration::from_hours(24 * 365) {
        return Err("the time must be more than 0 and at most a year".to_owned());
    }
    Ok(duration)
}

/// The name among `names` that differs least from `given`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + given.chars().count() / 4;
    let found = names.into_iter().map(|name| (distance(given, name), name)).min()?;
    (found.0 <= limit).then_some(found.1)
}

/// Fewest single-character changes from one text to the other (Levenshtein), of the first 64 characters.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in to.iter().enumerate() {
            let change = diagonal + usize::from(!a.eq_ignore_ascii_case(&b));
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

/// Lower-case hexadecimal.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_passes() {
        let hostile = "a\x1b[2Jb\u{9b}31mc\x07\x08d\u{202e}e\nf\x7f";

        assert_eq!(line(hostile), "a[2Jb31mcde f");
        assert_eq!(block(hostile), "a[2Jb31mcde\nf");
    }

    #[test]
    fn letters_and_units_of_every_language_pass() {
        assert_eq!(line("60 µL Röntgen 試薬 é"), "60 µL Röntgen 試薬 é");
    }

    #[test]
    fn times_are_told_as_people_do() {
        assert_eq!(seconds(0.000_05), "<1 ms");
        assert_eq!(seconds(0.25), "250 ms");
        assert_eq!(seconds(1.25), "1.25 s");
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(seconds(125.0), "2 min 05 s");
        assert_eq!(seconds(3_720.0), "1 h 02 min");
        assert_eq!(seconds(f64::NAN), "unknown");
        assert_eq!(number(300.0), "300");
        assert_eq!(number(0.05), "0.05");
    }

    #[test]
    fn a_time_limit_needs_a_sensible_number() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "5 parsecs", "-1s", "1e9h", "nan", "."] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_typing_mistake_finds_its_name() {
        let names = ["mix_color", "home", "measure"];

        assert_eq!(nearest("mix_colour", names), Some("mix_color"));
        assert_eq!(nearest("Home", names), Some("home"));
        assert_eq!(nearest("centrifuge", names), None);
    }
}
