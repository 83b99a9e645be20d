//! `interlock wait`: until runs are over. Touches none of them.

use std::time::Duration;

use clap::Args;
use interlock_client::News;
use interlock_model::RunId;
use interlock_model::wire::RunView;
use tokio::time::{Instant, timeout_at};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::run;
use super::terminal::Signals;
use super::text::{duration, line};
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
    runs: Vec<RunId>,
    /// Wait no longer than this, such as 90s, 5m, 1h; the runs go on
    #[arg(long, value_parser = duration, value_name = "TIME")]
    timeout: Option<Duration>,
}

pub(crate) async fn wait(ui: &Ui, global: &Global, args: WaitArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let mut signals = Signals::listen()?;
    // Without a limit: longer than any run may last.
    let deadline = Instant::now() + args.timeout.unwrap_or(Duration::from_hours(24 * 365));
    let mut first: Option<Failure> = None;
    let single = args.runs.len() == 1;
    for &run in &args.runs {
        let waited = tokio::select! {
            waited = timeout_at(deadline, until_over(ui, &client, run)) => waited,
            _ = signals.next() => {
                return Err(Failure::new(exit::INTERRUPTED, "the waiting ended; the run goes on", format!("interlock wait {run}")));
            }
        };
        let Ok(view) = waited else {
            let error = format!("{run} is not over within the time limit; it goes on");
            return Err(Failure::new(exit::TIMED_OUT, error, format!("interlock wait {run}")));
        };
        let view = view?;
        if single {
            return run::tell(ui, &view);
        }
        match ui.output {
            Output::Table => {
                ui.out(&format!("{run}  {}  {}", ui.state(view.state.as_str()), line(&view.action)))?;
            }
            Output::Name => ui.out(&run.to_string())?,
            Output::Json | Output::Jsonl => ui.out(&json_text(&view, false))?,
        }
        if first.is_none() {
            first = Failure::of_run(&view);
        }
    }
    match first {
        Some(mut failure) => {
            failure.answered = true;
            Err(failure)
        }
        None => Ok(()),
    }
}

async fn until_over(ui: &Ui, client: &interlock_client::Client, run: RunId) -> Result<RunView, Failure> {
    let view = client.run(run).await?;
    if is_whole(&view) {
        return Ok(view);
    }
    let mut following = client.follow(run, 0);
    while let Some(news) = following.next().await? {
        if let News::Cut { reason, .. } = news {
            ui.note(&format!("connection lost ({}); trying again", line(&reason)));
        }
    }
    record(client, run).await
}
