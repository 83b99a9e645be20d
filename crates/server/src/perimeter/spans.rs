//! Each request as a span, while somebody takes spans: its route and how it ended, nothing about the client.

use axum::http::{HeaderMap, StatusCode};
use interlock_engine::spans;
use interlock_model::trace::{Span, SpanKind, TraceContext};
use serde_json::json;

use crate::state::AppState;

/// The span of a request that has come. It goes on with the trace that the client names, or begins one.
pub(super) fn begun(state: &AppState, headers: &HeaderMap) -> Option<Span> {
    if !spans::is_on() {
        return None;
    }
    let given = headers.get("traceparent").and_then(|text| TraceContext::parse(text.to_str().ok()?));
    let mut fresh = [0; 24];
    state.entropy.fill(&mut fresh);
    let (mut trace, mut span) = ([0; 16], [0; 8]);
    trace.copy_from_slice(&fresh[..16]);
    span.copy_from_slice(&fresh[16..]);
    let context = given.unwrap_or(TraceContext { trace, span, sampled: true }).beside(span);
    let now = state.clock.now();
    Some(Span {
        context,
        parent: given.map(|given| given.span),
        name: String::new(),
        kind: SpanKind::Server,
        began: now,
        ended: now,
        failed: false,
        attributes: Vec::new(),
    })
}

/// Tells of it.
pub(super) fn ended(
    state: &AppState,
    span: &Span,
    method: &'static str,
    route: &str,
    status: StatusCode,
    request_id: &str,
) {
    spans::ended(Span {
        name: format!("{method} {route}"),
        ended: state.clock.now(),
        failed: status.is_server_error(),
        attributes: vec![
            ("http.request.method", json!(method)),
            ("http.route", json!(route)),
            ("http.response.status_code", json!(status.as_u16())),
            ("interlock.request_id", json!(request_id)),
        ],
        ..span.clone()
    });
}
