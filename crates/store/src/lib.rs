//! The storage port. SQL lives only in this crate; methods say what the domain needs.
//!
//! A write is a closure over a [`Tx`]: the backend runs it inside one transaction and commits it, on SQLite together with the
//! writes of everyone who waits at that moment (group commit: one flush for all). The closure may await nothing but the
//! transaction's own methods. Reads see committed data only and never wait for writers.
//!
//! Both backends keep the rules of `conformance.rs`. Times are signed 64-bit microseconds since the Unix epoch, UTC.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::future::BoxFuture;
use interlock_model::audit::{AuditDraft, AuditEntry, Link};
use interlock_model::device::EventKind;
use interlock_model::run::{RunError, RunState};
use interlock_model::{RunId, Timestamp};
use serde_json::Value;

use self::identity::{Put, Record};

pub mod codec;
#[cfg(feature = "conformance")]
#[expect(clippy::missing_panics_doc, reason = "a case panics where a rule is broken; that is what it is for")]
pub mod conformance;
pub mod copy;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod filter;
pub mod identity;
pub mod migrations;
pub mod orchestrator;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod seals;
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;

/// Why the storage did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, or answers with an error of its own.
    #[error("use the database")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk is full or the database cannot be written.
    #[error("write to the database: {0}")]
    Unwritable(String),
    /// A stored value cannot be read back.
    #[error("read a stored value: {0}")]
    Corrupt(String),
    /// The file or schema belongs to a newer version.
    #[error(
        "open the database: it was written by a newer version ({found}) than this program knows ({known}); install that version or restore a backup"
    )]
    Newer {
        /// Schema version found.
        found: u32,
        /// Schema version known.
        known: u32,
    },
    /// The backend is shutting down.
    #[error("use the database: it is closed")]
    Closed,
}

/// What a write closure ends with: commit, or roll back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Make every change visible.
    Commit,
    /// Leave no trace.
    RollBack,
}

/// A write, boxed. It is called once, inside a transaction.
pub type Work = Box<dyn for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<Verdict, Error>> + Send>;

/// A write that may be called more than once, each time in a transaction that knows nothing of the calls before; what the
/// last call said counts. It must do the same each time and have no effect but through its transaction.
pub type RepeatableWork =
    Box<dyn for<'t> FnMut(&'t mut dyn Tx) -> BoxFuture<'t, Result<Verdict, Error>> + Send>;

/// A user as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Sign-in name, canonical form (see `engine::users`).
    pub name: String,
    /// PHC string.
    pub password_hash: String,
    /// Role names, sorted.
    pub roles: Vec<String>,
    /// Signing in is refused and every token is dead.
    pub disabled: bool,
    /// Tokens issued before this time are dead.
    pub tokens_valid_from: Timestamp,
    /// When the user was made.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// Counts changes from 1; optimistic updates name the one they saw.
    pub version: i64,
}

/// A run as stored. Sensitive parameters are already masked.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    /// The run.
    pub id: RunId,
    /// The device it belongs to.
    pub device: String,
    /// Name of the action.
    pub action: String,
    /// Where it is.
    pub state: RunState,
    /// Executed with the device's simulator.
    pub simulated: bool,
    /// Masked parameters, a JSON object.
    pub parameters: Value,
    /// What the function returned.
    pub result: Option<Value>,
    /// Why it did not succeed.
    pub error: Option<RunError>,
    /// Who asked for it.
    pub actor: String,
    /// The request that asked for it.
    pub request_id: String,
    /// Accepted at.
    pub created_at: Timestamp,
    /// Sent to the worker at.
    pub started_at: Option<Timestamp>,
    /// Ended at.
    pub finished_at: Option<Timestamp>,
    /// Time in the function, in milliseconds.
    pub duration_ms: Option<f64>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// The run.
    pub id: RunId,
    /// A final state.
    pub state: RunState,
    /// What the function returned.
    pub result: Option<Value>,
    /// Why it did not succeed.
    pub error: Option<RunError>,
    /// Sent to the worker at, if it was.
    pub started_at: Option<Timestamp>,
    /// Ended at.
    pub finished_at: Timestamp,
    /// Time in the function, in milliseconds.
    pub duration_ms: Option<f64>,
}

/// Which runs to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only this state.
    pub state: Option<RunState>,
    /// Only this action.
    pub action: Option<String>,
    /// Only what this principal asked for.
    pub actor: Option<String>,
}

/// Part of a list, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// 1 to 200.
    pub limit: u32,
    /// From 0.
    pub offset: u64,
}

/// A part of a list and the length of the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Paged<T> {
    /// The part.
    pub items: Vec<T>,
    /// Length of the whole.
    pub total: u64,
}

/// A stored event of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Counts from 1 within the run.
    pub seq: u64,
    /// When it was seen.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// An idempotency key as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Who used it.
    pub actor: String,
    /// The key.
    pub key: String,
    /// SHA-256 over what was asked, so that another request under the same key is noticed.
    pub digest: [u8; 32],
    /// The run that it stands for.
    pub run: RunId,
    /// First use.
    pub created_at: Timestamp,
    /// May be forgotten after.
    pub expires_at: Timestamp,
}

/// A revoked token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The token's `jti`.
    pub jti: String,
    /// May be forgotten after (the token's own end).
    pub expires_at: Timestamp,
    /// `manual rotated reuse credentials agent_disabled`.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// A network whose requests are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanRow {
    /// CIDR notation, canonical: no bit is set behind the prefix.
    pub network: String,
    /// Why, for people.
    pub reason: String,
    /// Who: a principal, or `system`.
    pub added_by: String,
    /// Since when.
    pub created_at: Timestamp,
    /// The ban is over at this time; `None`: never.
    pub ends_at: Option<Timestamp>,
    /// The row may be deleted after; until then the next ban of the network is longer.
    pub forget_at: Option<Timestamp>,
    /// Automatic bans in a row, this one included; 0 for one that a person added.
    pub offences: u32,
}

/// Which audit rows to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Exactly this action.
    pub action: Option<String>,
    /// Exactly this actor.
    pub actor: Option<String>,
    /// Exactly this subject.
    pub subject: Option<String>,
    /// From exactly this address.
    pub source: Option<String>,
    /// Whose details have exactly this `rule`.
    pub rule: Option<String>,
    /// Whose details have exactly this `route`.
    pub route: Option<String>,
    /// Whose details have exactly this `result`.
    pub result: Option<String>,
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
}

/// What audit rows are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditBy {
    /// Who acted.
    Actor,
    /// What was done.
    Action,
    /// What it was done to.
    Subject,
    /// The client's address.
    Source,
    /// Member `rule` of the details.
    Rule,
    /// Member `route` of the details.
    Route,
    /// Member `reason` of the details.
    Reason,
}

/// The storage of one installation.
#[async_trait]
pub trait Store: Send + Sync {
    /// Runs `work` in a transaction and commits it if it says so. Returns after the commit is durable. Dropping the future does
    /// not undo a write that has begun.
    ///
    /// # Errors
    /// What `work` returned; [`Error::Database`] if it panicked, or said "commit" after one of its statements had failed;
    /// otherwise the storage's own. After an error nothing of the write is visible, except that a connection that is lost during
    /// the commit itself leaves it open whether the server still made it.
    async fn write(&self, work: Work) -> Result<(), Error>;

    /// As [`Store::write`], for what is written often: a backend may save the precautions that let it undo this write alone
    /// and call `work` again in the rare case that it has to.
    ///
    /// # Errors
    /// As [`Store::write`].
    async fn write_repeatable(&self, mut work: RepeatableWork) -> Result<(), Error> {
        self.write(Box::new(move |tx| work(tx))).await
    }

    /// One user.
    async fn user(&self, name: &str) -> Result<Option<UserRow>, Error>;
    /// All users by name.
    async fn users(&self) -> Result<Vec<UserRow>, Error>;
    /// One run.
    async fn run(&self, id: RunId) -> Result<Option<RunRow>, Error>;
    /// Runs, newest first.
    async fn runs(&self, filter: &RunFilter, page: Page) -> Result<Paged<RunRow>, Error>;
    /// Runs that are not over, oldest first.
    async fn open_runs(&self) -> Result<Vec<RunRow>, Error>;
    /// Events of a run with `seq > after`, in order, at most `limit`.
    async fn run_events(&self, id: RunId, after: u64, limit: u32) -> Result<Vec<StoredEvent>, Error>;
    /// A key that has not expired at `now`.
    async fn key(&self, actor: &str, key: &str, now: Timestamp) -> Result<Option<KeyRow>, Error>;
    /// Every revocation that still matters at `now`.
    async fn revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, Error>;
    /// Every ban that is not forgotten at `now`, in force or over, by network.
    async fn bans(&self, now: Timestamp) -> Result<Vec<BanRow>, Error>;
    /// Audit rows, newest first.
    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Paged<AuditEntry>, Error>;
    /// How many audit rows there are of each value, the most frequent first, at most `limit`. Rows without one are left out.
    async fn audit_counts(
        &self,
        filter: &AuditFilter,
        by: AuditBy,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, Error>;
    /// Audit rows with `seq > after`, oldest first, at most `limit`: for the verifier.
    async fn audit_from(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, Error>;
    /// The same rows as [`Store::audit_from`], checked where they are read: what the chain needs of each, without its words.
    async fn audit_links(&self, after: u64, limit: u32) -> Result<Vec<Link>, Error>;
    /// A number that changes when another process has changed users, revocations or bans. Own changes move it too.
    async fn change_mark(&self) -> Result<i64, Error>;
    /// One identity record.
    async fn record(&self, kind: &str, id: &str) -> Result<Option<Record>, Error>;
    /// Identity records of a kind, or those of one owner, by id.
    async fn records(&self, kind: &str, owner: Option<&str>) -> Result<Vec<Record>, Error>;
    /// Identity records that changed after `mark`, in the order of their marks, at most `limit`.
    async fn records_since(&self, mark: i64, limit: u32) -> Result<Vec<Record>, Error>;
    /// Reads of the orchestrator; see [`orchestrator::ask`].
    async fn ask(&self, question: orchestrator::Question) -> Result<(), Error>;
    /// Sends all that is committed now, table by table; others write meanwhile. See [`copy`].
    async fn copy_out(&self, parts: copy::Sender) -> Result<(), Error>;
    /// Answers if the database does.
    async fn ping(&self) -> Result<(), Error>;
    /// Ends writers and connections after what was begun is durable.
    async fn close(&self);
}

/// What can be done inside a write.
///
/// Call [`Tx::append_audit`] last: on PostgreSQL it takes a lock that every other write waits for. After a method has failed
/// the write can only be rolled back.
#[async_trait]
pub trait Tx: Send {
    /// Adds a user; `false` if the name is taken.
    async fn insert_user(&mut self, user: &UserRow) -> Result<bool, Error>;
    /// One user, as this transaction sees it; no other write changes users until this one has ended.
    async fn user(&mut self, name: &str) -> Result<Option<UserRow>, Error>;
    /// All users by name, as this transaction sees them; no other write changes users until this one has ended.
    async fn users(&mut self) -> Result<Vec<UserRow>, Error>;
    /// Replaces a user whose stored version is `user.version - 1`; `false` if it is another.
    async fn update_user(&mut self, user: &UserRow) -> Result<bool, Error>;

    /// Adds a run.
    async fn insert_run(&mut self, run: &RunRow) -> Result<(), Error>;
    /// One run, as this transaction sees it.
    async fn run(&mut self, id: RunId) -> Result<Option<RunRow>, Error>;
    /// Ends a run that is not over; `false` if it is over or unknown.
    async fn finish_run(&mut self, end: &RunEnd) -> Result<bool, Error>;
    /// Adds events; their `seq` must be new within the run.
    async fn insert_run_events(&mut self, id: RunId, events: &[StoredEvent]) -> Result<(), Error>;

    /// Takes a key for `row.run` unless it is taken at `row.created_at`; returns the row that holds it now. A key is taken up
    /// to and including its `expires_at`.
    async fn claim_key(&mut self, row: &KeyRow) -> Result<KeyRow, Error>;
    /// Gives a taken key to another run.
    async fn rebind_key(&mut self, actor: &str, key: &str, run: RunId) -> Result<bool, Error>;

    /// Revokes a token; revoking it twice keeps the first row.
    async fn insert_revocation(&mut self, revocation: &Revocation) -> Result<(), Error>;

    /// Stores version 1 of an identity record, or the next version of one. The mark of the change is the storage's.
    async fn put_record(&mut self, record: &Record) -> Result<Put, Error>;
    /// One identity record, as this transaction sees it; no other write changes it until this one has ended.
    async fn record(&mut self, kind: &str, id: &str) -> Result<Option<Record>, Error>;
    /// Adds a ban, or replaces the one of the same network.
    async fn put_ban(&mut self, ban: &BanRow) -> Result<(), Error>;
    /// Adds a ban unless one of the same network ends later or never; `false` if there is one.
    async fn extend_ban(&mut self, ban: &BanRow) -> Result<bool, Error>;
    /// Forgets a ban; `false` if there is none.
    async fn delete_ban(&mut self, network: &str) -> Result<bool, Error>;

    /// Appends to the audit chain and returns the entry with its number and hashes. Numbers have no gaps. U+0000 in the plain
    /// texts becomes U+FFFD.
    async fn append_audit(&mut self, draft: &AuditDraft) -> Result<AuditEntry, Error>;
    /// As [`Tx::append_audit`], for whoever does not need the entry: a backend may append those of several writes at once.
    async fn record_audit(&mut self, draft: &AuditDraft) -> Result<(), Error> {
        self.append_audit(draft).await.map(drop)
    }

    /// Tasks, their queue, runs, events and approvals.
    fn orchestrator(&mut self) -> orchestrator::Changes<'_>;

    /// Deletes keys, revocations, identity records and bans that have expired at `now`; returns how many.
    async fn delete_expired(&mut self, now: Timestamp) -> Result<u64, Error>;
}

/// Runs `work` and carries its value, or its error, out of the transaction. `Err` rolls back.
///
/// # Errors
/// What `work` returned, or the storage's own error if the commit failed.
pub async fn transact<T, E, F>(store: &dyn Store, work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
{
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let committed = store
        .write(Box::new(move |tx| {
            Box::pin(async move {
                let answer = work(tx).await;
                let verdict = if answer.is_ok() { Verdict::Commit } else { Verdict::RollBack };
                // The receiver lives until `write` has returned; if the caller gave up, nobody wants the value.
                drop(sender.send(answer));
                Ok(verdict)
            })
        }))
        .await;
    // The storage's error first: what `work` said may rest on a write of the same batch that was not committed either.
    match (committed, receiver.try_recv()) {
        (Err(error), _) => Err(error.into()),
        (Ok(()), Ok(answer)) => answer,
        (Ok(()), Err(_)) => Err(Error::Closed.into()),
    }
}

/// As [`transact`], through [`Store::write_repeatable`].
///
/// # Errors
/// As [`transact`].
pub async fn transact_repeatable<T, E, F>(store: &dyn Store, work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: for<'t> Fn(&'t mut dyn Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
{
    let said = Arc::new(Mutex::new(None));
    let saying = Arc::clone(&said);
    let committed = store
        .write_repeatable(Box::new(move |tx| {
            let answer = work(tx);
            let saying = Arc::clone(&saying);
            Box::pin(async move {
                let answer = answer.await;
                let verdict = if answer.is_ok() { Verdict::Commit } else { Verdict::RollBack };
                *saying.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                Ok(verdict)
            })
        }))
        .await;
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).take();
    // As in `transact`: the storage's error first.
    match (committed, said) {
        (Err(error), _) => Err(error.into()),
        (Ok(()), Some(answer)) => answer,
        (Ok(()), None) => Err(Error::Closed.into()),
    }
}
