//! Questions to people: listing them, and giving one's word. Never one's own question, never by software.

use std::sync::Arc;

use interlock_model::action::{ApprovalTarget, DecideApproval, ListApprovals};
use interlock_model::policy::PrincipalKind;
use interlock_model::task::{ApprovalId, ApprovalState};
use interlock_model::text::{Form as _, Note};
use interlock_store::orchestrator::ApprovalRow;
use interlock_store::{Error, Page, Paged};
use serde_json::json;

use super::Orchestrator;
use crate::auth::{Permit, Recorded};

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// The id is no UUID.
    #[error("the id of an approval is a UUID")]
    NotAnId,
    /// There is none.
    #[error("approval not found")]
    NoSuchApproval,
    /// It is the caller's own.
    #[error("nobody can approve what was asked in their own name; another person must")]
    Own,
    /// The caller has given the first word.
    #[error("you have approved this already; a second person must")]
    Same,
    /// Only people decide.
    #[error("only a person who has signed in can decide")]
    NotAPerson,
    /// What was shown is not what waits.
    #[error("the parameters are not those that wait for approval; look again")]
    OtherParameters,
    /// It was decided, or is over.
    #[error("this was decided already, has expired, or its run is over")]
    Settled,
    /// The note is too long.
    #[error("'note' must have at most 500 characters, none of them U+0000")]
    Note,
    /// The storage's.
    #[error("store the decision")]
    Store(#[from] Error),
}

/// A person's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Once, for exactly these parameters.
    Approve,
    /// No.
    Deny,
}

impl Orchestrator {
    /// Questions, newest first. Agents see their own, unless they administer.
    ///
    /// # Errors
    /// The storage's.
    pub async fn approvals(
        &self,
        permit: &Permit<ListApprovals>,
        state: Option<ApprovalState>,
        page: Page,
    ) -> Result<Paged<ApprovalRow>, Error> {
        let own = Self::visible(permit.caller());
        self.ask(move |mut reads| Box::pin(async move { reads.approvals(state, own.as_deref(), page).await }))
            .await
    }

    /// Answers a question. `digest` names what the person has seen; if it is given it must be what waits.
    ///
    /// # Errors
    /// [`ApprovalError`].
    pub async fn decide(
        &self,
        permit: &Permit<DecideApproval>,
        verdict: Verdict,
        note: Option<String>,
        digest: Option<[u8; 32]>,
    ) -> Result<ApprovalRow, ApprovalError> {
        let ApprovalTarget { approval_id } = permit.target();
        let id: ApprovalId = approval_id.parse().map_err(|_| ApprovalError::NotAnId)?;
        let caller = permit.caller();
        // An API key is no person at the moment, whoever it belongs to.
        if caller.kind() != PrincipalKind::User || caller.session().is_empty() {
            return Err(ApprovalError::NotAPerson);
        }
        if note.as_ref().is_some_and(|note| !Note::RULE.holds(note)) {
            return Err(ApprovalError::Note);
        }
        let (by, now) = (caller.name().to_owned(), self.now());
        let principals = Arc::clone(&self.0.principals);
        let decided = self
            .0
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let found = all.approval(id).await?.ok_or(ApprovalError::NoSuchApproval)?;
                    if found.asked.requester == by {
                        return Err(ApprovalError::Own);
                    }
                    if digest.is_some_and(|digest| digest != found.asked.digest) {
                        return Err(ApprovalError::OtherParameters);
                    }
                    if found.asked.expires_at <= now {
                        return Err(ApprovalError::Settled);
                    }
                    // The word of somebody who was dismissed since is none.
                    let counts = |name: &str| principals.user(name).is_some_and(|user| !user.disabled);
                    let first = found.first.as_ref().filter(|(name, _)| counts(name));
                    let state = match (verdict, first) {
                        (Verdict::Approve, Some((first, _))) if *first == by => return Err(ApprovalError::Same),
                        (Verdict::Approve, None) if found.asked.approvers > 1 => {
                            let before = found.first.as_ref().map(|(name, _)| name.as_str());
                            if found.state != ApprovalState::Pending || !all.second(id, before, &by, now).await? {
                                return Err(ApprovalError::Settled);
                            }
                            let details = json!({
                                "decision": "first_of_two", "run": found.asked.run, "task": found.asked.task,
                                "step": found.asked.step, "requester": found.asked.requester, "note": note,
                            });
                            let value = ApprovalRow { first: Some((by, now)), ..found };
                            return Ok(Recorded { value, details });
                        }
                        (Verdict::Approve, _) => ApprovalState::Approved,
                        (Verdict::Deny, _) => ApprovalState::Denied,
                    };
                    if !all.decide(&found.asked, state, &by, note.as_deref(), now).await? {
                        return Err(ApprovalError::Settled);
                    }
                    let details = json!({
                        "decision": state, "run": found.asked.run, "task": found.asked.task, "step": found.asked.step,
                        "requester": found.asked.requester, "note": note,
                        "first_approved_by": found.first.as_ref().map(|(by, _)| by),
                    });
                    let value =
                        ApprovalRow { state, decided_at: Some(now), decided_by: Some(by), note, ..found };
                    Ok(Recorded { value, details })
                })
            })
            .await?;
        self.tell_work();
        Ok(decided)
    }
}
