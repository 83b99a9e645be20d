//! Events over cut connections.

use std::time::Duration;

use interlock_client::{ClientError, Follow, News};
use interlock_model::device::EventKind;
use interlock_model::run::RunState;
use serde_json::json;

use crate::mock::{Mock, Reply};
use crate::requests::run_view;

const RUN: &str = "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d";

fn event(seq: u64, kind: &str, data: &serde_json::Value) -> String {
    let body = json!({ "seq": seq, "at": "2026-01-31T12:00:00Z", "kind": kind, "data": data });
    format!("id: {seq}\nevent: {kind}\ndata: {body}\n\n")
}

fn log(seq: u64) -> String {
    event(seq, "log", &json!({ "level": "info", "message": format!("line {seq}") }))
}

fn state(seq: u64, state: &str) -> String {
    event(seq, "state", &json!({ "state": state }))
}

/// Numbers of the events, and how often the connection was cut.
async fn all(mut follow: Follow) -> Result<(Vec<u64>, usize), ClientError> {
    let (mut numbers, mut cuts) = (Vec::new(), 0);
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), follow.next()).await.expect("an end");
        match next? {
            Some(News::Event(event)) => numbers.push(event.seq),
            Some(News::Cut { .. }) => cuts += 1,
            Some(News::Back) => {}
            None => return Ok((numbers, cuts)),
        }
    }
}

fn follow(mock: &Mock) -> Follow {
    mock.client().follow(RUN.parse().expect("an id"), 0)
}

#[tokio::test]
async fn a_run_is_followed_to_its_final_state() {
    let stream = [state(1, "running"), ": still here\n\n".to_owned(), log(2), state(3, "succeeded")].concat();
    // The server's silence after the end does not matter.
    let mock = Mock::answering([Reply::StreamAndSilence(stream)]).await;
    let mut following = follow(&mock);

    let mut last = None;
    while let Some(News::Event(event)) = following.next().await.expect("news") {
        last = Some(event.kind);
    }

    assert_eq!(last, Some(EventKind::State { state: RunState::Succeeded }));
    assert_eq!(mock.asked()[0].header("accept"), Some("text/event-stream"));
    assert_eq!(mock.asked()[0].header("last-event-id"), None);
}

#[tokio::test]
async fn after_a_cut_every_event_comes_once() {
    let first = format!("{}{}id: 3\ndata: half an eve", state(1, "running"), log(2));
    let second = [log(2), log(3), log(4), state(5, "failed")].concat();
    let mock = Mock::answering([
        Reply::Stream(first),
        Reply::json("200 OK", &run_view("running")),
        Reply::Stream(second),
    ])
    .await;

    let (numbers, cuts) = all(follow(&mock)).await.expect("the end");

    assert_eq!((numbers, cuts), (vec![1, 2, 3, 4, 5], 1));
    assert_eq!(mock.asked()[2].header("last-event-id"), Some("2"));
}

#[tokio::test]
async fn a_server_that_restarts_is_waited_for() {
    let busy = Reply::Full(
        "503 Service Unavailable",
        vec![("retry-after", "0".to_owned())],
        json!({ "code": "unavailable", "detail": "stopping" }).to_string(),
    );
    let mock = Mock::answering([Reply::Hang, busy, Reply::Stream(state(1, "cancelled"))]).await;

    let (numbers, cuts) = all(follow(&mock)).await.expect("the end");

    assert_eq!((numbers, cuts), (vec![1], 2));
}

#[tokio::test]
async fn a_stream_without_a_last_word_ends_when_the_run_is_over() {
    let mock = Mock::answering([Reply::Stream(log(1)), Reply::json("200 OK", &run_view("timed_out"))]).await;

    assert_eq!(all(follow(&mock)).await.expect("the end"), (vec![1], 0));
}

#[tokio::test]
async fn events_of_later_versions_are_passed_over() {
    let stream = [event(1, "hologram", &json!({ "x": 1 })), log(2), state(3, "succeeded")].concat();
    let mock = Mock::answering([Reply::Stream(stream)]).await;

    assert_eq!(all(follow(&mock)).await.expect("the end").0, vec![2, 3]);
}

#[tokio::test]
async fn a_refusal_ends_the_following_and_a_lost_server_is_given_up() {
    let refused =
        Mock::answering([Reply::json("404 Not Found", &json!({ "code": "run_not_found", "detail": "no" }))])
            .await;
    let gone = Mock::answering([Reply::Hang]).await;

    let refusal = all(follow(&refused)).await.expect_err("a refusal");
    let lost = all(follow(&gone).give_up_after(Duration::from_millis(500))).await.expect_err("no server");

    assert_eq!(refusal.refusal().map(|refusal| refusal.status), Some(404));
    assert!(matches!(lost, ClientError::Unreachable { .. }), "{lost:?}");
}
