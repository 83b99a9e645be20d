//! The emergency-stop latch, the attention mark and what is owed to the device, in memory and in one small file.
//!
//! The memory is the truth for whoever decides about a call; the file is the truth for the next host. Never waits for the disk
//! while a lock is held that a stop needs. A file that cannot be understood means: stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use interlock_model::Timestamp;
use interlock_model::device::{Attention, StopLatch};
use serde::{Deserialize, Serialize};

/// The file is padded to one block, so that on a full disk it can be overwritten in place.
const BLOCK: usize = 4096;
/// Longest name or reason that is kept.
const LONGEST_TEXT: usize = 500;

/// What survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) latch: StopLatch,
    pub(crate) attention: Option<Attention>,
    /// A call was under way when the host ended: the safe-state hook has to run before the next call.
    #[serde(default)]
    pub(crate) safe_state_due: bool,
}

struct Inner {
    state: State,
    /// Counts stops, so that a release cannot undo a stop that came after it was asked for.
    stops: u64,
}

/// The state with its file.
pub(crate) struct Control {
    path: PathBuf,
    inner: Mutex<Inner>,
    stopped: AtomicBool,
    /// Serialises writers of the file; never taken by anyone who holds `inner`.
    disk: Mutex<()>,
}

impl Control {
    /// Reads the file in `folder`. A damaged one reads as an engaged stop.
    pub(crate) fn load(folder: &Path, now: Timestamp) -> io::Result<Self> {
        let path = folder.join("control.json");
        let state = match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|| State {
                latch: StopLatch {
                    engaged: true,
                    since: Some(now),
                    by: None,
                    reason: Some("the file that holds the emergency stop is damaged".to_owned()),
                },
                ..State::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        let stopped = state.latch.engaged.into();
        Ok(Self { path, inner: Mutex::new(Inner { state, stops: 0 }), stopped, disk: Mutex::new(()) })
    }

    pub(crate) fn state(&self) -> State {
        self.inner().state.clone()
    }

    /// Whether motion is refused. Set before anything is killed, so that nothing is started behind a stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether calls wait for a person.
    pub(crate) fn is_held(&self) -> bool {
        self.inner().state.attention.as_ref().is_some_and(|attention| attention.held)
    }

    /// Engages the latch, in memory only. An engaged one keeps its first author.
    pub(crate) fn engage(&self, by: &str, reason: Option<&str>, now: Timestamp) {
        self.stopped.store(true, Ordering::SeqCst);
        let mut inner = self.inner();
        inner.stops += 1;
        if !inner.state.latch.engaged {
            inner.state.latch = StopLatch {
                engaged: true,
                since: Some(now),
                by: Some(shortened(by)),
                reason: reason.map(shortened),
            };
        }
    }

    /// Clears the latch: on disk first. `Ok(false)` when somebody stopped the device meanwhile: then it stays stopped.
    pub(crate) fn release(&self) -> io::Result<bool> {
        let _disk = self.disk();
        let (before, cleared) = {
            let inner = self.inner();
            (inner.stops, State { latch: StopLatch::default(), ..inner.state.clone() })
        };
        self.write(&cleared)?;
        let still_wanted = {
            let mut inner = self.inner();
            let unchanged = inner.stops == before;
            if unchanged {
                inner.state.latch = StopLatch::default();
                self.stopped.store(false, Ordering::SeqCst);
            }
            unchanged
        };
        if !still_wanted {
            let state = self.state();
            self.write(&state)?;
        }
        Ok(still_wanted)
    }

    /// Sets the mark, in memory only. A mark that holds the device is never replaced by a weaker one.
    pub(crate) fn mark(&self, reason: &str, held: bool, now: Timestamp) {
        let mut inner = self.inner();
        if held || !inner.state.attention.as_ref().is_some_and(|attention| attention.held) {
            inner.state.attention = Some(Attention { since: now, reason: shortened(reason), held });
        }
    }

    /// Clears the mark: on disk first.
    pub(crate) fn clear_attention(&self) -> io::Result<()> {
        let _disk = self.disk();
        let seen = self.state();
        self.write(&State { attention: None, ..seen.clone() })?;
        let mut inner = self.inner();
        if inner.state.attention == seen.attention {
            inner.state.attention = None;
        }
        Ok(())
    }

    /// Says whether the safe-state hook has to run before the next call, in memory only.
    pub(crate) fn set_due(&self, due: bool) {
        self.inner().state.safe_state_due = due;
    }

    /// Writes what is in memory to disk. Blocks.
    pub(crate) fn save(&self) -> io::Result<()> {
        let _disk = self.disk();
        let state = self.state();
        self.write(&state)
    }

    fn write(&self, state: &State) -> io::Result<()> {
        let block = encode(state);
        replace(&self.path, &block).or_else(|error| overwrite(&self.path, &block).map_err(|_| error))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, ()> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

/// JSON, padded with spaces, with its CRC-32 in the last line.
fn encode(state: &State) -> Vec<u8> {
    let mut block = serde_json::to_vec(state).unwrap_or_default();
    block.resize(block.len().next_multiple_of(BLOCK).max(BLOCK), b' ');
    let end = block.len() - 10;
    if block[end..].iter().any(|byte| *byte != b' ') {
        block.resize(block.len() + BLOCK, b' ');
    }
    let end = block.len() - 10;
    let sum = crc32fast::hash(&block[..end]);
    block.truncate(end);
    let _ = writeln!(block, "\n{sum:08x}");
    block
}

fn decode(block: &[u8]) -> Option<State> {
    let end = block.len().checked_sub(10)?;
    let sum = std::str::from_utf8(block[end..].trim_ascii()).ok()?;
    (u32::from_str_radix(sum, 16).ok()? == crc32fast::hash(&block[..end])).then_some(())?;
    serde_json::from_slice(block[..end].trim_ascii()).ok()
}

/// The whole file or nothing.
fn replace(path: &Path, block: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(block)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// For a full disk: the block is there already. If it tears, the file reads as an engaged stop.
fn overwrite(path: &Path, block: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(block, 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    #[test]
    fn a_stop_and_a_mark_survive_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::load(folder.path(), NOW).expect("loads");

        control.engage("mo", Some("smoke"), NOW);
        control.mark("look at it", true, NOW);
        control.save().expect("saved");

        let again = Control::load(folder.path(), NOW).expect("loads");
        assert_eq!(again.state(), control.state());
        assert!(again.is_stopped() && again.is_held());
    }

    #[test]
    fn a_release_is_on_disk_before_it_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::load(folder.path(), NOW).expect("loads");
        control.engage("mo", None, NOW);
        control.save().expect("saved");

        assert!(control.release().expect("released"));

        assert!(!control.is_stopped());
        assert!(!Control::load(folder.path(), NOW).expect("loads").is_stopped());
    }

    #[test]
    fn a_file_cut_or_changed_anywhere_reads_as_stopped() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::load(folder.path(), NOW).expect("loads");
        control.save().expect("saved");
        let whole = std::fs::read(&control.path).expect("there");

        for at in (0..whole.len()).step_by(61).chain([whole.len() - 2]) {
            std::fs::write(&control.path, &whole[..at]).expect("written");
            assert!(Control::load(folder.path(), NOW).expect("loads").is_stopped(), "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 0x15;
            std::fs::write(&control.path, &changed).expect("written");
            assert!(Control::load(folder.path(), NOW).expect("loads").is_stopped(), "changed at {at}");
        }
    }

    #[test]
    fn a_weak_mark_never_replaces_one_that_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::load(folder.path(), NOW).expect("loads");

        control.mark("strong", true, NOW);
        control.mark("weak", false, NOW);

        assert!(control.is_held());
        control.clear_attention().expect("cleared");
        assert!(!control.is_held());
    }

    #[test]
    fn when_no_new_file_can_be_made_the_old_one_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::load(folder.path(), NOW).expect("loads");
        control.save().expect("saved");
        std::fs::create_dir(folder.path().join("control.new")).expect("in the way");

        control.engage("mo", None, NOW);
        control.save().expect("saved in place");

        assert!(Control::load(folder.path(), NOW).expect("loads").state().latch.by.is_some());
    }

    #[test]
    fn every_length_of_text_fits() {
        for length in 0..3 * BLOCK {
            let reason = Some("x".repeat(length));
            let state = State { latch: StopLatch { reason, ..StopLatch::default() }, ..State::default() };
            assert_eq!(decode(&encode(&state)), Some(state), "{length}");
        }
    }
}
