//! The device as a whole: status, emergency stop, release, attention.

use std::time::Duration;

use axum::extract::{FromRequest as _, Request, State};
use axum::http::Method;
use interlock_engine::devices::Devices;
use interlock_model::action::{ClearAttention, EmergencyStop, ReadDevice, ReleaseStop};
use interlock_model::device::DeviceStatus;
use interlock_model::screen::Place;
use interlock_model::text::{Form as _, ReasonText};
use interlock_model::wire::{Operation, StopReport};
use serde::Deserialize;

use crate::body::{Json, JsonBody};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};
use crate::state::AppState;

/// How long an emergency stop waits for the words that go with it.
const REASON_LIMIT: Duration = Duration::from_millis(200);

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/device", show_device)
        .route(Method::POST, "/stop", emergency_stop)
        .route(Method::POST, "/stop/release", release_stop)
        .route(Method::POST, "/device/attention/clear", clear_attention)
}

/// Words that go with an act.
#[derive(Debug, Deserialize)]
pub(super) struct ReasonBody {
    pub(super) reason: Option<String>,
}

impl Screened for ReasonBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.reason.iter().for_each(|reason| look(Place::FreeText, reason));
    }
}

/// A reason in a person's words: at most 200 characters, no control characters.
pub(super) fn reason(text: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    ReasonText::RULE.check(&text).map_err(|breach| {
        let wrong = "'reason' must be at most 200 characters on one line";
        ApiError::field(&["body", "reason"], breach.kind(), wrong)
    })?;
    Ok(Some(text))
}

fn required_reason(text: Option<String>) -> Result<String, ApiError> {
    reason(text)?.filter(|text| !text.trim().is_empty()).ok_or_else(|| {
        ApiError::field(&["body", "reason"], "missing", "'reason' is required: say why it is safe")
    })
}

async fn show_device(grant: Granted<ReadDevice>, State(devices): State<Devices>) -> Json<DeviceStatus> {
    Json(devices.status(&grant))
}

async fn emergency_stop(
    grant: Granted<EmergencyStop>,
    State(devices): State<Devices>,
    State(state): State<AppState>,
    request: Request,
) -> Json<StopReport> {
    // A stop is never refused for its words and does not wait for them: an unreadable or late reason is no reason.
    let body =
        tokio::time::timeout(REASON_LIMIT, JsonBody::<ReasonBody>::from_request(request, &state)).await;
    let reason = body.ok().and_then(Result::ok).and_then(|JsonBody(body)| reason(body.reason).ok().flatten());
    let stopped = devices.emergency_stop(&grant, reason.clone()).await;
    Json(StopReport {
        engaged: true,
        confirmed: usize::from(stopped.device.confirmed),
        of: 1,
        cancelled_run: stopped.device.cancelled_run,
        devices: vec![stopped.device],
        engaged_at: stopped.at,
        reason,
    })
}

async fn release_stop(
    grant: Granted<ReleaseStop>,
    State(devices): State<Devices>,
    JsonBody(body): JsonBody<ReasonBody>,
) -> Result<Json<Operation>, ApiError> {
    devices.release(&grant, &required_reason(body.reason)?).await?;
    Ok(Json(Operation::done("Emergency stop released", None)))
}

async fn clear_attention(
    grant: Granted<ClearAttention>,
    State(devices): State<Devices>,
    JsonBody(body): JsonBody<ReasonBody>,
) -> Result<Json<Operation>, ApiError> {
    devices.clear_attention(&grant, &required_reason(body.reason)?).await?;
    Ok(Json(Operation::done("Attention mark cleared", None)))
}
