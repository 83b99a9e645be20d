//! Members of a body, each read by its name: every error says where, all are told at once, and no value is repeated.

use interlock_model::Timestamp;
use interlock_model::screen::Place;
use interlock_model::text::Form;
use interlock_model::wire::FieldError;
use serde::{Deserialize as _, Deserializer};
use serde_json::{Value, json};

use crate::error::ApiError;

/// Tells `null`, which removes something, from an absent member, which leaves it.
pub(super) fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Shows every text of a JSON value, names included, as free text.
pub(super) fn texts(value: Option<&Value>, look: &mut dyn FnMut(Place, &str)) {
    match value {
        Some(Value::String(text)) => look(Place::FreeText, text),
        Some(Value::Array(items)) => items.iter().for_each(|item| texts(Some(item), look)),
        Some(Value::Object(members)) => members.iter().for_each(|(name, member)| {
            look(Place::FreeText, name);
            texts(Some(member), look);
        }),
        _ => {}
    }
}

/// What was wrong so far.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<FieldError>);

impl Fields {
    /// Notes a fault.
    pub(super) fn wrong(&mut self, name: &str, kind: &str, message: impl Into<String>) {
        let loc = vec!["body".into(), name.into()];
        self.0.push(FieldError { loc, kind: kind.to_owned(), msg: message.into() });
    }

    /// A member that must be there is not.
    pub(super) fn missing(&mut self, name: &str) {
        self.wrong(name, "missing", format!("'{name}' is required"));
    }

    /// A text; `null` is no text.
    pub(super) fn text(&mut self, name: &str, value: Option<Value>) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.wrong(name, "type", format!("'{name}' must be a text"));
                None
            }
        }
    }

    /// A text that must be there, by the rule of its kind.
    pub(super) fn required<F: Form>(&mut self, name: &str, value: Option<Value>) -> String {
        let given = matches!(value, Some(Value::String(_)));
        let text = self.required_text(name, value);
        if let Err(breach) = F::RULE.check(&text)
            && given
        {
            self.wrong(name, breach.kind(), format!("'{name}' {breach}"));
        }
        text
    }

    /// A text that must be there.
    pub(super) fn required_text(&mut self, name: &str, value: Option<Value>) -> String {
        if matches!(value, None | Some(Value::Null)) {
            self.missing(name);
        }
        self.text(name, value).unwrap_or_default()
    }

    /// A text, or `null` to remove it.
    #[expect(clippy::option_option, reason = "absent leaves it, null removes it, a text sets it")]
    pub(super) fn nullable_text(&mut self, name: &str, value: Option<Value>) -> Option<Option<String>> {
        match value {
            None => None,
            Some(Value::Null) => Some(None),
            Some(value) => Some(self.text(name, Some(value))),
        }
    }

    /// A whole number.
    pub(super) fn number(&mut self, name: &str, value: Option<&Value>) -> Option<i64> {
        match value {
            None | Some(Value::Null) => None,
            Some(value) => {
                let number = value.as_i64();
                if number.is_none() {
                    self.wrong(name, "type", format!("'{name}' must be a whole number"));
                }
                number
            }
        }
    }

    /// An object.
    pub(super) fn object(&mut self, name: &str, value: Option<Value>) -> Option<Value> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::Object(members)) => Some(Value::Object(members)),
            Some(_) => {
                self.wrong(name, "type", format!("'{name}' must be an object"));
                None
            }
        }
    }

    /// An object that must be there.
    pub(super) fn required_object(&mut self, name: &str, value: Option<Value>) -> Value {
        if matches!(value, None | Some(Value::Null)) {
            self.missing(name);
        }
        self.object(name, value).unwrap_or_else(|| json!({}))
    }

    /// One of some words.
    pub(super) fn word<T>(
        &mut self,
        name: &str,
        value: Option<&Value>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = value?;
        let word = value.as_str().and_then(parse);
        if word.is_none() {
            self.wrong(name, "enum", format!("'{name}' has an unknown value"));
        }
        word
    }

    /// A time.
    pub(super) fn time(&mut self, name: &str, value: Option<&Value>) -> Option<Timestamp> {
        let value = value.filter(|value| !value.is_null())?;
        let time = Timestamp::deserialize(value).ok();
        if time.is_none() {
            self.wrong(name, "time", format!("'{name}' must be a time such as 2026-01-01T00:00:00Z"));
        }
        time
    }

    /// # Errors
    /// Everything that was wrong.
    pub(super) fn done(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let detail = self.0.iter().map(|error| error.msg.as_str()).collect::<Vec<_>>().join("; ");
        Err(ApiError::unprocessable(detail, self.0))
    }
}
