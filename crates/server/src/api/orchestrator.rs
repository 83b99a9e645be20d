//! The orchestrator itself: banner and health.

use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::auth::Origin;
use interlock_model::action::{Installation, ReadMetrics};
use serde_json::{Value, json};
use std::sync::Arc;

use super::service::add_certificate;
use crate::routes::{ApiRouter, PublicReason, bearer};
use crate::state::AppState;
use crate::tls::Condition;

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::GET, "/", PublicReason::Banner, orchestrator_banner)
        .public(Method::GET, "/health", PublicReason::Liveness, orchestrator_health)
        .public(Method::GET, "/health/ready", PublicReason::Liveness, orchestrator_ready)
}

async fn orchestrator_banner(State(state): State<AppState>) -> Json<Value> {
    Json(json!({
        "service": state.config.title, "version": state.config.version,
        "environment": if state.config.production { "production" } else { "development" },
        "status": "running", "docs_url": "/docs", "redoc_url": null, "health_url": "/health",
    }))
}

/// One check with how long it took.
struct Check {
    name: &'static str,
    healthy: bool,
    message: &'static str,
    details: Value,
    millis: f64,
}

async fn checks(state: &AppState) -> Vec<Check> {
    let begun = Instant::now();
    let database = state.evidence.storage_is_up().await;
    let millis = begun.elapsed().as_secs_f64() * 1000.0;
    let fresh = state.identity.principals.is_fresh();
    let certificate = state.certificates.as_ref().map(|keeper| {
        let (condition, expires_at) = keeper.condition();
        Check {
            name: "certificate",
            healthy: condition != Condition::Over,
            message: condition.name(),
            details: json!({ "expires_at": expires_at }),
            millis: 0.0,
        }
    });
    let mut checks = vec![
        Check { name: "api", healthy: true, message: "answering", details: json!({}), millis: 0.0 },
        Check {
            name: "database",
            healthy: database,
            message: if database { "answering" } else { "not answering" },
            details: json!({ "revocations_fresh": fresh }),
            millis,
        },
    ];
    checks.extend(certificate);
    checks
}

async fn orchestrator_health(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
) -> Response {
    let begun = Instant::now();
    let checks = checks(&state).await;
    let healthy = checks.iter().filter(|check| check.healthy).count();
    let word = |healthy: bool| if healthy { "healthy" } else { "unhealthy" };
    let overall = word(healthy == checks.len());
    // Internals are for those who may read the metrics.
    let insider = bearer(&headers)
        .and_then(|token| state.guard.authenticate(Some(token), &origin).ok())
        .and_then(|caller| state.guard.permit_if_allowed::<ReadMetrics>(&caller, Installation {}))
        .is_some();
    let now = state.clock.now();
    let listed: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({
                "name": check.name, "status": word(check.healthy), "message": check.message, "duration_ms": check.millis,
                "timestamp": now, "details": insider.then_some(&check.details), "error": null,
            })
        })
        .collect();
    let body = json!({
        "status": overall, "timestamp": now, "version": state.config.version, "request_id": origin.request_id,
        "summary": {
            "overall_status": overall, "total_checks": checks.len(), "healthy_checks": healthy, "degraded_checks": 0,
            "unhealthy_checks": checks.len() - healthy, "total_duration_ms": begun.elapsed().as_secs_f64() * 1000.0,
            "uptime_seconds": state.started.elapsed().as_secs(),
        },
        "checks": listed,
    });
    let status = if healthy == checks.len() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

pub(super) async fn orchestrator_ready(State(state): State<AppState>) -> Response {
    let database = state.evidence.storage_is_up().await;
    let fresh = state.identity.principals.is_fresh();
    let ready = database && fresh;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready" } else { "not ready" };
    let mut body = json!({ "status": word, "api": true, "database": database, "revocations": fresh });
    add_certificate(&state, &mut body);
    (status, Json(body)).into_response()
}
