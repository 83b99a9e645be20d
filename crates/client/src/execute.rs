//! Starting a run, at most once.
//!
//! The key makes the request the same act however often it arrives, so a request whose answer was lost is sent again. The
//! server answers a repeated key with the first run.

use std::time::Duration;

use interlock_model::RunId;
use interlock_model::wire::{ExecuteAnswer, RunView};
use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::answer::{self, accept, run_header, text_header};
use crate::{Client, ClientError};

/// Pauses between attempts; one attempt more than pauses.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(600), Duration::from_secs(2), Duration::from_secs(4)];

/// What to run.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The action.
    pub action: String,
    /// Its parameters.
    pub parameters: Map<String, Value>,
    /// 1 to 255 visible ASCII characters, new for every act.
    pub key: String,
    /// Execute with the device's simulator.
    pub simulated: bool,
    /// Where the call stands in a trace.
    pub traceparent: Option<String>,
}

/// A run that is on record.
#[derive(Debug)]
pub struct Submitted {
    /// Its id.
    pub run: RunId,
    /// An earlier request with the same key had started it.
    pub replayed: bool,
    /// The request had to be sent more than once.
    pub resent: bool,
}

impl Client {
    /// Puts a run on record and returns at once.
    ///
    /// A lost connection is answered by sending the same request with the same key again, five times in all.
    ///
    /// # Errors
    /// A refusal names the run when there is one. After [`ClientError::Unreachable`] with `sent` it is not known whether
    /// there is a run: send the same submission again to find out.
    pub async fn submit(&self, submission: &Submission) -> Result<Submitted, ClientError> {
        self.signed_in()?;
        let key = HeaderValue::from_str(&submission.key)
            .ok()
            .filter(|key| (1..=255).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic))
            .ok_or_else(|| {
                ClientError::Settings(
                    "an idempotency key is 1 to 255 visible ASCII characters without spaces".to_owned(),
                )
            })?;
        let mut pauses = PAUSES.iter();
        let mut maybe_arrived = false;
        let mut resent = false;
        loop {
            match self.submit_once(submission, &key).await {
                Ok(submitted) => return Ok(Submitted { resent, ..submitted }),
                Err(error) if error.is_passing() => {
                    maybe_arrived |= matches!(error, ClientError::Unreachable { sent: true, .. });
                    let Some(pause) = pauses.next() else { return Err(told(error, maybe_arrived)) };
                    let wait = error
                        .refusal()
                        .and_then(|refusal| refusal.retry_after)
                        .map_or(*pause, |s| Duration::from_secs(s.min(10)));
                    tokio::time::sleep(wait).await;
                    resent = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn submit_once(
        &self,
        submission: &Submission,
        key: &HeaderValue,
    ) -> Result<Submitted, ClientError> {
        let mut request = self
            .request(Method::POST, &["execute", &submission.action], &[])
            .timeout(self.answer_timeout())
            .header(HeaderName::from_static("idempotency-key"), key.clone())
            .header(HeaderName::from_static("prefer"), HeaderValue::from_static("respond-async"))
            .header(
                HeaderName::from_static("interlock-simulate"),
                HeaderValue::from_static(if submission.simulated { "true" } else { "false" }),
            )
            .json(&submission.parameters);
        if let Some(trace) = &submission.traceparent {
            request = request.header(HeaderName::from_static("traceparent"), trace);
        }
        let response = accept(self.url(), self.send(request).await?).await?;
        let replayed = text_header(response.headers(), "idempotency-replayed").as_deref() == Some("true");
        let run = match run_header(response.headers()) {
            Some(run) => run,
            // Some proxies drop headers they do not know; both bodies name the run.
            None if response.status().as_u16() == 202 => {
                answer::value::<RunView>(self.url(), response).await?.id
            }
            None => answer::value::<ExecuteAnswer>(self.url(), response).await?.run_id,
        };
        Ok(Submitted { run, replayed, resent: false })
    }
}

/// If any attempt may have arrived, the last error says so.
fn told(error: ClientError, maybe_arrived: bool) -> ClientError {
    match error {
        ClientError::Unreachable { url, reason, sent } => {
            ClientError::Unreachable { url, reason, sent: sent || maybe_arrived }
        }
        other => other,
    }
}
