//! What was started and how it ended, on disk: the device's memory across crashes.
//!
//! Answers for one promise: **a call that may have reached the worker is never reported as not started.** Never decides
//! whether to repeat anything; the server does that with [`Journaled`].
//!
//! Two files. `journal.log` takes the records that must survive a power cut; one thread ([`writer`]) writes them in batches and
//! flushes once per batch. `sent-<session>.log` takes one mark per call, written with a plain write(2) right before the call
//! goes to the worker, and is never waited for. How a run is judged after a crash ([`recover`]):
//!
//! | in the journal | verdict | why |
//! |---|---|---|
//! | `finished` | its outcome | it was flushed before anyone was told |
//! | `sent` | started | the mark is written before the worker can see the call |
//! | `armed`, same boot of the machine | never started | a process that is killed loses nothing it has written: the page cache belongs to the kernel, so the missing mark proves that it was never written |
//! | `armed`, another boot | started | a power cut may have taken the mark, because nobody waited for it |
//! | nothing | never started | the call waits for `armed` to be on disk |
//!
//! With [`crate::Durability::Caller`] nothing is armed and nothing flushed, because the caller's own record does that work: a
//! run without a mark was never sent if the machine has not been off since, and counts as started if it has, or if the
//! journal itself is gone.
//!
//! Nothing about a run that is older than the *horizon* (a record was dropped unasked after a day, or the file was damaged)
//! counts as started. An idempotent action is not armed: repeating it is as good as doing it once.

mod record;
mod recover;
mod rewrite;
mod sent;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use interlock_model::device::{Call, Journaled, Outcome};
use interlock_model::{Clock, RunId};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

pub(crate) use recover::Recovered;
pub(crate) use sent::SentError;
use sent::SentFile;

/// Rewritten when this many bytes are dead.
const COMPACT_BYTES: u64 = 64 << 20;
/// How long an outcome that the server has not confirmed is kept.
const KEEP: Duration = Duration::from_hours(24);

/// About how long a result may be to be written at once.
const SMALL_BYTES: usize = 4 << 10;

/// Called on the writer's thread with the outcome, and whether it is on disk.
pub(crate) type Reply = Box<dyn FnOnce(Outcome, bool) + Send>;

/// News for the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JournalEvent {
    /// Every armed record up to this number is on disk, or has been reported as failed before.
    Armed { through: u64 },
    /// These could not be written.
    ArmFailed { from: u64, through: u64 },
    /// An outcome could not be written; its caller has been told it all the same.
    FinishLost(RunId),
    /// The file of `sent` marks is free again, or the journal can be written again.
    Resumed,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Written by a newer program.
    #[error("{path} was written by a newer version of Interlock (format {version})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
}

impl JournalError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Where a run stands, in memory. Outcomes stay on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Armed,
    Sent,
    Lost,
    Finished { offset: u64, len: u32, at: i64 },
}

struct Index {
    entries: HashMap<RunId, Entry>,
    /// `journal.log`, for reading outcomes back.
    file: Arc<File>,
    horizon: u64,
    /// Runs of earlier hosts that are missing may have been sent.
    doubts_absence: bool,
    /// Bytes of `finished` lines that are still wanted.
    live_bytes: u64,
}

struct Inner {
    index: Mutex<Index>,
    sent: Mutex<SentFile>,
    broken: AtomicBool,
    /// Keeps other hosts out of the folder until [`Journal::close`].
    lock: Mutex<Option<File>>,
}

enum Request {
    Arm {
        line: Vec<u8>,
        run: RunId,
        number: u64,
    },
    Finish {
        run: RunId,
        at: i64,
        outcome: Outcome,
        durable: bool,
        reply: Option<Reply>,
    },
    Forget(Vec<RunId>),
    #[cfg(test)]
    Rewrite,
    Close,
}

/// What the journal says about a run that somebody wants to start.
#[derive(Debug, PartialEq)]
pub(crate) enum Known {
    /// May be started.
    New,
    /// It was, or may have been, sent before.
    Started,
    /// It ended like this.
    Finished(Outcome),
}

/// Handle of the journal. Dropping the last one ends the writer after it has written everything.
#[derive(Clone)]
pub(crate) struct Journal {
    inner: Arc<Inner>,
    requests: mpsc::Sender<Request>,
    writer: Arc<Mutex<writer::Writer>>,
    thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
    clock: Arc<dyn Clock>,
    by_caller: bool,
}

impl Journal {
    /// Starts the writer on what [`Recovered::read`] found: both files are written anew, so that a torn end is gone and
    /// doubts are settled once.
    pub(crate) fn open(
        recovered: Recovered,
        lock: Option<File>,
        clock: Arc<dyn Clock>,
        events: UnboundedSender<JournalEvent>,
    ) -> Result<Self, JournalError> {
        Self::open_with(recovered, lock, clock, events, COMPACT_BYTES)
    }

    fn open_with(
        recovered: Recovered,
        lock: Option<File>,
        clock: Arc<dyn Clock>,
        events: UnboundedSender<JournalEvent>,
        compact_bytes: u64,
    ) -> Result<Self, JournalError> {
        let (requests, queue) = mpsc::channel();
        let by_caller = recovered.by_caller;
        let (writer, inner) =
            writer::Writer::open(recovered, lock, Arc::clone(&clock), events, compact_bytes)?;
        let writer = Arc::new(Mutex::new(writer));
        let serving = Arc::clone(&writer);
        let thread = std::thread::Builder::new()
            .name("interlock-journal".to_owned())
            .spawn(move || writer::Writer::run(&serving, &queue))
            .map_err(JournalError::io(Path::new("a thread for the journal")))?;
        Ok(Self { inner, requests, writer, thread: Arc::new(Mutex::new(Some(thread))), clock, by_caller })
    }

    /// The line that [`Self::arm`] writes. Made by the caller's task, not by the supervisor.
    pub(crate) fn armed_line(call: &Call) -> Vec<u8> {
        let mut line = Vec::with_capacity(160);
        record::armed(&mut line, call.run, &call.action, record::digest(call.run, &call.parameters));
        line
    }

    /// Records that the call may be sent soon. Numbers must grow; [`JournalEvent`] answers. `false` when nobody will.
    pub(crate) fn arm(&self, run: RunId, line: Vec<u8>, number: u64) -> bool {
        self.request(Request::Arm { line, run, number })
    }

    /// Marks the call as sent. Does not wait for the disk.
    pub(crate) fn mark_sent(&self, run: RunId) -> Result<(), SentError> {
        let mut file = match self.inner.sent.try_lock() {
            Ok(file) => file,
            Err(std::sync::TryLockError::WouldBlock) => return Err(SentError::Wait),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        file.mark(run).inspect_err(|_| self.inner.broken.store(true, Ordering::SeqCst))?;
        // Under the lock of the file: a rewrite sees either both or neither.
        self.index().entries.insert(run, Entry::Sent);
        Ok(())
    }

    /// Whether calls must be armed before they are sent.
    pub(crate) fn arms(&self) -> bool {
        !self.by_caller
    }

    /// Records the end of a call; `reply` is called when it is on disk, or cannot be. When the caller makes it durable, the
    /// reply does not wait.
    pub(crate) fn finish(&self, run: RunId, outcome: Outcome, reply: Reply) {
        let at = self.clock.now().micros();
        if self.by_caller {
            if !self.finish_now(run, at, &outcome) {
                let outcome = outcome.clone();
                self.request(Request::Finish { run, at, outcome, durable: false, reply: None });
            }
            reply(outcome, true);
            return;
        }
        self.request(Request::Finish { run, at, outcome, durable: true, reply: Some(reply) });
    }

    /// Writes a small outcome without a detour over the thread, which costs more than the write. `false` when the thread has to
    /// do it, because it is at work itself or the outcome is large: the caller must not wait.
    fn finish_now(&self, run: RunId, at: i64, outcome: &Outcome) -> bool {
        let mut budget = SMALL_BYTES;
        let small = matches!(outcome, Outcome::Returned { result, .. } if is_small(result, &mut budget));
        small && self.writer.try_lock().is_ok_and(|mut writer| writer.finish_now(run, at, outcome))
    }

    /// Records that an armed call was never sent. Nobody waits for it.
    pub(crate) fn withdraw(&self, run: RunId, outcome: Outcome) {
        let at = self.clock.now().micros();
        self.request(Request::Finish { run, at, outcome, durable: false, reply: None });
    }

    /// These outcomes are no longer wanted.
    pub(crate) fn forget(&self, runs: &[RunId]) {
        for some in runs.chunks(1024) {
            self.request(Request::Forget(some.to_vec()));
        }
    }

    /// Whether writing failed and has not worked since.
    pub(crate) fn is_broken(&self) -> bool {
        self.inner.broken.load(Ordering::SeqCst)
    }

    /// What is known about a run of an earlier host, or of this one.
    pub(crate) fn journaled(&self, run: RunId) -> Journaled {
        let index = self.index();
        if index.doubts_absence && !index.entries.contains_key(&run) {
            return Journaled::Started;
        }
        drop(index);
        self.stands(run)
    }

    /// What is known about a run that this host was asked for.
    pub(crate) fn stands(&self, run: RunId) -> Journaled {
        let (entry, file) = {
            let index = self.index();
            match index.entries.get(&run) {
                None if record::born(run) <= index.horizon => return Journaled::Started,
                None | Some(Entry::Armed) => return Journaled::NeverStarted,
                Some(Entry::Sent | Entry::Lost) => return Journaled::Started,
                Some(Entry::Finished { offset, len, .. }) => ((*offset, *len), Arc::clone(&index.file)),
            }
        };
        let mut line = vec![0; entry.1 as usize];
        match file.read_exact_at(&mut line, entry.0) {
            Ok(()) => match record::parse_outcome(&line) {
                Some((found, outcome)) if found == run => return Journaled::Finished(outcome),
                _ => tracing::error!(run.id = %run, "the journal's record of this run is damaged"),
            },
            Err(error) => tracing::error!(run.id = %run, %error, "the journal cannot be read"),
        }
        Journaled::Started
    }

    /// Whether a call may be started under this run id.
    pub(crate) fn known(&self, run: RunId) -> Known {
        match self.stands(run) {
            Journaled::NeverStarted => Known::New,
            Journaled::Started => Known::Started,
            Journaled::Finished(outcome) => Known::Finished(outcome),
        }
    }

    /// Writes everything that waits and ends the writer. Blocks.
    pub(crate) fn close(&self) {
        self.request(Request::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        let lock = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock {
            crate::folder::unlock(&lock);
        }
    }

    #[cfg(test)]
    fn rewrite(&self) {
        self.request(Request::Rewrite);
    }

    /// `false` when the writer has ended.
    fn request(&self, request: Request) -> bool {
        // Fails only after `close`, or if the writer panicked: nobody may wait for ever.
        let Err(mpsc::SendError(request)) = self.requests.send(request) else { return true };
        if let Request::Finish { outcome, reply: Some(reply), .. } = request {
            reply(outcome, false);
        }
        false
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.index()
    }
}

/// Whether a value's text is not longer than about `budget` bytes, of which it leaves what is over. Does not make the text.
fn is_small(value: &Value, budget: &mut usize) -> bool {
    fn spend(budget: &mut usize, bytes: usize) -> bool {
        let left = budget.checked_sub(bytes);
        *budget = left.unwrap_or(0);
        left.is_some()
    }
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => spend(budget, 4),
        Value::String(text) => spend(budget, text.len() + 4),
        Value::Array(items) => spend(budget, 4) && items.iter().all(|item| is_small(item, budget)),
        Value::Object(fields) => {
            let mut each = fields.iter();
            spend(budget, 4) && each.all(|(name, value)| spend(budget, name.len()) && is_small(value, budget))
        }
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
