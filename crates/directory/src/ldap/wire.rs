//! What the library may see of the server's bytes.
//!
//! The library reads nested values by recursion without a limit, buffers a message of any announced length, and panics on
//! messages of the wrong shape: a hostile server, or with StartTLS anyone on the way, could end the whole process. So each
//! message is checked here first: length, exact shape, that it answers the request under way. Answers are passed on cut
//! down to what we use: no controls, no referrals, no free text but the code that Active Directory hides in it.

/// Longest message, in bytes.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;
/// Most bytes from the server in one sign-in.
pub(crate) const MAX_TOTAL: usize = 8 << 20;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0A;
const CONTROLS: u8 = 0xA0;
const BIND: u8 = 0x60;
const BOUND: u8 = 0x61;
const SEARCH: u8 = 0x63;
const ENTRY: u8 = 0x64;
const DONE: u8 = 0x65;
const REFERENCE: u8 = 0x73;
const EXTENDED: u8 = 0x77;
const EXTENDED_DONE: u8 = 0x78;

/// The bytes are no answer of a directory to what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadAnswer(pub(crate) &'static str);

const NOT_LDAP: BadAnswer = BadAnswer("the server does not speak LDAP");
const TOO_LONG: BadAnswer = BadAnswer("the server sent more than a sign-in needs");

/// Request for StartTLS (RFC 4511, section 4.14.1), message 1.
pub(crate) const START_TLS: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";

/// Reads definite-length BER with low tags, which is all that LDAP uses (RFC 4511, section 5.1).
#[derive(Clone, Copy)]
struct Ber<'a>(&'a [u8]);

impl<'a> Ber<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (header, length) = header(self.0).ok()??;
        let tag = *self.0.first()?;
        let value = self.0.get(header..header.checked_add(length)?)?;
        self.0 = &self.0[header + length..];
        Some((tag, value))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }

    fn at_end(self) -> bool {
        self.0.is_empty()
    }
}

/// Lengths of header and value of what begins here; `None` while there are too few bytes to tell.
fn header(bytes: &[u8]) -> Result<Option<(usize, usize)>, BadAnswer> {
    let [tag, first, rest @ ..] = bytes else { return Ok(None) };
    if tag & 0x1f == 0x1f {
        return Err(NOT_LDAP);
    }
    if *first < 0x80 {
        return Ok(Some((2, usize::from(*first))));
    }
    let count = usize::from(first & 0x7f);
    if count == 0 || count > 4 {
        return Err(NOT_LDAP);
    }
    let Some(digits) = rest.get(..count) else { return Ok(None) };
    let length = digits.iter().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
    Ok(Some((2 + count, length)))
}

/// Length of the message that begins here; `None` while it cannot be told yet.
pub(crate) fn message_length(bytes: &[u8], limit: usize) -> Result<Option<usize>, BadAnswer> {
    if bytes.first().is_some_and(|tag| *tag != SEQUENCE) {
        return Err(NOT_LDAP);
    }
    match header(bytes)? {
        Some((header, length)) if length > limit - header => Err(TOO_LONG),
        Some((header, length)) => Ok(Some(header + length)),
        None => Ok(None),
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    let valid = (1..=4).contains(&bytes.len()) && bytes[0] < 0x80;
    valid.then(|| bytes.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

/// Id and operation of one of our own requests.
pub(crate) fn request(message: &[u8]) -> Option<(u32, u8)> {
    let mut inside = Ber(Ber(message).expect(SEQUENCE)?);
    Some((number(inside.expect(INTEGER)?)?, inside.next()?.0))
}

/// Checks a whole message against the request under way and gives what the library may see of it; `None`: nothing.
pub(crate) fn admit(message: &[u8], under_way: Option<(u32, u8)>) -> Result<Option<Vec<u8>>, BadAnswer> {
    let mut outer = Ber(message);
    let (id, tag, value) =
        outer.expect(SEQUENCE).filter(|_| outer.at_end()).and_then(parts).ok_or(NOT_LDAP)?;
    if id == 0 {
        return Err(BadAnswer("the server gave notice that it disconnects"));
    }
    let Some((asked, operation)) = under_way.filter(|(asked, _)| *asked == id) else {
        return Err(BadAnswer("the server answered what was not asked"));
    };
    let kept = match (operation, tag) {
        (BIND, BOUND) | (SEARCH, DONE) | (EXTENDED, EXTENDED_DONE) => {
            let (code, text) = result(value).ok_or(NOT_LDAP)?;
            let mut kept = wrap(ENUMERATED, &[code]);
            kept.extend(wrap(OCTETS, &[]));
            kept.extend(wrap(OCTETS, subcode(text).unwrap_or_default().as_bytes()));
            kept
        }
        (SEARCH, ENTRY) => {
            entry(value).ok_or(NOT_LDAP)?;
            value.to_vec()
        }
        (SEARCH, REFERENCE) => return Ok(None),
        _ => return Err(BadAnswer("the server answered with another operation than was asked")),
    };
    let mut inside = wrap(INTEGER, &minimal(asked));
    inside.extend(wrap(tag, &kept));
    Ok(Some(wrap(SEQUENCE, &inside)))
}

/// Id, operation and its value; controls are looked past.
fn parts(message: &[u8]) -> Option<(u32, u8, &[u8])> {
    let mut inside = Ber(message);
    let id = number(inside.expect(INTEGER)?)?;
    let (tag, value) = inside.next()?;
    // After a notice of disconnection Active Directory puts the OID outside (tag 0x8A).
    let rest = inside.at_end() || inside.next().is_some_and(|(tag, _)| tag == CONTROLS || id == 0);
    (rest && inside.at_end()).then_some((id, tag, value))
}

/// Code and text of a result; both texts must be there (RFC 4511, section 4.1.9), optional parts are looked past.
fn result(value: &[u8]) -> Option<(u8, &[u8])> {
    let mut inside = Ber(value);
    let code = number(inside.expect(ENUMERATED)?)?;
    inside.expect(OCTETS)?;
    let text = inside.expect(OCTETS)?;
    while !inside.at_end() {
        inside.next().filter(|(tag, _)| tag & 0xc0 == 0x80)?;
    }
    // Codes above 127 are not in use by any answer to bind or search; 80 is "other".
    Some((u8::try_from(code).ok().filter(|code| *code < 128).unwrap_or(80), text))
}

/// `AcceptSecurityContext error, data 52e,` → `data 52e`. The code says more than the result; the text itself may hold
/// anything, a password included.
fn subcode(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let code: String =
        text.split_once("data ")?.1.chars().take_while(char::is_ascii_hexdigit).take(4).collect();
    (!code.is_empty()).then(|| format!("data {code}"))
}

/// An entry: a name, then attributes, each a type and a set of values.
fn entry(value: &[u8]) -> Option<()> {
    let mut inside = Ber(value);
    std::str::from_utf8(inside.expect(OCTETS)?).ok()?;
    let mut attributes = Ber(inside.expect(SEQUENCE)?);
    while !attributes.at_end() {
        let mut attribute = Ber(attributes.expect(SEQUENCE)?);
        std::str::from_utf8(attribute.expect(OCTETS)?).ok()?;
        let mut values = Ber(attribute.expect(SET)?);
        while !values.at_end() {
            values.expect(OCTETS)?;
        }
        attribute.at_end().then_some(())?;
    }
    inside.at_end().then_some(())
}

/// Result code of an answer to StartTLS.
pub(crate) fn start_tls_result(message: &[u8]) -> Result<u8, BadAnswer> {
    let mut outer = Ber(message);
    let (id, tag, value) =
        outer.expect(SEQUENCE).filter(|_| outer.at_end()).and_then(parts).ok_or(NOT_LDAP)?;
    if id != 1 || tag != EXTENDED_DONE {
        return Err(BadAnswer("the server answered with something else to StartTLS"));
    }
    result(value).map(|(code, _)| code).ok_or(NOT_LDAP)
}

fn wrap(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = value.len();
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or_default());
    } else {
        out.push(0x84);
        out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
    out.extend(value);
    out
}

fn minimal(number: u32) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let skip = bytes.iter().take_while(|byte| **byte == 0).count().min(3);
    // A leading bit would read as a sign; ids stay below 2^31.
    if bytes[skip] >= 0x80 { [&[0], &bytes[skip..]].concat() } else { bytes[skip..].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u8, tag: u8, value: &[u8]) -> Vec<u8> {
        wrap(SEQUENCE, &[wrap(INTEGER, &[id]), wrap(tag, value)].concat())
    }

    fn result_value(code: u8, text: &str) -> Vec<u8> {
        [wrap(ENUMERATED, &[code]), wrap(OCTETS, b"dc=x"), wrap(OCTETS, text.as_bytes())].concat()
    }

    #[test]
    fn an_answer_loses_text_referrals_and_controls() {
        let mut value = result_value(49, "80090308: LdapErr: comment: hunter2, data 52e, v4563");
        value.extend(wrap(0xA3, &wrap(OCTETS, b"ldap://evil")));
        let with_controls =
            wrap(SEQUENCE, &[wrap(INTEGER, &[2]), wrap(BOUND, &value), wrap(CONTROLS, b"\x30\x00")].concat());

        let kept = admit(&with_controls, Some((2, BIND))).expect("admitted").expect("shown");

        let shown = [wrap(ENUMERATED, &[49]), wrap(OCTETS, b""), wrap(OCTETS, b"data 52e")].concat();
        assert_eq!(kept, answer(2, BOUND, &shown));
    }

    #[test]
    fn only_answers_to_the_request_under_way_pass() {
        let bound = answer(2, BOUND, &result_value(0, ""));

        assert!(admit(&bound, Some((2, BIND))).is_ok());
        assert!(admit(&bound, Some((2, SEARCH))).is_err());
        assert!(admit(&bound, Some((3, BIND))).is_err());
        assert!(admit(&bound, None).is_err());
        assert!(admit(&answer(0, EXTENDED_DONE, &result_value(52, "")), Some((2, BIND))).is_err());
        assert_eq!(admit(&answer(2, REFERENCE, b""), Some((2, SEARCH))), Ok(None));
    }

    #[test]
    fn lengths_are_bounded_and_definite() {
        assert_eq!(message_length(b"\x30", 100), Ok(None));
        assert_eq!(message_length(b"\x30\x82\x01", 1000), Ok(None));
        assert_eq!(message_length(b"\x30\x82\x01\x00", 1000), Ok(Some(260)));
        assert_eq!(message_length(b"\x30\x84\xff\xff\xff\xff", MAX_MESSAGE), Err(TOO_LONG));
        for bad in [&b"\x30\x80"[..], b"\x30\x85\x00\x00\x00\x00\x01", b"HTTP/1.1 400", b"\x3f\x01"] {
            assert_eq!(message_length(bad, 100), Err(NOT_LDAP));
        }
    }

    #[test]
    fn the_request_for_start_tls_is_well_formed() {
        assert_eq!(message_length(START_TLS, 100), Ok(Some(START_TLS.len())));
        assert_eq!(request(START_TLS), Some((1, EXTENDED)));
    }

    fn whole_entry() -> Vec<u8> {
        let values = [wrap(OCTETS, b"ana"), wrap(OCTETS, b"\xff")].concat();
        let attribute = wrap(SEQUENCE, &[wrap(OCTETS, b"uid"), wrap(SET, &values)].concat());
        answer(2, ENTRY, &[wrap(OCTETS, b"uid=ana,dc=x"), wrap(SEQUENCE, &attribute.repeat(2))].concat())
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_checks_panic(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = message_length(&bytes, 100);
            let _ = admit(&bytes, Some((2, SEARCH)));
            let _ = start_tls_result(&bytes);
        }

        // The library panics on an entry of the wrong shape; what passes here must not be one.
        #[test]
        fn what_passes_is_read_by_the_library_without_a_panic(
            changes in proptest::collection::vec((0_usize..64, 0_u8..), 0..3),
        ) {
            let mut message = whole_entry();
            for (at, byte) in changes {
                let at = at % message.len();
                message[at] = byte;
            }
            if let Ok(Some(shown)) = admit(&message, Some((2, SEARCH))) && shown[5..].contains(&ENTRY) {
                let entry = lber_of(&shown);
                if entry.0.id == 4 {
                    let _ = ldap3::SearchEntry::construct(entry);
                }
            }
        }
    }

    #[test]
    fn an_entry_passes_as_it_is() {
        let shown = admit(&whole_entry(), Some((2, SEARCH))).expect("admitted").expect("shown");
        let entry = ldap3::SearchEntry::construct(lber_of(&shown));

        assert_eq!(shown, whole_entry());
        assert_eq!(entry.dn, "uid=ana,dc=x");
    }

    fn lber_of(message: &[u8]) -> ldap3::ResultEntry {
        let (_, tag) = ldap3::asn1::parse_tag(message).expect("readable");
        let mut parts = tag.expect_constructed().expect("a sequence");
        ldap3::ResultEntry::new(parts.pop().expect("an entry"))
    }
}
