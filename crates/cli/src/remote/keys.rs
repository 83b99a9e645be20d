//! `interlock key` and `interlock session`: what a principal holds.

use clap::Subcommand;
use interlock_client::NewApiKey;
use interlock_model::Clock as _;
use interlock_model::wire::{ApiKeyView, SessionView};

use super::connect::Session;
use super::failure::Failure;
use super::global::{Global, Output};
use super::text::{line, time};
use super::ui::{Facts, Table, Ui, json_text};
use crate::ambient::SystemClock;

/// API keys: one secret for a script, limited to what it names.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List your keys; all keys for those who manage them
    List,
    /// Make a key and print it, once
    Create {
        /// Name for people
        name: String,
        /// What it may do, such as runs:read. Several are allowed
        #[arg(long, required = true, value_delimiter = ',')]
        scope: Vec<String>,
        /// Days until it ends, at most 366
        #[arg(long, default_value_t = 30, value_name = "N")]
        days: u64,
        /// For this agent (id or name) instead of you
        #[arg(long)]
        agent: Option<String>,
    },
    /// End a key at once
    Revoke {
        /// Its id, as `interlock key list` shows it
        id: String,
    },
}

pub(crate) async fn key(ui: &Ui, global: &Global, command: KeyCommand) -> Result<(), Failure> {
    let Session { client, .. } = Session::open(global)?;
    match command {
        KeyCommand::List => ui.list(&client.api_keys().await?, key_table, |key| key.id.clone()),
        KeyCommand::Create { name, scope, days, agent } => {
            let agent_id = match &agent {
                Some(agent) => Some(super::agents::find(&client, agent).await?),
                None => None,
            };
            let new = NewApiKey { name: &name, scopes: &scope, expires_in_days: days, agent_id };
            let made = client.create_api_key(&new).await?;
            match ui.output {
                Output::Json | Output::Jsonl => ui.out(&json_text(&made, ui.output == Output::Json)),
                Output::Table | Output::Name => {
                    let end = time(made.view.expires_at);
                    ui.note(&format!("key {} until {end}; it is shown only now:", line(&made.view.id)));
                    ui.out(&made.key)
                }
            }
        }
        KeyCommand::Revoke { id } => {
            let done = client.revoke_api_key(&id).await?;
            ui.one(&done, || Facts::new().with("revoked", line(&id)), &id)
        }
    }
}

fn key_table(keys: &[ApiKeyView]) -> Table {
    let now = SystemClock.now();
    let mut table = Table::new(&["ID", "NAME", "OF", "SCOPES", "STATE", "UNTIL", "USED"]);
    for key in keys {
        let state = match key.revoked_at {
            Some(_) => "revoked",
            None if key.expires_at <= now => "expired",
            None => "live",
        };
        let scopes = key.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let used = key.last_used_at.map_or_else(|| "never".to_owned(), time);
        table.row([key.id.as_str(), &key.name, &key.principal, &scopes, state, &time(key.expires_at), &used]);
    }
    table
}

/// Sessions: who is signed in, from where.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List your sessions
    List {
        /// Everybody's, for those who manage them
        #[arg(long)]
        all: bool,
    },
    /// End a session: its tokens are dead
    End {
        /// Its id, as `interlock session list` shows it
        #[arg(required_unless_present = "others", conflicts_with = "others")]
        id: Option<String>,
        /// All of yours but the one that asks
        #[arg(long)]
        others: bool,
    },
}

pub(crate) async fn session(ui: &Ui, global: &Global, command: SessionCommand) -> Result<(), Failure> {
    let Session { client, .. } = Session::open(global)?;
    match command {
        SessionCommand::List { all } => {
            ui.list(&client.sessions(all).await?, session_table, |session| session.id.clone())
        }
        SessionCommand::End { id: Some(id), .. } => {
            let done = client.end_session(&id).await?;
            ui.one(&done, || Facts::new().with("ended", line(&id)), &id)
        }
        SessionCommand::End { id: None, .. } => {
            let done = client.end_sessions(true).await?;
            let count = done.details.as_ref().and_then(|details| details["sessions"].as_u64()).unwrap_or(0);
            ui.one(&done, || Facts::new().with("ended", count.to_string()), &count.to_string())
        }
    }
}

fn session_table(sessions: &[SessionView]) -> Table {
    let mut table = Table::new(&["ID", "OF", "METHOD", "FROM", "WITH", "SINCE", ""]);
    for session in sessions {
        let current = if session.current { "this one" } else { "" };
        table.row([
            session.id.as_str(),
            &session.name,
            &session.method,
            &session.client_ip,
            &session.user_agent,
            &time(session.created_at),
            current,
        ]);
    }
    table
}
