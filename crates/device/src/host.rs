//! The handle of a device: what the rest of the server may ask of it.
//!
//! Thin on purpose: it starts the parts, passes questions to the supervisor, and carries out the first step of an emergency stop
//! itself, so that this step waits for nobody.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use interlock_model::RunId;
use interlock_model::device::{
    Call, Catalogue, DeviceStatus, DeviceStop, Journaled, NotStarted, Outcome, RunEvent, WorkerError,
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::artifacts::Artifacts;
use crate::config::{Durability, HostConfig};
use crate::control::Control;
use crate::error::{ReleaseError, StartError};
use crate::escaped::Mark;
use crate::folder;
use crate::journal::{Journal, Known, Recovered};
use crate::shared::{Activity, Admission, Command, Queued, Shared, Stop};
use crate::supervisor::{ANSWER_MARGIN, Supervisor};
use crate::wire;

/// A device that is being hosted. Cheap to clone; when the last clone is dropped, the device is shut down.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    stops: mpsc::UnboundedSender<Stop>,
}

/// A first start that is under way.
#[derive(Debug)]
pub struct Starting(oneshot::Receiver<Result<(), StartError>>);

impl Starting {
    /// Waits until the worker is ready. Dropping it gives the start up.
    ///
    /// # Errors
    /// As [`Host::start`]; the device's processes are gone then.
    pub async fn ready(self) -> Result<(), StartError> {
        self.0.await.unwrap_or_else(|_| {
            let reason = "the supervisor ended".to_owned();
            Err(StartError::Died { reason, printed: Vec::new() })
        })
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("name", &self.0.shared.config.name).finish_non_exhaustive()
    }
}

impl Host {
    /// Takes the state folder, reads the journal, starts the worker and waits until it is ready.
    ///
    /// With an engaged emergency stop, or a device that is held, the file is loaded but its `@on_start` hooks wait for the
    /// release. Dropping the future ends everything that was started.
    ///
    /// # Errors
    /// Says what is wrong; [`StartError::remedy`] says what to do.
    pub async fn start(config: HostConfig) -> Result<Self, StartError> {
        let boot =
            folder::boot_id().map_err(StartError::folder("/proc/sys/kernel/random/boot_id".as_ref()))?;
        Self::start_in_boot(config, &boot).await
    }

    /// As [`Self::start`], in the boot of the machine that `boot` names. For tests of power cuts.
    ///
    /// # Errors
    /// As [`Self::start`].
    #[doc(hidden)]
    pub async fn start_in_boot(config: HostConfig, boot: &str) -> Result<Self, StartError> {
        let (host, starting) = Self::open_in_boot(config, boot).await?;
        starting.ready().await.map(|()| host)
    }

    /// As [`Self::start`], but gives the handle while the worker is still being loaded, so that the device can be stopped
    /// during its `@on_start` hooks as well.
    ///
    /// # Errors
    /// What is wrong with the state folder or the paths; [`Starting::ready`] tells the rest.
    pub async fn open(config: HostConfig) -> Result<(Self, Starting), StartError> {
        let boot =
            folder::boot_id().map_err(StartError::folder("/proc/sys/kernel/random/boot_id".as_ref()))?;
        Self::open_in_boot(config, &boot).await
    }

    async fn open_in_boot(config: HostConfig, boot: &str) -> Result<(Self, Starting), StartError> {
        let boot = boot.to_owned();
        let (journal_events, journal_inbox) = mpsc::unbounded_channel();
        let shared = tokio::task::spawn_blocking(move || open(config, &boot, journal_events))
            .await
            .unwrap_or_else(|stopped| Err(StartError::folder("".as_ref())(std::io::Error::other(stopped))))?;
        let shared = Arc::new(shared);
        let (commands, inbox) = mpsc::unbounded_channel();
        let (stops, stop_inbox) = mpsc::unbounded_channel();
        let (started, result) = oneshot::channel();
        let supervisor = Supervisor::new(Arc::clone(&shared), inbox, stop_inbox, journal_inbox, started);
        tokio::spawn(supervisor.run());
        let host = Self(Arc::new(Inner { shared, commands, stops }));
        Ok((host, Starting(result)))
    }

    /// The device's actions, as the present worker declares them.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.0.shared.catalogue()
    }

    /// What the journal knows about a run. Reads the disk when the run has ended; blocks for that long.
    pub fn journaled(&self, run: &RunId) -> Journaled {
        self.0.shared.journal.journaled(*run)
    }

    /// The server has the outcomes of these runs: the journal may drop them. Others are kept for a day.
    pub fn forget(&self, runs: &[RunId]) {
        self.0.shared.journal.forget(runs);
    }

    /// Executes a call: waits for its turn, sends it, waits for its end.
    ///
    /// Dropping the future withdraws a call that still waits; one that was sent goes on and is journaled. A run that is known
    /// already is never started again: a second call of a run that is on its way waits for the same end, one that has ended
    /// gives its outcome, and one whose end is not known gives [`Outcome::Uncertain`], unless the action is idempotent.
    pub async fn call(&self, call: Call) -> Outcome {
        let shared = &self.0.shared;
        let not_started = |reason| Outcome::NotStarted { reason };
        let catalogue = shared.catalogue();
        let action = catalogue.action(&call.action);
        let action_is_idempotent = action.is_some_and(|action| action.spec.idempotent);
        let secrets = action.map(|action| action.secrets(&call.parameters)).unwrap_or_default();
        let receiver = match shared.admit(call.run) {
            Admission::Full => return not_started(NotStarted::Busy),
            Admission::Same(receiver) => {
                return receiver.await.unwrap_or_else(|_| self.fate(call.run));
            }
            Admission::New(receiver) => receiver,
        };
        let run = call.run;
        let known = match shared.journal.known(run) {
            Known::New => None,
            Known::Started if action_is_idempotent => None,
            Known::Started => Some(Outcome::Uncertain {
                reason: "the action was sent to the device before, and its end is not known".to_owned(),
            }),
            Known::Finished(outcome) => Some(outcome),
        };
        if let Some(outcome) = known.or_else(|| self.refusal(&call)) {
            shared.answer(run, outcome);
            return receiver.await.unwrap_or_else(|_| self.fate(run));
        }
        let queued = Queued {
            run,
            line: wire::call(&call),
            armed: (!action_is_idempotent && shared.journal.arms()).then(|| Journal::armed_line(&call)),
            timeout: call.timeout,
            expires: call.queue_limit.and_then(|limit| Instant::now().checked_add(limit)),
            secrets,
        };
        if queued.line.len() > shared.config.limits.line_bytes {
            shared.answer(run, too_large());
        } else if self.0.commands.send(Command::Call(queued)).is_err() {
            shared.refuse(run, NotStarted::HostStopped);
        }
        let mut guard = WithdrawOnDrop { commands: &self.0.commands, run, armed: true };
        let outcome = receiver.await;
        guard.armed = false;
        outcome.unwrap_or_else(|_| self.fate(run))
    }

    /// Why no call is taken at present, if none is.
    fn refusal(&self, call: &Call) -> Option<Outcome> {
        let shared = &self.0.shared;
        let reason = if shared.is_closing() {
            NotStarted::HostStopped
        } else if shared.control.is_stopped() {
            NotStarted::EmergencyStop
        } else if shared.control.is_held() {
            NotStarted::NeedsAttention
        } else if shared.catalogue().action(&call.action).is_none() {
            let message = format!("there is no action {:?}", call.action);
            return Some(bad_parameters(message));
        } else {
            return None;
        };
        Some(Outcome::NotStarted { reason })
    }

    /// What became of a run when nobody is left to tell.
    fn fate(&self, run: RunId) -> Outcome {
        match self.0.shared.journal.stands(run) {
            Journaled::Finished(outcome) => outcome,
            Journaled::NeverStarted => Outcome::NotStarted { reason: NotStarted::HostStopped },
            Journaled::Started => {
                Outcome::Uncertain { reason: "the host stopped before the action ended".to_owned() }
            }
        }
    }

    /// Stops a run that waits or executes. `false` when it is neither; whether it ends is told by its outcome.
    pub fn cancel(&self, run: &RunId, reason: &str) -> bool {
        match self.0.shared.ask_cancel(*run) {
            None => false,
            Some(false) => true,
            Some(true) => {
                let reason = reason.chars().take(500).collect();
                self.0.commands.send(Command::Cancel { run: *run, reason }).is_ok()
            }
        }
    }

    /// Kills whatever could move the device, brings it to its safe state, and keeps it there until [`Self::release`].
    ///
    /// The kill is carried out before this function first waits, by the calling thread. Must be called in a tokio runtime. Goes on to its end when the future is
    /// dropped. A second call kills again what lives (not the process that runs the safe-state hook) and tells how it stands.
    pub async fn emergency_stop(&self, by: &str, reason: Option<&str>) -> DeviceStop {
        let at = Instant::now();
        let shared = &self.0.shared;
        shared.control.engage(by, reason, shared.config.clock.now());
        shared.registry.kill_all();
        tracing::warn!(device.name = shared.config.name, by, "emergency stop");
        let owned = Arc::clone(shared);
        let saved = tokio::task::spawn_blocking(move || {
            if owned.ended.load(Ordering::SeqCst) {
                Err(std::io::Error::other("the host is shut down"))
            } else {
                owned.control.save()
            }
        });
        let (reply, report) = oneshot::channel();
        let sent = self.0.stops.send(Stop { at, reply, saved }).is_ok();
        let patience = shared.config.ladder.safe_state + ANSWER_MARGIN * 2;
        if sent && let Ok(Ok(report)) = timeout(patience, report).await {
            return report;
        }
        DeviceStop {
            name: shared.config.name.clone(),
            confirmed: false,
            killed_ms: None,
            safe_state: "failed".to_owned(),
            safe_state_entered_ms: None,
            safe_state_done_ms: None,
            error: Some("the kill was sent; the device's supervisor does not answer".to_owned()),
            cancelled_run: None,
        }
    }

    /// Releases the emergency stop and waits until the worker is ready again.
    ///
    /// # Errors
    /// See [`ReleaseError`]. Only after [`ReleaseError::NotReady`] is the latch released all the same.
    pub async fn release(&self, by: &str, reason: &str) -> Result<(), ReleaseError> {
        let (reply, stopping) = oneshot::channel();
        self.ask(Command::IsStopping { reply })?;
        if stopping.await.map_err(|_| ReleaseError::Closing)? {
            return Err(ReleaseError::StillStopping);
        }
        let shared = Arc::clone(&self.0.shared);
        let released = tokio::task::spawn_blocking(move || shared.control.release()).await;
        match released.map_err(|_| ReleaseError::Closing)? {
            Ok(true) => {}
            Ok(false) => return Err(ReleaseError::StoppedAgain),
            Err(error) => return Err(ReleaseError::Disk(error)),
        }
        tracing::warn!(device.name = self.0.shared.config.name, by, reason, "emergency stop released");
        self.resume().await
    }

    /// A person has looked: takes the mark off, and the hold that may go with it.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub async fn clear_attention(&self, by: &str, reason: &str) -> Result<(), ReleaseError> {
        let shared = Arc::clone(&self.0.shared);
        let held = shared.control.is_held();
        let cleared = tokio::task::spawn_blocking(move || shared.control.clear_attention()).await;
        cleared.map_err(|_| ReleaseError::Closing)?.map_err(ReleaseError::Disk)?;
        tracing::warn!(device.name = self.0.shared.config.name, by, reason, "attention mark cleared");
        if held && !self.0.shared.control.is_stopped() { self.resume().await } else { Ok(()) }
    }

    async fn resume(&self) -> Result<(), ReleaseError> {
        let (reply, resumed) = oneshot::channel();
        self.ask(Command::Resume { reply })?;
        resumed.await.map_err(|_| ReleaseError::Closing)?
    }

    fn ask(&self, command: Command) -> Result<(), ReleaseError> {
        self.0.commands.send(command).map_err(|_| ReleaseError::Closing)
    }

    /// How the device stands.
    pub fn status(&self) -> DeviceStatus {
        let shared = &self.0.shared;
        let control = shared.control.state();
        let catalogue = shared.catalogue();
        let live = shared.live_count();
        let view = shared.view();
        let held = control.attention.as_ref().is_some_and(|attention| attention.held);
        let state = match view.activity {
            _ if control.latch.engaged => "stopped",
            _ if held => "held",
            Activity::Starting => "starting",
            Activity::Ready => "ready",
            Activity::Busy => "busy",
            Activity::Unavailable => "unavailable",
        };
        DeviceStatus {
            name: shared.config.name.clone(),
            title: shared
                .config
                .title
                .clone()
                .or_else(|| catalogue.declarations.title.clone())
                .unwrap_or_else(|| shared.config.name.clone()),
            state: state.to_owned(),
            running: view.running,
            queued: live.saturating_sub(usize::from(view.running.is_some())),
            emergency_stop: control.latch,
            attention: control.attention,
            worker: view.worker.clone(),
            actions: catalogue.actions().len(),
        }
    }

    /// What happens during runs, from now on. A listener that is too slow loses the oldest events and is told so.
    pub fn events(&self) -> broadcast::Receiver<RunEvent> {
        self.0.shared.subscribe()
    }

    /// Where an artifact of a run is. No name leads out of the run's own folder.
    pub fn artifact_path(&self, run: &RunId, name: &str) -> Option<PathBuf> {
        self.0.shared.artifacts.find(*run, name)
    }

    /// Deletes the artifacts of these runs. Blocks for that long.
    ///
    /// # Errors
    /// The file system's; those of the runs before are deleted then.
    pub fn discard(&self, runs: &[RunId]) -> std::io::Result<()> {
        runs.iter().try_for_each(|run| self.0.shared.artifacts.discard(*run))
    }

    /// Runs the safe-state hook of an idle device, to see that it works.
    pub async fn test_safe_state(&self) -> DeviceStop {
        let (reply, report) = oneshot::channel();
        let at = Instant::now();
        if self.0.commands.send(Command::TestSafeState { at, reply }).is_ok()
            && let Ok(report) = report.await
        {
            return report;
        }
        DeviceStop {
            name: self.0.shared.config.name.clone(),
            confirmed: false,
            killed_ms: None,
            safe_state: "none".to_owned(),
            safe_state_entered_ms: None,
            safe_state_done_ms: None,
            error: Some("the test was interrupted".to_owned()),
            cancelled_run: None,
        }
    }

    /// Refuses new calls, lets the running one end within `grace`, then stops it; ends the worker and writes everything.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.shared.closing.store(true, Ordering::SeqCst);
        let (reply, done) = oneshot::channel();
        if self.0.commands.send(Command::Shutdown { grace, reply }).is_ok() {
            let _ = done.await;
        }
    }
}

/// Tells the supervisor when the caller of a call goes away.
struct WithdrawOnDrop<'a> {
    commands: &'a mpsc::UnboundedSender<Command>,
    run: RunId,
    armed: bool,
}

impl Drop for WithdrawOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.commands.send(Command::Withdraw(self.run));
        }
    }
}

fn bad_parameters(message: String) -> Outcome {
    let error = WorkerError {
        class: "ValueError".to_owned(),
        message,
        public: true,
        code: Some("bad_parameters".to_owned()),
        ..WorkerError::default()
    };
    Outcome::Raised { error, duration_ms: 0.0 }
}

fn too_large() -> Outcome {
    bad_parameters("the parameters are larger than a line of the worker protocol may be".to_owned())
}

/// The part of the start that waits for the disk.
fn open(
    mut config: HostConfig,
    boot: &str,
    events: mpsc::UnboundedSender<crate::journal::JournalEvent>,
) -> Result<Shared, StartError> {
    let state_dir = config.state_dir.clone();
    folder::create_private(&state_dir).map_err(StartError::folder(&state_dir))?;
    let lock = folder::lock(&state_dir)
        .map_err(StartError::folder(&state_dir))?
        .ok_or_else(|| StartError::Locked { path: state_dir.clone() })?;
    config.file = config.file.canonicalize().map_err(|_| StartError::NoFile { path: config.file.clone() })?;
    config.python_path = std::path::absolute(&config.python_path).unwrap_or(config.python_path);

    let mark = Mark::of_folder(&lock).map_err(StartError::folder(&state_dir))?;
    let now = config.clock.now();
    let control = Control::load(&state_dir, now).map_err(StartError::folder(&state_dir))?;
    let journal_dir = state_dir.join("journal");
    folder::create_private(&journal_dir).map_err(StartError::folder(&journal_dir))?;
    let recovered = Recovered::read(&journal_dir, boot, now).map_err(StartError::Journal)?;
    let recovered = if config.durability == Durability::Caller { recovered.by_caller() } else { recovered };
    if recovered.was_damaged() {
        control.mark(
            "the device's journal was damaged; runs that it no longer knows count as started",
            false,
            now,
        );
    }
    if !recovered.unfinished.is_empty() {
        tracing::warn!(runs = ?recovered.unfinished, "the host ended while these runs were under way");
        control.mark("the host ended while an action was under way; nobody knows how it ended", false, now);
        control.set_due(true);
    }
    // Before the journal is written anew: once it is, these runs are no longer news.
    control.save().map_err(StartError::folder(&state_dir))?;
    let journal = Journal::open(recovered, Some(lock), Arc::clone(&config.clock), events)?;
    let artifacts = Artifacts::open(&state_dir).map_err(StartError::folder(&state_dir))?;
    Ok(Shared::new(config, control, journal, artifacts, mark))
}
