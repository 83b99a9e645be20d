//! The orchestrator itself: banner and health.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::auth::Origin;
use interlock_engine::orchestrator::Standing;
use interlock_model::action::{Installation, ReadMetrics};
use serde_json::{Value, json};

use super::service::add_certificate;
use crate::body::Json;
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
    let standing = state.orchestrator().standing().await.ok();
    // Named for monitoring of the earlier system, which kept events elsewhere.
    checks.push(Check {
        name: "redis",
        healthy: database,
        message: "events are in the database",
        details: json!({}),
        millis: 0.0,
    });
    checks.extend([workers(standing.as_ref()), scheduler(standing.as_ref())]);
    checks.extend(certificate);
    checks
}

/// A due time that has waited for longer than this is worth a look.
const LATE: Duration = Duration::from_mins(1);

fn workers(standing: Option<&Standing>) -> Check {
    let at_work = standing.map_or(0, |standing| standing.workers);
    Check {
        name: "workers",
        healthy: at_work > 0,
        message: if at_work > 0 { "at work" } else { "nobody carries out runs" },
        details: json!({ "workers": at_work, "waiting_runs": standing.map(|standing| standing.waiting) }),
        millis: 0.0,
    }
}

fn scheduler(standing: Option<&Standing>) -> Check {
    let lag = standing.map(|standing| standing.lag);
    let in_time = lag.is_some_and(|lag| lag < LATE);
    Check {
        name: "scheduler",
        healthy: in_time,
        message: if in_time { "in time" } else { "late" },
        details: json!({ "lag_seconds": lag.map(|lag| lag.as_secs_f64()) }),
        millis: 0.0,
    }
}

async fn orchestrator_health(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
) -> Response {
    let begun = Instant::now();
    let checks = checks(&state).await;
    let healthy = checks.iter().filter(|check| check.healthy).count();
    // Without the database nothing works; without workers or in arrears, what is asked for is still kept.
    let vital = |check: &Check| matches!(check.name, "api" | "database" | "certificate");
    let word = |check: &Check| match (check.healthy, vital(check)) {
        (true, _) => "healthy",
        (false, false) => "degraded",
        (false, true) => "unhealthy",
    };
    let degraded = checks.iter().filter(|check| word(check) == "degraded").count();
    let unhealthy = checks.len() - healthy - degraded;
    let overall = match (unhealthy, degraded) {
        (0, 0) => "healthy",
        (0, _) => "degraded",
        _ => "unhealthy",
    };
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
                "name": check.name, "status": word(check), "message": check.message, "duration_ms": check.millis,
                "timestamp": now, "details": insider.then_some(&check.details), "error": null,
            })
        })
        .collect();
    let body = json!({
        "status": overall, "timestamp": now, "version": state.config.version, "request_id": origin.request_id,
        "summary": {
            "overall_status": overall, "total_checks": checks.len(), "healthy_checks": healthy, "degraded_checks": degraded,
            "unhealthy_checks": unhealthy, "total_duration_ms": begun.elapsed().as_secs_f64() * 1000.0,
            "uptime_seconds": state.started.elapsed().as_secs(),
        },
        "checks": listed,
    });
    let status = if unhealthy == 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

pub(super) async fn orchestrator_ready(State(state): State<AppState>) -> Response {
    let database = state.evidence.storage_is_up().await;
    let fresh = state.identity.principals.is_fresh();
    let workers = state.orchestrator().standing().await.is_ok_and(|standing| standing.workers > 0);
    // A server whose workers are elsewhere, or nowhere yet, can take requests all the same.
    let ready = database && fresh;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready" } else { "not ready" };
    let mut body = json!({ "status": word, "api": true, "database": database, "redis": database, "workers": workers, "revocations": fresh });
    add_certificate(&state, &mut body);
    (status, Json(body)).into_response()
}
