//! `interlock task`, `interlock event`, `interlock approval`: what an orchestrator keeps and does by itself.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use interlock_client::{Client, Told};
use interlock_model::task::{ApprovalId, TaskId, TaskRunId};
use serde_json::{Value, json};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::task_runs;
use super::terminal::Signals;
use super::text::{connection_lost, duration, line};
use super::ui::{Facts, Table, Ui, json_text};

/// Tasks: what is to be done, when, and how it went.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List tasks, newest first
    List {
        /// Only active, paused or canceled ones
        #[arg(long, value_parser = ["active", "paused", "canceled"])]
        status: Option<String>,
        /// At most so many, 1 to 200
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show a task
    Show {
        /// Id
        task: TaskId,
    },
    /// Make a task from a JSON file; created_by is you unless it says otherwise
    Create {
        /// File, or - for standard input
        file: PathBuf,
    },
    /// Change members of a task from a JSON file
    Update {
        /// Id
        task: TaskId,
        /// File, or - for standard input
        file: PathBuf,
    },
    /// Have a task run now
    #[command(visible_alias = "run-now")]
    Run {
        /// Id
        task: TaskId,
        /// Wait until the run is over, and end with its code
        #[arg(long)]
        wait: bool,
    },
    /// List runs of tasks, newest first
    Runs {
        /// Only those of this task
        task: Option<TaskId>,
        /// At most so many, 1 to 200
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show a run with its output
    ShowRun {
        /// Id
        run: TaskRunId,
    },
    /// End a run
    CancelRun {
        /// Id
        run: TaskRunId,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
    },
    /// Stop a task from running by itself
    Pause {
        /// Id
        task: TaskId,
    },
    /// Let a task run by itself again
    Resume {
        /// Id
        task: TaskId,
    },
    /// Have what waits of a task, or its next occurrence, wait longer
    Snooze {
        /// Id
        task: TaskId,
        /// How much longer, such as 10m, at most 7d
        #[arg(value_parser = duration)]
        delay: Duration,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
    },
    /// Leave the next due time of a task out
    Skip {
        /// Id
        task: TaskId,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
    },
    /// End a task for good
    Cancel {
        /// Id
        task: TaskId,
    },
    /// Show when a task is due next
    Next {
        /// Id
        task: TaskId,
        /// How many times, 1 to 100
        #[arg(long, default_value_t = 5)]
        count: u32,
    },
    /// Show when a schedule would be due
    Preview {
        /// cron, rrule or once
        #[arg(value_parser = ["cron", "rrule", "once"])]
        kind: String,
        /// The rule or time
        expression: String,
        /// IANA time zone
        #[arg(long)]
        zone: Option<String>,
        /// How many times, 1 to 100
        #[arg(long, default_value_t = 10)]
        count: u32,
    },
}

/// Events that tasks wait for.
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// Publish an event in your name
    Publish {
        /// Topic
        topic: String,
        /// What it says: a JSON object
        #[arg(default_value = "{}")]
        payload: String,
    },
    /// List the newest events, newest first
    List {
        /// At most so many, 1 to 1000
        #[arg(long, default_value_t = 50)]
        count: u32,
    },
    /// Show events as they are published, until Ctrl-C
    Follow {
        /// From behind this position; from now on if left out
        #[arg(long, value_name = "POSITION")]
        after: Option<String>,
        /// Only this topic
        #[arg(long)]
        topic: Option<String>,
        /// End after so many
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// List topics that active tasks wait for
    Topics,
}

/// What steps of tasks can use.
#[derive(Debug, Subcommand)]
pub(crate) enum ToolCommand {
    /// List the tools that you may use
    List,
    /// Show a tool
    Show {
        /// Address, such as http.request or device.ot2.mix_color
        tool: String,
    },
}

/// What waits for a person's word.
#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalCommand {
    /// List what waits, newest first
    List {
        /// Also what was decided
        #[arg(long)]
        all: bool,
    },
    /// Say yes, once, to exactly what is shown
    Approve {
        /// Id
        approval: ApprovalId,
        /// Why, for the record
        #[arg(long)]
        note: Option<String>,
    },
    /// Say no
    Deny {
        /// Id
        approval: ApprovalId,
        /// Why, for the record
        #[arg(long)]
        note: Option<String>,
    },
}

pub(super) fn misread(what: impl std::fmt::Display) -> Failure {
    Failure::new(
        exit::ERROR,
        format!("the server's answer cannot be read: {what}"),
        "is this an orchestrator? `interlock status` tells",
    )
}

pub(super) async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<Value, Failure> {
    let answer = client.raw(method, path, body.as_ref()).await?;
    serde_json::from_slice(&answer.bytes).map_err(misread)
}

/// A JSON object of a file, or of standard input.
fn object(file: &PathBuf) -> Result<Value, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        let text = format!("{}: {error}", line(&file.display().to_string()));
        Failure::new(exit::USAGE, text, "give a file with one JSON object")
    };
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map_err(|error| unreadable(&error))?;
    } else {
        text = std::fs::read_to_string(file).map_err(|error| unreadable(&error))?;
    }
    let value: Value = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    if value.is_object() { Ok(value) } else { Err(unreadable(&"it holds no object")) }
}

pub(super) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or("")
}

pub(super) fn items(value: &Value, name: &str) -> Vec<Value> {
    value[name].as_array().cloned().unwrap_or_default()
}

fn task_table(tasks: &[Value]) -> Table {
    let mut table = Table::new(&["ID", "TITLE", "STATUS", "KIND", "SCHEDULE", "DUE NEXT"]);
    for task in tasks {
        let cells = ["id", "title", "status", "schedule_kind", "schedule_expr", "next_due_at"]
            .map(|name| line(text(task, name)));
        table.row(cells);
    }
    table
}

/// Every member that is not empty, in the order of the answer.
pub(super) fn tell(ui: &Ui, value: &Value, names: &[&'static str]) -> Result<(), Failure> {
    let facts = || {
        names.iter().fold(Facts::new(), |facts, name| match &value[*name] {
            Value::Null => facts,
            Value::String(text) => facts.with(name, line(text)),
            other => facts.with(name, line(&other.to_string())),
        })
    };
    ui.one(value, facts, text(value, "id"))
}

const TASK: &[&str] = &[
    "id",
    "title",
    "description",
    "status",
    "schedule_kind",
    "schedule_expr",
    "timezone",
    "priority",
    "max_retries",
    "backoff_strategy",
    "concurrency_key",
    "dedupe_key",
    "misfire_policy",
    "next_due_at",
    "created_by",
    "created_at",
    "payload",
];
const OPERATION: &[&str] = &["message", "details"];

pub(crate) async fn task(ui: &Ui, global: &Global, command: TaskCommand) -> Result<(), Failure> {
    let client = Session::for_tasks(global)?.client;
    match command {
        TaskCommand::List { status, limit } => {
            let status = status.map_or_else(String::new, |status| format!("&status={status}"));
            let page = ask(&client, "GET", &format!("/tasks?limit={limit}{status}"), None).await?;
            ui.list(&items(&page, "items"), task_table, |task| text(task, "id").to_owned())
        }
        TaskCommand::Show { task } => {
            tell(ui, &ask(&client, "GET", &format!("/tasks/{task}"), None).await?, TASK)
        }
        TaskCommand::Create { file } => {
            let mut body = object(&file)?;
            if body["created_by"].is_null() {
                body["created_by"] = json!(client.me().await?.user);
            }
            tell(ui, &ask(&client, "POST", "/tasks", Some(body)).await?, TASK)
        }
        TaskCommand::Update { task, file } => {
            tell(ui, &ask(&client, "PUT", &format!("/tasks/{task}"), Some(object(&file)?)).await?, TASK)
        }
        TaskCommand::Run { task, wait } => {
            let done = ask(&client, "POST", &format!("/tasks/{task}/run_now"), Some(json!({}))).await?;
            let run = text(&done["details"], "run_id").to_owned();
            if !wait {
                return ui.one(&done, || Facts::new().with("run", line(&run)), &run);
            }
            let run = run.parse().map_err(|_| misread("it names no run"))?;
            task_runs::end_with(ui, &task_runs::until_over(&client, run).await?)
        }
        TaskCommand::Runs { task, limit } => {
            task_runs::list(ui, &client, &task_runs::Wanted { task, state: None, limit }).await
        }
        TaskCommand::ShowRun { run } => task_runs::show(ui, &client, run).await,
        TaskCommand::CancelRun { run, reason } => task_runs::cancel(ui, &client, run, reason).await,
        TaskCommand::Pause { task } => change(ui, &client, task, "pause", json!({})).await,
        TaskCommand::Resume { task } => change(ui, &client, task, "resume", json!({})).await,
        TaskCommand::Cancel { task } => change(ui, &client, task, "cancel", json!({})).await,
        TaskCommand::Snooze { task, delay, reason } => {
            let body = json!({ "delay_seconds": delay.as_secs(), "reason": reason });
            change(ui, &client, task, "snooze", body).await
        }
        TaskCommand::Preview { kind, expression, zone, count } => {
            let mut body = json!({ "schedule_kind": kind, "schedule_expr": expression, "count": count });
            if let Some(zone) = zone {
                body["timezone"] = json!(zone);
            }
            due(ui, &ask(&client, "POST", "/schedules/preview", Some(body)).await?)
        }
        TaskCommand::Next { task, count } => {
            let found = ask(&client, "GET", &format!("/tasks/{task}"), None).await?;
            timed(&found, task)?;
            if text(&found, "status") != "active" {
                ui.note(&format!("the task is {} and will not run by itself", line(text(&found, "status"))));
            }
            due(ui, &ask(&client, "GET", &format!("/tasks/{task}/due?count={count}"), None).await?)
        }
        TaskCommand::Skip { task, reason } => {
            // The time that was seen: asked twice, it is left out once.
            let found = ask(&client, "GET", &format!("/tasks/{task}"), None).await?;
            timed(&found, task)?;
            let body = json!({ "due_at": found["next_due_at"], "reason": reason });
            change(ui, &client, task, "skip", body).await
        }
    }
}

/// Refuses a task that has no due times by its kind.
fn timed(found: &Value, task: TaskId) -> Result<(), Failure> {
    let kind = text(found, "schedule_kind");
    if matches!(kind, "cron" | "rrule" | "once") {
        return Ok(());
    }
    let error = format!("the task has no times: it is of the kind {}", line(kind));
    Err(Failure::new(exit::CONFLICT, error, format!("interlock task show {task}")))
}

/// When a schedule is due.
fn due(ui: &Ui, found: &Value) -> Result<(), Failure> {
    let times = |times: &[Value]| {
        let mut table = Table::new(&["DUE"]);
        for time in times {
            table.row([line(time.as_str().unwrap_or(""))]);
        }
        table
    };
    ui.list(&items(found, "times"), times, |time| time.as_str().unwrap_or("").to_owned())
}

async fn change(ui: &Ui, client: &Client, task: TaskId, what: &str, body: Value) -> Result<(), Failure> {
    tell(ui, &ask(client, "POST", &format!("/tasks/{task}/{what}"), Some(body)).await?, OPERATION)
}

pub(crate) async fn event(ui: &Ui, global: &Global, command: EventCommand) -> Result<(), Failure> {
    let client = Session::for_tasks(global)?.client;
    match command {
        EventCommand::Publish { topic, payload } => {
            let payload: Value = serde_json::from_str(&payload).map_err(|error| {
                Failure::new(
                    exit::USAGE,
                    format!("the payload is no JSON: {error}"),
                    "write it as '{\"plate\": \"P7\"}'",
                )
            })?;
            let body =
                json!({ "topic": topic, "payload": payload, "source_agent_id": client.me().await?.user });
            tell(ui, &ask(&client, "POST", "/events", Some(body)).await?, OPERATION)
        }
        EventCommand::Follow { after, topic, count } => {
            follow_events(ui, &client, after, topic.as_deref(), count).await
        }
        EventCommand::List { count } => {
            let found = ask(&client, "GET", &format!("/events/stream/recent?count={count}"), None).await?;
            let table = |events: &[Value]| {
                let mut table = Table::new(&["POSITION", "TOPIC", "PUBLISHED", "PAYLOAD"]);
                for event in events {
                    let [position, topic, at] =
                        ["stream_id", "topic", "published_at"].map(|name| line(text(event, name)));
                    table.row([position, topic, at, line(&event["payload"].to_string())]);
                }
                table
            };
            ui.list(&items(&found, "events"), table, |event| text(event, "event_id").to_owned())
        }
        EventCommand::Topics => {
            let found = ask(&client, "GET", "/events/topics", None).await?;
            let table = |topics: &[Value]| {
                let mut table = Table::new(&["TOPIC", "TASKS"]);
                for topic in topics {
                    table.row([line(text(topic, "topic")), topic["active_tasks"].to_string()]);
                }
                table
            };
            ui.list(&items(&found, "topics"), table, |topic| text(topic, "topic").to_owned())
        }
    }
}

async fn follow_events(
    ui: &Ui,
    client: &Client,
    after: Option<String>,
    topic: Option<&str>,
    mut left: Option<u64>,
) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let mut stream = client.stream(&["events", "stream"], after);
    while left != Some(0) {
        let told = tokio::select! {
            told = stream.next() => told?,
            _ = signals.next() => {
                let hint = format!("to go on from here: interlock event follow --after {}", stream.place().unwrap_or("0-0"));
                return Err(Failure::new(exit::INTERRUPTED, "events go on without you", hint));
            }
        };
        match told {
            Told::Event(event) => {
                let Ok(event) = serde_json::from_str::<Value>(&event.data) else { continue };
                if topic.is_some_and(|topic| text(&event, "topic") != topic) {
                    continue;
                }
                match ui.output {
                    Output::Table => {
                        let [at, topic] = ["published_at", "topic"].map(|name| line(text(&event, name)));
                        ui.out(&format!("{at}  {topic}  {}", line(&event["payload"].to_string())))?;
                    }
                    Output::Name => ui.out(&line(text(&event, "event_id")))?,
                    // There is no end, so both forms have one document on each line.
                    Output::Json | Output::Jsonl => ui.out(&json_text(&event, false))?,
                }
                left = left.map(|left| left - 1);
            }
            Told::Cut { reason, .. } => {
                ui.note(&connection_lost(&reason));
            }
            Told::Back => ui.note("connected again"),
        }
    }
    Ok(())
}

pub(crate) async fn tool(ui: &Ui, global: &Global, command: ToolCommand) -> Result<(), Failure> {
    let client = Session::for_tasks(global)?.client;
    let all = ask(&client, "GET", "/tools", None).await?;
    let described =
        |(name, tool): (&String, &Value)| json!({ "id": name, "description": tool["description"] });
    let all = all.as_object().ok_or_else(|| misread("it holds no tools"))?;
    match command {
        ToolCommand::List => {
            let table = |tools: &[Value]| {
                let mut table = Table::new(&["TOOL", "WHAT IT IS FOR"]);
                for tool in tools {
                    table.row(["id", "description"].map(|name| line(text(tool, name))));
                }
                table
            };
            let tools: Vec<Value> = all.iter().map(described).collect();
            ui.list(&tools, table, |tool| text(tool, "id").to_owned())
        }
        ToolCommand::Show { tool } => {
            let Some(found) = all.get_key_value(&tool) else {
                let error = format!("there is no tool {} that you may use", line(&tool));
                return Err(Failure::new(exit::NOT_FOUND, error, "interlock tool list"));
            };
            tell(ui, &described(found), &["id", "description"])
        }
    }
}

pub(crate) async fn approval(ui: &Ui, global: &Global, command: ApprovalCommand) -> Result<(), Failure> {
    let client = Session::for_tasks(global)?.client;
    match command {
        ApprovalCommand::List { all } => {
            let state = if all { "" } else { "&state=pending" };
            let found = ask(&client, "GET", &format!("/approvals?limit=200{state}"), None).await?;
            let table = |rows: &[Value]| {
                let mut table = Table::new(&["ID", "STATE", "REASON", "ASKED BY", "UNTIL"]);
                for row in rows {
                    let cells = ["id", "state", "reason", "requested_by", "expires_at"]
                        .map(|name| line(text(row, name)));
                    table.row(cells);
                }
                table
            };
            ui.list(&items(&found, "items"), table, |row| text(row, "id").to_owned())
        }
        ApprovalCommand::Approve { approval, note } => decide(ui, &client, approval, "approve", note).await,
        ApprovalCommand::Deny { approval, note } => decide(ui, &client, approval, "deny", note).await,
    }
}

async fn decide(
    ui: &Ui,
    client: &Client,
    approval: ApprovalId,
    decision: &str,
    note: Option<String>,
) -> Result<(), Failure> {
    let body = json!({ "decision": decision, "note": note });
    let done = ask(client, "POST", &format!("/approvals/{approval}/decide"), Some(body)).await?;
    tell(ui, &done, &["id", "state", "task_id", "run_id", "parameters", "first_approved_by", "decided_by"])
}
