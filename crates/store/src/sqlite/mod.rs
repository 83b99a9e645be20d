//! SQLite: one file, one writer thread with group commit, a few reader threads.
//!
//! Answers for durability (WAL with `synchronous=FULL`: acknowledged means flushed) and for the file's mode. Other processes
//! may work on the same file, for example the command line beside a running server: nothing that they can change is kept in
//! memory between transactions. The file must be on a local disk; WAL does not work over a network file system.
//!
//! Start with `writer` for the transaction, `tx` for the statements, `reads` for the queries.

mod copy;
mod error;
mod open;
mod readers;
mod reads;
mod sql;
mod tx;
mod writer;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::FutureExt as _;
use interlock_model::audit::{AuditEntry, Link};
use interlock_model::{RunId, Timestamp};

use self::readers::Readers;
use self::writer::{Piece, Writer};
use crate::identity::Record;
use crate::orchestrator::{Question, Reads};
use crate::{
    AuditBy, AuditFilter, BanRow, Error, KeyRow, Page, Paged, RepeatableWork, Revocation, RunFilter, RunRow,
    Store, StoredEvent, UserRow, Work,
};

/// Name of the file in a state directory.
pub const FILE_NAME: &str = "interlock.db";

/// A database file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    writer: Writer,
    readers: Readers,
}

impl Sqlite {
    /// Opens the file, or makes it with mode 0600; brings its schema up to date. The folder must exist. Blocks for some
    /// milliseconds, for longer if another process holds the write lock.
    ///
    /// # Errors
    /// [`Error::Unwritable`] if the file cannot be made, opened or written; [`Error::Newer`] and [`Error::Corrupt`] if it
    /// is not a database of ours that this program understands.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = open::writable(path)?;
        let readers = Readers::start(path)?;
        let writer = Writer::start(connection)?;
        Ok(Self { path: path.to_owned(), writer, readers })
    }

    /// Opens or makes [`FILE_NAME`] in `folder`.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub fn open_in(folder: &Path) -> Result<Self, Error> {
        Self::open(&folder.join(FILE_NAME))
    }

    /// Makes the file and puts a copy into it that has been through `steps` migrations; then it is as [`Sqlite::open`] would have
    /// it. Returns when all of it is on the disk.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the copy is none, or the file has tables; [`Error::Unwritable`]. Then the file has no tables.
    pub async fn fill(path: &Path, steps: usize, parts: crate::copy::Receiver) -> Result<(), Error> {
        let path = path.to_owned();
        let filled = tokio::task::spawn_blocking(move || copy::fill(&path, steps, parts)).await;
        filled.unwrap_or_else(|_| Err(error::broken("filling the database panicked")))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn write(&self, work: Work) -> Result<(), Error> {
        self.writer.write(Piece::Once(work)).await
    }

    async fn write_repeatable(&self, work: RepeatableWork) -> Result<(), Error> {
        self.writer.write(Piece::Repeatable(work)).await
    }

    async fn user(&self, name: &str) -> Result<Option<UserRow>, Error> {
        let name = name.to_owned();
        self.readers.read(move |connection| reads::user(connection, &name)).await
    }

    async fn users(&self) -> Result<Vec<UserRow>, Error> {
        self.readers.read(|connection| reads::users(connection)).await
    }

    async fn run(&self, id: RunId) -> Result<Option<RunRow>, Error> {
        self.readers.read(move |connection| reads::run(connection, id)).await
    }

    async fn runs(&self, filter: &RunFilter, page: Page) -> Result<Paged<RunRow>, Error> {
        let filter = filter.clone();
        self.readers.read(move |connection| reads::runs(connection, &filter, page)).await
    }

    async fn open_runs(&self) -> Result<Vec<RunRow>, Error> {
        self.readers.read(|connection| reads::open_runs(connection)).await
    }

    async fn run_events(&self, id: RunId, after: u64, limit: u32) -> Result<Vec<StoredEvent>, Error> {
        self.readers.read(move |connection| reads::run_events(connection, id, after, limit)).await
    }

    async fn key(&self, actor: &str, key: &str, now: Timestamp) -> Result<Option<KeyRow>, Error> {
        let (actor, key) = (actor.to_owned(), key.to_owned());
        self.readers.read(move |connection| reads::key(connection, &actor, &key, now)).await
    }

    async fn revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, Error> {
        self.readers.read(move |connection| reads::revocations(connection, now)).await
    }

    async fn bans(&self, now: Timestamp) -> Result<Vec<BanRow>, Error> {
        self.readers.read(move |connection| reads::bans(connection, now)).await
    }

    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Paged<AuditEntry>, Error> {
        let filter = filter.clone();
        self.readers.read(move |connection| reads::audit(connection, &filter, page)).await
    }

    async fn audit_counts(
        &self,
        filter: &AuditFilter,
        by: AuditBy,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, Error> {
        let filter = filter.clone();
        self.readers.read(move |connection| reads::audit_counts(connection, &filter, by, limit)).await
    }

    async fn audit_from(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        self.readers
            .read(move |connection| reads::audit_from(connection, after, limit, reads::audit_row))
            .await
    }

    async fn audit_links(&self, after: u64, limit: u32) -> Result<Vec<Link>, Error> {
        self.readers
            .read(move |connection| reads::audit_from(connection, after, limit, reads::audit_link))
            .await
    }

    async fn change_mark(&self) -> Result<i64, Error> {
        self.readers.read(|connection| reads::change_mark(connection)).await
    }

    async fn record(&self, kind: &str, id: &str) -> Result<Option<Record>, Error> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.readers.read(move |connection| reads::record(connection, &kind, &id)).await
    }

    async fn records(&self, kind: &str, owner: Option<&str>) -> Result<Vec<Record>, Error> {
        let (kind, owner) = (kind.to_owned(), owner.map(str::to_owned));
        self.readers.read(move |connection| reads::records(connection, &kind, owner.as_deref())).await
    }

    async fn records_since(&self, mark: i64, limit: u32) -> Result<Vec<Record>, Error> {
        self.readers.read(move |connection| reads::records_since(connection, mark, limit)).await
    }

    async fn ask(&self, question: Question) -> Result<(), Error> {
        self.readers
            .read(move |connection| {
                let mut reading = sql::Reading(connection);
                question(Reads::new(&mut reading)).now_or_never().unwrap_or_else(|| {
                    Err(error::broken("a read awaited something that is not its connection"))
                })
            })
            .await
    }

    async fn copy_out(&self, parts: crate::copy::Sender) -> Result<(), Error> {
        let path = self.path.clone();
        // On a connection and a thread of its own: it takes long, and readers are few.
        let copied = tokio::task::spawn_blocking(move || copy::copy_out(&path, &parts)).await;
        copied.unwrap_or_else(|_| Err(error::broken("copying the database panicked")))
    }

    async fn ping(&self) -> Result<(), Error> {
        self.readers.read(|connection| reads::change_mark(connection).map(drop)).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}
