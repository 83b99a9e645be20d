//! Runs of tasks for `interlock runs`, `wait`, `cancel` and `task`: the same words as for runs of a device, told apart by their ids.

use std::str::FromStr;
use std::time::Duration;

use interlock_client::Client;
use interlock_model::RunId;
use interlock_model::task::{TaskId, TaskRunId, TaskRunState};
use serde_json::{Value, json};

use super::failure::{Failure, exit};
use super::tasks::{ask, items, misread, tell, text};
use super::text::line;
use super::ui::{Table, Ui};

/// Between two looks at a run that is waited for.
const LOOKING: Duration = Duration::from_millis(200);
/// Longest pause between two looks while the server cannot be reached.
const LONGEST: Duration = Duration::from_secs(5);
/// Looks without an answer before it is given up: some five minutes.
const FRUITLESS: u32 = 70;
/// Largest page of the server.
const PAGE: u32 = 200;

const RUN: &[&str] = &[
    "id",
    "task_id",
    "state",
    "trigger",
    "attempt",
    "scheduled_for",
    "created_at",
    "started_at",
    "finished_at",
    "error",
    "output",
];

/// A run of a device, or of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnyRun {
    /// `run_…`
    Device(RunId),
    /// A UUID.
    Task(TaskRunId),
}

impl FromStr for AnyRun {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let task = |_| text.parse().map(Self::Task);
        text.parse()
            .map(Self::Device)
            .or_else(task)
            .map_err(|_| "a run's id is run_… on a device, and a UUID for a task".to_owned())
    }
}

impl std::fmt::Display for AnyRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(run) => run.fmt(f),
            Self::Task(run) => run.fmt(f),
        }
    }
}

/// Which runs to list.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) task: Option<TaskId>,
    pub(crate) state: Option<TaskRunState>,
    pub(crate) limit: u32,
}

/// Whether a server keeps tasks: it says so to everybody.
pub(crate) async fn keeps_tasks(client: &Client) -> Result<bool, Failure> {
    Ok(ask(client, "GET", "/", None).await?["service"].is_string())
}

fn table(runs: &[Value]) -> Table {
    let mut table =
        Table::new(&["RUN", "TASK", "STATE", "TRIGGER", "ATTEMPT", "STARTED", "FINISHED", "NOTE"]);
    for run in runs {
        let attempt = run["attempt"].to_string();
        let [id, task, state, trigger, started, finished, error] =
            ["id", "task_id", "state", "trigger", "started_at", "finished_at", "error"]
                .map(|name| line(text(run, name)));
        table.row([id, task, state, trigger, attempt, started, finished, error]);
    }
    table
}

pub(crate) async fn list(ui: &Ui, client: &Client, wanted: &Wanted) -> Result<(), Failure> {
    if wanted.limit == 0 {
        return Err(Failure::usage("--limit must be at least 1", "interlock runs list --limit 20"));
    }
    let task = wanted.task.map_or_else(String::new, |task| format!("&task_id={task}"));
    let state = wanted.state.map_or_else(String::new, |state| format!("&state={}", state.as_str()));
    let limit = usize::try_from(wanted.limit).unwrap_or(usize::MAX);
    let mut found: Vec<Value> = Vec::new();
    let total = loop {
        let size = u32::try_from(limit - found.len()).unwrap_or(PAGE).min(PAGE);
        let path = format!("/runs?limit={size}&offset={}&include_errors=true{task}{state}", found.len());
        let page = ask(client, "GET", &path, None).await?;
        let more =
            page["has_more"] == true && page["items"].as_array().is_some_and(|items| !items.is_empty());
        for run in items(&page, "items") {
            // A run that came meanwhile moves the others down; none is shown twice.
            if !found.iter().any(|seen| seen["id"] == run["id"]) {
                found.push(run);
            }
        }
        if !more || found.len() >= limit {
            break page["total"].as_u64().unwrap_or(0);
        }
    };
    ui.list(&found, table, |run| text(run, "id").to_owned())?;
    if total > found.len() as u64 {
        ui.note(&format!("{} of {total} runs; --limit shows more", found.len()));
    }
    Ok(())
}

async fn run(client: &Client, run: TaskRunId) -> Result<Value, Failure> {
    ask(client, "GET", &format!("/runs/{run}"), None).await
}

pub(crate) async fn show(ui: &Ui, client: &Client, id: TaskRunId) -> Result<(), Failure> {
    tell(ui, &run(client, id).await?, RUN)
}

pub(crate) async fn cancel(
    ui: &Ui,
    client: &Client,
    run: TaskRunId,
    reason: Option<String>,
) -> Result<(), Failure> {
    let body = json!({ "reason": reason });
    let found = ask(client, "POST", &format!("/runs/{run}/cancel"), Some(body)).await?;
    if !state(&found)?.is_final() {
        ui.note(&format!("{run} is asked to stop; to wait for its end: interlock wait {run}"));
    }
    tell(ui, &found, RUN)
}

fn state(run: &Value) -> Result<TaskRunState, Failure> {
    TaskRunState::parse(text(run, "state")).ok_or_else(|| misread("an unknown state"))
}

/// The run once it is over. A server that is away for some minutes is waited for.
pub(crate) async fn until_over(client: &Client, id: TaskRunId) -> Result<Value, Failure> {
    let (mut fruitless, mut pause) = (0, LOOKING);
    loop {
        match client.raw("GET", &format!("/runs/{id}"), None).await {
            Ok(answer) => {
                let found: Value = serde_json::from_slice(&answer.bytes).map_err(misread)?;
                if state(&found)?.is_final() {
                    return Ok(found);
                }
                (fruitless, pause) = (0, LOOKING);
            }
            Err(error) if error.is_passing() && fruitless < FRUITLESS => {
                fruitless += 1;
                pause = (pause * 2).min(LONGEST);
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Why a run that is over is no success, with the exit code of that.
pub(crate) fn failure(run: &Value) -> Result<Option<Failure>, Failure> {
    let code = match state(run)? {
        TaskRunState::Succeeded => return Ok(None),
        TaskRunState::Cancelled => exit::CANCELLED,
        TaskRunState::TimedOut => exit::TIMED_OUT,
        _ => exit::TASK_FAILED,
    };
    let id = line(text(run, "id"));
    let words = format!("the run {id} ended as {}", line(text(run, "state")));
    let failure = Failure::new(code, words, format!("interlock runs show {id}"));
    Ok(Some(match run["error"].as_str() {
        Some(why) => failure.because(why),
        None => failure,
    }))
}

/// Tells the run; its end is the command's.
pub(crate) fn end_with(ui: &Ui, run: &Value) -> Result<(), Failure> {
    tell(ui, run, RUN)?;
    match failure(run)? {
        None => Ok(()),
        Some(mut failure) => {
            failure.answered = true;
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_whose_run_it_is() {
        let task = "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d";
        assert!(matches!(task.parse(), Ok(AnyRun::Task(_))));
        let device =
            RunId::before_all_of(interlock_model::Timestamp::from_seconds(1_780_000_000)).to_string();
        assert!(matches!(device.parse(), Ok(AnyRun::Device(id)) if id.to_string() == device));
        for bad in ["", "run_", "7", "run_018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d-x"] {
            assert!(bad.parse::<AnyRun>().is_err(), "{bad}");
        }
    }
}
