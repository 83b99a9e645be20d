//! What steps of a run left behind, so that another worker can go on where one stopped.

use interlock_model::Timestamp;
use interlock_model::task::TaskRunId;
use serde_json::Value as Json;

use super::{Changes, Reads};
use crate::sql::{Each, Kind, values};
use crate::{Error, codec};

const FORGET: Each = Each {
    statement: "DELETE FROM run_steps WHERE lineage IN (SELECT lineage FROM {given})",
    given: &[("lineage", Kind::Bytes)],
};

const WITHDRAW: Each = Each {
    statement: "UPDATE approvals SET state = 'withdrawn' FROM {given} WHERE approvals.lineage = given.lineage \
                AND approvals.state IN ('pending', 'approved')",
    given: &[("lineage", Kind::Bytes)],
};

impl Changes<'_> {
    /// Keeps what step `seq` left; replaces what it left before. Ask [`Changes::holds`] in the same write.
    ///
    /// # Errors
    /// The storage's.
    pub async fn put_step(
        &mut self,
        lineage: TaskRunId,
        seq: u32,
        data: &Json,
        now: Timestamp,
    ) -> Result<(), Error> {
        let data = codec::json_text(data)?;
        self.sql
            .change(
                "INSERT INTO run_steps (lineage, seq, at, data) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (lineage, seq) DO UPDATE SET at = excluded.at, data = excluded.data",
                values![lineage.as_bytes(), seq, now, data],
            )
            .await
            .map(drop)
    }

    /// Nobody will go on with these: what their steps left goes, and nobody needs to decide any more.
    pub(super) async fn forget_lineage(&mut self, over: &[TaskRunId]) -> Result<(), Error> {
        let rows = || over.iter().map(|lineage| values![lineage.as_bytes()]).collect::<Vec<_>>();
        self.sql.each(&FORGET, rows()).await?;
        self.sql.each(&WITHDRAW, rows()).await.map(drop)
    }
}

impl Reads<'_> {
    /// What the steps of a run left, in order.
    ///
    /// # Errors
    /// The storage's.
    pub async fn steps(&mut self, lineage: TaskRunId) -> Result<Vec<(u32, Json)>, Error> {
        let query = "SELECT seq, data FROM run_steps WHERE lineage = ?1 ORDER BY seq";
        let rows = self.sql.rows(query, values![lineage.as_bytes()]).await?;
        rows.iter().map(|row| Ok((row.small(0)?, codec::json(row.text(1)?)?))).collect()
    }
}
