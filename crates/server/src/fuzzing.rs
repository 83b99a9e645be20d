//! The parsers of this crate for `interlock-fuzz`, and for nobody else.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderValue};
use interlock_model::Entropy;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::config::ForwardedBy;
use crate::connection::preamble;
use crate::gate::{Gate, Log, Verdict};
use crate::listener::Peer;
use crate::perimeter::{added, address};
use crate::tls::{self, PersonField};

/// A stream that comes in pieces.
struct Pieces<'a> {
    left: &'a [u8],
    sizes: &'a [usize],
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let (size, sizes) =
            self.sizes.split_first().map_or((self.left.len(), self.sizes), |(size, rest)| (*size, rest));
        let taken = size.min(self.left.len()).min(into.remaining());
        into.put_slice(&self.left[..taken]);
        self.left = &self.left[taken..];
        self.sizes = sizes;
        Poll::Ready(Ok(()))
    }
}

/// Draws zeros: ids are not what is looked at.
struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

/// What the gate did with a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Gated {
    /// What the HTTP library was given, without the stand-in for a head that was refused.
    pub passed: Vec<u8>,
    /// Which request was refused, and why.
    pub refused: Option<(usize, String)>,
    /// A body was refused.
    pub failed: bool,
}

/// Sends bytes through the gate in pieces of these sizes.
pub fn through_the_gate(data: &[u8], sizes: &[usize]) -> Gated {
    let verdict = Arc::new(Verdict::default());
    let log = Log { peer: IpAddr::from([192, 0, 2, 7]), entropy: Arc::new(Zeros) };
    let mut gate = Gate::new(Pieces { left: data, sizes }, Arc::clone(&verdict), log);
    let mut passed = Vec::new();
    let read = futures::executor::block_on(gate.read_to_end(&mut passed));
    let refused =
        (1..=data.len() + 1).find_map(|number| Some((number, format!("{:?}", verdict.on(number)?.reason))));
    if refused.is_some() {
        let kept = passed.windows(4).rposition(|end| end == b"GET ").unwrap_or(0);
        passed.truncate(kept);
    }
    Gated { passed, refused, failed: read.is_err() }
}

/// Reads the preamble of the PROXY protocol.
///
/// # Errors
/// Why it is none.
pub fn preamble(mut data: &[u8]) -> Result<Option<SocketAddr>, String> {
    futures::executor::block_on(preamble::read(&mut data)).map_err(|error| error.to_string())
}

/// Reads a form; `None` for what is none.
pub fn form(data: &[u8]) -> Option<Vec<(String, String)>> {
    let fields = crate::body::form(bytes::Bytes::copy_from_slice(data)).ok()?;
    Some(fields.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect())
}

/// The client behind a peer, by what the headers of forwarding say.
pub fn client(peer: IpAddr, values: &[&[u8]], trusted: &[IpNet], by: ForwardedBy) -> IpAddr {
    let mut headers = HeaderMap::new();
    for name in ["x-forwarded-for", "x-real-ip", "forwarded", "x-forwarded-proto"] {
        for value in values {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(name, value);
            }
        }
    }
    address::resolve(&Peer { address: (peer, 1).into(), ..Peer::default() }, &headers, trusted, by).ip
}

/// Reads a certificate as one that a client has shown, and as one that is described to people.
pub fn certificate(der: &[u8]) {
    let _ = tls::describe(der);
    if let Ok((_, parsed)) = x509_parser::parse_x509_certificate(der) {
        let _ = tls::machine(&parsed);
        for field in [PersonField::Mail, PersonField::PrincipalName, PersonField::CommonName] {
            let _ = tls::person(&parsed, field);
        }
    }
}

/// Reads a file of `THREAT_RULES_FILE`, and looks for what it says in its own text, in every place.
pub fn threat_rules(text: &str) {
    added::try_out(text);
}

/// Reads lists of revoked certificates as the file of `TLS_CLIENT_CRL_FILE` holds them.
pub fn revocations(pem: &[u8]) {
    let _ = tls::lists_in(pem, std::path::Path::new("revocations"), &mut None);
}
