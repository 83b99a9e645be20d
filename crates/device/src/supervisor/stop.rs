//! The emergency stop, after the kill: finding out whether it worked, and saying so truthfully.
//!
//! Never the first to kill: by the time a stop arrives here its caller has sent SIGKILL already ([`crate::Host`]).

use std::time::Duration;

use interlock_model::RunId;
use interlock_model::device::{DeviceStop, NotStarted};
use tokio::time::{Instant, timeout};

use super::ladder::millis;
use super::{Phase, Supervisor};
use crate::error::ReleaseError;
use crate::shared::Stop;
use crate::wire::Reason;

/// On top of the hook's own time, an emergency stop is answered within this.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// An answer to a stop waits this long for the latch to be on disk.
const SAVE_WAIT: Duration = Duration::from_secs(2);

/// An emergency stop that is being carried out.
pub(super) struct StopRun {
    pub(super) requests: Vec<Stop>,
    /// When the worker's process group was known to be dead.
    pub(super) killed: Option<Instant>,
    pub(super) entered: Option<Instant>,
    pub(super) done: Option<Instant>,
    pub(super) safe_state: &'static str,
    pub(super) run: Option<RunId>,
    pub(super) answer_by: Instant,
}

/// Milliseconds from one moment to another that may not have come.
pub(super) fn since(from: Instant, to: Option<Instant>) -> Option<f64> {
    to.map(|to| millis(to.saturating_duration_since(from)))
}

impl Supervisor {
    /// The kill has been sent. Find out whether it worked, and bring the device to rest.
    pub(super) fn on_stop(&mut self, stop: Stop) {
        self.refuse_waiting(NotStarted::EmergencyStop);
        self.cut_short();
        for resuming in self.resuming.drain(..) {
            let _ = resuming.send(Err(ReleaseError::StoppedAgain));
        }
        if let Some(running_stop) = &mut self.stop {
            running_stop.requests.push(stop);
            return;
        }
        let at = stop.at;
        let run = self.stopped_run.take();
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
            // Nothing of this host lives, and of the one before nothing does after this.
            self.end_predecessor();
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

    /// Kills a safe-state hook that has had its time: whoever stops the device again means that process, too. One that is
    /// within its time is left to bring the device to rest.
    fn cut_short(&mut self) {
        let time = self.shared.config.ladder.safe_state;
        if let Some(rest) = self.rest()
            && rest.asked.is_some_and(|asked| asked.elapsed() > time)
        {
            rest.retried = true;
            self.kill_worker(Some(
                "the device was stopped again while its safe-state hook took too long".to_owned(),
            ));
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
                    format!(
                        "the stop is in force, but it is not on disk and would be lost in a restart: {error}"
                    )
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
