//! Records of what changes nothing: reads, refusals, attempts. Batched, off the request's path, bounded.
//!
//! Changes do not come this way: [`crate::auth::Db::write`] commits their records with them. When more arrives than can be
//! written, the surplus is counted exactly and the count itself is recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::audit::AuditDraft;
use interlock_store::{Error, Store, transact_repeatable};
use serde_json::json;
use tokio::sync::mpsc;

use crate::Ambient;
use crate::security;

/// Records that wait at most.
const CAPACITY: usize = 8_192;
/// Records in one transaction at most.
const BATCH: usize = 512;

/// Where to put records. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<AuditDraft>,
    dropped: Arc<AtomicU64>,
    /// Records given and not yet written.
    waiting: Arc<AtomicU64>,
    ambient: Ambient,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// Never waits.
    pub fn record(&self, draft: AuditDraft) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if self.sender.try_send(draft).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("audit_entries_dropped_total").increment(1);
        }
    }

    /// Waits until everything given so far is written, at most `limit`.
    pub async fn drained(&self, limit: Duration) {
        let empty = async {
            while self.waiting.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(limit, empty).await.is_err() {
            tracing::error!("audit records were still waiting when the server ended");
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.ambient.clock.now()
    }
}

/// A recorder and the task that writes for it. The task ends when every recorder is gone and what they gave is written.
pub fn recorder(store: Arc<dyn Store>, ambient: Ambient) -> (Recorder, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let dropped = Arc::new(AtomicU64::new(0));
    let recorder = Recorder { sender, dropped, waiting: Arc::default(), ambient };
    let counts = (Arc::clone(&recorder.dropped), Arc::clone(&recorder.waiting));
    let writing = write_batches(store, recorder.ambient.clone(), receiver, counts);
    (recorder, writing)
}

async fn write_batches(
    store: Arc<dyn Store>,
    ambient: Ambient,
    mut receiver: mpsc::Receiver<AuditDraft>,
    (dropped, waiting): (Arc<AtomicU64>, Arc<AtomicU64>),
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let given = receiver.recv_many(&mut batch, BATCH).await as u64;
        if given == 0 {
            return;
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            batch.push(AuditDraft {
                at: ambient.clock.now(),
                actor: None,
                action: "audit.sampled".to_owned(),
                subject: None,
                details: json!({ "not_recorded": lost }),
                client_ip: None,
                request_id: None,
            });
        }
        let drafts = Arc::new(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
        let mut pause = Duration::from_millis(100);
        while let Err(error) = append(&*store, Arc::clone(&drafts)).await {
            metrics::gauge!("audit_failing").set(1.0);
            security::event(security::Event::AuditFailed, None, None, json!({ "reason": error.to_string() }));
            if matches!(error, Error::Closed) || receiver.is_closed() {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        waiting.fetch_sub(given, Ordering::AcqRel);
        metrics::gauge!("audit_failing").set(0.0);
        // A little patience makes one flush serve many reads.
        if receiver.len() < BATCH && !receiver.is_closed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn append(store: &dyn Store, drafts: Arc<Vec<AuditDraft>>) -> Result<(), Error> {
    transact_repeatable(store, move |tx| {
        let drafts = Arc::clone(&drafts);
        Box::pin(async move {
            for draft in drafts.iter() {
                tx.append_audit(draft).await?;
            }
            Ok(())
        })
    })
    .await
}
