//! What must be thrown away, a batch at a time, so that nobody waits long for it. And answers that are given again.

use interlock_model::{RunId, Timestamp};

use super::{Changes, Reads};
use crate::sql::{Each, Kind, values};
use crate::{Error, codec};

const FORGET_EVENTS: Each = Each {
    statement: "DELETE FROM run_events WHERE run IN (SELECT run FROM {given})",
    given: &[("run", Kind::Text)],
};

const FORGET_RUNS: Each = Each {
    statement: "DELETE FROM runs WHERE id IN (SELECT run FROM {given}) RETURNING id",
    given: &[("run", Kind::Text)],
};

impl Changes<'_> {
    /// Deletes these runs of a device, and what happened during them.
    ///
    /// # Errors
    /// The storage's.
    pub async fn delete_device_runs(&mut self, runs: &[RunId]) -> Result<u64, Error> {
        let rows = || runs.iter().map(|run| values![run.to_string()]).collect::<Vec<_>>();
        self.sql.each(&FORGET_EVENTS, rows()).await?;
        Ok(self.sql.each(&FORGET_RUNS, rows()).await?.len() as u64)
    }

    /// Deletes at most `limit` runs that ended before `before`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn delete_runs(&mut self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        self.sql
            .change(
                "DELETE FROM task_runs WHERE id IN (SELECT id FROM task_runs WHERE finished_at < ?1 ORDER BY finished_at LIMIT ?2)",
                values![before, limit],
            )
            .await
    }

    /// Deletes at most `limit` questions that were made before `before` and stand for nothing any more, as many answers that have
    /// expired at `now`, and as many deliveries of runs that ended before `before`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn delete_settled(
        &mut self,
        before: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<u64, Error> {
        let questions = self
            .sql
            .change(
                "DELETE FROM approvals WHERE id IN (SELECT id FROM approvals WHERE created_at < ?1 \
                 AND state NOT IN ('pending', 'approved') LIMIT ?2)",
                values![before, limit],
            )
            .await?;
        let answers = self
            .sql
            .change(
                "DELETE FROM answers WHERE (actor, key) IN (SELECT actor, key FROM answers WHERE expires_at < ?1 LIMIT ?2)",
                values![now, limit],
            )
            .await?;
        let told = self
            .sql
            .change(
                "DELETE FROM deliveries WHERE run IN (SELECT run FROM deliveries WHERE created_at < ?1 LIMIT ?2)",
                values![before, limit],
            )
            .await?;
        Ok(questions + answers + told)
    }

    /// Keeps the answer to a request under its key until `expires`; `false` if there is one already.
    ///
    /// # Errors
    /// The storage's.
    pub async fn keep_answer(
        &mut self,
        actor: &str,
        key: &str,
        digest: &[u8; 32],
        answer: &str,
        (now, expires): (Timestamp, Timestamp),
    ) -> Result<bool, Error> {
        self.sql
            .change_one(
                "INSERT INTO answers (actor, key, digest, answer, expires_at) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (actor, key) DO UPDATE SET digest = excluded.digest, answer = excluded.answer, \
                 expires_at = excluded.expires_at WHERE answers.expires_at < ?6",
                values![actor, key, digest, answer, expires, now],
            )
            .await
    }
}

impl Reads<'_> {
    /// The oldest runs of a device that ended before `before`, at most `limit`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn old_device_runs(&mut self, before: Timestamp, limit: u32) -> Result<Vec<RunId>, Error> {
        // Ids begin with the time: what began later is not looked at.
        let query = "SELECT id FROM runs WHERE id < ?1 AND finished_at < ?2 ORDER BY id LIMIT ?3";
        let bound = values![RunId::before_all_of(before).to_string(), before, limit];
        self.sql.rows(query, bound).await?.iter().map(|row| codec::run_id(row.text(0)?)).collect()
    }

    /// The answer that was given under a key, and the digest of its request.
    ///
    /// # Errors
    /// The storage's.
    pub async fn answer(
        &mut self,
        actor: &str,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<([u8; 32], String)>, Error> {
        let query = "SELECT digest, answer FROM answers WHERE actor = ?1 AND key = ?2 AND expires_at >= ?3";
        let row = self.sql.row(query, values![actor, key, now]).await?;
        row.map(|row| Ok((row.bytes(0)?, row.text(1)?.to_owned()))).transpose()
    }
}
