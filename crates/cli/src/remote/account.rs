//! `interlock account`: one's own password, second factors and fresh proof of identity.

use clap::Subcommand;
use interlock_client::{Client, Factors, Proof};
use interlock_model::secret::Secret;
use interlock_model::wire::{LoginAnswer, NoticeView};
use serde_json::json;

use super::connect::{Session, Target};
use super::contexts;
use super::failure::Failure;
use super::global::{Global, Output};
use super::terminal::{ask, ask_new_password, ask_password, confirm, secrets_from_stdin};
use super::text::{line, time};
use super::ui::{Facts, Table, Ui, json_text};

/// One's own account.
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Change your password; every other session of yours ends
    Password,
    /// Prove again who you are, for what is dangerous; it lasts 15 minutes
    StepUp {
        /// Code of your second factor, or a recovery code; without it you are asked
        #[arg(long, value_name = "CODE")]
        otp: Option<String>,
    },
    /// Look after your second factors
    #[command(subcommand, alias = "factors")]
    Factor(FactorCommand),
    /// Let a device in as yourself by the code that it shows
    ApproveDevice {
        /// The code
        code: String,
    },
    /// Keep a device out by the code that it shows
    DenyDevice {
        /// The code
        code: String,
    },
    /// Show what there is to know about your account: unusual sign-ins, changed credentials, ends
    Notices {
        /// Leave them marked as new
        #[arg(long)]
        keep: bool,
    },
    /// Make ten new recovery codes; the ones before are dead
    RecoveryCodes,
    /// Replace a lost password or second factor with the token that an administrator gave you. Give the server with --url
    Reset {
        /// Read the token and then the password from standard input, one line each
        #[arg(long)]
        stdin: bool,
    },
}

/// Second factors.
#[derive(Debug, Subcommand)]
pub(crate) enum FactorCommand {
    /// List them
    List,
    /// Set up an authenticator app
    Add {
        /// Name to tell it from others
        #[arg(long, default_value = "authenticator app")]
        name: String,
    },
    /// Remove one
    Remove {
        /// Its id
        id: String,
    },
}

pub(crate) async fn account(ui: &Ui, global: &Global, command: AccountCommand) -> Result<(), Failure> {
    if let AccountCommand::Reset { stdin } = command {
        return reset(ui, global, stdin).await;
    }
    let Session { target, client } = Session::open(global)?;
    match command {
        // Done before there was a session.
        AccountCommand::Reset { .. } => Ok(()),
        AccountCommand::Password => password(ui, &target, &client).await,
        AccountCommand::StepUp { otp } => step_up(ui, &target, &client, otp).await,
        AccountCommand::ApproveDevice { code } => decide(ui, &client, &code, true).await,
        AccountCommand::DenyDevice { code } => decide(ui, &client, &code, false).await,
        AccountCommand::Factor(FactorCommand::List) => {
            let found = client.factors().await?;
            told(ui, &found)
        }
        AccountCommand::Factor(FactorCommand::Add { name }) => add(ui, &client, &name).await,
        AccountCommand::Factor(FactorCommand::Remove { id }) => {
            let done = client.remove_factor(&id).await?;
            ui.one(&done, || Facts::new().with("removed", &id), &id)
        }
        AccountCommand::Notices { keep } => notices(ui, &client, keep).await,
        AccountCommand::RecoveryCodes => show_codes(ui, &client.renew_recovery_codes().await?.recovery_codes),
    }
}

async fn reset(ui: &Ui, global: &Global, stdin: bool) -> Result<(), Failure> {
    // Nobody's token goes along.
    let mut target = Target::find(global)?;
    target.token = None;
    let client = target.client(None)?;
    let otherwise = "interlock account reset --stdin < FILE";
    let (token, password) = if stdin {
        secrets_from_stdin()?
    } else {
        let token = ask_password(ui, "Token of the reset", otherwise).await?;
        let question = "New password; for lost second factors, the password that you have";
        (token, ask_password(ui, question, otherwise).await?)
    };
    let done = client.finish_reset(&token, &password).await?;
    ui.note(&format!("sign in with: interlock login --url {} --user {}", target.url, line(&done.name)));
    let facts = || Facts::new().with("user", &done.name).with("replaced", &done.what);
    ui.one(&done, facts, &done.name)
}

async fn notices(ui: &Ui, client: &Client, keep: bool) -> Result<(), Failure> {
    let found = client.notices().await?;
    let table = |notices: &[NoticeView]| {
        let mut table = Table::new(&["TIME", "NEW", "TIMES", "WHAT"]);
        for notice in notices {
            let new = if notice.read { "" } else { "new" };
            table.row([time(notice.at).as_str(), new, &notice.count.to_string(), &notice.text]);
        }
        table
    };
    ui.list(&found, table, |notice| notice.kind.clone())?;
    if let Some(newest) = found.iter().map(|notice| notice.at).max().filter(|_| !keep) {
        client.read_notices(newest).await?;
    }
    Ok(())
}

async fn password(ui: &Ui, target: &Target, client: &Client) -> Result<(), Failure> {
    let otherwise =
        "passwords are typed on a terminal only; an administrator can use: interlock user passwd NAME";
    let current = ask_password(ui, "Current password", otherwise).await?;
    let name = client.me().await?.user;
    let new = ask_new_password(ui, &line(&name), otherwise).await?;
    let answer = client.change_password(&current, &new).await?;
    keep(ui, target, &answer)?;
    let shown = json!({ "user": answer.user, "changed": true });
    ui.one(&shown, || Facts::new().with("password changed", &answer.user), &answer.user)
}

async fn step_up(ui: &Ui, target: &Target, client: &Client, otp: Option<String>) -> Result<(), Failure> {
    let answer = match otp.map(Secret::new) {
        Some(code) => client.step_up(Proof::Otp(&code)).await?,
        None if client.factors().await?.factors.is_empty() => {
            let password = ask_password(ui, "Your password", "interlock login").await?;
            client.step_up(Proof::Password(&password)).await?
        }
        None => {
            let question = "Code of your second factor, or a recovery code";
            let code = Secret::new(ask(ui, question, "interlock account step-up --otp CODE").await?);
            client.step_up(Proof::Otp(&code)).await?
        }
    };
    keep(ui, target, &answer)?;
    let shown = json!({ "user": answer.user, "fresh_for_seconds": 900 });
    ui.one(&shown, || Facts::new().with("proved for 15 minutes", &answer.user), &answer.user)
}

async fn decide(ui: &Ui, client: &Client, code: &str, approve: bool) -> Result<(), Failure> {
    if approve {
        let found = client.show_device_code(code).await?;
        ui.note(&format!(
            "{} at {} ({}) asked at {}; limited to: {}",
            line(&found.client),
            line(&found.client_ip),
            line(&found.user_agent),
            time(found.created_at),
            line(
                &found
                    .scopes
                    .map_or_else(|| "everything that you may do".to_owned(), |scopes| scopes.join(", "))
            ),
        ));
        if !confirm(ui, "Did you begin this yourself, and shall it act as you?").await {
            let mut failure =
                Failure::usage("nothing was decided", "interlock account deny-device CODE keeps it out");
            failure.chosen = true;
            return Err(failure);
        }
    }
    let decided = client.decide_device_code(code, approve).await?;
    ui.one(
        &decided,
        || Facts::new().with("device", &decided.client).with("decision", &decided.decision),
        code,
    )
}

async fn add(ui: &Ui, client: &Client, name: &str) -> Result<(), Failure> {
    let otherwise = "this needs a terminal; a program uses POST /auth/factors/totp";
    let made = client.enrol_totp(name).await?;
    ui.note("Give this to your authenticator app; it is shown only now:");
    ui.note(&format!("  key   {}\n  link  {}", line(made.secret.expose()), line(made.uri.expose())));
    let code = Secret::new(ask(ui, "The code that it shows", otherwise).await?);
    let codes = client.confirm_totp(&code).await?.recovery_codes;
    ui.note("The app counts from here on.");
    if codes.is_empty() { Ok(()) } else { show_codes(ui, &codes) }
}

/// Recovery codes go to standard output, so that they can be kept in a file.
fn show_codes(ui: &Ui, codes: &[Secret]) -> Result<(), Failure> {
    let texts: Vec<&str> = codes.iter().map(Secret::expose).collect();
    match ui.output {
        Output::Json | Output::Jsonl => {
            ui.out(&json_text(&json!({ "recovery_codes": texts }), ui.output == Output::Json))
        }
        Output::Table | Output::Name => {
            ui.note("Recovery codes: each stands in for the app once. Keep them apart from it; they are shown only now:");
            ui.out(&texts.join("\n"))
        }
    }
}

fn told(ui: &Ui, found: &Factors) -> Result<(), Failure> {
    ui.note(&format!("{} recovery codes are left", found.recovery_codes_left));
    let table = |factors: &[interlock_client::Factor]| {
        let mut table = Table::new(&["ID", "KIND", "NAME", "SINCE", "LAST USED"]);
        for factor in factors {
            let used = factor.last_used_at.map_or_else(|| "never".to_owned(), time);
            table.row([
                factor.id.as_str(),
                factor.kind.as_str(),
                &line(&factor.name),
                &time(factor.created_at),
                &used,
            ]);
        }
        table
    };
    ui.list(&found.factors, table, |factor| factor.id.clone())
}

/// Stores the new token where the old one was.
fn keep(ui: &Ui, target: &Target, answer: &LoginAnswer) -> Result<(), Failure> {
    if let Some(name) = &target.context {
        return contexts::renew(name, answer);
    }
    ui.warn("the token that you gave is dead now; sign in again for a new one");
    Ok(())
}
