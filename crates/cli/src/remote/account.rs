//! `interlock account`: one's own password.

use clap::Subcommand;
use interlock_model::wire::LoginAnswer;

use super::connect::{Session, Target};
use super::contexts;
use super::failure::Failure;
use super::global::Global;
use super::terminal::{ask_new_password, ask_password};
use super::text::line;
use super::ui::{Facts, Ui};

/// One's own account.
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Change your password; every other session of yours ends
    Password,
}

pub(crate) async fn account(ui: &Ui, global: &Global, command: AccountCommand) -> Result<(), Failure> {
    match command {
        AccountCommand::Password => password(ui, global).await,
    }
}

async fn password(ui: &Ui, global: &Global) -> Result<(), Failure> {
    let Session { target, client } = Session::open(global)?;
    let otherwise =
        "passwords are typed on a terminal only; an administrator can use: interlock user passwd NAME";
    let current = ask_password(ui, "Current password", otherwise).await?;
    let name = client.me().await?.user;
    let new = ask_new_password(ui, &line(&name), otherwise).await?;
    let answer = client.change_password(&current, &new).await?;
    keep(ui, &target, &answer)?;
    let shown = serde_json::json!({ "user": answer.user, "changed": true });
    ui.one(&shown, || Facts::new().with("password changed", &answer.user), &answer.user)
}

/// Stores the new token where the old one was.
fn keep(ui: &Ui, target: &Target, answer: &LoginAnswer) -> Result<(), Failure> {
    if let Some(name) = &target.context {
        return contexts::renew(name, answer);
    }
    ui.warn("the token that you gave is dead now; sign in again for a new one");
    Ok(())
}
