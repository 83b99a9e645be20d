//! People's own accounts: password, second factors, fresh proof of identity.

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use interlock_engine::identity::Identity;
use interlock_model::Timestamp;
use interlock_model::action::{
    ChangePassword, ConfirmFactor, EnrolFactor, ListFactors, RemoveFactor, RenewRecoveryCodes, ResetFactors,
    StepUp,
};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::wire::Operation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agents::no_store;
use super::auth::login_answer;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/auth/password", change_password)
        .route(Method::POST, "/auth/step-up", step_up)
        .route(Method::GET, "/auth/factors", list_factors)
        .route(Method::POST, "/auth/factors/totp", enrol_totp)
        .route(Method::POST, "/auth/factors/totp/confirm", confirm_totp)
        .route(Method::POST, "/auth/factors/recovery-codes", renew_recovery_codes)
        .route(Method::DELETE, "/auth/factors/{id}", remove_factor)
        .route(Method::DELETE, "/users/{name}/factors", reset_factors)
}

#[derive(Debug, Deserialize)]
struct PasswordChange {
    current: Secret,
    new: Secret,
}

impl Screened for PasswordChange {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn change_password(
    grant: Granted<ChangePassword>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<PasswordChange>,
) -> Result<Response, ApiError> {
    Ok(login_answer(identity.account.change_password(&grant, body.current, body.new).await?))
}

#[derive(Debug, Deserialize)]
struct Proof {
    otp: Option<Secret>,
    password: Option<Secret>,
}

impl Screened for Proof {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn step_up(
    grant: Granted<StepUp>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<Proof>,
) -> Result<Response, ApiError> {
    Ok(login_answer(identity.account.step_up(&grant, body.otp, body.password).await?))
}

/// A second factor without its secret.
#[derive(Debug, Serialize)]
struct FactorView {
    id: String,
    kind: &'static str,
    name: String,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
}

async fn list_factors(
    grant: Granted<ListFactors>,
    State(identity): State<Identity>,
) -> Result<Response, ApiError> {
    let (apps, codes) = identity.second_factor.list(&grant).await?;
    let factors: Vec<FactorView> = apps
        .into_iter()
        .map(|app| FactorView {
            id: app.id,
            kind: "totp",
            name: app.name,
            created_at: app.created_at,
            last_used_at: app.last_used_at,
        })
        .collect();
    Ok(no_store(Json(json!({ "factors": factors, "recovery_codes_left": codes }))))
}

#[derive(Debug, Deserialize)]
struct NewTotp {
    #[serde(default = "an_app")]
    name: String,
}

impl Screened for NewTotp {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Label, &self.name);
    }
}

fn an_app() -> String {
    "authenticator app".to_owned()
}

async fn enrol_totp(
    grant: Granted<EnrolFactor>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<NewTotp>,
) -> Result<Response, ApiError> {
    let made = identity.second_factor.enrol(&grant, &body.name).await?;
    let answer = json!({ "id": made.id, "secret": made.secret.expose(), "uri": made.uri.expose() });
    Ok(no_store((StatusCode::CREATED, Json(answer))))
}

#[derive(Debug, Deserialize)]
struct Code {
    code: Secret,
}

impl Screened for Code {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

fn exposed(codes: &[Secret]) -> Vec<&str> {
    codes.iter().map(Secret::expose).collect()
}

async fn confirm_totp(
    grant: Granted<ConfirmFactor>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<Code>,
) -> Result<Response, ApiError> {
    let (id, codes) = identity.account.confirm_factor(&grant, &body.code).await?;
    Ok(no_store(Json(json!({ "id": id, "recovery_codes": exposed(&codes) }))))
}

async fn renew_recovery_codes(
    grant: Granted<RenewRecoveryCodes>,
    State(identity): State<Identity>,
) -> Result<Response, ApiError> {
    let codes = identity.second_factor.renew_codes(&grant).await?;
    Ok(no_store(Json(json!({ "recovery_codes": exposed(&codes) }))))
}

async fn remove_factor(
    grant: Granted<RemoveFactor>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    identity.second_factor.remove(&grant).await?;
    Ok(Json(Operation::done("Second factor removed", None)))
}

async fn reset_factors(
    grant: Granted<ResetFactors>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    identity.second_factor.reset(&grant).await?;
    Ok(Json(Operation::done("Every second factor of this user is removed", None)))
}
