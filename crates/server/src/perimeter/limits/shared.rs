//! The port to counters that several servers share, and what holds while they cannot be asked.

use async_trait::async_trait;
use interlock_model::rate::{Limits, Verdict};

/// The shared counters did not answer in time. They may have counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared counters do not answer")]
pub struct Away;

/// Counters that all servers of an installation share.
#[async_trait]
pub trait SharedCounters: Send + Sync {
    /// Decides on one request of a client, and counts it if it is admitted: atomically, in one round trip, within a deadline.
    ///
    /// # Errors
    /// [`Away`], at once while the counters are known to be away.
    async fn take(&self, client: &str, limits: Limits) -> Result<Verdict, Away>;

    /// Whether they answered last time.
    fn is_up(&self) -> bool;

    /// Servers that were alive when the counters last said so, this one included; at least 1.
    fn servers(&self) -> u32;
}

/// What holds while the shared counters are away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenAway {
    /// Each server admits its share: the limit divided by the servers that were last alive.
    #[default]
    Local,
    /// Nothing that is limited is admitted, except signing in, which has its share.
    Deny,
    /// Everything is admitted, except signing in, which has its share.
    Allow,
}
