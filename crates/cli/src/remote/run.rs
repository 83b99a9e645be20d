//! `interlock run`: one action, from words to its result.

use std::time::Duration;

use clap::Args;
use interlock_client::{Client, ClientError, Submission, Submitted};
use interlock_model::device::ActionSpec;
use interlock_model::id::random_hex;
use interlock_model::wire::{ActionsAnswer, RunView, StopReport};
use serde_json::Value;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::parameters;
use super::terminal::{Asked, Signals};
use super::text::{block, duration, line, nearest, seconds};
use super::ui::{Ui, json_text};
use super::watch::{Ended, Options, watch};
use crate::ambient::SystemEntropy;

/// One action.
#[derive(Debug, Args)]
#[command(
    override_usage = "interlock run [OPTIONS] [DEVICE] ACTION [NAME=VALUE|@FILE]...",
    after_help = "\
Examples:
  interlock run mix_color r=120 y=60 b=30 well=B3
  interlock run ot2-a mix_color r=0.12mL @rest.json --simulate
  id=$(interlock run mix_color @mix.json --detach) && interlock wait \"$id\"

Values: numbers are in the declared unit, or carry their own (r=0.12mL). Lists: wells=A1,B2 or wells='[\"A1\"]'.
@FILE is a JSON object of parameters, @- reads it from standard input; words after it overrule it.
Ctrl-C asks whether to detach, to cancel the run or to stop the device. Without a terminal it cancels the run.
The exit code tells how the run ended: 0 succeeded, 10 failed, 11 cancelled, 12 emergency stop, 124 timed out."
)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the command line")]
pub(crate) struct RunArgs {
    /// The device (may be left out where there is one only), the action, then parameters
    #[arg(required = true, value_name = "WORDS")]
    words: Vec<String>,
    /// Execute with the device's simulator: nothing moves
    #[arg(long)]
    simulate: bool,
    /// Print the run's id and return at once
    #[arg(long, conflicts_with_all = ["watch", "timeout"])]
    detach: bool,
    /// Show how far the run is and wait for its result; this is the default
    #[arg(long)]
    watch: bool,
    /// Cancel the run when it is not over after this, such as 90s, 5m, 1h
    #[arg(long, value_parser = duration, value_name = "TIME")]
    timeout: Option<Duration>,
    /// A name for this act: the same key never acts twice
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Only check the parameters; nothing runs
    #[arg(long, conflicts_with_all = ["simulate", "detach", "watch", "timeout", "idempotency_key"])]
    check: bool,
}

pub(crate) async fn run(ui: &Ui, global: &Global, args: RunArgs) -> Result<(), Failure> {
    let session = Session::open(global)?;
    let client = &session.client;
    let (names, words) = split(&args.words);
    let catalogue = catalogue(client).await?;
    let action = choose(client, catalogue.as_ref(), &names).await?;
    let spec =
        catalogue.as_ref().and_then(|catalogue| catalogue.actions.iter().find(|spec| spec.name == action));
    let given = parameters::read(words, spec)?;
    for name in parameters::exposed(words, spec) {
        ui.warn(&format!(
            "'{name}' is sensitive, and other users of this machine can see command lines; use @FILE or @-"
        ));
    }
    if args.check {
        let checked = client.check(&action, &given).await.map_err(|error| named(error.into(), &action))?;
        ui.note("the parameters are good; nothing was run");
        return match ui.output {
            Output::Name => ui.out(&line(&checked.task_name)),
            Output::Table => ui.out(&json_text(&checked.parameters, true)),
            form => ui.out(&json_text(&checked, form == Output::Json)),
        };
    }
    let key =
        args.idempotency_key.clone().unwrap_or_else(|| format!("cli-{}", random_hex(&SystemEntropy, 16)));
    let submission = Submission {
        action: action.clone(),
        parameters: given,
        key,
        simulated: args.simulate,
        traceparent: None,
    };
    let mut signals = Signals::listen()?;
    let (submitted, interrupted) = submit(ui, client, &submission, &mut signals).await?;
    if submitted.resent {
        ui.note("the connection was lost; the request was sent again with the same key");
    }
    if submitted.replayed && args.idempotency_key.is_some() {
        ui.note(&format!("this key was used before: this is {}, nothing new was started", submitted.run));
    }
    if args.detach && !interrupted {
        let view = client.run(submitted.run).await?;
        return match ui.output {
            Output::Table | Output::Name => ui.out(&view.id.to_string()),
            form => ui.out(&json_text(&view, form == Output::Json)),
        };
    }
    ui.note(&format!("{}{}", submitted.run, if args.simulate { " (simulated)" } else { "" }));
    // The question of Ctrl-C reads standard input, which the parameters may have used up.
    let mut asking = ui.clone();
    asking.interactive &= !parameters::reads_stdin(words);
    let options = Options { timeout: args.timeout, interrupted };
    match watch(&asking, client, &action, submitted.run, &mut signals, options).await? {
        Ended::Over(view, None) => tell(ui, &view),
        Ended::Over(view, Some(report)) => {
            super::stop::tell(ui, &report);
            Err(stopped(tell(ui, &view), &report))
        }
        Ended::Detached => {
            let failure = Failure::new(
                exit::INTERRUPTED,
                format!("{} goes on without you", submitted.run),
                format!("interlock wait {}", submitted.run),
            );
            Err(Failure { chosen: true, ..failure })
        }
    }
}

/// The end of a run whose watcher chose the emergency stop.
fn stopped(told: Result<(), Failure>, report: &StopReport) -> Failure {
    let all = report.confirmed == report.of;
    let hint = if all {
        "when the device is safe, an administrator runs: interlock release --reason \"checked, safe\""
    } else {
        super::stop::UNCONFIRMED_HINT
    };
    let failure =
        Failure::new(if all { exit::STOPPED } else { exit::ERROR }, super::stop::confirmed(report), hint);
    Failure {
        answered: true,
        cause: told.err().map(|failure| failure.error).filter(|error| !error.is_empty()),
        ..failure
    }
}

/// Names come before the first parameter or file.
fn split(words: &[String]) -> (Vec<&str>, &[String]) {
    let at = words.iter().position(|word| word.contains('=') || word.starts_with('@')).unwrap_or(words.len());
    let (names, rest) = words.split_at(at);
    (names.iter().map(String::as_str).collect(), rest)
}

/// What the device offers; `None` for somebody who may execute but not look.
async fn catalogue(client: &Client) -> Result<Option<ActionsAnswer>, Failure> {
    match client.actions().await {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Problem(refusal)) if refusal.status == 403 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The action that is meant.
async fn choose(
    client: &Client,
    catalogue: Option<&ActionsAnswer>,
    names: &[&str],
) -> Result<String, Failure> {
    let (device, action) = match *names {
        [] => {
            return Err(Failure::usage(
                "which action?",
                "`interlock action list` shows them; then: interlock run ACTION NAME=VALUE",
            ));
        }
        [only] => (None, only),
        [device, action] => (Some(device), action),
        [_, _, extra, ..] => {
            let hint = "parameters look like r=120; texts with spaces need quotes: note=\"two words\"";
            return Err(Failure::usage(format!("'{}' is neither a parameter nor a file", line(extra)), hint));
        }
    };
    if let Some(device) = device {
        let here = match catalogue {
            Some(catalogue) => catalogue.device.name.clone(),
            None => client.device().await?.name,
        };
        if device != here
            && catalogue.is_some_and(|catalogue| catalogue.actions.iter().any(|spec| spec.name == device))
        {
            let hint = format!("parameters look like NAME=VALUE: interlock action schema {}", line(device));
            return Err(Failure::usage(
                format!("'{}' is neither a parameter nor a file", line(action)),
                hint,
            ));
        }
        if device != here {
            let hint = format!(
                "`interlock context list` shows other servers; here: interlock run {} {}",
                line(&here),
                line(action)
            );
            return Err(Failure::new(
                exit::NOT_FOUND,
                format!("there is no device '{}' at {}", line(device), client.url()),
                hint,
            ));
        }
    }
    let Some(catalogue) = catalogue else { return Ok(action.to_owned()) };
    if catalogue.actions.iter().any(|spec| spec.name == action) {
        return Ok(action.to_owned());
    }
    if device.is_none() && action == catalogue.device.name {
        return Err(Failure::usage(
            format!("which action of {}?", line(action)),
            format!("it has: {}", names_of(&catalogue.actions)),
        ));
    }
    let hint = match nearest(action, catalogue.actions.iter().map(|spec| spec.name.as_str())) {
        Some(near) => format!("did you mean '{}'? `interlock action list` shows them all", line(near)),
        None => format!("it has: {}", names_of(&catalogue.actions)),
    };
    Err(Failure::new(
        exit::NOT_FOUND,
        format!("{} has no action '{}'", line(&catalogue.device.name), line(action)),
        hint,
    ))
}

fn names_of(actions: &[ActionSpec]) -> String {
    let mut names: Vec<String> = actions.iter().take(12).map(|spec| line(&spec.name)).collect();
    if actions.len() > 12 {
        names.push("…".to_owned());
    }
    if names.is_empty() { "no actions at all".to_owned() } else { names.join(", ") }
}

/// Submits, and does not leave in the middle: until the server has answered, nobody knows whether something moves.
async fn submit(
    ui: &Ui,
    client: &Client,
    submission: &Submission,
    signals: &mut Signals,
) -> Result<(Submitted, bool), Failure> {
    let mut interrupted = false;
    let mut submitting = Box::pin(client.submit(submission));
    loop {
        tokio::select! {
            submitted = &mut submitting => return submitted.map(|submitted| (submitted, interrupted)).map_err(|error| named(unsure(error, submission), &submission.action)),
            asked = signals.next() => {
                if interrupted || asked == Asked::End {
                    let error = "interrupted before the server said whether the run has started";
                    return Err(Failure::new(exit::INTERRUPTED, error, "`interlock runs list` shows it; `interlock stop` stops the device"));
                }
                interrupted = true;
                ui.warn("waiting for the server to say whether the run has started; Ctrl-C again leaves");
            }
        }
    }
}

/// With the action's name in the hint, so that it can be run as it stands.
fn named(mut failure: Failure, action: &str) -> Failure {
    failure.hint = failure.hint.replace(
        "`interlock action schema ACTION` shows what an action takes",
        &format!("interlock action schema {}", line(action)),
    );
    failure
}

/// After a lost answer only the same key can tell what happened.
fn unsure(error: ClientError, submission: &Submission) -> Failure {
    let lost = matches!(error, ClientError::Unreachable { sent: true, .. });
    let mut failure = Failure::from(error);
    if lost {
        failure.cause = Some(format!("{}: {}", failure.error, failure.cause.unwrap_or_default()));
        failure.error = format!("it is not known whether {} has started", line(&submission.action));
        failure.hint = format!(
            "when the server is back, start it again with the same key; it will not act twice: --idempotency-key {}",
            submission.key
        );
    }
    failure
}

/// The result on standard output, or the run's failure.
pub(crate) fn tell(ui: &Ui, view: &RunView) -> Result<(), Failure> {
    let written = match ui.output {
        Output::Name => ui.out(&view.id.to_string()),
        Output::Json => ui.out(&json_text(view, true)),
        Output::Jsonl => ui.out(&json_text(view, false)),
        Output::Table => match &view.result {
            Some(Value::String(text)) => ui.out(&block(text)),
            Some(Value::Null) | None => Ok(()),
            Some(result) => ui.out(&json_text(result, true)),
        },
    };
    let took = view.duration_seconds.map(|took| format!(" in {}", seconds(took))).unwrap_or_default();
    if let Some(mut failure) = Failure::of_run(view) {
        failure.answered = true;
        return Err(failure);
    }
    ui.note(&format!("{} {}{took}", line(&view.action), ui.state_note(view.state.as_str())));
    match written {
        // Whoever has read enough does not change how the run ended.
        Err(failure) if failure.code != 0 => Err(failure),
        _ => Ok(()),
    }
}
