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

use std::io::{self, BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::audit::{AuditEntry, Hash};
use interlock_model::wire::AuditView;
use serde::{Deserialize, Serialize};

use crate::checkpoint::VerifyingKey;
use crate::examine::{Examiner, Finding, Report, Trust};

/// The version of the form that this program writes and reads.
pub const VERSION: u32 = 1;
/// Longest line that is read, in bytes.
const LONGEST: u64 = 4 << 20;
/// Lines that are looked at together: their content is checked on all cores.
const CHUNK: usize = 4_096;

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

/// A line that was looked at.
enum Part {
    Log(u64),
    Tile(u64, Vec<Hash>),
    Entry(Box<AuditEntry>, bool),
    Checkpoint(String),
}

fn part(line: &[u8]) -> Result<Part, String> {
    let line =
        serde_json::from_slice(line).map_err(|error| format!("not a line of an audit log: {error}"))?;
    Ok(match line {
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
            let sound = entry.is_sound();
            Part::Entry(Box::new(entry), sound)
        }
    })
}

/// At most [`CHUNK`] lines.
fn chunk(input: &mut impl BufRead, read: u64) -> Result<Vec<Vec<u8>>, BundleError> {
    let mut lines = Vec::with_capacity(CHUNK);
    while lines.len() < CHUNK {
        let mut line = Vec::new();
        input.by_ref().take(LONGEST + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            let number = read + lines.len() as u64 + 1;
            let what = if line.len() as u64 > LONGEST {
                "it is longer than 4 MiB"
            } else {
                "the file was cut off here"
            };
            return Err(BundleError::Form { line: number, what: what.to_owned() });
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Looks at lines on all cores.
fn parts(lines: &[Vec<u8>]) -> Vec<Result<Part, String>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = lines.len().div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let look = |lines: &[Vec<u8>]| lines.iter().map(|line| part(line)).collect::<Vec<_>>();
        let threads: Vec<_> = lines.chunks(share).map(|lines| scope.spawn(move || look(lines))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Checks the log in a file.
///
/// # Errors
/// What is wrong and where.
pub fn verify(mut input: impl BufRead, trust: Trust) -> Result<Report, BundleError> {
    let mut trust = Some(trust);
    let mut examiner = None;
    let mut read = 0;
    loop {
        let lines = chunk(&mut input, read)?;
        if lines.is_empty() {
            break;
        }
        for part in parts(&lines) {
            read += 1;
            let part = part.map_err(|what| BundleError::Form { line: read, what })?;
            let form = |what: &str| BundleError::Form { line: read, what: what.to_owned() };
            match (part, &mut examiner) {
                (Part::Log(first), None) => {
                    examiner = Some(Examiner::new(trust.take().unwrap_or_default(), first)?);
                }
                (Part::Log(_), Some(_)) => return Err(form("the log begins a second time")),
                (_, None) => return Err(form("the first line has to say what log this is")),
                (Part::Tile(index, hashes), Some(examiner)) => examiner.tile(index, hashes)?,
                (Part::Entry(entry, sound), Some(examiner)) => examiner.checked(&entry, sound)?,
                (Part::Checkpoint(note), Some(examiner)) => examiner.checkpoint(&note)?,
            }
        }
    }
    let examiner = examiner.ok_or(BundleError::Form { line: 1, what: "the file is empty".to_owned() })?;
    Ok(examiner.finish()?)
}
