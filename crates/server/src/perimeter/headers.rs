//! Headers of every answer.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::config::{Hsts, ServerConfig};

const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Sets them; a page may have set a policy of its own before, and what may be kept how long it may.
pub(super) fn secure(headers: &mut HeaderMap, secure: bool, config: &ServerConfig) {
    // For these and what follows, at once.
    headers.reserve(16);
    let mut set =
        |name: HeaderName, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    // The filter that this header steered made side channels; `0` switches it off where it still exists.
    set(header::X_XSS_PROTECTION, if config.compat_headers { "1; mode=block" } else { "0" });
    set(header::REFERRER_POLICY, "strict-origin-when-cross-origin");
    // Other pages get no handle on ours and cannot embed what we answer; listed origins ask by CORS, which this leaves alone.
    set(OPENER_POLICY, "same-origin");
    set(RESOURCE_POLICY, "same-origin");
    set(PERMISSIONS_POLICY, "geolocation=(), microphone=(), camera=()");
    // RFC 6797 section 7.2: not over plain HTTP, unless the operator wants the earlier behaviour.
    let send = match config.hsts {
        Hsts::Secure => secure,
        Hsts::Always => true,
        Hsts::Never => false,
    };
    if send {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=63072000; includeSubDomains");
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    // Nearly every answer depends on who asks; what is the same for everybody says so itself.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// The request's id on its answer.
pub(super) fn name(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(super::REQUEST_ID, passing(value));
    }
}

/// A value that no other answer has: HTTP/2 must not drive out of its table for it what every answer has
/// (RFC 7541 section 7.1.3).
pub(super) fn passing(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
