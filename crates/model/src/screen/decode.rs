//! One canonical form of a text: what the strictest and the most generous reader of it would both end up with.
//!
//! Percent, plus, HTML entities, escapes of scripts, overlong UTF-8 and full-width forms are undone, again and again until
//! nothing changes, at most [`ROUNDS`] times. Letters become small. Each round is one pass that never grows the text.

use super::{Meter, Place};

/// Rounds at most. Honest texts need one; a text that still changes after the last is told as such.
pub const ROUNDS: usize = 5;

/// A text in its canonical form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Lower-cased bytes; not necessarily UTF-8.
    pub text: Vec<u8>,
    /// A percent escape was itself percent-encoded and hid a character that means something.
    pub double: bool,
    /// A character was written with more bytes than it needs (RFC 3629 section 3 forbids it).
    pub overlong: bool,
    /// It still changed after the last round.
    pub unstable: bool,
}

/// Entities that stand for characters which grammars care about.
const ENTITIES: [(&[u8], u8); 30] = [
    (b"lt", b'<'),
    (b"gt", b'>'),
    (b"amp", b'&'),
    (b"quot", b'"'),
    (b"apos", b'\''),
    (b"sol", b'/'),
    (b"bsol", b'\\'),
    (b"colon", b':'),
    (b"semi", b';'),
    (b"lpar", b'('),
    (b"rpar", b')'),
    (b"lbrace", b'{'),
    (b"lcub", b'{'),
    (b"rbrace", b'}'),
    (b"rcub", b'}'),
    (b"lsqb", b'['),
    (b"lbrack", b'['),
    (b"rsqb", b']'),
    (b"rbrack", b']'),
    (b"equals", b'='),
    (b"period", b'.'),
    (b"comma", b','),
    (b"dollar", b'$'),
    (b"num", b'#'),
    (b"percnt", b'%'),
    (b"grave", b'`'),
    (b"verbar", b'|'),
    (b"nbsp", b' '),
    (b"tab", b'\t'),
    (b"newline", b'\n'),
];

/// Brings a text into its canonical form.
pub fn decode(place: Place, raw: &[u8], meter: &mut Meter) -> Decoded {
    let mut decoded = Decoded { text: raw.to_vec(), ..Decoded::default() };
    meter.add(raw.len());
    if place == Place::Query {
        for byte in &mut decoded.text {
            if *byte == b'+' {
                *byte = b' ';
            }
        }
    }
    // Nothing that any round would touch: most texts.
    let plain = !decoded.text.iter().any(|&byte| matches!(byte, b'%' | b'&' | b'\\') || byte >= 0xc0);
    if !plain {
        let url = matches!(place, Place::Path | Place::Query);
        let mut spare = Vec::with_capacity(decoded.text.len());
        let mut changed = true;
        for number in 0..ROUNDS {
            spare.clear();
            meter.add(decoded.text.len());
            let mut round = Round { out: &mut spare, hidden: false, overlong: false };
            changed = round.run(&decoded.text);
            decoded.double |= url && number > 0 && round.hidden;
            decoded.overlong |= round.overlong;
            std::mem::swap(&mut decoded.text, &mut spare);
            if !changed {
                break;
            }
        }
        decoded.unstable = changed;
    }
    decoded.text.make_ascii_lowercase();
    decoded
}

struct Round<'o> {
    out: &'o mut Vec<u8>,
    hidden: bool,
    overlong: bool,
}

impl Round<'_> {
    /// Undoes one layer of everything; whether anything changed.
    fn run(&mut self, text: &[u8]) -> bool {
        let mut changed = false;
        let mut rest = text;
        while let Some(&byte) = rest.first() {
            let taken = match byte {
                b'%' => self.percent(rest),
                b'&' => self.entity(rest),
                b'\\' => self.escape(rest),
                0xc0.. => self.beyond_ascii(rest),
                _ => 0,
            };
            if taken > 0 {
                changed = true;
                rest = &rest[taken..];
            } else {
                self.out.push(byte);
                rest = &rest[1..];
            }
        }
        changed
    }

    /// Bytes taken, 0 if this is no escape.
    fn percent(&mut self, text: &[u8]) -> usize {
        if matches!(text.get(1), Some(b'u' | b'U'))
            && let Some(code) = hex(text.get(2..6))
        {
            self.put(code);
            self.hidden |= means_something(code);
            return 6;
        }
        let Some(code) = hex(text.get(1..3)) else { return 0 };
        self.hidden |= means_something(code);
        self.out.push(u8::try_from(code).unwrap_or(b'?'));
        3
    }

    fn entity(&mut self, text: &[u8]) -> usize {
        if text.get(1) == Some(&b'#') {
            return self.numeric_entity(text);
        }
        let letters = text[1..].iter().take(8).take_while(|byte| byte.is_ascii_alphabetic()).count();
        let name = text[1..=letters].to_ascii_lowercase();
        let semicolon = usize::from(text.get(1 + letters) == Some(&b';'));
        for (known, stands_for) in ENTITIES {
            // Browsers take a few names without the semicolon; then nothing of a word may follow.
            let bare = matches!(known, b"lt" | b"gt" | b"amp" | b"quot");
            if name == known && (semicolon == 1 || bare) {
                self.out.push(stands_for);
                return 1 + letters + semicolon;
            }
        }
        0
    }

    fn numeric_entity(&mut self, text: &[u8]) -> usize {
        let hexadecimal = matches!(text.get(2), Some(b'x' | b'X'));
        let (from, radix) = if hexadecimal { (3, 16) } else { (2, 10) };
        let digits = text[from.min(text.len())..]
            .iter()
            .take(8)
            .take_while(|byte| char::from(**byte).is_digit(radix))
            .count();
        let number = text.get(from..from + digits).and_then(|digits| std::str::from_utf8(digits).ok());
        let Some(code) = number.and_then(|digits| u32::from_str_radix(digits, radix).ok()) else { return 0 };
        let end = from + digits;
        self.put(code);
        end + usize::from(text.get(end) == Some(&b';'))
    }

    /// `\u003c`, `\u{3c}`, `\x3c`, for characters of ASCII: a path such as `C:\xdata` stays as it is.
    fn escape(&mut self, text: &[u8]) -> usize {
        let (code, length) = match text.get(1) {
            Some(b'u' | b'U') if text.get(2) == Some(&b'{') => {
                let digits = text[3..].iter().take(6).take_while(|byte| byte.is_ascii_hexdigit()).count();
                if text.get(3 + digits) != Some(&b'}') {
                    return 0;
                }
                (hex(text.get(3..3 + digits)), 4 + digits)
            }
            Some(b'u' | b'U') => (hex(text.get(2..6)), 6),
            Some(b'x' | b'X') => (hex(text.get(2..4)), 4),
            _ => (None, 0),
        };
        match code {
            Some(code) if (0x20..0x7f).contains(&code) => {
                self.put(code);
                length
            }
            _ => 0,
        }
    }

    /// Overlong forms, full-width letters and look-alikes of separators become the ASCII that careless readers make of them.
    fn beyond_ascii(&mut self, text: &[u8]) -> usize {
        let next = |index: usize| text.get(index).copied().filter(|byte| byte & 0xc0 == 0x80);
        let (ascii, length) = match (text[0], next(1), next(2), next(3)) {
            (lead @ (0xc0 | 0xc1), Some(last), ..) => {
                self.overlong = true;
                (((lead & 1) << 6) | (last & 0x3f), 2)
            }
            (0xe0, Some(middle @ 0x80..=0x9f), Some(last), _) => {
                self.overlong = true;
                (((middle & 1) << 6) | (last & 0x3f), 3)
            }
            (0xf0, Some(0x80..=0x8f), Some(middle), Some(last)) => {
                self.overlong = true;
                (((middle & 1) << 6) | (last & 0x3f), 4)
            }
            // U+FF01 to U+FF5E.
            (0xef, Some(0xbc), Some(last @ 0x81..), _) => (last - 0x60, 3),
            (0xef, Some(0xbd), Some(last @ 0x80..=0x9e), _) => (last - 0x20, 3),
            // U+FE64 and U+FE65; U+2215 and U+2044; U+2216; U+02BC; U+2024 and U+2025.
            (0xef, Some(0xb9), Some(0xa4), _) => (b'<', 3),
            (0xef, Some(0xb9), Some(0xa5), _) => (b'>', 3),
            (0xe2, Some(0x88), Some(0x95), _) | (0xe2, Some(0x81), Some(0x84), _) => (b'/', 3),
            (0xe2, Some(0x88), Some(0x96), _) => (b'\\', 3),
            (0xe2, Some(0x80), Some(0xa4), _) => (b'.', 3),
            (0xe2, Some(0x80), Some(0xa5), _) => {
                self.out.push(b'.');
                (b'.', 3)
            }
            (0xca, Some(0xbc), ..) => (b'\'', 2),
            _ => return 0,
        };
        self.out.push(ascii & 0x7f);
        length
    }

    fn put(&mut self, code: u32) {
        match char::from_u32(code) {
            Some(c) => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            None => self.out.push(b'?'),
        }
    }
}

/// Hexadecimal digits as a number; `None` if there are none, or something else is among them.
fn hex(digits: Option<&[u8]>) -> Option<u32> {
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len() <= 6)?;
    digits.iter().try_fold(0, |number, byte| Some(number * 16 + char::from(*byte).to_digit(16)?))
}

/// Characters that nobody needs to encode twice. `%25fbs` in a query is "%fbs", and fine.
fn means_something(code: u32) -> bool {
    match u8::try_from(code) {
        Ok(0..=0x1f | 0x7f) => true,
        Ok(byte) => b"<>'\"/\\.;()`|${%".contains(&byte),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(place: Place, raw: &[u8]) -> String {
        String::from_utf8_lossy(&decode(place, raw, &mut Meter::default()).text).into_owned()
    }

    #[test]
    fn every_usual_disguise_of_a_bracket_is_a_bracket() {
        for disguise in [
            "<",
            "%3c",
            "%3C",
            "%253c",
            "%25253c",
            "&lt;",
            "&LT",
            "&#60;",
            "&#x3c",
            "&#0060;",
            "\\u003c",
            "\\x3C",
            "\\u{3c}",
            "%u003c",
            "%c0%bc",
            "%e0%80%bc",
            "%f0%80%80%bc",
            "＜",
            "%EF%BC%9C",
            "%26lt%3B",
            "﹤",
        ] {
            assert_eq!(canonical(Place::Query, disguise.as_bytes()), "<", "{disguise}");
        }
    }

    #[test]
    fn honest_texts_keep_their_words() {
        for (raw, text) in [
            ("plate%20A1", "plate a1"),
            ("50%", "50%"),
            ("caf%C3%A9", "café"),
            ("R&D", "r&d"),
            ("C:\\xdata\\users", "c:\\xdata\\users"),
            ("a%2Fb", "a/b"),
            ("%zz", "%zz"),
            ("&unknown;", "&unknown;"),
        ] {
            assert_eq!(canonical(Place::Query, raw.as_bytes()), text);
            assert!(!decode(Place::Query, raw.as_bytes(), &mut Meter::default()).double, "{raw}");
        }
        assert_eq!(canonical(Place::Query, b"a+b"), "a b");
        assert_eq!(canonical(Place::Path, b"a+b"), "a+b");
    }

    #[test]
    fn a_second_layer_over_a_character_that_matters_is_noticed() {
        let doubled = |raw: &[u8]| decode(Place::Query, raw, &mut Meter::default()).double;

        assert!(
            doubled(b"%252e%252e%252f") && doubled(b"%253Cscript") && doubled(b"%2527") && doubled(b"%2500")
        );
        assert!(
            !doubled(b"%2e%2e%2f")
                && !doubled(b"100%25")
                && !doubled(b"20%25acetone")
                && !doubled(b"a%2520b")
        );
    }

    #[test]
    fn what_never_settles_is_told_and_bounded() {
        let text = "%25".repeat(9) + "41";
        let nested = (0..9).fold(String::from("%41"), |inner, _| inner.replace('%', "%25"));
        let mut meter = Meter::default();

        assert!(decode(Place::Query, nested.as_bytes(), &mut meter).unstable);
        assert!(decode(Place::Query, text.as_bytes(), &mut meter).text.len() <= text.len());
    }
}
