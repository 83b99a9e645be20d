//! A device that does what a test tells it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use interlock_engine::devices::Device;
use interlock_model::RunId;
use interlock_model::device::{
    Call, Catalogue, Declarations, DeviceStatus, DeviceStop, EventKind, Journaled, Outcome, RunEvent, Rung,
    StopLatch, WorkerStatus,
};
use interlock_model::run::RunState;
use serde_json::json;
use tokio::sync::{broadcast, watch};

/// A default that must never leave the server.
pub(crate) const SECRET_DEFAULT: &str = "default-secret-4711";

/// The actions of the fake.
pub(crate) fn catalogue() -> Catalogue {
    let declarations: Declarations = serde_json::from_value(json!({
        "title": "Fake robot",
        "actions": [
            { "name": "mix", "doc": "Mix a well.", "effects": "moves",
              "parameters": [
                { "name": "volume", "required": true, "type": "number", "unit": "uL",
                  "schema": { "type": "number", "minimum": 1, "maximum": 1000 } },
                { "name": "cycles", "type": "integer", "default": 3,
                  "schema": { "type": "integer", "minimum": 1, "maximum": 20 } } ] },
            { "name": "upload", "doc": "Send results away.",
              "parameters": [
                { "name": "api_key", "required": true, "type": "string", "sensitive": true,
                  "schema": { "type": "string", "minLength": 4 } },
                { "name": "backup_key", "type": "string", "sensitive": true, "default": SECRET_DEFAULT,
                  "schema": { "type": "string" } },
                { "name": "label", "type": "string", "default": "x", "schema": { "type": "string", "enum": ["x", "y"] } } ] },
            { "name": "calibrate", "role": "calibrator", "parameters": [] },
            { "name": "layout", "parameters": [
                { "name": "plate", "type": "object", "default": {},
                  "schema": { "type": "object", "properties": { "rows": { "type": "integer" } }, "additionalProperties": false } } ] },
        ],
        "has_safe_state": true,
    }))
    .expect("the declarations are well-formed");
    Catalogue::check(declarations).expect("the catalogue is sound")
}

/// A scripted device.
pub(crate) struct FakeDevice {
    catalogue: Arc<Catalogue>,
    calls: Mutex<Vec<Call>>,
    outcomes: Mutex<VecDeque<Outcome>>,
    telling: Mutex<Vec<EventKind>>,
    open: watch::Sender<bool>,
    cancelled: Mutex<Vec<RunId>>,
    cancel_signal: watch::Sender<usize>,
    events: broadcast::Sender<RunEvent>,
    latch: Mutex<StopLatch>,
    stops: Mutex<Vec<Option<String>>>,
    releases: Mutex<Vec<String>>,
    forgotten: Mutex<Vec<RunId>>,
    refuses: AtomicBool,
    panics: AtomicBool,
    unavailable: AtomicBool,
    artifact: Mutex<Option<PathBuf>>,
}

impl FakeDevice {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            catalogue: Arc::new(catalogue()),
            calls: Mutex::default(),
            outcomes: Mutex::default(),
            telling: Mutex::default(),
            open: watch::Sender::new(true),
            cancelled: Mutex::default(),
            cancel_signal: watch::Sender::new(0),
            events: broadcast::channel(1024).0,
            latch: Mutex::default(),
            stops: Mutex::default(),
            releases: Mutex::default(),
            forgotten: Mutex::default(),
            refuses: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            unavailable: AtomicBool::new(false),
            artifact: Mutex::default(),
        })
    }

    /// The next call ends like this.
    pub(crate) fn will(&self, outcome: Outcome) {
        self.outcomes.lock().expect("lock").push_back(outcome);
    }

    /// Every call tells these before it ends.
    pub(crate) fn tells(&self, events: Vec<EventKind>) {
        *self.telling.lock().expect("lock") = events;
    }

    /// Calls wait until [`Self::let_go`].
    pub(crate) fn hold(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn let_go(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("lock").clone()
    }

    pub(crate) fn stops(&self) -> Vec<Option<String>> {
        self.stops.lock().expect("lock").clone()
    }

    pub(crate) fn releases(&self) -> Vec<String> {
        self.releases.lock().expect("lock").clone()
    }

    pub(crate) fn forgotten(&self) -> Vec<RunId> {
        self.forgotten.lock().expect("lock").clone()
    }

    /// Release and clearing are refused with words.
    pub(crate) fn refuses(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    /// The runtime itself is broken: asking for the status, calling and stopping panic.
    pub(crate) fn panics(&self, yes: bool) {
        self.panics.store(yes, Ordering::SeqCst);
    }

    pub(crate) fn unavailable(&self) {
        self.unavailable.store(true, Ordering::SeqCst);
    }

    pub(crate) fn offers_artifact(&self, path: PathBuf) {
        *self.artifact.lock().expect("lock") = Some(path);
    }

    fn maybe_panic(&self) {
        assert!(!self.panics.load(Ordering::SeqCst), "the runtime is broken: secret-cause-0815");
    }
}

#[async_trait]
impl Device for FakeDevice {
    fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue)
    }

    fn journaled(&self, _: &RunId) -> Journaled {
        Journaled::NeverStarted
    }

    fn forget(&self, runs: &[RunId]) {
        self.forgotten.lock().expect("lock").extend_from_slice(runs);
    }

    async fn call(&self, call: Call) -> Outcome {
        let run = call.run;
        self.calls.lock().expect("lock").push(call);
        self.maybe_panic();
        let planned = self.outcomes.lock().expect("lock").pop_front();
        if !matches!(planned, Some(Outcome::NotStarted { .. })) {
            let _ = self.events.send(RunEvent { run, kind: EventKind::State { state: RunState::Running } });
        }
        for kind in self.telling.lock().expect("lock").clone() {
            let _ = self.events.send(RunEvent { run, kind });
        }
        let (mut open, mut cancels) = (self.open.subscribe(), self.cancel_signal.subscribe());
        loop {
            if self.cancelled.lock().expect("lock").contains(&run) {
                return Outcome::Cancelled { rung: Rung::Interrupt };
            }
            if *open.borrow_and_update() {
                break;
            }
            tokio::select! {
                _ = open.changed() => {}
                _ = cancels.changed() => {}
            }
        }
        planned.unwrap_or_else(|| Outcome::Returned { result: json!({ "mixed": true }), duration_ms: 12.5 })
    }

    fn cancel(&self, run: &RunId, _: &str) -> bool {
        self.cancelled.lock().expect("lock").push(*run);
        self.cancel_signal.send_modify(|count| *count += 1);
        true
    }

    async fn emergency_stop(&self, by: &str, reason: Option<&str>) -> DeviceStop {
        self.maybe_panic();
        self.stops.lock().expect("lock").push(reason.map(str::to_owned));
        *self.latch.lock().expect("lock") = StopLatch {
            engaged: true,
            since: None,
            by: Some(by.to_owned()),
            reason: reason.map(str::to_owned),
        };
        DeviceStop {
            name: "fake".to_owned(),
            confirmed: true,
            killed_ms: Some(3.0),
            safe_state: "done".to_owned(),
            safe_state_entered_ms: Some(4.0),
            safe_state_done_ms: Some(5.0),
            error: None,
            cancelled_run: None,
        }
    }

    async fn release(&self, _: &str, reason: &str) -> Result<(), String> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err("the safe-state hook failed; look at the robot".to_owned());
        }
        self.releases.lock().expect("lock").push(reason.to_owned());
        self.latch.lock().expect("lock").engaged = false;
        Ok(())
    }

    async fn clear_attention(&self, _: &str, reason: &str) -> Result<(), String> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err("nothing needs attention".to_owned());
        }
        self.releases.lock().expect("lock").push(reason.to_owned());
        Ok(())
    }

    fn status(&self) -> DeviceStatus {
        self.maybe_panic();
        let state = if self.unavailable.load(Ordering::SeqCst) { "unavailable" } else { "ready" };
        DeviceStatus {
            name: "fake".to_owned(),
            title: "Fake robot".to_owned(),
            state: state.to_owned(),
            running: None,
            queued: 0,
            emergency_stop: self.latch.lock().expect("lock").clone(),
            attention: None,
            worker: WorkerStatus::default(),
            actions: self.catalogue.actions().len(),
        }
    }

    fn events(&self) -> broadcast::Receiver<RunEvent> {
        self.events.subscribe()
    }

    fn discard(&self, _: &[RunId]) -> std::io::Result<()> {
        Ok(())
    }

    fn artifact_path(&self, _: &RunId, name: &str) -> Option<PathBuf> {
        self.artifact
            .lock()
            .expect("lock")
            .clone()
            .filter(|path| path.file_name().is_some_and(|file| file == name))
    }
}
