//! The connection: name, TCP, TLS, and the gate between the server and the library.
//!
//! TLS ends here and not in the library, so that it happens before the library sees a byte, with our verifier, and so that
//! everything the server sends passes `wire::admit`. The library talks into one end of a socket pair.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use ldap3::{LdapConnAsync, LdapConnSettings, StdStream};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::config::{Address, Tls};
use super::wire;
use crate::DirectoryError;
use crate::step::Trace;

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Connects as far as TLS, step by step.
pub(crate) async fn connect(
    address: &Address,
    roots: &RootCertStore,
    trace: &mut Trace,
) -> Result<Box<dyn Io>, DirectoryError> {
    trace.begin("resolve");
    let found: Vec<SocketAddr> = tokio::net::lookup_host((address.host.as_str(), address.port))
        .await
        .map_err(|_| DirectoryError::unavailable("the host name has no address"))
        .map(|found| found.take(MAX_ADDRESSES).collect())?;
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    trace.pass(format!("{} is {}", address.host, shown.join(", ")));

    trace.begin("connect");
    let mut stream = tcp(&found).await?;
    let _ = stream.set_nodelay(true);
    trace.pass(
        stream.peer_addr().map_or_else(|_| "connected".to_owned(), |peer| format!("connected to {peer}")),
    );

    if address.tls == Tls::Never {
        trace.begin("TLS");
        trace.warn("none: passwords can be read on the network", "use ldaps:// or StartTLS");
        return Ok(Box::new(stream));
    }
    if address.tls == Tls::Upgrade {
        trace.begin("StartTLS");
        start_tls(&mut stream, trace).await?;
        trace.pass("the server agrees");
    }
    trace.begin("TLS");
    secure(address, stream, roots, trace).await
}

async fn tcp(addresses: &[SocketAddr]) -> Result<TcpStream, DirectoryError> {
    let mut kind = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => kind = Some(error.kind()),
        }
    }
    Err(DirectoryError::unavailable(match kind {
        Some(kind) => format!("no connection: {kind}"),
        None => "the host name has no address".to_owned(),
    }))
}

/// Asks for TLS. Reads exactly the answer: whatever stands behind it on the plain connection becomes part of the handshake
/// and breaks it, so nothing can be slipped in before TLS.
async fn start_tls(stream: &mut TcpStream, trace: &mut Trace) -> Result<(), DirectoryError> {
    const MAX_ANSWER: usize = 16 << 10;
    stream.write_all(wire::START_TLS).await.map_err(|_| closed())?;
    let mut answer = Vec::new();
    let length = loop {
        answer.push(stream.read_u8().await.map_err(|_| closed())?);
        if let Some(length) = wire::message_length(&answer, MAX_ANSWER).map_err(bad)? {
            break length;
        }
    };
    let have = answer.len();
    answer.resize(length, 0);
    stream.read_exact(&mut answer[have..]).await.map_err(|_| closed())?;
    match wire::start_tls_result(&answer).map_err(bad)? {
        0 => Ok(()),
        code => Err(trace.failed(
            DirectoryError::misconfigured(format!(
                "the server refuses StartTLS ({})",
                super::search::meaning(code.into())
            )),
            "give the server a certificate, or use ldaps://",
        )),
    }
}

async fn secure(
    address: &Address,
    stream: TcpStream,
    roots: &RootCertStore,
    trace: &mut Trace,
) -> Result<Box<dyn Io>, DirectoryError> {
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| DirectoryError::misconfigured("the host in LDAP_URL is no name or address"))?;
    let (config, seen) = crate::tls::config(roots.clone()).map_err(DirectoryError::Misconfigured)?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => {
            let session = stream.get_ref().1;
            let version =
                session.protocol_version().map_or("TLS", |version| version.as_str().unwrap_or("TLS"));
            trace.pass(format!("{version}; {}", seen.facts()));
            Ok(Box::new(stream))
        }
        Err(error) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let Some(inner) = inner else { return Err(closed()) };
            let (reason, remedy) = crate::tls::explain(inner);
            let error = if matches!(inner, rustls::Error::InvalidCertificate(_)) {
                DirectoryError::Misconfigured(format!("{reason}; {}", seen.facts()))
            } else {
                DirectoryError::Unavailable(reason)
            };
            Err(trace.failed(error, remedy))
        }
    }
}

fn closed() -> DirectoryError {
    DirectoryError::unavailable("the server closed the connection")
}

fn bad(answer: wire::BadAnswer) -> DirectoryError {
    DirectoryError::Unavailable(answer.to_string())
}

/// Lets the library and the server talk while `talk` runs; whatever ends first ends all.
pub(crate) async fn with_library<T>(
    server: Box<dyn Io>,
    talk: impl AsyncFnOnce(ldap3::Ldap) -> Result<T, DirectoryError>,
) -> Result<T, DirectoryError> {
    let internal = |_| DirectoryError::unavailable("this machine is out of sockets");
    let (ours, theirs) = StdUnixStream::pair().map_err(internal)?;
    ours.set_nonblocking(true).map_err(internal)?;
    let ours = UnixStream::from_std(ours).map_err(internal)?;
    let url = url::Url::parse("ldapi:///").map_err(|_| DirectoryError::unavailable("no address"))?;
    let settings = LdapConnSettings::new().set_std_stream(StdStream::Unix(theirs));
    let (connection, ldap) = LdapConnAsync::from_url_with_settings(settings, &url)
        .await
        .map_err(|_| DirectoryError::unavailable("this machine is out of sockets"))?;
    tokio::select! {
        biased;
        result = talk(ldap) => result,
        error = gate(server, ours) => Err(error),
        _ = connection.drive() => Err(closed()),
    }
}

/// Carries requests out and checked answers in, until something is wrong.
async fn gate(server: Box<dyn Io>, library: UnixStream) -> DirectoryError {
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let (mut from_library, mut to_library) = tokio::io::split(library);
    let (mut requests, mut answers, mut total) = (Vec::new(), Vec::new(), 0);
    let mut under_way = None;
    let (mut out, mut back) = (vec![0; 4 << 10], vec![0; 16 << 10]);
    loop {
        tokio::select! {
            read = from_library.read(&mut out) => {
                let Ok(count @ 1..) = read else { return closed() };
                requests.extend_from_slice(&out[..count]);
                // Requests come from our side, whole and one at a time.
                while let Ok(Some(length)) = wire::message_length(&requests, wire::MAX_MESSAGE) {
                    if requests.len() < length { break; }
                    let message: Vec<u8> = requests.drain(..length).collect();
                    under_way = wire::request(&message);
                    if to_server.write_all(&message).await.is_err() || to_server.flush().await.is_err() {
                        return closed();
                    }
                }
            }
            read = from_server.read(&mut back) => {
                let Ok(count @ 1..) = read else { return closed() };
                total += count;
                if total > wire::MAX_TOTAL {
                    return DirectoryError::unavailable("the server sent more than a sign-in needs");
                }
                answers.extend_from_slice(&back[..count]);
                loop {
                    let length = match wire::message_length(&answers, wire::MAX_MESSAGE) {
                        Ok(Some(length)) if answers.len() >= length => length,
                        Ok(_) => break,
                        Err(error) => return bad(error),
                    };
                    let message: Vec<u8> = answers.drain(..length).collect();
                    match wire::admit(&message, under_way) {
                        Ok(Some(shown)) => if to_library.write_all(&shown).await.is_err() { return closed() },
                        Ok(None) => {}
                        Err(error) => return bad(error),
                    }
                }
            }
        }
    }
}
