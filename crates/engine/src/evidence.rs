//! Looking at the audit trail, and whether the database that holds it answers.

use interlock_evidence::proof::Proof;
use interlock_model::action::ReadAudit;
use interlock_model::audit::AuditEntry;
use interlock_store::{AuditBy, AuditFilter, Error, Page, Paged};

use crate::auth::{Db, Permit};
use crate::notary::{self, NotaryError};

/// Reads the audit trail.
#[derive(Clone, Debug)]
pub struct Evidence {
    db: Db,
}

impl Evidence {
    /// Over this database.
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// The audit trail, newest first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn audit(
        &self,
        _permit: &Permit<ReadAudit>,
        filter: &AuditFilter,
        page: Page,
    ) -> Result<Paged<AuditEntry>, Error> {
        self.db.read().audit(filter, page).await
    }

    /// How many entries there are of each value, the most frequent first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn counts(
        &self,
        _permit: &Permit<ReadAudit>,
        filter: &AuditFilter,
        by: AuditBy,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, Error> {
        self.db.read().audit_counts(filter, by, limit).await
    }

    /// The newest signed checkpoint of the audit trail.
    ///
    /// # Errors
    /// The storage's.
    pub async fn checkpoint(&self, _permit: &Permit<ReadAudit>) -> Result<Option<String>, Error> {
        Ok(notary::newest(self.db.read()).await?.map(|seal| seal.note))
    }

    /// The proof that an entry is in the trail that was signed.
    ///
    /// # Errors
    /// As [`notary::prove`].
    pub async fn prove(&self, _permit: &Permit<ReadAudit>, number: u64) -> Result<Proof, NotaryError> {
        notary::prove(self.db.read(), number).await
    }

    /// Whether the database answers.
    pub async fn storage_is_up(&self) -> bool {
        self.db.read().ping().await.is_ok()
    }
}
