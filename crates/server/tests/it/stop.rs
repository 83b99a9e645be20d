//! The emergency stop: always possible, never refused for its words, released by administrators only.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::lab::Lab;

#[tokio::test]
async fn every_built_in_role_can_stop_and_the_report_has_the_documented_members() {
    let lab = Lab::start().await;

    for name in ["ada", "ana", "vic", "odo"] {
        let body = lab
            .post("/stop")
            .signed(&lab.token(name).await)
            .json(&json!({ "reason": "smoke" }))
            .send()
            .await
            .ok();
        let device = json!({
            "name": "fake", "confirmed": true, "killed_ms": 3.0, "safe_state": "done", "safe_state_entered_ms": 4.0,
            "safe_state_done_ms": 5.0, "error": null, "cancelled_run": null,
        });
        let expected = json!({
            "engaged": true, "confirmed": 1, "of": 1, "devices": [device], "cancelled_run": null, "engaged_at": lab.now(), "reason": "smoke",
        });
        assert_eq!(body, expected, "{name}");
    }
    lab.post("/stop").send().await.refused(401, "unauthorized");
    lab.post("/stop").signed("garbage").send().await.refused(401, "unauthorized");
    assert_eq!(lab.device.stops().len(), 4);
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_stop_is_never_refused_for_its_words() {
    let lab = Lab::start().await;
    let token = lab.token("vic").await;
    let stop = || lab.post("/stop").signed(&token);

    stop().send().await.ok();
    stop().text("{broken").send().await.ok();
    stop().typed("text/plain", "stop!").send().await.ok();
    stop().json(&json!({ "reason": 5 })).send().await.ok();
    stop().json(&json!({ "reason": "x".repeat(201) })).send().await.ok();
    stop().json(&json!({ "reason": "two\nlines" })).send().await.ok();
    stop().json(&json!({ "reason": "fire", "more": 1 })).send().await.ok();

    let reasons: Vec<Option<String>> = lab.device.stops();
    assert_eq!(reasons.len(), 7);
    assert!(reasons[..6].iter().all(Option::is_none));
    assert_eq!(reasons[6].as_deref(), Some("fire"));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_reason_that_does_not_come() {
    let lab = Lab::start().await;
    let token = lab.token("vic").await;
    let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let begun = std::time::Instant::now();

    let answer = lab.post("/stop").signed(&token).typed("application/json", body).send().await;

    // The deadline of bodies is 30 s; a robot must not move on for that long.
    answer.ok();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(lab.device.stops(), [None]);
}

#[tokio::test]
async fn release_needs_an_administrator_and_a_reason() {
    let lab = Lab::start().await;
    let admin = lab.token("ada").await;
    let release = |body: Value| lab.post("/stop/release").signed(&admin).json(&body).send();

    for name in ["ana", "vic", "odo", "cal"] {
        let answer = lab
            .post("/stop/release")
            .signed(&lab.token(name).await)
            .json(&json!({ "reason": "it is safe" }))
            .send()
            .await;
        assert_eq!(answer.refused(403, "forbidden")["detail"], "Role 'admin' required");
    }
    for body in [
        json!({}),
        json!({ "reason": null }),
        json!({ "reason": "  " }),
        json!({ "reason": "x".repeat(201) }),
        json!({ "reason": "a\u{7}b" }),
    ] {
        let refused = release(body).await.refused(422, "invalid_request");
        assert_eq!(refused["errors"][0]["loc"], json!(["body", "reason"]));
    }
    lab.post("/stop/release").signed(&admin).send().await.refused(422, "invalid_request");
    assert!(lab.device.releases().is_empty());

    let body = release(json!({ "reason": "the smoke was steam" })).await.ok();
    assert_eq!(body["success"], true);
    assert_eq!(lab.device.releases(), ["the smoke was steam"]);
    let trail = lab.trail_of("device.released").await;
    let done: Vec<&Value> = trail
        .iter()
        .map(|entry| &entry.draft.details)
        .filter(|details| details["phase"].is_string())
        .collect();
    assert_eq!(
        done,
        [
            &json!({ "phase": "intent", "reason": "the smoke was steam" }),
            &json!({ "phase": "outcome", "done": true })
        ]
    );
}

#[tokio::test]
async fn a_device_that_will_not_be_released_says_why() {
    let lab = Lab::start().await;
    lab.device.refuses();

    let answer = lab
        .post("/stop/release")
        .signed(&lab.token("ada").await)
        .json(&json!({ "reason": "it is safe" }))
        .send()
        .await;

    assert_eq!(answer.refused(409, "conflict")["detail"], "the safe-state hook failed; look at the robot");
    let trail = lab.trail_of("device.released").await;
    assert_eq!(
        trail.last().map(|entry| entry.draft.details.clone()),
        Some(json!({ "phase": "outcome", "done": false }))
    );
}

#[tokio::test]
async fn the_latch_is_seen_in_the_status() {
    let lab = Lab::start().await;
    let viewer = lab.token("vic").await;
    lab.post("/stop").signed(&viewer).json(&json!({ "reason": "smoke" })).send().await.ok();

    let body = lab.get("/device").signed(&viewer).send().await.ok();

    assert_eq!(
        body["emergency_stop"],
        json!({ "engaged": true, "since": null, "by": "vic", "reason": "smoke" })
    );
    let mut members: Vec<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(
        members,
        ["actions", "attention", "emergency_stop", "name", "queued", "running", "state", "title", "worker"]
    );
    lab.get("/device").signed(&lab.token("cal").await).send().await.refused(403, "forbidden");
}

#[tokio::test]
async fn attention_is_cleared_by_operators_with_a_reason() {
    let lab = Lab::start().await;
    let clear =
        |token: String, body: Value| lab.post("/device/attention/clear").signed(&token).json(&body).send();

    clear(lab.token("vic").await, json!({ "reason": "looked" })).await.refused(403, "forbidden");
    clear(lab.token("ana").await, json!({})).await.refused(422, "invalid_request");
    clear(lab.token("ana").await, json!({ "reason": "looked" })).await.ok();

    assert_eq!(lab.device.releases(), ["looked"]);
    lab.device.refuses();
    let refused = clear(lab.token("ana").await, json!({ "reason": "looked" })).await.refused(409, "conflict");
    assert_eq!(refused["detail"], "nothing needs attention");
    lab.assert_chain().await;
}
