//! Passwords that are guessed first: a list made by `tools/blocked-passwords.py`, and the usual ways of dressing one up.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Folded entries, one a line, sorted.
const TEXT: &str = include_str!("blocked.txt");

static LIST: LazyLock<HashSet<&'static str>> = LazyLock::new(|| TEXT.lines().collect());

/// Lower case, letters and digits only.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect()
}

/// The letters that digits and signs are written for.
fn plain(text: &str) -> String {
    let letter = |c| match c {
        '0' => 'o',
        '1' | '!' | '|' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' | '+' => 't',
        '8' => 'b',
        other => other,
    };
    fold(&text.to_lowercase().chars().map(letter).collect::<String>())
}

fn without_ends(folded: &str) -> &str {
    folded.trim_matches(|c: char| c.is_ascii_digit())
}

/// Whether a text is one of the list, one repeated, or two of them together; in any case, with separators, with digits at the
/// ends, or with digits for letters.
pub(super) fn is_common(password: &str) -> bool {
    let folded = fold(password);
    // Signs and digits at the ends are decoration before they are letters: `P@ssw0rd!1`.
    let undressed = password.trim_matches(|c: char| !c.is_alphabetic());
    [folded.as_str(), without_ends(&folded), &plain(password), &plain(undressed)].into_iter().any(is_listed)
}

fn is_listed(text: &str) -> bool {
    let unit = smallest_unit(text);
    LIST.contains(text)
        || (unit.len() < text.len() && (unit.chars().count() < 8 || LIST.contains(unit)))
        || text.char_indices().skip(1).any(|(at, _)| LIST.contains(&text[..at]) && LIST.contains(&text[at..]))
}

/// The shortest text that repeated gives this one.
fn smallest_unit(text: &str) -> &str {
    text.char_indices()
        .map(|(at, _)| at)
        .skip(1)
        .filter(|at| text.len().is_multiple_of(*at))
        .find(|at| text.as_bytes().chunks(*at).all(|part| part == &text.as_bytes()[..*at]))
        .map_or(text, |at| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_folded_and_long_enough() {
        let lines: Vec<&str> = TEXT.lines().collect();

        assert!(lines.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(lines.iter().all(|line| fold(line) == *line));
        assert!(lines.iter().filter(|line| line.len() >= 8).count() >= 3_000);
    }

    #[test]
    fn dressing_up_does_not_help() {
        for bad in [
            "Password1234",
            "P@ssw0rd!",
            "p4ssw0rd-2024",
            "QWERTYUIOP",
            "1qaz2wsx3edc",
            "Opentrons-Opentrons",
            "Welcome Summer 2025!",
            "lab_admin",
            "Correct Horse Battery Staple",
            "monkey dragon",
            "xyzxyzxyzxyz",
        ] {
            assert!(is_common(bad), "{bad}");
        }
    }

    #[test]
    fn what_nobody_guesses_first_passes() {
        for good in [
            "seven purple pipettes",
            "tr0ub4dor&3 gravel",
            "x9$Kq!mZ",
            "größere Pipetten",
            "日本語のとても長い",
        ] {
            assert!(!is_common(good), "{good}");
        }
    }
}
