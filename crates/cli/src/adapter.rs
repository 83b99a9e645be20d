//! Puts the device runtime behind the engine's port. The only place that names both.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use interlock_device::Host;
use interlock_engine::devices::Device;
use interlock_model::RunId;
use interlock_model::device::{Call, Catalogue, DeviceStatus, DeviceStop, Journaled, Outcome, RunEvent};
use tokio::sync::broadcast;

/// A device in this process.
pub(crate) struct LocalDevice(pub(crate) Host);

#[async_trait]
impl Device for LocalDevice {
    fn catalogue(&self) -> Arc<Catalogue> {
        self.0.catalogue()
    }

    fn journaled(&self, run: &RunId) -> Journaled {
        self.0.journaled(run)
    }

    fn forget(&self, runs: &[RunId]) {
        self.0.forget(runs);
    }

    async fn call(&self, call: Call) -> Outcome {
        self.0.call(call).await
    }

    fn cancel(&self, run: &RunId, reason: &str) -> bool {
        self.0.cancel(run, reason)
    }

    async fn emergency_stop(&self, by: &str, reason: Option<&str>) -> DeviceStop {
        self.0.emergency_stop(by, reason).await
    }

    async fn release(&self, by: &str, reason: &str) -> Result<(), String> {
        self.0.release(by, reason).await.map_err(|error| error.to_string())
    }

    async fn clear_attention(&self, by: &str, reason: &str) -> Result<(), String> {
        self.0.clear_attention(by, reason).await.map_err(|error| error.to_string())
    }

    fn status(&self) -> DeviceStatus {
        self.0.status()
    }

    fn events(&self) -> broadcast::Receiver<RunEvent> {
        self.0.events()
    }

    fn discard(&self, runs: &[RunId]) -> std::io::Result<()> {
        self.0.discard(runs)
    }

    fn artifact_path(&self, run: &RunId, name: &str) -> Option<PathBuf> {
        self.0.artifact_path(run, name)
    }
}
