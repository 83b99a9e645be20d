//! One connection: handshake, then HTTP/1.1 behind the gate or HTTP/2, within deadlines and minimum rates.
//!
//! HTTP/2 is spoken where TLS negotiated it, and nowhere else: over plain TCP its preface is a refused request, and an
//! `Upgrade: h2c` is ignored. Its library bounds streams, header lists, resets and small frames; added here are a deadline for the
//! first request, one for idling, an end for clients that cancel nearly everything they ask, and one for those that do not take
//! their answers. What a proxy says of its client before the first byte of either is `preamble`'s.

mod bodies;
pub(crate) mod preamble;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Uri, Version, header};
use axum::response::Response;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use interlock_engine::auth::Origin;
use interlock_engine::security::{self, Event};
use interlock_model::Entropy;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::config::ConnectionLimits;
use crate::gate::{self, Gate, MAX_HEAD, Paced, Refused, Verdict};
use crate::listener::Peer;
use crate::tls::{self, Keeper, Presented, acme};

pub(crate) use bodies::TooSlow;
use bodies::{Fate, Given, Taken};

/// Streams of one HTTP/2 connection at once.
const STREAMS: u32 = 100;
/// Longest header list over HTTP/2: what a request may say does not depend on the version.
const HEADER_LIST: u32 = 16 * 1024;
const _: () = assert!(HEADER_LIST as usize == MAX_HEAD);
/// Streams that a client opened and reset before they were looked at (rapid reset); one more ends the connection.
const RESETS: usize = 20;
/// Streams that were reset for a client's mistakes; one more ends the connection.
const MISTAKES: usize = 64;
/// Requests that a client cancelled before their answer, from when on they must be fewer than the others.
const ABANDONED: usize = 100;
/// What a client may send ahead on a stream, and on a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Time to say goodbye to a client that has idled or takes nothing.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a connection is doing.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests that are being answered.
    requests: AtomicUsize,
    /// Requests that came.
    begun: AtomicUsize,
    /// Requests that were dropped before their answer.
    abandoned: AtomicUsize,
    /// Answers whose bodies are on their way.
    answers: AtomicUsize,
    /// Of those, how many wait for the client.
    waiting: AtomicUsize,
    /// Pieces of bodies that the client made room for.
    pieces: AtomicUsize,
    /// Bytes that the network took.
    taken: Arc<AtomicU64>,
    /// Ends the connection: it is idle and others need its place, or it misbehaves.
    pub(crate) evicted: CancellationToken,
}

impl Activity {
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Acquire) == 0
    }

    /// Until nothing was asked and nothing is being answered: for the time of a head from the start, for that of idling later.
    /// Answers that nobody takes end it too.
    async fn idled(&self, limits: &ConnectionLimits) {
        let least = gate::least(limits.least_rate, limits.patience);
        let (mut begun, mut taken, mut since, mut allowed) = (0, 0, Instant::now(), limits.head);
        let mut pieces = (0, Instant::now());
        loop {
            tokio::time::sleep(limits.patience.min(allowed)).await;
            let all = self.taken.load(Ordering::Relaxed);
            let asked = self.begun.load(Ordering::Acquire);
            // An answer may be whole in the library's hands, and still on its way.
            let busy = !self.is_idle() || self.answers.load(Ordering::Acquire) > 0 || all - taken > least;
            taken = all;
            if asked != begun || (busy && begun > 0) {
                (begun, since, allowed) = (asked, Instant::now(), limits.idle);
            } else if since.elapsed() >= allowed {
                return;
            }
            let handed = self.pieces.load(Ordering::Acquire);
            if handed != pieces.0 || self.waiting.load(Ordering::Acquire) == 0 {
                pieces = (handed, Instant::now());
            } else if pieces.1.elapsed() >= limits.patience {
                return;
            }
        }
    }
}

/// A connection that was accepted.
pub(crate) struct Connection {
    pub(crate) router: Router,
    pub(crate) limits: ConnectionLimits,
    pub(crate) stop: CancellationToken,
    pub(crate) address: SocketAddr,
    pub(crate) activity: Arc<Activity>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl Connection {
    /// Serves it to its end.
    pub(crate) async fn run(self, stream: TcpStream, keeper: Option<Arc<Keeper>>) {
        let stream = Paced::new(
            stream,
            self.limits.least_rate,
            self.limits.patience,
            Arc::clone(&self.activity.taken),
        );
        let plain = Peer { address: self.address, tls: false, certificate: None };
        let Some(keeper) = keeper else {
            return self.begin(stream, plain).await;
        };
        let (config, generation) = keeper.config();
        let accepted = if keeper.challenges().are_open() {
            let accepting = Box::pin(acme::accept(stream, config, keeper.challenges()));
            tokio::time::timeout(self.limits.handshake, accepting).await
        } else {
            let accepting = Box::pin(TlsAcceptor::from(config).accept(stream));
            tokio::time::timeout(self.limits.handshake, accepting).await.map(|accepted| accepted.map(Some))
        };
        match accepted {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(stream))) => {
                let session = stream.get_ref().1;
                let certificate = match session.peer_certificates() {
                    None => None,
                    Some(chain) => match Presented::new(chain, &keeper, generation) {
                        Some(shown) => Some(Arc::new(shown)),
                        None => return refused(self.address, "unreadable"),
                    },
                };
                let peer = Peer { tls: true, certificate, ..plain };
                if session.alpn_protocol() == Some(b"h2") {
                    Box::pin(self.http2(stream, peer)).await;
                } else {
                    self.begin(stream, peer).await;
                }
            }
            Ok(Err(error)) => {
                if let Some(reason) = tls::why_refused(&error) {
                    refused(self.address, reason);
                }
                tracing::debug!(%error, client = %self.address, "a TLS handshake failed");
            }
            Err(_) => tracing::debug!(client = %self.address, "a TLS handshake took too long"),
        }
    }

    /// Waits for the first head, which costs little to wait for, and only then builds what reads it.
    async fn begin<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S, peer: Peer) {
        let verdict = Arc::new(Verdict::default());
        let log = gate::Log { peer: self.address.ip().to_canonical(), entropy: Arc::clone(&self.entropy) };
        let mut gate = Gate::new(stream, Arc::clone(&verdict), log);
        let came = tokio::select! {
            came = tokio::time::timeout(self.limits.head, gate.head()) => came,
            () = self.stop.cancelled() => return,
        };
        if matches!(came, Ok(Ok(true))) {
            Box::pin(self.http1(gate, verdict, peer)).await;
        }
    }

    async fn http1<S>(self, stream: Gate<S>, verdict: Arc<Verdict>, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = self.service(peer);
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let number = self.activity.begun.fetch_add(1, Ordering::AcqRel) + 1;
            service.clone().answer(request, verdict.on(number))
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            // For bodies; heads have the gate's bound.
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = self.stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        self.log_end(ended);
    }

    async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S, peer: Peer) {
        let service = self.service(peer);
        let service = service_fn(|request: hyper::Request<Incoming>| {
            self.activity.begun.fetch_add(1, Ordering::AcqRel);
            service.clone().answer(request, None)
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_LIST)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(MISTAKES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(256 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = self.stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
            () = self.activity.idled(&self.limits) => {
                serving.as_mut().graceful_shutdown();
                tokio::time::timeout(FAREWELL, serving).await.unwrap_or(Ok(()))
            }
        };
        self.log_end(ended);
    }

    fn log_end(&self, ended: hyper::Result<()>) {
        if let Err(error) = ended {
            tracing::debug!(%error, client = %self.address, "a connection ended early");
        }
    }

    fn service(&self, peer: Peer) -> Service {
        Service {
            router: self.router.clone(),
            peer,
            activity: Arc::clone(&self.activity),
            slow: (self.limits.least_rate, self.limits.patience),
        }
    }
}

/// Tells that somebody came with a client certificate that is not taken, or without one where one is required.
fn refused(client: SocketAddr, reason: &'static str) {
    let origin = Origin {
        client_ip: client.ip().to_canonical(),
        request_id: String::new(),
        user_agent: String::new(),
        certificate: None,
        trace: None,
    };
    security::event(Event::CertificateRefused, None, Some(&origin), json!({ "reason": reason }));
}

/// Counts a request until its answer's head is ready.
struct Answering {
    activity: Arc<Activity>,
    answered: bool,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.activity.requests.fetch_sub(1, Ordering::AcqRel);
        if !self.answered {
            let abandoned = self.activity.abandoned.fetch_add(1, Ordering::AcqRel) + 1;
            if abandoned > ABANDONED && abandoned * 2 > self.activity.begun.load(Ordering::Acquire) {
                self.activity.evicted.cancel();
            }
        }
    }
}

/// What answers the requests of a connection.
#[derive(Clone)]
struct Service {
    router: Router,
    peer: Peer,
    activity: Arc<Activity>,
    slow: (u64, Duration),
}

impl Service {
    async fn answer(
        self,
        request: hyper::Request<Incoming>,
        refused: Option<Refused>,
    ) -> Result<Response, Infallible> {
        self.activity.requests.fetch_add(1, Ordering::AcqRel);
        let mut answering = Answering { activity: Arc::clone(&self.activity), answered: false };
        let http1 = request.version() < Version::HTTP_2;
        let ended = refused.is_some();
        let fate = Arc::new(Fate::default());
        fate.read.store(request.body().is_end_stream(), Ordering::Release);
        let mut request: Request =
            request.map(|body| Body::new(Taken::new(body, Arc::clone(&fate), self.slow)));
        request.extensions_mut().insert(self.peer);
        if let Some(refused) = refused {
            request.extensions_mut().insert(refused);
        }
        trim_trailing_slash(&mut request);
        let mut response = self.router.oneshot(request).await?;
        // A client that cancels while its body is read is answered nowhere.
        answering.answered = !fate.broken.load(Ordering::Acquire);
        if !http1 {
            return Ok(response.map(|body| Body::new(Given::new(body, self.activity))));
        }
        if ended || !fate.read.load(Ordering::Acquire) {
            // The rest of the body is not waited for: the connection ends, and the client is told, so that it does not lose
            // its next request on it (RFC 9112 section 9.6).
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// `/tasks/` is `/tasks`: answered directly, because redirects lose bodies and tokens.
fn trim_trailing_slash(request: &mut Request) {
    let path = request.uri().path();
    if path.len() < 2 || !path.ends_with('/') {
        return;
    }
    let trimmed = path.trim_end_matches('/');
    let trimmed = if trimmed.is_empty() { "/" } else { trimmed };
    let target = match request.uri().query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    if let Ok(path_and_query) = target.parse() {
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}
