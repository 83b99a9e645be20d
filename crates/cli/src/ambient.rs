//! The real clock and the operating system's randomness. Nothing else may ask the system for either.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use interlock_engine::Ambient;
use interlock_model::time::Settled;
use interlock_model::{Clock, Entropy, Timestamp};
use serde::{Deserialize, Serialize};

use crate::installation;

/// When this process began to measure time, on a clock that does not jump.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
static SETTLED: LazyLock<Mutex<Settled>> =
    LazyLock::new(|| Mutex::new(Settled::new(SystemClock.now(), BEGUN.elapsed())));

fn believed() -> MutexGuard<'static, Settled> {
    SETTLED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The system's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = std::time::SystemTime::now();
        let micros = match now.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Timestamp::from_micros(micros)
    }

    fn settled(&self) -> Timestamp {
        believed().at(self.now(), BEGUN.elapsed())
    }
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        aws_lc_rs::rand::fill(buffer).expect("the operating system gives randomness");
    }
}

/// Both.
pub(crate) fn ambient() -> Ambient {
    // From here on it is known which time was believed at first.
    LazyLock::force(&SETTLED);
    Ambient { clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy) }
}

/// What a process tells the next one of the time, in the file `clock` of the state folder. Without it a clock that jumped forward
/// while nothing ran, or just before a restart, would be believed at once.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    settled: Timestamp,
    /// For how long the time of day has been ahead of that.
    ahead_ms: u64,
    /// Which boot of the machine this was, and how long that had been up: together they tell how much time has passed since.
    boot: Option<String>,
    up_ms: u64,
}

/// How often the time is told. A jump within this time of a kill is still known: the kernel tells how long both lasted.
const TELLING: Duration = Duration::from_mins(1);

/// The boot of the machine and the time since; both from the kernel, which no jump reaches. Unknown where there is no `/proc`.
fn up() -> (Option<String>, u64) {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let up = read("/proc/uptime").and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    let up = up.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned());
    (boot, millis(up))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Goes on with the time that the process before this one believed. A file that is absent or broken leaves the clock believed.
pub(crate) fn resume(state: &Path) {
    let path = state.join("clock");
    let told = match std::fs::read(&path).map(|bytes| serde_json::from_slice::<Told>(&bytes)) {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => {
            tracing::warn!(path = %path.display(), %error, "the time of the last run cannot be read; the clock is believed");
            return;
        }
        Err(_) => return,
    };
    let (boot, up_ms) = up();
    // Of a time in which the machine was off nothing is known; it counts as none.
    let since = if boot == told.boot { up_ms.saturating_sub(told.up_ms) } else { 0 };
    let ahead = if told.ahead_ms > 0 { told.ahead_ms.saturating_add(since) } else { 0 };
    let elapsed = BEGUN.elapsed();
    let then = Settled::resumed(
        told.settled.plus(Duration::from_millis(since)),
        elapsed,
        Duration::from_millis(ahead),
    );
    let now = SystemClock.now();
    let mut current = believed();
    // Two installations in one process: the earlier time holds for both.
    if { then }.at(now, elapsed) < current.at(now, elapsed) {
        *current = then;
    }
}

/// Tells it until dropped. Run it as a background task.
pub(crate) async fn tell_forever(state: PathBuf) {
    loop {
        let folder = state.clone();
        match tokio::task::spawn_blocking(move || tell(&folder)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "the next start will believe the clock");
            }
            Err(_) => return,
        }
        tokio::time::sleep(TELLING).await;
    }
}

fn tell(state: &Path) -> anyhow::Result<()> {
    let settled = SystemClock.settled();
    let ahead_ms = millis(believed().ahead_for(BEGUN.elapsed()));
    let (boot, up_ms) = up();
    let told = serde_json::to_vec(&Told { settled, ahead_ms, boot, up_ms })?;
    installation::replace(&state.join("clock"), &told).context("keep the time for the next start")
}
