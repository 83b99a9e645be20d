//! A lab behind a socket, plain or with TLS, and raw bytes to and from it.

use std::net::SocketAddr;
use std::sync::Arc;

use interlock_server::listener::Listener;
use interlock_server::tls::{Keeper, Sources};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lab::{Lab, PATIENCE, epoch};

/// A connection, whatever it runs over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A lab that listens.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) connections: TaskTracker,
    certificates: Option<TempDir>,
}

/// Listens on loopback without TLS.
pub(crate) async fn serve(lab: &Lab) -> Served {
    listen(lab, None).await
}

/// Listens on loopback with TLS, for HTTP/2 and HTTP/1.1.
pub(crate) async fn serve_tls(lab: &Lab) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let sources = Sources::internal(folder.path(), vec!["localhost".to_owned()]);
    let keeper = Keeper::open(sources, Arc::clone(&lab.clock) as _).expect("certificates");
    Served { certificates: Some(folder), ..listen(lab, Some(keeper)).await }
}

/// Listens on loopback with these certificates, if any.
pub(crate) async fn listen(lab: &Lab, keeper: Option<Arc<Keeper>>) -> Served {
    let app = lab.app.edited(|services| services.certificates.clone_from(&keeper));
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listener = Listener::new(tcp, keeper, &app.config, Arc::clone(&app.entropy));
    let served = Served {
        address: listener.address().expect("an address"),
        stop: CancellationToken::new(),
        connections: TaskTracker::new(),
        certificates: None,
    };
    tokio::spawn(listener.serve(
        interlock_server::router(app),
        served.stop.clone(),
        served.connections.clone(),
    ));
    served
}

/// A verifier for certificates that are valid at the time of the tests' clock, not of this machine's.
#[derive(Debug)]
pub(crate) struct Epoch;

impl rustls::time_provider::TimeProvider for Epoch {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let seconds = u64::try_from(epoch().seconds()).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

impl Served {
    /// A connection, over TLS for the protocol that `alpn` names.
    pub(crate) async fn connect(&self, alpn: &[u8]) -> Box<dyn Stream> {
        let tcp = TcpStream::connect(self.address).await.expect("a connection");
        tcp.set_nodelay(true).expect("an option");
        let Some(folder) = &self.certificates else { return Box::new(tcp) };
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(folder.path().join("ca.pem")).expect("an authority");
        roots.add(authority).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Epoch))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
        Box::new(tls)
    }

    /// Sends bytes over a connection for HTTP/1.1, in these pieces, and reads until the server ends it.
    pub(crate) async fn exchange(&self, pieces: &[&[u8]]) -> Vec<Reply> {
        let mut stream = self.connect(b"http/1.1").await;
        for piece in pieces {
            // The server may have answered and ended already.
            if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
                break;
            }
        }
        let mut bytes = Vec::new();
        let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(reading.is_ok(), "the server does not end the connection: {text}");
        replies(&text)
    }
}

/// One answer of HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Splits answers, each with its `Content-Length`.
pub(crate) fn replies(text: &str) -> Vec<Reply> {
    let (mut found, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap_or_else(|| panic!("half an answer: {text}"));
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        let mut reply = Reply { status, head: head.to_ascii_lowercase(), body: String::new() };
        let length = reply.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        assert!(after.len() >= length, "half a body: {text}");
        let (body, next) = after.split_at(length);
        body.clone_into(&mut reply.body);
        found.push(reply);
        rest = next;
    }
    found
}
