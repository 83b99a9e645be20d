//! The queue: runs that are not over. Lining up, claiming, holding back, taking out.

use std::collections::{HashMap, HashSet};

use interlock_model::Timestamp;
use interlock_model::task::{EventId, TaskId, TaskRunId, TaskRunState, Trigger, rank};

use super::runs::Ended;
use super::{Changes, Reads, word};
use crate::Error;
use crate::sql::{Each, Kind, Row, Value, values};

/// A run that lines up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRun {
    /// This attempt.
    pub run: TaskRunId,
    /// The first attempt of the same trigger.
    pub lineage: TaskRunId,
    /// Of which task.
    pub task: TaskId,
    /// Whose rights count.
    pub owner: String,
    /// From 1.
    pub attempt: u32,
    /// What made it.
    pub trigger: Trigger,
    /// The due time.
    pub scheduled_for: Option<Timestamp>,
    /// The event that made it.
    pub event: Option<EventId>,
    /// 1 to 9.
    pub priority: u8,
    /// Not before.
    pub ready_at: Timestamp,
    /// Scoped to the owner.
    pub concurrency_key: Option<String>,
    /// Now.
    pub created_at: Timestamp,
}

impl NewRun {
    /// Its concurrency key as stored: keys of different owners are different keys.
    fn stored_key(&self) -> Option<String> {
        self.concurrency_key.as_ref().map(|key| format!("{}/{key}", self.owner))
    }
}

/// A run that a worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// This attempt.
    pub run: TaskRunId,
    /// The first attempt of the same trigger.
    pub lineage: TaskRunId,
    /// Of which task.
    pub task: TaskId,
    /// Version of the task when it was claimed; 0 where nothing was.
    pub task_version: i64,
    /// Whose rights count.
    pub owner: String,
    /// From 1.
    pub attempt: u32,
    /// What made it.
    pub trigger: Trigger,
    /// The due time.
    pub scheduled_for: Option<Timestamp>,
    /// The event that made it.
    pub event: Option<EventId>,
    /// Counts claims: what comes with an older one is refused.
    pub fence: i64,
    /// How often a worker died with it.
    pub rescues: u32,
    /// Priority, for another attempt.
    pub priority: u8,
    /// Key as stored, for another attempt.
    pub stored_key: Option<String>,
    /// Accepted at.
    pub created_at: Timestamp,
    /// When steps of it began first, if they did.
    pub started_at: Option<Timestamp>,
    /// From when it could be claimed.
    pub ready_at: Timestamp,
}

/// What taking runs of a task out of the queue did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Runs that had not begun: they are over.
    pub removed: u64,
    /// Runs that workers hold: they are told.
    pub told: Vec<TaskRunId>,
}

fn claimed(row: &Row) -> Result<Claimed, Error> {
    Ok(Claimed {
        run: TaskRunId::from_bytes(row.bytes(0)?),
        lineage: TaskRunId::from_bytes(row.bytes(1)?),
        task: TaskId::from_bytes(row.bytes(2)?),
        task_version: 0,
        owner: row.text(3)?.to_owned(),
        attempt: row.small(4)?,
        trigger: word(Trigger::parse(row.text(5)?), "trigger")?,
        scheduled_for: row.optional_time(6)?,
        event: row.optional_bytes(7)?.map(EventId::from_bytes),
        fence: row.number(8)?,
        rescues: row.small(9)?,
        priority: u8::try_from(row.number(10)?).unwrap_or(u8::MAX),
        stored_key: row.optional_text(11)?,
        created_at: row.time(12)?,
        started_at: row.optional_time(13)?,
        ready_at: row.time(14)?,
    })
}

const INSERT: Each = Each {
    statement: "INSERT INTO queue (run, lineage, task, owner, place, rank, ready_at, priority, attempt, cause, scheduled_for, \
                event, ckey, fence, rescues, created_at) \
                SELECT run, lineage, task, owner, place, rank, ready_at, priority, attempt, cause, scheduled_for, event, ckey, 0, 0, \
                created_at FROM {given} WHERE true ON CONFLICT (run) DO NOTHING RETURNING place",
    given: &[
        ("run", Kind::Bytes),
        ("lineage", Kind::Bytes),
        ("task", Kind::Bytes),
        ("owner", Kind::Text),
        ("place", Kind::Number),
        ("rank", Kind::Number),
        ("ready_at", Kind::Number),
        ("priority", Kind::Number),
        ("attempt", Kind::Number),
        ("cause", Kind::Text),
        ("scheduled_for", Kind::Number),
        ("event", Kind::Bytes),
        ("ckey", Kind::Text),
        ("created_at", Kind::Number),
    ],
};

/// From the second place to one of the others, when its time has come. `place + 0` keeps the index of the place out of it: PostgreSQL,
/// which remembers how many rows a place had when it last looked, would otherwise read all of them for each row.
const PROMOTE: Each = Each {
    statement: "UPDATE queue SET place = given.place FROM {given} WHERE queue.run = given.run AND queue.place + 0 = 1",
    given: &[("run", Kind::Bytes), ("place", Kind::Number)],
};

/// The versions of tasks.
const VERSIONS: Each = Each {
    statement: "SELECT tasks.id, tasks.version FROM tasks JOIN {given} ON tasks.id = given.task",
    given: &[("task", Kind::Bytes)],
};

impl Changes<'_> {
    /// Lines runs up; one that is there already is not doubled. Returns how many are new.
    ///
    /// # Errors
    /// The storage's.
    pub async fn enqueue(&mut self, runs: &[NewRun]) -> Result<u64, Error> {
        self.enqueue_keyed(runs.iter().map(|run| (run, run.stored_key()))).await
    }

    pub(super) async fn enqueue_keyed<'r>(
        &mut self,
        runs: impl Iterator<Item = (&'r NewRun, Option<String>)> + Send,
    ) -> Result<u64, Error> {
        let runs: Vec<_> = runs.collect();
        let waits = |run: &NewRun| run.ready_at > run.created_at;
        let mut keys: Vec<(&str, TaskRunId)> = runs
            .iter()
            .filter_map(|(run, key)| Some((key.as_deref().filter(|_| !waits(run))?, run.run)))
            .collect();
        // Stable: runs of one key keep their order.
        keys.sort_by_key(|(key, _)| *key);
        let mut blocked = HashSet::new();
        for (key, run) in keys {
            if !self.take_concurrency(key, run).await? {
                blocked.insert(run);
            }
        }
        let mut rows = Vec::with_capacity(runs.len());
        for (run, key) in &runs {
            let place = match () {
                () if waits(run) => 1,
                () if blocked.contains(&run.run) => 2,
                () => 0,
            };
            rows.push(values![
                run.run.as_bytes(),
                run.lineage.as_bytes(),
                run.task.as_bytes(),
                &run.owner,
                i64::from(place),
                rank(run.ready_at, run.priority),
                run.ready_at,
                run.priority,
                run.attempt,
                run.trigger.as_str(),
                run.scheduled_for,
                run.event.as_ref().map(EventId::as_bytes),
                key.as_deref(),
                run.created_at
            ]);
        }
        Ok(self.sql.each(&INSERT, rows).await?.len() as u64)
    }

    /// The number of a run in the queue, for people.
    ///
    /// # Errors
    /// The storage's.
    pub async fn queue_number(&mut self, run: TaskRunId) -> Result<Option<i64>, Error> {
        let found = self.sql.row("SELECT number FROM queue WHERE run = ?1", values![run.as_bytes()]).await?;
        found.map(|row| row.number(0)).transpose()
    }

    /// Gives a worker at most `limit` runs that are ready, in the order of their rank; none if it is not enlisted. Nobody declares
    /// it dead before this write ends: what it claims would belong to nobody, and nobody would free it.
    ///
    /// # Errors
    /// [`Error::Newer`] if a newer program has changed the database meanwhile: its runs may be of a kind that this one does not
    /// know. And the storage's.
    pub async fn claim(&mut self, worker: &str, limit: u32) -> Result<Vec<Claimed>, Error> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        // A beat may go on meanwhile, which a stronger lock would keep out.
        let alive = format!(
            "SELECT (SELECT count(*) FROM migrations), {} FROM workers WHERE id = ?1{}",
            self.sql.in_order(),
            self.sql.keep()
        );
        let Some(alive) = self.sql.row(&alive, values![worker]).await? else { return Ok(Vec::new()) };
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (found, known) = (small(alive.count(0)?), small(self.sql.known_steps() as u64));
        if found > known {
            return Err(Error::Newer { found, known });
        }
        let (before, behind) = self.sql.among();
        // Only what no index knows is changed: PostgreSQL then writes the row beside itself and leaves the indexes alone.
        let query = format!(
            "UPDATE queue SET worker = ?1, fence = fence + 1 WHERE run {before}\
             SELECT run FROM queue WHERE place = 0 AND worker IS NULL ORDER BY rank, number LIMIT ?2{}{behind} \
             RETURNING run, lineage, task, owner, attempt, cause, scheduled_for, event, fence, rescues, priority, ckey, created_at, \
             started_at, ready_at, rank, number",
            self.sql.lock_free("queue")
        );
        let mut rows = self.sql.rows(&query, values![worker, limit]).await?;
        rows.sort_by_key(|row| (row.number(15).unwrap_or(i64::MAX), row.number(16).unwrap_or(i64::MAX)));
        let mut found = rows.iter().map(claimed).collect::<Result<Vec<_>, _>>()?;
        let mut versions: HashMap<TaskId, i64> = found.iter().map(|claimed| (claimed.task, 0)).collect();
        let tasks = versions.keys().map(|task| values![task.as_bytes()]).collect();
        for row in self.sql.each(&VERSIONS, tasks).await? {
            versions.insert(TaskId::from_bytes(row.bytes(0)?), row.number(1)?);
        }
        for claimed in &mut found {
            claimed.task_version = versions.get(&claimed.task).copied().unwrap_or(0);
        }
        Ok(found)
    }

    /// Has rows taken in the order of an index from here on.
    pub(super) async fn take_in_order(&mut self) -> Result<(), Error> {
        let query = format!("SELECT {}", self.sql.in_order());
        self.sql.row(&query, Vec::new()).await.map(drop)
    }

    /// Makes runs ready whose time has come, or whose key has become free; returns how many were looked at.
    ///
    /// # Errors
    /// The storage's.
    pub async fn promote(&mut self, now: Timestamp, limit: u32) -> Result<u64, Error> {
        self.take_in_order().await?;
        let query = format!(
            "SELECT run, ckey FROM queue WHERE place = 1 AND ready_at <= ?1 ORDER BY ready_at, number LIMIT ?2{}",
            self.sql.lock_free("queue")
        );
        let found = self.sql.rows(&query, values![now, limit]).await?;
        let mut rows = Vec::with_capacity(found.len());
        for row in &found {
            rows.push((row.optional_text(1)?, TaskRunId::from_bytes(row.bytes(0)?)));
        }
        // Stable: runs of one key keep their order.
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut places = Vec::with_capacity(rows.len());
        for (key, run) in rows {
            let free = match key {
                Some(key) => self.take_concurrency(&key, run).await?,
                None => true,
            };
            places.push(values![run.as_bytes(), if free { 0_i64 } else { 2 }]);
        }
        self.sql.each(&PROMOTE, places).await?;
        Ok(found.len() as u64)
    }

    /// Runs of a task that have not begun stay where they are until [`Changes::unhold`].
    ///
    /// # Errors
    /// The storage's.
    pub async fn hold(&mut self, task: TaskId) -> Result<u64, Error> {
        let held = self.waiting(task).await?;
        for (run, key) in &held {
            self.sql
                .change(
                    "UPDATE queue SET place = 4 WHERE run = ?1 AND place < 3 AND worker IS NULL",
                    values![run.as_bytes()],
                )
                .await?;
            if let Some(key) = key {
                self.give_up_concurrency(key, *run).await?;
            }
        }
        Ok(held.len() as u64)
    }

    /// Lets runs that were held line up again where they stood.
    ///
    /// # Errors
    /// The storage's.
    pub async fn unhold(&mut self, task: TaskId) -> Result<u64, Error> {
        self.sql
            .change("UPDATE queue SET place = 1 WHERE task = ?1 AND place = 4", values![task.as_bytes()])
            .await
    }

    /// Runs of a task that wait for their turn begin `micros` later; returns how many.
    ///
    /// # Errors
    /// The storage's.
    pub async fn delay(&mut self, task: TaskId, micros: i64, now: Timestamp) -> Result<u64, Error> {
        let delayed = self.waiting(task).await?;
        for (run, key) in &delayed {
            self.sql
                .change(
                    "UPDATE queue SET place = 1, ready_at = CASE WHEN ready_at > ?3 THEN ready_at ELSE ?3 END + ?2, \
                     rank = CASE WHEN ready_at > ?3 THEN rank ELSE rank + ?3 - ready_at END + ?2 WHERE run = ?1 AND place < 3 \
                     AND worker IS NULL",
                    values![run.as_bytes(), micros, now],
                )
                .await?;
            if let Some(key) = key {
                self.give_up_concurrency(key, *run).await?;
            }
        }
        Ok(delayed.len() as u64)
    }

    /// Runs of a task that no worker holds and nobody was asked about, locked, with the keys that they hold and need not: one
    /// whose steps have begun keeps its key. In the order of the keys.
    async fn waiting(&mut self, task: TaskId) -> Result<Vec<(TaskRunId, Option<String>)>, Error> {
        let query = format!(
            "SELECT run, CASE WHEN place = 0 AND started_at IS NULL THEN ckey END FROM queue WHERE task = ?1 AND place < 3 \
             AND worker IS NULL ORDER BY run{}",
            self.sql.lock()
        );
        let rows = self.sql.rows(&query, values![task.as_bytes()]).await?;
        let mut waiting = Vec::with_capacity(rows.len());
        for row in &rows {
            waiting.push((TaskRunId::from_bytes(row.bytes(0)?), row.optional_text(1)?));
        }
        waiting.sort_by(|(_, one), (_, other)| one.cmp(other));
        Ok(waiting)
    }

    /// Ends runs of a task that no worker holds as cancelled, and has the others told.
    ///
    /// # Errors
    /// The storage's.
    pub async fn withdraw(&mut self, task: TaskId, reason: &str, now: Timestamp) -> Result<Removed, Error> {
        let query = format!("SELECT run FROM queue WHERE task = ?1 ORDER BY ckey, run{}", self.sql.lock());
        let mut done = Removed::default();
        for row in self.sql.rows(&query, values![task.as_bytes()]).await? {
            let run = TaskRunId::from_bytes(row.bytes(0)?);
            match self.cancel(run, reason, now).await? {
                Some(true) => done.removed += 1,
                Some(false) => done.told.push(run),
                None => {}
            }
        }
        Ok(done)
    }

    /// Cancels a run: `Some(true)` if it is over now, `Some(false)` if a worker holds it and is told, `None` if it is not in the
    /// queue.
    ///
    /// # Errors
    /// The storage's.
    pub async fn cancel(
        &mut self,
        run: TaskRunId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Option<bool>, Error> {
        let query = format!("{ENTRY} WHERE run = ?1{}", self.sql.lock());
        let Some(row) = self.sql.row(&query, values![run.as_bytes()]).await? else { return Ok(None) };
        if row.optional_text(WORKER)?.is_some() {
            self.sql
                .change(
                    "UPDATE queue SET cancel = ?2 WHERE run = ?1 AND cancel IS NULL",
                    values![run.as_bytes(), reason],
                )
                .await?;
            return Ok(Some(false));
        }
        self.end_entry(&row, TaskRunState::Cancelled, reason, now).await?;
        Ok(Some(true))
    }

    /// Ends every run that is in the queue as uncertain: nobody knows what became of it elsewhere. Returns how many there were.
    ///
    /// # Errors
    /// The storage's.
    pub async fn abandon_queue(&mut self, why: &str, now: Timestamp) -> Result<u64, Error> {
        let query = format!("{ENTRY} ORDER BY ckey, run{}", self.sql.lock());
        let rows = self.sql.rows(&query, Vec::new()).await?;
        for row in &rows {
            self.end_entry(row, TaskRunState::Uncertain, why, now).await?;
        }
        Ok(rows.len() as u64)
    }

    /// Ends a run that is in the queue, whoever holds it. `row` is of [`ENTRY`], locked.
    pub(super) async fn end_entry(
        &mut self,
        row: &Row,
        state: TaskRunState,
        error: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let entry = claimed(row)?;
        self.sql.change("DELETE FROM queue WHERE run = ?1", values![entry.run.as_bytes()]).await?;
        let worker = row.optional_text(WORKER)?;
        let ended = Ended {
            entry: &entry,
            worker: worker.as_deref(),
            state,
            error: Some(error),
            output: None,
            started_at: entry.started_at,
            finished_at: now,
            again: false,
        };
        self.put_ended(&[ended]).await?;
        self.forget_lineage(&[entry.lineage]).await?;
        if let Some(key) = &entry.stored_key {
            self.give_up_concurrency(key, entry.run).await?;
        }
        Ok(())
    }
}

/// An entry of the queue: the columns of [`Claimed`], then who holds it, and the claim in which steps of it began last.
pub(super) const ENTRY: &str = "SELECT run, lineage, task, owner, attempt, cause, scheduled_for, event, fence, rescues, priority, ckey, \
                                created_at, started_at, ready_at, worker, begun FROM queue";
/// Where [`ENTRY`] has the worker.
const WORKER: usize = 15;
/// Where [`ENTRY`] has that claim.
pub(super) const BEGUN_IN: usize = 16;

pub(super) fn entry(row: &Row) -> Result<Claimed, Error> {
    claimed(row)
}

impl Reads<'_> {
    /// How many runs are in the queue, by priority.
    ///
    /// # Errors
    /// The storage's.
    pub async fn queue_depth(&mut self) -> Result<Vec<(u8, u64)>, Error> {
        let rows = self
            .sql
            .rows(
                "SELECT priority, count(*) FROM queue WHERE place < 3 AND worker IS NULL GROUP BY priority ORDER BY priority",
                Vec::new(),
            )
            .await?;
        rows.iter().map(|row| Ok((u8::try_from(row.number(0)?).unwrap_or(u8::MAX), row.count(1)?))).collect()
    }

    /// How many runs are not over.
    ///
    /// # Errors
    /// The storage's.
    pub async fn queue_open(&mut self) -> Result<u64, Error> {
        let found = self.sql.row("SELECT count(*) FROM queue", Vec::<Value>::new()).await?;
        found.map_or(Ok(0), |row| row.count(0))
    }

    /// When the next run that must wait is ready.
    ///
    /// # Errors
    /// The storage's.
    pub async fn first_delayed(&mut self) -> Result<Option<Timestamp>, Error> {
        let found = self
            .sql
            .row("SELECT ready_at FROM queue WHERE place = 1 ORDER BY ready_at LIMIT 1", Vec::<Value>::new())
            .await?;
        found.map(|row| row.time(0)).transpose()
    }
}
