//! What stands behind the question mark, read as what it means.

use interlock_model::Timestamp;
use interlock_model::text::{Form, Text};

use crate::error::ApiError;

/// A word of the query, or the error that names it.
pub(super) fn word<T>(
    name: &str,
    text: Option<&String>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ApiError> {
    text.map(|text| {
        parse(text).ok_or_else(|| {
            ApiError::field(&["query", name], "enum", format!("'{name}' has an unknown value"))
        })
    })
    .transpose()
}

/// A value of the query, or the error that names it and says what it is to be.
pub(super) fn value<T>(
    name: &str,
    text: Option<&String>,
    right: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ApiError> {
    text.map(|text| {
        parse(text)
            .ok_or_else(|| ApiError::field(&["query", name], "value", format!("'{name}' must be {right}")))
    })
    .transpose()
}

/// A time of the query.
pub(super) fn time(name: &str, text: Option<&String>) -> Result<Option<Timestamp>, ApiError> {
    value(name, text, "a time such as 2026-01-01T00:00:00Z", |text| text.parse().ok())
}

/// A text of the query by the rule of its kind, or the error that names it.
pub(super) fn text<F: Form>(name: &str, text: Option<String>) -> Result<Option<String>, ApiError> {
    let held = text
        .map(Text::<F>::new)
        .transpose()
        .map_err(|breach| ApiError::field(&["query", name], breach.kind(), format!("'{name}' {breach}")))?;
    Ok(held.map(Text::into_string))
}
