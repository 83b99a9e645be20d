//! `interlock security bans`: through the server, or with `--state` on the server's own machine, where it also works when the
//! administrator is banned.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use interlock_client::Client;
use interlock_engine::BanRow;
use interlock_engine::bans::BanError;
use interlock_model::wire::BanView;
use serde_json::json;

use super::access;
use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::{Global, Output};
use super::lockouts;
use super::text::{duration, line, time};
use super::ui::{Facts, Table, Ui, json_text};
use crate::local::Local;

/// What protects the server from its network.
#[derive(Debug, Subcommand)]
pub(crate) enum SecurityCommand {
    /// Networks that are refused
    #[command(subcommand, alias = "ban")]
    Bans(BansCommand),
    /// Everybody with their rights and credentials: age, last use, end, scopes
    Access {
        /// As comma-separated values with one line for each credential
        #[arg(long)]
        csv: bool,
    },
    /// Accounts at which somebody guesses and must wait
    Lockouts {
        #[command(flatten)]
        place: Place,
    },
    /// Forget the guesses at an account
    Unlock {
        /// Sign-in name, agent id, or the id of the list
        account: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Networks that are refused.
#[derive(Debug, Subcommand)]
pub(crate) enum BansCommand {
    /// List the bans in force
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Refuse an address or a network
    Add {
        /// Such as 203.0.113.7, 203.0.113.0/24 or 2001:db8::/64; a plain IPv6 address means its /64
        network: String,
        /// Why; shown in the list and in the audit trail
        #[arg(long)]
        reason: String,
        /// How long, such as 90m or 12h [default: until it is removed]
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        length: Option<Duration>,
        #[command(flatten)]
        place: Place,
    },
    /// Serve a network again
    Remove {
        /// The network as the list shows it
        network: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Where to work.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Work on the installation in this folder, without a server
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

enum Bans {
    There(Box<Client>),
    Here(Box<Local>),
}

pub(crate) async fn security(ui: &Ui, global: &Global, command: SecurityCommand) -> Result<(), Failure> {
    let command = match command {
        SecurityCommand::Bans(command) => command,
        SecurityCommand::Access { csv } => return access::review(ui, global, csv).await,
        SecurityCommand::Lockouts { place } => {
            return lockouts::list(ui, global, place.state.as_deref()).await;
        }
        SecurityCommand::Unlock { account, place } => {
            return lockouts::unlock(ui, global, place.state.as_deref(), &account).await;
        }
    };
    let place = match &command {
        BansCommand::List { place } | BansCommand::Add { place, .. } | BansCommand::Remove { place, .. } => {
            place
        }
    };
    let bans = match &place.state {
        Some(state) => Bans::Here(Box::new(super::users::open(state).await?)),
        None => Bans::There(Box::new(Session::open(global)?.client)),
    };
    let done = work(ui, &bans, command).await;
    if let Bans::Here(local) = bans {
        local.close().await;
    }
    done
}

async fn work(ui: &Ui, bans: &Bans, command: BansCommand) -> Result<(), Failure> {
    match command {
        BansCommand::List { .. } => {
            let found = match bans {
                Bans::There(client) => client.bans().await?,
                Bans::Here(local) => local.bans().await.map_err(unreadable)?.into_iter().map(view).collect(),
            };
            ui.list(&found, table, |ban| ban.network.clone())
        }
        BansCommand::Add { network, reason, length, .. } => {
            let ban = match bans {
                Bans::There(client) => client.add_ban(&network, &reason, length).await?,
                Bans::Here(local) => {
                    view(local.add_ban(&network, &reason, length).await.map_err(|error| refused(&error))?)
                }
            };
            let facts = || {
                Facts::new()
                    .with("network", &ban.network)
                    .with("until", until(&ban))
                    .with("reason", &ban.reason)
            };
            ui.one(&ban, facts, &ban.network)
        }
        BansCommand::Remove { network, .. } => {
            match bans {
                Bans::There(client) => drop(client.remove_ban(&network).await?),
                Bans::Here(local) => local.remove_ban(&network).await.map_err(|error| refused(&error))?,
            }
            match ui.output {
                Output::Table | Output::Name => ui.out(&format!("{} is served again", line(&network))),
                form => {
                    ui.out(&json_text(&json!({ "network": network, "removed": true }), form == Output::Json))
                }
            }
        }
    }
}

fn view(row: BanRow) -> BanView {
    BanView {
        network: row.network,
        reason: row.reason,
        added_by: row.added_by,
        created_at: row.created_at,
        ends_at: row.ends_at,
        offences: row.offences,
    }
}

fn until(ban: &BanView) -> String {
    ban.ends_at.map_or_else(|| "removed".to_owned(), time)
}

fn table(bans: &[BanView]) -> Table {
    let mut table = Table::new(&["NETWORK", "SINCE", "UNTIL", "BY", "REASON"]);
    for ban in bans {
        table.row([ban.network.as_str(), &time(ban.created_at), &until(ban), &ban.added_by, &ban.reason]);
    }
    table
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: anyhow::Error) -> Failure {
    Failure::new(exit::ERROR, "the bans cannot be read", "interlock doctor").because(format!("{error:#}"))
}

fn refused(error: &BanError) -> Failure {
    let (code, hint) = match error {
        BanError::Network | BanError::TooWide | BanError::Length | BanError::Reason => {
            (exit::PARAMETERS, "interlock security bans add --help")
        }
        BanError::OwnAddress => (exit::CONFLICT, "choose a narrower network"),
        BanError::Allowed => (exit::CONFLICT, "take it out of BAN_ALLOW or TRUSTED_PROXIES first"),
        BanError::NoSuchBan => (exit::NOT_FOUND, "`interlock security bans list` shows them"),
        BanError::Store(_) => (exit::ERROR, "interlock doctor"),
    };
    let source = std::error::Error::source(error).map(ToString::to_string);
    let mut failure = Failure::new(code, error.to_string(), hint);
    failure.cause = source;
    failure
}
