//! Which characters occur in a text, and small looks at bytes. All probes read lower-cased, decoded bytes.

pub(super) const LESS: u32 = 1;
pub(super) const EQUALS: u32 = 1 << 1;
pub(super) const COLON: u32 = 1 << 2;
pub(super) const PAREN: u32 = 1 << 3;
pub(super) const TICK: u32 = 1 << 4;
pub(super) const QUOTE: u32 = 1 << 5;
pub(super) const DOT: u32 = 1 << 6;
pub(super) const SLASH: u32 = 1 << 7;
pub(super) const SEMICOLON: u32 = 1 << 8;
pub(super) const PIPE: u32 = 1 << 9;
pub(super) const AMPERSAND: u32 = 1 << 10;
pub(super) const DOLLAR: u32 = 1 << 11;
pub(super) const BRACE: u32 = 1 << 12;
pub(super) const UNDERSCORE: u32 = 1 << 13;
pub(super) const HASH: u32 = 1 << 14;
pub(super) const AT: u32 = 1 << 15;
pub(super) const SPACE: u32 = 1 << 16;
pub(super) const DASHES: u32 = 1 << 17;
pub(super) const STAR: u32 = 1 << 18;
const BREAK: u32 = 1 << 19;

/// What SQL cannot do without: something that separates its words.
pub(super) const SQL: u32 = SPACE | QUOTE | PAREN | SEMICOLON | DASHES | HASH | STAR | PIPE | AT;
/// What makes a shell start another command, or substitute.
pub(super) const SHELL: u32 = SEMICOLON | PIPE | AMPERSAND | TICK | DOLLAR | BREAK | PAREN | LESS | SLASH;

const CLASSES: [u32; 256] = {
    let mut classes = [0; 256];
    classes[b'<' as usize] = LESS;
    classes[b'>' as usize] = LESS;
    classes[b'=' as usize] = EQUALS;
    classes[b':' as usize] = COLON;
    classes[b'(' as usize] = PAREN;
    classes[b')' as usize] = PAREN;
    classes[b'`' as usize] = TICK;
    classes[b'\'' as usize] = QUOTE;
    classes[b'"' as usize] = QUOTE;
    classes[b'.' as usize] = DOT;
    classes[b'/' as usize] = SLASH;
    classes[b'\\' as usize] = SLASH;
    classes[b';' as usize] = SEMICOLON;
    classes[b'|' as usize] = PIPE;
    classes[b'&' as usize] = AMPERSAND;
    classes[b'$' as usize] = DOLLAR;
    classes[b'{' as usize] = BRACE;
    classes[b'_' as usize] = UNDERSCORE;
    classes[b'#' as usize] = HASH;
    classes[b'@' as usize] = AT;
    classes[b' ' as usize] = SPACE;
    classes[b'\t' as usize] = SPACE;
    classes[b'\n' as usize] = SPACE | BREAK;
    classes[b'\r' as usize] = SPACE | BREAK;
    classes[0x0b] = SPACE;
    classes[0x0c] = SPACE;
    classes[b'-' as usize] = DASHES;
    classes[b'*' as usize] = STAR;
    classes
};

/// The classes of characters that occur.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen(u32);

impl Seen {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(0, |seen, &byte| seen | CLASSES[usize::from(byte)]))
    }

    pub(super) const fn any(self, classes: u32) -> bool {
        self.0 & classes != 0
    }
}

/// The byte at a position, 0 past the end.
pub(super) fn at(bytes: &[u8], index: usize) -> u8 {
    bytes.get(index).copied().unwrap_or(0)
}

/// Whether `word` stands at `index`.
pub(super) fn here(bytes: &[u8], index: usize, word: &[u8]) -> bool {
    bytes.get(index..).is_some_and(|rest| rest.starts_with(word))
}

/// Whether `word` occurs in the next `within` bytes after `index`.
pub(super) fn near(bytes: &[u8], index: usize, within: usize, word: &[u8]) -> bool {
    let from = index.min(bytes.len());
    let part = &bytes[from..bytes.len().min(from + within)];
    part.windows(word.len()).any(|found| found == word)
}

/// Index of the first byte at or after `index` that is no white space.
pub(super) fn skip_space(bytes: &[u8], mut index: usize) -> usize {
    while bytes.get(index).is_some_and(|byte| is_space(*byte)) {
        index += 1;
    }
    index
}

pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Letters, digits, underscore, and everything beyond ASCII.
pub(super) const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Index of the first byte at or after `index` that belongs to no word.
pub(super) fn word_end(bytes: &[u8], mut index: usize) -> usize {
    while bytes.get(index).is_some_and(|byte| is_word(*byte)) {
        index += 1;
    }
    index
}

/// Whether a word begins at `index`, and nothing of it stands before.
pub(super) fn begins_word(bytes: &[u8], index: usize) -> bool {
    index == 0 || !is_word(bytes[index - 1])
}
