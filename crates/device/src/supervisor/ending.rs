//! The end of the host: a call may finish, then every process leaves and everyone who waits is told.

use std::time::Duration;

use interlock_model::device::{NotStarted, Outcome, Rung};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{Closing, KILL_WAIT, Phase, Supervisor};
use crate::error::ReleaseError;
use crate::wire;

impl Supervisor {
    pub(super) fn on_shutdown(&mut self, grace: Duration, reply: Option<oneshot::Sender<()>>) {
        self.refuse_waiting(NotStarted::HostStopped);
        for resuming in self.resuming.drain(..) {
            let _ = resuming.send(Err(ReleaseError::Closing));
        }
        let now = Instant::now();
        let until = now.checked_add(grace).unwrap_or(now + super::FAR);
        self.closing = Some(Closing { reply, until, stopping: false });
    }

    /// The grace is over.
    pub(super) fn close_now(&mut self, now: Instant) {
        let ladder = self.shared.config.ladder;
        let Some(closing) = &mut self.closing else { return };
        if std::mem::replace(&mut closing.stopping, true) {
            self.ended = true;
            return;
        }
        // Time for every rung, the kill and the hook; after that nothing more can be done.
        closing.until = now + ladder.checkpoint + ladder.interrupt + KILL_WAIT + ladder.safe_state * 2;
        self.begin_climb(super::ladder::Why::Cancelled, "the server is shutting down", now);
    }

    /// Whether a host that shuts down has nothing left to wait for.
    pub(super) fn may_end(&self) -> bool {
        let at_rest =
            !matches!(self.worker.as_ref().map(|worker| &worker.phase), Some(Phase::Busy | Phase::Rest(_)));
        self.closing.is_some() && self.running.is_none() && self.stop.is_none() && at_rest
    }

    /// Ends processes, tells everyone who still waits, writes what is to be written.
    pub(super) async fn finish(mut self) {
        self.commands.close();
        self.refuse_waiting(NotStarted::HostStopped);
        let mut procs = Vec::new();
        // The standby first: an end of its commands without `exit` would mean that the host is lost.
        procs.extend(self.standby.take().map(|standby| standby.proc));
        if let Some(worker) = self.worker.take() {
            if matches!(
                worker.phase,
                Phase::Busy | Phase::Rest(_) | Phase::Loading { .. } | Phase::Starting { .. }
            ) {
                worker.proc.kill();
            }
            procs.push(worker.proc);
        }
        for proc in &mut procs {
            proc.send(&wire::exit());
        }
        let patience = Instant::now() + Duration::from_secs(2);
        for mut proc in procs {
            let left = patience.saturating_duration_since(Instant::now());
            if timeout(left, async {
                proc.flushed().await;
                proc.died().await;
            })
            .await
            .is_err()
            {
                proc.kill();
                let _ = timeout(Duration::from_secs(1), proc.died()).await;
            }
            proc.reap();
        }
        if self.running.is_some() {
            self.conclude(Outcome::Cancelled { rung: Rung::Kill });
        }
        if let Some(gate) = self.gate.take() {
            gate.open();
        }
        self.answer_stop(Some("the host is shutting down".to_owned()));
        self.tracker.close();
        let _ = timeout(Duration::from_secs(5), self.tracker.wait()).await;
        let shared = std::sync::Arc::clone(&self.shared);
        let _ = tokio::task::spawn_blocking(move || shared.journal.close()).await;
        self.shared.abandon_calls();
        if let Some(reply) = self.closing.take().and_then(|closing| closing.reply) {
            let _ = reply.send(());
        }
    }
}

impl Drop for Supervisor {
    /// Whatever ends this task, nobody waits for it any longer.
    fn drop(&mut self) {
        self.shared.abandon_calls();
    }
}
