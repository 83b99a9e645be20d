//! The thread that writes the journal: group commit, repair, rewriting.
//!
//! It takes everything that waits, writes it with one write(2), flushes once, and then answers everybody. It is the only one
//! that replaces the files, and the only writer of `journal.log` but for small outcomes that nobody flushes: those are
//! written by whoever has them, under the same lock ([`Writer::finish_now`]). It never decides what a run's fate means.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interlock_model::device::Outcome;
use interlock_model::{Clock, RunId};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::record;
use super::recover::journal_path;
use super::rewrite::{Plan, oldest};
use super::sent;
use super::{Entry, Index, Inner, JournalError, JournalEvent, Recovered, Reply, Request};

/// Requests taken together at most.
const BATCH: usize = 1024;
/// A failed journal is not tried again sooner.
const PROBE_AFTER: Duration = Duration::from_millis(200);
/// A failed journal is tried again without being asked.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often outcomes are looked at for being too old.
const EXPIRE_EVERY: Duration = Duration::from_hours(1);
/// Outcomes that could not be written are kept for a later try, up to this many bytes.
const UNSAVED_BYTES: usize = 64 << 20;

/// What it takes to write `journal.log`.
pub(super) struct Writer {
    inner: Arc<Inner>,
    clock: Arc<dyn Clock>,
    events: UnboundedSender<JournalEvent>,
    folder: PathBuf,
    boot: String,
    file: Arc<File>,
    length: u64,
    session: u64,
    compact_bytes: u64,
    probed: Instant,
    expired: Instant,
    /// Lines of outcomes that are not in the file.
    unsaved: Vec<(RunId, i64, Vec<u8>)>,
    buffer: Vec<u8>,
    closing: bool,
}

/// What waits for a batch to be on disk.
enum Waiting {
    Arm { run: RunId, number: u64 },
    Finish { run: RunId, at: i64, offset: usize, len: usize, answer: Option<(Reply, Outcome)> },
    Forget(Vec<RunId>),
}

impl Writer {
    pub(super) fn open(
        recovered: Recovered,
        lock: Option<File>,
        clock: Arc<dyn Clock>,
        events: UnboundedSender<JournalEvent>,
        compact_bytes: u64,
    ) -> Result<(Self, Arc<Inner>), JournalError> {
        let folder = recovered.folder.clone();
        let path = journal_path(&folder);
        if recovered.damaged {
            let aside = folder.join(format!("journal.damaged-{}", clock.now().micros()));
            std::fs::copy(&path, &aside).map_err(JournalError::io(&aside))?;
        }
        let now = clock.now();
        let doubts_absence = recovered.doubts_absence();
        let mut index = Index {
            entries: recovered.entries,
            // Nothing is read from it when there was no file: then there are no outcomes.
            file: Arc::new(match recovered.file {
                Some(file) => file,
                None => {
                    File::open("/dev/null").map_err(JournalError::io(std::path::Path::new("/dev/null")))?
                }
            }),
            horizon: recovered.horizon,
            doubts_absence,
            live_bytes: 0,
        };
        let session = recovered.session + 1;
        let plan = Plan { folder: &folder, boot: &recovered.boot, session, now: now.micros() };
        let fresh = plan.copy(&mut index, &[]).map_err(JournalError::io(&path))?;
        let (sent, length) = plan.replace(&mut index, fresh).map_err(JournalError::io(&path))?;
        plan.sweep();
        let file = Arc::clone(&index.file);
        let inner = Arc::new(Inner {
            index: Mutex::new(index),
            sent: Mutex::new(sent),
            broken: false.into(),
            lock: Mutex::new(lock),
        });
        let writer = Self {
            inner: Arc::clone(&inner),
            clock,
            events,
            boot: recovered.boot,
            folder,
            file,
            length,
            session,
            compact_bytes,
            probed: Instant::now(),
            expired: Instant::now(),
            unsaved: Vec::new(),
            buffer: Vec::with_capacity(64 << 10),
            closing: false,
        };
        Ok((writer, inner))
    }

    /// Serves the queue until it is closed. The lock is never held while there is nothing to do.
    pub(super) fn run(writer: &Mutex<Self>, queue: &Receiver<Request>) {
        let lock = || writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Vec::with_capacity(64);
        while !lock().closing {
            let patience = if lock().is_broken() { PROBE_EVERY } else { EXPIRE_EVERY };
            match queue.recv_timeout(patience) {
                Ok(request) => batch.push(request),
                Err(RecvTimeoutError::Timeout) => {
                    lock().upkeep();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while batch.len() < BATCH {
                match queue.try_recv() {
                    Ok(request) => batch.push(request),
                    Err(_) => break,
                }
            }
            let mut writer = lock();
            writer.commit(&mut batch);
            writer.upkeep();
        }
        let mut writer = lock();
        writer.closing = true;
        writer.commit(&mut queue.try_iter().collect());
    }

    /// Writes the end of a run at once, without a flush. `false` when it has to go through the queue: the journal is broken or
    /// closed. Never waits.
    pub(super) fn finish_now(&mut self, run: RunId, at: i64, outcome: &Outcome) -> bool {
        if self.closing || self.is_broken() {
            return false;
        }
        self.buffer.clear();
        record::finished(&mut self.buffer, run, at, outcome);
        let written = self.write(false);
        if written {
            let len = self.buffer.len() - 1;
            self.settle(vec![Waiting::Finish { run, at, offset: 0, len, answer: None }]);
        }
        written
    }

    fn is_broken(&self) -> bool {
        self.inner.broken.load(Ordering::SeqCst)
    }

    /// Repairs, rewrites and expires when it is time.
    fn upkeep(&mut self) {
        if self.is_broken() {
            if self.probed.elapsed() >= PROBE_EVERY {
                self.rewrite_logged("repair");
            }
            return;
        }
        let live = self.inner.index().live_bytes;
        if self.length.saturating_sub(live) > self.compact_bytes {
            self.rewrite_logged("shrink");
        } else if self.expired.elapsed() >= EXPIRE_EVERY {
            self.expired = Instant::now();
            let oldest = self.oldest();
            let old = |entry: &Entry| matches!(entry, Entry::Finished { at, .. } if *at < oldest);
            if self.inner.index().entries.values().any(old) {
                self.rewrite_logged("expire outcomes in");
            }
        }
    }

    fn oldest(&self) -> i64 {
        oldest(self.clock.settled().micros())
    }

    fn commit(&mut self, batch: &mut Vec<Request>) {
        self.buffer.clear();
        let mut waiting = Vec::with_capacity(batch.len());
        let mut flush = false;
        for request in batch.drain(..) {
            let offset = self.buffer.len();
            match request {
                Request::Arm { line, run, number } => {
                    self.buffer.extend_from_slice(&line);
                    flush = true;
                    waiting.push(Waiting::Arm { run, number });
                }
                Request::Finish { run, at, outcome, durable, reply } => {
                    record::finished(&mut self.buffer, run, at, &outcome);
                    flush |= durable;
                    let len = self.buffer.len() - offset - 1;
                    let answer = reply.map(|reply| (reply, outcome));
                    waiting.push(Waiting::Finish { run, at, offset, len, answer });
                }
                Request::Forget(mut runs) => {
                    // A call that is under way is not forgotten: its end is still to come.
                    let index = self.inner.index();
                    runs.retain(|run| {
                        matches!(index.entries.get(run), Some(Entry::Finished { .. } | Entry::Lost))
                    });
                    drop(index);
                    if !runs.is_empty() {
                        record::forgotten(&mut self.buffer, &runs);
                        waiting.push(Waiting::Forget(runs));
                    }
                }
                #[cfg(test)]
                Request::Rewrite => self.rewrite_logged("test"),
                Request::Close => self.closing = true,
            }
        }
        if waiting.is_empty() {
            return;
        }
        if self.is_broken() && self.probed.elapsed() >= PROBE_AFTER {
            self.rewrite_logged("repair");
        }
        let written = !self.is_broken() && self.write(flush);
        if written {
            self.settle(waiting);
        } else {
            self.fail(waiting);
        }
        if self.buffer.capacity() > 8 << 20 {
            self.buffer = Vec::with_capacity(64 << 10);
        }
    }

    fn write(&mut self, flush: bool) -> bool {
        let done = self
            .file
            .write_all_at(&self.buffer, self.length)
            .and_then(|()| if flush { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = done {
            tracing::error!(%error, "the device's journal cannot be written; calls are refused until it can");
            // After a failed flush nobody knows which pages are on disk: the file is not used again, only replaced.
            let _ = self.file.set_len(self.length);
            self.inner.broken.store(true, Ordering::SeqCst);
            self.probed = Instant::now();
            return false;
        }
        true
    }

    /// The batch is on disk: remember where, then tell everybody.
    fn settle(&mut self, waiting: Vec<Waiting>) {
        let mut through = None;
        let mut answers = Vec::with_capacity(waiting.len());
        {
            let mut index = self.inner.index();
            for item in waiting {
                match item {
                    Waiting::Arm { run, number } => {
                        through = Some(number);
                        let old = index.entries.insert(run, Entry::Armed);
                        index.retire(old);
                    }
                    Waiting::Finish { run, at, offset, len, answer } => {
                        let offset = self.length + offset as u64;
                        index.finished(run, at, offset, len);
                        answers.extend(answer);
                    }
                    Waiting::Forget(runs) => runs.iter().for_each(|run| index.forget(*run)),
                }
            }
        }
        self.length += self.buffer.len() as u64;
        if let Some(through) = through {
            let _ = self.events.send(JournalEvent::Armed { through });
        }
        for (reply, outcome) in answers {
            reply(outcome, true);
        }
    }

    /// The batch is not on disk: refuse what has not started, keep what has ended for a later try.
    fn fail(&mut self, waiting: Vec<Waiting>) {
        for item in waiting {
            match item {
                Waiting::Arm { number, .. } => {
                    let _ = self.events.send(JournalEvent::ArmFailed { from: number, through: number });
                }
                Waiting::Finish { run, at, offset, len, answer } => {
                    let kept: usize = self.unsaved.iter().map(|(.., line)| line.len()).sum();
                    if kept + len <= UNSAVED_BYTES {
                        let line = self.buffer[offset..=offset + len].to_vec();
                        self.unsaved.push((run, at, line));
                    }
                    if let Some((reply, outcome)) = answer {
                        let _ = self.events.send(JournalEvent::FinishLost(run));
                        reply(outcome, false);
                    }
                }
                Waiting::Forget(runs) => {
                    let mut index = self.inner.index();
                    for run in &runs {
                        index.forget(*run);
                    }
                }
            }
        }
    }

    fn rewrite_logged(&mut self, why: &str) {
        self.probed = Instant::now();
        match self.rewrite() {
            Ok(()) => {
                if self.inner.broken.swap(false, Ordering::SeqCst) {
                    tracing::info!("the device's journal can be written again");
                }
                self.unsaved.clear();
            }
            Err(error) => {
                tracing::error!(%error, "failed to {why} the journal");
                self.inner.broken.store(true, Ordering::SeqCst);
            }
        }
        let _ = self.events.send(JournalEvent::Resumed);
    }

    /// Copies what is live into new files and puts them in place. Marks wait meanwhile only for the last step.
    fn rewrite(&mut self) -> io::Result<()> {
        let session = self.session + 1;
        let now = self.clock.now().micros();
        let plan = Plan { folder: &self.folder, boot: &self.boot, session, now };
        // A copy of the index: what the marks change meanwhile is read again under the lock.
        let mut copy = {
            let index = self.inner.index();
            Index {
                entries: index.entries.clone(),
                file: Arc::clone(&index.file),
                horizon: index.horizon,
                doubts_absence: index.doubts_absence,
                live_bytes: 0,
            }
        };
        let fresh = plan.copy(&mut copy, &self.unsaved)?;
        let (length, old) = {
            let mut sent = self.inner.sent.lock().unwrap_or_else(PoisonError::into_inner);
            for (run, entry) in &self.inner.index().entries {
                if *entry == Entry::Sent && copy.entries.get(run).is_none_or(|copied| *copied == Entry::Armed)
                {
                    copy.entries.insert(*run, Entry::Sent);
                }
            }
            let (fresh_sent, length) = plan.replace(&mut copy, fresh)?;
            *sent = fresh_sent;
            let mut index = self.inner.index();
            *index = copy;
            self.file = Arc::clone(&index.file);
            (length, std::mem::replace(&mut self.session, session))
        };
        self.length = length;
        let _ = std::fs::remove_file(sent::path(&self.folder, old));
        Ok(())
    }
}
