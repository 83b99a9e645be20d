//! What strangers, proxies, directories and workers send.

use std::sync::LazyLock;

use interlock_engine::auth::{Keys, Lifetimes, TokenKind, Tokens, check_keys};
use interlock_model::secret::Secret;
use interlock_server::config::ForwardedBy;
use interlock_server::fuzzing as server;
use ipnet::IpNet;

use crate::{split, text};

/// The framing of HTTP/1: what passes is the beginning of what came, and does not depend on how it came in packets.
pub(crate) fn http_gate(data: &[u8]) {
    let Some((seed, data)) = data.split_first() else { return };
    let whole = server::through_the_gate(data, &[data.len()]);
    assert!(whole.refused.is_some() || data.starts_with(&whole.passed), "the gate made up bytes");
    let step = usize::from(seed % 31) + 1;
    let cuts: Vec<usize> = std::iter::repeat_n(step, data.len() / step + 1).collect();
    let pieces = server::through_the_gate(data, &cuts);
    assert_eq!(whole, pieces, "the verdict depends on packets of {step} bytes");
}

/// The PROXY protocol: read whole or not at all.
pub(crate) fn proxy_v2(data: &[u8]) {
    let alone = server::preamble(data);
    let mut more = data.to_vec();
    more.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    if alone.is_ok() {
        assert_eq!(alone, server::preamble(&more), "what follows a preamble changes it");
    }
}

/// Forms: what is read can be written and read again.
pub(crate) fn form(data: &[u8]) {
    if let Some(fields) = server::form(data) {
        let encode = |text: &str| {
            let digits: Vec<String> = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            digits.concat()
        };
        let written: Vec<String> =
            fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        assert_eq!(
            server::form(written.join("&").as_bytes()),
            Some(fields),
            "a form changes when it is written again"
        );
    }
}

/// Who the client is: without a listed proxy the headers change nothing, with one an address that is not the proxy's is in them.
pub(crate) fn address(data: &[u8]) {
    let (first, second) = split(data);
    let listed: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
    for by in [ForwardedBy::XForwardedFor, ForwardedBy::Forwarded, ForwardedBy::XRealIp] {
        let stranger = "192.0.2.7".parse().expect("an address");
        assert_eq!(
            server::client(stranger, &[first, second], &listed, by),
            stranger,
            "a stranger chose an address"
        );
        let proxy = "10.1.2.3".parse().expect("an address");
        server::client(proxy, &[first, second], &listed, by);
    }
}

/// A client's certificate: whose names it holds, how long it is good.
pub(crate) fn certificate(data: &[u8]) {
    server::certificate(data);
}

/// Rules that an administrator adds.
pub(crate) fn threat_rules(data: &[u8]) {
    if let Some(text) = crate::text(data) {
        server::threat_rules(text);
    }
}

/// Lists of revoked certificates.
pub(crate) fn revocations(data: &[u8]) {
    server::revocations(data);
}

/// The token of the seeds, good for ever as far as its form goes.
const TOKEN: &str = include_str!("../corpora/jwt/good");

/// An installation with a key that everybody knows.
fn tokens() -> Tokens {
    let secret = Secret::new("Wombat-lattice-orchard-pewter-93-quartz");
    let keys = Keys::hs256(&secret, None).expect("the secret is long enough");
    let lifetimes = Lifetimes { user_seconds: 60, agent_seconds: 60, refresh_seconds: 60 };
    Tokens::new(keys, "fuzz".to_owned(), lifetimes)
}

/// Tokens: no text but the one that was signed is a token.
pub(crate) fn jwt(data: &[u8]) {
    static TOKENS: LazyLock<Tokens> = LazyLock::new(tokens);
    let Some(text) = text(data) else { return };
    for kind in [TokenKind::Access, TokenKind::Refresh] {
        let read = TOKENS.read(text, kind);
        assert!(read.is_err() || text == TOKEN.trim_end(), "a token was forged");
    }
}

/// Public keys that an agent registers.
pub(crate) fn assertion_keys(data: &[u8]) {
    if let Ok(keys) = serde_json::from_slice::<Vec<serde_json::Value>>(data) {
        let _ = check_keys(&keys);
    }
}

/// What a directory answers.
pub(crate) fn ldap(data: &[u8]) {
    interlock_directory::fuzzing::answer(data);
}

/// What a worker says.
pub(crate) fn worker_line(data: &[u8]) {
    interlock_device::fuzzing::worker_line(data);
}

#[cfg(test)]
mod tests {
    use super::{TOKEN, TokenKind, tokens};

    /// Otherwise nothing near a token is tried.
    #[test]
    fn the_token_of_the_seeds_is_good() {
        assert!(tokens().read(TOKEN.trim_end(), TokenKind::Access).is_ok());
    }
}
