//! Rate limits, and what is never limited.

use std::time::Duration;

use axum::Router;
use interlock_server::config::ServerConfig;
use serde_json::json;

use crate::lab::{Answer, Lab, eventually};
use crate::service::{Capture, with_metrics};

fn limited(config: &mut ServerConfig) {
    config.rate.enabled = true;
}

fn count(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status.as_u16() == status).count()
}

#[tokio::test]
async fn a_limited_answer_tells_how_the_client_stands() {
    let lab = Lab::with(limited).await;

    let first = lab.get("/docs/app.js").send().await;
    let second = lab.get("/nothing").send().await;
    let elsewhere = lab.get("/nothing").from("10.0.0.8").send().await;

    for (answer, left) in [(&first, 59), (&second, 58), (&elsewhere, 59)] {
        assert_eq!(answer.header("ratelimit-policy"), Some("\"default\";q=60;w=60"));
        let standing = answer.header("ratelimit").expect("a standing");
        assert!(standing.starts_with(&format!("\"default\";r={left};t=")), "{standing}");
    }
}

#[tokio::test]
async fn over_the_limit_the_body_says_when_to_come_back() {
    let lab = Lab::with(limited).await;
    let mut answers = Vec::new();
    for _ in 0..70 {
        answers.push(lab.get("/nothing").send().await);
    }

    assert_eq!((count(&answers, 404), count(&answers, 429)), (60, 10));
    let last = answers.last().expect("an answer");
    let body = last.refused(429, "rate_limited");
    let after: u64 = last.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=61).contains(&after), "{after}");
    assert_eq!(body["retry_after"], after);
    assert_eq!(last.header("ratelimit-policy"), Some("\"default\";q=60;w=60"));
    assert!(last.header("ratelimit").is_some_and(|standing| standing.contains("r=0;")));
    // Nobody else is touched.
    assert_eq!(lab.get("/nothing").from("10.0.0.8").send().await.status.as_u16(), 404);
}

#[tokio::test]
async fn the_hour_has_its_own_limit() {
    let lab = Lab::with(|config| {
        limited(config);
        config.rate.per_hour = 5;
    })
    .await;
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(lab.get("/nothing").send().await);
    }

    assert_eq!((count(&answers, 404), count(&answers, 429)), (5, 3));
    let after: u64 = answers[7].header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!(after > 60, "{after}");
}

#[tokio::test]
async fn a_hundred_quick_looks_at_health_give_some_429_and_leave_the_rest_alone() {
    let lab = Lab::with(limited).await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(lab.get("/health").send().await);
    }

    assert_eq!((count(&answers, 200), count(&answers, 429)), (60, 40));
    assert_eq!(lab.get("/nothing").send().await.status.as_u16(), 404);
}

#[tokio::test]
async fn signing_in_has_a_smaller_budget() {
    let lab = Lab::with(limited).await;
    let mut answers = Vec::new();
    for guess in 0..14 {
        let body = json!({ "username": format!("nobody{guess}"), "password": "x" });
        answers.push(lab.post("/auth/login").json(&body).send().await);
    }

    assert_eq!((count(&answers, 401), count(&answers, 429)), (10, 4));
    assert_eq!(answers[0].header("ratelimit-policy"), Some("\"default\";q=10;w=60"));
}

#[tokio::test]
async fn a_principal_is_limited_wherever_it_calls_from() {
    let lab = Lab::with(limited).await;
    let token = lab.token("vic").await;
    let mut answers = Vec::new();
    for host in 0..70 {
        answers.push(lab.get("/auth/me").from(&format!("10.1.0.{host}")).signed(&token).send().await);
    }

    assert_eq!((count(&answers, 200), count(&answers, 429)), (60, 10));
    answers.last().expect("an answer").refused(429, "rate_limited");
}

#[tokio::test]
async fn whoever_hammers_is_blocked_and_can_still_stop() {
    let lab = Lab::with(limited).await;
    let token = lab.token("vic").await;
    for _ in 0..661 {
        lab.get("/nothing").send().await;
    }

    let blocked = lab.get("/nothing").send().await;
    let login = lab.post("/auth/login").send().await;

    blocked.refused(403, "client_blocked");
    login.refused(403, "client_blocked");
    assert!(blocked.header("retry-after").is_some());
    lab.post("/stop").signed(&token).send().await.ok();
    lab.get("/health/live").send().await.ok();
    lab.get("/health/ready").send().await.ok();
    assert_eq!(lab.get("/nothing").from("10.0.0.8").send().await.status.as_u16(), 404);
}

#[tokio::test]
async fn probes_metrics_and_the_stop_are_never_limited() {
    let lab = Lab::with(limited).await;
    let token = lab.token("vic").await;

    for path in ["/health/live", "/health/ready", "/metrics"] {
        for _ in 0..120 {
            let answer = lab.get(path).from("127.0.0.1").send().await;
            assert_eq!(answer.status.as_u16(), 200, "{path}");
            assert_eq!(answer.header("ratelimit"), None);
        }
    }
    for _ in 0..120 {
        lab.post("/stop").signed(&token).send().await.ok();
    }
    assert_eq!(lab.device.stops().len(), 120);
}

#[tokio::test]
async fn the_stop_is_never_shed() {
    let lab = Lab::with(|config| config.connections.in_flight = 1).await;
    let viewer = lab.token("vic").await;
    lab.device.hold();
    let mut busy = Box::pin(lab.mix("ana").await.send());
    tokio::select! {
        _ = &mut busy => panic!("the device was told to wait"),
        () = eventually("the device was called", || async { !lab.device.calls().is_empty() }) => {}
    }

    lab.get("/tasks").signed(&viewer).send().await.refused(503, "unavailable");
    lab.post("/stop").signed(&viewer).send().await.ok();
    lab.get("/health/live").send().await.ok();

    lab.device.let_go();
    busy.await.ok();
    lab.get("/tasks").signed(&viewer).send().await.ok();
}

#[tokio::test]
async fn limits_can_be_switched_off() {
    let lab = Lab::start().await;

    for _ in 0..200 {
        let answer = lab.get("/health").send().await;
        answer.ok();
        assert_eq!(answer.header("ratelimit-policy"), None);
    }
}

#[tokio::test]
async fn every_place_where_credentials_are_tried_has_the_smaller_budget() {
    for path in [
        "/auth/login",
        "/auth/certificate",
        "/auth/refresh",
        "/agents/auth/token",
        "/agents/auth/refresh",
        "/agents/auth/revoke",
        "/agents/018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d/credentials",
        "/oauth/token",
        "/oauth/revoke",
        "/auth/invitations/accept",
        "/auth/passkeys/sign-in",
    ] {
        let lab = Lab::with(limited).await;
        let mut answers = Vec::new();
        for _ in 0..14 {
            answers.push(lab.post(path).json(&json!({})).send().await);
        }

        assert_eq!(count(&answers, 429), 4, "{path}");
        assert_eq!(answers[0].header("ratelimit-policy"), Some("\"default\";q=10;w=60"), "{path}");
        assert_eq!(lab.get("/nothing").send().await.status.as_u16(), 404, "{path} has a budget of its own");
    }
}

#[tokio::test]
async fn whoever_goes_on_after_429_is_blocked_for_a_time_and_on_record() {
    let lab = Lab::allowing(&["10.0.0.20/32"], limited).await;
    let logged = Capture::default();
    let _guard = logged.install();
    for address in ["10.0.0.20", "10.0.0.21"] {
        for _ in 0..661 {
            lab.get("/nothing").from(address).send().await;
        }
    }

    // The allow-list wins: it is told to wait, and no more.
    lab.get("/nothing").from("10.0.0.20").send().await.refused(429, "rate_limited");
    let blocked = lab.get("/nothing").from("10.0.0.21").send().await;
    blocked.refused(403, "client_blocked");
    assert_eq!(blocked.header("retry-after"), Some("61"));
    eventually("the ban is on record", || async { lab.trail_of("ban.imposed").await.len() == 1 }).await;
    let record = &lab.trail_of("ban.imposed").await[0].draft;
    assert_eq!(record.subject.as_deref(), Some("10.0.0.21/32"));
    assert_eq!(record.client_ip.as_deref(), Some("10.0.0.21"));
    assert_eq!(logged.text().matches("ip_blocked").count(), 1);

    let watch = || lab.get("/health").from("10.0.0.21").send();
    lab.clock.advance(Duration::from_secs(59));
    watch().await.refused(403, "client_blocked");
    lab.clock.advance(Duration::from_secs(2));
    watch().await.ok();
}

#[test]
fn of_a_flood_the_log_has_a_sample_and_the_metrics_every_refusal() {
    let logged = Capture::default();
    let _guard = logged.install();
    let rendered = with_metrics(|handle| async move {
        let lab = Lab::with(limited).await;
        for _ in 0..360 {
            lab.get("/nothing").send().await;
        }
        let token = lab.token("vic").await;
        for host in 0..70 {
            lab.get("/runs/invented-run-id").from(&format!("10.1.0.{host}")).signed(&token).send().await;
        }
        handle.render()
    });

    let has = |line: &str| assert!(rendered.lines().any(|text| text == line), "{line} in {rendered}");
    has("orchestrator_rate_limit_violations_total{endpoint=\"unmatched\",limit=\"minute\"} 300");
    has("orchestrator_rate_limit_violations_total{endpoint=\"/runs/{run_id}\",limit=\"minute\"} 10");
    has("orchestrator_security_events_total{event_type=\"rate_limit_exceeded\",severity=\"medium\"} 310");
    for invented in ["invented-run-id", "10.1.0", "10.0.0"] {
        assert!(!rendered.contains(invented), "{invented}");
    }
    // 1, 2, 4, … 256 of the address and 1, 2, 4, 8 of the principal.
    let text = logged.text();
    assert_eq!(text.matches("rate_limit_exceeded").count(), 9 + 4, "{text}");
    for number in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        assert!(text.contains(&format!("\"refused\":{number}}}")), "{number}");
    }
}

#[tokio::test]
async fn limits_that_stand_beside_the_path_are_found_at_the_start() {
    let lab = Lab::with(limited).await;
    let holds = |service: Router| interlock_server::perimeter::limits_hold(&lab.app, service);

    assert!(holds(lab.router.clone()).await);
    assert!(!holds(Router::new()).await);
    let off = Lab::start().await;
    assert!(
        interlock_server::perimeter::limits_hold(&off.app, Router::new()).await,
        "there are none to hold"
    );
    // It leaves nothing behind.
    assert_eq!(lab.get("/nothing").from("192.0.2.255").send().await.status.as_u16(), 404);
    assert!(lab.trail_of("ban.imposed").await.is_empty());
}
