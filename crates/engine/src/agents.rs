//! Agents: software that acts. Who there is, what each may do, its secrets.
//!
//! Whoever makes an agent cannot give it more than it holds itself. A deleted agent stays as a disabled record: what it did
//! keeps its actor.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::action::{
    CreateAgent, DeleteAgent, ListAgents, ReadAgent, RotateWebhookSecret, SetAgentCertificates, SetAgentKeys,
    SetAgentSecret, UpdateAgent,
};
use interlock_model::grant::{GrantType, KeyMethod};
use interlock_model::id::random_hex;
use interlock_model::policy::{self, PrincipalKind};
use interlock_model::scope::{self, Scope};
use interlock_model::secret::Secret;
use interlock_model::text::{AgentName, Form as _, WebhookUrl};
use interlock_model::{AgentId, Timestamp};
use interlock_store::Error;
use interlock_store::identity::{self, Put, Versioned};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::Ambient;
use crate::auth::documents::{Agent, AgentSecret, WaitingScopes, WebhookSecret};
use crate::auth::{
    AccessRules, BadKey, BadName, Caller, Db, MasterKey, PasswordRefused, Passwords, Permit, Principals,
    Proof, Recorded, SystemPermit, check_keys, check_names, new_agent_secret,
};
use crate::security::{self, Event};

/// Longest time that the secret before may go on working.
pub const MAX_OVERLAP: Duration = Duration::from_hours(24 * 7);

/// Why an agent was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The name cannot be used.
    #[error("the name must have 1 to 100 characters and no control characters")]
    Name,
    /// There is one already.
    #[error("there is an agent of this name already")]
    Exists,
    /// There is none, or the caller may not know.
    #[error("agent not found")]
    NoSuchAgent,
    /// The creator cannot grant this.
    #[error("you can grant only scopes that you hold yourself: {0}")]
    Grant(Scope),
    /// Agents cannot hold this.
    #[error("no agent can hold {0}: it stands for a person's judgement")]
    PeopleOnly(Scope),
    /// Software asks for what two people must give.
    #[error("{0} is given by two people, and not by software")]
    TwoPeople(Scope),
    /// The webhook address cannot be used.
    #[error("webhook_url must be an https URL of at most 500 characters")]
    Webhook,
    /// There is nothing to sign.
    #[error("the agent has no webhook_url")]
    NoWebhook,
    /// The first agent and oneself stay.
    #[error("{0}")]
    Protected(&'static str),
    /// The secret is not accepted.
    #[error(transparent)]
    Secret(#[from] PasswordRefused),
    /// The overlap is too long.
    #[error("overlap_seconds must be 0 to 604800")]
    Overlap,
    /// The secret would be dead at once.
    #[error("expires_at must be in the future")]
    Expiry,
    /// The keys are not accepted.
    #[error(transparent)]
    Keys(#[from] BadKey),
    /// A secret is no proof for this agent.
    #[error("this agent proves itself with a key; a secret would be worth nothing")]
    KeysOnly,
    /// The names are not accepted.
    #[error(transparent)]
    Names(#[from] BadName),
    /// Somebody else changed it meanwhile.
    #[error("the agent was changed at the same time; look and try again")]
    Conflict,
    /// Hashing is overloaded.
    #[error("too many secrets are being hashed; try again in a second")]
    Overloaded,
    /// The storage's.
    #[error("store the agent")]
    Store(#[from] Error),
}

/// What to change; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct AgentChange {
    /// The new name.
    pub name: Option<String>,
    /// The new scopes.
    pub scopes: Option<Vec<Scope>>,
    /// The new address; the inner `None` removes it.
    pub webhook_url: Option<Option<String>>,
    /// The new grant types.
    pub grant_types: Option<Vec<GrantType>>,
    /// The new way to prove itself; the inner `None` allows each that it has.
    pub key_method: Option<Option<KeyMethod>>,
}

/// An agent to be made.
#[derive(Debug, Clone, Default)]
pub struct NewAgent {
    /// Name for people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Where outcomes are told.
    pub webhook_url: Option<String>,
    /// How it may get tokens; `None`: in every way.
    pub grant_types: Option<Vec<GrantType>>,
    /// The only way in which it may prove who it is.
    pub key_method: Option<KeyMethod>,
}

/// A secret to be set.
#[derive(Debug, Default)]
pub struct NewSecret {
    /// The caller's own; else one is made.
    pub supplied: Option<Secret>,
    /// How long the one before goes on working; its tokens too.
    pub overlap: Duration,
    /// When the new one ends.
    pub expires_at: Option<Timestamp>,
}

/// Which agents to list.
#[derive(Debug, Clone, Default)]
pub struct AgentFilter {
    /// Part of the name, without case.
    pub name: Option<String>,
    /// A scope held.
    pub scope: Option<String>,
}

/// Manages agents.
#[derive(Debug, Clone)]
pub struct Agents {
    db: Db,
    ambient: Ambient,
    principals: Arc<Principals>,
    passwords: Passwords,
    master: Arc<MasterKey>,
    rules: AccessRules,
}

/// How long one person's word for a scope waits for another's.
const WAITING: Duration = Duration::from_hours(24);
/// What secrets of webhooks are sealed as.
pub(crate) const WEBHOOK: &str = "webhook";
/// Bytes of one.
const WEBHOOK_BYTES: usize = 32;
/// How long messages are signed with the secret before, too.
const WEBHOOK_OVERLAP: Duration = Duration::from_hours(24);

/// Whose secret it is, as it is bound to what is sealed.
pub(crate) fn webhook_place(agent: AgentId, secret: &str) -> String {
    format!("{agent} {secret}")
}

fn checked_name(name: &str) -> Result<String, AgentError> {
    if AgentName::RULE.holds(name) { Ok(name.to_owned()) } else { Err(AgentError::Name) }
}

fn checked_webhook(url: Option<String>) -> Result<Option<String>, AgentError> {
    let good = |url: &String| {
        let rest = url.strip_prefix("https://").unwrap_or("");
        let host = rest.split(['/', '?', '#']).next().unwrap_or("");
        WebhookUrl::RULE.holds(url) && !host.is_empty() && !host.contains('@')
    };
    match url {
        None => Ok(None),
        Some(url) if good(&url) => Ok(Some(url)),
        Some(_) => Err(AgentError::Webhook),
    }
}

/// The address as it may stand in the audit trail: path and query of a webhook's address are often its password.
fn webhook_shown(url: Option<&str>) -> Option<String> {
    let rest = url?.strip_prefix("https://").unwrap_or("");
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    Some(if rest == host { format!("https://{host}") } else { format!("https://{host}/…") })
}

fn is_within(scope: &str, whole: &str) -> bool {
    scope.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// Whether the caller may hand out all administration: an agent with `admin`, or a person with that role. `agents:manage` alone
/// is not enough: whoever holds only that would make an agent that holds more.
fn administers(caller: &Caller) -> bool {
    let grants = caller.grants();
    grants.roles().iter().any(|role| role == policy::ADMIN)
        || grants.scopes().iter().any(|scope| scope.as_str() == scope::ADMIN)
}

/// Refuses to touch an agent that may do more than the caller may hand out: setting its secret would be a way to be it.
fn checked_reach(caller: &Caller, agent: &Agent) -> Result<(), AgentError> {
    if administers(caller) {
        return Ok(());
    }
    let beyond = agent.scopes.iter().find(|scope| !caller.grants().holds_scope(scope.as_str()));
    beyond.map_or(Ok(()), |scope| Err(AgentError::Grant(scope.clone())))
}

/// Tells people that an agent has got `admin`: whoever has its secret administers everything.
fn warn_of_admin(caller: &Caller, agent: &Agent, before: &[Scope]) {
    let is_admin = |scopes: &[Scope]| scopes.iter().any(|scope| scope.as_str() == scope::ADMIN);
    if is_admin(&agent.scopes) && !is_admin(before) {
        let details = json!({ "agent": agent.id, "name": agent.name });
        security::event(Event::AdminScopeGranted, Some(caller.name()), Some(caller.origin()), details);
    }
}

/// Whether whoever holds it looks after others.
fn is_administrative(scope: &Scope) -> bool {
    policy::ADMINISTRATION.iter().any(|administration| scope.covers(administration))
}

/// Gives an agent these scopes: of those that administer, what it has, and what somebody else has asked for within [`WAITING`];
/// the rest waits for a second person who asks for it. `counts` says whose word still does.
fn by_two(agent: &mut Agent, wanted: Vec<Scope>, by: &str, now: Timestamp, counts: impl Fn(&str) -> bool) {
    let first = agent
        .waiting
        .take()
        .filter(|waiting| waiting.by != by && now.since(waiting.at) < WAITING && counts(&waiting.by));
    let is_given = |scope: &Scope| {
        !is_administrative(scope)
            || agent.scopes.contains(scope)
            || first.as_ref().is_some_and(|first| first.scopes.contains(scope))
    };
    let (given, scopes): (Vec<Scope>, Vec<Scope>) = wanted.into_iter().partition(is_given);
    agent.scopes = given;
    agent.waiting = (!scopes.is_empty()).then(|| WaitingScopes { scopes, by: by.to_owned(), at: now });
}

/// Refuses scopes that the granter does not hold, or that no agent can.
fn checked_scopes(caller: &Caller, wanted: &[Scope]) -> Result<(), AgentError> {
    let is_for_people =
        |scope: &&Scope| scope::PEOPLE_ONLY.iter().any(|only| is_within(scope.as_str(), only));
    if let Some(scope) = wanted.iter().find(is_for_people) {
        return Err(AgentError::PeopleOnly(scope.clone()));
    }
    let grants = caller.grants();
    let held = |scope: &&Scope| {
        let text = scope.as_str();
        // Scopes of tools, events and tasks are administration; motion is not.
        let motion = scope::BEYOND_ADMIN.iter().any(|beyond| is_within(text, beyond))
            || "devices:execute".starts_with(text.trim_end_matches('*'));
        if motion {
            grants.scopes().iter().any(|own| own.covers(text))
        } else {
            administers(caller) || text != scope::ADMIN && text != scope::SYSTEM && grants.holds_scope(text)
        }
    };
    match wanted.iter().find(|scope| !held(scope)) {
        Some(scope) => Err(AgentError::Grant(scope.clone())),
        None => Ok(()),
    }
}

impl Agents {
    /// Wires the parts.
    pub fn new(
        db: Db,
        ambient: Ambient,
        principals: Arc<Principals>,
        passwords: Passwords,
        master: Arc<MasterKey>,
        rules: AccessRules,
    ) -> Self {
        Self { db, ambient, principals, passwords, master, rules }
    }

    /// Agents that are not deleted, newest first.
    pub fn list(
        &self,
        _permit: &Permit<ListAgents>,
        filter: &AgentFilter,
        limit: usize,
        offset: usize,
    ) -> Vec<Arc<Agent>> {
        let name = filter.name.as_ref().map(|name| name.to_lowercase());
        let fits = |agent: &Arc<Agent>| {
            !agent.disabled
                && name.as_ref().is_none_or(|name| agent.name.to_lowercase().contains(name))
                && filter
                    .scope
                    .as_ref()
                    .is_none_or(|scope| agent.scopes.iter().any(|held| held.as_str() == scope))
        };
        let mut agents: Vec<Arc<Agent>> = self.principals.agents().into_iter().filter(fits).collect();
        agents.sort_by_key(|agent| std::cmp::Reverse((agent.created_at, agent.id)));
        agents.into_iter().skip(offset).take(limit).collect()
    }

    /// One agent: any for administrators, itself for an agent.
    ///
    /// # Errors
    /// [`AgentError::NoSuchAgent`], also for one that the caller may not see.
    pub fn get(&self, permit: &Permit<ReadAgent>) -> Result<Arc<Agent>, AgentError> {
        let (caller, id) = (permit.caller(), permit.target().agent_id);
        let visible = caller.grants().holds_scope("agents:read") || caller.name() == id.to_string();
        let agent = self.principals.agent(id).filter(|agent| visible && !agent.disabled);
        agent.ok_or(AgentError::NoSuchAgent)
    }

    /// Makes an agent. It cannot sign in before it has a secret or a key.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create(&self, permit: &Permit<CreateAgent>, new: NewAgent) -> Result<Agent, AgentError> {
        let NewAgent { name, mut scopes, webhook_url, grant_types, key_method } = new;
        self.checked_grant(permit.caller(), &scopes)?;
        let now = self.ambient.clock.now();
        let mut waiting = None;
        if self.rules.two_people {
            let later: Vec<Scope> = scopes.extract_if(.., |scope| is_administrative(scope)).collect();
            let by = permit.caller().name().to_owned();
            waiting = (!later.is_empty()).then_some(WaitingScopes { scopes: later, by, at: now });
        }
        let agent = Agent {
            id: AgentId::new(now, &*self.ambient.entropy),
            name: checked_name(&name)?,
            scopes,
            webhook_url: checked_webhook(webhook_url)?,
            webhook_secrets: Vec::new(),
            disabled: false,
            secrets: Vec::new(),
            keys: Vec::new(),
            certificate_names: Vec::new(),
            grant_types: grant_types.unwrap_or_else(|| GrantType::ALL.to_vec()),
            key_method,
            waiting,
            tokens_valid_from: now,
            created_at: now,
            created_by: permit.caller().name().to_owned(),
            updated_at: now,
            last_seen_at: None,
        };
        let agent = self.insert(permit, agent).await?;
        warn_of_admin(permit.caller(), &agent, &[]);
        Ok(agent)
    }

    /// As [`checked_scopes`]. Where two people give what administers, software gives none of it.
    fn checked_grant(&self, caller: &Caller, new: &[Scope]) -> Result<(), AgentError> {
        let by_software = self.rules.two_people && caller.kind() != PrincipalKind::User;
        match new.iter().find(|scope| by_software && is_administrative(scope)) {
            Some(scope) => Err(AgentError::TwoPeople(scope.clone())),
            None => checked_scopes(caller, new),
        }
    }

    async fn insert<P: Proof + ?Sized>(&self, proof: &P, agent: Agent) -> Result<Agent, AgentError> {
        let row = agent.clone();
        self.db
            .write_about(proof, Some(agent.id.to_string()), move |tx| {
                Box::pin(async move {
                    if identity::insert(tx, &row).await? != Put::Done {
                        return Err(AgentError::Exists);
                    }
                    if row.webhook_url.is_some() {
                        tx.orchestrator().set_told(&row.id.to_string(), true).await?;
                    }
                    let mut details = json!({ "name": row.name, "scopes": row.scopes });
                    if row.grant_types != GrantType::ALL {
                        details["grant_types"] = json!(row.grant_types);
                    }
                    if let Some(waiting) = &row.waiting {
                        details["waiting_scopes"] = json!(waiting.scopes);
                    }
                    if let Some(method) = row.key_method {
                        details["token_endpoint_auth_method"] = json!(method);
                    }
                    Ok(Recorded { value: (), details })
                })
            })
            .await?;
        self.principals.put_agent(agent.clone(), 1);
        Ok(agent)
    }

    /// Changes what is known of an agent. What scopes and grants it loses, its tokens lose at once; with another way to prove
    /// itself every earlier secret, token and API key is dead.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn update(
        &self,
        permit: &Permit<UpdateAgent>,
        change: AgentChange,
    ) -> Result<Agent, AgentError> {
        let name = change.name.as_deref().map(checked_name).transpose()?;
        let webhook = change.webhook_url.map(checked_webhook).transpose()?;
        let known = self.principals.agent(permit.target().agent_id).ok_or(AgentError::NoSuchAgent)?;
        if let Some(scopes) = &change.scopes {
            let new: Vec<Scope> =
                scopes.iter().filter(|scope| !known.scopes.contains(scope)).cloned().collect();
            self.checked_grant(permit.caller(), &new)?;
        }
        checked_reach(permit.caller(), &known)?;
        let AgentChange { scopes, grant_types, key_method, .. } = change;
        let (two_people, principals) = (self.rules.two_people, Arc::clone(&self.principals));
        let by = permit.caller().name().to_owned();
        let now = self.ambient.clock.now();
        let changed = self
            .change(permit, permit.target().agent_id, move |agent| {
                let old = told(agent);
                let mut fields = Vec::new();
                if let Some(name) = name {
                    agent.name = name;
                    fields.push("name");
                }
                if let Some(scopes) = scopes {
                    if two_people {
                        by_two(agent, scopes, &by, now, |name| {
                            principals.user(name).is_some_and(|user| !user.disabled)
                        });
                    } else {
                        agent.scopes = scopes;
                        agent.waiting = None;
                    }
                    fields.push("scopes");
                }
                if let Some(webhook) = webhook {
                    agent.webhook_url = webhook;
                    fields.push("webhook_url");
                }
                if let Some(grants) = grant_types {
                    agent.grant_types = grants;
                    fields.push("grant_types");
                }
                if let Some(method) = key_method {
                    if method != agent.key_method {
                        agent.secrets.clear();
                        agent.tokens_valid_from = later(agent.tokens_valid_from, now);
                    }
                    agent.key_method = method;
                    fields.push("token_endpoint_auth_method");
                }
                json!({ "updated_fields": fields, "old_data": old, "new_data": told(agent) })
            })
            .await?;
        if changed.tokens_valid_from != known.tokens_valid_from {
            tokens_died(&changed, "credentials");
        }
        warn_of_admin(permit.caller(), &changed, &known.scopes);
        Ok(changed)
    }

    /// Disables an agent for good: its tokens, secrets and keys are dead, its name is free, its record stays.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn delete(&self, permit: &Permit<DeleteAgent>) -> Result<Agent, AgentError> {
        let id = permit.target().agent_id;
        if id == AgentId::SYSTEM {
            return Err(AgentError::Protected("The first agent cannot be deleted"));
        }
        if permit.caller().name() == id.to_string() {
            return Err(AgentError::Protected("An agent cannot delete itself"));
        }
        self.checked_target(permit.caller(), id)?;
        let now = self.ambient.clock.now();
        let agent = self
            .change(permit, id, move |agent| {
                agent.disabled = true;
                agent.secrets.clear();
                agent.keys.clear();
                agent.tokens_valid_from = later(agent.tokens_valid_from, now);
                json!({ "deleted_agent_name": agent.name })
            })
            .await?;
        tokens_died(&agent, "agent_disabled");
        Ok(agent)
    }

    /// Sets a new secret and returns it if it was made here: it is shown only now. Without an overlap every earlier secret and
    /// token is dead.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_secret(
        &self,
        permit: &Permit<SetAgentSecret>,
        new: NewSecret,
    ) -> Result<(Agent, Option<Secret>), AgentError> {
        self.checked_target(permit.caller(), permit.target().agent_id)?;
        let known = self.principals.agent(permit.target().agent_id);
        if known.is_some_and(|agent| !self.rules.clients.takes_secrets_of(&agent)) {
            return Err(AgentError::KeysOnly);
        }
        self.replace_secret(permit, permit.target().agent_id, permit.caller().name(), new).await
    }

    fn checked_target(&self, caller: &Caller, id: AgentId) -> Result<(), AgentError> {
        let agent = self.principals.agent(id).filter(|agent| !agent.disabled);
        checked_reach(caller, &*agent.ok_or(AgentError::NoSuchAgent)?)
    }

    async fn replace_secret<P: Proof + ?Sized>(
        &self,
        proof: &P,
        id: AgentId,
        by: &str,
        new: NewSecret,
    ) -> Result<(Agent, Option<Secret>), AgentError> {
        let NewSecret { supplied, overlap, expires_at } = new;
        if overlap > MAX_OVERLAP {
            return Err(AgentError::Overlap);
        }
        if expires_at.is_some_and(|end| end <= self.ambient.clock.now()) {
            return Err(AgentError::Expiry);
        }
        let made = supplied.is_none().then(|| new_agent_secret(&*self.ambient.entropy));
        if let Some(supplied) = &supplied {
            self.passwords.accept_secret(supplied)?;
        }
        let Some(text) = supplied.or_else(|| made.clone()) else { return Err(AgentError::Overloaded) };
        let hash = self.passwords.hash_secret(text).await.map_err(|_| AgentError::Overloaded)?;
        let now = self.ambient.clock.now();
        let secret = AgentSecret {
            id: random_hex(&*self.ambient.entropy, 4),
            hash,
            created_at: now,
            expires_at,
            last_used_at: None,
        };
        let by = by.to_owned();
        let agent = self
            .change(proof, id, move |agent| {
                let end = now.plus(overlap);
                let mut kept: Vec<AgentSecret> = agent.live_secrets(now).cloned().collect();
                // Two at most: the newest of those before, until the overlap is over.
                kept.sort_by_key(|old| old.created_at);
                let before = kept.pop().filter(|_| !overlap.is_zero());
                agent.secrets = before
                    .map(|old| AgentSecret {
                        expires_at: Some(old.expires_at.map_or(end, |own| own.min(end))),
                        ..old
                    })
                    .into_iter()
                    .collect();
                agent.secrets.push(secret);
                if overlap.is_zero() {
                    agent.tokens_valid_from = later(agent.tokens_valid_from, now);
                }
                json!({ "created_by": by, "overlap_seconds": overlap.as_secs(), "expires_at": expires_at })
            })
            .await?;
        if overlap.is_zero() {
            tokens_died(&agent, "credentials");
        }
        Ok((agent, made))
    }

    /// Registers the agent's public keys in place of the ones before.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_keys(
        &self,
        permit: &Permit<SetAgentKeys>,
        keys: Vec<Value>,
    ) -> Result<Agent, AgentError> {
        let keys = check_keys(&keys)?;
        self.checked_target(permit.caller(), permit.target().agent_id)?;
        self.change(permit, permit.target().agent_id, move |agent| {
            let details = json!({ "keys": keys.len(), "public_keys": keys });
            agent.keys = keys;
            details
        })
        .await
    }

    /// Registers whom the agent's certificates name, in place of the names before.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_certificate_names(
        &self,
        permit: &Permit<SetAgentCertificates>,
        names: &[String],
    ) -> Result<Agent, AgentError> {
        let names = check_names(names)?;
        self.checked_target(permit.caller(), permit.target().agent_id)?;
        self.change(permit, permit.target().agent_id, move |agent| {
            let details = json!({ "certificate_names": names });
            agent.certificate_names = names;
            details
        })
        .await
    }

    /// Makes a new secret for the messages to the agent's webhook and returns it, as Standard Webhooks writes it: it is shown
    /// only now. Messages are signed with the one before, too, for 24 h.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn rotate_webhook_secret(
        &self,
        permit: &Permit<RotateWebhookSecret>,
    ) -> Result<(Agent, Secret), AgentError> {
        let id = permit.target().agent_id;
        self.checked_target(permit.caller(), id)?;
        if self.principals.agent(id).is_none_or(|agent| agent.webhook_url.is_none()) {
            return Err(AgentError::NoWebhook);
        }
        let now = self.ambient.clock.now();
        let mut bytes = Zeroizing::new([0; WEBHOOK_BYTES]);
        self.ambient.entropy.fill(&mut *bytes);
        let name = random_hex(&*self.ambient.entropy, 4);
        let sealed = self.master.seal(WEBHOOK, &webhook_place(id, &name), &*bytes);
        let sealed = sealed.map_err(|error| Error::Corrupt(error.to_string()))?;
        let made = WebhookSecret { id: name, sealed, created_at: now, expires_at: None };
        let agent = self
            .change_sealed(permit, id, true, move |agent| {
                let end = now.plus(WEBHOOK_OVERLAP);
                let before = agent.webhook_secrets.drain(..).find(|old| old.expires_at.is_none());
                let before = before.map(|old| WebhookSecret { expires_at: Some(end), ..old });
                let details = json!({ "secret": made.id });
                agent.webhook_secrets = std::iter::once(made).chain(before).collect();
                details
            })
            .await?;
        Ok((agent, webhook_secret(&*bytes)))
    }

    /// Where outcomes of an agent's runs are told, and what that is signed with now. `None`: nowhere.
    ///
    /// # Errors
    /// The storage's, for a secret that does not open.
    pub(crate) fn webhook(&self, id: AgentId) -> Result<Option<(String, Vec<Secret>)>, Error> {
        let Some(agent) = self.principals.agent(id).filter(|agent| !agent.disabled) else { return Ok(None) };
        let Some(url) = agent.webhook_url.clone() else { return Ok(None) };
        let now = self.ambient.clock.now();
        let live =
            agent.webhook_secrets.iter().filter(|secret| secret.expires_at.is_none_or(|end| end > now));
        let open = |secret: &WebhookSecret| {
            let opened = self.master.open(WEBHOOK, &webhook_place(id, &secret.id), &secret.sealed);
            opened.map(|bytes| webhook_secret(&bytes)).map_err(|error| Error::Corrupt(error.to_string()))
        };
        Ok(Some((url, live.map(open).collect::<Result<_, _>>()?)))
    }

    async fn change<P, F>(&self, proof: &P, id: AgentId, edit: F) -> Result<Agent, AgentError>
    where
        P: Proof + ?Sized,
        F: FnOnce(&mut Agent) -> Value + Send + 'static,
    {
        self.change_sealed(proof, id, false, edit).await
    }

    /// `seals` says that the change stores a secret that was sealed just now.
    async fn change_sealed<P, F>(
        &self,
        proof: &P,
        id: AgentId,
        seals: bool,
        edit: F,
    ) -> Result<Agent, AgentError>
    where
        P: Proof + ?Sized,
        F: FnOnce(&mut Agent) -> Value + Send + 'static,
    {
        let (now, master) = (self.ambient.clock.now(), Arc::clone(&self.master));
        let changed: Versioned<Agent> = self
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let found = identity::get::<Agent>(tx, &id.to_string()).await?;
                    let mut found = found.filter(|agent| !agent.disabled).ok_or(AgentError::NoSuchAgent)?;
                    if seals && !master.seals(&mut *tx).await? {
                        let why = "the master key is being exchanged, or is not that of the other servers";
                        return Err(Error::Corrupt(why.to_owned()).into());
                    }
                    let address = found.webhook_url.clone();
                    let details = edit(&mut found.document);
                    found.document.updated_at = now;
                    if found.webhook_url != address || found.disabled {
                        let told = found.webhook_url.is_some() && !found.disabled;
                        tx.orchestrator().set_told(&id.to_string(), told).await?;
                    }
                    match identity::update(tx, &found).await? {
                        Put::Done => {}
                        Put::Taken => return Err(AgentError::Exists),
                        Put::Stale => return Err(AgentError::Conflict),
                    }
                    if found.document.disabled {
                        // What it wanted done is not wanted any more; what was done stays on record.
                        let reason = "the agent was deleted";
                        tx.orchestrator().cancel_tasks_of(&id.to_string(), reason, now).await?;
                    }
                    found.version += 1;
                    Ok::<_, AgentError>(Recorded { value: found, details })
                })
            })
            .await?;
        self.principals.put_agent(changed.document.clone(), changed.version);
        Ok(changed.document)
    }

    /// Makes the first agent if it is not there, and sets its secret if one is configured and it has none.
    ///
    /// # Errors
    /// [`AgentError`]; a weak configured secret for example.
    pub async fn ensure_first(
        &self,
        permit: &SystemPermit,
        secret: Option<&Secret>,
    ) -> Result<(), AgentError> {
        let now = self.ambient.clock.now();
        let id = AgentId::SYSTEM;
        if self.principals.agent(id).is_none() {
            let scopes = [scope::ADMIN, scope::SYSTEM].iter().filter_map(|text| text.parse().ok()).collect();
            let agent = Agent {
                id,
                name: "system".to_owned(),
                scopes,
                webhook_url: None,
                webhook_secrets: Vec::new(),
                disabled: false,
                secrets: Vec::new(),
                keys: Vec::new(),
                certificate_names: Vec::new(),
                grant_types: GrantType::ALL.to_vec(),
                key_method: None,
                waiting: None,
                tokens_valid_from: now,
                created_at: now,
                created_by: "system".to_owned(),
                updated_at: now,
                last_seen_at: None,
            };
            let proof = permit.acting("agent.created", Some(id.to_string()));
            match self.insert(&proof, agent).await {
                // Another server was faster.
                Ok(_) | Err(AgentError::Exists) => self.principals.catch_up().await?,
                Err(error) => return Err(error),
            }
        }
        let bare = self.principals.agent(id).is_some_and(|agent| agent.secrets.is_empty());
        if let Some(secret) = secret.filter(|_| bare) {
            let proof = permit.acting("agent.credentials_created", Some(id.to_string()));
            let new = NewSecret { supplied: Some(secret.clone()), ..NewSecret::default() };
            self.replace_secret(&proof, id, "system", new).await?;
        }
        Ok(())
    }
}

/// What the audit trail says of an agent before and after a change.
fn told(agent: &Agent) -> Value {
    json!({
        "name": agent.name, "scopes": agent.scopes, "webhook_url": webhook_shown(agent.webhook_url.as_deref()),
        "grant_types": agent.grant_types, "token_endpoint_auth_method": agent.key_method,
        "waiting_scopes": agent.waiting.as_ref().map(|waiting| &waiting.scopes),
    })
}

/// A secret as Standard Webhooks writes it.
fn webhook_secret(bytes: &[u8]) -> Secret {
    Secret::new(format!("whsec_{}", STANDARD.encode(bytes)))
}

/// Differs from the value before even when two changes share a microsecond or the clock went back.
fn later(before: Timestamp, now: Timestamp) -> Timestamp {
    now.max(Timestamp::from_micros(before.micros() + 1))
}

fn tokens_died(agent: &Agent, reason: &'static str) {
    metrics::counter!("orchestrator_jwt_tokens_revoked_total", "reason" => reason).increment(1);
    let details = json!({ "reason": reason, "tokens": "all" });
    security::event(Event::TokenRevoked, Some(&agent.id.to_string()), None, details);
}
