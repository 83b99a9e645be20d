//! Where something stands in a trace: W3C Trace Context (<https://www.w3.org/TR/trace-context-1/>) and spans, values only.

use std::fmt;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::Timestamp;
use crate::id::{from_hexadecimal, hexadecimal};

/// A place in a trace, as `traceparent` carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; never all zeros.
    pub trace: [u8; 16],
    /// The span in it; never all zeros.
    pub span: [u8; 8],
    /// Whoever began the trace records it.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`. `None` for what is none, as the specification has it: then a new trace begins.
    pub fn parse(text: &str) -> Option<Self> {
        let (fixed, rest) = text.split_at_checked(55)?;
        let lower =
            |text: &str| text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c) || c == b'-');
        let mut parts = fixed.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // A later version may add parts; this one must not.
        let ends = if version == "00" { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
        if !ends || !lower(fixed) || parts.next().is_some() || version.len() != 2 || version == "ff" {
            return None;
        }
        let (trace, span) = (from_hexadecimal::<16>(trace)?, from_hexadecimal::<8>(span)?);
        let [flags] = from_hexadecimal::<1>(flags)?;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }

    /// The place of something that has a name of 16 bytes, such as a run: everybody who knows the name finds the same place.
    /// `part` is empty for the whole.
    pub fn of(name: [u8; 16], part: &[u8]) -> Self {
        let digest = Sha256::digest([b"interlock span\n".as_slice(), &name, part].concat());
        let mut span = [0; 8];
        span.copy_from_slice(&digest[..8]);
        // No digest begins so in practice, and zeros would be no place.
        span[7] |= u8::from(span == [0; 8]);
        Self { trace: name, span, sampled: true }
    }

    /// Another place in the same trace.
    #[must_use]
    pub const fn beside(self, span: [u8; 8]) -> Self {
        Self { span, ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{}-{}-{:02x}",
            hexadecimal(&self.trace),
            hexadecimal(&self.span),
            u8::from(self.sampled)
        )
    }
}

/// Who talks to whom in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Work of this server.
    Internal,
    /// A request that was answered.
    Server,
    /// A request that was sent.
    Client,
}

/// Something that had a beginning and an end.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its place.
    pub context: TraceContext,
    /// The span that it belongs to.
    pub parent: Option<[u8; 8]>,
    /// A name of a bounded set: a route, an action, a tool.
    pub name: String,
    /// Who talked to whom.
    pub kind: SpanKind,
    /// Began at.
    pub began: Timestamp,
    /// Ended at.
    pub ended: Timestamp,
    /// It ended badly.
    pub failed: bool,
    /// Facts. Never secrets, parameters, or who the client is.
    pub attributes: Vec<(&'static str, Value)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_place_survives_its_text() {
        let place = TraceContext::parse(GOOD).expect("the example of the specification");
        assert!(place.sampled);
        assert_eq!(place.to_string(), GOOD);
        let later = format!("cc{}-what-comes-later", &GOOD[2..]);
        assert_eq!(TraceContext::parse(&later), Some(place));
    }

    #[test]
    fn what_is_no_place_begins_a_new_trace() {
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned();
        for text in [
            String::new(),
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            format!("ff{}", &GOOD[2..]),
            GOOD.replace("b7ad6b7169203331", "0000000000000000"),
            GOOD[..54].to_owned(),
            GOOD.replace("-b7", "ab7"),
            format!("{}ä", &GOOD[..54]),
            zeros,
        ] {
            assert_eq!(TraceContext::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn a_name_has_one_place_and_its_parts_others() {
        let whole = TraceContext::of([7; 16], b"");
        assert_eq!(whole, TraceContext::of([7; 16], b""));
        assert_eq!(whole.trace, TraceContext::of([7; 16], b"1").trace);
        assert_ne!(whole.span, TraceContext::of([7; 16], b"1").span);
    }
}
