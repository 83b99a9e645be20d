//! Credentials in the URL: refused, even if they are right. URLs end up in logs of proxies and in histories.

use axum::http::{StatusCode, Uri};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};

use crate::body::decode;
use crate::error::ApiError;

/// Names of fields that hold or go with a credential, in any of the protocols that are spoken here.
const NAMES: &[&str] = &[
    "username",
    "password",
    "agent_secret",
    "client_secret",
    "client_assertion",
    "access_token",
    "refresh_token",
    "token",
    "code",
];

/// Refuses a request whose query names a credential.
pub(crate) fn refuse_credentials(uri: &Uri, origin: &Origin) -> Result<(), ApiError> {
    let is_credential = |pair: &str| {
        let name = pair.split('=').next().unwrap_or("");
        // What cannot be decoded is compared as it is.
        let name = decode(name).unwrap_or_else(|| name.to_owned()).to_ascii_lowercase();
        NAMES.contains(&name.trim())
    };
    if !uri.query().unwrap_or("").split('&').any(is_credential) {
        return Ok(());
    }
    let details = serde_json::json!({ "reason": "credentials_in_query" });
    security::event(Event::AuthenticationFailed, None, Some(origin), details);
    let text = "Send credentials in the body or in the Authorization header, never in the URL. Change what was sent: it may be in logs.";
    let status = StatusCode::BAD_REQUEST;
    Err(if uri.path().starts_with("/oauth/") {
        ApiError::oauth(status, "invalid_request", text)
    } else {
        ApiError::client(status, "invalid_request", text)
    })
}
