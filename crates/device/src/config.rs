//! What a host is started with: paths, limits and deadlines.
//!
//! Plain values; nothing here is checked before [`crate::Host::start`] uses it. Reading configuration files and environment
//! variables is the caller's work.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use interlock_model::Clock;

/// Who sees to it that a run and its end survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// The journal itself: it flushes a record before a call is sent and before its end is told.
    #[default]
    Journal,
    /// The caller: it has each run durably on record before it calls, and records each end durably before it tells anyone. The
    /// journal then writes without flushing. A process that is killed loses nothing of it; after a power cut every run that
    /// the caller had open counts as started.
    Caller,
}

/// Everything a [`crate::Host`] needs to know.
#[derive(Clone)]
pub struct HostConfig {
    /// Short name of the device.
    pub name: String,
    /// Title for people; the file's own title stands in when this is `None`.
    pub title: Option<String>,
    /// The file that declares the actions.
    pub file: PathBuf,
    /// The Python interpreter.
    pub python: PathBuf,
    /// The folder that holds the package `interlock`; goes first on `PYTHONPATH`.
    pub python_path: PathBuf,
    /// Journal, latch and artifacts live here. One host at a time.
    pub state_dir: PathBuf,
    /// Every call is executed with the device's simulator.
    pub simulate: bool,
    /// Keep a second process ready, so that the safe-state hook starts at once after a kill.
    pub standby: bool,
    /// Variables for the worker, on top of the inherited ones.
    pub environment: Vec<(String, String)>,
    /// Variables that hold the host's own secrets, or with `_FILE` name the file of one: the worker inherits none of them, and
    /// none whose name looks like a secret.
    pub secrets: Vec<&'static str>,
    /// Bounds of everything that could grow.
    pub limits: Limits,
    /// How patient the cancel ladder is.
    pub ladder: Ladder,
    /// Who makes runs durable.
    pub durability: Durability,
    /// How long loading the file may take.
    pub load_deadline: Duration,
    /// How long the `@on_start` hooks may take.
    pub start_deadline: Duration,
    /// Replaces `python -m interlock.worker`; `--file FILE` is appended. For workers in other languages.
    pub worker_command: Option<Vec<OsString>>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

impl HostConfig {
    /// A configuration with the usual limits, a standby and no simulation.
    pub fn new(
        name: &str,
        file: PathBuf,
        python_path: PathBuf,
        state_dir: PathBuf,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            title: None,
            file,
            python: PathBuf::from("python3"),
            python_path,
            state_dir,
            simulate: false,
            standby: true,
            environment: Vec::new(),
            secrets: Vec::new(),
            limits: Limits::default(),
            ladder: Ladder::default(),
            durability: Durability::default(),
            load_deadline: Duration::from_mins(2),
            start_deadline: Duration::from_mins(1),
            worker_command: None,
            clock,
        }
    }
}

impl HostConfig {
    /// How long a process of this device may live when its host is gone: long enough for the `@on_start` and `@safe_state` hooks.
    pub(crate) fn lost_limit(&self) -> Duration {
        self.start_deadline + self.ladder.safe_state
    }
}

impl fmt::Debug for HostConfig {
    /// Without `environment`: its values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostConfig")
            .field("name", &self.name)
            .field("file", &self.file)
            .field("python", &self.python)
            .field("state_dir", &self.state_dir)
            .field("simulate", &self.simulate)
            .field("standby", &self.standby)
            .finish_non_exhaustive()
    }
}

/// Bounds of everything that a worker or a caller could make grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest line of the protocol, in either direction. A longer one ends the worker.
    pub line_bytes: usize,
    /// Largest result.
    pub result_bytes: usize,
    /// Largest artifact.
    pub artifact_bytes: u64,
    /// Longest line of log; the rest of a longer one is cut off.
    pub log_line_bytes: usize,
    /// Events of one run; what comes after them is dropped, except states, rungs and artifacts.
    pub events_per_run: u32,
    /// Calls that may wait.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_bytes: 32 << 20,
            result_bytes: 4 << 20,
            artifact_bytes: 256 << 20,
            log_line_bytes: 16 << 10,
            events_per_run: 10_000,
            queue: 256,
        }
    }
}

/// How long each rung of the cancel ladder may take before the next one is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// From asking the function to stop at a checkpoint to interrupting it.
    pub checkpoint: Duration,
    /// From the interrupt to the kill.
    pub interrupt: Duration,
    /// Longest run of the safe-state hooks.
    pub safe_state: Duration,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            checkpoint: Duration::from_secs(2),
            interrupt: Duration::from_secs(2),
            safe_state: Duration::from_secs(10),
        }
    }
}
