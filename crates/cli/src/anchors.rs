//! Checkpoints of the audit log outside the database: appended to a file, best on another machine. Whoever puts back an old copy
//! of the database, or cuts its newest entries off, cannot put them back there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use interlock_engine::notary;
use interlock_engine::security;
use interlock_evidence::bundle;
use interlock_evidence::checkpoint::{self, Checkpoint, VerifyingKey};
use interlock_store::Store;
use serde_json::json;

/// A checkpoint is kept this often.
const PERIOD: Duration = Duration::from_mins(1);

/// The checkpoints in the file that `key` has signed, oldest first, as notes. A file that is not there has none.
///
/// # Errors
/// When it cannot be read, or a line is none.
pub(crate) fn notes(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut notes = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let place = || format!("{}, line {number}", path.display());
        notes.push(bundle::noted(&line.with_context(place)?).with_context(place)?);
    }
    Ok(notes)
}

fn append(path: &Path, note: &str) -> anyhow::Result<()> {
    let mut line = bundle::note_line(note)?;
    line.push('\n');
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_data()?;
    Ok(())
}

/// The newest checkpoint in the file that this installation has signed.
fn newest(path: &Path, key: &VerifyingKey) -> anyhow::Result<Option<Checkpoint>> {
    let ours = |note: &String| checkpoint::open(note, std::slice::from_ref(key)).ok();
    let mut notes = notes(path)?;
    // The largest that is ours, without checking the signature of every minute of some years.
    notes.sort_by_key(|note| std::cmp::Reverse(claimed_size(note)));
    Ok(notes.iter().find_map(ours))
}

/// What a note says its size is, believed or not.
fn claimed_size(note: &str) -> Option<u64> {
    note.lines().nth(1)?.parse().ok()
}

/// Compares the log with what was kept, then keeps what is signed, until dropped.
pub(crate) async fn keep_forever(store: Arc<dyn Store>, key: VerifyingKey, path: PathBuf) {
    match compare(&*store, &key, &path).await {
        Ok(()) => {}
        Err(error) => {
            let reason = format!("{error:#}");
            tracing::error!(reason, file = %path.display(), "the audit log is not what its anchor file says");
            security::event(security::Event::AuditTampered, None, None, json!({ "reason": reason }));
        }
    }
    let mut kept = String::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let written = async {
            let Some(seal) = notary::newest(&*store).await? else { return Ok(()) };
            if seal.note != kept {
                let (path, note) = (path.clone(), seal.note.clone());
                tokio::task::spawn_blocking(move || append(&path, &note)).await??;
                kept = seal.note;
            }
            Ok::<_, anyhow::Error>(())
        };
        match written.await {
            Ok(()) => metrics::gauge!("audit_anchor_failing").set(0.0),
            Err(error) => {
                metrics::gauge!("audit_anchor_failing").set(1.0);
                tracing::error!(error = format!("{error:#}"), file = %path.display(), "no checkpoint could be kept");
            }
        }
    }
}

async fn compare(store: &dyn Store, key: &VerifyingKey, path: &Path) -> anyhow::Result<()> {
    let Some(kept) = newest(path, key)? else { return Ok(()) };
    match notary::root_of(store, kept.size).await? {
        Some(root) if root == kept.root => Ok(()),
        Some(_) => bail!("its first {} entries are not those that were signed at {}", kept.size, kept.at),
        None => bail!(
            "it had {} entries at {} and has fewer now: an old copy was put back, or its end was cut off",
            kept.size,
            kept.at
        ),
    }
}
