//! `mcp.<server>.<tool>`: the tools of MCP servers (Model Context Protocol, revision 2025-06-18), as their client.
//!
//! What a server says of itself is not believed: what a tool does to the world is the operator's word ([`Server`]), texts are
//! shortened and cleaned, and every message, list and wait has a bound. [`stdio`] runs a server as a child process, [`remote`]
//! reaches one over streamable HTTP. Of the protocol only what calls of tools need is spoken: no prompts, no resources, no
//! sampling.

mod remote;
mod stdio;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use interlock_engine::tools::{Call, Done, Failure, Tool, Toolbox};
use interlock_model::pipeline::{Effect, Known, Misuse};
use interlock_model::secret::Secret;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::http::SetupError;

/// The revision that is asked for. Servers that only know an older one say so and are taken at that.
const REVISION: &str = "2025-06-18";
/// Most tools of one server.
const MOST_TOOLS: usize = 500;
/// Most pages of the list of tools.
const MOST_PAGES: usize = 20;
/// Longest message of a server, bytes.
const LONGEST_MESSAGE: usize = 1 << 20;
/// Most messages that a server sends before the answer.
const MOST_MESSAGES: usize = 1_000;
/// How long a server has to start and to list its tools.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const REFRESH: Duration = Duration::from_mins(1);
const LONGEST_TOLD: usize = 300;

/// An MCP server that tasks may use, as the operator describes it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its name in addresses: letters, digits, `_` and `-`.
    pub name: String,
    /// A program and its arguments, for a server over stdio.
    pub command: Vec<String>,
    /// Its whole environment, beside PATH.
    pub env: BTreeMap<String, String>,
    /// Its address, for a server over streamable HTTP.
    pub url: Option<String>,
    /// Sent as bearer token.
    pub token: Option<Secret>,
    /// Tools that change nothing; a `*` at the end stands for any end.
    pub read_only: Vec<String>,
    /// Tools that may be called again without harm.
    pub idempotent: Vec<String>,
}

/// A server cannot be used as it is described.
#[derive(Debug, thiserror::Error)]
pub enum BadServer {
    /// The text says why.
    #[error("the MCP server {0:?}: {1}")]
    Described(String, &'static str),
    /// Requests cannot be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// What went wrong with a request to a server.
#[derive(Debug)]
enum Fault {
    /// It was never sent.
    Unreached(&'static str),
    /// It was sent, and no answer came.
    Broken(&'static str),
    /// The server answered with an error.
    Answer(i64, String),
}

/// How a server is reached.
#[async_trait]
trait Transport: Send + Sync {
    /// Asks, and gives the result. Safe to drop: the server is then not relied on any more.
    async fn request(&self, method: &str, params: Value) -> Result<Value, Fault>;
}

#[derive(Debug, Clone)]
struct Offered {
    name: String,
    description: String,
}

struct Reached {
    server: Server,
    transport: Box<dyn Transport>,
    /// None until the server has been reached.
    offered: ArcSwapOption<Vec<Offered>>,
}

/// The MCP servers that tasks may use.
#[derive(Clone)]
pub struct Servers(Arc<Vec<Arc<Reached>>>);

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|known| &known.server.name)).finish()
    }
}

impl Servers {
    /// These. None is started or asked before it is needed.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn new(servers: Vec<Server>) -> Result<Self, BadServer> {
        let all = servers.into_iter().map(|server| {
            let wrong = |why| Err(BadServer::Described(server.name.clone(), why));
            let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
            if !(1..=64).contains(&server.name.len()) || !server.name.bytes().all(plain) {
                return wrong("a name has 1 to 64 letters, digits, _ and -");
            }
            let transport: Box<dyn Transport> = match (&server.url, server.command.is_empty()) {
                (None, false) => Box::new(stdio::Program::new(server.command.clone(), server.env.clone())),
                (Some(url), true) => {
                    let Some(remote) = remote::Remote::new(url, server.token.clone())? else {
                        return wrong("url is an address such as https://mcp.example.org/mcp");
                    };
                    Box::new(remote)
                }
                _ => return wrong("give either command or url"),
            };
            Ok(Arc::new(Reached { server, transport, offered: ArcSwapOption::empty() }))
        });
        Ok(Self(Arc::new(all.collect::<Result<_, _>>()?)))
    }

    /// Fetches the lists of tools once. A server that is away keeps the list it had.
    pub async fn refresh(&self) {
        let fetch = |known: &Arc<Reached>| {
            let known = Arc::clone(known);
            async move {
                match tokio::time::timeout(START_TIMEOUT, list(known.transport.as_ref())).await {
                    Ok(Ok(offered)) => known.offered.store(Some(Arc::new(offered))),
                    Ok(Err(fault)) => {
                        tracing::warn!(target: "tools", server = known.server.name, ?fault, "an MCP server cannot be asked for its tools");
                    }
                    Err(_) => {
                        tracing::warn!(target: "tools", server = known.server.name, "an MCP server does not list its tools in time");
                    }
                }
            }
        };
        futures::future::join_all(self.0.iter().map(fetch)).await;
    }

    /// Keeps the lists current until it is told to stop.
    pub async fn keep_current(&self, stop: CancellationToken) {
        crate::repeat(REFRESH, stop, || self.refresh()).await;
    }
}

/// The tools of a server. What has no usable name is left out.
async fn list(transport: &dyn Transport) -> Result<Vec<Offered>, Fault> {
    let mut all = Vec::new();
    let mut params = json!({});
    for _ in 0..MOST_PAGES {
        let page = transport.request("tools/list", params).await?;
        for tool in page.get("tools").and_then(Value::as_array).into_iter().flatten() {
            let name = tool.get("name").and_then(Value::as_str).unwrap_or_default();
            let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.' | b'/');
            if !(1..=128).contains(&name.len()) || !name.bytes().all(plain) || all.len() == MOST_TOOLS {
                continue;
            }
            let description =
                tool.get("description").and_then(Value::as_str).unwrap_or("A tool without a description");
            all.push(Offered { name: name.to_owned(), description: told(description) });
        }
        match page.get("nextCursor").and_then(Value::as_str) {
            Some(cursor) if cursor.len() <= 1_024 => params = json!({ "cursor": cursor }),
            _ => break,
        }
    }
    Ok(all)
}

/// A text of a server, for people: one line, no control characters, not long.
fn told(text: &str) -> String {
    let clean =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_TOLD).collect::<String>();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn names(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    })
}

impl Toolbox for Servers {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        let (server, tool) = address.strip_prefix("mcp.")?.split_once('.')?;
        let known = self.0.iter().find(|known| known.server.name == server)?;
        let description = match known.offered.load_full() {
            Some(offered) => offered.iter().find(|offered| offered.name == tool)?.description.clone(),
            // Not reached yet: it may be there.
            None => String::new(),
        };
        Some(Arc::new(McpTool { known: Arc::clone(known), name: tool.to_owned(), description }))
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        let mut all: BTreeMap<String, Arc<dyn Tool>> = BTreeMap::new();
        for known in self.0.iter() {
            for offered in known.offered.load_full().iter().flat_map(|offered| offered.iter()) {
                let Offered { name, description } = offered.clone();
                let tool = McpTool { known: Arc::clone(known), name, description };
                all.insert(format!("mcp.{}.{}", known.server.name, tool.name), Arc::new(tool));
            }
        }
        all
    }
}

struct McpTool {
    known: Arc<Reached>,
    name: String,
    description: String,
}

#[async_trait]
impl Tool for McpTool {
    fn description(&self) -> String {
        format!("{} (MCP server {})", self.description, self.known.server.name)
    }

    fn check(&self, _: Known<'_>) -> Result<Effect, Misuse> {
        let server = &self.known.server;
        Ok(if names(&server.read_only, &self.name) {
            Effect::None
        } else if names(&server.idempotent, &self.name) {
            Effect::Idempotent
        } else {
            Effect::Once
        })
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        let server = &self.known.server.name;
        let params = json!({
            "name": self.name, "arguments": call.input, "_meta": { "interlock/idempotency-key": call.key },
        });
        let begun = tokio::time::Instant::now();
        let answer = self.known.transport.request("tools/call", params).await;
        let status = match &answer {
            Ok(_) => "ok",
            Err(_) => "error",
        };
        metrics::counter!("orchestrator_external_tool_calls_total", "tool_address" => call.address.to_owned(), "status_code" => status)
            .increment(1);
        metrics::histogram!("orchestrator_external_tool_duration_seconds", "tool_address" => call.address.to_owned())
            .record(begun.elapsed().as_secs_f64());
        match answer {
            Ok(result) => read(server, &result),
            Err(Fault::Unreached(why)) => Err(Failure::Unreached(format!("the MCP server {server} {why}"))),
            Err(Fault::Broken(why)) => Err(Failure::Unknown(format!("the MCP server {server} {why}"))),
            // Not a method, or not its parameters (JSON-RPC 2.0 section 5.1): nothing was done.
            Err(Fault::Answer(-32602..=-32600, message)) => {
                Err(Failure::Refused(format!("the MCP server {server} refused: {}", told(&message))))
            }
            Err(Fault::Answer(_, message)) => {
                let message = format!("the MCP server {server} failed: {}", told(&message));
                Err(Failure::Failed { message, again: true })
            }
        }
    }
}

fn read(server: &str, result: &Value) -> Result<Done, Failure> {
    let content = result.get("content").and_then(Value::as_array).cloned().unwrap_or_default();
    let texts: Vec<&str> =
        content.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect();
    let text = texts.join("\n");
    if result.get("isError").and_then(Value::as_bool) == Some(true) {
        let message = format!("the tool of the MCP server {server} failed: {}", told(&text));
        return Err(Failure::Failed { message, again: true });
    }
    if !result.is_object() {
        return Err(Failure::Unknown(format!("the answer of the MCP server {server} is none")));
    }
    Ok(Done::Value(
        json!({ "text": text, "content": content, "structured": result.get("structuredContent") }),
    ))
}

/// A request.
fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

/// What a client says first.
fn hello() -> Value {
    json!({
        "protocolVersion": REVISION, "capabilities": {},
        "clientInfo": { "name": "interlock", "version": env!("CARGO_PKG_VERSION") },
    })
}

/// What a message is to somebody who waits for the answer to `id`.
enum Message {
    Answer(Result<Value, Fault>),
    /// The server asks something itself; this is what it is answered.
    Asked(Value),
    Other,
}

fn sort(message: &Value, id: u64) -> Message {
    match (message.get("method").and_then(Value::as_str), message.get("id")) {
        (Some("ping"), Some(asked)) => Message::Asked(json!({ "jsonrpc": "2.0", "id": asked, "result": {} })),
        (Some(_), Some(asked)) => Message::Asked(json!({
            "jsonrpc": "2.0", "id": asked, "error": { "code": -32601, "message": "this client answers ping only" },
        })),
        (None, Some(answered)) if answered.as_u64() == Some(id) => {
            Message::Answer(match (message.get("result"), message.get("error")) {
                (Some(result), None) => Ok(result.clone()),
                (None, Some(error)) => {
                    let text = error.get("message").and_then(Value::as_str).unwrap_or("no reason given");
                    Err(Fault::Answer(
                        error.get("code").and_then(Value::as_i64).unwrap_or(0),
                        text.to_owned(),
                    ))
                }
                _ => Err(Fault::Broken("sent an answer that is none")),
            })
        }
        _ => Message::Other,
    }
}

#[cfg(test)]
mod tests;
