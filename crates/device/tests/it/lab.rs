//! A device for one test: a folder, a file of actions, a host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interlock_device::{Host, HostConfig, StartError};
use interlock_model::device::{Call, EventKind, Outcome, RunEvent, Rung};
use interlock_model::time::{TestClock, TestEntropy};
use interlock_model::{RunId, Timestamp};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// Longest wait of any test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Actions that most tests need. `note` appends a line to the file `notes` in the test's folder.
pub(crate) const ACTIONS: &str = r#"
import ctypes, os, signal, sys, time
from interlock import task, safe_state, on_start, ctx, PublicError

LAB = os.environ["LAB"]

def note(word):
    with open(os.path.join(LAB, "notes"), "a") as notes:
        notes.write("%s\n" % word)

@on_start
def connect():
    note("start")

@safe_state
def rest(reason):
    note("rest %s" % reason)

@task
def echo(value: int = 0) -> int:
    note("echo")
    return value

@task(idempotent=True)
def look() -> int:
    note("look")
    return 1

@task
def spin() -> None:
    note("spin")
    while True:
        pass

@task
def wait() -> None:
    note("wait")
    while True:
        ctx.checkpoint()
        time.sleep(0.005)

@task
def deaf() -> None:
    "Ignores checkpoints and interrupts, as a call into a driver does."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note("deaf")
    ctypes.CDLL(None).sleep(600)

@task
def hold() -> int:
    "Ends when the file `go` appears."
    note("hold")
    while not os.path.exists(os.path.join(LAB, "go")):
        time.sleep(0.002)
    return 7
"#;

/// An action that starts three programs which ignore signals: one stays in the process group of the worker, one leaves it, one
/// leaves it as a daemon does.
pub(crate) const CHILDREN: &str = r#"
import os, subprocess
from interlock import task

@task
def children():
    stays = "trap '' INT TERM HUP; while :; do sleep 600; done"
    forks = "(setsid sh -c \"trap '' HUP; echo \$\$; sleep 600; true\" </dev/null 2>/dev/null &)"
    child = subprocess.Popen(["sh", "-c", stays])
    own = subprocess.Popen(["sh", "-c", stays], start_new_session=True)
    daemon = subprocess.Popen(["sh", "-c", forks], stdout=subprocess.PIPE)
    pids = [child.pid, own.pid, int(daemon.stdout.readline())]
    with open(os.path.join(os.environ["LAB"], "notes"), "a") as notes:
        notes.write("children %s\n" % " ".join(map(str, pids)))
    child.wait()
"#;

/// The folder and configuration of one test.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
    pub(crate) config: HostConfig,
}

/// The repository's `python` folder.
pub(crate) fn sdk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python").canonicalize().unwrap()
}

/// The interpreter itself, without the shims that may stand before it.
fn python() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let output =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    };
    FOUND.get_or_init(find).clone()
}

impl Lab {
    /// A device with [`ACTIONS`] and `more`.
    pub(crate) fn new(more: &str) -> Self {
        Self::with_file(&format!("{ACTIONS}\n{more}"))
    }

    /// A device whose file holds just this.
    pub(crate) fn with_file(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("device.py");
        std::fs::write(&file, text).unwrap();
        let clock = Arc::new(TestClock::at(Timestamp::from_seconds(1_800_000_000)));
        let mut config = HostConfig::new("lab", file, sdk(), folder.path().join("state"), clock);
        config.python = python();
        config.environment = vec![("LAB".to_owned(), folder.path().to_str().unwrap().to_owned())];
        config.ladder.checkpoint = Duration::from_millis(300);
        config.ladder.interrupt = Duration::from_millis(300);
        Self { folder, config }
    }

    /// A device with the worker of `tests/workers/fake.py` in this mode.
    pub(crate) fn fake(mode: &str) -> Self {
        let mut lab = Self::with_file("");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workers/fake.py");
        lab.config.worker_command = Some(vec![python().into(), script.into(), mode.into()]);
        lab
    }

    /// Waits for [`CHILDREN`] and returns their ids.
    pub(crate) async fn children(&self) -> Vec<u32> {
        let noted = || self.notes().iter().find_map(|note| note.strip_prefix("children ").map(str::to_owned));
        eventually("children", || noted().is_some()).await;
        let pids: Vec<u32> = noted().unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.len() == 3 && pids.iter().all(|pid| lives(*pid)));
        pids
    }

    pub(crate) async fn start(&self) -> Host {
        self.try_start().await.unwrap_or_else(|error| panic!("{error}\n{}", error.remedy()))
    }

    pub(crate) async fn try_start(&self) -> Result<Host, StartError> {
        bounded(Host::start(self.config.clone())).await
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the device has noted, in order.
    pub(crate) fn notes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) async fn noted(&self, word: &str) {
        eventually(word, || self.notes().iter().any(|note| note == word)).await;
    }

    pub(crate) fn count(&self, word: &str) -> usize {
        self.notes().iter().filter(|note| *note == word).count()
    }

    /// How many notes begin with this.
    pub(crate) fn beginning(&self, start: &str) -> usize {
        self.notes().iter().filter(|note| note.starts_with(start)).count()
    }

    pub(crate) fn go(&self) {
        std::fs::write(self.path("go"), "").unwrap();
    }
}

/// A new run id.
pub(crate) fn run() -> RunId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let seed = NEXT.fetch_add(1, Ordering::Relaxed) ^ u64::from(std::process::id()) << 32;
    RunId::new(Timestamp::from_seconds(1_800_000_000), &TestEntropy::seeded(seed))
}

pub(crate) fn call(action: &str) -> Call {
    Call {
        run: run(),
        action: action.to_owned(),
        parameters: Map::new(),
        simulated: false,
        timeout: Duration::from_mins(1),
        queue_limit: None,
    }
}

pub(crate) fn call_with(action: &str, name: &str, value: impl Into<Value>) -> Call {
    let mut call = call(action);
    call.parameters.insert(name.to_owned(), value.into());
    call
}

/// Starts a call in the background.
pub(crate) fn spawn(host: &Host, call: Call) -> tokio::task::JoinHandle<Outcome> {
    let host = host.clone();
    tokio::spawn(async move { host.call(call).await })
}

pub(crate) async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Waits until `holds` does.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn standby_is_ready(host: &Host) {
    eventually("a standby", || host.status().worker.standby).await;
}

/// Everything that was told so far.
pub(crate) fn drain(events: &mut tokio::sync::broadcast::Receiver<RunEvent>) -> Vec<EventKind> {
    std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.kind).collect()
}

/// The rungs that were told, as `(rung, outcome)`.
pub(crate) fn rungs(events: &[EventKind]) -> Vec<(Rung, &str)> {
    events
        .iter()
        .filter_map(|event| match event {
            EventKind::Rung { rung, outcome, .. } => Some((*rung, outcome.as_str())),
            _ => None,
        })
        .collect()
}

/// Whether a process of this id exists and is not a zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
