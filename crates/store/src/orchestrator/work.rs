//! Workers: what they hold, how it ends, and what becomes of it when they die.
//!
//! A worker says that it lives by moving the number `beat`; others judge by their own clocks how long it has stood still, so
//! clocks of different servers are never compared.

use std::borrow::Borrow;
use std::collections::HashSet;

use interlock_model::Timestamp;
use interlock_model::task::{TaskRunId, TaskRunState};

use super::queue::{BEGUN_IN, ENTRY, entry};
use super::runs::Ended;
use super::{Changes, Claimed, NewRun, Reads};
use crate::Error;
use crate::sql::{Each, Kind, values};

/// Another attempt after one that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Its run.
    pub run: TaskRunId,
    /// Not before.
    pub ready_at: Timestamp,
}

/// How a run that a worker holds ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The run as claimed.
    pub entry: Claimed,
    /// A final state.
    pub state: TaskRunState,
    /// Safe text.
    pub error: Option<String>,
    /// What the pipeline left, as JSON text.
    pub output: Option<String>,
    /// Whether steps of it, in this claim or before, were kept or people were asked: that goes when nobody goes on with the run.
    pub kept: bool,
    /// When steps of it began.
    pub started_at: Timestamp,
    /// Now.
    pub finished_at: Timestamp,
    /// Another attempt.
    pub retry: Option<Retry>,
}

/// What became of a run that its worker gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspended {
    /// It goes on later.
    Waits,
    /// Somebody had cancelled it: it is over.
    Cancelled,
    /// It was somebody else's by now; nothing was changed.
    Lost,
}

/// A worker as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRow {
    /// The process.
    pub id: String,
    /// Moves as long as it lives.
    pub beat: i64,
    /// Since when.
    pub started_at: Timestamp,
}

// Rows are found by their key, one by one; no index knows who holds a run, so that a claim changes none.
const BEGUN: Each = Each {
    statement: "UPDATE queue SET started_at = coalesce(started_at, given.at), begun = queue.fence FROM {given} \
                WHERE queue.run = given.run AND queue.worker = given.worker AND queue.fence = given.fence \
                AND coalesce(queue.begun, -1) <> queue.fence",
    given: &[("run", Kind::Bytes), ("worker", Kind::Text), ("fence", Kind::Number), ("at", Kind::Number)],
};

const TAKE_OUT: Each = Each {
    statement: "DELETE FROM queue WHERE (run, worker, fence) IN (SELECT run, worker, fence FROM {given}) RETURNING run",
    given: &[("run", Kind::Bytes), ("worker", Kind::Text), ("fence", Kind::Number)],
};

const GIVE_BACK: Each = Each {
    statement: "UPDATE queue SET worker = NULL FROM {given} WHERE queue.run = given.run AND queue.worker = given.worker \
                AND queue.fence = given.fence",
    given: &[("run", Kind::Bytes), ("worker", Kind::Text), ("fence", Kind::Number)],
};

const ACQUIT: Each = Each {
    statement: "UPDATE queue SET rescues = queue.rescues - 1 FROM {given} WHERE queue.run = given.run AND queue.begun = given.fence \
                AND queue.rescues > 0",
    given: &[("run", Kind::Bytes), ("fence", Kind::Number)],
};

const FREE: Each = Each {
    statement: "UPDATE queue SET worker = NULL, fence = queue.fence + 1, rescues = queue.rescues + given.more FROM {given} \
                WHERE queue.run = given.run AND queue.worker IS NOT NULL",
    given: &[("run", Kind::Bytes), ("more", Kind::Number)],
};

impl Changes<'_> {
    /// Notes that steps of these runs (with their fences) have begun, unless they are over or somebody else's by now.
    ///
    /// # Errors
    /// The storage's.
    pub async fn begun(&mut self, worker: &str, runs: &[(TaskRunId, i64, Timestamp)]) -> Result<(), Error> {
        let rows = runs.iter().map(|(run, fence, at)| values![run.as_bytes(), worker, *fence, *at]).collect();
        self.sql.each(&BEGUN, rows).await.map(drop)
    }

    /// Whether the worker still holds the run; if so, nobody takes it away before this write ends.
    ///
    /// # Errors
    /// The storage's.
    pub async fn holds(&mut self, worker: &str, run: TaskRunId, fence: i64) -> Result<bool, Error> {
        let query =
            format!("SELECT 1 FROM queue WHERE run = ?1 AND worker = ?2 AND fence = ?3{}", self.sql.lock());
        Ok(self.sql.row(&query, values![run.as_bytes(), worker, fence]).await?.is_some())
    }

    /// Ends runs; answers for each whether it was still the worker's. What was not, is left as it is.
    ///
    /// # Errors
    /// The storage's.
    pub async fn finish(
        &mut self,
        worker: &str,
        ends: &[impl Borrow<Finished> + Sync],
    ) -> Result<Vec<bool>, Error> {
        let ends: Vec<&Finished> = ends.iter().map(Borrow::borrow).collect();
        let rows =
            ends.iter().map(|end| values![end.entry.run.as_bytes(), worker, end.entry.fence]).collect();
        let mut taken = HashSet::new();
        for row in self.sql.each(&TAKE_OUT, rows).await? {
            taken.insert(TaskRunId::from_bytes(row.bytes(0)?));
        }
        let own: Vec<bool> = ends.iter().map(|end| taken.contains(&end.entry.run)).collect();
        let ended: Vec<&Finished> =
            ends.iter().zip(&own).filter_map(|(end, own)| own.then_some(*end)).collect();
        let rows: Vec<Ended<'_>> = ended
            .iter()
            .map(|end| Ended {
                entry: &end.entry,
                worker: Some(worker),
                state: end.state,
                error: end.error.as_deref(),
                output: end.output.as_deref(),
                started_at: Some(end.started_at),
                finished_at: end.finished_at,
                again: end.retry.is_some(),
            })
            .collect();
        self.put_ended(&rows).await?;
        let over: Vec<TaskRunId> =
            ended.iter().filter(|end| end.kept && end.retry.is_none()).map(|end| end.entry.lineage).collect();
        self.forget_lineage(&over).await?;
        let mut keys: Vec<(&String, TaskRunId)> =
            ended.iter().filter_map(|end| Some((end.entry.stored_key.as_ref()?, end.entry.run))).collect();
        keys.sort();
        for (key, run) in keys {
            self.give_up_concurrency(key, run).await?;
        }
        let retries: Vec<(NewRun, Option<String>)> = ended
            .iter()
            .filter_map(|end| {
                let retry = end.retry.as_ref()?;
                Some((again(&end.entry, retry, end.finished_at), end.entry.stored_key.clone()))
            })
            .collect();
        self.enqueue_keyed(retries.iter().map(|(run, key)| (run, key.clone()))).await?;
        Ok(own)
    }

    /// The worker gives a run back that is not over: it goes on at `until`, or when a person has decided. It keeps its concurrency
    /// key. One that somebody has cancelled meanwhile is over instead.
    ///
    /// # Errors
    /// The storage's.
    pub async fn suspend(
        &mut self,
        worker: &str,
        entry: &Claimed,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Suspended, Error> {
        let (place, at) = until.map_or((5_i64, None), |at| (1, Some(at)));
        let held = self
            .sql
            .row(
                "UPDATE queue SET place = ?4, worker = NULL, ready_at = coalesce(?5, ready_at) \
                 WHERE run = ?1 AND worker = ?2 AND fence = ?3 RETURNING cancel",
                values![entry.run.as_bytes(), worker, entry.fence, place, at],
            )
            .await?;
        let Some(held) = held else { return Ok(Suspended::Lost) };
        // Whoever cancelled it counts on its worker, which has no say from here on.
        let Some(reason) = held.optional_text(0)? else { return Ok(Suspended::Waits) };
        self.cancel(entry.run, &reason, now).await?;
        Ok(Suspended::Cancelled)
    }

    /// The worker gives back runs that it has not begun.
    ///
    /// # Errors
    /// The storage's.
    pub async fn give_back(&mut self, worker: &str, runs: &[(TaskRunId, i64)]) -> Result<(), Error> {
        let rows = runs.iter().map(|(run, fence)| values![run.as_bytes(), worker, *fence]).collect();
        self.sql.each(&GIVE_BACK, rows).await.map(drop)
    }

    /// A worker lives. `false` if it was declared dead: what it held belongs to others now.
    ///
    /// # Errors
    /// The storage's.
    pub async fn beat(&mut self, worker: &str, now: Timestamp) -> Result<bool, Error> {
        self.sql
            .change_one(
                "UPDATE workers SET beat = beat + 1, seen_at = ?2 WHERE id = ?1",
                values![worker, now],
            )
            .await
    }

    /// A worker begins.
    ///
    /// # Errors
    /// The storage's.
    pub async fn enlist(&mut self, worker: &str, now: Timestamp) -> Result<(), Error> {
        self.sql
            .change(
                "INSERT INTO workers (id, beat, started_at, seen_at) VALUES (?1, 0, ?2, ?2) \
                 ON CONFLICT (id) DO UPDATE SET beat = workers.beat + 1",
                values![worker, now],
            )
            .await
            .map(drop)
    }

    /// Declares a worker dead, if its beat is still `beat`, and lets others have its runs; those that it was given for the
    /// `limit`th time are failed instead. Returns how many runs it held, or `None` if it lives.
    ///
    /// # Errors
    /// The storage's.
    pub async fn rescue(
        &mut self,
        dead: &str,
        beat: i64,
        limit: u32,
        now: Timestamp,
    ) -> Result<Option<u64>, Error> {
        let gone = self
            .sql
            .change_one("DELETE FROM workers WHERE id = ?1 AND beat = ?2", values![dead, beat])
            .await?;
        if gone { self.free(dead, Some(limit), now).await.map(Some) } else { Ok(None) }
    }

    /// A worker ends; what it still holds is for others. With a `limit` as in [`Changes::rescue`], it ended without order.
    ///
    /// # Errors
    /// The storage's.
    pub async fn discharge(
        &mut self,
        worker: &str,
        limit: Option<u32>,
        now: Timestamp,
    ) -> Result<u64, Error> {
        self.sql.change("DELETE FROM workers WHERE id = ?1", values![worker]).await?;
        self.free(worker, limit, now).await
    }

    /// A worker that could not show that it lives begins anew; what it still holds is for others. If it was declared dead meanwhile,
    /// that is not held against the runs `begun` (with their fences), whose steps were under way there: it lives.
    ///
    /// # Errors
    /// The storage's.
    pub async fn come_back(
        &mut self,
        worker: &str,
        begun: &[(TaskRunId, i64)],
        now: Timestamp,
    ) -> Result<(), Error> {
        if !self.sql.change_one("DELETE FROM workers WHERE id = ?1", values![worker]).await? {
            let rows = begun.iter().map(|(run, fence)| values![run.as_bytes(), *fence]).collect();
            self.sql.each(&ACQUIT, rows).await?;
        }
        self.free(worker, None, now).await?;
        self.enlist(worker, now).await
    }

    async fn free(&mut self, worker: &str, limit: Option<u32>, now: Timestamp) -> Result<u64, Error> {
        let query = format!("{ENTRY} WHERE worker = ?1 ORDER BY ckey, run{}", self.sql.lock());
        let rows = self.sql.rows(&query, values![worker]).await?;
        let mut again = Vec::new();
        for row in &rows {
            let held = entry(row)?;
            // A claim that nothing came of is no reason to suspect the run, nor is one of a worker that ends in order.
            let suspect = limit.is_some() && row.optional_number(BEGUN_IN)? == Some(held.fence);
            if suspect && limit.is_some_and(|limit| held.rescues + 1 >= limit) {
                let why = "each worker that began this run died with it";
                self.end_entry(row, TaskRunState::Failed, why, now).await?;
            } else {
                again.push(values![held.run.as_bytes(), i64::from(suspect)]);
            }
        }
        self.sql.each(&FREE, again).await?;
        // Runs that somebody has cancelled meanwhile end here: their worker cannot.
        let cancelled = format!("{ENTRY} WHERE worker IS NULL AND cancel IS NOT NULL{}", self.sql.lock());
        for row in self.sql.rows(&cancelled, Vec::new()).await? {
            self.end_entry(&row, TaskRunState::Cancelled, "cancelled", now).await?;
        }
        Ok(rows.len() as u64)
    }
}

fn again(entry: &Claimed, retry: &Retry, now: Timestamp) -> NewRun {
    NewRun {
        run: retry.run,
        lineage: entry.lineage,
        task: entry.task,
        owner: entry.owner.clone(),
        attempt: entry.attempt + 1,
        trigger: entry.trigger,
        scheduled_for: entry.scheduled_for,
        event: entry.event,
        priority: entry.priority,
        ready_at: retry.ready_at,
        concurrency_key: None,
        created_at: now,
    }
}

impl Reads<'_> {
    /// Workers, oldest first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn workers(&mut self) -> Result<Vec<WorkerRow>, Error> {
        let rows = self
            .sql
            .rows("SELECT id, beat, started_at FROM workers ORDER BY started_at, id", Vec::new())
            .await?;
        rows.iter()
            .map(|row| {
                Ok(WorkerRow { id: row.text(0)?.to_owned(), beat: row.number(1)?, started_at: row.time(2)? })
            })
            .collect()
    }

    /// Runs of a worker that somebody wants to end, with the reason.
    ///
    /// # Errors
    /// The storage's.
    pub async fn cancelled(&mut self, worker: &str) -> Result<Vec<(TaskRunId, String)>, Error> {
        // The bounds say nothing, but a PostgreSQL that has not looked at the table yet takes "not null" for most rows and would
        // read all of them; with bounds it takes the index of those that are cancelled.
        let query = "SELECT run, cancel FROM queue WHERE cancel IS NOT NULL AND run >= ?2 AND run <= ?3 AND worker = ?1";
        let rows = self.sql.rows(query, values![worker, &[0_u8; 16], &[u8::MAX; 16]]).await?;
        rows.iter().map(|row| Ok((TaskRunId::from_bytes(row.bytes(0)?), row.text(1)?.to_owned()))).collect()
    }
}
