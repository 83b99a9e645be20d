//! The statements of a write, and the locks that make them as orderly as SQLite's.
//!
//! Two locks, held to the end of the transaction: [`USERS`] before users are read or changed, so that a rule over all of
//! them ("one administrator stays") holds with many servers; and the row of the audit head, from the first append. Appending
//! last keeps the second one short. Transactions that take them in another order can deadlock; PostgreSQL then ends one.

use async_trait::async_trait;
use deadpool_postgres::Transaction;
use interlock_model::audit::{AuditDraft, AuditEntry, Hash};
use interlock_model::{RunId, Timestamp};
use tokio_postgres::types::ToSql;

use super::error::{broken, error};
use super::reads;
use crate::codec::{self, refuse_nul};
use crate::identity::{Put, Record};
use crate::orchestrator::Changes;
use crate::sql::{Each, Kind, Sql as _, values};
use crate::{BanRow, Error, KeyRow, Revocation, RunEnd, RunRow, StoredEvent, Tx, UserRow};

/// "ilkusers" as a number: the advisory lock on users as a whole.
const USERS: i64 = 0x696c_6b75_7365_7273;
/// A key can be deleted between two statements; twice in a row does not happen.
const CLAIM_TRIES: usize = 4;

/// One write.
pub(super) struct PgTx<'c> {
    transaction: Transaction<'c>,
    /// The newest audit entry, once its row is locked.
    head: Option<(i64, Hash)>,
    users_locked: bool,
    failed: bool,
    /// Audit entries that are appended together at the end; `None`: each at once.
    later: Option<Vec<AuditDraft>>,
}

const APPEND: Each = Each {
    statement: "INSERT INTO audit (seq, at, actor, action, subject, details, client_ip, request_id, prev_hash, hash) \
                SELECT seq, at, actor, action, subject, details, client_ip, request_id, prev_hash, hash FROM {given}",
    given: &[
        ("seq", Kind::Number),
        ("at", Kind::Number),
        ("actor", Kind::Text),
        ("action", Kind::Text),
        ("subject", Kind::Text),
        ("details", Kind::Text),
        ("client_ip", Kind::Text),
        ("request_id", Kind::Text),
        ("prev_hash", Kind::Bytes),
        ("hash", Kind::Bytes),
    ],
};

impl<'c> PgTx<'c> {
    pub(super) fn new(transaction: Transaction<'c>) -> Self {
        Self { transaction, head: None, users_locked: false, failed: false, later: None }
    }

    /// A transaction of several writes: their audit entries are appended by [`PgTx::append_later`].
    pub(super) fn of_many(transaction: Transaction<'c>) -> Self {
        Self { later: Some(Vec::new()), ..Self::new(transaction) }
    }

    /// Appends what the writes of this transaction have recorded.
    pub(super) async fn append_later(&mut self) -> Result<(), Error> {
        let drafts = self.later.take().unwrap_or_default();
        if drafts.is_empty() {
            return Ok(());
        }
        let (first, mut hash) = self.lock_head().await?;
        let mut seq = first;
        let mut rows = Vec::with_capacity(drafts.len());
        for draft in &drafts {
            let (next, entry, details) = codec::next_entry(seq, hash, draft)?;
            (seq, hash) = (next, entry.hash);
            let draft = entry.draft;
            rows.push(values![
                seq,
                draft.at,
                draft.actor,
                draft.action,
                draft.subject,
                details,
                draft.client_ip,
                draft.request_id,
                &entry.prev_hash,
                &entry.hash
            ]);
        }
        self.each(&APPEND, rows).await?;
        self.change_exactly_one(
            "UPDATE audit_head SET seq = $1, hash = $2 WHERE id = 1 AND seq = $3",
            &[&seq, &hash.as_slice(), &first],
        )
        .await
    }

    /// Whether any method has failed: such a write cannot be committed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn into_inner(self) -> Transaction<'c> {
        self.transaction
    }

    /// The connection inside its transaction.
    pub(super) fn transaction(&self) -> &Transaction<'c> {
        &self.transaction
    }

    /// As [`PgTx::change`], for shared statements.
    pub(super) async fn change_with(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        self.change(statement, parameters).await
    }

    pub(super) fn noted<T>(&mut self, outcome: Result<T, Error>) -> Result<T, Error> {
        self.failed |= outcome.is_err();
        outcome
    }

    async fn lock_users(&mut self) -> Result<(), Error> {
        if !self.users_locked {
            PgTx::change(self, "SELECT pg_advisory_xact_lock($1)", &[&USERS]).await?;
            self.users_locked = true;
        }
        Ok(())
    }

    /// Runs a statement and returns how many rows it touched.
    async fn change(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        let statement = self.transaction.prepare_cached(statement).await.map_err(error)?;
        self.transaction.execute(&statement, parameters).await.map_err(error)
    }

    /// Runs a statement that touches one row or none.
    async fn change_one(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<bool, Error> {
        match self.change(statement, parameters).await? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(broken("a statement changed more than one row")),
        }
    }

    /// Runs a statement that must touch one row.
    async fn change_exactly_one(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<(), Error> {
        if self.change_one(statement, parameters).await? {
            Ok(())
        } else {
            Err(broken("a statement changed no row"))
        }
    }

    async fn put_user(&mut self, statement: &str, user: &UserRow) -> Result<bool, Error> {
        refuse_nul(&[&user.name, &user.password_hash])?;
        self.lock_users().await?;
        let roles = codec::roles_text(&user.roles)?;
        self.change_one(
            statement,
            &[
                &user.name,
                &user.password_hash,
                &roles,
                &user.disabled,
                &user.tokens_valid_from.micros(),
                &user.created_at.micros(),
                &user.updated_at.micros(),
                &user.version,
            ],
        )
        .await
    }

    async fn find_user(&mut self, name: &str) -> Result<Option<UserRow>, Error> {
        self.lock_users().await?;
        reads::user(&self.transaction, name).await
    }

    async fn find_users(&mut self) -> Result<Vec<UserRow>, Error> {
        self.lock_users().await?;
        reads::users(&self.transaction).await
    }

    async fn put_identity(&self, record: &Record) -> Result<Put, Error> {
        let Record { kind, id, alias, owner, data, version, expires_at, .. } = record;
        let texts = [Some(kind), Some(id), alias.as_ref(), owner.as_ref()];
        refuse_nul(&texts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>())?;
        let data = codec::json_text(data)?;
        let end = expires_at.map(Timestamp::micros);
        if *version == 1 {
            let added = self
                .change_one(
                    "INSERT INTO identity (kind, id, alias, owner, data, version, expires_at, changed) \
                     VALUES ($1, $2, $3, $4, $5, 1, $6, 0) ON CONFLICT DO NOTHING",
                    &[kind, id, alias, owner, &data, &end],
                )
                .await?;
            return Ok(if added { Put::Done } else { Put::Taken });
        }
        let other = "SELECT 1 FROM identity WHERE kind = $1 AND alias = $2 AND id <> $3";
        if reads::first(&self.transaction, other, &[kind, alias, id], |_| Ok(())).await?.is_some() {
            return Ok(Put::Taken);
        }
        let changed = self
            .change_one(
                "UPDATE identity SET alias = $3, owner = $4, data = $5, version = $6, expires_at = $7 \
                 WHERE kind = $1 AND id = $2 AND version + 1 = $6",
                &[kind, id, alias, owner, &data, version, &end],
            )
            .await?;
        Ok(if changed { Put::Done } else { Put::Stale })
    }

    async fn put_run(&self, run: &RunRow) -> Result<(), Error> {
        refuse_nul(&[&run.device, &run.action, &run.actor, &run.request_id])?;
        self.change_exactly_one(
            "INSERT INTO runs (id, device, action, state, simulated, parameters, result, error, actor, request_id, created_at, \
             started_at, finished_at, duration_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            &[
                &run.id.to_string(),
                &run.device,
                &run.action,
                &run.state.as_str(),
                &run.simulated,
                &codec::json_text(&run.parameters)?,
                &run.result.as_ref().map(codec::json_text).transpose()?,
                &codec::error_text(run.error.as_ref())?,
                &run.actor,
                &run.request_id,
                &run.created_at.micros(),
                &run.started_at.map(Timestamp::micros),
                &run.finished_at.map(Timestamp::micros),
                &codec::duration(run.duration_ms),
            ],
        )
        .await
    }

    async fn end_run(&self, end: &RunEnd) -> Result<bool, Error> {
        codec::refuse_open(end.state)?;
        self.change_one(
            "UPDATE runs SET state = $2, result = $3, error = $4, started_at = coalesce($5, started_at), finished_at = $6, \
             duration_ms = $7 WHERE id = $1 AND state IN ('queued', 'running')",
            &[
                &end.id.to_string(),
                &end.state.as_str(),
                &end.result.as_ref().map(codec::json_text).transpose()?,
                &codec::error_text(end.error.as_ref())?,
                &end.started_at.map(Timestamp::micros),
                &end.finished_at.micros(),
                &codec::duration(end.duration_ms),
            ],
        )
        .await
    }

    async fn put_events(&self, id: RunId, events: &[StoredEvent]) -> Result<(), Error> {
        let mut numbers = Vec::with_capacity(events.len());
        let mut times = Vec::with_capacity(events.len());
        let mut texts = Vec::with_capacity(events.len());
        for event in events {
            numbers.push(codec::number(event.seq)?);
            times.push(event.at.micros());
            texts.push(codec::event_text(&event.kind)?);
        }
        let added = self
            .change(
                "INSERT INTO run_events (run, seq, at, data) \
                 SELECT $1, seq, at, data FROM unnest($2::bigint[], $3::bigint[], $4::text[]) AS new (seq, at, data)",
                &[&id.to_string(), &numbers, &times, &texts],
            )
            .await?;
        if usize::try_from(added) == Ok(events.len()) {
            Ok(())
        } else {
            Err(broken("an event was not added"))
        }
    }

    async fn take_key(&self, row: &KeyRow) -> Result<KeyRow, Error> {
        refuse_nul(&[&row.actor, &row.key])?;
        for _ in 0..CLAIM_TRIES {
            // Waits for a transaction that is claiming the same key, then sees what it committed.
            let taken = self
                .change_one(
                    "INSERT INTO keys AS held (actor, key, digest, run, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6) \
                     ON CONFLICT (actor, key) DO UPDATE SET digest = excluded.digest, run = excluded.run, \
                     created_at = excluded.created_at, expires_at = excluded.expires_at \
                     WHERE held.expires_at < excluded.created_at",
                    &[
                        &row.actor,
                        &row.key,
                        &row.digest.as_slice(),
                        &row.run.to_string(),
                        &row.created_at.micros(),
                        &row.expires_at.micros(),
                    ],
                )
                .await?;
            if taken {
                return Ok(row.clone());
            }
            if let Some(held) = reads::key(&self.transaction, &row.actor, &row.key, row.created_at).await? {
                return Ok(held);
            }
        }
        Err(broken("a key is neither free nor taken"))
    }

    async fn rebind(&self, actor: &str, key: &str, run: RunId) -> Result<bool, Error> {
        refuse_nul(&[actor, key])?;
        self.change_one(
            "UPDATE keys SET run = $3 WHERE actor = $1 AND key = $2",
            &[&actor, &key, &run.to_string()],
        )
        .await
    }

    async fn revoke(&self, revocation: &Revocation) -> Result<(), Error> {
        refuse_nul(&[&revocation.jti, &revocation.reason])?;
        // No row means that it is revoked already, which is what was asked for.
        self.change_one(
            "INSERT INTO revocations (jti, expires_at, reason, at) VALUES ($1, $2, $3, $4) ON CONFLICT (jti) DO NOTHING",
            &[&revocation.jti, &revocation.expires_at.micros(), &revocation.reason, &revocation.at.micros()],
        )
        .await
        .map(drop)
    }

    async fn lock_head(&mut self) -> Result<(i64, Hash), Error> {
        if let Some(head) = self.head {
            return Ok(head);
        }
        reads::first(
            &self.transaction,
            "SELECT seq, hash FROM audit_head WHERE id = 1 FOR UPDATE",
            &[],
            |row| Ok((reads::get(row, 0)?, codec::hash(reads::get(row, 1)?)?)),
        )
        .await?
        .ok_or_else(|| Error::Corrupt("the head of the audit chain is missing".to_owned()))
    }

    async fn append(&mut self, draft: &AuditDraft) -> Result<AuditEntry, Error> {
        let (seq, hash) = self.lock_head().await?;
        let (seq, entry, details) = codec::next_entry(seq, hash, draft)?;
        let draft = &entry.draft;
        // One statement, so that the row is locked for one round trip less.
        self.change_exactly_one(
            "WITH added AS (INSERT INTO audit (seq, at, actor, action, subject, details, client_ip, request_id, prev_hash, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING seq, hash) \
             UPDATE audit_head AS head SET seq = added.seq, hash = added.hash FROM added \
             WHERE head.id = 1 AND head.seq = added.seq - 1",
            &[
                &seq,
                &draft.at.micros(),
                &draft.actor,
                &draft.action,
                &draft.subject,
                &details,
                &draft.client_ip,
                &draft.request_id,
                &entry.prev_hash.as_slice(),
                &entry.hash.as_slice(),
            ],
        )
        .await?;
        self.head = Some((seq, entry.hash));
        Ok(entry)
    }

    async fn write_ban(&self, statement: &str, ban: &BanRow) -> Result<bool, Error> {
        refuse_nul(&[&ban.network, &ban.reason, &ban.added_by])?;
        self.change_one(
            statement,
            &[
                &ban.network,
                &ban.reason,
                &ban.added_by,
                &ban.created_at.micros(),
                &ban.ends_at.map(Timestamp::micros),
                &ban.forget_at.map(Timestamp::micros),
                &i64::from(ban.offences),
            ],
        )
        .await
    }

    async fn unban(&self, network: &str) -> Result<bool, Error> {
        refuse_nul(&[network])?;
        self.change_one("DELETE FROM bans WHERE network = $1", &[&network]).await
    }

    async fn forget(&self, now: Timestamp) -> Result<u64, Error> {
        let keys = self.change("DELETE FROM keys WHERE expires_at < $1", &[&now.micros()]).await?;
        let revocations =
            self.change("DELETE FROM revocations WHERE expires_at < $1", &[&now.micros()]).await?;
        let records = self.change("DELETE FROM identity WHERE expires_at < $1", &[&now.micros()]).await?;
        let bans = self.change("DELETE FROM bans WHERE forget_at < $1", &[&now.micros()]).await?;
        Ok(keys + revocations + records + bans)
    }
}

#[async_trait]
impl Tx for PgTx<'_> {
    async fn insert_user(&mut self, user: &UserRow) -> Result<bool, Error> {
        let outcome = self
            .put_user(
                "INSERT INTO users (name, password_hash, roles, disabled, tokens_valid_from, created_at, updated_at, version) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO NOTHING",
                user,
            )
            .await;
        self.noted(outcome)
    }

    async fn user(&mut self, name: &str) -> Result<Option<UserRow>, Error> {
        let outcome = self.find_user(name).await;
        self.noted(outcome)
    }

    async fn users(&mut self) -> Result<Vec<UserRow>, Error> {
        let outcome = self.find_users().await;
        self.noted(outcome)
    }

    async fn update_user(&mut self, user: &UserRow) -> Result<bool, Error> {
        let outcome = self
            .put_user(
                "UPDATE users SET password_hash = $2, roles = $3, disabled = $4, tokens_valid_from = $5, created_at = $6, \
                 updated_at = $7, version = $8 WHERE name = $1 AND version + 1 = $8",
                user,
            )
            .await;
        self.noted(outcome)
    }

    async fn insert_run(&mut self, run: &RunRow) -> Result<(), Error> {
        let outcome = self.put_run(run).await;
        self.noted(outcome)
    }

    async fn run(&mut self, id: RunId) -> Result<Option<RunRow>, Error> {
        let outcome = reads::run(&self.transaction, id).await;
        self.noted(outcome)
    }

    async fn finish_run(&mut self, end: &RunEnd) -> Result<bool, Error> {
        let outcome = self.end_run(end).await;
        self.noted(outcome)
    }

    async fn insert_run_events(&mut self, id: RunId, events: &[StoredEvent]) -> Result<(), Error> {
        let outcome = self.put_events(id, events).await;
        self.noted(outcome)
    }

    async fn claim_key(&mut self, row: &KeyRow) -> Result<KeyRow, Error> {
        let outcome = self.take_key(row).await;
        self.noted(outcome)
    }

    async fn rebind_key(&mut self, actor: &str, key: &str, run: RunId) -> Result<bool, Error> {
        let outcome = self.rebind(actor, key, run).await;
        self.noted(outcome)
    }

    async fn insert_revocation(&mut self, revocation: &Revocation) -> Result<(), Error> {
        let outcome = self.revoke(revocation).await;
        self.noted(outcome)
    }

    async fn put_record(&mut self, record: &Record) -> Result<Put, Error> {
        let outcome = self.put_identity(record).await;
        self.noted(outcome)
    }

    async fn record(&mut self, kind: &str, id: &str) -> Result<Option<Record>, Error> {
        let outcome = reads::record(&self.transaction, kind, id, " FOR UPDATE").await;
        self.noted(outcome)
    }

    async fn put_ban(&mut self, ban: &BanRow) -> Result<(), Error> {
        let outcome = self
            .write_ban(
                "INSERT INTO bans (network, reason, added_by, created_at, ends_at, forget_at, offences) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (network) DO UPDATE SET reason = excluded.reason, \
                 added_by = excluded.added_by, created_at = excluded.created_at, ends_at = excluded.ends_at, \
                 forget_at = excluded.forget_at, offences = excluded.offences",
                ban,
            )
            .await
            .map(drop);
        self.noted(outcome)
    }

    async fn extend_ban(&mut self, ban: &BanRow) -> Result<bool, Error> {
        let outcome = self
            .write_ban(
                "INSERT INTO bans (network, reason, added_by, created_at, ends_at, forget_at, offences) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (network) DO UPDATE SET reason = excluded.reason, \
                 added_by = excluded.added_by, created_at = excluded.created_at, ends_at = excluded.ends_at, \
                 forget_at = excluded.forget_at, offences = excluded.offences \
                 WHERE bans.ends_at IS NOT NULL AND (excluded.ends_at IS NULL OR excluded.ends_at > bans.ends_at)",
                ban,
            )
            .await;
        self.noted(outcome)
    }

    async fn delete_ban(&mut self, network: &str) -> Result<bool, Error> {
        let outcome = self.unban(network).await;
        self.noted(outcome)
    }

    async fn append_audit(&mut self, draft: &AuditDraft) -> Result<AuditEntry, Error> {
        let outcome = self.append(draft).await;
        self.noted(outcome)
    }

    async fn record_audit(&mut self, draft: &AuditDraft) -> Result<(), Error> {
        if let Some(later) = &mut self.later {
            later.push(draft.clone());
            return Ok(());
        }
        self.append_audit(draft).await.map(drop)
    }

    fn orchestrator(&mut self) -> Changes<'_> {
        Changes::new(self)
    }

    async fn delete_expired(&mut self, now: Timestamp) -> Result<u64, Error> {
        let outcome = self.forget(now).await;
        self.noted(outcome)
    }
}
