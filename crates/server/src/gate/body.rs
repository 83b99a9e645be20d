//! Where a body ends: by its length, or chunk by chunk (RFC 9112 section 7.1).
//!
//! Chunk extensions are allowed in their plain form, because a recipient must ignore those that it does not know, but few
//! bytes of them: nobody needs them, and parsers disagree about anything unusual in them. Trailer fields are refused: no
//! request here needs one.

use super::Reason;
use super::target::is_token;

/// Most digits of a chunk's size: what fits 64 bits.
const MAX_DIGITS: u8 = 16;
/// Most bytes of chunk extensions in one body.
const MAX_EXTENSIONS: u16 = 256;

/// How a body ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After so many more bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(Chunks),
}

/// What a look at some bytes of a body found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// So many bytes, from the first, are well formed and belong to the body.
    pub(super) used: usize,
    /// How it goes on after them.
    pub(super) next: Next,
}

/// How a body goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More is to come; every byte was used.
    More,
    /// It has ended.
    End,
    /// The byte that follows cannot follow.
    Bad(Reason),
}

/// A chunked body under way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Chunks {
    step: Step,
    /// Size of the chunk as far as it was read, then what is left of it.
    size: u64,
    digits: u8,
    extensions: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    #[default]
    Size,
    Extension(Extension),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    EndCr,
    EndLf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    /// A name must begin.
    Start,
    Name,
    /// A value must begin.
    Equals,
    Token,
    Quoted,
    Escaped,
    /// After the closing quote.
    Closed,
}

impl Framing {
    /// Looks at the next bytes of the body.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scan {
        match self {
            Self::None => Scan { used: 0, next: Next::End },
            Self::Length(left) => {
                let used = fitting(*left, bytes);
                *left -= used as u64;
                Scan { used, next: if *left == 0 { Next::End } else { Next::More } }
            }
            Self::Chunked(chunks) => chunks.scan(bytes),
        }
    }
}

/// The lesser of `left` and the number of bytes.
fn fitting(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

impl Chunks {
    fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut used = 0;
        while let Some(&byte) = bytes.get(used) {
            if self.step == Step::Data {
                let some = fitting(self.size, &bytes[used..]);
                self.size -= some as u64;
                used += some;
                if self.size == 0 {
                    self.step = Step::DataCr;
                }
                continue;
            }
            match self.next(byte) {
                Ok(Some(step)) => self.step = step,
                Ok(None) => return Scan { used: used + 1, next: Next::End },
                Err(reason) => return Scan { used, next: Next::Bad(reason) },
            }
            used += 1;
        }
        Scan { used, next: Next::More }
    }

    /// The step after this byte, outside of data; `None` at the end of the body.
    fn next(&mut self, byte: u8) -> Result<Option<Step>, Reason> {
        let step = match (self.step, byte) {
            (Step::Size, _) => self.size(byte)?,
            (Step::Extension(part), _) => self.extension(part, byte)?,
            (Step::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 { Step::EndCr } else { Step::Data }
            }
            (Step::DataCr, b'\r') => Step::DataLf,
            (Step::DataLf, b'\n') => Step::Size,
            (Step::Data | Step::DataCr | Step::DataLf, _) => return Err(Reason::ChunkEnd),
            (Step::EndCr, b'\r') => Step::EndLf,
            (Step::EndCr, b'\n') => return Err(Reason::BareLf),
            (Step::EndCr, _) => return Err(Reason::Trailer),
            (Step::EndLf, b'\n') => return Ok(None),
            (Step::SizeLf | Step::EndLf, _) => return Err(Reason::BareCr),
        };
        Ok(Some(step))
    }

    fn size(&mut self, byte: u8) -> Result<Step, Reason> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if self.digits > 0 => return Ok(Step::SizeLf),
            b';' if self.digits > 0 => return self.counted(Step::Extension(Extension::Start)),
            _ => return Err(Reason::ChunkSize),
        };
        if self.digits == MAX_DIGITS {
            return Err(Reason::ChunkSize);
        }
        if self.digits == 0 {
            self.size = 0;
        }
        self.digits += 1;
        self.size = self.size << 4 | u64::from(digit);
        Ok(Step::Size)
    }

    /// `;name`, `;name=token` or `;name="quoted"`, without white space outside of quotes.
    fn extension(&mut self, part: Extension, byte: u8) -> Result<Step, Reason> {
        use Extension::{Closed, Equals, Escaped, Name, Quoted, Start, Token};
        let next = match (part, byte) {
            (Name | Token | Closed, b'\r') => return Ok(Step::SizeLf),
            (Name | Token | Closed, b';') => Start,
            (Name, b'=') => Equals,
            (Start | Name, _) if is_token(byte) => Name,
            (Equals, b'"') | (Escaped, b' '..=b'~') => Quoted,
            (Equals | Token, _) if is_token(byte) => Token,
            (Quoted, b'"') => Closed,
            (Quoted, b'\\') => Escaped,
            (Quoted, b' '..=b'~') => Quoted,
            _ => return Err(Reason::ChunkExtension),
        };
        self.counted(Step::Extension(next))
    }

    fn counted(&mut self, step: Step) -> Result<Step, Reason> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS { Err(Reason::ChunkExtension) } else { Ok(step) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Scan {
        Framing::Chunked(Chunks::default()).scan(bytes)
    }

    #[test]
    fn a_chunked_body_ends_with_its_last_chunk() {
        for body in
            ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "A;a;b=c;d=\"e \\\" f\"\r\n0123456789\r\n000\r\n\r\n"]
        {
            let followed = format!("{body}GET /");
            assert_eq!(scan(followed.as_bytes()), Scan { used: body.len(), next: Next::End }, "{body:?}");
        }
        assert_eq!(scan(b"ffffffffffffffff\r\nx").next, Next::More);
    }

    #[test]
    fn what_is_not_a_chunk_is_refused_at_its_first_byte() {
        for (good, bad, reason) in [
            ("", "\r\n", Reason::ChunkSize),
            ("", " 5\r\n", Reason::ChunkSize),
            ("", "-5\r\n", Reason::ChunkSize),
            ("", "+5\r\n", Reason::ChunkSize),
            ("0", "x5\r\n", Reason::ChunkSize),
            ("5", " \r\n", Reason::ChunkSize),
            ("5", "\n", Reason::ChunkSize),
            ("5", "_0\r\n", Reason::ChunkSize),
            ("0000000000000005", "5\r\n", Reason::ChunkSize),
            ("5\r", "x", Reason::BareCr),
            ("5;", "\r\n", Reason::ChunkExtension),
            ("5;", " a\r\n", Reason::ChunkExtension),
            ("5;a=", "\r\n", Reason::ChunkExtension),
            ("5;a=\"b", "\r\n", Reason::ChunkExtension),
            ("5;a=\"b\\", "\n", Reason::ChunkExtension),
            ("5;a=\"b\"", "c\r\n", Reason::ChunkExtension),
            ("5;a", "\n", Reason::ChunkExtension),
            ("5;a", "\0", Reason::ChunkExtension),
            ("5\r\nhello", "x\r\n", Reason::ChunkEnd),
            ("5\r\nhello", "\n", Reason::ChunkEnd),
            ("5\r\nhello\r", "x", Reason::ChunkEnd),
            ("0\r\n", "\n", Reason::BareLf),
            ("0\r\n", "X: y\r\n\r\n", Reason::Trailer),
            ("0\r\n\r", "x", Reason::BareCr),
        ] {
            let whole = format!("{good}{bad}");
            assert_eq!(
                scan(whole.as_bytes()),
                Scan { used: good.len(), next: Next::Bad(reason) },
                "{whole:?}"
            );
        }
    }

    #[test]
    fn extensions_are_counted_over_the_whole_body() {
        let chunk = format!("1;{}\r\nx\r\n", "a".repeat(99));

        assert_eq!(scan(chunk.repeat(2).as_bytes()).next, Next::More);
        assert_eq!(scan(chunk.repeat(3).as_bytes()).next, Next::Bad(Reason::ChunkExtension));
    }
}
