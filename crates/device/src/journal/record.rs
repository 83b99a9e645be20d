//! The lines of the journal: how they are written and what counts as sound.
//!
//! A line is eight hexadecimal digits of CRC-32 over the JSON, a space, the JSON, a newline. JSON never holds a raw newline,
//! so lines can be told apart without trusting them. Knows nothing of files.

use std::io::Write as _;

use interlock_model::RunId;
use interlock_model::device::Outcome;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

/// The version that this code writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// Bytes before the JSON of a line.
pub(super) const PREFIX: usize = 9;

/// First line of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Format.
    pub(super) version: u32,
    /// Counts the files of this journal; pairs a journal with its file of `sent` marks.
    pub(super) session: u64,
    /// Which boot of the machine wrote it.
    pub(super) boot: String,
    /// When, in microseconds.
    pub(super) at: i64,
    /// Runs whose id is not younger than this many milliseconds may have been dropped: absence proves nothing for them.
    pub(super) horizon: u64,
}

/// What a line says, without the outcome: that stays on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Header(Header),
    /// Durable before the call may be sent.
    Armed(RunId),
    /// About to be sent to the worker. Also: was in that state when the journal was rewritten.
    Sent(RunId),
    /// Sent by an earlier host, which did not live to see the end.
    Lost(RunId),
    Finished {
        run: RunId,
        at: i64,
    },
    Forgotten(Vec<RunId>),
}

#[derive(Deserialize)]
struct Flat {
    t: String,
    #[serde(default)]
    v: u32,
    #[serde(default)]
    session: u64,
    #[serde(default)]
    boot: String,
    #[serde(default)]
    at: i64,
    #[serde(default)]
    horizon: u64,
    run: Option<RunId>,
    #[serde(default)]
    runs: Vec<RunId>,
    #[serde(default, rename = "outcome")]
    _outcome: IgnoredAny,
}

#[derive(Deserialize)]
struct WithOutcome {
    run: RunId,
    outcome: Outcome,
}

/// The JSON of a line, if its checksum is right. `line` is without the newline.
pub(super) fn checked(line: &[u8]) -> Option<&[u8]> {
    let json = line.get(PREFIX..)?;
    let sum = std::str::from_utf8(line.get(..8)?).ok()?;
    (line[8] == b' ' && u32::from_str_radix(sum, 16).ok()? == crc32fast::hash(json)).then_some(json)
}

/// What a sound line says; `None` for a line that is not sound.
pub(super) fn parse(line: &[u8]) -> Option<Record> {
    let flat: Flat = serde_json::from_slice(checked(line)?).ok()?;
    Some(match flat.t.as_str() {
        "header" => Record::Header(Header {
            version: flat.v,
            session: flat.session,
            boot: flat.boot,
            at: flat.at,
            horizon: flat.horizon,
        }),
        "armed" => Record::Armed(flat.run?),
        "sent" => Record::Sent(flat.run?),
        "lost" => Record::Lost(flat.run?),
        "finished" => Record::Finished { run: flat.run?, at: flat.at },
        "forgotten" => Record::Forgotten(flat.runs),
        _ => return None,
    })
}

/// The outcome in a `finished` line.
pub(super) fn parse_outcome(line: &[u8]) -> Option<(RunId, Outcome)> {
    let found: WithOutcome = serde_json::from_slice(checked(line)?).ok()?;
    Some((found.run, found.outcome))
}

/// Appends one line whose JSON `write` produces.
fn line(buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(b"00000000 ");
    write(buffer);
    let sum = crc32fast::hash(&buffer[start + PREFIX..]);
    let mut digits = &mut buffer[start..start + 8];
    let _ = write!(digits, "{sum:08x}");
    buffer.push(b'\n');
}

pub(super) fn header(buffer: &mut Vec<u8>, header: &Header) {
    line(buffer, |out| {
        let _ = write!(
            out,
            r#"{{"t":"header","v":{},"session":{},"boot":{},"at":{},"horizon":{}}}"#,
            header.version,
            header.session,
            serde_json::Value::from(header.boot.as_str()),
            header.at,
            header.horizon
        );
    });
}

/// `digest` says which parameters were meant, without holding them.
pub(super) fn armed(buffer: &mut Vec<u8>, run: RunId, action: &str, digest: [u8; 8]) {
    line(buffer, |out| {
        let _ = write!(
            out,
            r#"{{"t":"armed","run":"{run}","action":{},"digest":"{:016x}"}}"#,
            serde_json::Value::from(action),
            u64::from_be_bytes(digest)
        );
    });
}

pub(super) fn sent(buffer: &mut Vec<u8>, run: RunId) {
    line(buffer, |out| {
        let _ = write!(out, r#"{{"t":"sent","run":"{run}"}}"#);
    });
}

pub(super) fn lost(buffer: &mut Vec<u8>, run: RunId) {
    line(buffer, |out| {
        let _ = write!(out, r#"{{"t":"lost","run":"{run}"}}"#);
    });
}

pub(super) fn finished(buffer: &mut Vec<u8>, run: RunId, at: i64, outcome: &Outcome) {
    line(buffer, |out| {
        let _ = write!(out, r#"{{"t":"finished","run":"{run}","at":{at},"outcome":"#);
        if serde_json::to_writer(&mut *out, outcome).is_err() {
            // Cannot happen: every outcome has string keys. The run then reads as started, which is the safe lie.
            out.extend_from_slice(b"null");
        }
        out.push(b'}');
    });
}

pub(super) fn forgotten(buffer: &mut Vec<u8>, runs: &[RunId]) {
    line(buffer, |out| {
        out.extend_from_slice(br#"{"t":"forgotten","runs":["#);
        for (index, run) in runs.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(out, "{comma}\"{run}\"");
        }
        out.extend_from_slice(b"]}");
    });
}

/// Which parameters a call had. Salted with the run, so that equal parameters of two runs do not show.
pub(super) fn digest(run: RunId, parameters: &serde_json::Map<String, serde_json::Value>) -> [u8; 8] {
    struct Into256(Sha256);
    impl std::io::Write for Into256 {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hash = Into256(Sha256::new_with_prefix(run.as_bytes()));
    let _ = serde_json::to_writer(&mut hash, parameters);
    let full = hash.0.finalize();
    let mut short = [0; 8];
    short.copy_from_slice(&full[..8]);
    short
}

/// Milliseconds in a run's id: when it was made.
pub(super) fn born(run: RunId) -> u64 {
    run.as_bytes()[..6].iter().fold(0, |time, byte| time << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_model::Timestamp;
    use interlock_model::time::TestEntropy;
    use proptest::prelude::*;

    fn run(seed: u64) -> RunId {
        RunId::new(Timestamp::from_seconds(1_700_000_000), &TestEntropy::seeded(seed))
    }

    #[test]
    fn every_record_survives_its_line() {
        let (a, b) = (run(1), run(2));
        let outcome =
            Outcome::Returned { result: serde_json::json!({"text": "line\nbreak"}), duration_ms: 1.5 };
        let head = Header { version: 1, session: 7, boot: "b\"oot".into(), at: 5, horizon: 9 };
        let mut buffer = Vec::new();
        header(&mut buffer, &head);
        armed(&mut buffer, a, "mix", digest(a, &serde_json::Map::new()));
        sent(&mut buffer, a);
        lost(&mut buffer, b);
        finished(&mut buffer, a, 42, &outcome);
        forgotten(&mut buffer, &[a, b]);

        let lines: Vec<&[u8]> = buffer.split_inclusive(|c| *c == b'\n').map(|l| &l[..l.len() - 1]).collect();

        let parsed: Vec<_> = lines.iter().map(|line| parse(line).expect("sound")).collect();
        let expected = [
            Record::Header(head),
            Record::Armed(a),
            Record::Sent(a),
            Record::Lost(b),
            Record::Finished { run: a, at: 42 },
            Record::Forgotten(vec![a, b]),
        ];
        assert_eq!(parsed, expected);
        assert_eq!(parse_outcome(lines[4]), Some((a, outcome)));
        assert_eq!(born(a), 1_700_000_000_000);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
            let _ = parse_outcome(&line);
        }

        #[test]
        fn a_changed_line_is_not_sound(at in 0_usize..90, bit in 0_u8..8) {
            let mut buffer = Vec::new();
            armed(&mut buffer, run(3), "mix", [1; 8]);
            buffer.pop();
            let at = at % buffer.len();
            let whole = buffer.clone();
            buffer[at] ^= 1 << bit;
            // The checksum's own digits may change case without changing their value.
            prop_assume!(!buffer.eq_ignore_ascii_case(&whole) || at >= PREFIX);
            prop_assert_eq!(parse(&buffer), None);
        }
    }
}
