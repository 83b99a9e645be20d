//! What the handle and the supervisor both see.
//!
//! Every lock here is held for a few instructions only, never across an await or a system call that waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_model::RunId;
use interlock_model::device::{
    Catalogue, DeviceStop, EventKind, NotStarted, Outcome, RunEvent, WorkerStatus,
};
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

use crate::artifacts::Artifacts;
use crate::config::HostConfig;
use crate::control::Control;
use crate::error::{ReleaseError, StartError};
use crate::escaped::Mark;
use crate::journal::Journal;
use crate::process::Registry;

/// Events that a slow listener may be behind before it loses some.
const EVENTS: usize = 4096;

/// A call on its way to the worker.
pub(crate) struct Queued {
    pub(crate) run: RunId,
    /// The protocol line.
    pub(crate) line: Vec<u8>,
    /// The journal's line; `None` for an idempotent action, which needs none.
    pub(crate) armed: Option<Vec<u8>>,
    pub(crate) timeout: std::time::Duration,
    pub(crate) expires: Option<Instant>,
    /// Sensitive values, which nothing that is written down may repeat.
    pub(crate) secrets: Vec<String>,
}

/// What the handle asks of the supervisor.
pub(crate) enum Command {
    Call(Queued),
    /// The caller of a waiting call is gone.
    Withdraw(RunId),
    Cancel {
        run: RunId,
        reason: String,
    },
    /// Whether a stop is being carried out.
    IsStopping {
        reply: oneshot::Sender<bool>,
    },
    /// Latch or mark were cleared: start the worker if it waits for that, and answer when it is ready.
    Resume {
        reply: oneshot::Sender<Result<(), ReleaseError>>,
    },
    TestSafeState {
        at: Instant,
        reply: oneshot::Sender<DeviceStop>,
    },
    Shutdown {
        grace: std::time::Duration,
        reply: oneshot::Sender<()>,
    },
}

/// The lane of the emergency stop.
pub(crate) struct Stop {
    /// When it was asked for.
    pub(crate) at: Instant,
    pub(crate) reply: oneshot::Sender<DeviceStop>,
    /// The latch on its way to disk.
    pub(crate) saved: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// What the supervisor is doing, for [`crate::Host::status`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Activity {
    #[default]
    Starting,
    Ready,
    Busy,
    Unavailable,
}

/// A snapshot for people.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) activity: Activity,
    pub(crate) running: Option<RunId>,
    pub(crate) worker: WorkerStatus,
}

struct Live {
    waiters: Vec<oneshot::Sender<Outcome>>,
    cancel_asked: bool,
}

/// State shared by handle, supervisor and the journal's answers.
pub(crate) struct Shared {
    pub(crate) config: HostConfig,
    pub(crate) control: Control,
    pub(crate) journal: Journal,
    pub(crate) registry: Arc<Registry>,
    pub(crate) artifacts: Artifacts,
    /// What every process of this state folder carries.
    pub(crate) mark: Mark,
    pub(crate) closing: AtomicBool,
    /// The supervisor is gone, and with it every process.
    pub(crate) ended: AtomicBool,
    live: Mutex<HashMap<RunId, Live>>,
    view: Mutex<View>,
    catalogue: Mutex<Arc<Catalogue>>,
    events: broadcast::Sender<RunEvent>,
    /// Events of the running call so far.
    counted: AtomicU32,
}

/// Whether a call was taken in.
pub(crate) enum Admission {
    /// It is new: send it to the supervisor, then wait.
    New(oneshot::Receiver<Outcome>),
    /// The same run is on its way already: wait for the same end.
    Same(oneshot::Receiver<Outcome>),
    /// Too many wait.
    Full,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        config: HostConfig,
        control: Control,
        journal: Journal,
        artifacts: Artifacts,
        mark: Mark,
    ) -> Self {
        Self {
            config,
            control,
            journal,
            registry: Arc::default(),
            artifacts,
            mark,
            closing: false.into(),
            ended: false.into(),
            live: Mutex::default(),
            view: Mutex::default(),
            catalogue: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            counted: 0.into(),
        }
    }

    // Calls

    /// Takes a call in, unless too many wait.
    pub(crate) fn admit(&self, run: RunId) -> Admission {
        let (sender, receiver) = oneshot::channel();
        let mut live = lock(&self.live);
        // One more than may wait: the one that runs.
        let full = live.len() > self.config.limits.queue;
        match live.entry(run) {
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                entry.get_mut().waiters.push(sender);
                Admission::Same(receiver)
            }
            std::collections::hash_map::Entry::Vacant(_) if full => Admission::Full,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Live { waiters: vec![sender], cancel_asked: false });
                Admission::New(receiver)
            }
        }
    }

    /// Tells everyone who waits for this run.
    pub(crate) fn answer(&self, run: RunId, outcome: Outcome) {
        let Some(mut live) = lock(&self.live).remove(&run) else { return };
        let last = live.waiters.pop();
        for waiter in live.waiters {
            let _ = waiter.send(outcome.clone());
        }
        if let Some(last) = last {
            let _ = last.send(outcome);
        }
    }

    /// Answers a call that was not sent.
    pub(crate) fn refuse(&self, run: RunId, reason: NotStarted) {
        self.answer(run, Outcome::NotStarted { reason });
    }

    /// Holds back the answer to a run until [`Gate::open`].
    pub(crate) fn gate(self: &Arc<Self>, run: RunId) -> Arc<Gate> {
        Arc::new(Gate { shared: Arc::clone(self), run, state: Mutex::new((None, false)) })
    }

    /// Whether anybody still waits for this run.
    pub(crate) fn is_wanted(&self, run: RunId) -> bool {
        lock(&self.live).get(&run).is_some_and(|live| live.waiters.iter().any(|waiter| !waiter.is_closed()))
    }

    /// `Some(first)` when the run is on its way; `first` when nobody has asked to cancel it before.
    pub(crate) fn ask_cancel(&self, run: RunId) -> Option<bool> {
        let mut live = lock(&self.live);
        let live = live.get_mut(&run)?;
        Some(!std::mem::replace(&mut live.cancel_asked, true))
    }

    /// How many calls are on their way, the running one included.
    pub(crate) fn live_count(&self) -> usize {
        lock(&self.live).len()
    }

    /// The supervisor has ended: whoever still waits asks the journal.
    pub(crate) fn abandon_calls(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.ended.store(true, Ordering::SeqCst);
        lock(&self.live).clear();
    }

    // Views

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&lock(&self.catalogue))
    }

    pub(crate) fn set_catalogue(&self, catalogue: Catalogue) {
        *lock(&self.catalogue) = Arc::new(catalogue);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    // Events

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<RunEvent> {
        self.events.subscribe()
    }

    /// A new call begins: its events are counted from nothing.
    pub(crate) fn reset_events(&self) {
        self.counted.store(0, Ordering::Relaxed);
    }

    /// Sends an event that is never dropped for being one too many.
    pub(crate) fn emit(&self, run: RunId, kind: EventKind) {
        let _ = self.events.send(RunEvent { run, kind });
    }

    /// Sends an event unless the run has had its share; the first one that is dropped is replaced by a line that says so.
    pub(crate) fn emit_counted(&self, run: RunId, kind: impl FnOnce() -> EventKind) {
        let limit = self.config.limits.events_per_run;
        let count = self.counted.load(Ordering::Relaxed);
        if count > limit {
            return;
        }
        self.counted.store(count + 1, Ordering::Relaxed);
        if count < limit {
            self.emit(run, kind());
        } else {
            let message = format!("more than {limit} events; the rest of this run's events are not kept");
            self.emit(run, EventKind::Log { level: "warning".to_owned(), message });
        }
    }

    /// Writes latch and mark to disk, on a thread that may wait for it. `Some(error)` when that failed.
    pub(crate) async fn save_control(self: Arc<Self>) -> Option<String> {
        let saved = tokio::task::spawn_blocking(move || self.control.save()).await;
        match saved {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::error!(%error, "latch and attention mark are not on disk");
                Some(error.to_string())
            }
            Err(_) => Some("the runtime is shutting down".to_owned()),
        }
    }
}

/// Answers a run when two things have happened: its outcome is recorded, and the device is at rest.
pub(crate) struct Gate {
    shared: Arc<Shared>,
    pub(crate) run: RunId,
    state: Mutex<(Option<Outcome>, bool)>,
}

impl Gate {
    /// The outcome is recorded.
    pub(crate) fn put(&self, outcome: Outcome) {
        let open = {
            let mut state = lock(&self.state);
            if !state.1 {
                state.0 = Some(outcome);
                return;
            }
            outcome
        };
        self.shared.answer(self.run, open);
    }

    /// The device is at rest, or will not come to it.
    pub(crate) fn open(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            state.1 = true;
            state.0.take()
        };
        if let Some(outcome) = waiting {
            self.shared.answer(self.run, outcome);
        }
    }
}

impl Drop for Gate {
    /// Nobody waits for ever, whatever happens to the supervisor.
    fn drop(&mut self) {
        self.open();
    }
}

/// Result of the first start.
pub(crate) type Started = Result<(), StartError>;
