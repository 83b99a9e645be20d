//! Runs that are under way, and their events as they happen.
//!
//! Events of a run are kept in memory while it lives and written in batches; a follower that is slow reads them again, it
//! never slows the run. Bounded: 10 000 events a run.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interlock_model::device::{EventKind, RunEvent};
use interlock_model::run::RunState;
use interlock_model::wire::{Artifact, Progress};
use interlock_model::{RunId, Timestamp};
use interlock_store::{Error, RunEnd, RunRow, StoredEvent, transact_repeatable};
use tokio::sync::{broadcast, watch};

use crate::Ambient;
use crate::auth::Db;

/// Events kept of one run.
const MAX_EVENTS: usize = 10_000;
/// How often events of long runs are written.
const FLUSH_PERIOD: Duration = Duration::from_secs(1);

/// The device's events are sorted at once after a pause, else at most this often. Short enough to look immediate, and the
/// device's buffer of 4096 events does not fill in it.
const SORT_PERIOD: Duration = Duration::from_millis(5);

/// Ended runs that are kept because their end could not be stored.
const MAX_UNSTORED: usize = 64;

/// A run that is under way.
#[derive(Debug)]
pub struct LiveRun {
    id: RunId,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<StoredEvent>,
    /// How many of `events` are stored.
    stored: usize,
    dropped: u64,
    state: Option<RunState>,
    /// How the run ended. Set together with a final `state`, so that nobody sees one without the other.
    end: Option<Arc<RunEnd>>,
    /// The last event, kept back until the end is stored: whoever hears of the end finds the result.
    last: Option<StoredEvent>,
    started_at: Option<Timestamp>,
    progress: Option<Progress>,
    artifacts: Vec<Artifact>,
}

impl LiveRun {
    /// Events with `seq > after`, at most `limit`, and whether the last event of the run is among or before them.
    pub fn events(&self, after: u64, limit: usize) -> (Vec<StoredEvent>, bool) {
        let inner = self.lock();
        let from = usize::try_from(after).unwrap_or(usize::MAX).min(inner.events.len());
        let to = from.saturating_add(limit).min(inner.events.len());
        let over = inner.state.is_some_and(RunState::is_final) && to == inner.events.len();
        (inner.events[from..to].to_vec(), over)
    }

    /// Resolves when there are more than `seen` events or the run is over.
    pub async fn beyond(&self, seen: u64) {
        let mut changes = self.changed.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = changes.wait_for(|&count| count > seen).await;
    }

    /// Resolves when the run is over and its end is stored.
    pub async fn ended(&self) {
        let mut changes = self.changed.subscribe();
        let _ = changes.wait_for(|&count| count == u64::MAX).await;
    }

    /// When the device said that it runs.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.lock().started_at
    }

    /// The stored run as it is by now: its state and, once it is over, its outcome, both of one moment.
    pub fn brought_up_to_date(&self, row: RunRow) -> RunRow {
        let inner = self.lock();
        let end = inner.end.clone();
        let (state, started_at) = (inner.state, inner.started_at);
        drop(inner);
        match end {
            _ if row.state.is_final() => row,
            Some(end) => ended(row, Arc::unwrap_or_clone(end)),
            None => RunRow {
                state: state.filter(|state| !state.is_final()).unwrap_or(row.state),
                started_at: row.started_at.or(started_at),
                ..row
            },
        }
    }

    /// How far it is and what it produced.
    pub fn report(&self) -> (Option<Progress>, Vec<Artifact>) {
        let inner = self.lock();
        (inner.progress.clone(), inner.artifacts.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end, in one step: the last event, the final state and the outcome.
    fn tell(&self, end: Arc<RunEnd>) {
        let mut inner = self.lock();
        let last = inner.last.take();
        inner.events.extend(last);
        inner.state = Some(end.state);
        inner.end = Some(end);
    }

    fn push(&self, at: Timestamp, kind: EventKind) {
        let mut inner = self.lock();
        if inner.last.is_some() || inner.state.is_some_and(RunState::is_final) {
            return;
        }
        match &kind {
            EventKind::State { state } => {
                inner.state = Some(*state);
                if *state == RunState::Running && inner.started_at.is_none() {
                    inner.started_at = Some(at);
                }
            }
            EventKind::Progress { current, total, message } => {
                inner.progress =
                    Some(Progress { current: *current, total: *total, message: message.clone() });
            }
            EventKind::Artifact { name, media_type, bytes } => {
                inner.artifacts.retain(|artifact| artifact.name != *name);
                inner.artifacts.push(Artifact {
                    name: name.clone(),
                    media_type: media_type.clone(),
                    bytes: *bytes,
                });
            }
            _ => {}
        }
        if inner.events.len() >= MAX_EVENTS && !matches!(kind, EventKind::State { .. }) {
            inner.dropped += 1;
            return;
        }
        let seq = inner.events.len() as u64 + 1;
        inner.events.push(StoredEvent { seq, at, kind });
        drop(inner);
        self.changed.send_modify(|count| *count = (*count).max(seq));
    }
}

/// A run with its end.
pub(crate) fn ended(row: RunRow, end: RunEnd) -> RunRow {
    let RunEnd { state, result, error, started_at, finished_at, duration_ms, .. } = end;
    RunRow { state, result, error, started_at, finished_at: Some(finished_at), duration_ms, ..row }
}

/// The runs that are under way.
#[derive(Debug)]
pub struct Hub {
    live: Mutex<HashMap<RunId, Arc<LiveRun>>>,
    /// Those among `live` that are over and whose end the storage did not take, oldest first.
    unstored: Mutex<VecDeque<RunId>>,
    /// What the device has said and nobody has sorted yet.
    inbox: Mutex<broadcast::Receiver<RunEvent>>,
    db: Db,
    ambient: Ambient,
}

impl Hub {
    /// An empty hub over the events of a device.
    pub fn new(db: Db, ambient: Ambient, events: broadcast::Receiver<RunEvent>) -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            unstored: Mutex::default(),
            inbox: Mutex::new(events),
            db,
            ambient,
        })
    }

    /// A run begins. Call it before the device can report anything.
    pub(crate) fn begin(&self, id: RunId) -> Arc<LiveRun> {
        let run = Arc::new(LiveRun { id, inner: Mutex::default(), changed: watch::Sender::new(0) });
        run.push(self.ambient.clock.now(), EventKind::State { state: RunState::Queued });
        self.lock().insert(id, Arc::clone(&run));
        run
    }

    /// A run that is under way. To tell how a run is, ask here *before* reading what is stored: a run that is not here any
    /// more has its end on record, and one that is here knows its end ([`LiveRun::brought_up_to_date`]).
    pub fn live(&self, id: &RunId) -> Option<Arc<LiveRun>> {
        self.lock().get(id).cloned()
    }

    /// All runs that are under way.
    pub(crate) fn under_way(&self) -> HashMap<RunId, Arc<LiveRun>> {
        self.lock().clone()
    }

    /// Takes the run's last state and gives the events that are still to be stored, that state among them; none when nothing
    /// but states happened, because those can be told from the run itself. Followers hear of the end with [`Self::end`].
    pub(crate) fn closing(run: &LiveRun, state: RunState, at: Timestamp) -> Vec<StoredEvent> {
        let mut inner = run.lock();
        let last = StoredEvent { seq: inner.events.len() as u64 + 1, at, kind: EventKind::State { state } };
        inner.last = Some(last.clone());
        let plain = inner.stored == 0
            && inner.events.iter().all(|event| matches!(event.kind, EventKind::State { .. }));
        if plain { Vec::new() } else { inner.events[inner.stored..].iter().cloned().chain([last]).collect() }
    }

    /// The run's end is stored: followers hear of it, and read it there from now on.
    pub(crate) fn end(&self, run: &LiveRun, end: Arc<RunEnd>) {
        run.tell(end);
        self.lock().remove(&run.id);
        run.changed.send_replace(u64::MAX);
    }

    /// The run is over and its end could not be stored: followers hear of it, and the run is told from here until the next
    /// start stores it. At most [`MAX_UNSTORED`] are kept.
    pub(crate) fn end_unstored(&self, run: &LiveRun, end: Arc<RunEnd>) {
        run.tell(end);
        let mut unstored = self.unstored.lock().unwrap_or_else(PoisonError::into_inner);
        unstored.push_back(run.id);
        let oldest = if unstored.len() > MAX_UNSTORED { unstored.pop_front() } else { None };
        drop(unstored);
        if let Some(oldest) = oldest {
            self.lock().remove(&oldest);
        }
        run.changed.send_replace(u64::MAX);
    }

    /// Nothing became of the run: its key stands for another one, or it could not be put on record.
    pub(crate) fn withdraw(&self, run: &LiveRun) {
        self.lock().remove(&run.id);
        run.changed.send_replace(u64::MAX);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Arc<LiveRun>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sorts what the device has said so far. A run that ends calls it first: the device speaks before it answers, so nothing
    /// of the run is missed.
    pub(crate) fn sort(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match inbox.try_recv() {
                Ok(event) => {
                    // The end of a run is told by its outcome, together with its result.
                    let is_end = matches!(event.kind, EventKind::State { state } if state.is_final());
                    if let Some(run) = self.live(&event.run).filter(|_| !is_end) {
                        run.push(self.ambient.clock.now(), event.kind);
                    }
                }
                Err(broadcast::error::TryRecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "events of runs came faster than they could be taken");
                }
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return,
            }
        }
    }

    /// Sorts events as they come, until the device is gone. `bell` is a second receiver of the same events. Run it as a
    /// background task.
    pub async fn follow(self: Arc<Self>, mut bell: broadcast::Receiver<RunEvent>) {
        while !matches!(bell.recv().await, Err(broadcast::error::RecvError::Closed)) {
            self.sort();
            // What comes meanwhile is sorted in one go: short calls in a row do not wake this task for each.
            tokio::time::sleep(SORT_PERIOD).await;
        }
    }

    /// Stores the events of long runs now and then, so that a crash loses little. Run it as a background task.
    pub async fn flush_forever(self: Arc<Self>) {
        loop {
            tokio::time::sleep(FLUSH_PERIOD).await;
            let runs: Vec<Arc<LiveRun>> = self.lock().values().cloned().collect();
            for run in runs {
                if let Err(error) = self.flush(&run).await {
                    tracing::error!(%error, run.id = %run.id, "events of a run could not be stored");
                }
            }
        }
    }

    async fn flush(&self, run: &LiveRun) -> Result<(), Error> {
        let batch = {
            let mut inner = run.lock();
            let telling = inner.events[inner.stored..]
                .iter()
                .any(|event| !matches!(event.kind, EventKind::State { .. }));
            if !telling || inner.last.is_some() || inner.state.is_some_and(RunState::is_final) {
                return Ok(());
            }
            let batch: Arc<[StoredEvent]> = inner.events[inner.stored..].into();
            // Marked before the write: an event is stored once or, if the write fails, lost with an error in the log; the
            // closing write must never meet a number twice.
            inner.stored = inner.events.len();
            batch
        };
        let id = run.id;
        transact_repeatable(self.db.read(), move |tx| {
            let batch = Arc::clone(&batch);
            Box::pin(async move { tx.insert_run_events(id, &batch).await })
        })
        .await
    }
}
