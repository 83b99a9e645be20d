//! Looking at the audit trail, and whether the database that holds it answers.

use interlock_model::action::ReadAudit;
use interlock_model::audit::AuditEntry;
use interlock_store::{AuditFilter, Error, Page, Paged};

use crate::auth::{Db, Permit};

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

    /// Whether the database answers.
    pub async fn storage_is_up(&self) -> bool {
        self.db.read().ping().await.is_ok()
    }
}
