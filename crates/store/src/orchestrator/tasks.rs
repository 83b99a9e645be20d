//! Tasks and when they are due.

use interlock_model::Timestamp;
use interlock_model::task::{Backoff, Misfire, ScheduleKind, TaskId, TaskStatus};
use serde_json::Value as Json;

use super::{Changes, Reads, word};
use crate::sql::{Each, Kind, Row, Value, values};
use crate::{Error, Page, Paged, codec};

/// A task as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRow {
    /// The task.
    pub id: TaskId,
    /// For people, one line.
    pub title: String,
    /// For people.
    pub description: String,
    /// When it runs.
    pub kind: ScheduleKind,
    /// Rule, time, topic or condition; `None` for manual tasks.
    pub expression: Option<String>,
    /// IANA time zone.
    pub zone: String,
    /// Last change of the schedule: a rule without a beginning begins here.
    pub anchor: Timestamp,
    /// Parameters and pipeline.
    pub payload: Json,
    /// Whether it runs by itself.
    pub status: TaskStatus,
    /// 1 to 9; 1 runs first.
    pub priority: u8,
    /// Unique for each creator among tasks that are not canceled.
    pub dedupe_key: Option<String>,
    /// A second trigger within this many seconds makes no run.
    pub dedupe_window_seconds: i64,
    /// Attempts after the first, 0 to 10.
    pub max_retries: u8,
    /// How long to wait before them.
    pub backoff: Backoff,
    /// At most one run of the creator's tasks with this key at a time.
    pub concurrency_key: Option<String>,
    /// What becomes of due times that nobody was there for.
    pub misfire: Misfire,
    /// Whose rights count: an agent's id, or a person's name.
    pub created_by: String,
    /// Made at.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// Counts changes from 1.
    pub version: i64,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TasksFilter {
    /// Only this creator's.
    pub created_by: Option<String>,
    /// Only this status.
    pub status: Option<TaskStatus>,
    /// Only this kind.
    pub kind: Option<ScheduleKind>,
}

/// A due time that has come, and what its run needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// The task.
    pub task: TaskId,
    /// The due time.
    pub due_at: Timestamp,
    /// Version of the task.
    pub version: i64,
    /// Kind of schedule.
    pub kind: ScheduleKind,
    /// Its text.
    pub expression: Option<String>,
    /// Its zone.
    pub zone: String,
    /// Where it begins.
    pub anchor: Timestamp,
    /// Priority of runs.
    pub priority: u8,
    /// Key of runs.
    pub concurrency_key: Option<String>,
    /// Whose run it is.
    pub created_by: String,
    /// In seconds.
    pub dedupe_window_seconds: i64,
    /// What becomes of missed times.
    pub misfire: Misfire,
}

/// When a task is due next, beside its row.
const DUE: &str = "(SELECT due_at FROM task_due WHERE task_due.task = tasks.id)";

const COLUMNS: &str = "id, title, description, kind, expression, zone, anchor, payload, status, priority, dedupe_key, \
                    dedupe_window_seconds, max_retries, backoff, concurrency_key, misfire, created_by, created_at, updated_at, version";

fn small(row: &Row, column: usize) -> Result<u8, Error> {
    u8::try_from(row.number(column)?).map_err(|_| Error::Corrupt("a number is too large".to_owned()))
}

pub(super) fn task_row(row: &Row) -> Result<TaskRow, Error> {
    Ok(TaskRow {
        id: TaskId::from_bytes(row.bytes(0)?),
        title: row.text(1)?.to_owned(),
        description: row.text(2)?.to_owned(),
        kind: word(ScheduleKind::parse(row.text(3)?), "kind of schedule")?,
        expression: row.optional_text(4)?,
        zone: row.text(5)?.to_owned(),
        anchor: row.time(6)?,
        payload: codec::json(row.text(7)?)?,
        status: word(TaskStatus::parse(row.text(8)?), "status of a task")?,
        priority: small(row, 9)?,
        dedupe_key: row.optional_text(10)?,
        dedupe_window_seconds: row.number(11)?,
        max_retries: small(row, 12)?,
        backoff: word(Backoff::parse(row.text(13)?), "backoff")?,
        concurrency_key: row.optional_text(14)?,
        misfire: word(Misfire::parse(row.text(15)?), "misfire policy")?,
        created_by: row.text(16)?.to_owned(),
        created_at: row.time(17)?,
        updated_at: row.time(18)?,
        version: row.number(19)?,
    })
}

fn task_values(task: &TaskRow) -> Result<Vec<Value>, Error> {
    Ok(values![
        task.id.as_bytes(),
        &task.title,
        &task.description,
        task.kind.as_str(),
        task.expression.as_deref(),
        &task.zone,
        task.anchor,
        codec::json_text(&task.payload)?,
        task.status.as_str(),
        task.priority,
        task.dedupe_key.as_deref(),
        task.dedupe_window_seconds,
        task.max_retries,
        task.backoff.as_str(),
        task.concurrency_key.as_deref(),
        task.misfire.as_str(),
        &task.created_by,
        task.created_at,
        task.updated_at,
        task.version
    ])
}

fn due_row(row: &Row) -> Result<Due, Error> {
    Ok(Due {
        task: TaskId::from_bytes(row.bytes(0)?),
        due_at: row.time(1)?,
        version: row.number(2)?,
        kind: word(ScheduleKind::parse(row.text(3)?), "kind of schedule")?,
        expression: row.optional_text(4)?,
        zone: row.text(5)?.to_owned(),
        anchor: row.time(6)?,
        priority: small(row, 7)?,
        concurrency_key: row.optional_text(8)?,
        created_by: row.text(9)?.to_owned(),
        dedupe_window_seconds: row.number(10)?,
        misfire: word(Misfire::parse(row.text(11)?), "misfire policy")?,
    })
}

const MOVE_DUE: Each = Each {
    statement: "UPDATE task_due SET due_at = given.later FROM {given} WHERE task_due.task = given.task AND task_due.due_at = given.due \
                RETURNING task_due.due_at",
    given: &[("task", Kind::Bytes), ("due", Kind::Number), ("later", Kind::Number)],
};

const END_DUE: Each = Each {
    statement: "DELETE FROM task_due WHERE (task, due_at) IN (SELECT task, due FROM {given}) RETURNING due_at",
    given: &[("task", Kind::Bytes), ("due", Kind::Number)],
};

impl Changes<'_> {
    /// Adds a task; `false` if its creator has one with this dedupe key that is not canceled.
    ///
    /// # Errors
    /// The storage's.
    pub async fn insert_task(&mut self, task: &TaskRow) -> Result<bool, Error> {
        let values = task_values(task)?;
        self.sql
            .change_one(
                "INSERT INTO tasks (id, title, description, kind, expression, zone, anchor, payload, status, priority, dedupe_key, \
                 dedupe_window_seconds, max_retries, backoff, concurrency_key, misfire, created_by, created_at, updated_at, version) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20) \
                 ON CONFLICT DO NOTHING",
                values,
            )
            .await
    }

    /// One task; no other write changes it until this one has ended.
    ///
    /// # Errors
    /// The storage's.
    pub async fn task(&mut self, id: TaskId) -> Result<Option<TaskRow>, Error> {
        let query = format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1{}", self.sql.lock());
        self.sql.row(&query, values![id.as_bytes()]).await?.as_ref().map(task_row).transpose()
    }

    /// Replaces a task that [`Changes::task`] has given; `false` if the dedupe key is another task's.
    ///
    /// # Errors
    /// The storage's.
    pub async fn update_task(&mut self, task: &TaskRow) -> Result<bool, Error> {
        if let Some(key) = &task.dedupe_key {
            let other = "SELECT 1 FROM tasks WHERE created_by = ?1 AND dedupe_key = ?2 AND status <> 'canceled' AND id <> ?3";
            let values = values![&task.created_by, key, task.id.as_bytes()];
            if task.status != TaskStatus::Canceled && self.sql.row(other, values).await?.is_some() {
                return Ok(false);
            }
        }
        let mut values = task_values(task)?;
        values.drain(16..18);
        let changed = self
            .sql
            .change_one(
                "UPDATE tasks SET title = ?2, description = ?3, kind = ?4, expression = ?5, zone = ?6, anchor = ?7, payload = ?8, \
                 status = ?9, priority = ?10, dedupe_key = ?11, dedupe_window_seconds = ?12, max_retries = ?13, backoff = ?14, \
                 concurrency_key = ?15, misfire = ?16, updated_at = ?17, version = ?18 WHERE id = ?1 AND version + 1 = ?18",
                values,
            )
            .await?;
        if changed { Ok(true) } else { Err(Error::Database("a task was changed without its lock".into())) }
    }

    /// Sets when a task is due next; `None`: never.
    ///
    /// # Errors
    /// The storage's.
    pub async fn set_due(&mut self, task: TaskId, due: Option<Timestamp>) -> Result<(), Error> {
        match due {
            Some(due) => self
                .sql
                .change(
                    "INSERT INTO task_due (task, due_at) VALUES (?1, ?2) ON CONFLICT (task) DO UPDATE SET due_at = excluded.due_at",
                    values![task.as_bytes(), due],
                )
                .await
                .map(drop),
            None => self.sql.change("DELETE FROM task_due WHERE task = ?1", values![task.as_bytes()]).await.map(drop),
        }
    }

    /// Ends every task of a creator: what waits is over, what runs is told. Returns how many tasks.
    ///
    /// # Errors
    /// The storage's.
    pub async fn cancel_tasks_of(&mut self, owner: &str, reason: &str, now: Timestamp) -> Result<u64, Error> {
        let query = format!(
            "SELECT id FROM tasks WHERE created_by = ?1 AND status <> 'canceled' ORDER BY id{}",
            self.sql.lock()
        );
        let rows = self.sql.rows(&query, values![owner]).await?;
        for row in &rows {
            let task = TaskId::from_bytes(row.bytes(0)?);
            self.sql
                .change(
                    "UPDATE tasks SET status = 'canceled', updated_at = ?2, version = version + 1 WHERE id = ?1",
                    values![task.as_bytes(), now],
                )
                .await?;
            self.set_due(task, None).await?;
            self.withdraw(task, reason, now).await?;
        }
        Ok(rows.len() as u64)
    }

    /// When a task is due next; no other write serves or moves that until this one has ended.
    ///
    /// # Errors
    /// The storage's.
    pub async fn due_of(&mut self, task: TaskId) -> Result<Option<Timestamp>, Error> {
        let query = format!("SELECT due_at FROM task_due WHERE task = ?1{}", self.sql.lock());
        self.sql.row(&query, values![task.as_bytes()]).await?.map(|row| row.time(0)).transpose()
    }

    /// Due times that have come, earliest first; those that another server works at are left out.
    ///
    /// # Errors
    /// The storage's.
    pub async fn due(&mut self, now: Timestamp, limit: u32) -> Result<Vec<Due>, Error> {
        self.take_in_order().await?;
        let query = format!(
            "SELECT task_due.task, task_due.due_at, tasks.version, tasks.kind, tasks.expression, tasks.zone, tasks.anchor, \
             tasks.priority, tasks.concurrency_key, tasks.created_by, tasks.dedupe_window_seconds, tasks.misfire \
             FROM task_due JOIN tasks ON tasks.id = task_due.task WHERE task_due.due_at <= ?1 \
             ORDER BY task_due.due_at LIMIT ?2{}",
            self.sql.lock_free("task_due")
        );
        self.sql.rows(&query, values![now, limit]).await?.iter().map(due_row).collect()
    }

    /// Moves due times that [`Changes::due`] has given.
    ///
    /// # Errors
    /// The storage's; also when one was moved by somebody else, which the lock forbids.
    pub async fn move_due(&mut self, moved: &[(TaskId, Timestamp, Option<Timestamp>)]) -> Result<(), Error> {
        let (mut later, mut never) = (Vec::new(), Vec::new());
        for (task, from, to) in moved {
            match to {
                Some(to) => later.push(values![task.as_bytes(), *from, *to]),
                None => never.push(values![task.as_bytes(), *from]),
            }
        }
        let done = self.sql.each(&MOVE_DUE, later).await?.len() + self.sql.each(&END_DUE, never).await?.len();
        if done == moved.len() { Ok(()) } else { Err(Error::Database("a due time was moved twice".into())) }
    }

    /// Notes that a task with a dedupe window was triggered; `false` within the window of the trigger before.
    ///
    /// # Errors
    /// The storage's.
    pub async fn trigger(
        &mut self,
        task: TaskId,
        window_seconds: i64,
        now: Timestamp,
    ) -> Result<bool, Error> {
        if window_seconds == 0 {
            return Ok(true);
        }
        let until = now.micros().saturating_sub(window_seconds.saturating_mul(1_000_000));
        self.sql
            .change_one(
                "INSERT INTO task_triggers (task, at) VALUES (?1, ?2) ON CONFLICT (task) DO UPDATE SET at = excluded.at \
                 WHERE task_triggers.at <= ?3",
                values![task.as_bytes(), now, until],
            )
            .await
    }
}

impl Reads<'_> {
    /// One task.
    ///
    /// # Errors
    /// The storage's.
    pub async fn task(&mut self, id: TaskId) -> Result<Option<TaskRow>, Error> {
        let query = format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1");
        self.sql.row(&query, values![id.as_bytes()]).await?.as_ref().map(task_row).transpose()
    }

    /// When a task is due next.
    ///
    /// # Errors
    /// The storage's.
    pub async fn due_of(&mut self, task: TaskId) -> Result<Option<Timestamp>, Error> {
        let found =
            self.sql.row("SELECT due_at FROM task_due WHERE task = ?1", values![task.as_bytes()]).await?;
        found.map(|row| row.time(0)).transpose()
    }

    /// The earliest due time of all.
    ///
    /// # Errors
    /// The storage's.
    pub async fn first_due(&mut self) -> Result<Option<Timestamp>, Error> {
        let found = self.sql.row("SELECT due_at FROM task_due ORDER BY due_at LIMIT 1", Vec::new()).await?;
        found.map(|row| row.time(0)).transpose()
    }

    /// Tasks, newest first, each with when it is due next.
    ///
    /// # Errors
    /// The storage's.
    pub async fn tasks(
        &mut self,
        filter: &TasksFilter,
        page: Page,
    ) -> Result<Paged<(TaskRow, Option<Timestamp>)>, Error> {
        let mut conditions = String::new();
        let mut bound = Vec::new();
        let tests = [
            ("created_by =", filter.created_by.clone()),
            ("status =", filter.status.map(|status| status.as_str().to_owned())),
            ("kind =", filter.kind.map(|kind| kind.as_str().to_owned())),
        ];
        for (test, value) in tests {
            let Some(value) = value else { continue };
            if codec::has_nul(&[&value]) {
                return Ok(Paged { items: Vec::new(), total: 0 });
            }
            bound.push(Value::Text(value));
            let joint = if conditions.is_empty() { " WHERE " } else { " AND " };
            let place = bound.len().to_string();
            conditions.extend([joint, test, " ?", &place]);
        }
        let count = format!("SELECT count(*) FROM tasks{conditions}");
        let total = self.sql.row(&count, bound.clone()).await?.map_or(Ok(0), |row| row.count(0))?;
        let place = bound.len();
        let query = format!(
            "SELECT {COLUMNS}, {DUE} FROM tasks{conditions} ORDER BY id DESC LIMIT ?{} OFFSET ?{}",
            place + 1,
            place + 2
        );
        bound.extend(values![page.limit, codec::position(page.offset)]);
        let rows = self.sql.rows(&query, bound).await?;
        let items = rows
            .iter()
            .map(|row| Ok((task_row(row)?, row.optional_time(20)?)))
            .collect::<Result<_, Error>>()?;
        Ok(Paged { items, total })
    }
}
