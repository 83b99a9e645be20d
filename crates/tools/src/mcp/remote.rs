//! A server over streamable HTTP: each message is a POST, answered with JSON or with a stream of events.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use interlock_model::secret::Secret;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::{
    Fault, LONGEST_MESSAGE, MOST_MESSAGES, Message, REVISION, START_TIMEOUT, Transport, hello, request, sort,
};
use crate::http::{SetupError, client, read};
use crate::net::{Reach, System};

/// Most bytes of one stream of events.
const LONGEST_STREAM: usize = 4 << 20;
const LONGEST_SESSION: usize = 1_024;

pub(super) struct Remote {
    url: Url,
    token: Option<Secret>,
    client: Client,
    /// Headers that the server wants from now on; None before it was greeted.
    session: Mutex<Option<HeaderMap>>,
    next: AtomicU64,
}

fn unreached<T>(_: T) -> Fault {
    Fault::Unreached("cannot be reached")
}

impl Remote {
    /// None: it is no address that can be asked.
    pub(super) fn new(url: &str, token: Option<Secret>) -> Result<Option<Self>, SetupError> {
        let Ok(url) = Url::parse(url) else { return Ok(None) };
        let origin = url.origin().ascii_serialization();
        // The operator has written the address down: that is the permission to reach it, wherever it is.
        let everywhere = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        let Ok(reach) = Reach::new(&[origin], &everywhere) else { return Ok(None) };
        if reach.check(&url).is_err() {
            return Ok(None);
        }
        let client = client(&Arc::new(reach), Arc::new(System), None)?;
        Ok(Some(Self { url, token, client, session: Mutex::default(), next: AtomicU64::new(0) }))
    }

    async fn post(&self, message: &Value, session: &HeaderMap) -> Result<Response, Fault> {
        let mut post = self
            .client
            .post(self.url.clone())
            .header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json")
            .headers(session.clone())
            .body(message.to_string());
        if let Some(token) = &self.token {
            post = post.bearer_auth(token.expose());
        }
        post.send().await.map_err(|error| {
            if error.is_connect() { unreached(error) } else { Fault::Broken("broke off before it answered") }
        })
    }

    /// Greets the server if nobody has, and gives the headers of the session.
    async fn session(&self) -> Result<HeaderMap, Fault> {
        if let Some(session) = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(session);
        }
        let greet = async {
            let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
            let response = self.post(&request(id, "initialize", &hello()), &HeaderMap::new()).await?;
            let given =
                response.headers().get("mcp-session-id").filter(|given| given.len() <= LONGEST_SESSION);
            let mut session = HeaderMap::new();
            if let Some(given) = given {
                session.insert("mcp-session-id", given.clone());
            }
            let answer = answer(response, id).await?;
            let revision = answer.get("protocolVersion").and_then(Value::as_str).unwrap_or(REVISION);
            if let Ok(revision) = HeaderValue::from_str(revision) {
                session.insert("mcp-protocol-version", revision);
            }
            self.post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }), &session).await?;
            Ok::<_, Fault>(session)
        };
        let session =
            tokio::time::timeout(START_TIMEOUT, greet).await.map_err(unreached)?.map_err(unreached)?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        Ok(session)
    }
}

#[async_trait]
impl Transport for Remote {
    async fn request(&self, method: &str, params: Value) -> Result<Value, Fault> {
        let session = self.session().await?;
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let response = self.post(&request(id, method, &params), &session).await?;
        if response.status() == StatusCode::NOT_FOUND && session.contains_key("mcp-session-id") {
            // The session is over and the request was not taken; the next one greets again.
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(Fault::Unreached("has ended the session"));
        }
        answer(response, id).await
    }
}

/// The answer to a request, out of JSON or of a stream.
async fn answer(response: Response, id: u64) -> Result<Value, Fault> {
    let status = response.status();
    if matches!(status.as_u16(), 401 | 403) {
        return Err(Fault::Unreached("does not let this server in"));
    }
    if !status.is_success() {
        return Err(match status.as_u16() {
            400 | 404 | 405 | 406 | 415 | 429 => Fault::Unreached("refused the request"),
            _ => Fault::Broken("answered with an error of its own"),
        });
    }
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/event-stream") {
        return stream(response, id).await;
    }
    let bytes = read(response, LONGEST_MESSAGE)
        .await
        .map_err(|_| Fault::Broken("sent a message that is too long"))?;
    let message = interlock_model::strict_json::parse(&bytes)
        .map_err(|_| Fault::Broken("sent an answer that is none"))?;
    match sort(&message, id) {
        Message::Answer(answer) => answer,
        _ => Err(Fault::Broken("sent the answer to another question")),
    }
}

async fn stream(mut response: Response, id: u64) -> Result<Value, Fault> {
    let (mut line, mut data, mut bytes, mut messages) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        let chunk =
            response.chunk().await.ok().flatten().ok_or(Fault::Broken("broke off before it answered"))?;
        bytes += chunk.len();
        if bytes > LONGEST_STREAM {
            return Err(Fault::Broken("sent a message that is too long"));
        }
        for byte in chunk {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            // An event ends with an empty line (WHATWG HTML section 9.2).
            if !line.is_empty() {
                if let Some(part) = line.strip_prefix(b"data:") {
                    data.extend_from_slice(part.strip_prefix(b" ").unwrap_or(part));
                    data.push(b'\n');
                }
                line.clear();
                continue;
            }
            if data.is_empty() {
                continue;
            }
            messages += 1;
            if messages > MOST_MESSAGES {
                return Err(Fault::Broken("talks and does not answer"));
            }
            let message = interlock_model::strict_json::parse(&data);
            data.clear();
            // What the server asks by itself has no way back here; it has been told that we can do nothing.
            if let Ok(message) = message
                && let Message::Answer(answer) = sort(&message, id)
            {
                return answer;
            }
        }
    }
}
