//! Distinguished names, as far as they must be compared (RFC 4514).

use std::fmt::Write as _;

/// A form in which equal names are equal texts: types and values in lower case, white space single, escapes alike.
///
/// Approximates caseIgnoreMatch, which is what names of people and groups use. `None` when it is no distinguished name.
/// The empty name is the root.
pub(crate) fn normal(dn: &str) -> Option<String> {
    if dn.trim().is_empty() {
        return Some(String::new());
    }
    let mut names = Vec::new();
    for name in split(dn, &[',', ';'])? {
        let mut parts = Vec::new();
        for part in split(name, &['+'])? {
            let (kind, value) = part.split_once('=')?;
            let kind = kind.trim().to_ascii_lowercase();
            let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            if kind.is_empty() || !kind.chars().all(letters) {
                return None;
            }
            parts.push(format!("{kind}={}", normal_value(value)?));
        }
        parts.sort();
        names.push(parts.join("+"));
    }
    Some(names.join(","))
}

/// Whether `dn` is `base` or lies below it. Both in normal form.
pub(crate) fn is_under(dn: &str, base: &str) -> bool {
    base.is_empty() || dn == base || dn.strip_suffix(base).is_some_and(|rest| rest.ends_with(','))
}

/// A value for a place in a distinguished name (RFC 4514, section 2.4). Everything that is not a letter or digit of ASCII
/// goes as its bytes, so there is nothing to get wrong.
pub(crate) fn escape(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:02x}");
        }
    }
    out
}

fn split<'a>(text: &'a str, at: &[char]) -> Option<Vec<&'a str>> {
    let (mut parts, mut from, mut escaped) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        if !escaped && c == '"' {
            return None;
        }
        if !escaped && at.contains(&c) {
            parts.push(&text[from..index]);
            from = index + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[from..]);
    (!escaped).then_some(parts)
}

fn normal_value(raw: &str) -> Option<String> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut rest = raw.trim_start().bytes().peekable();
    // White space at the end counts only where it is escaped.
    let mut keep = 0;
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            if byte != b' ' {
                keep = bytes.len();
            }
            continue;
        }
        let first = rest.next()?;
        let escaped = match (hex(first), rest.peek().copied().and_then(hex)) {
            (Some(high), Some(low)) => {
                rest.next();
                high * 16 + low
            }
            _ => first,
        };
        bytes.push(escaped);
        keep = bytes.len();
    }
    bytes.truncate(keep);
    let text = String::from_utf8(bytes).ok()?.to_lowercase();
    let mut out = String::new();
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        for c in word.chars() {
            if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=' | '#') || c.is_control() {
                let _ = write!(out, "\\{:02x}", u32::from(c));
            } else {
                out.push(c);
            }
        }
    }
    Some(out)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_have_one_form() {
        for (a, b) in [
            ("CN=Ana  Lovelace, OU=People,dc=Example", "cn=ana lovelace,ou=people,dc=example"),
            ("cn=a\\2cb,dc=x", "cn=a\\,b,dc=x"),
            ("cn=\\c3\\a4,dc=x", "cn=Ä,dc=x"),
            ("uid=a+cn=b,dc=x", "cn=b+uid=a,dc=x"),
            ("cn=a\\20,dc=x", "cn=a\\ ,dc=x"),
        ] {
            assert_eq!(normal(a), normal(b), "{a} {b}");
        }
        assert_ne!(normal("cn=a\\,dc=y,dc=x"), normal("cn=a,dc=y,dc=x"));
    }

    #[test]
    fn nonsense_is_no_name() {
        for text in ["ana", "=x", "cn=a,", "cn=a\\", "cn=\"a\",dc=x", "c n=a", "cn=\\ff"] {
            assert_eq!(normal(text), None, "{text}");
        }
    }

    #[test]
    fn below_means_below() {
        assert!(is_under("cn=a,dc=x", "dc=x") && is_under("dc=x", "dc=x") && is_under("dc=x", ""));
        assert!(!is_under("dc=xx", "x") && !is_under("cn=a\\,dc=x", "ou=b,dc=x"));
    }

    proptest::proptest! {
        #[test]
        fn an_escaped_value_adds_no_structure(value in "\\PC{1,40}") {
            let dn = format!("uid={},ou=people,dc=x", escape(&value));
            let parts = normal(&dn).map(|dn| split(&dn, &[',']).map_or(0, |parts| parts.len()));
            proptest::prop_assert_eq!(parts, Some(3));
        }
    }
}
