//! The shared statements on SQLite. Nothing here waits: every future is done when it is first asked.

use async_trait::async_trait;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, params_from_iter};

use super::error::error;
use super::tx::SqliteTx;
use crate::sql::{Each, Row, Sql, Table, Value};
use crate::{Error, codec, migrations};

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn refuse_nul(values: &[Value]) -> Result<(), Error> {
    values.iter().try_for_each(|value| match value {
        Value::Text(text) => codec::refuse_nul(&[text]),
        _ => Ok(()),
    })
}

fn value(value: ValueRef<'_>) -> Result<Value, Error> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Number(number),
        ValueRef::Text(text) => Value::Text(
            std::str::from_utf8(text)
                .map_err(|_| Error::Corrupt("a text is not UTF-8".to_owned()))?
                .to_owned(),
        ),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(_) => return Err(Error::Corrupt("a number is not whole".to_owned())),
    })
}

fn change(connection: &Connection, statement: &str, values: &[Value]) -> Result<u64, Error> {
    refuse_nul(values)?;
    let changed = connection
        .prepare_cached(statement)
        .and_then(|mut statement| statement.execute(params_from_iter(values)))
        .map_err(error)?;
    Ok(changed as u64)
}

fn rows(connection: &Connection, statement: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
    refuse_nul(values)?;
    let mut statement = connection.prepare_cached(statement).map_err(error)?;
    let columns = statement.column_count();
    let mut found = statement.query(params_from_iter(values)).map_err(error)?;
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(error)? {
        let read = |column| row.get_ref(column).map_err(error).and_then(value);
        rows.push(Row((0..columns).map(read).collect::<Result<_, _>>()?));
    }
    Ok(rows)
}

/// The statement over one row.
fn over_one_row(each: &Each) -> String {
    let columns = each.given.iter().enumerate();
    let columns: Vec<String> = columns.map(|(at, (name, _))| format!("?{} AS {name}", at + 1)).collect();
    each.statement.replace("{given}", &format!("(SELECT {}) AS given", columns.join(", ")))
}

/// Runs the statement for each row: what it answered with, and how many rows it touched.
fn each(connection: &Connection, each: &Each, given: &[Vec<Value>]) -> Result<(Vec<Row>, u64), Error> {
    let statement = over_one_row(each);
    let (mut found, mut changed) = (Vec::new(), 0);
    for values in given {
        if connection.prepare_cached(&statement).map_err(error)?.column_count() == 0 {
            changed += change(connection, &statement, values)?;
        } else {
            let answered = rows(connection, &statement, values)?;
            changed += answered.len() as u64;
            found.extend(answered);
        }
    }
    Ok((found, changed))
}

/// A reader's connection.
pub(super) struct Reading<'c>(pub(super) &'c mut Connection);

#[async_trait]
impl Sql for Reading<'_> {
    fn lock(&self) -> &'static str {
        ""
    }

    fn share(&self) -> &'static str {
        ""
    }

    fn clock(&self) -> Option<&'static str> {
        None
    }

    fn known_steps(&self) -> usize {
        migrations::SQLITE.len()
    }

    fn keep(&self) -> &'static str {
        ""
    }

    fn lock_free(&self, _: &'static str) -> &'static str {
        ""
    }

    fn in_order(&self) -> &'static str {
        "1"
    }

    fn among(&self) -> (&'static str, &'static str) {
        ("IN (", ")")
    }

    async fn change(&mut self, _: &'static str, _: Vec<Value>) -> Result<u64, Error> {
        Err(super::error::broken("a read wanted to write"))
    }

    async fn change_each(&mut self, statement: &'static str, _: Vec<Vec<Value>>) -> Result<Vec<u64>, Error> {
        self.change(statement, Vec::new()).await.map(|changed| vec![changed])
    }

    async fn each(&mut self, _: &'static Each, _: Vec<Vec<Value>>) -> Result<Vec<Row>, Error> {
        Err(super::error::broken("a read wanted to write"))
    }

    async fn put(&mut self, _: &'static Table, _: Vec<Vec<Value>>) -> Result<(), Error> {
        Err(super::error::broken("a read wanted to write"))
    }

    async fn rows(&mut self, statement: &str, values: Vec<Value>) -> Result<Vec<Row>, Error> {
        rows(self.0, statement, &values)
    }
}

#[async_trait]
impl Sql for SqliteTx<'_> {
    fn lock(&self) -> &'static str {
        ""
    }

    fn share(&self) -> &'static str {
        ""
    }

    fn clock(&self) -> Option<&'static str> {
        None
    }

    fn known_steps(&self) -> usize {
        migrations::SQLITE.len()
    }

    fn keep(&self) -> &'static str {
        ""
    }

    fn lock_free(&self, _: &'static str) -> &'static str {
        ""
    }

    fn in_order(&self) -> &'static str {
        "1"
    }

    fn among(&self) -> (&'static str, &'static str) {
        ("IN (", ")")
    }

    async fn change(&mut self, statement: &'static str, values: Vec<Value>) -> Result<u64, Error> {
        self.touching(|connection| change(connection, statement, &values), |changed| *changed > 0)
    }

    async fn change_each(
        &mut self,
        statement: &'static str,
        rows: Vec<Vec<Value>>,
    ) -> Result<Vec<u64>, Error> {
        self.touching(
            |connection| rows.iter().map(|values| change(connection, statement, values)).collect(),
            |changed: &Vec<u64>| changed.iter().any(|changed| *changed > 0),
        )
    }

    async fn each(&mut self, wanted: &'static Each, given: Vec<Vec<Value>>) -> Result<Vec<Row>, Error> {
        let done = self.touching(|connection| each(connection, wanted, &given), |(_, changed)| *changed > 0);
        done.map(|(rows, _)| rows)
    }

    async fn put(&mut self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), Error> {
        let statement = table.insert();
        self.touching(
            |connection| rows.iter().try_for_each(|values| change(connection, &statement, values).map(drop)),
            |()| !rows.is_empty(),
        )
    }

    async fn rows(&mut self, statement: &str, values: Vec<Value>) -> Result<Vec<Row>, Error> {
        // A statement that answers with the rows it changed has changed some if there are any.
        let writes = !statement.starts_with("SELECT");
        self.touching(|connection| rows(connection, statement, &values), |rows| writes && !rows.is_empty())
    }
}
