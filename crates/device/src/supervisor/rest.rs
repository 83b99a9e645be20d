//! Bringing the device to rest: the safe-state hook in the living worker or in the standby, and the emergency stop.
//!
//! Never kills: by the time a stop arrives here its caller has sent SIGKILL already. What this module adds is knowing that it
//! worked, running the hook, and saying so truthfully.

use interlock_model::device::{DeviceStop, Outcome, Rung, WorkerError};
use interlock_model::RunId;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::ladder::millis;
use super::{Phase, Supervisor};
use crate::shared::{Activity, Stop};
use crate::wire::{self, Message, Ready, Reason, Role};
use interlock_model::device::NotStarted;

/// On top of the hook's own time, an emergency stop is answered within this.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// An answer to a stop waits this long for the latch to be on disk.
const SAVE_WAIT: Duration = Duration::from_secs(2);

/// A safe state in the making.
pub(super) struct Rest {
    why: Reason,
    /// In a process that took over, not in the one that ran the call.
    promoted: bool,
    begun: Instant,
    /// When the hook was asked for; before that the process is loading.
    asked: Option<Instant>,
    entered: Option<Instant>,
    pub(super) deadline: Instant,
    /// What to tell people although it went well.
    mark: Option<String>,
    /// A second process is tried once.
    retried: bool,
    test: Option<(Instant, oneshot::Sender<DeviceStop>)>,
}

impl Rest {
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }
}

/// An emergency stop that is being carried out.
pub(super) struct StopRun {
    pub(super) requests: Vec<Stop>,
    /// When the worker's process group was known to be dead.
    pub(super) killed: Option<Instant>,
    entered: Option<Instant>,
    done: Option<Instant>,
    safe_state: &'static str,
    run: Option<RunId>,
    pub(super) answer_by: Instant,
}

/// How the last safe state went: a stop whose message is late finds its answer here.
pub(super) struct LastRest {
    entered: Option<Instant>,
    ended: Instant,
    outcome: &'static str,
    problem: Option<String>,
}

/// Why a person should look although the hook went well.
pub(super) fn mark_for(outcome: &Outcome) -> Option<String> {
    let text = match outcome {
        Outcome::TimedOut { .. } => "an action did not end in time and was stopped",
        Outcome::Crashed { .. } => "the device's process died during an action",
        Outcome::Uncertain { .. } => "nobody knows how an action ended",
        _ => return None,
    };
    Some(text.to_owned())
}

fn since(from: Instant, to: Option<Instant>) -> Option<f64> {
    to.map(|to| millis(to.saturating_duration_since(from)))
}

impl Supervisor {
    /// After a death: safe state in another process if the file has a hook, and a worker again in any case.
    pub(super) fn recover(&mut self, why: Reason, mark: Option<String>) {
        let quick = self.standby.is_some() && !self.is_parked();
        if self.has_safe_state || (quick && self.closing.is_none()) {
            let now = Instant::now();
            self.promote(Rest {
                why,
                promoted: true,
                begun: now,
                asked: None,
                entered: None,
                deadline: now,
                mark,
                retried: false,
                test: None,
            });
            return;
        }
        self.rung(Rung::SafeState, "none", 0.0);
        if let Some(mark) = mark {
            self.mark(&mark, false);
        }
        self.open_gate();
        self.answer_stop(None);
        self.bring_up();
    }

    /// Makes the standby, or a process started now, the worker by way of the safe-state hook.
    fn promote(&mut self, mut rest: Rest) {
        if self.gate.is_none() {
            self.show(Activity::Starting);
        }
        let (proc, ready) = match self.standby.take() {
            Some(standby) => (standby.proc, standby.ready),
            None => match self.spawn(Role::Standby) {
                Ok(proc) => (proc, None),
                Err(error) => return self.settle(rest, Err(format!("no process could be started: {error}")), false),
            },
        };
        self.shared.view().worker.standby = false;
        rest.promoted = true;
        rest.asked = None;
        rest.entered = None;
        rest.deadline = Instant::now() + self.shared.config.load_deadline;
        self.adopt(proc, Phase::Rest(rest));
        if let Some(ready) = ready {
            self.begin_rest(*ready);
        }
    }

    /// The process that takes over has loaded the file.
    pub(super) fn begin_rest(&mut self, ready: Ready) {
        if let Err(error) = self.accept(ready) {
            return self.fail_start(error);
        }
        let now = Instant::now();
        let opens = self.shared.catalogue().declarations.has_on_start;
        let start = if opens { self.shared.config.start_deadline } else { Duration::ZERO };
        let Some(worker) = &mut self.worker else { return };
        let Phase::Rest(rest) = &mut worker.phase else { return };
        rest.asked = Some(now);
        rest.deadline = now + self.shared.config.ladder.safe_state + start;
        worker.proc.send(&wire::safe_state(rest.why));
        let took = millis(now.saturating_duration_since(rest.begun));
        self.rung(Rung::Restart, "done", took);
    }

    /// Runs the hook in the worker that lives.
    pub(super) fn rest_here(&mut self, why: Reason, mark: Option<String>) {
        self.rest_with(why, mark, None);
    }

    fn rest_with(&mut self, why: Reason, mark: Option<String>, test: Option<(Instant, oneshot::Sender<DeviceStop>)>) {
        let now = Instant::now();
        let deadline = now + self.shared.config.ladder.safe_state;
        let Some(worker) = &mut self.worker else { return };
        worker.phase = Phase::Rest(Rest {
            why,
            promoted: false,
            begun: now,
            asked: Some(now),
            entered: None,
            deadline,
            mark,
            retried: false,
            test,
        });
        worker.proc.send(&wire::safe_state(why));
    }

    fn rest(&mut self) -> Option<&mut Rest> {
        match &mut self.worker.as_mut()?.phase {
            Phase::Rest(rest) => Some(rest),
            _ => None,
        }
    }

    /// Whether the hook is running because of a stop.
    pub(super) fn is_stop_rest(&self) -> bool {
        let resting = matches!(self.worker.as_ref().map(|worker| &worker.phase), Some(Phase::Rest(_)));
        resting && self.shared.control.is_stopped()
    }

    pub(super) fn on_rest_entered(&mut self) {
        let now = Instant::now();
        let Some(rest) = self.rest() else { return };
        rest.entered.get_or_insert(now);
        if let Some(stop) = &mut self.stop {
            stop.entered.get_or_insert(now);
            stop.safe_state = "entered";
        }
    }

    pub(super) fn on_rest_done(&mut self, ok: bool, error: Option<WorkerError>) {
        let Some(rest) = self.take_rest() else { return };
        let result = if ok { Ok(()) } else { Err(told(error)) };
        self.settle(rest, result, true);
    }

    /// The hook has not ended in time.
    pub(super) fn on_rest_late(&mut self) {
        let seconds = self.shared.config.ladder.safe_state.as_secs_f64();
        let Some(rest) = self.rest() else { return };
        let text = if rest.is_asked() {
            format!("the safe-state hook did not end within {seconds} s")
        } else {
            "the program that holds the safe-state hook was not loaded in time".to_owned()
        };
        // No second try: a hook that hangs once hangs again, and time matters.
        rest.retried = true;
        self.kill_worker(Some(text));
    }

    fn take_rest(&mut self) -> Option<Rest> {
        let worker = self.worker.as_mut()?;
        match std::mem::replace(&mut worker.phase, Phase::Idle) {
            Phase::Rest(rest) => Some(rest),
            other => {
                worker.phase = other;
                None
            }
        }
    }

    /// The process died while it brought the device to rest.
    pub(super) fn on_dead_resting(&mut self, mut rest: Rest, words: &[Message], how: &str) {
        let last = words.iter().find_map(|message| match message {
            Message::SafeStateDone { ok, error } => Some((*ok, error.clone())),
            _ => None,
        });
        if let Some((ok, error)) = last {
            return self.settle(rest, if ok { Ok(()) } else { Err(told(error)) }, false);
        }
        let stopped = self.shared.control.is_stopped();
        let again = !rest.retried && (rest.entered.is_none() || !rest.promoted);
        if !again {
            return self.settle(rest, Err(how.to_owned()), false);
        }
        rest.retried = rest.promoted;
        if stopped {
            rest.why = Reason::EmergencyStop;
        }
        self.promote(rest);
    }

    /// The device is at rest, or it could not be brought there.
    fn settle(&mut self, rest: Rest, result: Result<(), String>, alive: bool) {
        let now = Instant::now();
        let outcome = if !self.has_safe_state {
            "none"
        } else if result.is_ok() {
            "done"
        } else {
            "failed"
        };
        self.rung(Rung::SafeState, outcome, millis(now.saturating_duration_since(rest.asked.unwrap_or(rest.begun))));
        let problem = result.err();
        match &problem {
            Some(problem) => self.mark(&format!("the device could not be brought to its safe state: {problem}"), true),
            None => {
                if rest.why == Reason::HostLost {
                    self.settle_due();
                }
                if let Some(mark) = &rest.mark {
                    self.mark(mark, false);
                }
            }
        }
        self.open_gate();
        self.last_rest = Some(LastRest { entered: rest.entered, ended: now, outcome, problem: problem.clone() });
        if let Some(stop) = &mut self.stop {
            if stop.entered.is_none() {
                stop.entered = rest.entered;
            }
            stop.safe_state = outcome;
            stop.done = problem.is_none().then_some(now);
            self.answer_stop(problem.clone());
        }
        if let Some((at, reply)) = rest.test {
            let _ = reply.send(DeviceStop {
                name: self.shared.config.name.clone(),
                confirmed: problem.is_none(),
                killed_ms: None,
                safe_state: outcome.to_owned(),
                safe_state_entered_ms: since(at, rest.entered),
                safe_state_done_ms: problem.is_none().then(|| millis(now.saturating_duration_since(at))),
                error: problem,
                cancelled_run: None,
            });
        }
        if !alive {
            return self.bring_up();
        }
        if let Some(worker) = &mut self.worker {
            worker.proc.set_exempt(false);
            worker.proc.set_spare_on_drop(false);
        }
        self.become_idle();
    }

    /// The hook that an earlier host's end made necessary has run.
    pub(super) fn settle_due(&mut self) {
        self.due = false;
        self.shared.control.set_due(false);
        self.save_control();
    }

    fn open_gate(&mut self) {
        if let Some(gate) = self.gate.take() {
            self.shared.view().running = None;
            gate.open();
        }
    }

    pub(super) fn on_test(&mut self, at: Instant, reply: oneshot::Sender<DeviceStop>) {
        let idle = matches!(self.worker.as_ref().map(|worker| &worker.phase), Some(Phase::Idle));
        if idle && !self.is_parked() && self.closing.is_none() {
            self.rest_with(Reason::Test, None, Some((at, reply)));
            return;
        }
        let _ = reply.send(DeviceStop {
            name: self.shared.config.name.clone(),
            confirmed: false,
            killed_ms: None,
            safe_state: "none".to_owned(),
            safe_state_entered_ms: None,
            safe_state_done_ms: None,
            error: Some("the device is not idle; nothing was tried".to_owned()),
            cancelled_run: None,
        });
    }

    // Emergency stop

    /// The kill has been sent. Find out whether it worked, and bring the device to rest.
    pub(super) fn on_stop(&mut self, stop: Stop) {
        self.refuse_waiting(NotStarted::EmergencyStop);
        for resuming in self.resuming.drain(..) {
            let _ = resuming.send(Err(crate::ReleaseError::StoppedAgain));
        }
        if let Some(running_stop) = &mut self.stop {
            running_stop.requests.push(stop);
            return;
        }
        let at = stop.at;
        let run = self.stopped_run.take().or(self.running.as_ref().map(|running| running.run));
        self.stop = Some(StopRun {
            requests: vec![stop],
            killed: None,
            entered: None,
            done: None,
            safe_state: "none",
            run,
            answer_by: Instant::now() + self.shared.config.ladder.safe_state + ANSWER_MARGIN,
        });
        let rested = self.last_rest.as_ref().is_some_and(|last| last.ended >= at);
        let dead_already = self.last_death.is_some_and(|death| death >= at);
        let Some(worker) = &self.worker else {
            // Nothing lives: nothing can act.
            self.killed_now(at);
            return self.recover(Reason::EmergencyStop, None);
        };
        match &worker.phase {
            Phase::Rest(rest) if rest.promoted && worker.dying.is_none() => {
                // The process that could act is dead; this one is bringing the device to rest.
                let entered = rest.entered;
                self.killed_now(at);
                if let Some(stop) = &mut self.stop {
                    stop.entered = entered;
                    stop.safe_state = if entered.is_some() { "entered" } else { "none" };
                }
            }
            _ if worker.born >= at && dead_already && (rested || !self.has_safe_state) => {
                // All was done before this message came; the present worker was never able to act.
                self.killed_now(at);
                let last = self.last_rest.take().filter(|last| last.ended >= at);
                if let (Some(stop), Some(last)) = (&mut self.stop, &last) {
                    stop.entered = last.entered;
                    stop.done = last.problem.is_none().then_some(last.ended);
                    stop.safe_state = last.outcome;
                }
                self.answer_stop(last.and_then(|last| last.problem));
            }
            _ => self.kill_worker(None),
        }
    }

    fn killed_now(&mut self, at: Instant) {
        let killed = self.last_death.filter(|death| *death >= at).unwrap_or_else(Instant::now);
        if let Some(stop) = &mut self.stop {
            stop.killed = Some(killed);
        }
    }

    /// Answers everyone who asked for the stop, once the latch is on disk or cannot be.
    pub(super) fn answer_stop(&mut self, problem: Option<String>) {
        let Some(stop) = self.stop.take() else { return };
        self.stopped_run = None;
        let hook = self.has_safe_state;
        let reached = stop.safe_state == "done" || !hook;
        let problem = match (problem, stop.killed) {
            (Some(problem), _) => Some(problem),
            (None, None) => Some("the device's process is not known to be dead".to_owned()),
            (None, Some(_)) => None,
        };
        let safe_state = if hook && stop.safe_state == "none" { "failed" } else { stop.safe_state };
        let report = DeviceStop {
            name: self.shared.config.name.clone(),
            confirmed: stop.killed.is_some() && reached,
            killed_ms: None,
            safe_state: if hook { safe_state } else { "none" }.to_owned(),
            safe_state_entered_ms: None,
            safe_state_done_ms: None,
            error: problem,
            cancelled_run: stop.run,
        };
        self.tracker.spawn(async move {
            for Stop { at, reply, saved } in stop.requests {
                let unsaved = match timeout(SAVE_WAIT, saved).await {
                    Ok(Ok(Ok(()))) => None,
                    Ok(Ok(Err(error))) => Some(error.to_string()),
                    Ok(Err(_)) | Err(_) => Some("the disk does not answer".to_owned()),
                };
                let unsaved = unsaved.map(|error| {
                    format!("the stop is in force, but it is not on disk and would be lost in a restart: {error}")
                });
                let errors: Vec<String> = report.error.iter().chain(&unsaved).cloned().collect();
                let _ = reply.send(DeviceStop {
                    killed_ms: since(at, stop.killed),
                    safe_state_entered_ms: since(at, stop.entered.filter(|_| hook)),
                    safe_state_done_ms: since(at, stop.done.filter(|_| hook)),
                    error: (!errors.is_empty()).then(|| errors.join("; ")),
                    ..report.clone()
                });
            }
        });
    }
}

/// A hook's error as it may be shown: its text only if the author allowed that.
fn told(error: Option<WorkerError>) -> String {
    let Some(error) = error else { return "the hook failed".to_owned() };
    tracing::error!(
        error.class = error.class,
        error.message = error.message,
        error.traceback = error.traceback.as_deref().unwrap_or(""),
        "the safe-state hook failed"
    );
    let text = if error.public { format!("{}: {}", error.class, error.message) } else { error.class };
    format!("the hook failed ({text})")
}
