//! `interlock context`: choosing between servers.

use std::path::PathBuf;

use clap::Subcommand;
use interlock_client::server_address;
use serde_json::{Value, json};

use super::contexts::{self, Context, Contexts};
use super::failure::{Failure, exit};
use super::global::process_variable;
use super::text::{line, nearest, time};
use super::ui::{Facts, Table, Ui};

/// Choosing between servers.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List the servers you know
    List,
    /// Make a context the current one
    Use {
        /// Its name
        name: String,
    },
    /// Show a context; its token is never shown
    Show {
        /// Its name; the current one if left out
        name: Option<String>,
    },
    /// Add a server without signing in
    Add {
        /// A name for it
        name: String,
        /// Its address
        address: String,
        /// PEM file of its certificate authority
        ca: Option<PathBuf>,
    },
    /// Forget a context and its token
    Rm {
        /// Its name
        name: String,
    },
}

pub(crate) fn context(ui: &Ui, command: ContextCommand) -> Result<(), Failure> {
    match command {
        ContextCommand::List => list(ui),
        ContextCommand::Use { name } => {
            find(&contexts::load()?, &name)?;
            contexts::change(|all| all.current = Some(name.clone()))?;
            ui.note(&format!("'{name}' is now the current context"));
            shadowed(ui);
            Ok(())
        }
        ContextCommand::Show { name } => {
            let all = contexts::load()?;
            let name = name.or_else(|| process_variable("INTERLOCK_CONTEXT")).or_else(|| all.current.clone());
            let name = name
                .ok_or_else(|| Failure::usage("there is no current context", "interlock login --url URL"))?;
            let context = find(&all, &name)?;
            ui.one(&document(&all, &name, context), || facts(&all, &name, context), &name)?;
            shadowed(ui);
            Ok(())
        }
        ContextCommand::Add { name, address, ca } => {
            contexts::check_name(&name)?;
            if contexts::load()?.contexts.contains_key(&name) {
                let hint = format!("interlock context rm {name}");
                return Err(Failure::new(
                    exit::CONFLICT,
                    format!("there is a context '{name}' already"),
                    hint,
                ));
            }
            let url = server_address(&address)?.as_str().trim_end_matches('/').to_owned();
            let ca_file = ca.map(|path| {
                contexts::read_ca(&path)?;
                std::fs::canonicalize(&path)
                    .map_err(|error| Failure::file("cannot find", &path, &error, "check the path"))
            });
            let context = Context { url, ca_file: ca_file.transpose()?, ..Context::default() };
            let first = contexts::load()?.current.is_none();
            contexts::save(&name, context, first)?;
            ui.note(&format!("context '{name}' added; sign in with: interlock login --context {name}"));
            Ok(())
        }
        ContextCommand::Rm { name } => {
            find(&contexts::load()?, &name)?;
            contexts::change(|all| {
                all.contexts.remove(&name);
                if all.current.as_ref() == Some(&name) {
                    all.current = None;
                }
            })?;
            ui.note(&format!(
                "context '{name}' is forgotten; its token stays alive on the server until it expires"
            ));
            Ok(())
        }
    }
}

/// The environment may overrule what was just chosen or shown.
fn shadowed(ui: &Ui) {
    for variable in ["INTERLOCK_URL", "ORCHESTRATOR_API", "INTERLOCK_CONTEXT"] {
        if let Some(value) = process_variable(variable) {
            ui.warn(&format!("{variable}={} comes before the current context", line(&value)));
        }
    }
}

fn find<'a>(all: &'a Contexts, name: &str) -> Result<&'a Context, Failure> {
    all.contexts.get(name).ok_or_else(|| {
        let hint = match nearest(name, all.contexts.keys().map(String::as_str)) {
            Some(near) => format!("did you mean '{near}'? `interlock context list` shows them all"),
            None => "interlock context list".to_owned(),
        };
        Failure::new(exit::NOT_FOUND, format!("there is no context '{}'", line(name)), hint)
    })
}

fn list(ui: &Ui) -> Result<(), Failure> {
    let all = contexts::load()?;
    let documents: Vec<Value> =
        all.contexts.iter().map(|(name, context)| document(&all, name, context)).collect();
    if documents.is_empty() {
        ui.note("no server is known yet; sign in with: interlock login --url https://robot.example.org:8000");
    }
    let table = |_: &[Value]| {
        let mut table = Table::new(&["NAME", "CURRENT", "URL", "USER", "TOKEN UNTIL"]);
        for (name, context) in &all.contexts {
            let current = if all.current.as_ref() == Some(name) { "*" } else { "" };
            let until = context.expires_at.filter(|_| context.token.is_some()).map(time).unwrap_or_default();
            table.row([name, current, &context.url, context.user.as_deref().unwrap_or(""), &until]);
        }
        table
    };
    ui.list(&documents, table, |document| document["name"].as_str().unwrap_or_default().to_owned())
}

fn document(all: &Contexts, name: &str, context: &Context) -> Value {
    json!({
        "name": name,
        "current": all.current.as_deref() == Some(name),
        "url": context.url,
        "ca_file": context.ca_file,
        "user": context.user,
        "signed_in": context.token.is_some(),
        "expires_at": context.expires_at,
    })
}

fn facts(all: &Contexts, name: &str, context: &Context) -> Facts {
    Facts::new()
        .with("name", name)
        .with("current", if all.current.as_deref() == Some(name) { "yes" } else { "no" })
        .with("url", &context.url)
        .maybe("ca file", context.ca_file.as_ref().map(|path| path.display().to_string()))
        .maybe("user", context.user.as_ref())
        .with("signed in", if context.token.is_some() { "yes" } else { "no" })
        .maybe("token until", context.expires_at.map(time))
}
