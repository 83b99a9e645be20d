//! Every parser of what comes from the network or the disk, as a function of bytes that must return, whatever they are.
//!
//! A target panics when a promise of its parser is broken; most promise no more than an end and no panic. `tools/fuzz` drives
//! them with libFuzzer, `tests/replay.rs` runs the kept inputs (`corpora/<target>/`) as an ordinary test. The parsers are those of
//! the product, reached through `fuzzing` modules that nobody else uses. Nothing of this crate is in the product.

// Private to the command line, which is a program and no library.
#[expect(dead_code, unused_imports, reason = "the program uses the rest")]
#[path = "../../cli/src/config/mod.rs"]
mod config;
#[cfg_attr(not(test), expect(dead_code, reason = "the program uses the rest"))]
#[path = "../../cli/src/backup/sealed.rs"]
mod sealed;

mod disk;
mod language;
mod network;

/// A parser and its promises.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("address", network::address),
    ("assertion_keys", network::assertion_keys),
    ("backup", disk::backup),
    ("bundle", disk::bundle),
    ("certificate", network::certificate),
    ("checkpoint", disk::checkpoint),
    ("config", disk::config),
    ("declarations", language::declarations),
    ("form", network::form),
    ("http_gate", network::http_gate),
    ("jmespath", language::jmespath),
    ("journal", disk::journal),
    ("jwt", network::jwt),
    ("ldap", network::ldap),
    ("pipeline", language::pipeline),
    ("proof", disk::proof),
    ("proxy_v2", network::proxy_v2),
    ("revocations", network::revocations),
    ("rule", language::rule),
    ("schedule", language::schedule),
    ("schema", language::schema),
    ("scope", language::scope),
    ("screen", language::screen),
    ("strict_json", language::strict_json),
    ("threat_rules", network::threat_rules),
    ("time", language::time),
    ("tree", disk::tree),
    ("unit", language::unit),
    ("worker_line", network::worker_line),
];

/// The bytes as text; `None` for what is no UTF-8, which no parser of text is given.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The bytes before and after the first zero.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.iter().position(|byte| *byte == 0).map_or((bytes, &[]), |at| (&bytes[..at], &bytes[at + 1..]))
}
