//! Any stream of server-sent events, over cut connections, from where it broke off. It has no end of its own.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use reqwest::{Method, Response};

use crate::answer::accept;
use crate::sse::{Event, Parser};
use crate::{Client, ClientError};

/// The server says something at least every 15 s; silence of this length is a dead connection.
const SILENCE: Duration = Duration::from_secs(40);
/// First pause after a cut; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause that we choose.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that the server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(30);
/// Pauses between attempts without a single answer that add up to this are too much.
const GIVE_UP: Duration = Duration::from_mins(5);
/// Attempts in a row without an event before it is given up.
const FRUITLESS: u32 = 65;

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEvent {
    /// Its place in the stream.
    pub id: String,
    /// What it says.
    pub data: String,
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something happened.
    Event(StreamEvent),
    /// The connection is gone; the next call connects again after `pause`.
    Cut {
        /// Why.
        reason: String,
        /// Wait before the next attempt.
        pause: Duration,
        /// The server has ended the stream in order: perhaps there is nothing more to come.
        closed: bool,
    },
    /// The connection is back.
    Back,
}

/// Follows one stream.
#[derive(Debug)]
pub struct Stream {
    client: Client,
    path: Vec<String>,
    place: Option<String>,
    connection: Option<(Response, Parser)>,
    ready: VecDeque<Event>,
    pause: Option<Duration>,
    fruitless: u32,
    waited: Duration,
    give_up: Duration,
    attempts: u32,
}

impl Client {
    /// Follows the stream at a path, from behind the event whose id is `after`.
    pub fn stream(&self, path: &[&str], after: Option<String>) -> Stream {
        Stream {
            client: self.clone(),
            path: path.iter().map(|&segment| segment.to_owned()).collect(),
            place: after,
            connection: None,
            ready: VecDeque::new(),
            pause: None,
            fruitless: 0,
            waited: Duration::ZERO,
            give_up: GIVE_UP,
            attempts: FRUITLESS,
        }
    }
}

impl Stream {
    /// Gives up when the pauses between attempts without a single answer add up to this.
    #[must_use]
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up = limit;
        self
    }

    /// Gives up after so many attempts in a row without an event.
    pub(crate) fn attempts(mut self, limit: u32) -> Self {
        self.attempts = limit;
        self
    }

    /// The place to go on from, where events tell it otherwise than by their ids.
    pub(crate) fn set_place(&mut self, place: String) {
        self.place = Some(place);
    }

    /// What happens next. May be dropped at any time and called again: nothing is lost.
    ///
    /// # Errors
    /// The server refuses, or was away for too long.
    pub async fn next(&mut self) -> Result<Told, ClientError> {
        loop {
            if let Some(Event { id, data }) = self.ready.pop_front() {
                if !id.is_empty() {
                    self.place = Some(id.clone());
                }
                self.fruitless = 0;
                return Ok(Told::Event(StreamEvent { id, data }));
            }
            let Some((response, parser)) = &mut self.connection else {
                if let Some(told) = self.connect().await? {
                    return Ok(told);
                }
                continue;
            };
            let (reason, closed) = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    let mut events = Vec::new();
                    let fed = parser.feed(&bytes, &mut events);
                    self.ready.extend(events);
                    match fed {
                        Ok(()) => continue,
                        Err(_) => ("it sent something that is no event", false),
                    }
                }
                Ok(Ok(None)) => ("the server closed the connection", true),
                Ok(Err(_)) => ("the connection broke", false),
                Err(_) => ("the server fell silent", false),
            };
            self.connection = None;
            if self.ready.is_empty() {
                return self.cut(reason.to_owned(), None, closed);
            }
        }
    }

    /// The id of the last event that was given.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    fn cut(&mut self, reason: String, retry_after: Option<u64>, closed: bool) -> Result<Told, ClientError> {
        if self.waited >= self.give_up || self.fruitless >= self.attempts {
            return Err(ClientError::Unreachable { url: self.client.url().to_owned(), reason, sent: true });
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.fruitless.min(5)).min(LONGEST_PAUSE);
        let pause = retry_after.map_or(doubled, |seconds| Duration::from_secs(seconds).min(LONGEST_ASKED));
        self.fruitless += 1;
        self.pause = Some(pause);
        Ok(Told::Cut { reason, pause, closed })
    }

    /// Connects, after the pause if there was a cut. Cancelled during the pause, the next call waits anew.
    async fn connect(&mut self) -> Result<Option<Told>, ClientError> {
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
                Ok(was_cut.then_some(Told::Back))
            }
            Err(error) if error.is_passing() => {
                let retry_after = error.refusal().and_then(|refusal| refusal.retry_after);
                let reason = match error {
                    ClientError::Unreachable { reason, .. } => reason,
                    other => other.to_string(),
                };
                self.cut(reason, retry_after, false).map(Some)
            }
            Err(error) => Err(error),
        }
    }

    async fn open(&self) -> Result<Response, ClientError> {
        self.client.signed_in()?;
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let mut request = self
            .client
            .request(Method::GET, &path, &[])
            .header(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(place) = &self.place {
            let place = HeaderValue::from_str(place)
                .map_err(|_| ClientError::Settings("that is not a place in a stream".to_owned()))?;
            request = request.header(HeaderName::from_static("last-event-id"), place);
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
}
