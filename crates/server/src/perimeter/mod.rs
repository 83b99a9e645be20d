//! What every request passes, in this order, and what every answer carries.
//!
//! The order is fixed in [`guard`], which reads as a list. A step that refuses names itself in the
//! metrics and answers with a problem body.

pub mod added;
pub mod address;
mod answers;
mod bans;
mod headers;
mod hosts;
pub mod limits;
mod protocol;
pub(crate) mod screening;
mod spans;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use interlock_engine::auth::Origin;
use interlock_model::wire::FieldError;
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) use self::screening::Screened;
pub(crate) use answers::Answers;
pub(crate) use bans::check_principal;

use crate::error::{ApiError, Rendered};
use crate::gate::Refused;
use crate::listener::Peer;
use crate::state::AppState;

/// Header of the request id.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The endpoint of requests that no route takes, in metrics and logs.
pub(crate) const UNMATCHED: &str = "unmatched";

/// Whether the limits are in the way of every request: one of a client that is over its limit goes through the whole service,
/// and must be refused. A limiter that counts and stands beside the path limits nothing.
pub async fn limits_hold(state: &AppState, service: axum::Router) -> bool {
    if !state.limits.is_on() {
        return true;
    }
    let peer = Peer { address: (state.limits.begin_check(), 0).into(), ..Peer::default() };
    let mut request = Request::new(axum::body::Body::empty());
    *request.uri_mut() = axum::http::Uri::from_static("/the-limits-hold");
    request.extensions_mut().insert(peer);
    let answer = service.oneshot(request).await;
    state.limits.end_check();
    answer.is_ok_and(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS)
}

/// The whole perimeter.
pub async fn guard(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let peer = request.extensions_mut().remove::<Peer>().unwrap_or_default();
    // Client address first: every later step counts, logs and refuses by it.
    let client =
        address::resolve(&peer, request.headers(), &state.config.trusted_proxies, state.config.forwarded_by);
    // Then a name for the request, which every answer carries.
    let refused = request.extensions_mut().remove::<Refused>();
    let request_id = match &refused {
        Some(refused) => refused.request_id.clone(),
        None => request_id(request.headers(), &state),
    };
    let span = spans::begun(&state, request.headers());
    let origin = Arc::new(Origin {
        client_ip: client.ip,
        request_id: request_id.clone(),
        user_agent: printable(request.headers().get(header::USER_AGENT)),
        certificate: peer
            .certificate
            .as_ref()
            .filter(|_| !client.proxied)
            .map(|shown| Arc::clone(shown.identity())),
        trace: span.as_ref().map(|span| span.context),
    });
    request.extensions_mut().insert(Arc::clone(&origin));
    let template = request.extensions().get::<MatchedPath>().filter(|_| refused.is_none()).cloned();
    // Of a refused request nothing is known; this one counts as "other".
    let method = if refused.is_some() { Method::CONNECT } else { request.method().clone() };
    let wants_json = accepts_only_json(request.headers());
    let cross_origin = hosts::cross_origin(request.headers(), &state.config.cors_origins);
    let path = request.uri().path().to_owned();

    let endpoint = template.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let limited = limit(&state, &path, endpoint, &origin).await;
    let entered = limited.and_then(|()| {
        let met = Met { peer: &peer, client: &client, refused: refused.as_ref() };
        enter(&state, &met, &origin, &request)
    });
    let mut response = match entered {
        Err(refusal) => refusal.into_response(),
        Ok(Entered::Answered(answer)) => answer,
        // A panic in a handler is an answer like any other, with everything that follows here.
        Ok(Entered::Admitted(_slot)) => {
            let answering = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind();
            answering.await.unwrap_or_else(|_| ApiError::internal(&Panicked).into_response())
        }
    };

    if let Some(Rendered(error)) = response.extensions_mut().remove::<Rendered>() {
        response = render(&error, response, &request_id, wants_json, &state);
    }
    if let Some(standing) = state.limits.standing(&path, &origin) {
        limits::describe(response.headers_mut(), &standing);
    }
    headers::secure(response.headers_mut(), client.secure, &state.config);
    if let Some(origin) = cross_origin {
        hosts::allow_origin(response.headers_mut(), &origin);
    }
    headers::name(response.headers_mut(), &request_id);
    let template = template.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    observe(&state, &method, template, &response, begun, &origin);
    if let Some(span) = span {
        spans::ended(&state, &span, method_name(&method), template, response.status(), &origin.request_id);
    }
    response
}

/// What requests on the listener for probes and metrics pass: a name, the framing that the gate has found, an answer like any
/// other. Who may connect there is said by the address that it listens on.
pub async fn inside(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let peer = request.extensions_mut().remove::<Peer>().unwrap_or_default();
    let refused = request.extensions_mut().remove::<Refused>();
    let request_id = match &refused {
        Some(refused) => refused.request_id.clone(),
        None => request_id(request.headers(), &state),
    };
    let origin = Arc::new(Origin {
        client_ip: peer.address.ip().to_canonical(),
        request_id: request_id.clone(),
        user_agent: printable(request.headers().get(header::USER_AGENT)),
        certificate: None,
        trace: None,
    });
    request.extensions_mut().insert(Arc::clone(&origin));
    let template = request.extensions().get::<MatchedPath>().filter(|_| refused.is_none()).cloned();
    let method = if refused.is_some() { Method::CONNECT } else { request.method().clone() };
    let wants_json = accepts_only_json(request.headers());
    let mut response = match refused {
        Some(refused) => protocol::refusal(refused.reason).into_response(),
        None => next.run(request).await,
    };
    if let Some(Rendered(error)) = response.extensions_mut().remove::<Rendered>() {
        response = render(&error, response, &request_id, wants_json, &state);
    }
    headers::secure(response.headers_mut(), peer.tls, &state.config);
    headers::name(response.headers_mut(), &request_id);
    let template = template.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    observe(&state, &method, template, &response, begun, &origin);
    response
}

/// Where HTTPS is served, for whoever asks over plain HTTP beside it.
pub(crate) async fn elsewhere(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    request: Request,
) -> Result<Response, ApiError> {
    hosts::check(&request, &state.config.allowed_hosts)?;
    hosts::to_https(&request, &origin)
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked; the line before this one says where")]
struct Panicked;

/// What is known of a request below HTTP.
struct Met<'a> {
    peer: &'a Peer,
    client: &'a address::Client,
    /// What the gate found.
    refused: Option<&'a Refused>,
}

enum Entered {
    /// Go on; the slot is held until the answer's head is ready.
    Admitted(Option<tokio::sync::OwnedSemaphorePermit>),
    /// Answered by the perimeter itself.
    Answered(Response),
}

/// Refuses banned clients and addresses over their limit, before anything costs more.
async fn limit(state: &AppState, path: &str, endpoint: &str, origin: &Origin) -> Result<(), ApiError> {
    // The emergency stop asks nobody.
    if state.limits.is_exempt(path) {
        return Ok(());
    }
    // Banned clients: refused most cheaply.
    bans::check(state, origin)?;
    state.limits.admit_address(path, endpoint, origin).await.map_err(|over| match over {
        limits::Over::Wait(refusal) => refusal,
        limits::Over::Hammering(refusal) => bans::hammering(state, origin, refusal),
    })
}

/// Everything else that may refuse a request before its route sees it.
fn enter(state: &AppState, met: &Met<'_>, origin: &Origin, request: &Request) -> Result<Entered, ApiError> {
    let path = request.uri().path();
    let exempt = state.limits.is_exempt(path);
    // What cannot be read in one way only; the gate has logged it.
    if let Some(refused) = met.refused {
        return Err(protocol::refusal(refused.reason));
    }
    protocol::check(request, origin)?;
    // A certificate that was good in the handshake may have been revoked since.
    if met.peer.certificate.as_ref().is_some_and(|shown| !shown.is_good(state.clock.now())) {
        return Err(protocol::certificate_over(origin));
    }
    // Load shedding; the emergency stop and probes are never shed.
    let slot = if exempt { None } else { Some(state.limits.slot()?) };
    // Trusted host (DNS rebinding); before the redirect, which repeats the name.
    hosts::check(request, &state.config.allowed_hosts)?;
    // Plain HTTP where it is not wanted, then cross-origin preflight.
    if state.config.force_https && !met.client.secure {
        return hosts::to_https(request, origin).map(Entered::Answered);
    }
    if request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN) {
        return hosts::preflight(request.headers(), &state.config).map(Entered::Answered);
    }
    // Announced size; what is not announced is cut while it is read.
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if !exempt && announced.is_some_and(|length| length > state.config.max_request_size as u64) {
        metrics::counter!("orchestrator_blocked_requests_total", "reason" => "too_large").increment(1);
        return Err(crate::body::too_large(state.config.max_request_size));
    }
    // Threat detection, as far as it needs no body; the emergency stop and probes are never refused for their words.
    if !exempt {
        screening::request(state, origin, request)?;
    }
    Ok(Entered::Admitted(slot))
}

fn request_id(headers: &HeaderMap, state: &AppState) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let good = |text: &&str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
    };
    given.filter(good).map_or_else(|| state.new_request_id(), str::to_owned)
}

/// A header as it may stand in a log: printable ASCII, at most 200 characters.
fn printable(value: Option<&HeaderValue>) -> String {
    let bytes = value.map_or(&b""[..], HeaderValue::as_bytes);
    bytes
        .iter()
        .take(200)
        .map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '?' })
        .collect()
}

fn accepts_only_json(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json")
}

/// Gives an error its body.
fn render(
    error: &ApiError,
    bare: Response,
    request_id: &str,
    plain_json: bool,
    state: &AppState,
) -> Response {
    let (mut parts, _) = bare.into_parts();
    let body = if state.config.legacy_errors && error.status == StatusCode::UNPROCESSABLE_ENTITY {
        let whole = FieldError {
            loc: vec!["request".into()],
            kind: error.code.to_owned(),
            msg: error.detail.clone(),
        };
        let refused = if error.errors.is_empty() { std::slice::from_ref(&whole) } else { &error.errors };
        let detail: Vec<Value> = refused.iter().map(legacy).collect();
        json!({ "detail": detail })
    } else {
        let mut body = json!({
            "type": "about:blank",
            "title": error.status.canonical_reason().unwrap_or("Error"),
            "status": error.status.as_u16(),
            "detail": error.detail,
            "message": error.detail,
            "error": error.code,
            "code": error.code,
            "details": null,
            "request_id": request_id,
            "timestamp": state.clock.now(),
        });
        if !error.errors.is_empty() {
            body["errors"] = json!(error.errors);
        }
        if error.oauth {
            body["error_description"] = json!(error.detail);
        }
        if error.status == StatusCode::TOO_MANY_REQUESTS {
            body["retry_after"] = json!(error.retry_after);
        }
        body
    };
    let media_type = if plain_json || error.oauth { "application/json" } else { "application/problem+json" };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Response::from_parts(parts, axum::body::Body::from(body.to_string()))
}

fn legacy(error: &FieldError) -> Value {
    json!({ "type": error.kind, "loc": error.loc, "msg": error.msg })
}

/// The method, if it is one that anybody serves: clients can make up any number of others.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

fn observe(
    state: &AppState,
    method: &Method,
    template: &str,
    response: &Response,
    begun: Instant,
    origin: &Origin,
) {
    let status = response.status();
    let elapsed = begun.elapsed();
    let method = method_name(method);
    state.answers().count(method, template, status, elapsed);
    tracing::info!(
        target: "access",
        method, endpoint = template, status = status.as_u16(), duration_ms = elapsed.as_secs_f64() * 1000.0,
        client_ip = %origin.client_ip, user_agent = origin.user_agent, request_id = origin.request_id,
    );
}

impl AppState {
    fn new_request_id(&self) -> String {
        let mut random = [0; 12];
        self.entropy.fill(&mut random);
        let mut id = String::with_capacity(28);
        id.push_str("req-");
        interlock_model::id::push_hexadecimal(&random, &mut id);
        id
    }
}
