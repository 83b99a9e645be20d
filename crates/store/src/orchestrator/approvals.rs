//! Questions to people: each is about exact parameters, is answered once, and is good for one use.

use interlock_model::Timestamp;
use interlock_model::task::{ApprovalId, ApprovalState, TaskId, TaskRunId};
use serde_json::Value as Json;

use super::{Changes, Reads, word};
use crate::sql::{Row, values};
use crate::{Error, Page, Paged, codec};

/// A question that a run asks.
#[derive(Clone, Debug, PartialEq)]
pub struct NewApproval {
    /// The question.
    pub id: ApprovalId,
    /// Of which run.
    pub lineage: TaskRunId,
    /// The attempt that asked.
    pub run: TaskRunId,
    /// Of which task.
    pub task: TaskId,
    /// The step that waits.
    pub step: String,
    /// Who must not answer it.
    pub requester: String,
    /// SHA-256 over what is approved.
    pub digest: [u8; 32],
    /// What is approved, for people.
    pub subject: Json,
    /// Why it is asked.
    pub reason: String,
    /// Now.
    pub created_at: Timestamp,
    /// Not good for anything after.
    pub expires_at: Timestamp,
    /// How many people must approve: one or two.
    pub approvers: u32,
}

/// A question as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ApprovalRow {
    /// What was asked.
    pub asked: NewApproval,
    /// How it stands.
    pub state: ApprovalState,
    /// Who has approved first, and when, where two must.
    pub first: Option<(String, Timestamp)>,
    /// When somebody decided.
    pub decided_at: Option<Timestamp>,
    /// Who.
    pub decided_by: Option<String>,
    /// Why.
    pub note: Option<String>,
}

const APPROVAL: &str = "SELECT id, lineage, run, task, step, requester, digest, subject, reason, created_at, expires_at, state, decided_at, \
                        decided_by, note, approvers, first_by, first_at FROM approvals";

fn approval_row(row: &Row) -> Result<ApprovalRow, Error> {
    Ok(ApprovalRow {
        asked: NewApproval {
            id: ApprovalId::from_bytes(row.bytes(0)?),
            lineage: TaskRunId::from_bytes(row.bytes(1)?),
            run: TaskRunId::from_bytes(row.bytes(2)?),
            task: TaskId::from_bytes(row.bytes(3)?),
            step: row.text(4)?.to_owned(),
            requester: row.text(5)?.to_owned(),
            digest: row.bytes(6)?,
            subject: codec::json(row.text(7)?)?,
            reason: row.text(8)?.to_owned(),
            created_at: row.time(9)?,
            expires_at: row.time(10)?,
            approvers: row.small(15)?,
        },
        first: row.optional_text(16)?.zip(row.optional_time(17)?),
        state: word(ApprovalState::parse(row.text(11)?), "state of an approval")?,
        decided_at: row.optional_time(12)?,
        decided_by: row.optional_text(13)?,
        note: row.optional_text(14)?,
    })
}

impl Changes<'_> {
    /// Asks; `false` if the same was asked before for the same run.
    ///
    /// # Errors
    /// The storage's.
    pub async fn ask(&mut self, new: &NewApproval) -> Result<bool, Error> {
        let subject = codec::json_text(&new.subject)?;
        self.sql
            .change_one(
                "INSERT INTO approvals (id, lineage, run, task, step, requester, digest, subject, reason, created_at, expires_at, approvers, \
                 state) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 'pending') ON CONFLICT (lineage, step, digest) DO NOTHING",
                values![
                    new.id.as_bytes(),
                    new.lineage.as_bytes(),
                    new.run.as_bytes(),
                    new.task.as_bytes(),
                    &new.step,
                    &new.requester,
                    &new.digest,
                    subject,
                    &new.reason,
                    new.created_at,
                    new.expires_at,
                    new.approvers
                ],
            )
            .await
    }

    /// One question; nobody answers it until this write has ended.
    ///
    /// # Errors
    /// The storage's.
    pub async fn approval(&mut self, id: ApprovalId) -> Result<Option<ApprovalRow>, Error> {
        let query = format!("{APPROVAL} WHERE id = ?1{}", self.sql.lock());
        self.sql.row(&query, values![id.as_bytes()]).await?.as_ref().map(approval_row).transpose()
    }

    /// Keeps the first of two people's word in place of the one of `before`; `false` if the question is not pending any more or
    /// has another first word.
    ///
    /// # Errors
    /// The storage's.
    pub async fn second(
        &mut self,
        id: ApprovalId,
        before: Option<&str>,
        by: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        self.sql
            .change_one(
                "UPDATE approvals SET first_by = ?2, first_at = ?3 \
                 WHERE id = ?1 AND state = 'pending' AND coalesce(first_by, '') = ?4",
                values![id.as_bytes(), by, now, before.unwrap_or("")],
            )
            .await
    }

    /// Answers a pending question, and lets the run that waits for it go on; `false` if it is not pending any more.
    ///
    /// # Errors
    /// The storage's.
    pub async fn decide(
        &mut self,
        asked: &NewApproval,
        state: ApprovalState,
        by: &str,
        note: Option<&str>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let decided = self
            .sql
            .change_one(
                "UPDATE approvals SET state = ?2, decided_at = ?3, decided_by = ?4, note = ?5 WHERE id = ?1 AND state = 'pending'",
                values![asked.id.as_bytes(), state.as_str(), now, by, note],
            )
            .await?;
        if decided {
            self.wake(asked.lineage).await?;
        }
        Ok(decided)
    }

    /// A run that asked again what was decided already lines up again.
    ///
    /// # Errors
    /// The storage's.
    pub async fn wake_if_decided(&mut self, asked: &NewApproval) -> Result<(), Error> {
        let query = "SELECT state FROM approvals WHERE lineage = ?1 AND step = ?2 AND digest = ?3";
        let values = values![asked.lineage.as_bytes(), &asked.step, &asked.digest];
        let pending = match self.sql.row(query, values).await? {
            Some(row) => row.text(0)? == ApprovalState::Pending.as_str(),
            None => false,
        };
        if pending { Ok(()) } else { self.wake(asked.lineage).await }
    }

    /// A run that waits for a decision lines up again. It has kept its concurrency key.
    async fn wake(&mut self, lineage: TaskRunId) -> Result<(), Error> {
        self.sql
            .change(
                "UPDATE queue SET place = 0 WHERE lineage = ?1 AND place = 5",
                values![lineage.as_bytes()],
            )
            .await
            .map(drop)
    }

    /// Spends an approval that is not too old; `false` if it cannot be spent (any more).
    ///
    /// # Errors
    /// The storage's.
    pub async fn use_approval(
        &mut self,
        id: ApprovalId,
        lineage: TaskRunId,
        now: Timestamp,
    ) -> Result<bool, Error> {
        self.sql
            .change_one(
                "UPDATE approvals SET state = 'used' WHERE id = ?1 AND lineage = ?2 AND state = 'approved' AND expires_at > ?3",
                values![id.as_bytes(), lineage.as_bytes(), now],
            )
            .await
    }

    /// Ends questions that nobody answered in time, at most `limit`, and lets their runs go on; returns how many.
    ///
    /// # Errors
    /// The storage's.
    pub async fn expire_approvals(&mut self, now: Timestamp, limit: u32) -> Result<u64, Error> {
        let query = format!(
            "SELECT id, lineage FROM approvals WHERE state = 'pending' AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2{}",
            self.sql.lock_free("approvals")
        );
        let rows = self.sql.rows(&query, values![now, limit]).await?;
        for row in &rows {
            let (id, lineage) = (row.bytes::<16>(0)?, TaskRunId::from_bytes(row.bytes(1)?));
            self.sql
                .change(
                    "UPDATE approvals SET state = 'expired', decided_at = ?2 WHERE id = ?1",
                    values![&id, now],
                )
                .await?;
            self.wake(lineage).await?;
        }
        Ok(rows.len() as u64)
    }
}

impl Reads<'_> {
    /// One question.
    ///
    /// # Errors
    /// The storage's.
    pub async fn approval(&mut self, id: ApprovalId) -> Result<Option<ApprovalRow>, Error> {
        let query = format!("{APPROVAL} WHERE id = ?1");
        self.sql.row(&query, values![id.as_bytes()]).await?.as_ref().map(approval_row).transpose()
    }

    /// When the next question expires that nobody has answered.
    ///
    /// # Errors
    /// The storage's.
    pub async fn first_question(&mut self) -> Result<Option<Timestamp>, Error> {
        let query = "SELECT expires_at FROM approvals WHERE state = 'pending' ORDER BY expires_at LIMIT 1";
        let found = self.sql.row(query, Vec::new()).await?;
        found.map(|row| row.time(0)).transpose()
    }

    /// What a run has asked.
    ///
    /// # Errors
    /// The storage's.
    pub async fn approvals_of(&mut self, lineage: TaskRunId) -> Result<Vec<ApprovalRow>, Error> {
        let query = format!("{APPROVAL} WHERE lineage = ?1 ORDER BY id");
        self.sql.rows(&query, values![lineage.as_bytes()]).await?.iter().map(approval_row).collect()
    }

    /// Questions, newest first; only pending ones, or every one, and only of one requester.
    ///
    /// # Errors
    /// The storage's.
    pub async fn approvals(
        &mut self,
        state: Option<ApprovalState>,
        requester: Option<&str>,
        page: Page,
    ) -> Result<Paged<ApprovalRow>, Error> {
        // An empty text stands for "any": neither a state nor a name is empty.
        let bound = values![state.map_or("", ApprovalState::as_str), requester.unwrap_or("")];
        let clause = " WHERE (?1 = '' OR state = ?1) AND (?2 = '' OR requester = ?2)";
        let count = format!("SELECT count(*) FROM approvals{clause}");
        let total = self.sql.row(&count, bound.clone()).await?.map_or(Ok(0), |row| row.count(0))?;
        let query = format!("{APPROVAL}{clause} ORDER BY id DESC LIMIT ?3 OFFSET ?4");
        let mut values = bound;
        values.extend(values![page.limit, codec::position(page.offset)]);
        let items =
            self.sql.rows(&query, values).await?.iter().map(approval_row).collect::<Result<_, _>>()?;
        Ok(Paged { items, total })
    }
}
