//! `interlock invitation`: accounts for whoever holds a token that works once.

use clap::Subcommand;
use interlock_client::Invitation;
use serde_json::json;

use super::connect::{Session, Target};
use super::failure::Failure;
use super::global::{Global, Output};
use super::terminal::{ask_new_password, ask_password, secrets_from_stdin};
use super::text::{line, time};
use super::ui::{Facts, Table, Ui, json_text};

/// Invitations.
#[derive(Debug, Subcommand)]
pub(crate) enum InvitationCommand {
    /// Invite somebody; the token works once, for 72 hours, and is shown only now
    Make {
        /// Sign-in name of the user to be
        name: String,
        /// Roles. Several are allowed
        #[arg(long, required = true, value_delimiter = ',')]
        role: Vec<String>,
    },
    /// List them, newest first
    List,
    /// Take an open one back
    Revoke {
        /// Its id
        id: String,
    },
    /// Become the invited user, with a password of your own. Give the server with --url
    Accept {
        /// Read the token and then the password from standard input, one line each
        #[arg(long)]
        stdin: bool,
    },
}

pub(crate) async fn invitation(ui: &Ui, global: &Global, command: InvitationCommand) -> Result<(), Failure> {
    if let InvitationCommand::Accept { stdin } = command {
        return accept(ui, global, stdin).await;
    }
    let Session { target, client } = Session::open(global)?;
    match command {
        InvitationCommand::Make { name, role } => {
            let made = client.invite(&name, &role).await?;
            if matches!(ui.output, Output::Json | Output::Jsonl) {
                let mut document = json!(made.invitation);
                document["token"] = json!(made.token.expose());
                return ui.out(&json_text(&document, ui.output == Output::Json));
            }
            ui.note(&format!(
                "invited {} until {}; they run: interlock invitation accept --url {}\nThe token is shown only now:",
                line(&made.invitation.name),
                time(made.invitation.expires_at),
                line(&target.url),
            ));
            ui.out(made.token.expose())
        }
        InvitationCommand::Revoke { id } => {
            let done = client.revoke_invitation(&id).await?;
            ui.one(&done, || Facts::new().with("taken back", &id), &id)
        }
        InvitationCommand::List | InvitationCommand::Accept { .. } => {
            ui.list(&client.invitations().await?, table, |invitation| invitation.id.clone())
        }
    }
}

fn table(invitations: &[Invitation]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "ROLES", "STATE", "BY", "UNTIL"]);
    for invitation in invitations {
        table.row([
            invitation.id.as_str(),
            &invitation.name,
            &invitation.roles.join(", "),
            &invitation.state,
            &invitation.created_by,
            &time(invitation.expires_at),
        ]);
    }
    table
}

async fn accept(ui: &Ui, global: &Global, stdin: bool) -> Result<(), Failure> {
    // Nobody's token goes along.
    let mut target = Target::find(global)?;
    target.token = None;
    let client = target.client(None)?;
    let otherwise = "interlock invitation accept --stdin < FILE";
    let (token, password) = if stdin {
        secrets_from_stdin()?
    } else {
        let token = ask_password(ui, "Token of the invitation", otherwise).await?;
        (token, ask_new_password(ui, "your account", otherwise).await?)
    };
    let made = client.accept_invitation(&token, &password).await?;
    ui.note(&format!(
        "welcome; sign in with: interlock login --url {} --user {}",
        target.url,
        line(&made.name)
    ));
    let facts = || Facts::new().with("user", &made.name).with("roles", made.roles.join(", "));
    ui.one(&made, facts, &made.name)
}
