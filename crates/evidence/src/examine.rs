//! Checks a log from its first entry to its last: in one pass, in the order in which it was written.

use interlock_model::audit::{AuditEntry, Broken, Hash, Link, Verifier};
use serde::Serialize;

use crate::TILE;
use crate::checkpoint::{self, Checkpoint, NoteError, VerifyingKey};
use crate::tree::{Frontier, leaf_hash};

/// What is wrong with a log, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// An entry was changed, taken out, put in or moved.
    #[error(transparent)]
    Chain(#[from] Broken),
    /// An entry is sound in itself but is not the one that the tree was built over.
    #[error("entry {0} is not the one that was sealed: it and what follows were written anew")]
    Replaced(u64),
    /// The entries do not give the root that was signed.
    #[error(
        "what was signed is not what is here: an entry from {first} to {last} was changed, taken out or put in, and what follows was written anew"
    )]
    Root {
        /// The first entry that may be another one.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Entries that were signed for, or noted elsewhere, are not here.
    #[error(
        "{noted} entries were signed for, but the log ends at {last}: its newest entries are gone, or others behind entry {good}"
    )]
    CutOff {
        /// Up to here everything is as it was signed.
        good: u64,
        /// How many there were.
        noted: u64,
        /// The last that is here.
        last: u64,
    },
    /// An entry that was noted elsewhere is another one here.
    #[error("entry {0} is not the one that was noted: the log was written anew")]
    Rewritten(u64),
    /// A checkpoint is not to be believed.
    #[error("the checkpoint behind entry {after}: {problem}")]
    Checkpoint {
        /// Entries before it.
        after: u64,
        /// What is wrong.
        problem: NoteError,
    },
    /// A checkpoint of another log.
    #[error(
        "the checkpoint behind entry {after} is of the log {found}, not of {expected}: this is another installation's log"
    )]
    Origin {
        /// Entries before it.
        after: u64,
        /// The log it is of.
        found: String,
        /// The log that was asked about.
        expected: String,
    },
    /// A tile or checkpoint is not where it belongs.
    #[error(
        "the {what} behind entry {after} is not where it belongs: parts of the log were moved or taken out"
    )]
    Misplaced {
        /// Entries before it.
        after: u64,
        /// `tile` or `checkpoint`.
        what: &'static str,
    },
    /// Nothing in the log is signed by anybody who is trusted.
    #[error(
        "nothing in this log is signed by a key that is trusted: it is another installation's, or was written by somebody else"
    )]
    Unsigned,
}

/// What a log that is good holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first entry that is here; those before were deleted after their retention.
    pub first: u64,
    /// The last entry.
    pub last: u64,
    /// Hash of the last entry.
    #[serde(serialize_with = "hexadecimal")]
    pub hash: Hash,
    /// Checkpoints that were checked.
    pub checkpoints: u64,
    /// Checkpoints that only keys which are not trusted have signed, and that were not looked at.
    pub strangers: u64,
    /// Checkpoints and entries noted elsewhere that were checked.
    pub noted: u64,
    /// Entries up to this one are signed for.
    pub signed: u64,
    /// When the newest checkpoint was made, by the clock of the server that signed it.
    pub signed_at: Option<String>,
}

fn hexadecimal<S: serde::Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&interlock_model::id::hexadecimal(hash))
}

/// Whom and what to believe.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: Vec<VerifyingKey>,
    noted: Vec<Checkpoint>,
    entry: Option<(u64, Hash)>,
}

impl Trust {
    /// These keys.
    pub fn in_keys(keys: Vec<VerifyingKey>) -> Self {
        Self { keys, noted: Vec::new(), entry: None }
    }

    /// Adds a checkpoint that was kept somewhere else: the log must hold what it says. It must be signed by one of the keys.
    ///
    /// # Errors
    /// When it is not to be believed.
    pub fn note(&mut self, note: &str) -> Result<(), NoteError> {
        self.noted.push(checkpoint::open(note, &self.keys)?);
        Ok(())
    }

    /// Number and hash of an entry that were noted somewhere else.
    pub fn note_entry(&mut self, number: u64, hash: Hash) {
        self.entry = Some((number, hash));
    }

    /// Checkpoints that were noted.
    pub fn noted(&self) -> usize {
        self.noted.len()
    }
}

/// The hashes of the entries of one tile.
type Hashes = Vec<Hash>;

/// Checks a log part by part: tiles before their entries, a checkpoint right behind the last entry that it covers.
#[derive(Debug)]
pub struct Examiner {
    keys: Vec<VerifyingKey>,
    /// Sorted by size, the next one last.
    noted: Vec<Checkpoint>,
    noted_entry: Option<(u64, Hash)>,
    noted_checked: u64,
    origin: Option<String>,
    frontier: Frontier,
    chain: Verifier,
    first: u64,
    tile: Option<(u64, Hashes)>,
    checkpoints: u64,
    strangers: u64,
    newest: Option<Checkpoint>,
    /// Up to here everything is as it was signed.
    good: u64,
}

impl Examiner {
    /// For a log whose first entry that is still there has the number `first` (1 unless older ones were deleted).
    ///
    /// # Errors
    /// [`Finding::Misplaced`] when entries were deleted that are no whole tiles.
    pub fn new(trust: Trust, first: u64) -> Result<Self, Finding> {
        let Trust { keys, mut noted, entry } = trust;
        if first == 0 || !(first - 1).is_multiple_of(TILE) {
            return Err(Finding::Misplaced { after: first.saturating_sub(1), what: "tile" });
        }
        noted.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.size));
        let mut examiner = Self {
            origin: keys.first().map(|key| key.name().to_owned()),
            keys,
            noted,
            noted_entry: entry,
            noted_checked: 0,
            frontier: Frontier::default(),
            chain: Verifier::default(),
            first,
            tile: None,
            checkpoints: 0,
            strangers: 0,
            newest: None,
            good: 0,
        };
        examiner.compare_noted()?;
        Ok(examiner)
    }

    fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Takes the hashes of the next 256 entries, as they were when the tile was full.
    ///
    /// # Errors
    /// Where the log breaks.
    pub fn tile(&mut self, index: u64, hashes: Hashes) -> Result<(), Finding> {
        if index.checked_mul(TILE) != Some(self.size()) || hashes.len() as u64 != TILE || self.tile.is_some()
        {
            return Err(Finding::Misplaced { after: self.size(), what: "tile" });
        }
        if self.size() + 1 < self.first {
            for hash in &hashes {
                self.grow(*hash)?;
            }
            if let Some(hash) = hashes.last() {
                self.chain = Verifier { seq: self.size(), hash: *hash };
            }
        } else {
            self.tile = Some((index, hashes));
        }
        Ok(())
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// Where the log breaks.
    pub fn entry(&mut self, entry: &AuditEntry) -> Result<(), Finding> {
        self.checked(&entry.checked())
    }

    /// Takes the next entry, whose content was looked at before, perhaps on another thread.
    ///
    /// # Errors
    /// Where the log breaks.
    pub fn checked(&mut self, entry: &Link) -> Result<(), Finding> {
        if self.size() + 1 < self.first {
            return Err(Finding::Misplaced { after: self.size(), what: "tile" });
        }
        self.chain.next_checked(entry)?;
        if let Some((index, hashes)) = &self.tile {
            let within = usize::try_from(entry.seq - 1 - index * TILE).unwrap_or(usize::MAX);
            if hashes.get(within) != Some(&entry.hash) {
                return Err(Finding::Replaced(entry.seq));
            }
            if within as u64 == TILE - 1 {
                self.tile = None;
            }
        }
        self.grow(entry.hash)
    }

    fn grow(&mut self, hash: Hash) -> Result<(), Finding> {
        self.frontier.push(leaf_hash(&hash));
        if let Some((number, noted)) = self.noted_entry.take_if(|(number, _)| *number == self.frontier.size())
        {
            if noted != hash {
                return Err(Finding::Rewritten(number));
            }
            self.noted_checked += 1;
        }
        self.compare_noted()
    }

    /// Compares with what was noted of a log of just this size.
    fn compare_noted(&mut self) -> Result<(), Finding> {
        while let Some(noted) = self.noted.pop_if(|noted| noted.size == self.frontier.size()) {
            self.compare(&noted)?;
            self.noted_checked += 1;
        }
        Ok(())
    }

    fn compare(&mut self, checkpoint: &Checkpoint) -> Result<(), Finding> {
        let after = self.size();
        let expected = self.origin.get_or_insert_with(|| checkpoint.origin.clone());
        if checkpoint.origin != *expected {
            let (found, expected) = (checkpoint.origin.clone(), expected.clone());
            return Err(Finding::Origin { after, found, expected });
        }
        if checkpoint.root != self.frontier.root() {
            return Err(Finding::Root { first: self.good + 1, last: after });
        }
        self.good = after;
        if self.newest.as_ref().is_none_or(|newest| newest.size <= checkpoint.size) {
            self.newest = Some(checkpoint.clone());
        }
        Ok(())
    }

    /// Takes a checkpoint. It is right behind the last entry that it covers. One that only others have signed says nothing, and
    /// takes nothing from what the rest says: of several servers each signs with a key of its own.
    ///
    /// # Errors
    /// Where the log breaks.
    pub fn checkpoint(&mut self, note: &str) -> Result<(), Finding> {
        let after = self.size();
        let checkpoint = match checkpoint::open(note, &self.keys) {
            Ok(checkpoint) => checkpoint,
            Err(NoteError::Stranger) => {
                self.strangers += 1;
                return Ok(());
            }
            Err(problem) => return Err(Finding::Checkpoint { after, problem }),
        };
        if checkpoint.size > after {
            return Err(Finding::CutOff { good: self.good, noted: checkpoint.size, last: after });
        }
        if checkpoint.size < after {
            return Err(Finding::Misplaced { after, what: "checkpoint" });
        }
        self.compare(&checkpoint)?;
        self.checkpoints += 1;
        Ok(())
    }

    /// The end of the log.
    ///
    /// # Errors
    /// [`Finding::CutOff`] when something that was noted lies behind it; [`Finding::Unsigned`] when there are entries, there
    /// are keys to trust, and nothing is signed.
    pub fn finish(self) -> Result<Report, Finding> {
        let (last, good) = (self.frontier.size(), self.good);
        let entry = self.noted_entry.map(|(number, _)| number);
        if let Some(noted) = self.noted.first().map(|noted| noted.size).max(entry) {
            return Err(Finding::CutOff { good, noted, last });
        }
        if let Some((index, _)) = &self.tile {
            return Err(Finding::CutOff { good, noted: (index + 1) * TILE, last });
        }
        if last + 1 < self.first {
            return Err(Finding::CutOff { good, noted: self.first - 1, last });
        }
        if self.newest.is_none() && last > 0 && !self.keys.is_empty() {
            return Err(Finding::Unsigned);
        }
        Ok(Report {
            first: self.first,
            last,
            hash: self.chain.hash,
            checkpoints: self.checkpoints,
            strangers: self.strangers,
            noted: self.noted_checked,
            signed: self.newest.as_ref().map_or(0, |newest| newest.size),
            signed_at: self.newest.map(|newest| newest.at.to_string()),
        })
    }
}
