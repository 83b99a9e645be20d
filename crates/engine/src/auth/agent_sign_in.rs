//! Agents sign in: by secret, signed assertion, certificate, or what their surroundings say of them.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::grant::GrantType;
use interlock_model::scope::{self, Scope};
use interlock_model::secret::Secret;
use interlock_model::{AgentId, Timestamp};
use interlock_store::identity::{self, Put};
use interlock_store::{Error, Tx};
use serde_json::{Value, json};

use super::assertion::{self, Assertion};
use super::clients::WORKLOAD;
use super::documents::{Agent, Used};
use super::opening::Opening;
use super::password::Place;
use super::sessions::Issued;
use super::throttle::Guesser;
use super::{Origin, SignInError, SignIns, Throttle};
use crate::security::{self, Event};

/// An agent that was silent for this long is dormant.
pub(super) const DORMANT: Duration = Duration::from_hours(24 * 30);

/// How an agent proves who it is, where it is not the certificate of its connection (RFC 8705 section 2.1).
#[derive(Debug)]
pub enum AgentProof {
    /// Its secret.
    Secret(Secret),
    /// A JWT signed with its private key (RFC 7523 section 2.2).
    Assertion(Secret),
}

impl SignIns {
    /// Proves who an agent is, without opening a session.
    ///
    /// # Errors
    /// [`SignInError`]; unknown, wrong, missing and disabled are alike in text and time.
    async fn prove(
        &self,
        agent_id: &str,
        proof: Option<AgentProof>,
        origin: &Origin,
    ) -> Result<Proved, SignInError> {
        let policy = self.sessions.clients();
        let id = agent_id.parse::<AgentId>().ok();
        let account = id.map_or_else(|| "invalid id".to_owned(), |id| id.to_string());
        let now = self.ambient.clock.now();
        let agent = id.and_then(|id| self.principals.agent(id));
        let guesser = Guesser::new(&account, agent.is_some(), origin.client_ip);
        let place = self.place()?;
        if let Err(wait) = self.throttle.admit(&guesser).await? {
            self.note_agent_failure(id, origin, "throttled", Event::AccountLocked);
            return Err(SignInError::Wait(wait));
        }
        let proved = match proof {
            Some(AgentProof::Assertion(text)) => {
                let (issuer, audience) = self.sessions.tokens().names();
                let keys = agent.as_ref().map_or(&[][..], |agent| &agent.keys);
                assertion::verify(text.expose(), &account, &[audience, issuer], keys, now)
                    .map(Means::Assertion)
            }
            None if let Some(shown) = &origin.certificate => {
                let registered = agent.as_ref().map_or(&[][..], |agent| &agent.certificate_names);
                shown.names_any(registered).then_some(Means::Certificate)
            }
            secret => {
                // No secret costs and answers like a wrong one.
                let guess = match secret {
                    Some(AgentProof::Secret(secret)) if !secret.expose().is_empty() => secret,
                    _ => Secret::new("none"),
                };
                self.matching_secret(&place, agent.as_deref(), guess, now).await?.map(Means::Secret)
            }
        };
        // A right secret of an agent that must show a key is no proof, and costs and looks like a wrong one.
        let proved =
            proved.filter(|means| agent.as_ref().is_some_and(|agent| policy.takes(agent, means.name())));
        let (Some(agent), Some(means)) = (agent.filter(|agent| !agent.disabled), proved) else {
            self.note_agent_failure(id, origin, "invalid_credentials", Event::AuthenticationFailed);
            return Err(SignInError::Refused);
        };
        Ok(Proved { agent, means, guesser })
    }

    /// Id of the live secret that the guess matches. As many hashes are computed for an unknown agent as for most known ones.
    async fn matching_secret(
        &self,
        place: &Place,
        agent: Option<&Agent>,
        guess: Secret,
        now: Timestamp,
    ) -> Result<Option<String>, SignInError> {
        let live: Vec<_> = agent.map(|agent| agent.live_secrets(now).cloned().collect()).unwrap_or_default();
        if live.is_empty() {
            self.verify(place, guess, None).await?;
            return Ok(None);
        }
        let mut found = None;
        for secret in live {
            if found.is_none() && self.verify(place, guess.clone(), Some(secret.hash)).await? {
                found = Some(secret.id);
            }
        }
        Ok(found)
    }

    /// Proves who an agent is and opens a session with its scopes, or with those asked for.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn agent(
        &self,
        agent_id: &str,
        proof: Option<AgentProof>,
        wanted: Option<&[Scope]>,
        with_refresh: bool,
        origin: &Origin,
    ) -> Result<Issued, SignInError> {
        let Proved { agent, means, guesser } = self.prove(agent_id, proof, origin).await?;
        let (grant, guesser) = (GrantType::ClientCredentials, Some(guesser));
        let arrival = AgentArrival { agent, means, grant, guesser, until: None, with_refresh };
        self.admit_agent(arrival, wanted, origin).await
    }

    /// Opens a session for an agent that has proved who it is.
    pub(super) async fn admit_agent(
        &self,
        arrival: AgentArrival,
        wanted: Option<&[Scope]>,
        origin: &Origin,
    ) -> Result<Issued, SignInError> {
        let AgentArrival { agent, means, grant, guesser, until, with_refresh } = arrival;
        if !agent.grant_types.contains(&grant) {
            // It has proved who it is: that was no guess.
            if let Some(guesser) = guesser {
                self.throttle.succeeded(guesser).await?;
            }
            self.note_agent_failure(Some(agent.id), origin, "grant_not_allowed", Event::AuthenticationFailed);
            return Err(SignInError::Grant);
        }
        let with_refresh = with_refresh && agent.grant_types.contains(&GrantType::RefreshToken);
        let scopes = match wanted {
            None => agent.scopes.clone(),
            Some(wanted) => {
                let held = scope::intersect(wanted, &agent.scopes);
                if wanted.iter().any(|scope| !held.contains(scope)) {
                    return Err(SignInError::Scope);
                }
                held
            }
        };
        let now = self.ambient.clock.now();
        let vouched_by = means.vouched_by();
        let opening = Opening::agent(&agent, scopes, means.name(), origin);
        let opening = Opening { with_refresh, until, vouched_by, ..opening };
        let id = agent.id;
        let taken = Arc::new(std::sync::Mutex::new(None));
        let out = Arc::clone(&taken);
        let opened = self
            .sessions
            .open(opening, move |tx, _| {
                Box::pin(async move {
                    if let Some(guesser) = &guesser {
                        Throttle::succeed(&mut *tx, guesser, now).await?;
                    }
                    let seen = note_seen(tx, id, &means, now).await?;
                    *out.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = seen;
                    Ok(())
                })
            })
            .await;
        let issued = match opened {
            Err(Error::Corrupt(reason)) if reason == REPLAYED => {
                self.note_agent_failure(Some(id), origin, "replayed_assertion", Event::AuthenticationFailed);
                return Err(SignInError::Refused);
            }
            other => other.inspect_err(|_| security::authentication("credentials", "error"))?,
        };
        let seen = taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some((agent, version)) = seen {
            self.principals.put_agent(agent, version);
        }
        security::authentication("credentials", "success");
        self.note_dormant(&agent, origin, now);
        Ok(issued)
    }

    /// Exchanges a refresh token of an agent that proves who it is with the same request.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn authenticate_client(
        &self,
        agent_id: &str,
        proof: Option<AgentProof>,
        origin: &Origin,
    ) -> Result<AgentId, SignInError> {
        let Proved { agent, means, guesser } = self.prove(agent_id, proof, origin).await?;
        self.throttle.succeeded(guesser).await?;
        if let Some(used) = means.used() {
            self.sessions.use_once(used).await?.then_some(()).ok_or(SignInError::Refused)?;
        }
        Ok(agent.id)
    }

    fn note_dormant(&self, agent: &Agent, origin: &Origin, now: Timestamp) {
        let last = agent.last_seen_at.unwrap_or(agent.created_at);
        if now.since(last) > DORMANT {
            let days = now.since(last).as_secs() / 86_400;
            let id = agent.id.to_string();
            security::event(
                Event::DormantAgentActive,
                Some(&id),
                Some(origin),
                json!({ "silent_days": days }),
            );
            let details = json!({ "silent_days": days });
            self.recorder.note(origin, Some(&id), "agent.dormant_active", Some(id.clone()), details);
        }
    }

    pub(super) fn note_agent_failure(
        &self,
        id: Option<AgentId>,
        origin: &Origin,
        reason: &'static str,
        event: Event,
    ) {
        security::authentication("credentials", "failed");
        let known = id.and_then(|id| self.principals.agent(id)).map(|agent| agent.id.to_string());
        let details = json!({ "reason": reason, "method": "credentials" });
        security::event(event, known.as_deref(), Some(origin), details);
        let details: Value = json!({ "result": "failed", "reason": reason });
        self.recorder.note(origin, known.as_deref(), "agent.authenticated", known.clone(), details);
    }
}

struct Proved {
    agent: Arc<Agent>,
    means: Means,
    guesser: Guesser,
}

/// An agent that has proved who it is.
pub(super) struct AgentArrival {
    pub(super) agent: Arc<Agent>,
    pub(super) means: Means,
    /// The way to a token that it uses.
    pub(super) grant: GrantType,
    /// The guess that this was, where it could have been one.
    pub(super) guesser: Option<Guesser>,
    /// Nothing lasts longer than this.
    pub(super) until: Option<Timestamp>,
    pub(super) with_refresh: bool,
}

/// How an agent has proved who it is.
pub(super) enum Means {
    /// Id of the secret.
    Secret(String),
    Assertion(Assertion),
    Certificate,
    /// Its surroundings say so; their token may count once.
    Workload {
        subject: String,
        once: Option<Used>,
    },
}

impl Means {
    /// As sessions and the audit trail call it.
    const fn name(&self) -> &'static str {
        match self {
            Self::Secret(_) => "secret",
            Self::Assertion(_) => "private_key_jwt",
            Self::Certificate => "tls_client_auth",
            Self::Workload { .. } => WORKLOAD,
        }
    }

    fn vouched_by(&self) -> Option<String> {
        match self {
            Self::Workload { subject, .. } => Some(subject.clone()),
            Self::Secret(_) | Self::Assertion(_) | Self::Certificate => None,
        }
    }

    /// What is spent by this.
    fn used(&self) -> Option<Used> {
        match self {
            Self::Assertion(assertion) => Some(assertion.used()),
            Self::Workload { once, .. } => once.clone(),
            Self::Secret(_) | Self::Certificate => None,
        }
    }
}

/// What the transaction says of an assertion that was used before.
const REPLAYED: &str = "the assertion was used before";

/// Notes that the agent was here, and with which secret; spends an assertion.
async fn note_seen(
    tx: &mut dyn Tx,
    id: AgentId,
    means: &Means,
    now: Timestamp,
) -> Result<Option<(Agent, i64)>, Error> {
    if let Some(used) = means.used()
        && identity::insert::<Used>(tx, &used).await? != Put::Done
    {
        return Err(Error::Corrupt(REPLAYED.to_owned()));
    }
    let Some(mut found) = identity::get::<Agent>(tx, &id.to_string()).await? else { return Ok(None) };
    // To the minute: busy agents need no write of their own for this.
    let recent = |at: Option<Timestamp>| at.is_some_and(|at| now.since(at) < Duration::from_mins(1));
    let used_lately = match means {
        Means::Secret(used) => {
            found.secrets.iter().any(|secret| secret.id == *used && recent(secret.last_used_at))
        }
        Means::Assertion(_) | Means::Certificate | Means::Workload { .. } => true,
    };
    if recent(found.last_seen_at) && used_lately {
        return Ok(None);
    }
    found.document.last_seen_at = Some(now);
    if let Means::Secret(used) = means {
        for secret in found.document.secrets.iter_mut().filter(|secret| secret.id == *used) {
            secret.last_used_at = Some(now);
        }
    }
    identity::update(tx, &found).await?;
    Ok(Some((found.document, found.version + 1)))
}
