//! Scopes: what a principal may do, as text that people grant and read.
//!
//! Grammar: `resource:action`, optionally narrowed to a target (`devices:execute:ot2-a/mix_color`); `tool:<address>`; the
//! words `admin` and `system`; dotted names of the earlier system (`email.read`), which are opaque. A trailing `*` stands for
//! any rest, so `tasks:*` covers `tasks:read` and `devices:execute:ot2-a/*` every action of that device.
//!
//! `admin` covers everything that is no motion and no human judgement: see [`BEYOND_ADMIN`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest scope in bytes.
pub const MAX_BYTES: usize = 128;
/// Most scopes of one principal.
pub const MAX_SCOPES: usize = 64;

/// The scope that covers all administration.
pub const ADMIN: &str = "admin";
/// Held by the first agent only; grants nothing by itself.
pub const SYSTEM: &str = "system";

/// Has an agent's tasks hear events of others, perhaps of one topic: `events:listen:plate.ready`.
pub const LISTEN: &str = "events:listen";

/// Every `resource:action` that something asks for.
pub const KNOWN: &[&str] = &[
    "actions:read",
    "agents:read",
    "agents:manage",
    "approvals:decide",
    "approvals:read",
    "audit:read",
    "bans:read",
    "bans:manage",
    "devices:attention",
    "devices:execute",
    "devices:read",
    "devices:release",
    "devices:stop",
    "docs:read",
    "events:listen",
    "events:manage",
    "events:publish",
    "events:read",
    "keys:manage",
    "metrics:read",
    "roles:manage",
    "runs:cancel",
    "runs:read",
    "security:manage",
    "sessions:manage",
    "tasks:create",
    "tasks:delete",
    "tasks:read",
    "tasks:update",
    "tokens:introspect",
    "tokens:manage",
    "users:manage",
    "users:read",
];

/// What `admin` does not cover: it must be granted by its own name, because it moves a machine or stands for a person's judgement.
pub const BEYOND_ADMIN: &[&str] =
    &["devices:execute", "devices:release", "devices:attention", "approvals:decide"];

/// What no agent can hold, whatever it was granted: only people judge that a machine is safe again, and whoever makes people
/// could make one who does.
pub const PEOPLE_ONLY: &[&str] =
    &["devices:release", "devices:attention", "approvals:decide", "users:manage", "roles:manage"];

/// A scope.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(String);

/// Why a text is no scope that can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadScope {
    /// Not of the form.
    #[error(
        "a scope is resource:action such as runs:read, optionally narrowed as in devices:execute:ot2-a/mix, tool:<address>, or admin; lower case, at most 128 characters"
    )]
    Form,
    /// Nothing asks for it.
    #[error("there is no scope of this name")]
    Unknown,
}

impl Scope {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether holding this scope is enough where `needed` is asked for.
    pub fn covers(&self, needed: &str) -> bool {
        let held = self.0.as_str();
        if held == needed {
            return true;
        }
        if held == ADMIN {
            return !BEYOND_ADMIN.iter().any(|beyond| is_part_of(needed, beyond)) && needed != SYSTEM;
        }
        if let Some(prefix) = held.strip_suffix('*') {
            return needed.starts_with(prefix);
        }
        is_part_of(needed, held)
    }
}

/// Whether `scope` is `whole` or narrows it.
fn is_part_of(scope: &str, whole: &str) -> bool {
    scope == whole || scope.strip_prefix(whole).is_some_and(|rest| rest.starts_with(':'))
}

fn is_word(text: &str) -> bool {
    text.bytes().next().is_some_and(|c| c.is_ascii_lowercase())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-'))
}

fn is_target(text: &str) -> bool {
    let plain = text.strip_suffix('*').unwrap_or(text);
    !text.is_empty()
        && plain.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.' | b'/' | b':'))
}

impl FromStr for Scope {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(BadScope::Form);
        }
        if text == ADMIN || text == SYSTEM {
            return Ok(Self(text.to_owned()));
        }
        match text.split_once(':') {
            Some(("tool", address)) if is_target(address) => Ok(Self(text.to_owned())),
            Some((resource, rest)) if is_word(resource) => {
                let (action, target) = rest.split_once(':').map_or((rest, None), |(a, t)| (a, Some(t)));
                if !(is_word(action) || action == "*" && target.is_none()) || !target.is_none_or(is_target) {
                    return Err(BadScope::Form);
                }
                let known = KNOWN.iter().any(|known| {
                    known
                        .split_once(':')
                        .is_some_and(|(r, a)| r == resource && (action == "*" || a == action))
                });
                if known { Ok(Self(text.to_owned())) } else { Err(BadScope::Unknown) }
            }
            None if text.contains('.') && text.split('.').all(is_word) => Ok(Self(text.to_owned())),
            _ => Err(BadScope::Form),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Parses a list, sorts it and drops repetitions.
///
/// # Errors
/// The first text that is no scope, with its place.
pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Scope>, (usize, BadScope)> {
    if texts.len() > MAX_SCOPES {
        return Err((MAX_SCOPES, BadScope::Form));
    }
    let mut scopes = texts
        .iter()
        .enumerate()
        .map(|(at, text)| text.as_ref().parse::<Scope>().map_err(|error| (at, error)))
        .collect::<Result<Vec<_>, _>>()?;
    scopes.sort();
    scopes.dedup();
    Ok(scopes)
}

/// What is held in both lists: each scope of one that the other covers.
pub fn intersect(one: &[Scope], other: &[Scope]) -> Vec<Scope> {
    let covered = |scope: &Scope, by: &[Scope]| by.iter().any(|held| held.covers(scope.as_str()));
    let mut both: Vec<Scope> = one
        .iter()
        .filter(|scope| covered(scope, other))
        .chain(other.iter().filter(|scope| covered(scope, one)))
        .cloned()
        .collect();
    both.sort();
    both.dedup();
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        text.parse().expect("a scope")
    }

    #[test]
    fn only_the_grammar_and_known_names_are_scopes() {
        for good in [
            "admin",
            "system",
            "runs:read",
            "tasks:*",
            "devices:execute:ot2-a/mix_color",
            "devices:execute:ot2-a/*",
            "tool:http.request",
            "tool:device.ot2.*",
            "email.read",
        ] {
            assert_eq!(scope(good).as_str(), good);
        }
        for bad in [
            "",
            "*",
            "Admin",
            "runs:",
            ":read",
            "runs:read:",
            "runs:*:x",
            "runs read",
            "a..b",
            "tool:",
            "runs:réad",
        ] {
            assert_eq!(bad.parse::<Scope>(), Err(BadScope::Form), "{bad}");
        }
        for unknown in ["runs:write", "nothing:here", "nothing:*"] {
            assert_eq!(unknown.parse::<Scope>(), Err(BadScope::Unknown), "{unknown}");
        }
        assert_eq!("a".repeat(129).parse::<Scope>(), Err(BadScope::Form));
    }

    #[test]
    fn a_scope_covers_itself_and_what_is_narrower() {
        for (held, needed, covers) in [
            ("runs:read", "runs:read", true),
            ("runs:read", "runs:cancel", false),
            ("runs:read", "runs:readable", false),
            ("tasks:*", "tasks:create", true),
            ("tasks:*", "runs:read", false),
            ("devices:execute", "devices:execute:ot2/mix", true),
            ("devices:execute:ot2/mix", "devices:execute", false),
            ("devices:execute:ot2/mix", "devices:execute:ot2/mixer", false),
            ("devices:execute:ot2/*", "devices:execute:ot2/mix", true),
            ("devices:execute:ot2/*", "devices:execute:ot22/mix", false),
            ("tool:http.*", "tool:http.request", true),
            ("email.read", "email.send", false),
        ] {
            assert_eq!(scope(held).covers(needed), covers, "{held} {needed}");
        }
    }

    #[test]
    fn admin_covers_administration_and_moves_nothing() {
        for scope_name in KNOWN {
            let beyond = BEYOND_ADMIN.contains(scope_name);
            assert_eq!(scope(ADMIN).covers(scope_name), !beyond, "{scope_name}");
        }
        assert!(!scope(ADMIN).covers("devices:execute:ot2/mix"));
        assert!(!scope(ADMIN).covers(SYSTEM));
    }

    #[test]
    fn an_intersection_holds_the_narrower_of_two() {
        let token = [scope("devices:execute"), scope("runs:read")];
        let present = [scope("devices:execute:ot2/mix"), scope("audit:read")];

        assert_eq!(intersect(&token, &present), [scope("devices:execute:ot2/mix")]);
        assert_eq!(intersect(&[scope("admin")], &[scope("runs:read")]), [scope("runs:read")]);
        assert!(intersect(&[], &present).is_empty());
    }
}
