//! Writes that may be called again share a transaction with those that wait beside them: one commit, one flush, one time of the
//! lock on the audit head for all.
//!
//! If anything in a shared transaction fails, nothing of it counts and each of its writes is made alone. Under little load a
//! write finds nobody to share with and costs what it always did.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use deadpool_postgres::Pool;
use futures::FutureExt as _;
use tokio::sync::{Semaphore, oneshot};

use super::error::{broken, error, pool_error};
use super::perform;
use super::tx::PgTx;
use crate::{Error, RepeatableWork, Verdict};

/// Writes in one transaction.
const MOST: usize = 64;
/// Transactions at once: while one waits for its flush, the next is filled.
const AT_ONCE: usize = 2;

type Answer = oneshot::Sender<Result<(), Error>>;

/// A write and who waits for it.
struct Member {
    work: RepeatableWork,
    answer: Answer,
}

/// Writes that wait for a transaction.
pub(super) struct Group {
    waiting: Mutex<Vec<Member>>,
    turns: Semaphore,
}

impl Default for Group {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }
}

/// How a shared transaction ended.
enum Shared {
    Committed,
    /// The server has undone it, or was told to.
    Undone,
    /// Whether the server committed it is not known.
    Unknown(Error),
}

impl Group {
    /// Lines a write up. [`Group::write`] must be called afterwards, once for each.
    pub(super) fn join(&self, work: RepeatableWork, answer: Answer) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Member { work, answer });
    }

    fn take(&self) -> Vec<Member> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(MOST);
        waiting.drain(..count).collect()
    }

    /// Writes what waits when its turn comes; often another turn has taken it by then.
    pub(super) async fn write(self: Arc<Self>, writers: Pool) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        let mut members = self.take();
        if members.len() > 1 {
            match shared(&writers, &mut members).await {
                Shared::Committed => {
                    for member in members {
                        // Whoever gave up wants no answer.
                        drop(member.answer.send(Ok(())));
                    }
                    return;
                }
                Shared::Unknown(error) => {
                    let words = error.to_string();
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the connection was lost while writes were committed"
                    );
                    for member in members {
                        drop(member.answer.send(Err(broken(&words))));
                    }
                    return;
                }
                Shared::Undone => {}
            }
        }
        for Member { work, answer } in members {
            let written = AssertUnwindSafe(alone(&writers, work)).catch_unwind().await;
            drop(answer.send(written.unwrap_or_else(|_| Err(broken("a write panicked")))));
        }
    }
}

async fn alone(writers: &Pool, mut work: RepeatableWork) -> Result<(), Error> {
    let client = writers.get().await.map_err(pool_error)?;
    perform(client, Box::new(move |tx| work(tx))).await
}

/// Makes all writes in one transaction.
async fn shared(writers: &Pool, members: &mut [Member]) -> Shared {
    // No connection, no transaction: each write says so by itself.
    let Ok(mut client) = writers.get().await else { return Shared::Undone };
    let Ok(transaction) = client.transaction().await else { return Shared::Undone };
    let mut tx = PgTx::of_many(transaction);
    for member in members {
        let verdict = AssertUnwindSafe((member.work)(&mut tx)).catch_unwind().await;
        if !matches!(verdict, Ok(Ok(Verdict::Commit))) || tx.has_failed() {
            return undone(tx).await;
        }
    }
    if tx.append_later().await.is_err() {
        return undone(tx).await;
    }
    match tx.into_inner().commit().await {
        Ok(()) => Shared::Committed,
        // The server has said no.
        Err(refused) if refused.as_db_error().is_some() => Shared::Undone,
        Err(lost) => Shared::Unknown(error(lost)),
    }
}

async fn undone(tx: PgTx<'_>) -> Shared {
    if let Err(error) = tx.into_inner().rollback().await {
        // The connection is lost, and with it the transaction.
        tracing::debug!(%error, "writes that shared a transaction could not be rolled back by a statement");
    }
    Shared::Undone
}
