//! Runs of tasks.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use interlock_engine::Paged;
use interlock_engine::orchestrator::{
    Orchestrator, RunFact, RunNews, RunNote, RunsError, RunsFilter, Stats, TaskRunRow,
};
use interlock_model::action::{CancelTaskRun, ListRuns, ReadTaskRun, ReadTaskRuns};
use interlock_model::task::{TaskId, TaskRunState};
use interlock_model::wire::PageAnswer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query;
use super::runs::envelope;
use crate::body::{Json, JsonBody, PageQuery, Query};
use crate::error::ApiError;
use crate::routes::{ApiRouter, Granted};

/// What stands in a list for the error of a run.
const PLACEHOLDER: &str = "The run did not succeed. Ask with include_errors=true for the reason.";

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::GET, "/runs", list_task_runs)
        .route(Method::GET, "/runs/{run_id}", show_task_run)
        .route(Method::GET, "/runs/{run_id}/events", follow_task_run)
        .route(Method::GET, "/runs/{run_id}/log", task_run_log)
        .route(Method::POST, "/runs/{run_id}/cancel", cancel_task_run)
        .route(Method::GET, "/runs/task/{task_id}/latest", latest_task_run)
        .route(Method::GET, "/runs/task/{task_id}/stats", task_stats)
        .route(Method::GET, "/runs/stats/summary", runs_summary)
}

impl From<RunsError> for ApiError {
    fn from(error: RunsError) -> Self {
        match error {
            RunsError::NotAnId => Self::field(&["path", "run_id"], "uuid", "The id of a run is a UUID."),
            RunsError::NotATask => Self::field(&["path", "task_id"], "uuid", "The id of a task is a UUID."),
            RunsError::NoSuchRun => Self::client(StatusCode::NOT_FOUND, "run_not_found", "Run not found"),
            RunsError::NoSuchTask => Self::client(StatusCode::NOT_FOUND, "task_not_found", "Task not found"),
            RunsError::Over => Self::client(StatusCode::CONFLICT, "conflict", "The run is over."),
            RunsError::TooManyFollowers => too_many_followers(),
            RunsError::Store(cause) => Self::storage(&cause),
        }
    }
}

/// Every place for followers is taken.
pub(super) fn too_many_followers() -> ApiError {
    let text = "Too many streams are followed at once. Try again later, or ask for lists.";
    ApiError::client(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text).after(5)
}

fn view(run: &TaskRunRow, with_error: bool) -> Value {
    let error = run.error.as_deref().map(|error| if with_error { error } else { PLACEHOLDER });
    // What a run leaves in the queue has no lease that ends at a time: its worker's heartbeat counts.
    let owner = run.worker.as_deref().filter(|_| !run.state.is_final());
    json!({
        "id": run.id, "task_id": run.task, "lease_owner": owner, "leased_until": null, "started_at": run.started_at,
        "finished_at": run.finished_at, "success": run.state.success(), "error": error, "attempt": run.attempt,
        "output": run.output, "created_at": run.created_at, "trigger": run.trigger, "scheduled_for": run.scheduled_for,
        "state": run.state, "first_attempt": run.lineage,
    })
}

#[derive(Debug, Deserialize)]
struct RunsQuery {
    task_id: Option<String>,
    success: Option<String>,
    state: Option<String>,
    include_errors: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "1" => Some(true),
        "false" | "False" | "0" => Some(false),
        _ => None,
    }
}

async fn list_task_runs(
    grant: Granted<ListRuns>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<RunsQuery>,
) -> Result<Json<PageAnswer<Value>>, ApiError> {
    let page = query.page.page()?;
    let filter = RunsFilter {
        owner: None,
        task: query::value("task_id", query.task_id.as_ref(), "the id of a task, a UUID", |text| {
            text.parse::<TaskId>().ok()
        })?,
        success: query::word("success", query.success.as_ref(), flag)?,
        state: query::word("state", query.state.as_ref(), TaskRunState::parse)?,
        since: query::time("start_time", query.start_time.as_ref())?,
        until: query::time("end_time", query.end_time.as_ref())?,
    };
    let with_errors = query::word("include_errors", query.include_errors.as_ref(), flag)?.unwrap_or(false);
    let found = orchestrator.runs(&grant, filter, page).await?;
    let items = found.items.iter().map(|run| view(run, with_errors)).collect();
    Ok(envelope(Paged { items, total: found.total }, page))
}

async fn show_task_run(
    grant: Granted<ReadTaskRun>,
    State(orchestrator): State<Orchestrator>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(view(&orchestrator.run(&grant).await?, true)))
}

async fn latest_task_run(
    grant: Granted<ReadTaskRuns>,
    State(orchestrator): State<Orchestrator>,
) -> Result<Json<Value>, ApiError> {
    let latest = orchestrator.latest_run(&grant).await?;
    Ok(Json(latest.map_or(Value::Null, |run| view(&run, true))))
}

#[derive(Debug, Deserialize)]
struct DaysQuery {
    days: Option<String>,
}

impl DaysQuery {
    fn days(&self, default: u32) -> Result<u32, ApiError> {
        let good = |text: &str| text.parse().ok().filter(|days| (1..=365).contains(days));
        match &self.days {
            None => Ok(default),
            Some(text) => good(text)
                .ok_or_else(|| ApiError::field(&["query", "days"], "range", "'days' must be 1 to 365")),
        }
    }
}

fn figures(stats: &Stats) -> Value {
    json!({
        "period_days": stats.days, "total_runs": stats.figures.total, "successful_runs": stats.figures.succeeded,
        "failed_runs": stats.figures.failed, "success_rate": stats.success_rate(), "failure_rate": stats.failure_rate(),
        "avg_execution_time_seconds": stats.seconds(),
    })
}

async fn task_stats(
    grant: Granted<ReadTaskRuns>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<DaysQuery>,
) -> Result<Json<Value>, ApiError> {
    let (task, stats) = orchestrator.task_stats(&grant, query.days(30)?).await?;
    let mut answer = figures(&stats);
    answer["task_id"] = json!(task);
    answer["last_run"] = json!(stats.figures.last);
    answer["last_success"] = json!(stats.figures.last_success);
    answer["last_failure"] = json!(stats.figures.last_failure);
    Ok(Json(answer))
}

async fn runs_summary(
    grant: Granted<ListRuns>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<DaysQuery>,
) -> Result<Json<Value>, ApiError> {
    let stats = orchestrator.summary(&grant, query.days(7)?).await?;
    let mut answer = figures(&stats);
    answer["total_tasks_executed"] = json!(stats.figures.tasks);
    answer["runs_per_day"] = json!(stats.per_day());
    Ok(Json(answer))
}

async fn cancel_task_run(
    grant: Granted<CancelTaskRun>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(body): JsonBody<super::device::ReasonBody>,
) -> Result<Response, ApiError> {
    let reason = super::device::reason(body.reason)?;
    let run = orchestrator.cancel_run(&grant, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(view(&run, true))).into_response())
}

/// A stream that proxies do not collect and nobody keeps.
pub(super) fn streamed<S>(stream: S) -> Response
where
    S: Stream<Item = Result<Event, Infallible>> + Send + 'static,
{
    let alive = KeepAlive::new().interval(Duration::from_secs(15)).text("still here");
    let mut response = Sse::new(stream).keep_alive(alive).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A note as streams and lists tell it: the form of the events of a device's run.
fn note_view(note: &RunNote) -> Value {
    json!({ "seq": note.seq, "at": note.at, "kind": note.data["kind"], "data": note.data["data"] })
}

/// Kinds of notes. A stream tells no others, whatever is stored.
const KINDS: [&str; 6] = ["step", "progress", "log", "metric", "artifact", "rung"];

fn event(news: &RunNews) -> Event {
    let (name, text) = match &news.fact {
        RunFact::State(run) => ("state", view(run, true).to_string()),
        RunFact::Note(note) => {
            let kind = note.data["kind"].as_str();
            let name = KINDS.into_iter().find(|known| kind == Some(known)).unwrap_or("note");
            (name, note_view(note).to_string())
        }
    };
    Event::default().id(&news.id).event(name).data(text)
}

async fn follow_task_run(
    grant: Granted<ReadTaskRun>,
    State(orchestrator): State<Orchestrator>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let from = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let following = orchestrator.follow_run(&grant, from).await?;
    let batches = futures::stream::unfold(following, |mut following| async move {
        match following.next().await {
            Ok(Some(news)) => Some((news, following)),
            Ok(None) => None,
            Err(error) => {
                // The client asks again.
                tracing::error!(%error, "a run could not be read");
                None
            }
        }
    });
    let events = futures::StreamExt::flat_map(batches, |news| {
        futures::stream::iter(news.into_iter().map(|news| Ok(event(&news))))
    });
    Ok(streamed(events))
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    after: Option<String>,
    limit: Option<String>,
}

async fn task_run_log(
    grant: Granted<ReadTaskRun>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<LogQuery>,
) -> Result<Json<Value>, ApiError> {
    let after = query::word("after", query.after.as_ref(), |text| text.parse::<u32>().ok())?.unwrap_or(0);
    let good = |text: &str| text.parse().ok().filter(|limit| (1..=1_000).contains(limit));
    let limit = match &query.limit {
        None => 200,
        Some(text) => good(text)
            .ok_or_else(|| ApiError::field(&["query", "limit"], "range", "'limit' must be 1 to 1000"))?,
    };
    let (notes, done) = orchestrator.run_log(&grant, after.into(), limit).await?;
    let next = notes.last().map_or(u64::from(after), |note| note.seq);
    let items: Vec<Value> = notes.iter().map(note_view).collect();
    Ok(Json(json!({ "items": items, "next_after": next, "done": done })))
}
