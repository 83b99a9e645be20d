//! `interlock logs`: the log of a run of a device or of a task, line by line.

use clap::{Args, ValueEnum};
use interlock_client::{Client, News, Told};
use interlock_model::device::EventKind;
use interlock_model::task::{TaskRunId, TaskRunState};
use interlock_model::wire::RunEventView;
use interlock_model::{RunId, Timestamp};
use serde_json::{Value, json};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::task_runs::AnyRun;
use super::tasks::{ask, items, text};
use super::terminal::Signals;
use super::text::{connection_lost, line, number, seconds, time};
use super::ui::{Ui, json_text};

/// Events per request.
const PAGE: u32 = 1000;

/// Which lines.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The run's id
    run: AnyRun,
    /// Wait for more until the run is over
    #[arg(short, long)]
    follow: bool,
    /// Only log lines of this level or a graver one
    #[arg(long, value_enum)]
    level: Option<Level>,
}

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    fn of(text: &str) -> Self {
        match text {
            "debug" => Self::Debug,
            "warning" => Self::Warning,
            "error" => Self::Error,
            _ => Self::Info,
        }
    }
}

pub(crate) async fn logs(ui: &Ui, global: &Global, args: LogsArgs) -> Result<(), Failure> {
    let run = match args.run {
        AnyRun::Device(run) => run,
        AnyRun::Task(run) => {
            let client = Session::for_tasks(global)?.client;
            return if args.follow {
                follow_task(ui, &client, &args, run).await
            } else {
                there_of_task(ui, &client, &args, run).await
            };
        }
    };
    let client = Session::open(global)?.client;
    if args.follow { follow(ui, &client, &args, run).await } else { there(ui, &client, &args, run).await }
}

async fn there(ui: &Ui, client: &Client, args: &LogsArgs, run: RunId) -> Result<(), Failure> {
    let (mut after, mut any) = (0, false);
    loop {
        let page = client.events(run, after, PAGE).await?;
        for event in &page.items {
            any |= show(ui, args, event)?;
        }
        if page.done || page.items.is_empty() || page.next_after <= after {
            said_all(ui, args, any, page.done);
            return Ok(());
        }
        after = page.next_after;
    }
}

fn said_all(ui: &Ui, args: &LogsArgs, any: bool, done: bool) {
    if !any {
        ui.note("there are no such lines");
    }
    if !done {
        ui.note(&format!("the run is not over; to wait for more: interlock logs {} --follow", args.run));
    }
}

fn interrupted(args: &LogsArgs) -> Failure {
    let hint = format!("interlock logs {} --follow", args.run);
    Failure::new(exit::INTERRUPTED, "the log goes on without you; the run is not touched", hint)
}

async fn there_of_task(ui: &Ui, client: &Client, args: &LogsArgs, run: TaskRunId) -> Result<(), Failure> {
    let (mut after, mut any) = (0, false);
    loop {
        let page = ask(client, "GET", &format!("/runs/{run}/log?after={after}&limit={PAGE}"), None).await?;
        let notes = items(&page, "items");
        for note in &notes {
            any |= show_note(ui, args, note)?;
        }
        let next = page["next_after"].as_u64().unwrap_or(0);
        let done = page["done"] == true;
        if done || notes.is_empty() || next <= after {
            said_all(ui, args, any, done);
            return Ok(());
        }
        after = next;
    }
}

async fn follow_task(ui: &Ui, client: &Client, args: &LogsArgs, run: TaskRunId) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let id = run.to_string();
    let mut stream = client.stream(&["runs", &id, "events"], None);
    loop {
        let told = tokio::select! {
            told = stream.next() => told?,
            _ = signals.next() => return Err(interrupted(args)),
        };
        match told {
            Told::Event(event) => {
                let Ok(said) = serde_json::from_str::<Value>(&event.data) else { continue };
                // A change of state is the whole run, a note has a kind.
                let Some(state) = said["state"].as_str() else {
                    show_note(ui, args, &said)?;
                    continue;
                };
                let at = ["finished_at", "started_at", "created_at"].map(|name| &said[name]);
                let at = at.into_iter().find(|at| at.is_string()).cloned().unwrap_or_default();
                let changed = json!({ "seq": 0, "at": at, "kind": "state", "data": { "state": state } });
                show_note(ui, args, &changed)?;
                if TaskRunState::parse(state).is_some_and(TaskRunState::is_final) {
                    return Ok(());
                }
            }
            Told::Cut { reason, .. } => {
                ui.note(&connection_lost(&reason));
            }
            Told::Back => ui.note("connected again"),
        }
    }
}

/// Prints a note of a task's run if it is wanted; true when it was.
fn show_note(ui: &Ui, args: &LogsArgs, note: &Value) -> Result<bool, Failure> {
    let data = &note["data"];
    let wanted = match (note["kind"].as_str(), args.level) {
        (_, None) => true,
        (Some("log"), Some(least)) => Level::of(text(data, "level")) >= least,
        (_, Some(_)) => false,
    };
    if !wanted {
        return Ok(false);
    }
    match ui.output {
        Output::Table => {
            let at = text(note, "at").parse::<Timestamp>().map_or_else(|_| line(text(note, "at")), time);
            ui.out(&format!("{at}  {}", note_words(note)))?;
        }
        Output::Name => ui.out(&note["seq"].to_string())?,
        Output::Json | Output::Jsonl => ui.out(&json_text(note, false))?,
    }
    Ok(true)
}

fn note_words(note: &Value) -> String {
    let data = &note["data"];
    // What a device reported reads like the log of the device's run.
    if let Ok(kind) = serde_json::from_value::<EventKind>(json!({ "kind": note["kind"], "data": data })) {
        return words(&kind);
    }
    match note["kind"].as_str() {
        Some("step") => {
            let (number, of) = (data["step"].as_u64().unwrap_or(0).saturating_add(1), &data["of"]);
            let error = match text(data, "error") {
                "" => String::new(),
                error => format!(": {}", line(error)),
            };
            format!(
                "step     {number}/{of} {} {}{error}",
                line(text(data, "uses")),
                line(text(data, "state"))
            )
        }
        kind => format!("{:<8} {}", line(kind.unwrap_or("note")), line(&data.to_string())),
    }
}

async fn follow(ui: &Ui, client: &Client, args: &LogsArgs, run: RunId) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let mut following = client.follow(run, 0);
    loop {
        let next = tokio::select! {
            next = following.next() => next?,
            _ = signals.next() => return Err(interrupted(args)),
        };
        match next {
            Some(News::Event(event)) => {
                show(ui, args, &event)?;
            }
            Some(News::Cut { reason, .. }) => {
                ui.note(&connection_lost(&reason));
            }
            Some(News::Back) => ui.note("connected again"),
            None => return Ok(()),
        }
    }
}

/// Prints the event if it is wanted; true when it was.
fn show(ui: &Ui, args: &LogsArgs, event: &RunEventView) -> Result<bool, Failure> {
    let wanted = match (&event.kind, args.level) {
        (_, None) => true,
        (EventKind::Log { level, .. }, Some(least)) => Level::of(level) >= least,
        (_, Some(_)) => false,
    };
    if wanted {
        match ui.output {
            Output::Table => ui.out(&format!("{}  {}", time(event.at), words(&event.kind)))?,
            Output::Name => ui.out(&event.seq.to_string())?,
            // A log has no end while it is followed, so both forms have one document on each line.
            Output::Json | Output::Jsonl => ui.out(&json_text(event, false))?,
        }
    }
    Ok(wanted)
}

fn words(kind: &EventKind) -> String {
    match kind {
        EventKind::State { state } => format!("state    {}", state.as_str()),
        EventKind::Progress { current, total, message } => {
            let total = total.map(|total| format!("/{}", number(total))).unwrap_or_default();
            format!("progress {}{total} {}", number(*current), line(message.as_deref().unwrap_or("")))
                .trim_end()
                .to_owned()
        }
        EventKind::Log { level, message } => format!("{:<8} {}", line(level), line(message)),
        EventKind::Metric { name, value, unit, labels } => {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{}={}", line(name), line(value))).collect();
            format!(
                "metric   {} = {} {} {}",
                line(name),
                number(*value),
                line(unit.as_deref().unwrap_or("")),
                labels.join(" ")
            )
            .trim_end()
            .to_owned()
        }
        EventKind::Artifact { name, media_type, bytes } => {
            format!("file     {} ({}, {bytes} bytes)", line(name), line(media_type))
        }
        EventKind::Rung { rung, outcome, duration_ms } => {
            let rung = serde_json::to_value(rung)
                .ok()
                .and_then(|rung| rung.as_str().map(str::to_owned))
                .unwrap_or_default();
            format!("stopping {rung} {} after {}", line(outcome), seconds(duration_ms / 1000.0))
        }
    }
}
