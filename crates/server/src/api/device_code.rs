//! A person's side of signing in elsewhere (RFC 8628 section 3.3): see, approve, deny.

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use interlock_engine::auth::documents::DeviceGrant;
use interlock_engine::identity::Identity;
use interlock_model::Timestamp;
use interlock_model::action::{ApproveDevice, DenyDevice, ShowDeviceCode};
use interlock_model::scope::Scope;
use interlock_model::screen::Place;
use interlock_model::text::{Text, UserCodeText};
use serde::{Deserialize, Serialize};

use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted, PublicReason};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/auth/device/show", show)
        .route(Method::POST, "/auth/device/approve", approve)
        .route(Method::POST, "/auth/device/deny", deny)
        .public(Method::GET, "/device-code", PublicReason::SignIn, page)
        .public(Method::GET, "/device-code/app.js", PublicReason::Banner, script)
}

/// The page for people: it holds nothing by itself, signs in, and signs out when it has decided.
async fn page() -> Response {
    super::service::page_of(include_str!("../assets/device-code.html"))
}

async fn script() -> Response {
    super::service::asset("text/javascript; charset=utf-8", include_str!("../assets/device-code.js"))
}

#[derive(Debug, Deserialize)]
struct UserCode {
    user_code: Text<UserCodeText>,
}

impl Screened for UserCode {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Id, &self.user_code);
    }
}

/// What asks to be let in.
#[derive(Debug, Serialize)]
struct GrantView {
    client: String,
    client_ip: String,
    user_agent: String,
    scopes: Option<Vec<Scope>>,
    created_at: Timestamp,
    expires_at: Timestamp,
    decision: &'static str,
}

fn view(grant: DeviceGrant) -> Json<GrantView> {
    let decision = match &grant.decision {
        None => "open",
        Some(decision) if decision.approved => "approved",
        Some(_) => "denied",
    };
    Json(GrantView {
        client: grant.client,
        client_ip: grant.client_ip,
        user_agent: grant.user_agent,
        scopes: grant.scopes,
        created_at: grant.created_at,
        expires_at: grant.expires_at,
        decision,
    })
}

async fn show(
    grant: Granted<ShowDeviceCode>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<UserCode>,
) -> Result<Json<GrantView>, ApiError> {
    Ok(view(identity.device_codes.show(&grant, &body.user_code).await?))
}

async fn approve(
    grant: Granted<ApproveDevice>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<UserCode>,
) -> Result<Json<GrantView>, ApiError> {
    Ok(view(identity.device_codes.approve(&grant, &body.user_code).await?))
}

async fn deny(
    grant: Granted<DenyDevice>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<UserCode>,
) -> Result<Json<GrantView>, ApiError> {
    Ok(view(identity.device_codes.deny(&grant, &body.user_code).await?))
}
