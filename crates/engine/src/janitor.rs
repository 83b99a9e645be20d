//! What must be thrown away: idempotency keys, revocations and bans whose time is over.

use std::time::Duration;

use interlock_store::Error;
use serde_json::json;

use crate::Ambient;
use crate::auth::{Db, Recorded, SystemPermit};

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
