//! The one task that owns the worker: it feeds calls, reads answers, watches deadlines and death.
//!
//! Invariant: it never waits for the worker, the disk or a listener, only for the next event. What happens on an event is in the
//! submodules: [`calls`] (queue and results), [`ladder`] (cancel and timeout), [`life`] (start and death), [`standby`], [`rest`]
//! (safe state), [`stop`] (emergency stop), [`ending`] (shutdown). The kill of an emergency stop does not come through here at all; see [`crate::Host`].

mod calls;
mod ending;
mod ladder;
mod life;
mod rest;
mod standby;
mod stop;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::RunId;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::error::{ReleaseError, StartError};
use crate::journal::JournalEvent;
use crate::process::{Event, Proc};
use crate::shared::{Activity, Command, Gate, Queued, Shared, Started, Stop};
use crate::wire::{Message, Ready};
use ladder::Climb;
use rest::{LastRest, Rest};
pub(crate) use stop::ANSWER_MARGIN;
use stop::StopRun;

/// After SIGKILL, this long until a process counts as one that cannot be killed.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// When there is nothing to wait for.
const FAR: Duration = Duration::from_hours(24);
/// Lines that are kept for saying why a worker did not start.
const TAIL: usize = 20;

struct Waiting {
    queued: Queued,
    /// The number under which it was armed; 0 when it needs none.
    number: u64,
}

struct Running {
    run: RunId,
    deadline: Instant,
    climb: Option<Climb>,
    artifacts: u32,
}

enum Phase {
    /// Loading the file.
    Loading {
        deadline: Instant,
    },
    /// Loaded, but not started: the stop is engaged, or a person has to look first.
    Parked,
    /// Running the `@on_start` hooks.
    Starting {
        deadline: Instant,
    },
    Idle,
    Busy,
    /// Running the safe-state hook, or on the way there.
    Rest(Rest),
}

struct Dying {
    until: Instant,
    /// Why it was killed, when the reason is not a rung or a stop.
    cause: Option<String>,
    /// The same for a worker that was still starting.
    error: Option<StartError>,
}

struct Worker {
    proc: Proc,
    phase: Phase,
    dying: Option<Dying>,
    born: Instant,
    tail: VecDeque<String>,
}

struct Standby {
    proc: Proc,
    ready: Option<Box<Ready>>,
    deadline: Instant,
}

/// When to try again after failures.
#[derive(Default)]
struct Retry {
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// Schedules the next try: `first` after the first failure, twice as long each time, at most `longest`.
    fn fail(&mut self, first: Duration, longest: Duration) {
        let wait = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.at = Some(Instant::now() + wait);
    }
}

struct Closing {
    reply: Option<oneshot::Sender<()>>,
    /// A call that runs on after this is stopped.
    until: Instant,
    /// The ladder is being climbed; after `until` nothing is waited for.
    stopping: bool,
}

/// What is due about the worker.
enum Due {
    Undead,
    Slow,
    Rest,
    Ladder,
}

/// State of the task.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state in disguise")]
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    commands: UnboundedReceiver<Command>,
    stops: UnboundedReceiver<Stop>,
    journal: UnboundedReceiver<JournalEvent>,
    /// Takes the result of the first start.
    started: Option<oneshot::Sender<Started>>,
    worker: Option<Worker>,
    standby: Option<Standby>,
    queue: VecDeque<Waiting>,
    running: Option<Running>,
    /// Sensitive values of the newest call: what its process says is kept and told without them.
    secrets: Vec<String>,
    /// A run that has ended and whose answer waits for the safe state.
    gate: Option<Arc<Gate>>,
    /// The run that an emergency stop ended, until that stop is answered.
    stopped_run: Option<RunId>,
    armed: u64,
    armed_through: u64,
    /// The journal is being rewritten; nothing is sent until it says so.
    journal_busy: bool,
    stop: Option<StopRun>,
    resuming: Vec<oneshot::Sender<Result<(), ReleaseError>>>,
    retry: Retry,
    standby_retry: Retry,
    has_safe_state: bool,
    last_death: Option<Instant>,
    last_rest: Option<LastRest>,
    closing: Option<Closing>,
    /// Until then a process of an earlier host of this folder may live; `None` once there is none.
    preceded_until: Option<Instant>,
    /// No handle is left.
    abandoned: bool,
    /// The safe-state hook has to run before the first call.
    due: bool,
    ended: bool,
    tracker: TaskTracker,
}

impl Supervisor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: UnboundedReceiver<Command>,
        stops: UnboundedReceiver<Stop>,
        journal: UnboundedReceiver<JournalEvent>,
        started: oneshot::Sender<Started>,
    ) -> Self {
        let due = shared.control.state().safe_state_due;
        let preceded_until = Some(Instant::now() + shared.config.lost_limit() + KILL_WAIT);
        Self {
            shared,
            commands,
            stops,
            journal,
            started: Some(started),
            worker: None,
            secrets: Vec::new(),
            standby: None,
            queue: VecDeque::new(),
            running: None,
            gate: None,
            stopped_run: None,
            armed: 0,
            armed_through: 0,
            journal_busy: false,
            stop: None,
            resuming: Vec::new(),
            retry: Retry::default(),
            standby_retry: Retry::default(),
            // Until the file has said so: better a hook too many than one too few.
            has_safe_state: true,
            last_death: None,
            last_rest: None,
            closing: None,
            preceded_until,
            abandoned: false,
            due,
            ended: false,
            tracker: TaskTracker::new(),
        }
    }

    /// Works until shut down, or until the first start fails.
    pub(crate) async fn run(mut self) {
        self.bring_up();
        let mut alarm = Instant::now() + FAR;
        let sleep = sleep_until(alarm);
        tokio::pin!(sleep);
        while !self.ended {
            self.pump();
            if self.may_end() {
                break;
            }
            let next = self.next_deadline();
            if next != alarm {
                alarm = next;
                sleep.as_mut().reset(alarm);
            }
            tokio::select! {
                biased;
                Some(stop) = self.stops.recv() => self.on_stop(stop),
                command = self.commands.recv(), if !self.abandoned => if let Some(command) = command { self.on_command(command) } else {
                    self.abandoned = true;
                    self.on_shutdown(Duration::ZERO, None);
                },
                Some(event) = self.journal.recv() => self.on_journal(&event),
                event = worker_event(&mut self.worker) => self.on_worker(event).await,
                event = standby_event(&mut self.standby) => self.on_standby(event),
                () = &mut sleep => {
                    alarm = Instant::now() + FAR;
                    sleep.as_mut().reset(alarm);
                    self.on_tick().await;
                }
            }
        }
        self.finish().await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Call(queued) => self.on_call(queued),
            Command::Withdraw(run) => self.on_withdraw(run),
            Command::Cancel { run, reason } => self.on_cancel(run, &reason),
            Command::IsStopping { reply } => {
                let _ = reply.send(self.stop.is_some() || self.is_stop_rest());
            }
            Command::Resume { reply } => self.on_resume(reply),
            Command::TestSafeState { at, reply } => self.on_test(at, reply),
            Command::Shutdown { grace, reply } => self.on_shutdown(grace, Some(reply)),
        }
    }

    async fn on_worker(&mut self, event: Event) {
        match event {
            Event::Message(message) => self.on_message(message),
            Event::Printed(line) => self.on_printed(line),
            Event::Broken(problem) => self.kill_worker(Some(problem)),
            Event::Dead => self.on_dead(true).await,
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Returned { .. } | Message::Raised { .. } | Message::Cancelled { .. } => {
                self.on_end(message);
            }
            Message::Progress { .. }
            | Message::Metric { .. }
            | Message::Artifact { .. }
            | Message::Log { .. } => {
                self.on_news(message);
            }
            Message::Ready(ready) => self.on_ready(*ready),
            Message::LoadFailed(error) => self.fail_start(StartError::Load(Box::new(error))),
            Message::Started => self.on_started(),
            Message::StartFailed(error) => self.fail_start(StartError::Hook(Box::new(error))),
            Message::SafeStateEntered => self.on_rest_entered(),
            Message::SafeStateDone { ok, error } => self.on_rest_done(ok, error),
            Message::Pong => {}
            Message::Unknown(kind) => {
                let kind: String = kind.chars().take(60).collect();
                tracing::debug!(message.kind = kind, "the worker sent a message of an unknown kind");
            }
        }
    }

    /// The earliest moment at which something has to be done without being asked.
    fn next_deadline(&self) -> Instant {
        let mut next = None;
        let mut consider = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        if let Some(worker) = &self.worker {
            match (&worker.dying, &worker.phase) {
                (Some(dying), _) => consider(dying.until),
                (None, Phase::Loading { deadline } | Phase::Starting { deadline }) => consider(*deadline),
                (None, Phase::Rest(rest)) => consider(rest.deadline),
                (None, Phase::Busy) => {
                    if let Some(running) = &self.running {
                        consider(running.climb.as_ref().map_or(running.deadline, |climb| climb.next));
                    }
                }
                (None, Phase::Parked | Phase::Idle) => {}
            }
        } else if let Some(at) = self.retry.at {
            consider(at);
        }
        match &self.standby {
            Some(standby) if standby.ready.is_none() => consider(standby.deadline),
            None => {
                if let Some(at) = self.standby_retry.at {
                    consider(at);
                }
            }
            Some(_) => {}
        }
        for waiting in &self.queue {
            if let Some(expires) = waiting.queued.expires {
                consider(expires);
            }
        }
        if let Some(stop) = &self.stop {
            consider(stop.answer_by);
        }
        if let Some(closing) = &self.closing {
            consider(closing.until);
        }
        next.unwrap_or_else(|| Instant::now() + FAR)
    }

    async fn on_tick(&mut self) {
        let now = Instant::now();
        self.expire_waiting(now);
        if self.stop.as_ref().is_some_and(|stop| stop.answer_by <= now) {
            self.answer_stop(Some("the safe state is not confirmed yet; the host goes on trying".to_owned()));
        }
        if self.closing.as_ref().is_some_and(|closing| closing.until <= now) {
            self.close_now(now);
        }
        let due = self.worker.as_ref().and_then(|worker| match (&worker.dying, &worker.phase) {
            (Some(dying), _) => (dying.until <= now).then_some(Due::Undead),
            (None, Phase::Loading { deadline } | Phase::Starting { deadline }) => {
                (*deadline <= now).then_some(Due::Slow)
            }
            (None, Phase::Rest(rest)) => (rest.deadline <= now).then_some(Due::Rest),
            (None, Phase::Busy) => Some(Due::Ladder),
            (None, Phase::Parked | Phase::Idle) => None,
        });
        match due {
            Some(Due::Undead) => self.on_dead(false).await,
            Some(Due::Slow) => self.on_slow(),
            Some(Due::Rest) => self.on_rest_late(),
            Some(Due::Ladder) => self.climb(now),
            None => {}
        }
        if self.worker.is_none() && self.retry.at.is_some_and(|at| at <= now) {
            self.bring_up();
        }
        self.tend_standby(now);
    }

    /// Whether nothing may move: then a worker is loaded, but not started.
    fn is_parked(&self) -> bool {
        self.shared.control.is_stopped() || self.shared.control.is_held()
    }

    fn show(&self, activity: Activity) {
        self.shared.view().activity = activity;
    }

    /// Writes latch and mark to disk without waiting for it.
    fn save_control(&self) {
        let shared = Arc::clone(&self.shared);
        self.tracker.spawn(async move {
            let _ = shared.save_control().await;
        });
    }

    /// Marks the device for a person. `held` refuses calls until the mark is cleared.
    fn mark(&mut self, reason: &str, held: bool) {
        tracing::warn!(device.held = held, reason, "the device needs attention");
        self.shared.control.mark(reason, held, self.shared.config.clock.now());
        self.save_control();
        if held {
            self.refuse_waiting(interlock_model::device::NotStarted::NeedsAttention);
        }
    }
}

async fn worker_event(worker: &mut Option<Worker>) -> Event {
    match worker {
        Some(worker) => worker.proc.event().await,
        None => std::future::pending().await,
    }
}

async fn standby_event(standby: &mut Option<Standby>) -> Event {
    match standby {
        Some(standby) => standby.proc.event().await,
        None => std::future::pending().await,
    }
}
