//! The host's folder: made private, locked to one host at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::FlockOperation;

/// Creates a folder, and those above it, that only this user can read.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes the folder for this host. `Ok(None)` when another host has it. The lock ends with the file's last handle, also
/// when the process is killed.
pub(crate) fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(folder.join("lock"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives the folder up. Closing the file would not do: a process that is being started at this moment has a copy of it until
/// it executes its program.
pub(crate) fn unlock(lock: &File) {
    let _ = rustix::fs::flock(lock, FlockOperation::Unlock);
}

/// Which boot of the machine this is.
pub(crate) fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}
