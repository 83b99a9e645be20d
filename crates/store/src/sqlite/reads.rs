//! Queries, used by readers and inside transactions alike.

use interlock_model::audit::{AuditDraft, AuditEntry, Fields, Link};
use interlock_model::{RunId, Timestamp};
use rusqlite::{Connection, Params, Row, ToSql, params, params_from_iter};

use super::error::error;
use crate::codec::{self, has_nul};
use crate::filter::{Conditions, OPEN, Parameter, audit_counted, runs_counted};
use crate::identity::Record;
use crate::{
    AuditBy, AuditFilter, BanRow, Error, KeyRow, Page, Paged, Revocation, RunFilter, RunRow, StoredEvent,
    UserRow,
};

const RECORD: &str = "SELECT kind, id, alias, owner, data, version, expires_at, changed FROM identity";
const USER: &str = "SELECT name, password_hash, roles, disabled, tokens_valid_from, created_at, updated_at, version FROM users";
const RUN: &str = "SELECT id, device, action, state, simulated, parameters, result, error, actor, request_id, created_at, \
                   started_at, finished_at, duration_ms FROM runs";
const AUDIT: &str =
    "SELECT seq, at, actor, action, subject, details, client_ip, request_id, prev_hash, hash FROM audit";

pub(super) fn user(connection: &Connection, name: &str) -> Result<Option<UserRow>, Error> {
    if has_nul(&[name]) {
        return Ok(None);
    }
    first(connection, &format!("{USER} WHERE name = ?1"), [name], user_row)
}

pub(super) fn users(connection: &Connection) -> Result<Vec<UserRow>, Error> {
    all(connection, &format!("{USER} ORDER BY name"), [], user_row)
}

pub(super) fn run(connection: &Connection, id: RunId) -> Result<Option<RunRow>, Error> {
    first(connection, &format!("{RUN} WHERE id = ?1"), [id.to_string()], run_row)
}

pub(super) fn runs(
    connection: &mut Connection,
    filter: &RunFilter,
    page: Page,
) -> Result<Paged<RunRow>, Error> {
    let mut conditions = Conditions::runs('?', filter);
    if conditions.is_impossible() {
        return Ok(Paged { items: Vec::new(), total: 0 });
    }
    // One snapshot for the part and the whole.
    let snapshot = connection.transaction().map_err(error)?;
    let total = total(&snapshot, &runs_counted('?', filter), &conditions)?;
    let query = paged(RUN, &mut conditions, "id DESC", page);
    let items = all(&snapshot, &query, params_from_iter(conditions.values()), run_row)?;
    Ok(Paged { items, total })
}

pub(super) fn open_runs(connection: &Connection) -> Result<Vec<RunRow>, Error> {
    all(connection, &format!("{RUN} WHERE {OPEN} ORDER BY id"), [], run_row)
}

pub(super) fn run_events(
    connection: &Connection,
    id: RunId,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredEvent>, Error> {
    all(
        connection,
        "SELECT seq, at, data FROM run_events WHERE run = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        params![id.to_string(), codec::position(after), limit],
        |row| {
            Ok(StoredEvent {
                seq: codec::count(get(row, 0)?)?,
                at: codec::time(get(row, 1)?)?,
                kind: codec::event(text(row, 2)?)?,
            })
        },
    )
}

pub(super) fn key(
    connection: &Connection,
    actor: &str,
    key: &str,
    now: Timestamp,
) -> Result<Option<KeyRow>, Error> {
    if has_nul(&[actor, key]) {
        return Ok(None);
    }
    first(
        connection,
        "SELECT actor, key, digest, run, created_at, expires_at FROM keys WHERE actor = ?1 AND key = ?2 AND expires_at >= ?3",
        params![actor, key, now.micros()],
        key_row,
    )
}

pub(super) fn revocations(connection: &Connection, now: Timestamp) -> Result<Vec<Revocation>, Error> {
    all(
        connection,
        "SELECT jti, expires_at, reason, at FROM revocations WHERE expires_at >= ?1 ORDER BY jti",
        [now.micros()],
        |row| {
            Ok(Revocation {
                jti: get(row, 0)?,
                expires_at: codec::time(get(row, 1)?)?,
                reason: get(row, 2)?,
                at: codec::time(get(row, 3)?)?,
            })
        },
    )
}

pub(super) fn record(connection: &Connection, kind: &str, id: &str) -> Result<Option<Record>, Error> {
    if has_nul(&[kind, id]) {
        return Ok(None);
    }
    first(connection, &format!("{RECORD} WHERE kind = ?1 AND id = ?2"), [kind, id], record_row)
}

pub(super) fn records(
    connection: &Connection,
    kind: &str,
    owner: Option<&str>,
) -> Result<Vec<Record>, Error> {
    match owner {
        None => all(connection, &format!("{RECORD} WHERE kind = ?1 ORDER BY id"), [kind], record_row),
        Some(owner) if has_nul(&[owner]) => Ok(Vec::new()),
        Some(owner) => all(
            connection,
            &format!("{RECORD} WHERE kind = ?1 AND owner = ?2 ORDER BY id"),
            [kind, owner],
            record_row,
        ),
    }
}

pub(super) fn records_since(connection: &Connection, mark: i64, limit: u32) -> Result<Vec<Record>, Error> {
    all(
        connection,
        &format!("{RECORD} WHERE changed > ?1 ORDER BY changed LIMIT ?2"),
        params![mark, limit],
        record_row,
    )
}

fn record_row(row: &Row<'_>) -> Result<Record, Error> {
    let expires_at: Option<i64> = get(row, 6)?;
    Ok(Record {
        kind: get(row, 0)?,
        id: get(row, 1)?,
        alias: get(row, 2)?,
        owner: get(row, 3)?,
        data: codec::json(text(row, 4)?)?,
        version: get(row, 5)?,
        expires_at: expires_at.map(codec::time).transpose()?,
        changed: get(row, 7)?,
    })
}

pub(super) fn bans(connection: &Connection, now: Timestamp) -> Result<Vec<BanRow>, Error> {
    all(
        connection,
        "SELECT network, reason, added_by, created_at, ends_at, forget_at, offences FROM bans \
         WHERE forget_at IS NULL OR forget_at >= ?1 ORDER BY network",
        [now.micros()],
        ban_row,
    )
}

pub(super) fn audit(
    connection: &mut Connection,
    filter: &AuditFilter,
    page: Page,
) -> Result<Paged<AuditEntry>, Error> {
    let mut conditions = Conditions::audit('?', filter);
    if conditions.is_impossible() {
        return Ok(Paged { items: Vec::new(), total: 0 });
    }
    let snapshot = connection.transaction().map_err(error)?;
    let counted = if conditions.values().is_empty() {
        // Numbers have no gaps, so the ends tell the count without a scan.
        "SELECT coalesce((SELECT max(seq) FROM audit) - (SELECT min(seq) FROM audit) + 1, 0)".to_owned()
    } else {
        format!("SELECT count(*) FROM audit{}", conditions.clause())
    };
    let total = total(&snapshot, &counted, &conditions)?;
    let query = paged(AUDIT, &mut conditions, "seq DESC", page);
    let items = all(&snapshot, &query, params_from_iter(conditions.values()), audit_row)?;
    Ok(Paged { items, total })
}

pub(super) fn audit_counts(
    connection: &Connection,
    filter: &AuditFilter,
    by: AuditBy,
    limit: u32,
) -> Result<Vec<(String, u64)>, Error> {
    let mut conditions = Conditions::audit('?', filter);
    if conditions.is_impossible() {
        return Ok(Vec::new());
    }
    let query = audit_counted(&mut conditions, by, limit);
    all(connection, &query, params_from_iter(conditions.values()), |row| {
        Ok((get(row, 0)?, codec::count(get(row, 1)?)?))
    })
}

/// Entries behind this one, each as [`audit_row`] or [`audit_link`] reads it.
pub(super) fn audit_from<T>(
    connection: &Connection,
    after: u64,
    limit: u32,
    read: fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    all(
        connection,
        &format!("{AUDIT} WHERE seq > ?1 ORDER BY seq LIMIT ?2"),
        params![codec::position(after), limit],
        read,
    )
}

pub(super) fn change_mark(connection: &Connection) -> Result<i64, Error> {
    first(connection, "SELECT mark FROM changes WHERE id = 1", [], |row| get(row, 0))?
        .ok_or_else(|| Error::Corrupt("the table of changes is empty".to_owned()))
}

/// Adds order and bounds to a list query and its parameters.
fn paged(select: &str, conditions: &mut Conditions, order: &str, page: Page) -> String {
    let limit = conditions.bind(Parameter::Number(page.limit.into()));
    let offset = conditions.bind(Parameter::Number(codec::position(page.offset)));
    format!("{select}{} ORDER BY {order} LIMIT {limit} OFFSET {offset}", conditions.clause())
}

fn total(connection: &Connection, query: &str, conditions: &Conditions) -> Result<u64, Error> {
    let counted = first(connection, query, params_from_iter(conditions.values()), |row| get(row, 0))?;
    codec::count(counted.unwrap_or(0))
}

/// Every row of a query.
pub(super) fn all<T>(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    map: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut statement = connection.prepare_cached(query).map_err(error)?;
    let mut rows = statement.query(parameters).map_err(error)?;
    let mut items = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        items.push(map(row)?);
    }
    Ok(items)
}

/// The first row of a query.
pub(super) fn first<T>(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    map: impl Fn(&Row<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut statement = connection.prepare_cached(query).map_err(error)?;
    let mut rows = statement.query(parameters).map_err(error)?;
    rows.next().map_err(error)?.map(map).transpose()
}

pub(super) fn get<T: rusqlite::types::FromSql>(row: &Row<'_>, column: usize) -> Result<T, Error> {
    row.get(column).map_err(error)
}

/// A text without a copy.
fn text<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r str, Error> {
    optional_text(row, column)?.ok_or_else(|| Error::Corrupt("a text is missing".to_owned()))
}

fn optional_text<'r>(row: &'r Row<'_>, column: usize) -> Result<Option<&'r str>, Error> {
    let value = row.get_ref(column).map_err(error)?;
    value.as_str_or_null().map_err(|error| Error::Corrupt(error.to_string()))
}

fn optional_time(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>, Error> {
    get::<Option<i64>>(row, column)?.map(codec::time).transpose()
}

fn user_row(row: &Row<'_>) -> Result<UserRow, Error> {
    Ok(UserRow {
        name: get(row, 0)?,
        password_hash: get(row, 1)?,
        roles: codec::roles(text(row, 2)?)?,
        disabled: get(row, 3)?,
        tokens_valid_from: codec::time(get(row, 4)?)?,
        created_at: codec::time(get(row, 5)?)?,
        updated_at: codec::time(get(row, 6)?)?,
        version: get(row, 7)?,
    })
}

fn run_row(row: &Row<'_>) -> Result<RunRow, Error> {
    Ok(RunRow {
        id: codec::run_id(text(row, 0)?)?,
        device: get(row, 1)?,
        action: get(row, 2)?,
        state: codec::state(text(row, 3)?)?,
        simulated: get(row, 4)?,
        parameters: codec::json(text(row, 5)?)?,
        result: optional_text(row, 6)?.map(codec::json).transpose()?,
        error: codec::error(optional_text(row, 7)?)?,
        actor: get(row, 8)?,
        request_id: get(row, 9)?,
        created_at: codec::time(get(row, 10)?)?,
        started_at: optional_time(row, 11)?,
        finished_at: optional_time(row, 12)?,
        duration_ms: get(row, 13)?,
    })
}

pub(super) fn key_row(row: &Row<'_>) -> Result<KeyRow, Error> {
    Ok(KeyRow {
        actor: get(row, 0)?,
        key: get(row, 1)?,
        digest: get(row, 2)?,
        run: codec::run_id(text(row, 3)?)?,
        created_at: codec::time(get(row, 4)?)?,
        expires_at: codec::time(get(row, 5)?)?,
    })
}

pub(super) fn audit_row(row: &Row<'_>) -> Result<AuditEntry, Error> {
    let draft = AuditDraft {
        at: codec::time(get(row, 1)?)?,
        actor: get(row, 2)?,
        action: get(row, 3)?,
        subject: get(row, 4)?,
        details: codec::json(text(row, 5)?)?,
        client_ip: get(row, 6)?,
        request_id: get(row, 7)?,
    };
    Ok(AuditEntry { seq: codec::count(get(row, 0)?)?, draft, prev_hash: get(row, 8)?, hash: get(row, 9)? })
}

pub(super) fn audit_link(row: &Row<'_>) -> Result<Link, Error> {
    let fields = Fields {
        seq: codec::count(get(row, 0)?)?,
        at: codec::time(get(row, 1)?)?,
        actor: optional_text(row, 2)?,
        action: text(row, 3)?,
        subject: optional_text(row, 4)?,
        details: text(row, 5)?,
        client_ip: optional_text(row, 6)?,
        request_id: optional_text(row, 7)?,
    };
    Ok(fields.checked(get(row, 8)?, get(row, 9)?))
}

impl ToSql for Parameter {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Self::Text(text) => text.to_sql(),
            Self::Number(number) => number.to_sql(),
        }
    }
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

#[cfg(test)]
mod tests {
    use interlock_model::run::RunState;

    use super::*;
    use crate::sqlite::open;

    /// How SQLite carries out a query, one line a step.
    fn plan(connection: &Connection, query: &str, conditions: &Conditions) -> String {
        let steps = all(
            connection,
            &format!("EXPLAIN QUERY PLAN {query}"),
            params_from_iter(conditions.values()),
            |row| get::<String>(row, 3),
        );
        steps.expect("a plan").join("\n")
    }

    #[test]
    fn no_list_of_runs_reads_or_sorts_more_rows_than_it_must() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open::writable(&folder.path().join("plans.db")).expect("a new database");
        let page = Page { limit: 50, offset: 0 };
        for (state, action, list, count) in [
            (None, None, "SCAN runs", "SCAN runs USING COVERING INDEX runs_by_action"),
            (
                Some(RunState::Failed),
                None,
                "USING INDEX runs_by_state (state=?)",
                "USING COVERING INDEX runs_by_state (state=?)",
            ),
            (
                Some(RunState::Queued),
                None,
                "USING INDEX runs_by_state (state=?)",
                "USING COVERING INDEX runs_by_state (state=?)",
            ),
            (Some(RunState::Succeeded), None, "SCAN runs", "COVERING INDEX runs_by_state"),
            (
                None,
                Some("mix"),
                "USING INDEX runs_by_action (action=?)",
                "USING COVERING INDEX runs_by_action (action=?)",
            ),
            (
                Some(RunState::Succeeded),
                Some("mix"),
                "USING INDEX runs_by_action (action=?)",
                "USING INDEX runs_by_action (action=?)",
            ),
        ] {
            let filter = RunFilter { state, action: action.map(str::to_owned), actor: None };
            let mut conditions = Conditions::runs('?', &filter);
            let counting = plan(&connection, &runs_counted('?', &filter), &conditions);
            let query = paged(RUN, &mut conditions, "id DESC", page);
            let listing = plan(&connection, &query, &conditions);

            assert!(listing.contains(list) && !listing.contains("TEMP B-TREE"), "{filter:?}: {listing}");
            assert!(counting.contains(count), "{filter:?}: {counting}");
        }
        let open = plan(
            &connection,
            &format!("{RUN} WHERE {OPEN} ORDER BY id"),
            &Conditions::runs('?', &RunFilter::default()),
        );
        assert!(open.contains("USING INDEX runs_by_state (state=?)"), "{open}");
    }

    #[test]
    fn a_search_of_the_trail_uses_an_index_unless_it_is_for_what_stands_everywhere() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open::writable(&folder.path().join("plans.db")).expect("a new database");
        for (action, found) in
            [("user.created", "USING INDEX audit_by_action (action=?)"), ("device.executed", "SCAN audit")]
        {
            let filter = AuditFilter { action: Some(action.to_owned()), ..AuditFilter::default() };
            let mut conditions = Conditions::audit('?', &filter);
            let query = paged(AUDIT, &mut conditions, "seq DESC", Page { limit: 50, offset: 0 });
            let searching = plan(&connection, &query, &conditions);

            assert!(searching.contains(found) && !searching.contains("TEMP B-TREE"), "{action}: {searching}");
        }
    }
}
