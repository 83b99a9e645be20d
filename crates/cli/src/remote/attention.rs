//! `interlock attention`: a device that waits for a person.

use clap::Subcommand;

use super::connect::Session;
use super::failure::Failure;
use super::global::{Global, Output};
use super::text::{line, time};
use super::ui::{Facts, Ui, json_text};

/// A device that waits for a person.
#[derive(Debug, Subcommand)]
pub(crate) enum AttentionCommand {
    /// Show why the device waits
    Show,
    /// Say that you have looked, and let it work again
    Clear {
        /// What you saw and why it is safe
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn attention(ui: &Ui, global: &Global, command: AttentionCommand) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    match command {
        AttentionCommand::Show => {
            let device = client.device().await?;
            let facts = || match &device.attention {
                None => Facts::new().with("device", &device.name).with("attention", "not needed"),
                Some(attention) => Facts::new()
                    .with("device", &device.name)
                    .with(
                        "attention",
                        if attention.held {
                            "needed: calls are refused"
                        } else {
                            "asked for: calls are taken"
                        },
                    )
                    .with("since", time(attention.since))
                    .with("reason", &attention.reason),
            };
            ui.one(&device.attention, facts, &device.name)
        }
        AttentionCommand::Clear { reason } => {
            let done = client.clear_attention(&reason).await?;
            match ui.output {
                Output::Table | Output::Name => ui.out(&line(&done.message)),
                form => ui.out(&json_text(&done, form == Output::Json)),
            }
        }
    }
}
