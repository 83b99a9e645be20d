//! One stored form for each kind of value, shared by the backends: JSON, lists, errors, events, hashes, counters, texts.
//!
//! JSON is compact text with sorted keys. Whatever is written here can be read back: values that could not be are refused
//! when they are written, because a row that cannot be read is worse than a call that fails.

use interlock_model::audit::{AuditDraft, AuditEntry, Hash};
use interlock_model::device::EventKind;
use interlock_model::run::{RunError, RunState};
use interlock_model::{RunId, Timestamp};
use serde_json::Value;

use crate::Error;

/// JSON that is nested deeper is refused: the parser stops at 127 (serde_json's recursion limit is 128).
const MAX_DEPTH: usize = 127;

/// A value as JSON text.
///
/// # Errors
/// [`Error::Unwritable`] if it is nested too deep to be read back.
pub fn json_text(value: &Value) -> Result<String, Error> {
    if deeper_than(value, MAX_DEPTH) {
        return Err(Error::Unwritable(format!("a JSON value is nested more than {MAX_DEPTH} levels deep")));
    }
    Ok(value.to_string())
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(fields) => levels == 0 || fields.values().any(|field| deeper_than(field, levels - 1)),
        _ => false,
    }
}

/// JSON text as a value.
///
/// # Errors
/// [`Error::Corrupt`] if it is not JSON.
pub fn json(text: &str) -> Result<Value, Error> {
    parse(text, "JSON")
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt(format!("{what}: {error}")))
}

fn print<T: serde::Serialize>(value: &T, what: &str) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Unwritable(format!("{what}: {error}")))
}

/// A list of role names.
///
/// # Errors
/// None in practice; a list of texts is always JSON.
pub fn roles_text(roles: &[String]) -> Result<String, Error> {
    print(&roles, "roles")
}

/// A list of role names, read back.
///
/// # Errors
/// [`Error::Corrupt`] if it is not a list of texts.
pub fn roles(text: &str) -> Result<Vec<String>, Error> {
    parse(text, "roles")
}

/// Why a run did not succeed, as JSON text: a worker's message may hold characters that a text column cannot.
///
/// # Errors
/// None in practice; two texts are always JSON.
pub fn error_text(error: Option<&RunError>) -> Result<Option<String>, Error> {
    error.map(|error| print(error, "a run's error")).transpose()
}

/// Why a run did not succeed, read back.
///
/// # Errors
/// [`Error::Corrupt`] if it is something else.
pub fn error(text: Option<&str>) -> Result<Option<RunError>, Error> {
    text.map(|text| parse(text, "a run's error")).transpose()
}

/// An event as JSON text.
///
/// # Errors
/// [`Error::Unwritable`] if a number in it is not finite: JSON has no form for it.
pub fn event_text(kind: &EventKind) -> Result<String, Error> {
    let finite = match kind {
        EventKind::Progress { current, total, .. } => current.is_finite() && total.is_none_or(f64::is_finite),
        EventKind::Metric { value, .. } => value.is_finite(),
        EventKind::Rung { duration_ms, .. } => duration_ms.is_finite(),
        EventKind::State { .. } | EventKind::Log { .. } | EventKind::Artifact { .. } => true,
    };
    if !finite {
        return Err(Error::Unwritable("an event holds a number that is not finite".to_owned()));
    }
    print(kind, "an event")
}

/// An event, read back.
///
/// # Errors
/// [`Error::Corrupt`] if it is something else.
pub fn event(text: &str) -> Result<EventKind, Error> {
    parse(text, "an event")
}

/// A stored time.
///
/// # Errors
/// [`Error::Corrupt`] outside the years 0000 to 9999, which no program of ours writes.
pub fn time(micros: i64) -> Result<Timestamp, Error> {
    let time = Timestamp::from_micros(micros);
    if time.micros() == micros { Ok(time) } else { Err(Error::Corrupt(format!("{micros} is not a time"))) }
}

/// A stored state.
///
/// # Errors
/// [`Error::Corrupt`] if there is no such state.
pub fn state(text: &str) -> Result<RunState, Error> {
    RunState::parse(text).ok_or_else(|| Error::Corrupt(format!("{text:?} is not a state")))
}

/// Refuses a state that is no end.
///
/// # Errors
/// [`Error::Unwritable`] for `queued` and `running`.
pub fn refuse_open(state: RunState) -> Result<(), Error> {
    if state.is_final() {
        Ok(())
    } else {
        Err(Error::Unwritable(format!("a run cannot end as {}", state.as_str())))
    }
}

/// A stored run id.
///
/// # Errors
/// [`Error::Corrupt`] if it is not one.
pub fn run_id(text: &str) -> Result<RunId, Error> {
    text.parse().map_err(|_| Error::Corrupt(format!("{text:?} is not a run id")))
}

/// A stored hash or digest.
///
/// # Errors
/// [`Error::Corrupt`] if it does not have 32 bytes.
pub fn hash(bytes: &[u8]) -> Result<Hash, Error> {
    bytes.try_into().map_err(|_| Error::Corrupt(format!("a hash has {} bytes", bytes.len())))
}

/// A stored number that counts something.
///
/// # Errors
/// [`Error::Corrupt`] if it is negative.
pub fn count(number: i64) -> Result<u64, Error> {
    u64::try_from(number).map_err(|_| Error::Corrupt(format!("{number} is not a count")))
}

/// As [`count`], for numbers that stay small.
///
/// # Errors
/// [`Error::Corrupt`] if it is negative or beyond 2³² − 1.
pub fn small_count(number: i64) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Corrupt(format!("{number} is not a small count")))
}

/// A count as the databases have it.
///
/// # Errors
/// [`Error::Unwritable`] beyond 2⁶³ − 1.
pub fn number(count: u64) -> Result<i64, Error> {
    i64::try_from(count).map_err(|_| Error::Unwritable(format!("{count} is too large a number")))
}

/// A position or length to ask for; beyond what can be stored it means "past the end".
pub fn position(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A duration in milliseconds; what is not finite is not known.
pub fn duration(milliseconds: Option<f64>) -> Option<f64> {
    milliseconds.filter(|value| value.is_finite())
}

/// Whether any of `texts` holds U+0000, which PostgreSQL cannot store. Nothing is ever found under such a text.
pub fn has_nul(texts: &[&str]) -> bool {
    texts.iter().any(|text| text.contains('\0'))
}

/// Refuses texts with U+0000.
///
/// # Errors
/// [`Error::Unwritable`] if there is one.
pub fn refuse_nul(texts: &[&str]) -> Result<(), Error> {
    if has_nul(texts) {
        return Err(Error::Unwritable("a text holds the character U+0000".to_owned()));
    }
    Ok(())
}

/// The next entry of the audit chain behind (`seq`, `hash`), and its details as text.
///
/// U+0000 becomes U+FFFD in the plain texts: what strangers send must not be able to stop the record of it.
///
/// # Errors
/// [`Error::Unwritable`] if the details could not be read back, or the numbers have run out.
pub fn next_entry(seq: i64, hash: Hash, draft: &AuditDraft) -> Result<(i64, AuditEntry, String), Error> {
    let seq = seq.checked_add(1).ok_or_else(|| Error::Unwritable("the audit chain is full".to_owned()))?;
    let details = json_text(&draft.details)?;
    let clean =
        |text: &String| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.clone() };
    let draft = AuditDraft {
        at: draft.at,
        actor: draft.actor.as_ref().map(clean),
        action: clean(&draft.action),
        subject: draft.subject.as_ref().map(clean),
        details: draft.details.clone(),
        client_ip: draft.client_ip.as_ref().map(clean),
        request_id: draft.request_id.as_ref().map(clean),
    };
    let entry = AuditEntry::link_told(count(seq)?, hash, draft, &details);
    Ok((seq, entry, details))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
    }

    #[test]
    fn the_deepest_value_that_is_written_can_be_read() {
        let deepest = nested(MAX_DEPTH);

        let text = json_text(&deepest).expect("allowed");

        assert_eq!(json(&text).expect("readable"), deepest);
        assert!(matches!(json_text(&nested(MAX_DEPTH + 1)), Err(Error::Unwritable(_))));
    }

    #[test]
    fn every_double_reads_back_to_the_same_bits() {
        let mut bits: u64 = 0x0123_4567_89ab_cdef;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let text = json_text(&Value::from(number)).expect("a number");
                assert_eq!(
                    json(&text).expect("JSON").as_f64().map(f64::to_bits),
                    Some(number.to_bits()),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn an_event_with_a_number_that_is_not_finite_is_refused() {
        let event = EventKind::Progress { current: f64::NAN, total: None, message: None };

        assert!(matches!(event_text(&event), Err(Error::Unwritable(_))));
    }

    #[test]
    fn a_time_that_nobody_can_have_written_is_corrupt() {
        assert_eq!(time(-1).expect("a time").micros(), -1);
        assert!(matches!(time(i64::MAX), Err(Error::Corrupt(_))));
    }
}
