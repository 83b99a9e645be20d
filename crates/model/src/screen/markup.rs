//! HTML: an element that is opened, an event handler, a URL that is a program; in structured places also bare script.
//!
//! Reads tags as a browser's tokeniser does (HTML standard, 13.2.5), so that `x < y and y > z` is a comparison.

use super::markup_names::{is_active, is_element, is_handler};
use super::text::{self, Seen, at, begins_word, here, is_space, near, skip_space, word_end};
use super::{Best, Family, Meter, Place};

/// Bytes of a tag that are read.
const TAG: usize = 512;
/// Bytes after a scheme that are read.
const URL: usize = 160;

pub(super) fn probe(place: Place, bytes: &[u8], seen: Seen, best: &mut Best, meter: &mut Meter) {
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Markup);
    if seen.any(text::LESS) {
        tags(place, bytes, meter, &mut put);
    }
    if seen.any(text::EQUALS) {
        handlers(bytes, meter, &mut put);
    }
    if seen.any(text::COLON) {
        script_urls(bytes, meter, &mut put);
    }
    if place != Place::Label && seen.any(text::PAREN | text::TICK | text::EQUALS) {
        script(place, bytes, meter, &mut put);
    }
}

/// Elements that are opened.
fn tags(place: Place, bytes: &[u8], meter: &mut Meter, put: &mut impl FnMut(u8, &'static str)) {
    let mut index = 0;
    // Bytes of tags that may still be read: tags can hold tags, and reading each to its end would add up.
    let mut allowance = bytes.len() * 4 + TAG;
    while let Some(found) = bytes[index..].iter().position(|&byte| byte == b'<') {
        let open = index + found;
        index = open + 1;
        let structured = place != Place::Label && place != Place::FreeText;
        match at(bytes, index) {
            b'/' => {
                let end = name_end(bytes, index + 1);
                // What ends here lets the text after it out of an element that shows it as text.
                let name = &bytes[index + 1..end];
                if matches!(
                    name,
                    b"script" | b"style" | b"title" | b"textarea" | b"noscript" | b"template" | b"xmp"
                ) {
                    put(if structured { 75 } else { 60 }, "markup.end_tag");
                } else if structured && is_element(name) {
                    put(52, "markup.end_tag");
                }
            }
            b'!' if structured && here(bytes, index, b"!--#") => put(80, "markup.server_include"),
            b'!' if structured && here(bytes, index, b"!--") => put(55, "markup.comment"),
            byte if byte.is_ascii_alphabetic() => {
                let end = name_end(bytes, index);
                let name = &bytes[index..end];
                let tag = Tag::read(&bytes[end..bytes.len().min(end + TAG.min(allowance))]);
                allowance -= tag.length.min(allowance);
                meter.add(tag.length + name.len());
                element(structured, name, &tag, put);
            }
            _ => {}
        }
    }
}

/// A name runs to white space, a slash or the end of the tag; control characters that browsers skip end it for us too.
fn name_end(bytes: &[u8], mut index: usize) -> usize {
    let from = index;
    while index < from + 64
        && bytes.get(index).is_some_and(|byte| {
            !is_space(*byte) && !matches!(byte, b'/' | b'>' | b'<' | b'"' | b'\'' | b'=' | 0..=0x1f)
        })
    {
        index += 1;
    }
    index
}

fn element(structured: bool, name: &[u8], tag: &Tag, put: &mut impl FnMut(u8, &'static str)) {
    let known = is_element(name);
    if tag.handler {
        put(95, "markup.handler");
    } else if tag.script_url {
        put(90, "markup.script_url");
    } else if name == b"script" && (tag.closed || tag.attributes > 0 || tag.valueless > 0 || tag.at_end) {
        put(95, "markup.script");
    } else if is_active(name) && (tag.attributes > 0 || tag.closed_at_once) {
        put(85, "markup.element");
    } else if is_active(name) && (tag.closed || tag.slash) {
        put(70, "markup.element");
    } else if known && (tag.attributes > 0 || tag.closed_at_once) {
        put(if tag.attributes > 0 { 72 } else { 56 }, "markup.element");
    } else if !known && tag.attributes > 0 && tag.closed && name.contains(&b'-') {
        put(60, "markup.element");
    } else if structured && !known && tag.attributes > 0 && tag.closed {
        put(55, "markup.element");
    }
}

/// What a tag holds after its name.
#[expect(clippy::struct_excessive_bools, reason = "facts about a tag are independent of each other")]
#[derive(Debug, Default)]
struct Tag {
    /// Attributes with a value.
    attributes: usize,
    /// Attributes without.
    valueless: usize,
    handler: bool,
    script_url: bool,
    /// `>` was found.
    closed: bool,
    /// `>` follows the name, perhaps behind white space or a slash.
    closed_at_once: bool,
    /// The text ends right after the name.
    at_end: bool,
    /// A slash follows the name.
    slash: bool,
    /// Bytes that were read.
    length: usize,
}

impl Tag {
    fn read(bytes: &[u8]) -> Self {
        let mut tag = Self { at_end: bytes.is_empty(), slash: at(bytes, 0) == b'/', ..Self::default() };
        let mut index = 0;
        while index < bytes.len() {
            let byte = bytes[index];
            if byte == b'>' {
                tag.closed = true;
                tag.closed_at_once = tag.attributes == 0 && tag.valueless == 0;
                break;
            }
            if byte == b'<' && tag.attributes == 0 {
                break;
            }
            if is_space(byte) || matches!(byte, b'/' | b'"' | b'\'' | 0..=0x1f) {
                index += 1;
                continue;
            }
            index = tag.attribute(bytes, index);
        }
        tag.length = index.min(bytes.len());
        tag
    }

    fn attribute(&mut self, bytes: &[u8], from: usize) -> usize {
        let mut end = from;
        while end < bytes.len()
            && !is_space(bytes[end])
            && !matches!(bytes[end], b'=' | b'>' | b'/' | 0..=0x1f)
        {
            end += 1;
        }
        let name = &bytes[from..end];
        let equals = skip_blank(bytes, end);
        if at(bytes, equals) != b'=' {
            self.valueless += 1;
            return end.max(from + 1);
        }
        self.attributes += 1;
        self.handler |= is_handler(name) || name == b"style" && styled(&bytes[equals..]);
        let mut value = skip_blank(bytes, equals + 1);
        let quote = at(bytes, value);
        let quoted = matches!(quote, b'"' | b'\'' | b'`');
        if quoted {
            value += 1;
        }
        let mut end = value;
        while end < bytes.len()
            && !(quoted && bytes[end] == quote)
            && !(!quoted && (is_space(bytes[end]) || bytes[end] == b'>'))
        {
            end += 1;
        }
        self.script_url |= program_url(&bytes[value.min(end)..end]);
        self.handler |= name == b"srcdoc" && bytes[value.min(end)..end].contains(&b'<');
        (end + usize::from(quoted)).max(from + 1)
    }
}

fn skip_blank(bytes: &[u8], mut index: usize) -> usize {
    while bytes.get(index).is_some_and(|byte| is_space(*byte) || *byte < 0x20) {
        index += 1;
    }
    index
}

/// A style that runs something, in browsers that do.
fn styled(bytes: &[u8]) -> bool {
    near(bytes, 0, 160, b"expression(")
        || near(bytes, 0, 160, b"javascript:")
        || near(bytes, 0, 160, b"-moz-binding")
}

/// Whether a URL is a program: the scheme as browsers read it, control characters and white space left out.
fn program_url(bytes: &[u8]) -> bool {
    let plain: Vec<u8> = bytes.iter().copied().filter(|byte| *byte > 0x20).take(40).collect();
    [
        &b"javascript:"[..],
        b"vbscript:",
        b"livescript:",
        b"data:text/html",
        b"data:image/svg",
        b"data:text/xml",
        b"data:application/x",
    ]
    .iter()
    .any(|scheme| plain.starts_with(scheme))
}

/// Attributes that an injection adds to an element that is already there.
fn handlers(bytes: &[u8], meter: &mut Meter, put: &mut impl FnMut(u8, &'static str)) {
    let mut index = 0;
    while index + 4 < bytes.len() {
        if bytes[index] == b'o' && bytes[index + 1] == b'n' && begins_word(bytes, index) {
            let end = word_end(bytes, index);
            let equals = skip_space(bytes, end);
            meter.add(end - index);
            if at(bytes, equals) == b'=' && at(bytes, equals + 1) != b'=' && is_handler(&bytes[index..end]) {
                let value = skip_space(bytes, equals + 1);
                let before =
                    bytes[..index].iter().rev().find(|byte| !is_space(**byte)).copied().unwrap_or(b' ');
                let broken_out = matches!(before, b'"' | b'\'' | b'`' | b'/' | b'>' | b'<');
                let runs = calls(&bytes[value.min(bytes.len())..bytes.len().min(value + URL)]);
                match (broken_out, runs) {
                    (true, true) => put(92, "markup.handler"),
                    (false, true) => put(80, "markup.handler"),
                    (true, false) => put(70, "markup.handler"),
                    (false, false) => {}
                }
            }
            index = end.max(index + 1);
        } else {
            index += 1;
        }
    }
}

/// Whether a text calls something as script does: a name, a parenthesis or backtick right behind it. Or assigns a property.
fn calls(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| {
        (pair[0].is_ascii_alphanumeric() || matches!(pair[0], b'_' | b'$' | b']' | b')'))
            && matches!(pair[1], b'(' | b'`')
    }) || near(bytes, 0, URL, b".cookie")
        || near(bytes, 0, URL, b"location=")
        || near(bytes, 0, URL, b"location.href")
}

/// `javascript:` outside of a tag. "javascript: the good parts" is a book.
fn script_urls(bytes: &[u8], meter: &mut Meter, put: &mut impl FnMut(u8, &'static str)) {
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b':') {
        // The scheme, backwards, without what browsers leave out of it.
        let mut scheme: Vec<u8> = Vec::with_capacity(12);
        let mut start = index;
        meter.add(12);
        while start > 0 && scheme.len() < 10 && index - start < 24 {
            start -= 1;
            match bytes[start] {
                byte if byte.is_ascii_alphabetic() => scheme.push(byte),
                b'\t' | b'\n' | b'\r' | 0..=8 => {}
                _ => break,
            }
        }
        scheme.reverse();
        let rest = &bytes[index + 1..bytes.len().min(index + 1 + URL)];
        match scheme.as_slice() {
            b"javascript" | b"livescript" | b"vbscript" | b"jscript" => {
                let glued = rest.first().is_some_and(|byte| !is_space(*byte));
                let plain = skip_space(rest, 0);
                if calls(rest) {
                    put(90, "markup.script_url");
                } else if here(rest, plain, b"//")
                    || here(rest, plain, b"/*")
                    || glued && rest.contains(&b'=')
                {
                    put(85, "markup.script_url");
                } else if glued && index == start + scheme.len() && start == 0 {
                    put(60, "markup.script_url");
                }
            }
            b"data" => {
                let runs = here(rest, 0, b"text/html")
                    || here(rest, 0, b"image/svg+xml")
                    || here(rest, 0, b"text/javascript");
                if runs && rest.contains(&b',') {
                    put(80, "markup.data_url");
                }
            }
            _ => {}
        }
    }
}

/// Script without markup, for values that a page would put into its own script.
fn script(place: Place, bytes: &[u8], meter: &mut Meter, put: &mut impl FnMut(u8, &'static str)) {
    const CALLS: [&[u8]; 12] = [
        b"alert",
        b"confirm",
        b"prompt",
        b"eval",
        b"settimeout",
        b"setinterval",
        b"function",
        b"importscripts",
        b"atob",
        b"unescape",
        b"execscript",
        b"print",
    ];
    const OBJECTS: [&[u8]; 16] = [
        b"document.cookie",
        b"document.write",
        b"document.location",
        b"document.domain",
        b"document[",
        b"window.location",
        b"window.name",
        b"window[",
        b"location.href",
        b"location.hash",
        b"string.fromcharcode",
        b"localstorage.",
        b"constructor.constructor",
        b"self[",
        b"top[",
        b"document.body",
    ];
    meter.add(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        if !bytes[index].is_ascii_alphabetic() || !begins_word(bytes, index) {
            index += 1;
            continue;
        }
        let end = word_end(bytes, index);
        let word = &bytes[index..end];
        if matches!(at(bytes, end), b'(' | b'`') && CALLS.contains(&word) {
            let before = bytes[..index].iter().rev().find(|byte| !is_space(**byte)).copied().unwrap_or(0);
            let broken_out =
                matches!(before, b'\'' | b'"' | b'`' | b';' | b'-' | b'+' | b'*' | b'/' | b'}' | b')' | b',');
            let argument = at(bytes, end + 1);
            let classic = matches!(word, b"alert" | b"confirm" | b"prompt" | b"print")
                && (argument.is_ascii_digit()
                    || matches!(argument, b'"' | b'\'' | b'`' | b')' | b'/' | b'd'));
            match (word, broken_out && index > 0) {
                (b"function" | b"print", true) => put(55, "markup.script_text"),
                (b"function" | b"print", false) => put(30, "markup.script_text"),
                (_, true) if classic => put(82, "markup.script_text"),
                (_, true) => put(68, "markup.script_text"),
                _ if classic => put(62, "markup.script_text"),
                _ => put(55, "markup.script_text"),
            }
        } else if (place != Place::FreeText || near(bytes, index, 48, b"="))
            && OBJECTS.iter().any(|object| here(bytes, index, object))
        {
            put(66, "markup.script_text");
        }
        index = end.max(index + 1);
    }
}
