//! Resets: a credential is replaced by whoever holds a token that works once.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use interlock_engine::auth::Origin;
use interlock_engine::auth::documents::ResetOf;
use interlock_engine::resets::Resets;
use interlock_model::action::{RevokeReset, StartReset};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::text::{GivenSecret, SecretText};
use interlock_model::wire::Operation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::agents::no_store;
use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted, PublicReason};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/users/{name}/reset", start)
        .route(Method::DELETE, "/users/{name}/reset", revoke)
        .public(Method::POST, "/auth/reset", PublicReason::SignIn, finish)
}

#[derive(Debug, Deserialize)]
struct NewReset {
    what: ResetOf,
}

impl Screened for NewReset {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn start(
    grant: Granted<StartReset>,
    State(resets): State<Resets>,
    JsonBody(body): JsonBody<NewReset>,
) -> Result<Response, ApiError> {
    let (made, token) = resets.start(&grant, body.what).await?;
    let answer = json!({
        "name": made.user, "what": made.what, "expires_at": made.expires_at, "token": token.expose(),
    });
    Ok(no_store((StatusCode::CREATED, Json(answer))))
}

async fn revoke(
    grant: Granted<RevokeReset>,
    State(resets): State<Resets>,
) -> Result<Json<Operation>, ApiError> {
    let ended = resets.revoke(&grant).await?;
    let details = json!({ "ended": ended });
    Ok(Json(Operation::done("Resets taken back; their tokens are dead", Some(details))))
}

#[derive(Debug, Deserialize)]
struct Replacement {
    /// Refused as a wrong one whatever it is.
    token: Secret,
    password: SecretText<GivenSecret>,
}

impl Screened for Replacement {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn finish(
    State(resets): State<Resets>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<Replacement>,
) -> Result<Json<Value>, ApiError> {
    let done = resets.finish(&body.token, body.password.into_secret(), &origin).await?;
    Ok(Json(json!({ "name": done.user, "what": done.what })))
}
