//! Requests and answers: what is sent, what is retried, what is never done.

use std::time::Duration;

use interlock_client::{Client, ClientError, RunsQuery, Submission};
use interlock_model::run::RunState;
use interlock_model::secret::Secret;
use serde_json::{Map, Value, json};

use crate::mock::{Mock, Reply};

const RUN: &str = "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d";

pub(crate) fn run_view(state: &str) -> Value {
    json!({
        "id": RUN, "action": "mix", "state": state, "simulated": false, "parameters": {}, "result": null, "error": null,
        "executed_by": "ana", "request_id": "req-1", "created_at": "2026-01-31T12:00:00Z", "started_at": null, "finished_at": null,
        "duration_seconds": null, "progress": null, "artifacts": []
    })
}

fn submission() -> Submission {
    Submission {
        action: "mix".to_owned(),
        parameters: Map::new(),
        key: "key-1".to_owned(),
        simulated: false,
        traceparent: None,
    }
}

fn accepted() -> Reply {
    Reply::Full("202 Accepted", vec![("interlock-run", RUN.to_owned())], run_view("queued").to_string())
}

fn problem(status: &'static str, code: &str) -> Reply {
    Reply::json(status, &json!({ "code": code, "detail": "no", "request_id": "req-1", "errors": [] }))
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let mock = Mock::answering([Reply::Hang, Reply::Hang, accepted()]).await;

    let submitted = mock.client().submit(&submission()).await.expect("a run");

    assert_eq!(submitted.run.to_string(), RUN);
    assert!(submitted.resent);
    let asked = mock.asked();
    assert_eq!(asked.len(), 3);
    for request in &asked {
        assert_eq!(request.line, "POST /execute/mix HTTP/1.1");
        assert_eq!(request.header("idempotency-key"), Some("key-1"));
        assert_eq!(request.header("prefer"), Some("respond-async"));
        assert_eq!(request.header("interlock-simulate"), Some("false"));
        assert_eq!(request.body, "{}");
    }
}

#[tokio::test]
async fn a_run_that_ended_badly_is_never_sent_again() {
    for (status, code) in [
        ("409 Conflict", "run_uncertain"),
        ("504 Gateway Timeout", "task_timed_out"),
        ("500 Internal Server Error", "task_failed"),
    ] {
        let body = json!({ "code": code, "detail": "no" }).to_string();
        let mock =
            Mock::answering([Reply::Full(status, vec![("interlock-run", RUN.to_owned())], body)]).await;

        let error = mock.client().submit(&submission()).await.expect_err("a refusal");

        let refusal = error.refusal().expect("a refusal");
        assert_eq!(
            (refusal.problem.code.as_str(), refusal.run.map(|run| run.to_string())),
            (code, Some(RUN.to_owned()))
        );
        assert_eq!(mock.asked().len(), 1, "{code}");
    }
}

#[tokio::test]
async fn an_unknown_end_says_that_the_request_may_have_arrived() {
    let mock = Mock::answering([Reply::Hang]).await;

    // After the first request the port is closed: the later attempts are refused at once.
    let error = mock.client().submit(&submission()).await.expect_err("no server");

    assert!(matches!(error, ClientError::Unreachable { sent: true, .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_listening_means_that_nothing_was_sent() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let client = Client::builder(format!("http://127.0.0.1:{port}"))
        .token(Secret::new("ilk_test"))
        .build()
        .expect("a client");

    let error = client.device().await.expect_err("no server");

    assert!(
        matches!(&error, ClientError::Unreachable { sent: false, reason, .. } if reason == "nothing listens there"),
        "{error:?}"
    );
}

#[tokio::test]
async fn plain_http_behind_https_is_named_as_such() {
    let mock = Mock::answering([problem("400 Bad Request", "invalid_request")]).await;
    let client = Client::builder(format!("https://127.0.0.1:{}", mock.port))
        .token(Secret::new("ilk_test"))
        .build()
        .expect("a client");

    let asked = tokio::time::timeout(Duration::from_secs(10), client.device()).await.expect("an answer");

    assert!(matches!(asked, Err(ClientError::Tls { .. } | ClientError::Unreachable { .. })), "{asked:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_the_token_stays_here() {
    let elsewhere = Mock::answering([problem("500 Internal Server Error", "internal")]).await;
    let location = format!("http://127.0.0.1:{}/device", elsewhere.port);
    let mock =
        Mock::answering([Reply::Full("308 Permanent Redirect", vec![("location", location)], String::new())])
            .await;

    let error = mock.client().device().await.expect_err("a refusal");

    assert!(
        matches!(&error, ClientError::BadAnswer { reason, .. } if reason.contains("redirects are not followed")),
        "{error:?}"
    );
    assert!(elsewhere.asked().is_empty());
    assert_eq!(mock.asked()[0].header("authorization"), Some("Bearer ilk_test"));
}

#[tokio::test]
async fn without_a_token_nothing_is_sent() {
    let mock = Mock::answering([]).await;
    let client = Client::builder(format!("http://127.0.0.1:{}", mock.port)).build().expect("a client");

    assert!(matches!(client.device().await, Err(ClientError::SignInNeeded(_))));
    assert!(matches!(client.stop(None).await, Err(ClientError::SignInNeeded(_))));
    assert!(mock.asked().is_empty());
}

#[tokio::test]
async fn a_refused_token_needs_a_new_sign_in() {
    let mock = Mock::answering([problem("401 Unauthorized", "unauthorized")]).await;

    assert!(matches!(mock.client().me().await, Err(ClientError::SignInNeeded(_))));
}

#[tokio::test]
async fn names_never_become_paths_and_queries_are_escaped() {
    let page = json!({ "items": [], "total": 0, "limit": 20, "offset": 0, "has_more": false });
    let mock =
        Mock::answering([problem("404 Not Found", "artifact_not_found"), Reply::json("200 OK", &page)]).await;
    let client = mock.client();

    let missing = client.artifact(RUN.parse().expect("an id"), "../../users?x=1#y").await;
    let query =
        RunsQuery { state: Some(RunState::Failed), action: Some("a&b=c".to_owned()), ..RunsQuery::default() };
    client.runs(&query).await.expect("a page");

    assert_eq!(missing.expect_err("missing").refusal().map(|refusal| refusal.status), Some(404));
    let asked = mock.asked();
    assert_eq!(asked[0].line, format!("GET /runs/{RUN}/artifacts/..%2F..%2Fusers%3Fx=1%23y HTTP/1.1"));
    assert_eq!(asked[1].line, "GET /runs?state=failed&action=a%26b%3Dc HTTP/1.1");
}

#[tokio::test]
async fn a_stop_is_sent_again_when_the_connection_breaks() {
    let report = json!({
        "engaged": true, "confirmed": 1, "of": 1, "devices": [{"name": "sim", "confirmed": true, "killed_ms": 3.0, "safe_state": "none",
        "safe_state_entered_ms": null, "safe_state_done_ms": null, "error": null, "cancelled_run": null}], "cancelled_run": null,
        "engaged_at": "2026-01-31T12:00:00Z", "reason": "smoke"
    });
    let mock = Mock::answering([Reply::Hang, Reply::json("200 OK", &report)]).await;

    let report = mock.client().stop(Some("smoke")).await.expect("a report");

    assert_eq!((report.confirmed, report.of), (1, 1));
    assert_eq!(mock.asked()[1].body, r#"{"reason":"smoke"}"#);
}

#[tokio::test]
async fn an_answer_that_is_not_from_this_system_is_said_to_be_so() {
    let html = || {
        Reply::Full(
            "200 OK",
            vec![("content-type", "text/html".to_owned())],
            "<html>router login</html>".to_owned(),
        )
    };
    let broken = || Reply::Full("418 I'm a teapot", Vec::new(), String::new());
    let mock = Mock::answering([html(), broken()]).await;

    for _ in 0..2 {
        assert!(matches!(mock.client().device().await, Err(ClientError::BadAnswer { .. })));
    }
}

#[tokio::test]
async fn a_raw_request_cannot_leave_the_server() {
    let mock = Mock::answering([]).await;

    for path in ["https://evil.example.org/", "//evil.example.org/", "device", "@evil.example.org/", ""] {
        assert!(
            matches!(mock.client().raw("GET", path, None).await, Err(ClientError::Settings(_))),
            "{path}"
        );
    }
}
