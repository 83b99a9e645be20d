//! What PostgreSQL's error codes mean to the one who operates the machine.

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

use crate::Error;

/// How the driver says that a server wanted the password in another way than by SCRAM bound to the TLS connection.
const UNBOUND: &str = "server did not use channel binding";

/// Translates an error of the driver or the server.
pub(super) fn error(error: tokio_postgres::Error) -> Error {
    if std::error::Error::source(&error).is_some_and(|cause| cause.to_string() == UNBOUND) {
        return broken(
            "the database server asks for the password by md5, in clear, or not at all, and is refused: have it use scram-sha-256 in \
             pg_hba.conf and set the password again. Behind a proxy that cannot do so, say channel_binding=prefer in the database URL",
        );
    }
    let words = match error.code() {
        Some(&SqlState::DISK_FULL) => "the disk of the database server is full",
        Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => "the database server accepts no writes",
        Some(&SqlState::IO_ERROR) => "the disk of the database server reports an error",
        Some(&SqlState::OUT_OF_MEMORY) => "the database server has no memory left",
        _ => return Error::Database(Box::new(error)),
    };
    let said = error.as_db_error().map(tokio_postgres::error::DbError::message).unwrap_or_default();
    Error::Unwritable(format!("{words} ({said})"))
}

/// No connection could be had.
pub(super) fn pool_error(error: PoolError) -> Error {
    match error {
        PoolError::Closed => Error::Closed,
        PoolError::Backend(error) => self::error(error),
        PoolError::Timeout(_) => broken("no connection to the database became free in time"),
        other => Error::Database(Box::new(other)),
    }
}

/// A sentence of our own as an error of the database.
pub(super) fn broken(words: &str) -> Error {
    Error::Database(words.into())
}
