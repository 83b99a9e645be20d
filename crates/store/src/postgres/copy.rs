//! Copies of the whole database, see [`crate::copy`].

use std::error::Error as StdError;

use bytes::BytesMut;
use deadpool_postgres::{GenericClient as _, Object, Transaction};
use futures::future::try_join_all;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{IsolationLevel, Row};

use super::error::{broken as failed, error};
use super::migrate;
use crate::Error;
use crate::copy::{Cell, LEFT_OUT, Order, Part, ROWS, Receiver, Sender, broken, not_taken, quoted};
use crate::migrations;

impl ToSql for Cell {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match (self, kind) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Number(number @ (0 | 1)), &Type::BOOL) => (*number == 1).to_sql(kind, out),
            (Self::Number(number), &Type::INT4) => i32::try_from(*number)?.to_sql(kind, out),
            #[expect(
                clippy::cast_precision_loss,
                reason = "a whole number where another was meant: a duration"
            )]
            (Self::Number(number), &Type::FLOAT8) => (*number as f64).to_sql(kind, out),
            (Self::Number(number), _) => number.to_sql_checked(kind, out),
            (Self::Real(number), _) => number.to_sql_checked(kind, out),
            (Self::Text(text), _) => text.to_sql_checked(kind, out),
            (Self::Bytes(bytes), _) => bytes.to_sql_checked(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn cells(row: &Row) -> Result<Vec<Cell>, Error> {
    let read = |column: usize| {
        Ok(match *row.columns()[column].type_() {
            Type::BOOL => {
                row.try_get::<_, Option<bool>>(column).map_err(error)?.map(i64::from).map(Cell::Number)
            }
            Type::INT8 => row.try_get::<_, Option<i64>>(column).map_err(error)?.map(Cell::Number),
            Type::INT4 => {
                row.try_get::<_, Option<i32>>(column).map_err(error)?.map(i64::from).map(Cell::Number)
            }
            Type::FLOAT8 => row.try_get::<_, Option<f64>>(column).map_err(error)?.map(Cell::Real),
            Type::TEXT => row.try_get::<_, Option<String>>(column).map_err(error)?.map(Cell::Text),
            Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(column).map_err(error)?.map(Cell::Bytes),
            _ => return Err(failed("a column has a type that is not copied")),
        }
        .unwrap_or(Cell::Null))
    };
    (0..row.columns().len()).map(read).collect()
}

/// A copy may take longer than any statement of daily work.
const PATIENT: &str = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = 0";

/// Sends everything that is committed now; others go on meanwhile.
pub(super) async fn copy_out(mut client: Object, parts: &Sender) -> Result<(), Error> {
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(error)?;
    snapshot.batch_execute(PATIENT).await.map_err(error)?;
    for name in tables(&snapshot).await? {
        if LEFT_OUT.contains(&name.as_str()) {
            continue;
        }
        let select = format!("SELECT * FROM {}", quoted(&name));
        let statement = snapshot.prepare(&select).await.map_err(error)?;
        let columns = statement.columns().iter().map(|column| column.name().to_owned()).collect();
        parts.send(Part::Table { name, columns }).await.map_err(not_taken)?;
        let portal = snapshot.bind(&statement, &[]).await.map_err(error)?;
        loop {
            let limit = i32::try_from(ROWS).unwrap_or(i32::MAX);
            let found = snapshot.query_portal(&portal, limit).await.map_err(error)?;
            if found.is_empty() {
                break;
            }
            let rows = found.iter().map(cells).collect::<Result<_, _>>()?;
            parts.send(Part::Rows(rows)).await.map_err(not_taken)?;
        }
    }
    parts.send(Part::End).await.map_err(not_taken)
}

/// In the order in which they were made.
async fn tables(client: &Transaction<'_>) -> Result<Vec<String>, Error> {
    let query = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace ORDER BY oid";
    let rows = client.query(query, &[]).await.map_err(error)?;
    rows.iter().map(|row| row.try_get(0).map_err(error)).collect()
}

/// Puts a copy that has been through `steps` migrations into an empty database.
pub(super) async fn fill(mut client: Object, steps: usize, parts: Receiver) -> Result<(), Error> {
    let transaction = client.transaction().await.map_err(error)?;
    transaction.batch_execute(PATIENT).await.map_err(error)?;
    migrate::lock(&transaction).await?;
    if let Some(first) = tables(&transaction).await?.first() {
        return Err(Error::Unwritable(format!("the database is not empty: it has a table {first}")));
    }
    migrate::begin(&transaction).await?;
    migrate::apply(&transaction, migrations::pending(migrations::POSTGRES, &[])?.into_iter().take(steps))
        .await?;
    put(&transaction, parts).await?;
    let rest = migrations::pending(migrations::POSTGRES, &[])?.into_iter().skip(steps);
    migrate::apply(&transaction, rest).await?;
    transaction.commit().await.map_err(error)
}

async fn put(transaction: &Transaction<'_>, mut parts: Receiver) -> Result<(), Error> {
    let known = tables(transaction).await?;
    let mut order = Order::default();
    let mut insert = None;
    let mut filled = Vec::new();
    let ended = loop {
        let Some(part) = parts.recv().await else { break false };
        match part {
            Part::Table { name, columns } => {
                if !known.contains(&name) || LEFT_OUT.contains(&name.as_str()) {
                    return Err(broken(&format!("has a table {name:?} that is not known here")));
                }
                let listed = order.table(&columns)?;
                let marks: Vec<String> = (1..=columns.len()).map(|number| format!("${number}")).collect();
                let table = quoted(&name);
                // Marks come with the rows; counting them again for each row would take a time that grows with its square.
                transaction
                    .batch_execute(&format!("ALTER TABLE {table} DISABLE TRIGGER USER; DELETE FROM {table}"))
                    .await
                    .map_err(error)?;
                let marks = marks.join(", ");
                let text = format!("INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE VALUES ({marks})");
                insert = Some(transaction.prepare(&text).await.map_err(error)?);
                filled.push(name);
            }
            Part::Rows(rows) => {
                order.fits(&rows)?;
                let insert = insert.as_ref().ok_or_else(|| broken("has rows before a table"))?;
                let rows: Vec<Vec<&(dyn ToSql + Sync)>> = rows
                    .iter()
                    .map(|row| row.iter().map(|cell| cell as &(dyn ToSql + Sync)).collect())
                    .collect();
                // All are sent before the first answer is awaited.
                try_join_all(rows.iter().map(|row| transaction.execute(insert, row))).await.map_err(error)?;
            }
            Part::End => break true,
        }
    };
    if !ended {
        return Err(broken("ends too early"));
    }
    for name in filled {
        let enable = format!("ALTER TABLE {} ENABLE TRIGGER USER", quoted(&name));
        transaction.batch_execute(&enable).await.map_err(error)?;
    }
    transaction.batch_execute(AFTERWARDS).await.map_err(error)
}

/// What PostgreSQL keeps beside the rows: the end of the audit chain, and the next number of the queue.
const AFTERWARDS: &str = "UPDATE audit_head SET (seq, hash) = (SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1) WHERE EXISTS (SELECT 1 FROM audit); \
     DO $$ DECLARE found record; BEGIN \
       FOR found IN SELECT attrelid::regclass AS place, attname AS named FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid \
         WHERE attidentity <> '' AND relkind = 'r' AND relnamespace = current_schema()::regnamespace LOOP \
         EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, %L), max(%I)) FROM %s HAVING max(%I) IS NOT NULL', \
           found.place, found.named, found.named, found.place, found.named); \
       END LOOP; END $$";
