//! Putting a backup into a folder and a database that are empty, and proving that it is whole.

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_engine::notary::Report;
use interlock_evidence::checkpoint::{Signer, VerifyingKey};
use interlock_model::secret::Secret;
use interlock_store::copy::{self, Cell, Part, ROWS};
use interlock_store::postgres::Postgres;
use interlock_store::sqlite::{FILE_NAME, Sqlite};

use super::content::{Begin, Line, Reading, Whole, cell};
use super::sealed::{Opener, PrivateKey};
use super::{AUDIT_KEY, INDEX, Unfinished};
use crate::local::{Kept, Local};

/// Whom to believe.
pub(crate) struct Proven {
    /// Keys of the audit log that were kept elsewhere; empty: the one in the backup.
    pub(crate) keys: Vec<VerifyingKey>,
    /// Checkpoints that were kept elsewhere.
    pub(crate) notes: Vec<String>,
}

/// A backup that was put into a folder, and is whole.
pub(crate) struct Opened {
    pub(crate) of: Begin,
    pub(crate) whole: Whole,
    /// What the audit log says.
    pub(crate) audit: Report,
    /// Over the folder. Nothing has been settled yet.
    pub(crate) local: Local,
    folder: Unfinished,
}

impl Opened {
    /// Moves the folder to its place.
    pub(crate) async fn keep(mut self, state: &Path) -> anyhow::Result<()> {
        self.local.close().await;
        if state.exists() {
            fs::remove_dir(state)
                .with_context(|| format!("put the state folder {} in place", state.display()))?;
        }
        fs::rename(self.folder.path(), state)
            .with_context(|| format!("put the state folder {} in place", state.display()))?;
        self.folder.keep();
        Ok(())
    }

    /// Removes the folder and everything in it.
    pub(crate) async fn discard(self) {
        self.local.close().await;
    }
}

/// Puts a backup into a new folder beside `state`, and into the database `url` if there is one; proves it.
///
/// # Errors
/// When the target is not empty, the backup is not whole or not to be believed, or there is no space. Then the folder is removed,
/// and a database that was empty is empty; except when only the audit log in it does not hold what was signed.
pub(crate) async fn open(
    file: &Path,
    key: &PrivateKey,
    proven: Proven,
    state: &Path,
    url: Option<Secret>,
) -> anyhow::Result<Opened> {
    if state.exists()
        && fs::read_dir(state).with_context(|| format!("read {}", state.display()))?.next().is_some()
    {
        bail!("{} is not empty; a backup is put into an empty folder only", state.display());
    }
    let name = state.file_name().context("give the state folder a name")?.to_string_lossy().into_owned();
    let folder = state.with_file_name(format!(".{name}.restoring"));
    // Left by one that was killed.
    let _ = fs::remove_dir_all(&folder);
    put(file, key, proven, folder, url).await
}

/// Puts a backup into a folder that is removed in the end.
///
/// # Errors
/// As [`open`].
pub(crate) async fn open_in_temporary(
    file: &Path,
    key: &PrivateKey,
    proven: Proven,
    within: Option<PathBuf>,
) -> anyhow::Result<Opened> {
    let within = within.unwrap_or_else(std::env::temp_dir);
    let folder = within.join(format!("interlock-backup-{}", std::process::id()));
    put(file, key, proven, folder, None).await
}

async fn put(
    file: &Path,
    key: &PrivateKey,
    proven: Proven,
    folder: PathBuf,
    url: Option<Secret>,
) -> anyhow::Result<Opened> {
    let opened = File::open(file).with_context(|| format!("read {}", file.display()))?;
    let sealed =
        Opener::begin(BufReader::new(opened), key).with_context(|| format!("open {}", file.display()))?;
    let reading =
        Reading::begin(BufReader::new(sealed)).with_context(|| format!("open {}", file.display()))?;
    let of = reading.of().clone();
    let steps = copy::through(&of.migrations).with_context(|| {
        format!("the backup was made by version {}, this is {}", of.program, env!("CARGO_PKG_VERSION"))
    })?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("make the folder {}", folder.display()))?;
    let folder = Unfinished(Some(folder));
    let (sender, receiver) = copy::channel();
    let unpacking = {
        let (folder, keys) = (folder.path().to_owned(), proven.keys.clone());
        tokio::task::spawn_blocking(move || unpack(reading, &folder, &keys, &sender))
    };
    let filling = async {
        match &url {
            Some(url) => Postgres::fill(url.expose(), steps, receiver).await,
            None => Sqlite::fill(&folder.path().join(FILE_NAME), steps, receiver).await,
        }
    };
    let (unpacked, filled) = tokio::join!(unpacking, filling);
    let unpacked = unpacked.context("read the backup")?;
    // Whichever of the two failed first made the other fail.
    let whole = match (unpacked, filled) {
        (Ok(whole), Ok(())) => whole,
        (Err(Stopped::Nobody), Err(error)) => return Err(error).context("fill the database"),
        (Ok(_) | Err(Stopped::Nobody), filled) => {
            filled.context("fill the database")?;
            bail!("the database did not take the backup");
        }
        (Err(Stopped::Because(error)), _) => return Err(error.context(format!("read {}", file.display()))),
    };
    let local = Local::of(folder.path(), url.as_ref()).await?;
    let audit = match verified(&local, proven).await {
        Ok(audit) => audit,
        Err(error) => {
            local.close().await;
            return Err(error);
        }
    };
    Ok(Opened { of, whole, audit, local, folder })
}

async fn verified(local: &Local, proven: Proven) -> anyhow::Result<Report> {
    let keys = if proven.keys.is_empty() { vec![local.audit_key().await?] } else { proven.keys };
    let kept = Kept { notes: proven.notes, entry: None };
    local.verify_audit(keys, kept).await.context("the audit log in the backup is not what was signed")
}

/// Why unpacking stopped.
enum Stopped {
    /// Nobody takes the rows any more: the database says why.
    Nobody,
    Because(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Because(error.into())
    }
}

/// Files into the folder, rows to the database. The end is told to it only when all of it is proven.
fn unpack<R: std::io::BufRead>(
    mut reading: Reading<R>,
    folder: &Path,
    keys: &[VerifyingKey],
    parts: &copy::Sender,
) -> Result<Whole, Stopped> {
    let installation = reading.of().installation.clone();
    for key in keys {
        reading.trust(key);
    }
    let send = |part| parts.blocking_send(part).map_err(|_| Stopped::Nobody);
    let (mut rows, mut index) = (Vec::new(), None);
    let whole = loop {
        match reading.line()? {
            Ok(Line::Begin(_) | Line::End { .. }) => {
                return Err(anyhow::anyhow!("the backup begins twice").into());
            }
            Ok(Line::File { path, content }) => {
                let content = STANDARD.decode(content)?;
                if path == AUDIT_KEY && keys.is_empty() {
                    reading.trust(Signer::from_pkcs8(&installation, &content)?.key());
                }
                write(folder, &path, &content)?;
            }
            Ok(line @ Line::Artifact { .. }) => {
                let index = match &mut index {
                    Some(index) => index,
                    None => index.insert(create(&folder.join(INDEX))?),
                };
                serde_json::to_writer(&mut *index, &line)?;
                index.write_all(b"\n")?;
            }
            Ok(Line::Table { name, columns }) => {
                flush(&mut rows, &send)?;
                send(Part::Table { name, columns })?;
            }
            Ok(Line::Row(row)) => {
                rows.push(row.into_iter().map(cell).collect::<Result<Vec<_>, _>>()?);
                if rows.len() == ROWS {
                    flush(&mut rows, &send)?;
                }
            }
            Err(whole) => break whole,
        }
    };
    flush(&mut rows, &send)?;
    send(Part::End)?;
    Ok(whole)
}

fn flush(rows: &mut Vec<Vec<Cell>>, send: &impl Fn(Part) -> Result<(), Stopped>) -> Result<(), Stopped> {
    if rows.is_empty() { Ok(()) } else { send(Part::Rows(std::mem::take(rows))) }
}

fn create(path: &Path) -> anyhow::Result<File> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("write {}", path.display()))
}

/// A file of the state folder. No path leads out of it.
fn write(folder: &Path, path: &str, content: &[u8]) -> anyhow::Result<()> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.is_empty() {
        bail!("the backup names a file outside of the state folder");
    }
    let path = folder.join(path);
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = create(&path)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("write {}", path.display()))
}
