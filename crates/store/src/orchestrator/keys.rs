//! Concurrency keys: held by one run, from when it is ready until it is over. Runs behind it stand in a place of their own, so
//! that they cost the claim nothing.
//!
//! A write that works at several keys takes them in the order of their texts, and rows of the queue that line up for a key after
//! it: so no two writes wait for each other.

use interlock_model::task::TaskRunId;

use super::Changes;
use crate::Error;
use crate::sql::values;

impl Changes<'_> {
    /// Takes a key for `run` unless another run holds it. The holder's row is locked until this write ends, so that the key is not
    /// given up behind the back of a run that has just lined up.
    pub(super) async fn take_concurrency(&mut self, key: &str, run: TaskRunId) -> Result<bool, Error> {
        let holder = self
            .sql
            .row(
                "INSERT INTO concurrency (ckey, run) VALUES (?1, ?2) ON CONFLICT (ckey) DO UPDATE SET run = concurrency.run \
                 RETURNING run",
                values![key, run.as_bytes()],
            )
            .await?;
        Ok(holder.map(|row| row.bytes::<16>(0)).transpose()? == Some(*run.as_bytes()))
    }

    /// Gives up a key that `run` holds, to the run that waits longest for it.
    pub(super) async fn give_up_concurrency(&mut self, key: &str, run: TaskRunId) -> Result<(), Error> {
        let query = format!("SELECT run FROM concurrency WHERE ckey = ?1{}", self.sql.lock());
        let holder = self.sql.row(&query, values![key]).await?.map(|row| row.bytes::<16>(0)).transpose()?;
        if holder != Some(*run.as_bytes()) {
            return Ok(());
        }
        loop {
            let next = "SELECT run FROM queue WHERE ckey = ?1 AND place = 2 ORDER BY rank, number LIMIT 1";
            let Some(next) = self.sql.row(next, values![key]).await? else {
                self.sql.change("DELETE FROM concurrency WHERE ckey = ?1", values![key]).await?;
                return Ok(());
            };
            let next = next.bytes::<16>(0)?;
            // It may have been cancelled or paused in between; then the next one is asked.
            if self
                .sql
                .change_one("UPDATE queue SET place = 0 WHERE run = ?1 AND place = 2", values![&next])
                .await?
            {
                self.sql
                    .change("UPDATE concurrency SET run = ?2 WHERE ckey = ?1", values![key, &next])
                    .await?;
                return Ok(());
            }
        }
    }
}
