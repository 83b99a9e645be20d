//! Requests that HTTP does not allow: what the gate found in HTTP/1, and the same rules where HTTP/2 could break them.
//!
//! The texts say little. The rule that a request broke is in the security log.

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use serde_json::json;

use crate::error::ApiError;
use crate::gate::{self, MAX_FIELDS, Reason};

/// What a client is told about a head that the gate refused.
pub(super) fn refusal(reason: Reason) -> ApiError {
    match reason {
        Reason::HeadTooLarge | Reason::TooManyFields => ApiError::client(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "invalid_request",
            "The header fields are too long or too many.",
        ),
        Reason::TargetTooLong => {
            ApiError::client(StatusCode::URI_TOO_LONG, "invalid_request", "The request line is too long.")
        }
        Reason::HostMissing => bad("The request has no Host header."),
        Reason::HostRepeated => bad("The request has two Host headers."),
        Reason::HostMalformed => bad("The Host header is malformed."),
        Reason::HostDiffers => bad("The request names two different hosts."),
        _ => bad("The request is not well-formed HTTP."),
    }
}

fn bad(detail: &'static str) -> ApiError {
    ApiError::client(StatusCode::BAD_REQUEST, "invalid_request", detail)
}

/// What a client is told whose certificate has ended or was revoked since its handshake.
pub(super) fn certificate_over(origin: &Origin) -> ApiError {
    security::event(Event::CertificateRefused, None, Some(origin), json!({ "reason": "over" }));
    ApiError::client(
        StatusCode::FORBIDDEN,
        "client_certificate",
        "The client certificate of this connection is not valid any more. Connect again with one that is.",
    )
}

/// Checks what the libraries let through.
pub(super) fn check(request: &Request, origin: &Origin) -> Result<(), ApiError> {
    let refused = |reason: Reason| {
        gate::blocked(origin, reason.name());
        Err(refusal(reason))
    };
    let headers = request.headers();
    if headers.len() > MAX_FIELDS {
        return refused(Reason::TooManyFields);
    }
    if request.method() == Method::CONNECT {
        return refused(Reason::Connect);
    }
    let path = request.uri().path();
    let is_path = path.starts_with('/') || (path == "*" && request.method() == Method::OPTIONS);
    if !is_path {
        return refused(Reason::Target);
    }
    if request.uri().authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refused(Reason::HostMalformed);
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return refused(Reason::LengthRepeated);
    }
    if expects_more(headers) {
        return Err(ApiError::client(
            StatusCode::EXPECTATION_FAILED,
            "invalid_request",
            "The only expectation that is met is 100-continue.",
        ));
    }
    Ok(())
}

/// Whether there is an expectation that nobody here knows (RFC 9110 section 10.1.1).
fn expects_more(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::EXPECT)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
