//! `interlock user`: through the server, or with `--state` on the server's own machine, where it also works when nobody can
//! sign in any more.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use interlock_client::{Client, NewUser, UserEdit};
use interlock_engine::UserRow;
use interlock_engine::users::{UserChange, UserError};
use interlock_model::id::random_hex;
use interlock_model::secret::Secret;
use interlock_model::wire::UserView;
use serde_json::{Value, json};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::terminal::{ask_new_password, secret_from_stdin};
use super::text::{line, time};
use super::ui::{Facts, Table, Ui, json_text};
use crate::ambient::SystemEntropy;
use crate::local::Local;

/// The people who may sign in.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user
    Add {
        /// Sign-in name
        name: String,
        /// A role: admin, operator, viewer, auditor, or one that an action asks for. Several are allowed
        #[arg(long, required = true, value_delimiter = ',')]
        role: Vec<String>,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        place: Place,
    },
    /// List everyone
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Give a user these roles and no others
    Role {
        /// Sign-in name
        name: String,
        /// The new roles
        #[arg(required = true, value_delimiter = ',')]
        roles: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Refuse a user; every token of theirs is dead
    Disable {
        /// Sign-in name
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Let a user in again
    Enable {
        /// Sign-in name
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Take over users of an earlier system with their bcrypt hashes, which are replaced at the first sign-in
    Import {
        /// JSON or CSV with name, password_hash and roles
        file: PathBuf,
        /// The installation's folder: this works on the server's own machine only
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
    /// Make or renew the account for emergencies; its password is printed once, to be kept on paper
    BreakGlass {
        /// The installation's folder: this works on the server's own machine only
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
    /// Remove the second factors of somebody who has lost them
    ResetFactors {
        /// Sign-in name
        name: String,
        /// Print a token with which they do it themselves, with their password, instead of removing anything
        #[arg(long, conflicts_with = "state")]
        link: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Set a password; every token of the user is dead
    Passwd {
        /// Sign-in name
        name: String,
        /// Print a token with which they choose one themselves, once, within 24 hours, instead of setting one
        #[arg(long, conflicts_with_all = ["state", "generate", "password_stdin"])]
        reset_link: bool,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        place: Place,
    },
}

/// Where a password comes from; without either it is asked for.
#[derive(Debug, Args)]
pub(crate) struct PasswordArgs {
    /// Make one up and print it, once
    #[arg(long, conflicts_with = "password_stdin")]
    generate: bool,
    /// Read it from standard input
    #[arg(long)]
    password_stdin: bool,
}

/// Where to work.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Work on the installation in this folder, without a server
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

enum Users {
    There(Box<Client>),
    Here(Box<Local>),
}

pub(crate) async fn user(ui: &Ui, global: &Global, command: UserCommand) -> Result<(), Failure> {
    if let UserCommand::Import { file, state } = &command {
        let local = open(state).await?;
        let done = super::user_import::import(ui, &local, file).await;
        local.close().await;
        return done;
    }
    let state = match &command {
        UserCommand::Import { state, .. } | UserCommand::BreakGlass { state } => Some(state),
        UserCommand::Add { place, .. }
        | UserCommand::List { place }
        | UserCommand::Role { place, .. }
        | UserCommand::Disable { place, .. }
        | UserCommand::Enable { place, .. }
        | UserCommand::ResetFactors { place, .. }
        | UserCommand::Passwd { place, .. } => place.state.as_ref(),
    };
    let users = match state {
        Some(state) => Users::Here(Box::new(open(state).await?)),
        None => Users::There(Box::new(Session::open(global)?.client)),
    };
    let done = work(ui, &users, command).await;
    if let Users::Here(local) = users {
        local.close().await;
    }
    done
}

pub(crate) async fn open(state: &std::path::Path) -> Result<Local, Failure> {
    Local::open(state).await.map_err(|error| {
        let hint = format!(
            "run it as the user that the server runs as; check: interlock doctor --state {}",
            state.display()
        );
        Failure::new(exit::ERROR, format!("the installation in {} cannot be opened", state.display()), hint)
            .because(format!("{error:#}"))
    })
}

async fn work(ui: &Ui, users: &Users, command: UserCommand) -> Result<(), Failure> {
    match command {
        // Done before anything was opened.
        UserCommand::Import { .. } => Ok(()),
        UserCommand::List { .. } => {
            let found = users.list().await?;
            ui.list(&found, table, |user| user.name.clone())
        }
        UserCommand::Add { name, role, password, .. } => {
            let secret = obtain(ui, &password, &name).await?;
            let user = users.create(&name, &secret, &role).await?;
            tell(ui, &user, password.generate.then_some(&secret))
        }
        UserCommand::Role { name, roles, .. } => {
            tell(ui, &users.update(&name, Some(roles), None).await?, None)
        }
        UserCommand::Disable { name, .. } => tell(ui, &users.update(&name, None, Some(true)).await?, None),
        UserCommand::Enable { name, .. } => tell(ui, &users.update(&name, None, Some(false)).await?, None),
        UserCommand::BreakGlass { .. } => {
            let Users::Here(local) = users else { return Ok(()) };
            let secret = made_up();
            let user = local.break_glass(secret.clone()).await.map_err(|error| refused(&error))?;
            tell(ui, &view(user), Some(&secret))
        }
        UserCommand::ResetFactors { name, link: true, .. } => users.start_reset(ui, &name, "factors").await,
        UserCommand::Passwd { name, reset_link: true, .. } => users.start_reset(ui, &name, "password").await,
        UserCommand::ResetFactors { name, .. } => {
            users.reset_factors(&name).await?;
            ui.note(&format!("{} has no second factor any more", line(&name)));
            Ok(())
        }
        UserCommand::Passwd { name, password, .. } => {
            let secret = obtain(ui, &password, &name).await?;
            users.set_password(&name, &secret).await?;
            ui.note(&format!(
                "the password of {} is set; every earlier token of theirs is dead",
                line(&name)
            ));
            let shown = password.generate.then_some(&secret);
            match (ui.output, shown) {
                (Output::Json | Output::Jsonl, _) => ui.out(&json_text(
                    &json!({ "name": name, "password": shown.map(Secret::expose) }),
                    ui.output == Output::Json,
                )),
                (_, Some(secret)) => ui.out(secret.expose()),
                (_, None) => Ok(()),
            }
        }
    }
}

impl Users {
    async fn list(&self) -> Result<Vec<UserView>, Failure> {
        match self {
            Self::There(client) => Ok(client.users().await?),
            Self::Here(local) => {
                let failed = |error: anyhow::Error| {
                    Failure::new(exit::ERROR, "the users cannot be read", "interlock doctor")
                        .because(format!("{error:#}"))
                };
                Ok(local.list().await.map_err(failed)?.into_iter().map(view).collect())
            }
        }
    }

    async fn create(&self, name: &str, password: &Secret, roles: &[String]) -> Result<UserView, Failure> {
        match self {
            Self::There(client) => Ok(client.create_user(&NewUser { name, password, roles }).await?),
            Self::Here(local) => {
                Ok(view(local.create(name, password.clone(), roles).await.map_err(|error| refused(&error))?))
            }
        }
    }

    async fn update(
        &self,
        name: &str,
        roles: Option<Vec<String>>,
        disabled: Option<bool>,
    ) -> Result<UserView, Failure> {
        match self {
            Self::There(client) => Ok(client.update_user(name, &UserEdit { roles, disabled }).await?),
            Self::Here(local) => Ok(view(
                local.update(name, UserChange { roles, disabled }).await.map_err(|error| refused(&error))?,
            )),
        }
    }

    async fn reset_factors(&self, name: &str) -> Result<(), Failure> {
        match self {
            Self::There(client) => Ok(client.reset_factors(name).await.map(drop)?),
            Self::Here(local) => local.reset_factors(name).await.map_err(|error| refused(&error)),
        }
    }

    async fn start_reset(&self, ui: &Ui, name: &str, what: &str) -> Result<(), Failure> {
        // The command line lets nobody ask for this beside a folder.
        let Self::There(client) = self else { return Ok(()) };
        let made = client.start_reset(name, what).await?;
        if matches!(ui.output, Output::Json | Output::Jsonl) {
            let document = json!({
                "name": made.name, "what": made.what, "expires_at": made.expires_at, "token": made.token.expose(),
            });
            return ui.out(&json_text(&document, ui.output == Output::Json));
        }
        ui.note(&format!(
            "{} can use it until {}: interlock account reset --url {}\nThe token is shown only now:",
            line(&made.name),
            time(made.expires_at),
            line(client.url()),
        ));
        ui.out(made.token.expose())
    }

    async fn set_password(&self, name: &str, password: &Secret) -> Result<(), Failure> {
        match self {
            Self::There(client) => {
                client.set_password(name, password).await.map(|_| ()).map_err(Failure::from)
            }
            Self::Here(local) => {
                local.set_password(name, password.clone()).await.map(|_| ()).map_err(|error| refused(&error))
            }
        }
    }
}

fn view(row: UserRow) -> UserView {
    let UserRow { name, roles, disabled, created_at, updated_at, .. } = row;
    UserView { name, roles, disabled, created_at, updated_at }
}

/// The same codes as through the server.
fn refused(error: &UserError) -> Failure {
    let (code, hint) = match error {
        UserError::Name | UserError::Role | UserError::Hash | UserError::Password(_) => {
            (exit::PARAMETERS, "change what is named and start the command again")
        }
        UserError::Exists => {
            (exit::CONFLICT, "`interlock user list` shows everyone; `interlock user passwd` sets a password")
        }
        UserError::NoSuchUser => (exit::NOT_FOUND, "`interlock user list` shows everyone"),
        UserError::ShortPassword => (exit::CONFLICT, "interlock user passwd NAME"),
        UserError::Sealed => (exit::CONFLICT, "interlock user break-glass --state DIR"),
        UserError::LastAdmin => (exit::CONFLICT, "interlock user add NAME --role admin"),
        UserError::ByLink | UserError::Own | UserError::Elsewhere => {
            (exit::FORBIDDEN, "interlock user passwd NAME --reset-link")
        }
        UserError::Conflict | UserError::Overloaded => (exit::CONFLICT, "start the command again"),
        UserError::Store(_) => (exit::ERROR, "interlock doctor"),
    };
    let source = std::error::Error::source(error).map(ToString::to_string);
    let mut failure = Failure::new(code, error.to_string(), hint);
    failure.cause = source;
    failure
}

async fn obtain(ui: &Ui, args: &PasswordArgs, name: &str) -> Result<Secret, Failure> {
    if args.generate {
        return Ok(made_up());
    }
    if args.password_stdin {
        return secret_from_stdin("password");
    }
    ask_new_password(ui, &line(name), "give it with --password-stdin, or let one be made up with --generate")
        .await
}

/// 120 random bits in groups that can be read aloud.
fn made_up() -> Secret {
    let digits = random_hex(&SystemEntropy, 15);
    let groups: Vec<&str> = (0..digits.len()).step_by(5).map(|at| &digits[at..at + 5]).collect();
    Secret::new(groups.join("-"))
}

fn table(users: &[UserView]) -> Table {
    let mut table = Table::new(&["NAME", "ROLES", "STATE", "SINCE", "CHANGED"]);
    for user in users {
        let state = if user.disabled { "disabled" } else { "enabled" };
        table.row([
            user.name.as_str(),
            &user.roles.join(", "),
            state,
            &time(user.created_at),
            &time(user.updated_at),
        ]);
    }
    table
}

/// The user, and a password that was made up: it is shown here and nowhere else.
fn tell(ui: &Ui, user: &UserView, password: Option<&Secret>) -> Result<(), Failure> {
    let Some(password) = password else {
        let facts = || {
            let state = if user.disabled { "disabled" } else { "enabled" };
            Facts::new().with("user", &user.name).with("roles", user.roles.join(", ")).with("state", state)
        };
        return ui.one(user, facts, &user.name);
    };
    match ui.output {
        Output::Json | Output::Jsonl => {
            let mut document = serde_json::to_value(user).unwrap_or_default();
            document["password"] = Value::from(password.expose());
            ui.out(&json_text(&document, ui.output == Output::Json))
        }
        Output::Table | Output::Name => {
            ui.note(&format!(
                "user {} with roles {}; the password is shown only now:",
                line(&user.name),
                line(&user.roles.join(", "))
            ));
            ui.out(password.expose())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_made_up_passwords_differ_and_are_long() {
        let (one, two) = (made_up(), made_up());

        assert_eq!(one.expose().len(), 35);
        assert!(!one.matches(two.expose()));
    }
}
