//! `interlock security lockouts|unlock`: who must wait before the next guess, through the server or on its own machine.

use std::path::Path;

use serde_json::{Value, json};

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::text::line;
use super::ui::{Table, Ui, json_text};

/// Lists accounts at which somebody must wait.
pub(super) async fn list(ui: &Ui, global: &Global, state: Option<&Path>) -> Result<(), Failure> {
    let found = match state {
        None => Session::open(global)?.client.lockouts().await?,
        Some(state) => {
            let local = super::users::open(state).await?;
            let found = local.lockouts().await.map_err(|error| unreadable(&error));
            local.close().await;
            found?.into_iter().map(|lockout| json!(lockout)).collect()
        }
    };
    ui.list(&found, table, |lockout| text(&lockout["id"]))
}

/// Forgets the guesses at an account.
pub(super) async fn unlock(
    ui: &Ui,
    global: &Global,
    state: Option<&Path>,
    account: &str,
) -> Result<(), Failure> {
    match state {
        None => drop(Session::open(global)?.client.unlock(account).await?),
        Some(state) => {
            let local = super::users::open(state).await?;
            let unlocked = local.unlock(account).await.map_err(|error| unreadable(&error));
            local.close().await;
            if !unlocked? {
                let hint = "`interlock security lockouts` shows accounts at which somebody must wait";
                return Err(Failure::new(exit::NOT_FOUND, "there are no guesses at this account", hint));
            }
        }
    }
    match ui.output {
        Output::Table | Output::Name => ui.out(&format!("{} can be tried again at once", line(account))),
        form => ui.out(&json_text(&json!({ "account": account, "unlocked": true }), form == Output::Json)),
    }
}

fn unreadable(error: &anyhow::Error) -> Failure {
    Failure::new(exit::ERROR, "the lockouts cannot be read", "interlock doctor").because(format!("{error:#}"))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn table(lockouts: &[Value]) -> Table {
    let mut table = Table::new(&["ACCOUNT", "NETWORK", "FAILURES", "UNTIL", "ID"]);
    for lockout in lockouts {
        let account = lockout["account"].as_str().unwrap_or("(no such account)");
        let id = text(&lockout["id"]);
        for network in lockout["networks"].as_array().into_iter().flatten() {
            let failures = network["failures"].to_string();
            let (name, until) = (text(&network["network"]), text(&network["until"]));
            table.row([account, &name, &failures, &until, &id]);
        }
        if lockout["networks"].as_array().is_none_or(Vec::is_empty) {
            table.row([account, "all but the owner's", &lockout["strangers"].to_string(), "", &id]);
        }
    }
    table
}
