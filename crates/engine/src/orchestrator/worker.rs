//! Carries runs out. One worker in each server: it claims runs in batches, a little ahead of what it can do at once, and stores how
//! they ended in the same writes that claim the next. Under load two such writes are under way at a time.
//!
//! A worker lives by its heartbeat. One that cannot tell the storage that it lives stops what it does before others may take it
//! over ([`heart`]); what ends after that is not stored. A run that was begun goes on elsewhere behind its finished steps.

mod heart;
mod job;
mod keep;
mod telling;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use interlock_model::Timestamp;
use interlock_model::task::{TaskId, TaskRunId, TaskRunState};
use interlock_model::trace::{Span, SpanKind};
use interlock_store::Error;
use interlock_store::orchestrator::{Claimed, Finished, NewApproval, Suspended};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Orchestrator;
use crate::auth::Recorded;
use crate::spans;

/// Runs in one write.
const BATCH: usize = 500;
/// Longest pause after the storage failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is noted which runs have begun, unless they are over or a step of theirs says so before.
const NOTING: Duration = Duration::from_millis(200);
/// A run that was begun by so many workers that died is not given to another.
const RESCUES: u32 = 5;

/// How a worker's part in a run ended.
enum Outcome {
    Finished(Arc<Finished>),
    /// It goes on at this time.
    Later(Claimed, Timestamp),
    /// It goes on when a person has decided.
    Asks(Claimed, Box<NewApproval>),
    /// Others may have it as it is.
    GivenBack(Claimed),
}

impl Outcome {
    fn run(&self) -> TaskRunId {
        match self {
            Self::Finished(end) => end.entry.run,
            Self::Later(entry, _) | Self::Asks(entry, _) | Self::GivenBack(entry) => entry.run,
        }
    }

    fn fence(&self) -> i64 {
        match self {
            Self::Finished(end) => end.entry.fence,
            Self::Later(entry, _) | Self::Asks(entry, _) | Self::GivenBack(entry) => entry.fence,
        }
    }
}

/// A run that this worker holds.
struct Held {
    fence: i64,
    /// Somebody wants it to end.
    cancel: CancellationToken,
    /// Others may have it: what is done for it here is dropped as it is. It is not cancelled, which would end an action of a device
    /// that whoever takes the run over asks for again.
    dropped: CancellationToken,
    /// Why somebody wants it to end.
    reason: Option<String>,
    /// When its steps began here.
    began: Option<Timestamp>,
    /// That is on record, or its end is about to be.
    noted: bool,
}

/// One worker. It is at work while [`Worker::work`] runs.
struct Worker {
    orchestrator: Orchestrator,
    id: String,
    held: Mutex<HashMap<TaskRunId, Held>>,
    /// Runs that may have something to tell.
    telling: Mutex<Vec<Weak<keep::Keeper>>>,
    /// Runs whose steps were under way here, with their fences, when it could not show that it lives; none while it can.
    begun: Mutex<Vec<(TaskRunId, i64)>>,
    places: Semaphore,
    outcomes: mpsc::Sender<Outcome>,
    tasks: TaskTracker,
}

impl Orchestrator {
    /// Carries runs out under the name `id` until `stop`; then lets those that run end within `drain`. Names begin with `place.`,
    /// where `place` is the same after a restart, and at most one process at a time uses it: what its predecessor held is taken
    /// over at once. Run it as a background task, and wait for it before the storage is closed.
    pub async fn work(self, place: &str, drain: Duration, stop: CancellationToken) {
        let (concurrency, slots) = {
            let settings = self.settings();
            (settings.concurrency, settings.concurrency + settings.prefetch)
        };
        if concurrency == 0 {
            return;
        }
        let name = interlock_model::id::random_hex(&*self.0.ambient.entropy, 6);
        let (outcomes, ended) = mpsc::channel(slots.max(1));
        let worker = Arc::new(Worker {
            orchestrator: self,
            id: format!("{place}.{name}"),
            held: Mutex::default(),
            telling: Mutex::default(),
            begun: Mutex::default(),
            places: Semaphore::new(concurrency),
            outcomes,
            tasks: TaskTracker::new(),
        });
        if !worker.begin(place, &stop).await {
            return;
        }
        let over = CancellationToken::new();
        let background = TaskTracker::new();
        background.spawn(Arc::clone(&worker).beat(over.clone()));
        background.spawn(Arc::clone(&worker).watch(over.clone()));
        background.spawn(Arc::clone(&worker).note(over.clone()));
        background.spawn(Arc::clone(&worker).tell_followers(over.clone()));
        background.close();
        worker.pump(ended, slots, drain, &stop).await;
        over.cancel();
        background.wait().await;
        worker.end().await;
    }
}

/// What one write did.
struct Turned {
    claimed: Vec<Claimed>,
    /// For each end whether it was still this worker's.
    own: Vec<bool>,
}

#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error("there was nothing to claim and nothing to store")]
    Nothing,
    #[error("use the storage")]
    Store(#[from] Error),
}

impl Worker {
    fn held(&self) -> MutexGuard<'_, HashMap<TaskRunId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn telling(&self) -> MutexGuard<'_, Vec<Weak<keep::Keeper>>> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, Vec<(TaskRunId, i64)>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims, starts and stores until `stop` and everything that runs has ended, or `drain` is over.
    async fn pump(
        self: &Arc<Self>,
        mut ended: mpsc::Receiver<Outcome>,
        slots: usize,
        drain: Duration,
        stop: &CancellationToken,
    ) {
        let full = BATCH.min(slots / 2).max(1);
        let mut ends: Vec<Outcome> = Vec::new();
        let mut under_way = FuturesUnordered::new();
        // How many runs the writes under way may claim.
        let mut asked = 0;
        let mut looking = true;
        let mut pause = Duration::from_millis(50);
        let mut until = None;
        let poll = self.orchestrator.settings().poll;
        loop {
            let stopping = stop.is_cancelled();
            if stopping && until.is_none() && under_way.is_empty() {
                until = Some(tokio::time::Instant::now() + drain);
                self.give_up_waiting().await;
            }
            while ends.len() < BATCH
                && let Ok(end) = ended.try_recv()
            {
                ends.push(end);
            }
            let free = slots.saturating_sub(self.held().len() + asked);
            let wanted = if looking && !stopping { free.min(BATCH) } else { 0 };
            let goes = match under_way.len() {
                0 => !ends.is_empty() || wanted > 0,
                // While one waits for its flush, the next is made, if there is enough for it.
                1 => ends.len() >= full,
                _ => false,
            };
            if goes {
                let stored: Vec<Outcome> = ends.drain(..ends.len().min(BATCH)).collect();
                asked += wanted;
                under_way.push(async move {
                    let turned = self.turn(&stored, wanted).await;
                    (stored, wanted, turned)
                });
            } else if under_way.is_empty() {
                if until.is_some() && self.held().is_empty() {
                    return;
                }
                let wait =
                    until.map_or(poll, |until| until.saturating_duration_since(tokio::time::Instant::now()));
                if wait.is_zero() {
                    tracing::warn!(
                        runs = self.held().len(),
                        "runs had not ended when the server did; others go on with them"
                    );
                    return;
                }
                tokio::select! {
                    end = ended.recv() => ends.extend(end),
                    () = self.orchestrator.0.work.notified(), if until.is_none() => looking = true,
                    () = tokio::time::sleep(wait) => looking = true,
                    () = stop.cancelled(), if until.is_none() => {}
                }
                continue;
            }
            let (stored, wanted, turned) = tokio::select! {
                Some(done) = under_way.next() => done,
                end = ended.recv(), if under_way.len() == 1 && ends.len() < full => {
                    ends.extend(end);
                    continue;
                }
            };
            asked -= wanted;
            match turned {
                Ok(turned) => {
                    pause = Duration::from_millis(50);
                    looking = wanted > 0 && turned.claimed.len() == wanted || (looking && wanted == 0);
                    self.settle(&stored, &turned.own);
                    for claimed in turned.claimed {
                        self.start(claimed);
                    }
                }
                Err(TurnError::Nothing) => looking = false,
                Err(TurnError::Store(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "runs could not be claimed or ended; trying again"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PATIENCE);
                    ends.extend(stored);
                    // What is not this worker's any more must not be waited for.
                    let held = self.held();
                    ends.retain(|end| held.get(&end.run()).is_some_and(|held| held.fence == end.fence()));
                }
            }
        }
    }

    /// Stores ends and claims runs in one write.
    async fn turn(&self, ends: &[Outcome], wanted: usize) -> Result<Turned, TurnError> {
        let mut finished = Vec::new();
        let mut suspended: Vec<(Claimed, Option<Timestamp>, Option<NewApproval>)> = Vec::new();
        let mut back = Vec::new();
        for end in ends {
            match end {
                Outcome::Finished(end) => finished.push(Arc::clone(end)),
                Outcome::Later(entry, until) => suspended.push((entry.clone(), Some(*until), None)),
                Outcome::Asks(entry, question) => {
                    suspended.push((entry.clone(), None, Some((**question).clone())));
                }
                Outcome::GivenBack(entry) => back.push((entry.run, entry.fence)),
            }
        }
        let order: Vec<TaskRunId> = ends.iter().map(Outcome::run).collect();
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let (worker, now) = (self.id.clone(), self.orchestrator.now());
        let proof = self.orchestrator.0.system.acting("runs.carried_out", Some(worker.clone()));
        let db = &self.orchestrator.0.db;
        db.write(&proof, move |tx| {
            Box::pin(async move {
                let mut all = tx.orchestrator();
                let mut own: HashMap<TaskRunId, bool> = HashMap::new();
                let flags = all.finish(&worker, &finished).await?;
                own.extend(finished.iter().map(|end| end.entry.run).zip(flags));
                for (entry, until, question) in &suspended {
                    let suspended = all.suspend(&worker, entry, *until, now).await?;
                    own.insert(entry.run, suspended != Suspended::Lost);
                    let waits = suspended == Suspended::Waits;
                    if let Some(question) = question.as_ref().filter(|_| waits)
                        && !all.ask(question).await?
                    {
                        // Asked before: it may have been decided in between, and nobody would wake the run again.
                        all.wake_if_decided(question).await?;
                    }
                }
                all.give_back(&worker, &back).await?;
                let claimed = match all.claim(&worker, wanted).await {
                    // What was begun here may end; nothing else begins.
                    Err(Error::Newer { .. }) if !order.is_empty() => Vec::new(),
                    claimed => claimed?,
                };
                if claimed.is_empty() && order.is_empty() {
                    return Err(TurnError::Nothing);
                }
                let details = told(&finished, &suspended, &own, &claimed);
                let own = order.iter().map(|run| own.get(run).copied().unwrap_or(true)).collect();
                Ok(Recorded { value: Turned { claimed, own }, details })
            })
        })
        .await
    }

    /// What was stored is not held any more.
    fn settle(&self, ends: &[Outcome], own: &[bool]) {
        let mut retries = false;
        let mut held = self.held();
        for (end, own) in ends.iter().zip(own) {
            // It may have been claimed again meanwhile, by the other write.
            if held.get(&end.run()).is_some_and(|held| held.fence == end.fence()) {
                held.remove(&end.run());
            }
            if !own {
                tracing::warn!(run.id = %end.run(), "a run ended here after another worker was given it; the end is not stored");
                continue;
            }
            if let Outcome::Finished(end) = end {
                retries |= end.retry.is_some();
                count(end);
            } else if let Outcome::Later(..) = end {
                retries = true;
            }
        }
        drop(held);
        if !ends.is_empty() {
            if retries {
                self.orchestrator.0.schedule.notify_one();
            }
            self.orchestrator.0.happened.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Gives back what was claimed ahead and not begun.
    async fn give_up_waiting(&self) {
        self.places.close();
        let waiting: Vec<(TaskRunId, i64)> = {
            let held = self.held();
            held.iter()
                .filter(|(_, held)| held.began.is_none())
                .map(|(run, held)| (*run, held.fence))
                .collect()
        };
        let ids: Vec<TaskRunId> = waiting.iter().map(|(run, _)| *run).collect();
        let worker = self.id.clone();
        let db = &self.orchestrator.0.db;
        let given = db
            .count(move |tx| Box::pin(async move { tx.orchestrator().give_back(&worker, &waiting).await }))
            .await;
        if let Err(error) = given {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "runs could not be given back; others take them later"
            );
        }
        self.held().retain(|run, _| !ids.contains(run));
        self.orchestrator.tell_work();
    }
}

/// What the audit trail is told about one write of a worker: which claims it has made, with their fences; which runs ended, by task
/// and state; which attempts follow which; which ends came too late and were not stored; which runs wait.
fn told(
    finished: &[Arc<Finished>],
    suspended: &[(Claimed, Option<Timestamp>, Option<NewApproval>)],
    own: &HashMap<TaskRunId, bool>,
    claimed: &[Claimed],
) -> Value {
    let mut ended: HashMap<(TaskId, TaskRunState), Vec<Value>> = HashMap::new();
    let (mut late, mut retried) = (Vec::new(), Map::new());
    for end in finished {
        if !own.get(&end.entry.run).copied().unwrap_or(false) {
            late.push(json!(end.entry.run));
            continue;
        }
        ended.entry((end.entry.task, end.state)).or_default().push(json!(end.entry.run));
        if let Some(retry) = &end.retry {
            retried.insert(end.entry.run.to_string(), json!(retry.run));
        }
    }
    let mut by_task: Map<String, Value> = Map::new();
    for ((task, state), runs) in ended {
        let states = by_task.entry(task.to_string()).or_insert_with(|| json!({}));
        states[state.as_str()] = Value::Array(runs);
    }
    let waits: Vec<Value> = suspended
        .iter()
        .map(|(entry, until, question)| {
            json!({ "run": entry.run, "until": until, "question": question.as_ref().map(|question| question.id) })
        })
        .collect();
    let claimed: Map<String, Value> =
        claimed.iter().map(|claimed| (claimed.run.to_string(), json!(claimed.fence))).collect();
    let mut details = Map::new();
    let parts = [
        ("ended", Value::Object(by_task)),
        ("retried", Value::Object(retried)),
        ("too_late", Value::Array(late)),
        ("suspended", Value::Array(waits)),
        ("claimed", Value::Object(claimed)),
    ];
    for (name, part) in parts {
        let is_empty =
            part.as_array().map_or_else(|| part.as_object().is_none_or(Map::is_empty), Vec::is_empty);
        if !is_empty {
            details.insert(name.to_owned(), part);
        }
    }
    Value::Object(details)
}

fn count(end: &Finished) {
    let succeeded = end.state == TaskRunState::Succeeded;
    metrics::counter!("orchestrator_runs_total", "status" => end.state.as_str()).increment(1);
    let took = end.finished_at.since(end.started_at).as_secs_f64();
    metrics::histogram!("orchestrator_task_duration_seconds", "success" => if succeeded { "true" } else { "false" }).record(took);
    metrics::histogram!("orchestrator_lease_duration_seconds").record(took);
    if spans::is_on() {
        spans::ended(Span {
            context: spans::run(end.entry.run),
            parent: None,
            name: "task run".to_owned(),
            kind: SpanKind::Internal,
            began: end.started_at,
            ended: end.finished_at,
            failed: !succeeded,
            attributes: vec![
                ("interlock.run_id", json!(end.entry.run)),
                ("interlock.task_id", json!(end.entry.task)),
                ("interlock.attempt", json!(end.entry.attempt)),
                ("interlock.state", json!(end.state.as_str())),
            ],
        });
    }
}
