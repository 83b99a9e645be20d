//! What must be thrown away: idempotency keys, revocations and bans whose time is over; runs of a device, if so many are not to be
//! kept.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::RunId;
use interlock_store::Error;
use interlock_store::orchestrator::ask;
use serde_json::json;

use crate::Ambient;
use crate::auth::{Db, Recorded, SystemPermit};
use crate::devices::Device;

/// Runs that are deleted in one write, so that nobody waits long for it.
const RUNS: u32 = 100;

/// Cleans once in every `period` until dropped. Run it as a background task.
pub async fn clean_forever(db: Db, ambient: Ambient, permit: SystemPermit, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        if let Err(error) = clean(&db, &ambient, &permit).await {
            tracing::error!(%error, "expired keys, revocations and bans could not be deleted");
        }
    }
}

/// Deletes what has expired and returns how much that was.
///
/// # Errors
/// The storage's; then nothing was deleted.
pub async fn clean(db: &Db, ambient: &Ambient, permit: &SystemPermit) -> Result<u64, Error> {
    let now = ambient.clock.settled();
    let proof = permit.acting("system.cleaned", None);
    db.write(&proof, move |tx| {
        Box::pin(async move {
            let deleted = tx.delete_expired(now).await?;
            Ok::<_, Error>(Recorded { value: deleted, details: json!({ "expired_rows": deleted }) })
        })
    })
    .await
}

/// Why old runs are still there.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Their files could not be deleted.
    #[error("delete the files of old runs")]
    Files(#[source] std::io::Error),
    /// The storage's.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Deletes runs of the device that ended more than `days` ago, once in every `period` until dropped. Run it as a background task.
pub async fn discard_forever(
    db: Db,
    ambient: Ambient,
    permit: SystemPermit,
    device: Arc<dyn Device>,
    days: u32,
    period: Duration,
) {
    loop {
        if let Err(error) = discard(&db, &ambient, &permit, &device, days).await {
            tracing::error!(error = &error as &dyn std::error::Error, "old runs could not be deleted");
        }
        tokio::time::sleep(period).await;
    }
}

/// Deletes what ended more than `days` ago: the files of each run first, so that no file is left that nothing names.
///
/// # Errors
/// [`DiscardError`]; what was deleted until then stays deleted, and the rest is found again.
pub async fn discard(
    db: &Db,
    ambient: &Ambient,
    permit: &SystemPermit,
    device: &Arc<dyn Device>,
    days: u32,
) -> Result<u64, DiscardError> {
    let before = ambient.clock.settled().minus(Duration::from_hours(24 * u64::from(days)));
    let mut discarded = 0;
    loop {
        let old = ask(db.read(), move |mut reads| {
            Box::pin(async move { reads.old_device_runs(before, RUNS).await })
        });
        let runs: Vec<RunId> = old.await?;
        if runs.is_empty() {
            return Ok(discarded);
        }
        let (keeper, files) = (Arc::clone(device), runs.clone());
        tokio::task::spawn_blocking(move || keeper.discard(&files))
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(DiscardError::Files)?;
        discarded += db
            .write(&permit.acting("system.cleaned", None), move |tx| {
                Box::pin(async move {
                    let deleted = tx.orchestrator().delete_device_runs(&runs).await?;
                    Ok::<_, Error>(Recorded {
                        value: deleted,
                        details: json!({ "runs_of_the_device": deleted }),
                    })
                })
            })
            .await?;
    }
}
