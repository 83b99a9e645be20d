//! What passes the gate, however it was cut, and that the library behind counts the same requests.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use interlock_model::time::TestEntropy;
use proptest::prelude::*;
use proptest::sample::select;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A stream that comes in pieces, then ends.
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.pop_front() {
            let rest = piece.split_off(piece.len().min(target.remaining()));
            target.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn gate<S>(stream: S) -> (Gate<S>, Arc<Verdict>) {
    let verdict = Arc::new(Verdict::default());
    let log = Log { peer: [192, 0, 2, 1].into(), entropy: Arc::new(TestEntropy::seeded(1)) };
    (Gate::new(stream, Arc::clone(&verdict), log), verdict)
}

/// Everything that a reader behind the gate can find out.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    passed: Vec<u8>,
    requests: usize,
    refused: Option<Reason>,
    /// A body was refused.
    failed: bool,
}

fn outcome(pieces: Vec<Vec<u8>>, room: usize) -> Outcome {
    let (mut gate, verdict) = gate(Pieces(pieces.into()));
    let mut context = Context::from_waker(Waker::noop());
    let (mut passed, mut failed) = (Vec::new(), false);
    loop {
        let mut space = vec![0; room];
        let mut target = ReadBuf::new(&mut space);
        match Pin::new(&mut gate).poll_read(&mut context, &mut target) {
            Poll::Ready(Ok(())) if target.filled().is_empty() => break,
            Poll::Ready(Ok(())) => passed.extend_from_slice(target.filled()),
            Poll::Ready(Err(_)) => {
                failed = true;
                break;
            }
            Poll::Pending => break,
        }
    }
    let refused = verdict.0.get().map(|(number, refused)| {
        assert_eq!(*number, gate.passed + 1);
        assert!(passed.ends_with(STAND_IN));
        passed.truncate(passed.len() - STAND_IN.len());
        refused.reason
    });
    Outcome { passed, requests: gate.passed, refused, failed }
}

fn whole(bytes: &[u8]) -> Outcome {
    outcome(vec![bytes.to_vec()], 64 * 1024)
}

/// Requests as the library behind the gate counts them, the stand-in left out.
async fn served(bytes: &[u8]) -> usize {
    let (mut client, server) = tokio::io::duplex(256 * 1024);
    let (gate, verdict) = gate(server);
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let number = count.fetch_add(1, Ordering::AcqRel) + 1;
        let stands_in = verdict.on(number).is_some();
        assert_eq!(request.uri().authority().is_some(), request.uri().scheme().is_some());
        assert_eq!(stands_in, request.headers().get("host").is_some_and(|host| host == "gate.invalid"));
        async move {
            let status = if stands_in || request.into_body().collect().await.is_err() { 400 } else { 200 };
            let answer = hyper::Response::builder().status(status).body(axum::body::Body::empty());
            Ok::<_, Infallible>(answer.expect("an answer"))
        }
    });
    let serving = tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(gate), service),
    );
    client.write_all(bytes).await.expect("sent");
    client.shutdown().await.expect("ended");
    let mut answers = Vec::new();
    let _ = client.read_to_end(&mut answers).await;
    let ended = serving.await.expect("no panic");
    // Whatever the library refused by itself would be a request that the gate should have refused.
    assert!(
        !ended.is_err_and(|error| error.is_parse() && !error.is_incomplete_message()),
        "the library refused {:?}",
        String::from_utf8_lossy(bytes)
    );
    calls.load(Ordering::Acquire)
}

const GOOD: [&str; 10] = [
    "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "\r\nGET /a?b=%20c HTTP/1.1\r\nhost:localhost:80\r\nX-Empty:\r\nX-High: \u{e9}\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n",
    "GET http://localhost/x HTTP/1.1\r\nHost: LOCALHOST\r\nConnection: keep-alive, x\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "PATCH /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
];

#[test]
fn what_is_well_formed_passes_unchanged() {
    let all = GOOD.concat();

    let seen = whole(all.as_bytes());

    assert_eq!(String::from_utf8_lossy(&seen.passed), all);
    assert_eq!((seen.requests, seen.refused, seen.failed), (GOOD.len(), None, false));
}

#[test]
fn nothing_passes_after_the_last_request() {
    for last in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: x, Close\r\n\r\n",
        "POST / HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n{}",
    ] {
        for after in ["", "\r\n", GOOD[0], "\0\0\0"] {
            let seen = whole(format!("{last}{after}").as_bytes());

            assert_eq!(String::from_utf8_lossy(&seen.passed), last);
            assert_eq!((seen.requests, seen.refused), (1, None), "{after:?}");
        }
    }
}

#[test]
fn a_refused_head_ends_what_passes() {
    let seen = whole(format!("{}GET / HTTP/1.1\nHost: x\r\n\r\n{}", GOOD[2], GOOD[0]).as_bytes());

    assert_eq!(String::from_utf8_lossy(&seen.passed), GOOD[2]);
    assert_eq!((seen.requests, seen.refused), (1, Some(Reason::BareLf)));
}

#[test]
fn a_head_has_one_bound_wherever_it_is_cut() {
    let head = |length: usize| {
        let start = "GET / HTTP/1.1\r\nHost: localhost\r\nX: ";
        format!("{start}{}\r\n\r\n", "a".repeat(length - start.len() - 4)).into_bytes()
    };
    let line = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(MAX_HEAD));

    assert_eq!(whole(&head(MAX_HEAD)).requests, 1);
    for room in [1, 1000] {
        let pieces = |bytes: &[u8]| bytes.chunks(room).map(<[u8]>::to_vec).collect();
        assert_eq!(outcome(pieces(&head(MAX_HEAD)), 100).requests, 1);
        assert_eq!(outcome(pieces(&head(MAX_HEAD + 1)), 100).refused, Some(Reason::HeadTooLarge));
        assert_eq!(outcome(pieces(line.as_bytes()), 100).refused, Some(Reason::TargetTooLong));
    }
    assert_eq!(whole(&head(MAX_HEAD + 1)).refused, Some(Reason::HeadTooLarge));
    assert_eq!(whole(line.as_bytes()).refused, Some(Reason::TargetTooLong));
}

#[test]
fn a_byte_that_belongs_in_no_head_is_refused_before_the_line_ends() {
    for (bytes, reason) in [
        (&b"\x16\x03\x01\x02"[..], Reason::Control),
        (b"GET / HTTP/1.1\r\nHost: a\0", Reason::Control),
        (b"GET / HTTP/1.1\n", Reason::BareLf),
        (b"GET / HTTP/1.1\r\nA: b\rc", Reason::BareCr),
        (b"GET /\r\n", Reason::RequestLine),
        (b"PRI * HTTP/2.0\r\n", Reason::Version),
    ] {
        assert_eq!(whole(bytes).refused, Some(reason), "{:?}", String::from_utf8_lossy(bytes));
    }
}

/// Well-formed lines and their cousins.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let fragment = select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /x HTTP/1.1\r\n",
        "GET http://localhost/ HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "GET /\"{}|^ HTTP/1.1\r\n",
        "GET /?`\\[] HTTP/1.1\r\n",
        "GET //x?y#z HTTP/1.1\r\n",
        "Host: localhost\r\n",
        "Host: localhost\r\n",
        "Host: localhost\r\n",
        "Host: a:99999\r\n",
        "host:\t[::1]\t\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 05\r\n",
        "Content-Length: 5, 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding:\tchunked\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Upgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "X: y\r\n",
        " folded\r\n",
        "X : y\r\n",
        "\r\n",
        "\r\n",
        "\r\n",
        "hello",
        "5\r\nhello\r\n",
        "5;a=\"b\"\r\nhello\r\n",
        "0\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "5 \r\n",
        "\n",
        "\r",
        "\0",
        "\u{e9}",
    ]);
    let request = select(GOOD.to_vec());
    let piece = prop_oneof![3 => request, 4 => fragment].prop_map(|text| text.as_bytes().to_vec());
    let noise = proptest::collection::vec(any::<u8>(), 0..8);
    proptest::collection::vec(prop_oneof![12 => piece, 1 => noise], 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_verdict_does_not_depend_on_the_cuts(bytes in pieces(), sizes in proptest::collection::vec(1_usize..40, 1..8), room in 1_usize..200) {
        let (mut cut, mut at) = (Vec::new(), 0);
        for size in sizes.iter().cycle() {
            if at >= bytes.len() { break; }
            let end = bytes.len().min(at + size);
            cut.push(bytes[at..end].to_vec());
            at = end;
        }

        let single = outcome(bytes.iter().map(|&byte| vec![byte]).collect(), room);

        prop_assert_eq!(&single, &outcome(cut, room));
        prop_assert_eq!(&single, &whole(&bytes));
        prop_assert!(bytes.starts_with(&single.passed), "what passes is the start of what came");
    }

    #[test]
    fn the_library_behind_counts_the_same_requests(bytes in pieces()) {
        let seen = whole(&bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

        let served = runtime.block_on(served(&bytes));

        // A refused body ends the connection, so that nothing follows; a refused head adds its stand-in.
        prop_assert_eq!(served, seen.requests + usize::from(seen.refused.is_some()));
    }
}

#[test]
fn every_prefix_of_every_good_request_is_good_so_far() {
    for request in GOOD {
        for end in 0..request.len() {
            let seen = whole(&request.as_bytes()[..end]);
            assert_eq!((seen.refused, seen.failed), (None, false), "{:?}", &request.as_bytes()[..end]);
        }
    }
}
