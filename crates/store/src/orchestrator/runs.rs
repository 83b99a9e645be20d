//! Runs as people read them: those in the queue and those that are over, in one list.

use interlock_model::Timestamp;
use interlock_model::pipeline::RunOutput;
use interlock_model::task::{TaskId, TaskRunId, TaskRunState, Trigger};
use serde_json::Value as Json;

use super::{Changes, Claimed, Reads, word};
use crate::sql::{Kind, Row, Table, Value, values};
use crate::{Error, Page, Paged, codec};

/// A run as people read it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRunRow {
    /// This attempt.
    pub id: TaskRunId,
    /// The first attempt of the same trigger.
    pub lineage: TaskRunId,
    /// Of which task.
    pub task: TaskId,
    /// Whose it is.
    pub owner: String,
    /// Where it is.
    pub state: TaskRunState,
    /// From 1.
    pub attempt: u32,
    /// What made it.
    pub trigger: Trigger,
    /// The due time.
    pub scheduled_for: Option<Timestamp>,
    /// Who holds it, or held it last.
    pub worker: Option<String>,
    /// Safe text.
    pub error: Option<String>,
    /// What the pipeline returned; lists leave it out.
    pub output: Option<Json>,
    /// Accepted at.
    pub created_at: Timestamp,
    /// Begun at.
    pub started_at: Option<Timestamp>,
    /// Ended at.
    pub finished_at: Option<Timestamp>,
}

/// Which runs to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunsFilter {
    /// Only this owner's.
    pub owner: Option<String>,
    /// Only this task's.
    pub task: Option<TaskId>,
    /// Only those that ended well, or badly.
    pub success: Option<bool>,
    /// Only this state.
    pub state: Option<TaskRunState>,
    /// Accepted at or after.
    pub since: Option<Timestamp>,
    /// Accepted before.
    pub until: Option<Timestamp>,
}

/// Figures over runs that ended in a period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFigures {
    /// All that ended.
    pub total: u64,
    /// Different tasks.
    pub tasks: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended badly.
    pub failed: u64,
    /// Sum of their durations in microseconds.
    pub micros: i64,
    /// How many have a duration.
    pub timed: u64,
    /// When the last one ended.
    pub last: Option<Timestamp>,
    /// When the last one ended well.
    pub last_success: Option<Timestamp>,
    /// When the last one ended badly.
    pub last_failure: Option<Timestamp>,
}

/// An end to be stored.
pub(super) struct Ended<'e> {
    pub(super) entry: &'e Claimed,
    pub(super) worker: Option<&'e str>,
    pub(super) state: TaskRunState,
    pub(super) error: Option<&'e str>,
    /// As JSON text.
    pub(super) output: Option<&'e str>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Timestamp,
    /// Another attempt follows: this is not yet the outcome.
    pub(super) again: bool,
}

const ENDED: Table = Table {
    name: "task_runs",
    columns: &[
        ("id", Kind::Bytes),
        ("lineage", Kind::Bytes),
        ("task", Kind::Bytes),
        ("owner", Kind::Text),
        ("state", Kind::Text),
        ("attempt", Kind::Number),
        ("cause", Kind::Text),
        ("scheduled_for", Kind::Number),
        ("worker", Kind::Text),
        ("error", Kind::Text),
        ("output", Kind::Text),
        ("created_at", Kind::Number),
        ("started_at", Kind::Number),
        ("finished_at", Kind::Number),
    ],
};

/// What a run of the queue looks like among those that are over. Its state is told by who holds it, and where it stands.
const OPEN: &str = "SELECT run AS id, lineage, task, owner, CASE WHEN worker IS NOT NULL THEN CASE WHEN started_at IS NULL \
                    THEN 'leased' ELSE 'running' END WHEN place = 5 THEN 'waiting_for_approval' ELSE 'queued' END AS state, attempt, cause, scheduled_for, \
                    worker, CAST(NULL AS TEXT) AS error, created_at, started_at, CAST(NULL AS BIGINT) AS finished_at FROM queue";
pub(super) const OVER: &str = "SELECT id, lineage, task, owner, state, attempt, cause, scheduled_for, worker, error, created_at, started_at, \
                    finished_at FROM task_runs";
const BAD: &str = "state IN ('failed', 'cancelled', 'timed_out')";

pub(super) fn run_row(row: &Row) -> Result<TaskRunRow, Error> {
    Ok(TaskRunRow {
        id: TaskRunId::from_bytes(row.bytes(0)?),
        lineage: TaskRunId::from_bytes(row.bytes(1)?),
        task: TaskId::from_bytes(row.bytes(2)?),
        owner: row.text(3)?.to_owned(),
        state: word(TaskRunState::parse(row.text(4)?), "state of a run")?,
        attempt: row.small(5)?,
        trigger: word(Trigger::parse(row.text(6)?), "trigger")?,
        scheduled_for: row.optional_time(7)?,
        worker: row.optional_text(8)?,
        error: row.optional_text(9)?,
        output: None,
        created_at: row.time(10)?,
        started_at: row.optional_time(11)?,
        finished_at: row.optional_time(12)?,
    })
}

/// Conditions on the common columns of both halves, each with its own numbering continued.
#[derive(Default)]
struct Conditions {
    text: String,
    values: Vec<Value>,
}

impl Conditions {
    fn fixed(&mut self, test: &str) {
        self.text.push_str(if self.text.is_empty() { " WHERE " } else { " AND " });
        self.text.push_str(test);
    }

    fn add(&mut self, test: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.values.push(value.into());
            let place = self.values.len();
            self.fixed(&format!("{test} ?{place}"));
        }
    }
}

impl Changes<'_> {
    /// Keeps how runs ended, and lines up that it is told.
    pub(super) async fn put_ended(&mut self, ended: &[Ended<'_>]) -> Result<(), Error> {
        let mut rows = Vec::with_capacity(ended.len());
        for end in ended {
            let entry = end.entry;
            rows.push(values![
                entry.run.as_bytes(),
                entry.lineage.as_bytes(),
                entry.task.as_bytes(),
                &entry.owner,
                end.state.as_str(),
                entry.attempt,
                entry.trigger.as_str(),
                entry.scheduled_for,
                end.worker,
                end.error,
                end.output,
                entry.created_at,
                end.started_at,
                end.finished_at
            ]);
        }
        self.sql.put(&ENDED, rows).await?;
        self.line_up_deliveries(ended).await
    }
}

impl Reads<'_> {
    /// One run, with its output.
    ///
    /// # Errors
    /// The storage's.
    pub async fn run(&mut self, id: TaskRunId) -> Result<Option<TaskRunRow>, Error> {
        // A run may leave the queue between two looks: the queue first, then those that are over.
        let open = format!("{OPEN} WHERE run = ?1");
        if let Some(row) = self.sql.row(&open, values![id.as_bytes()]).await? {
            return run_row(&row).map(Some);
        }
        let over = format!("{OVER} WHERE id = ?1");
        let Some(row) = self.sql.row(&over, values![id.as_bytes()]).await? else { return Ok(None) };
        let mut run = run_row(&row)?;
        let output =
            self.sql.row("SELECT output FROM task_runs WHERE id = ?1", values![id.as_bytes()]).await?;
        if let Some(text) = output.map(|row| row.optional_text(0)).transpose()?.flatten() {
            run.output = Some(RunOutput::shown(codec::json(&text)?, run.task, run.started_at));
        }
        Ok(Some(run))
    }

    /// Runs, newest first, without their output.
    ///
    /// # Errors
    /// The storage's.
    pub async fn runs(&mut self, filter: &RunsFilter, page: Page) -> Result<Paged<TaskRunRow>, Error> {
        if filter.owner.as_deref().is_some_and(|owner| codec::has_nul(&[owner])) {
            return Ok(Paged { items: Vec::new(), total: 0 });
        }
        let mut both = Conditions::default();
        both.add("owner =", filter.owner.as_deref());
        both.add("task =", filter.task.as_ref().map(TaskId::as_bytes));
        both.add("created_at >=", filter.since);
        both.add("created_at <", filter.until);
        both.add("state =", filter.state.map(TaskRunState::as_str));
        match filter.success {
            Some(true) => both.fixed("state = 'succeeded'"),
            Some(false) => both.fixed(BAD),
            None => {}
        }
        // What is over is never in the queue, and the other way round.
        let final_only = filter.success.is_some() || filter.state.is_some_and(TaskRunState::is_final);
        let open_only = filter.state.is_some_and(|state| !state.is_final());
        let clause = &both.text;
        let open = format!("SELECT * FROM ({OPEN}) AS open_runs{clause}");
        let over = format!("{OVER}{clause}");
        let union = match (final_only, open_only) {
            (true, _) => over,
            (_, true) => open,
            _ => format!("{open} UNION ALL {over}"),
        };
        let mut total = 0;
        if !open_only {
            let count = format!("SELECT count(*) FROM task_runs{clause}");
            total += self.sql.row(&count, both.values.clone()).await?.map_or(Ok(0), |row| row.count(0))?;
        }
        if !final_only {
            let count = format!("SELECT count(*) FROM ({OPEN}) AS open_runs{clause}");
            total += self.sql.row(&count, both.values.clone()).await?.map_or(Ok(0), |row| row.count(0))?;
        }
        let place = both.values.len();
        let query = format!(
            "SELECT * FROM ({union}) AS every_run ORDER BY id DESC LIMIT ?{} OFFSET ?{}",
            place + 1,
            place + 2
        );
        both.values.extend(values![page.limit, codec::position(page.offset)]);
        let items =
            self.sql.rows(&query, both.values).await?.iter().map(run_row).collect::<Result<_, _>>()?;
        Ok(Paged { items, total })
    }

    /// Whether there is, or was, a run of this id.
    ///
    /// # Errors
    /// The storage's.
    pub async fn run_exists(&mut self, id: TaskRunId) -> Result<bool, Error> {
        let query = "SELECT 1 FROM queue WHERE run = ?1 UNION ALL SELECT 1 FROM task_runs WHERE id = ?1";
        Ok(self.sql.row(query, values![id.as_bytes()]).await?.is_some())
    }

    /// Figures over runs that ended at or after `since`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn run_figures(
        &mut self,
        owner: Option<&str>,
        task: Option<TaskId>,
        since: Timestamp,
    ) -> Result<RunFigures, Error> {
        let mut conditions = Conditions::default();
        conditions.add("finished_at >=", Some(since));
        conditions.add("owner =", owner);
        conditions.add("task =", task.as_ref().map(TaskId::as_bytes));
        let query = format!(
            "SELECT count(*), count(DISTINCT task), count(CASE WHEN state = 'succeeded' THEN 1 END), count(CASE WHEN {BAD} THEN 1 END), \
             CAST(coalesce(sum(finished_at - started_at), 0) AS BIGINT), count(started_at), max(finished_at), \
             max(CASE WHEN state = 'succeeded' THEN finished_at END), max(CASE WHEN {BAD} THEN finished_at END) FROM task_runs{}",
            conditions.text
        );
        let Some(row) = self.sql.row(&query, conditions.values).await? else {
            return Ok(RunFigures::default());
        };
        Ok(RunFigures {
            total: row.count(0)?,
            tasks: row.count(1)?,
            succeeded: row.count(2)?,
            failed: row.count(3)?,
            micros: row.number(4)?,
            timed: row.count(5)?,
            last: row.optional_time(6)?,
            last_success: row.optional_time(7)?,
            last_failure: row.optional_time(8)?,
        })
    }
}
