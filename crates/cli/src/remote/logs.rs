//! `interlock logs`: the log of a run, line by line.

use clap::{Args, ValueEnum};
use interlock_client::{Client, News};
use interlock_model::RunId;
use interlock_model::device::EventKind;
use interlock_model::wire::RunEventView;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::terminal::Signals;
use super::text::{line, number, seconds, time};
use super::ui::{Ui, json_text};

/// Events per request.
const PAGE: u32 = 1000;

/// Which lines.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The run's id
    run: RunId,
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
    let client = Session::open(global)?.client;
    if args.follow { follow(ui, &client, &args).await } else { there(ui, &client, &args).await }
}

async fn there(ui: &Ui, client: &Client, args: &LogsArgs) -> Result<(), Failure> {
    let (mut after, mut any) = (0, false);
    loop {
        let page = client.events(args.run, after, PAGE).await?;
        for event in &page.items {
            any |= show(ui, args, event)?;
        }
        if page.done || page.items.is_empty() || page.next_after <= after {
            if !any {
                ui.note("there are no such lines");
            }
            if !page.done {
                ui.note(&format!(
                    "the run is not over; to wait for more: interlock logs {} --follow",
                    args.run
                ));
            }
            return Ok(());
        }
        after = page.next_after;
    }
}

async fn follow(ui: &Ui, client: &Client, args: &LogsArgs) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let mut following = client.follow(args.run, 0);
    loop {
        let next = tokio::select! {
            next = following.next() => next?,
            _ = signals.next() => {
                let hint = format!("interlock logs {} --follow", args.run);
                return Err(Failure::new(exit::INTERRUPTED, "the log goes on without you; the run is not touched", hint));
            }
        };
        match next {
            Some(News::Event(event)) => {
                show(ui, args, &event)?;
            }
            Some(News::Cut { reason, .. }) => {
                ui.note(&format!("connection lost ({}); trying again", line(&reason)));
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
