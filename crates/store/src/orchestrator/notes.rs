//! What runs report while they are carried out, in the order in which it was told.

use interlock_model::Timestamp;
use interlock_model::task::TaskRunId;
use serde_json::Value as Json;

use super::{Changes, Reads};
use crate::sql::values;
use crate::{Error, codec};

/// Something that a run reported.
#[derive(Clone, Debug, PartialEq)]
pub struct RunNote {
    /// Counts from 1 in its run.
    pub seq: u64,
    /// When it was told.
    pub at: Timestamp,
    /// `{kind, data}`.
    pub data: Json,
}

impl Changes<'_> {
    /// Adds notes behind those that the run has. Ask [`Changes::holds`] in the same write.
    ///
    /// # Errors
    /// The storage's.
    pub async fn put_notes(&mut self, run: TaskRunId, notes: &[(Timestamp, Json)]) -> Result<(), Error> {
        let query = "SELECT COALESCE(MAX(seq), 0) FROM run_notes WHERE run = ?1";
        let last = self.sql.row(query, values![run.as_bytes()]).await?;
        let mut seq = last.map_or(Ok(0), |row| row.number(0))?;
        for (at, data) in notes {
            seq += 1;
            let data = codec::json_text(data)?;
            self.sql
                .change(
                    "INSERT INTO run_notes (run, seq, at, data) VALUES (?1, ?2, ?3, ?4)",
                    values![run.as_bytes(), seq, *at, data],
                )
                .await?;
        }
        Ok(())
    }

    /// Deletes at most `limit` notes that were told before `before`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn delete_notes(&mut self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        self.sql
            .change(
                "DELETE FROM run_notes WHERE (run, seq) IN (SELECT run, seq FROM run_notes WHERE at < ?1 ORDER BY at LIMIT ?2)",
                values![before, limit],
            )
            .await
    }
}

impl Reads<'_> {
    /// What a run told behind number `after`, at most `limit`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn notes(&mut self, run: TaskRunId, after: u64, limit: u32) -> Result<Vec<RunNote>, Error> {
        let query = "SELECT seq, at, data FROM run_notes WHERE run = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";
        let after = codec::number(after)?;
        let rows = self.sql.rows(query, values![run.as_bytes(), after, limit]).await?;
        rows.iter()
            .map(|row| Ok(RunNote { seq: row.count(0)?, at: row.time(1)?, data: codec::json(row.text(2)?)? }))
            .collect()
    }
}
