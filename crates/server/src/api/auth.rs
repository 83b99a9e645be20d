//! Signing in and out.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use interlock_engine::auth::{Issued, Origin, SignedIn, Wanted};
use interlock_engine::identity::Identity;
use interlock_model::action::{LogOut, WhoAmI};
use interlock_model::scope;
use interlock_model::secret::Secret;
use interlock_model::text::{CodeText, SecretText};
use interlock_model::wire::{LoginAnswer, LoginRequest, Operation, WhoAmIAnswer};

use interlock_model::screen::Place;
use serde::Deserialize;
use serde_json::json;

use super::agents::no_store;
use crate::body::{Credentials, Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted, PublicReason};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::POST, "/auth/login", PublicReason::SignIn, login)
        .public(Method::POST, "/auth/certificate", PublicReason::SignIn, by_certificate)
        .public(Method::POST, "/auth/refresh", PublicReason::SignIn, refresh)
        .route(Method::POST, "/auth/logout", logout)
        .route(Method::GET, "/auth/me", who_am_i)
}

async fn login(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    Credentials(credentials): Credentials,
) -> Result<Response, ApiError> {
    let LoginRequest { username, password, otp, scope, refresh } = credentials;
    let scopes = scope.as_deref().map(|text| {
        let texts: Vec<&str> = text.split(' ').filter(|part| !part.is_empty()).collect();
        scope::parse_all(&texts).map_err(|(_, error)| {
            ApiError::client(StatusCode::BAD_REQUEST, "invalid_scope", error.to_string())
        })
    });
    let wanted = Wanted { scopes: scopes.transpose()?, brief: refresh == Some(false) };
    let session = identity
        .sign_ins
        .person(&username, password, otp.map(SecretText::into_secret), &wanted, &origin)
        .await?;
    signed_in(&identity, session).await
}

async fn signed_in(identity: &Identity, session: SignedIn) -> Result<Response, ApiError> {
    let notices = Some(identity.notices.unread(&session.user).await?).filter(|count| *count > 0);
    Ok(no_store(Json(LoginAnswer { notices, ..answer_of(session.issued) })))
}

#[derive(Debug, Deserialize)]
struct CertificateRequest {
    /// Of the second factor, for those who have one.
    #[serde(default)]
    otp: Option<SecretText<CodeText>>,
}

impl Screened for CertificateRequest {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

/// The body must be said to be JSON: then no page of another origin can have a browser sign in with the certificate it holds
/// unless that origin is listed.
async fn by_certificate(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<CertificateRequest>,
) -> Result<Response, ApiError> {
    crate::body::said_to_be_json(&headers)?;
    let session = identity.sign_ins.certificate(body.otp.map(SecretText::into_secret), &origin).await?;
    signed_in(&identity, session).await
}

#[derive(Debug, Deserialize)]
struct RefreshRequest {
    refresh_token: Secret,
}

impl Screened for RefreshRequest {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn refresh(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<RefreshRequest>,
) -> Result<Response, ApiError> {
    let issued = identity.sessions.refresh(body.refresh_token.expose(), None, &origin).await?;
    Ok(login_answer(issued))
}

/// The tokens of a person's session, never to be stored on the way.
pub(super) fn login_answer(issued: Issued) -> Response {
    no_store(Json(answer_of(issued)))
}

fn answer_of(issued: Issued) -> LoginAnswer {
    LoginAnswer {
        access_token: issued.access.expose().to_owned(),
        refresh_token: issued.refresh.as_ref().map(|token| token.expose().to_owned()),
        token_type: "bearer".to_owned(),
        expires_in: issued.expires_in,
        user: issued.session.principal,
        roles: issued.session.roles,
        notices: None,
    }
}

async fn logout(grant: Granted<LogOut>, State(identity): State<Identity>) -> Result<Response, ApiError> {
    if grant.caller().session().is_empty() {
        // Nothing would end, and the caller would believe the opposite.
        return Err(ApiError::client(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "An API key has no session to end. Revoke it with DELETE /auth/keys/{id}.",
        ));
    }
    identity.sessions.sign_out(&grant).await?;
    // Ours is ended whatever the provider does.
    let elsewhere = identity.arrivals.sign_out_url(grant.caller().session()).await;
    let details = elsewhere.map(|url| json!({ "provider_logout_url": url }));
    Ok(no_store(Json(Operation::done("Signed out; the token is dead", details))))
}

async fn who_am_i(grant: Granted<WhoAmI>) -> Json<WhoAmIAnswer> {
    let caller = grant.caller();
    Json(WhoAmIAnswer {
        user: caller.name().to_owned(),
        roles: caller.grants().roles().to_vec(),
        scopes: caller.grants().scopes().to_vec(),
        kind: caller.kind(),
        expires_at: caller.expires_at(),
    })
}
