//! The shared statements on PostgreSQL.

use std::error::Error as StdError;
use std::pin::pin;

use async_trait::async_trait;
use bytes::BytesMut;
use deadpool_postgres::GenericClient;
use futures::future::try_join_all;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::error::{broken, error};
use super::tx::PgTx;
use crate::sql::{Each, Kind, Row, Sql, Table, Value};
use crate::{Error, codec, migrations};

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Number(number) => number.to_sql_checked(kind, out),
            Self::Text(text) => text.to_sql_checked(kind, out),
            Self::Bytes(bytes) => bytes.to_sql_checked(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// The statement with its parameters as PostgreSQL writes them.
fn translated(statement: &str) -> String {
    statement.replace('?', "$")
}

fn bound(values: &[Value]) -> Result<Vec<&(dyn ToSql + Sync)>, Error> {
    for value in values {
        if let Value::Text(text) = value {
            codec::refuse_nul(&[text])?;
        }
    }
    Ok(values.iter().map(|value| value as &(dyn ToSql + Sync)).collect())
}

async fn rows(client: &impl GenericClient, statement: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
    let values = bound(values)?;
    let statement = client.prepare_cached(&translated(statement)).await.map_err(error)?;
    let found = client.query(&statement, &values).await.map_err(error)?;
    found.iter().map(row).collect()
}

fn row(row: &tokio_postgres::Row) -> Result<Row, Error> {
    let read = |column: usize| {
        let kind = row.columns()[column].type_();
        Ok(match *kind {
            Type::INT8 => row.try_get::<_, Option<i64>>(column).map_err(error)?.into(),
            Type::INT4 => row.try_get::<_, Option<i32>>(column).map_err(error)?.map(i64::from).into(),
            Type::TEXT => row.try_get::<_, Option<String>>(column).map_err(error)?.into(),
            Type::BYTEA => {
                row.try_get::<_, Option<Vec<u8>>>(column).map_err(error)?.map_or(Value::Null, Value::Bytes)
            }
            _ => return Err(broken("a column has a type that is not read here")),
        })
    };
    (0..row.columns().len()).map(read).collect::<Result<_, _>>().map(Row)
}

/// A column of many rows.
enum Column<'v> {
    Numbers(Vec<Option<i64>>),
    Texts(Vec<Option<&'v str>>),
    Bytes(Vec<Option<&'v [u8]>>),
}

impl<'v> Column<'v> {
    fn of(kind: Kind, at: usize, rows: &'v [Vec<Value>]) -> Result<Self, Error> {
        let other = || broken("a value is not of the kind of its column");
        let values = rows.iter().map(|row| row.get(at).unwrap_or(&Value::Null));
        Ok(match kind {
            Kind::Number => Self::Numbers(
                values
                    .map(|value| match value {
                        Value::Null => Ok(None),
                        Value::Number(number) => Ok(Some(*number)),
                        _ => Err(other()),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Kind::Text => Self::Texts(
                values
                    .map(|value| match value {
                        Value::Null => Ok(None),
                        Value::Text(text) => codec::refuse_nul(&[text]).map(|()| Some(text.as_str())),
                        _ => Err(other()),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Kind::Bytes => Self::Bytes(
                values
                    .map(|value| match value {
                        Value::Null => Ok(None),
                        Value::Bytes(bytes) => Ok(Some(bytes.as_slice())),
                        _ => Err(other()),
                    })
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    fn bound(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Numbers(numbers) => numbers,
            Self::Texts(texts) => texts,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The statement over arrays, one for each column.
fn over_arrays(each: &Each) -> String {
    let array = |(at, (_, kind)): (usize, &(&str, Kind))| {
        let kind = match kind {
            Kind::Number => "bigint",
            Kind::Text => "text",
            Kind::Bytes => "bytea",
        };
        format!("${}::{kind}[]", at + 1)
    };
    let arrays: Vec<String> = each.given.iter().enumerate().map(array).collect();
    let names: Vec<&str> = each.given.iter().map(|(name, _)| *name).collect();
    let table = format!("unnest({}) AS given ({})", arrays.join(", "), names.join(", "));
    each.statement.replace("{given}", &table)
}

/// Adds a few rows, all sent before the first answer is awaited.
async fn put_few(client: &PgTx<'_>, table: &Table, rows: &[Vec<Value>]) -> Result<(), Error> {
    let statement = translated(&table.insert());
    let rows = rows.iter().map(|values| bound(values)).collect::<Result<Vec<_>, _>>()?;
    let client = client.transaction();
    let statement = client.prepare_cached(&statement).await.map_err(error)?;
    try_join_all(rows.iter().map(|values| client.execute(&statement, values))).await.map_err(error).map(drop)
}

/// From so many rows on it is worth two questions more to have them copied: less log, and no statement that unfolds arrays.
const COPIED: usize = 16;

/// Adds rows by `COPY`.
async fn copy(client: &PgTx<'_>, table: &Table, rows: &[Vec<Value>]) -> Result<(), Error> {
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let statement = format!("COPY {} ({}) FROM STDIN BINARY", table.name, names.join(", "));
    let kinds: Vec<Type> = table
        .columns
        .iter()
        .map(|(_, kind)| match kind {
            Kind::Number => Type::INT8,
            Kind::Text => Type::TEXT,
            Kind::Bytes => Type::BYTEA,
        })
        .collect();
    let client = client.transaction();
    let statement = client.prepare_cached(&statement).await.map_err(error)?;
    let mut writer = pin!(BinaryCopyInWriter::new(client.copy_in(&statement).await.map_err(error)?, &kinds));
    for values in rows {
        writer.as_mut().write(&bound(values)?).await.map_err(error)?;
    }
    let copied = writer.finish().await.map_err(error)?;
    if usize::try_from(copied) == Ok(rows.len()) { Ok(()) } else { Err(broken("a row was not added")) }
}

/// An array is put together once; a plan of `IN` that was made for a short queue may ask again for each row of a long one.
const AMONG: (&str, &str) = ("= ANY (ARRAY(", "))");

const CLOCK: &str = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)";

/// A reader's connection.
pub(super) struct Reading<'c, C>(pub(super) &'c C);

#[async_trait]
impl<C: GenericClient + Send + Sync> Sql for Reading<'_, C> {
    fn lock(&self) -> &'static str {
        ""
    }

    fn share(&self) -> &'static str {
        ""
    }

    fn clock(&self) -> Option<&'static str> {
        Some(CLOCK)
    }

    fn known_steps(&self) -> usize {
        migrations::POSTGRES.len()
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
        AMONG
    }

    async fn change(&mut self, _: &'static str, _: Vec<Value>) -> Result<u64, Error> {
        Err(broken("a read wanted to write"))
    }

    async fn change_each(&mut self, _: &'static str, _: Vec<Vec<Value>>) -> Result<Vec<u64>, Error> {
        Err(broken("a read wanted to write"))
    }

    async fn each(&mut self, _: &'static Each, _: Vec<Vec<Value>>) -> Result<Vec<Row>, Error> {
        Err(broken("a read wanted to write"))
    }

    async fn put(&mut self, _: &'static Table, _: Vec<Vec<Value>>) -> Result<(), Error> {
        Err(broken("a read wanted to write"))
    }

    async fn rows(&mut self, statement: &str, values: Vec<Value>) -> Result<Vec<Row>, Error> {
        rows(self.0, statement, &values).await
    }
}

#[async_trait]
impl Sql for PgTx<'_> {
    fn lock(&self) -> &'static str {
        " FOR UPDATE"
    }

    fn share(&self) -> &'static str {
        " FOR SHARE"
    }

    fn clock(&self) -> Option<&'static str> {
        Some(CLOCK)
    }

    fn known_steps(&self) -> usize {
        migrations::POSTGRES.len()
    }

    fn keep(&self) -> &'static str {
        " FOR KEY SHARE"
    }

    fn lock_free(&self, table: &'static str) -> &'static str {
        match table {
            "task_due" => " FOR UPDATE OF task_due SKIP LOCKED",
            _ => " FOR UPDATE SKIP LOCKED",
        }
    }

    fn in_order(&self) -> &'static str {
        "set_config('enable_sort', 'off', true) || set_config('enable_seqscan', 'off', true) \
         || set_config('plan_cache_mode', 'force_custom_plan', true)"
    }

    fn among(&self) -> (&'static str, &'static str) {
        AMONG
    }

    async fn change(&mut self, statement: &'static str, values: Vec<Value>) -> Result<u64, Error> {
        let changed = async {
            let values = bound(&values)?;
            self.change_with(&translated(statement), &values).await
        }
        .await;
        self.noted(changed)
    }

    async fn change_each(
        &mut self,
        statement: &'static str,
        rows: Vec<Vec<Value>>,
    ) -> Result<Vec<u64>, Error> {
        let changed = async {
            let rows = rows.iter().map(|values| bound(values)).collect::<Result<Vec<_>, _>>()?;
            let client = self.transaction();
            let statement = client.prepare_cached(&translated(statement)).await.map_err(error)?;
            // All are sent before the first answer is awaited.
            try_join_all(rows.iter().map(|values| client.execute(&statement, values))).await.map_err(error)
        }
        .await;
        self.noted(changed)
    }

    async fn each(&mut self, each: &'static Each, rows: Vec<Vec<Value>>) -> Result<Vec<Row>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let found = async {
            let columns = each.given.iter().enumerate();
            let columns: Vec<Column<'_>> =
                columns.map(|(at, (_, kind))| Column::of(*kind, at, &rows)).collect::<Result<_, _>>()?;
            let bound: Vec<&(dyn ToSql + Sync)> = columns.iter().map(Column::bound).collect();
            let client = self.transaction();
            let statement = client.prepare_cached(&over_arrays(each)).await.map_err(error)?;
            let found = client.query(&statement, &bound).await.map_err(error)?;
            found.iter().map(row).collect()
        }
        .await;
        self.noted(found)
    }

    async fn put(&mut self, table: &'static Table, given: Vec<Vec<Value>>) -> Result<(), Error> {
        if given.is_empty() {
            return Ok(());
        }
        let put = if given.len() < COPIED {
            put_few(self, table, &given).await
        } else {
            copy(self, table, &given).await
        };
        self.noted(put)
    }

    async fn rows(&mut self, statement: &str, values: Vec<Value>) -> Result<Vec<Row>, Error> {
        let found = rows(self.transaction(), statement, &values).await;
        self.noted(found)
    }
}
