//! The one thread that writes, and group commit: whoever waits while a flush is under way shares the next one.
//!
//! Each write runs inside its own savepoint, one after the other, so that a write that fails takes nobody with it; all of
//! them become durable in one commit and are acknowledged after it. A write that refuses on the strength of what an earlier
//! one of the same batch did is therefore answered only when that is durable too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use futures::FutureExt as _;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::error::{broken, error};
use super::tx::{Head, SqliteTx};
use crate::{Error, Verdict, Work};

/// Writes that wait; further callers wait outside.
const QUEUE: usize = 1024;
/// Writes in one commit: bounds how long the first of them waits for the last.
const BATCH: usize = 512;

struct Job {
    work: Work,
    done: oneshot::Sender<Result<(), Error>>,
}

enum Message {
    Write(Job),
    Close(oneshot::Sender<()>),
}

/// The way to the writer thread. Dropping it lets the thread finish what is queued and end.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection) -> Result<Self, Error> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || Loop { connection, waiting, closing: Vec::new() }.run())
            .map_err(|error| Error::Database(Box::new(error)))?;
        Ok(Self { queue })
    }

    /// Queues a write and waits until it is durable.
    pub(super) async fn write(&self, work: Work) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.queue.send(Message::Write(Job { work, done })).await.map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Takes no more writes, finishes those that are queued, ends the thread.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            // An error means that the thread is gone, which is what was asked for.
            closed.await.unwrap_or(());
        }
        self.queue.closed().await;
    }
}

type Answer = (oneshot::Sender<Result<(), Error>>, Result<(), Error>);

struct Loop {
    connection: Connection,
    waiting: mpsc::Receiver<Message>,
    closing: Vec<oneshot::Sender<()>>,
}

impl Loop {
    fn run(mut self) {
        while let Some(message) = self.waiting.blocking_recv() {
            if let Some(job) = self.job(message) {
                self.batch(job);
            }
        }
        drop(self.connection);
        for done in self.closing {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    fn job(&mut self, message: Message) -> Option<Job> {
        match message {
            Message::Write(job) => Some(job),
            Message::Close(done) => {
                self.closing.push(done);
                self.waiting.close();
                None
            }
        }
    }

    fn next(&mut self) -> Option<Job> {
        loop {
            let message = self.waiting.try_recv().ok()?;
            if let Some(job) = self.job(message) {
                return Some(job);
            }
        }
    }

    fn batch(&mut self, first: Job) {
        let mut head = match begin(&self.connection) {
            Ok(head) => head,
            Err(error) => return self.refuse(first, error),
        };
        let mut answers: Vec<Answer> = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            let before = head;
            let outcome = perform(&mut self.connection, &mut head, job.work);
            let kept = matches!(outcome, Ok(Verdict::Commit));
            if !kept {
                head = before;
            }
            answers.push((job.done, outcome.map(drop)));
            if self.connection.is_autocommit() {
                // SQLite itself has rolled everything back, as it does when the disk is full.
                return reject(
                    answers,
                    "the transaction was rolled back because a write in it could not be done",
                );
            }
            if answers.len() < BATCH {
                next = self.next();
            }
        }
        match statement(&self.connection, "COMMIT") {
            Ok(()) => {
                for (done, answer) in answers {
                    // Dropping the caller's future does not undo the write.
                    drop(done.send(answer));
                }
            }
            Err(error) => {
                roll_back(&self.connection);
                reject(answers, &words(&error));
            }
        }
    }

    /// No transaction can be had. Everyone who waits is told at once: each would wait as long again for the same answer.
    fn refuse(&mut self, first: Job, error: Error) {
        let words = words(&error);
        drop(first.done.send(Err(error)));
        for _ in 0..QUEUE {
            let Some(job) = self.next() else { return };
            drop(job.done.send(Err(Error::Unwritable(words.clone()))));
        }
    }
}

/// Begins a transaction that holds the write lock from the start: readers of the audit head must not be overtaken.
fn begin(connection: &Connection) -> Result<Head, Error> {
    statement(connection, "BEGIN IMMEDIATE")?;
    Head::read(connection).inspect_err(|_| roll_back(connection))
}

/// Runs one write inside its savepoint.
fn perform(connection: &mut Connection, head: &mut Head, work: Work) -> Result<Verdict, Error> {
    statement(connection, "SAVEPOINT write")?;
    let mut failed = false;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut tx = SqliteTx::new(connection, head, &mut failed);
        work(&mut tx).now_or_never()
    }));
    let outcome = match outcome {
        Ok(Some(Ok(Verdict::Commit))) if failed => {
            Err(broken("a statement of this write failed; all of it was rolled back"))
        }
        Ok(Some(outcome)) => outcome,
        Ok(None) => Err(broken("a write awaited something that is not its transaction")),
        Err(_) => Err(broken("a write panicked")),
    };
    if connection.is_autocommit() {
        return outcome;
    }
    let undone = if matches!(outcome, Ok(Verdict::Commit)) {
        Ok(())
    } else {
        statement(connection, "ROLLBACK TO write")
    };
    if let Err(error) = undone.and_then(|()| statement(connection, "RELEASE write")) {
        // What is left of this write must not be committed with the others: the whole transaction goes.
        roll_back(connection);
        return Err(error);
    }
    outcome
}

fn statement(connection: &Connection, sql: &str) -> Result<(), Error> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(drop).map_err(error)
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = statement(connection, "ROLLBACK")
    {
        tracing::error!(%error, "a transaction cannot be rolled back");
    }
}

/// Nothing of the batch is durable. Those who failed for a reason of their own keep it.
fn reject(answers: Vec<Answer>, words: &str) {
    for (done, answer) in answers {
        drop(done.send(answer.and_then(|()| Err(Error::Unwritable(words.to_owned())))));
    }
}

fn words(error: &Error) -> String {
    match error {
        Error::Unwritable(words) => words.clone(),
        other => std::iter::successors(Some(other as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    }
}

#[cfg(test)]
mod tests {
    use interlock_model::Timestamp;
    use interlock_model::audit::{AuditDraft, Verifier};

    use super::*;
    use crate::sqlite::{open, reads};

    fn append(bytes: usize) -> Work {
        let draft = AuditDraft {
            at: Timestamp::from_seconds(1),
            actor: None,
            action: "device.executed".to_owned(),
            subject: None,
            details: "x".repeat(bytes).into(),
            client_ip: None,
            request_id: None,
        };
        Box::new(move |tx| {
            async move {
                tx.append_audit(&draft).await?;
                Ok(Verdict::Commit)
            }
            .boxed()
        })
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_writes_that_it_hits_and_nothing_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("full.db");
        let connection = open::writable(&path).expect("a new database");
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("counted");
        // SQLite's own limit stands in for the disk's: it gives the same error at the same places.
        connection.pragma_update(None, "max_page_count", pages + 20).expect("limited");
        let writer = Writer::start(connection).expect("started");

        let outcomes = futures::future::join_all((0..64).map(|_| writer.write(append(4000)))).await;
        let small = writer.write(append(1)).await;
        writer.close().await;

        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(!refused.is_empty());
        for error in refused {
            assert!(
                matches!(error, Error::Unwritable(words) if words.contains("the disk is full") || words.contains("rolled back")),
                "{error}"
            );
        }
        let acknowledged = outcomes.iter().chain([&small]).filter(|outcome| outcome.is_ok()).count();
        let connection = open::writable(&path).expect("opens again");
        let entries = reads::audit_from(&connection, 0, 1000).expect("readable");
        assert_eq!(entries.len(), acknowledged);
        let mut verifier = Verifier::default();
        entries.iter().try_for_each(|entry| verifier.next(entry)).expect("the chain holds");
    }

    #[tokio::test]
    async fn those_who_wait_share_a_flush() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open::writable(&folder.path().join("shared.db")).expect("a new database");
        let (queue, waiting) = mpsc::channel(QUEUE);
        let jobs: Vec<_> = (0..100)
            .map(|_| {
                let (done, answer) = oneshot::channel();
                queue
                    .try_send(Message::Write(Job { work: append(1), done }))
                    .unwrap_or_else(|_| panic!("there is room"));
                answer
            })
            .collect();
        let mut writer = Loop { connection, waiting, closing: Vec::new() };

        let first = writer.next().expect("one waits");
        writer.batch(first);

        for answer in jobs {
            answer.await.expect("answered").expect("written");
        }
        assert!(writer.waiting.is_empty(), "one batch took all");
    }
}
