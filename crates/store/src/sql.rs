//! Statements that mean the same on every backend: written once, in the words that SQLite and PostgreSQL share.
//!
//! Parameters are `?1`, `?2`, …; the few words that differ are asked of the backend by name ([`Sql::lock`] and the like). Used by
//! [`crate::orchestrator`]; the older tables have statements of their own in `sqlite/` and `postgres/`.

use async_trait::async_trait;
use interlock_model::Timestamp;

use crate::{Error, codec};

/// A value to bind, or one that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

macro_rules! from {
    ($($type:ty: $value:ident => $form:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self {
                $form
            }
        }
    )*};
}

from! {
    i64: number => Self::Number(number);
    u8: number => Self::Number(i64::from(number));
    u32: number => Self::Number(i64::from(number));
    Timestamp: time => Self::Number(time.micros());
    &str: text => Self::Text(text.to_owned());
    String: text => Self::Text(text);
    &String: text => Self::Text(text.clone());
    &[u8; 16]: id => Self::Bytes(id.to_vec());
    &[u8; 32]: digest => Self::Bytes(digest.to_vec());
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Values in the order of their numbers.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::sql::Value::from($value)),*] };
}
pub(crate) use values;

/// A row that was read.
#[derive(Debug, Clone)]
pub(crate) struct Row(pub(crate) Vec<Value>);

impl Row {
    fn at(&self, column: usize) -> &Value {
        self.0.get(column).unwrap_or(&Value::Null)
    }

    fn other(column: usize) -> Error {
        Error::Corrupt(format!("column {column} holds a value of another kind"))
    }

    pub(crate) fn number(&self, column: usize) -> Result<i64, Error> {
        if let Value::Number(number) = self.at(column) { Ok(*number) } else { Err(Self::other(column)) }
    }

    pub(crate) fn optional_number(&self, column: usize) -> Result<Option<i64>, Error> {
        if *self.at(column) == Value::Null { Ok(None) } else { self.number(column).map(Some) }
    }

    pub(crate) fn count(&self, column: usize) -> Result<u64, Error> {
        codec::count(self.number(column)?)
    }

    pub(crate) fn small(&self, column: usize) -> Result<u32, Error> {
        codec::small_count(self.number(column)?)
    }

    pub(crate) fn time(&self, column: usize) -> Result<Timestamp, Error> {
        codec::time(self.number(column)?)
    }

    pub(crate) fn optional_time(&self, column: usize) -> Result<Option<Timestamp>, Error> {
        self.optional_number(column)?.map(codec::time).transpose()
    }

    pub(crate) fn text(&self, column: usize) -> Result<&str, Error> {
        if let Value::Text(text) = self.at(column) { Ok(text) } else { Err(Self::other(column)) }
    }

    pub(crate) fn optional_text(&self, column: usize) -> Result<Option<String>, Error> {
        if *self.at(column) == Value::Null {
            Ok(None)
        } else {
            self.text(column).map(|text| Some(text.to_owned()))
        }
    }

    pub(crate) fn bytes<const N: usize>(&self, column: usize) -> Result<[u8; N], Error> {
        match self.at(column) {
            Value::Bytes(bytes) => bytes.as_slice().try_into().map_err(|_| Self::other(column)),
            _ => Err(Self::other(column)),
        }
    }

    pub(crate) fn optional_bytes<const N: usize>(&self, column: usize) -> Result<Option<[u8; N]>, Error> {
        if *self.at(column) == Value::Null { Ok(None) } else { self.bytes(column).map(Some) }
    }
}

/// What a column of [`Each`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Text,
    Bytes,
}

/// A statement about many rows at once, which it reads from `{given}`: a table of these columns. A server is asked once for all
/// of them; SQLite, where asking costs nothing, once for each.
#[derive(Debug)]
pub(crate) struct Each {
    /// The statement, with `{given}` in place of the table.
    pub(crate) statement: &'static str,
    /// The columns of the table.
    pub(crate) given: &'static [(&'static str, Kind)],
}

/// Where rows are added that are new for certain.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Those that are given; the others keep their defaults.
    pub(crate) columns: &'static [(&'static str, Kind)],
}

impl Table {
    /// The statement that adds one row.
    pub(crate) fn insert(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        let places: Vec<String> = (1..=names.len()).map(|place| format!("?{place}")).collect();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, names.join(", "), places.join(", "))
    }
}

/// A connection, inside a transaction or not.
#[async_trait]
pub(crate) trait Sql: Send {
    /// What locks the rows of a `SELECT` until the transaction ends, where several can write at once.
    fn lock(&self) -> &'static str;
    /// As [`Sql::lock`], and others may read them under the same lock.
    fn share(&self) -> &'static str;
    /// What asks for the time in microseconds since 1970, where others share it.
    fn clock(&self) -> Option<&'static str>;
    /// Migrations that this program knows.
    fn known_steps(&self) -> usize;
    /// As [`Sql::share`], and others may change what is no key of them.
    fn keep(&self) -> &'static str;
    /// As [`Sql::lock`] for the first table of a join, and rows that somebody has locked are left out.
    fn lock_free(&self, table: &'static str) -> &'static str;
    /// A column of a `SELECT` that has rows taken in the order of an index from then on until the transaction ends. A server that
    /// has not looked lately how many rows there are would read and sort all of them for the first few.
    fn in_order(&self) -> &'static str;
    /// What stands before and behind a question whose answers a column must be among, asked once and not again for each row.
    fn among(&self) -> (&'static str, &'static str);
    /// Runs a statement and returns how many rows it touched.
    async fn change(&mut self, statement: &'static str, values: Vec<Value>) -> Result<u64, Error>;
    /// Runs a statement for each of `rows`, on a server without waiting in between.
    async fn change_each(
        &mut self,
        statement: &'static str,
        rows: Vec<Vec<Value>>,
    ) -> Result<Vec<u64>, Error>;
    /// Runs a statement for all of `rows`, each with the columns that it names, and returns what it answers with. None is run for
    /// no rows.
    async fn each(&mut self, each: &'static Each, rows: Vec<Vec<Value>>) -> Result<Vec<Row>, Error>;
    /// Adds rows, each with the columns that the table names, in the way that is cheapest for so many.
    async fn put(&mut self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), Error>;
    /// Runs a statement that answers with rows.
    async fn rows(&mut self, statement: &str, values: Vec<Value>) -> Result<Vec<Row>, Error>;
}

impl dyn Sql + '_ {
    /// Runs a statement that answers with one row or none.
    pub(crate) async fn row(&mut self, statement: &str, values: Vec<Value>) -> Result<Option<Row>, Error> {
        Ok(self.rows(statement, values).await?.into_iter().next())
    }

    /// Runs a statement that touches one row or none.
    pub(crate) async fn change_one(
        &mut self,
        statement: &'static str,
        values: Vec<Value>,
    ) -> Result<bool, Error> {
        match self.change(statement, values).await? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Database("a statement changed more than one row".into())),
        }
    }
}
