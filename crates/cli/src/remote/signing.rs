//! `interlock keys` and `interlock revocations`: on the server's own machine, with the server running or not.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use interlock_engine::revocations::{FORM, Revocations};
use serde_json::json;

use super::failure::{Failure, exit};
use super::text::time;
use super::ui::{Facts, Ui, json_text};
use super::users::open;

/// Keys of the installation.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Sign with a new key from here on. What the old one signed stays good until it ends
    Rotate(At),
    /// Seal every stored secret with a new master key. May be interrupted; run it again then
    RotateMaster(At),
}

/// Where.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// State folder of the installation
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

/// What is dead before its time: for backups.
#[derive(Debug, Subcommand)]
pub(crate) enum RevocationsCommand {
    /// Print what is revoked, ended or disabled as JSON
    Export(At),
    /// End what is dead by such a document. It ends things, it never brings one back
    Import {
        #[command(flatten)]
        at: At,
        /// The document [default: standard input]
        file: Option<PathBuf>,
    },
}

fn failed(what: &str, error: &anyhow::Error) -> Failure {
    Failure::new(exit::ERROR, what, "interlock doctor").because(format!("{error:#}"))
}

pub(crate) async fn keys(ui: &Ui, command: KeysCommand) -> Result<(), Failure> {
    let state = match command {
        KeysCommand::Rotate(At { state }) => state,
        KeysCommand::RotateMaster(At { state }) => return rotate_master(ui, state).await,
    };
    let local = open(&state).await?;
    let done = local.rotate_key(&state).await;
    local.close().await;
    let rotated = done.map_err(|error| failed("the signing key is not changed", &error))?;
    let facts = || {
        Facts::new()
            .with("signs now", &rotated.kid)
            .with("signed before", &rotated.before)
            .with("good until", time(rotated.until))
    };
    let document = json!({ "kid": rotated.kid, "before": rotated.before, "before_until": rotated.until });
    ui.one(&document, facts, &rotated.kid)
}

async fn rotate_master(ui: &Ui, state: PathBuf) -> Result<(), Failure> {
    let local = open(&state).await?;
    let done = local.rotate_master(&state).await;
    local.close().await;
    let done = done.map_err(|error| failed("the master key is not exchanged", &error))?;
    let facts = || {
        Facts::new()
            .with("sealed anew", done.resealed.to_string())
            .with("sealed so already", done.current.to_string())
    };
    ui.one(&done, facts, &done.resealed.to_string())
}

pub(crate) async fn revocations(ui: &Ui, command: RevocationsCommand) -> Result<(), Failure> {
    match command {
        RevocationsCommand::Export(At { state }) => {
            let local = open(&state).await?;
            let taken = local.export_revocations().await;
            local.close().await;
            let taken = taken.map_err(|error| failed("the revocations cannot be read", &error))?;
            ui.out(&json_text(&taken, true))
        }
        RevocationsCommand::Import { at: At { state }, file } => {
            let document = document(file.as_ref())?;
            let local = open(&state).await?;
            let done = local.import_revocations(document).await;
            local.close().await;
            let ended = done.map_err(|error| failed("nothing was imported", &error))?;
            let facts = || {
                Facts::new()
                    .with("tokens", ended.tokens.to_string())
                    .with("sessions", ended.sessions.to_string())
                    .with("people and agents", ended.principals.to_string())
                    .with("API keys", ended.api_keys.to_string())
            };
            ui.one(&ended, facts, &ended.sessions.to_string())
        }
    }
}

pub(super) fn document(file: Option<&PathBuf>) -> Result<Revocations, Failure> {
    let hint = "give what `interlock revocations export` printed";
    let text = if let Some(path) = file {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::file("cannot read the document", path, &error, hint))?
    } else {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| {
            Failure::new(exit::ERROR, "standard input cannot be read", hint).because(error.to_string())
        })?;
        text
    };
    let parsed = serde_json::from_str::<Revocations>(&text);
    let parsed = parsed.map_err(|error| {
        Failure::new(exit::PARAMETERS, "this is no document of revocations", hint).because(error.to_string())
    })?;
    if parsed.form == FORM {
        return Ok(parsed);
    }
    let text =
        format!("form {} of the document is not known here; this program knows form {FORM}", parsed.form);
    Err(Failure::new(exit::PARAMETERS, text, "use the program that made it, or a newer one"))
}
