//! What `bench/audit` measures of writes: a run and its end with their audit entries, the same without, and an entry alone.
//!
//! `audit_cost FOLDER SECONDS`: SQLite (`synchronous=FULL`) in a new folder, 16 writers; prints one line of JSON. With and without take
//! turns of a quarter of the time, so that what else the machine does meets both.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::join_all;
use interlock_model::audit::AuditDraft;
use interlock_model::run::RunState;
use interlock_model::{RunId, Timestamp};
use interlock_store::sqlite::Sqlite;
use interlock_store::{Error, RunEnd, RunRow, Store, transact};
use serde_json::json;

const WRITERS: u64 = 16;
const NOW: Timestamp = Timestamp::from_seconds(1_780_000_000);

/// What a writer repeats.
#[derive(Clone, Copy)]
enum Work {
    Plain,
    Recorded,
    Entry,
}

fn draft(id: RunId, phase: &str) -> AuditDraft {
    AuditDraft {
        at: NOW,
        actor: Some("ana".to_owned()),
        action: "device.executed".to_owned(),
        subject: Some("mix".to_owned()),
        details: json!({ "phase": phase, "run": id, "device": "ot2" }),
        client_ip: Some("192.0.2.1".to_owned()),
        request_id: Some("req-018f6b1e2c3d7a4b8c9d0e1f".to_owned()),
    }
}

async fn write(store: &dyn Store, id: RunId, work: Work) {
    let begin = transact(store, move |tx| {
        async move {
            if !matches!(work, Work::Entry) {
                let parameters = json!({ "volume": 12.5, "well": "A1" });
                tx.insert_run(&RunRow {
                    id,
                    device: "ot2".to_owned(),
                    action: "mix".to_owned(),
                    state: RunState::Queued,
                    simulated: false,
                    parameters,
                    result: None,
                    error: None,
                    actor: "ana".to_owned(),
                    request_id: "req-018f6b1e2c3d7a4b8c9d0e1f".to_owned(),
                    created_at: NOW,
                    started_at: None,
                    finished_at: None,
                    duration_ms: None,
                })
                .await?;
            }
            if !matches!(work, Work::Plain) {
                tx.record_audit(&draft(id, "intent")).await?;
            }
            Ok::<(), Error>(())
        }
        .boxed()
    });
    begin.await.expect("written");
    if matches!(work, Work::Entry) {
        return;
    }
    let end = transact(store, move |tx| {
        async move {
            let end = RunEnd {
                id,
                state: RunState::Succeeded,
                result: Some(json!(1)),
                error: None,
                started_at: Some(NOW),
                finished_at: NOW,
                duration_ms: Some(1.0),
            };
            tx.finish_run(&end).await?;
            if matches!(work, Work::Recorded) {
                tx.record_audit(&draft(id, "outcome")).await?;
            }
            Ok::<(), Error>(())
        }
        .boxed()
    });
    end.await.expect("written");
}

/// Sixteen writers for so long: how long each write took, and how long all of it.
async fn measure(
    store: &Arc<dyn Store>,
    next: &AtomicU64,
    work: Work,
    length: Duration,
) -> (Vec<Duration>, Duration) {
    let begun = Instant::now();
    let writers = (0..WRITERS).map(|_| async move {
        let mut took = Vec::new();
        while begun.elapsed() < length {
            let id = next.fetch_add(1, Ordering::Relaxed);
            let id: RunId = format!("run_{id:032x}").parse().expect("an id");
            let one = Instant::now();
            write(&**store, id, work).await;
            took.push(one.elapsed());
        }
        took
    });
    let took = join_all(writers).await.concat();
    (took, begun.elapsed())
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (folder, seconds) = arguments.next().zip(arguments.next()).expect("FOLDER SECONDS");
    let (folder, seconds) = (PathBuf::from(folder), seconds.parse::<f64>().expect("a number of seconds"));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&folder.join("bench.db")).expect("a new database"));
    let next = AtomicU64::new(1);
    let turn = Duration::from_secs_f64(seconds / 4.0);
    let mut per_second = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        for (rates, work) in per_second.iter_mut().zip([Work::Plain, Work::Recorded]) {
            let (took, length) = measure(&store, &next, work, turn).await;
            let count = u32::try_from(took.len()).expect("fewer than four thousand million");
            rates.push(f64::from(count) / length.as_secs_f64());
        }
    }
    let (mut alone, _) = measure(&store, &next, Work::Entry, turn).await;
    alone.sort();
    let place = |share: usize| alone[(alone.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    let [without, with] = per_second.map(|rates| rates.iter().sum::<f64>() / 4.0);
    let told = json!({
        "runs_per_second_without": without, "runs_per_second_with": with, "left": with / without,
        "entry_p50_ms": place(50), "entry_p99_ms": place(99),
    });
    writeln!(std::io::stdout(), "{told}").expect("standard output can be written");
}
