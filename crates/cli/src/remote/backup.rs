//! `interlock backup`: on the server's own machine, with the server running or not.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use interlock_engine::backup::{Past, Settled};
use interlock_engine::notary::Report;
use interlock_evidence::checkpoint::VerifyingKey;
use interlock_model::id::hexadecimal;
use serde_json::json;

use super::failure::{Failure, exit};
use super::signing::document;
use super::text::time;
use super::ui::{Facts, Ui};
use super::users::open;
use crate::backup::{self, Opened, Proven, Recipient};
use crate::config::Config;
use crate::local::Local;

/// Backups of the installation.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Make a pair of keys: the private one into FILE, which you keep elsewhere; the public one is printed
    Key {
        /// The file to make
        file: PathBuf,
    },
    /// Take a backup while the server runs, or not
    Create(CreateArgs),
    /// Open a backup, put it into a temporary folder, and prove all of it: a drill
    Verify(VerifyArgs),
    /// Put a backup into an empty folder, and make that safe to start
    Restore(RestoreArgs),
}

/// What to take.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The file to make
    file: PathBuf,
    /// State folder of the installation
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Public key that it is sealed for, as `interlock backup key` printed it [default: BACKUP_KEY]
    #[arg(long = "for", value_name = "KEY")]
    recipient: Option<String>,
}

/// What opens it, and whom to believe.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// The backup
    file: PathBuf,
    /// File with the private key
    #[arg(long, value_name = "FILE")]
    private_key: PathBuf,
    /// Key of the audit log that was kept elsewhere (`interlock audit key`); several are allowed. Without it, the one in the
    /// backup is believed
    #[arg(long, value_name = "KEY")]
    key: Vec<VerifyingKey>,
    /// Checkpoints that were kept elsewhere: the file of AUDIT_ANCHOR_FILE
    #[arg(long, value_name = "FILE")]
    anchors: Option<PathBuf>,
}

/// What to prove.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    open: OpenArgs,
    /// Record the drill in the installation in this folder
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder for the temporary copy, with space for the whole database
    #[arg(long, value_name = "DIR")]
    within: Option<PathBuf>,
}

/// Where to put it.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    open: OpenArgs,
    /// State folder to make. With --only, the one of the installation that is there
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// What was revoked since, as `interlock revocations export` printed it last
    #[arg(long, value_name = "FILE")]
    revocations: Option<PathBuf>,
    /// API keys stay alive, but those that are revoked in the backup or in --revocations
    #[arg(long, requires = "revocations")]
    keep_api_keys: bool,
    /// Only this part, into an installation that is there
    #[arg(long, conflicts_with_all = ["revocations", "keep_api_keys"])]
    only: Option<Partly>,
}

/// A part that can be put back alone.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Partly {
    /// What is dead: ends it here too
    Revocations,
    /// People and agents that are not here, with the hashes of their passwords and secrets
    Credentials,
}

pub(crate) async fn backup(ui: &Ui, command: BackupCommand) -> Result<(), Failure> {
    match command {
        BackupCommand::Key { file } => {
            let made = backup::make_key(&file).map_err(|error| failed("no key was made", &error))?;
            ui.note("keep the private key away from the server: without it no backup opens, and it opens all of them");
            ui.out(&made.to_string())
        }
        BackupCommand::Create(args) => create(ui, args).await,
        BackupCommand::Verify(args) => verify(ui, args).await,
        BackupCommand::Restore(RestoreArgs { only: Some(part), open, state, .. }) => {
            restore_part(ui, part, &open, &state).await
        }
        BackupCommand::Restore(args) => restore(ui, args).await,
    }
}

fn failed(what: &str, error: &anyhow::Error) -> Failure {
    Failure::new(exit::ERROR, what, "").because(format!("{error:#}"))
}

fn settings() -> Result<Config, Failure> {
    let environment = std::env::vars().collect();
    Config::load(None, &environment, &[]).map_err(|error| {
        Failure::new(exit::USAGE, "the settings cannot be read", "").because(error.to_string())
    })
}

async fn create(ui: &Ui, args: CreateArgs) -> Result<(), Failure> {
    let settings = settings()?;
    let text = args.recipient.unwrap_or_else(|| settings.text("backup.key").to_owned());
    if text.is_empty() {
        let hint =
            "make a pair with: interlock backup key FILE, and give the public key with --for or BACKUP_KEY";
        return Err(Failure::usage("it is not said whom the backup is for", hint));
    }
    let recipient = text.parse::<Recipient>().map_err(|error| Failure::usage(error.to_string(), ""))?;
    let local = open(&args.state).await?;
    let taken = backup::take(&local, &args.file, &recipient, settings.secrets()).await;
    local.close().await;
    let taken = taken.map_err(|error| failed("no backup was taken", &error))?;
    for name in &taken.outside {
        ui.warn(&format!("{name} comes from the settings and is not in the backup: keep it too"));
    }
    let facts = || {
        Facts::new()
            .with("backup", taken.file.display().to_string())
            .with("of", time(taken.of))
            .with("bytes", taken.bytes.to_string())
            .with("rows", taken.rows.values().sum::<u64>().to_string())
            .with("SHA-256 of the content", &taken.sha256)
    };
    ui.one(&taken, facts, &taken.sha256)
}

fn proven(args: &OpenArgs) -> Result<Proven, Failure> {
    let notes = args.anchors.as_deref().map(crate::anchors::notes).transpose();
    let notes = notes.map_err(|error| failed("the checkpoints cannot be read", &error))?;
    Ok(Proven { keys: args.key.clone(), notes: notes.unwrap_or_default() })
}

async fn unpacked(args: &OpenArgs, within: Option<PathBuf>) -> Result<Opened, Failure> {
    let key = backup::read_key(&args.private_key)
        .map_err(|error| failed("the private key cannot be used", &error))?;
    backup::open_in_temporary(&args.file, &key, proven(args)?, within)
        .await
        .map_err(|error| Failure { code: exit::UNVERIFIED, ..failed("the backup is not good", &error) })
}

fn said(opened: &Opened) -> (serde_json::Value, Facts) {
    let Report { first, last, checkpoints, .. } = &opened.audit;
    let document = json!({
        "of": opened.of, "sha256": hexadecimal(&opened.whole.digest), "rows": opened.whole.rows,
        "audit": { "first": first, "last": last, "checkpoints": checkpoints },
    });
    let facts = Facts::new()
        .with("of", time(opened.of.taken_at))
        .with("installation", &opened.of.installation)
        .with("made by version", &opened.of.program)
        .with("rows", opened.whole.rows.values().sum::<u64>().to_string())
        .with("audit log", format!("good: entries {first} to {last}, {checkpoints} checkpoints"));
    (document, facts)
}

async fn verify(ui: &Ui, args: VerifyArgs) -> Result<(), Failure> {
    let opened = unpacked(&args.open, args.within).await?;
    let (document, facts) = said(&opened);
    let (taken_at, whose) = (opened.of.taken_at, opened.of.installation.clone());
    opened.discard().await;
    if let Some(state) = &args.state {
        let local = open(state).await?;
        let recorded = record(&local, taken_at, &whose).await;
        local.close().await;
        recorded?;
    }
    ui.one(&document, || facts, "good")
}

async fn record(local: &Local, taken_at: interlock_model::Timestamp, whose: &str) -> Result<(), Failure> {
    let own = local.audit_key().await.map_err(|error| failed("the drill is not recorded", &error))?;
    if own.name() != whose {
        return Err(Failure::new(
            exit::CONFLICT,
            format!("the backup is of {whose}, and this is {}", own.name()),
            "",
        ));
    }
    local.record_drill(taken_at).await.map_err(|error| failed("the drill is not recorded", &error))
}

async fn restore_part(
    ui: &Ui,
    part: Partly,
    args: &OpenArgs,
    state: &std::path::Path,
) -> Result<(), Failure> {
    let local = open(state).await?;
    let done = async {
        let opened = unpacked(args, None).await?;
        let done = match part {
            Partly::Revocations => match opened.local.export_revocations().await {
                Ok(dead) => local.import_revocations(dead).await.map(|ended| json!({ "ended": ended })),
                Err(error) => Err(error),
            },
            Partly::Credentials => match opened.local.credentials().await {
                Ok(found) => local.bring_back(found).await.map(|back| json!({ "came_back": back })),
                Err(error) => Err(error),
            },
        };
        opened.discard().await;
        done.map_err(|error| failed("nothing was restored", &error))
    }
    .await;
    local.close().await;
    let done = done?;
    ui.one(&done, || Facts::new().with("restored", done.to_string()), "done")
}

async fn restore(ui: &Ui, args: RestoreArgs) -> Result<(), Failure> {
    let settings = settings()?;
    let dead = args.revocations.as_ref().map(|file| document(Some(file))).transpose()?;
    let key = backup::read_key(&args.open.private_key)
        .map_err(|error| failed("the private key cannot be used", &error))?;
    let url = settings.database();
    let opened = backup::open(&args.open.file, &key, proven(&args.open)?, &args.state, url)
        .await
        .map_err(|error| failed("the backup was not restored", &error))?;
    let (document, facts) = said(&opened);
    let past = Past { taken_at: opened.of.taken_at, dead, keep_api_keys: args.keep_api_keys };
    let (outside, device) = (opened.of.outside.clone(), opened.of.device);
    let settled = match opened.local.settle(past, device).await {
        Ok(settled) => settled,
        Err(error) => {
            opened.discard().await;
            return Err(failed("the backup was not restored", &error));
        }
    };
    // Tokens count in whole seconds: whoever signs in within this one would be taken for somebody of before.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    opened.keep(&args.state).await.map_err(|error| failed("the backup was not restored", &error))?;
    tell(ui, &settled, device, &outside);
    ui.one(&json!({ "restored": document, "ended": settled }), || facts, "done")
}

fn tell(ui: &Ui, settled: &Settled, device: bool, outside: &[String]) {
    ui.warn("every token and session of before has ended: people and agents sign in again");
    if settled.api_keys + settled.invitations > 0 {
        let Settled { api_keys, invitations, .. } = settled;
        ui.warn(&format!("{api_keys} API keys and {invitations} invitations have ended"));
    }
    if settled.runs + settled.task_runs > 0 {
        let text = format!(
            "{} runs were not over in the backup and are uncertain now",
            settled.runs + settled.task_runs
        );
        ui.warn(&text);
    }
    if settled.due_tasks > 0 {
        ui.warn(&format!("{} tasks fell due since the backup; that is not made up for", settled.due_tasks));
    }
    if device {
        ui.warn("the device refuses calls until somebody has looked at it: interlock attention clear");
    }
    for name in outside {
        ui.warn(&format!("{name} came from the settings: give it to the server again"));
    }
}
