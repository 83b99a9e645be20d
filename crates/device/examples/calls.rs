//! Measures a host with the real Python worker: calls per second for 1 and 16 callers, and emergency stops.
//!
//! `cargo run --profile fast -p interlock-device --example calls -- [seconds] [stops]`

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measuring program for people"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use interlock_device::{Host, HostConfig};
use interlock_model::device::{Call, Outcome};
use interlock_model::{Clock, Entropy, RunId, Timestamp};

struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap())
    }
}

/// Distinct, which is all that ids of a measurement need.
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, buffer: &mut [u8]) {
        let number = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        buffer.fill(0);
        let end = buffer.len();
        buffer[end - 8..].copy_from_slice(&number);
    }
}

const FILE: &str = "
from interlock import task, safe_state
import time

@task
def noop(n: int = 0) -> int:
    return n

@task
def busy() -> None:
    while True:
        pass

@safe_state
def rest(reason):
    pass
";

fn call(entropy: &dyn Entropy, action: &str) -> Call {
    Call {
        run: RunId::new(System.now(), entropy),
        action: action.to_owned(),
        parameters: serde_json::Map::new(),
        simulated: false,
        timeout: Duration::from_mins(1),
        queue_limit: None,
    }
}

async fn measure(host: &Host, entropy: &Arc<Counting>, callers: usize, seconds: u64) -> (f64, Duration) {
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (host, entropy) = (host.clone(), Arc::clone(entropy));
            tokio::spawn(async move {
                let mut times = Vec::new();
                let mut runs = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    let call = call(&*entropy, "noop");
                    runs.push(call.run);
                    let outcome = host.call(call).await;
                    times.push(begun.elapsed());
                    assert!(matches!(outcome, Outcome::Returned { .. }), "{outcome:?}");
                    if runs.len() == 500 {
                        host.forget(&runs);
                        runs.clear();
                    }
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort_unstable();
    (times.len() as f64 / begun.elapsed().as_secs_f64(), times[times.len() / 2])
}

fn percentile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * part) as usize]
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(5, |text| text.parse().unwrap());
    let stops: usize = arguments.next().map_or(200, |text| text.parse().unwrap());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let folder = std::env::var_os("STATE").map_or_else(|| root.join("target/calls"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("device.py");
    std::fs::write(&file, FILE).unwrap();
    let config = HostConfig::new("bench", file, root.join("python"), folder.join("state"), Arc::new(System));
    let begun = Instant::now();
    let host = Host::start(config).await.unwrap_or_else(|error| panic!("{error} {}", error.remedy()));
    println!("start: {:.0} ms", begun.elapsed().as_secs_f64() * 1000.0);

    let entropy = Arc::new(Counting(AtomicU64::new(0)));
    for callers in [1, 16] {
        let (rate, median) = measure(&host, &entropy, callers, seconds).await;
        println!("{callers:>2} callers: {rate:.0} calls/s, median {:.2} ms", median.as_secs_f64() * 1000.0);
    }

    let (mut killed, mut entered, mut done) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..stops {
        // The standby is what makes a stop quick: measure with it, as a device that is in use has it.
        while !host.status().worker.standby {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let busy = host.call(call(&*entropy, "busy"));
        let stopper = async {
            while host.status().running.is_none() {
                tokio::task::yield_now().await;
            }
            host.emergency_stop("bench", None).await
        };
        let (outcome, report) = tokio::join!(busy, stopper);
        assert!(matches!(outcome, Outcome::Cancelled { .. }), "{round}: {outcome:?}");
        assert!(report.confirmed, "{round}: {report:?}");
        killed.extend(report.killed_ms);
        entered.extend(report.safe_state_entered_ms);
        done.extend(report.safe_state_done_ms);
        host.release("bench", "next round").await.unwrap();
    }
    for (name, times) in [("killed", &mut killed), ("entered", &mut entered), ("done", &mut done)] {
        println!(
            "emergency stop, {name}: p50 {:.2} ms, p99 {:.2} ms",
            percentile(times, 0.5),
            percentile(times, 0.99)
        );
    }
    host.shutdown(Duration::from_secs(5)).await;
}
