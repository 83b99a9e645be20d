//! Bringing the device to rest: the safe-state hook, in the living worker or in the process that takes over.
//!
//! Decides nothing about the run that made it necessary; that run's answer waits behind a gate until the device is at rest.

use std::time::Duration;

use interlock_model::device::{DeviceStop, Outcome, Rung, WorkerError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ladder::millis;
use super::stop::since;
use super::{Phase, Supervisor};
use crate::shared::Activity;
use crate::wire::{self, Message, Ready, Reason, Role};

/// A safe state in the making.
pub(super) struct Rest {
    pub(super) why: Reason,
    /// In a process that took over, not in the one that ran the call.
    pub(super) promoted: bool,
    pub(super) begun: Instant,
    /// When the hook was asked for; before that the process is loading.
    pub(super) asked: Option<Instant>,
    pub(super) entered: Option<Instant>,
    pub(super) deadline: Instant,
    /// What to tell people although it went well.
    pub(super) mark: Option<String>,
    /// A second process is tried once.
    pub(super) retried: bool,
    pub(super) test: Option<(Instant, oneshot::Sender<DeviceStop>)>,
}

impl Rest {
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }
}

/// How the last safe state went: a stop whose message is late finds its answer here.
pub(super) struct LastRest {
    pub(super) entered: Option<Instant>,
    pub(super) ended: Instant,
    pub(super) outcome: &'static str,
    pub(super) problem: Option<String>,
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
                Err(error) => {
                    return self.settle(rest, Err(format!("no process could be started: {error}")), false);
                }
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

    fn rest_with(
        &mut self,
        why: Reason,
        mark: Option<String>,
        test: Option<(Instant, oneshot::Sender<DeviceStop>)>,
    ) {
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
        self.show(Activity::Busy);
    }

    pub(super) fn rest(&mut self) -> Option<&mut Rest> {
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
        if self.worker.as_ref().is_some_and(|worker| worker.dying.is_some()) {
            // Its death comes next and decides; until then nothing is known to be dead.
            return;
        }
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
        self.rung(
            Rung::SafeState,
            outcome,
            millis(now.saturating_duration_since(rest.asked.unwrap_or(rest.begun))),
        );
        let problem = result.err();
        if let Some(problem) = &problem {
            self.mark(&format!("the device could not be brought to its safe state: {problem}"), true);
        } else {
            if rest.why == Reason::HostLost {
                self.settle_due();
            }
            if let Some(mark) = &rest.mark {
                self.mark(mark, false);
            }
        }
        self.open_gate();
        self.last_rest =
            Some(LastRest { entered: rest.entered, ended: now, outcome, problem: problem.clone() });
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
