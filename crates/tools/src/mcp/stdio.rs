//! A server as a child process: one message a line over its standard input and output.
//!
//! A process answers one request at a time; up to four run. One that was given up on, that broke the protocol or that died is
//! killed with its process group, and the next request starts another.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;

use super::{Fault, LONGEST_MESSAGE, MOST_MESSAGES, Message, START_TIMEOUT, Transport, hello, request, sort};

/// Most processes of one server.
const MOST_PROCESSES: usize = 4;

pub(super) struct Program {
    command: Vec<String>,
    env: BTreeMap<String, String>,
    idle: Mutex<Vec<Process>>,
    running: Semaphore,
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    next: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Before it is reaped, so the id is still its own.
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id
            && let Err(error) = kill_process_group(id, Signal::KILL)
        {
            tracing::debug!(target: "tools", %error, "an MCP server was gone already");
        }
    }
}

impl Program {
    pub(super) fn new(command: Vec<String>, env: BTreeMap<String, String>) -> Self {
        Self { command, env, idle: Mutex::default(), running: Semaphore::new(MOST_PROCESSES) }
    }

    fn idle(&self) -> Option<Process> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut process) = idle.pop() {
            if matches!(process.child.try_wait(), Ok(None)) {
                return Some(process);
            }
        }
        None
    }

    async fn start(&self) -> Result<Process, Fault> {
        let (program, arguments) = self.command.split_first().ok_or(Fault::Unreached("has no program"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            // Nothing of our environment: it may hold secrets.
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            tracing::warn!(target: "tools", program, %error, "an MCP server cannot be started");
            Fault::Unreached("cannot be started")
        })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::Unreached("cannot be started"));
        };
        let mut process = Process { child, input, output: BufReader::new(output), next: 0 };
        let greeting = hello();
        match tokio::time::timeout(START_TIMEOUT, process.ask("initialize", &greeting)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(Fault::Unreached("does not start as an MCP server does")),
        }
        process
            .tell(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
            .await
            .map_err(|_| Fault::Unreached("ended while it started"))?;
        Ok(process)
    }
}

impl Process {
    async fn tell(&mut self, message: &Value) -> std::io::Result<()> {
        let mut line = message.to_string();
        line.push('\n');
        self.input.write_all(line.as_bytes()).await?;
        self.input.flush().await
    }

    /// The next line, without holding more of it than a message may have.
    async fn line(&mut self) -> Result<Vec<u8>, Fault> {
        let mut line = Vec::new();
        loop {
            let bytes =
                self.output.fill_buf().await.map_err(|_| Fault::Broken("ended before it answered"))?;
            if bytes.is_empty() {
                return Err(Fault::Broken("ended before it answered"));
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if line.len() + part.len() > LONGEST_MESSAGE {
                return Err(Fault::Broken("sent a message that is too long"));
            }
            line.extend_from_slice(part);
            let taken = part.len() + usize::from(end.is_some());
            self.output.consume(taken);
            if end.is_some() {
                return Ok(line);
            }
        }
    }

    async fn ask(&mut self, method: &str, params: &Value) -> Result<Value, Fault> {
        self.next += 1;
        let id = self.next;
        self.tell(&request(id, method, params))
            .await
            .map_err(|_| Fault::Broken("ended before it answered"))?;
        for _ in 0..MOST_MESSAGES {
            let line = self.line().await?;
            // What is no message is a log line of a careless server.
            let Ok(message) = interlock_model::strict_json::parse(&line) else { continue };
            match sort(&message, id) {
                Message::Answer(answer) => return answer,
                Message::Asked(answer) => {
                    self.tell(&answer).await.map_err(|_| Fault::Broken("ended before it answered"))?;
                }
                Message::Other => {}
            }
        }
        Err(Fault::Broken("talks and does not answer"))
    }
}

#[async_trait]
impl Transport for Program {
    async fn request(&self, method: &str, params: Value) -> Result<Value, Fault> {
        let _turn = self.running.acquire().await.map_err(|_| Fault::Unreached("is not used any more"))?;
        let mut process = match self.idle() {
            Some(process) => process,
            None => self.start().await?,
        };
        let answer = process.ask(method, &params).await;
        if matches!(answer, Ok(_) | Err(Fault::Answer(..))) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        }
        answer
    }
}
