//! `interlock wait`: until runs are over. Touches none of them.

use std::time::Duration;

use clap::Args;
use interlock_client::News;
use interlock_model::wire::RunView;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::run;
use super::task_runs::{self, AnyRun};
use super::tasks::text;
use super::terminal::Signals;
use super::text::{connection_lost, duration, line};
use super::ui::{Ui, json_text};
use super::watch::{is_whole, record};

/// Which runs.
#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is that of the first run that did not succeed. Ctrl-C only ends the waiting."
)]
pub(crate) struct WaitArgs {
    /// Ids of runs
    #[arg(required = true)]
    runs: Vec<AnyRun>,
    /// Wait no longer than this, such as 90s, 5m, 1h; the runs go on
    #[arg(long, value_parser = duration, value_name = "TIME")]
    timeout: Option<Duration>,
}

pub(crate) async fn wait(ui: &Ui, global: &Global, args: WaitArgs) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    // Without a limit: longer than any run may last.
    let deadline = Instant::now() + args.timeout.unwrap_or(Duration::from_hours(24 * 365));
    let mut first: Option<Failure> = None;
    let single = args.runs.len() == 1;
    for &run in &args.runs {
        let waited = tokio::select! {
            waited = timeout_at(deadline, until_over(ui, global, run)) => waited,
            _ = signals.next() => {
                return Err(Failure::new(exit::INTERRUPTED, "the waiting ended; the run goes on", format!("interlock wait {run}")));
            }
        };
        let Ok(view) = waited else {
            let error = format!("{run} is not over within the time limit; it goes on");
            return Err(Failure::new(exit::TIMED_OUT, error, format!("interlock wait {run}")));
        };
        let view = view?;
        let (words, document, failure) = match &view {
            Ended::Device(view) if single => return run::tell(ui, view),
            Ended::Task(view) if single => return task_runs::end_with(ui, view),
            Ended::Device(view) => {
                let words = format!("{}  {}", ui.state(view.state.as_str()), line(&view.action));
                (words, json_text(view, false), Failure::of_run(view))
            }
            Ended::Task(view) => {
                let words =
                    format!("{}  {}", ui.state(&line(text(view, "state"))), line(text(view, "task_id")));
                (words, json_text(view, false), task_runs::failure(view)?)
            }
        };
        match ui.output {
            Output::Table => ui.out(&format!("{run}  {words}"))?,
            Output::Name => ui.out(&run.to_string())?,
            Output::Json | Output::Jsonl => ui.out(&document)?,
        }
        first = first.or(failure);
    }
    match first {
        Some(mut failure) => {
            failure.answered = true;
            Err(failure)
        }
        None => Ok(()),
    }
}

/// A run that is over.
enum Ended {
    Device(Box<RunView>),
    Task(Value),
}

async fn until_over(ui: &Ui, global: &Global, run: AnyRun) -> Result<Ended, Failure> {
    let run = match run {
        AnyRun::Device(run) => run,
        AnyRun::Task(run) => {
            let client = Session::for_tasks(global)?.client;
            return Ok(Ended::Task(task_runs::until_over(&client, run).await?));
        }
    };
    let client = &Session::open(global)?.client;
    let view = client.run(run).await?;
    if is_whole(&view) {
        return Ok(Ended::Device(Box::new(view)));
    }
    let mut following = client.follow(run, 0);
    while let Some(news) = following.next().await? {
        if let News::Cut { reason, .. } = news {
            ui.note(&connection_lost(&reason));
        }
    }
    Ok(Ended::Device(Box::new(record(client, run).await?)))
}
