//! What a principal holds: sessions and API keys, listed and ended by their owner or an administrator.

use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use interlock_engine::auth::documents::{ApiKey, Session};
use interlock_engine::auth::{Lockout, NewKey, Revoke};
use interlock_engine::identity::Identity;
use interlock_model::action::{
    CreateApiKey, EndSession, EndSessions, ListApiKeys, ListLockouts, ListSessions, RevokeApiKey,
    RevokeTokens, Unlock,
};
use interlock_model::screen::Place;
use interlock_model::text::{KeyName, Principal, ShortId, Text};
use interlock_model::wire::{ApiKeyView, Operation, SessionView};
use interlock_model::{AgentId, Timestamp};
use serde::Deserialize;
use serde_json::json;

use super::agents::{no_store, scopes};
use crate::body::{Json, JsonBody, Query};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/auth/sessions", list_sessions)
        .route(Method::DELETE, "/auth/sessions", end_sessions)
        .route(Method::DELETE, "/auth/sessions/{id}", end_session)
        .route(Method::GET, "/auth/keys", list_api_keys)
        .route(Method::POST, "/auth/keys", create_api_key)
        .route(Method::DELETE, "/auth/keys/{id}", revoke_api_key)
        .route(Method::POST, "/tokens/revoke", revoke_tokens)
        .route(Method::GET, "/security/lockouts", list_lockouts)
        .route(Method::DELETE, "/security/lockouts/{id}", unlock)
}

async fn list_lockouts(
    grant: Granted<ListLockouts>,
    State(identity): State<Identity>,
) -> Result<Json<Vec<Lockout>>, ApiError> {
    Ok(Json(identity.throttle.list(&grant).await?))
}

async fn unlock(
    grant: Granted<Unlock>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    if identity.throttle.unlock(&grant).await? {
        Ok(Json(Operation::done("Unlocked; guesses at this account are forgotten", None)))
    } else {
        Err(ApiError::client(
            StatusCode::NOT_FOUND,
            "lockout_not_found",
            "There are no guesses at this account",
        ))
    }
}

fn session_view(session: Session, current: &str) -> SessionView {
    SessionView {
        current: session.id == current,
        id: session.id,
        principal: session.principal,
        kind: session.kind,
        name: session.name,
        method: session.method,
        amr: session.amr,
        client_ip: session.client_ip,
        user_agent: session.user_agent,
        created_at: session.created_at,
        last_used_at: session.issued_at,
        expires_at: session.expires_at,
    }
}

#[derive(Debug, Deserialize)]
struct SessionsQuery {
    all: Option<bool>,
}

async fn list_sessions(
    grant: Granted<ListSessions>,
    State(identity): State<Identity>,
    Query(query): Query<SessionsQuery>,
) -> Result<Json<Vec<SessionView>>, ApiError> {
    let found = identity.manage.sessions(&grant, query.all.unwrap_or(false)).await?;
    let current = grant.caller().session();
    Ok(Json(found.into_iter().map(|session| session_view(session, current)).collect()))
}

#[derive(Debug, Deserialize)]
struct EndQuery {
    keep_current: Option<bool>,
}

async fn end_sessions(
    grant: Granted<EndSessions>,
    State(identity): State<Identity>,
    Query(query): Query<EndQuery>,
) -> Result<Json<Operation>, ApiError> {
    let count = identity.manage.end_sessions(&grant, query.keep_current.unwrap_or(false)).await?;
    Ok(Json(Operation::done("Sessions ended; their tokens are dead", Some(json!({ "sessions": count })))))
}

async fn end_session(
    grant: Granted<EndSession>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    identity.manage.end_session(&grant).await?;
    Ok(Json(Operation::done("Session ended; its tokens are dead", None)))
}

fn key_view(key: ApiKey) -> ApiKeyView {
    ApiKeyView {
        id: key.id,
        name: key.name,
        principal: key.principal,
        kind: key.kind,
        scopes: key.scopes,
        created_at: key.created_at,
        created_by: key.created_by,
        expires_at: key.expires_at,
        revoked_at: key.revoked_at,
        last_used_at: key.last_used_at,
    }
}

async fn list_api_keys(
    grant: Granted<ListApiKeys>,
    State(identity): State<Identity>,
) -> Result<Json<Vec<ApiKeyView>>, ApiError> {
    Ok(Json(identity.api_keys.list(&grant).await?.into_iter().map(key_view).collect()))
}

#[derive(Debug, Deserialize)]
struct NewApiKey {
    name: Text<KeyName>,
    scopes: Vec<String>,
    #[serde(default = "thirty_days")]
    expires_in_days: u64,
    agent_id: Option<AgentId>,
}

impl Screened for NewApiKey {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Label, &self.name);
        self.scopes.iter().for_each(|scope| look(Place::Id, scope));
    }
}

fn thirty_days() -> u64 {
    30
}

async fn create_api_key(
    grant: Granted<CreateApiKey>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<NewApiKey>,
) -> Result<Response, ApiError> {
    let new = NewKey {
        name: body.name.into_string(),
        scopes: scopes(&body.scopes)?,
        life: Duration::from_secs(body.expires_in_days.saturating_mul(86_400)),
        agent: body.agent_id,
    };
    let (key, text) = identity.api_keys.create(&grant, new).await?;
    let mut answer = json!(key_view(key));
    answer["key"] = json!(text.expose());
    Ok(no_store((StatusCode::CREATED, Json(answer))))
}

async fn revoke_api_key(
    grant: Granted<RevokeApiKey>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    let key = identity.api_keys.revoke(&grant).await?;
    Ok(Json(Operation::done("Key revoked; it is dead", Some(json!({ "id": key.id })))))
}

#[derive(Debug, Deserialize)]
struct RevokeBody {
    jti: Option<Text<ShortId>>,
    session: Option<Text<ShortId>>,
    principal: Option<Text<Principal>>,
    issued_before: Option<Timestamp>,
}

impl Screened for RevokeBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        [&self.jti, &self.session].into_iter().flatten().for_each(|id| look(Place::Id, id));
        self.principal.iter().for_each(|name| look(Place::Id, name));
    }
}

async fn revoke_tokens(
    grant: Granted<RevokeTokens>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<RevokeBody>,
) -> Result<Json<Operation>, ApiError> {
    let what = match body {
        RevokeBody { jti: Some(jti), session: None, principal: None, issued_before: None } => {
            Revoke::Jti(jti.into_string())
        }
        RevokeBody { jti: None, session: Some(id), principal: None, issued_before: None } => {
            Revoke::Session(id.into_string())
        }
        RevokeBody { jti: None, session: None, principal: Some(name), issued_before: None } => {
            Revoke::Principal(name.into_string())
        }
        RevokeBody { jti: None, session: None, principal: None, issued_before: Some(time) } => {
            Revoke::Before(time)
        }
        _ => {
            let text = "Name exactly one of jti, session, principal, issued_before.";
            return Err(ApiError::field(&["body"], "choice", text));
        }
    };
    identity.manage.revoke(&grant, what).await?;
    Ok(Json(Operation::done("Revoked, on every server of this installation within a second", None)))
}
