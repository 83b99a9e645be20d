//! The parsers of this crate for `interlock-fuzz`, and for nobody else.

use std::path::Path;

use interlock_model::Timestamp;

use crate::journal::Recovered;
use crate::wire;

/// Reads a line of a worker.
pub fn worker_line(line: &[u8]) {
    let _ = wire::parse(line, 1 << 20);
}

/// Reads a journal of these bytes in `folder`, twice.
///
/// # Panics
/// When the second reading finds something else than the first, or the file cannot be written.
pub fn journal(folder: &Path, bytes: &[u8]) {
    std::fs::write(folder.join("journal.log"), bytes).expect("the journal can be written");
    let now = Timestamp::from_seconds(1_767_225_600);
    let read =
        || Recovered::read(folder, "boot", now).ok().map(|found| (found.was_damaged(), found.unfinished));
    assert_eq!(read(), read(), "a journal is read in two ways");
}
