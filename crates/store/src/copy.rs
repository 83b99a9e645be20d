//! A copy of everything, table by table: taken while others write, put into a database that is empty, of either backend.
//!
//! The copy is the state between two commits. Tables are found in the database's own catalogue, so that none is forgotten, and come
//! in the order in which they were made: what is pointed at is there first. Values are those of SQLite; a yes or no is 1 or 0.
//!
//! Filling makes the tables as they were when the copy was taken, puts the rows in, and then runs the migrations that the copy has
//! not been through: all of it in one transaction.

use tokio::sync::mpsc;

use crate::Error;
use crate::migrations::Step;

/// Rows that travel together.
pub const ROWS: usize = 256;
/// Parts that wait for whoever takes them.
pub const AHEAD: usize = 8;

/// Not copied: the record of migrations travels as names; what is counted or found anew; processes that are gone.
pub(crate) const LEFT_OUT: &[&str] = &["migrations", "changes", "audit_head", "workers"];

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A whole number, a time, or a yes or no.
    Number(i64),
    /// Another number.
    Real(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A piece of a copy.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// The rows that follow are of this table.
    Table {
        /// Its name.
        name: String,
        /// Its columns, in the order of the cells.
        columns: Vec<String>,
    },
    /// Some rows.
    Rows(Vec<Vec<Cell>>),
    /// That was all. Without it nothing is kept.
    End,
}

/// Parts on their way.
pub type Sender = mpsc::Sender<Part>;
/// Parts on their way.
pub type Receiver = mpsc::Receiver<Part>;

/// A way for parts, with a bound.
pub fn channel() -> (Sender, Receiver) {
    mpsc::channel(AHEAD)
}

/// Names of the migrations that this program knows: both backends have been through the same.
pub fn known() -> Vec<&'static str> {
    #[cfg(feature = "sqlite")]
    let steps: &[Step] = crate::migrations::SQLITE;
    #[cfg(not(feature = "sqlite"))]
    let steps: &[Step] = crate::migrations::POSTGRES;
    steps.iter().map(|step| step.name).collect()
}

/// How many of our migrations a copy has been through.
///
/// # Errors
/// [`Error::Newer`] when it has been through more than we know; [`Error::Corrupt`] when through others.
pub fn through(names: &[String]) -> Result<usize, Error> {
    let known = known();
    if names.len() > known.len() {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        return Err(Error::Newer { found: count(names.len()), known: count(known.len()) });
    }
    match names.iter().zip(&known).find(|(name, ours)| name.as_str() != **ours) {
        Some((name, ours)) => Err(Error::Corrupt(format!(
            "the copy has been through the migration {name} where this program has {ours}; use the program that made it"
        ))),
        None => Ok(names.len()),
    }
}

/// A name as both backends quote it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Nobody takes the parts any more.
pub(crate) fn not_taken<T>(_: T) -> Error {
    Error::Closed
}

/// The copy ended too early, or its parts make no sense.
pub(crate) fn broken(why: &str) -> Error {
    Error::Corrupt(format!("the copy {why}; nothing of it was kept"))
}

/// Puts parts in their order into a database: what is the same on both backends.
#[derive(Default)]
pub(crate) struct Order {
    columns: usize,
}

impl Order {
    /// Takes a table; gives the columns of its `INSERT`.
    pub(crate) fn table(&mut self, columns: &[String]) -> Result<String, Error> {
        if columns.is_empty() {
            return Err(broken("has a table without columns"));
        }
        self.columns = columns.len();
        Ok(columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", "))
    }

    /// Whether rows fit the table.
    pub(crate) fn fits(&self, rows: &[Vec<Cell>]) -> Result<(), Error> {
        if self.columns > 0 && rows.iter().all(|row| row.len() == self.columns) {
            Ok(())
        } else {
            Err(broken("has a row that does not fit its table"))
        }
    }
}
