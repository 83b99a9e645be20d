//! XML documents that declare something: entities, external documents, includes. We read no XML anywhere.

use super::text::{at, here, near};
use super::{Best, Family, Meter};

pub(super) fn probe(bytes: &[u8], best: &mut Best, meter: &mut Meter) {
    let mut put = |score: u8, rule: &'static str| best.put(score, rule, Family::Xxe);
    // Looked up once for the whole window: a declaration may be long, and there may be many openers.
    let has = |word: &[u8]| near(bytes, 0, bytes.len(), word);
    let declares =
        has(b"system ") || has(b"system\t") || has(b"public ") && !has(b"-//w3c//dtd") || has(b"[");
    let includes = has(b"/2001/xinclude");
    let located = has(b"xsi:schemalocation") || has(b"xsi:nonamespaceschemalocation");
    meter.add(bytes.len() * 7);
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'<') {
        let is = |word: &[u8]| here(bytes, index, word);
        let element = at(bytes, index + 1).is_ascii_alphabetic();
        if is(b"<!entity") {
            put(95, "xxe.entity");
        } else if is(b"<!doctype") {
            put(if declares { 88 } else { 52 }, "xxe.doctype");
        } else if is(b"<!element") || is(b"<!attlist") || is(b"<!notation") {
            put(82, "xxe.declaration");
        } else if is(b"<?xml-stylesheet") {
            put(84, "xxe.stylesheet");
        } else if is(b"<?xml") {
            put(56, "xxe.document");
        } else if is(b"<![cdata[") {
            put(58, "xxe.cdata");
        } else if is(b"<xi:include") || is(b"<xsl:") || includes && element {
            put(86, "xxe.include");
        } else if element && located {
            put(72, "xxe.schema");
        } else if is(b"<soap:envelope") || is(b"<soapenv:") {
            put(52, "xxe.document");
        }
    }
}
