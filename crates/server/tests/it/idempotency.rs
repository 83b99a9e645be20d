//! A repeated key gets the first answer and never a second action.

use interlock_model::device::{NotStarted, Outcome};
use serde_json::json;

use crate::lab::{Lab, eventually};

#[tokio::test]
async fn a_repeated_key_gives_the_first_answer_again() {
    let lab = Lab::start().await;
    let send = || async { lab.mix("ana").await.header("idempotency-key", "key-1").send().await };

    let (first, second) = (send().await, send().await);

    assert_eq!(first.ok(), second.ok());
    assert_eq!(first.header("interlock-run"), second.header("interlock-run"));
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn a_failure_is_replayed_as_well() {
    let lab = Lab::start().await;
    let send = || async { lab.mix("ana").await.header("idempotency-key", "key-1").send().await };
    lab.device.will(Outcome::Crashed { reason: "signal 9".to_owned() });

    let (first, second) = (send().await, send().await);

    first.refused(500, "worker_crashed");
    second.refused(500, "worker_crashed");
    assert_eq!(first.header("interlock-run"), second.header("interlock-run"));
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_at_once_with_one_key_are_one_call() {
    let lab = Lab::start().await;
    lab.token("ana").await;
    lab.device.hold();
    let asks = futures::future::join_all((0..50).map(|_| lab.mix("ana"))).await;
    let waiting =
        futures::future::join_all(asks.into_iter().map(|ask| ask.header("idempotency-key", "key-1").send()));
    let opening = async {
        eventually("the device was called", || async { !lab.device.calls().is_empty() }).await;
        lab.device.let_go();
    };

    let (answers, ()) = tokio::join!(waiting, opening);

    let first = answers[0].ok();
    let fresh = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none()).count();
    assert!(answers.iter().all(|answer| answer.ok() == first));
    assert_eq!(fresh, 1);
    assert_eq!(lab.device.calls().len(), 1);
    assert_eq!(lab.get("/runs").signed(&lab.token("vic").await).send().await.ok()["total"], 1);
    assert_eq!(
        lab.trail_of("device.executed")
            .await
            .iter()
            .filter(|entry| entry.draft.details["phase"] == "intent")
            .count(),
        1
    );
}

#[tokio::test]
async fn another_request_under_a_used_key_is_refused() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let send = |path: &'static str, body| {
        lab.post(path).signed(&token).header("idempotency-key", "key-1").json(&body)
    };
    send("/execute/mix", json!({ "volume": 50 })).send().await.ok();

    send("/execute/mix", json!({ "volume": 51 })).send().await.refused(422, "idempotency_key_reused");
    send("/execute/layout", json!({})).send().await.refused(422, "idempotency_key_reused");
    let simulated = send("/execute/mix", json!({ "volume": 50 })).header("interlock-simulate", "true");
    simulated.send().await.refused(422, "idempotency_key_reused");

    assert_eq!(lab.device.calls().len(), 1);
    // What means the same is the same: a default written out, another order, another spelling of the quantity.
    let same = send("/execute/mix", json!({ "cycles": 3, "volume": 50 })).send().await;
    assert_eq!(same.header("idempotency-replayed"), Some("true"));
}

#[tokio::test]
async fn a_key_belongs_to_its_user() {
    let lab = Lab::start().await;
    let send = |name: &'static str| {
        let lab = &lab;
        async move { lab.mix(name).await.header("idempotency-key", "key-1").send().await }
    };

    let (ana, ben) = (send("ana").await, send("ben").await);

    assert_ne!(ana.ok()["run_id"], ben.ok()["run_id"]);
    assert_eq!(lab.device.calls().len(), 2);
}

#[tokio::test]
async fn a_run_that_never_started_gives_its_key_free() {
    let lab = Lab::start().await;
    let send = || async { lab.mix("ana").await.header("idempotency-key", "key-1").send().await };

    for (reason, status, code) in [
        (NotStarted::Busy, 409, "device_busy"),
        (NotStarted::EmergencyStop, 409, "emergency_stop_engaged"),
        (NotStarted::NeedsAttention, 409, "device_needs_attention"),
        (NotStarted::Unavailable, 503, "device_unavailable"),
        (NotStarted::HostStopped, 409, "run_not_started"),
        (NotStarted::JournalFailed, 503, "unavailable"),
    ] {
        lab.device.will(Outcome::NotStarted { reason });
        let answer = send().await;
        answer.refused(status, code);
        assert_eq!(answer.header("idempotency-replayed"), None, "{reason:?}");
    }
    // But not for another request.
    let other = lab
        .post("/execute/mix")
        .signed(&lab.token("ana").await)
        .header("idempotency-key", "key-1")
        .json(&json!({ "volume": 1 }));
    other.send().await.refused(422, "idempotency_key_reused");

    let done = send().await;
    done.ok();
    assert_eq!(done.header("idempotency-replayed"), None);
    let replayed = send().await;

    assert_eq!(replayed.ok()["run_id"], done.ok()["run_id"]);
    assert_eq!(replayed.header("idempotency-replayed"), Some("true"));
    assert_eq!(lab.device.calls().len(), 7);
}

#[tokio::test]
async fn a_run_that_may_have_started_keeps_its_key() {
    let lab = Lab::start().await;

    for (index, outcome) in [
        Outcome::Uncertain { reason: "no end".to_owned() },
        Outcome::Cancelled { rung: interlock_model::device::Rung::Kill },
        Outcome::TimedOut { rung: interlock_model::device::Rung::Kill },
        Outcome::NotStarted { reason: NotStarted::Cancelled },
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key-{index}");
        lab.device.will(outcome);
        let first = lab.mix("ana").await.header("idempotency-key", &key).send().await;
        let again = lab.mix("ana").await.header("idempotency-key", &key).send().await;

        assert_eq!(again.status, first.status);
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(lab.device.calls().len(), index + 1);
    }
}

#[tokio::test]
async fn refused_parameters_use_no_key_up() {
    let lab = Lab::start().await;
    let token = lab.token("ana").await;
    let send = |body| lab.post("/execute/mix").signed(&token).header("idempotency-key", "key-1").json(&body);

    send(json!({ "volume": -1 })).send().await.refused(400, "invalid_parameters");

    send(json!({ "volume": 1 })).send().await.ok();
}

#[tokio::test]
async fn the_story_of_a_lost_session_is_one_action() {
    // Form login, execute, token expired (401), login again, execute with the same key.
    let lab = Lab::start().await;
    let token = lab.sign_in("ana").await;
    let execute = |token: &str| {
        lab.post("/execute/mix")
            .signed(token)
            .json(&json!({ "volume": 50 }))
            .header("idempotency-key", "key-1")
    };
    let first = execute(&token).send().await;

    lab.clock.advance(std::time::Duration::from_secs(4000));
    execute(&token).send().await.refused(401, "unauthorized");
    let token = lab.sign_in("ana").await;
    let second = execute(&token).send().await;

    assert_eq!(first.ok(), second.ok());
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let lab = Lab::start().await;
    lab.mix("ana").await.header("idempotency-key", "key-1").send().await.ok();

    lab.clock.advance(std::time::Duration::from_secs(24 * 3600 + 1));
    let token = lab.sign_in("ana").await;
    let later = lab
        .post("/execute/mix")
        .signed(&token)
        .json(&json!({ "volume": 50 }))
        .header("idempotency-key", "key-1")
        .send()
        .await;

    later.ok();
    assert_eq!(later.header("idempotency-replayed"), None);
    assert_eq!(lab.device.calls().len(), 2);
}

#[tokio::test]
async fn a_key_that_is_no_key_starts_nothing() {
    let lab = Lab::start().await;

    for key in ["", "with space", "é", &"k".repeat(256)] {
        lab.mix("ana").await.header("idempotency-key", key).send().await.refused(400, "invalid_request");
    }
    let two = lab.mix("ana").await.header("idempotency-key", "a").header("idempotency-key", "a");
    two.send().await.refused(400, "invalid_request");
    assert!(lab.device.calls().is_empty());

    lab.mix("ana").await.header("idempotency-key", "k".repeat(255)).send().await.ok();
}
