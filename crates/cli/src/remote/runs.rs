//! `interlock runs` and `interlock cancel`: what ran, what it produced, and asking it to stop. Runs of a device are here, those of
//! tasks in [`super::task_runs`].

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use interlock_client::RunsQuery;
use interlock_model::RunId;
use interlock_model::run::RunState;
use interlock_model::task::{TaskId, TaskRunState};
use interlock_model::wire::{Artifact, RunView};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::task_runs::{self, AnyRun};
use super::terminal::confirm;
use super::text::{line, number, seconds, time};
use super::ui::{Facts, Table, Ui, json_text};

/// Largest page of the server.
const PAGE: u32 = 200;

/// What ran.
#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List runs, newest first
    List(ListArgs),
    /// Show everything about a run
    Show {
        /// Its id
        run: AnyRun,
    },
    /// Ask a run to stop
    Cancel(CancelArgs),
    /// List or fetch the files that a run produced
    Artifacts(ArtifactsArgs),
}

/// Which runs.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only in this state: queued, running, succeeded, failed, cancelled, timed_out, uncertain; of tasks also leased,
    /// waiting_for_approval
    #[arg(long, value_parser = state)]
    state: Option<TaskRunState>,
    /// Only of this action (device)
    #[arg(long, conflicts_with_all = ["tasks", "task"])]
    action: Option<String>,
    /// Runs of tasks, where the server has a device too
    #[arg(long)]
    tasks: bool,
    /// Only runs of this task (orchestrator)
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
}

/// Which run to stop.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The run's id
    run: AnyRun,
    /// Why, in a few words
    #[arg(long)]
    reason: Option<String>,
}

/// Which files.
#[derive(Debug, Args)]
pub(crate) struct ArtifactsArgs {
    /// The run's id
    run: RunId,
    /// The file to fetch; without it, the files are listed
    name: Option<String>,
    /// Where to write it: a file, or - for standard output; its own name in this folder if left out
    #[arg(long, value_name = "FILE", requires = "name")]
    out: Option<PathBuf>,
}

fn state(text: &str) -> Result<TaskRunState, String> {
    TaskRunState::parse(text).ok_or_else(|| {
        let names: Vec<&str> = TaskRunState::ALL.iter().map(|state| state.as_str()).collect();
        format!("a run is {}", names.join(", "))
    })
}

pub(crate) async fn runs(ui: &Ui, global: &Global, command: RunsCommand) -> Result<(), Failure> {
    match command {
        RunsCommand::List(args) => list(ui, global, args).await,
        RunsCommand::Show { run: AnyRun::Task(run) } => {
            task_runs::show(ui, &Session::for_tasks(global)?.client, run).await
        }
        RunsCommand::Show { run: AnyRun::Device(run) } => {
            let view = Session::open(global)?.client.run(run).await?;
            ui.one(&view, || facts(&view), &view.id.to_string())
        }
        RunsCommand::Cancel(args) => cancel(ui, global, args).await,
        RunsCommand::Artifacts(args) => artifacts(ui, global, args).await,
    }
}

async fn list(ui: &Ui, global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    if args.tasks || args.task.is_some() || task_runs::keeps_tasks(&client).await? {
        if args.action.is_some() {
            let error = "this server keeps runs of tasks, and those have no action";
            return Err(Failure::usage(error, "interlock runs list --task ID"));
        }
        let client = Session::for_tasks(global)?.client;
        let wanted = task_runs::Wanted { task: args.task, state: args.state, limit: args.limit };
        return task_runs::list(ui, &client, &wanted).await;
    }
    let state = match args.state {
        None => None,
        Some(state) => Some(RunState::parse(state.as_str()).ok_or_else(|| {
            let error = format!("no run of a device is ever {}", state.as_str());
            Failure::usage(error, "interlock runs list --tasks")
        })?),
    };
    let mut found: Vec<RunView> = Vec::new();
    let mut total;
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    loop {
        let missing = u32::try_from(wanted - found.len()).unwrap_or(PAGE).min(PAGE);
        if missing == 0 {
            return Err(Failure::usage("--limit must be at least 1", "interlock runs list --limit 20"));
        }
        let offset = Some(found.len() as u64);
        let query = RunsQuery { state, action: args.action.clone(), limit: Some(missing), offset };
        let page = client.runs(&query).await?;
        total = page.total;
        let more = page.has_more && !page.items.is_empty();
        // A run that started meanwhile moves the others down; none is shown twice.
        found.extend(
            page.items
                .into_iter()
                .filter(|run| !found.iter().any(|seen| seen.id == run.id))
                .collect::<Vec<_>>(),
        );
        if !more || found.len() >= wanted {
            break;
        }
    }
    ui.list(&found, table, |run| run.id.to_string())?;
    if total > found.len() as u64 {
        ui.note(&format!("{} of {total} runs; --limit shows more", found.len()));
    }
    Ok(())
}

fn table(runs: &[RunView]) -> Table {
    let mut table = Table::new(&["RUN", "ACTION", "STATE", "BY", "STARTED", "TOOK", "NOTE"]);
    for run in runs {
        let note = if run.simulated { "simulated" } else { "" };
        let note = run.error.as_ref().map_or(note, |error| error.code.as_str());
        table.row([
            &run.id.to_string(),
            &run.action,
            run.state.as_str(),
            &run.executed_by,
            &time(run.started_at.unwrap_or(run.created_at)),
            &run.duration_seconds.map(seconds).unwrap_or_default(),
            note,
        ]);
    }
    table
}

fn facts(run: &RunView) -> Facts {
    let progress = run.progress.as_ref().map(|progress| {
        let total = progress.total.map(|total| format!("/{}", number(total))).unwrap_or_default();
        format!("{}{total} {}", number(progress.current), progress.message.as_deref().unwrap_or(""))
    });
    let files: Vec<&str> = run.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    Facts::new()
        .with("run", run.id.to_string())
        .with("action", &run.action)
        .with("state", run.state.as_str())
        .with("simulated", if run.simulated { "yes" } else { "no" })
        .with("parameters", json_text(&run.parameters, false))
        .maybe("result", run.result.as_ref().map(|result| json_text(result, false)))
        .maybe("error", run.error.as_ref().map(|error| format!("{}: {}", error.code, error.message)))
        .with("by", &run.executed_by)
        .with("request", &run.request_id)
        .with("created", time(run.created_at))
        .maybe("started", run.started_at.map(time))
        .maybe("finished", run.finished_at.map(time))
        .maybe("took", run.duration_seconds.map(seconds))
        .maybe("progress", progress)
        .maybe("files", Some(files.join(", ")).filter(|files| !files.is_empty()))
}

pub(crate) async fn cancel(ui: &Ui, global: &Global, args: CancelArgs) -> Result<(), Failure> {
    let run = match args.run {
        AnyRun::Device(run) => run,
        AnyRun::Task(run) => {
            return task_runs::cancel(ui, &Session::for_tasks(global)?.client, run, args.reason).await;
        }
    };
    let client = Session::open(global)?.client;
    let view = client.cancel(run, args.reason.as_deref()).await?;
    if view.state.is_final() {
        ui.note(&format!("{} was over already", view.id));
    } else {
        ui.note(&format!("{0} is asked to stop; to wait for its end: interlock wait {0}", view.id));
    }
    match ui.output {
        Output::Table => ui.out(&format!("{} {}", view.id, ui.state(view.state.as_str()))),
        Output::Name => ui.out(&view.id.to_string()),
        form => ui.out(&json_text(&view, form == Output::Json)),
    }
}

async fn artifacts(ui: &Ui, global: &Global, args: ArtifactsArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let Some(name) = args.name else {
        let view = client.run(args.run).await?;
        let table = |files: &[Artifact]| {
            let mut table = Table::new(&["NAME", "TYPE", "BYTES"]);
            for file in files {
                table.row([file.name.as_str(), &file.media_type, &file.bytes.to_string()]);
            }
            table
        };
        return ui.list(&view.artifacts, table, |file| file.name.clone());
    };
    let mut body = client.artifact(args.run, &name).await?;
    if args.out.as_deref().is_some_and(|path| path.as_os_str() == "-") {
        let mut stdout = std::io::stdout().lock();
        while let Some(part) = body.next().await? {
            if stdout.write_all(&part).is_err() {
                return Err(Failure::reader_left());
            }
        }
        return stdout.flush().map_err(|_| Failure::reader_left());
    }
    let path = match args.out {
        Some(path) => path,
        None => PathBuf::from(own_name(&name)?),
    };
    if path.exists() && !confirm(ui, &format!("{} exists. Replace it?", path.display())).await {
        let hint = "give another file with --out, or answer yes with --yes";
        return Err(Failure::new(exit::CONFLICT, format!("{} exists", path.display()), hint));
    }
    // Written beside and renamed: a broken download leaves no half file under the right name.
    let partial = path.with_added_extension("part");
    let failed =
        |error: &std::io::Error| Failure::file("cannot write", &path, error, "give another file with --out");
    let mut file = tokio::fs::File::create(&partial).await.map_err(|error| failed(&error))?;
    let fetched = fetch(&mut body, &mut file).await;
    let bytes = match fetched {
        Ok(bytes) => bytes,
        Err(failure) => {
            let _ = tokio::fs::remove_file(&partial).await;
            return Err(failure);
        }
    };
    tokio::fs::rename(&partial, &path).await.map_err(|error| failed(&error))?;
    ui.note(&format!("{bytes} bytes"));
    ui.out(&line(&path.display().to_string()))
}

async fn fetch(body: &mut interlock_client::Body, file: &mut tokio::fs::File) -> Result<u64, Failure> {
    use tokio::io::AsyncWriteExt as _;
    let failed = |error: std::io::Error| {
        Failure::new(exit::ERROR, "the file cannot be written", "check the disk").because(error.to_string())
    };
    let mut bytes = 0;
    while let Some(part) = body.next().await? {
        file.write_all(&part).await.map_err(failed)?;
        bytes += part.len() as u64;
    }
    file.sync_all().await.map_err(failed)?;
    Ok(bytes)
}

/// The artifact's name as a file in this folder. A server must not choose where it goes.
fn own_name(name: &str) -> Result<&str, Failure> {
    let plain = !name.is_empty()
        && !name.starts_with(['.', '-'])
        && !name.contains(['/', '\\', '\0'])
        && line(name) == name;
    if plain {
        Ok(name)
    } else {
        Err(Failure::usage("that is not a name to write a file under", "choose one with --out FILE"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_never_leaves_this_folder() {
        assert!(own_name("well.png").is_ok());
        for name in ["", "../x", "/etc/passwd", ".bashrc", "a/b", "a\\b", "a\x1bb", "-rf"] {
            assert!(own_name(name).is_err(), "{name}");
        }
    }
}
