//! Old runs, events and answers go, a small batch at a time, so that nobody waits long for it.

use std::time::Duration;

use interlock_store::Error;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Orchestrator;
use crate::auth::Recorded;

/// Rows in one write.
const BATCH: u32 = 1_000;
/// Between two writes.
const BREATH: Duration = Duration::from_millis(50);
/// Between two looks for what is old.
const PERIOD: Duration = Duration::from_mins(10);

impl Orchestrator {
    /// Deletes what is old until `stop`. Run it as a background task.
    pub async fn forget(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wait = match self.forget_batch().await {
                Ok(0) => PERIOD,
                Ok(_) => BREATH,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "old runs and events could not be deleted"
                    );
                    PERIOD
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Deletes one batch of what is older than the retention; returns how many rows.
    ///
    /// # Errors
    /// The storage's; then nothing was deleted.
    pub async fn forget_batch(&self) -> Result<u64, Error> {
        let now = self.0.ambient.clock.settled();
        let before = now.minus(self.0.settings.retention);
        let proof = self.0.system.acting("system.cleaned", None);
        let deleted = self
            .0
            .db
            .write(&proof, move |tx| {
                Box::pin(async move {
                    let mut all = tx.orchestrator();
                    let runs = all.delete_runs(before, BATCH).await?;
                    let events = all.delete_events(before, BATCH).await?;
                    let settled = all.delete_settled(before, now, BATCH).await?;
                    let notes = all.delete_notes(before, BATCH).await?;
                    if runs + events + settled + notes == 0 {
                        return Err(Forgotten::Nothing);
                    }
                    let details = json!({ "runs": runs, "events": events, "questions_and_answers": settled, "notes": notes });
                    Ok(Recorded { value: runs + events + settled + notes, details })
                })
            })
            .await;
        match deleted {
            Ok(count) => Ok(count),
            Err(Forgotten::Nothing) => Ok(0),
            Err(Forgotten::Store(error)) => Err(error),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Forgotten {
    #[error("nothing is old enough")]
    Nothing,
    #[error("use the storage")]
    Store(#[from] Error),
}
