//! The parsers of this crate for `interlock-fuzz`, and for nobody else.

use crate::ldap::wire;

/// Takes bytes as what a directory answers to a bind and to a search.
///
/// # Panics
/// When what was admitted is no message, or a length passes the limit.
pub fn answer(bytes: &[u8]) {
    const LIMIT: usize = 1 << 20;
    if let Ok(Some(length)) = wire::message_length(bytes, LIMIT) {
        assert!(length <= LIMIT, "a message of {length} bytes is let in");
    }
    let _ = (wire::request(bytes), wire::start_tls_result(bytes));
    for under_way in [None, Some((1, 0x60)), Some((2, 0x63))] {
        if let Ok(Some(seen)) = wire::admit(bytes, under_way) {
            assert!(
                matches!(wire::message_length(&seen, LIMIT), Ok(Some(length)) if length == seen.len()),
                "no message is shown"
            );
        }
    }
}
