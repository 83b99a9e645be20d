//! What happens when the database does not work: nothing moves that is not on record, and the stop works.

use interlock_model::device::Outcome;
use serde_json::{Value, json};

use crate::flaky::CAUSE;
use crate::lab::{Lab, eventually, password};

#[tokio::test]
async fn what_cannot_be_recorded_is_not_executed() {
    let lab = Lab::start().await;
    let ask = lab.mix("ana").await.header("idempotency-key", "key-1");
    lab.store.fail();

    let answer = ask.send().await;

    let body = answer.refused(503, "unavailable");
    assert!(body["detail"].as_str().is_some_and(|text| text.contains("Nothing was done")));
    assert!(!answer.text().contains(CAUSE), "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(lab.device.calls().is_empty());
    // And the key was not used up.
    lab.store.mend();
    lab.mix("ana").await.header("idempotency-key", "key-1").send().await.ok();
    assert_eq!(lab.device.calls().len(), 1);
    lab.assert_chain().await;
}

#[tokio::test]
async fn every_route_that_needs_the_database_says_unavailable() {
    let lab = Lab::start().await;
    let token = lab.token("zoe").await;
    let run = lab.mix("zoe").await.send().await.ok()["run_id"].as_str().expect("a run").to_owned();
    lab.store.fail();

    for ask in [
        lab.get("/runs"),
        lab.get(&format!("/runs/{run}")),
        lab.get(&format!("/runs/{run}/events")),
        lab.post(&format!("/runs/{run}/cancel")),
        lab.get(&format!("/runs/{run}/artifacts/a.csv")),
        lab.get("/users"),
        lab.get("/audit"),
        lab.post("/users")
            .json(&json!({ "name": "new", "password": "seven purple pipettes", "roles": ["viewer"] })),
        lab.ask("PATCH".parse().expect("a method"), "/users/ana").json(&json!({ "disabled": true })),
        lab.post("/users/ana/password").json(&json!({ "password": "nine yellow burettes" })),
        lab.post("/stop/release").json(&json!({ "reason": "it is safe" })),
        lab.post("/device/attention/clear").json(&json!({ "reason": "looked" })),
        lab.post("/auth/logout"),
    ] {
        let answer = ask.signed(&token).send().await;
        answer.refused(503, "unavailable");
        assert!(!answer.text().contains("disk"), "{}", answer.text());
    }
    let login = lab
        .post("/auth/login")
        .json(&json!({ "username": "ana", "password": password("ana").expose() }))
        .send()
        .await;
    login.refused(503, "unavailable");
    assert!(lab.device.releases().is_empty());
    // Whoever is known stays known: tokens are judged from memory.
    lab.get("/auth/me").signed(&token).send().await.ok();
    lab.get("/tasks").signed(&token).send().await.ok();
}

#[tokio::test]
async fn probes_tell_the_truth_about_the_database() {
    let lab = Lab::start().await;
    lab.store.fail();

    let health = lab.get("/health").send().await;
    let ready = lab.get("/health/ready").send().await;

    assert_eq!(health.status.as_u16(), 503);
    assert_eq!(health.json()["status"], "unhealthy");
    assert_eq!(ready.status.as_u16(), 503);
    assert_eq!(ready.json()["database"], false);
    assert_eq!(lab.get("/health/live").send().await.ok()["status"], "alive");
    assert!(!health.text().contains("disk") && !ready.text().contains("disk"));
}

#[tokio::test]
async fn the_stop_works_without_the_database_and_is_recorded_later() {
    let lab = Lab::start().await;
    let token = lab.token("vic").await;
    lab.store.fail();

    let answer = lab.post("/stop").signed(&token).json(&json!({ "reason": "smoke" })).send().await;

    assert_eq!(answer.ok()["confirmed"], 1);
    assert_eq!(lab.device.stops().len(), 1);
    lab.store.mend();
    let trail = lab.trail_of("device.stopped").await;
    assert_eq!(trail.len(), 1, "{trail:?}");
    assert_eq!(trail[0].draft.details["engaged"], true);
    assert_eq!(trail[0].draft.details["reason"], "smoke");
    assert_eq!(trail[0].draft.actor.as_deref(), Some("vic"));
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_release_that_was_done_is_not_reported_as_undone() {
    let lab = Lab::start().await;
    let token = lab.token("ada").await;
    // The intent is recorded, the outcome is not.
    lab.store.fail_writes_after(1);

    let answer =
        lab.post("/stop/release").signed(&token).json(&json!({ "reason": "it is safe" })).send().await;

    assert_eq!(lab.device.releases().len(), 1);
    answer.ok();
    lab.store.mend();
    let phases: Vec<Value> = lab
        .trail_of("device.released")
        .await
        .iter()
        .map(|entry| entry.draft.details["phase"].clone())
        .collect();
    assert_eq!(phases, ["intent", "outcome"]);
}

#[tokio::test]
async fn an_end_that_cannot_be_stored_is_still_told_and_never_repeated() {
    let lab = Lab::start().await;
    let ask = lab.mix("ana").await.header("idempotency-key", "key-1");
    lab.store.fail_writes_after(1);

    let answer = ask.send().await;

    let body = answer.ok();
    assert_eq!(body["result"], json!({ "mixed": true }));
    lab.store.mend();
    // It stays in the journal and open in the database, for the next start to reconcile.
    assert!(lab.device.forgotten().is_empty());
    let again = lab.mix("ana").await.header("idempotency-key", "key-1").send().await;
    assert_eq!(again.ok()["result"], json!({ "mixed": true }), "it is told from memory until then");
    assert_eq!(again.header("interlock-run"), answer.header("interlock-run"));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(lab.device.calls().len(), 1);
    assert_eq!(
        lab.app.device.as_ref().expect("a device").executions.reconcile().await.expect("reconciled"),
        1
    );
    lab.assert_chain().await;
}

#[tokio::test]
async fn an_end_is_stored_when_the_database_comes_back_in_time() {
    let lab = Lab::start().await;
    let ask = lab.mix("ana").await;
    lab.device.will(Outcome::Crashed { reason: "signal 9".to_owned() });
    lab.device.hold();
    let waiting = ask.send();
    let failing = async {
        eventually("the device was called", || async { !lab.device.calls().is_empty() }).await;
        lab.store.fail();
        let before = lab.store.writes();
        lab.device.let_go();
        eventually("the end was tried to be stored", || async { lab.store.writes() > before }).await;
        lab.store.mend();
    };

    let (answer, ()) = tokio::join!(waiting, failing);

    answer.refused(500, "worker_crashed");
    let run = answer.header("interlock-run").expect("a run");
    let stored = lab.get(&format!("/runs/{run}")).signed(&lab.token("vic").await).send().await.ok();
    assert_eq!(stored["state"], "failed");
    lab.assert_chain().await;
}
