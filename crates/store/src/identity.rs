//! Identity records: agents, sessions, API keys, roles and the like.
//!
//! They share one life cycle: made once under an id, changed by whoever has seen the last version, perhaps known by a second
//! name and owned by somebody, perhaps at an end at a known time, and seen by every server soon after a change. So they share
//! one table and one feed, and each kind is a serde type. Members that are added to a type need a default, because rows of the
//! version before lack them.

use interlock_model::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Store, Tx};

/// A record as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What it is, such as `agent`.
    pub kind: String,
    /// Unique within the kind.
    pub id: String,
    /// Another name, unique within the kind.
    pub alias: Option<String>,
    /// Whom it belongs to.
    pub owner: Option<String>,
    /// The document.
    pub data: Value,
    /// Counts changes from 1.
    pub version: i64,
    /// May be forgotten after.
    pub expires_at: Option<Timestamp>,
    /// Mark of the last change; the storage gives it.
    pub changed: i64,
}

/// What became of a record that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    Done,
    /// Version 1 of a record whose id or alias exists.
    Taken,
    /// The stored version is not the one before.
    Stale,
}

/// A kind of record.
pub trait Document: Serialize + DeserializeOwned + Send + Sync {
    /// Its name in the table. Never changes.
    const KIND: &'static str;
    /// Unique within the kind.
    fn id(&self) -> String;
    /// Another name, unique within the kind.
    fn alias(&self) -> Option<String> {
        None
    }
    /// Whom it belongs to.
    fn owner(&self) -> Option<String> {
        None
    }
    /// May be forgotten after.
    fn expires_at(&self) -> Option<Timestamp> {
        None
    }
}

/// A document and the version it was read at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<D> {
    /// The document.
    pub document: D,
    /// Counts changes from 1.
    pub version: i64,
}

impl<D> std::ops::Deref for Versioned<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.document
    }
}

fn record_of<D: Document>(document: &D, version: i64) -> Result<Record, Error> {
    Ok(Record {
        kind: D::KIND.to_owned(),
        id: document.id(),
        alias: document.alias(),
        owner: document.owner(),
        data: serde_json::to_value(document).map_err(|error| Error::Corrupt(error.to_string()))?,
        version,
        expires_at: document.expires_at(),
        changed: 0,
    })
}

/// Reads the document of a record.
///
/// # Errors
/// [`Error::Corrupt`] if it is of another form.
pub fn document<D: Document>(record: Record) -> Result<Versioned<D>, Error> {
    let Record { kind, id, data, version, .. } = record;
    serde_json::from_value(data)
        .map(|document| Versioned { document, version })
        .map_err(|error| Error::Corrupt(format!("{kind} {id}: {error}")))
}

/// Stores a new document.
///
/// # Errors
/// The storage's.
pub async fn insert<D: Document>(tx: &mut dyn Tx, document: &D) -> Result<Put, Error> {
    tx.put_record(&record_of(document, 1)?).await
}

/// Stores a changed document over the version it was read at.
///
/// # Errors
/// The storage's.
pub async fn update<D: Document>(tx: &mut dyn Tx, changed: &Versioned<D>) -> Result<Put, Error> {
    tx.put_record(&record_of(&changed.document, changed.version + 1)?).await
}

/// One document, as this transaction sees it; no other write changes it until this one has ended.
///
/// # Errors
/// The storage's.
pub async fn get<D: Document>(tx: &mut dyn Tx, id: &str) -> Result<Option<Versioned<D>>, Error> {
    tx.record(D::KIND, id).await?.map(document).transpose()
}

/// One committed document.
///
/// # Errors
/// The storage's.
pub async fn read<D: Document>(store: &dyn Store, id: &str) -> Result<Option<Versioned<D>>, Error> {
    store.record(D::KIND, id).await?.map(document).transpose()
}

/// All documents of a kind, or those of one owner, by id.
///
/// # Errors
/// The storage's.
pub async fn list<D: Document>(store: &dyn Store, owner: Option<&str>) -> Result<Vec<Versioned<D>>, Error> {
    store.records(D::KIND, owner).await?.into_iter().map(document).collect()
}
