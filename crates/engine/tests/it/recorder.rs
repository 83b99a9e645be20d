//! The recorder of what changes nothing: bounded, and honest about what it had to leave out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use interlock_engine::audit::recorder;
use interlock_engine::{
    AuditBy, AuditFilter, BanRow, Page, Paged, RunFilter, StoreError, StoredEvent, UserRow,
};
use interlock_model::audit::{AuditDraft, AuditEntry, Link};
use interlock_model::{RunId, Timestamp};
use interlock_store::identity::Record;
use interlock_store::{KeyRow, Revocation, RunRow, Store, Work};
use serde_json::json;

use crate::bench::{Bench, PATIENCE, Scripted, verified};

/// The real storage, whose writes fail while the gate is shut.
struct Gated {
    inner: Arc<dyn Store>,
    shut: AtomicBool,
}

#[async_trait]
impl Store for Gated {
    async fn write(&self, work: Work) -> Result<(), StoreError> {
        if self.shut.load(Ordering::SeqCst) {
            return Err(StoreError::Unwritable("the gate is shut".to_owned()));
        }
        self.inner.write(work).await
    }

    async fn user(&self, name: &str) -> Result<Option<UserRow>, StoreError> {
        self.inner.user(name).await
    }

    async fn users(&self) -> Result<Vec<UserRow>, StoreError> {
        self.inner.users().await
    }

    async fn run(&self, id: RunId) -> Result<Option<RunRow>, StoreError> {
        self.inner.run(id).await
    }

    async fn runs(&self, filter: &RunFilter, page: Page) -> Result<Paged<RunRow>, StoreError> {
        self.inner.runs(filter, page).await
    }

    async fn open_runs(&self) -> Result<Vec<RunRow>, StoreError> {
        self.inner.open_runs().await
    }

    async fn run_events(&self, id: RunId, after: u64, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.run_events(id, after, limit).await
    }

    async fn key(&self, actor: &str, key: &str, now: Timestamp) -> Result<Option<KeyRow>, StoreError> {
        self.inner.key(actor, key, now).await
    }

    async fn revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, StoreError> {
        self.inner.revocations(now).await
    }

    async fn bans(&self, now: Timestamp) -> Result<Vec<BanRow>, StoreError> {
        self.inner.bans(now).await
    }

    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Paged<AuditEntry>, StoreError> {
        self.inner.audit(filter, page).await
    }

    async fn audit_counts(
        &self,
        filter: &AuditFilter,
        by: AuditBy,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        self.inner.audit_counts(filter, by, limit).await
    }

    async fn audit_from(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.inner.audit_from(after, limit).await
    }

    async fn audit_links(&self, after: u64, limit: u32) -> Result<Vec<Link>, StoreError> {
        self.inner.audit_links(after, limit).await
    }

    async fn change_mark(&self) -> Result<i64, StoreError> {
        self.inner.change_mark().await
    }

    async fn record(&self, kind: &str, id: &str) -> Result<Option<Record>, StoreError> {
        self.inner.record(kind, id).await
    }

    async fn records(&self, kind: &str, owner: Option<&str>) -> Result<Vec<Record>, StoreError> {
        self.inner.records(kind, owner).await
    }

    async fn records_since(&self, mark: i64, limit: u32) -> Result<Vec<Record>, StoreError> {
        self.inner.records_since(mark, limit).await
    }

    async fn ask(&self, question: interlock_store::orchestrator::Question) -> Result<(), StoreError> {
        self.inner.ask(question).await
    }

    async fn copy_out(&self, parts: interlock_store::copy::Sender) -> Result<(), StoreError> {
        self.inner.copy_out(parts).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

fn draft(number: u64) -> AuditDraft {
    AuditDraft {
        at: Timestamp::from_seconds(1),
        actor: None,
        action: "test.read".to_owned(),
        subject: Some(number.to_string()),
        details: json!({}),
        client_ip: None,
        request_id: None,
    }
}

async fn everything(store: &dyn Store) -> Vec<AuditEntry> {
    let mut entries: Vec<AuditEntry> = Vec::new();
    loop {
        let more = store.audit_from(entries.len() as u64, 2_000).await.expect("the audit trail");
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

#[tokio::test]
async fn what_does_not_fit_is_counted_exactly_and_the_count_is_on_record() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let real = Bench::open(folder.path(), Scripted::prompt(), 1).await;
    let gated = Arc::new(Gated { inner: Arc::clone(&real.store), shut: AtomicBool::new(true) });
    let (recorder, recording) = recorder(Arc::clone(&gated) as _, real.ambient.clone());
    let writing = tokio::spawn(recording);
    let given: u64 = 20_000;
    for number in 0..given {
        recorder.record(draft(number));
        if number % 1_000 == 0 {
            tokio::task::yield_now().await;
        }
    }

    gated.shut.store(false, Ordering::SeqCst);
    recorder.drained(PATIENCE).await;

    let entries = everything(&*real.store).await;
    let written = entries.iter().filter(|entry| entry.draft.action == "test.read").count() as u64;
    let counts: Vec<u64> = entries
        .iter()
        .filter(|e| e.draft.action == "audit.sampled")
        .map(|e| e.draft.details["not_recorded"].as_u64().expect("a count"))
        .collect();
    let lost: u64 = counts.iter().sum();
    assert!(lost > 0, "the test wants an overflow");
    assert_eq!(written + lost, given);
    // In order, each once: what is missing is missing at the end.
    let numbers: Vec<u64> = entries.iter().filter_map(|e| e.draft.subject.as_deref()?.parse().ok()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
    verified(&*real.store).await;
    drop(recorder);
    tokio::time::timeout(PATIENCE, writing)
        .await
        .expect("it ends when nobody can give any more")
        .expect("no panic");
}

#[tokio::test]
async fn what_was_given_before_the_end_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = Bench::open(folder.path(), Scripted::prompt(), 1).await;
    let (recorder, recording) = recorder(Arc::clone(&bench.store), bench.ambient.clone());
    for number in 0..700 {
        recorder.record(draft(number));
    }
    drop(recorder);

    tokio::time::timeout(PATIENCE, recording).await.expect("it ends");

    assert_eq!(everything(&*bench.store).await.len(), 700);
}

#[tokio::test]
async fn a_storage_that_fails_for_a_while_loses_nothing_and_repeats_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let real = Bench::open(folder.path(), Scripted::prompt(), 1).await;
    let gated = Arc::new(Gated { inner: Arc::clone(&real.store), shut: AtomicBool::new(true) });
    let (recorder, recording) = recorder(Arc::clone(&gated) as _, real.ambient.clone());
    tokio::spawn(recording);
    for number in 0..100 {
        recorder.record(draft(number));
    }
    tokio::task::yield_now().await;

    gated.shut.store(false, Ordering::SeqCst);
    recorder.drained(PATIENCE).await;

    let numbers: Vec<String> =
        everything(&*real.store).await.into_iter().filter_map(|e| e.draft.subject).collect();
    assert_eq!(numbers, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}
