//! `interlock role`, `policy` and `token`: who may do what, why, and what is over.

use clap::{Args, Subcommand};
use interlock_client::{Question, Revoke};
use interlock_model::Timestamp;
use interlock_model::wire::RoleView;
use serde::Serialize;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::Global;
use super::text::line;
use super::ui::{Facts, Table, Ui};

/// Roles: sets of scopes that people are given.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// List roles, built in and of this installation
    List,
    /// Make or change a role of this installation. Whoever holds it has the new scopes at once
    Set {
        /// Its name
        name: String,
        /// What it may do, in place of all it could. Several are allowed
        #[arg(long, required = true, value_delimiter = ',')]
        scope: Vec<String>,
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
    },
    /// Delete a role of this installation. Whoever held it holds nothing by it any more
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Serialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    role: RoleView,
}

pub(crate) async fn role(ui: &Ui, global: &Global, command: RoleCommand) -> Result<(), Failure> {
    let Session { client, .. } = Session::open(global)?;
    match command {
        RoleCommand::List => {
            let found: Vec<Named> =
                client.roles().await?.into_iter().map(|(name, role)| Named { name, role }).collect();
            ui.list(&found, role_table, |role| role.name.clone())
        }
        RoleCommand::Set { name, scope, description } => {
            let role = Named { role: client.put_role(&name, &description, &scope).await?, name };
            let facts = || Facts::new().with("role", &role.name).with("scopes", scopes(&role.role));
            ui.one(&role, facts, &role.name)
        }
        RoleCommand::Delete { name } => {
            let done = client.delete_role(&name).await?;
            ui.one(&done, || Facts::new().with("deleted", line(&name)), &name)
        }
    }
}

fn scopes(role: &RoleView) -> String {
    role.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn role_table(roles: &[Named]) -> Table {
    let mut table = Table::new(&["NAME", "KIND", "SCOPES", "FOR"]);
    for Named { name, role } in roles {
        let kind = if role.custom { "custom" } else { "built in" };
        table.row([name.as_str(), kind, &scopes(role), &role.description]);
    }
    table
}

/// Decisions.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say whether somebody may do something, and why; exit code 5 when not
    Test {
        /// A user's name or an agent's id
        principal: String,
        /// A scope, such as audit:read
        #[arg(long, required_unless_present = "action", conflicts_with = "action")]
        scope: Option<String>,
        /// An action of the server's device
        #[arg(long)]
        action: Option<String>,
    },
}

pub(crate) async fn policy(ui: &Ui, global: &Global, command: PolicyCommand) -> Result<(), Failure> {
    let Session { client, .. } = Session::open(global)?;
    let PolicyCommand::Test { principal, scope, action } = command;
    let question = match (&scope, &action) {
        (_, Some(action)) => Question::Action(action),
        (scope, None) => Question::Scope(scope.as_deref().unwrap_or_default()),
    };
    let told = client.test_policy(&principal, question).await?;
    let word = if told.allowed { "yes" } else { "no" };
    let facts = || {
        Facts::new()
            .with("may", word)
            .with("needs", &told.needs)
            .maybe("by", told.by.as_ref())
            .with("because", &told.because)
    };
    ui.one(&told, facts, word)?;
    if told.allowed {
        return Ok(());
    }
    let mut failure = Failure::new(exit::FORBIDDEN, "no", "interlock user role NAME ROLE,ROLE");
    failure.answered = true;
    failure.chosen = true;
    Err(failure)
}

/// Tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// End tokens by what they have in common, on every server of the installation
    Revoke(RevokeArgs),
}

/// What to end; name one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RevokeArgs {
    /// One token, by its id (claim `jti`)
    #[arg(long)]
    jti: Option<String>,
    /// A session with all its tokens
    #[arg(long)]
    session: Option<String>,
    /// Everything of a user or an agent, API keys too
    #[arg(long)]
    principal: Option<String>,
    /// Everything that was issued before a time, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
}

pub(crate) async fn token(ui: &Ui, global: &Global, command: TokenCommand) -> Result<(), Failure> {
    let Session { client, .. } = Session::open(global)?;
    let TokenCommand::Revoke(args) = command;
    let (what, named) = match &args {
        RevokeArgs { jti: Some(jti), .. } => (Revoke::Jti(jti), jti.clone()),
        RevokeArgs { session: Some(id), .. } => (Revoke::Session(id), id.clone()),
        RevokeArgs { principal: Some(name), .. } => (Revoke::Principal(name), name.clone()),
        RevokeArgs { before, .. } => {
            let before = before
                .ok_or_else(|| Failure::usage("name what to revoke", "interlock token revoke --help"))?;
            (Revoke::Before(before), before.to_string())
        }
    };
    let done = client.revoke_tokens(what).await?;
    ui.one(&done, || Facts::new().with("revoked", line(&named)), &named)
}
