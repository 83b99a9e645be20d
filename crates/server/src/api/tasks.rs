//! Tasks and schedules.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use interlock_engine::orchestrator::{
    Keyed, NewTask, Orchestrator, Preview, TaskChange, TaskError, TasksFilter,
};
use interlock_model::action::{
    CancelTask, CreateTask, ListTasks, ListTools, PauseTask, PreviewSchedule, ReadTask, ResumeTask, RunTask,
    SkipTask, SnoozeTask, UpdateTask,
};
use interlock_model::pipeline::unknown_members;
use interlock_model::screen::Place;
use interlock_model::task::{Backoff, Misfire, ScheduleKind, TaskStatus};
use interlock_model::text::Principal;
use interlock_model::wire::{FieldError, Operation, PageAnswer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::query;
use super::runs::envelope;
use crate::body::{Json, JsonBody, PageQuery, Query, prefers};
use crate::error::ApiError;
use crate::perimeter::Screened;
use crate::routes::{ApiRouter, Granted};

pub(super) fn routes(api: ApiRouter) -> ApiRouter {
    api.route(Method::POST, "/tasks", create_task)
        .route(Method::GET, "/tasks", list_tasks)
        .route(Method::GET, "/tasks/{task_id}", show_task)
        .route(Method::PUT, "/tasks/{task_id}", update_task)
        .route(Method::POST, "/tasks/{task_id}/run_now", run_task)
        .route(Method::POST, "/tasks/{task_id}/snooze", snooze_task)
        .route(Method::POST, "/tasks/{task_id}/skip", skip_task)
        .route(Method::GET, "/tasks/{task_id}/due", due_times)
        .route(Method::POST, "/tasks/{task_id}/pause", pause_task)
        .route(Method::POST, "/tasks/{task_id}/resume", resume_task)
        .route(Method::POST, "/tasks/{task_id}/cancel", cancel_task)
        .route(Method::POST, "/schedules/preview", preview_schedule)
        .route(Method::GET, "/tools", list_tools)
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Fields(fields) => {
                let detail =
                    fields.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; ");
                let errors = fields
                    .into_iter()
                    .map(|(loc, msg)| FieldError { loc, kind: "value".to_owned(), msg })
                    .collect();
                Self::unprocessable(detail, errors)
            }
            TaskError::NoSuchTask => Self::client(StatusCode::NOT_FOUND, "task_not_found", "Task not found"),
            TaskError::NotAnId => Self::field(&["path", "task_id"], "uuid", "The id of a task is a UUID."),
            TaskError::NotYou => Self::client(StatusCode::FORBIDDEN, "forbidden", error.to_string()),
            TaskError::NoSuchCreator => Self::client(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "created_by names nobody who is active here",
            ),
            TaskError::DuplicateDedupeKey => Self::client(
                StatusCode::BAD_REQUEST,
                "duplicate_dedupe_key",
                "Another task of yours with this dedupe_key is not canceled.",
            ),
            TaskError::Canceled => Self::client(
                StatusCode::BAD_REQUEST,
                "task_canceled",
                "The task is canceled, which is final. Make a new one.",
            ),
            TaskError::NotActive => Self::client(
                StatusCode::BAD_REQUEST,
                "task_not_active",
                "The task is not active. Resume it first.",
            ),
            TaskError::NothingDue => Self::client(
                StatusCode::CONFLICT,
                "nothing_due",
                "The task has no due time that could be left out. Nothing was done.",
            ),
            TaskError::DueChanged => Self::client(
                StatusCode::CONFLICT,
                "due_time_changed",
                "The task is due at another time than due_at. Nothing was done. Look at next_due_at.",
            ),
            TaskError::WithinWindow => Self::client(
                StatusCode::CONFLICT,
                "within_dedupe_window",
                "A run of this task was triggered less than dedupe_window_seconds ago. Nothing was done.",
            ),
            TaskError::KeyReused => Self::client(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request. Nothing was done. Use a new key.",
            ),
            // Handlers answer with it; here it means that one has not.
            TaskError::Repeated(_) => Self::internal(&error),
            TaskError::Store(cause) => Self::storage(&cause),
        }
    }
}

/// Members as they were sent: each is read by name, so that an error says where.
#[derive(Debug, Deserialize)]
struct TaskBody {
    title: Option<Value>,
    description: Option<Value>,
    schedule_kind: Option<Value>,
    #[serde(default, deserialize_with = "super::fields::given")]
    schedule_expr: Option<Value>,
    timezone: Option<Value>,
    payload: Option<Value>,
    priority: Option<Value>,
    status: Option<Value>,
    #[serde(default, deserialize_with = "super::fields::given")]
    dedupe_key: Option<Value>,
    dedupe_window_seconds: Option<Value>,
    max_retries: Option<Value>,
    backoff_strategy: Option<Value>,
    #[serde(default, deserialize_with = "super::fields::given")]
    concurrency_key: Option<Value>,
    misfire_policy: Option<Value>,
    created_by: Option<Value>,
}

impl Screened for TaskBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        let ids = [
            &self.schedule_kind,
            &self.timezone,
            &self.status,
            &self.backoff_strategy,
            &self.misfire_policy,
            &self.created_by,
        ];
        ids.into_iter().flatten().filter_map(Value::as_str).for_each(|text| look(Place::Id, text));
        self.title.iter().filter_map(Value::as_str).for_each(|text| look(Place::Label, text));
        // Expressions and keys have grammars of their own, in which honest texts look like anything.
        let free = [&self.description, &self.dedupe_key, &self.concurrency_key];
        free.into_iter().flatten().filter_map(Value::as_str).for_each(|text| look(Place::FreeText, text));
        // The expression of an event is a topic, a label as where it is published.
        let topic = self.schedule_kind.as_ref().and_then(Value::as_str) == Some(ScheduleKind::Event.as_str());
        let place = if topic { Place::Label } else { Place::FreeText };
        self.schedule_expr.iter().filter_map(Value::as_str).for_each(|text| look(place, text));
        super::fields::texts(self.payload.as_ref(), look);
    }
}

impl TaskBody {
    /// Refuses members of steps that mean nothing, if the caller wants to know.
    fn strictly(self, headers: &HeaderMap) -> Result<Self, ApiError> {
        let unknown = if prefers(headers, "handling=strict") {
            self.payload.as_ref().map(unknown_members).unwrap_or_default()
        } else {
            Vec::new()
        };
        if unknown.is_empty() {
            return Ok(self);
        }
        let told = "A step has a member that is not known here.";
        let errors = unknown.into_iter().map(|place| FieldError {
            loc: ["body".into(), "payload".into()].into_iter().chain(place).collect(),
            kind: "unexpected".to_owned(),
            msg: told.to_owned(),
        });
        Err(ApiError::unprocessable(told, errors.collect()))
    }

    /// What the caller asked, for the digest of its key.
    fn asked(&self) -> Value {
        json!([
            self.title,
            self.description,
            self.schedule_kind,
            self.schedule_expr,
            self.timezone,
            self.payload,
            self.priority,
            self.status,
            self.dedupe_key,
            self.dedupe_window_seconds,
            self.max_retries,
            self.backoff_strategy,
            self.concurrency_key,
            self.misfire_policy,
            self.created_by,
        ])
    }

    fn new_task(self) -> Result<NewTask, ApiError> {
        let mut fields = Fields::default();
        let title = fields.required_text("title", self.title);
        let description = fields.required_text("description", self.description);
        let kind = fields.word("schedule_kind", self.schedule_kind.as_ref(), ScheduleKind::parse);
        if self.schedule_kind.is_none() {
            fields.missing("schedule_kind");
        }
        // A new task is active; another word is no reason to take one that is none.
        fields.word("status", self.status.as_ref(), TaskStatus::parse);
        let new = NewTask {
            title,
            description,
            schedule_kind: kind.unwrap_or(ScheduleKind::Manual),
            schedule_expr: fields.nullable_text("schedule_expr", self.schedule_expr).flatten(),
            timezone: fields.text("timezone", self.timezone),
            payload: fields.required_object("payload", self.payload),
            priority: fields.number("priority", self.priority.as_ref()).unwrap_or(5),
            dedupe_key: fields.nullable_text("dedupe_key", self.dedupe_key).flatten(),
            dedupe_window_seconds: fields
                .number("dedupe_window_seconds", self.dedupe_window_seconds.as_ref())
                .unwrap_or(0),
            max_retries: fields.number("max_retries", self.max_retries.as_ref()).unwrap_or(3),
            backoff_strategy: fields
                .word("backoff_strategy", self.backoff_strategy.as_ref(), Backoff::parse)
                .unwrap_or(Backoff::ExponentialJitter),
            concurrency_key: fields.nullable_text("concurrency_key", self.concurrency_key).flatten(),
            misfire_policy: fields
                .word("misfire_policy", self.misfire_policy.as_ref(), Misfire::parse)
                .unwrap_or(Misfire::RunOnce),
            created_by: fields.required::<Principal>("created_by", self.created_by),
        };
        fields.done()?;
        Ok(new)
    }

    fn change(self) -> Result<TaskChange, ApiError> {
        let mut fields = Fields::default();
        let change = TaskChange {
            title: fields.text("title", self.title),
            description: fields.text("description", self.description),
            schedule_kind: fields.word("schedule_kind", self.schedule_kind.as_ref(), ScheduleKind::parse),
            schedule_expr: fields.nullable_text("schedule_expr", self.schedule_expr),
            timezone: fields.text("timezone", self.timezone),
            payload: fields.object("payload", self.payload),
            priority: fields.number("priority", self.priority.as_ref()),
            status: fields.word("status", self.status.as_ref(), TaskStatus::parse),
            dedupe_key: fields.nullable_text("dedupe_key", self.dedupe_key),
            dedupe_window_seconds: fields
                .number("dedupe_window_seconds", self.dedupe_window_seconds.as_ref()),
            max_retries: fields.number("max_retries", self.max_retries.as_ref()),
            backoff_strategy: fields.word("backoff_strategy", self.backoff_strategy.as_ref(), Backoff::parse),
            concurrency_key: fields.nullable_text("concurrency_key", self.concurrency_key),
            misfire_policy: fields.word("misfire_policy", self.misfire_policy.as_ref(), Misfire::parse),
        };
        fields.done()?;
        Ok(change)
    }
}

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The answer, or the first one to the same request.
fn first_answer(
    made: Result<Value, TaskError>,
    status: StatusCode,
    render: impl FnOnce(Value) -> Value,
) -> Result<Response, ApiError> {
    match made {
        Ok(answer) => Ok((status, Json(render(answer))).into_response()),
        Err(TaskError::Repeated(text)) => {
            let answer = serde_json::from_str(&text).map_err(|error| ApiError::internal(&error))?;
            let mut response = (status, Json(render(answer))).into_response();
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

async fn create_task(
    grant: Granted<CreateTask>,
    State(orchestrator): State<Orchestrator>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<TaskBody>,
) -> Result<Response, ApiError> {
    let key = super::execute::idempotency_key(&headers)?;
    let keyed = key.map(|key| Keyed::new(key, "POST /tasks", &body.asked()));
    let made = orchestrator.create(&grant, body.strictly(&headers)?.new_task()?, keyed).await;
    first_answer(made, StatusCode::CREATED, |answer| answer)
}

#[derive(Debug, Deserialize)]
struct TasksQuery {
    status: Option<String>,
    created_by: Option<String>,
    schedule_kind: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn list_tasks(
    grant: Granted<ListTasks>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<TasksQuery>,
) -> Result<Json<PageAnswer<Value>>, ApiError> {
    let page = query.page.page()?;
    let filter = TasksFilter {
        created_by: query::text::<Principal>("created_by", query.created_by)?,
        status: query::word("status", query.status.as_ref(), TaskStatus::parse)?,
        kind: query::word("schedule_kind", query.schedule_kind.as_ref(), ScheduleKind::parse)?,
    };
    Ok(envelope(orchestrator.list(&grant, filter, page).await?, page))
}

async fn show_task(
    grant: Granted<ReadTask>,
    State(orchestrator): State<Orchestrator>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(orchestrator.get(&grant).await?))
}

async fn update_task(
    grant: Granted<UpdateTask>,
    State(orchestrator): State<Orchestrator>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<TaskBody>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(orchestrator.update(&grant, body.strictly(&headers)?.change()?).await?))
}

/// The body of what needs none: it is read all the same, so that it has the bounds and the form of any other.
#[derive(Debug, Deserialize)]
struct Nothing {}

impl Screened for Nothing {
    fn texts(&self, _: &mut dyn FnMut(Place, &str)) {}
}

async fn run_task(
    grant: Granted<RunTask>,
    State(orchestrator): State<Orchestrator>,
    headers: HeaderMap,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Response, ApiError> {
    let key = super::execute::idempotency_key(&headers)?;
    let keyed = key.map(|key| Keyed::new(key, "run_now", &json!(grant.target().task_id)));
    let made = orchestrator.run_now(&grant, keyed).await;
    first_answer(
        made,
        StatusCode::OK,
        |details| json!({ "success": true, "message": "Task queued to run now", "details": details }),
    )
}

#[derive(Debug, Deserialize)]
struct SnoozeBody {
    delay_seconds: Option<Value>,
    reason: Option<Value>,
}

impl Screened for SnoozeBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.reason.iter().filter_map(Value::as_str).for_each(|text| look(Place::FreeText, text));
    }
}

async fn snooze_task(
    grant: Granted<SnoozeTask>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(body): JsonBody<SnoozeBody>,
) -> Result<Json<Operation>, ApiError> {
    let mut fields = Fields::default();
    let seconds = fields.number("delay_seconds", body.delay_seconds.as_ref());
    if body.delay_seconds.is_none() {
        fields.missing("delay_seconds");
    }
    let reason = fields.text("reason", body.reason);
    fields.done()?;
    let seconds = seconds.unwrap_or_default();
    let snoozed = orchestrator.snooze(&grant, seconds, reason).await?;
    let details = json!({
        "task_id": grant.target().task_id, "delay_seconds": seconds, "affected_work_items": snoozed.affected,
        "next_due_at": snoozed.next,
    });
    Ok(Json(Operation::done(format!("Task snoozed for {seconds} seconds"), Some(details))))
}

#[derive(Debug, Deserialize)]
struct SkipBody {
    due_at: Option<Value>,
    reason: Option<Value>,
}

impl Screened for SkipBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        self.due_at.iter().filter_map(Value::as_str).for_each(|text| look(Place::Id, text));
        self.reason.iter().filter_map(Value::as_str).for_each(|text| look(Place::FreeText, text));
    }
}

async fn skip_task(
    grant: Granted<SkipTask>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(body): JsonBody<SkipBody>,
) -> Result<Json<Operation>, ApiError> {
    let mut fields = Fields::default();
    let expected = fields.time("due_at", body.due_at.as_ref());
    let reason = fields.text("reason", body.reason);
    fields.done()?;
    let skipped = orchestrator.skip(&grant, expected, reason).await?;
    let details = json!({ "task_id": grant.target().task_id, "skipped_due_at": skipped.due, "next_due_at": skipped.next });
    Ok(Json(Operation::done(format!("Due time {} skipped", skipped.due), Some(details))))
}

#[derive(Debug, Deserialize)]
struct DueQuery {
    count: Option<String>,
}

async fn due_times(
    grant: Granted<ReadTask>,
    State(orchestrator): State<Orchestrator>,
    Query(query): Query<DueQuery>,
) -> Result<Json<Value>, ApiError> {
    let count = query::value("count", query.count.as_ref(), "1 to 100", |text| {
        text.parse().ok().filter(|count| (1..=100).contains(count))
    })?;
    Ok(Json(json!({ "times": orchestrator.due_times(&grant, count.unwrap_or(10)).await? })))
}

fn moved(
    id: &str,
    change: interlock_engine::orchestrator::StatusChange,
    done: &str,
    already: &str,
) -> Json<Operation> {
    let (message, details) = if change.old == change.new {
        (already, json!({ "task_id": id, "status": change.new }))
    } else {
        (done, json!({ "task_id": id, "old_status": change.old, "new_status": change.new }))
    };
    Json(Operation::done(message, Some(details)))
}

async fn pause_task(
    grant: Granted<PauseTask>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Operation>, ApiError> {
    let change = orchestrator.pause(&grant).await?;
    Ok(moved(&grant.target().task_id, change, "Task paused", "Task is paused already"))
}

async fn resume_task(
    grant: Granted<ResumeTask>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Operation>, ApiError> {
    let change = orchestrator.resume(&grant).await?;
    Ok(moved(&grant.target().task_id, change, "Task resumed", "Task is active already"))
}

async fn cancel_task(
    grant: Granted<CancelTask>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Operation>, ApiError> {
    let done = orchestrator.cancel(&grant).await?;
    let details = json!({
        "task_id": grant.target().task_id, "removed_work_items": done.removed, "running_work_items": done.told,
    });
    Ok(Json(Operation::done("Task canceled", Some(details))))
}

#[derive(Debug, Deserialize)]
struct PreviewBody {
    schedule_kind: Option<Value>,
    schedule_expr: Option<Value>,
    timezone: Option<Value>,
    from: Option<Value>,
    count: Option<Value>,
}

impl Screened for PreviewBody {
    fn texts(&self, look: &mut dyn FnMut(Place, &str)) {
        let ids = [&self.schedule_kind, &self.timezone, &self.from];
        ids.into_iter().flatten().filter_map(Value::as_str).for_each(|text| look(Place::Id, text));
        self.schedule_expr.iter().filter_map(Value::as_str).for_each(|text| look(Place::FreeText, text));
    }
}

async fn preview_schedule(
    grant: Granted<PreviewSchedule>,
    State(orchestrator): State<Orchestrator>,
    JsonBody(body): JsonBody<PreviewBody>,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::default();
    let kind = fields.word("schedule_kind", body.schedule_kind.as_ref(), ScheduleKind::parse);
    if body.schedule_kind.is_none() {
        fields.missing("schedule_kind");
    }
    let count = fields.number("count", body.count.as_ref()).unwrap_or(10);
    if !(1..=100).contains(&count) {
        fields.wrong("count", "range", "'count' must be 1 to 100");
    }
    let asked = Preview {
        schedule_kind: kind.unwrap_or(ScheduleKind::Manual),
        schedule_expr: fields.text("schedule_expr", body.schedule_expr),
        timezone: fields.text("timezone", body.timezone),
        from: fields.time("from", body.from.as_ref()),
        count: usize::try_from(count).unwrap_or(1),
    };
    fields.done()?;
    let times = orchestrator.preview(&grant, asked)?;
    Ok(Json(json!({ "times": times })))
}

async fn list_tools(grant: Granted<ListTools>, State(orchestrator): State<Orchestrator>) -> Json<Value> {
    Json(orchestrator.tools(&grant))
}
