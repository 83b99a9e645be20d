//! What a backup holds, one JSON document a line: what it is of, the files of the state folder, an index of the artifacts, the
//! tables of the database, and a signed end.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_evidence::checkpoint::{self, Signer, VerifyingKey};
use interlock_model::Timestamp;
use interlock_model::audit::Hash;
use interlock_store::copy::Cell;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The form of the content. Another one is refused.
pub(crate) const FORM: u32 = 1;
/// Longest line that is read: more than any row can be.
const LONGEST: u64 = 256 << 20;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Begin {
    /// [`FORM`].
    pub(crate) form: u32,
    /// Version of the program that made it.
    pub(crate) program: String,
    /// It holds what was committed then.
    pub(crate) taken_at: Timestamp,
    /// Whose it is.
    pub(crate) installation: String,
    /// `sqlite` or `postgres`. It can be put into either.
    pub(crate) backend: String,
    /// Migrations that the database has been through.
    pub(crate) migrations: Vec<String>,
    /// A device belongs to the installation.
    pub(crate) device: bool,
    /// Secrets that came from settings and are not in here.
    pub(crate) outside: Vec<String>,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// The first.
    Begin(Begin),
    /// A file of the state folder, with its content in Base64.
    File { path: String, content: String },
    /// An artifact, which is not in here itself.
    Artifact { path: String, bytes: u64, sha256: String },
    /// The rows that follow are of this table.
    Table { name: String, columns: Vec<String> },
    /// A row.
    Row(Vec<Value>),
    /// The last.
    End { rows: BTreeMap<String, u64>, note: String },
}

/// A value as JSON.
pub(crate) fn value(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Number(number) => number.into(),
        Cell::Real(number) => json!({ "real": number.to_bits() }),
        Cell::Text(text) => text.into(),
        Cell::Bytes(bytes) => json!({ "bytes": STANDARD.encode(bytes) }),
    }
}

/// A value out of JSON.
pub(crate) fn cell(value: Value) -> anyhow::Result<Cell> {
    Ok(match value {
        Value::Null => Cell::Null,
        Value::Number(number) => Cell::Number(number.as_i64().context("a number is out of range")?),
        Value::String(text) => Cell::Text(text),
        Value::Object(object) => {
            if let Some(bits) = object.get("real").and_then(Value::as_u64) {
                Cell::Real(f64::from_bits(bits))
            } else {
                let text =
                    object.get("bytes").and_then(Value::as_str).context("a value has no known kind")?;
                Cell::Bytes(STANDARD.decode(text)?)
            }
        }
        _ => bail!("a value has no known kind"),
    })
}

/// Counts and digests what was written or read so far.
#[derive(Default)]
struct Tally {
    hasher: Sha256,
    bytes: u64,
    rows: BTreeMap<String, u64>,
    table: String,
}

impl Tally {
    fn line(&mut self, text: &[u8], line: &Line) {
        self.hasher.update(text);
        self.bytes += text.len() as u64;
        match line {
            Line::Table { name, .. } => {
                name.clone_into(&mut self.table);
                self.rows.entry(name.clone()).or_default();
            }
            Line::Row(_) => *self.rows.entry(self.table.clone()).or_default() += 1,
            _ => {}
        }
    }

    fn digest(&self) -> Hash {
        self.hasher.clone().finalize().into()
    }
}

/// The name under which an installation signs its backups. Nothing else is signed under it.
fn purpose(installation: &str) -> String {
    format!("{installation}/backup")
}

/// Writes lines.
pub(crate) struct Lines<W> {
    out: W,
    tally: Tally,
}

/// What was written.
pub(crate) struct Written<W> {
    pub(crate) out: W,
    pub(crate) digest: Hash,
    pub(crate) rows: BTreeMap<String, u64>,
}

impl<W: Write> Lines<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, tally: Tally::default() }
    }

    pub(crate) fn put(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.out.write_all(&text)?;
        self.tally.line(&text, line);
        Ok(())
    }

    /// Signs for all that was written.
    pub(crate) fn end(mut self, installation: &str, key: &[u8], at: Timestamp) -> anyhow::Result<Written<W>> {
        let signer =
            Signer::from_pkcs8(&purpose(installation), key).context("use the key of the audit log")?;
        let digest = self.tally.digest();
        let rows = std::mem::take(&mut self.tally.rows);
        let note = signer.sign(self.tally.bytes, digest, at);
        let mut text = serde_json::to_vec(&Line::End { rows: rows.clone(), note })?;
        text.push(b'\n');
        self.out.write_all(&text)?;
        Ok(Written { out: self.out, digest, rows })
    }
}

/// Reads lines; the last one only if it is signed for, and everything is there.
pub(crate) struct Reading<R> {
    from: R,
    begin: Begin,
    keys: Vec<VerifyingKey>,
    tally: Tally,
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Whole {
    pub(crate) digest: Hash,
    pub(crate) rows: BTreeMap<String, u64>,
}

fn next(from: &mut impl BufRead) -> anyhow::Result<(Vec<u8>, Line)> {
    let mut text = Vec::new();
    from.by_ref().take(LONGEST).read_until(b'\n', &mut text)?;
    if text.last() != Some(&b'\n') {
        bail!("the backup ends in the middle of a line");
    }
    let line = serde_json::from_slice(&text).context("a line of the backup is none")?;
    Ok((text, line))
}

impl<R: BufRead> Reading<R> {
    /// Reads what the backup is of.
    pub(crate) fn begin(mut from: R) -> anyhow::Result<Self> {
        let (text, line) = next(&mut from)?;
        let mut tally = Tally::default();
        tally.line(&text, &line);
        let Line::Begin(begin) = line else { bail!("the backup does not say what it is of") };
        if begin.form != FORM {
            bail!(
                "the backup has form {}, and this program (version {}) knows form {FORM}; use version {} or a newer one",
                begin.form,
                env!("CARGO_PKG_VERSION"),
                begin.program
            );
        }
        Ok(Self { from, begin, keys: Vec::new(), tally })
    }

    /// What it is of.
    pub(crate) fn of(&self) -> &Begin {
        &self.begin
    }

    /// Who may sign for it: the holder of the key of this audit log.
    pub(crate) fn trust(&mut self, key: &VerifyingKey) {
        self.keys.push(key.under(&purpose(key.name())));
    }

    /// The next line but the last.
    pub(crate) fn line(&mut self) -> anyhow::Result<Result<Line, Whole>> {
        let (text, line) = next(&mut self.from)?;
        let Line::End { rows, note } = line else {
            self.tally.line(&text, &line);
            return Ok(Ok(line));
        };
        let digest = self.tally.digest();
        let signed = checkpoint::open(&note, &self.keys)
            .context("the backup is not signed with the key of the audit log that is trusted")?;
        if signed.root != digest || signed.size != self.tally.bytes || rows != self.tally.rows {
            bail!("the backup does not hold what was signed for");
        }
        if self.from.read(&mut [0])? != 0 {
            bail!("the backup goes on behind its end");
        }
        Ok(Err(Whole { digest, rows }))
    }
}
