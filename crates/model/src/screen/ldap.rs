//! Filters of directories (RFC 4515): one that is closed early, and another that is opened.

use super::text::{at, is_space, skip_space};
use super::{Best, Family, Meter};

/// Attributes that injections ask for.
const ATTRIBUTES: [&[u8]; 34] = [
    b"*",
    b"cn",
    b"commonname",
    b"dc",
    b"department",
    b"description",
    b"displayname",
    b"dn",
    b"employeenumber",
    b"givenname",
    b"homedirectory",
    b"l",
    b"loginshell",
    b"mail",
    b"manager",
    b"member",
    b"memberof",
    b"mobile",
    b"name",
    b"o",
    b"objectcategory",
    b"objectclass",
    b"ou",
    b"password",
    b"samaccountname",
    b"sn",
    b"telephonenumber",
    b"title",
    b"type",
    b"uid",
    b"uidnumber",
    b"user",
    b"useraccountcontrol",
    b"userpassword",
];

pub(super) fn probe(bytes: &[u8], best: &mut Best, meter: &mut Meter) {
    meter.add(bytes.len());
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Ldap);
    let opens = bytes.contains(&b'(');
    let mut depth: i64 = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'(' => {
                depth += 1;
                meter.add(24);
                opened(bytes, index, &mut put);
            }
            b')' => {
                depth -= 1;
                let early = depth < 0;
                let next = skip_space(bytes, index + 1);
                let after = at(bytes, next);
                let before = if index > 0 { bytes[index - 1] } else { 0 };
                if after == b'(' && early && matches!(at(bytes, next + 1), b'&' | b'|' | b'!') {
                    put(90, "ldap.closed_early");
                } else if early && before == b'*' {
                    put(
                        if after == b'(' || after == b')' || after == 0 && bytes.len() > next {
                            85
                        } else {
                            62
                        },
                        "ldap.closed_early",
                    );
                } else if early
                    && after == b')'
                    && (at(bytes, next + 1) == 0 || at(bytes, next + 1) == b'(')
                    && opens
                {
                    put(70, "ldap.closed_early");
                } else if early && after == b'|' && at(bytes, next + 1) == b'(' {
                    put(80, "ldap.closed_early");
                }
                depth = depth.max(0);
            }
            _ => {}
        }
    }
}

/// `(&(`, `(uid=*)`, `)(cn=`.
fn opened(bytes: &[u8], index: usize, put: &mut impl FnMut(u8, &'static str)) {
    let mut from = skip_space(bytes, index + 1);
    if matches!(at(bytes, from), b'&' | b'|' | b'!') {
        let inner = skip_space(bytes, from + 1);
        if at(bytes, inner) == b'(' && assertion(bytes, inner + 1).is_some() {
            return put(85, "ldap.filter");
        }
        if at(bytes, inner) == b')' {
            return put(80, "ldap.filter");
        }
        if at(bytes, from) != b'!' {
            return;
        }
        from = inner;
    }
    let Some((known, wild)) = assertion(bytes, from) else { return };
    let follows_filter = bytes[..index].iter().rev().find(|byte| !is_space(**byte)) == Some(&b')');
    match (known, wild, follows_filter) {
        (true, _, true) => put(86, "ldap.filter"),
        (true, true, _) => put(76, "ldap.filter"),
        (false, _, true) => put(60, "ldap.filter"),
        _ => {}
    }
}

/// `attribute=value`: whether the attribute is a known one and the value begins with a wildcard.
fn assertion(bytes: &[u8], from: usize) -> Option<(bool, bool)> {
    let mut end = from;
    while end < from + 48
        && bytes
            .get(end)
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'*' | b':'))
    {
        end += 1;
    }
    let name = &bytes[from.min(end)..end];
    let operator = skip_space(bytes, end);
    let equals = match at(bytes, operator) {
        b'=' => operator,
        b'~' | b'<' | b'>' if at(bytes, operator + 1) == b'=' => operator + 1,
        _ => return None,
    };
    if name.is_empty() || at(bytes, equals + 1) == b'=' {
        return None;
    }
    let base = name.split(|&byte| byte == b':').next().unwrap_or(name);
    Some((ATTRIBUTES.contains(&base), at(bytes, skip_space(bytes, equals + 1)) == b'*'))
}
