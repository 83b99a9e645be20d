//! The process that waits behind the worker, ready to bring the device to rest.
//!
//! Its failures never reach a call: at worst the next safe state starts from a cold process.

use std::time::Duration;

use tokio::time::Instant;

use super::{Phase, Standby, Supervisor};
use crate::process::Event;
use crate::wire::{self, Message, Role};

impl Supervisor {
    /// Starts a standby if one is wanted and there is something that it could do.
    pub(super) fn start_standby(&mut self) {
        let wanted = self.shared.config.standby && self.has_safe_state;
        if !wanted || self.standby.is_some() || self.closing.is_some() {
            return;
        }
        self.standby_retry.at = None;
        match self.spawn(Role::Standby) {
            Ok(mut proc) => {
                proc.send(&wire::guard(self.worker.as_ref().map(|worker| worker.proc.to_guard())));
                let deadline = Instant::now() + self.shared.config.load_deadline;
                self.standby = Some(Standby { proc, ready: None, deadline });
            }
            Err(error) => {
                tracing::error!(%error, "the standby cannot be started");
                self.standby_retry.fail(Duration::from_secs(1), Duration::from_mins(1));
            }
        }
    }

    pub(super) fn on_standby(&mut self, event: Event) {
        match event {
            Event::Message(Message::Ready(ready)) => {
                if let Some(standby) = &mut self.standby {
                    standby.ready = Some(ready);
                    self.standby_retry.failures = 0;
                    self.shared.view().worker.standby = true;
                }
            }
            Event::Message(Message::LoadFailed(error)) => {
                self.drop_standby(&format!("{}: {}", error.class, error.message));
            }
            Event::Message(_) => {}
            Event::Printed(line) => tracing::debug!(worker.output = line, "standby"),
            Event::Broken(problem) => self.drop_standby(&problem),
            Event::Dead => self.drop_standby("it died"),
        }
    }

    fn drop_standby(&mut self, why: &str) {
        tracing::warn!(reason = why, "the standby is lost");
        self.shared.view().worker.standby = false;
        if let Some(standby) = self.standby.take() {
            standby.proc.kill();
            self.tracker.spawn(standby.proc.bury());
        }
        self.standby_retry.fail(Duration::from_secs(1), Duration::from_mins(1));
    }

    pub(super) fn tend_standby(&mut self, now: Instant) {
        match &self.standby {
            Some(standby) if standby.ready.is_none() && standby.deadline <= now => {
                self.drop_standby("it took too long to load");
            }
            None if self.standby_retry.at.is_some_and(|at| at <= now) => {
                self.standby_retry.at = None;
                if matches!(
                    self.worker.as_ref().map(|worker| &worker.phase),
                    Some(Phase::Idle | Phase::Busy | Phase::Parked)
                ) {
                    self.start_standby();
                }
            }
            _ => {}
        }
    }
}
