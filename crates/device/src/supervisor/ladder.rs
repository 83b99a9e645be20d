//! The cancel ladder: ask at a checkpoint, interrupt, kill. Each rung is timed and told.
//!
//! Climbs for a cancel and for a timeout alike. What follows the last rung is in [`super::life`] and [`super::rest`].

use std::time::Duration;

use interlock_model::RunId;
use interlock_model::device::{EventKind, NotStarted, Outcome, Rung};
use tokio::time::Instant;

use super::Supervisor;
use crate::wire::{self, Reason};

/// Why a call is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Cancelled,
    TimedOut,
}

impl Why {
    pub(super) const fn outcome(self, rung: Rung) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled { rung },
            Self::TimedOut => Outcome::TimedOut { rung },
        }
    }

    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Cancelled => Reason::Cancelled,
            Self::TimedOut => Reason::TimedOut,
        }
    }
}

/// Where on the ladder a call is.
pub(super) struct Climb {
    pub(super) why: Why,
    pub(super) rung: Rung,
    since: Instant,
    /// When the next rung is due.
    pub(super) next: Instant,
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Supervisor {
    pub(super) fn on_cancel(&mut self, run: RunId, reason: &str) {
        if self.refuse_run(run, NotStarted::Cancelled) {
            return;
        }
        if self.running.as_ref().is_some_and(|running| running.run == run) {
            self.begin_climb(Why::Cancelled, reason, Instant::now());
        }
    }

    pub(super) fn begin_climb(&mut self, why: Why, reason: &str, now: Instant) {
        let Some(running) = self.running.as_mut().filter(|running| running.climb.is_none()) else { return };
        let patience = self.shared.config.ladder.checkpoint;
        running.climb = Some(Climb { why, rung: Rung::Checkpoint, since: now, next: now + patience });
        if let Some(worker) = &mut self.worker {
            worker.proc.send(&wire::cancel(running.run, reason));
        }
        self.rung(Rung::Checkpoint, "asked", 0.0);
    }

    /// Takes the next rung if it is due.
    pub(super) fn climb(&mut self, now: Instant) {
        let Some(running) = &self.running else { return };
        let Some(climb) = &running.climb else {
            if running.deadline <= now {
                self.begin_climb(Why::TimedOut, "the deadline has passed", now);
            }
            return;
        };
        if climb.next > now {
            return;
        }
        match climb.rung {
            Rung::Checkpoint => {
                self.end_rung("failed");
                self.step(Rung::Interrupt, now, self.shared.config.ladder.interrupt);
                if let Some(worker) = &self.worker {
                    worker.proc.interrupt();
                }
            }
            Rung::Interrupt => {
                self.end_rung("failed");
                self.step(Rung::Kill, now, super::KILL_WAIT);
                self.kill_worker(None);
            }
            // `kill_worker` has its own deadline; these are not rungs of a climb.
            Rung::Kill | Rung::Restart | Rung::SafeState => {}
        }
    }

    fn step(&mut self, rung: Rung, now: Instant, patience: Duration) {
        if let Some(climb) = self.running.as_mut().and_then(|running| running.climb.as_mut()) {
            climb.rung = rung;
            climb.since = now;
            climb.next = now + patience;
        }
        self.rung(rung, "asked", 0.0);
    }

    /// Tells how the present rung went, if a ladder is being climbed.
    pub(super) fn end_rung(&mut self, outcome: &str) {
        if let Some(climb) = self.running.as_ref().and_then(|running| running.climb.as_ref()) {
            self.rung(climb.rung, outcome, millis(climb.since.elapsed()));
        }
    }

    /// Tells about a rung of the run that is being ended, or has just been.
    pub(super) fn rung(&self, rung: Rung, outcome: &str, duration_ms: f64) {
        let run =
            self.running.as_ref().map(|running| running.run).or(self.gate.as_ref().map(|gate| gate.run));
        if let Some(run) = run {
            self.shared.emit(run, EventKind::Rung { rung, outcome: outcome.to_owned(), duration_ms });
        }
    }
}
