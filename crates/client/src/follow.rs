//! The events of a run as they happen, over cut connections, until the run is over.

use std::time::Duration;

use interlock_model::RunId;
use interlock_model::device::EventKind;
use interlock_model::wire::RunEventView;

use crate::{Client, ClientError, Stream, Told};

/// Attempts in a row without an event before it is given up: an action may be silent for long.
const ATTEMPTS: u32 = 100;

/// What following a run brings.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// Something happened.
    Event(RunEventView),
    /// The connection is gone; the next call connects again after `pause`.
    Cut {
        /// Why.
        reason: String,
        /// Wait before the next attempt.
        pause: Duration,
    },
    /// The connection is back.
    Back,
}

/// Follows one run. Dropping it ends nothing on the server.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    run: RunId,
    stream: Stream,
    after: u64,
    over: bool,
}

impl Client {
    /// Follows the events of a run that come after number `after`. Gives up when the server was away for five minutes.
    pub fn follow(&self, run: RunId, after: u64) -> Follow {
        let place = (after > 0).then(|| after.to_string());
        let stream = self.stream(&["runs", &run.to_string(), "events"], place).attempts(ATTEMPTS);
        Follow { client: self.clone(), run, stream, after, over: false }
    }
}

impl Follow {
    /// Gives up when the pauses between attempts without a single answer add up to this.
    #[must_use]
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.stream = self.stream.give_up_after(limit);
        self
    }

    /// What happens next; `None` when the run is over. May be dropped at any time and called again: nothing is lost.
    ///
    /// # Errors
    /// The server refuses, or was away for too long.
    pub async fn next(&mut self) -> Result<Option<News>, ClientError> {
        while !self.over {
            match self.stream.next().await? {
                Told::Event(said) => {
                    // Kinds that this version does not know are passed over, and so is what came before.
                    let Ok(event) = serde_json::from_str::<RunEventView>(&said.data) else { continue };
                    if event.seq <= self.after {
                        continue;
                    }
                    self.after = event.seq;
                    self.stream.set_place(event.seq.to_string());
                    self.over = matches!(event.kind, EventKind::State { state } if state.is_final());
                    return Ok(Some(News::Event(event)));
                }
                Told::Cut { closed: true, .. } if self.ended().await? => self.over = true,
                Told::Cut { reason, pause, .. } => return Ok(Some(News::Cut { reason, pause })),
                Told::Back => return Ok(Some(News::Back)),
            }
        }
        Ok(None)
    }

    /// Number of the last event that was given.
    pub fn after(&self) -> u64 {
        self.after
    }

    /// Whether a stream that ended without a final state did so because the run is over.
    async fn ended(&self) -> Result<bool, ClientError> {
        match self.client.run(self.run).await {
            Ok(run) => Ok(run.state.is_final()),
            Err(error) if error.is_passing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
