//! The shared statements on PostgreSQL.

use std::error::Error as StdError;

use async_trait::async_trait;
use bytes::BytesMut;
use deadpool_postgres::GenericClient;
use futures::future::try_join_all;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::error::{broken, error};
use super::tx::PgTx;
use crate::sql::{Row, Sql, Value};
use crate::{Error, codec};

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

    fn lock_free(&self, _: &'static str) -> &'static str {
        ""
    }

    async fn change(&mut self, _: &'static str, _: Vec<Value>) -> Result<u64, Error> {
        Err(broken("a read wanted to write"))
    }

    async fn change_each(&mut self, _: &'static str, _: Vec<Vec<Value>>) -> Result<Vec<u64>, Error> {
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

    fn lock_free(&self, table: &'static str) -> &'static str {
        match table {
            "task_due" => " FOR UPDATE OF task_due SKIP LOCKED",
            _ => " FOR UPDATE SKIP LOCKED",
        }
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

    async fn rows(&mut self, statement: &str, values: Vec<Value>) -> Result<Vec<Row>, Error> {
        let found = rows(self.transaction(), statement, &values).await;
        self.noted(found)
    }
}
