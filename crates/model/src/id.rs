//! Identifiers. An id is never proof of anything.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::{Entropy, Timestamp};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A run: `run_` and 32 lower-case hexadecimal digits, time-ordered (RFC 9562, version 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; 16]);

/// The text is not an id of the expected kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a run id such as run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d")]
pub struct BadId;

impl RunId {
    const PREFIX: &'static str = "run_";

    /// A new id: 48 bits of `now` in milliseconds and 74 random bits.
    pub fn new(now: Timestamp, entropy: &dyn Entropy) -> Self {
        let mut bytes = [0_u8; 16];
        entropy.fill(&mut bytes[6..]);
        let millis = u64::try_from(now.micros() / 1000).unwrap_or(0).to_be_bytes();
        bytes[..6].copy_from_slice(&millis[2..]);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// An id that is before every id of this millisecond or later, and after every id of an earlier one.
    pub fn before_all_of(time: Timestamp) -> Self {
        let mut bytes = [0_u8; 16];
        let millis = u64::try_from(time.micros() / 1000).unwrap_or(0).to_be_bytes();
        bytes[..6].copy_from_slice(&millis[2..]);
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Printed several times a request: one piece, no formatting of single digits.
        let mut text = *b"run_00000000000000000000000000000000";
        for (pair, byte) in text[Self::PREFIX.len()..].chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RunId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let hex = text.strip_prefix(Self::PREFIX).ok_or(BadId)?.as_bytes();
        if hex.len() != 32 {
            return Err(BadId);
        }
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(BadId),
        };
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes as lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    push_hexadecimal(bytes, &mut text);
    text
}

/// As [`hexadecimal`], at the end of a text.
pub fn push_hexadecimal(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// The bytes in `2 * N` hexadecimal digits of either case; `None` for any other text.
pub fn from_hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (value(pair[0])? << 4) | value(pair[1])?;
    }
    Some(bytes)
}

/// SHA-256 of bytes as people compare it: pairs of upper-case hexadecimal digits with colons between.
pub fn fingerprint(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let digits = hexadecimal(&sha2::Sha256::digest(bytes)).to_ascii_uppercase();
    let pairs: Vec<&str> = (0..digits.len() / 2).map(|at| &digits[2 * at..2 * at + 2]).collect();
    pairs.join(":")
}

/// `count` random bytes as lower-case hexadecimal.
pub fn random_hex(entropy: &dyn Entropy, count: usize) -> String {
    let mut bytes = vec![0; count];
    entropy.fill(&mut bytes);
    hexadecimal(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_back_and_nothing_else_is() {
        let bytes: [u8; 3] = [0, 0xab, 0xff];

        assert_eq!(from_hexadecimal(&hexadecimal(&bytes)), Some(bytes));
        assert_eq!(from_hexadecimal("00ABfF"), Some(bytes));
        for bad in ["", "00abf", "00abff0", "00abfg", "+0abff", " 0abff", "é0ab0"] {
            assert_eq!(from_hexadecimal::<3>(bad), None, "{bad}");
        }
    }
    use crate::time::TestEntropy;

    #[test]
    fn an_id_survives_its_text_and_sorts_by_time() {
        let entropy = TestEntropy::seeded(7);
        let early = RunId::new(Timestamp::from_seconds(1_000), &entropy);
        let late = RunId::new(Timestamp::from_seconds(1_001), &entropy);

        assert_eq!(early.to_string().parse(), Ok(early));
        assert!(early < late);
        assert!(early.to_string() < late.to_string());
    }

    #[test]
    fn another_kind_is_refused() {
        for text in [
            "",
            "run_",
            "dev_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d",
            "run_018F6B1E2C3D7A4B8C9D0E1F2A3B4C5D",
            "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5dd",
        ] {
            assert_eq!(text.parse::<RunId>(), Err(BadId), "{text}");
        }
    }
}
