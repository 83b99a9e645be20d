//! SQLite and SIGKILL: what was acknowledged is there when the file is opened again.
//!
//! The child is this test binary itself. A killed process loses no page cache; that a commit is also flushed to the disk is
//! asserted beside `sqlite::open`, and tests/blackbox/chaos_power.py cuts the power. `INTERLOCK_KILLS` sets the number of kills.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use interlock_model::Timestamp;
use interlock_model::audit::AuditDraft;
use interlock_store::sqlite::Sqlite;
use interlock_store::{Error, Store as _, transact};

/// Tells the child which file to append to.
const FILE: &str = "INTERLOCK_TEST_CRASH_FILE";
/// Kills, unless the environment says otherwise.
const KILLS: u64 = 20;
/// Kills of one file; then a new one is begun, because all of a file is read after each.
const PER_FILE: u64 = 20;
const PRODUCERS: u64 = 8;

async fn append(store: &Sqlite, subject: String) -> Result<u64, Error> {
    let draft = AuditDraft {
        at: Timestamp::from_seconds(1),
        actor: None,
        action: "device.executed".to_owned(),
        subject: Some(subject),
        details: serde_json::json!({ "padding": "x".repeat(300) }),
        client_ip: None,
        request_id: None,
    };
    transact(store, move |tx| async move { Ok(tx.append_audit(&draft).await?.seq) }.boxed()).await
}

/// Appends until it is killed and prints each number after it is acknowledged. Does nothing in an ordinary test run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_that_is_killed() {
    let Some(path) = std::env::var_os(FILE).map(PathBuf::from) else { return };
    let store = Arc::new(Sqlite::open(&path).expect("opened"));
    let producers = (0..PRODUCERS).map(|producer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in 0_u64.. {
                let subject = format!("{producer}/{number}");
                let seq = append(&store, subject.clone()).await.expect("written");
                // One call for the line: a kill leaves whole lines and at most one part.
                std::io::stderr()
                    .write_all(format!("ack {seq} {subject}\n").as_bytes())
                    .expect("the parent listens");
            }
        })
    });
    futures::future::join_all(producers).await;
}

/// Starts the child, lets it run until it has acknowledged `lines` entries and some time more, kills it, and returns what it
/// acknowledged.
fn kill_one(path: &Path, lines: usize, more: Duration) -> BTreeMap<u64, String> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "crash::the_child_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut output = BufReader::new(child.stderr.take().expect("piped"));
    let (enough, killed) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut acknowledged = BTreeMap::new();
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).expect("readable") > 0 {
            // The last line may be cut.
            if let Some(text) = line.strip_suffix(b"\n").and_then(|text| std::str::from_utf8(text).ok())
                && let Some((seq, subject)) = text.strip_prefix("ack ").and_then(|rest| rest.split_once(' '))
            {
                acknowledged.insert(seq.parse().expect("a number"), subject.to_owned());
            }
            line.clear();
            if acknowledged.len() == lines {
                let _ = enough.send(());
            }
        }
        acknowledged
    });
    killed.recv_timeout(Duration::from_mins(1)).expect("the child writes");
    std::thread::sleep(more);
    child.kill().expect("SIGKILL");
    child.wait().expect("dead");
    reader.join().expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "a long run tells what it was worth")]
async fn no_acknowledged_entry_is_lost_when_the_process_is_killed() {
    let kills =
        std::env::var("INTERLOCK_KILLS").map_or(KILLS, |told| told.parse().expect("a number of kills"));
    let mut noise: u64 = std::process::id().into();
    let (mut killed, mut kept, mut unspoken) = (0, 0, 0);

    while killed < kills {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("crash.db");
        let mut acknowledged = BTreeMap::new();
        let mut own = 0;
        let rounds = PER_FILE.min(kills - killed);
        for round in 0..rounds {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let lines = usize::try_from(1 + (noise >> 33) % 400).expect("small");
            let more = Duration::from_micros((noise >> 20) % 5_000);
            acknowledged.extend(kill_one(&path, lines, more));

            let store = Sqlite::open(&path).expect("opens after a kill");
            let entries = interlock_store::conformance::audit::verified(&store).await;
            let stored: BTreeMap<_, _> = entries
                .into_iter()
                .map(|entry| (entry.seq, entry.draft.subject.expect("a subject")))
                .collect();
            for (seq, subject) in &acknowledged {
                assert_eq!(
                    stored.get(seq),
                    Some(subject),
                    "kill {}: entry {seq} was acknowledged",
                    killed + round
                );
            }
            let seq = append(&store, "after".to_owned()).await.expect("written");
            assert_eq!(seq, stored.len() as u64 + 1);
            own += 1;
            if round + 1 == rounds {
                unspoken += stored.len() + 1 - acknowledged.len() - own;
            }
            store.close().await;
        }
        killed += rounds;
        kept += acknowledged.len();
    }
    assert!(kept as u64 > 20 * kills, "{kept} entries");
    eprintln!(
        "{killed} kills, {kept} acknowledged entries kept, {unspoken} were stored and not yet acknowledged"
    );
}
