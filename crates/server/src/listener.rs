//! The accept loop: TLS, deadlines, caps, graceful end.
//!
//! A connection costs something before it has proved anything, so every stage has a deadline: handshake, head, body (in
//! `body`), idle. Caps hold per address and in all. HTTP/2 is spoken where TLS negotiated it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use hyper::body::Incoming;
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
        f.debug_struct("Listener").field("tcp", &self.tcp).field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place among the open connections; gives itself back.
struct Place {
    open: Arc<Mutex<Open>>,
    address: IpAddr,
}

impl Place {
    fn take(open: &Arc<Mutex<Open>>, address: IpAddr, limits: &ConnectionLimits) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.total >= limits.total || mine >= limits.per_address {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, mine + 1);
        Some(Self { open: Arc::clone(open), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if let Some(mine) = counts.by_address.get_mut(&self.address) {
            *mine -= 1;
            if *mine == 0 {
                counts.by_address.remove(&self.address);
            }
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
                metrics::counter!("orchestrator_blocked_requests_total", "reason" => "overloaded").increment(1);
                continue;
            };
            let connection = Connection { router: router.clone(), limits: self.limits, stop: stop.clone(), address };
            let acceptor = acceptor.clone();
            tasks.spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                connection.run(stream, acceptor).await;
            });
        }
    }
}

struct Connection {
    router: Router,
    limits: ConnectionLimits,
    stop: CancellationToken,
    address: SocketAddr,
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
        let service = service_fn(|request| answer(self.router.clone(), self.peer(tls), request));
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
        let service = service_fn(|request| answer(self.router.clone(), self.peer(true), request));
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

async fn answer(
    router: Router,
    peer: Peer,
    request: hyper::Request<Incoming>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    let mut request: Request = request.map(Body::new);
    request.extensions_mut().insert(peer);
    trim_trailing_slash(&mut request);
    router.oneshot(request).await
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
