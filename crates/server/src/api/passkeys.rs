//! Passkeys: making one, and signing in with one. What goes to the browser and comes back has the JSON forms of Web
//! Authentication Level 3, so a page hands it through.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::Method;
use axum::response::Response;
use interlock_engine::auth::{Challenge, Origin};
use interlock_engine::identity::Identity;
use interlock_model::action::{ConfirmFactor, EnrolFactor};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::text::{self, CredentialPart, FactorName, Form as _, SecretText, Text, TokenText};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::exposed;
use super::agents::no_store;
use super::auth::login_answer;
use crate::body::{Json, JsonBody};
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
    name: Text<FactorName>,
}

impl Screened for NewPasskey {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Label, &self.name);
    }
}

fn a_passkey() -> Text<FactorName> {
    Text::fixed("passkey")
}

/// What a device has answered, with the challenge that it answers.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) state: SecretText<TokenText>,
    pub(super) credential: Credential,
}

/// The members of it that have a form here, too: the others are the library's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read for their form alone; what is judged is the whole")]
struct Known {
    id: Text<CredentialPart>,
    raw_id: Text<CredentialPart>,
    r#type: Type,
    response: Said,
    authenticator_attachment: Option<Text<CredentialPart>>,
}

#[derive(Deserialize)]
enum Type {
    #[serde(rename = "public-key")]
    PublicKey,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "as above")]
struct Said {
    #[serde(rename = "clientDataJSON")]
    client_data: Text<CredentialPart>,
    attestation_object: Option<Text<CredentialPart>>,
    authenticator_data: Option<Text<CredentialPart>>,
    signature: Option<Text<CredentialPart>>,
    user_handle: Option<Text<CredentialPart>>,
    transports: Option<Vec<Text<CredentialPart>>>,
}

/// What a device says. Whether it is right, the ceremony says; here every text in it has its bound.
#[derive(Debug)]
pub(super) struct Credential(pub(super) Value);

impl<'de> Deserialize<'de> for Credential {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let said = Value::deserialize(deserializer)?;
        if Known::deserialize(&said).is_ok() && text::each_holds(&CredentialPart::RULE, &said) {
            Ok(Self(said))
        } else {
            Err(serde::de::Error::custom(CredentialPart::RULE.name))
        }
    }
}

impl Screened for Answer {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

/// The same of whom nobody knows yet: every wrong answer gets one refusal, so it has no form of its own.
#[derive(Debug, Deserialize)]
struct Stranger {
    state: Secret,
    credential: Value,
}

impl Screened for Stranger {
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
    let (id, codes) = identity.passkeys.enrol(&grant, &body.state.into_secret(), body.credential.0).await?;
    Ok(no_store(Json(json!({ "id": id, "recovery_codes": exposed(&codes) }))))
}

async fn begin_passkey_sign_in(State(identity): State<Identity>) -> Result<Response, ApiError> {
    Ok(challenge(&identity.passkeys.begin()?))
}

async fn passkey_sign_in(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<Stranger>,
) -> Result<Response, ApiError> {
    Ok(login_answer(identity.passkeys.sign_in(&body.state, body.credential, &origin).await?))
}
