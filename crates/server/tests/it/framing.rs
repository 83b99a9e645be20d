//! Framing without doubt: every vector over TCP and TLS, alone and behind another request, whole and in pieces.

use std::time::Duration;

use axum::http::Method;
use interlock_server::config::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Lab, PATIENCE, eventually};
use crate::service::{Capture, with_metrics};
use crate::vectors::{BODIES, FIELDS, LINES, Vector, Verdict};
use crate::wire::{Reply, Served, serve, serve_tls};

const FIRST: &[u8] = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// What a smuggler hides. Answered only where the connection goes on, as a request of its own.
const NEXT: &[u8] = b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn vectors() -> impl Iterator<Item = &'static Vector> {
    LINES.iter().chain(FIELDS).chain(BODIES)
}

#[track_caller]
fn assert_refused(name: &str, reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{name}: {reply:?}");
    let body = reply.json();
    assert_eq!(body["code"], "invalid_request", "{name}");
    assert_eq!(body["status"], status, "{name}");
    assert_eq!(body["detail"], body["message"], "{name}");
    assert!(body["request_id"].as_str().is_some_and(|id| id.starts_with("req-")), "{name}: {body}");
    assert_eq!(reply.header("x-request-id"), body["request_id"].as_str(), "{name}");
    for (field, value) in [
        ("connection", "close"),
        ("content-type", "application/problem+json"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "deny"),
        ("x-xss-protection", "0"),
        ("referrer-policy", "strict-origin-when-cross-origin"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ] {
        assert_eq!(reply.header(field), Some(value), "{name}: {}", reply.head);
    }
}

#[track_caller]
fn assert_verdict(name: &str, replies: &[Reply], before: &[u16], verdict: Verdict) {
    let seen: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    let expected = match verdict {
        Verdict::Goes(statuses) => [before, statuses, &[200]].concat(),
        Verdict::Ends(statuses) => [before, statuses].concat(),
        Verdict::Refused(status) => [before, &[status]].concat(),
    };
    assert_eq!(seen, expected, "{name}");
    let last = replies.last().expect("an answer");
    if let Verdict::Refused(status) = verdict {
        assert_refused(name, last, status);
    }
    assert!(
        last.head.contains("\r\nconnection: close") || last.head.starts_with("http/1.0"),
        "{name}: {}",
        last.head
    );
}

async fn every_vector(served: &Served) {
    for (name, bytes, verdict) in vectors() {
        let alone = served.exchange(&[&[*bytes, NEXT].concat()]).await;
        assert_verdict(name, &alone, &[], *verdict);
        let behind = served.exchange(&[&[FIRST, *bytes, NEXT].concat()]).await;
        assert_verdict(name, &behind, &[200], *verdict);
    }
}

#[test]
fn there_are_enough_vectors_and_none_is_there_twice() {
    let mut names: Vec<&str> = vectors().map(|(name, ..)| *name).collect();
    assert!(names.len() >= 98, "{}", names.len());
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), vectors().count());
}

#[tokio::test]
async fn every_vector_ends_as_it_must_over_tcp() {
    let lab = Lab::start().await;
    every_vector(&serve(&lab).await).await;
}

#[tokio::test]
async fn every_vector_ends_as_it_must_over_tls() {
    let lab = Lab::start().await;
    every_vector(&serve_tls(&lab).await).await;
}

#[tokio::test]
async fn the_verdict_does_not_depend_on_packets() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;

    for (name, bytes, verdict) in vectors() {
        let all = [FIRST, bytes, NEXT].concat();
        let pieces: Vec<&[u8]> = all.chunks(1).collect();
        assert_verdict(name, &served.exchange(&pieces).await, &[200], *verdict);
        let pieces: Vec<&[u8]> = all.chunks(17).collect();
        assert_verdict(name, &served.exchange(&pieces).await, &[200], *verdict);
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_or_has_too_many_fields_is_refused() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let head =
        |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").into_bytes();
    let many = |count: usize| "X: y\r\n".repeat(count - 1);

    for (bytes, status) in [
        (head("GET /health/live", &format!("X: {}\r\n", "y".repeat(16_000))), 200),
        (head("GET /health/live", &format!("X: {}\r\n", "y".repeat(20_000))), 431),
        (head("GET /health/live", &many(100)), 200),
        (head("GET /health/live", &many(101)), 431),
        (head(&format!("GET /health/live?{}", "a".repeat(20_000)), ""), 414),
    ] {
        let replies = served.exchange(&[&[FIRST, &bytes, NEXT].concat()]).await;
        if status == 200 {
            assert_verdict("within", &replies, &[200], Verdict::Goes(&[200]));
        } else {
            assert_verdict("beyond", &replies, &[200], Verdict::Refused(status));
        }
    }
}

#[tokio::test]
async fn a_refusal_waits_for_the_answers_before_it() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let token = lab.token("ana").await;
    lab.device.hold();
    let call = format!(
        "POST /execute/mix HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 12\r\n\r\n{{\"volume\":5}}"
    );
    let sent = [call.as_bytes(), b"GET / HTTP/1.1\nHost: localhost\n\n", NEXT].concat();

    let pieces = [sent.as_slice()];
    let mut exchange = Box::pin(served.exchange(&pieces));
    tokio::select! {
        replies = &mut exchange => panic!("answered out of order: {replies:?}"),
        () = eventually("the device was called", || async { !lab.device.calls().is_empty() }) => {}
    }
    lab.device.let_go();
    let replies = exchange.await;

    assert_verdict("behind a call", &replies, &[200], Verdict::Refused(400));
    assert!(replies[0].body.contains("mixed"), "{:?}", replies[0]);
    assert_eq!(lab.device.calls().len(), 1);
}

#[tokio::test]
async fn a_body_that_is_waited_for_is_asked_for_first() {
    let lab = Lab::start().await;
    let served = serve(&lab).await;
    let mut stream = served.connect(b"http/1.1").await;
    let head = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n";
    stream.write_all(head).await.expect("sent");

    let mut go_on = [0; 25];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut go_on)).await.expect("in time").expect("an answer");
    stream.write_all(b"{}").await.expect("sent");
    let mut rest = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut rest)).await.expect("in time").expect("text");

    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert!(rest.starts_with("HTTP/1.1 422"), "{rest}");
}

#[tokio::test]
async fn an_answer_is_not_lost_to_a_body_that_nobody_reads() {
    let lab = Lab::with(|config| config.max_request_size = 1000).await;
    let served = serve(&lab).await;
    let body = vec![b' '; 4 << 20];
    let head =
        format!("POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());

    let replies = served.exchange(&[head.as_bytes(), &body]).await;

    assert_verdict("too large", &replies, &[], Verdict::Ends(&[413]));
}

#[test]
fn a_refusal_is_counted_and_logged_once_with_its_reason() {
    let capture = Capture::default();
    let (rendered, refused) = with_metrics(|handle| async move {
        let _captured = capture.install();
        let lab = Lab::start().await;
        let served = serve(&lab).await;
        let head = served.exchange(&[&[FIRST, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", NEXT].concat()]).await;
        let body =
            b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n";
        assert_verdict("a chunk", &served.exchange(&[body]).await, &[], Verdict::Ends(&[400]));
        let late = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_verdict(
            "late",
            &served.exchange(&[&[&late[..], NEXT].concat()]).await,
            &[],
            Verdict::Ends(&[200]),
        );
        let log = capture.text();
        for reason in ["host_malformed", "chunk_size", "bytes_after_last_request"] {
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(reason)).collect();
            assert_eq!(lines.len(), 1, "{reason}: {log}");
            assert!(lines[0].contains("request_blocked") && lines[0].contains("127.0.0.1"), "{}", lines[0]);
        }
        let id = head[1].header("x-request-id").expect("an id").to_owned();
        let named = log.lines().filter(|line| line.contains(&id)).count();
        (handle.render(), (named, head.len()))
    });

    // The security event and the access line carry the id of the answer.
    assert_eq!(refused, (2, 2));
    assert!(rendered.contains("orchestrator_blocked_requests_total{reason=\"framing\"} 3"), "{rendered}");
    assert!(
        rendered.contains(
            "orchestrator_security_events_total{event_type=\"request_blocked\",severity=\"high\"} 3"
        ),
        "{rendered}"
    );
}

fn impatient(config: &mut ServerConfig) {
    config.connections.patience = Duration::from_millis(200);
}

#[tokio::test]
async fn a_body_that_trickles_is_refused() {
    let lab = Lab::with(impatient).await;
    let served = serve(&lab).await;
    let head = "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n{";

    let replies = served.exchange(&[head.as_bytes()]).await;

    assert_verdict("trickle", &replies, &[], Verdict::Ends(&[408]));
    assert_eq!(replies[0].json()["code"], "timeout");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answers_is_cut_off() {
    let lab = Lab::with(impatient).await;
    let served = serve(&lab).await;
    let mut stream = served.connect(b"http/1.1").await;

    // More answers than the buffers between us hold; none is read until the server is gone.
    let asking = async { while stream.write_all(&FIRST.repeat(100)).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, asking).await.expect("the server ends the connection");
    served.connections.close();
    tokio::time::timeout(PATIENCE, served.connections.wait()).await.expect("the connection ends");
}

#[tokio::test]
async fn one_address_has_a_bounded_number_of_busy_connections_and_a_proxy_more() {
    for (trusted, places) in [(false, 2), (true, 4)] {
        let lab = Lab::with(|config| {
            config.connections.per_address = 2;
            config.connections.total = 8;
            if trusted {
                config.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a net")];
            }
        })
        .await;
        let served = serve(&lab).await;
        let mut open = Vec::new();
        for _ in 0..places {
            let mut stream = served.connect(b"http/1.1").await;
            let head = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
            stream.write_all(head).await.expect("sent");
            // Asked for its body, it is busy, and no place for anybody else.
            let mut go_on = [0; 25];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut go_on))
                .await
                .expect("in time")
                .expect("100");
            open.push(stream);
        }
        let mut one_more = served.connect(b"http/1.1").await;
        let mut nothing = Vec::new();

        let ended =
            tokio::time::timeout(PATIENCE, one_more.read_to_end(&mut nothing)).await.expect("it ends");

        assert!(ended.is_err() || nothing.is_empty(), "{places}: {nothing:?}");
    }
}

#[tokio::test]
async fn rules_that_no_library_knows_hold_inside_too() {
    let lab = Lab::start().await;

    lab.get("/health/live").header("expect", "more").send().await.refused(417, "invalid_request");
    lab.ask(Method::CONNECT, "/health/live").send().await.refused(400, "invalid_request");
    let twice =
        lab.post("/auth/login").header("content-length", "2").header("content-length", "2").bare("{}");
    twice.send().await.refused(400, "invalid_request");
}
