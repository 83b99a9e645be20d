//! Bringing the schema up to date: one transaction under one lock, so that many servers may start at once.

use deadpool_postgres::{GenericClient as _, Object, Transaction};

use super::error::{broken, error};
use crate::Error;
use crate::migrations::{self, Applied, Step, fingerprint};

/// "intrlock" as a number; one lock for all servers of one database.
const LOCK: i64 = 0x696e_7472_6c6f_636b;

pub(super) async fn migrate(client: &mut Object) -> Result<(), Error> {
    let transaction = client.transaction().await.map_err(error)?;
    // A step on a large table may take longer than a statement of daily work, and others wait for it.
    transaction
        .batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        .await
        .map_err(error)?;
    lock(&transaction).await?;
    let applied = applied(&transaction).await?;
    apply(&transaction, migrations::pending(migrations::POSTGRES, &applied)?.into_iter()).await?;
    transaction.commit().await.map_err(error)
}

/// Keeps other servers from bringing the schema up to date, until the transaction ends.
pub(super) async fn lock(transaction: &Transaction<'_>) -> Result<(), Error> {
    let encoding: String = transaction
        .query_one("SHOW server_encoding", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(error)?;
    if encoding != "UTF8" {
        return Err(broken(&format!(
            "the database has the encoding {encoding}; make one with ENCODING 'UTF8'"
        )));
    }
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(error)?;
    Ok(())
}

/// Begins the record of migrations.
pub(super) async fn begin(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction
        .batch_execute("CREATE TABLE migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 BYTEA NOT NULL)")
        .await
        .map_err(error)
}

/// Runs steps and records them.
pub(super) async fn apply(
    transaction: &Transaction<'_>,
    steps: impl Iterator<Item = (i64, &'static Step)> + Send,
) -> Result<(), Error> {
    for (number, step) in steps {
        transaction.batch_execute(step.sql).await.map_err(error)?;
        let added = transaction
            .execute(
                "INSERT INTO migrations (number, name, sha256) VALUES ($1, $2, $3)",
                &[&number, &step.name, &fingerprint(step).as_slice()],
            )
            .await
            .map_err(error)?;
        if added != 1 {
            return Err(broken("a migration could not be recorded"));
        }
    }
    Ok(())
}

async fn applied(transaction: &Transaction<'_>) -> Result<Vec<Applied>, Error> {
    let exists: bool = transaction
        .query_one("SELECT to_regclass('migrations') IS NOT NULL", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(error)?;
    if !exists {
        begin(transaction).await?;
        return Ok(Vec::new());
    }
    let rows = transaction
        .query("SELECT number, sha256 FROM migrations ORDER BY number", &[])
        .await
        .map_err(error)?;
    rows.iter()
        .map(|row| Ok(Applied { number: row.try_get(0)?, sha256: row.try_get(1)? }))
        .collect::<Result<_, _>>()
        .map_err(error)
}
