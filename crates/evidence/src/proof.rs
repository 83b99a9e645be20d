//! The proof that one entry is in a log, as a document that can be given away: it shows that entry and nothing of the others.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::audit::{AuditEntry, Hash};
use interlock_model::wire::AuditView;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoint, NoteError, VerifyingKey};
use crate::tree::{includes, leaf_hash};

/// An entry, a signed checkpoint, and the way from one to the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proof {
    /// The entry.
    pub entry: AuditView,
    /// The hashes beside the way from the entry to the root (RFC 9162, section 2.1.3), Base64.
    pub path: Vec<String>,
    /// The signed note.
    pub checkpoint: String,
}

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It is not of the form.
    #[error("this is not a proof: {0}")]
    Form(&'static str),
    /// The entry is not what its hash says.
    #[error("entry {0} was changed")]
    Content(u64),
    /// The checkpoint is not to be believed.
    #[error(transparent)]
    Checkpoint(#[from] NoteError),
    /// The entry is not in the log that was signed.
    #[error("entry {0} is not in the log that was signed")]
    Absent(u64),
}

impl Proof {
    /// Puts the parts together.
    pub fn new(entry: AuditEntry, path: &[Hash], checkpoint: String) -> Self {
        Self {
            entry: entry.into(),
            path: path.iter().map(|hash| STANDARD.encode(hash)).collect(),
            checkpoint,
        }
    }

    /// The checkpoint by which the entry is in the log.
    ///
    /// # Errors
    /// Why it is not proven.
    pub fn verify(self, keys: &[VerifyingKey]) -> Result<Checkpoint, ProofError> {
        let checkpoint = checkpoint::open(&self.checkpoint, keys)?;
        let hash = |text: &String| Hash::try_from(STANDARD.decode(text).ok()?).ok();
        let path = self.path.iter().map(hash).collect::<Option<Vec<_>>>();
        let path = path.ok_or(ProofError::Form("the path is not hashes in Base64"))?;
        let entry =
            AuditEntry::try_from(self.entry).map_err(|_| ProofError::Form("the entry has no proper hash"))?;
        let index = entry.seq.checked_sub(1).ok_or(ProofError::Form("entries are counted from 1"))?;
        if !entry.is_sound() {
            return Err(ProofError::Content(entry.seq));
        }
        if !includes(leaf_hash(&entry.hash), index, checkpoint.size, &path, &checkpoint.root) {
            return Err(ProofError::Absent(entry.seq));
        }
        Ok(checkpoint)
    }
}
