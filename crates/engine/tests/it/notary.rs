//! The audit log as evidence: signed while it grows, checked against what was signed, kept when old entries go.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use interlock_engine::auth::{Db, SystemPermit};
use interlock_engine::notary::{self, Finding, Notary, NotaryError, Trust};
use interlock_evidence::bundle;
use interlock_evidence::checkpoint::Signer;
use interlock_model::Timestamp;
use interlock_model::audit::{AuditDraft, AuditEntry, Broken};
use interlock_store::{Store, transact};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, Scripted};

fn signer() -> Arc<Signer> {
    Arc::new(Signer::from_pkcs8("interlock/lab", &Signer::generate().expect("a key")).expect("a signer"))
}

fn trust(signer: &Signer) -> Trust {
    Trust::in_keys(vec![signer.key().clone()])
}

async fn append(store: &dyn Store, count: u64, at: Timestamp) {
    let added: Result<(), interlock_store::Error> = transact(store, move |tx| {
        Box::pin(async move {
            for number in 0..count {
                let draft = AuditDraft {
                    at,
                    actor: Some("ana".into()),
                    action: "test.done".into(),
                    subject: Some(number.to_string()),
                    details: json!({ "number": number }),
                    client_ip: None,
                    request_id: None,
                };
                tx.append_audit(&draft).await?;
            }
            Ok(())
        })
    })
    .await;
    added.expect("appended");
}

struct Log {
    folder: tempfile::TempDir,
    bench: Bench,
    signer: Arc<Signer>,
}

impl Log {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bench = Bench::open(folder.path(), Scripted::prompt(), 1).await;
        Self { folder, bench, signer: signer() }
    }

    fn notary(&self) -> Notary {
        Notary::new(Arc::clone(&self.bench.store), Arc::clone(&self.signer), self.bench.ambient.clone())
    }

    async fn append(&self, count: u64) {
        append(&*self.bench.store, count, self.bench.ambient.clock.now()).await;
    }

    async fn verify(&self) -> Result<notary::Report, NotaryError> {
        notary::verify(&*self.bench.store, trust(&self.signer)).await
    }

    async fn entry(&self, number: u64) -> AuditEntry {
        self.bench.store.audit_from(number - 1, 1).await.expect("readable").pop().expect("an entry")
    }

    /// As somebody who can write the database file.
    fn attack(&self, statements: &str) {
        let connection = rusqlite::Connection::open(database(self.folder.path())).expect("the file");
        connection.execute_batch(statements).expect("written");
    }

    async fn finding(&self) -> Finding {
        match self.verify().await {
            Err(NotaryError::Tampered(finding)) => finding,
            other => panic!("{other:?}"),
        }
    }
}

fn database(folder: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.extension().is_some_and(|end| end == "db")).expect("a database")
}

#[tokio::test]
async fn what_was_written_is_signed_and_goes_on_after_a_restart() {
    let log = Log::start().await;
    let mut notary = log.notary();
    for count in [1, 254, 1, 1, 600] {
        log.append(count).await;
        notary.seal().await.expect("signed");
        log.bench.clock.advance(Duration::from_mins(2));
    }
    log.append(10_000).await;

    let signed = log.notary().seal().await.expect("another process goes on");

    let report = log.verify().await.expect("good");
    assert_eq!((report.first, report.last, report.signed), (1, 10_857, signed));
    assert!(report.checkpoints >= 6, "{report:?}");
    assert_eq!(notary.seal().await.expect("the first has caught up"), signed);
}

#[tokio::test]
async fn the_log_travels_in_a_file_that_needs_no_server() {
    let log = Log::start().await;
    log.append(700).await;
    log.notary().seal().await.expect("signed");

    let file = notary::export(&*log.bench.store, &log.signer, Vec::new()).await.expect("written");

    let report = bundle::verify(&*file, trust(&log.signer)).expect("good");
    assert_eq!(report, log.verify().await.expect("good"));
    assert!(bundle::verify(&*file, trust(&signer())).is_err(), "another key");
}

#[tokio::test]
async fn every_entry_can_be_proven_and_a_proof_shows_no_other() {
    let log = Log::start().await;
    for count in [300, 500] {
        log.append(count).await;
        log.notary().seal().await.expect("signed");
    }
    let key = [log.signer.key().clone()];

    for number in [1, 2, 256, 257, 512, 513, 799, 800] {
        let proof = notary::prove(&*log.bench.store, number).await.expect("a proof");
        let text = serde_json::to_string(&proof).expect("a document");
        let read: interlock_evidence::proof::Proof = serde_json::from_str(&text).expect("the same");
        assert_eq!(read.verify(&key).expect("it holds").size, 800, "{number}");
        let mut other = proof;
        other.entry = notary::prove(&*log.bench.store, 3).await.expect("a proof").entry;
        assert!(other.verify(&key).is_err(), "{number}");
    }
    for missing in [0, 801] {
        let answer = notary::prove(&*log.bench.store, missing).await;
        assert!(matches!(answer, Err(NotaryError::NoEntry(number)) if number == missing));
    }
}

#[tokio::test]
async fn the_last_signature_is_for_what_was_written_last() {
    let log = Log::start().await;
    let stop = CancellationToken::new();
    let sealing = tokio::spawn(log.notary().seal_until(Duration::from_hours(1), stop.clone()));
    let signed = async || notary::newest(&*log.bench.store).await.expect("readable").map(|seal| seal.size);
    log.append(10).await;
    let before = signed().await;

    stop.cancel();
    sealing.await.expect("an end");

    assert_eq!(signed().await, Some(10), "before: {before:?}");
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_deletes_nothing() {
    let log = Log::start().await;
    let db = Db::new(Arc::clone(&log.bench.store), log.bench.ambient.clone());
    log.append(600).await;
    log.notary().seal().await.expect("signed");

    log.bench.clock.jump(Duration::from_hours(24 * 1000));

    let deleted = notary::forget(&db, &log.bench.ambient, &SystemPermit::root("system"), 90).await;
    assert_eq!(deleted.expect("looked"), 0);
}

#[tokio::test]
async fn old_entries_go_and_every_proof_about_the_rest_stays() {
    let log = Log::start().await;
    let (store, db) = (&log.bench.store, Db::new(Arc::clone(&log.bench.store), log.bench.ambient.clone()));
    let root = SystemPermit::root("system");
    log.append(600).await;
    let mut notary = log.notary();
    notary.seal().await.expect("signed");
    let noted = notary::newest(&**store).await.expect("readable").expect("one").note;
    log.bench.clock.advance(Duration::from_hours(24 * 91));
    log.append(300).await;

    assert_eq!(notary::forget(&db, &log.bench.ambient, &root, 92).await.expect("nothing is so old"), 0);
    let deleted = notary::forget(&db, &log.bench.ambient, &root, 90).await.expect("deleted");
    notary.seal().await.expect("signed");

    assert_eq!(deleted, 512, "whole tiles of what is older than 90 days");
    let mut believed = trust(&log.signer);
    believed.note(&noted).expect("ours");
    let report = notary::verify(&**store, believed).await.expect("good, also by what was noted before");
    assert_eq!((report.first, report.last, report.noted), (513, 901, 1));
    assert_eq!(log.entry(901).await.draft.action, "audit.retention_applied");
    assert_eq!(log.notary().seal().await.expect("another process goes on"), 901);
    let proof = notary::prove(&**store, 513).await.expect("a proof");
    assert!(proof.verify(&[log.signer.key().clone()]).is_ok());
    assert!(matches!(notary::prove(&**store, 512).await, Err(NotaryError::NoEntry(512))));
    assert_eq!(notary::forget(&db, &log.bench.ambient, &root, 90).await.expect("nothing is left"), 0);
}

#[tokio::test]
async fn somebody_who_writes_the_database_is_found_out() {
    let edits = "UPDATE audit SET actor = 'eve' WHERE seq = 300;";
    let cuts = "DELETE FROM audit WHERE seq > 650;";
    let cuts_all = "DELETE FROM audit WHERE seq > 550; DELETE FROM audit_seals WHERE size > 550;";
    for (attack, expected) in [
        (edits, "entry 300 was changed"),
        ("DELETE FROM audit WHERE seq = 300;", "entry 301 follows entry 299"),
        (
            "UPDATE audit_tiles SET hashes = zeroblob(8192) WHERE idx = 1;",
            "entry 257 is not the one that was sealed",
        ),
        (cuts, "700 entries were signed for, but the log ends at 650"),
        (cuts_all, "700 entries were signed for, but the log ends at 550"),
        ("DELETE FROM audit_seals;", "700 entries were signed for"),
        (
            "UPDATE audit_seals SET note = replace(note, '700', '699') WHERE size = 700;",
            "the signature of interlock/lab does not fit",
        ),
    ] {
        let log = Log::start().await;
        for count in [500, 200] {
            log.append(count).await;
            log.notary().seal().await.expect("signed");
            log.bench.clock.advance(Duration::from_mins(2));
        }
        let kept = notary::newest(&*log.bench.store).await.expect("readable").expect("one").note;
        if attack == "DELETE FROM audit_seals;" {
            log.attack("DELETE FROM audit WHERE seq > 600;");
        }

        log.attack(attack);

        let mut believed = trust(&log.signer);
        believed.note(&kept).expect("ours");
        let answer = notary::verify(&*log.bench.store, believed).await;
        let words = answer.expect_err(attack).to_string();
        assert!(words.contains(expected), "{attack}: {words}");
    }
}

/// A log that is read in several parts at a time: where it breaks is told as if it were read in one.
#[tokio::test]
async fn the_first_fault_of_a_long_log_is_told_whatever_was_read_ahead() {
    let log = Log::start().await;
    log.append(9_000).await;
    log.notary().seal().await.expect("signed");
    assert_eq!(log.verify().await.map(|report| (report.first, report.last)).ok(), Some((1, 9_000)));

    // Two parts in front of each other, and the later one is the shorter to read.
    log.attack("UPDATE audit SET details = '{}' WHERE seq IN (2050, 6000)");
    assert_eq!(log.finding().await, Finding::Chain(Broken::Content(2_050)));
    // The same words in another form are not what was written.
    log.attack("UPDATE audit SET details = '{ \"number\":1024}' WHERE seq = 1025");
    assert_eq!(log.finding().await, Finding::Chain(Broken::Content(1_025)));
    // Entries are missing, one of them the last of a part.
    log.attack("DELETE FROM audit WHERE seq IN (1000, 2048, 3000, 3001, 8999)");
    assert_eq!(log.finding().await, Finding::Chain(Broken::Sequence { after: 999, found: 1_001 }));

    // What is still there travels, each entry once and in its order.
    let file = notary::export(&*log.bench.store, &log.signer, Vec::new()).await.expect("written");
    let text = String::from_utf8(file).expect("text");
    let entries: Vec<u64> = text.lines().filter_map(exported).collect();
    let left: Vec<u64> =
        (1..=9_000).filter(|number| ![1_000, 2_048, 3_000, 3_001, 8_999].contains(number)).collect();
    assert_eq!(entries, left);
}

/// The number of the entry in this line of an exported log.
fn exported(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    (line["type"] == "entry").then(|| line["id"].as_u64().expect("a number"))
}

/// The number of the newest entry is in nobody's hands: nobody waits for what is said to be in between.
#[tokio::test]
async fn an_entry_with_a_far_number_costs_nothing() {
    let log = Log::start().await;
    log.append(20).await;
    log.notary().seal().await.expect("signed");
    log.attack("UPDATE audit SET seq = 9000000000000000000 WHERE seq = 20");

    let far = Broken::Sequence { after: 19, found: 9_000_000_000_000_000_000 };
    assert_eq!(log.finding().await, Finding::Chain(far));
    let file = notary::export(&*log.bench.store, &log.signer, Vec::new()).await.expect("written");
    assert_eq!(String::from_utf8(file).expect("text").lines().filter_map(exported).count(), 20);
}

/// Whoever makes an entry look old enough to be deleted, so that nobody will see that it was changed.
#[tokio::test]
async fn what_was_changed_is_not_deleted_as_too_old() {
    let log = Log::start().await;
    let db = Db::new(Arc::clone(&log.bench.store), log.bench.ambient.clone());
    log.append(600).await;
    log.notary().seal().await.expect("signed");

    log.attack("UPDATE audit SET actor = 'eve', at = at - 100 * 86400 * 1000000 WHERE seq <= 300;");

    let root = SystemPermit::root("system");
    let refused = notary::forget(&db, &log.bench.ambient, &root, 90).await;
    let expected = interlock_model::audit::Broken::Content(1);
    assert!(
        matches!(&refused, Err(NotaryError::Tampered(Finding::Chain(found))) if *found == expected),
        "{refused:?}"
    );
    assert_eq!(log.entry(1).await.draft.actor.as_deref(), Some("eve"));
}

/// Written anew, hashes and tiles and all, while no server runs: the next one does not sign for it.
#[tokio::test]
async fn a_log_that_was_written_anew_is_not_signed_again() {
    let log = Log::start().await;
    log.append(300).await;
    log.notary().seal().await.expect("signed");
    let honest = log.entry(20).await;
    let mut before = log.entry(19).await.hash;
    let mut statements = String::new();
    for seq in 20..=300 {
        let mut draft = log.entry(seq).await.draft;
        if seq == 20 {
            draft.actor = Some("eve".into());
        }
        let entry = AuditEntry::link(seq, before, draft);
        before = entry.hash;
        let hexadecimal = interlock_model::id::hexadecimal;
        let _ = write!(
            statements,
            "UPDATE audit SET actor = '{}', prev_hash = x'{}', hash = x'{}' WHERE seq = {seq};",
            entry.draft.actor.as_deref().unwrap_or_default(),
            hexadecimal(&entry.prev_hash),
            hexadecimal(&entry.hash)
        );
    }
    log.attack(&format!("{statements} DELETE FROM audit_tiles;"));

    let refused = log.notary().seal().await;

    assert!(
        matches!(refused, Err(NotaryError::Tampered(Finding::Root { first: 1, last: 300 }))),
        "{refused:?}"
    );
    assert_eq!(log.finding().await, Finding::Root { first: 1, last: 300 });
    let mut noted = Trust::default();
    noted.note_entry(20, honest.hash);
    let answer = notary::verify(&*log.bench.store, noted).await;
    assert!(matches!(answer, Err(NotaryError::Tampered(Finding::Rewritten(20)))), "{answer:?}");
}

#[tokio::test]
async fn a_key_is_published_once() {
    let log = Log::start().await;
    let db = Db::new(Arc::clone(&log.bench.store), log.bench.ambient.clone());
    let root = SystemPermit::root("system");

    log.notary().publish_key(&db, &root).await.expect("published");
    log.notary().publish_key(&db, &root).await.expect("there already");

    let entries = log.bench.store.audit_from(0, 10).await.expect("readable");
    let keys: Vec<_> = entries.iter().filter(|entry| entry.draft.action == "audit.key_published").collect();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].draft.subject, Some(log.signer.key().to_string()));
}
