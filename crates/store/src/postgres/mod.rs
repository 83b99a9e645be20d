//! PostgreSQL: many servers share one database.
//!
//! Answers for the same guarantees as SQLite where many write at once: the audit head is one locked row, users are changed
//! under one lock, keys are claimed by one statement, all else carries its condition in the statement. Transactions run at
//! READ COMMITTED: each statement sees what was committed before it, and locks are taken before what they protect is read.
//!
//! Reads and writes have connections of their own, so that a read never waits for a writer. Start with `tx` for the
//! statements, `reads` for the queries, `connect` for TLS and limits, `news` for
//! what servers tell each other.

mod connect;
mod copy;
mod error;
mod group;
mod migrate;
mod news;
mod reads;
mod sql;
mod tx;
mod url;

use std::sync::Arc;

use async_trait::async_trait;
use deadpool_postgres::{Object, Pool};
use interlock_model::audit::{AuditEntry, Link};
use interlock_model::{RunId, Timestamp};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::error::{broken, error, pool_error};
use self::group::Group;
pub use self::news::News;
use self::tx::PgTx;
use crate::identity::Record;
use crate::orchestrator::{Question, Reads};
use crate::{
    AuditBy, AuditFilter, BanRow, Error, KeyRow, Page, Paged, RepeatableWork, Revocation, RunFilter, RunRow,
    Store, StoredEvent, UserRow, Verdict, Work,
};

/// Connections for writes. More would only wait for the audit head.
const WRITERS: usize = 8;
/// Connections for reads.
const READERS: usize = 8;

/// A database on a server.
#[derive(Clone)]
pub struct Postgres {
    writers: Pool,
    readers: Pool,
    tasks: TaskTracker,
    group: Arc<Group>,
    news: News,
    work: News,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres")
            .field("writers", &self.writers.status())
            .field("readers", &self.readers.status())
            .finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects to `postgres://user:password@host:port/database?…` and brings the schema up to date. Needs a Tokio runtime.
    ///
    /// TLS: a server on another machine must show a certificate for its name, from an authority of the operating system or
    /// of the file `sslrootcert=PATH`; that is `sslmode=verify-full`, and what other modes are raised to. A Unix socket or
    /// loopback address is used in plain unless a mode asks for TLS; `sslmode=disable` goes in plain anywhere, with a warning.
    /// Over TLS the server has to use SCRAM bound to the connection, unless the URL says `channel_binding=prefer`.
    /// `sslcert=PATH&sslkey=PATH` (PEM) is the certificate that we show, read again for each connection.
    ///
    /// # Errors
    /// [`Error::Database`] if the URL is wrong or the server refuses; [`Error::Newer`] and [`Error::Corrupt`] if the database
    /// is not one that this program understands.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let writers = connect::pool(url, WRITERS)?;
        let readers = connect::pool(url, READERS)?;
        let mut client = writers.get().await.map_err(pool_error)?;
        migrate::migrate(&mut client).await?;
        drop(client);
        Ok(Self {
            writers,
            readers,
            tasks: TaskTracker::new(),
            group: Arc::default(),
            news: News::new(url, "interlock_news"),
            work: News::new(url, "interlock_work"),
        })
    }

    /// Puts a copy that has been through `steps` migrations into a database without tables; then it is as [`Postgres::connect`]
    /// would have it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the copy is none; [`Error::Unwritable`] when there are tables. Then nothing was kept.
    pub async fn fill(url: &str, steps: usize, parts: crate::copy::Receiver) -> Result<(), Error> {
        let pool = connect::pool(url, 1)?;
        let client = pool.get().await.map_err(pool_error)?;
        let filled = copy::fill(client, steps, parts).await;
        pool.close();
        filled
    }

    /// What servers of this database tell each other. It takes one connection more, from [`News::keep`] on.
    pub fn news(&self) -> News {
        self.news.clone()
    }

    /// As [`Postgres::news`], of runs that wait and due times that have changed: there are many, and they concern others.
    pub fn work(&self) -> News {
        self.work.clone()
    }

    async fn reader(&self) -> Result<Object, Error> {
        self.readers.get().await.map_err(pool_error)
    }
}

#[async_trait]
impl Store for Postgres {
    async fn write(&self, work: Work) -> Result<(), Error> {
        if self.tasks.is_closed() {
            return Err(Error::Closed);
        }
        let client = self.writers.get().await.map_err(pool_error)?;
        // A task of its own: a caller who gives up does not stop a write half-way.
        let written = self.tasks.spawn(perform(client, work)).await;
        written.unwrap_or_else(|_| Err(broken("a write panicked")))
    }

    async fn write_repeatable(&self, work: RepeatableWork) -> Result<(), Error> {
        if self.tasks.is_closed() {
            return Err(Error::Closed);
        }
        let (answer, written) = oneshot::channel();
        self.group.join(work, answer);
        self.tasks.spawn(Arc::clone(&self.group).write(self.writers.clone()));
        written.await.unwrap_or_else(|_| Err(broken("a write panicked")))
    }

    async fn user(&self, name: &str) -> Result<Option<UserRow>, Error> {
        reads::user(&self.reader().await?, name).await
    }

    async fn users(&self) -> Result<Vec<UserRow>, Error> {
        reads::users(&self.reader().await?).await
    }

    async fn run(&self, id: RunId) -> Result<Option<RunRow>, Error> {
        reads::run(&self.reader().await?, id).await
    }

    async fn runs(&self, filter: &RunFilter, page: Page) -> Result<Paged<RunRow>, Error> {
        reads::runs(&mut self.reader().await?, filter, page).await
    }

    async fn open_runs(&self) -> Result<Vec<RunRow>, Error> {
        reads::open_runs(&self.reader().await?).await
    }

    async fn run_events(&self, id: RunId, after: u64, limit: u32) -> Result<Vec<StoredEvent>, Error> {
        reads::run_events(&self.reader().await?, id, after, limit).await
    }

    async fn key(&self, actor: &str, key: &str, now: Timestamp) -> Result<Option<KeyRow>, Error> {
        reads::key(&self.reader().await?, actor, key, now).await
    }

    async fn revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, Error> {
        reads::revocations(&self.reader().await?, now).await
    }

    async fn bans(&self, now: Timestamp) -> Result<Vec<BanRow>, Error> {
        reads::bans(&self.reader().await?, now).await
    }

    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Paged<AuditEntry>, Error> {
        reads::audit(&mut self.reader().await?, filter, page).await
    }

    async fn audit_counts(
        &self,
        filter: &AuditFilter,
        by: AuditBy,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, Error> {
        reads::audit_counts(&self.reader().await?, filter, by, limit).await
    }

    async fn audit_from(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        reads::audit_from(&self.reader().await?, after, limit, reads::audit_row).await
    }

    async fn audit_links(&self, after: u64, limit: u32) -> Result<Vec<Link>, Error> {
        reads::audit_from(&self.reader().await?, after, limit, reads::audit_link).await
    }

    async fn change_mark(&self) -> Result<i64, Error> {
        reads::change_mark(&self.reader().await?).await
    }

    async fn record(&self, kind: &str, id: &str) -> Result<Option<Record>, Error> {
        reads::record(&self.reader().await?, kind, id, "").await
    }

    async fn records(&self, kind: &str, owner: Option<&str>) -> Result<Vec<Record>, Error> {
        reads::records(&self.reader().await?, kind, owner).await
    }

    async fn records_since(&self, mark: i64, limit: u32) -> Result<Vec<Record>, Error> {
        reads::records_since(&self.reader().await?, mark, limit).await
    }

    async fn ask(&self, question: Question) -> Result<(), Error> {
        let client = self.reader().await?;
        let mut reading = sql::Reading(&client);
        question(Reads::new(&mut reading)).await
    }

    async fn copy_out(&self, parts: crate::copy::Sender) -> Result<(), Error> {
        copy::copy_out(self.reader().await?, &parts).await
    }

    async fn ping(&self) -> Result<(), Error> {
        reads::change_mark(&self.reader().await?).await.map(drop)
    }

    async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.writers.close();
        self.readers.close();
    }
}

/// Runs one write. If it panics, the transaction's guard rolls back before the connection is used again.
async fn perform(mut client: Object, work: Work) -> Result<(), Error> {
    let mut tx = PgTx::new(client.transaction().await.map_err(error)?);
    let verdict = work(&mut tx).await;
    let failed = tx.has_failed();
    let transaction = tx.into_inner();
    match verdict {
        // A failed transaction would answer COMMIT by rolling back, without an error.
        Ok(Verdict::Commit) if failed => {
            transaction.rollback().await.map_err(error)?;
            Err(broken("a statement of this write failed; all of it was rolled back"))
        }
        Ok(Verdict::Commit) => transaction.commit().await.map_err(error),
        Ok(Verdict::RollBack) => transaction.rollback().await.map_err(error),
        Err(cause) => {
            if let Err(error) = transaction.rollback().await {
                // The connection is lost, and with it the transaction; what came first is told.
                tracing::debug!(%error, "a failed write could not be rolled back by a statement");
            }
            Err(cause)
        }
    }
}
