//! The heartbeat: telling that one lives, hearing what shall end, and taking over from those who do not live any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::task::TaskRunId;
use interlock_store::Error;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{NOTING, PATIENCE, RESCUES, Worker};
use crate::auth::Recorded;

/// Beats in the time after which others call it dead.
const BEATS: u32 = 4;
/// Shortest time between two looks for runs that shall end.
const LOOKING: Duration = Duration::from_millis(20);

impl Worker {
    fn period(&self) -> Duration {
        (self.orchestrator.settings().lease / BEATS).max(Duration::from_millis(20))
    }

    /// Enlists, and takes over what a predecessor at the same place held. `false` if `stop` came first.
    pub(super) async fn begin(&self, place: &str, stop: &CancellationToken) -> bool {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.enlist(place).await {
                Ok(taken) => {
                    if taken > 0 {
                        tracing::info!(runs = taken, "runs of the process before are taken over");
                    }
                    return true;
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the worker cannot begin; trying again"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PATIENCE),
            }
        }
    }

    async fn enlist(&self, place: &str) -> Result<u64, Error> {
        // Before the first run: what it waits for is told by the common clock.
        self.orchestrator.agree_on_time().await?;
        let (worker, now, prefix) = (self.id.clone(), self.orchestrator.now(), format!("{place}."));
        let proof = self.orchestrator.0.system.acting("worker.began", Some(worker.clone()));
        self.orchestrator
            .0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let mut taken = 0;
                    for before in all.reads().workers().await? {
                        if before.id.starts_with(&prefix) && before.id != worker {
                            taken += all.discharge(&before.id, Some(RESCUES), now).await?;
                        }
                    }
                    all.enlist(&worker, now).await?;
                    Ok(Recorded { value: taken, details: json!({ "runs_taken_over": taken }) })
                })
            })
            .await
    }

    /// Lets others have what is still held.
    pub(super) async fn end(&self) {
        self.drop_all();
        let (worker, now) = (self.id.clone(), self.orchestrator.now());
        let proof = self.orchestrator.0.system.acting("worker.ended", Some(worker.clone()));
        let ended = self
            .orchestrator
            .0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let left = tx.orchestrator().discharge(&worker, None, now).await?;
                    Ok::<_, Error>(Recorded { value: left, details: json!({ "runs_left": left }) })
                })
            })
            .await;
        match ended {
            Ok(_) => self.orchestrator.tell_work(),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the worker could not say that it ends; others will notice"
                );
            }
        }
    }

    /// Nothing that is held may be gone on with: others may have it.
    fn lose(&self) {
        let runs = self.drop_all();
        if runs > 0 {
            tracing::error!(runs, "this worker cannot show that it lives; it stops what it does");
        }
    }

    fn drop_all(&self) -> usize {
        let mut held = self.held();
        let mut begun = self.begun();
        held.drain()
            .map(|(run, held)| {
                held.dropped.cancel();
                begun.extend(held.began.map(|_| (run, held.fence)));
            })
            .count()
    }

    /// Beats until `over`. Judged by this process's own clock: when the storage has not answered for three quarters of the time
    /// after which others call it dead, the worker stops what it does.
    pub(super) async fn beat(self: Arc<Self>, over: CancellationToken) {
        let period = self.period();
        let limit = self.orchestrator.settings().lease * 3 / 4;
        let mut happened = self.orchestrator.0.happened.subscribe();
        let mut beaten = Instant::now();
        let mut lost = false;
        loop {
            let begun = Instant::now();
            // A beat that takes too long is no beat.
            match tokio::time::timeout(limit, self.beat_once(lost)).await {
                Ok(Ok(true)) => {
                    // From when it was sent: that is the latest time from which others can count.
                    beaten = begun;
                    lost = false;
                    metrics::counter!("orchestrator_worker_heartbeat_total").increment(1);
                }
                Ok(Ok(false)) => {
                    self.lose();
                    lost = true;
                    continue;
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the worker could not say that it lives"
                    );
                }
                Err(_) => {
                    tracing::warn!("the worker could not say that it lives: the storage does not answer");
                }
            }
            let next = begun + period;
            loop {
                if beaten.elapsed() >= limit && !lost {
                    self.lose();
                    lost = true;
                }
                let until = if lost { next } else { next.min(beaten + limit) };
                tokio::select! {
                    () = over.cancelled() => return,
                    () = tokio::time::sleep_until(until) => if Instant::now() >= next { break },
                    heard = happened.changed() => {
                        if heard.is_err() {
                            return;
                        }
                        tokio::time::sleep(LOOKING).await;
                        happened.mark_unchanged();
                        self.look_for_cancelled().await;
                    }
                }
            }
        }
    }

    /// `true` if it lives. One that was `lost` begins anew: what it held before is for everybody.
    async fn beat_once(&self, lost: bool) -> Result<bool, Error> {
        let (worker, now) = (self.id.clone(), self.orchestrator.now());
        let begun = if lost { self.begun().clone() } else { Vec::new() };
        let alive = self
            .orchestrator
            .0
            .db
            .count(move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    if lost {
                        all.come_back(&worker, &begun, now).await?;
                    }
                    all.beat(&worker, now).await
                })
            })
            .await?;
        if alive {
            self.begun().clear();
            self.look_for_cancelled().await;
        }
        Ok(alive)
    }

    /// Tells runs that somebody wants to end.
    async fn look_for_cancelled(&self) {
        if self.held().is_empty() {
            return;
        }
        let worker = self.id.clone();
        let found = self
            .orchestrator
            .ask(move |mut reads| Box::pin(async move { reads.cancelled(&worker).await }))
            .await;
        // What cannot be read now is read at the next beat.
        for (run, reason) in found.unwrap_or_default() {
            if let Some(held) = self.held().get_mut(&run)
                && held.reason.is_none()
            {
                held.reason = Some(reason);
                held.cancel.cancel();
            }
        }
    }

    /// Watches the beats of others, and lets everybody have the runs of those whose beat stands still.
    pub(super) async fn watch(self: Arc<Self>, over: CancellationToken) {
        let lease = self.orchestrator.settings().lease;
        let mut seen: HashMap<String, (i64, Instant)> = HashMap::new();
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(self.period()) => {}
            }
            let Ok(workers) =
                self.orchestrator.ask(|mut reads| Box::pin(async move { reads.workers().await })).await
            else {
                // Nobody's beat can be seen: nobody is judged by this time.
                seen.clear();
                continue;
            };
            metrics::gauge!("orchestrator_active_workers", "state" => "alive")
                .set(f64::from(u32::try_from(workers.len()).unwrap_or(u32::MAX)));
            seen.retain(|id, _| workers.iter().any(|worker| worker.id == *id));
            for worker in workers {
                let known = seen.entry(worker.id.clone()).or_insert((worker.beat, Instant::now()));
                if known.0 != worker.beat {
                    *known = (worker.beat, Instant::now());
                } else if worker.id != self.id && known.1.elapsed() >= lease {
                    self.bury(worker.id, worker.beat).await;
                }
            }
        }
    }

    async fn bury(&self, dead: String, beat: i64) {
        let now = self.orchestrator.now();
        let proof = self.orchestrator.0.system.acting("worker.lost", Some(dead.clone()));
        let name = dead.clone();
        let rescued = self
            .orchestrator
            .0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let runs =
                        tx.orchestrator().rescue(&dead, beat, RESCUES, now).await?.ok_or(Alive::Alive)?;
                    Ok(Recorded { value: runs, details: json!({ "runs": runs }) })
                })
            })
            .await;
        match rescued {
            Ok(runs) => {
                tracing::warn!(worker = name, runs, "a worker is dead; others have its runs");
                self.orchestrator.tell_work();
            }
            Err(Alive::Alive) => {}
            Err(Alive::Store(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "runs of a dead worker could not be freed"
                );
            }
        }
    }

    /// Notes which runs have begun, so that people see it and a run that kills workers is known.
    pub(super) async fn note(self: Arc<Self>, over: CancellationToken) {
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(NOTING) => {}
            }
            let begun: Vec<(TaskRunId, i64, interlock_model::Timestamp)> = {
                let held = self.held();
                let fresh = held.iter().filter(|(_, held)| !held.noted);
                fresh.filter_map(|(run, held)| Some((*run, held.fence, held.began?))).collect()
            };
            if begun.is_empty() {
                continue;
            }
            let (worker, rows) = (self.id.clone(), begun.clone());
            let db = &self.orchestrator.0.db;
            let noted = db
                .count(move |tx| Box::pin(async move { tx.orchestrator().begun(&worker, &rows).await }))
                .await;
            if noted.is_ok() {
                let mut held = self.held();
                for (run, ..) in &begun {
                    if let Some(held) = held.get_mut(run) {
                        held.noted = true;
                    }
                }
                drop(held);
                self.orchestrator.0.happened.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Alive {
    #[error("it lives, or another server was faster")]
    Alive,
    #[error("use the storage")]
    Store(#[from] Error),
}
