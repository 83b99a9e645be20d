//! Files that runs produced: taken from the worker, kept under the run's id, found again by name.
//!
//! A worker's word for a path is not trusted: only a regular file directly inside the folder it was given is taken. No name
//! leads out of the run's own folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use interlock_model::RunId;

/// Most artifacts of one run.
pub(crate) const PER_RUN: u32 = 1000;

/// The folders of a host.
pub(crate) struct Artifacts {
    kept: PathBuf,
    incoming: PathBuf,
}

/// Whether this can be the name of a file, and of nothing else.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
}

impl Artifacts {
    /// Creates the folders and removes what an earlier worker left half-way.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let kept = state_dir.join("artifacts");
        let incoming = state_dir.join("incoming");
        crate::folder::create_private(&kept)?;
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        crate::folder::create_private(&incoming)?;
        // Absolute, because the worker has another working directory.
        Ok(Self { kept: kept.canonicalize()?, incoming: incoming.canonicalize()? })
    }

    /// Where the worker writes.
    pub(crate) fn incoming(&self) -> &Path {
        &self.incoming
    }

    /// Takes a file over. Returns its size.
    pub(crate) fn keep(&self, run: RunId, name: &str, path: &str, largest: u64) -> Result<u64, String> {
        if !is_name(name) || !is_name(path) {
            return Err("its name is not allowed".to_owned());
        }
        let from = self.incoming.join(path);
        let found = fs::symlink_metadata(&from).map_err(|error| format!("it is not there: {error}"))?;
        if !found.is_file() {
            return Err("it is not a file".to_owned());
        }
        if found.len() > largest {
            let _ = fs::remove_file(&from);
            return Err(format!("it has {} bytes and at most {largest} are allowed", found.len()));
        }
        let folder = self.kept.join(run.to_string());
        crate::folder::create_private(&folder)
            .and_then(|()| fs::rename(&from, folder.join(name)))
            .map_err(|error| format!("it cannot be kept: {error}"))?;
        Ok(found.len())
    }

    /// Deletes everything that is kept for a run.
    pub(crate) fn discard(&self, run: RunId) -> io::Result<()> {
        match fs::remove_dir_all(self.kept.join(run.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Where an artifact is, if there is one.
    pub(crate) fn find(&self, run: RunId, name: &str) -> Option<PathBuf> {
        let path = is_name(name).then(|| self.kept.join(run.to_string()).join(name))?;
        fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_model::Timestamp;
    use interlock_model::time::TestEntropy;

    fn run() -> RunId {
        RunId::new(Timestamp::from_seconds(1), &TestEntropy::seeded(1))
    }

    #[test]
    fn a_file_is_taken_over_and_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let artifacts = Artifacts::open(folder.path()).expect("opens");
        fs::write(artifacts.incoming().join("x-1"), b"abc").expect("written");

        assert_eq!(artifacts.keep(run(), "plate.csv", "x-1", 10), Ok(3));

        let path = artifacts.find(run(), "plate.csv").expect("found");
        assert_eq!(fs::read(path).expect("read"), b"abc");
        artifacts.discard(run()).expect("deleted");
        assert_eq!(artifacts.find(run(), "plate.csv"), None);
        artifacts.discard(run()).expect("nothing to delete");
    }

    #[test]
    fn no_name_leads_anywhere_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let artifacts = Artifacts::open(folder.path()).expect("opens");
        fs::write(folder.path().join("secret"), b"s").expect("written");
        std::os::unix::fs::symlink(folder.path().join("secret"), artifacts.incoming().join("link"))
            .expect("link");
        fs::write(artifacts.incoming().join("ok"), b"s").expect("written");

        for path in ["../secret", "/etc/passwd", "..", ".", "", "a/b", "link", "nothing", "a\0b"] {
            assert!(artifacts.keep(run(), "x", path, 10).is_err(), "{path:?}");
            assert_eq!(artifacts.find(run(), path), None, "{path:?}");
        }
        for name in ["../x", "a/b", ".hidden", "", "a\nb", "a\\b"] {
            assert!(artifacts.keep(run(), name, "ok", 10).is_err(), "{name:?}");
        }
        assert!(artifacts.keep(run(), "big", "ok", 0).is_err());
    }
}
