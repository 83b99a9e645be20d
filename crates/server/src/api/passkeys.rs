//! Passkeys: making one, and signing in with one. What goes to the browser and comes back has the JSON forms of Web
//! Authentication Level 3, so a page hands it through.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::Method;
use axum::response::Response;
use interlock_engine::auth::{Challenge, Origin};
use interlock_engine::identity::Identity;
use interlock_model::action::{ConfirmFactor, EnrolFactor};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::exposed;
use super::agents::no_store;
use super::auth::login_answer;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted, PublicReason};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/auth/factors/passkeys", begin_passkey)
        .route(Method::POST, "/auth/factors/passkeys/confirm", confirm_passkey)
        .public(Method::POST, "/auth/passkeys/begin", PublicReason::SignIn, begin_passkey_sign_in)
        .public(Method::POST, "/auth/passkeys/sign-in", PublicReason::SignIn, passkey_sign_in)
}

#[derive(Debug, Deserialize)]
struct NewPasskey {
    #[serde(default = "a_passkey")]
    name: String,
}

impl Screened for NewPasskey {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Label, &self.name);
    }
}

fn a_passkey() -> String {
    "passkey".to_owned()
}

/// What a device has answered, with the challenge that it answers.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) state: Secret,
    pub(super) credential: Value,
}

impl Screened for Answer {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

fn challenge(challenge: &Challenge) -> Response {
    no_store(Json(json!({ "state": challenge.state.expose(), "options": challenge.options })))
}

async fn begin_passkey(
    grant: Granted<EnrolFactor>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<NewPasskey>,
) -> Result<Response, ApiError> {
    Ok(challenge(&identity.passkeys.begin_enrolment(&grant, &body.name).await?))
}

async fn confirm_passkey(
    grant: Granted<ConfirmFactor>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<Answer>,
) -> Result<Response, ApiError> {
    let (id, codes) = identity.passkeys.enrol(&grant, &body.state, body.credential).await?;
    Ok(no_store(Json(json!({ "id": id, "recovery_codes": exposed(&codes) }))))
}

async fn begin_passkey_sign_in(State(identity): State<Identity>) -> Result<Response, ApiError> {
    Ok(challenge(&identity.passkeys.begin()?))
}

async fn passkey_sign_in(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<Answer>,
) -> Result<Response, ApiError> {
    Ok(login_answer(identity.passkeys.sign_in(&body.state, body.credential, &origin).await?))
}
