//! Making a new pair of files out of what is live: at the start, when too much is dead, and after a failed write.
//!
//! Never touches the files in use before the new ones are complete and on disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use interlock_model::RunId;

use super::record::{self, Header};
use super::recover::journal_path;
use super::sent::{self, SentFile};
use super::{Entry, Index, KEEP};

/// Outcomes from before this are not kept.
pub(super) fn oldest(now: i64) -> i64 {
    now.saturating_sub(i64::try_from(KEEP.as_micros()).unwrap_or(i64::MAX))
}

impl Index {
    pub(super) fn finished(&mut self, run: RunId, at: i64, offset: u64, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.live_bytes += u64::from(len);
        let old = self.entries.insert(run, Entry::Finished { offset, len, at });
        self.retire(old);
    }

    pub(super) fn forget(&mut self, run: RunId) {
        let old = self.entries.remove(&run);
        self.retire(old);
    }

    pub(super) fn retire(&mut self, old: Option<Entry>) {
        if let Some(Entry::Finished { len, .. }) = old {
            self.live_bytes = self.live_bytes.saturating_sub(u64::from(len));
        }
    }
}

/// A new pair of files in the making.
pub(super) struct Plan<'a> {
    pub(super) folder: &'a Path,
    pub(super) boot: &'a str,
    pub(super) session: u64,
    pub(super) now: i64,
}

impl Plan<'_> {
    fn temporary(&self) -> PathBuf {
        self.folder.join("journal.new")
    }

    fn header(&self, horizon: u64) -> Header {
        Header {
            version: record::VERSION,
            session: self.session,
            boot: self.boot.to_owned(),
            at: self.now,
            horizon,
        }
    }

    /// Copies the outcomes that are wanted and young enough, and flushes them. `index` then points into the new file.
    pub(super) fn copy(
        &self,
        index: &mut Index,
        unsaved: &[(RunId, i64, Vec<u8>)],
    ) -> io::Result<(Arc<File>, u64)> {
        let oldest = oldest(self.now);
        let mut outcomes = Vec::new();
        let mut horizon = index.horizon;
        index.entries.retain(|run, entry| match entry {
            Entry::Finished { at, .. } if *at < oldest => {
                horizon = horizon.max(record::born(*run));
                false
            }
            Entry::Finished { offset, len, at } => {
                outcomes.push((*offset, *len, *at, *run));
                true
            }
            _ => true,
        });
        index.horizon = horizon;
        index.live_bytes = 0;
        outcomes.sort_unstable();

        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.temporary())?;
        let mut out = Appender { file: &file, buffer: Vec::with_capacity(1 << 20), written: 0 };
        record::header(&mut out.buffer, &self.header(horizon));
        let mut line = Vec::new();
        for (offset, len, at, run) in outcomes {
            line.resize(len as usize, 0);
            let read = index.file.read_exact_at(&mut line, offset);
            if read.is_ok() && record::parse(&line) == Some(record::Record::Finished { run, at }) {
                let offset = out.line(&line)?;
                index.finished(run, at, offset, line.len());
            } else {
                tracing::error!(run.id = %run, "the journal's record of this run is damaged");
                index.entries.insert(run, Entry::Lost);
            }
        }
        for (run, at, line) in unsaved {
            let line = &line[..line.len() - 1];
            let offset = out.line(line)?;
            index.finished(*run, *at, offset, line.len());
        }
        let length = out.end()?;
        file.sync_data()?;
        Ok((Arc::new(file), length))
    }

    /// Adds what has not ended, and puts both new files in place: the marks first, because the journal names them.
    pub(super) fn replace(&self, index: &mut Index, fresh: (Arc<File>, u64)) -> io::Result<(SentFile, u64)> {
        let (file, mut length) = fresh;
        let mut lines = Vec::new();
        for (run, entry) in &index.entries {
            match entry {
                Entry::Armed => record::armed(&mut lines, *run, "", [0; 8]),
                Entry::Sent => record::sent(&mut lines, *run),
                Entry::Lost => record::lost(&mut lines, *run),
                Entry::Finished { .. } => {}
            }
        }
        file.write_all_at(&lines, length)?;
        length += lines.len() as u64;
        file.sync_all()?;
        let sent = SentFile::create(self.folder, &self.header(index.horizon))?;
        std::fs::rename(self.temporary(), journal_path(self.folder))?;
        File::open(self.folder)?.sync_all()?;
        index.file = file;
        Ok((sent, length))
    }

    /// Removes marks of earlier sessions.
    pub(super) fn sweep(&self) {
        let keep = sent::path(self.folder, self.session);
        let Ok(entries) = std::fs::read_dir(self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("sent-") && path != keep {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

struct Appender<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    written: u64,
}

impl Appender<'_> {
    /// Adds a line and says where it starts.
    fn line(&mut self, line: &[u8]) -> io::Result<u64> {
        let at = self.written + self.buffer.len() as u64;
        self.buffer.extend_from_slice(line);
        self.buffer.push(b'\n');
        if self.buffer.len() > 1 << 20 {
            self.end()?;
        }
        Ok(at)
    }

    fn end(&mut self) -> io::Result<u64> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(self.written)
    }
}
