//! Calls: waiting, armed, sent, ended.
//!
//! Answers for the order of things: armed on disk, marked as sent, then the line to the worker; recorded, then told to the
//! caller. A call that waits can always still be refused; one that was sent never is.

use interlock_model::RunId;
use interlock_model::device::{EventKind, NotStarted, Outcome, Rung, hide};
use interlock_model::run::RunState;
use std::sync::Arc;
use tokio::time::Instant;

use super::ladder::Why;
use super::{FAR, Phase, Running, Supervisor, Waiting};
use crate::artifacts;
use crate::journal::{JournalEvent, SentError};
use crate::shared::{Activity, Queued};
use crate::wire::{Message, Reason};

impl Supervisor {
    pub(super) fn on_call(&mut self, mut queued: Queued) {
        let refused = if self.closing.is_some() {
            Some(NotStarted::HostStopped)
        } else if self.shared.control.is_stopped() {
            Some(NotStarted::EmergencyStop)
        } else if self.shared.control.is_held() {
            Some(NotStarted::NeedsAttention)
        } else if queued.armed.is_none() && self.shared.journal.is_broken() {
            Some(NotStarted::JournalFailed)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.shared.refuse(queued.run, reason);
            return;
        }
        let number = match queued.armed.take() {
            Some(line) => {
                self.armed += 1;
                if !self.shared.journal.arm(queued.run, line, self.armed) {
                    self.shared.refuse(queued.run, NotStarted::JournalFailed);
                    return;
                }
                self.armed
            }
            None => 0,
        };
        self.queue.push_back(Waiting { queued, number });
    }

    pub(super) fn on_withdraw(&mut self, run: RunId) {
        if let Some(at) = self.queue.iter().position(|waiting| waiting.queued.run == run)
            && !self.shared.is_wanted(run)
        {
            self.refuse_at(at, NotStarted::Cancelled);
        }
    }

    pub(super) fn on_journal(&mut self, event: &JournalEvent) {
        match *event {
            JournalEvent::Armed { through } => self.armed_through = self.armed_through.max(through),
            JournalEvent::ArmFailed { from, through } => {
                let failed = |waiting: &Waiting| (from..=through).contains(&waiting.number);
                while let Some(at) = self.queue.iter().position(failed) {
                    self.refuse_at(at, NotStarted::JournalFailed);
                }
            }
            JournalEvent::FinishLost(run) => {
                self.mark(
                    &format!("the end of {run} could not be written to the journal; look at the disk"),
                    false,
                );
            }
            JournalEvent::Resumed => self.journal_busy = false,
        }
    }

    /// Sends the next call, if the worker is free and nothing forbids it.
    pub(super) fn pump(&mut self) {
        while !self.queue.is_empty()
            && !self.journal_busy
            && self.closing.is_none()
            && self.worker.as_ref().is_some_and(|worker| {
                matches!(worker.phase, Phase::Idle) && worker.dying.is_none() && worker.proc.is_flushed()
            })
            && !self.is_parked()
        {
            if self.queue[0].number > self.armed_through {
                return;
            }
            let run = self.queue[0].queued.run;
            if self.shared.journal.is_broken() {
                // Its end could not be recorded.
                self.refuse_at(0, NotStarted::JournalFailed);
                continue;
            }
            if !self.shared.is_wanted(run) {
                self.refuse_at(0, NotStarted::Cancelled);
                continue;
            }
            match self.shared.journal.mark_sent(run) {
                Ok(()) => {}
                Err(SentError::Wait) => {
                    self.journal_busy = true;
                    return;
                }
                Err(SentError::Io(error)) => {
                    tracing::error!(%error, run.id = %run, "the journal cannot be written; the call is not sent");
                    self.queue[0].number = self.queue[0].number.max(1);
                    self.refuse_at(0, NotStarted::JournalFailed);
                    continue;
                }
            }
            let Some(waiting) = self.queue.pop_front() else { return };
            self.send_call(waiting.queued);
        }
    }

    fn send_call(&mut self, queued: Queued) {
        let Some(worker) = &mut self.worker else { return };
        self.secrets = queued.secrets;
        let now = Instant::now();
        let deadline = now.checked_add(queued.timeout).unwrap_or(now + FAR * 365);
        self.shared.reset_events();
        self.running = Some(Running { run: queued.run, deadline, climb: None, artifacts: 0 });
        worker.phase = Phase::Busy;
        worker.proc.send(&queued.line);
        {
            let mut view = self.shared.view();
            view.running = Some(queued.run);
            view.activity = Activity::Busy;
        }
        self.shared.emit(queued.run, EventKind::State { state: RunState::Running });
    }

    /// Refuses a waiting call, and records that if it was armed.
    fn refuse_at(&mut self, at: usize, reason: NotStarted) {
        let Some(waiting) = self.queue.remove(at) else { return };
        let run = waiting.queued.run;
        if waiting.number > 0 {
            self.shared.journal.withdraw(run, Outcome::NotStarted { reason });
        }
        self.shared.refuse(run, reason);
    }

    pub(super) fn refuse_waiting(&mut self, reason: NotStarted) {
        while !self.queue.is_empty() {
            self.refuse_at(0, reason);
        }
    }

    /// Refuses the waiting call of this run, if there is one.
    pub(super) fn refuse_run(&mut self, run: RunId, reason: NotStarted) -> bool {
        let at = self.queue.iter().position(|waiting| waiting.queued.run == run);
        if let Some(at) = at {
            self.refuse_at(at, reason);
        }
        at.is_some()
    }

    pub(super) fn expire_waiting(&mut self, now: Instant) {
        let missing = match &self.worker {
            None => true,
            Some(worker) => {
                matches!(worker.phase, Phase::Loading { .. } | Phase::Starting { .. } | Phase::Parked)
            }
        };
        let reason = if missing { NotStarted::Unavailable } else { NotStarted::Busy };
        let late = |waiting: &Waiting| waiting.queued.expires.is_some_and(|at| at <= now);
        while let Some(at) = self.queue.iter().position(late) {
            self.refuse_at(at, reason);
        }
    }

    pub(super) fn on_printed(&mut self, mut line: String) {
        hide(&mut line, &self.secrets);
        let run =
            self.running.as_ref().map(|running| running.run).or(self.gate.as_ref().map(|gate| gate.run));
        if let Some(worker) = self.worker.as_mut().filter(|worker| !matches!(worker.phase, Phase::Busy)) {
            if worker.tail.len() == super::TAIL {
                worker.tail.pop_front();
            }
            worker.tail.push_back(line.clone());
        }
        if let Some(run) = run {
            self.shared.emit_counted(run, || EventKind::Log { level: "info".to_owned(), message: line });
        } else {
            tracing::info!(device.name = self.shared.config.name, worker.output = line, "worker");
        }
    }

    /// Progress, log, metric or artifact of the running call. What belongs to another run is dropped.
    pub(super) fn on_news(&mut self, message: Message) {
        let current = self.running.as_ref().map(|running| running.run);
        match message {
            Message::Progress { run, current: done, total, mut message } if current == Some(run) => {
                if let Some(message) = &mut message {
                    hide(message, &self.secrets);
                }
                self.shared.emit_counted(run, || EventKind::Progress { current: done, total, message });
            }
            Message::Metric { run, name, value, unit, labels } if current == Some(run) => {
                self.shared.emit_counted(run, || EventKind::Metric { name, value, unit, labels });
            }
            Message::Log { run: Some(run), level, mut message } if current == Some(run) => {
                hide(&mut message, &self.secrets);
                let level = match level.as_str() {
                    "debug" | "warning" | "error" => level,
                    _ => "info".to_owned(),
                };
                let message = shortened(message, self.shared.config.limits.log_line_bytes);
                self.shared.emit_counted(run, || EventKind::Log { level, message });
            }
            Message::Log { run: None, message, .. } => {
                let message = shortened(message, self.shared.config.limits.log_line_bytes);
                self.on_printed(message);
            }
            Message::Artifact { run, name, media_type, path, .. } if current == Some(run) => {
                self.on_artifact(run, name, media_type, &path);
            }
            _ => {}
        }
    }

    fn on_artifact(&mut self, run: RunId, name: String, media_type: String, path: &str) {
        let Some(running) = self.running.as_mut() else { return };
        running.artifacts += 1;
        let kept = if running.artifacts > artifacts::PER_RUN {
            Err(format!("a run may have {} artifacts", artifacts::PER_RUN))
        } else {
            self.shared.artifacts.keep(run, &name, path, self.shared.config.limits.artifact_bytes)
        };
        match kept {
            Ok(bytes) => self.shared.emit(run, EventKind::Artifact { name, media_type, bytes }),
            Err(problem) => {
                let message = format!("the artifact {name:?} is not kept: {problem}");
                self.shared.emit_counted(run, || EventKind::Log { level: "error".to_owned(), message });
            }
        }
    }

    /// The worker says how the running call ended.
    pub(super) fn on_end(&mut self, message: Message) {
        let Some((outcome, reason)) = self.judge(message) else { return };
        let lines = self.worker.as_mut().map(|worker| worker.proc.printed()).unwrap_or_default();
        for line in lines {
            self.on_printed(line);
        }
        self.retry.failures = 0;
        self.end_rung("done");
        match reason.filter(|_| self.has_safe_state) {
            None => {
                if reason.is_some() {
                    self.rung(Rung::SafeState, "none", 0.0);
                }
                self.conclude(outcome);
                self.become_idle();
            }
            Some(reason) => {
                let mark = super::rest::mark_for(&outcome);
                self.conclude_later(outcome);
                self.rest_here(reason, mark);
            }
        }
    }

    /// What the worker's last message about the running call means, and why the device must come to rest, if it must.
    pub(super) fn judge(&self, message: Message) -> Option<(Outcome, Option<Reason>)> {
        let running = self.running.as_ref()?;
        let climb = running.climb.as_ref();
        let asked = climb.map(|climb| climb.why.reason());
        let why = climb.map_or(Why::Cancelled, |climb| climb.why);
        match message {
            Message::Returned { run, result, duration_ms } if run == running.run => {
                Some((Outcome::Returned { result, duration_ms }, None))
            }
            Message::Raised { run, mut error, duration_ms } if run == running.run => {
                error.hide(&self.secrets);
                // What is raised right after an interrupt is the interrupt, in the words of some library.
                if climb.is_some_and(|climb| climb.rung == Rung::Interrupt) {
                    return Some((why.outcome(Rung::Interrupt), asked));
                }
                Some((Outcome::Raised { error, duration_ms }, asked))
            }
            Message::Cancelled { run, rung } if run == running.run => {
                Some((why.outcome(rung), Some(why.reason())))
            }
            _ => None,
        }
    }

    /// Records the outcome of the running call and answers when it is on disk.
    pub(super) fn conclude(&mut self, outcome: Outcome) {
        let Some(running) = self.running.take() else { return };
        self.shared.view().running = None;
        let shared = Arc::clone(&self.shared);
        let reply = move |outcome, _| shared.answer(running.run, outcome);
        self.shared.journal.finish(running.run, outcome, Box::new(reply));
    }

    /// Records the outcome of the running call now, and answers when the device is at rest as well.
    pub(super) fn conclude_later(&mut self, outcome: Outcome) {
        let Some(running) = self.running.take() else { return };
        let gate = self.shared.gate(running.run);
        self.gate = Some(Arc::clone(&gate));
        let reply = move |outcome, _| gate.put(outcome);
        self.shared.journal.finish(running.run, outcome, Box::new(reply));
    }
}

/// At most `longest` bytes, cut between characters.
fn shortened(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
