//! The service itself: banner, health, documents, metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, FromRef as _, Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use interlock_engine::auth::Origin;
use interlock_engine::devices::Devices;
use interlock_model::action::{Action, Installation, ListActions, ReadDocs, ReadMetrics};
use serde_json::{Value, json};

use super::reports;
use crate::body::Json;
use crate::error::ApiError;
use crate::openapi;
use crate::routes::{ApiRouter, PublicReason, bearer};
use crate::state::AppState;

const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; report-uri /page-reports; report-to pages";

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::GET, "/health/live", PublicReason::Liveness, live)
        .public(Method::GET, "/metrics", PublicReason::DecidesItself, public_metrics)
        .public(Method::GET, "/docs", PublicReason::DecidesItself, docs)
        .public(Method::GET, "/.well-known/security.txt", PublicReason::Banner, security_txt)
        .public(Method::GET, "/docs/app.js", PublicReason::Banner, script)
        .public(Method::GET, "/docs/app.css", PublicReason::Banner, style)
        .public(Method::GET, "/openapi.json", PublicReason::DecidesItself, document)
}

/// What only a server with a device has.
pub(super) fn device_routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::GET, "/", PublicReason::Banner, banner)
        .public(Method::GET, "/health", PublicReason::Liveness, health)
        .public(Method::GET, "/health/ready", PublicReason::Liveness, ready)
        .public(Method::GET, "/panel", PublicReason::SignIn, panel)
}

/// Asks for a permit on a route that is open under a condition.
fn demand<A: Action<Target = Installation>>(
    state: &AppState,
    headers: &HeaderMap,
    origin: &Origin,
) -> Result<(), ApiError> {
    let caller = state.guard.authenticate(bearer(headers), origin)?;
    let permit = state.guard.permit::<A>(&caller, Installation {})?;
    state.guard.close(&permit, 200);
    Ok(())
}

/// The text by which an authority sees that the name leads here.
pub(super) async fn challenge(
    State(state): State<AppState>,
    Path(token): Path<String>,
) -> Result<String, ApiError> {
    let text = state.certificates.as_ref().and_then(|keeper| keeper.challenges().text(&token));
    text.ok_or_else(|| ApiError::client(StatusCode::NOT_FOUND, "not_found", "Not found"))
}

async fn banner(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    // Strangers learn that there is a server, not what it can do. A wrong token is an error, not a stranger.
    let devices = Devices::from_ref(&state);
    let tasks = if headers.contains_key(header::AUTHORIZATION) {
        let caller = state.guard.authenticate(bearer(&headers), &origin)?;
        let permit = state.guard.permit_if_allowed::<ListActions>(&caller, Installation {});
        permit.map_or_else(Vec::new, |permit| {
            devices.catalogue(&permit).actions().map(|action| action.spec.name.clone()).collect()
        })
    } else {
        Vec::new()
    };
    Ok(Json(json!({ "message": state.config.title, "available_tasks": tasks, "docs": "/docs" })))
}

async fn health(State(state): State<AppState>) -> Response {
    let devices = Devices::from_ref(&state);
    let up = state.evidence.storage_is_up().await && devices.is_serving();
    let status = if up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": if up { "healthy" } else { "unhealthy" },
        "timestamp": state.clock.now(),
        "tasks_registered": devices.action_count(),
    });
    (status, Json(body)).into_response()
}

async fn live(State(state): State<AppState>) -> Json<Value> {
    Json(
        json!({ "status": "alive", "timestamp": state.clock.now(), "uptime_seconds": state.started.elapsed().as_secs() }),
    )
}

async fn ready(State(state): State<AppState>) -> Response {
    let database = state.evidence.storage_is_up().await && state.identity.principals.is_fresh();
    let device = Devices::from_ref(&state).is_serving();
    let status = if database && device { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if database && device { "ready" } else { "not ready" };
    let mut body = json!({ "status": word, "api": true, "database": database, "device": device });
    add_certificate(&state, &mut body);
    (status, Json(body)).into_response()
}

/// How the server's certificate stands; every handshake shows its end anyway. It does not make a server unready: clients that
/// know better than to trust it are better off with an error that says so.
pub(super) fn add_certificate(state: &AppState, answer: &mut Value) {
    if let Some(keeper) = &state.certificates {
        let (condition, expires_at) = keeper.condition();
        answer["certificate"] = json!({ "status": condition.name(), "expires_at": expires_at });
    }
}

/// What the listener for probes and metrics answers, without the perimeter of everybody else.
pub(super) fn internal_routes(has_device: bool) -> Router<AppState> {
    let router = Router::new().route("/health/live", get(live)).route("/metrics", get(metrics));
    if has_device {
        router.route("/health/ready", get(ready))
    } else {
        router.route("/health/ready", get(super::orchestrator::orchestrator_ready))
    }
}

async fn public_metrics(
    state: State<AppState>,
    origin: Extension<Arc<Origin>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if state.config.internal_listener {
        return Err(ApiError::client(StatusCode::NOT_FOUND, "not_found", "Not found"));
    }
    metrics(state, origin, headers).await
}

async fn metrics(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // A local proxy makes strangers look local: what was forwarded is not from this machine.
    let forwarded =
        ["x-forwarded-for", "forwarded", "x-real-ip"].iter().any(|name| headers.contains_key(*name));
    let local = origin.client_ip.is_loopback() && !forwarded;
    let token = state.config.metrics_token.as_ref();
    let by_token = token.is_some_and(|token| bearer(&headers).is_some_and(|given| token.matches(given)));
    if !local && !by_token {
        demand::<ReadMetrics>(&state, &headers, &origin)?;
    }
    let text = state.metrics.render();
    Ok((
        [
            (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        text,
    )
        .into_response())
}

/// How long what `security.txt` says is good; well below the year of RFC 9116 section 2.5.5.
const SECURITY_TXT: Duration = Duration::from_hours(24 * 30);

/// Where to report weaknesses (RFC 9116).
async fn security_txt(State(state): State<AppState>) -> Result<Response, ApiError> {
    if state.config.security_contacts.is_empty() {
        return Err(ApiError::client(StatusCode::NOT_FOUND, "not_found", "Not found"));
    }
    let contacts = state.config.security_contacts.iter().map(|contact| format!("Contact: {contact}"));
    // It is read from the settings of a server that runs, so it is never older than that.
    let expires = format!("Expires: {}", state.clock.now().plus(SECURITY_TXT));
    let policy = state.config.security_policy.iter().map(|policy| format!("Policy: {policy}"));
    let languages = "Preferred-Languages: en\n".to_owned();
    let lines: Vec<String> = contacts.chain([expires]).chain(policy).chain([languages]).collect();
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, lines.join("\n")).into_response())
}

/// Documents are open where people develop and for administrators in production.
fn may_read_docs(state: &AppState, headers: &HeaderMap, origin: &Origin) -> Result<(), ApiError> {
    if state.config.production { demand::<ReadDocs>(state, headers, origin) } else { Ok(()) }
}

async fn docs(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    may_read_docs(&state, &headers, &origin)?;
    Ok(page())
}

/// The page for people: it holds nothing by itself, signs in, and asks for everything with the token it gets.
async fn panel() -> Response {
    page()
}

fn page() -> Response {
    page_of(include_str!("../assets/docs.html"))
}

/// A page under the policy for pages.
pub(super) fn page_of(html: &'static str) -> Response {
    let mut response = asset("text/html; charset=utf-8", html);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    response.headers_mut().insert(reports::ENDPOINTS, HeaderValue::from_static(reports::PLACE));
    response
}

async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("../assets/docs.js"))
}

async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("../assets/docs.css"))
}

pub(super) fn asset(media_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

async fn document(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    Extension(table): Extension<Arc<Vec<crate::routes::RouteEntry>>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    may_read_docs(&state, &headers, &origin)?;
    // Actions are named to those only who may list them.
    let devices = state.device.as_ref().map(|device| &device.devices);
    let listed = bearer(&headers)
        .and_then(|token| state.guard.authenticate(Some(token), &origin).ok())
        .and_then(|caller| state.guard.permit_if_allowed::<ListActions>(&caller, Installation {}))
        .and_then(|permit| devices.map(|devices| devices.catalogue(&permit)));
    if listed.is_some() {
        return Ok(Json(openapi::document(&state.config, &table, listed.as_deref())).into_response());
    }
    let text = state.document(|| openapi::document(&state.config, &table, None).to_string().into());
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}
