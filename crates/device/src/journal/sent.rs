//! The file of `sent` marks: written with a plain write(2), never waited for.
//!
//! Must not block on the journal's flushes, so it is a file of its own: a write to a file whose pages are being flushed can
//! stall. See the table in [`super`] for why an unflushed mark is proof within one boot.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use interlock_model::RunId;

use super::record::{self, Header};

/// Why a mark was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SentError {
    /// The journal is being rewritten; `Resumed` follows.
    #[error("the journal is being rewritten")]
    Wait,
    /// The write failed; the call must not be sent.
    #[error("the mark could not be written")]
    Io(#[from] std::io::Error),
}

/// An open file of marks.
pub(super) struct SentFile {
    file: File,
    length: u64,
    buffer: Vec<u8>,
}

/// Name of the file that belongs to a session.
pub(super) fn path(folder: &Path, session: u64) -> PathBuf {
    folder.join(format!("sent-{session}.log"))
}

impl SentFile {
    /// Creates the file with its header, on disk.
    pub(super) fn create(folder: &Path, header: &Header) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path(folder, header.session))?;
        let mut buffer = Vec::with_capacity(128);
        record::header(&mut buffer, header);
        file.write_all_at(&buffer, 0)?;
        file.sync_all()?;
        let length = buffer.len() as u64;
        Ok(Self { file, length, buffer })
    }

    /// Adds a mark. A torn one is cut off, so that no later mark hides behind it.
    pub(super) fn mark(&mut self, run: RunId) -> Result<(), SentError> {
        self.buffer.clear();
        record::sent(&mut self.buffer, run);
        if let Err(error) = self.file.write_all_at(&self.buffer, self.length) {
            let _ = self.file.set_len(self.length);
            return Err(error.into());
        }
        self.length += self.buffer.len() as u64;
        Ok(())
    }
}
