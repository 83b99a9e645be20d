//! Agents, keys, sessions, roles, revocation.

use interlock_model::grant::{GrantType, KeyMethod};
use interlock_model::wire::{
    AgentView, ApiKeyView, DeliveryView, Operation, PageAnswer, RoleView, SessionView,
};
use interlock_model::{AgentId, Timestamp};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::{Client, ClientError};

/// Agents that one request lists at most.
const PAGE: usize = 200;

/// An agent to be made.
#[derive(Debug, Serialize)]
pub struct NewAgent<'a> {
    /// Name for people.
    pub name: &'a str,
    /// What it may do.
    pub scopes: &'a [String],
    /// Where outcomes are told.
    pub webhook_url: Option<&'a str>,
    /// How it may get tokens; `None`: in every way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_types: Option<&'a [GrantType]>,
    /// The only way in which it may prove who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_endpoint_auth_method: Option<KeyMethod>,
}

/// A change of an agent; `None` leaves it.
#[derive(Debug, Default, Serialize)]
pub struct AgentEdit {
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The new scopes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// The new address; the inner `None` removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<Option<String>>,
    /// The new grant types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_types: Option<Vec<GrantType>>,
    /// The new way to prove itself; the inner `None` allows each that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_endpoint_auth_method: Option<Option<KeyMethod>>,
}

/// A secret to be made for an agent.
#[derive(Debug, Default, Serialize)]
pub struct NewAgentSecret {
    /// How long the one before goes on working, in seconds.
    pub overlap_seconds: u64,
    /// When the new one ends.
    pub expires_at: Option<Timestamp>,
}

/// A secret that was made. It is shown only now.
#[derive(Debug, Serialize, Deserialize)]
pub struct AgentSecretAnswer {
    /// Whose it is.
    pub agent_id: AgentId,
    /// The secret; absent when the caller supplied it.
    pub agent_secret: Option<String>,
}

/// A secret of a webhook that was made. It is shown only now.
#[derive(Debug, Serialize, Deserialize)]
pub struct WebhookSecretAnswer {
    /// Whose it is.
    pub agent_id: AgentId,
    /// `whsec_` and 32 bytes in base64.
    pub webhook_secret: String,
}

/// An API key to be made.
#[derive(Debug, Serialize)]
pub struct NewApiKey<'a> {
    /// Name for people.
    pub name: &'a str,
    /// What it may do.
    pub scopes: &'a [String],
    /// How long it lives, in days.
    pub expires_in_days: u64,
    /// For this agent instead of the caller.
    pub agent_id: Option<AgentId>,
}

/// An API key that was made, with its text, which is shown only now.
#[derive(Debug, Serialize, Deserialize)]
pub struct ApiKeyAnswer {
    /// What it is.
    #[serde(flatten)]
    pub view: ApiKeyView,
    /// The text.
    pub key: String,
}

/// Why somebody may or may not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The decision.
    pub allowed: bool,
    /// What was asked for.
    pub needs: String,
    /// The scope or role that decided.
    pub by: Option<String>,
    /// A sentence.
    pub because: String,
}

/// What to ask about.
#[derive(Debug, Clone, Copy)]
pub enum Question<'a> {
    /// A scope.
    Scope(&'a str),
    /// An action of the server's device.
    Action(&'a str),
}

/// What to revoke.
#[derive(Debug, Clone, Copy)]
pub enum Revoke<'a> {
    /// One token, by its id.
    Jti(&'a str),
    /// A session.
    Session(&'a str),
    /// Everything of a person or an agent.
    Principal(&'a str),
    /// Everything issued before a time.
    Before(Timestamp),
}

impl Client {
    /// Every agent that is not deleted, newest first.
    pub async fn agents(&self) -> Result<Vec<AgentView>, ClientError> {
        let mut all = Vec::new();
        loop {
            let query = [("limit", PAGE.to_string()), ("offset", all.len().to_string())];
            let part: Vec<AgentView> = self.get(&["agents"], &query).await?;
            let last = part.len() < PAGE;
            all.extend(part);
            if last {
                return Ok(all);
            }
        }
    }

    /// One agent.
    pub async fn agent(&self, id: AgentId) -> Result<AgentView, ClientError> {
        self.get(&["agents", &id.to_string()], &[]).await
    }

    /// Makes an agent.
    pub async fn create_agent(&self, agent: &NewAgent<'_>) -> Result<AgentView, ClientError> {
        self.change(Method::POST, &["agents"], &[], Some(&json!(agent))).await
    }

    /// Changes an agent.
    pub async fn update_agent(&self, id: AgentId, edit: &AgentEdit) -> Result<AgentView, ClientError> {
        self.change(Method::PUT, &["agents", &id.to_string()], &[], Some(&json!(edit))).await
    }

    /// Disables an agent for good.
    pub async fn delete_agent(&self, id: AgentId) -> Result<Operation, ClientError> {
        self.change(Method::DELETE, &["agents", &id.to_string()], &[], None).await
    }

    /// Makes a new secret for an agent.
    pub async fn set_agent_secret(
        &self,
        id: AgentId,
        new: &NewAgentSecret,
    ) -> Result<AgentSecretAnswer, ClientError> {
        self.change(Method::POST, &["agents", &id.to_string(), "credentials"], &[], Some(&json!(new))).await
    }

    /// Makes a new secret that messages to an agent's webhook are signed with.
    pub async fn rotate_webhook_secret(&self, id: AgentId) -> Result<WebhookSecretAnswer, ClientError> {
        self.change(Method::POST, &["agents", &id.to_string(), "webhook", "secret"], &[], None).await
    }

    /// How telling an agent outcomes went, newest first, at most 200.
    pub async fn deliveries(
        &self,
        id: AgentId,
        state: Option<&str>,
    ) -> Result<PageAnswer<DeliveryView>, ClientError> {
        let mut query = vec![("limit", PAGE.to_string())];
        query.extend(state.map(|state| ("state", state.to_owned())));
        self.get(&["agents", &id.to_string(), "webhook", "deliveries"], &query).await
    }

    /// Has an outcome told to an agent once more.
    pub async fn retry_delivery(&self, id: AgentId, run: &str) -> Result<Operation, ClientError> {
        let path = ["agents", &id.to_string(), "webhook", "deliveries", run, "retry"];
        self.change(Method::POST, &path, &[], None).await
    }

    /// Registers whom an agent's client certificates name.
    pub async fn set_agent_certificates(
        &self,
        id: AgentId,
        names: &[String],
    ) -> Result<AgentView, ClientError> {
        let body = json!({ "names": names });
        self.change(Method::PUT, &["agents", &id.to_string(), "certificates"], &[], Some(&body)).await
    }

    /// The caller's API keys, or everybody's for those who manage them; ended ones too.
    pub async fn api_keys(&self) -> Result<Vec<ApiKeyView>, ClientError> {
        self.get(&["auth", "keys"], &[]).await
    }

    /// Makes an API key.
    pub async fn create_api_key(&self, key: &NewApiKey<'_>) -> Result<ApiKeyAnswer, ClientError> {
        self.change(Method::POST, &["auth", "keys"], &[], Some(&json!(key))).await
    }

    /// Ends an API key.
    pub async fn revoke_api_key(&self, id: &str) -> Result<Operation, ClientError> {
        self.change(Method::DELETE, &["auth", "keys", id], &[], None).await
    }

    /// The caller's sessions, or everybody's for those who manage them, newest first.
    pub async fn sessions(&self, all: bool) -> Result<Vec<SessionView>, ClientError> {
        self.get(&["auth", "sessions"], &[("all", all.to_string())]).await
    }

    /// Ends a session.
    pub async fn end_session(&self, id: &str) -> Result<Operation, ClientError> {
        self.change(Method::DELETE, &["auth", "sessions", id], &[], None).await
    }

    /// Ends all sessions of the caller, or all but the present one.
    pub async fn end_sessions(&self, keep_current: bool) -> Result<Operation, ClientError> {
        let query = [("keep_current", keep_current.to_string())];
        self.change(Method::DELETE, &["auth", "sessions"], &query, None).await
    }

    /// Every role, built in or not, by name.
    pub async fn roles(&self) -> Result<BTreeMap<String, RoleView>, ClientError> {
        self.get(&["roles"], &[]).await
    }

    /// Makes or changes a custom role.
    pub async fn put_role(
        &self,
        name: &str,
        description: &str,
        scopes: &[String],
    ) -> Result<RoleView, ClientError> {
        let body = json!({ "description": description, "scopes": scopes });
        self.change(Method::PUT, &["roles", name], &[], Some(&body)).await
    }

    /// Deletes a custom role.
    pub async fn delete_role(&self, name: &str) -> Result<Operation, ClientError> {
        self.change(Method::DELETE, &["roles", name], &[], None).await
    }

    /// Why a person or an agent may or may not do something.
    pub async fn test_policy(
        &self,
        principal: &str,
        question: Question<'_>,
    ) -> Result<Explanation, ClientError> {
        let body = match question {
            Question::Scope(scope) => json!({ "principal": principal, "scope": scope }),
            Question::Action(action) => json!({ "principal": principal, "action": action }),
        };
        self.post(&["policy", "test"], &body).await
    }

    /// Revokes tokens by what they have in common.
    pub async fn revoke_tokens(&self, what: Revoke<'_>) -> Result<Operation, ClientError> {
        let body = match what {
            Revoke::Jti(jti) => json!({ "jti": jti }),
            Revoke::Session(id) => json!({ "session": id }),
            Revoke::Principal(name) => json!({ "principal": name }),
            Revoke::Before(time) => json!({ "issued_before": time }),
        };
        self.post(&["tokens", "revoke"], &body).await
    }

    async fn change<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        self.signed_in()?;
        let mut request = self.request(method, segments, query).timeout(self.answer_timeout());
        if let Some(body) = body {
            request = request.json(body);
        }
        crate::answer::value(self.url(), self.send(request).await?).await
    }
}
