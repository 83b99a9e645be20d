//! What the tests of the tools share: a call from nowhere, and small servers.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use interlock_engine::pipeline::{Decision, Lost, Note, PublishError, RunHost};
use interlock_engine::tools::{Call, Done, Failure, Tool, Toolbox};
use interlock_model::Timestamp;
use interlock_model::pipeline::{Effect, Known, Misuse, StepRecord};
use interlock_model::task::{EventId, TaskId, TaskRunId};
use interlock_model::time::TestClock;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A host that is told something by these tools, and never asked.
#[derive(Default)]
pub(crate) struct Listener(Mutex<Vec<Note>>);

impl Listener {
    pub(crate) fn told(&self) -> Vec<Note> {
        self.0.lock().expect("notes").clone()
    }
}

#[async_trait]
impl RunHost for Listener {
    async fn keep(&self, _: &StepRecord) -> Result<(), Lost> {
        Err(Lost)
    }

    async fn decision(&self, _: u32, _: &str) -> Result<Option<Decision>, Lost> {
        Err(Lost)
    }

    fn tell(&self, note: Note) {
        self.0.lock().expect("notes").push(note);
    }

    async fn publish(&self, _: u32, _: &str, _: Map<String, Value>) -> Result<EventId, PublishError> {
        Err(PublishError::Lost)
    }
}

/// Gives back its input.
pub(crate) struct Echo;

#[async_trait]
impl Tool for Echo {
    fn description(&self) -> String {
        "Echo".to_owned()
    }

    fn check(&self, _: Known<'_>) -> Result<Effect, Misuse> {
        Ok(Effect::None)
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        Ok(Done::Value(Value::Object(call.input)))
    }
}

pub(crate) struct Bench {
    pub(crate) clock: TestClock,
    pub(crate) cancel: CancellationToken,
    pub(crate) timeout: Duration,
    pub(crate) host: Listener,
}

impl Default for Bench {
    fn default() -> Self {
        Self {
            clock: TestClock::at(Timestamp::from_seconds(1_768_471_200)),
            cancel: CancellationToken::new(),
            timeout: Duration::from_secs(30),
            host: Listener::default(),
        }
    }
}

impl Bench {
    /// Checks the input and calls the tool, as the executor does.
    pub(crate) async fn call(
        &self,
        tools: &dyn Toolbox,
        address: &str,
        input: &Value,
    ) -> Result<Value, Failure> {
        let tool = tools.tool(address).unwrap_or_else(|| panic!("no tool {address}"));
        let input = input.as_object().expect("an object").clone();
        tool.check(Known { fixed: &input, open: &[] }).unwrap_or_else(|misuse| panic!("{misuse:?}"));
        let call = Call {
            input,
            address,
            key: "key-1".to_owned(),
            owner: "ada",
            task: TaskId::from_bytes([1; 16]),
            run: TaskRunId::from_bytes([2; 16]),
            lineage: TaskRunId::from_bytes([3; 16]),
            pipeline: [0; 32],
            step: 0,
            until: None,
            timeout: self.timeout,
            cancel: self.cancel.clone(),
            host: &self.host,
            following: &|| json!([]),
            clock: &self.clock,
        };
        match tokio::time::timeout(self.timeout + tool.grace(), tool.call(call)).await {
            Ok(Ok(Done::Value(value))) => Ok(value),
            Ok(Ok(other)) => panic!("{other:?}"),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::TimedOut("dropped".to_owned())),
        }
    }
}

/// What a tool says about an input: its effect, or the misuse.
pub(crate) fn check(tool: &dyn Tool, input: &Value) -> Result<Effect, String> {
    let input = input.as_object().expect("an object");
    tool.check(Known { fixed: input, open: &[] }).map_err(|misuse| match misuse {
        Misuse::Unknown => "unknown".to_owned(),
        Misuse::Input(name, message) => format!("{}: {message}", name.unwrap_or_default()),
    })
}

/// One request as a small server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A server for HTTP/1.1 on a free port of loopback. `answer` gives the bytes of each answer; after them the connection closes.
pub(crate) async fn serve<F>(answer: F) -> u16
where
    F: Fn(Seen) -> Vec<u8> + Send + Sync + Clone + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::task::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::task::spawn(async move {
                let _ = one(stream, answer).await;
            });
        }
    });
    port
}

async fn one<F: Fn(Seen) -> Vec<u8>>(mut stream: TcpStream, answer: F) -> std::io::Result<()> {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
            let seen = Seen { line: line.to_owned(), headers: headers.to_owned(), body: body.to_owned() };
            let length: usize = seen.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                stream.write_all(&answer(seen)).await?;
                return stream.shutdown().await;
            }
        }
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        read.extend_from_slice(&buffer[..count]);
    }
}

/// An answer with a body.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}
