//! What SQLite's result codes mean to the one who operates the machine.

use rusqlite::ErrorCode;

use crate::Error;

/// Translates an error of SQLite.
pub(super) fn error(error: rusqlite::Error) -> Error {
    let code = error.sqlite_error_code();
    let unwritable = |words: &str| Error::Unwritable(format!("{words} ({error})"));
    match code {
        Some(ErrorCode::DiskFull) => unwritable("the disk is full"),
        Some(ErrorCode::ReadOnly) => unwritable("the file or its file system is read-only"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            unwritable("another process has held the database locked for too long")
        }
        Some(ErrorCode::SystemIoFailure) => unwritable("the disk reports an error"),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => unwritable("the file cannot be opened"),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Corrupt(error.to_string()),
        Some(_) => Error::Database(Box::new(error)),
        None => match error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..) => Error::Corrupt(error.to_string()),
            other => Error::Database(Box::new(other)),
        },
    }
}

/// A sentence of our own as an error of the database.
pub(super) fn broken(words: &str) -> Error {
    Error::Database(words.into())
}
