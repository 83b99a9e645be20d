//! Operators of document databases where a value is expected, and conditions in their script.

use super::text::{at, here, is_space, near, skip_space, word_end};
use super::{Best, Family, Meter};

const OPERATORS: [&[u8]; 50] = [
    b"accumulator",
    b"addtoset",
    b"all",
    b"and",
    b"bitsallset",
    b"comment",
    b"elemmatch",
    b"eq",
    b"exists",
    b"expr",
    b"facet",
    b"function",
    b"geowithin",
    b"graphlookup",
    b"group",
    b"gt",
    b"gte",
    b"in",
    b"inc",
    b"jsonschema",
    b"limit",
    b"lookup",
    b"lt",
    b"lte",
    b"match",
    b"max",
    b"merge",
    b"min",
    b"mod",
    b"ne",
    b"near",
    b"nin",
    b"nor",
    b"not",
    b"options",
    b"or",
    b"out",
    b"project",
    b"pull",
    b"push",
    b"regex",
    b"rename",
    b"search",
    b"set",
    b"size",
    b"text",
    b"type",
    b"unionwith",
    b"unset",
    b"where",
];

pub(super) fn probe(bytes: &[u8], best: &mut Best, meter: &mut Meter) {
    meter.add(bytes.len());
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::NoSql);
    // Looked up once: each rule asks whether something stands before it.
    let closes =
        bytes.iter().position(|byte| matches!(byte, b'\'' | b'"' | b'|' | b'&' | b';')).unwrap_or(usize::MAX);
    let function = bytes.windows(8).position(|part| part == b"function").unwrap_or(usize::MAX);
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'$' => {
                meter.add(16);
                operator(bytes, index, &mut put);
            }
            b't' if here(bytes, index, b"this.") => {
                let end = word_end(bytes, index + 5);
                let after = skip_space(bytes, end);
                let compared = here(bytes, after, b"==")
                    || here(bytes, after, b"!=")
                    || here(bytes, end, b".match(")
                    || here(bytes, after, b"<")
                    || here(bytes, after, b">")
                    || here(bytes, end, b".length")
                    || here(bytes, end, b"[");
                let broken = closes < index;
                if compared && broken {
                    put(82, "nosql.script");
                } else if compared {
                    put(55, "nosql.script");
                }
            }
            b'r' if here(bytes, index, b"return") && index > 0 => {
                // `'; return true; var x='`, `function(){return 1}`.
                let before = bytes[..index].iter().rev().find(|byte| !is_space(**byte)).copied().unwrap_or(0);
                let value = skip_space(bytes, index + 6);
                let literal = here(bytes, value, b"true")
                    || here(bytes, value, b"1")
                    || here(bytes, value, b"'")
                    || here(bytes, value, b"(")
                    || here(bytes, value, b"this");
                if matches!(before, b';' | b'{' | b'}') && literal {
                    put(if function < index || before == b';' { 75 } else { 60 }, "nosql.script");
                }
            }
            b'|' | b'&' if at(bytes, index + 1) == byte => condition(bytes, index, &mut put),
            b'd' if here(bytes, index, b"db.") && super::text::begins_word(bytes, index) => {
                let end = word_end(bytes, index + 3);
                if [
                    &b".find("[..],
                    b".insert",
                    b".drop(",
                    b".remove(",
                    b".getcollection",
                    b".aggregate(",
                    b".update",
                ]
                .iter()
                .any(|call| here(bytes, end, call))
                    || here(bytes, index + 3, b"getcollectionnames(")
                    || here(bytes, index + 3, b"dropdatabase(")
                {
                    put(78, "nosql.script");
                }
            }
            _ => {}
        }
    }
}

fn operator(bytes: &[u8], index: usize, put: &mut impl FnMut(u8, &'static str)) {
    let end = word_end(bytes, index + 1);
    if OPERATORS.binary_search(&&bytes[index + 1..end]).is_err() {
        return;
    }
    let before = if index > 0 { bytes[index - 1] } else { b' ' };
    let quoted = matches!(at(bytes, end), b'"' | b'\'');
    let after = skip_space(bytes, end + usize::from(quoted));
    if before == b'[' && at(bytes, end) == b']' {
        put(88, "nosql.operator");
    } else if at(bytes, after) == b':' && matches!(before, b'"' | b'\'' | b'{' | b' ' | b',') {
        let key = matches!(before, b'"' | b'\'' | b'{')
            || bytes[..index]
                .iter()
                .rev()
                .find(|byte| !is_space(**byte))
                .is_some_and(|byte| matches!(byte, b'{' | b','));
        put(if key { 86 } else { 62 }, "nosql.operator");
    } else if before == b'.' && index > 1 || index == 0 && end == bytes.len() {
        put(52, "nosql.operator");
    }
}

/// `'||'1'=='1`, `' && this.x`, `"||1==1//`: a condition in script behind a closed text.
fn condition(bytes: &[u8], index: usize, put: &mut impl FnMut(u8, &'static str)) {
    let before = bytes[..index].iter().rev().find(|byte| !is_space(**byte)).copied().unwrap_or(0);
    if !matches!(before, b'\'' | b'"' | b')') {
        return;
    }
    if near(bytes, index + 2, 16, b"==") || near(bytes, index + 2, 16, b"!=") {
        put(84, "nosql.condition");
    } else if near(bytes, index + 2, 8, b"1") && near(bytes, index + 2, 16, b"//")
        || near(bytes, index + 2, 10, b"true")
    {
        put(74, "nosql.condition");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_can_be_searched() {
        assert!(super::OPERATORS.is_sorted());
    }
}
