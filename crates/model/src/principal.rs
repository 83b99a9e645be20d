//! Who can act: names and ids of people and agents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::hexadecimal;
use crate::time::{Entropy, Timestamp};

/// An agent: a UUID (RFC 9562), canonical lower case out, hyphenated or plain in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId([u8; 16]);

/// The text is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID such as 018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d")]
pub struct BadAgentId;

impl AgentId {
    /// The first agent, `00000000-0000-0000-0000-000000000001`.
    pub const SYSTEM: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// A new id, time-ordered (version 7).
    pub fn new(now: Timestamp, entropy: &dyn Entropy) -> Self {
        Self(*crate::RunId::new(now, entropy).as_bytes())
    }

    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = hexadecimal(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AgentId {
    type Err = BadAgentId;

    fn from_str(text: &str) -> Result<Self, BadAgentId> {
        let text = text.as_bytes();
        let starts: [usize; 16] = match text.len() {
            32 => std::array::from_fn(|at| 2 * at),
            36 if [8, 13, 18, 23].iter().all(|&at| text[at] == b'-') => {
                [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34]
            }
            _ => return Err(BadAgentId),
        };
        let digit = |at: usize| char::from(text[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut id = [0; 16];
        for (byte, start) in id.iter_mut().zip(starts) {
            *byte = digit(start).ok_or(BadAgentId)? << 4 | digit(start + 1).ok_or(BadAgentId)?;
        }
        Ok(Self(id))
    }
}

impl Serialize for AgentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_id_is_read_in_both_forms_and_written_in_one() {
        let text = "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d";
        let id: AgentId = text.parse().expect("hyphenated");

        assert_eq!(id.to_string(), text);
        assert_eq!(text.replace('-', "").to_uppercase().parse(), Ok(id));
        assert_eq!(AgentId::SYSTEM.to_string(), "00000000-0000-0000-0000-000000000001");
        for bad in [
            "",
            "018f6b1e",
            "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5g",
            "018f6b1e2-c3d-7a4b-8c9d-0e1f2a3b4c5d",
            "é",
        ] {
            assert_eq!(bad.parse::<AgentId>(), Err(BadAgentId), "{bad}");
        }
    }
}
