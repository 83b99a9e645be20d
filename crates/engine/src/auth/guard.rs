//! The gate: authenticates, decides, and sees to it that every decision is on record.

use std::sync::Arc;

use interlock_model::action::{
    Action, DeviceActionTarget, EmergencyStop, ExecuteAction, Needs, Recording, World,
};
use interlock_model::policy;
use serde_json::{Value, json};

use super::permit::{Permit, Proof as _};
use super::{Caller, Origin, Sessions};
use crate::Ambient;
use crate::audit::Recorder;
use crate::security;

/// The caller may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It lacks the right. The text is for the caller.
    #[error("{0}")]
    Denied(String),
    /// Nobody can know whether its credential was revoked: the database has not answered for too long.
    #[error("revocations are not known")]
    Stale,
}

/// Makes callers and permits.
pub struct Guard {
    sessions: Arc<Sessions>,
    recorder: Recorder,
    world: Arc<dyn World>,
    ambient: Ambient,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

impl Guard {
    /// A gate over these sessions and facts.
    pub fn new(sessions: Arc<Sessions>, recorder: Recorder, world: Arc<dyn World>, ambient: Ambient) -> Self {
        Self { sessions, recorder, world, ambient }
    }

    /// Turns a token into a caller. Reads memory only.
    ///
    /// # Errors
    /// [`super::TokenError`], always the same to the outside.
    pub fn authenticate(
        &self,
        token: Option<&str>,
        origin: &Origin,
    ) -> Result<Arc<Caller>, super::TokenError> {
        let answer =
            token.ok_or(super::TokenError::Missing).and_then(|token| self.sessions.caller(token, origin));
        if let Err(error) = &answer {
            let reason = error.reason();
            if *error != super::TokenError::Missing {
                security::authentication("token", "failed");
            }
            security::event(
                security::Event::AuthenticationFailed,
                None,
                Some(origin),
                json!({ "reason": reason }),
            );
            self.recorder.note(origin, None, "authentication.failed", None, json!({ "reason": reason }));
        }
        answer.map(Arc::new)
    }

    /// Decides whether `caller` may do `A` to `target`.
    ///
    /// # Errors
    /// [`Refused`]; the refusal is on record.
    pub fn permit<A: Action>(&self, caller: &Arc<Caller>, target: A::Target) -> Result<Permit<A>, Refused> {
        let needs = A::needs(&target, &*self.world);
        let permit = Permit::<A>::new(Arc::clone(caller), target);
        // The emergency stop works without the database.
        if !self.sessions.is_fresh() && A::NAME != EmergencyStop::NAME {
            return Err(Refused::Stale);
        }
        let mut decided = policy::decide(caller.grants(), &needs);
        if needs == Needs::Person && caller.session().is_empty() {
            decided = Err(policy::Denied { message: policy::NOT_A_PERSON.to_owned() });
        }
        match decided {
            Ok(()) => Ok(permit),
            Err(denied) => {
                let details = json!({ "denied": A::NAME });
                security::event(
                    security::Event::AuthorizationDenied,
                    Some(caller.name()),
                    Some(caller.origin()),
                    details,
                );
                let mut draft = permit.draft(self.ambient.clock.now(), json!({ "decision": "denied" }));
                "authorization.denied".clone_into(&mut draft.action);
                draft.subject = Some(A::NAME.to_owned());
                self.recorder.record(draft);
                Err(Refused::Denied(denied.message))
            }
        }
    }

    /// What executing a device action needs, for explanations.
    pub fn needs_to_execute(&self, action: &str) -> Needs {
        ExecuteAction::needs(&DeviceActionTarget { task: action.to_owned() }, &*self.world)
    }

    /// As [`Guard::permit`] where a refusal is no incident: an answer merely holds less for callers who may see less.
    pub fn permit_if_allowed<A: Action>(&self, caller: &Arc<Caller>, target: A::Target) -> Option<Permit<A>> {
        let needs = A::needs(&target, &*self.world);
        policy::decide(caller.grants(), &needs).ok().map(|()| Permit::new(Arc::clone(caller), target))
    }

    /// Records how a permitted request ended, unless the use case has recorded more than that itself.
    pub fn close<A: Action>(&self, permit: &Permit<A>, status: u16) {
        if permit.is_recorded() {
            return;
        }
        let details = match A::RECORDING {
            Recording::Read => json!({ "status": status }),
            Recording::Change | Recording::Act => json!({ "status": status, "changed": false }),
        };
        self.recorder.record(permit.draft(self.ambient.clock.now(), details));
    }
}

impl Recorder {
    /// Records an act of nobody in particular.
    pub fn note(
        &self,
        origin: &Origin,
        actor: Option<&str>,
        action: &str,
        subject: Option<String>,
        details: Value,
    ) {
        self.record(interlock_model::audit::AuditDraft {
            at: self.now(),
            actor: actor.map(str::to_owned),
            action: action.to_owned(),
            subject,
            details,
            client_ip: Some(origin.client_ip.to_string()),
            request_id: Some(origin.request_id.clone()),
        });
    }
}
