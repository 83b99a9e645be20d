//! Ways out of a folder: the path is resolved as a file system would, and what leaves the folder counts.
//!
//! "plate..csv" and "A1...H12" are names; `..` is a way up only between separators.

use super::text::{at, here, is_space, near};
use super::{Best, Family, Meter, Place};

/// Files that are asked for to see whether one can.
const TARGETS: [&[u8]; 40] = [
    b"etc/passwd",
    b"etc/shadow",
    b"etc/group",
    b"etc/hosts",
    b"etc/issue",
    b"etc/motd",
    b"etc/crontab",
    b"etc/sudoers",
    b"etc/ssh/",
    b"etc/nginx/",
    b"etc/apache",
    b"etc/httpd/",
    b"etc/mysql/",
    b"etc/resolv.conf",
    b"etc/fstab",
    b"etc/environment",
    b"proc/self/",
    b"proc/version",
    b"proc/cmdline",
    b"proc/mounts",
    b"proc/net/",
    b"var/log/",
    b"var/run/secrets",
    b"root/.",
    b".ssh/id_",
    b".ssh/authorized_keys",
    b".bash_history",
    b".aws/credentials",
    b"web-inf/",
    b"boot.ini",
    b"win.ini",
    b"windows/system32",
    b"windows/system.ini",
    b"windows/repair",
    b"winnt/",
    b"inetpub/",
    b"system32/drivers/etc",
    b"sam.log",
    b"global.asax",
    b"ntuser.dat",
];
const SCHEMES: [(&[u8], u8); 12] = [
    (b"php://", 88),
    (b"expect://", 85),
    (b"phar://", 85),
    (b"zip://", 75),
    (b"file:///", 70),
    (b"file://", 62),
    (b"gopher://", 80),
    (b"dict://", 75),
    (b"jar:http", 80),
    (b"jar:file", 80),
    (b"netdoc:", 75),
    (b"ldap://", 60),
];

const fn is_separator(byte: u8) -> bool {
    matches!(byte, b'/' | b'\\')
}

pub(super) fn probe(place: Place, bytes: &[u8], first: bool, best: &mut Best, meter: &mut Meter) {
    meter.add(bytes.len());
    let up = ways_up(bytes);
    let target = target(bytes, meter);
    // The text is a path and nothing else.
    let alone = first && !bytes.iter().any(|byte| is_space(*byte)) && !bytes.contains(&b',');
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Traversal);
    let structured = place.is_structured();
    match up.count {
        0 => {}
        _ if target => put(95, "traversal.file"),
        3.. => put(90, "traversal.up"),
        2 if structured => put(85, "traversal.up"),
        2 if alone && up.escapes => put(70, "traversal.up"),
        // Links of pages and imports of programs go up once or twice.
        1 if structured && (up.escapes || place == Place::Path) => put(68, "traversal.up"),
        _ => put(if structured { 60 } else { 40 }, "traversal.up"),
    }
    if up.dodges {
        put(if target { 95 } else { 72 }, "traversal.dodge");
    }
    if target {
        let absolute = first && bytes.first().is_some_and(|byte| is_separator(*byte) || *byte == b'.');
        let drive = bytes
            .windows(3)
            .any(|part| part[0].is_ascii_alphabetic() && part[1] == b':' && is_separator(part[2]));
        let score = match (alone && (absolute || drive), absolute || drive || structured) {
            (true, _) => 72,
            (false, true) => 66,
            (false, false) => 45,
        };
        put(score, "traversal.file");
    }
    if place != Place::Header && bytes.contains(&b':') {
        for (index, _) in
            bytes.windows(2).enumerate().filter(|(_, pair)| pair == b":/" || pair == b":h" || pair == b":f")
        {
            let scheme = SCHEMES.iter().find(|(scheme, _)| {
                let colon = scheme.iter().position(|byte| *byte == b':').unwrap_or(0);
                index >= colon
                    && here(bytes, index - colon, scheme)
                    && super::text::begins_word(bytes, index - colon)
            });
            if let Some((_, score)) = scheme {
                put(*score, "traversal.scheme");
            }
        }
    }
}

/// What stands between the separators.
#[derive(Debug, Default)]
struct Ups {
    /// Segments that go up.
    count: usize,
    /// The path ends up above where it began.
    escapes: bool,
    /// Dots and separators in numbers that only make sense to something that removes some of them.
    dodges: bool,
}

fn ways_up(bytes: &[u8]) -> Ups {
    let mut ups = Ups::default();
    let mut depth: i64 = 0;
    let mut start = 0;
    for end in 0..=bytes.len() {
        let ended = end == bytes.len() || is_separator(bytes[end]);
        let cut = end < bytes.len()
            && (is_space(bytes[end]) && end > start
                || matches!(bytes[end], b'"' | b'\'' | b'=' | b',' | b'(' | b'|' | b'>' | b'<'));
        if !ended && !cut {
            continue;
        }
        let segment = &bytes[start..end];
        let plain = trimmed(segment);
        let bounded = ended && end < bytes.len()
            || start > 0 && is_separator(bytes[start - 1])
            || start == 0 && end == bytes.len();
        if plain == b".." && bounded {
            ups.count += 1;
            depth -= 1;
            ups.escapes |= depth < 0;
        } else if plain.len() >= 3
            && plain.iter().all(|&byte| byte == b'.')
            && is_separator(at(bytes, end))
            && is_separator(at(bytes, end + 1))
        {
            ups.dodges = true;
        } else if !plain.is_empty() && plain != b"." {
            depth += 1;
        }
        if cut {
            // Another word: another path.
            depth = 0;
        }
        start = end + 1;
    }
    ups
}

/// A segment without what servers and file systems leave out: spaces, NUL, parameters behind a semicolon.
fn trimmed(segment: &[u8]) -> &[u8] {
    let end =
        segment.iter().position(|&byte| matches!(byte, b';' | 0 | b'?' | b'#')).unwrap_or(segment.len());
    let mut plain = &segment[..end];
    while let Some((&last, rest)) = plain.split_last()
        && is_space(last)
    {
        plain = rest;
    }
    while let Some((&head, rest)) = plain.split_first()
        && is_space(head)
    {
        plain = rest;
    }
    plain
}

fn target(bytes: &[u8], meter: &mut Meter) -> bool {
    // Backslashes and doubled separators read like one slash.
    let mut plain = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        let byte = if byte == b'\\' { b'/' } else { byte };
        let repeated = byte == b'/' && plain.last() == Some(&b'/');
        let here = plain.ends_with(b"/.") && byte == b'/';
        if here {
            plain.pop();
        } else if !repeated {
            plain.push(byte);
        }
    }
    meter.add(plain.len());
    // Only where a path could begin; the first byte decides quickly.
    (0..plain.len()).any(|index| {
        let before = if index == 0 { b'/' } else { plain[index - 1] };
        matches!(
            before,
            b'/' | b':' | b'=' | b' ' | b'"' | b'\'' | b'%' | b'<' | b'`' | b'|' | b',' | b'(' | b'{'
        ) && matches!(
            plain[index],
            b'e' | b'p' | b'v' | b'r' | b'.' | b'w' | b'b' | b'i' | b's' | b'g' | b'n'
        ) && TARGETS.iter().any(|target| here(&plain, index, target))
            && !near(&plain, index, 8, b"  ")
    })
}
