//! `interlock audit tail`: the newest entries, then each new one as it is written.
//!
//! The server is asked again and again. Each question is itself on record, so those of whoever watches are left out: otherwise the
//! watch would feed itself.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use interlock_client::{AuditQuery, Client};
use interlock_model::wire::AuditView;

use super::audit::WhichArgs;
use super::connect::Session;
use super::failure::Failure;
use super::global::{Global, Output};
use super::terminal::Signals;
use super::text::{line, shortened, time};
use super::ui::{Ui, json_text};

/// Largest page of the server.
const PAGE: u32 = 200;
/// Entries that are fetched after one pause at most; how many were left out is told.
const MOST: usize = 10_000;

/// What to watch.
#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Entries to begin with
    #[arg(long, short = 'n', default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=200))]
    lines: u32,
    /// Seconds between two looks; each is an entry of its own in the trail
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

/// Prints until it is interrupted.
pub(crate) async fn tail(ui: &Ui, global: &Global, args: &TailArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let me = client.me().await?.user;
    let mut signals = Signals::listen()?;
    let mine =
        |entry: &AuditView| entry.action == "audit.read" && entry.actor_agent_id.as_deref() == Some(&me);
    let page = client.audit(&AuditQuery { limit: Some(args.lines.max(1)), ..args.which.query() }).await?;
    // From here on: what is newer than the newest, whether or not it is shown.
    let mut newest = page.items.first().map(|entry| (entry.id, entry.at));
    let shown = usize::try_from(args.lines).unwrap_or(usize::MAX);
    for entry in page.items.iter().take(shown).rev().filter(|entry| !mine(entry)) {
        show(ui, entry)?;
    }
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(args.every)) => {}
        }
        let (last, at) = newest.unzip();
        let query = AuditQuery { since: at.or(args.which.query().since), ..args.which.query() };
        let (found, left_out) = since(&client, &query, last.unwrap_or(0)).await?;
        if left_out > 0 {
            ui.warn(&format!(
                "{left_out} entries came at once and are left out: interlock audit list shows them"
            ));
        }
        newest = found.values().next_back().map(|entry| (entry.id, entry.at)).or(newest);
        for entry in found.values().filter(|entry| !mine(entry)) {
            show(ui, entry)?;
        }
    }
}

/// Entries after `last`, oldest first, and how many more there are.
async fn since(
    client: &Client,
    query: &AuditQuery,
    last: u64,
) -> Result<(BTreeMap<u64, AuditView>, u64), Failure> {
    let mut found = BTreeMap::new();
    let mut offset = 0;
    loop {
        let page =
            client.audit(&AuditQuery { limit: Some(PAGE), offset: Some(offset), ..query.clone() }).await?;
        offset += page.items.len() as u64;
        let met = page.items.iter().any(|entry| entry.id <= last);
        let more = page.has_more && !page.items.is_empty() && !met;
        found.extend(page.items.into_iter().filter(|entry| entry.id > last).map(|entry| (entry.id, entry)));
        if !more || found.len() >= MOST {
            let left_out = if more { page.total.saturating_sub(offset) } else { 0 };
            return Ok((found, left_out));
        }
    }
}

/// A watch has no end, so every form has one document on each line.
fn show(ui: &Ui, entry: &AuditView) -> Result<(), Failure> {
    match ui.output {
        Output::Json | Output::Jsonl => ui.out(&json_text(entry, false)),
        Output::Name => ui.out(&entry.id.to_string()),
        Output::Table => {
            let actor = entry.actor_agent_id.as_deref().unwrap_or("-");
            let subject = entry.subject_id.as_deref().unwrap_or("-");
            let source = entry.client_ip.as_deref().unwrap_or("-");
            let details = shortened(&json_text(&entry.details, false), 80);
            ui.out(&line(&format!(
                "{}  {}  {actor}  {}  {subject}  {source}  {details}",
                entry.id,
                time(entry.at),
                entry.action
            )))
        }
    }
}
