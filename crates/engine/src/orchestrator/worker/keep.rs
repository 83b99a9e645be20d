//! What a run asks of the storage: each write first makes sure that the run is still this worker's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use interlock_model::Timestamp;
use interlock_model::pipeline::StepRecord;
use interlock_model::task::{ApprovalState, EventId, StreamId, TaskRunId};
use interlock_store::orchestrator::{ApprovalRow, Changes, Claimed, EventRow};
use interlock_store::{Error, Tx};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::Worker;
use super::telling::Telling;
use crate::auth::Recorded;
use crate::orchestrator::events::ids;
use crate::pipeline::{Decision, Lost, Note, PublishError, RunHost};

/// The storage's side of one run.
pub(super) struct Keeper {
    worker: Arc<Worker>,
    run: TaskRunId,
    lineage: TaskRunId,
    fence: i64,
    owner: String,
    began: Timestamp,
    /// Something of it may be in the storage.
    written: AtomicBool,
    telling: Telling,
    /// Held by whoever writes what was told, so that it stays in order.
    saying: tokio::sync::Mutex<()>,
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("the run is another worker's")]
    Lost,
    #[error("use the storage")]
    Store(#[from] Error),
}

type Work<T> =
    Arc<dyn for<'t> Fn(&'t mut Changes<'_>) -> BoxFuture<'t, Result<(T, Value), Error>> + Send + Sync>;

/// What makes a run this worker's.
struct Claim {
    worker: String,
    run: TaskRunId,
    fence: i64,
    began: Timestamp,
}

/// Does `work` if the claim holds, and makes it hold until the write is over.
async fn held<T: Send + 'static>(
    tx: &mut dyn Tx,
    claim: Claim,
    work: Work<T>,
) -> Result<Recorded<T>, KeepError> {
    let mut all = tx.orchestrator();
    if !all.holds(&claim.worker, claim.run, claim.fence).await? {
        return Err(KeepError::Lost);
    }
    all.begun(&claim.worker, &[(claim.run, claim.fence, claim.began)]).await?;
    let (value, details) = work(&mut all).await?;
    Ok(Recorded { value, details })
}

impl Keeper {
    fn claim(&self) -> Claim {
        Claim { worker: self.worker.id.clone(), run: self.run, fence: self.fence, began: self.began }
    }

    pub(super) fn new(worker: Arc<Worker>, entry: &Claimed, began: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            worker,
            run: entry.run,
            lineage: entry.lineage,
            fence: entry.fence,
            owner: entry.owner.clone(),
            began,
            written: AtomicBool::new(false),
            telling: Telling::default(),
            saying: tokio::sync::Mutex::default(),
        })
    }

    /// Writes what `choose` takes, once: what cannot be written is lost.
    pub(super) async fn say(&self, choose: impl FnOnce(&Telling) -> Vec<(Timestamp, Value)>) {
        let _order = self.saying.lock().await;
        let notes = Arc::new(choose(&self.telling));
        if notes.is_empty() {
            return;
        }
        let (claim, run, shared) = (self.claim(), self.run, &self.worker.orchestrator.0);
        let work: Work<()> = Arc::new(move |all| {
            let notes = Arc::clone(&notes);
            Box::pin(async move { all.put_notes(run, &notes).await.map(|()| ((), Value::Null)) })
        });
        match shared.db.count_as(move |tx| Box::pin(held(tx, claim, work))).await {
            Ok(()) => shared.happened.send_modify(|count| *count = count.wrapping_add(1)),
            // Whoever has the run now tells what happens.
            Err(KeepError::Lost) => {}
            Err(KeepError::Store(error)) => {
                tracing::warn!(run.id = %run, error = &error as &dyn std::error::Error, "what a run told could not be kept");
            }
        }
    }

    /// Whether anything was to be kept.
    pub(super) fn has_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    /// Writes if the run is still this worker's. Tries again for half of the time for which nobody else can have it.
    async fn write<T: Send + 'static>(
        &self,
        audited: Option<&'static str>,
        work: Work<T>,
    ) -> Result<T, Lost> {
        self.written.store(true, Ordering::Relaxed);
        let shared = &self.worker.orchestrator.0;
        let until = Instant::now() + shared.settings.lease / 2;
        let mut pause = Duration::from_millis(50);
        loop {
            let (claim, work) = (self.claim(), Arc::clone(&work));
            let written = match audited {
                Some(action) => {
                    let proof = shared.system.acting(action, Some(self.run.to_string()));
                    shared.db.write(&proof, move |tx| Box::pin(held(tx, claim, work))).await
                }
                None => shared.db.count_as(move |tx| Box::pin(held(tx, claim, work))).await,
            };
            match written {
                Ok(value) => return Ok(value),
                Err(KeepError::Lost) => return Err(Lost),
                Err(KeepError::Store(error)) => {
                    tracing::warn!(run.id = %self.run, error = &error as &dyn std::error::Error, "a step could not be kept");
                    if Instant::now() + pause >= until || matches!(error, Error::Closed) {
                        return Err(Lost);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

#[async_trait]
impl RunHost for Keeper {
    async fn keep(&self, record: &StepRecord) -> Result<(), Lost> {
        let (lineage, step, now) = (self.lineage, record.step, self.worker.orchestrator.now());
        // A record is plain data; one that cannot be written cannot be trusted to be there later.
        let data = Arc::new(serde_json::to_value(record).map_err(|_| Lost)?);
        let work: Work<()> = Arc::new(move |all| {
            let data = Arc::clone(&data);
            Box::pin(async move { all.put_step(lineage, step, &data, now).await.map(|()| ((), Value::Null)) })
        });
        self.write(None, work).await
    }

    async fn decision(&self, step: u32, asked: &str) -> Result<Option<Decision>, Lost> {
        let Some(asked) = interlock_model::id::from_hexadecimal(asked) else { return Ok(None) };
        let (lineage, now, step) = (self.lineage, self.worker.orchestrator.now(), step.to_string());
        let work: Work<Option<ApprovalRow>> = Arc::new(move |all| {
            let step = step.clone();
            Box::pin(async move {
                let found = all.reads().approvals_of(lineage).await?.into_iter();
                let mut found = found.filter(|row| row.asked.step == step && row.asked.digest == asked);
                let Some(mut row) = found.next() else { return Ok((None, json!({ "asked": false }))) };
                if row.state == ApprovalState::Approved
                    && !all.use_approval(row.asked.id, lineage, now).await?
                {
                    // Too old to be used: as if nobody had answered in time.
                    row.state = ApprovalState::Expired;
                }
                let details = json!({ "approval": row.asked.id, "state": row.state });
                Ok((Some(row), details))
            })
        });
        let row = self.write(Some("approval.used"), work).await?;
        Ok(row.map(|row| Decision {
            state: row.state,
            by: row.decided_by,
            first: row.first.map(|(by, _)| by),
            note: row.note,
            at: row.decided_at,
        }))
    }

    fn tell(&self, note: Note) {
        self.telling.push(self.worker.orchestrator.now(), note);
    }

    async fn publish(
        &self,
        step: u32,
        topic: &str,
        payload: Map<String, Value>,
    ) -> Result<EventId, PublishError> {
        let mut hash = Sha256::new();
        hash.update(self.lineage.as_bytes());
        hash.update(step.to_be_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let now = self.worker.orchestrator.now();
        // The same id whenever this step is carried out: the event is there once.
        let id = EventId::from_bytes(digest.first_chunk().copied().unwrap_or_default());
        let event = Arc::new(EventRow {
            id,
            position: StreamId::default(),
            topic: topic.to_owned(),
            payload: Value::Object(payload),
            source: self.owner.clone(),
            published_by: self.owner.clone(),
            published_at: now,
        });
        let orchestrator = self.worker.orchestrator.clone();
        let work: Work<()> = Arc::new(move |all| {
            let (event, orchestrator) = (Arc::clone(&event), orchestrator.clone());
            Box::pin(async move {
                if all.reads().event(id).await?.is_some() {
                    return Ok(((), json!({ "event_id": id, "already": true })));
                }
                let (position, triggered) = orchestrator.publish_in(all, &event, now).await?;
                let details = json!({
                    "event_id": id, "topic": event.topic, "stream_id": position.to_string(),
                    "triggered_tasks": ids(&triggered),
                });
                Ok(((), details))
            })
        });
        self.write(Some("event.published"), work).await.map_err(|Lost| PublishError::Lost)?;
        self.worker.orchestrator.tell_work();
        Ok(id)
    }
}
