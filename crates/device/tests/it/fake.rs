//! Workers that break the rules of the protocol, and workers in other languages.

use std::time::Duration;

use interlock_model::device::{EventKind, Outcome, Rung};
use serde_json::json;

use crate::lab::{Lab, bounded, call, drain, standby_is_ready};

#[tokio::test]
async fn a_worker_that_never_answers_is_given_up() {
    let mut lab = Lab::fake("silent");
    lab.config.load_deadline = Duration::from_millis(200);

    let error = lab.try_start().await.expect_err("refused");

    assert!(error.to_string().contains("not ready after"), "{error}");
}

#[tokio::test]
async fn a_worker_of_another_protocol_is_refused() {
    let error = Lab::fake("future").try_start().await.expect_err("refused");

    assert!(error.to_string().contains("version 2"), "{error}");
}

#[tokio::test]
async fn a_broken_stream_kills_the_worker_and_not_the_host() {
    for (mode, word) in
        [("long_line", "more than"), ("garbage", "not a message"), ("closes", "closed its message stream")]
    {
        let lab = Lab::fake(mode);
        let host = lab.start().await;
        standby_is_ready(&host).await;

        let outcome = bounded(host.call(call("act"))).await;

        assert!(
            matches!(&outcome, Outcome::Crashed { reason } if reason.contains(word)),
            "{mode}: {outcome:?}"
        );
        assert_eq!(lab.notes(), ["act", "rest crashed"], "{mode}");
        assert_eq!(host.status().state, "ready", "{mode}");
    }
}

#[tokio::test]
async fn the_last_words_of_a_worker_count() {
    let lab = Lab::fake("last_words");
    let host = lab.start().await;

    let outcome = bounded(host.call(call("act"))).await;

    assert!(
        matches!(&outcome, Outcome::Returned { result, .. } if *result == json!("the end")),
        "{outcome:?}"
    );
    lab.noted("rest crashed").await;
}

#[tokio::test]
async fn a_worker_that_hears_nothing_is_killed_at_the_deadline() {
    let lab = Lab::fake("deaf");
    let host = lab.start().await;
    let mut act = call("act");
    act.timeout = Duration::from_millis(100);

    assert_eq!(bounded(host.call(act)).await, Outcome::TimedOut { rung: Rung::Kill });
    assert_eq!(lab.notes(), ["act", "rest timed_out"]);
}

#[tokio::test]
async fn unknown_messages_and_those_of_other_runs_are_ignored() {
    let lab = Lab::fake("chatty");
    let host = lab.start().await;

    let outcome = bounded(host.call(call("act"))).await;

    assert!(matches!(&outcome, Outcome::Returned { result, .. } if *result == json!("mine")), "{outcome:?}");
}

#[tokio::test]
async fn a_flood_of_prints_blocks_nobody_and_is_bounded() {
    let lab = Lab::fake("flood");
    let host = lab.start().await;
    let mut events = host.events();

    let outcome = bounded(host.call(call("act"))).await;

    assert!(matches!(outcome, Outcome::Returned { .. }), "{outcome:?}");
    let kept = drain(&mut events).into_iter().filter(|event| matches!(event, EventKind::Log { .. })).count();
    assert!(kept <= 10_001, "{kept}");
}

#[tokio::test]
async fn a_long_message_is_handled_while_nothing_else_happens() {
    let mut lab = Lab::fake("long_result");
    lab.config.standby = false;
    let host = lab.start().await;

    let outcome = bounded(host.call(call("act"))).await;

    assert!(
        matches!(&outcome, Outcome::Returned { result, .. } if result.as_str().map(str::len) == Some(1_000_000))
    );
}
