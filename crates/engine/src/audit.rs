//! Records of what changes nothing: reads, refusals, attempts. Batched, off the request's path, bounded.
//!
//! Changes do not come this way: [`crate::auth::Db::write`] commits their records with them. When more arrives than can be
//! written, the surplus is counted exactly and the count itself is recorded. Reads that say the same and are written together
//! share an entry, which names every request (docs/adr/0034-reads-that-say-the-same-share-an-entry.md).

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

/// Reads that share an entry at most: the entry stays below 5 kB.
const SHARING: usize = 64;
/// Entries of one batch that a read is compared with at most.
const COMPARED: usize = 16;
/// Records that wait at most.
const CAPACITY: usize = 8_192;
/// Records in one transaction at most.
const BATCH: usize = 512;

/// Where to put records. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Given>,
    dropped: Arc<AtomicU64>,
    /// Records given and not yet written.
    waiting: Arc<AtomicU64>,
    ambient: Ambient,
}

/// What was given to be written.
enum Given {
    /// An entry of its own.
    Alone(AuditDraft),
    /// A read: one entry does for several of the same.
    Read(AuditDraft),
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// Never waits.
    pub fn record(&self, draft: AuditDraft) {
        self.give(Given::Alone(draft));
    }

    /// As [`Recorder::record`], for what was only looked at: reads of the same by the same, written together, share an entry.
    pub(crate) fn record_read(&self, draft: AuditDraft) {
        self.give(Given::Read(draft));
    }

    fn give(&self, given: Given) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if self.sender.try_send(given).is_err() {
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
    mut receiver: mpsc::Receiver<Given>,
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
            batch.push(Given::Alone(AuditDraft {
                at: ambient.clock.now(),
                actor: None,
                action: "audit.sampled".to_owned(),
                subject: None,
                details: json!({ "not_recorded": lost }),
                client_ip: None,
                request_id: None,
            }));
        }
        let drafts = Arc::new(entries(batch.drain(..)));
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

/// An entry that is being made, and the reads that share it with the first.
struct Shared {
    draft: AuditDraft,
    until: Timestamp,
    /// Ids of their requests. As long as it is `None`, nothing shares this entry.
    others: Option<Vec<String>>,
}

impl Shared {
    fn takes(&self, read: &AuditDraft) -> bool {
        let (mine, others) = (&self.draft, self.others.as_ref());
        others.is_some_and(|others| others.len() + 1 < SHARING)
            && mine.action == read.action
            && mine.subject == read.subject
            && mine.actor == read.actor
            && mine.client_ip == read.client_ip
            && mine.details == read.details
    }

    /// What is recorded: of a read that stands alone just that, of several how many, until when, and every request.
    fn finish(mut self) -> AuditDraft {
        if let (Some(others), Some(details)) = (self.others, self.draft.details.as_object_mut())
            && !others.is_empty()
        {
            details.insert("times".to_owned(), json!(others.len() + 1));
            details.insert("until".to_owned(), json!(self.until));
            details.insert("other_requests".to_owned(), json!(others));
        }
        self.draft
    }
}

/// The entries for what was given, in the order of the first of each.
fn entries(given: impl Iterator<Item = Given>) -> Vec<AuditDraft> {
    let mut entries: Vec<Shared> = Vec::new();
    for given in given {
        match given {
            Given::Alone(draft) => entries.push(Shared { until: draft.at, draft, others: None }),
            Given::Read(draft) => {
                let same = entries.iter_mut().rev().take(COMPARED).find(|entry| entry.takes(&draft));
                match (same, draft.request_id) {
                    (Some(Shared { until, others: Some(others), .. }), Some(request)) => {
                        *until = (*until).max(draft.at);
                        others.push(request);
                    }
                    (_, request_id) => {
                        let draft = AuditDraft { request_id, ..draft };
                        entries.push(Shared { until: draft.at, draft, others: Some(Vec::new()) });
                    }
                }
            }
        }
    }
    entries.into_iter().map(Shared::finish).collect()
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn read(number: usize) -> AuditDraft {
        AuditDraft {
            at: Timestamp::from_seconds(1_780_000_000).plus(Duration::from_millis(number as u64)),
            actor: Some("ana".to_owned()),
            action: "device.seen".to_owned(),
            subject: None,
            details: json!({ "status": 200 }),
            client_ip: Some("192.0.2.7".to_owned()),
            request_id: Some(format!("req-{number}")),
        }
    }

    fn requests(entry: &AuditDraft) -> Vec<String> {
        let others = entry.details["other_requests"].as_array().into_iter().flatten();
        entry.request_id.iter().cloned().chain(others.filter_map(Value::as_str).map(str::to_owned)).collect()
    }

    #[test]
    fn reads_of_the_same_by_the_same_share_an_entry_that_names_each_of_them() {
        let written = entries((0..3).map(|number| Given::Read(read(number))));

        assert_eq!(written.len(), 1);
        assert_eq!(written[0].at, read(0).at);
        let details = json!({
            "status": 200, "times": 3, "until": read(2).at, "other_requests": ["req-1", "req-2"],
        });
        assert_eq!(written[0].details, details);
        let alone = entries([Given::Read(read(7))].into_iter());
        assert_eq!(alone, [read(7)], "a read that is alone says nothing of others");
    }

    #[test]
    fn an_entry_stays_small_and_nothing_is_lost() {
        let written = entries((0..200).map(|number| Given::Read(read(number))));

        assert_eq!(written.iter().map(|entry| requests(entry).len()).collect::<Vec<_>>(), [64, 64, 64, 8]);
        let all: Vec<String> = written.iter().flat_map(requests).collect();
        assert_eq!(all, (0..200).map(|number| format!("req-{number}")).collect::<Vec<_>>());
    }

    #[test]
    fn reads_that_differ_in_anything_have_entries_of_their_own() {
        let others = [
            AuditDraft { actor: Some("bea".to_owned()), ..read(1) },
            AuditDraft { action: "runs.seen".to_owned(), ..read(1) },
            AuditDraft { subject: Some("run-1".to_owned()), ..read(1) },
            AuditDraft { details: json!({ "status": 404 }), ..read(1) },
            AuditDraft { client_ip: Some("192.0.2.8".to_owned()), ..read(1) },
        ];
        let given = [read(0)].into_iter().chain(others.clone()).chain([read(2)]).map(Given::Read);
        let written = entries(given);

        assert_eq!(requests(&written[0]), ["req-0", "req-2"]);
        assert_eq!(written[1..], others);
    }

    #[test]
    fn what_is_no_read_is_never_shared() {
        let refusal = |number| AuditDraft { action: "authorization.denied".to_owned(), ..read(number) };
        let given = [
            Given::Alone(refusal(0)),
            Given::Alone(refusal(1)),
            Given::Read(refusal(2)),
            Given::Alone(refusal(3)),
        ];

        assert_eq!(entries(given.into_iter()), [refusal(0), refusal(1), refusal(2), refusal(3)]);
    }
}
