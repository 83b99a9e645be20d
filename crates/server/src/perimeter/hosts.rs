//! Which names are answered, and which other origins may call from a browser.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use serde_json::json;

use crate::config::ServerConfig;
use crate::error::ApiError;

const HEADERS: &str =
    "authorization, content-type, idempotency-key, prefer, interlock-simulate, last-event-id, x-request-id";
/// Headers that hold a credential.
const CREDENTIALS: [HeaderName; 3] = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];
const EXPOSED: &str = "x-request-id, retry-after, interlock-run, idempotency-replayed, location";

fn refused(reason: &'static str) -> ApiError {
    metrics::counter!("orchestrator_blocked_requests_total", "reason" => "host").increment(1);
    ApiError::client(StatusCode::BAD_REQUEST, "invalid_request", reason)
}

/// The host part of an authority, without the port.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(host, _)| host);
    }
    authority.rsplit_once(':').map_or(authority, |(host, port)| {
        if port.bytes().all(|c| c.is_ascii_digit()) { host } else { authority }
    })
}

/// Refuses names that are not ours: a foreign page could have pointed its own name at this address.
pub(super) fn check(request: &Request, allowed: &[String]) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(refused("The request has two Host headers."));
    }
    let named = match (request.uri().authority(), first) {
        (Some(authority), None) => authority.as_str(),
        (Some(authority), Some(host)) => {
            if !host.to_str().is_ok_and(|host| host.eq_ignore_ascii_case(authority.as_str())) {
                return Err(refused("The request names two different hosts."));
            }
            authority.as_str()
        }
        (None, Some(host)) => host.to_str().map_err(|_| refused("The Host header is malformed."))?,
        (None, None) => return Err(refused("The request has no Host header.")),
    };
    let host = host_of(named).trim_end_matches('.');
    let fits = |pattern: &String| match pattern.strip_prefix("*.") {
        Some(suffix) => {
            host.len() > suffix.len() + 1
                && host.is_char_boundary(host.len() - suffix.len())
                && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
                && host.as_bytes()[host.len() - suffix.len() - 1] == b'.'
        }
        None => pattern.trim_matches(['[', ']']).eq_ignore_ascii_case(host),
    };
    if allowed.iter().any(fits) {
        Ok(())
    } else {
        Err(refused(
            "This server does not answer to this host name. Its administrator can add the name to ALLOWED_HOSTS.",
        ))
    }
}

/// Plain HTTP: safe methods are sent to HTTPS, anything else is refused, because a secret may be in it. Where one is, the
/// request is refused too and on record: were it sent on, nobody would ever notice that the secret crosses the network in the
/// clear (docs/adr/0035-what-carries-a-secret-is-not-sent-on-to-https.md).
pub(super) fn to_https(request: &Request, origin: &Origin) -> Result<Response, ApiError> {
    metrics::counter!("orchestrator_blocked_requests_total", "reason" => "https_required").increment(1);
    if CREDENTIALS.iter().any(|name| request.headers().contains_key(name)) {
        let details = json!({ "reason": "credentials_in_the_clear" });
        security::event(Event::AuthenticationFailed, None, Some(origin), details);
        let text = "Use HTTPS. The credential of this request crossed the network in the clear: change it.";
        return Err(ApiError::client(StatusCode::FORBIDDEN, "forbidden", text));
    }
    crate::query::refuse_credentials(request.uri(), origin)?;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(host_of);
    let target = host.and_then(|host| {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        HeaderValue::from_str(&format!("https://{host}{path}")).ok()
    });
    match target {
        Some(location) if matches!(*request.method(), Method::GET | Method::HEAD) => {
            let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
            response.headers_mut().insert(header::LOCATION, location);
            Ok(response)
        }
        _ => Err(ApiError::client(StatusCode::FORBIDDEN, "forbidden", "Use HTTPS.")),
    }
}

/// The request's origin, if it is a listed one.
pub(super) fn cross_origin(headers: &HeaderMap, allowed: &[String]) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    allowed.iter().any(|listed| origin == listed.as_str()).then(|| origin.clone())
}

/// Lets a listed origin read the answer.
pub(super) fn allow_origin(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// Answers a preflight; the origin's own headers are added by the perimeter.
pub(super) fn preflight(headers: &HeaderMap, config: &ServerConfig) -> Result<Response, ApiError> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if cross_origin(headers, &config.cors_origins).is_some() {
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        if asked.is_some_and(|asked| !config.cors_methods.iter().any(|method| asked == method.as_str())) {
            let text = "This method is not for pages of other origins. Its administrator can add it to CORS_ALLOW_METHODS.";
            return Err(ApiError::client(StatusCode::FORBIDDEN, "forbidden", text));
        }
        let answer = response.headers_mut();
        let names: Vec<&str> = config.cors_methods.iter().map(Method::as_str).collect();
        if let Ok(methods) = HeaderValue::from_str(&names.join(", ")) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, hosts: &[&str]) -> Request {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request.body(axum::body::Body::empty()).expect("request")
    }

    #[test]
    fn only_our_names_are_answered() {
        let allowed = ["localhost".to_owned(), "*.lab.example".to_owned(), "::1".to_owned()];
        for (hosts, good) in [
            (vec!["localhost"], true),
            (vec!["LOCALHOST:8000"], true),
            (vec!["localhost."], true),
            (vec!["[::1]:8000"], true),
            (vec!["ot2.lab.example"], true),
            (vec!["lab.example"], false),
            (vec!["evillab.example"], false),
            (vec!["localhost.evil.example"], false),
            (vec!["localhost", "localhost"], false),
            (vec![], false),
            (vec![""], false),
        ] {
            assert_eq!(check(&request("/x", &hosts), &allowed).is_ok(), good, "{hosts:?}");
        }
        assert!(check(&request("http://localhost/x", &["evil.example"]), &allowed).is_err());
    }
}
