//! Who is calling: one address for limits, lockout, bans, log and audit.
//!
//! Forwarding headers are believed only from listed proxies, and read from the right: the first hop that is not a listed proxy
//! is the client. Whatever stands further left was written by strangers.

use std::net::IpAddr;

use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::listener::Peer;

/// The client as the server treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Resolved address; IPv4 in IPv6 clothes is IPv4.
    pub ip: IpAddr,
    /// The client's own connection was encrypted.
    pub secure: bool,
    /// A listed proxy stands between: the connection, and its certificate, are the proxy's.
    pub proxied: bool,
}

/// Resolves the client of a request.
pub fn resolve(peer: &Peer, headers: &HeaderMap, trusted: &[IpNet]) -> Client {
    let socket = peer.address.ip().to_canonical();
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    if !is_trusted(socket) {
        return Client { ip: socket, secure: peer.tls, proxied: false };
    }
    let forwarded = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect::<Vec<_>>();
    let mut ip = socket;
    let mut seen = false;
    for hop in forwarded.iter().rev() {
        // A hop that is no address was invented: stop at the last one that a listed proxy vouched for.
        let Some(hop) = parse(hop) else { break };
        ip = hop;
        seen = true;
        if !is_trusted(hop) {
            break;
        }
    }
    if !seen && let Some(real) = headers.get("x-real-ip").and_then(|value| parse(value.to_str().ok()?.trim()))
    {
        ip = real;
    }
    let secure = match headers.get("x-forwarded-proto").map(axum::http::HeaderValue::as_bytes) {
        Some(proto) => proto
            .rsplit(|&byte| byte == b',')
            .next()
            .is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"https")),
        None => peer.tls,
    };
    Client { ip, secure, proxied: true }
}

fn parse(hop: &str) -> Option<IpAddr> {
    let plain = hop.parse::<IpAddr>().ok();
    let with_port = || hop.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    plain.or_else(with_port).or_else(bracketed).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value")))
            .collect()
    }

    fn peer(address: &str) -> Peer {
        Peer { address: address.parse().expect("address"), ..Peer::default() }
    }

    #[test]
    fn a_stranger_s_headers_are_ignored() {
        let forged = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
        ]);
        let client = resolve(&peer("203.0.113.7:1"), &forged, &["127.0.0.0/8".parse().expect("net")]);

        assert_eq!(
            client,
            Client { ip: "203.0.113.7".parse().expect("address"), secure: false, proxied: false }
        );
    }

    #[test]
    fn behind_proxies_the_first_unlisted_hop_from_the_right_is_the_client() {
        let trusted = ["127.0.0.0/8".parse().expect("net"), "10.0.0.0/8".parse().expect("net")];
        for (chain, client) in [
            ("6.6.6.6, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
            ("203.0.113.7", "203.0.113.7"),
            ("6.6.6.6, nonsense, 10.1.1.1", "10.1.1.1"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
        ] {
            let resolved = resolve(&peer("127.0.0.1:1"), &headers(&[("x-forwarded-for", chain)]), &trusted);
            assert_eq!(resolved.ip, client.parse::<IpAddr>().expect("address"), "{chain}");
        }
    }

    #[test]
    fn the_pair_of_headers_that_ordinary_proxies_send_is_normal() {
        let trusted = ["127.0.0.0/8".parse().expect("net")];
        let sent = headers(&[
            ("x-real-ip", "203.0.113.7"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
        ]);

        assert_eq!(
            resolve(&peer("127.0.0.1:1"), &sent, &trusted),
            Client { ip: "203.0.113.7".parse().expect("address"), secure: true, proxied: true }
        );
    }
}
