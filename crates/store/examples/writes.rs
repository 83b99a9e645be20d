//! Commits per second of what one call of an action costs the database: a run and its audit entry, in one write.
//!
//! `cargo run --profile fast --example writes -p interlock-store [FOLDER]` measures SQLite (`synchronous=FULL`) in a new file
//! in FOLDER (default: the system's temporary folder, which may be memory: then the flush is free and the figure means little).
//! With `INTERLOCK_TEST_POSTGRES` set, it measures that server too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::join_all;
use interlock_model::audit::AuditDraft;
use interlock_model::run::RunState;
use interlock_model::{RunId, Timestamp};
use interlock_store::sqlite::Sqlite;
use interlock_store::{Error, RunRow, Store, transact};
use serde_json::json;

const MEASURE: Duration = Duration::from_secs(3);

fn run_row(id: RunId) -> RunRow {
    RunRow {
        id,
        device: "ot2".to_owned(),
        action: "mix".to_owned(),
        state: RunState::Queued,
        simulated: false,
        parameters: json!({ "volume": 12.5, "well": "A1", "cycles": 3 }),
        result: None,
        error: None,
        actor: "ana".to_owned(),
        request_id: "018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d".to_owned(),
        created_at: Timestamp::from_seconds(1_780_000_000),
        started_at: None,
        finished_at: None,
        duration_ms: None,
    }
}

fn draft(id: RunId) -> AuditDraft {
    AuditDraft {
        at: Timestamp::from_seconds(1_780_000_000),
        actor: Some("ana".to_owned()),
        action: "device.executed".to_owned(),
        subject: Some(id.to_string()),
        details: json!({ "action": "mix", "device": "ot2", "parameters": { "volume": 12.5 } }),
        client_ip: Some("192.0.2.1".to_owned()),
        request_id: Some("018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d".to_owned()),
    }
}

async fn produce(store: Arc<dyn Store>, numbers: std::ops::RangeFrom<u64>, until: Instant) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for number in numbers {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        let id: RunId = format!("run_{number:032x}").parse().expect("an id");
        let written: Result<(), Error> = transact(&*store, move |tx| {
            async move {
                tx.insert_run(&run_row(id)).await?;
                tx.append_audit(&draft(id)).await.map(drop)
            }
            .boxed()
        })
        .await;
        written.expect("written");
        latencies.push(begun.elapsed());
    }
    latencies
}

#[expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "a measurement for people")]
async fn measure(name: &str, store: Arc<dyn Store>) {
    for (round, producers) in (1_u64..).zip([1_u64, 16, 64]) {
        let begun = Instant::now();
        let tasks = (0..producers).map(|producer| {
            let first = (round << 48) + (producer << 32);
            tokio::spawn(produce(Arc::clone(&store), first.., begun + MEASURE))
        });
        let mut latencies: Vec<_> =
            join_all(tasks).await.into_iter().flat_map(|joined| joined.expect("no panic")).collect();
        let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let at = |percent: usize| latencies[latencies.len() * percent / 100].as_secs_f64() * 1e3;
        println!(
            "{name}: {producers:>2} producers  {rate:>7.0} writes/s  p50 {:.2} ms  p99 {:.2} ms",
            at(50),
            at(99)
        );
    }
    let id: RunId = format!("run_{:032x}", 1_u64 << 48).parse().expect("an id");
    let begun = Instant::now();
    for _ in 0..10_000 {
        store.run(id).await.expect("readable").expect("there");
    }
    println!("{name}: one run read by id {:.1} us", begun.elapsed().as_secs_f64() * 1e6 / 10_000.0);
    store.close().await;
}

#[tokio::main]
async fn main() {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let store = Sqlite::open_in(folder.path()).expect("a new database");
    measure("sqlite", Arc::new(store)).await;
    #[cfg(feature = "postgres")]
    if let Ok(url) = std::env::var("INTERLOCK_TEST_POSTGRES") {
        let (client, connection) =
            tokio_postgres::connect(url.split('?').next().unwrap_or(&url), tokio_postgres::NoTls)
                .await
                .expect("a server");
        tokio::spawn(connection);
        client.batch_execute("DROP DATABASE IF EXISTS interlock_bench WITH (FORCE)").await.expect("dropped");
        client.batch_execute("CREATE DATABASE interlock_bench").await.expect("made");
        let fresh = url.replacen("/postgres?", "/interlock_bench?", 1);
        let store = interlock_store::postgres::Postgres::connect(&fresh).await.expect("a new database");
        measure("postgres", Arc::new(store)).await;
        client.batch_execute("DROP DATABASE interlock_bench WITH (FORCE)").await.expect("dropped");
    }
}
