//! What a *Test sign-in* tells: one step after the other, without secrets.

use crate::DirectoryError;

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// It works, and something about it deserves a look.
    Warning,
    /// It does not work; later steps were not tried.
    Failed,
    /// Not tried, and why.
    Skipped,
}

/// One step of a test.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// Short name, such as `TLS`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, one line without control characters, at most 2000 bytes.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Longest detail, in bytes.
const MAX_DETAIL: usize = 2000;

/// Makes a text fit for a terminal and a log: control and direction characters become `?`, the rest is cut at `limit` bytes.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let c = if hidden { '?' } else { c };
        if out.len() + c.len_utf8() > limit {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}

/// Collects steps. One is under way from `begin` until it is told how it went.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    steps: Vec<Step>,
    under_way: Option<&'static str>,
}

impl Trace {
    pub(crate) fn begin(&mut self, name: &'static str) {
        self.under_way = Some(name);
    }

    pub(crate) fn pass(&mut self, detail: impl AsRef<str>) {
        self.end(Outcome::Passed, detail.as_ref(), None);
    }

    pub(crate) fn warn(&mut self, detail: impl AsRef<str>, remedy: impl Into<String>) {
        self.end(Outcome::Warning, detail.as_ref(), Some(remedy.into()));
    }

    pub(crate) fn skip(&mut self, name: &'static str, why: &str) {
        self.under_way = Some(name);
        self.end(Outcome::Skipped, why, None);
    }

    /// Ends the step under way with this error, unless that was done with a better remedy already.
    pub(crate) fn fail(&mut self, error: &DirectoryError) {
        if self.under_way.is_some() {
            let remedy = match error {
                DirectoryError::Refused(_) => None,
                DirectoryError::Unavailable(_) => {
                    Some("check that the server runs and that this machine can reach it".to_owned())
                }
                DirectoryError::Misconfigured(_) => Some("correct the setting and test again".to_owned()),
            };
            self.end(Outcome::Failed, &error.reason(), remedy);
        }
    }

    /// Ends the step under way with a remedy that fits, and hands the error on.
    pub(crate) fn failed(&mut self, error: DirectoryError, remedy: impl Into<String>) -> DirectoryError {
        self.end(Outcome::Failed, &error.reason(), Some(remedy.into()));
        error
    }

    fn end(&mut self, outcome: Outcome, detail: &str, remedy: Option<String>) {
        if let Some(name) = self.under_way.take() {
            self.steps.push(Step { name, outcome, detail: printable(detail, MAX_DETAIL), remedy });
        }
    }

    pub(crate) fn into_steps(self) -> Vec<Step> {
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_cannot_drive_a_terminal() {
        assert_eq!(printable("cn=\u{1b}[2J\r\nx\u{202e}y", 99), "cn=?[2J??x?y");
        assert_eq!(printable("ääää", 4), "ää…");
    }
}
