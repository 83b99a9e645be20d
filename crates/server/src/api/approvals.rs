//! What waits for a person's word.

use axum::extract::State;
use axum::http::{Method, StatusCode};
use interlock_engine::Paged;
use interlock_engine::orchestrator::{ApprovalError, ApprovalRow, Orchestrator, Verdict};
use interlock_model::action::{DecideApproval, ListApprovals};
use interlock_model::id::{from_hexadecimal, hexadecimal};
use interlock_model::screen::Place;
use interlock_model::task::ApprovalState;
use interlock_model::wire::PageAnswer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::query;
use super::runs::envelope;
use crate::body::{Json, JsonBody, PageQuery, Query};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/approvals", list_approvals).route(
        Method::POST,
        "/approvals/{approval_id}/decide",
        decide_approval,
    )
}

impl From<ApprovalError> for ApiError {
    fn from(error: ApprovalError) -> Self {
        match error {
            ApprovalError::NotAnId => {
                Self::field(&["path", "approval_id"], "uuid", "The id of an approval is a UUID.")
            }
            ApprovalError::NoSuchApproval => {
                Self::client(StatusCode::NOT_FOUND, "approval_not_found", "Approval not found")
            }
            ApprovalError::Own | ApprovalError::Same | ApprovalError::NotAPerson => {
                Self::client(StatusCode::FORBIDDEN, "forbidden", error.to_string())
            }
            ApprovalError::OtherParameters | ApprovalError::Settled => {
                Self::client(StatusCode::CONFLICT, "conflict", error.to_string())
            }
            ApprovalError::Note => Self::field(&["body", "note"], "range", error.to_string()),
            ApprovalError::Store(cause) => Self::storage(&cause),
        }
    }
}

fn view(row: &ApprovalRow) -> Value {
    let asked = &row.asked;
    json!({
        "id": asked.id, "run_id": asked.run, "task_id": asked.task, "step": asked.step, "requested_by": asked.requester,
        "parameters": asked.subject, "parameters_sha256": hexadecimal(&asked.digest), "reason": asked.reason,
        "state": row.state, "created_at": asked.created_at, "expires_at": asked.expires_at, "decided_at": row.decided_at,
        "decided_by": row.decided_by, "note": row.note, "approvers": asked.approvers,
        "first_approved_by": row.first.as_ref().map(|(by, _)| by), "first_approved_at": row.first.as_ref().map(|(_, at)| at),
    })
}

#[derive(Debug, Deserialize)]
struct ApprovalsQuery {
    state: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn list_approvals(
    grant: Granted<ListApprovals>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<ApprovalsQuery>,
) -> Result<Json<PageAnswer<Value>>, ApiError> {
    let page = query.page.page()?;
    let state = query::word("state", query.state.as_ref(), ApprovalState::parse)?;
    let found = orchestrator.approvals(&grant, state, page).await?;
    let items = found.items.iter().map(view).collect();
    Ok(envelope(Paged { items, total: found.total }, page))
}

#[derive(Debug, Deserialize)]
struct DecisionBody {
    decision: Option<Value>,
    note: Option<Value>,
    parameters_sha256: Option<Value>,
}

impl Screened for DecisionBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        let ids = [&self.decision, &self.parameters_sha256];
        ids.into_iter().flatten().filter_map(Value::as_str).for_each(|text| look(Place::Id, text));
        self.note.iter().filter_map(Value::as_str).for_each(|text| look(Place::FreeText, text));
    }
}

fn verdict(text: &str) -> Option<Verdict> {
    match text {
        "approve" => Some(Verdict::Approve),
        "deny" => Some(Verdict::Deny),
        _ => None,
    }
}

async fn decide_approval(
    grant: Granted<DecideApproval>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(body): JsonBody<DecisionBody>,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::default();
    let verdict = fields.word("decision", body.decision.as_ref(), verdict);
    if body.decision.is_none() {
        fields.missing("decision");
    }
    let seen = body.parameters_sha256.filter(|value| !value.is_null());
    let seen = fields.word("parameters_sha256", seen.as_ref(), from_hexadecimal::<32>);
    let note = fields.text("note", body.note);
    fields.done()?;
    let verdict = verdict.unwrap_or(Verdict::Deny);
    Ok(Json(view(&orchestrator.decide(&grant, verdict, note, seen).await?)))
}
