//! Agents: signing in as one, and looking after them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use interlock_engine::agents::{AgentChange, AgentFilter, NewAgent, NewSecret};
use interlock_engine::auth::documents::Agent;
use interlock_engine::auth::{AgentProof, Issued, Origin};
use interlock_engine::identity::Identity;
use interlock_model::action::{
    CreateAgent, DeleteAgent, ListAgents, ReadAgent, SetAgentCertificates, SetAgentKeys, SetAgentSecret,
    UpdateAgent,
};
use interlock_model::grant::{GrantType, KeyMethod, Unknown, parse_grants};
use interlock_model::scope::{self, Scope};
use interlock_model::screen::Place;
use interlock_model::secret::Secret;
use interlock_model::text::{AgentName, CertificateName, NamePart, ScopePart, Text, WebhookUrl};
use interlock_model::wire::{AgentSecretView, AgentView, Operation};
use serde::Deserialize;
use serde_json::{Value, json};

use super::query;
use crate::body::{Json, JsonBody, PageQuery, Query, SecretBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted, PublicReason};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.public(Method::POST, "/agents/auth/token", PublicReason::SignIn, agent_token)
        .public(Method::POST, "/agents/auth/refresh", PublicReason::SignIn, agent_refresh)
        .public(Method::POST, "/agents/auth/revoke", PublicReason::SignIn, agent_revoke)
        .route(Method::GET, "/agents", list_agents)
        .route(Method::POST, "/agents", create_agent)
        .route(Method::GET, "/agents/{agent_id}", show_agent)
        .route(Method::PUT, "/agents/{agent_id}", update_agent)
        .route(Method::DELETE, "/agents/{agent_id}", delete_agent)
        .route(Method::POST, "/agents/{agent_id}/credentials", set_agent_secret)
        .route(Method::PUT, "/agents/{agent_id}/keys", set_agent_keys)
        .route(Method::PUT, "/agents/{agent_id}/certificates", set_agent_certificates)
}

/// Keeps what holds a token or a secret out of every cache.
pub(super) fn no_store(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Tokens as clients of both families and of OAuth read them.
pub(super) fn token_answer(issued: &Issued) -> Value {
    let scope: Vec<&str> = issued.session.scopes.iter().map(Scope::as_str).collect();
    let mut answer = json!({
        "access_token": issued.access.expose(), "token_type": "bearer", "expires_in": issued.expires_in,
        "scope": scope.join(" "),
    });
    if let Some(refresh) = &issued.refresh {
        answer["refresh_token"] = json!(refresh.expose());
    }
    answer
}

#[derive(Debug, Deserialize)]
struct AgentCredentials {
    /// Whatever it is: what is no id gets the answer of a wrong one.
    agent_id: String,
    agent_secret: Option<Secret>,
}

impl Screened for AgentCredentials {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn agent_token(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<AgentCredentials>,
) -> Result<Response, ApiError> {
    let proof = body.agent_secret.map(AgentProof::Secret);
    let issued = identity.sign_ins.agent(&body.agent_id, proof, None, true, &origin).await?;
    Ok(no_store(Json(token_answer(&issued))))
}

#[derive(Debug, Deserialize)]
struct RefreshRequest {
    refresh_token: Secret,
}

impl Screened for RefreshRequest {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn agent_refresh(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<RefreshRequest>,
) -> Result<Response, ApiError> {
    let issued = identity.sessions.refresh(body.refresh_token.expose(), None, &origin).await?;
    Ok(no_store(Json(token_answer(&issued))))
}

#[derive(Debug, Deserialize)]
struct RevokeRequest {
    refresh_token: Option<Secret>,
    token: Option<Secret>,
}

impl Screened for RevokeRequest {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn agent_revoke(
    State(identity): State<Identity>,
    Extension(origin): Extension<Arc<Origin>>,
    JsonBody(body): JsonBody<RevokeRequest>,
) -> Result<Json<Operation>, ApiError> {
    for token in [body.refresh_token, body.token].into_iter().flatten() {
        identity.sessions.revoke(token.expose(), None, &origin).await?;
    }
    // Nothing is told about the token: a stranger learns no more than that it is dead now.
    Ok(Json(Operation::done("Token revoked", None)))
}

fn view(agent: &Agent) -> AgentView {
    AgentView {
        id: agent.id,
        name: agent.name.clone(),
        scopes: agent.scopes.clone(),
        webhook_url: agent.webhook_url.clone(),
        has_webhook_secret: !agent.webhook_secrets.is_empty(),
        created_at: agent.created_at,
        status: if agent.disabled { "disabled" } else { "active" }.to_owned(),
        has_credentials: !agent.secrets.is_empty()
            || !agent.keys.is_empty()
            || !agent.certificate_names.is_empty(),
        last_seen_at: agent.last_seen_at,
        secrets: agent
            .secrets
            .iter()
            .map(|secret| AgentSecretView {
                id: secret.id.clone(),
                created_at: secret.created_at,
                expires_at: secret.expires_at,
                last_used_at: secret.last_used_at,
            })
            .collect(),
        keys: agent.keys.len(),
        certificate_names: agent.certificate_names.clone(),
        grant_types: agent.grant_types.clone(),
        token_endpoint_auth_method: agent.key_method,
        waiting_scopes: agent.waiting.as_ref().map(|waiting| waiting.scopes.clone()).unwrap_or_default(),
        waiting_since: agent.waiting.as_ref().map(|waiting| waiting.at),
        waiting_by: agent.waiting.as_ref().map(|waiting| waiting.by.clone()),
    }
}

#[derive(Debug, Deserialize)]
struct AgentsQuery {
    name_filter: Option<String>,
    scope_filter: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn list_agents(
    grant: Granted<ListAgents>,
    State(identity): State<Identity>,
    Query(query): Query<AgentsQuery>,
) -> Result<Json<Vec<AgentView>>, ApiError> {
    let page = query.page.page()?;
    let filter = AgentFilter {
        name: query::text::<NamePart>("name_filter", query.name_filter)?,
        scope: query::text::<ScopePart>("scope_filter", query.scope_filter)?,
    };
    let offset = usize::try_from(page.offset).unwrap_or(usize::MAX);
    let found = identity.agents.list(&grant, &filter, page.limit as usize, offset);
    Ok(Json(found.iter().map(|agent| view(agent)).collect()))
}

async fn show_agent(
    grant: Granted<ReadAgent>,
    State(identity): State<Identity>,
) -> Result<Json<AgentView>, ApiError> {
    Ok(Json(view(&*identity.agents.get(&grant)?)))
}

/// Scopes from a body; the error names the place, never the text.
pub(super) fn scopes(texts: &[String]) -> Result<Vec<Scope>, ApiError> {
    scope::parse_all(texts).map_err(|(at, error)| {
        ApiError::field(&["body", "scopes", &at.to_string()], "scope", error.to_string())
    })
}

fn grant_types(texts: &[String]) -> Result<Vec<GrantType>, ApiError> {
    parse_grants(texts).map_err(|(at, error)| {
        ApiError::field(&["body", "grant_types", &at.to_string()], "grant_type", error.to_string())
    })
}

fn key_method(text: &str) -> Result<KeyMethod, ApiError> {
    let place = &["body", "token_endpoint_auth_method"];
    text.parse().map_err(|error: Unknown| ApiError::field(place, "choice", error.to_string()))
}

#[derive(Debug, Deserialize)]
struct NewAgentBody {
    name: Text<AgentName>,
    scopes: Vec<String>,
    webhook_url: Option<Text<WebhookUrl>>,
    grant_types: Option<Vec<String>>,
    token_endpoint_auth_method: Option<String>,
}

impl Screened for NewAgentBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        look(Place::Label, &self.name);
        self.scopes.iter().for_each(|scope| look(Place::Id, scope));
        self.grant_types.iter().flatten().for_each(|grant| look(Place::Id, grant));
        self.token_endpoint_auth_method.iter().for_each(|method| look(Place::Id, method));
        self.webhook_url.iter().for_each(|url| look(Place::Id, url));
    }
}

async fn create_agent(
    grant: Granted<CreateAgent>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<NewAgentBody>,
) -> Result<Response, ApiError> {
    let new = NewAgent {
        scopes: scopes(&body.scopes)?,
        grant_types: body.grant_types.as_deref().map(grant_types).transpose()?,
        key_method: body.token_endpoint_auth_method.as_deref().map(key_method).transpose()?,
        name: body.name.into_string(),
        webhook_url: body.webhook_url.map(Text::into_string),
    };
    let agent = identity.agents.create(&grant, new).await?;
    Ok((StatusCode::CREATED, Json(view(&agent))).into_response())
}

#[derive(Debug, Deserialize)]
struct AgentEdit {
    name: Option<Text<AgentName>>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    webhook_url: Edit<Text<WebhookUrl>>,
    grant_types: Option<Vec<String>>,
    #[serde(default)]
    token_endpoint_auth_method: Edit<String>,
}

impl Screened for AgentEdit {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.name.iter().for_each(|name| look(Place::Label, name));
        self.scopes.iter().flatten().for_each(|scope| look(Place::Id, scope));
        if let Edit::Set(Some(url)) = &self.webhook_url {
            look(Place::Id, url);
        }
        self.grant_types.iter().flatten().for_each(|grant| look(Place::Id, grant));
        if let Edit::Set(Some(method)) = &self.token_endpoint_auth_method {
            look(Place::Id, method);
        }
    }
}

/// Tells an absent member, which leaves what is there, from one that is null, which removes it.
#[derive(Debug, Default)]
enum Edit<T> {
    #[default]
    Leave,
    Set(Option<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Edit<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::Set)
    }
}

async fn update_agent(
    grant: Granted<UpdateAgent>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<AgentEdit>,
) -> Result<Json<AgentView>, ApiError> {
    let change = AgentChange {
        name: body.name.map(Text::into_string),
        scopes: body.scopes.as_deref().map(scopes).transpose()?,
        webhook_url: match body.webhook_url {
            Edit::Leave => None,
            Edit::Set(url) => Some(url.map(Text::into_string)),
        },
        grant_types: body.grant_types.as_deref().map(grant_types).transpose()?,
        key_method: match body.token_endpoint_auth_method {
            Edit::Leave => None,
            Edit::Set(text) => Some(text.as_deref().map(key_method).transpose()?),
        },
    };
    Ok(Json(view(&identity.agents.update(&grant, change).await?)))
}

async fn delete_agent(
    grant: Granted<DeleteAgent>,
    State(identity): State<Identity>,
) -> Result<Json<Operation>, ApiError> {
    let agent = identity.agents.delete(&grant).await?;
    let details = json!({ "agent_id": agent.id, "agent_name": agent.name });
    Ok(Json(Operation::done("Agent deleted; its tokens and secrets are dead", Some(details))))
}

async fn set_agent_secret(
    grant: Granted<SetAgentSecret>,
    State(identity): State<Identity>,
    SecretBody(body): SecretBody,
) -> Result<Response, ApiError> {
    let new = NewSecret {
        supplied: body.password,
        overlap: Duration::from_secs(body.overlap_seconds.unwrap_or(0)),
        expires_at: body.expires_at,
    };
    let (agent, secret) = identity.agents.set_secret(&grant, new).await?;
    let answer = json!({
        "agent_id": agent.id, "agent_secret": secret.as_ref().map(Secret::expose),
        "message": if secret.is_some() { "Keep this secret: it is shown only now" } else { "The secret is set" },
    });
    Ok(no_store(Json(answer)))
}

#[derive(Debug, Deserialize)]
struct NewKeys {
    keys: Vec<Value>,
}

impl Screened for NewKeys {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn set_agent_keys(
    grant: Granted<SetAgentKeys>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<NewKeys>,
) -> Result<Json<AgentView>, ApiError> {
    Ok(Json(view(&identity.agents.set_keys(&grant, body.keys).await?)))
}

#[derive(Debug, Deserialize)]
struct NewNames {
    names: Vec<Text<CertificateName>>,
}

impl Screened for NewNames {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.names.iter().for_each(|name| look(Place::Id, name));
    }
}

async fn set_agent_certificates(
    grant: Granted<SetAgentCertificates>,
    State(identity): State<Identity>,
    JsonBody(body): JsonBody<NewNames>,
) -> Result<Json<AgentView>, ApiError> {
    Ok(Json(view(&identity.agents.set_certificate_names(&grant, &Text::into_strings(body.names)).await?)))
}
