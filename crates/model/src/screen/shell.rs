//! Commands that a text would start if it were put into a shell's line: a separator or a substitution, then a command.

use super::shell_names::{is_command, is_word};
use super::text::{at, begins_word, here, is_space, near, skip_space};
use super::{Best, Family, Meter};

/// Bytes of a command's name that are read.
const NAME: usize = 48;

pub(super) fn probe(bytes: &[u8], best: &mut Best, meter: &mut Meter) {
    meter.add(bytes.len());
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Shell);
    let mut backtick_open = false;
    for (index, &byte) in bytes.iter().enumerate() {
        let next = at(bytes, index + 1);
        match byte {
            b';' | b'|' | b'&' | b'\n' | b'\r' => {
                meter.add(NAME);
                // Of `&&` and `||` the second begins the command.
                if next != byte {
                    separated(bytes, index + 1, byte, &mut put);
                }
            }
            b'$' if next == b'(' && at(bytes, index + 2) == b'(' && near(bytes, index, 24, b"))") => {
                put(60, "shell.arithmetic");
            }
            b'$' if next == b'(' || next == b'{' => {
                meter.add(NAME);
                substituted(bytes, index + 2, next, &mut put);
            }
            b'$' if here(bytes, index, b"$ifs") => put(85, "shell.separator_variable"),
            b'<' | b'>' if next == b'(' => {
                meter.add(NAME);
                substituted(bytes, index + 2, b'(', &mut put);
            }
            b'>' if redirects(bytes, index + 1) => put(60, "shell.redirect"),
            b'`' => {
                if !backtick_open {
                    meter.add(NAME);
                    let command = Command::read(bytes, index + 1);
                    if command.known != Known::No {
                        put(if command.argument { 60 } else { 55 }, "shell.backtick");
                    }
                }
                backtick_open = !backtick_open;
            }
            b'(' if here(bytes, index, b"() {") || here(bytes, index, b"(){") => {
                let body = skip_space(bytes, index + 2);
                if near(bytes, body, 16, b":;")
                    || near(bytes, body, 16, b"};")
                    || near(bytes, body, 32, b":; }")
                {
                    put(90, "shell.function");
                }
            }
            b'/' if begins_path(bytes, index) => {
                if here(bytes, index, b"/dev/tcp/") || here(bytes, index, b"/dev/udp/") {
                    put(90, "shell.socket");
                } else if [&b"/bin/sh"[..], b"/bin/bash", b"/bin/cat", b"/bin/nc", b"/bin/ls", b"/bin/id"]
                    .iter()
                    .any(|program| here(bytes, index, program))
                {
                    put(62, "shell.program");
                }
            }
            _ => {}
        }
    }
    whole(bytes, &mut put);
}

fn begins_path(bytes: &[u8], index: usize) -> bool {
    index == 0 || !super::text::is_word(bytes[index - 1]) || here(bytes, index, b"/bin/")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// A command and nothing else.
    Yes,
    /// A command, and a word of a language.
    Perhaps,
    No,
}

/// What stands where a command is expected.
#[expect(clippy::struct_excessive_bools, reason = "facts about a command are independent of each other")]
#[derive(Debug)]
struct Command {
    known: Known,
    /// It had to be unwrapped: `c''at`, `wh\oami`, `/b?n/cat`.
    disguised: bool,
    /// By its path.
    path: bool,
    /// What follows looks like an argument of a program: an option, a path, a variable, a redirection.
    argument: bool,
    /// Nothing follows.
    alone: bool,
    /// Another separator or the end of the substitution follows.
    ended: bool,
}

impl Command {
    fn read(bytes: &[u8], from: usize) -> Self {
        let mut index = skip_space(bytes, from);
        let start = index;
        let mut name: Vec<u8> = Vec::with_capacity(16);
        let (mut disguised, mut path, mut wild) = (false, false, false);
        let mut quotes = 0;
        while index < bytes.len() && index < start + NAME {
            let byte = bytes[index];
            match byte {
                b'\'' | b'"' => quotes += 1,
                b'\\' if at(bytes, index + 1).is_ascii_alphabetic() => disguised = true,
                b'$' if at(bytes, index + 1) == b'@' => {
                    disguised = true;
                    index += 1;
                }
                b'/' => {
                    path = true;
                    name.clear();
                }
                b'?' | b'*' | b'[' | b']' if path => wild = true,
                b'^' if index > start => disguised = true,
                _ if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') => name.push(byte),
                _ => break,
            }
            index += 1;
        }
        // "I'd" has one.
        disguised |= quotes > 0 && quotes % 2 == 0;
        if quotes % 2 == 1 {
            name.clear();
        }
        let bare = name.strip_suffix(b".exe").unwrap_or(&name);
        let known = if is_command(bare) || wild && path {
            Known::Yes
        } else if is_word(bare) {
            Known::Perhaps
        } else {
            Known::No
        };
        if known == Known::No {
            let (argument, alone, ended) = (false, false, false);
            return Self { known, disguised: false, path, argument, alone, ended };
        }
        let after = at(bytes, index);
        let argument_at = skip_space(bytes, index);
        let first = at(bytes, argument_at);
        let spaced = argument_at > index
            || after == b'<'
            || here(bytes, index, b"$ifs")
            || here(bytes, index, b"${ifs");
        let number = first.is_ascii_digit() && {
            let end = super::text::word_end(bytes, argument_at);
            matches!(at(bytes, end), 0 | b';' | b'|' | b'&' | b'`' | b')' | b'\n' | b'#' | b'.')
                && bytes[argument_at..end].iter().all(u8::is_ascii_digit)
        };
        let argument = spaced
            && (matches!(first, b'-' | b'/' | b'$' | b'~' | b'<' | b'>' | b'{' | b'\\' | b'`')
                || matches!(first, b'.') && matches!(at(bytes, argument_at + 1), b'.' | b'/')
                || number
                || near(bytes, argument_at, 16, b"://")
                || dotted(bytes, argument_at));
        Self {
            known,
            disguised,
            path,
            argument,
            alone: argument_at >= bytes.len(),
            ended: matches!(first, b';' | b'|' | b'&' | b'`' | b')' | b'}' | b'\n' | b'\'' | b'"')
                || first == b'#' && argument_at > index
                || first == 0,
        }
    }
}

/// A file or host with a dot in it, or an upper-level path.
fn dotted(bytes: &[u8], from: usize) -> bool {
    let mut end = from;
    while end < from + 64
        && bytes.get(end).is_some_and(|byte| !is_space(*byte) && !matches!(byte, b';' | b'|' | b'&'))
    {
        end += 1;
    }
    let word = &bytes[from.min(end)..end];
    word.windows(3)
        .any(|part| part[0].is_ascii_alphanumeric() && part[1] == b'.' && part[2].is_ascii_alphanumeric())
        || word.contains(&b'/')
        || word.starts_with(b"%")
}

fn separated(bytes: &[u8], from: usize, separator: u8, put: &mut impl FnMut(u8, &'static str)) {
    let command = Command::read(bytes, from);
    let start = skip_space(bytes, from);
    let calls =
        [&b"system("[..], b"passthru(", b"shell_exec(", b"popen(", b"proc_open(", b"phpinfo(", b"exec("];
    if calls.iter().any(|call| here(bytes, start, call)) {
        put(72, "shell.call");
    }
    let nets = [&b"net user"[..], b"net localgroup", b"net view", b"net share", b"net use", b"net start"];
    if nets.iter().any(|net| here(bytes, start, net)) {
        put(75, "shell.separator");
    }
    let line = matches!(separator, b'\n' | b'\r');
    // `a=1&id=5` is a query, `R&D` a department.
    if separator == b'&' && at(bytes, super::text::word_end(bytes, from)) == b'=' {
        return;
    }
    let score = match command.known {
        Known::No => return,
        _ if command.disguised => 88,
        Known::Yes if command.path => 88,
        Known::Yes if command.argument => 86,
        Known::Yes if command.alone || command.ended => 72,
        Known::Yes => 60,
        Known::Perhaps if command.path || command.argument && !line => 72,
        Known::Perhaps if command.argument => 55,
        Known::Perhaps if command.ended && !command.alone && matches!(separator, b'|' | b'&') => 60,
        Known::Perhaps if command.alone && matches!(separator, b'|' | b'&') => 58,
        Known::Perhaps if separator == b'|' && from > 0 => 52,
        Known::Perhaps => 40,
    };
    // Lines that begin with a command's name are how people write down what they did.
    put(if line { score.min(65) } else { score }, "shell.separator");
}

fn substituted(bytes: &[u8], from: usize, opened: u8, put: &mut impl FnMut(u8, &'static str)) {
    if opened == b'{' {
        if here(bytes, from, b"ifs}") {
            put(85, "shell.separator_variable");
        } else if here(bytes, from, b"path:") || here(bytes, from, b"home:") || here(bytes, from, b"!") {
            put(70, "shell.expansion");
        }
        return;
    }
    let command = Command::read(bytes, from);
    match command.known {
        Known::Yes => put(85, "shell.substitution"),
        Known::Perhaps => put(70, "shell.substitution"),
        Known::No => {
            if matches!(at(bytes, from), b'<') {
                put(75, "shell.substitution");
            }
        }
    }
}

/// A redirection into or out of a place of the system.
fn redirects(bytes: &[u8], from: usize) -> bool {
    let at = skip_space(bytes, from + usize::from(at(bytes, from) == b'>'));
    [&b"/dev/"[..], b"/tmp/", b"/etc/", b"/var/", b"/proc/", b"&1", b"&2", b"/root/", b"/home/"]
        .iter()
        .any(|place| here(bytes, at, place))
}

/// The whole value is a line for a shell: `wget http://…`, `{cat,/etc/passwd}`, `bash -i`, `ping -c 3 x`.
fn whole(bytes: &[u8], put: &mut impl FnMut(u8, &'static str)) {
    let start = skip_space(bytes, 0);
    if at(bytes, start) == b'{' && bytes.contains(&b',') && bytes.contains(&b'}') {
        let command = Command::read(bytes, start + 1);
        if command.known == Known::Yes {
            put(80, "shell.braces");
        }
    }
    let command = Command::read(bytes, start);
    // "OD < 0.5" compares.
    let compares = bytes[start.min(bytes.len())..].iter().take(NAME).any(|byte| matches!(byte, b'<' | b'>'));
    if command.known == Known::Yes
        && command.argument
        && begins_word(bytes, start)
        && (command.path || !compares)
    {
        put(if command.path { 72 } else { 58 }, "shell.line");
    }
}
