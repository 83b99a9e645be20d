//! Expressions of template engines: the marker alone is a habit of people, an expression in it is not.

use super::text::{at, begins_word, here, is_word, near};
use super::{Best, Family, Meter};

/// Bytes of an expression that are read.
const EXPRESSION: usize = 256;
/// Expressions of one window that are read: what comes after so many adds nothing.
const EXPRESSIONS: usize = 64;

/// Openers with the score of an ordinary content, and how they close.
const MARKERS: [(&[u8], u8, &[u8]); 17] = [
    (b"${{", 62, b"}}"),
    (b"{{", 56, b"}}"),
    (b"${", 56, b"}"),
    (b"#{", 56, b"}"),
    (b"*{", 54, b"}"),
    (b"~{", 54, b"}"),
    (b"@{", 54, b"}"),
    (b"{%", 62, b"%}"),
    (b"<%", 66, b"%>"),
    (b"<?php", 78, b"?>"),
    (b"<?=", 72, b"?>"),
    (b"{#", 40, b"#}"),
    (b"[[", 30, b"]]"),
    (b"@(", 54, b")"),
    (b"{php}", 85, b"{/php}"),
    (b"{if", 45, b"}"),
    (b"<#", 60, b">"),
];

/// Names that lead out of a template into the language behind it.
const ESCAPES: [&[u8]; 34] = [
    b"__class__",
    b"__globals__",
    b"__mro__",
    b"__subclasses__",
    b"__import__",
    b"__builtins__",
    b"__init__",
    b"__base__",
    b"__proto__",
    b"__getattribute__",
    b"java.lang",
    b"java.util",
    b"javax.script",
    b"getclass",
    b"forname(",
    b"getruntime",
    b"processbuilder",
    b"freemarker.template",
    b"objectconstructor",
    b"?new()",
    b"constructor.constructor",
    b"child_process",
    b"process.mainmodule",
    b"require(",
    b"system(",
    b"popen(",
    b"passthru(",
    b"shell_exec(",
    b"phpinfo(",
    b"file_get_contents(",
    b"#_memberaccess",
    b"@java.",
    b"lipsum",
    b"cycler",
];

pub(super) fn probe(bytes: &[u8], best: &mut Best, meter: &mut Meter) {
    meter.add(bytes.len());
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Template);
    let mut expressions = 0;
    let mut index = 0;
    while index < bytes.len() {
        let mut taken = 1;
        match bytes[index] {
            b'{' | b'$' | b'#' | b'*' | b'~' | b'@' | b'<' | b'[' => {
                meter.add(MARKERS.len());
                let marker = MARKERS.iter().find(|(opener, ..)| here(bytes, index, opener));
                if let Some((opener, score, closer)) = marker.filter(|_| expressions < EXPRESSIONS) {
                    meter.add(EXPRESSION);
                    expressions += 1;
                    expression(bytes, index + opener.len(), *score, closer, &mut put);
                    taken = opener.len();
                }
                if here(bytes, index, b"#set(")
                    || here(bytes, index, b"#set ($")
                    || here(bytes, index, b"#include(")
                {
                    put(82, "template.directive");
                } else if here(bytes, index, b"@import") && near(bytes, index, 24, b"url(") {
                    put(55, "template.directive");
                }
            }
            b'_' if here(bytes, index, b"__") && begins_word(bytes, index) => escape(bytes, index, &mut put),
            b't' if here(bytes, index, b"t(java.") || here(bytes, index, b"t(org.") => {
                put(88, "template.escape");
            }
            _ => {}
        }
        index += taken;
    }
}

/// A name with two underscores on each side that leads out of the sandbox of Python's engines.
fn escape(bytes: &[u8], index: usize, put: &mut impl FnMut(u8, &'static str)) {
    if !ESCAPES.iter().any(|name| name.starts_with(b"__") && here(bytes, index, name)) {
        return;
    }
    let reached = index > 0 && matches!(bytes[index - 1], b'.' | b'[' | b'\'' | b'"' | b'|');
    put(if reached || near(bytes, index, 24, b"__.") { 80 } else { 62 }, "template.escape");
}

fn expression(bytes: &[u8], from: usize, plain: u8, closer: &[u8], put: &mut impl FnMut(u8, &'static str)) {
    let window = &bytes[from.min(bytes.len())..bytes.len().min(from + EXPRESSION)];
    if lookup(window) {
        return put(96, "template.lookup");
    }
    let Some(length) = window.windows(closer.len()).position(|part| part == closer) else { return };
    let inner = &window[..length];
    if ESCAPES.iter().any(|name| inner.windows(name.len()).any(|part| part == *name)) {
        put(92, "template.escape");
    } else if computes(inner) {
        put(84, "template.computation");
    } else if reaches(inner) {
        put(80, "template.object");
    } else if !inner.trim_ascii().is_empty() {
        put(plain, "template.marker");
    }
}

/// `${jndi:…}` and the nestings that hide the word.
fn lookup(window: &[u8]) -> bool {
    if window.starts_with(b"jndi:") {
        return true;
    }
    let nested = [&b"${lower:"[..], b"${upper:", b"${::-", b"${env:", b"${sys:", b"${date:", b"${base64:"];
    let hides = |prefix: &[u8]| window.starts_with(&prefix[2..]) || near(window, 0, 64, prefix);
    (nested.iter().any(|prefix| hides(prefix)))
        && (near(window, 0, EXPRESSION, b"://")
            || near(window, 0, EXPRESSION, b"${")
            || near(window, 0, 16, b":"))
}

/// Two numbers or texts with an operator between, as probes of templates do to see whether they count.
fn computes(inner: &[u8]) -> bool {
    let inner = inner.trim_ascii();
    let inner = inner.strip_prefix(b"=").unwrap_or(inner);
    let plain: Vec<u8> = inner.iter().copied().filter(|byte| *byte != b' ').collect();
    plain.iter().enumerate().any(|(index, byte)| {
        matches!(byte, b'*' | b'/' | b'%' | b'+' | b'-' | b'^')
            && index > 0
            && (plain[index - 1].is_ascii_digit() || matches!(plain[index - 1], b'\'' | b'"'))
            && (at(&plain, index + 1).is_ascii_digit() || matches!(at(&plain, index + 1), b'\'' | b'"'))
            && plain[..index]
                .iter()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'\'' | b'"' | b'*' | b'+' | b'(' | b'.'))
    })
}

/// Objects that engines put into every template, and calls on texts.
fn reaches(inner: &[u8]) -> bool {
    const OBJECTS: [&[u8]; 22] = [
        b"config",
        b"self",
        b"request",
        b"settings",
        b"_self",
        b"app",
        b"dump",
        b"session",
        b"application",
        b"namespace",
        b"joiner",
        b"url_for",
        b"get_flashed_messages",
        b"constructor",
        b"$on",
        b"this",
        b"process",
        b"global",
        b"debug",
        b"range",
        b"env",
        b"include",
    ];
    let start = inner.iter().position(|byte| !matches!(byte, b' ' | b'-' | b'=' | b'!' | b'{')).unwrap_or(0);
    let rest = &inner[start..];
    let end = rest.iter().position(|byte| !is_word(*byte) && *byte != b'$').unwrap_or(rest.len());
    let follows = at(rest, end);
    let object =
        OBJECTS.contains(&&rest[..end]) && matches!(follows, 0 | b'.' | b'[' | b'(' | b'|' | b' ' | b'}');
    object
        && (follows != 0
            || matches!(&rest[..end], b"config" | b"self" | b"settings" | b"_self" | b"dump" | b"debug"))
        || inner.windows(2).any(|pair| pair == b"'." || pair == b"\"." || pair == b"'|" || pair == b"()")
        || inner.contains(&b'`')
}
