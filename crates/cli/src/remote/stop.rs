//! `interlock stop` and `interlock release`.
//!
//! A stop asks nothing and waits for nothing before it is sent: one request, sent again when the connection breaks. What it
//! prints is what the server could confirm.

use clap::Args;
use interlock_model::wire::StopReport;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::text::{line, seconds};
use super::ui::{Ui, json_text};

/// What to do when nobody can say that the device stands still.
pub(crate) const UNCONFIRMED_HINT: &str = "use the emergency stop of the device itself, now";

/// What to stop.
#[derive(Debug, Args)]
#[command(
    after_help = "Kills what runs, brings the device to its safe state and holds it until `interlock release`.\n\
                        The exit code is 0 only when every device is confirmed safe. A stop over a network is no replacement\n\
                        for the emergency stop button of the device."
)]
pub(crate) struct StopArgs {
    /// The device; everything at this server if left out
    #[arg(conflicts_with = "all")]
    device: Option<String>,
    /// Everything at this server
    #[arg(long)]
    all: bool,
    /// Why, in a few words
    #[arg(long)]
    reason: Option<String>,
}

/// What to release.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The device; may be left out
    device: Option<String>,
    /// Why it is safe
    #[arg(long)]
    reason: String,
}

pub(crate) async fn stop(ui: &Ui, global: &Global, args: StopArgs) -> Result<(), Failure> {
    // A stop never waits for anything else: without --all and without a device it means the same.
    let _ = args.all;
    let client = Session::open(global)?.client;
    // The server refuses long or odd reasons by leaving them out; a shortened one is better than none.
    let reason = args.reason.map(|reason| line(&reason).chars().take(200).collect::<String>());
    let report = client.stop(reason.as_deref()).await.map_err(|error| {
        let failure = Failure::from(error);
        let mut told = if failure.code == exit::SIGN_IN { failure } else { failure.hint(UNCONFIRMED_HINT) };
        told.cause =
            Some(told.cause.map_or_else(|| told.error.clone(), |cause| format!("{}: {cause}", told.error)));
        "the stop is not confirmed: the device may still move".clone_into(&mut told.error);
        told
    })?;
    match ui.output {
        Output::Json | Output::Jsonl => ui.out(&json_text(&report, ui.output == Output::Json))?,
        Output::Name => report.devices.iter().try_for_each(|device| ui.out(&line(&device.name)))?,
        Output::Table => {
            ui.out(&confirmed(&report))?;
            tell(ui, &report);
        }
    }
    if report.confirmed != report.of || report.devices.iter().any(|device| !device.confirmed) {
        let names: Vec<String> = report
            .devices
            .iter()
            .filter(|device| !device.confirmed)
            .map(|device| line(&device.name))
            .collect();
        let mut failure = Failure::new(exit::ERROR, confirmed(&report), UNCONFIRMED_HINT);
        failure.cause = Some(format!("not confirmed: {}", names.join(", ")));
        failure.answered = true;
        return Err(failure);
    }
    if let Some(device) =
        args.device.filter(|device| !report.devices.iter().any(|stopped| stopped.name == *device))
    {
        let names: Vec<String> = report.devices.iter().map(|device| line(&device.name)).collect();
        let error = format!(
            "there is no device '{}' here; what is here was stopped: {}",
            line(&device),
            names.join(", ")
        );
        let mut failure = Failure::new(
            exit::NOT_FOUND,
            error,
            "interlock context list; then: interlock stop --context NAME",
        );
        failure.answered = true;
        return Err(failure);
    }
    ui.note("it holds until an administrator releases it: interlock release --reason \"checked, safe\"");
    Ok(())
}

pub(crate) fn confirmed(report: &StopReport) -> String {
    format!("emergency stop engaged: {} of {} confirmed", report.confirmed, report.of)
}

/// The report for people, on standard error.
pub(crate) fn tell(ui: &Ui, report: &StopReport) {
    for device in &report.devices {
        let time = |milliseconds: Option<f64>| {
            milliseconds.map_or_else(|| "not confirmed".to_owned(), |ms| seconds(ms / 1000.0))
        };
        let word = if device.confirmed { "confirmed" } else { "NOT CONFIRMED" };
        let error = device.error.as_ref().map(|error| format!("; {}", line(error))).unwrap_or_default();
        let safe = match device.safe_state.as_str() {
            "none" => "no safe-state hook".to_owned(),
            "done" => format!("safe state after {}", time(device.safe_state_done_ms)),
            other => format!("safe state {}", line(other)),
        };
        ui.warn(&format!(
            "{}: {word}, killed after {}, {safe}{error}",
            line(&device.name),
            time(device.killed_ms)
        ));
    }
    if let Some(run) = report.cancelled_run {
        ui.note(&format!("{run} was stopped"));
    }
}

pub(crate) async fn release(ui: &Ui, global: &Global, args: ReleaseArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    if let Some(device) = &args.device {
        let here = client.device().await?.name;
        if here != *device {
            let error =
                format!("there is no device '{}' at {}; nothing was released", line(device), client.url());
            return Err(Failure::new(
                exit::NOT_FOUND,
                error,
                format!("the device here is '{}'", line(&here)),
            ));
        }
    }
    let done = client.release(&args.reason).await?;
    match ui.output {
        Output::Table | Output::Name => ui.out(&line(&done.message)),
        form => ui.out(&json_text(&done, form == Output::Json)),
    }
}
