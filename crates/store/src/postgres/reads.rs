//! Queries, used by readers and inside transactions alike.

use deadpool_postgres::{GenericClient, Object};
use interlock_model::audit::{AuditDraft, AuditEntry, Fields, Link};
use interlock_model::{RunId, Timestamp};
use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{IsolationLevel, Row};

use super::error::error;
use crate::codec::{self, has_nul};
use crate::filter::{Conditions, OPEN, Parameter, audit_counted, runs_counted};
use crate::identity::Record;
use crate::{
    AuditBy, AuditFilter, BanRow, Error, KeyRow, Page, Paged, Revocation, RunFilter, RunRow, StoredEvent,
    UserRow,
};

type Parameters<'p> = &'p [&'p (dyn ToSql + Sync)];

const RECORD: &str = "SELECT kind, id, alias, owner, data, version, expires_at, changed FROM identity";
const USER: &str = "SELECT name, password_hash, roles, disabled, tokens_valid_from, created_at, updated_at, version FROM users";
const RUN: &str = "SELECT id, device, action, state, simulated, parameters, result, error, actor, request_id, created_at, \
                   started_at, finished_at, duration_ms FROM runs";
const AUDIT: &str =
    "SELECT seq, at, actor, action, subject, details, client_ip, request_id, prev_hash, hash FROM audit";

pub(super) async fn user(client: &impl GenericClient, name: &str) -> Result<Option<UserRow>, Error> {
    if has_nul(&[name]) {
        return Ok(None);
    }
    first(client, &format!("{USER} WHERE name = $1"), &[&name], user_row).await
}

pub(super) async fn users(client: &impl GenericClient) -> Result<Vec<UserRow>, Error> {
    all(client, &format!("{USER} ORDER BY name"), &[], user_row).await
}

pub(super) async fn run(client: &impl GenericClient, id: RunId) -> Result<Option<RunRow>, Error> {
    first(client, &format!("{RUN} WHERE id = $1"), &[&id.to_string()], run_row).await
}

pub(super) async fn runs(
    client: &mut Object,
    filter: &RunFilter,
    page: Page,
) -> Result<Paged<RunRow>, Error> {
    let conditions = Conditions::runs('$', filter);
    let counted = runs_counted('$', filter);
    part(client, conditions, &counted, RUN, "id DESC", page, run_row).await
}

pub(super) async fn open_runs(client: &impl GenericClient) -> Result<Vec<RunRow>, Error> {
    let query = format!("{RUN} WHERE {OPEN} ORDER BY id");
    all(client, &query, &[], run_row).await
}

pub(super) async fn run_events(
    client: &impl GenericClient,
    id: RunId,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredEvent>, Error> {
    all(
        client,
        "SELECT seq, at, data FROM run_events WHERE run = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        &[&id.to_string(), &codec::position(after), &i64::from(limit)],
        |row| {
            Ok(StoredEvent {
                seq: codec::count(get(row, 0)?)?,
                at: codec::time(get(row, 1)?)?,
                kind: codec::event(get(row, 2)?)?,
            })
        },
    )
    .await
}

pub(super) async fn key(
    client: &impl GenericClient,
    actor: &str,
    key: &str,
    now: Timestamp,
) -> Result<Option<KeyRow>, Error> {
    if has_nul(&[actor, key]) {
        return Ok(None);
    }
    first(
        client,
        "SELECT actor, key, digest, run, created_at, expires_at FROM keys WHERE actor = $1 AND key = $2 AND expires_at >= $3",
        &[&actor, &key, &now.micros()],
        key_row,
    )
    .await
}

pub(super) async fn revocations(
    client: &impl GenericClient,
    now: Timestamp,
) -> Result<Vec<Revocation>, Error> {
    all(
        client,
        "SELECT jti, expires_at, reason, at FROM revocations WHERE expires_at >= $1 ORDER BY jti",
        &[&now.micros()],
        |row| {
            Ok(Revocation {
                jti: get(row, 0)?,
                expires_at: codec::time(get(row, 1)?)?,
                reason: get(row, 2)?,
                at: codec::time(get(row, 3)?)?,
            })
        },
    )
    .await
}

/// `locking` is empty, or the clause that keeps others from changing the row.
pub(super) async fn record(
    client: &impl GenericClient,
    kind: &str,
    id: &str,
    locking: &str,
) -> Result<Option<Record>, Error> {
    if has_nul(&[kind, id]) {
        return Ok(None);
    }
    first(client, &format!("{RECORD} WHERE kind = $1 AND id = $2{locking}"), &[&kind, &id], record_row).await
}

pub(super) async fn records(
    client: &impl GenericClient,
    kind: &str,
    owner: Option<&str>,
) -> Result<Vec<Record>, Error> {
    match owner {
        None => all(client, &format!("{RECORD} WHERE kind = $1 ORDER BY id"), &[&kind], record_row).await,
        Some(owner) if has_nul(&[owner]) => Ok(Vec::new()),
        Some(owner) => {
            let query = format!("{RECORD} WHERE kind = $1 AND owner = $2 ORDER BY id");
            all(client, &query, &[&kind, &owner], record_row).await
        }
    }
}

pub(super) async fn records_since(
    client: &impl GenericClient,
    mark: i64,
    limit: u32,
) -> Result<Vec<Record>, Error> {
    let query = format!("{RECORD} WHERE changed > $1 ORDER BY changed LIMIT $2");
    all(client, &query, &[&mark, &i64::from(limit)], record_row).await
}

fn record_row(row: &Row) -> Result<Record, Error> {
    let expires_at: Option<i64> = get(row, 6)?;
    Ok(Record {
        kind: get(row, 0)?,
        id: get(row, 1)?,
        alias: get(row, 2)?,
        owner: get(row, 3)?,
        data: codec::json(get(row, 4)?)?,
        version: get(row, 5)?,
        expires_at: expires_at.map(codec::time).transpose()?,
        changed: get(row, 7)?,
    })
}

pub(super) async fn bans(client: &impl GenericClient, now: Timestamp) -> Result<Vec<BanRow>, Error> {
    all(
        client,
        "SELECT network, reason, added_by, created_at, ends_at, forget_at, offences FROM bans \
         WHERE forget_at IS NULL OR forget_at >= $1 ORDER BY network",
        &[&now.micros()],
        ban_row,
    )
    .await
}

pub(super) async fn audit(
    client: &mut Object,
    filter: &AuditFilter,
    page: Page,
) -> Result<Paged<AuditEntry>, Error> {
    let conditions = Conditions::audit('$', filter);
    let counted = if conditions.values().is_empty() {
        // Numbers have no gaps, so the ends tell the count without a scan.
        "SELECT coalesce((SELECT max(seq) FROM audit) - (SELECT min(seq) FROM audit) + 1, 0)".to_owned()
    } else {
        format!("SELECT count(*) FROM audit{}", conditions.clause())
    };
    part(client, conditions, &counted, AUDIT, "seq DESC", page, audit_row).await
}

pub(super) async fn audit_counts(
    client: &impl GenericClient,
    filter: &AuditFilter,
    by: AuditBy,
    limit: u32,
) -> Result<Vec<(String, u64)>, Error> {
    let mut conditions = Conditions::audit('$', filter);
    if conditions.is_impossible() {
        return Ok(Vec::new());
    }
    let query = audit_counted(&mut conditions, by, limit);
    all(client, &query, &bound(conditions.values()), |row| Ok((get(row, 0)?, codec::count(get(row, 1)?)?)))
        .await
}

/// Entries behind this one, each as [`audit_row`] or [`audit_link`] reads it.
pub(super) async fn audit_from<T>(
    client: &impl GenericClient,
    after: u64,
    limit: u32,
    read: fn(&Row) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    all(
        client,
        &format!("{AUDIT} WHERE seq > $1 ORDER BY seq LIMIT $2"),
        &[&codec::position(after), &i64::from(limit)],
        read,
    )
    .await
}

pub(super) async fn change_mark(client: &impl GenericClient) -> Result<i64, Error> {
    first(client, "SELECT mark FROM changes WHERE id = 1", &[], |row| get(row, 0))
        .await?
        .ok_or_else(|| Error::Corrupt("the table of changes is empty".to_owned()))
}

/// A part of a list and the length of the whole, from one snapshot.
async fn part<T>(
    client: &mut Object,
    mut conditions: Conditions,
    counted: &str,
    select: &str,
    order: &str,
    page: Page,
    map: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Paged<T>, Error> {
    if conditions.is_impossible() {
        return Ok(Paged { items: Vec::new(), total: 0 });
    }
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(error)?;
    let counted = first(&snapshot, counted, &bound(conditions.values()), |row| get::<i64>(row, 0)).await?;
    let limit = conditions.bind(Parameter::Number(page.limit.into()));
    let offset = conditions.bind(Parameter::Number(codec::position(page.offset)));
    let query = format!("{select}{} ORDER BY {order} LIMIT {limit} OFFSET {offset}", conditions.clause());
    let items = all(&snapshot, &query, &bound(conditions.values()), map).await?;
    snapshot.commit().await.map_err(error)?;
    Ok(Paged { items, total: codec::count(counted.unwrap_or(0))? })
}

fn bound(values: &[Parameter]) -> Vec<&(dyn ToSql + Sync)> {
    fn value(parameter: &Parameter) -> &(dyn ToSql + Sync) {
        match parameter {
            Parameter::Text(text) => text,
            Parameter::Number(number) => number,
        }
    }
    values.iter().map(value).collect()
}

/// Every row of a query.
async fn all<T>(
    client: &impl GenericClient,
    query: &str,
    parameters: Parameters<'_>,
    map: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let statement = client.prepare_cached(query).await.map_err(error)?;
    let rows = client.query(&statement, parameters).await.map_err(error)?;
    rows.iter().map(map).collect()
}

/// The first row of a query.
pub(super) async fn first<T>(
    client: &impl GenericClient,
    query: &str,
    parameters: Parameters<'_>,
    map: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let statement = client.prepare_cached(query).await.map_err(error)?;
    let row = client.query_opt(&statement, parameters).await.map_err(error)?;
    row.as_ref().map(map).transpose()
}

pub(super) fn get<'r, T: FromSql<'r>>(row: &'r Row, column: usize) -> Result<T, Error> {
    row.try_get(column).map_err(|error| Error::Corrupt(error.to_string()))
}

fn optional_time(row: &Row, column: usize) -> Result<Option<Timestamp>, Error> {
    get::<Option<i64>>(row, column)?.map(codec::time).transpose()
}

fn user_row(row: &Row) -> Result<UserRow, Error> {
    Ok(UserRow {
        name: get(row, 0)?,
        password_hash: get(row, 1)?,
        roles: codec::roles(get(row, 2)?)?,
        disabled: get(row, 3)?,
        tokens_valid_from: codec::time(get(row, 4)?)?,
        created_at: codec::time(get(row, 5)?)?,
        updated_at: codec::time(get(row, 6)?)?,
        version: get(row, 7)?,
    })
}

fn run_row(row: &Row) -> Result<RunRow, Error> {
    Ok(RunRow {
        id: codec::run_id(get(row, 0)?)?,
        device: get(row, 1)?,
        action: get(row, 2)?,
        state: codec::state(get(row, 3)?)?,
        simulated: get(row, 4)?,
        parameters: codec::json(get(row, 5)?)?,
        result: get::<Option<&str>>(row, 6)?.map(codec::json).transpose()?,
        error: codec::error(get(row, 7)?)?,
        actor: get(row, 8)?,
        request_id: get(row, 9)?,
        created_at: codec::time(get(row, 10)?)?,
        started_at: optional_time(row, 11)?,
        finished_at: optional_time(row, 12)?,
        duration_ms: get(row, 13)?,
    })
}

pub(super) fn key_row(row: &Row) -> Result<KeyRow, Error> {
    Ok(KeyRow {
        actor: get(row, 0)?,
        key: get(row, 1)?,
        digest: codec::hash(get(row, 2)?)?,
        run: codec::run_id(get(row, 3)?)?,
        created_at: codec::time(get(row, 4)?)?,
        expires_at: codec::time(get(row, 5)?)?,
    })
}

pub(super) fn audit_row(row: &Row) -> Result<AuditEntry, Error> {
    let draft = AuditDraft {
        at: codec::time(get(row, 1)?)?,
        actor: get(row, 2)?,
        action: get(row, 3)?,
        subject: get(row, 4)?,
        details: codec::json(get(row, 5)?)?,
        client_ip: get(row, 6)?,
        request_id: get(row, 7)?,
    };
    Ok(AuditEntry {
        seq: codec::count(get(row, 0)?)?,
        draft,
        prev_hash: codec::hash(get(row, 8)?)?,
        hash: codec::hash(get(row, 9)?)?,
    })
}

pub(super) fn audit_link(row: &Row) -> Result<Link, Error> {
    let fields = Fields {
        seq: codec::count(get(row, 0)?)?,
        at: codec::time(get(row, 1)?)?,
        actor: get(row, 2)?,
        action: get(row, 3)?,
        subject: get(row, 4)?,
        details: get(row, 5)?,
        client_ip: get(row, 6)?,
        request_id: get(row, 7)?,
    };
    Ok(fields.checked(codec::hash(get(row, 8)?)?, codec::hash(get(row, 9)?)?))
}

fn ban_row(row: &Row) -> Result<BanRow, Error> {
    Ok(BanRow {
        network: get(row, 0)?,
        reason: get(row, 1)?,
        added_by: get(row, 2)?,
        created_at: codec::time(get(row, 3)?)?,
        ends_at: optional_time(row, 4)?,
        forget_at: optional_time(row, 5)?,
        offences: codec::small_count(get(row, 6)?)?,
    })
}
