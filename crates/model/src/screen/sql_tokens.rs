//! The words of a text as SQL would read them. Quotes and parentheses are no tokens but marks on the token after them: an
//! injection is cut out of the middle of a statement, so they rarely pair up, and nobody knows which of them the statement
//! would open.

use super::Meter;
use super::text::{at, is_space, is_word};

pub(super) const SPACE: u8 = 1;
pub(super) const QUOTE: u8 = 2;
pub(super) const OPEN: u8 = 4;
pub(super) const CLOSE: u8 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    /// `@x`, `@@version`.
    Variable,
    Operator,
    Semicolon,
    Comma,
    /// `--`, `#`, or an opened `/*`.
    Comment,
    End,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'t> {
    pub(super) kind: Kind,
    pub(super) text: &'t [u8],
    /// What stood before it, since the last token.
    pub(super) gap: u8,
    /// An odd number of quotes of one kind stands before it: it may be outside a text that somebody else opened.
    pub(super) odd: bool,
}

impl Token<'_> {
    pub(super) fn after(&self, mark: u8) -> bool {
        self.gap & mark != 0
    }

    pub(super) fn is(&self, word: &[u8]) -> bool {
        matches!(self.kind, Kind::Word | Kind::Operator) && self.text == word
    }

    pub(super) fn among(&self, words: &[&[u8]]) -> bool {
        matches!(self.kind, Kind::Word | Kind::Operator) && words.contains(&self.text)
    }
}

/// Splits a window. The last token is always [`Kind::End`].
pub(super) fn split<'t>(bytes: &'t [u8], meter: &mut Meter) -> Vec<Token<'t>> {
    meter.add(bytes.len());
    // Looked up once: looking for the end of each comment from its beginning would be quadratic.
    let last_close = bytes.windows(2).rposition(|pair| pair == b"*/");
    let mut lexer = Lexer { bytes, tokens: Vec::new(), gap: 0, single: false, double: false };
    let mut index = 0;
    while index < bytes.len() {
        index = lexer.step(index, last_close);
    }
    lexer.push(Kind::End, &[]);
    lexer.tokens
}

struct Lexer<'t> {
    bytes: &'t [u8],
    tokens: Vec<Token<'t>>,
    gap: u8,
    single: bool,
    double: bool,
}

impl<'t> Lexer<'t> {
    fn push(&mut self, kind: Kind, text: &'t [u8]) {
        let odd = self.single || self.double;
        self.tokens.push(Token { kind, text, gap: self.gap, odd });
        self.gap = 0;
    }

    /// Reads what stands at `index`; returns where to go on.
    fn step(&mut self, index: usize, last_close: Option<usize>) -> usize {
        let bytes = self.bytes;
        let (byte, next) = (bytes[index], at(bytes, index + 1));
        match byte {
            _ if is_space(byte) || byte == 0 || byte == 0xa0 => self.gap |= SPACE,
            b'\'' => {
                self.single = !self.single;
                self.gap |= QUOTE;
            }
            b'"' => {
                self.double = !self.double;
                self.gap |= QUOTE;
            }
            b'`' | b'\\' => {}
            b'(' | b'[' => self.gap |= OPEN,
            b')' | b']' => self.gap |= CLOSE,
            b';' => self.push(Kind::Semicolon, &bytes[index..=index]),
            b',' => self.push(Kind::Comma, &bytes[index..=index]),
            b'#' => self.push(Kind::Comment, &bytes[index..=index]),
            b'-' if next == b'-' => {
                self.push(Kind::Comment, &bytes[index..index + 2]);
                return index + 2;
            }
            b'/' if next == b'*' => return self.comment(index, last_close),
            b'*' if next == b'/' => {
                self.gap |= SPACE;
                return index + 2;
            }
            b'@' => return self.variable(index),
            b'0'..=b'9' => return self.number(index),
            _ if is_word(byte) => return self.word(index),
            b'=' | b'<' | b'>' | b'!' | b'|' | b'&' | b'^' | b'~' | b'+' | b'-' | b'*' | b'/' | b'%' => {
                return self.operator(index);
            }
            b'.' if next.is_ascii_digit() => return self.number(index),
            _ => {}
        }
        index + 1
    }

    /// A closed comment is white space; what MySQL executes inside `/*!…*/` is read like the rest.
    fn comment(&mut self, index: usize, last_close: Option<usize>) -> usize {
        let bytes = self.bytes;
        if last_close.is_none_or(|close| close < index + 2) {
            self.push(Kind::Comment, &bytes[index..index + 2]);
            return index + 2;
        }
        self.gap |= SPACE;
        if at(bytes, index + 2) == b'!' {
            let digits = bytes[index + 3..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            return index + 3 + digits;
        }
        let close = bytes[index + 2..].windows(2).position(|pair| pair == b"*/");
        close.map_or(bytes.len(), |close| index + 2 + close + 2)
    }

    fn variable(&mut self, index: usize) -> usize {
        let mut end = index;
        while at(self.bytes, end) == b'@' {
            end += 1;
        }
        let named = end;
        while self.bytes.get(end).is_some_and(|byte| is_word(*byte) || *byte == b'.') {
            end += 1;
        }
        if end > named {
            self.push(Kind::Variable, &self.bytes[index..end]);
        }
        end
    }

    fn number(&mut self, index: usize) -> usize {
        let bytes = self.bytes;
        let mut end = index;
        if bytes[index] == b'0' && at(bytes, index + 1) == b'x' && at(bytes, index + 2).is_ascii_hexdigit() {
            end += 2;
            while at(bytes, end).is_ascii_hexdigit() {
                end += 1;
            }
        } else {
            while at(bytes, end).is_ascii_digit() || at(bytes, end) == b'.' {
                end += 1;
            }
            if at(bytes, end) == b'e' && (at(bytes, end + 1).is_ascii_digit()) {
                end += 1;
                while at(bytes, end).is_ascii_digit() {
                    end += 1;
                }
            }
        }
        self.push(Kind::Number, &bytes[index..end]);
        end
    }

    fn word(&mut self, index: usize) -> usize {
        let mut end = index;
        while self.bytes.get(end).is_some_and(|byte| {
            is_word(*byte)
                || *byte == b'$'
                || (*byte == b'.'
                    && self.bytes.get(end + 1).is_some_and(|next| is_word(*next) || *next == b'.'))
        }) {
            end += 1;
        }
        self.push(Kind::Word, &self.bytes[index..end]);
        end
    }

    fn operator(&mut self, index: usize) -> usize {
        const LONG: [&[u8]; 9] = [b"<=>", b"<>", b"<=", b">=", b"!=", b"==", b"||", b"&&", b":="];
        let rest = &self.bytes[index..];
        let length = LONG.iter().find(|long| rest.starts_with(long)).map_or(1, |long| long.len());
        self.push(Kind::Operator, &rest[..length]);
        index + length
    }
}
