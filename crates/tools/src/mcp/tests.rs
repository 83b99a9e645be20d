//! Servers that speak MCP, and servers that lie.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use super::*;
use crate::testing::{Bench, Seen, answer, check, serve};

/// An MCP server in Python, whose tools misbehave in every way that was thought of.
const PROGRAM: &str = r#"
import json, os, sys, time

def send(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()

TOOLS = ["echo", "fail", "refuse", "die", "hang", "flood", "large", "lie", "chatty", "environment", "pid", "child"]
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        send({"jsonrpc": "2.0", "id": id, "result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}})
    elif method == "tools/list":
        first = "cursor" not in message["params"]
        names = TOOLS[:6] if first else TOOLS[6:] + ["bad name", "x" * 200]
        tools = [{"name": name, "description": "Does\n\x1b[31m" + name + " " + "y" * 1000, "inputSchema": {"type": "object"}} for name in names]
        send({"jsonrpc": "2.0", "id": id, "result": {"tools": tools, **({"nextCursor": "2"} if first else {})}})
    elif method == "tools/call":
        name, given = message["params"]["name"], message["params"]["arguments"]
        def give(text, **more):
            send({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": text}], **more}})
        if name == "echo":
            give("hello", structuredContent=given)
        elif name == "fail":
            give("no such\nplate", isError=True)
        elif name == "refuse":
            send({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "bad arguments"}})
        elif name == "die":
            os._exit(1)
        elif name == "hang":
            time.sleep(3600)
        elif name == "flood":
            while True:
                sys.stdout.write("not json\n")
        elif name == "large":
            give("x" * 50_000_000)
        elif name == "lie":
            send({"jsonrpc": "2.0", "id": id + 1, "result": {"content": [{"type": "text", "text": "not yours"}]}})
            send({"jsonrpc": "2.0", "id": id, "result": 5})
        elif name == "chatty":
            print("log line")
            send({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}})
            send({"jsonrpc": "2.0", "id": "s1", "method": "sampling/createMessage", "params": {}})
            refused = json.loads(sys.stdin.readline())
            give(str(refused["error"]["code"]))
        elif name == "environment":
            give(json.dumps(sorted(os.environ)))
        elif name == "pid":
            give(str(os.getpid()))
        elif name == "child":
            import subprocess
            child = subprocess.Popen(["sleep", "3600"])
            open(given["file"], "w").write(str(child.pid))
            time.sleep(3600)
"#;

fn server(name: &str) -> Server {
    Server {
        name: name.to_owned(),
        command: Vec::new(),
        env: BTreeMap::new(),
        url: None,
        token: None,
        read_only: vec!["echo".to_owned()],
        idempotent: vec!["re*".to_owned()],
    }
}

struct Child {
    folder: tempfile::TempDir,
    servers: Servers,
}

fn program() -> Child {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("server.py");
    std::fs::write(&path, PROGRAM).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    let command = vec!["python3".to_owned(), "-u".to_owned(), path.display().to_string()];
    let env = BTreeMap::from([("WANTED".to_owned(), "1".to_owned())]);
    let servers = Servers::new(vec![Server { command, env, ..server("t") }]).expect("a server");
    Child { folder, servers }
}

async fn ask(servers: &Servers, tool: &str, input: Value) -> Result<Value, Failure> {
    let bench = Bench { timeout: Duration::from_secs(20), ..Bench::default() };
    bench.call(servers, &format!("mcp.t.{tool}"), &input).await
}

#[tokio::test]
async fn tools_of_a_program_are_listed_and_called() {
    let child = program();
    child.servers.refresh().await;
    let all = child.servers.all();
    assert_eq!(all.len(), 12);
    let echo = all["mcp.t.echo"].description();
    assert!(echo.starts_with("Does [31mecho yyy") && echo.len() < 350 && !echo.contains('\n'), "{echo:?}");
    assert!(child.servers.tool("mcp.t.bad name").is_none());

    let result = ask(&child.servers, "echo", json!({ "a": 1 })).await.expect("an answer");
    assert_eq!((&result["text"], &result["structured"]), (&json!("hello"), &json!({ "a": 1 })));
    assert_eq!(ask(&child.servers, "chatty", json!({})).await.expect("an answer")["text"], "-32601");
    let environment = ask(&child.servers, "environment", json!({})).await.expect("an answer");
    let names: Vec<String> =
        serde_json::from_str(environment["text"].as_str().expect("a text")).expect("JSON");
    assert!(names.iter().all(|name| ["LC_CTYPE", "PATH", "WANTED"].contains(&name.as_str())), "{names:?}");
}

#[tokio::test]
async fn a_program_that_dies_lies_floods_or_refuses_is_told_truthfully_and_started_again() {
    let child = program();
    let first = ask(&child.servers, "pid", json!({})).await.expect("an answer")["text"].clone();
    assert_eq!(
        ask(&child.servers, "pid", json!({})).await.expect("an answer")["text"],
        first,
        "one process serves on"
    );
    for (tool, expected) in [
        ("fail", "failed"),
        ("refuse", "refused"),
        ("die", "unknown"),
        ("flood", "unknown"),
        ("large", "unknown"),
        ("lie", "unknown"),
    ] {
        let failure = ask(&child.servers, tool, json!({})).await.expect_err(tool);
        let kind = match &failure {
            Failure::Failed { .. } => "failed",
            Failure::Refused(_) => "refused",
            Failure::Unknown(_) => "unknown",
            other => panic!("{tool}: {other:?}"),
        };
        assert_eq!(kind, expected, "{tool}: {failure:?}");
        assert!(failure.to_string().len() < 500 && !failure.to_string().contains('\n'), "{failure}");
        assert_eq!(
            ask(&child.servers, "echo", json!({})).await.expect("it is there again")["text"],
            "hello",
            "{tool}"
        );
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children_when_it_is_given_up_on() {
    let child = program();
    let file = child.folder.path().join("pid");
    let bench = Bench { timeout: Duration::from_secs(3), ..Bench::default() };
    let ended = bench.call(&child.servers, "mcp.t.child", &json!({ "file": file })).await;
    assert!(matches!(ended, Err(Failure::TimedOut(_))), "{ended:?}");
    let grandchild = std::fs::read_to_string(&file).expect("it was started");
    let gone = async {
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the grandchild is gone");
    assert_eq!(ask(&child.servers, "echo", json!({})).await.expect("another process")["text"], "hello");
}

#[tokio::test]
async fn a_program_that_is_no_server_is_not_reached() {
    for command in [vec!["/nonexistent"], vec!["true"], vec!["cat", "/dev/zero"]] {
        let command = command.into_iter().map(str::to_owned).collect();
        let servers = Servers::new(vec![Server { command, ..server("t") }]).expect("a server");
        servers.refresh().await;
        assert!(servers.all().is_empty());
        assert!(matches!(ask(&servers, "echo", json!({})).await, Err(Failure::Unreached(_))));
    }
}

/// A server over HTTP: sessions, streams, and a session that ends.
async fn remote(log: Arc<Mutex<Vec<Seen>>>) -> Servers {
    let port = serve(move |seen| {
        let message: Value = serde_json::from_str(&seen.body).expect("JSON");
        let session = seen.header("mcp-session-id").map(str::to_owned);
        log.lock().expect("log").push(seen);
        let id = message["id"].clone();
        let json = |result: Value| {
            let body = json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string();
            answer(200, "content-type: application/json\r\nmcp-session-id: s1\r\n", &body)
        };
        match (message["method"].as_str(), message["params"]["name"].as_str()) {
            (Some("initialize"), _) => json(json!({ "protocolVersion": "2025-03-26", "capabilities": {} })),
            (Some("notifications/initialized"), _) => answer(202, "", ""),
            (Some("tools/list"), _) => json(json!({ "tools": [{ "name": "echo" }] })),
            (_, Some("echo")) => {
                let note = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": {} });
                let result = json!({ "content": [{ "type": "text", "text": format!("{session:?}") }] });
                let told = json!({ "jsonrpc": "2.0", "id": id, "result": result });
                answer(
                    200,
                    "content-type: text/event-stream\r\n",
                    &format!(": hello\n\ndata: {note}\n\nevent: message\r\ndata: {told}\r\n\r\n"),
                )
            }
            (_, Some("over")) => answer(404, "", ""),
            (_, Some("cut")) => answer(200, "content-type: text/event-stream\r\n", "data: {\"jsonrpc\""),
            (_, Some("other")) => {
                answer(200, "content-type: application/json\r\n", r#"{"jsonrpc":"2.0","id":999,"result":{}}"#)
            }
            (_, Some("redirect")) => answer(307, "location: http://169.254.169.254/\r\n", ""),
            (_, Some("denied")) => answer(401, "", ""),
            _ => answer(500, "", ""),
        }
    })
    .await;
    let url = Some(format!("http://127.0.0.1:{port}/mcp"));
    Servers::new(vec![Server { url, token: Some(Secret::new("tok")), ..server("t") }]).expect("a server")
}

#[tokio::test]
async fn tools_over_http_are_called_within_a_session() {
    let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let servers = remote(Arc::clone(&log)).await;

    let result = ask(&servers, "echo", json!({})).await.expect("an answer");
    assert_eq!(result["text"], "Some(\"s1\")");
    let seen = log.lock().expect("log").last().expect("a request").clone();
    assert_eq!(seen.header("mcp-protocol-version"), Some("2025-03-26"));
    assert_eq!(seen.header("authorization"), Some("Bearer tok"));
    assert!(seen.body.contains("key-1"));

    for (tool, expected) in [
        ("over", "unreached"),
        ("denied", "unreached"),
        ("cut", "unknown"),
        ("other", "unknown"),
        ("redirect", "unknown"),
        ("broken", "unknown"),
    ] {
        let failure = ask(&servers, tool, json!({})).await.expect_err(tool);
        let kind = if matches!(failure, Failure::Unreached(_)) { "unreached" } else { "unknown" };
        assert_eq!(kind, expected, "{tool}: {failure:?}");
    }
    servers.refresh().await;
    assert_eq!(servers.all().keys().collect::<Vec<_>>(), ["mcp.t.echo"]);
    assert!(servers.tool("mcp.t.over").is_none(), "what is not listed is not there");
}

#[test]
fn what_a_tool_does_is_the_operator_s_word() {
    let servers =
        Servers::new(vec![Server { command: vec!["true".to_owned()], ..server("t") }]).expect("a server");
    for (tool, effect) in [
        ("echo", Effect::None),
        ("refresh", Effect::Idempotent),
        ("echo2", Effect::Once),
        ("dispense", Effect::Once),
    ] {
        let tool = servers.tool(&format!("mcp.t.{tool}")).expect("perhaps");
        assert_eq!(check(tool.as_ref(), &json!({})), Ok(effect));
    }
    assert!(servers.tool("mcp.other.echo").is_none());
}

#[test]
fn a_server_that_is_described_wrongly_is_named() {
    let command = || vec!["true".to_owned()];
    let url = || Some("https://a.example/mcp".to_owned());
    for (bad, part) in [
        (Server { command: command(), ..server("a.b") }, "letters"),
        (Server { command: command(), ..server("") }, "letters"),
        (server("t"), "either"),
        (Server { command: command(), url: url(), ..server("t") }, "either"),
        (Server { url: Some("mcp.example".to_owned()), ..server("t") }, "address"),
        (Server { url: Some("https://u:p@a.example".to_owned()), ..server("t") }, "address"),
    ] {
        let error = Servers::new(vec![bad]).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
}
