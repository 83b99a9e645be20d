//! JSON as the wire contract wants it: no duplicate keys, no NaN or infinities, at most 64 levels.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting accepted (docs/reference/device-http.md).
pub const MAX_DEPTH: usize = 64;

/// Why a body is not acceptable JSON. The text never repeats the input.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{reason} (line {line}, column {column})")]
pub struct BadJson {
    /// What is wrong.
    pub reason: String,
    /// 1-based line.
    pub line: usize,
    /// 1-based column.
    pub column: usize,
}

/// Parses a whole body.
///
/// # Errors
/// [`BadJson`] for malformed text, duplicate keys, numbers outside the range of a double, more than [`MAX_DEPTH`] levels and
/// trailing characters.
pub fn parse(bytes: &[u8]) -> Result<Value, BadJson> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = Strict { depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| BadJson { reason: describe(&error), line: error.line(), column: error.column() })
}

fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let known = [DUPLICATE, TOO_DEEP].into_iter().find(|known| text.starts_with(known));
    match (known, error.classify()) {
        (Some(known), _) => known.to_owned(),
        (None, serde_json::error::Category::Eof) => "the JSON ends too early".to_owned(),
        (None, _) if text.starts_with("number out of range") => "a number is out of range".to_owned(),
        (None, _) if text.starts_with("recursion limit") => TOO_DEEP.to_owned(),
        (None, _) => "the body is not valid JSON".to_owned(),
    }
}

const DUPLICATE: &str = "an object names the same key twice";
const TOO_DEEP: &str = "the JSON is nested deeper than 64 levels";

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH { Err(E::custom(TOO_DEEP)) } else { Ok(Self { depth: self.depth + 1 }) }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inside)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(inside)?;
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom(DUPLICATE));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        parse(text.as_bytes()).expect_err(text).reason
    }

    #[test]
    fn ordinary_json_is_parsed() {
        let text = r#"{"a":[1,-2,3.5,true,null,"é\n"],"b":{"c":{}}}"#;
        assert_eq!(parse(text.as_bytes()), Ok(serde_json::from_str(text).expect("valid")));
    }

    #[test]
    fn the_contract_s_exclusions_are_refused() {
        assert_eq!(reason(r#"{"a":1,"b":{"x":1,"x":1}}"#), DUPLICATE);
        assert_eq!(reason(&"[".repeat(65)), TOO_DEEP);
        assert_eq!(reason(&"[".repeat(100_000)), TOO_DEEP);
        assert_eq!(reason("1e999"), "a number is out of range");
        assert_eq!(reason("NaN"), "the body is not valid JSON");
        assert_eq!(reason("{}x"), "the body is not valid JSON");
        assert_eq!(reason(""), "the JSON ends too early");
        assert!(parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn sixty_four_levels_are_fine() {
        let text = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(parse(text.as_bytes()).is_ok());
    }
}
