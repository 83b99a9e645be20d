//! Outcomes that are told to agents: the secret they are signed with, and how telling them went.

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use interlock_engine::Paged;
use interlock_engine::identity::Identity;
use interlock_engine::orchestrator::{DeliveryError, DeliveryRow, DeliveryState, Orchestrator};
use interlock_model::action::{ReadAgent, RetryDelivery, RotateWebhookSecret};
use interlock_model::wire::{DeliveryView, Operation, PageAnswer};
use serde::Deserialize;
use serde_json::json;

use super::agents::no_store;
use super::query;
use super::runs::envelope;
use crate::body::{Json, PageQuery, Query};
use crate::error::ApiError;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/agents/{agent_id}/webhook/secret", rotate_secret)
        .route(Method::GET, "/agents/{agent_id}/webhook/deliveries", list_deliveries)
        .route(Method::POST, "/agents/{agent_id}/webhook/deliveries/{run_id}/retry", retry_delivery)
}

impl From<DeliveryError> for ApiError {
    fn from(error: DeliveryError) -> Self {
        match error {
            DeliveryError::Agent(error) => error.into(),
            DeliveryError::Run(error) => error.into(),
            DeliveryError::NoSuchDelivery => Self::client(
                StatusCode::NOT_FOUND,
                "delivery_not_found",
                "No outcome of this run was to be told to this agent, or it is being told now",
            ),
            DeliveryError::Store(cause) => Self::storage(&cause),
        }
    }
}

fn view(row: &DeliveryRow) -> DeliveryView {
    let pending = row.state == DeliveryState::Pending;
    DeliveryView {
        webhook_id: format!("msg_{}", row.run),
        run_id: row.run,
        state: row.state.as_str().to_owned(),
        attempts: row.attempts,
        created_at: row.created_at,
        last_attempt_at: row.tried_at,
        next_attempt_at: pending.then_some(row.next_at),
        error: row.error.clone(),
    }
}

async fn rotate_secret(
    grant: Granted<RotateWebhookSecret>,
    State(identity): State<Identity>,
) -> Result<Response, ApiError> {
    let (agent, secret) = identity.agents.rotate_webhook_secret(&grant).await?;
    let message = "Keep this secret: it is shown only now. Messages carry a signature with the one before, too, for 24 h";
    Ok(no_store(Json(json!({ "agent_id": agent.id, "webhook_secret": secret.expose(), "message": message }))))
}

#[derive(Debug, Deserialize)]
struct DeliveriesQuery {
    state: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn list_deliveries(
    grant: Granted<ReadAgent>,
    State(identity): State<Identity>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<DeliveriesQuery>,
) -> Result<Json<PageAnswer<DeliveryView>>, ApiError> {
    let page = query.page.page()?;
    let state = query::word("state", query.state.as_ref(), DeliveryState::parse)?;
    let found = orchestrator.deliveries(&grant, &identity.agents, state, page).await?;
    let items = found.items.iter().map(view).collect();
    Ok(envelope(Paged { items, total: found.total }, page))
}

async fn retry_delivery(
    grant: Granted<RetryDelivery>,
    State(orchestrator): State<Orchestrator>,
) -> Result<Json<Operation>, ApiError> {
    let run = orchestrator.tell_again(&grant).await?;
    Ok(Json(Operation::done("The outcome is told once more", Some(json!({ "run_id": run })))))
}
