//! Opening the file: mode, pragmas, migrations.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};

use super::error::error;
use crate::Error;
use crate::migrations::{self, Applied, Step, fingerprint};

/// How long to wait for another process's transaction. Ours are milliseconds long, and so are the command line's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// More than the statements that we have, so that each is compiled once per connection.
const STATEMENTS: usize = 128;

/// The writer's connection to a file that exists, is ours alone, and has the present schema.
pub(super) fn writable(path: &Path) -> Result<Connection, Error> {
    let mut connection = empty(path)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// The same, of whatever schema.
pub(super) fn empty(path: &Path) -> Result<Connection, Error> {
    make_private(path)?;
    let connection = connect(path)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(error)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(Error::Unwritable(format!(
            "{} cannot use a write-ahead log (journal mode {mode}); put it on a local disk",
            path.display()
        )));
    }
    for (name, value) in [
        ("synchronous", "FULL"), // a commit is on the disk before it is acknowledged
        ("foreign_keys", "ON"),
        ("temp_store", "MEMORY"), // savepoints keep what they may have to undo; a file for that costs half the speed
        ("wal_autocheckpoint", "4000"), // pages: a burst copies each page of the file once, not once per commit
        ("journal_size_limit", "67108864"), // bytes: give the space of a burst back
        ("cache_size", "-8192"),        // KiB
    ] {
        connection.pragma_update(None, name, value).map_err(error)?;
    }
    Ok(connection)
}

/// A reader's connection; it cannot write.
pub(super) fn readable(path: &Path) -> Result<Connection, Error> {
    let connection = connect(path)?;
    for (name, value) in [("query_only", "ON"), ("cache_size", "-2048")] {
        connection.pragma_update(None, name, value).map_err(error)?;
    }
    Ok(connection)
}

fn connect(path: &Path) -> Result<Connection, Error> {
    // No URI file names: a path is a path. One thread per connection, so SQLite's own mutexes are off.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(error)?;
    if connection.is_readonly("main").map_err(error)? {
        // SQLite falls back to reading where it may not write, and would tell only at the first write.
        return Err(Error::Unwritable(format!("{} or its file system is read-only", path.display())));
    }
    connection.busy_timeout(BUSY_TIMEOUT).map_err(error)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Makes the file with mode 0600 before SQLite sees it; its `-wal` and `-shm` files take the same mode.
fn make_private(path: &Path) -> Result<(), Error> {
    let words =
        |what: &str, error: &io::Error| Error::Unwritable(format!("{what} {}: {error}", path.display()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(file) => {
            file.sync_all().map_err(|error| words("cannot write", &error))?;
            // The name itself must survive a power loss too.
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| words("cannot write", &error))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            tighten(path);
            Ok(())
        }
        Err(error) => Err(words("cannot make", &error)),
    }
}

/// The file holds password hashes: nobody else may read it.
#[cfg(unix)]
fn tighten(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;

    let Ok(found) = std::fs::metadata(path) else { return };
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o700 == mode {
        return;
    }
    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o700)) {
        Ok(()) => {
            tracing::warn!(store.path = %path.display(), store.mode = format!("{mode:o}"), "others could read the database; now they cannot");
        }
        Err(error) => {
            tracing::warn!(store.path = %path.display(), store.mode = format!("{mode:o}"), %error, "others can read the database and its mode cannot be changed");
        }
    }
}

#[cfg(not(unix))]
fn tighten(_: &Path) {}

fn migrate(connection: &mut Connection) -> Result<(), Error> {
    // The usual start finds nothing to do and takes no write lock.
    if let Some(applied) = applied(connection)?
        && migrations::pending(migrations::SQLITE, &applied)?.is_empty()
    {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(error)?;
    let applied = if let Some(applied) = applied(&transaction)? {
        applied
    } else {
        begin(&transaction)?;
        Vec::new()
    };
    apply(&transaction, migrations::pending(migrations::SQLITE, &applied)?.into_iter())?;
    transaction.commit().map_err(error)
}

/// Begins the record of migrations in a file that is empty.
pub(super) fn begin(transaction: &Transaction<'_>) -> Result<(), Error> {
    let strangers: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(error)?;
    if strangers > 0 {
        return Err(Error::Corrupt("the file is a database of another program".to_owned()));
    }
    transaction
        .execute_batch(
            "CREATE TABLE migrations (number INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL) STRICT",
        )
        .map_err(error)
}

/// Runs steps and records them.
pub(super) fn apply(
    transaction: &Transaction<'_>,
    steps: impl Iterator<Item = (i64, &'static Step)>,
) -> Result<(), Error> {
    for (number, step) in steps {
        transaction.execute_batch(step.sql).map_err(error)?;
        transaction
            .execute(
                "INSERT INTO migrations (number, name, sha256) VALUES (?1, ?2, ?3)",
                (number, step.name, fingerprint(step).as_slice()),
            )
            .map_err(error)?;
    }
    Ok(())
}

/// The record of migrations, `None` if there is none.
fn applied(connection: &Connection) -> Result<Option<Vec<Applied>>, Error> {
    let exists = connection
        .query_row("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'migrations'", [], |_| Ok(()))
        .optional()
        .map_err(error)?;
    if exists.is_none() {
        return Ok(None);
    }
    let mut statement =
        connection.prepare("SELECT number, sha256 FROM migrations ORDER BY number").map_err(error)?;
    let rows = statement
        .query_map([], |row| Ok(Applied { number: row.get(0)?, sha256: row.get(1)? }))
        .map_err(error)?;
    rows.collect::<Result<_, _>>().map(Some).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_flushed_before_it_is_acknowledged() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = writable(&folder.path().join("flushed.db")).expect("a new database");
        let setting = |name: &str| {
            connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
                .expect("a setting")
        };

        assert_eq!(setting("journal_mode"), rusqlite::types::Value::Text("wal".to_owned()));
        assert_eq!(setting("synchronous"), rusqlite::types::Value::Integer(2));
        assert_eq!(setting("foreign_keys"), rusqlite::types::Value::Integer(1));
    }

    #[test]
    fn a_reader_cannot_write() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("read.db");
        drop(writable(&path).expect("a new database"));

        let outcome = readable(&path).expect("opened").execute("DELETE FROM audit", []);

        assert!(matches!(outcome.map_err(error), Err(Error::Unwritable(_))));
    }
}
