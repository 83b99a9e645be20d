//! The statements of a write. Every method is done when it returns: nothing here waits.

use async_trait::async_trait;
use interlock_model::audit::{AuditDraft, AuditEntry, Hash};
use interlock_model::{RunId, Timestamp};
use rusqlite::{Connection, Params, params};

use super::error::{broken, error};
use super::reads;
use crate::codec::{self, refuse_nul};
use crate::identity::{Put, Record};
use crate::orchestrator::Changes;
use crate::{BanRow, Error, KeyRow, Revocation, RunEnd, RunRow, StoredEvent, Tx, UserRow};

/// The newest audit entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    seq: i64,
    hash: Hash,
}

impl Head {
    /// As the database has it. Read in each transaction, because another process may have appended.
    pub(super) fn read(connection: &Connection) -> Result<Self, Error> {
        let newest =
            reads::first(connection, "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", [], |row| {
                Ok(Self { seq: reads::get(row, 0)?, hash: reads::get(row, 1)? })
            })?;
        Ok(newest.unwrap_or(Self { seq: 0, hash: [0; 32] }))
    }
}

/// What a write has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trace {
    /// A method has failed: the write cannot be committed.
    pub(super) failed: bool,
    /// A row was touched, or a statement failed: there may be something to undo.
    pub(super) touched: bool,
}

/// One write inside its transaction.
///
/// The connection is borrowed mutably, though every statement would do with less, because only so may the write's future
/// move between threads as its type promises.
pub(super) struct SqliteTx<'c> {
    connection: &'c mut Connection,
    head: &'c mut Head,
    trace: &'c mut Trace,
}

impl<'c> SqliteTx<'c> {
    pub(super) fn new(connection: &'c mut Connection, head: &'c mut Head, trace: &'c mut Trace) -> Self {
        Self { connection, head, trace }
    }

    fn noting<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let outcome = body(self);
        self.trace.failed |= outcome.is_err();
        outcome
    }

    /// Runs shared statements; `touched` tells from their answer whether there may be something to undo.
    pub(super) fn touching<T>(
        &mut self,
        body: impl FnOnce(&Connection) -> Result<T, Error>,
        touched: impl FnOnce(&T) -> bool,
    ) -> Result<T, Error> {
        let outcome = body(self.connection);
        self.trace.touched |= outcome.as_ref().map_or(true, touched);
        self.trace.failed |= outcome.is_err();
        outcome
    }

    /// Runs a statement and returns how many rows it touched.
    fn change(&mut self, statement: &str, parameters: impl Params) -> Result<usize, Error> {
        let changed =
            self.connection.prepare_cached(statement).and_then(|mut statement| statement.execute(parameters));
        self.trace.touched |= !matches!(changed, Ok(0));
        changed.map_err(error)
    }

    /// Runs a statement that touches one row or none.
    fn change_one(&mut self, statement: &str, parameters: impl Params) -> Result<bool, Error> {
        match self.change(statement, parameters)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(broken("a statement changed more than one row")),
        }
    }

    /// Runs a statement that must touch one row.
    fn change_exactly_one(&mut self, statement: &str, parameters: impl Params) -> Result<(), Error> {
        if self.change_one(statement, parameters)? {
            Ok(())
        } else {
            Err(broken("a statement changed no row"))
        }
    }

    fn put_user(&mut self, statement: &str, user: &UserRow) -> Result<bool, Error> {
        refuse_nul(&[&user.name, &user.password_hash])?;
        let roles = codec::roles_text(&user.roles)?;
        self.change_one(
            statement,
            params![
                user.name,
                user.password_hash,
                roles,
                user.disabled,
                user.tokens_valid_from.micros(),
                user.created_at.micros(),
                user.updated_at.micros(),
                user.version
            ],
        )
    }

    fn put_identity(&mut self, record: &Record) -> Result<Put, Error> {
        let Record { kind, id, alias, owner, data, version, expires_at, .. } = record;
        let texts = [Some(kind), Some(id), alias.as_ref(), owner.as_ref()];
        refuse_nul(&texts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>())?;
        let data = codec::json_text(data)?;
        let end = expires_at.map(Timestamp::micros);
        if *version == 1 {
            let added = self.change_one(
                "INSERT INTO identity (kind, id, alias, owner, data, version, expires_at, changed) \
                 VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, (SELECT mark + 1 FROM identity_mark)) ON CONFLICT DO NOTHING",
                params![kind, id, alias, owner, data, end],
            )?;
            if !added {
                return Ok(Put::Taken);
            }
        } else {
            let other = "SELECT 1 FROM identity WHERE kind = ?1 AND alias = ?2 AND id <> ?3";
            if reads::first(self.connection, other, params![kind, alias, id], |_| Ok(()))?.is_some() {
                return Ok(Put::Taken);
            }
            let changed = self.change_one(
                "UPDATE identity SET alias = ?3, owner = ?4, data = ?5, version = ?6, expires_at = ?7, \
                 changed = (SELECT mark + 1 FROM identity_mark) WHERE kind = ?1 AND id = ?2 AND version = ?6 - 1",
                params![kind, id, alias, owner, data, version, end],
            )?;
            if !changed {
                return Ok(Put::Stale);
            }
        }
        self.change_exactly_one("UPDATE identity_mark SET mark = mark + 1", [])?;
        Ok(Put::Done)
    }

    fn put_run(&mut self, run: &RunRow) -> Result<(), Error> {
        refuse_nul(&[&run.device, &run.action, &run.actor, &run.request_id])?;
        let result = run.result.as_ref().map(codec::json_text).transpose()?;
        self.change_exactly_one(
            "INSERT INTO runs (id, device, action, state, simulated, parameters, result, error, actor, request_id, created_at, \
             started_at, finished_at, duration_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                run.id.to_string(),
                run.device,
                run.action,
                run.state.as_str(),
                run.simulated,
                codec::json_text(&run.parameters)?,
                result,
                codec::error_text(run.error.as_ref())?,
                run.actor,
                run.request_id,
                run.created_at.micros(),
                run.started_at.map(Timestamp::micros),
                run.finished_at.map(Timestamp::micros),
                codec::duration(run.duration_ms)
            ],
        )
    }

    fn end_run(&mut self, end: &RunEnd) -> Result<bool, Error> {
        codec::refuse_open(end.state)?;
        let result = end.result.as_ref().map(codec::json_text).transpose()?;
        self.change_one(
            "UPDATE runs SET state = ?2, result = ?3, error = ?4, started_at = coalesce(?5, started_at), finished_at = ?6, \
             duration_ms = ?7 WHERE id = ?1 AND state IN ('queued', 'running')",
            params![
                end.id.to_string(),
                end.state.as_str(),
                result,
                codec::error_text(end.error.as_ref())?,
                end.started_at.map(Timestamp::micros),
                end.finished_at.micros(),
                codec::duration(end.duration_ms)
            ],
        )
    }

    fn take_key(&mut self, row: &KeyRow) -> Result<KeyRow, Error> {
        refuse_nul(&[&row.actor, &row.key])?;
        let taken = self.change_one(
            "INSERT INTO keys (actor, key, digest, run, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (actor, key) DO UPDATE SET digest = excluded.digest, run = excluded.run, \
             created_at = excluded.created_at, expires_at = excluded.expires_at WHERE expires_at < excluded.created_at",
            params![
                row.actor,
                row.key,
                row.digest.as_slice(),
                row.run.to_string(),
                row.created_at.micros(),
                row.expires_at.micros()
            ],
        )?;
        if taken {
            return Ok(row.clone());
        }
        reads::key(self.connection, &row.actor, &row.key, row.created_at)?
            .ok_or_else(|| broken("a key is neither free nor taken"))
    }

    fn write_ban(&mut self, statement: &str, ban: &BanRow) -> Result<bool, Error> {
        refuse_nul(&[&ban.network, &ban.reason, &ban.added_by])?;
        self.change_one(
            statement,
            params![
                ban.network,
                ban.reason,
                ban.added_by,
                ban.created_at.micros(),
                ban.ends_at.map(Timestamp::micros),
                ban.forget_at.map(Timestamp::micros),
                ban.offences
            ],
        )
    }

    fn append(&mut self, draft: &AuditDraft) -> Result<AuditEntry, Error> {
        let (seq, entry, details) = codec::next_entry(self.head.seq, self.head.hash, draft)?;
        let draft = &entry.draft;
        self.change_exactly_one(
            "INSERT INTO audit (seq, at, actor, action, subject, details, client_ip, request_id, prev_hash, hash) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                seq,
                draft.at.micros(),
                draft.actor,
                draft.action,
                draft.subject,
                details,
                draft.client_ip,
                draft.request_id,
                entry.prev_hash.as_slice(),
                entry.hash.as_slice()
            ],
        )?;
        *self.head = Head { seq, hash: entry.hash };
        Ok(entry)
    }
}

#[async_trait]
impl Tx for SqliteTx<'_> {
    async fn insert_user(&mut self, user: &UserRow) -> Result<bool, Error> {
        self.noting(|tx| {
            tx.put_user(
                "INSERT INTO users (name, password_hash, roles, disabled, tokens_valid_from, created_at, updated_at, version) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (name) DO NOTHING",
                user,
            )
        })
    }

    async fn user(&mut self, name: &str) -> Result<Option<UserRow>, Error> {
        self.noting(|tx| reads::user(tx.connection, name))
    }

    async fn users(&mut self) -> Result<Vec<UserRow>, Error> {
        self.noting(|tx| reads::users(tx.connection))
    }

    async fn update_user(&mut self, user: &UserRow) -> Result<bool, Error> {
        self.noting(|tx| {
            tx.put_user(
                "UPDATE users SET password_hash = ?2, roles = ?3, disabled = ?4, tokens_valid_from = ?5, created_at = ?6, \
                 updated_at = ?7, version = ?8 WHERE name = ?1 AND version = ?8 - 1",
                user,
            )
        })
    }

    async fn insert_run(&mut self, run: &RunRow) -> Result<(), Error> {
        self.noting(|tx| tx.put_run(run))
    }

    async fn run(&mut self, id: RunId) -> Result<Option<RunRow>, Error> {
        self.noting(|tx| reads::run(tx.connection, id))
    }

    async fn finish_run(&mut self, end: &RunEnd) -> Result<bool, Error> {
        self.noting(|tx| tx.end_run(end))
    }

    async fn insert_run_events(&mut self, id: RunId, events: &[StoredEvent]) -> Result<(), Error> {
        self.noting(|tx| {
            let id = id.to_string();
            for event in events {
                tx.change_exactly_one(
                    "INSERT INTO run_events (run, seq, at, data) VALUES (?1, ?2, ?3, ?4)",
                    params![
                        id,
                        codec::number(event.seq)?,
                        event.at.micros(),
                        codec::event_text(&event.kind)?
                    ],
                )?;
            }
            Ok(())
        })
    }

    async fn claim_key(&mut self, row: &KeyRow) -> Result<KeyRow, Error> {
        self.noting(|tx| tx.take_key(row))
    }

    async fn rebind_key(&mut self, actor: &str, key: &str, run: RunId) -> Result<bool, Error> {
        self.noting(|tx| {
            refuse_nul(&[actor, key])?;
            tx.change_one(
                "UPDATE keys SET run = ?3 WHERE actor = ?1 AND key = ?2",
                params![actor, key, run.to_string()],
            )
        })
    }

    async fn insert_revocation(&mut self, revocation: &Revocation) -> Result<(), Error> {
        self.noting(|tx| {
            refuse_nul(&[&revocation.jti, &revocation.reason])?;
            // No row means that it is revoked already, which is what was asked for.
            tx.change_one(
                "INSERT INTO revocations (jti, expires_at, reason, at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (jti) DO NOTHING",
                params![revocation.jti, revocation.expires_at.micros(), revocation.reason, revocation.at.micros()],
            )
            .map(drop)
        })
    }

    async fn put_record(&mut self, record: &Record) -> Result<Put, Error> {
        self.noting(|tx| tx.put_identity(record))
    }

    async fn record(&mut self, kind: &str, id: &str) -> Result<Option<Record>, Error> {
        self.noting(|tx| reads::record(tx.connection, kind, id))
    }

    async fn put_ban(&mut self, ban: &BanRow) -> Result<(), Error> {
        self.noting(|tx| {
            tx.write_ban(
                "INSERT INTO bans (network, reason, added_by, created_at, ends_at, forget_at, offences) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (network) DO UPDATE SET reason = excluded.reason, \
                 added_by = excluded.added_by, created_at = excluded.created_at, ends_at = excluded.ends_at, \
                 forget_at = excluded.forget_at, offences = excluded.offences",
                ban,
            )
            .map(drop)
        })
    }

    async fn extend_ban(&mut self, ban: &BanRow) -> Result<bool, Error> {
        self.noting(|tx| {
            tx.write_ban(
                "INSERT INTO bans (network, reason, added_by, created_at, ends_at, forget_at, offences) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (network) DO UPDATE SET reason = excluded.reason, \
                 added_by = excluded.added_by, created_at = excluded.created_at, ends_at = excluded.ends_at, \
                 forget_at = excluded.forget_at, offences = excluded.offences \
                 WHERE bans.ends_at IS NOT NULL AND (excluded.ends_at IS NULL OR excluded.ends_at > bans.ends_at)",
                ban,
            )
        })
    }

    async fn delete_ban(&mut self, network: &str) -> Result<bool, Error> {
        self.noting(|tx| {
            refuse_nul(&[network])?;
            tx.change_one("DELETE FROM bans WHERE network = ?1", [network])
        })
    }

    async fn append_audit(&mut self, draft: &AuditDraft) -> Result<AuditEntry, Error> {
        self.noting(|tx| tx.append(draft))
    }

    fn orchestrator(&mut self) -> Changes<'_> {
        Changes::new(self)
    }

    async fn delete_expired(&mut self, now: Timestamp) -> Result<u64, Error> {
        self.noting(|tx| {
            let keys = tx.change("DELETE FROM keys WHERE expires_at < ?1", [now.micros()])?;
            let revocations = tx.change("DELETE FROM revocations WHERE expires_at < ?1", [now.micros()])?;
            let records = tx.change("DELETE FROM identity WHERE expires_at < ?1", [now.micros()])?;
            let bans = tx.change("DELETE FROM bans WHERE forget_at < ?1", [now.micros()])?;
            Ok((keys + revocations + records + bans) as u64)
        })
    }
}
