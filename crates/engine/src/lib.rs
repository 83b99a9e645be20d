//! The use cases of Interlock: rules and authority. Knows nothing of HTTP and nothing of SQL.
//!
//! Every use case takes a [`auth::Permit`], which only [`auth::Guard`] can make, and every write goes through [`auth::Db`],
//! which wants a proof and appends the audit entry to the same transaction. Read [`executions`] for the way of one run.

pub mod agents;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod bans;
pub mod devices;
pub mod emergency;
pub mod evidence;
pub mod executions;
pub mod identity;
pub mod invitations;
pub mod janitor;
pub mod metrics;
pub mod news;
pub mod notary;
mod one_time;
pub mod orchestrator;
pub mod pipeline;
pub mod reads;
pub mod resets;
pub mod revocations;
pub mod runs;
pub mod security;
pub mod spans;
pub mod tools;
pub mod users;

use std::sync::Arc;

use interlock_model::{Clock, Entropy};

pub use interlock_store::{AuditBy, AuditFilter, BanRow, Page, Paged, RunFilter, StoredEvent, UserRow};

/// The two sources of the outside world, passed to whatever needs them.
#[derive(Clone)]
pub struct Ambient {
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for Ambient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ambient")
    }
}
pub use interlock_store::Error as StoreError;
