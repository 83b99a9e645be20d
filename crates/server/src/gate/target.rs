//! Request targets and authorities: which bytes may name a resource.
//!
//! At least as strict as the library behind the gate, so that it never refuses what was passed on. Beyond RFC 3986 only
//! what browsers send unescaped (`[ ] | ^ { }`, and `\` and a backtick in queries) is let through.

use std::net::Ipv6Addr;
use std::ops::Range;

use super::Reason;

/// Longest method; the longest registered one has 17 letters.
const MAX_METHOD: usize = 24;

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Form {
    /// `/path?query`.
    #[default]
    Origin,
    /// `*`, for `OPTIONS` only.
    Asterisk,
    /// `http://authority/path`, with the place of the authority within the target.
    Absolute(Range<usize>),
}

/// A character of a token (RFC 9110 section 5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = is_listed(byte);
        byte += 1;
    }
    table
};

const fn is_listed(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.')
}

const fn is_path(byte: u8) -> bool {
    matches!(byte, b'!' | b'$'..=b';' | b'=' | b'@'..=b'[' | b']'..=b'_' | b'a'..=b'~')
}

const fn is_query(byte: u8) -> bool {
    matches!(byte, b'!' | b'$'..=b';' | b'=' | b'?'..=b'~')
}

/// Checks a method.
pub(super) fn method(bytes: &[u8]) -> Result<(), Reason> {
    if bytes.is_empty() || bytes.len() > MAX_METHOD || !bytes.iter().all(|&byte| is_token(byte)) {
        return Err(Reason::Method);
    }
    // Nothing is tunnelled: what follows a CONNECT would be no HTTP.
    if bytes == b"CONNECT" { Err(Reason::Connect) } else { Ok(()) }
}

/// Checks a target and tells its form.
pub(super) fn form(method: &[u8], target: &[u8]) -> Result<Form, Reason> {
    match target.first() {
        Some(b'/') => path(target).map(|()| Form::Origin),
        Some(b'*') if target.len() == 1 && method == b"OPTIONS" => Ok(Form::Asterisk),
        Some(_) => absolute(target),
        None => Err(Reason::RequestLine),
    }
}

fn absolute(target: &[u8]) -> Result<Form, Reason> {
    let has =
        |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let start = if has(b"http://") {
        7
    } else if has(b"https://") {
        8
    } else {
        return Err(Reason::Target);
    };
    let rest = &target[start..];
    let length = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    authority(&rest[..length])?;
    path(&rest[length..])?;
    Ok(Form::Absolute(start..start + length))
}

/// Path and query, with whole percent-encodings only. No fragment: it never travels (RFC 9110 section 4.1).
fn path(bytes: &[u8]) -> Result<(), Reason> {
    let (mut at, mut query) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let digits = bytes.get(at + 1..at + 3).ok_or(Reason::Target)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(Reason::Target);
                }
                at += 2;
            }
            b'?' => query = true,
            _ if query && is_query(byte) => {}
            _ if !query && is_path(byte) => {}
            _ => return Err(Reason::Target),
        }
        at += 1;
    }
    Ok(())
}

/// Checks `host [":" port]`: a name of letters, digits, `-`, `.` and `_`, or an IPv6 address in brackets. User information is
/// refused: it belongs to no request (RFC 9110 section 4.2.4).
pub(super) fn authority(bytes: &[u8]) -> Result<(), Reason> {
    let text = std::str::from_utf8(bytes).map_err(|_| Reason::HostMalformed)?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(Reason::HostMalformed)?;
            address.parse::<Ipv6Addr>().map_err(|_| Reason::HostMalformed)?;
            if after.is_empty() {
                return Ok(());
            }
            ("v6", after.strip_prefix(':').ok_or(Reason::HostMalformed)?)
        }
        None => text.split_once(':').unwrap_or((text, "0")),
    };
    let named = !host.is_empty()
        && host.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_'));
    // An empty port is the default one (RFC 3986 section 3.2.3).
    let numbered =
        port.is_empty() || (port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if named && numbered { Ok(()) } else { Err(Reason::HostMalformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_of_a_target_make_a_target() {
        for good in ["/", "//", "/a/b?c=d", "/?", "/a?b?c", "/%41%zz", "/a;b=c", "/[x]|{y}^", "/?a[b]=`\\"] {
            let whole = !good.contains("%zz");
            assert_eq!(form(b"GET", good.as_bytes()).is_ok(), whole, "{good}");
        }
        for bad in [
            "",
            "a",
            "/#",
            "/a#b",
            "/?#",
            "/\"",
            "/<",
            "/\\",
            "/`",
            "/%",
            "/%4",
            "/%4g",
            "/é",
            "/\u{7f}",
            "*",
            "**",
            "?",
            "ftp://localhost/",
            "http:/x",
            "http://",
            "http:///x",
            "https://a@localhost/",
            "http://localhost:x/",
            "http://localhost/#",
        ] {
            assert!(form(b"GET", bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(form(b"OPTIONS", b"*"), Ok(Form::Asterisk));
        assert_eq!(form(b"GET", b"HTTP://LOCALHOST:80/x"), Ok(Form::Absolute(7..19)));
        assert_eq!(form(b"GET", b"https://localhost?x"), Ok(Form::Absolute(8..17)));
    }

    #[test]
    fn only_names_and_addresses_make_a_host() {
        for good in [
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8000",
            "a_b-c.d",
            "localhost:",
        ] {
            assert_eq!(authority(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a b",
            "a,b",
            "a@b",
            "a/b",
            "a\\b",
            "a:b",
            "a:99999",
            "a:1:2",
            "a:-1",
            "a:+1",
            "[::1",
            "::1",
            "[::1]x",
            "[fe80::1%25eth0]",
            "[1.2.3.4]",
            "é",
            "a%2eb",
            "a\tb",
        ] {
            assert_eq!(authority(bad.as_bytes()), Err(Reason::HostMalformed), "{bad}");
        }
    }

    #[test]
    fn the_tables_are_those_of_the_grammar() {
        for byte in 0..=255_u8 {
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_token(byte), token, "{byte:#x}");
            // Whatever passes is a URI to the library behind.
            for target in [[b'/', byte].to_vec(), [b'/', b'?', byte].to_vec()] {
                if form(b"GET", &target).is_ok() {
                    assert!(axum::http::Uri::try_from(target.as_slice()).is_ok(), "{byte:#x}");
                }
            }
        }
    }
}
