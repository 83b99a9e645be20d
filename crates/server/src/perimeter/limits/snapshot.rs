//! The counters as a file, so that a restart does not give everybody a fresh start.
//!
//! Written at a bounded rate and when the server ends, never by a request. It names clients, so only its owner may read it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use interlock_model::rate::{Window, Windows};
use serde::{Deserialize, Serialize};

use super::{Key, Limiter, MAX_CLIENTS};

const VERSION: u32 = 1;
/// A file of [`MAX_CLIENTS`] clients with the longest names is smaller.
const MAX_BYTES: u64 = 128 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    /// Client, then both windows as `opened` (milliseconds since 1970) and `count`.
    clients: Vec<(String, u64, u32, u64, u32)>,
}

impl Limiter {
    /// Takes in the counters of an earlier process. A file that is damaged or from another version is ignored with a warning;
    /// returns how many clients were taken in.
    pub fn restore(&self, path: &Path) -> usize {
        let read = fs::metadata(path).and_then(|about| {
            if about.len() > MAX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { fs::read(path) }
        });
        let file = match read {
            Ok(bytes) => serde_json::from_slice::<File>(&bytes).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return 0,
            Err(error) => Err(error.to_string()),
        };
        let file = file.and_then(|file| {
            if file.version == VERSION { Ok(file) } else { Err(format!("version {}", file.version)) }
        });
        match file {
            Ok(file) => self.take_in(file),
            Err(reason) => {
                let path = path.display();
                tracing::warn!(%path, reason, "the rate limits' counters cannot be read; counting begins anew");
                0
            }
        }
    }

    fn take_in(&self, file: File) -> usize {
        let now = self.now();
        let mut entries = self.lock();
        for (client, opened, count, hour_opened, hour_count) in file.clients.into_iter().take(MAX_CLIENTS) {
            let Some(key) = Key::read(&client) else { continue };
            let (minute, hour) =
                (Window { opened, count }, Window { opened: hour_opened, count: hour_count });
            let mut windows = Windows { minute, hour };
            windows.minute.renew(now, interlock_model::rate::MINUTE);
            windows.hour.renew(now, interlock_model::rate::HOUR);
            if windows.hour.count > 0 {
                entries.insert(key, super::Entry::new(windows, now));
            }
        }
        entries.len()
    }

    fn file(&self) -> File {
        let now = self.now();
        let entries = self.lock();
        let open = entries.iter().filter(|(_, entry)| !entry.windows.is_over(now));
        let clients = open.map(|(key, entry)| {
            let Windows { minute, hour } = entry.windows;
            (key.text(), minute.opened, minute.count, hour.opened, hour.count)
        });
        File { version: VERSION, clients: clients.collect() }
    }

    /// Writes the counters, readable by this user only. The file is whole or the old one at any time.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(&self.file())?;
        let temporary = path.with_extension("new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        drop(file);
        fs::rename(&temporary, path)
    }

    /// Writes the counters every `period` while they change, until dropped. Run it as a background task.
    pub async fn save_forever(self: Arc<Self>, path: PathBuf, period: Duration) {
        let mut failing = false;
        loop {
            tokio::time::sleep(period).await;
            if !self.moved.swap(false, Ordering::AcqRel) {
                continue;
            }
            let (limiter, target) = (Arc::clone(&self), path.clone());
            let saved = tokio::task::spawn_blocking(move || limiter.save(&target)).await;
            let error = match saved {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let (Some(error), false) = (&error, failing) {
                tracing::warn!(path = %path.display(), error, "the rate limits' counters could not be written");
            }
            failing = error.is_some();
        }
    }
}
