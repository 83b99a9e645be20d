//! What callers can do with tasks.

use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::action::{
    CancelTask, CreateTask, ListTasks, PauseTask, PreviewSchedule, ReadTask, ResumeTask, RunTask, SkipTask,
    SnoozeTask, TaskTarget, UpdateTask,
};
use interlock_model::pipeline::{Condition, Loc};
use interlock_model::schedule::Schedule;
use interlock_model::task::{Backoff, Misfire, ScheduleKind, TaskId, TaskRunId, TaskStatus, Trigger};
use interlock_model::text::{DedupeKey, Description, Form, Remark, Title};
use interlock_store::orchestrator::{Changes, NewRun, TaskRow, TasksFilter};
use interlock_store::{Error, Page, Paged};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Orchestrator;
use crate::auth::{Caller, Permit, Recorded};

/// How long the answer to a request is kept under its key.
const ANSWERS: Duration = Duration::from_hours(24);
/// Longest dedupe window: ten years.
const LONGEST_WINDOW: i64 = 10 * 366 * 86_400;
/// Longest wait that snoozing adds, in seconds: a week.
const LONGEST_SNOOZE: i64 = 604_800;
/// Longest payload, in bytes of JSON.
pub(super) const LARGEST_PAYLOAD: usize = 1 << 20;

/// Why something was not done with a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Fields that cannot be used: where in the body, and what is wrong.
    #[error("some fields cannot be used")]
    Fields(Vec<Fault>),
    /// There is none, or the caller may not know.
    #[error("task not found")]
    NoSuchTask,
    /// The id is no UUID.
    #[error("the id of a task is a UUID")]
    NotAnId,
    /// Somebody else's name.
    #[error("created_by must be you; only an administrator can name somebody else")]
    NotYou,
    /// Nobody's name.
    #[error("created_by names nobody who is active here")]
    NoSuchCreator,
    /// The dedupe key is in use.
    #[error("another task with this dedupe_key is not canceled")]
    DuplicateDedupeKey,
    /// It is over.
    #[error("the task is canceled, which is final")]
    Canceled,
    /// It has no due time.
    #[error("the task has no due time")]
    NothingDue,
    /// Its next due time is another one.
    #[error("the task is due at another time")]
    DueChanged,
    /// It is paused.
    #[error("the task is not active")]
    NotActive,
    /// The window of its dedupe key admits no run now.
    #[error("a run was triggered within dedupe_window_seconds before; nothing was done")]
    WithinWindow,
    /// Another request had this key.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// The first answer to the same request.
    #[error("the request was answered before")]
    Repeated(String),
    /// The storage's.
    #[error("store the task")]
    Store(#[from] Error),
}

/// What a task is made of. Texts are as the caller sent them.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// For people, one line.
    pub title: String,
    /// For people.
    pub description: String,
    /// When it runs.
    pub schedule_kind: ScheduleKind,
    /// Rule, time, topic or condition.
    pub schedule_expr: Option<String>,
    /// IANA zone; else the server's.
    pub timezone: Option<String>,
    /// Parameters and pipeline.
    pub payload: Value,
    /// 1 to 9.
    pub priority: i64,
    /// Unique for each creator.
    pub dedupe_key: Option<String>,
    /// In seconds.
    pub dedupe_window_seconds: i64,
    /// 0 to 10.
    pub max_retries: i64,
    /// Wait between attempts.
    pub backoff_strategy: Backoff,
    /// One run at a time.
    pub concurrency_key: Option<String>,
    /// What becomes of missed due times.
    pub misfire_policy: Misfire,
    /// Whose task it is.
    pub created_by: String,
}

/// What to change; `None` leaves it.
#[derive(Clone, Debug, Default)]
pub struct TaskChange {
    /// For people, one line.
    pub title: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// When it runs.
    pub schedule_kind: Option<ScheduleKind>,
    /// Rule, time, topic or condition; the inner `None` removes it.
    pub schedule_expr: Option<Option<String>>,
    /// IANA zone.
    pub timezone: Option<String>,
    /// Parameters and pipeline.
    pub payload: Option<Value>,
    /// 1 to 9.
    pub priority: Option<i64>,
    /// `active` or `paused`; `canceled` ends it.
    pub status: Option<TaskStatus>,
    /// Unique for each creator; the inner `None` removes it.
    pub dedupe_key: Option<Option<String>>,
    /// In seconds.
    pub dedupe_window_seconds: Option<i64>,
    /// 0 to 10.
    pub max_retries: Option<i64>,
    /// Wait between attempts.
    pub backoff_strategy: Option<Backoff>,
    /// One run at a time; the inner `None` removes it.
    pub concurrency_key: Option<Option<String>>,
    /// What becomes of missed due times.
    pub misfire_policy: Option<Misfire>,
}

/// What snoozing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snoozed {
    /// Runs, or next occurrences, that wait longer.
    pub affected: u64,
    /// When the task is due next.
    pub next: Option<Timestamp>,
}

/// What skipping did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The due time that was left out.
    pub due: Timestamp,
    /// When the task is due next.
    pub next: Option<Timestamp>,
}

/// What pausing or resuming did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusChange {
    /// Before.
    pub old: TaskStatus,
    /// Now.
    pub new: TaskStatus,
}

/// What cancelling did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// Runs that had not begun.
    pub removed: u64,
    /// Runs that were told to end.
    pub told: usize,
}

/// A schedule to look at.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Kind.
    pub schedule_kind: ScheduleKind,
    /// Its text.
    pub schedule_expr: Option<String>,
    /// Its zone; else the server's.
    pub timezone: Option<String>,
    /// Times after this.
    pub from: Option<Timestamp>,
    /// 1 to 100.
    pub count: usize,
}

/// A due time's run: see [`TaskRunId::of_due`].
pub(super) fn run_of_due(task: TaskId, due: Timestamp) -> TaskRunId {
    let mut hash = Sha256::new();
    hash.update(task.as_bytes());
    hash.update(due.micros().to_be_bytes());
    TaskRunId::of_due(due, &hash.finalize().into())
}

fn field(name: &str) -> Vec<Loc> {
    vec!["body".into(), name.into()]
}

/// Where something is wrong, and what.
type Fault = (Vec<Loc>, String);

impl From<Fault> for TaskError {
    fn from(fault: Fault) -> Self {
        Self::Fields(vec![fault])
    }
}

/// Collects what is wrong, so that a caller learns all of it at once.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, name: &str, message: impl Into<String>) {
        self.0.push((field(name), message.into()));
    }

    fn text<F: Form>(&mut self, name: &str, text: Option<&String>) {
        if let Some(Err(breach)) = text.map(|text| F::RULE.check(text)) {
            self.add(name, format!("'{name}' {breach}"));
        }
    }

    fn range(&mut self, name: &str, number: i64, from: i64, to: i64) {
        if !(from..=to).contains(&number) {
            self.add(name, format!("'{name}' must be {from} to {to}"));
        }
    }

    fn done(self) -> Result<(), TaskError> {
        if self.0.is_empty() { Ok(()) } else { Err(TaskError::Fields(self.0)) }
    }
}

fn same_answer(kept: Option<([u8; 32], String)>, digest: &[u8; 32]) -> Result<(), TaskError> {
    match kept {
        None => Ok(()),
        Some((first, answer)) if first == *digest => Err(TaskError::Repeated(answer)),
        Some(_) => Err(TaskError::KeyReused),
    }
}

/// A request that may be repeated under its key.
#[derive(Clone, Debug)]
pub struct Keyed {
    /// The caller's key.
    pub key: String,
    /// SHA-256 over what is asked.
    pub digest: [u8; 32],
}

impl Keyed {
    /// Of a request to `route` with this body.
    pub fn new(key: String, route: &str, body: &Value) -> Self {
        let mut hash = Sha256::new();
        hash.update(route.as_bytes());
        hash.update([0]);
        hash.update(body.to_string().as_bytes());
        Self { key, digest: hash.finalize().into() }
    }
}

/// Keeps `answer` under the key, or finds that somebody was faster: then everything is undone.
async fn keep_answer(
    all: &mut Changes<'_>,
    keyed: Option<&Keyed>,
    actor: &str,
    answer: &Value,
    times: (Timestamp, Timestamp),
) -> Result<(), TaskError> {
    let Some(keyed) = keyed else { return Ok(()) };
    if all.keep_answer(actor, &keyed.key, &keyed.digest, &answer.to_string(), times).await? {
        return Ok(());
    }
    same_answer(all.reads().answer(actor, &keyed.key, times.0).await?, &keyed.digest)?;
    Err(TaskError::KeyReused)
}

/// A task as clients see it.
fn view(task: &TaskRow, due: Option<Timestamp>) -> Value {
    json!({
        "id": task.id, "title": task.title, "description": task.description, "schedule_kind": task.kind,
        "schedule_expr": task.expression, "timezone": task.zone, "payload": task.payload, "priority": task.priority,
        "dedupe_key": task.dedupe_key, "dedupe_window_seconds": task.dedupe_window_seconds, "max_retries": task.max_retries,
        "backoff_strategy": task.backoff, "concurrency_key": task.concurrency_key, "misfire_policy": task.misfire,
        "created_by": task.created_by, "status": task.status, "created_at": task.created_at, "updated_at": task.updated_at,
        "next_due_at": due,
    })
}

impl Orchestrator {
    /// The schedule of a task as it stands, or what is wrong with it.
    fn schedule_of(task: &TaskRow) -> Result<Schedule, Fault> {
        if task.kind == ScheduleKind::Condition {
            Condition::compile(task.expression.as_deref().unwrap_or(""))
                .map_err(|message| (field("schedule_expr"), message))?;
        }
        Schedule::parse(task.kind, task.expression.as_deref(), &task.zone, task.anchor)
            .map_err(|error| (field(error.field.loc()), error.message))
    }

    /// Finds what is wrong with a task; gives its schedule if nothing is.
    fn checked(&self, task: &TaskRow, numbers: (i64, i64)) -> Result<Schedule, TaskError> {
        let mut faults = Faults::default();
        faults.text::<Title>("title", Some(&task.title));
        faults.text::<Description>("description", Some(&task.description));
        faults.range("priority", numbers.0, 1, 9);
        faults.range("max_retries", numbers.1, 0, 10);
        faults.range("dedupe_window_seconds", task.dedupe_window_seconds, 0, LONGEST_WINDOW);
        faults.text::<DedupeKey>("dedupe_key", task.dedupe_key.as_ref());
        faults.text::<DedupeKey>("concurrency_key", task.concurrency_key.as_ref());
        let schedule = Self::schedule_of(task);
        if let Err(fault) = &schedule {
            faults.0.push(fault.clone());
        }
        if task.payload.to_string().len() > LARGEST_PAYLOAD {
            faults.add("payload", format!("'payload' must have at most {LARGEST_PAYLOAD} bytes as JSON"));
        } else if let Err(mistakes) = self.compile(&task.payload, &task.created_by) {
            for mistake in mistakes {
                let place = field("payload").into_iter().chain(mistake.loc).collect();
                faults.0.push((place, mistake.message));
            }
        }
        faults.done()?;
        Ok(schedule?)
    }

    /// Whose task it may be.
    fn creator(&self, caller: &Caller, wanted: &str) -> Result<String, TaskError> {
        // An agent's id is one thing, however it is written.
        let wanted = wanted
            .parse::<interlock_model::AgentId>()
            .map_or_else(|_| wanted.to_owned(), |id| id.to_string());
        if wanted == caller.name() {
            return Ok(wanted);
        }
        // Acting in the name of others is for administrators, not for everyone who sees what belongs to others.
        if !caller.grants().holds_scope("agents:manage") {
            return Err(TaskError::NotYou);
        }
        self.grants_of(&wanted).map(|_| wanted).ok_or(TaskError::NoSuchCreator)
    }

    /// By which time an older answer is forgotten, and until when one of `now` is kept.
    fn times_of_answer(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        (self.0.ambient.clock.settled(), now.plus(ANSWERS))
    }

    /// The first answer to a request that was made before under the same key.
    async fn answered(&self, caller: &Caller, keyed: Option<&Keyed>) -> Result<(), TaskError> {
        let Some(Keyed { key, digest }) = keyed.cloned() else { return Ok(()) };
        let (actor, now) = (caller.name().to_owned(), self.0.ambient.clock.settled());
        let kept =
            self.ask(move |mut reads| Box::pin(async move { reads.answer(&actor, &key, now).await })).await?;
        same_answer(kept, &digest)
    }

    /// Makes a task and schedules it.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn create(
        &self,
        permit: &Permit<CreateTask>,
        new: NewTask,
        keyed: Option<Keyed>,
    ) -> Result<Value, TaskError> {
        self.answered(permit.caller(), keyed.as_ref()).await?;
        let now = self.now();
        let created_by = self.creator(permit.caller(), &new.created_by)?;
        let numbers = (new.priority, new.max_retries);
        let task = TaskRow {
            id: TaskId::new(now, &*self.0.ambient.entropy),
            title: new.title,
            description: new.description,
            kind: new.schedule_kind,
            expression: new.schedule_expr,
            zone: new.timezone.unwrap_or_else(|| self.0.settings.default_zone.clone()),
            anchor: now,
            payload: new.payload,
            status: TaskStatus::Active,
            priority: u8::try_from(new.priority).unwrap_or_default(),
            dedupe_key: new.dedupe_key,
            dedupe_window_seconds: new.dedupe_window_seconds,
            max_retries: u8::try_from(new.max_retries).unwrap_or_default(),
            backoff: new.backoff_strategy,
            concurrency_key: new.concurrency_key,
            misfire: new.misfire_policy,
            created_by,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let schedule = self.checked(&task, numbers)?;
        let due = schedule.next_after(now);
        let (kind, owner, subject) = (task.kind, task.created_by.clone(), task.id.to_string());
        let actor = permit.caller().name().to_owned();
        let times = self.times_of_answer(now);
        let answer = self
            .0
            .db
            .write_about(permit, Some(subject), move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    if !all.insert_task(&task).await? {
                        return Err(TaskError::DuplicateDedupeKey);
                    }
                    if due.is_some() {
                        all.set_due(task.id, due).await?;
                    }
                    let answer = view(&task, due);
                    keep_answer(&mut all, keyed.as_ref(), &actor, &answer, times).await?;
                    let details =
                        json!({ "title": task.title, "schedule_kind": task.kind, "created_by": task.created_by });
                    Ok(Recorded { value: answer, details })
                })
            })
            .await?;
        super::metrics::task_created(kind.as_str(), &owner);
        if due.is_some() {
            self.tell_schedule();
        }
        Ok(answer)
    }

    fn id(target: &TaskTarget) -> Result<TaskId, TaskError> {
        target.task_id.parse().map_err(|_| TaskError::NotAnId)
    }

    /// One task.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn get(&self, permit: &Permit<ReadTask>) -> Result<Value, TaskError> {
        let id = Self::id(permit.target())?;
        let (task, due) = self.seen(permit.caller(), id).await?;
        Ok(view(&task, due))
    }

    async fn seen(&self, caller: &Caller, id: TaskId) -> Result<(TaskRow, Option<Timestamp>), TaskError> {
        let (task, due) = self
            .ask(move |mut reads| {
                Box::pin(async move { Ok((reads.task(id).await?, reads.due_of(id).await?)) })
            })
            .await?;
        let task = task.filter(|task| caller.reaches(&task.created_by));
        task.map(|task| (task, due)).ok_or(TaskError::NoSuchTask)
    }

    /// When a task is due: the next time as it stands, with what was snoozed or skipped, and those of its schedule behind it.
    /// For a paused task the times that it would have if it were resumed now.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn due_times(
        &self,
        permit: &Permit<ReadTask>,
        count: usize,
    ) -> Result<Vec<Timestamp>, TaskError> {
        let (task, due) = self.seen(permit.caller(), Self::id(permit.target())?).await?;
        if task.status == TaskStatus::Canceled || (task.status == TaskStatus::Active && due.is_none()) {
            return Ok(Vec::new());
        }
        let schedule = Self::schedule_of(&task)?;
        let mut times = Vec::from_iter(due);
        let after = due.unwrap_or_else(|| self.now());
        times.extend(schedule.times_after(after, count.saturating_sub(times.len())));
        Ok(times)
    }

    /// Tasks, newest first. Agents see their own, unless they administer.
    ///
    /// # Errors
    /// The storage's.
    pub async fn list(
        &self,
        permit: &Permit<ListTasks>,
        mut filter: TasksFilter,
        page: Page,
    ) -> Result<Paged<Value>, Error> {
        if let Some(own) = Self::visible(permit.caller()) {
            if filter.created_by.as_ref().is_some_and(|wanted| *wanted != own) {
                return Ok(Paged { items: Vec::new(), total: 0 });
            }
            filter.created_by = Some(own);
        }
        let found =
            self.ask(move |mut reads| Box::pin(async move { reads.tasks(&filter, page).await })).await?;
        let items = found.items.iter().map(|(task, due)| view(task, *due)).collect();
        Ok(Paged { items, total: found.total })
    }

    /// When a schedule would be due.
    ///
    /// # Errors
    /// [`TaskError::Fields`].
    pub fn preview(
        &self,
        _permit: &Permit<PreviewSchedule>,
        asked: Preview,
    ) -> Result<Vec<Timestamp>, TaskError> {
        let zone = asked.timezone.unwrap_or_else(|| self.0.settings.default_zone.clone());
        let from = asked.from.unwrap_or_else(|| self.now());
        let parsed = Schedule::parse(asked.schedule_kind, asked.schedule_expr.as_deref(), &zone, from);
        let schedule = parsed.map_err(|error| TaskError::from((field(error.field.loc()), error.message)))?;
        Ok(schedule.times_after(from, asked.count))
    }

    /// The first due time after now that has no run yet. Clocks of servers differ: without the second look, a due time that
    /// another server has served a moment ago by its own clock would come again.
    async fn next_due(
        all: &mut Changes<'_>,
        task: TaskId,
        schedule: &Schedule,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Error> {
        let mut after = now;
        // Clocks may differ by hours; a rule for each second ends the search all the same.
        for _ in 0..1_000 {
            let Some(due) = schedule.next_after(after) else { return Ok(None) };
            if !all.reads().run_exists(run_of_due(task, due)).await? {
                return Ok(Some(due));
            }
            after = due;
        }
        Ok(schedule.next_after(after))
    }

    /// Changes a task. A new schedule is in force at once.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn update(&self, permit: &Permit<UpdateTask>, change: TaskChange) -> Result<Value, TaskError> {
        let id = Self::id(permit.target())?;
        let now = self.now();
        let reaching = Self::reaching(permit.caller());
        let this = self.clone();
        let answer = self
            .0
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let mut task = reached(&mut all, id, &reaching).await?;
                    let before = task.clone();
                    if before.status == TaskStatus::Canceled {
                        return Err(TaskError::Canceled);
                    }
                    let mut numbers = (i64::from(task.priority), i64::from(task.max_retries));
                    let mut fields = Vec::new();
                    macro_rules! set {
                        ($($given:ident => $name:ident;)*) => {$(
                            if let Some(value) = change.$given {
                                task.$name = value;
                                fields.push(stringify!($given));
                            }
                        )*};
                    }
                    set! {
                        title => title;
                        description => description;
                        schedule_kind => kind;
                        schedule_expr => expression;
                        timezone => zone;
                        payload => payload;
                        status => status;
                        dedupe_key => dedupe_key;
                        dedupe_window_seconds => dedupe_window_seconds;
                        backoff_strategy => backoff;
                        concurrency_key => concurrency_key;
                        misfire_policy => misfire;
                    }
                    if let Some(priority) = change.priority {
                        numbers.0 = priority;
                        task.priority = u8::try_from(priority).unwrap_or_default();
                        fields.push("priority");
                    }
                    if let Some(retries) = change.max_retries {
                        numbers.1 = retries;
                        task.max_retries = u8::try_from(retries).unwrap_or_default();
                        fields.push("max_retries");
                    }
                    let rescheduled = ["schedule_kind", "schedule_expr", "timezone"]
                        .iter()
                        .any(|name| fields.contains(name));
                    if rescheduled {
                        task.anchor = now;
                    }
                    if task.kind == ScheduleKind::Manual && change_drops_expression(&fields) {
                        task.expression = None;
                    }
                    let schedule = this.checked(&task, numbers)?;
                    task.updated_at = now;
                    task.version += 1;
                    if !all.update_task(&task).await? {
                        return Err(TaskError::DuplicateDedupeKey);
                    }
                    this.move_status(&mut all, &before, &task, &schedule, rescheduled, now).await?;
                    let due = all.due_of(task.id).await?;
                    Ok(Recorded { value: view(&task, due), details: json!({ "updated_fields": fields }) })
                })
            })
            .await?;
        self.tell_schedule();
        Ok(answer)
    }

    /// Brings due time and queue in line with a changed task.
    async fn move_status(
        &self,
        all: &mut Changes<'_>,
        before: &TaskRow,
        task: &TaskRow,
        schedule: &Schedule,
        rescheduled: bool,
        now: Timestamp,
    ) -> Result<(), TaskError> {
        match (before.status, task.status) {
            (_, TaskStatus::Canceled) => {
                all.set_due(task.id, None).await?;
                all.withdraw(task.id, "the task was canceled", now).await?;
            }
            (TaskStatus::Active, TaskStatus::Paused) => {
                all.set_due(task.id, None).await?;
                all.hold(task.id).await?;
            }
            (TaskStatus::Paused, TaskStatus::Active) => {
                let due = Self::next_due(all, task.id, schedule, now).await?;
                all.set_due(task.id, due).await?;
                all.unhold(task.id).await?;
            }
            (_, TaskStatus::Active) if rescheduled => {
                let due = Self::next_due(all, task.id, schedule, now).await?;
                all.set_due(task.id, due).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the caller of this permit may see and change a task.
    fn reaching(caller: &Caller) -> impl Fn(&TaskRow) -> bool + Clone + Send + Sync + use<> {
        let own = Self::visible(caller);
        move |task: &TaskRow| own.as_ref().is_none_or(|own| *own == task.created_by)
    }

    /// Has a task run now. Answers with the number of the run in the queue and its id.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn run_now(&self, permit: &Permit<RunTask>, keyed: Option<Keyed>) -> Result<Value, TaskError> {
        self.answered(permit.caller(), keyed.as_ref()).await?;
        let id = Self::id(permit.target())?;
        let now = self.now();
        let run = TaskRunId::new(now, &*self.0.ambient.entropy);
        let reaching = Self::reaching(permit.caller());
        let actor = permit.caller().name().to_owned();
        let times = self.times_of_answer(now);
        let answer = self
            .0
            .db
            .write_repeatable(permit, move |tx| {
                let (keyed, reaching, actor) = (keyed.clone(), reaching.clone(), actor.clone());
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let task = reached_active(&mut all, id, &reaching).await?;
                    if !all.trigger(task.id, task.dedupe_window_seconds, now).await? {
                        return Err(TaskError::WithinWindow);
                    }
                    all.enqueue(&[new_run(&task, run, Trigger::Manual, now)]).await?;
                    let number = all.queue_number(run).await?.unwrap_or_default();
                    let answer = json!({ "task_id": task.id, "due_work_id": number, "run_id": run });
                    keep_answer(&mut all, keyed.as_ref(), &actor, &answer, times).await?;
                    Ok(Recorded { value: answer, details: json!({ "due_work_id": number, "run_id": run }) })
                })
            })
            .await?;
        self.tell_work();
        Ok(answer)
    }

    /// Has what waits of a task wait longer; with nothing waiting, its next occurrence.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn snooze(
        &self,
        permit: &Permit<SnoozeTask>,
        seconds: i64,
        reason: Option<String>,
    ) -> Result<Snoozed, TaskError> {
        let id = Self::id(permit.target())?;
        let mut faults = Faults::default();
        faults.range("delay_seconds", seconds, 1, LONGEST_SNOOZE);
        faults.text::<Remark>("reason", reason.as_ref());
        faults.done()?;
        let now = self.now();
        let reaching = Self::reaching(permit.caller());
        let snoozed = self
            .0
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let task = reached_active(&mut all, id, &reaching).await?;
                    let mut affected = all.delay(task.id, seconds * 1_000_000, now).await?;
                    let mut next = all.due_of(task.id).await?;
                    if affected == 0
                        && let Some(due) = next
                    {
                        next = Some(due.max(now).plus(Duration::from_secs(seconds.unsigned_abs())));
                        all.set_due(task.id, next).await?;
                        affected = 1;
                    }
                    let details =
                        json!({ "delay_seconds": seconds, "reason": reason, "affected_work_items": affected });
                    Ok::<_, TaskError>(Recorded { value: Snoozed { affected, next }, details })
                })
            })
            .await?;
        self.tell_schedule();
        Ok(snoozed)
    }

    /// Leaves the next due time of a task out. With `expected`, only if that is the one.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn skip(
        &self,
        permit: &Permit<SkipTask>,
        expected: Option<Timestamp>,
        reason: Option<String>,
    ) -> Result<Skipped, TaskError> {
        let id = Self::id(permit.target())?;
        let mut faults = Faults::default();
        faults.text::<Remark>("reason", reason.as_ref());
        faults.done()?;
        let reaching = Self::reaching(permit.caller());
        let skipped = self
            .0
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let task = reached_active(&mut all, id, &reaching).await?;
                    let due = all.due_of(task.id).await?.ok_or(TaskError::NothingDue)?;
                    if expected.is_some_and(|expected| expected != due) {
                        return Err(TaskError::DueChanged);
                    }
                    let schedule = Self::schedule_of(&task)?;
                    let next = Self::next_due(&mut all, task.id, &schedule, due).await?;
                    all.set_due(task.id, next).await?;
                    let details = json!({ "due_at": due, "next_due_at": next, "reason": reason });
                    Ok::<_, TaskError>(Recorded { value: Skipped { due, next }, details })
                })
            })
            .await?;
        self.tell_schedule();
        Ok(skipped)
    }

    /// Stops a task from running by itself. What waits does not begin.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn pause(&self, permit: &Permit<PauseTask>) -> Result<StatusChange, TaskError> {
        self.set_status(permit, permit.target(), permit.caller(), TaskStatus::Paused).await
    }

    /// Lets a task run by itself again, from now on.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn resume(&self, permit: &Permit<ResumeTask>) -> Result<StatusChange, TaskError> {
        self.set_status(permit, permit.target(), permit.caller(), TaskStatus::Active).await
    }

    async fn set_status<P: crate::auth::Proof + ?Sized>(
        &self,
        proof: &P,
        target: &TaskTarget,
        caller: &Caller,
        status: TaskStatus,
    ) -> Result<StatusChange, TaskError> {
        let id = Self::id(target)?;
        let now = self.now();
        let reaching = Self::reaching(caller);
        let this = self.clone();
        let change = self
            .0
            .db
            .write(proof, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let mut task = reached(&mut all, id, &reaching).await?;
                    let before = task.clone();
                    if before.status == TaskStatus::Canceled {
                        return Err(TaskError::Canceled);
                    }
                    if before.status != status {
                        task.status = status;
                        task.updated_at = now;
                        task.version += 1;
                        let schedule = Self::schedule_of(&task)?;
                        all.update_task(&task).await?;
                        this.move_status(&mut all, &before, &task, &schedule, false, now).await?;
                    }
                    let details = json!({ "old_status": before.status, "new_status": status });
                    Ok(Recorded { value: StatusChange { old: before.status, new: status }, details })
                })
            })
            .await?;
        self.tell_schedule();
        Ok(change)
    }

    /// Ends a task for good: what waits is over, what runs is told to end.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn cancel(&self, permit: &Permit<CancelTask>) -> Result<Cancelled, TaskError> {
        let id = Self::id(permit.target())?;
        let now = self.now();
        let reaching = Self::reaching(permit.caller());
        let done = self
            .0
            .db
            .write(permit, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let mut task = reached(&mut all, id, &reaching).await?;
                    if task.status != TaskStatus::Canceled {
                        task.status = TaskStatus::Canceled;
                        task.updated_at = now;
                        task.version += 1;
                        all.update_task(&task).await?;
                        all.set_due(task.id, None).await?;
                    }
                    let removed = all.withdraw(task.id, "the task was canceled", now).await?;
                    let value = Cancelled { removed: removed.removed, told: removed.told.len() };
                    Ok::<_, TaskError>(Recorded {
                        value,
                        details: json!({ "removed_work_items": removed.removed }),
                    })
                })
            })
            .await?;
        self.tell_work();
        Ok(done)
    }
}

/// The task inside a write, if the caller may reach it.
async fn reached(
    all: &mut Changes<'_>,
    id: TaskId,
    reaching: &(impl Fn(&TaskRow) -> bool + Sync),
) -> Result<TaskRow, TaskError> {
    all.task(id).await?.filter(|task| reaching(task)).ok_or(TaskError::NoSuchTask)
}

/// As [`reached`], and the task acts by itself.
async fn reached_active(
    all: &mut Changes<'_>,
    id: TaskId,
    reaching: &(impl Fn(&TaskRow) -> bool + Sync),
) -> Result<TaskRow, TaskError> {
    let task = reached(all, id, reaching).await?;
    match task.status {
        TaskStatus::Active => Ok(task),
        TaskStatus::Paused => Err(TaskError::NotActive),
        TaskStatus::Canceled => Err(TaskError::Canceled),
    }
}

/// A task that becomes manual loses its expression unless the same change gives one, which is then refused.
fn change_drops_expression(fields: &[&str]) -> bool {
    fields.contains(&"schedule_kind") && !fields.contains(&"schedule_expr")
}

/// The first attempt of a trigger.
pub(super) fn new_run(task: &TaskRow, run: TaskRunId, trigger: Trigger, now: Timestamp) -> NewRun {
    NewRun {
        run,
        lineage: run,
        task: task.id,
        owner: task.created_by.clone(),
        attempt: 1,
        trigger,
        scheduled_for: None,
        event: None,
        priority: task.priority,
        ready_at: now,
        concurrency_key: task.concurrency_key.clone(),
        created_at: now,
    }
}
