//! The device as the engine needs it, and the acts that concern it as a whole.
//!
//! [`Device`] is a port: `cli` puts the device runtime behind it. The emergency stop never waits for the database.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::action::{ClearAttention, EmergencyStop, ListActions, ReadDevice, ReleaseStop, World};
use interlock_model::device::{Call, Catalogue, DeviceStatus, DeviceStop, Journaled, Outcome, RunEvent};
use interlock_model::{RunId, Timestamp};
use interlock_store::Error;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::Ambient;
use crate::audit::Recorder;
use crate::auth::{Db, Permit, Proof as _, Recorded};
use crate::security::{self, Event};

/// How long an emergency stop waits for its own audit entry once the device is stopped.
const STOP_RECORD_LIMIT: Duration = Duration::from_millis(250);

/// A device that executes actions one at a time.
#[async_trait]
pub trait Device: Send + Sync {
    /// What it offers.
    fn catalogue(&self) -> Arc<Catalogue>;
    /// What its journal knows of a run.
    fn journaled(&self, run: &RunId) -> Journaled;
    /// The ends of these runs are stored here; the journal may drop them.
    fn forget(&self, runs: &[RunId]);
    /// Executes. Dropping the future does not stop a call that was sent.
    async fn call(&self, call: Call) -> Outcome;
    /// Asks a waiting or running call to end; `false` if there is none.
    fn cancel(&self, run: &RunId, reason: &str) -> bool;
    /// Kills, brings to the safe state, latches.
    async fn emergency_stop(&self, by: &str, reason: Option<&str>) -> DeviceStop;
    /// Lets motion through again.
    async fn release(&self, by: &str, reason: &str) -> Result<(), String>;
    /// A person has looked.
    async fn clear_attention(&self, by: &str, reason: &str) -> Result<(), String>;
    /// As it is now.
    fn status(&self) -> DeviceStatus;
    /// What happens during runs.
    fn events(&self) -> broadcast::Receiver<RunEvent>;
    /// Deletes the files of these runs, if there are any. Blocks for that long.
    ///
    /// # Errors
    /// The file system's; some may be deleted then.
    fn discard(&self, runs: &[RunId]) -> std::io::Result<()>;
    /// Where a file of a run lies.
    fn artifact_path(&self, run: &RunId, name: &str) -> Option<PathBuf>;
}

/// Facts for decisions, from the device's catalogue.
pub struct DeviceWorld {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Its short name.
    pub name: String,
}

impl World for DeviceWorld {
    fn action_role(&self, action: &str) -> Option<String> {
        self.device.catalogue().action(action).map(|action| action.role().to_owned())
    }

    fn device(&self) -> &str {
        &self.name
    }
}

/// Facts of a server that has no device of its own.
#[derive(Debug)]
pub struct NoDevice;

impl World for NoDevice {
    fn action_role(&self, _: &str) -> Option<String> {
        None
    }

    fn device(&self) -> &'static str {
        ""
    }
}

/// Why a device did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It said no; the text is for people.
    #[error("{0}")]
    Refused(String),
    /// The act could not be recorded, so it was not done.
    #[error("record the act")]
    Store(#[from] Error),
}

/// What an emergency stop did.
#[derive(Debug)]
pub struct Stopped {
    /// The device's report.
    pub device: DeviceStop,
    /// When it was called.
    pub at: Timestamp,
    /// Whether the audit entry is durable already; if not, it is being retried.
    pub recorded: bool,
}

/// Use cases on the device as a whole.
#[derive(Clone)]
pub struct Devices {
    device: Arc<dyn Device>,
    db: Db,
    ambient: Ambient,
    recorder: Recorder,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Devices")
    }
}

impl Devices {
    /// Wires the parts.
    pub fn new(device: Arc<dyn Device>, db: Db, ambient: Ambient, recorder: Recorder) -> Self {
        Self { device, db, ambient, recorder }
    }

    /// What the device offers.
    pub fn catalogue(&self, _permit: &Permit<ListActions>) -> Arc<Catalogue> {
        self.device.catalogue()
    }

    /// How many actions there are: no secret, part of the health answer.
    pub fn action_count(&self) -> usize {
        self.device.catalogue().actions().len()
    }

    /// Short name of the device: no secret to whoever may list its actions.
    pub fn name(&self) -> String {
        self.device.status().name
    }

    /// The device as it is now.
    pub fn status(&self, _permit: &Permit<ReadDevice>) -> DeviceStatus {
        self.device.status()
    }

    /// Whether the device can take calls, for the readiness probe.
    pub fn is_serving(&self) -> bool {
        !matches!(self.device.status().state.as_str(), "unavailable" | "starting")
    }

    /// Stops everything: kill, safe state, latch. Nothing waits for the database before the device is stopped.
    pub async fn emergency_stop(&self, permit: &Permit<EmergencyStop>, reason: Option<String>) -> Stopped {
        let at = self.ambient.clock.now();
        let caller = permit.caller();
        let device = self.device.emergency_stop(caller.name(), reason.as_deref()).await;
        metrics::gauge!("device_emergency_stop_engaged").set(1.0);
        security::event(
            Event::EmergencyStop,
            Some(caller.name()),
            Some(caller.origin()),
            json!({
                "engaged": true, "confirmed": device.confirmed, "reason": reason,
            }),
        );
        let details = json!({
            "engaged": true, "reason": reason, "confirmed": device.confirmed, "killed_ms": device.killed_ms,
            "safe_state": device.safe_state, "safe_state_entered_ms": device.safe_state_entered_ms,
            "cancelled_run": device.cancelled_run,
        });
        let recorded = tokio::time::timeout(STOP_RECORD_LIMIT, self.record(permit, details.clone())).await;
        let recorded = matches!(recorded, Ok(Ok(())));
        if !recorded {
            // Not lost: the recorder keeps trying. The stop itself never waits.
            self.recorder.record(permit.draft(at, details));
            permit.mark_recorded();
        }
        Stopped { device, at, recorded }
    }

    /// Lets motion through again. On record before it happens.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn release(&self, permit: &Permit<ReleaseStop>, reason: &str) -> Result<(), DeviceError> {
        self.record(permit, json!({ "phase": "intent", "reason": reason })).await?;
        let done = self.device.release(permit.caller().name(), reason).await;
        if done.is_ok() {
            metrics::gauge!("device_emergency_stop_engaged").set(0.0);
            let caller = permit.caller();
            security::event(
                Event::EmergencyStop,
                Some(caller.name()),
                Some(caller.origin()),
                json!({ "engaged": false, "reason": reason }),
            );
        }
        self.record_outcome(permit, done.is_ok()).await;
        done.map_err(DeviceError::Refused)
    }

    /// Records that a person has looked at the device, and lets calls through again.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn clear_attention(
        &self,
        permit: &Permit<ClearAttention>,
        reason: &str,
    ) -> Result<(), DeviceError> {
        self.record(permit, json!({ "phase": "intent", "reason": reason })).await?;
        let done = self.device.clear_attention(permit.caller().name(), reason).await;
        self.record_outcome(permit, done.is_ok()).await;
        done.map_err(DeviceError::Refused)
    }

    /// What was done is told even when its record must wait: the recorder keeps trying.
    async fn record_outcome<A: interlock_model::action::Action>(&self, permit: &Permit<A>, done: bool) {
        let details = json!({ "phase": "outcome", "done": done });
        if let Err(error) = self.record(permit, details.clone()).await {
            security::event(Event::AuditFailed, None, None, json!({ "reason": error.to_string() }));
            self.recorder.record(permit.draft(self.ambient.clock.now(), details));
        }
    }

    async fn record<A: interlock_model::action::Action>(
        &self,
        permit: &Permit<A>,
        details: Value,
    ) -> Result<(), Error> {
        self.db
            .write(permit, move |_| Box::pin(async move { Ok::<_, Error>(Recorded { value: (), details }) }))
            .await
    }
}
