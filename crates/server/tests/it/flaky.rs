//! A storage that fails when a test says so: the real one behind a switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use async_trait::async_trait;
use interlock_model::audit::{AuditEntry, Link};
use interlock_model::{RunId, Timestamp};
use interlock_store::identity::Record;
use interlock_store::{
    AuditBy, AuditFilter, BanRow, Error, KeyRow, Page, Paged, Revocation, RunFilter, RunRow, Store,
    StoredEvent, UserRow, Work,
};

/// Text of the error: no client may ever see it.
pub(crate) const CAUSE: &str = "disk full on /var/lib/hidden";

/// Fails on demand.
pub(crate) struct Flaky {
    inner: Arc<dyn Store>,
    reads_fail: AtomicBool,
    /// Writes that still succeed; negative: all of them.
    good_writes: AtomicI64,
    writes: AtomicUsize,
}

impl Flaky {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            reads_fail: AtomicBool::new(false),
            good_writes: AtomicI64::new(-1),
            writes: AtomicUsize::new(0),
        })
    }

    /// From now on nothing can be read or written.
    pub(crate) fn fail(&self) {
        self.reads_fail.store(true, Ordering::SeqCst);
        self.good_writes.store(0, Ordering::SeqCst);
    }

    /// `count` more writes succeed, then none; reads go on.
    pub(crate) fn fail_writes_after(&self, count: i64) {
        self.good_writes.store(count, Ordering::SeqCst);
    }

    /// Everything works again.
    pub(crate) fn mend(&self) {
        self.reads_fail.store(false, Ordering::SeqCst);
        self.good_writes.store(-1, Ordering::SeqCst);
    }

    /// Attempts to write so far.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    fn error() -> Error {
        Error::Unwritable(CAUSE.to_owned())
    }

    fn readable(&self) -> Result<&dyn Store, Error> {
        if self.reads_fail.load(Ordering::SeqCst) { Err(Self::error()) } else { Ok(&*self.inner) }
    }
}

#[async_trait]
impl Store for Flaky {
    async fn write(&self, work: Work) -> Result<(), Error> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let left = self.good_writes.load(Ordering::SeqCst);
        if left == 0 {
            return Err(Self::error());
        }
        if left > 0 {
            self.good_writes.fetch_sub(1, Ordering::SeqCst);
        }
        self.inner.write(work).await
    }

    async fn user(&self, name: &str) -> Result<Option<UserRow>, Error> {
        self.readable()?.user(name).await
    }

    async fn users(&self) -> Result<Vec<UserRow>, Error> {
        self.readable()?.users().await
    }

    async fn run(&self, id: RunId) -> Result<Option<RunRow>, Error> {
        self.readable()?.run(id).await
    }

    async fn runs(&self, filter: &RunFilter, page: Page) -> Result<Paged<RunRow>, Error> {
        self.readable()?.runs(filter, page).await
    }

    async fn open_runs(&self) -> Result<Vec<RunRow>, Error> {
        self.readable()?.open_runs().await
    }

    async fn run_events(&self, id: RunId, after: u64, limit: u32) -> Result<Vec<StoredEvent>, Error> {
        self.readable()?.run_events(id, after, limit).await
    }

    async fn key(&self, actor: &str, key: &str, now: Timestamp) -> Result<Option<KeyRow>, Error> {
        self.readable()?.key(actor, key, now).await
    }

    async fn revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, Error> {
        self.readable()?.revocations(now).await
    }

    async fn bans(&self, now: Timestamp) -> Result<Vec<BanRow>, Error> {
        self.readable()?.bans(now).await
    }

    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Paged<AuditEntry>, Error> {
        self.readable()?.audit(filter, page).await
    }

    async fn audit_counts(
        &self,
        filter: &AuditFilter,
        by: AuditBy,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, Error> {
        self.readable()?.audit_counts(filter, by, limit).await
    }

    async fn audit_from(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        self.readable()?.audit_from(after, limit).await
    }

    async fn audit_links(&self, after: u64, limit: u32) -> Result<Vec<Link>, Error> {
        self.readable()?.audit_links(after, limit).await
    }

    async fn change_mark(&self) -> Result<i64, Error> {
        self.readable()?.change_mark().await
    }

    async fn record(&self, kind: &str, id: &str) -> Result<Option<Record>, Error> {
        self.readable()?.record(kind, id).await
    }

    async fn records(&self, kind: &str, owner: Option<&str>) -> Result<Vec<Record>, Error> {
        self.readable()?.records(kind, owner).await
    }

    async fn records_since(&self, mark: i64, limit: u32) -> Result<Vec<Record>, Error> {
        self.readable()?.records_since(mark, limit).await
    }

    async fn ask(&self, question: interlock_store::orchestrator::Question) -> Result<(), Error> {
        self.readable()?.ask(question).await
    }

    async fn copy_out(&self, parts: interlock_store::copy::Sender) -> Result<(), Error> {
        self.readable()?.copy_out(parts).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.readable()?.ping().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
