//! The events of a run as they happen, over cut connections, until the run is over.

use std::collections::VecDeque;
use std::time::Duration;

use interlock_model::RunId;
use interlock_model::device::EventKind;
use interlock_model::wire::RunEventView;
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use reqwest::{Method, Response};

use crate::answer::accept;
use crate::sse::Parser;
use crate::{Client, ClientError};

/// The server says something at least every 15 s; silence of this length is a dead connection.
const SILENCE: Duration = Duration::from_secs(40);
/// First pause after a cut; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    after: u64,
    connection: Option<(Response, Parser)>,
    ready: VecDeque<RunEventView>,
    pause: Option<Duration>,
    fruitless: u32,
    give_up: Duration,
    waited: Duration,
    over: bool,
}

impl Client {
    /// Follows the events of a run that come after number `after`. Gives up when the server was away for five minutes.
    pub fn follow(&self, run: RunId, after: u64) -> Follow {
        Follow {
            client: self.clone(),
            run,
            after,
            connection: None,
            ready: VecDeque::new(),
            pause: None,
            fruitless: 0,
            give_up: Duration::from_mins(5),
            waited: Duration::ZERO,
            over: false,
        }
    }
}

impl Follow {
    /// Gives up when the pauses between attempts without a single answer add up to this.
    #[must_use]
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up = limit;
        self
    }

    /// What happens next; `None` when the run is over. May be dropped at any time and called again: nothing is lost.
    ///
    /// # Errors
    /// The server refuses, or was away for too long.
    pub async fn next(&mut self) -> Result<Option<News>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.after = event.seq;
                self.fruitless = 0;
                self.over |= matches!(event.kind, EventKind::State { state } if state.is_final());
                return Ok(Some(News::Event(event)));
            }
            if self.over {
                return Ok(None);
            }
            let Some((response, parser)) = &mut self.connection else {
                if let Some(news) = self.connect().await? {
                    return Ok(Some(news));
                }
                continue;
            };
            let reason = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    let mut events = Vec::new();
                    let fed = parser.feed(&bytes, &mut events);
                    self.take(&events);
                    match fed {
                        Ok(()) => continue,
                        Err(_) => "it sent something that is no event".to_owned(),
                    }
                }
                Ok(Ok(None)) => {
                    self.connection = None;
                    if self.ended().await? {
                        self.over = true;
                        return Ok(None);
                    }
                    "the server closed the connection".to_owned()
                }
                Ok(Err(_)) => "the connection broke".to_owned(),
                Err(_) => "the server fell silent".to_owned(),
            };
            self.connection = None;
            if self.ready.is_empty() {
                return self.cut(reason, None).map(Some);
            }
        }
    }

    /// Number of the last event that was given.
    pub fn after(&self) -> u64 {
        self.after
    }

    fn take(&mut self, events: &[crate::sse::Event]) {
        let mut last = self.ready.back().map_or(self.after, |event| event.seq);
        for event in events {
            // Kinds that this version does not know are passed over.
            let Ok(event) = serde_json::from_str::<RunEventView>(&event.data) else { continue };
            if event.seq > last {
                last = event.seq;
                self.ready.push_back(event);
            }
        }
    }

    fn cut(&mut self, reason: String, retry_after: Option<u64>) -> Result<News, ClientError> {
        if self.waited >= self.give_up || self.fruitless >= 100 {
            return Err(ClientError::Unreachable { url: self.client.url().to_owned(), reason, sent: true });
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.fruitless.min(5)).min(LONGEST_PAUSE);
        let pause =
            retry_after.map_or(doubled, |seconds| Duration::from_secs(seconds).min(Duration::from_secs(30)));
        self.fruitless += 1;
        self.pause = Some(pause);
        Ok(News::Cut { reason, pause })
    }

    /// Connects, after the pause if there was a cut. Cancelled during the pause, the next call waits anew.
    async fn connect(&mut self) -> Result<Option<News>, ClientError> {
        let was_cut = if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
            self.pause = None;
            self.waited += pause;
            true
        } else {
            false
        };
        match self.open().await {
            Ok(response) => {
                self.connection = Some((response, Parser::default()));
                self.waited = Duration::ZERO;
                Ok(was_cut.then_some(News::Back))
            }
            Err(error) if error.is_passing() => {
                let retry_after = error.refusal().and_then(|refusal| refusal.retry_after);
                let reason = match error {
                    ClientError::Unreachable { reason, .. } => reason,
                    other => other.to_string(),
                };
                self.cut(reason, retry_after).map(Some)
            }
            Err(error) => Err(error),
        }
    }

    async fn open(&self) -> Result<Response, ClientError> {
        self.client.signed_in()?;
        let mut request = self
            .client
            .request(Method::GET, &["runs", &self.run.to_string(), "events"], &[])
            .header(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if self.after > 0 {
            request = request.header(HeaderName::from_static("last-event-id"), self.after);
        }
        let silent = || ClientError::Unreachable {
            url: self.client.url().to_owned(),
            reason: "no answer within the time limit".to_owned(),
            sent: true,
        };
        let response = tokio::time::timeout(self.client.answer_timeout(), self.client.send(request))
            .await
            .map_err(|_| silent())??;
        accept(self.client.url(), response).await
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
