//! Proofs of authority. Their fields are private: only the guard makes a [`Permit`], only start-up makes a [`SystemPermit`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interlock_model::Timestamp;
use interlock_model::action::{Action, Target as _};
use interlock_model::audit::AuditDraft;
use serde_json::Value;

use super::Caller;

/// What opens a transaction: something that names who does what, for the audit entry.
pub trait Proof: sealed::Sealed + Send + Sync {
    /// The audit entry of a change under this proof.
    fn draft(&self, at: Timestamp, details: Value) -> AuditDraft;
    /// The entry has been committed with the change.
    fn mark_recorded(&self) {}
}

mod sealed {
    pub trait Sealed {}
}

/// Proof that the caller may do `A` to the target.
///
/// Neither `Clone` nor `Serialize`: authority is decided again later, never stored.
#[derive(Debug)]
pub struct Permit<A: Action> {
    caller: Arc<Caller>,
    target: A::Target,
    recorded: AtomicBool,
}

impl<A: Action> Permit<A> {
    pub(super) fn new(caller: Arc<Caller>, target: A::Target) -> Self {
        Self { caller, target, recorded: AtomicBool::new(false) }
    }

    /// Who.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// To what.
    pub fn target(&self) -> &A::Target {
        &self.target
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Acquire)
    }
}

impl<A: Action> sealed::Sealed for Permit<A> {}

impl<A: Action> Proof for Permit<A> {
    fn draft(&self, at: Timestamp, details: Value) -> AuditDraft {
        let origin = self.caller.origin();
        AuditDraft {
            at,
            actor: Some(self.caller.name().to_owned()),
            action: A::NAME.to_owned(),
            subject: self.target.subject(),
            details,
            client_ip: Some(origin.client_ip.to_string()),
            request_id: Some(origin.request_id.clone()),
        }
    }

    fn mark_recorded(&self) {
        self.recorded.store(true, Ordering::Release);
    }
}

/// Authority of the installation itself: start-up, background work, the console of its owner.
///
/// Made once by the program that wires everything and passed down by value, so a use case has none to borrow.
#[derive(Debug)]
pub struct SystemPermit {
    who: String,
    action: &'static str,
    subject: Option<String>,
    client_ip: Option<String>,
    request_id: Option<String>,
}

impl SystemPermit {
    /// Authority under the name `who`, such as `system` or `console`. Only wiring code may call this.
    pub fn root(who: &str) -> Self {
        Self { who: who.to_owned(), action: "system", subject: None, client_ip: None, request_id: None }
    }

    /// The same authority for one named act.
    #[must_use]
    pub fn acting(&self, action: &'static str, subject: Option<String>) -> Self {
        Self { who: self.who.clone(), action, subject, client_ip: None, request_id: None }
    }

    /// The same act for a principal that has just proved who it is, from `origin`.
    #[must_use]
    pub(crate) fn on_behalf(mut self, who: &str, origin: &super::Origin) -> Self {
        who.clone_into(&mut self.who);
        self.client_ip = Some(origin.client_ip.to_string());
        self.request_id = Some(origin.request_id.clone());
        self
    }
}

impl sealed::Sealed for SystemPermit {}

impl Proof for SystemPermit {
    fn draft(&self, at: Timestamp, details: Value) -> AuditDraft {
        AuditDraft {
            at,
            actor: Some(self.who.clone()),
            action: self.action.to_owned(),
            subject: self.subject.clone(),
            details,
            client_ip: self.client_ip.clone(),
            request_id: self.request_id.clone(),
        }
    }
}
