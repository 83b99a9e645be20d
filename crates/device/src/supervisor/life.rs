//! The life of processes: started, loaded, dead, replaced; the standby behind them; the end of the host.
//!
//! Decides what a death means for the run that it interrupted. Bringing the device to rest afterwards is [`super::rest`]'s work.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use interlock_model::device::{Catalogue, Outcome, Rung};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ladder::millis;
use super::{Dying, KILL_WAIT, Phase, Supervisor, Worker};
use crate::error::{ReleaseError, StartError};
use crate::process::{self, Proc};
use crate::shared::Activity;
use crate::wire::{self, Message, Ready, Reason, Role};
use crate::{environment, escaped};

/// A worker that dies sooner than this after it was started counts as one that keeps dying.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// Restarts without a pause until then.
const QUICK_RESTARTS: u32 = 3;
/// How often to look whether the processes of an earlier host have ended.
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(50);

impl Supervisor {
    pub(super) fn spawn(&self, role: Role) -> std::io::Result<Proc> {
        let config = &self.shared.config;
        let mut words: VecDeque<OsString> = match &config.worker_command {
            Some(command) => command.iter().cloned().collect(),
            None => [config.python.clone().into_os_string(), "-m".into(), "interlock.worker".into()].into(),
        };
        let mut command = Command::new(words.pop_front().unwrap_or_default());
        command.args(words).arg("--file").arg(&config.file);
        command.current_dir(config.file.parent().unwrap_or(Path::new("/")));
        command.env_clear().envs(environment::of_worker(config, std::env::vars_os()));
        command.envs([self.shared.mark.variable()]);
        let standby = role == Role::Standby;
        let mut proc = Proc::spawn(command, &config.limits, &self.shared.registry, standby)?;
        proc.set_spare_on_drop(standby);
        proc.send(&wire::hello(config, role, self.shared.artifacts.incoming()));
        Ok(proc)
    }

    /// Whether a process of an earlier host of this folder still lives, most likely a standby that brings the device to rest. Two
    /// processes must not drive one device, so nothing is started meanwhile. One that has outlived its time is killed.
    fn is_preceded(&mut self) -> bool {
        let Some(until) = self.preceded_until else { return false };
        let mark = &self.shared.mark;
        if mark.is_carried() {
            if Instant::now() < until {
                return true;
            }
            self.end_predecessor();
        }
        self.preceded_until = None;
        false
    }

    /// Kills what an earlier host of this folder left behind, before this one has started anything.
    pub(super) fn end_predecessor(&mut self) {
        if self.preceded_until.take().is_none() {
            return;
        }
        let mark = &self.shared.mark;
        escaped::sweep(std::slice::from_ref(mark));
        if mark.is_carried() {
            self.mark("a process of the server that ran before cannot be killed; it may still act", true);
        }
    }

    fn program(&self) -> std::path::PathBuf {
        let config = &self.shared.config;
        match config.worker_command.as_ref().and_then(|command| command.first()) {
            Some(program) => program.into(),
            None => config.python.clone(),
        }
    }

    /// Starts a worker from nothing.
    pub(super) fn bring_up(&mut self) {
        self.retry.at = None;
        if self.worker.is_some() || self.closing.is_some() {
            return;
        }
        if self.is_preceded() {
            self.show(Activity::Starting);
            self.retry.at = Some(Instant::now() + PREDECESSOR_PAUSE);
            return;
        }
        self.show(if self.retry.failures > 0 { Activity::Unavailable } else { Activity::Starting });
        match self.spawn(Role::Worker) {
            Ok(proc) => {
                let deadline = Instant::now() + self.shared.config.load_deadline;
                self.adopt(proc, Phase::Loading { deadline });
            }
            Err(source) => self.start_failed(StartError::Program { program: self.program(), source }),
        }
    }

    /// Makes a process the worker.
    pub(super) fn adopt(&mut self, proc: Proc, phase: Phase) {
        let pid = proc.id();
        if let Some(standby) = &mut self.standby {
            standby.proc.send(&wire::guard(Some(proc.to_guard())));
        }
        self.worker = Some(Worker { proc, phase, dying: None, born: Instant::now(), tail: VecDeque::new() });
        self.shared.view().worker.pid = Some(pid);
    }

    /// The worker, or the standby that is on its way to be one, has loaded the file.
    pub(super) fn on_ready(&mut self, ready: Ready) {
        match self.worker.as_ref().map(|worker| &worker.phase) {
            Some(Phase::Loading { .. }) => {}
            Some(Phase::Rest(rest)) if !rest.is_asked() => return self.begin_rest(ready),
            _ => return,
        }
        if let Err(error) = self.accept(ready) {
            return self.fail_start(error);
        }
        if self.is_parked() {
            if let Some(worker) = &mut self.worker {
                worker.phase = Phase::Parked;
            }
            self.show(Activity::Ready);
            self.retry.failures = 0;
            self.tell_started(Ok(()));
            self.start_standby();
        } else {
            self.send_start();
        }
    }

    /// Takes over what a file declares.
    pub(super) fn accept(&mut self, ready: Ready) -> Result<(), StartError> {
        let catalogue = Catalogue::check(ready.declarations)?;
        self.has_safe_state = catalogue.declarations.has_safe_state;
        self.shared.set_catalogue(catalogue);
        let now = self.shared.config.clock.now();
        let mut view = self.shared.view();
        view.worker.language = ready.language;
        view.worker.started_at = Some(now);
        Ok(())
    }

    fn send_start(&mut self) {
        let deadline = Instant::now() + self.shared.config.start_deadline;
        if let Some(worker) = &mut self.worker {
            worker.phase = Phase::Starting { deadline };
            worker.proc.send(&wire::start());
        }
        self.show(Activity::Starting);
    }

    pub(super) fn on_started(&mut self) {
        if matches!(self.worker.as_ref().map(|worker| &worker.phase), Some(Phase::Starting { .. })) {
            self.become_idle();
        }
    }

    /// The worker is free.
    pub(super) fn become_idle(&mut self) {
        let Some(worker) = &mut self.worker else { return };
        worker.phase = Phase::Idle;
        if worker.dying.is_some() {
            // It ended its work in the moment in which it was killed.
            return;
        }
        if self.due && !self.is_parked() {
            self.due = false;
            if self.has_safe_state {
                return self.rest_here(Reason::HostLost, None);
            }
            self.settle_due();
        }
        self.show(Activity::Ready);
        if self.started.is_some() {
            self.tell_started(Ok(()));
        }
        for resuming in self.resuming.drain(..) {
            let _ = resuming.send(Ok(()));
        }
        if self.standby.is_none() && self.standby_retry.at.is_none() {
            self.start_standby();
        }
    }

    fn tell_started(&mut self, result: Result<(), StartError>) {
        if let Some(started) = self.started.take()
            && started.send(result).is_err()
        {
            // Nobody waits for this host any more.
            self.ended = true;
        }
    }

    /// A worker that loads or starts has failed: kill it; the rest happens when it is dead.
    pub(super) fn fail_start(&mut self, error: StartError) {
        match self.worker.as_mut().map(|worker| (&worker.phase, &mut worker.dying)) {
            Some((Phase::Loading { .. } | Phase::Starting { .. }, dying)) => {
                let until = Instant::now() + KILL_WAIT;
                dying.get_or_insert(Dying { until, cause: None, error: None }).error = Some(error);
            }
            // A process that was to bring the device to rest; its hook cannot run.
            Some((Phase::Rest(_), _)) => return self.kill_worker(Some(error.to_string())),
            _ => return,
        }
        self.kill_worker(None);
    }

    pub(super) fn on_slow(&mut self) {
        let Some(worker) = &mut self.worker else { return };
        let config = &self.shared.config;
        let deadline = match worker.phase {
            Phase::Starting { .. } => config.start_deadline,
            _ => config.load_deadline,
        };
        worker.proc.printed().into_iter().for_each(|line| worker.tail.push_back(line));
        let printed = worker.tail.iter().cloned().collect();
        self.fail_start(StartError::Slow { seconds: deadline.as_secs(), printed });
    }

    /// No worker could be started: try again later, each time more patiently.
    fn start_failed(&mut self, error: StartError) {
        tracing::error!(%error, device.name = self.shared.config.name, "the worker cannot be started");
        self.show(Activity::Unavailable);
        for resuming in self.resuming.drain(..) {
            let _ = resuming.send(Err(ReleaseError::NotReady(error.to_string())));
        }
        self.retry.fail(Duration::from_millis(100), Duration::from_secs(5));
        if self.started.is_some() {
            self.tell_started(Err(error));
            self.ended = true;
        }
    }

    /// Kills the worker's process group. What follows happens when it is dead.
    pub(super) fn kill_worker(&mut self, cause: Option<String>) {
        let Some(worker) = &mut self.worker else { return };
        worker.proc.kill();
        let until = Instant::now() + KILL_WAIT;
        let dying = worker.dying.get_or_insert(Dying { until, cause: None, error: None });
        if dying.cause.is_none() {
            dying.cause = cause;
        }
    }

    /// The worker is dead; or it was killed and will not die (`confirmed` is false), and counts as dead.
    pub(super) async fn on_dead(&mut self, confirmed: bool) {
        let Some(mut worker) = self.worker.take() else { return };
        let now = Instant::now();
        let mut words = Vec::new();
        if let Some(parsing) = worker.proc.take_parsing()
            && let Ok(Ok(message)) = parsing.await
        {
            words.push(message);
        }
        words.extend(worker.proc.last_words());
        for line in worker.proc.printed() {
            worker.tail.push_back(line.clone());
            self.on_printed(line);
        }
        let Worker { mut proc, phase, dying, born, tail } = worker;
        if let Some(standby) = &mut self.standby {
            // The id may soon be another process's.
            standby.proc.send(&wire::guard(None));
        }
        let mut killed = false;
        let how = if confirmed {
            self.last_death = Some(now);
            let status = proc.reap();
            killed = status.is_some_and(|status| status.signal() == Some(9));
            process::describe(status)
        } else {
            self.tracker.spawn(proc.bury());
            self.mark("the device's process cannot be killed; it may still act", true);
            "the process cannot be killed".to_owned()
        };
        {
            let mut view = self.shared.view();
            view.worker.pid = None;
            view.worker.restarts += 1;
        }
        if let Some(stop) = &mut self.stop
            && confirmed
        {
            stop.killed.get_or_insert(now);
        }
        let (cause, error) = dying.map_or((None, None), |dying| (dying.cause, dying.error));
        let how = cause.unwrap_or(how);
        match phase {
            Phase::Busy => self.on_dead_busy(words, how, confirmed),
            Phase::Rest(rest) => self.on_dead_resting(rest, &words, &how),
            // Killed by a stop, whose message may still be on its way.
            _ if self.shared.control.is_stopped() && (self.stop.is_some() || killed) => {
                self.recover(Reason::EmergencyStop, None);
            }
            Phase::Loading { .. } | Phase::Starting { .. } => {
                let said = words.into_iter().find_map(|message| match message {
                    Message::LoadFailed(error) => Some(StartError::Load(Box::new(error))),
                    Message::StartFailed(error) => Some(StartError::Hook(Box::new(error))),
                    _ => None,
                });
                let printed = tail.into_iter().collect();
                self.start_failed(error.or(said).unwrap_or(StartError::Died { reason: how, printed }));
            }
            Phase::Parked | Phase::Idle => {
                tracing::warn!(device.name = self.shared.config.name, reason = how, "the idle worker died");
                let short = born.elapsed() < SHORT_LIFE;
                self.retry.failures = if short { self.retry.failures.saturating_add(1) } else { 0 };
                if self.retry.failures > QUICK_RESTARTS || self.is_parked() {
                    self.start_failed(StartError::Died { reason: how, printed: tail.into_iter().collect() });
                } else {
                    self.recover(Reason::Crashed, None);
                }
            }
        }
    }

    fn on_dead_busy(&mut self, words: Vec<Message>, how: String, confirmed: bool) {
        let mut judged = None;
        for message in words {
            match message {
                Message::Returned { .. } | Message::Raised { .. } | Message::Cancelled { .. } => {
                    judged = judged.or_else(|| self.judge(message));
                }
                other => self.on_news(other),
            }
        }
        let Some(running) = &self.running else { return self.recover(Reason::Crashed, None) };
        let run = running.run;
        let climb = running.climb.as_ref().map(|climb| (climb.why, climb.rung));
        let stopped = self.shared.control.is_stopped();
        let reason = match climb {
            _ if stopped => Reason::EmergencyStop,
            Some((why, _)) => why.reason(),
            None => Reason::Crashed,
        };
        let outcome = match (judged, climb) {
            (Some((outcome, _)), _) => outcome,
            _ if !confirmed => Outcome::Uncertain { reason: how },
            _ if stopped => {
                match &mut self.stop {
                    Some(stop) => stop.run = Some(run),
                    None => self.stopped_run = Some(run),
                }
                Outcome::Cancelled { rung: Rung::Kill }
            }
            (None, Some((why, rung @ (Rung::Interrupt | Rung::Kill)))) => why.outcome(rung),
            _ => Outcome::Crashed { reason: how },
        };
        if stopped {
            let since = self.stop.as_ref().and_then(|stop| stop.requests.first()).map(|stop| stop.at);
            self.rung(Rung::Kill, "done", since.map_or(0.0, |at| millis(at.elapsed())));
        } else {
            self.end_rung(if confirmed { "done" } else { "failed" });
        }
        let mark = super::rest::mark_for(&outcome);
        self.conclude_later(outcome);
        self.recover(reason, mark);
    }

    pub(super) fn on_resume(&mut self, reply: oneshot::Sender<Result<(), ReleaseError>>) {
        if self.closing.is_some() {
            let _ = reply.send(Err(ReleaseError::Closing));
            return;
        }
        if self.shared.control.is_stopped() {
            let _ = reply.send(Err(ReleaseError::StoppedAgain));
            return;
        }
        if self.shared.control.is_held() {
            // The other lock is still on; its release will start the worker.
            let _ = reply.send(Ok(()));
            return;
        }
        self.resuming.push(reply);
        match self.worker.as_ref().map(|worker| (&worker.phase, worker.dying.is_some())) {
            None => self.bring_up(),
            Some((Phase::Parked, false)) => self.send_start(),
            Some((Phase::Idle, false)) => self.become_idle(),
            Some(_) => {}
        }
    }
}
