//! The gate: authenticates, decides, and sees to it that every decision is on record.

use std::sync::Arc;

use interlock_model::action::{
    Action, DeviceActionTarget, EmergencyStop, ExecuteAction, FRESH_FOR, Fresh, Needs, Recording, World,
};
use interlock_model::policy::{self, PrincipalKind};
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
    /// It must first prove again who it is (RFC 9470).
    #[error("a fresh proof of identity is needed")]
    StepUp,
    /// It must first have a second factor.
    #[error("a second factor must be set up first")]
    NoSecondFactor,
    /// Nobody can know whether its credential was revoked: the database has not answered for too long.
    #[error("revocations are not known")]
    Stale,
}

/// Who must show a second factor for dangerous acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepUpPolicy {
    /// People who have one must have shown it lately.
    pub required: bool,
    /// Administrators must have one.
    pub admins_need_second_factor: bool,
}

impl Default for StepUpPolicy {
    fn default() -> Self {
        Self { required: true, admins_need_second_factor: false }
    }
}

/// Makes callers and permits.
pub struct Guard {
    step_up: StepUpPolicy,
    owner_mode: bool,
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
        Self { step_up: StepUpPolicy::default(), owner_mode: false, sessions, recorder, world, ambient }
    }

    /// The same gate under another policy.
    #[must_use]
    pub fn with_step_up(self, step_up: StepUpPolicy) -> Self {
        Self { step_up, ..self }
    }

    /// Lets agents do without a scope what concerns their own things only (`SCOPE_MODE=owner`), for migrations.
    #[must_use]
    pub fn with_owner_mode(self, owner_mode: bool) -> Self {
        Self { owner_mode, ..self }
    }

    /// Whether the caller's proof of identity is fresh enough.
    fn freshness(&self, caller: &Caller, fresh: Fresh) -> Result<(), Refused> {
        if fresh == Fresh::No || caller.kind() != PrincipalKind::User {
            return Ok(());
        }
        let principals = self.sessions.principals();
        let has = principals.has_second_factor(caller.name());
        let recent = caller.auth_time().is_some_and(|at| self.ambient.clock.now().since(at) <= FRESH_FOR);
        let shown = recent && (!has || caller.amr().iter().any(|factor| factor == "otp" || factor == "pop"));
        if fresh == Fresh::Proof || (has && self.step_up.required) {
            return if shown { Ok(()) } else { Err(Refused::StepUp) };
        }
        let is_admin = || {
            principals
                .user(caller.name())
                .is_some_and(|user| user.roles.iter().any(|role| role == policy::ADMIN))
        };
        let is_emergency = caller.name() == crate::emergency::NAME;
        if !has && self.step_up.admins_need_second_factor && !is_emergency && is_admin() {
            return Err(Refused::NoSecondFactor);
        }
        Ok(())
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
            self.recorder.note(
                origin,
                None,
                "authentication.failed",
                None,
                json!({ "result": "failed", "reason": reason }),
            );
        }
        answer.map(Arc::new)
    }

    /// Whose token this is, if it is in force. Nothing is recorded: somebody else has refused the request already.
    pub fn recognise(&self, token: Option<&str>, origin: &Origin) -> Option<Arc<Caller>> {
        self.sessions.caller(token?, origin).ok().map(Arc::new)
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
        if self.owner_mode && policy::is_own(caller.grants(), &needs) {
            decided = Ok(());
        }
        if needs == Needs::Person && caller.session().is_empty() {
            decided = Err(policy::Denied { message: policy::NOT_A_PERSON.to_owned() });
        }
        match decided {
            Ok(()) => match self.freshness(caller, A::FRESH) {
                Ok(()) => {
                    self.sessions.note_use(caller, &needs);
                    Ok(permit)
                }
                Err(refused) => {
                    let mut draft = permit.draft(
                        self.ambient.clock.now(),
                        json!({ "decision": "denied", "reason": refused.to_string() }),
                    );
                    "authorization.denied".clone_into(&mut draft.action);
                    draft.subject = Some(A::NAME.to_owned());
                    self.recorder.record(draft);
                    Err(refused)
                }
            },
            Err(denied) => {
                let denied = self.told(caller, &needs, denied);
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

    /// What the caller is told: where a right does not count because of the network, that it does not.
    fn told(&self, caller: &Caller, needs: &Needs, denied: policy::Denied) -> policy::Denied {
        let kept = matches!(needs, Needs::Scope(scope) if policy::ADMINISTRATION.contains(scope));
        if !kept || self.sessions.administers_from(caller.origin()) {
            return denied;
        }
        policy::Denied { message: "Administration is not allowed from this network".to_owned() }
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
        let now = self.ambient.clock.now();
        match A::RECORDING {
            Recording::Read => self.recorder.record_read(permit.draft(now, json!({ "status": status }))),
            Recording::Change | Recording::Act => {
                self.recorder.record(permit.draft(now, json!({ "status": status, "changed": false })));
            }
        }
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
