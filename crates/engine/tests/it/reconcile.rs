//! Runs that a dead process left open, and the truth about them.

use interlock_model::RunId;
use interlock_model::device::{Journaled, NotStarted, Outcome};
use interlock_model::run::RunState;
use interlock_store::RunRow;
use serde_json::{Value, json};

use crate::bench::{Bench, Scripted, eventually, mix};

/// A process that dies with runs under way: `count` calls were made that never end. Returns the runs.
async fn crashed(folder: &std::path::Path, count: usize) -> Vec<RunId> {
    let device = Scripted::new(|_| Box::pin(std::future::pending()));
    let bench = Bench::open(folder, device, 1).await;
    bench.user("ana", &["operator"]).await;
    let caller = bench.caller("ana").await;
    let mut runs = Vec::new();
    for index in 0..count {
        let mut request = mix(5, Some(&format!("key-{index}")));
        request.wait = false;
        runs.push(bench.executions.execute(bench.may_mix(&caller), request).await.expect("started").run.id);
    }
    eventually("the device was called", || async { bench.device.calls.lock().expect("lock").len() == count })
        .await;
    bench.store.close().await;
    runs
}

async fn outcome_of(bench: &Bench, run: RunId) -> Value {
    let entries = bench.store.audit_from(0, 1_000).await.expect("the audit trail");
    let mut outcomes = entries
        .iter()
        .filter(|e| e.draft.details["phase"] == "outcome" && e.draft.details["run"] == json!(run));
    let entry = outcomes.next().expect("an outcome");
    assert!(outcomes.next().is_none(), "one outcome only");
    assert_eq!(entry.draft.action, "device.executed");
    assert_eq!(entry.draft.actor.as_deref(), Some("system"));
    assert_eq!(entry.draft.subject.as_deref(), Some("mix"));
    entry.draft.details.clone()
}

#[tokio::test]
async fn every_open_run_gets_its_true_end_from_the_journal() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runs = crashed(folder.path(), 4).await;
    let device = Scripted::prompt();
    device.journal.lock().expect("lock").extend([
        (runs[0], Journaled::Finished(Outcome::Returned { result: json!(42), duration_ms: 7.0 })),
        (runs[1], Journaled::NeverStarted),
        (runs[2], Journaled::Started),
        (runs[3], Journaled::Finished(Outcome::NotStarted { reason: NotStarted::Busy })),
    ]);
    let bench = Bench::open(folder.path(), device, 2).await;

    assert_eq!(bench.executions.reconcile().await.expect("reconciled"), 4);

    for (run, state, code) in [
        (runs[0], RunState::Succeeded, None),
        (runs[1], RunState::Cancelled, Some("run_not_started")),
        (runs[2], RunState::Uncertain, Some("run_uncertain")),
        (runs[3], RunState::Cancelled, Some("device_busy")),
    ] {
        let stored: RunRow = bench.store.run(run).await.expect("read").expect("there");
        assert_eq!(stored.state, state);
        assert_eq!(stored.error.map(|error| error.code).as_deref(), code);
        assert!(stored.finished_at.is_some());
        let told = outcome_of(&bench, run).await;
        assert_eq!((&told["status"], &told["was_open"]), (&json!(state), &json!(true)));
    }
    let first = bench.store.run(runs[0]).await.expect("read").expect("there");
    assert_eq!((first.result, first.duration_ms), (Some(json!(42)), Some(7.0)));
    // What is stored, the journal may drop.
    let mut forgotten = bench.device.forgotten.lock().expect("lock").clone();
    forgotten.sort();
    let mut all = runs.clone();
    all.sort();
    assert_eq!(forgotten, all);
    assert!(bench.device.calls.lock().expect("lock").is_empty(), "nothing is ever repeated");
    assert_eq!(bench.executions.reconcile().await.expect("reconciled"), 0);
    crate::bench::verified(&*bench.store).await;
}

#[tokio::test]
async fn a_key_survives_the_crash_with_its_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runs = crashed(folder.path(), 3).await;
    let device = Scripted::prompt();
    device.journal.lock().expect("lock").extend([
        (runs[0], Journaled::Finished(Outcome::Returned { result: json!(42), duration_ms: 7.0 })),
        (runs[1], Journaled::NeverStarted),
        (runs[2], Journaled::Started),
    ]);
    let bench = Bench::open(folder.path(), device, 2).await;
    bench.executions.reconcile().await.expect("reconciled");
    let caller = bench.caller("ana").await;
    let again = |key: &'static str| bench.executions.execute(bench.may_mix(&caller), mix(5, Some(key)));

    let (finished, never, uncertain) = (
        again("key-0").await.expect("told"),
        again("key-1").await.expect("done"),
        again("key-2").await.expect("told"),
    );

    assert_eq!((finished.replayed, finished.run.id, finished.run.result), (true, runs[0], Some(json!(42))));
    assert_eq!((never.replayed, never.run.state), (false, RunState::Succeeded));
    assert_ne!(never.run.id, runs[1]);
    assert_eq!(
        (uncertain.replayed, uncertain.run.id, uncertain.run.state),
        (true, runs[2], RunState::Uncertain)
    );
    assert_eq!(bench.device.calls.lock().expect("lock").len(), 1);
}
