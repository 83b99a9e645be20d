//! People's own accounts: password, second factors, fresh proof of identity.

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use interlock_engine::auth::AccountError;
use interlock_engine::identity::Identity;
use interlock_engine::users::Users;
use interlock_model::Timestamp;
use interlock_model::action::{
    ChangePassword, ConfirmFactor, EnrolFactor, ListFactors, RemoveFactor, RenewRecoveryCodes, ResetFactors,
    StepUp,
};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::text::{CodeText, FactorName, GivenSecret, SecretText, Text};
use interlock_model::wire::Operation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agents::no_store;
use super::auth::login_answer;
use super::passkeys::Answer;
use crate::body::{Json, JsonBody};
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
    current: SecretText<GivenSecret>,
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
    Ok(login_answer(identity.account.change_password(&grant, body.current.into_secret(), body.new).await?))
}

#[derive(Debug, Deserialize)]
struct Proof {
    otp: Option<SecretText<CodeText>>,
    password: Option<SecretText<GivenSecret>>,
    passkey: Option<Answer>,
}

impl Screened for Proof {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn step_up(
    grant: Granted<StepUp>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<Proof>,
) -> Result<Response, ApiError> {
    let account = &identity.account;
    let (otp, password) = (body.otp.map(SecretText::into_secret), body.password.map(SecretText::into_secret));
    let raised = match (body.passkey, &otp, &password) {
        (Some(Answer { state, credential }), None, None) => {
            account.step_up_with_passkey(&grant, &state.into_secret(), credential.0).await?
        }
        (Some(_), _, _) => return Err(AccountError::OtherProof.into()),
        (None, _, _) => account.step_up(&grant, otp, password).await?,
    };
    Ok(login_answer(raised))
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
    let found = identity.second_factor.list(&grant).await?;
    let apps = found.confirmed().map(|app| FactorView {
        id: app.id.clone(),
        kind: "totp",
        name: app.name.clone(),
        created_at: app.created_at,
        last_used_at: app.last_used_at,
    });
    let passkeys = found.passkeys.iter().map(|passkey| FactorView {
        id: passkey.id.clone(),
        kind: "passkey",
        name: passkey.name.clone(),
        created_at: passkey.created_at,
        last_used_at: passkey.last_used_at,
    });
    let factors: Vec<FactorView> = apps.chain(passkeys).collect();
    Ok(no_store(Json(json!({ "factors": factors, "recovery_codes_left": found.recovery.len() }))))
}

#[derive(Debug, Deserialize)]
struct NewTotp {
    #[serde(default = "an_app")]
    name: Text<FactorName>,
}

impl Screened for NewTotp {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Label, &self.name);
    }
}

fn an_app() -> Text<FactorName> {
    Text::fixed("authenticator app")
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
    code: SecretText<CodeText>,
}

impl Screened for Code {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

pub(super) fn exposed(codes: &[Secret]) -> Vec<&str> {
    codes.iter().map(Secret::expose).collect()
}

async fn confirm_totp(
    grant: Granted<ConfirmFactor>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<Code>,
) -> Result<Response, ApiError> {
    let (id, codes) = identity.account.confirm_factor(&grant, &body.code.into_secret()).await?;
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
    State(users): State<Users>,
) -> Result<Json<Operation>, ApiError> {
    users.reset_factors(&grant).await?;
    Ok(Json(Operation::done("Every second factor of this user is removed", None)))
}
