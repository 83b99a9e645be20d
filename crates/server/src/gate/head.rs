//! The head of a request, line by line.
//!
//! One pass over the bytes, in the order in which they come, without a copy: how they were cut on their way makes no
//! difference to the verdict. A line is judged as soon as it has ended, and a byte that has no place in any head at once.

use std::ops::Range;

use super::Reason;
use super::body::{Chunks, Framing};
use super::target::{self, Form, is_token};

/// Longest head in bytes, blank line included. HTTP/2 has the same bound for its header list.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// Most fields of a head.
pub(crate) const MAX_FIELDS: usize = 100;
/// Most digits of a length: every number of 18 digits fits everywhere.
const MAX_DIGITS: usize = 18;

/// A whole and well-formed head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complete {
    /// Its bytes, blank line included.
    pub(super) length: usize,
    /// How its body ends.
    pub(super) body: Framing,
    /// No request may follow on this connection.
    pub(super) last: bool,
}

/// A head under way. Positions count from the first byte of the buffer, which must stay until the head is whole.
#[expect(clippy::struct_excessive_bools, reason = "each notes one thing that was seen")]
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Bytes that were looked at.
    at: usize,
    /// Where the current line begins.
    line: usize,
    /// One empty line came before the request line (RFC 9112 section 2.2).
    blank: bool,
    /// The request line was read.
    begun: bool,
    http10: bool,
    form: Form,
    host: Option<Range<usize>>,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    fields: usize,
}

impl Head {
    /// Goes on with `bytes`, which begin with those of the earlier calls. `None`: more are needed.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Complete>, Reason> {
        let within = &bytes[..bytes.len().min(MAX_HEAD)];
        loop {
            let Some(end) = self.line_end(within)? else {
                return match (bytes.len() < MAX_HEAD, self.begun) {
                    (true, _) => Ok(None),
                    (false, true) => Err(Reason::HeadTooLarge),
                    (false, false) => Err(Reason::TargetTooLong),
                };
            };
            let start = std::mem::replace(&mut self.line, end + 2);
            self.at = self.line;
            if start == end {
                if self.begun {
                    return self.complete(within).map(Some);
                }
                if std::mem::replace(&mut self.blank, true) {
                    return Err(Reason::Blank);
                }
            } else if self.begun {
                self.field(&within[start..end], start)?;
            } else {
                self.request_line(&within[start..end], start)?;
            }
        }
    }

    /// The end of the current line. A line ends with CR LF, and neither stands anywhere else.
    fn line_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Reason> {
        self.at += plain(&bytes[self.at..]);
        match (bytes.get(self.at), bytes.get(self.at + 1)) {
            (None, _) | (Some(b'\r'), None) => Ok(None),
            (Some(b'\r'), Some(b'\n')) => Ok(Some(self.at)),
            (Some(b'\r'), Some(_)) => Err(Reason::BareCr),
            (Some(b'\n'), _) => Err(Reason::BareLf),
            (Some(_), _) => Err(Reason::Control),
        }
    }

    fn request_line(&mut self, line: &[u8], start: usize) -> Result<(), Reason> {
        let mut parts = line.split(|&byte| byte == b' ');
        let parts = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(method), Some(target), Some(version), None) = parts else {
            return Err(Reason::RequestLine);
        };
        target::method(method)?;
        self.http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(Reason::Version),
        };
        self.form = match target::form(method, target)? {
            Form::Absolute(place) => {
                let offset = start + method.len() + 1;
                Form::Absolute(offset + place.start..offset + place.end)
            }
            other => other,
        };
        self.begun = true;
        Ok(())
    }

    fn field(&mut self, line: &[u8], start: usize) -> Result<(), Reason> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Reason::Folded);
        }
        let length = line.iter().take_while(|&&byte| is_token(byte)).count();
        if length == 0 || line.get(length) != Some(&b':') {
            return Err(Reason::FieldName);
        }
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Reason::TooManyFields);
        }
        let (name, raw) = (&line[..length], &line[length + 1..]);
        // Lengths decide: the names that frame have different ones.
        match length {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(raw, start + length + 1),
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection(raw),
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(raw),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(raw),
            _ => Ok(()),
        }
    }

    fn host(&mut self, raw: &[u8], start: usize) -> Result<(), Reason> {
        let value = raw.trim_ascii();
        if self.host.is_some() {
            return Err(Reason::HostRepeated);
        }
        target::authority(value)?;
        let from = start + raw.len() - raw.trim_ascii_start().len();
        self.host = Some(from..from + value.len());
        Ok(())
    }

    fn connection(&mut self, raw: &[u8]) -> Result<(), Reason> {
        for option in raw.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if !option.iter().all(|&byte| is_token(byte)) {
                return Err(Reason::Connection);
            }
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(())
    }

    /// Digits only, without a leading zero (some read those as octal), and once only, even where both say the same.
    fn content_length(&mut self, raw: &[u8]) -> Result<(), Reason> {
        let digits = spaces_trimmed(raw);
        let plain = !digits.is_empty()
            && digits.len() <= MAX_DIGITS
            && digits.iter().all(u8::is_ascii_digit)
            && (digits.len() == 1 || digits[0] != b'0');
        if !plain {
            return Err(Reason::LengthMalformed);
        }
        let length = digits.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
        if self.length.replace(length).is_some() { Err(Reason::LengthRepeated) } else { Ok(()) }
    }

    fn transfer_encoding(&mut self, raw: &[u8]) -> Result<(), Reason> {
        if !spaces_trimmed(raw).eq_ignore_ascii_case(b"chunked") {
            return Err(Reason::Coding);
        }
        if std::mem::replace(&mut self.chunked, true) { Err(Reason::CodingRepeated) } else { Ok(()) }
    }

    /// What only the whole head shows.
    fn complete(&self, bytes: &[u8]) -> Result<Complete, Reason> {
        let body = match (self.length, self.chunked) {
            (Some(_), true) => return Err(Reason::LengthAndCoding),
            (None, true) if self.http10 => return Err(Reason::CodingInOldVersion),
            (None, true) => Framing::Chunked(Chunks::default()),
            (None | Some(0), false) => Framing::None,
            (Some(length), false) => Framing::Length(length),
        };
        match (&self.host, &self.form) {
            (None, _) if !self.http10 => return Err(Reason::HostMissing),
            (Some(host), Form::Absolute(named))
                if !bytes[host.clone()].eq_ignore_ascii_case(&bytes[named.clone()]) =>
            {
                return Err(Reason::HostDiffers);
            }
            _ => {}
        }
        Ok(Complete { length: self.line, body, last: self.close || (self.http10 && !self.keep_alive) })
    }
}

/// How many bytes, from the first, may stand within a line. Sixteen are looked at together: numbers instead of conditions,
/// because only then does the compiler take them at once.
fn plain(bytes: &[u8]) -> usize {
    let odd = |byte: u8| (u8::from(byte < b' ') & u8::from(byte != b'\t')) | u8::from(byte == 0x7f);
    let (groups, _) = bytes.as_chunks::<16>();
    let clean = groups.iter().take_while(|group| group.iter().fold(0, |any, &byte| any | odd(byte)) == 0);
    let whole = clean.count() * 16;
    whole + bytes[whole..].iter().take_while(|&&byte| odd(byte) == 0).count()
}

/// Without spaces at the ends. Tabs stay, and make the two fields that frame malformed: they hide a value from parsers that know
/// spaces only.
fn spaces_trimmed(mut raw: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = raw {
        raw = rest;
    }
    raw
}
