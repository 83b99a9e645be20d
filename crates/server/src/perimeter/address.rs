//! Who is calling: one address for limits, lockout, bans, log and audit.
//!
//! Forwarding headers are believed only from listed proxies, only the one that those proxies are said to write, and read
//! from the right: the first hop that is not a listed proxy
//! is the client. Whatever stands further left was written by strangers.

use std::net::IpAddr;

use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::config::ForwardedBy;
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
pub fn resolve(peer: &Peer, headers: &HeaderMap, trusted: &[IpNet], by: ForwardedBy) -> Client {
    let socket = peer.address.ip().to_canonical();
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    if !is_trusted(socket) {
        return Client { ip: socket, secure: peer.tls, proxied: false };
    }
    if by == ForwardedBy::Forwarded {
        return by_forwarded(peer, headers, socket, is_trusted);
    }
    let mut ip = socket;
    let mut seen = false;
    if by == ForwardedBy::XForwardedFor {
        let forwarded = texts(headers, "x-forwarded-for").flat_map(|text| text.split(',')).map(str::trim);
        for hop in forwarded.collect::<Vec<_>>().into_iter().rev() {
            // A hop that is no address was invented: stop at the last one that a listed proxy vouched for.
            let Some(hop) = parse(hop) else { break };
            ip = hop;
            seen = true;
            if !is_trusted(hop) {
                break;
            }
        }
    }
    if !seen && let Some(real) = texts(headers, "x-real-ip").last().and_then(|text| parse(text.trim())) {
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

/// What a proxy must have said to be believed: the address, and how the client reached it.
fn by_forwarded(
    peer: &Peer,
    headers: &HeaderMap,
    socket: IpAddr,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Client {
    let mut client = Client { ip: socket, secure: peer.tls, proxied: true };
    let lines: Vec<&str> = texts(headers, "forwarded").collect();
    for element in lines.into_iter().rev().flat_map(|text| outside_quotes(text, b',')) {
        let (mut hop, mut secure) = (None, false);
        for pair in outside_quotes(element, b';') {
            let Some((name, value)) = pair.split_once('=') else { break };
            let (name, value) = (name.trim(), value.trim());
            let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
            if name.eq_ignore_ascii_case("for") {
                hop = parse(value);
            } else if name.eq_ignore_ascii_case("proto") {
                secure = value.eq_ignore_ascii_case("https");
            }
        }
        let Some(hop) = hop else { break };
        (client.ip, client.secure) = (hop, secure);
        if !is_trusted(hop) {
            break;
        }
    }
    client
}

fn texts<'a>(headers: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Splits at a separator that stands outside quoted strings (RFC 7239 section 4), the last part first. Read from the right, as
/// everything here: a quote that a client leaves open swallows nothing that its proxy has added.
fn outside_quotes(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut end, mut quoted) = (Vec::new(), text.len(), false);
    for (at, byte) in text.bytes().enumerate().rev() {
        if byte == b'"' {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            parts.push(&text[at + 1..end]);
            end = at;
        }
    }
    parts.push(&text[..end]);
    parts
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
        let client = resolve(
            &peer("203.0.113.7:1"),
            &forged,
            &["127.0.0.0/8".parse().expect("net")],
            ForwardedBy::XForwardedFor,
        );

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
            let resolved = resolve(
                &peer("127.0.0.1:1"),
                &headers(&[("x-forwarded-for", chain)]),
                &trusted,
                ForwardedBy::XForwardedFor,
            );
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
            resolve(&peer("127.0.0.1:1"), &sent, &trusted, ForwardedBy::XForwardedFor),
            Client { ip: "203.0.113.7".parse().expect("address"), secure: true, proxied: true }
        );
    }

    #[test]
    fn the_standard_header_is_walked_in_the_same_way() {
        let trusted = ["127.0.0.0/8".parse().expect("net"), "10.0.0.0/8".parse().expect("net")];
        for (sent, client, secure) in [
            ("for=203.0.113.7;proto=https", "203.0.113.7", true),
            ("for=203.0.113.7;proto=http;by=10.0.0.1", "203.0.113.7", false),
            ("for=203.0.113.7", "203.0.113.7", false),
            (
                "for=6.6.6.6;proto=http, For=\"[2001:db8::17]:4711\";Proto=HTTPS, for=10.1.1.1",
                "2001:db8::17",
                true,
            ),
            ("for=6.6.6.6, for=unknown, for=10.1.1.1;proto=https", "10.1.1.1", true),
            ("for=6.6.6.6, for=_hidden", "127.0.0.1", false),
            ("for=\"6.6.6.6, for=7.7.7.7\"", "127.0.0.1", false),
            ("for=203.0.113.7;host=\"a,b;for=6.6.6.6\"", "203.0.113.7", false),
            ("for=\", for=203.0.113.7;proto=https", "203.0.113.7", true),
            ("nonsense", "127.0.0.1", false),
            ("", "127.0.0.1", false),
        ] {
            let sent_headers =
                headers(&[("forwarded", sent), ("x-forwarded-for", "5.5.5.5"), ("x-real-ip", "4.4.4.4")]);
            let resolved = resolve(&peer("127.0.0.1:1"), &sent_headers, &trusted, ForwardedBy::Forwarded);
            let expected = Client { ip: client.parse().expect("address"), secure, proxied: true };
            assert_eq!(resolved, expected, "{sent}");
        }
    }

    #[test]
    fn headers_that_the_proxy_does_not_write_are_the_client_s_and_mean_nothing() {
        let trusted = ["127.0.0.0/8".parse().expect("net")];
        let all = headers(&[
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-real-ip", "3.3.3.3"),
        ]);
        for (by, client) in [
            (ForwardedBy::Forwarded, "1.1.1.1"),
            (ForwardedBy::XForwardedFor, "2.2.2.2"),
            (ForwardedBy::XRealIp, "3.3.3.3"),
        ] {
            let resolved = resolve(&peer("127.0.0.1:1"), &all, &trusted, by);
            assert_eq!(resolved.ip, client.parse::<IpAddr>().expect("address"), "{by:?}");
        }
    }
}
