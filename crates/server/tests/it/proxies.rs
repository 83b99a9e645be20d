//! What stands before the server or beside it: proxies that speak for their clients, and the listener of probes and metrics.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use interlock_server::config::RateLimits;
use interlock_server::listener::Listener;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lab::{Lab, PATIENCE};
use crate::wire::{Reply, Served, replies, serve};

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The PROXY protocol's words for a client with this address.
fn speaks_for(client: [u8; 4]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(client);
    bytes.extend(Ipv4Addr::LOCALHOST.octets());
    bytes.extend([0x12, 0x34, 0x01, 0xbb]);
    bytes
}

/// What comes back until the server ends the connection.
async fn send(address: SocketAddr, pieces: &[&[u8]]) -> Vec<Reply> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    for piece in pieces {
        if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
            break;
        }
    }
    let mut bytes = Vec::new();
    // A connection that is reset has ended too.
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    assert!(reading.is_ok(), "the server does not end the connection");
    replies(&String::from_utf8_lossy(&bytes))
}

async fn behind_a_balancer(
    change: impl FnOnce(&mut interlock_server::config::ServerConfig),
) -> (Lab, Served) {
    let lab = Lab::with(|config| {
        config.proxy_protocol = vec!["127.0.0.0/8".parse().expect("a network")];
        change(config);
    })
    .await;
    let served = serve(&lab).await;
    (lab, served)
}

#[tokio::test]
async fn a_named_balancer_speaks_for_its_clients() {
    let (lab, served) = behind_a_balancer(|_| {}).await;
    let stranger = speaks_for([203, 0, 113, 7]);

    // Metrics are for this machine: the balancer is on it, its client is not.
    assert_eq!(send(served.address, &[&stranger, GET.as_bytes()]).await[0].status, 401);
    assert_eq!(send(served.address, &[&speaks_for([127, 0, 0, 1]), GET.as_bytes()]).await[0].status, 200);
    let mut probe = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    probe.extend(GET.as_bytes());
    assert_eq!(send(served.address, &[&probe]).await[0].status, 200, "the balancer's own probe");

    let admin = lab.token("ada").await;
    let ban = json!({ "network": "203.0.113.7", "reason": "a test" });
    assert_eq!(lab.post("/bans").signed(&admin).json(&ban).send().await.status.as_u16(), 201);
    let page = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(send(served.address, &[&stranger, page]).await[0].json()["code"], "client_blocked");
    assert_eq!(send(served.address, &[&speaks_for([203, 0, 113, 8]), page]).await[0].status, 200);
}

#[tokio::test]
async fn nothing_else_is_taken_from_a_balancer_and_no_preamble_from_anybody_else() {
    let (_lab, served) = behind_a_balancer(|_| {}).await;
    let direct = Lab::start().await;
    let plain = serve(&direct).await;
    let stranger = speaks_for([203, 0, 113, 7]);

    assert!(send(served.address, &[GET.as_bytes()]).await.is_empty(), "a request without a preamble");
    let first_version = b"PROXY TCP4 203.0.113.7 127.0.0.1 1 2\r\n";
    assert!(send(served.address, &[first_version, GET.as_bytes()]).await.is_empty());
    let twice = send(served.address, &[&stranger, &stranger, GET.as_bytes()]).await;
    assert_eq!(twice[0].status, 400);
    let refused = send(plain.address, &[&stranger, GET.as_bytes()]).await;
    assert_eq!(refused[0].status, 400, "a stranger speaks for another");
}

#[tokio::test]
async fn a_preamble_that_does_not_come_ends_the_connection() {
    let (_lab, served) =
        behind_a_balancer(|config| config.connections.handshake = Duration::from_millis(200)).await;
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    stream.write_all(&speaks_for([203, 0, 113, 7])[..20]).await.expect("sent");

    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;

    assert!(ended.is_ok() && rest.is_empty());
}

#[tokio::test]
async fn the_cap_of_an_address_holds_for_clients_behind_a_balancer() {
    let (_lab, served) = behind_a_balancer(|config| {
        (config.connections.per_address, config.connections.total) = (2, 100);
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(served.address).await.expect("a connection");
        stream.write_all(&speaks_for([203, 0, 113, 7])).await.expect("sent");
        let request = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.expect("in time");
        assert!(read.expect("an answer") > 0);
        open.push(stream);
    }
    // The oldest, idle by now, gave its place to the third.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(3), open[0].read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "three connections of one client are open");
    let other = send(served.address, &[&speaks_for([203, 0, 113, 8]), GET.as_bytes()]).await;
    assert_eq!(other[0].status, 401, "another client has its own places");
}

#[tokio::test]
async fn probes_and_metrics_have_a_listener_of_their_own() {
    let lab = Lab::with(|config| {
        config.internal_listener = true;
        config.rate = RateLimits { enabled: true, per_minute: 5, per_hour: 5 };
    })
    .await;
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listener = Listener::internal(tcp, Arc::clone(&lab.app.entropy));
    let address = listener.address().expect("an address");
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tokio::spawn(listener.serve(interlock_server::internal_router(lab.app.clone()), stop, tasks));
    // A supervisor asks by the address that it knows.
    let ask = async |method: &str, path: &str| {
        let text = format!("{method} {path} HTTP/1.1\r\nHost: 10.0.0.9:9100\r\nConnection: close\r\n\r\n");
        send(address, &[text.as_bytes()]).await.remove(0)
    };

    for path in ["/health/live", "/health/ready", "/metrics"] {
        for _ in 0..10 {
            let answer = ask("GET", path).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert!(answer.header("x-request-id").is_some());
        }
    }
    for path in ["/", "/docs", "/tasks", "/auth/me", "/openapi.json", "/health"] {
        assert_eq!(ask("GET", path).await.json()["code"], "not_found", "{path}");
    }
    assert_eq!(ask("POST", "/metrics").await.json()["code"], "method_not_allowed");
    assert_eq!(send(address, &[b"GET /health/live HTTP/1.1\nHost: x\n\n"]).await[0].status, 400);
    lab.get("/metrics").send().await.refused(404, "not_found");
    lab.get("/health/live").send().await.ok();
}
