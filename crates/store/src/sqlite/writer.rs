//! The one thread that writes, and group commit: whoever waits while a flush is under way shares the next one.
//!
//! All writes of a batch become durable in one commit and are acknowledged after it. A write that refuses on the strength of
//! what an earlier one of the same batch did is therefore answered only when that is durable too. A write that fails takes
//! nobody with it: one that can be made only once has its own savepoint; the others go without, because a savepoint copies
//! every page that is touched under it, and when one of them has to be undone, the whole batch is undone and made again,
//! then each behind a savepoint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::error::{broken, error};
use super::tx::{Head, SqliteTx, Trace};
use crate::{Error, RepeatableWork, Tx, Verdict, Work};

/// Writes that wait; further callers wait outside.
const QUEUE: usize = 1024;
/// Writes in one commit: bounds how long the first of them waits for the last.
const BATCH: usize = 512;

/// What a caller wants written.
pub(super) enum Piece {
    /// Can be called once.
    Once(Work),
    /// Can be called again.
    Repeatable(RepeatableWork),
}

struct Job {
    work: Piece,
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
            .spawn(move || Loop::new(connection, waiting).run())
            .map_err(|error| Error::Database(Box::new(error)))?;
        Ok(Self { queue })
    }

    /// Queues a write and waits until it is durable.
    pub(super) async fn write(&self, work: Piece) -> Result<(), Error> {
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

/// The thread's end of the queue.
struct Queue {
    waiting: mpsc::Receiver<Message>,
    closing: Vec<oneshot::Sender<()>>,
}

impl Queue {
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

    /// One that waits already.
    fn next(&mut self) -> Option<Job> {
        loop {
            let message = self.waiting.try_recv().ok()?;
            if let Some(job) = self.job(message) {
                return Some(job);
            }
        }
    }
}

struct Loop {
    connection: Connection,
    queue: Queue,
}

impl Loop {
    fn new(connection: Connection, waiting: mpsc::Receiver<Message>) -> Self {
        Self { connection, queue: Queue { waiting, closing: Vec::new() } }
    }

    fn run(mut self) {
        while let Some(message) = self.queue.waiting.blocking_recv() {
            if let Some(job) = self.queue.job(message) {
                self.batch(job);
            }
        }
        drop(self.connection);
        for done in self.queue.closing {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    fn batch(&mut self, first: Job) {
        let mut batch = match Batch::begin(&mut self.connection) {
            Ok(batch) => batch,
            Err(error) => return self.refuse(first, error),
        };
        let mut next = Some(first);
        while let Some(job) = next.take() {
            if let Err(words) = batch.add(job) {
                return batch.reject(&words);
            }
            if batch.made.len() < BATCH {
                next = self.queue.next();
            }
        }
        batch.commit();
    }

    /// No transaction can be had. Everyone who waits is told at once: each would wait as long again for the same answer.
    fn refuse(&mut self, first: Job, error: Error) {
        let words = words(&error);
        drop(first.done.send(Err(error)));
        for _ in 0..QUEUE {
            let Some(job) = self.queue.next() else { return };
            drop(job.done.send(Err(Error::Unwritable(words.clone()))));
        }
    }
}

/// A write that was made in the open transaction.
struct Made {
    /// To make it again. `None` for a write behind a savepoint: that one never has to be.
    again: Option<RepeatableWork>,
    done: oneshot::Sender<Result<(), Error>>,
    outcome: Result<(), Error>,
}

/// One transaction and the writes in it.
struct Batch<'c> {
    connection: &'c mut Connection,
    head: Head,
    made: Vec<Made>,
    /// Every further write gets a savepoint.
    guarded: bool,
}

impl<'c> Batch<'c> {
    fn begin(connection: &'c mut Connection) -> Result<Self, Error> {
        let head = begin(connection)?;
        Ok(Self { connection, head, made: Vec::new(), guarded: false })
    }

    /// Makes a write. `Err` when nothing of the whole transaction is left: then it can only be rejected.
    fn add(&mut self, job: Job) -> Result<(), String> {
        let done = job.done;
        let made = match job.work {
            Piece::Repeatable(mut work) if !self.guarded => {
                let performed = perform(self.connection, &mut self.head, &mut *work);
                let undo = performed.touched && !performed.commits();
                self.made.push(Made { again: Some(work), done, outcome: performed.outcome.map(drop) });
                return if undo && !self.connection.is_autocommit() {
                    self.again()
                } else {
                    self.still_open()
                };
            }
            Piece::Repeatable(mut work) => Made { again: None, done, outcome: self.guard(&mut *work) },
            Piece::Once(work) => {
                // Nothing that follows may cause it to be made again.
                self.guarded = true;
                Made { again: None, done, outcome: self.guard(work) }
            }
        };
        self.made.push(made);
        self.still_open()
    }

    /// Makes everything again, each write behind a savepoint, because one of them has to be undone alone. What another process
    /// writes meanwhile they see, as if they had come later.
    fn again(&mut self) -> Result<(), String> {
        roll_back(self.connection);
        self.guarded = true;
        self.head = begin(self.connection).map_err(|error| words(&error))?;
        let mut made = std::mem::take(&mut self.made);
        for write in &mut made {
            if let Some(mut work) = write.again.take()
                && !self.connection.is_autocommit()
            {
                write.outcome = self.guard(&mut *work);
            }
        }
        self.made = made;
        self.still_open()
    }

    /// Runs one write inside its savepoint.
    fn guard<W>(&mut self, work: W) -> Result<(), Error>
    where
        W: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<Verdict, Error>>,
    {
        statement(self.connection, "SAVEPOINT write")?;
        let before = self.head;
        let performed = perform(self.connection, &mut self.head, work);
        let commits = performed.commits();
        let outcome = performed.outcome.map(drop);
        if !commits {
            self.head = before;
        }
        if self.connection.is_autocommit() {
            return outcome;
        }
        let undone = if commits { Ok(()) } else { statement(self.connection, "ROLLBACK TO write") };
        if let Err(error) = undone.and_then(|()| statement(self.connection, "RELEASE write")) {
            // What is left of this write must not be committed with the others: the whole transaction goes.
            roll_back(self.connection);
            return Err(error);
        }
        outcome
    }

    fn still_open(&self) -> Result<(), String> {
        if self.connection.is_autocommit() {
            // SQLite itself has rolled everything back, as it does when the disk is full.
            return Err("the transaction was rolled back because a write in it could not be done".to_owned());
        }
        Ok(())
    }

    fn commit(self) {
        if let Err(error) = statement(self.connection, "COMMIT") {
            roll_back(self.connection);
            return self.reject(&words(&error));
        }
        for Made { again, done, outcome } in self.made {
            // What the work holds is the caller's alone again when it is told.
            drop(again);
            // Dropping the caller's future does not undo the write.
            drop(done.send(outcome));
        }
    }

    /// Nothing of the batch is durable. Those who failed for a reason of their own keep it.
    fn reject(self, words: &str) {
        for write in self.made {
            drop(write.done.send(write.outcome.and_then(|()| Err(Error::Unwritable(words.to_owned())))));
        }
    }
}

/// What came of running a write.
struct Performed {
    outcome: Result<Verdict, Error>,
    /// There may be something to undo.
    touched: bool,
}

impl Performed {
    fn commits(&self) -> bool {
        matches!(self.outcome, Ok(Verdict::Commit))
    }
}

/// Runs one write and undoes nothing.
fn perform<W>(connection: &mut Connection, head: &mut Head, work: W) -> Performed
where
    W: for<'t> FnOnce(&'t mut dyn Tx) -> BoxFuture<'t, Result<Verdict, Error>>,
{
    let mut trace = Trace::default();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut tx = SqliteTx::new(connection, head, &mut trace);
        work(&mut tx).now_or_never()
    }));
    let outcome = match outcome {
        Ok(Some(Ok(Verdict::Commit))) if trace.failed => {
            Err(broken("a statement of this write failed; all of it was rolled back"))
        }
        Ok(Some(outcome)) => outcome,
        Ok(None) => Err(broken("a write awaited something that is not its transaction")),
        Err(_) => Err(broken("a write panicked")),
    };
    Performed { outcome, touched: trace.touched }
}

/// Begins a transaction that holds the write lock from the start: readers of the audit head must not be overtaken.
fn begin(connection: &Connection) -> Result<Head, Error> {
    statement(connection, "BEGIN IMMEDIATE")?;
    Head::read(connection).inspect_err(|_| roll_back(connection))
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use interlock_model::Timestamp;
    use interlock_model::audit::{AuditDraft, Verifier};

    use super::*;
    use crate::sqlite::{open, reads};

    fn append(bytes: usize) -> RepeatableWork {
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
            let draft = draft.clone();
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

        let outcomes =
            futures::future::join_all((0..64).map(|_| writer.write(Piece::Repeatable(append(4000))))).await;
        let small = writer.write(Piece::Repeatable(append(1))).await;
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
        let entries = reads::audit_from(&connection, 0, 1000, reads::audit_row).expect("readable");
        assert_eq!(entries.len(), acknowledged);
        let mut verifier = Verifier::default();
        entries.iter().try_for_each(|entry| verifier.next(entry)).expect("the chain holds");
    }

    /// Makes `pieces` in one batch and gives their answers.
    async fn in_one_batch(path: &std::path::Path, pieces: Vec<Piece>) -> Vec<Result<(), Error>> {
        let connection = open::writable(path).expect("a new database");
        let (queue, waiting) = mpsc::channel(QUEUE);
        let waiters: Vec<_> = pieces
            .into_iter()
            .map(|work| {
                let (done, answer) = oneshot::channel();
                queue
                    .try_send(Message::Write(Job { work, done }))
                    .unwrap_or_else(|_| panic!("there is room"));
                answer
            })
            .collect();
        let mut writer = Loop::new(connection, waiting);

        let first = writer.queue.next().expect("one waits");
        writer.batch(first);

        assert!(writer.queue.waiting.is_empty(), "one batch took all");
        let mut answers = Vec::new();
        for waiter in waiters {
            answers.push(waiter.await.expect("answered"));
        }
        answers
    }

    /// How long the chain is; it must hold.
    fn entries(path: &std::path::Path) -> usize {
        let connection = open::writable(path).expect("opens again");
        let entries = reads::audit_from(&connection, 0, 1000, reads::audit_row).expect("readable");
        let mut verifier = Verifier::default();
        entries.iter().try_for_each(|entry| verifier.next(entry)).expect("the chain holds");
        entries.len()
    }

    /// Counts its calls in `calls`, appends if it is told to, then ends as `end` says.
    fn counted(
        calls: &Arc<AtomicUsize>,
        appends: bool,
        end: fn() -> Result<Verdict, Error>,
    ) -> RepeatableWork {
        let calls = Arc::clone(calls);
        let mut inner = append(1);
        Box::new(move |tx| {
            calls.fetch_add(1, Ordering::SeqCst);
            if !appends {
                return async move { end() }.boxed();
            }
            let appending = inner(tx);
            async move {
                appending.await?;
                end()
            }
            .boxed()
        })
    }

    fn once(mut work: RepeatableWork) -> Piece {
        Piece::Once(Box::new(move |tx| work(tx)))
    }

    #[tokio::test]
    async fn those_who_wait_share_a_flush() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("shared.db");

        let answers = in_one_batch(&path, (0..100).map(|_| Piece::Repeatable(append(1))).collect()).await;

        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(entries(&path), 100);
    }

    #[tokio::test]
    async fn a_write_that_must_be_undone_takes_nobody_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ends: [fn() -> Result<Verdict, Error>; 3] = [
            || Ok(Verdict::RollBack),
            || Err(Error::Corrupt("mine".to_owned())),
            || panic!("this panic is part of the test"),
        ];
        for (number, end) in ends.into_iter().enumerate() {
            let path = folder.path().join(format!("undone-{number}.db"));
            let (good, bad) = (Arc::default(), Arc::default());
            let fine = || Piece::Repeatable(counted(&good, true, || Ok(Verdict::Commit)));

            let answers = in_one_batch(
                &path,
                vec![fine(), fine(), Piece::Repeatable(counted(&bad, true, end)), fine()],
            )
            .await;

            assert_eq!(
                answers.iter().map(Result::is_ok).collect::<Vec<_>>(),
                [true, true, number == 0, true]
            );
            assert_eq!(entries(&path), 3, "the three that said so are there, once each");
            assert_eq!(good.load(Ordering::SeqCst), 5, "those before it were made twice");
            assert_eq!(bad.load(Ordering::SeqCst), 2);
        }
    }

    #[tokio::test]
    async fn a_refusal_that_changed_nothing_costs_nobody_anything() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("refused.db");
        let calls = Arc::default();
        let fine = || Piece::Repeatable(counted(&calls, true, || Ok(Verdict::Commit)));

        let refusing = Piece::Repeatable(counted(&calls, false, || Ok(Verdict::RollBack)));
        let answers = in_one_batch(&path, vec![fine(), refusing, fine()]).await;

        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(entries(&path), 2);
        assert_eq!(calls.load(Ordering::SeqCst), 3, "nothing was made twice");
    }

    #[tokio::test]
    async fn a_write_that_can_be_made_once_is_made_once_whatever_fails_round_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("once.db");
        let (first, only, bad, last) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());

        let answers = in_one_batch(
            &path,
            vec![
                Piece::Repeatable(counted(&first, true, || Ok(Verdict::Commit))),
                once(counted(&only, true, || Ok(Verdict::Commit))),
                Piece::Repeatable(counted(&bad, true, || Err(Error::Closed))),
                once(counted(&bad, true, || Err(Error::Closed))),
                Piece::Repeatable(counted(&last, true, || Ok(Verdict::Commit))),
            ],
        )
        .await;

        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, false, true]);
        assert_eq!(entries(&path), 3);
        let calls = [&first, &only, &bad, &last].map(|calls: &Arc<AtomicUsize>| calls.load(Ordering::SeqCst));
        assert_eq!(calls, [1, 1, 2, 1]);
    }
}
