//! Copies of the whole file, see [`crate::copy`].

use std::path::Path;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Transaction, TransactionBehavior, params_from_iter};

use super::error::error;
use super::open;
use crate::Error;
use crate::copy::{Cell, LEFT_OUT, Order, Part, ROWS, Receiver, Sender, broken, not_taken, quoted};
use crate::migrations;

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn cell(value: ValueRef<'_>) -> Result<Cell, Error> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Number(number),
        ValueRef::Real(number) => Cell::Real(number),
        ValueRef::Text(text) => {
            let text =
                std::str::from_utf8(text).map_err(|_| Error::Corrupt("a text is not UTF-8".to_owned()))?;
            Cell::Text(text.to_owned())
        }
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
    })
}

/// Sends everything that is committed now. Blocks; writers go on meanwhile.
pub(super) fn copy_out(path: &Path, parts: &Sender) -> Result<(), Error> {
    let mut connection = open::readable(path)?;
    // The first read fixes what all of them see.
    let snapshot = connection.transaction_with_behavior(TransactionBehavior::Deferred).map_err(error)?;
    let names: Vec<String> = {
        let mut statement = snapshot
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY rowid")
            .map_err(error)?;
        let names = statement.query_map([], |row| row.get(0)).map_err(error)?;
        names.collect::<Result<_, _>>().map_err(error)?
    };
    for name in names.into_iter().filter(|name| !LEFT_OUT.contains(&name.as_str())) {
        let mut statement = snapshot.prepare(&format!("SELECT * FROM {}", quoted(&name))).map_err(error)?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let width = columns.len();
        parts.blocking_send(Part::Table { name, columns }).map_err(not_taken)?;
        let mut found = statement.query([]).map_err(error)?;
        let mut rows = Vec::with_capacity(ROWS);
        while let Some(row) = found.next().map_err(error)? {
            let cells = (0..width).map(|column| row.get_ref(column).map_err(error).and_then(cell));
            rows.push(cells.collect::<Result<_, _>>()?);
            if rows.len() == ROWS {
                let full = std::mem::replace(&mut rows, Vec::with_capacity(ROWS));
                parts.blocking_send(Part::Rows(full)).map_err(not_taken)?;
            }
        }
        if !rows.is_empty() {
            parts.blocking_send(Part::Rows(rows)).map_err(not_taken)?;
        }
    }
    parts.blocking_send(Part::End).map_err(not_taken)
}

/// Makes the file and puts a copy into it that has been through `steps` migrations. Blocks.
pub(super) fn fill(path: &Path, steps: usize, parts: Receiver) -> Result<(), Error> {
    let mut connection = open::empty(path)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(error)?;
    open::begin(&transaction)?;
    open::apply(&transaction, migrations::pending(migrations::SQLITE, &[])?.into_iter().take(steps))?;
    put(&transaction, parts)?;
    let rest = migrations::pending(migrations::SQLITE, &[])?.into_iter().skip(steps);
    open::apply(&transaction, rest)?;
    transaction.commit().map_err(error)
}

fn put(transaction: &Transaction<'_>, mut parts: Receiver) -> Result<(), Error> {
    let mut order = Order::default();
    let mut insert = None;
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Table { name, columns } => {
                if !is_table(transaction, &name)? {
                    return Err(broken(&format!("has a table {name:?} that is not known here")));
                }
                let listed = order.table(&columns)?;
                let marks = vec!["?"; columns.len()].join(", ");
                // What a migration has put there is in the copy, too.
                transaction.execute(&format!("DELETE FROM {}", quoted(&name)), []).map_err(error)?;
                insert = Some(format!("INSERT INTO {} ({listed}) VALUES ({marks})", quoted(&name)));
            }
            Part::Rows(rows) => {
                order.fits(&rows)?;
                let insert = insert.as_deref().ok_or_else(|| broken("has rows before a table"))?;
                let mut statement = transaction.prepare_cached(insert).map_err(error)?;
                for row in &rows {
                    statement.execute(params_from_iter(row)).map_err(error)?;
                }
            }
            Part::End => return Ok(()),
        }
    }
    Err(broken("ends too early"))
}

fn is_table(connection: &Connection, name: &str) -> Result<bool, Error> {
    let known = !name.starts_with("sqlite_") && !LEFT_OUT.contains(&name);
    let query = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    let count: i64 = connection.query_row(query, [name], |row| row.get(0)).map_err(error)?;
    Ok(known && count == 1)
}
