//! The file in which a log travels: JSON lines, in the order in which [`crate::examine::Examiner`] takes them.
//!
//! ```text
//! {"type":"log","version":1,"origin":"interlock/5b0c…","first":1,"keys":["interlock/5b0c…+1a2b3c4d+AQ…"]}
//! {"type":"tile","index":0,"hashes":"…"}         the hashes of entries 1 to 256, Base64; before those entries
//! {"type":"entry","id":1,"at":"…","action":"…",…}
//! {"type":"checkpoint","note":"interlock/5b0c…\n1\n…"}   behind the last entry that it covers
//! ```
//!
//! Entries that were deleted after their retention are missing; their tiles are not. The keys in the first line say which keys
//! the server used: they are a hint, and nothing in a file makes a key trusted.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read as _, Write};
use std::thread::ScopedJoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::Timestamp;
use interlock_model::audit::{AuditEntry, Fields, Hash, Link};
use interlock_model::wire::{AuditView, parse_hash};
use serde::{Deserialize, Serialize};

use crate::checkpoint::VerifyingKey;
use crate::examine::{Examiner, Finding, Report, Trust};

/// The version of the form that this program writes and reads.
pub const VERSION: u32 = 1;
/// Longest line that is read, in bytes.
const LONGEST: u64 = 4 << 20;
/// Bytes of lines that are looked at together, on a core of their own; the last line may go beyond.
const CHUNK: usize = 1 << 20;
/// Most chunks that are looked at or waiting at a time.
const AHEAD: usize = 16;
/// With what the line of an entry begins, as [`Writer`] writes it.
const ENTRY: &[u8] = br#"{"type":"entry","#;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Log { version: u32, origin: String, first: u64, keys: Vec<String> },
    Tile { index: u64, hashes: String },
    Checkpoint { note: String },
    Entry(AuditView),
}

/// Why a file could not be checked, or what is wrong with the log in it.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The log in it is not as it was written.
    #[error(transparent)]
    Finding(#[from] Finding),
    /// Something in it is not of the form.
    #[error("line {line}: {what}")]
    Form {
        /// Counts from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes the file.
#[derive(Debug)]
pub struct Writer<W: Write>(W);

impl<W: Write> Writer<W> {
    /// Begins with the first line.
    ///
    /// # Errors
    /// The destination's.
    pub fn start(out: W, origin: &str, first: u64, keys: &[VerifyingKey]) -> io::Result<Self> {
        let mut writer = Self(out);
        let keys = keys.iter().map(ToString::to_string).collect();
        writer.line(&Line::Log { version: VERSION, origin: origin.to_owned(), first, keys })?;
        Ok(writer)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, line)?;
        self.0.write_all(b"\n")
    }

    /// Adds a tile.
    ///
    /// # Errors
    /// The destination's.
    pub fn tile(&mut self, index: u64, hashes: &[Hash]) -> io::Result<()> {
        self.line(&Line::Tile { index, hashes: STANDARD.encode(hashes.as_flattened()) })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// The destination's.
    pub fn entry(&mut self, entry: AuditEntry) -> io::Result<()> {
        self.line(&Line::Entry(AuditView::from(entry)))
    }

    /// Adds a checkpoint.
    ///
    /// # Errors
    /// The destination's.
    pub fn checkpoint(&mut self, note: &str) -> io::Result<()> {
        self.line(&Line::Checkpoint { note: note.to_owned() })
    }

    /// Everything was added.
    ///
    /// # Errors
    /// The destination's.
    pub fn finish(mut self) -> io::Result<W> {
        self.0.flush()?;
        Ok(self.0)
    }
}

/// The line of a file of checkpoints that were kept somewhere else: the same as in a log.
///
/// # Errors
/// None in practice: a text is always JSON.
pub fn note_line(note: &str) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Line::Checkpoint { note: note.to_owned() })
}

/// The note in such a line.
///
/// # Errors
/// When it is none.
pub fn noted(line: &str) -> Result<String, NoNote> {
    match serde_json::from_str(line) {
        Ok(Line::Checkpoint { note }) => Ok(note),
        _ => Err(NoNote),
    }
}

/// A line that holds no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(r#"this is not a line such as {{"type":"checkpoint","note":"..."}}"#)]
pub struct NoNote;

/// An entry's line, read where it lies.
#[derive(Deserialize)]
struct EntryLine<'a> {
    // A second one is refused.
    #[serde(rename = "type")]
    _kind: &'a str,
    id: u64,
    at: Timestamp,
    actor_agent_id: Option<String>,
    action: String,
    subject_id: Option<String>,
    details: serde_json::Value,
    client_ip: Option<String>,
    request_id: Option<String>,
    prev_hash: &'a str,
    hash: &'a str,
}

impl EntryLine<'_> {
    fn checked(&self) -> Result<Link, String> {
        let digest = |text| parse_hash(text).map_err(|_| format!("entry {} has no proper hash", self.id));
        let (prev_hash, hash) = (digest(self.prev_hash)?, digest(self.hash)?);
        // A file may have passed a tool that orders or spaces JSON otherwise: what it says counts.
        let details = self.details.to_string();
        let fields = Fields {
            seq: self.id,
            at: self.at,
            actor: self.actor_agent_id.as_deref(),
            action: &self.action,
            subject: self.subject_id.as_deref(),
            details: &details,
            client_ip: self.client_ip.as_deref(),
            request_id: self.request_id.as_deref(),
        };
        Ok(fields.checked(prev_hash, hash))
    }
}

/// A line that was looked at.
enum Part {
    Log(u64),
    Tile(u64, Vec<Hash>),
    Entry(Link),
    Checkpoint(String),
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn not_a_line(error: serde_json::Error) -> String {
    format!("not a line of an audit log: {error}")
}

fn part(line: &[u8]) -> Result<Part, String> {
    if line.starts_with(ENTRY) {
        let line: EntryLine = serde_json::from_slice(line).map_err(not_a_line)?;
        return line.checked().map(Part::Entry);
    }
    Ok(match serde_json::from_slice(line).map_err(not_a_line)? {
        Line::Log { version, .. } if version != VERSION => {
            return Err(format!("the file has version {version}; this program reads version {VERSION}"));
        }
        Line::Log { first, .. } => Part::Log(first),
        Line::Tile { index, hashes } => {
            let bytes = STANDARD.decode(hashes).map_err(|_| "the hashes are not Base64".to_owned())?;
            let (hashes, []) = bytes.as_chunks() else { return Err("a hash has 32 bytes".to_owned()) };
            Part::Tile(index, hashes.to_vec())
        }
        Line::Checkpoint { note } => Part::Checkpoint(note),
        Line::Entry(view) => {
            let number = view.id;
            let entry =
                AuditEntry::try_from(view).map_err(|_| format!("entry {number} has no proper hash"))?;
            Part::Entry(entry.checked())
        }
    })
}

/// Whole lines, with where each ends.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Lines of [`CHUNK`] bytes, and what is wrong with the line behind them.
fn chunk(input: &mut impl BufRead) -> (Chunk, Result<(), Unread>) {
    let mut chunk = Chunk { bytes: Vec::with_capacity(CHUNK + CHUNK / 8), ends: Vec::new() };
    while chunk.bytes.len() < CHUNK {
        let begin = chunk.bytes.len();
        match input.by_ref().take(LONGEST + 1).read_until(b'\n', &mut chunk.bytes) {
            Ok(0) => break,
            Ok(_) if chunk.bytes.last() == Some(&b'\n') => chunk.ends.push(chunk.bytes.len()),
            Ok(read) => {
                chunk.bytes.truncate(begin);
                let what = if read as u64 > LONGEST {
                    "it is longer than 4 MiB"
                } else {
                    "the file was cut off here"
                };
                return (chunk, Err(Unread::Form(what)));
            }
            Err(error) => {
                chunk.bytes.truncate(begin);
                return (chunk, Err(Unread::Io(error)));
            }
        }
    }
    (chunk, Ok(()))
}

/// Why the lines end before the file does.
enum Unread {
    Form(&'static str),
    Io(io::Error),
}

impl Chunk {
    fn parts(&self) -> Vec<Result<Part, String>> {
        let mut begin = 0;
        let mut look = |end: usize| {
            let line = &self.bytes[begin..end - 1];
            begin = end;
            part(line)
        };
        self.ends.iter().map(|end| look(*end)).collect()
    }
}

/// Puts the parts of a file together, in their order.
struct Reading {
    trust: Option<Trust>,
    examiner: Option<Examiner>,
    /// Lines so far.
    lines: u64,
}

impl Reading {
    fn take(&mut self, part: Result<Part, String>) -> Result<(), BundleError> {
        self.lines += 1;
        let form = |what: String| BundleError::Form { line: self.lines, what };
        match (part.map_err(form)?, &mut self.examiner) {
            (Part::Log(first), None) => {
                self.examiner = Some(Examiner::new(self.trust.take().unwrap_or_default(), first)?);
            }
            (Part::Log(_), Some(_)) => return Err(form("the log begins a second time".to_owned())),
            (_, None) => return Err(form("the first line has to say what log this is".to_owned())),
            (Part::Tile(index, hashes), Some(examiner)) => examiner.tile(index, hashes)?,
            (Part::Entry(entry), Some(examiner)) => examiner.checked(&entry)?,
            (Part::Checkpoint(note), Some(examiner)) => examiner.checkpoint(&note)?,
        }
        Ok(())
    }

    fn unread(&self, unread: Unread) -> BundleError {
        match unread {
            Unread::Form(what) => BundleError::Form { line: self.lines + 1, what: what.to_owned() },
            Unread::Io(error) => error.into(),
        }
    }
}

/// Checks the log in a file. Lines are parsed and hashed on all cores while they are put together in their order, so the fault that
/// is told is the first one of the file however many cores there are.
///
/// # Errors
/// What is wrong and where.
pub fn verify(mut input: impl BufRead, trust: Trust) -> Result<Report, BundleError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(AHEAD);
    let mut reading = Reading { trust: Some(trust), examiner: None, lines: 0 };
    std::thread::scope(|scope| {
        let mut under_way: VecDeque<ScopedJoinHandle<Vec<Result<Part, String>>>> = VecDeque::new();
        let mut end = None;
        loop {
            while under_way.len() < cores && end.is_none() {
                let (chunk, whole) = chunk(&mut input);
                if chunk.ends.is_empty() || whole.is_err() {
                    end = Some(whole);
                }
                under_way.push_back(scope.spawn(move || chunk.parts()));
            }
            let Some(next) = under_way.pop_front() else { break };
            let parts = next.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            parts.into_iter().try_for_each(|part| reading.take(part))?;
        }
        end.unwrap_or(Ok(())).map_err(|unread| reading.unread(unread))
    })?;
    let missing = BundleError::Form { line: 1, what: "the file is empty".to_owned() };
    Ok(reading.examiner.ok_or(missing)?.finish()?)
}
