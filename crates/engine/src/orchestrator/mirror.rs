//! A copy of the events elsewhere, for programs that read there. It follows the stored events like any other follower: what is published
//! never waits for it, and nothing is told before it is committed.
//!
//! At least once, in order: what the other side has is asked there, so a copy that was lost, or taken back to an older state, is made
//! again from what is still stored. Bounded: one page of events in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::task::StreamId;
use interlock_store::orchestrator::EventRow;
use tokio_util::sync::CancellationToken;

use super::Orchestrator;

/// Events that are copied at once.
const PAGE: u32 = 100;
/// Longest pause after a failure.
const PATIENCE: Duration = Duration::from_secs(5);

/// The other side cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MirrorError(pub String);

/// Where events are copied to.
#[async_trait]
pub trait EventMirror: Send + Sync + 'static {
    /// Position of the last event that is there; the beginning if there is none.
    ///
    /// # Errors
    /// [`MirrorError`].
    async fn last(&self) -> Result<StreamId, MirrorError>;

    /// Adds events in order. Those that are there already stay as they are.
    ///
    /// # Errors
    /// [`MirrorError`]; some of them may be there.
    async fn add(&self, events: &[EventRow]) -> Result<(), MirrorError>;
}

impl Orchestrator {
    /// Copies events until `stop`. Run it as a background task; on several servers at once it does no harm.
    pub async fn mirror(self, mirror: Arc<dyn EventMirror>, stop: CancellationToken) {
        let mut happened = self.0.happened.subscribe();
        let mut place = None;
        let mut pause = Duration::from_millis(100);
        loop {
            happened.mark_unchanged();
            let wait = match self.mirror_page(&*mirror, &mut place).await {
                Ok(copied) => {
                    pause = Duration::from_millis(100);
                    metrics::counter!("orchestrator_events_mirrored_total", "result" => "copied")
                        .increment(copied);
                    if copied > 0 { Duration::ZERO } else { self.0.settings.poll }
                }
                Err(error) => {
                    // What is there by now is asked for anew.
                    place = None;
                    metrics::counter!("orchestrator_events_mirrored_total", "result" => "failed")
                        .increment(1);
                    tracing::warn!(error = &*error, "events could not be copied; trying again");
                    pause = (pause * 2).min(PATIENCE);
                    pause
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                Ok(()) = happened.changed(), if place.is_some() => {}
            }
        }
    }

    /// Where the copy ends. One that is ahead of what is stored here would never be added to.
    async fn place_of(
        &self,
        mirror: &dyn EventMirror,
    ) -> Result<StreamId, Box<dyn std::error::Error + Send + Sync>> {
        let there = mirror.last().await?;
        let here = self.ask(|mut reads| Box::pin(async move { reads.event_head().await })).await?;
        if there > here {
            let message = format!(
                "the copy is at {there} and the events here end at {here}: it is of other events, name another stream"
            );
            return Err(MirrorError(message).into());
        }
        Ok(there)
    }

    /// Copies the next events, and moves the place behind them; returns how many.
    async fn mirror_page(
        &self,
        mirror: &dyn EventMirror,
        place: &mut Option<StreamId>,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        let after = match *place {
            Some(after) => after,
            None => self.place_of(mirror).await?,
        };
        *place = Some(after);
        let found =
            self.ask(move |mut reads| Box::pin(async move { reads.events_after(after, PAGE).await })).await?;
        if let Some(last) = found.last() {
            mirror.add(&found).await?;
            *place = Some(last.position);
        }
        Ok(found.len() as u64)
    }
}
