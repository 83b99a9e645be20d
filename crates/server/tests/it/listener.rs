//! What only a socket shows: trailing slashes, bodies of HEAD, clients that vanish, connections that end.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::lab::{Lab, PATIENCE, eventually};
use crate::wire::{Served, serve};

async fn connect(served: &Served, head: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let text = format!("{head}\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n{body}");
    stream.write_all(text.as_bytes()).await.expect("sent");
    stream
}

/// Status, head and body of one answer.
async fn exchange(served: &Served, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = connect(served, head, body).await;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .expect("an answer in time")
        .expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn a_trailing_slash_is_answered_directly() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let token = lab.token("zoe").await;

    for path in ["/tasks", "/runs", "/health", "/auth/me", "/users", "/docs"] {
        let plain =
            exchange(&served, &format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}"), "").await;
        let slashed =
            exchange(&served, &format!("GET {path}/ HTTP/1.1\r\nAuthorization: Bearer {token}"), "").await;
        assert_eq!(plain.0, 200, "{path}: {}", plain.2);
        assert_eq!((slashed.0, slashed.2), (plain.0, plain.2), "{path}");
    }
    let run = exchange(
        &served,
        &format!("POST /execute/mix/ HTTP/1.1\r\nAuthorization: Bearer {token}"),
        r#"{"volume":5}"#,
    )
    .await;
    assert_eq!(run.0, 200, "{}", run.2);
    let queried =
        exchange(&served, &format!("GET /runs/?limit=1 HTTP/1.1\r\nAuthorization: Bearer {token}"), "").await;
    assert_eq!(serde_json::from_str::<Value>(&queried.2).expect("json")["limit"], 1);
    assert_eq!(exchange(&served, "GET / HTTP/1.1", "").await.0, 200);
    assert_eq!(exchange(&served, "GET // HTTP/1.1", "").await.0, 200);
}

#[tokio::test]
async fn head_sends_no_body_not_even_of_an_error() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;

    for (path, status) in [("/health", 200), ("/tasks", 401), ("/nothing", 404), ("/auth/login", 405)] {
        let (answered, head, body) = exchange(&served, &format!("HEAD {path} HTTP/1.1"), "").await;
        assert_eq!(answered, status);
        assert_eq!(body, "", "{path}");
        assert!(head.contains("x-request-id: "), "{head}");
    }
}

#[tokio::test]
async fn no_answer_names_the_server_software() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;

    let (_, head, _) = exchange(&served, "GET /health HTTP/1.1", "").await;

    assert!(!head.contains("\r\nserver:"), "{head}");
}

#[tokio::test]
async fn metrics_are_for_this_machine_unless_they_were_forwarded() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;

    assert_eq!(exchange(&served, "GET /metrics HTTP/1.1", "").await.0, 200);
    assert_eq!(exchange(&served, "GET /metrics HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7", "").await.0, 401);
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_its_run_to_end() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let (token, viewer) = (lab.token("ana").await, lab.token("vic").await);
    lab.device.hold();
    let stream = connect(
        &served,
        &format!("POST /execute/mix HTTP/1.1\r\nAuthorization: Bearer {token}"),
        r#"{"volume":5}"#,
    )
    .await;
    eventually("the device was called", || async { !lab.device.calls().is_empty() }).await;

    drop(stream);
    served.connections.close();
    tokio::time::timeout(PATIENCE, served.connections.wait()).await.expect("the connection ends at once");
    lab.device.let_go();

    let run = lab.device.calls()[0].run;
    eventually("the run is recorded", || async {
        lab.get(&format!("/runs/{run}")).signed(&viewer).send().await.ok()["result"]
            == json!({ "mixed": true })
    })
    .await;
    assert_eq!(lab.trail_of("device.executed").await.len(), 2);
    lab.assert_chain().await;
}

#[tokio::test]
async fn a_panic_behind_a_route_does_not_cut_the_connection() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let token = lab.token("vic").await;
    lab.device.panics(true);

    let (status, head, body) =
        exchange(&served, &format!("GET /device HTTP/1.1\r\nAuthorization: Bearer {token}"), "").await;

    assert_eq!(status, 500, "{body}");
    assert!(head.contains("application/problem+json"), "{head}");
}

#[tokio::test]
async fn shutting_down_lets_a_request_under_way_finish() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let token = lab.token("ana").await;
    lab.device.hold();
    let mut stream = connect(
        &served,
        &format!("POST /execute/mix HTTP/1.1\r\nAuthorization: Bearer {token}"),
        r#"{"volume":5}"#,
    )
    .await;
    eventually("the device was called", || async { !lab.device.calls().is_empty() }).await;

    served.stop.cancel();
    eventually("nothing is accepted any more", || async {
        TcpStream::connect(served.address).await.is_err()
    })
    .await;
    lab.device.let_go();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .expect("an answer in time")
        .expect("text");

    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    served.connections.close();
    tokio::time::timeout(PATIENCE, served.connections.wait()).await.expect("the connections end");
}
