//! Programs that bring a token of the cloud or the build service they run in (RFC 7523 section 2.1, RFC 8693).
//!
//! Somebody whom we trust says who the program is, and a setting says which agent that is. The agent exists here like any
//! other: disabled, deleted or with fewer scopes, the token gives no more than the agent has. There is no refresh token, and
//! nothing outlives the token that was brought.

use async_trait::async_trait;
use interlock_model::Timestamp;
use interlock_model::grant::GrantType;
use interlock_model::scope::Scope;
use interlock_model::secret::Secret;
use sha2::{Digest as _, Sha256};

use super::agent_sign_in::{AgentArrival, Means};
use super::documents::Used;
use super::elsewhere::Elsewhere;
use super::sessions::Issued;
use super::{Origin, SignInError, SignIns};
use crate::security::{self, Event};

/// A program, as its surroundings say.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Id of the agent that it is here.
    pub agent: String,
    /// What its surroundings call it, for the audit trail.
    pub subject: String,
    /// Where its token counts once: what makes the token this one.
    pub once: Option<String>,
    /// End of its token.
    pub until: Timestamp,
}

/// Reads the tokens of programs.
#[async_trait]
pub trait WorkloadDirectory: Send + Sync {
    /// Which agent a token stands for. Ends within its own time limit.
    async fn identify(&self, token: &Secret) -> Result<Workload, Elsewhere>;
}

impl SignIns {
    /// Whether programs can bring tokens of their surroundings.
    pub fn takes_workloads(&self) -> bool {
        self.arrivals().workloads().is_some()
    }

    /// Opens a session for the agent that a program's token stands for, with its scopes or with those asked for.
    ///
    /// # Errors
    /// [`SignInError::Refused`] for every token that does not stand for an agent that may act here.
    pub async fn workload(
        &self,
        token: &Secret,
        grant: GrantType,
        wanted: Option<&[Scope]>,
        origin: &Origin,
    ) -> Result<Issued, SignInError> {
        let directory = self.arrivals().workloads().ok_or(SignInError::NotOffered)?;
        let workload = match directory.identify(token).await {
            Ok(workload) => workload,
            Err(Elsewhere::Refused(reason)) => {
                tracing::info!(reason, "a workload's token is refused");
                self.note_agent_failure(None, origin, "workload_refused", Event::AuthenticationFailed);
                return Err(SignInError::Refused);
            }
            Err(Elsewhere::Unavailable(reason)) => {
                tracing::warn!(reason, "the keys of a workload's issuer could not be had");
                security::authentication("credentials", "error");
                return Err(SignInError::Elsewhere);
            }
        };
        // Allowance for clocks is made where the token is read; nothing begins after its end by ours.
        if workload.until <= self.clock().now() {
            self.note_agent_failure(None, origin, "workload_refused", Event::AuthenticationFailed);
            return Err(SignInError::Refused);
        }
        let id = workload.agent.parse().ok();
        let Some(agent) = id.and_then(|id| self.principals().agent(id)).filter(|agent| !agent.disabled)
        else {
            self.note_agent_failure(id, origin, "no_such_agent", Event::AuthenticationFailed);
            return Err(SignInError::Refused);
        };
        let once = workload.once.map(|token| {
            let digest = Sha256::digest(format!("{}\n{token}", workload.subject).as_bytes());
            let what = format!("workload {}", interlock_model::id::hexadecimal(&digest));
            // Clocks may differ: the mark outlives the token.
            Used { what, until: workload.until.plus(std::time::Duration::from_mins(2)) }
        });
        let arrival = AgentArrival {
            agent,
            means: Means::Workload { subject: workload.subject, once },
            grant,
            guesser: None,
            until: Some(workload.until),
            with_refresh: false,
        };
        self.admit_agent(arrival, wanted, origin).await
    }
}
