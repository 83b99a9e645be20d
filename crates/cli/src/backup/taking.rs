//! Taking a backup while the server runs, or not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_engine::backup;
use interlock_model::Timestamp;
use interlock_model::id::hexadecimal;
use interlock_store::copy::{self, Part};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::content::{Begin, FORM, Line, Lines, value};
use super::sealed::{Recipient, Sealer};
use super::{ARTIFACTS, AUDIT_KEY, FILES, FOLDERS, Unfinished};
use crate::local::Local;

/// Largest file of the state folder that is taken.
const LARGEST: u64 = 1 << 20;

/// A backup that is on the disk.
#[derive(Debug, Serialize)]
pub(crate) struct Taken {
    pub(crate) file: PathBuf,
    /// It holds what was committed then.
    pub(crate) of: Timestamp,
    pub(crate) bytes: u64,
    /// Of its content.
    pub(crate) sha256: String,
    pub(crate) rows: BTreeMap<String, u64>,
    /// Secrets that came from settings and are not in it.
    pub(crate) outside: Vec<String>,
}

/// A file of the state folder.
#[derive(PartialEq)]
struct Kept {
    path: String,
    content: Vec<u8>,
}

/// Takes a backup of the installation. The file appears under its name when it is whole and on the disk.
///
/// # Errors
/// When something cannot be read, the file is there already, or cannot be written. Then there is no file.
pub(crate) async fn take(
    local: &Local,
    file: &Path,
    recipient: &Recipient,
    outside: Vec<String>,
) -> anyhow::Result<Taken> {
    if file.exists() {
        bail!("{} is there already; give another name", file.display());
    }
    let parts = local.parts();
    let state = local.state();
    let taken_at = parts.ambient.clock.now();
    let kept = Arc::new(files(state)?);
    let signing = kept.iter().find(|file| file.path == AUDIT_KEY);
    let signing = signing.context("the installation has no key of its audit log; start the server once")?;
    let signing = signing.content.clone();
    let begin = Begin {
        form: FORM,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        taken_at,
        installation: local.audit_key().await?.name().to_owned(),
        backend: if parts.told.is_some() { "postgres" } else { "sqlite" }.to_owned(),
        migrations: copy::known().into_iter().map(str::to_owned).collect(),
        device: state.join("device").exists(),
        outside: outside.clone(),
    };
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let mut unfinished = Unfinished(Some(PathBuf::from(partial)));
    let out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(unfinished.path())
        .with_context(|| format!("write {}", unfinished.path().display()))?;
    let sealer = Sealer::begin(BufWriter::new(out), recipient)?;
    let (sender, receiver) = copy::channel();
    let writing = {
        let (state, kept) = (state.to_owned(), Arc::clone(&kept));
        tokio::task::spawn_blocking(move || write(sealer, begin, &kept, &state, receiver, &signing))
    };
    let (copied, written) = tokio::join!(parts.store.copy_out(sender), writing);
    // Whoever writes says best why it did not work: the copy then only ended because nobody took it.
    let (digest, rows, bytes) = written.context("write the backup")??;
    copied.context("copy the database")?;
    // Keys and database belong together.
    if !keys(&files(state)?).eq(keys(&kept)) {
        bail!("the keys were exchanged while the backup was taken; take it again");
    }
    fs::rename(unfinished.path(), file).with_context(|| format!("write {}", file.display()))?;
    unfinished.keep();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("write {}", folder.display()))?;
    backup::taken(&parts.db, local.permit(), taken_at, &digest, bytes).await.context("record the backup")?;
    Ok(Taken { file: file.to_owned(), of: taken_at, bytes, sha256: digest, rows, outside })
}

type Done = (String, BTreeMap<String, u64>, u64);

/// Writes everything and has it on the disk.
fn write(
    sealer: Sealer<BufWriter<File>>,
    begin: Begin,
    kept: &[Kept],
    state: &Path,
    mut parts: copy::Receiver,
    signing: &[u8],
) -> anyhow::Result<Done> {
    let (installation, taken_at) = (begin.installation.clone(), begin.taken_at);
    let mut lines = Lines::new(sealer);
    let failed = || "write the backup; is there enough space?".to_owned();
    lines.put(&Line::Begin(begin)).with_context(failed)?;
    for file in kept {
        let content = STANDARD.encode(&file.content);
        lines.put(&Line::File { path: file.path.clone(), content }).with_context(failed)?;
    }
    for artifact in artifacts(&state.join(ARTIFACTS))? {
        lines.put(&artifact).with_context(failed)?;
    }
    let mut whole = false;
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Table { name, columns } => {
                lines.put(&Line::Table { name, columns }).with_context(failed)?;
            }
            Part::Rows(rows) => {
                for row in rows {
                    let row = row.into_iter().map(value).collect();
                    lines.put(&Line::Row(row)).with_context(failed)?;
                }
            }
            Part::End => whole = true,
        }
    }
    if !whole {
        bail!("the database could not be read to its end");
    }
    let written = lines.end(&installation, signing, taken_at)?;
    let out = written.out.finish().with_context(failed)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    Ok((hexadecimal(&written.digest), written.rows, file.metadata()?.len()))
}

fn keys(kept: &[Kept]) -> impl Iterator<Item = &Kept> {
    kept.iter().filter(|file| file.path.starts_with("keys/"))
}

/// What belongs into a backup of the files of a state folder.
fn files(state: &Path) -> anyhow::Result<Vec<Kept>> {
    let mut paths: Vec<String> = FILES.iter().map(|path| (*path).to_owned()).collect();
    for folder in FOLDERS {
        let Ok(entries) = fs::read_dir(state.join(folder)) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| format!("read {folder} in the state folder"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Half of a file that is being replaced.
            if entry.file_type()?.is_file()
                && Path::new(&name).extension().is_none_or(|ending| ending != "new")
            {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort();
    let mut kept = Vec::new();
    for path in paths {
        let found = match fs::read(state.join(&path)) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {path} in the state folder")),
        };
        if found.len() as u64 > LARGEST {
            bail!("{path} in the state folder has more than {LARGEST} bytes; what is it?");
        }
        kept.push(Kept { path, content: found });
    }
    Ok(kept)
}

/// Names, sizes and digests of the artifacts.
fn artifacts(folder: &Path) -> anyhow::Result<Vec<Line>> {
    let mut found = Vec::new();
    let Ok(runs) = fs::read_dir(folder) else { return Ok(found) };
    for run in runs {
        let run = run?;
        if !run.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(run.path())? {
            let file = file?;
            let mut opened = match File::open(file.path()) {
                Ok(opened) if file.file_type()?.is_file() => opened,
                _ => continue,
            };
            let (mut hasher, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 1 << 16]);
            loop {
                let read =
                    opened.read(&mut piece).with_context(|| format!("read {}", file.path().display()))?;
                if read == 0 {
                    break;
                }
                hasher.update(&piece[..read]);
                bytes += read as u64;
            }
            let path =
                format!("{}/{}", run.file_name().to_string_lossy(), file.file_name().to_string_lossy());
            found.push(Line::Artifact { path, bytes, sha256: hexadecimal(&hasher.finalize()) });
        }
    }
    Ok(found)
}
