//! Actions of devices as tools.

use std::collections::BTreeMap as Map;
use std::sync::Mutex;

use interlock_model::run::RunError;
use interlock_model::time::TestEntropy;
use interlock_model::{RunId, Timestamp};
use serde_json::Value;

use super::*;
use crate::testing::{Bench, check};

/// A device server in memory: runs by their keys, as the real one keeps them.
#[derive(Default)]
struct Server {
    runs: Mutex<Map<String, (RunId, RunState)>>,
    done: Mutex<Vec<String>>,
    cancelled: Mutex<Vec<String>>,
    /// What becomes of new runs.
    becomes: Mutex<Option<RunState>>,
    away: Mutex<bool>,
    /// What every run reports, before the connection breaks.
    events: Mutex<Vec<RunEventView>>,
}

fn unreachable(sent: bool) -> ClientError {
    ClientError::Unreachable { url: "https://10.0.0.5".to_owned(), reason: "gone".to_owned(), sent }
}

#[async_trait]
impl Link for Server {
    async fn actions(&self) -> Result<Vec<ActionSpec>, ClientError> {
        if *self.away.lock().expect("away") {
            return Err(unreachable(false));
        }
        let spec = json!([
            { "name": "mix", "doc": "\n  Mixes two colours.\n  More.", "parameters": [{ "name": "ul", "type": "number" }] },
            { "name": "read", "idempotent": true, "parameters": [] },
        ]);
        Ok(serde_json::from_value(spec).expect("actions"))
    }

    async fn submit(&self, submission: &Submission) -> Result<RunId, ClientError> {
        if *self.away.lock().expect("away") {
            return Err(unreachable(false));
        }
        let mut runs = self.runs.lock().expect("runs");
        if let Some((run, _)) = runs.get(&submission.key) {
            return Ok(*run);
        }
        let run = RunId::new(Timestamp::from_seconds(1), &TestEntropy::seeded(runs.len() as u64));
        let state = self.becomes.lock().expect("state").unwrap_or(RunState::Succeeded);
        runs.insert(submission.key.clone(), (run, state));
        self.done.lock().expect("done").push(submission.action.clone());
        Ok(run)
    }

    async fn run(&self, wanted: RunId) -> Result<RunView, ClientError> {
        if *self.away.lock().expect("away") {
            return Err(unreachable(true));
        }
        let runs = self.runs.lock().expect("runs");
        let state = runs.values().find(|(run, _)| *run == wanted).map(|(_, state)| *state).expect("a run");
        let error = (state != RunState::Succeeded)
            .then(|| RunError { code: "task_failed".to_owned(), message: "the tip is missing".to_owned() });
        Ok(RunView {
            id: wanted,
            action: "mix".to_owned(),
            state,
            simulated: false,
            parameters: Value::Null,
            result: Some(json!({ "well": "A1" })),
            error,
            executed_by: String::new(),
            request_id: String::new(),
            created_at: Timestamp::from_seconds(1),
            started_at: None,
            finished_at: None,
            duration_seconds: Some(1.5),
            progress: None,
            artifacts: Vec::new(),
        })
    }

    async fn follow(
        &self,
        _: RunId,
        after: u64,
        heard: &(dyn Fn(RunEventView) + Send + Sync),
    ) -> Result<(), ClientError> {
        let events = self.events.lock().expect("events").clone();
        for event in events.into_iter().filter(|event| event.seq > after) {
            heard(event);
        }
        Err(unreachable(true))
    }

    async fn cancel(&self, wanted: RunId, reason: &str) -> Result<(), ClientError> {
        self.cancelled.lock().expect("cancelled").push(reason.to_owned());
        for (run, state) in self.runs.lock().expect("runs").values_mut() {
            if *run == wanted {
                *state = RunState::Cancelled;
            }
        }
        Ok(())
    }
}

async fn devices() -> (Arc<Server>, Devices) {
    let server = Arc::new(Server::default());
    let devices = Devices::new(vec![("ot2".to_owned(), Arc::clone(&server) as Arc<dyn Link>)]);
    devices.refresh().await;
    (server, devices)
}

#[tokio::test(start_paused = true)]
async fn an_action_is_done_once_however_often_its_step_is_called() {
    let (server, devices) = devices().await;
    for _ in 0..3 {
        let result =
            Bench::default().call(&devices, "device.ot2.mix", &json!({ "ul": 5 })).await.expect("done");
        assert_eq!((&result["result"], &result["duration_seconds"]), (&json!({ "well": "A1" }), &json!(1.5)));
    }
    assert_eq!(*server.done.lock().expect("done"), ["mix"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_device_reports_is_passed_on_once_also_while_it_is_stopped() {
    let (server, devices) = devices().await;
    *server.becomes.lock().expect("state") = Some(RunState::Running);
    let kinds = [
        json!({ "kind": "state", "data": { "state": "running" } }),
        json!({ "kind": "progress", "data": { "current": 1.0, "total": 3.0, "message": "red" } }),
        json!({ "kind": "log", "data": { "level": "info", "message": "tip on" } }),
    ];
    *server.events.lock().expect("events") = kinds
        .into_iter()
        .zip(1..)
        .map(|(kind, seq)| {
            let kind = serde_json::from_value(kind).expect("an event");
            RunEventView { seq, at: Timestamp::from_seconds(1), kind }
        })
        .collect();
    let bench = Bench { timeout: Duration::from_secs(5), ..Bench::default() };

    bench.call(&devices, "device.ot2.mix", &json!({})).await.expect_err("overdue");

    let told = bench.host.told();
    assert_eq!(told.iter().map(|note| note.kind).collect::<Vec<_>>(), ["progress", "log"]);
    assert_eq!(
        Value::Object(told[0].data.clone()),
        json!({
            "current": 1.0, "total": 3.0, "message": "red", "step": 0, "device": "ot2",
        })
    );
}

#[tokio::test(start_paused = true)]
async fn how_a_call_ended_is_told_truthfully() {
    for (state, expected) in [
        (RunState::Failed, Failure::Failed { message: "the tip is missing".to_owned(), again: false }),
        (RunState::TimedOut, Failure::TimedOut("the tip is missing".to_owned())),
        (RunState::Cancelled, Failure::Cancelled),
    ] {
        let (server, devices) = devices().await;
        *server.becomes.lock().expect("state") = Some(state);
        let failure =
            Bench::default().call(&devices, "device.ot2.mix", &json!({})).await.expect_err("no success");
        assert_eq!(failure, expected);
    }
    let (server, devices) = devices().await;
    *server.becomes.lock().expect("state") = Some(RunState::Uncertain);
    let failure = Bench::default().call(&devices, "device.ot2.mix", &json!({})).await.expect_err("unknown");
    assert!(matches!(failure, Failure::Unknown(_)), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn an_overdue_call_and_a_cancelled_one_are_stopped_on_the_device() {
    let (server, devices) = devices().await;
    *server.becomes.lock().expect("state") = Some(RunState::Running);
    let bench = Bench { timeout: Duration::from_secs(5), ..Bench::default() };
    let failure = bench.call(&devices, "device.ot2.mix", &json!({})).await.expect_err("overdue");
    assert!(matches!(failure, Failure::TimedOut(_)), "{failure:?}");

    let (other, devices) = devices_running().await;
    let bench = Bench::default();
    bench.cancel.cancel();
    assert_eq!(bench.call(&devices, "device.ot2.mix", &json!({})).await, Err(Failure::Cancelled));
    assert_eq!(
        server.cancelled.lock().expect("cancelled").len() + other.cancelled.lock().expect("cancelled").len(),
        2
    );
}

async fn devices_running() -> (Arc<Server>, Devices) {
    let (server, devices) = devices().await;
    *server.becomes.lock().expect("state") = Some(RunState::Running);
    (server, devices)
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_away_was_not_asked_to_do_anything() {
    let (server, devices) = devices().await;
    *server.away.lock().expect("away") = true;
    let failure = Bench::default().call(&devices, "device.ot2.mix", &json!({})).await.expect_err("away");
    assert!(matches!(&failure, Failure::Unreached(why) if !why.contains("10.0.0.5")), "{failure:?}");
    devices.refresh().await;
    assert!(devices.tool("device.ot2.mix").is_some(), "the list stays what it was");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_never_reached_is_taken_for_the_worst() {
    let devices = Devices::new(vec![("ot2".to_owned(), Arc::new(Server::default()) as Arc<dyn Link>)]);
    let tool = devices.tool("device.ot2.anything").expect("perhaps");
    assert_eq!(check(tool.as_ref(), &json!({ "x": 1 })), Ok(Effect::Once));
    assert!(devices.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn actions_are_listed_checked_and_need_the_right_to_execute() {
    let (_, devices) = devices().await;
    assert_eq!(devices.all().keys().collect::<Vec<_>>(), ["device.ot2.mix", "device.ot2.read"]);
    for unknown in ["device.ot2.gone", "device.other.mix", "device.ot2", "mix"] {
        assert!(devices.tool(unknown).is_none(), "{unknown}");
    }
    let mix = devices.tool("device.ot2.mix").expect("mix");
    assert_eq!(mix.description(), "Mixes two colours. (on the device ot2)");
    assert_eq!(check(mix.as_ref(), &json!({ "ul": 1 })), Ok(Effect::Once));
    assert!(check(mix.as_ref(), &json!({ "ml": 1 })).expect_err("unknown").contains("has the parameters ul"));
    assert_eq!(mix.needs("device.ot2.mix"), ["tool:device.ot2.mix", "devices:execute:ot2/mix"]);
    let read = devices.tool("device.ot2.read").expect("read");
    assert_eq!(check(read.as_ref(), &json!({})), Ok(Effect::Idempotent));
}
