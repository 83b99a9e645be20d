//! Request bodies: bounded, timed, strict.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use interlock_engine::auth::{Caller, Origin};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::strict_json;
use interlock_model::text;
use interlock_model::wire::{FieldError, Loc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::connection::TooSlow;
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::perimeter::screening::{self, Met, Route};
use crate::state::AppState;

/// What kind of body the client says it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Form,
}

/// An answer of JSON.
///
/// Ours and not axum's, because that one turns on `raw_value` of `serde_json` for the whole program: an object whose first name is
/// the one that this feature reserves would be read as the JSON in its text, in every request, row and answer of a tool.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
            Err(error) => ApiError::internal(&error).into_response(),
        }
    }
}

/// The body is of a kind that is not read here.
pub(crate) fn unsupported() -> ApiError {
    ApiError::client(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "Send the body as application/json in UTF-8.",
    )
}

fn kind(headers: &HeaderMap) -> Result<Kind, ApiError> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(unsupported());
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Kind::Json) };
    let text = value.to_str().map_err(|_| unsupported())?.to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let essence = parts.next().unwrap_or("");
    let utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some(("charset", charset)) => matches!(charset.trim_matches('"'), "utf-8" | "utf8"),
        _ => true,
    });
    match essence {
        _ if !utf8 => Err(unsupported()),
        "application/json" => Ok(Kind::Json),
        "application/x-www-form-urlencoded" => Ok(Kind::Form),
        _ if essence.starts_with("application/") && essence.ends_with("+json") => Ok(Kind::Json),
        _ => Err(unsupported()),
    }
}

/// Refuses a body that is not said to be JSON, absent ones among them: a browser sends what is said to be JSON to another
/// origin only if that origin allows it.
pub(crate) fn said_to_be_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::CONTENT_TYPE) && kind(headers)? == Kind::Json {
        Ok(())
    } else {
        Err(unsupported())
    }
}

/// Reads a body within the size limit and the deadline.
async fn read(request: Request, state: &AppState) -> Result<Bytes, ApiError> {
    let limit = state.config.max_request_size;
    let reading = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(state.config.connections.body, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(error)) if is_too_slow(&*error) => Err(too_late()),
        Ok(Err(_)) => Err(ApiError::client(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "The body could not be read to its end.",
        )),
        Err(_) => Err(too_late()),
    }
}

/// The body did not arrive in its time.
pub(crate) fn too_late() -> ApiError {
    ApiError::client(StatusCode::REQUEST_TIMEOUT, "timeout", "The body did not arrive in time.")
}

fn is_too_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(<dyn std::error::Error>::is::<TooSlow>)
}

/// The body is over the limit.
pub(crate) fn too_large(limit: usize) -> ApiError {
    ApiError::client(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        format!("The body is larger than {limit} bytes."),
    )
}

/// A JSON object of any form; an absent body is an empty one. What it says is observed, never refused.
#[derive(Debug)]
pub(crate) struct JsonObject(pub(crate) Map<String, Value>);

impl FromRequest<AppState> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let origin = request.extensions().get::<Arc<Origin>>().cloned();
        let route = Route::of(&request);
        let object = object(request, state).await?;
        if let Some(origin) = origin {
            screening::observe(state, Met { origin: &origin, route: &route }, &object);
        }
        Ok(Self(object))
    }
}

async fn object(request: Request, state: &AppState) -> Result<Map<String, Value>, ApiError> {
    let kind = kind(request.headers())?;
    // An empty form is what some clients send for "no body"; anything in it is refused, before it is read if possible.
    let has_body = http_body::Body::size_hint(request.body()).lower() > 0;
    let bytes = if kind == Kind::Form && has_body {
        return Err(unsupported());
    } else {
        read(request, state).await?
    };
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    if kind == Kind::Form {
        return Err(unsupported());
    }
    match strict_json::parse(&bytes)? {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::field(&["body"], "type", "The body must be a JSON object.")),
    }
}

/// A JSON object of a known form. Unknown members are ignored, or refused with `Prefer: handling=strict`.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned + Screened> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let strict = prefers(request.headers(), "handling=strict");
        // The emergency stop is never refused for its words.
        let origin = request.extensions().get::<Arc<Origin>>().cloned();
        let origin = origin.filter(|_| !state.limits.is_exempt(request.uri().path()));
        let caller = request.extensions().get::<Arc<Caller>>().cloned();
        let route = Route::of(&request);
        let read = read_as(object(request, state).await?, strict);
        if let Some(origin) = origin {
            let met = Met { origin: &origin, route: &route };
            match &read {
                Ok(body) => screening::body(state, met, caller, body)?,
                // What looks like an attack is told as one, also where it could be nothing else than wrong.
                Err(Unread { text: Some(text), .. }) => screening::body(state, met, caller, &**text)?,
                Err(_) => {}
            }
        }
        read.map(Self).map_err(|unread| unread.error)
    }
}

/// Whether a `Prefer` header (RFC 7240) names this preference.
pub(crate) fn prefers(headers: &HeaderMap, preference: &str) -> bool {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|part| part.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(preference)))
}

/// The members that a type knows, as its derived `Deserialize` tells them.
struct Members<'a>(&'a mut &'static [&'static str]);

impl<'de> serde::Deserializer<'de> for Members<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("only structs have members"))
    }

    fn deserialize_struct<V: serde::de::Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

fn members<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut known: &'static [&'static str] = &[];
    // Always an error: it was asked for its members, not for a value.
    let _ = T::deserialize(Members(&mut known));
    known
}

/// A text that does not hold to its rule, where it stands.
struct Broken(Place, String);

impl Screened for Broken {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(self.0, &self.1);
    }
}

/// Why a body has not the form that is asked for.
struct Unread {
    error: ApiError,
    text: Option<Box<Broken>>,
}

impl From<ApiError> for Unread {
    fn from(error: ApiError) -> Self {
        Self { error, text: None }
    }
}

/// Gives a parsed body its type. The error names the field, never the value.
fn typed<T: DeserializeOwned>(object: Map<String, Value>, strict: bool) -> Result<T, ApiError> {
    read_as(object, strict).map_err(|unread| unread.error)
}

fn read_as<T: DeserializeOwned>(object: Map<String, Value>, strict: bool) -> Result<T, Unread> {
    if strict && object.keys().any(|name| !members::<T>().contains(&name.as_str())) {
        return Err(ApiError::field(
            &["body"],
            "unexpected",
            "The body has a member that is not known here.",
        )
        .into());
    }
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let loc = place_of(error.path());
        let told = error.into_inner().to_string();
        if let Some((rule, text)) = text::broken(&told) {
            let text = rule.place.zip(text).map(|(place, text)| Box::new(Broken(place, text.to_owned())));
            return Unread { error: refused(loc, rule, text.as_ref().map(|text| text.1.as_str())), text };
        }
        let field = told.split('`').nth(1).filter(|name| name.len() <= 64).unwrap_or("");
        if told.starts_with("missing field") {
            return ApiError::field(&["body", field], "missing", format!("'{field}' is required")).into();
        }
        let msg = "A field has the wrong type or an unknown value.";
        let error = FieldError { loc, kind: "type".to_owned(), msg: msg.to_owned() };
        ApiError::unprocessable(msg, vec![error]).into()
    })
}

/// Where in a body. Its members have the names of a type of ours.
fn place_of(path: &serde_path_to_error::Path) -> Vec<Loc> {
    let parts = path.iter().filter_map(|part| match part {
        serde_path_to_error::Segment::Map { key } => Some(Loc::Name(key.clone())),
        serde_path_to_error::Segment::Seq { index } => Some(Loc::Index(*index)),
        _ => None,
    });
    std::iter::once("body".into()).chain(parts).collect()
}

/// The refusal of a text that does not hold to its rule. Of a secret not even the kind of breach is told.
fn refused(loc: Vec<Loc>, rule: &text::Rule, text: Option<&str>) -> ApiError {
    let name = loc.iter().rev().find_map(|part| match part {
        Loc::Name(name) => Some(name.as_str()),
        Loc::Index(_) => None,
    });
    let name = name.unwrap_or("body");
    let breach = text.and_then(|text| rule.check(text).err());
    let breach = breach.unwrap_or(text::Breach::Length(rule.shortest, rule.longest));
    let msg = format!("'{name}' {breach}");
    ApiError::unprocessable(msg.clone(), vec![FieldError { loc, kind: breach.kind().to_owned(), msg }])
}

/// A sign-in body: a form, or JSON.
#[derive(Debug)]
pub(crate) struct Credentials(pub(crate) interlock_model::wire::LoginRequest);

impl FromRequest<AppState> for Credentials {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let kind = kind(request.headers())?;
        let strict = prefers(request.headers(), "handling=strict");
        let origin = request.extensions().get::<Arc<Origin>>().cloned();
        let route = Route::of(&request);
        let bytes = read(request, state).await?;
        let object = match kind {
            Kind::Form => form(bytes)?,
            Kind::Json => {
                let Value::Object(object) = strict_json::parse(&bytes)? else {
                    let text = "The body must be an object with username and password.";
                    return Err(ApiError::field(&["body"], "type", text));
                };
                object
            }
        };
        let credentials: interlock_model::wire::LoginRequest = typed(object, strict)?;
        // Only observed: every wrong name gets the same answer.
        if let Some(origin) = origin {
            screening::observe_text(state, Met { origin: &origin, route: &route }, &credentials.username);
        }
        Ok(Self(credentials))
    }
}

/// A form of a known shape, as OAuth clients send it (RFC 6749 appendix B). A repeated field is refused.
#[derive(Debug)]
pub(crate) struct FormBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for FormBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if kind(request.headers())? != Kind::Form {
            return Err(ApiError::client(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "Send the body as application/x-www-form-urlencoded.",
            ));
        }
        let bytes = read(request, state).await?;
        form(bytes).and_then(|object| typed(object, false)).map(Self).map_err(|error| ApiError {
            status: StatusCode::BAD_REQUEST,
            oauth: true,
            ..error
        })
    }
}

pub(crate) fn form(bytes: Bytes) -> Result<Map<String, Value>, ApiError> {
    let pairs: Vec<(String, String)> = axum::extract::RawForm(bytes).pairs()?;
    let mut object = Map::new();
    for (name, text) in pairs {
        if object.insert(name, Value::String(text)).is_some() {
            return Err(ApiError::field(&["body"], "duplicate", "The form names a field twice."));
        }
    }
    Ok(object)
}

/// The body that sets a secret: nothing, a JSON string, or an object.
#[derive(Debug)]
pub(crate) struct SecretBody(pub(crate) SecretRequest);

/// What it may say.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct SecretRequest {
    /// The caller's own secret; else one is made.
    pub(crate) password: Option<Secret>,
    /// How long the one before goes on working, in seconds.
    pub(crate) overlap_seconds: Option<u64>,
    /// When the new one ends.
    pub(crate) expires_at: Option<interlock_model::Timestamp>,
}

impl FromRequest<AppState> for SecretBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if kind(request.headers())? == Kind::Form {
            return Err(unsupported());
        }
        let strict = prefers(request.headers(), "handling=strict");
        let bytes = read(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(SecretRequest::default()));
        }
        match strict_json::parse(&bytes)? {
            // The same as in an object of it alone.
            text @ Value::String(_) => {
                let object = Map::from_iter([("password".to_owned(), text)]);
                typed(object, strict).map(Self)
            }
            Value::Null => Ok(Self(SecretRequest::default())),
            Value::Object(object) => typed(object, strict).map(Self),
            _ => Err(ApiError::field(&["body"], "type", "The body must be empty, a string or an object.")),
        }
    }
}

trait Pairs {
    fn pairs(&self) -> Result<Vec<(String, String)>, ApiError>;
}

impl Pairs for axum::extract::RawForm {
    /// `application/x-www-form-urlencoded`, strictly: UTF-8 after decoding.
    fn pairs(&self) -> Result<Vec<(String, String)>, ApiError> {
        let malformed = || ApiError::field(&["body"], "form_invalid", "The form is malformed.");
        let text = std::str::from_utf8(&self.0).map_err(|_| malformed())?;
        text.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decode(name)?, decode(value)?))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(malformed)
    }
}

/// Percent-decoding of forms; `None` if malformed or not UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Query of a list.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct PageQuery {
    limit: Option<String>,
    offset: Option<String>,
}

impl PageQuery {
    /// `limit` 1..200 (50), `offset` from 0 (0).
    pub(crate) fn page(&self) -> Result<interlock_engine::Page, ApiError> {
        let refused = |name: &str, what: &str| {
            ApiError::field(&["query", name], "range", format!("'{name}' must be {what}"))
        };
        let limit = match &self.limit {
            None => 50,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=200).contains(limit))
                .ok_or_else(|| refused("limit", "1 to 200"))?,
        };
        let offset = match &self.offset {
            None => 0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|offset| i64::try_from(*offset).is_ok())
                .ok_or_else(|| refused("offset", "a whole number from 0"))?,
        };
        Ok(interlock_engine::Page { limit, offset })
    }
}

/// A typed query; the error never repeats it.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> axum::extract::FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|query| Self(query.0))
            .map_err(|_| ApiError::field(&["query"], "type", "The query is malformed."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_decoded_strictly() {
        let pairs = |text: &'static str| axum::extract::RawForm(Bytes::from_static(text.as_bytes())).pairs();

        assert_eq!(
            pairs("a=1+2&b=%C3%A9%26").ok(),
            Some(vec![("a".into(), "1 2".into()), ("b".into(), "é&".into())])
        );
        assert!(pairs("a=%").is_err());
        assert!(pairs("a=%zz").is_err());
        assert!(pairs("a=%ff").is_err());
    }
}
