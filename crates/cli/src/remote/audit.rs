//! `interlock audit`: reading the trail, and checking that nobody has changed it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use interlock_client::{AuditQuery, Client};
use interlock_model::Timestamp;
use interlock_model::audit::{AuditDraft, AuditEntry, Hash, Verifier};
use interlock_model::wire::AuditView;
use serde_json::json;

use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::Global;
use super::text::{hexadecimal, shortened, time};
use super::ui::{Facts, Table, Ui, json_text};

/// Largest page of the server.
const PAGE: u32 = 200;
/// New entries that may arrive between two pages without a second look.
const SLACK: u64 = 20;
/// Looks for the next entry before a page that moves away is called an error.
const LOOKS: u32 = 5;

/// The audit trail.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List entries, newest first
    List(ListArgs),
    /// Check the whole chain: every entry, its content and its link to the one before
    Verify(VerifyArgs),
}

/// Which entries.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only of this kind, such as device.executed
    #[arg(long)]
    action: Option<String>,
    /// Only by this user
    #[arg(long)]
    actor: Option<String>,
    /// Only about this
    #[arg(long)]
    subject: Option<String>,
    /// Not before this time, such as 2026-01-31T12:00:00Z
    #[arg(long)]
    since: Option<Timestamp>,
    /// Not after this time
    #[arg(long)]
    until: Option<Timestamp>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// How to check.
#[derive(Debug, Args)]
#[command(
    after_help = "An intact chain can still lack its newest entries. Note the number and hash that this prints somewhere else,\n\
                        and give them next time with --noted: then that is found too."
)]
pub(crate) struct VerifyArgs {
    /// Work on the installation in this folder, without a server
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Number and hash of an entry that were noted earlier
    #[arg(long, value_name = "NUMBER:HASH", value_parser = noted)]
    noted: Option<(u64, Hash)>,
}

pub(crate) async fn audit(ui: &Ui, global: &Global, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::List(args) => list(ui, global, args).await,
        AuditCommand::Verify(VerifyArgs { state: Some(state), noted }) => {
            let local = super::users::open(&state).await?;
            let verified = local.verify_audit(noted).await;
            local.close().await;
            let (entries, hash) = verified.map_err(|error| broken(&format!("{error:#}")))?;
            verified_is(ui, entries, &hash)
        }
        AuditCommand::Verify(VerifyArgs { state: None, noted }) => {
            let client = Session::open(global)?.client;
            let verifier = verify(ui, &client, noted).await?;
            verified_is(ui, verifier.seq, &hexadecimal(&verifier.hash))
        }
    }
}

async fn list(ui: &Ui, global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let mut found: Vec<AuditView> = Vec::new();
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let total = loop {
        let query = AuditQuery {
            action: args.action.clone(),
            actor: args.actor.clone(),
            subject: args.subject.clone(),
            since: args.since,
            until: args.until,
            limit: Some(u32::try_from(wanted - found.len()).unwrap_or(PAGE).min(PAGE)),
            offset: Some(found.len() as u64),
        };
        let page = client.audit(&query).await?;
        let more = page.has_more && !page.items.is_empty();
        // An entry that was written meanwhile moves the others down; none is shown twice.
        let last = found.last().map_or(u64::MAX, |entry| entry.id);
        found.extend(page.items.into_iter().filter(|entry| entry.id < last));
        if !more || found.len() >= wanted {
            break page.total;
        }
    };
    let table = |entries: &[AuditView]| {
        let mut table = Table::new(&["ENTRY", "TIME", "ACTOR", "ACTION", "SUBJECT", "ADDRESS", "DETAILS"]);
        for entry in entries {
            table.row([
                &entry.id.to_string(),
                &time(entry.at),
                entry.actor_agent_id.as_deref().unwrap_or("-"),
                &entry.action,
                entry.subject_id.as_deref().unwrap_or(""),
                entry.client_ip.as_deref().unwrap_or(""),
                &shortened(&json_text(&entry.details, false), 80),
            ]);
        }
        table
    };
    ui.list(&found, table, |entry| entry.id.to_string())?;
    if total > found.len() as u64 {
        ui.note(&format!(
            "{} of {total} entries; --limit shows more, -o json everything about each",
            found.len()
        ));
    }
    Ok(())
}

/// `12:9f2c…`.
fn noted(text: &str) -> Result<(u64, Hash), String> {
    let (number, hash) = text.split_once(':').ok_or("it looks like 1234:9f2c… with 64 hexadecimal digits")?;
    let number =
        number.parse().ok().filter(|&number| number > 0).ok_or("the number of an entry comes first")?;
    Ok((number, digest(hash).ok_or("the hash has 64 lower-case hexadecimal digits")?))
}

fn digest(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

fn entry(view: AuditView) -> Option<AuditEntry> {
    let (prev_hash, hash) = (digest(&view.prev_hash)?, digest(&view.hash)?);
    let AuditView { id, at, actor_agent_id, action, subject_id, details, client_ip, request_id, .. } = view;
    let draft =
        AuditDraft { at, actor: actor_agent_id, action, subject: subject_id, details, client_ip, request_id };
    Some(AuditEntry { seq: id, draft, prev_hash, hash })
}

/// Checks the chain from its first entry to the one that was newest at the start.
///
/// Pages come newest first and move while entries are written, so each page is asked for by its distance from the oldest
/// entry, overlaps the one before, and is asked for again when it has moved too far.
async fn verify(ui: &Ui, client: &Client, noted: Option<(u64, Hash)>) -> Result<Verifier, Failure> {
    let query =
        |offset, limit| AuditQuery { limit: Some(limit), offset: Some(offset), ..AuditQuery::default() };
    let mut total = client.audit(&query(0, 1)).await?.total;
    let until = total;
    let mut verifier = Verifier::default();
    let mut looks = 0;
    while verifier.seq < until {
        let offset = total.saturating_sub(verifier.seq + u64::from(PAGE) - SLACK);
        let answer = client.audit(&query(offset, PAGE)).await?;
        total = answer.total;
        let mut entries: Vec<AuditView> =
            answer.items.into_iter().filter(|entry| entry.id > verifier.seq).collect();
        entries.sort_by_key(|entry| entry.id);
        let next_is_there = entries.first().is_some_and(|entry| entry.id == verifier.seq + 1);
        if !next_is_there && looks < LOOKS {
            looks += 1;
            continue;
        }
        if entries.is_empty() {
            return Err(broken(&format!("entry {} is missing", verifier.seq + 1)));
        }
        looks = 0;
        for view in entries {
            let number = view.id;
            let next = entry(view).ok_or_else(|| broken(&format!("entry {number} has no proper hash")))?;
            verifier.next(&next).map_err(|error| broken(&error.to_string()))?;
            if noted.is_some_and(|(at, hash)| at == number && hash != verifier.hash) {
                return Err(broken(&format!(
                    "entry {number} is not the one that was noted: the chain was written anew"
                )));
            }
        }
        if ui.live {
            ui.note(&format!("{} of {until} entries are good", verifier.seq.min(until)));
        }
    }
    match noted {
        Some((at, _)) if at > verifier.seq => Err(broken(&format!(
            "entry {at} was noted, but the chain ends at {}: its newest entries are gone",
            verifier.seq
        ))),
        _ => Ok(verifier),
    }
}

fn broken(cause: &str) -> Failure {
    let hint = "keep the database as it is, look for who had access to it, and compare with the last backup";
    Failure::new(exit::UNVERIFIED, "the audit trail does not verify", hint).because(cause)
}

fn verified_is(ui: &Ui, entries: u64, hash: &str) -> Result<(), Failure> {
    let document = json!({ "verified": true, "entries": entries, "hash": hash });
    let facts = || {
        Facts::new()
            .with("verified", format!("{entries} entries, unbroken"))
            .with("last", format!("{entries}:{hash}"))
    };
    ui.one(&document, facts, &format!("{entries}:{hash}"))?;
    ui.note("note the last entry elsewhere; --noted checks against it next time");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noted_entry_is_a_number_and_a_hash() {
        let hash = "ab".repeat(32);

        assert_eq!(noted(&format!("12:{hash}")), Ok((12, [0xab; 32])));
        for bad in
            ["", "12", "0:ab", &format!("x:{hash}"), &format!("12:{}", "AB".repeat(32)), &format!("0:{hash}")]
        {
            assert!(noted(bad).is_err(), "{bad}");
        }
        assert_eq!(hexadecimal(&[0xab; 32]), hash);
    }
}
