//! Handlers, one file per noun, and the router that holds them.

mod auth;
mod bans;
mod device;
mod execute;
mod runs;
mod service;
mod users;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;

use crate::error::ApiError;
use crate::perimeter;
use crate::routes::ApiRouter;
use crate::state::AppState;

/// Every route of the device server with who may use it.
pub fn device_routes(state: AppState) -> ApiRouter {
    let api = ApiRouter::new(state);
    let api = auth::routes(api);
    let api = execute::routes(api);
    let api = runs::routes(api);
    let api = device::routes(api);
    let api = users::routes(api);
    let api = bans::routes(api);
    service::routes(api)
}

/// The device server behind its perimeter.
pub fn router(state: AppState) -> Router {
    device_routes(state.clone())
        .into_router()
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), perimeter::guard))
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
