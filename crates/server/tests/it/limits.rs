//! Rate limits, and what is never limited.

use interlock_server::config::ServerConfig;
use serde_json::json;

use crate::lab::{Answer, Lab, eventually};

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
