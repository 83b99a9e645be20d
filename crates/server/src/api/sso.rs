//! Signing in with the browser at an OpenID provider.
//!
//! The browser is sent away with a cookie that only these paths get, comes back with a code, and is sent on to the page with
//! a text that fetches the tokens once. No token of ours is ever in a URL.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use interlock_engine::auth::{Origin, SignInError};
use interlock_engine::identity::Identity;
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::agents::no_store;
use crate::body::{FormBody, Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, PublicReason};
use crate::state::AppState;

const COOKIE: &str = "interlock-sign-in";

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::GET, "/auth/methods", PublicReason::SignIn, sign_in_methods)
        .public(Method::GET, "/auth/oidc/login", PublicReason::SignIn, oidc_login)
        .public(Method::GET, "/auth/oidc/callback", PublicReason::SignIn, oidc_callback)
        .public(Method::POST, "/auth/oidc/exchange", PublicReason::SignIn, oidc_exchange)
        .public(Method::POST, "/auth/oidc/logout", PublicReason::SignIn, oidc_logout)
}

async fn sign_in_methods(State(identity): State<Identity>) -> Json<Value> {
    let (directory, web) = identity.arrivals.offers();
    Json(json!({
        "password": true, "directory": directory, "oidc": web.then_some("/auth/oidc/login"),
        "passkey": identity.passkeys.is_offered(), "certificate": identity.arrivals.certificates().is_some(),
    }))
}

/// `__Host-` keeps other hosts and plain HTTP from setting it; over plain HTTP on loopback browsers refuse that prefix.
fn cookie_name(secure: bool) -> String {
    if secure { format!("__Host-{COOKIE}") } else { COOKIE.to_owned() }
}

fn set_cookie(state: &AppState, value: &str, seconds: u64) -> HeaderValue {
    let secure = state.config.tls || state.config.force_https;
    // Lax: the browser comes back by a link from the provider.
    let flags = if secure { "; Secure" } else { "" };
    let text =
        format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{flags}", cookie_name(secure));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

fn away(location: &str, cookie: HeaderValue) -> Result<Response, ApiError> {
    let location = HeaderValue::from_str(location).map_err(|error| ApiError::internal(&error))?;
    let mut response = no_store(StatusCode::SEE_OTHER);
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

async fn oidc_login(State(state): State<AppState>) -> Result<Response, ApiError> {
    let begun = state.identity.arrivals.begin().await?;
    away(&begun.url, set_cookie(&state, begun.browser.expose(), begun.seconds))
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let first = found.next();
    // Two of one name: somebody has planted one.
    if found.next().is_some() { None } else { first }
}

async fn oidc_callback(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let secure = state.config.tls || state.config.force_https;
    let browser = cookie(&headers, &cookie_name(secure)).unwrap_or("");
    let finished = state.identity.arrivals.finish(browser, uri.query().unwrap_or(""), &origin).await;
    let page = if state.device.is_some() { "/panel" } else { "/docs" };
    let gone = set_cookie(&state, "", 0);
    match finished {
        Ok(code) => away(&format!("{page}#sign-in={}", code.expose()), gone),
        // A browser shows a page, not a problem body; which of the reasons it was is in the audit trail.
        Err(SignInError::Refused) => away(&format!("{page}#sign-in-refused"), gone),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Deserialize)]
struct ExchangeRequest {
    /// Refused as a wrong one whatever it is.
    code: Secret,
}

impl Screened for ExchangeRequest {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn oidc_exchange(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<ExchangeRequest>,
) -> Result<Response, ApiError> {
    let issued = identity.arrivals.exchange(body.code.expose(), &origin).await?;
    Ok(super::auth::login_answer(issued))
}

#[derive(Debug, Deserialize)]
struct LogoutForm {
    logout_token: Secret,
}

async fn oidc_logout(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    FormBody(form): FormBody<LogoutForm>,
) -> Result<Response, ApiError> {
    match identity.arrivals.sign_out_elsewhere(form.logout_token.expose(), &origin).await {
        Ok(_) => Ok(no_store(StatusCode::OK)),
        Err(SignInError::Refused) => Err(ApiError::oauth(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "This is no order of the provider to sign somebody out.",
        )),
        Err(error) => Err(error.into()),
    }
}
