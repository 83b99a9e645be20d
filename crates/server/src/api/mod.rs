//! Handlers, one file per noun, and the router that holds them.

mod account;
mod agents;
mod approvals;
mod auth;
mod bans;
mod credentials;
mod device;
mod device_code;
mod events;
mod execute;
mod fields;
mod invitations;
mod notices;
mod oauth;
mod orchestrator;
mod passkeys;
mod query;
pub(crate) mod reports;
mod resets;
mod roles;
mod runs;
mod service;
mod sso;
mod task_runs;
mod tasks;
mod users;
mod webhooks;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::get;

use crate::error::ApiError;
use crate::perimeter;
use crate::routes::ApiRouter;
use crate::state::AppState;

/// Every route of this server with who may use it: identity everywhere, the device's where there is one, else the
/// orchestrator's. The two families use the same paths for different things and never share a listener.
pub fn routes(state: AppState) -> ApiRouter {
    let (has_device, has_tasks) = (state.device.is_some(), state.orchestrator.is_some());
    let api = ApiRouter::new(state);
    let api = auth::routes(api);
    let api = account::routes(api);
    let api = passkeys::routes(api);
    let api = credentials::routes(api);
    let api = agents::routes(api);
    let api = oauth::routes(api);
    let api = device_code::routes(api);
    let api = notices::routes(api);
    let api = roles::routes(api);
    let api = sso::routes(api);
    let api = users::routes(api);
    let api = bans::routes(api);
    let api = invitations::routes(api);
    let api = resets::routes(api);
    let api = service::routes(api);
    let api = reports::routes(api);
    if has_device {
        let api = execute::routes(api);
        let api = runs::routes(api);
        let api = device::routes(api);
        service::device_routes(api)
    } else if has_tasks {
        let api = tasks::routes(api);
        let api = task_runs::routes(api);
        let api = webhooks::routes(api);
        let api = events::routes(api);
        let api = approvals::routes(api);
        orchestrator::routes(api)
    } else {
        api
    }
}

/// The server behind its perimeter.
pub fn router(state: AppState) -> Router {
    routes(state.clone())
        .into_router()
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), perimeter::guard))
        .with_state(state)
}

/// Probes and metrics for a listener of their own: no limits, no bans, no host check, and nothing else to reach.
pub fn internal_router(state: AppState) -> Router {
    service::internal_routes(state.device.is_some())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), perimeter::inside))
        .with_state(state)
}

/// What is answered over plain HTTP beside a certificate by ACME: the texts that an authority asks for (RFC 8555 section 8.3),
/// and where the rest is.
pub fn challenge_router(state: AppState) -> Router {
    Router::new()
        .route("/.well-known/acme-challenge/{token}", get(service::challenge))
        .fallback(perimeter::elsewhere)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), perimeter::inside))
        .with_state(state)
}

async fn not_found() -> ApiError {
    ApiError::client(StatusCode::NOT_FOUND, "not_found", "Not found")
}

async fn method_not_allowed() -> ApiError {
    ApiError::client(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "This path does not take this method.",
    )
}
