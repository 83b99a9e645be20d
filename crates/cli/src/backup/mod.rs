//! Backups: everything that a fresh machine needs, in one sealed file; the proof that it is whole; and the way back.
//!
//! `sealed` is the form of the file, `content` what is in it, `taking` and `putting` the two directions. What a copy means to an
//! installation is [`interlock_engine::backup`]'s.

mod content;
mod putting;
mod sealed;
mod taking;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub(crate) use putting::{Opened, Proven, open, open_in_temporary};
pub(crate) use sealed::{PrivateKey, Recipient};
pub(crate) use taking::take;

/// What lies below the state folder and belongs into a backup: the files in these, and these.
const FOLDERS: [&str; 2] = ["keys", "tls"];
const FILES: [&str; 1] = ["device/control.json"];
/// The key of the audit log, which signs backups too.
const AUDIT_KEY: &str = "keys/audit-signing.pk8";
/// The artifacts of a device.
const ARTIFACTS: &str = "device/artifacts";
/// Where the index of artifacts lies after a backup was put back.
const INDEX: &str = "artifacts-of-backup.jsonl";

/// Writes a new private key to a file that is not there yet; gives back the public half.
///
/// # Errors
/// When the file cannot be made.
pub(crate) fn make_key(path: &Path) -> anyhow::Result<Recipient> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let key = PrivateKey::generate()?;
    let recipient = key.recipient()?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("make {}", path.display()))?;
    file.write_all(key.text().as_bytes())?;
    file.sync_all()?;
    Ok(recipient)
}

/// Reads a private key.
///
/// # Errors
/// When the file cannot be read or holds none.
pub(crate) fn read_key(path: &Path) -> anyhow::Result<PrivateKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    PrivateKey::read(&text).with_context(|| format!("use {}", path.display()))
}

/// A file or folder that is removed unless it is kept.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or_else(|| Path::new(""))
    }

    fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "what was left unfinished could not be removed");
            }
        }
    }
}
