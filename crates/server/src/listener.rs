//! The accept loop: TLS, deadlines, caps, graceful end.
//!
//! A connection costs something before it has proved anything, so every stage has a deadline: handshake, head, body (in
//! `body`), idle. Caps hold per address and in all. HTTP/2 is spoken where TLS negotiated it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Uri, Version, header};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::config::ConnectionLimits;

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Socket address.
    pub address: SocketAddr,
    /// The connection is encrypted by us.
    pub tls: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), tls: false }
    }
}

/// A bound listener and how it speaks.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: ConnectionLimits,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Connections of each address, the oldest first.
    by_address: HashMap<IpAddr, VecDeque<Arc<Activity>>>,
}

/// What a connection is doing.
#[derive(Debug, Default)]
struct Activity {
    /// Requests that are being answered.
    requests: AtomicUsize,
    /// Ends the connection when it is idle and others need its place.
    evicted: CancellationToken,
}

impl Activity {
    fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Acquire) == 0
    }
}

/// A place among the open connections; gives itself back.
struct Place {
    open: Arc<Mutex<Open>>,
    address: IpAddr,
    activity: Arc<Activity>,
}

impl Place {
    /// A place, if need be that of the oldest idle connection of the same address: whoever opens connections and says nothing
    /// must not keep anybody from stopping a robot.
    fn take(open: &Arc<Mutex<Open>>, address: IpAddr, limits: &ConnectionLimits) -> Option<Self> {
        let mut guard = open.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *guard;
        let mine = counts.by_address.entry(address).or_default();
        if mine.len() >= limits.per_address || (counts.total >= limits.total && !mine.is_empty()) {
            let oldest = mine.iter().position(|activity| activity.is_idle())?;
            if let Some(activity) = mine.remove(oldest) {
                activity.evicted.cancel();
                counts.total = counts.total.saturating_sub(1);
            }
        } else if counts.total >= limits.total {
            counts.by_address.remove(&address);
            return None;
        }
        let activity = Arc::new(Activity::default());
        counts.by_address.entry(address).or_default().push_back(Arc::clone(&activity));
        counts.total += 1;
        Some(Self { open: Arc::clone(open), address, activity })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *guard;
        let Some(mine) = counts.by_address.get_mut(&self.address) else { return };
        // An evicted connection has given its place away already.
        if let Some(at) = mine.iter().position(|activity| Arc::ptr_eq(activity, &self.activity)) {
            mine.remove(at);
            counts.total = counts.total.saturating_sub(1);
        }
        if mine.is_empty() {
            counts.by_address.remove(&self.address);
        }
    }
}

impl Listener {
    /// Takes a bound socket.
    pub fn new(tcp: TcpListener, tls: Option<Arc<ServerConfig>>, limits: ConnectionLimits) -> Self {
        Self { tcp, tls, limits }
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `stop`; then takes no more connections, and returns when those that are open have been told. The
    /// connections themselves end in `tasks`.
    pub async fn serve(self, router: Router, stop: CancellationToken, tasks: TaskTracker) {
        let open = Arc::new(Mutex::new(Open::default()));
        let acceptor = self.tls.clone().map(TlsAcceptor::from);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others must end before more can come.
                    tracing::error!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = Place::take(&open, address.ip().to_canonical(), &self.limits) else {
                metrics::counter!("orchestrator_blocked_requests_total", "reason" => "overloaded")
                    .increment(1);
                continue;
            };
            let activity = Arc::clone(&place.activity);
            let connection = Connection {
                router: router.clone(),
                limits: self.limits,
                stop: stop.clone(),
                address,
                activity,
            };
            let acceptor = acceptor.clone();
            tasks.spawn(async move {
                let evicted = place.activity.evicted.clone();
                let _ = stream.set_nodelay(true);
                tokio::select! {
                    () = connection.run(stream, acceptor) => {}
                    () = evicted.cancelled() => {}
                }
                drop(place);
            });
        }
    }
}

struct Connection {
    router: Router,
    limits: ConnectionLimits,
    stop: CancellationToken,
    address: SocketAddr,
    activity: Arc<Activity>,
}

impl Connection {
    async fn run(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) {
        let Some(acceptor) = acceptor else {
            return self.http1(stream, false).await;
        };
        match tokio::time::timeout(self.limits.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    self.http2(stream).await;
                } else {
                    self.http1(stream, true).await;
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, client = %self.address, "a TLS handshake failed"),
            Err(_) => tracing::debug!(client = %self.address, "a TLS handshake took too long"),
        }
    }

    async fn http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S, tls: bool) {
        let service = service_fn(|request| {
            answer(self.router.clone(), self.peer(tls), Arc::clone(&self.activity), request)
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
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
        if let Err(error) = ended {
            tracing::debug!(%error, client = %self.address, "a connection ended early");
        }
    }

    async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let service = service_fn(|request| {
            answer(self.router.clone(), self.peer(true), Arc::clone(&self.activity), request)
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(100)
            .max_header_list_size(32 * 1024)
            .max_pending_accept_reset_streams(20)
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
        };
        if let Err(error) = ended {
            tracing::debug!(%error, client = %self.address, "a connection ended early");
        }
    }

    fn peer(&self, tls: bool) -> Peer {
        Peer { address: self.address, tls }
    }
}

/// Counts a request until its answer's head is ready.
struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request's body that tells whether it was read to its end.
struct Watched {
    body: Incoming,
    read: Arc<AtomicBool>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.read.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn answer(
    router: Router,
    peer: Peer,
    activity: Arc<Activity>,
    request: hyper::Request<Incoming>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    activity.requests.fetch_add(1, Ordering::AcqRel);
    let _answering = Answering(activity);
    let read = Arc::new(AtomicBool::new(http_body::Body::is_end_stream(request.body())));
    let http1 = request.version() < Version::HTTP_2;
    let mut request: Request = request.map(|body| Body::new(Watched { body, read: Arc::clone(&read) }));
    request.extensions_mut().insert(peer);
    trim_trailing_slash(&mut request);
    let mut response = router.oneshot(request).await?;
    if http1 && !read.load(Ordering::Acquire) {
        // The rest of the body is not waited for: the connection ends, and the client is told, so that it does not lose its
        // next request on it (RFC 9112 section 9.6).
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
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
