//! One call for one key, and states that are true, whatever the device does and whoever gives up waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use interlock_engine::executions::{ExecuteError, Execution};
use interlock_model::RunId;
use interlock_model::device::{Call, EventKind, NotStarted, Outcome, RunEvent, Rung, WorkerError};
use interlock_model::run::{RunState, conclude};
use interlock_store::{Page, RunFilter};
use proptest::prelude::*;
use serde_json::json;

use crate::bench::{Bench, PATIENCE, Scripted, eventually, fresh, mix};

/// What the device does with one call.
#[derive(Clone, Debug)]
enum Deed {
    /// It ends like this after so many turns of the scheduler.
    Ends(Outcome, u8),
    /// Its runtime panics.
    Panics,
}

/// What a client does.
#[derive(Clone, Debug)]
struct Wish {
    key: Option<u8>,
    volume: u8,
    /// It gives up after so many turns of the scheduler.
    patience: Option<u8>,
    asynchronous: bool,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Returned { result: json!("done"), duration_ms: 1.0 }),
        1 => Just(Outcome::Raised { error: WorkerError::default(), duration_ms: 1.0 }),
        1 => Just(Outcome::Crashed { reason: "signal 9".to_owned() }),
        1 => Just(Outcome::Cancelled { rung: Rung::Kill }),
        1 => Just(Outcome::TimedOut { rung: Rung::Interrupt }),
        1 => Just(Outcome::Uncertain { reason: "no end".to_owned() }),
        3 => prop_oneof![
            Just(NotStarted::Busy), Just(NotStarted::EmergencyStop), Just(NotStarted::NeedsAttention), Just(NotStarted::Unavailable),
            Just(NotStarted::Cancelled), Just(NotStarted::HostStopped), Just(NotStarted::JournalFailed),
        ].prop_map(|reason| Outcome::NotStarted { reason }),
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![12 => (outcome(), 0_u8..30).prop_map(|(outcome, turns)| Deed::Ends(outcome, turns)), 1 => Just(Deed::Panics)]
}

fn wish() -> impl Strategy<Value = Wish> {
    (prop::option::weighted(0.8, 0_u8..3), 0_u8..2, prop::option::weighted(0.3, 0_u8..20), any::<bool>())
        .prop_map(|(key, volume, patience, asynchronous)| Wish { key, volume, patience, asynchronous })
}

/// The ends that leave a key free for another run: nothing was done, and nothing will be.
fn frees(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NotStarted { reason } if *reason != NotStarted::Cancelled)
}

async fn turns(count: u8) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Calls that were made, each with the deed it met.
type Made = Arc<Mutex<Vec<(Call, Deed)>>>;

async fn history(deeds: Vec<Deed>, wishes: Vec<Wish>) {
    let made: Made = Arc::default();
    let remembered = Arc::clone(&made);
    let device = Scripted::new(move |call| {
        let mut made = remembered.lock().expect("lock");
        let deed = deeds
            .get(made.len())
            .cloned()
            .unwrap_or(Deed::Ends(Outcome::Returned { result: json!("done"), duration_ms: 1.0 }, 0));
        made.push((call, deed.clone()));
        drop(made);
        Box::pin(async move {
            match deed {
                Deed::Ends(outcome, count) => {
                    turns(count).await;
                    outcome
                }
                Deed::Panics => panic!("the runtime is broken, as this history wants it"),
            }
        })
    });
    let (_folder, bench) = fresh(device).await;
    bench.user("ana", &["operator"]).await;
    // The request id carries the key, so that a run tells under which key it was asked for.
    let mut callers = HashMap::new();
    for key in [None, Some(0), Some(1), Some(2)] {
        let id = key.map_or_else(|| "no-key".to_owned(), |key| format!("key-{key}"));
        callers.insert(key, bench.caller_as("ana", &id).await);
    }
    let ask = |wish: Wish| {
        let (bench, caller) = (&bench, &callers[&wish.key]);
        async move {
            let key = wish.key.map(|key| format!("key-{key}"));
            let mut request = mix(wish.volume.into(), key.as_deref());
            request.wait = !wish.asynchronous;
            let executing = bench.executions.execute(bench.may_mix(caller), request);
            let answer = match wish.patience {
                None => Some(executing.await),
                Some(patience) => tokio::select! {
                    biased;
                    answer = executing => Some(answer),
                    () = turns(patience) => None,
                },
            };
            (wish, answer)
        }
    };

    let answers = tokio::time::timeout(PATIENCE, futures::future::join_all(wishes.into_iter().map(ask)))
        .await
        .expect("nobody waits for ever");
    bench.settled().await;
    assert!(bench.store.open_runs().await.expect("read").is_empty(), "every run is over");

    check_runs(&bench, &made).await;
    check_answers(&bench, &answers).await;
    crate::bench::verified(&*bench.store).await;
}

/// Every run is what the device did, recorded once with intent and outcome.
async fn check_runs(bench: &Bench, made: &Made) {
    let made = made.lock().expect("lock").clone();
    let runs =
        bench.store.runs(&RunFilter::default(), Page { limit: 200, offset: 0 }).await.expect("read").items;
    let trail = bench.store.audit_from(0, 2_000).await.expect("read");
    let mut called: HashMap<RunId, &Deed> = HashMap::new();
    for (call, deed) in &made {
        assert!(called.insert(call.run, deed).is_none(), "{} was called twice", call.run);
    }
    assert_eq!(runs.len(), made.len(), "a run is a call and a call is a run");
    for run in &runs {
        let deed = called.get(&run.id).expect("a call");
        let (state, code) = match deed {
            Deed::Ends(outcome, _) => {
                let (state, error) = conclude(outcome);
                (state, error.map(|error| error.code))
            }
            Deed::Panics => (RunState::Uncertain, Some("run_uncertain".to_owned())),
        };
        assert_eq!(
            (run.state, run.error.as_ref().map(|error| error.code.clone())),
            (state, code),
            "{deed:?}"
        );
        assert_eq!(run.result.is_some(), state == RunState::Succeeded);
        let phases: Vec<&str> = trail
            .iter()
            .filter(|entry| entry.draft.details["run"] == json!(run.id))
            .map(|entry| entry.draft.details["phase"].as_str().expect("a phase"))
            .collect();
        assert_eq!(phases, ["intent", "outcome"]);
    }
    // One call for one key, unless the one before provably did nothing.
    let mut by_key: BTreeMap<&str, Vec<&Deed>> = BTreeMap::new();
    for (call, deed) in &made {
        let run = runs.iter().find(|run| run.id == call.run).expect("a run");
        if run.request_id.starts_with("key-") {
            by_key.entry(&run.request_id).or_default().push(deed);
        }
    }
    for (key, deeds) in by_key {
        for earlier in &deeds[..deeds.len() - 1] {
            assert!(
                matches!(earlier, Deed::Ends(outcome, _) if frees(outcome)),
                "{key} was executed again after {earlier:?}"
            );
        }
    }
}

/// Nobody is told anything but what is stored.
async fn check_answers(bench: &Bench, answers: &[(Wish, Option<Result<Execution, ExecuteError>>)]) {
    let mut digests: HashMap<u8, u8> = HashMap::new();
    for (wish, answer) in answers {
        match answer {
            None => {}
            Some(Ok(Execution { run, replayed })) => {
                let stored = bench.store.run(run.id).await.expect("read").expect("there");
                assert_eq!(run.parameters, json!({ "volume": wish.volume }), "an answer to another request");
                assert!(!replayed || wish.key.is_some());
                if !wish.asynchronous {
                    assert_eq!(run.state, stored.state);
                    assert_eq!(run.result, stored.result);
                    assert_eq!(run.error, stored.error);
                }
                if let Some(key) = wish.key {
                    let first = *digests.entry(key).or_insert(wish.volume);
                    assert_eq!(first, wish.volume, "one key stood for two requests");
                }
            }
            Some(Err(ExecuteError::KeyReused)) => assert!(wish.key.is_some()),
            Some(Err(other)) => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_has_one_call_for_one_key_and_true_states(
        deeds in prop::collection::vec(deed(), 0..12),
        wishes in prop::collection::vec(wish(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(history(deeds, wishes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_claims_of_one_key_are_one_run() {
    let device = Scripted::new(|_| {
        Box::pin(async {
            turns(50).await;
            Outcome::Returned { result: json!("done"), duration_ms: 1.0 }
        })
    });
    let (_folder, bench) = fresh(device).await;
    bench.user("ana", &["operator"]).await;
    let caller = bench.caller("ana").await;

    let asking = (0..100).map(|_| {
        let (executions, permit) = (bench.executions.clone(), bench.may_mix(&caller));
        tokio::spawn(async move { executions.execute(permit, mix(5, Some("key"))).await })
    });
    let answers = tokio::time::timeout(PATIENCE, futures::future::join_all(asking))
        .await
        .expect("nobody waits for ever");

    let answers: Vec<Execution> =
        answers.into_iter().map(|answer| answer.expect("no panic").expect("told")).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    assert!(
        answers
            .iter()
            .all(|answer| answer.run.id == answers[0].run.id && answer.run.state == RunState::Succeeded)
    );
    assert_eq!(bench.device.calls.lock().expect("lock").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_that_claim_one_key_make_one_call_between_them() {
    for _ in 0..10 {
        let (folder, one) = fresh(Scripted::prompt()).await;
        one.user("ana", &["operator"]).await;
        let two = Bench::open(folder.path(), Scripted::prompt(), 2).await;
        let (caller_one, caller_two) = (one.caller("ana").await, two.caller("ana").await);

        let (a, b) = tokio::join!(
            one.executions.execute(one.may_mix(&caller_one), mix(5, Some("key"))),
            two.executions.execute(two.may_mix(&caller_two), mix(5, Some("key")))
        );

        let (a, b) = (a.expect("told"), b.expect("told"));
        assert_eq!(a.run.id, b.run.id);
        assert!(a.replayed != b.replayed);
        let calls =
            one.device.calls.lock().expect("lock").len() + two.device.calls.lock().expect("lock").len();
        assert_eq!(calls, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_retries_after_a_refusal_share_one_new_run() {
    let refused = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let first = Arc::clone(&refused);
    let device = Scripted::new(move |_| {
        let earlier = first.swap(true, std::sync::atomic::Ordering::SeqCst);
        Box::pin(async move {
            if earlier {
                Outcome::Returned { result: json!("done"), duration_ms: 1.0 }
            } else {
                Outcome::NotStarted { reason: NotStarted::Busy }
            }
        })
    });
    let (_folder, bench) = fresh(device).await;
    bench.user("ana", &["operator"]).await;
    let caller = bench.caller("ana").await;
    let busy = bench.executions.execute(bench.may_mix(&caller), mix(5, Some("key"))).await.expect("told");
    assert_eq!(busy.run.error.map(|error| error.code).as_deref(), Some("device_busy"));

    let asking = (0..50).map(|_| {
        let (executions, permit) = (bench.executions.clone(), bench.may_mix(&caller));
        tokio::spawn(async move { executions.execute(permit, mix(5, Some("key"))).await.expect("told") })
    });
    let answers: Vec<Execution> =
        futures::future::join_all(asking).await.into_iter().map(|answer| answer.expect("no panic")).collect();

    assert!(
        answers
            .iter()
            .all(|answer| answer.run.state == RunState::Succeeded && answer.run.id == answers[0].run.id)
    );
    assert_eq!(bench.device.calls.lock().expect("lock").len(), 2);
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_take_its_run_along() {
    let (open, opened) = tokio::sync::watch::channel(false);
    let device = Scripted::new(move |_| {
        let mut opened = opened.clone();
        Box::pin(async move {
            opened.wait_for(|&open| open).await.expect("the test opens it");
            Outcome::Returned { result: json!("done"), duration_ms: 1.0 }
        })
    });
    let (_folder, bench) = fresh(device).await;
    bench.user("ana", &["operator"]).await;
    let caller = bench.caller("ana").await;
    {
        let mut executing = Box::pin(bench.executions.execute(bench.may_mix(&caller), mix(5, None)));
        tokio::select! {
            _ = &mut executing => panic!("the device was told to wait"),
            () = eventually("the device was called", || async { bench.device.calls.lock().expect("lock").len() == 1 }) => {}
        }
    }

    open.send_replace(true);

    let run = bench.device.calls.lock().expect("lock")[0].run;
    eventually("the run is recorded", || async {
        bench.store.run(run).await.expect("read").is_some_and(|run| run.state == RunState::Succeeded)
    })
    .await;
}

/// A run that is told as ended is told with its outcome.
fn assert_whole(state: RunState, result: Option<&serde_json::Value>, finished: bool, duration: Option<f64>) {
    assert_eq!(state.is_final(), finished, "{state:?}");
    if state == RunState::Succeeded {
        assert_eq!((result, duration), (Some(&json!("done")), Some(1.0)));
    }
}

#[tokio::test]
async fn a_run_whose_end_cannot_be_stored_is_told_with_its_outcome_everywhere() {
    let (folder, bench) = fresh(Scripted::prompt()).await;
    bench.user("ana", &["operator", "viewer"]).await;
    let caller = bench.caller("ana").await;
    rusqlite::Connection::open(folder.path().join("interlock.db"))
        .and_then(|db| {
            db.execute_batch(
                "CREATE TRIGGER ends_are_lost BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'no'); END",
            )
        })
        .expect("a trigger");

    let told = bench.executions.execute(bench.may_mix(&caller), mix(5, Some("key"))).await.expect("told").run;

    assert_whole(told.state, told.result.as_ref(), told.finished_at.is_some(), told.duration_ms);
    let stored = bench.store.run(told.id).await.expect("read").expect("a run");
    assert_eq!(stored.state, RunState::Queued, "the test wants an end that is not stored");
    let may = bench.may_read(&caller, told.id);
    let shown = bench.reads.run(&may).await.expect("read").expect("a run");
    assert_eq!(
        (shown.state, shown.result, shown.duration_seconds),
        (told.state, told.result.clone(), Some(0.001))
    );
    assert_eq!(shown.finished_at, told.finished_at);
    let again = bench.executions.execute(bench.may_mix(&caller), mix(5, Some("key"))).await.expect("told");
    assert!(again.replayed);
    assert_eq!(again.run, told);
    let listed = bench.guard.permit(&caller, interlock_model::action::Installation {}).expect("permitted");
    let listed = bench.reads.runs(&listed, &RunFilter::default(), Page { limit: 10, offset: 0 }).await;
    let listed = listed.expect("read").items.remove(0);
    assert_eq!((listed.state, listed.result), (told.state, told.result));
    let mut following = bench.reads.follow(&may, 0).await.expect("read").expect("a run");
    let events = following.next(10).await.expect("read");
    assert_eq!(
        events.last().map(|event| &event.kind),
        Some(&EventKind::State { state: RunState::Succeeded })
    );
    assert!(following.is_over());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_looks_while_a_run_ends_sees_it_open_or_whole() {
    let device = Scripted::new(|_| {
        Box::pin(async {
            turns(3).await;
            Outcome::Returned { result: json!("done"), duration_ms: 1.0 }
        })
    });
    let (_folder, bench) = fresh(device).await;
    bench.user("ana", &["operator", "viewer"]).await;
    let caller = bench.caller("ana").await;
    for round in 0..150 {
        let mut request = mix(5, Some(&format!("key-{round}")));
        request.wait = false;
        let run = bench.executions.execute(bench.may_mix(&caller), request).await.expect("told").run;
        bench
            .device
            .events
            .send(RunEvent { run: run.id, kind: EventKind::State { state: RunState::Running } })
            .ok();
        let look = || {
            let (reads, may) = (bench.reads.clone(), bench.may_read(&caller, run.id));
            tokio::spawn(async move {
                let mut before = RunState::Queued;
                while !before.is_final() {
                    let view = reads.run(&may).await.expect("read").expect("a run");
                    assert_whole(
                        view.state,
                        view.result.as_ref(),
                        view.finished_at.is_some(),
                        view.duration_seconds.map(|s| s * 1000.0),
                    );
                    assert!(
                        before == RunState::Queued || view.state != RunState::Queued,
                        "it was {before:?} and is {:?} now",
                        view.state
                    );
                    before = view.state;
                }
            })
        };
        let looking: Vec<_> = (0..4).map(|_| look()).collect();
        for looker in looking {
            tokio::time::timeout(PATIENCE, looker)
                .await
                .expect("the run ends")
                .expect("it was true throughout");
        }
    }
}
