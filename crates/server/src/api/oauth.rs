//! OAuth 2 as clients know it, on the machinery of agents: tokens (RFC 6749), revocation (RFC 7009), introspection (RFC 7662),
//! metadata (RFC 8414) and keys (RFC 7517).

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use interlock_engine::auth::{
    AgentProof, INTERVAL, Origin, PollError, RefreshError, SignInError, TokenError,
};
use interlock_engine::identity::Identity;
use interlock_model::action::Introspect;
use interlock_model::grant::{GrantType, KeyMethod};
use interlock_model::id::from_hexadecimal;
use interlock_model::scope;
use interlock_model::secret::Secret;
use interlock_model::text::{Audience, ClientName, CodeText, Form as _, Rule, Text, TokenText};
use serde::Deserialize;
use serde_json::{Value, json};

use super::agents::{no_store, token_answer};
use crate::body::{FormBody, Json};
use crate::error::{ApiError, NO_GRANT};
use crate::routes::{ApiRouter, Granted, PublicReason};
use crate::state::AppState;

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
const CREDENTIALS: &str = GrantType::ClientCredentials.name();
const REFRESH: &str = GrantType::RefreshToken.name();
const ASSERTION: &str = GrantType::JwtBearer.name();
const EXCHANGE: &str = GrantType::TokenExchange.name();
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// What the token of a program may be called (RFC 8693 section 3): it is a JWT in any case.
const SUBJECT_TOKENS: [&str; 3] =
    ["urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token", ACCESS_TOKEN];
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::POST, "/oauth/token", PublicReason::SignIn, oauth_token)
        .public(Method::POST, "/oauth/revoke", PublicReason::SignIn, oauth_revoke)
        .public(Method::POST, "/oauth/device_authorization", PublicReason::SignIn, device_authorization)
        .route(Method::POST, "/oauth/introspect", oauth_introspect)
        .public(Method::GET, "/oauth/jwks", PublicReason::Banner, jwks)
        .public(Method::GET, "/.well-known/jwks.json", PublicReason::Banner, jwks)
        .public(Method::GET, "/.well-known/oauth-authorization-server", PublicReason::Banner, metadata)
}

/// How a client names and proves itself (RFC 6749 section 2.3, RFC 7521 section 4.2).
#[expect(clippy::struct_field_names, reason = "the names are the protocol's")]
#[derive(Debug, Deserialize)]
struct Client {
    client_id: Option<String>,
    client_secret: Option<Secret>,
    client_assertion_type: Option<String>,
    client_assertion: Option<Secret>,
}

/// A client with what it shows.
struct Shown {
    id: String,
    proof: Option<AgentProof>,
    /// It used the `Authorization` header, so the refusal must challenge (RFC 6749 section 5.2).
    by_header: bool,
}

fn refused(by_header: bool) -> ApiError {
    let mut error =
        ApiError::oauth(StatusCode::UNAUTHORIZED, "invalid_client", "Client authentication failed");
    if !by_header {
        error.status = StatusCode::BAD_REQUEST;
    }
    error.challenge = by_header.then_some("Basic realm=\"interlock\"");
    error
}

fn no_grant() -> ApiError {
    ApiError::oauth(StatusCode::BAD_REQUEST, "unauthorized_client", NO_GRANT)
}

fn invalid(detail: &'static str) -> ApiError {
    ApiError::oauth(StatusCode::BAD_REQUEST, "invalid_request", detail)
}

/// The subject that an assertion names, unverified: it only says whose keys to try.
fn subject_of(assertion: &str) -> Option<String> {
    let payload = assertion.split('.').nth(1).filter(|_| assertion.len() <= 4096)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    claims.get("sub")?.as_str().map(str::to_owned)
}

impl Client {
    fn authenticates(&self) -> bool {
        self.client_secret.is_some() || self.client_assertion.is_some()
    }

    /// Exactly one way of authentication.
    fn shown(self, headers: &HeaderMap) -> Result<Shown, ApiError> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(value) = given.next() {
            let twice =
                given.next().is_some() || self.client_secret.is_some() || self.client_assertion.is_some();
            if twice {
                return Err(invalid("The client authenticates in more than one way."));
            }
            let (id, secret) = basic(value.to_str().unwrap_or("")).ok_or_else(|| refused(true))?;
            if self.client_id.as_ref().is_some_and(|other| *other != id) {
                return Err(refused(true));
            }
            return Ok(Shown { id, proof: Some(AgentProof::Secret(secret)), by_header: true });
        }
        match (self.client_assertion, self.client_assertion_type, self.client_secret) {
            (Some(_), _, Some(_)) => Err(invalid("The client authenticates in more than one way.")),
            (Some(assertion), Some(kind), None) if kind == JWT_BEARER => {
                let named = subject_of(assertion.expose()).unwrap_or_default();
                let id = self.client_id.unwrap_or(named);
                Ok(Shown { id, proof: Some(AgentProof::Assertion(assertion)), by_header: false })
            }
            (Some(_), _, None) => Err(invalid("client_assertion_type must be jwt-bearer.")),
            (None, _, secret) => {
                let id = self.client_id.ok_or_else(|| refused(false))?;
                Ok(Shown { id, proof: secret.map(AgentProof::Secret), by_header: false })
            }
        }
    }
}

/// `Basic`, with both halves form-encoded (RFC 6749 section 2.3.1).
fn basic(value: &str) -> Option<(String, Secret)> {
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > 4096 {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((crate::body::decode(id)?, Secret::new(crate::body::decode(secret)?)))
}

#[derive(Debug, Deserialize)]
struct TokenRequest {
    grant_type: String,
    scope: Option<String>,
    refresh_token: Option<Secret>,
    device_code: Option<Secret>,
    assertion: Option<Secret>,
    #[serde(flatten)]
    exchange: Exchange,
    #[serde(flatten)]
    client: Client,
}

/// One answer for every grant that is none, whatever is wrong with it (RFC 6749 section 5.2).
fn not_in_force() -> ApiError {
    ApiError::oauth(StatusCode::BAD_REQUEST, "invalid_grant", "The grant is not in force")
}

impl TokenRequest {
    /// Names that nobody knows and grants that can be none are refused, also where the kind of grant does not use them.
    fn check_words(&self) -> Result<(), ApiError> {
        let Exchange { subject_token, subject_token_type, requested_token_type, .. } = &self.exchange;
        let could_be = |grant: &Option<Secret>, rule: Rule| {
            grant.as_ref().is_none_or(|grant| rule.holds(grant.expose()))
        };
        let tokens = [&self.refresh_token, &self.assertion, subject_token];
        if !tokens.iter().all(|token| could_be(token, TokenText::RULE))
            || !could_be(&self.device_code, CodeText::RULE)
        {
            return Err(not_in_force());
        }
        let known = |word: &Option<String>, words: &[&str]| {
            word.as_ref().is_none_or(|word| words.contains(&word.as_str()))
        };
        if !known(&self.client.client_assertion_type, &[JWT_BEARER]) {
            return Err(invalid("client_assertion_type must be jwt-bearer."));
        }
        if !known(subject_token_type, &SUBJECT_TOKENS) {
            return Err(invalid("subject_token_type must be that of a JWT, an ID token or an access token."));
        }
        if !known(requested_token_type, &[ACCESS_TOKEN]) {
            return Err(invalid(
                "Only access tokens are given: requested_token_type must be that or be left out.",
            ));
        }
        Ok(())
    }
}

/// What a token exchange says beside the client (RFC 8693 section 2.1).
#[derive(Debug, Deserialize)]
struct Exchange {
    subject_token: Option<Secret>,
    subject_token_type: Option<String>,
    requested_token_type: Option<String>,
    actor_token: Option<Secret>,
    audience: Option<Text<Audience>>,
    resource: Option<String>,
}

impl Exchange {
    /// The token to exchange.
    fn subject(self, audience: &str) -> Result<Secret, ApiError> {
        let token = self.subject_token.ok_or_else(|| invalid("subject_token is required."))?;
        if self.subject_token_type.is_none() {
            return Err(invalid("subject_token_type is required."));
        }
        if self.actor_token.is_some() {
            return Err(invalid("Nobody acts for another here: actor_token is not taken."));
        }
        if self.resource.is_some() || self.audience.is_some_and(|wanted| *wanted != *audience) {
            return Err(ApiError::oauth(
                StatusCode::BAD_REQUEST,
                "invalid_target",
                "Tokens are for this installation only: leave resource and audience out.",
            ));
        }
        Ok(token)
    }
}

#[derive(Debug, Deserialize)]
struct DeviceRequest {
    client_id: Text<ClientName>,
    scope: Option<String>,
}

/// Begins a sign-in on a device without a browser (RFC 8628 section 3.1). Clients are public; the name is what they say.
async fn device_authorization(
    State(state): State<AppState>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
    FormBody(request): FormBody<DeviceRequest>,
) -> Result<Response, ApiError> {
    let scopes = request.scope.as_deref().filter(|text| !text.trim().is_empty());
    let scopes = scopes.map(wanted_scopes).transpose()?;
    let begun = state.identity.device_codes.begin(&request.client_id, scopes, &origin).await?;
    Ok(no_store(Json(json!({
        "device_code": begun.device_code.expose(),
        "user_code": begun.user_code,
        "verification_uri": format!("{}/device-code", base(&state, &headers)),
        "expires_in": begun.expires_in,
        "interval": INTERVAL,
    }))))
}

fn poll_error(error: PollError) -> ApiError {
    let text = error.to_string();
    match error {
        PollError::Pending => ApiError::oauth(StatusCode::BAD_REQUEST, "authorization_pending", text),
        PollError::SlowDown => ApiError::oauth(StatusCode::BAD_REQUEST, "slow_down", text),
        PollError::Expired => ApiError::oauth(StatusCode::BAD_REQUEST, "expired_token", text),
        PollError::Denied => ApiError::oauth(StatusCode::BAD_REQUEST, "access_denied", text),
        PollError::Invalid => ApiError::oauth(StatusCode::BAD_REQUEST, "invalid_grant", text),
        PollError::Store(cause) => ApiError::storage(&cause),
    }
}

async fn oauth_token(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
    FormBody(request): FormBody<TokenRequest>,
) -> Result<Response, ApiError> {
    request.check_words()?;
    match request.grant_type.as_str() {
        CREDENTIALS => {
            let wanted = request.scope.as_deref().map(wanted_scopes).transpose()?;
            let Shown { id, proof, by_header } = request.client.shown(&headers)?;
            // No refresh token: the client can ask again with what it has (RFC 6749 section 4.4.3).
            let opened = identity.sign_ins.agent(&id, proof, wanted.as_deref(), false, &origin).await;
            let issued = opened.map_err(|error| client_error(error, by_header))?;
            Ok(no_store(Json(token_answer(&issued))))
        }
        REFRESH => {
            let token = request.refresh_token.ok_or_else(|| invalid("refresh_token is required."))?;
            let named = request.client.authenticates() || headers.contains_key(header::AUTHORIZATION);
            let client = if named {
                let Shown { id, proof, by_header } = request.client.shown(&headers)?;
                let proved = identity.sign_ins.authenticate_client(&id, proof, &origin).await;
                Some(proved.map_err(|error| client_error(error, by_header))?)
            } else {
                None
            };
            let issued = identity.sessions.refresh(token.expose(), client, &origin).await;
            let issued = issued.map_err(|error| match error {
                RefreshError::Store(cause) => ApiError::storage(&cause),
                RefreshError::Token(TokenError::Grant) => no_grant(),
                RefreshError::Token(_) | RefreshError::Reused => not_in_force(),
            })?;
            Ok(no_store(Json(token_answer(&issued))))
        }
        DEVICE_CODE => {
            let code = request.device_code.ok_or_else(|| invalid("device_code is required."))?;
            let client = request.client.client_id.as_deref();
            let issued = identity.device_codes.poll(&code, client, &origin).await.map_err(poll_error)?;
            Ok(no_store(Json(token_answer(&issued))))
        }
        grant @ (ASSERTION | EXCHANGE) if identity.sign_ins.takes_workloads() => {
            let wanted = request.scope.as_deref().map(wanted_scopes).transpose()?;
            let (token, way) = if grant == ASSERTION {
                let token = request.assertion.ok_or_else(|| invalid("assertion is required."))?;
                (token, GrantType::JwtBearer)
            } else {
                (request.exchange.subject(identity.sessions.tokens().names().1)?, GrantType::TokenExchange)
            };
            if request.client.authenticates() || headers.contains_key(header::AUTHORIZATION) {
                return Err(invalid("The token says who the client is: leave its own credentials out."));
            }
            let opened = identity.sign_ins.workload(&token, way, wanted.as_deref(), &origin).await;
            let issued = opened.map_err(workload_error)?;
            let mut answer = token_answer(&issued);
            if grant == EXCHANGE {
                answer["issued_token_type"] = json!(ACCESS_TOKEN);
            }
            Ok(no_store(Json(answer)))
        }
        _ => Err(ApiError::oauth(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "This grant type is not offered; see /.well-known/oauth-authorization-server.",
        )),
    }
}

fn wanted_scopes(text: &str) -> Result<Vec<scope::Scope>, ApiError> {
    let texts: Vec<&str> = text.split(' ').filter(|part| !part.is_empty()).collect();
    scope::parse_all(&texts).map_err(|_| {
        ApiError::oauth(StatusCode::BAD_REQUEST, "invalid_scope", "A scope is malformed or unknown")
    })
}

fn workload_error(error: SignInError) -> ApiError {
    match error {
        SignInError::Refused => not_in_force(),
        SignInError::Elsewhere => ApiError::client(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The keys of the token's issuer cannot be had at the moment.",
        )
        .after(5),
        other => client_error(other, false),
    }
}

fn client_error(error: SignInError, by_header: bool) -> ApiError {
    match error {
        SignInError::Refused => refused(by_header),
        SignInError::Grant => no_grant(),
        SignInError::Scope => {
            ApiError::oauth(StatusCode::BAD_REQUEST, "invalid_scope", "The client does not hold this scope")
        }
        SignInError::SecondFactor { .. }
        | SignInError::Wait(_)
        | SignInError::Elsewhere
        | SignInError::NotOffered
        | SignInError::Store(_) => error.into(),
    }
}

#[derive(Debug, Deserialize)]
struct RevokeForm {
    token: Secret,
    #[serde(flatten)]
    client: Client,
}

async fn oauth_revoke(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    headers: HeaderMap,
    FormBody(request): FormBody<RevokeForm>,
) -> Result<Response, ApiError> {
    let Shown { id, proof, by_header } = request.client.shown(&headers)?;
    let client = identity.sign_ins.authenticate_client(&id, proof, &origin).await;
    let client = client.map_err(|error| client_error(error, by_header))?;
    identity.sessions.revoke(request.token.expose(), Some(client), &origin).await?;
    Ok(no_store(StatusCode::OK))
}

#[derive(Debug, Deserialize)]
struct IntrospectForm {
    token: Secret,
}

async fn oauth_introspect(
    grant: Granted<Introspect>,
    State(identity): State<Identity>,
    FormBody(request): FormBody<IntrospectForm>,
) -> Response {
    let found = identity.manage.introspect(&grant, request.token.expose());
    no_store(Json(found.unwrap_or_else(|| json!({ "active": false }))))
}

async fn jwks(State(state): State<AppState>) -> Response {
    let now = state.clock.now();
    let keys: Vec<Value> = state
        .identity
        .principals
        .public_keys()
        .iter()
        .filter(|key| key.retired_at.is_none_or(|end| end > now))
        .filter_map(|key| {
            let public = from_hexadecimal::<32>(&key.public)?;
            let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(public);
            Some(json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": key.kid, "x": x }))
        })
        .collect();
    Json(json!({ "keys": keys })).into_response()
}

/// Address of this server as the client knows it.
fn base(state: &AppState, headers: &HeaderMap) -> String {
    if let Some(url) = &state.config.public_url {
        return url.clone();
    }
    // The host was checked by the perimeter, so it is one of ours.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let scheme = if state.config.tls || state.config.force_https { "https" } else { "http" };
    format!("{scheme}://{host}")
}

/// True to behaviour: a test compares it with what is served.
async fn metadata(State(state): State<AppState>, headers: HeaderMap) -> Json<Value> {
    let base = base(&state, &headers);
    let (issuer, audience) = state.identity.sessions.tokens().names();
    let certificates = state.certificates.as_ref().is_some_and(|keeper| keeper.takes_client_certificates());
    let secrets = if state.identity.sessions.clients().keys_only {
        &[][..]
    } else {
        &["client_secret_basic", "client_secret_post"]
    };
    let mut methods = [secrets, &[KeyMethod::PrivateKeyJwt.name()]].concat();
    methods.extend(certificates.then_some(KeyMethod::TlsClientAuth.name()));
    let mut grants = vec![CREDENTIALS, REFRESH, DEVICE_CODE];
    if state.identity.sign_ins.takes_workloads() {
        grants.extend([ASSERTION, EXCHANGE]);
    }
    Json(json!({
        "issuer": issuer,
        "interlock_audience": audience,
        "token_endpoint": format!("{base}/oauth/token"),
        "revocation_endpoint": format!("{base}/oauth/revoke"),
        "introspection_endpoint": format!("{base}/oauth/introspect"),
        "jwks_uri": format!("{base}/oauth/jwks"),
        "device_authorization_endpoint": format!("{base}/oauth/device_authorization"),
        "grant_types_supported": grants,
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": ["EdDSA", "ES256", "RS256"],
        "revocation_endpoint_auth_methods_supported": methods,
        "tls_client_certificate_bound_access_tokens": certificates,
        "introspection_endpoint_auth_methods_supported": ["bearer"],
        "scopes_supported": scope::KNOWN,
    }))
}
