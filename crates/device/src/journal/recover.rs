//! Reading the journal after a stop of any kind, and judging every run in it.
//!
//! Never writes; [`super::writer`] writes what this module concludes into new files. A damaged end is normal after a crash. A
//! sound line behind a damaged one is not: then what is sound is kept, and everything else counts as started.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use interlock_model::{RunId, Timestamp};

use super::record::{self, Header, Record};
use super::{Entry, JournalError, sent};

/// A line longer than this is not ours.
const LONGEST_LINE: usize = 256 << 20;

/// What the files of an earlier host say.
#[expect(clippy::struct_excessive_bools, reason = "independent findings")]
pub(crate) struct Recovered {
    pub(super) folder: PathBuf,
    pub(super) boot: String,
    pub(super) entries: HashMap<RunId, Entry>,
    /// The file that offsets in `entries` point into.
    pub(super) file: Option<File>,
    pub(super) session: u64,
    pub(super) horizon: u64,
    /// A run that is missing here was provably never sent.
    pub(super) absence_proves: bool,
    /// The caller makes runs durable ([`crate::Durability::Caller`]).
    pub(super) by_caller: bool,
    /// There was no file: whatever the caller knows of earlier runs, the journal does not.
    pub(super) fresh: bool,
    /// The old file is kept aside for people.
    pub(super) damaged: bool,
    /// Runs that were sent and whose end nobody has seen; new with this start.
    pub(crate) unfinished: Vec<RunId>,
}

#[derive(Default)]
struct Scan {
    header: Option<Header>,
    records: Vec<(Record, u64, u32)>,
    /// A sound line follows a damaged one.
    hole: bool,
}

/// Path of the main file.
pub(super) fn journal_path(folder: &Path) -> PathBuf {
    folder.join("journal.log")
}

impl Recovered {
    /// Reads both files in `folder`. `boot` names the present boot of the machine.
    pub(crate) fn read(folder: &Path, boot: &str, now: Timestamp) -> Result<Self, JournalError> {
        let path = journal_path(folder);
        let (scan, file) = scan(&path)?;
        let header = scan.header.clone();
        if let Some(header) = header.as_ref().filter(|header| header.version > record::VERSION) {
            return Err(JournalError::Newer { path, version: header.version });
        }
        // The header is on disk before the file gets its name: a file without one has been damaged since.
        let damaged = scan.hole || (file.is_some() && header.is_none());
        let header = header.unwrap_or_default();
        let (mut entries, forgotten) = collect(scan.records);

        let (marks, marks_prove) = read_marks(folder, &header, file.is_some())?;
        for run in marks {
            match entries.get(&run) {
                Some(Entry::Finished { .. } | Entry::Lost) => {}
                None if forgotten.contains(&run) => {}
                _ => {
                    entries.insert(run, Entry::Sent);
                }
            }
        }
        let absence_proves = marks_prove && !damaged && header.boot == boot;
        if absence_proves {
            entries.retain(|_, entry| *entry != Entry::Armed);
        }
        let mut unfinished = Vec::new();
        for (run, entry) in &mut entries {
            if matches!(entry, Entry::Armed | Entry::Sent) {
                *entry = Entry::Lost;
                unfinished.push(*run);
            }
        }
        unfinished.sort_unstable();
        let horizon = if damaged { millis(now).max(header.horizon) } else { header.horizon };
        Ok(Self {
            folder: folder.to_owned(),
            boot: boot.to_owned(),
            entries,
            absence_proves,
            by_caller: false,
            fresh: file.is_none(),
            file,
            session: header.session,
            horizon,
            damaged,
            unfinished,
        })
    }

    /// From here on the caller makes runs durable.
    pub(crate) fn by_caller(mut self) -> Self {
        self.by_caller = true;
        self
    }

    /// Whether a run that the caller has open and that is missing here may have been sent all the same: the file is gone, or
    /// nobody flushed it and the machine has been off since.
    pub(super) fn doubts_absence(&self) -> bool {
        self.by_caller && (self.fresh || !self.absence_proves)
    }

    /// Whether the old file had a hole.
    pub(crate) fn was_damaged(&self) -> bool {
        self.damaged
    }
}

pub(super) fn millis(time: Timestamp) -> u64 {
    u64::try_from(time.micros() / 1000).unwrap_or(0)
}

/// Entries by run, and the runs that were forgotten.
fn collect(records: Vec<(Record, u64, u32)>) -> (HashMap<RunId, Entry>, HashSet<RunId>) {
    let mut entries = HashMap::new();
    let mut forgotten = HashSet::new();
    for (record, offset, len) in records {
        match record {
            Record::Header(_) => {}
            // The later line counts: a call may be armed again after it was withdrawn.
            Record::Armed(run) => {
                entries.insert(run, Entry::Armed);
            }
            Record::Sent(run) => {
                entries.insert(run, Entry::Sent);
            }
            Record::Lost(run) => {
                entries.insert(run, Entry::Lost);
            }
            Record::Finished { run, at } => {
                entries.insert(run, Entry::Finished { offset, len, at });
            }
            Record::Forgotten(runs) => {
                for run in runs {
                    entries.remove(&run);
                    forgotten.insert(run);
                }
            }
        }
    }
    (entries, forgotten)
}

/// The marks of the session, and whether a missing mark proves anything.
fn read_marks(folder: &Path, header: &Header, exists: bool) -> Result<(Vec<RunId>, bool), JournalError> {
    let (scan, file) = scan(&sent::path(folder, header.session))?;
    let belongs = scan.header.as_ref().is_some_and(|h| h.session == header.session && h.boot == header.boot);
    let runs = scan.records.into_iter().filter_map(|(record, ..)| match record {
        Record::Sent(run) => Some(run),
        _ => None,
    });
    Ok((runs.collect(), exists && file.is_some() && belongs && !scan.hole))
}

fn scan(path: &Path) -> Result<(Scan, Option<File>), JournalError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Scan::default(), None)),
        Err(error) => return Err(JournalError::io(path)(error)),
    };
    let mut reader = BufReader::with_capacity(1 << 16, &file);
    let mut scan = Scan::default();
    let mut offset = 0_u64;
    let mut bad = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = bounded_line(&mut reader, &mut line).map_err(JournalError::io(path))?;
        if read == 0 {
            break;
        }
        let ended = line.last() == Some(&b'\n');
        if ended {
            line.pop();
        }
        // A line without its newline is torn even if its checksum is right: the next write would run into it.
        match record::parse(&line).filter(|_| ended) {
            None => bad = true,
            Some(record) => {
                scan.hole |= bad;
                let length = u32::try_from(line.len()).unwrap_or(u32::MAX);
                match record {
                    Record::Header(header) if offset == 0 => scan.header = Some(header),
                    record => scan.records.push((record, offset, length)),
                }
            }
        }
        offset += read;
    }
    drop(reader);
    Ok((scan, Some(file)))
}

/// Reads to the next newline but keeps at most [`LONGEST_LINE`] bytes of it. Returns how many bytes were passed.
fn bounded_line(reader: &mut impl std::io::BufRead, line: &mut Vec<u8>) -> std::io::Result<u64> {
    let mut passed = 0;
    loop {
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(passed);
        }
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let used = newline.map_or(chunk.len(), |at| at + 1);
        if line.len() < LONGEST_LINE {
            line.extend_from_slice(&chunk[..used]);
        }
        reader.consume(used);
        passed += used as u64;
        if newline.is_some() {
            return Ok(passed);
        }
    }
}
