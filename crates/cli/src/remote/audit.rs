//! `interlock audit`: reading the trail, and checking that nobody has changed it.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use interlock_client::{AuditQuery, Client};
use interlock_engine::notary::Report;
use interlock_evidence::checkpoint::VerifyingKey;
use interlock_model::Timestamp;
use interlock_model::audit::{AuditEntry, Hash, Verifier};
use interlock_model::wire::{AuditCount, AuditView, parse_hash};
use serde_json::json;

use super::audit_forms::{Form, Receiver, line};
use super::audit_tail::{TailArgs, tail};
use super::connect::Session;
use super::failure::{Failure, exit};
use super::global::Global;
use super::text::{hexadecimal, shortened, time};
use super::ui::{Facts, Table, Ui, json_text};
use crate::local::Kept;

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
    /// Print the newest entries, then each new one as it is written, until interrupted
    Tail(TailArgs),
    /// Count entries by a value, the most frequent first: where guesses and attacks come from
    Top(TopArgs),
    /// Check that nobody has changed the trail: every entry, the chain, and with --state every signature
    Verify(VerifyArgs),
    /// Prove that one entry is in the trail that was signed, as a document to give away
    Prove(ProveArgs),
    /// Show what the trail holds, as a signed note: keep it somewhere else
    Checkpoint(PlaceArgs),
    /// Show the public key with which others can check the trail
    Key(StateArgs),
    /// Write the whole trail to a file that `interlock-verify` checks without a server
    Export(ExportArgs),
    /// Send new entries to a collector, as syslog over TLS (RFC 5425): from a timer, each minute
    Send(SendArgs),
}

/// Which installation.
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// Work on the installation in this folder, without a server
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

/// Where to ask.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Work on the installation in this folder, without a server
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// What to prove.
#[derive(Debug, Args)]
pub(crate) struct ProveArgs {
    /// Number of the entry
    entry: u64,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Where to write.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The file to write; it must not be there yet
    file: PathBuf,
    #[command(flatten)]
    state: StateArgs,
    /// Instead: a line for each entry, for other systems; nothing in it can be proven
    #[arg(long)]
    form: Option<Form>,
}

/// Where to send.
#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// The collector; the usual port is 6514
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Authorities of its certificate, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: PathBuf,
    /// File with the number of the last entry that was sent; made when it is not there
    #[arg(long, value_name = "FILE")]
    position: PathBuf,
    /// What a message looks like
    #[arg(long, default_value = "rfc5424")]
    form: Form,
    #[command(flatten)]
    state: StateArgs,
}

/// Which entries to list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// What to count.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The value to count by
    #[arg(long, value_parser = ["actor", "action", "subject", "source", "rule", "route", "reason"])]
    by: String,
    #[command(flatten)]
    which: WhichArgs,
    /// At most so many values
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
}

/// Which entries.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// Only of this kind, such as device.executed
    #[arg(long)]
    action: Option<String>,
    /// Only by this user
    #[arg(long)]
    actor: Option<String>,
    /// Only about this
    #[arg(long)]
    subject: Option<String>,
    /// Only from this address
    #[arg(long)]
    source: Option<String>,
    /// Only with this rule of threat detection, such as sql.union_select
    #[arg(long)]
    rule: Option<String>,
    /// Only at this route, such as "GET /runs"
    #[arg(long)]
    route: Option<String>,
    /// Only with this result, such as failed
    #[arg(long)]
    result: Option<String>,
    /// Not before this time, such as 2026-01-31T12:00:00Z
    #[arg(long)]
    since: Option<Timestamp>,
    /// Not after this time
    #[arg(long)]
    until: Option<Timestamp>,
}

impl WhichArgs {
    pub(super) fn query(&self) -> AuditQuery {
        AuditQuery {
            action: self.action.clone(),
            actor: self.actor.clone(),
            subject: self.subject.clone(),
            source: self.source.clone(),
            rule: self.rule.clone(),
            route: self.route.clone(),
            result: self.result.clone(),
            since: self.since,
            until: self.until,
            ..AuditQuery::default()
        }
    }
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
    /// Checkpoints that were kept somewhere else: the file of AUDIT_ANCHOR_FILE
    #[arg(long, value_name = "FILE", requires = "state")]
    anchors: Option<PathBuf>,
    /// Keys that sign for the same trail beside the one in the state folder: those of the other servers
    #[arg(long, value_name = "KEY", requires = "state")]
    key: Vec<VerifyingKey>,
}

pub(crate) async fn audit(ui: &Ui, global: &Global, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::List(args) => list(ui, global, args).await,
        AuditCommand::Tail(args) => tail(ui, global, &args).await,
        AuditCommand::Top(args) => top(ui, global, &args).await,
        AuditCommand::Verify(VerifyArgs { state: Some(state), noted, anchors, key }) => {
            let notes = anchors.as_deref().map(crate::anchors::notes).transpose();
            let notes = notes.map_err(|error| {
                Failure::new(exit::USAGE, "the checkpoints cannot be read", "").because(format!("{error:#}"))
            })?;
            let kept = Kept { notes: notes.unwrap_or_default(), entry: noted };
            let local = super::users::open(&state).await?;
            let keys = match local.audit_key().await {
                Ok(own) => [&[own], &key[..]].concat(),
                Err(error) => {
                    local.close().await;
                    return Err(unusable(&error));
                }
            };
            let verified = local.verify_audit(keys, kept).await;
            local.close().await;
            signed_is(ui, &verified.map_err(|error| broken(&format!("{error:#}")))?)
        }
        AuditCommand::Verify(VerifyArgs { state: None, noted, .. }) => {
            let client = Session::open(global)?.client;
            let verifier = verify(ui, &client, noted).await?;
            verified_is(ui, verifier.seq, &hexadecimal(&verifier.hash))
        }
        AuditCommand::Prove(ProveArgs { entry, place: PlaceArgs { state: Some(state) } }) => {
            let local = super::users::open(&state).await?;
            let proof = local.prove_audit(entry).await;
            local.close().await;
            let proof = proof.map_err(|error| broken(&format!("{error:#}")))?;
            ui.out(&json!(proof).to_string())
        }
        AuditCommand::Prove(ProveArgs { entry, .. }) => {
            let client = Session::open(global)?.client;
            ui.out(&raw(&client, &format!("/audit/proof?entry={entry}")).await?)
        }
        AuditCommand::Checkpoint(PlaceArgs { state: Some(state) }) => {
            let local = super::users::open(&state).await?;
            let note = local.audit_checkpoint().await;
            local.close().await;
            let note = note.map_err(|error| broken(&format!("{error:#}")))?;
            let nothing = || {
                let hint = "start the server: it signs each second";
                Failure::new(exit::NOT_FOUND, "nothing in the audit trail is signed yet", hint)
            };
            ui.out(note.ok_or_else(nothing)?.trim_end())
        }
        AuditCommand::Checkpoint(PlaceArgs { state: None }) => {
            let client = Session::open(global)?.client;
            ui.out(raw(&client, "/audit/checkpoint").await?.trim_end())
        }
        AuditCommand::Key(StateArgs { state }) => {
            let local = super::users::open(&state).await?;
            let key = local.audit_key().await;
            local.close().await;
            ui.out(&key.map_err(|error| unusable(&error))?.to_string())
        }
        AuditCommand::Send(args) => send(ui, args).await,
        AuditCommand::Export(ExportArgs { file, state: StateArgs { state }, form }) => {
            let unwritable = |error: &dyn std::fmt::Display| {
                Failure::new(
                    exit::ERROR,
                    "the audit trail was not written",
                    "name a file that is not there yet, in a folder that you may write",
                )
                .because(format!("{}: {error}", file.display()))
            };
            let out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
            let out = std::io::BufWriter::new(out.map_err(|error| unwritable(&error))?);
            let local = super::users::open(&state).await?;
            if let Some(form) = form {
                let written = write_lines(&local, out, form).await;
                local.close().await;
                return written.map_err(|error| unwritable(&format!("{error:#}")));
            }
            let exported = local.export_audit(out).await;
            local.close().await;
            let (written, key) = exported.map_err(|error| unwritable(&error))?;
            let written = written.into_inner().map_err(|error| unwritable(error.error()))?;
            written.sync_all().map_err(|error| unwritable(&error))?;
            ui.note(&format!(
                "wrote {}; check it with: interlock-verify --key {key} {}",
                file.display(),
                file.display()
            ));
            Ok(())
        }
    }
}

/// A line for each entry.
async fn write_lines(
    local: &crate::local::Local,
    mut out: std::io::BufWriter<std::fs::File>,
    form: Form,
) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let entries = local.audit_after(after).await?;
        let Some(last) = entries.last() else { break };
        after = last.seq;
        for entry in &entries {
            writeln!(out, "{}", line(entry, form))?;
        }
    }
    out.into_inner()?.sync_all()?;
    local.record_export().await
}

/// Sends what is new. The position moves when the collector has ended the connection in order, so that nothing is lost; after an
/// interruption entries may arrive twice, with the same number.
async fn send(ui: &Ui, args: SendArgs) -> Result<(), Failure> {
    let failed = |error: &anyhow::Error| {
        let hint = "the position was not moved; run it again";
        Failure::new(exit::UNREACHABLE, "the audit trail was not sent", hint).because(format!("{error:#}"))
    };
    let after = match std::fs::read_to_string(&args.position) {
        Ok(text) => text.trim().parse().map_err(|_| {
            Failure::new(exit::USAGE, format!("{} holds no number", args.position.display()), "")
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Failure::file("cannot read the position", &args.position, &error, "")),
    };
    let local = super::users::open(&args.state.state).await?;
    let sent = async {
        let mut last = after;
        let mut entries = local.audit_after(last).await?;
        if entries.is_empty() {
            return Ok(last);
        }
        let mut receiver = Receiver::connect(&args.to, &args.ca_file).await?;
        while let Some(newest) = entries.last() {
            receiver.send(&entries, args.form).await?;
            last = newest.seq;
            entries = local.audit_after(last).await?;
        }
        receiver.finish().await?;
        crate::installation::replace(&args.position, format!("{last}\n").as_bytes())?;
        Ok::<_, anyhow::Error>(last)
    }
    .await;
    local.close().await;
    let last = sent.map_err(|error| failed(&error))?;
    let facts = || Facts::new().with("sent", (last - after).to_string()).with("last entry", last.to_string());
    ui.one(&json!({ "sent": last - after, "last": last }), facts, &last.to_string())
}

fn unusable(error: &anyhow::Error) -> Failure {
    let hint = "look at keys/audit-signing.pk8 in the state folder";
    Failure::new(exit::ERROR, "the key of the audit log cannot be used", hint).because(format!("{error:#}"))
}

async fn raw(client: &Client, path: &str) -> Result<String, Failure> {
    let answer = client.raw("GET", path, None).await?;
    Ok(String::from_utf8_lossy(&answer.bytes).into_owned())
}

async fn top(ui: &Ui, global: &Global, args: &TopArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let query = AuditQuery { limit: Some(args.limit), ..args.which.query() };
    let found = client.audit_counts(&args.by, &query).await?;
    let table = |counts: &[AuditCount]| {
        let mut table = Table::new(&["ENTRIES", "VALUE"]);
        for count in counts {
            table.row([count.entries.to_string(), count.value.clone()]);
        }
        table
    };
    ui.list(&found, table, |count| count.value.clone())
}

async fn list(ui: &Ui, global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = Session::open(global)?.client;
    let mut found: Vec<AuditView> = Vec::new();
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let total = loop {
        let query = AuditQuery {
            limit: Some(u32::try_from(wanted - found.len()).unwrap_or(PAGE).min(PAGE)),
            offset: Some(found.len() as u64),
            ..args.which.query()
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
    Ok((number, parse_hash(hash).map_err(|_| "the hash has 64 lower-case hexadecimal digits")?))
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
            let next = AuditEntry::try_from(view)
                .map_err(|_| broken(&format!("entry {number} has no proper hash")))?;
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

fn signed_is(ui: &Ui, report: &Report) -> Result<(), Failure> {
    let last = format!("{}:{}", report.last, hexadecimal(&report.hash));
    let facts = || {
        let mut facts = Facts::new()
            .with("verified", format!("entries {} to {}, unbroken", report.first, report.last))
            .with("signed", format!("up to entry {}, by {} checkpoints", report.signed, report.checkpoints))
            .with("last", last.clone());
        if report.strangers > 0 {
            facts = facts.with(
                "not looked at",
                format!("{} checkpoints of other keys; --key names those of other servers", report.strangers),
            );
        }
        facts
    };
    let mut document = json!(report);
    document["verified"] = json!(true);
    document["entries"] = json!(report.last + 1 - report.first.min(report.last + 1));
    ui.one(&document, facts, &last)?;
    ui.note("keep a checkpoint elsewhere (AUDIT_ANCHOR_FILE); --anchors checks against it");
    Ok(())
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
