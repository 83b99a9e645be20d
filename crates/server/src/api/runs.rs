//! Runs, their events and files.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::executions::Executions;
use interlock_engine::reads::{Following, Reads};
use interlock_engine::{Paged, RunFilter, StoredEvent};
use interlock_model::action::{CancelRun, ListRuns, ReadArtifact, ReadRun};
use interlock_model::device::EventKind;
use interlock_model::run::RunState;
use interlock_model::text::Sought;
use interlock_model::wire::{EventsAnswer, PageAnswer, RunEventView, RunView};
use serde::{Deserialize, Serialize};

use super::query;
use crate::body::{Json, JsonBody, PageQuery, Query};
use crate::error::ApiError;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/runs", list_runs)
        .route(Method::GET, "/runs/{run_id}", show_run)
        .route(Method::GET, "/runs/{run_id}/events", run_events)
        .route(Method::POST, "/runs/{run_id}/cancel", cancel_run)
        .route(Method::GET, "/runs/{run_id}/artifacts/{name}", artifact)
}

/// A page in the contract's envelope.
pub(super) fn envelope<T: Serialize>(found: Paged<T>, page: interlock_engine::Page) -> Json<PageAnswer<T>> {
    let seen = page.offset.saturating_add(found.items.len() as u64);
    Json(PageAnswer {
        has_more: seen < found.total,
        total: found.total,
        limit: page.limit,
        offset: page.offset,
        items: found.items,
    })
}

fn no_such_run() -> ApiError {
    ApiError::client(StatusCode::NOT_FOUND, "run_not_found", "Run not found")
}

#[derive(Debug, Deserialize)]
struct RunsQuery {
    state: Option<String>,
    action: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn list_runs(
    grant: Granted<ListRuns>,
    State(reads): State<Reads>,
    Query(query): Query<RunsQuery>,
) -> Result<Json<PageAnswer<RunView>>, ApiError> {
    let page = query.page.page()?;
    let state = match query.state.as_deref() {
        None => None,
        Some(text) => Some(RunState::parse(text).ok_or_else(|| {
            ApiError::field(&["query", "state"], "enum", "'state' is not a state of a run")
        })?),
    };
    let filter = RunFilter { state, action: query::text::<Sought>("action", query.action)?, actor: None };
    Ok(envelope(reads.runs(&grant, &filter, page).await?, page))
}

async fn show_run(grant: Granted<ReadRun>, State(reads): State<Reads>) -> Result<Json<RunView>, ApiError> {
    reads.run(&grant).await?.map(Json).ok_or_else(no_such_run)
}

async fn cancel_run(
    grant: Granted<CancelRun>,
    State(executions): State<Executions>,
    State(reads): State<Reads>,
    JsonBody(body): JsonBody<super::device::ReasonBody>,
) -> Result<Response, ApiError> {
    let reason = super::device::reason(body.reason)?.unwrap_or_else(|| "cancelled by request".to_owned());
    executions.cancel(&grant, &reason).await?.ok_or_else(no_such_run)?;
    let view = reads.cancelled(&grant).await?.ok_or_else(no_such_run)?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

#[derive(Debug, Deserialize)]
struct EventsQuery {
    after: Option<u64>,
    limit: Option<u32>,
}

fn view(event: StoredEvent) -> RunEventView {
    RunEventView { seq: event.seq, at: event.at, kind: event.kind }
}

async fn run_events(
    grant: Granted<ReadRun>,
    State(reads): State<Reads>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, ApiError>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let resumed = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    // No run has that many events; the bound keeps absurd numbers out of arithmetic.
    let after = resumed.or(query.after).unwrap_or(0).min(u64::from(u32::MAX));
    let mut following = reads.follow(&grant, after).await?.ok_or_else(no_such_run)?;
    let streams = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| text.contains("text/event-stream"));
    if !streams {
        let limit = query.limit.unwrap_or(200);
        if !(1..=1000).contains(&limit) {
            return Err(ApiError::field(&["query", "limit"], "range", "'limit' must be 1 to 1000"));
        }
        let items = following.ready(limit).await?.into_iter().map(view).collect();
        return Ok(Json(EventsAnswer { items, next_after: following.after(), done: following.is_over() })
            .into_response());
    }
    let mut response = Sse::new(stream(following))
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(15)).text("still here"))
        .into_response();
    // Proxies must not collect events (nginx reads this header).
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::State { .. } => "state",
        EventKind::Progress { .. } => "progress",
        EventKind::Log { .. } => "log",
        EventKind::Metric { .. } => "metric",
        EventKind::Artifact { .. } => "artifact",
        EventKind::Rung { .. } => "rung",
    }
}

fn stream(following: Following) -> impl futures::Stream<Item = Result<Event, Infallible>> + Send {
    let batches = futures::stream::unfold(Some(following), |following| async move {
        let mut following = following?;
        match following.next(500).await {
            Ok(events) => {
                let rest = if following.is_over() { None } else { Some(following) };
                Some((events, rest))
            }
            Err(error) => {
                // The client resumes with Last-Event-ID.
                tracing::error!(%error, "events of a run could not be read");
                None
            }
        }
    });
    futures::StreamExt::flat_map(batches, |events| {
        futures::stream::iter(events.into_iter().map(|event| {
            let event = view(event);
            let text = serde_json::to_string(&event).unwrap_or_default();
            Ok(Event::default().id(event.seq.to_string()).event(name(&event.kind)).data(text))
        }))
    })
}

async fn artifact(grant: Granted<ReadArtifact>, State(reads): State<Reads>) -> Result<Response, ApiError> {
    let missing = || ApiError::client(StatusCode::NOT_FOUND, "artifact_not_found", "Artifact not found");
    let path = reads.artifact(&grant).await?.ok_or_else(missing)?;
    let file = tokio::fs::File::open(&path).await.map_err(|_| missing())?;
    let length =
        file.metadata().await.map(|metadata| metadata.len()).map_err(|error| ApiError::internal(&error))?;
    let body = Body::from_stream(tokio_util::io::ReaderStream::new(file));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    // What a robot's script wrote is never shown in our origin: a download of bytes, in a sandbox.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'; frame-ancestors 'none'"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let plain: String = grant
        .target()
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' })
        .collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{plain}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}
