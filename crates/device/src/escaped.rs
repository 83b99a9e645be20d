//! What a worker started and what left its process group: programs that called `setsid`, daemons.
//!
//! Every worker has a mark of its own in its environment, which everything that it starts inherits. After the group was killed,
//! whoever still carries the mark is killed too. Nobody waits for that: it takes a look at every process of the machine, and a
//! stop has to be quicker. Needs `/proc`; a program that was started with an environment of its own is not found.
//!
//! All workers of one state folder share a second mark. With it a host finds what an earlier host of the folder left behind, and
//! starts nothing beside it.

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable that carries a worker's own mark.
const OF_WORKER: &str = "INTERLOCK_WORKER_MARK";
/// The variable that carries what all workers of one state folder share.
const OF_FOLDER: &str = "INTERLOCK_DEVICE_MARK";

/// Looks at all processes this often: one may start another while it is being looked for.
const PASSES: u32 = 10;
/// Until this many looks in a row found nothing. One is not enough: in the moment in which it becomes another program, a process
/// shows no environment.
const QUIET_PASSES: u32 = 2;
/// A killed process needs a moment to be gone.
const PAUSE: Duration = Duration::from_millis(10);

/// What everything that one worker, or the workers of one folder, start has in its environment. It is no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    variable: &'static str,
    value: String,
}

impl Mark {
    /// One that no other worker has, of this host or of another one on the same machine.
    pub(crate) fn of_worker() -> Self {
        let random = || RandomState::new().build_hasher().finish();
        Self { variable: OF_WORKER, value: format!("{:016x}{:016x}", random(), random()) }
    }

    /// The one of the folder that `lock` locks. Made from the file itself and not from something written in it: a copy of the
    /// folder is another device, whose processes are not ours to end.
    pub(crate) fn of_folder(lock: &File) -> io::Result<Self> {
        let file = lock.metadata()?;
        Ok(Self { variable: OF_FOLDER, value: format!("{:x}.{:x}", file.dev(), file.ino()) })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.value
    }

    /// The variable for a worker's environment.
    pub(crate) fn variable(&self) -> (OsString, OsString) {
        (self.variable.into(), self.value.clone().into())
    }

    fn is_carried_by(&self, pid: Pid) -> bool {
        let Ok(environment) = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else {
            return false;
        };
        environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| variable.strip_prefix(self.variable.as_bytes())?.strip_prefix(b"="))
            .any(|value| value == self.value.as_bytes())
    }

    /// Whether any process carries it. Blocks for a look at every process of the machine.
    pub(crate) fn is_carried(&self) -> bool {
        cfg!(target_os = "linux") && processes().any(|pid| self.is_carried_by(pid))
    }
}

/// Kills what carries one of the marks, on a thread of its own.
pub(crate) fn kill(marks: Vec<Mark>) {
    if marks.is_empty() || !cfg!(target_os = "linux") {
        return;
    }
    let started = std::thread::Builder::new().name("interlock-sweep".to_owned()).spawn(move || sweep(&marks));
    if let Err(error) = started {
        tracing::error!(%error, "what a worker started outside its process group could not be looked for");
    }
}

/// As [`kill`], and waits for it: at most a tenth of a second.
pub(crate) fn sweep(marks: &[Mark]) {
    let (mut killed, mut quiet) = (0, 0);
    for _ in 0..PASSES {
        let found = processes().filter(|pid| end(*pid, marks)).count();
        killed += found;
        quiet = if found == 0 { quiet + 1 } else { 0 };
        if quiet == QUIET_PASSES {
            if killed > 0 {
                tracing::warn!("killed what a worker had started outside its process group");
            }
            return;
        }
        std::thread::sleep(PAUSE);
    }
    tracing::error!("something that a worker started outside its process group cannot be killed");
}

fn processes() -> impl Iterator<Item = Pid> {
    let folder = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    folder.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// Kills the process if it carries a mark, and says whether it did. The handle is taken before the second look, so that a
/// process which takes over a number in between is not hit.
fn end(pid: Pid, marks: &[Mark]) -> bool {
    let marked = || marks.iter().any(|mark| mark.is_carried_by(pid));
    if !marked() {
        return false;
    }
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => marked() && rustix::process::pidfd_send_signal(handle, Signal::KILL).is_ok(),
        // A sandbox without pidfds.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            rustix::process::kill_process(pid, Signal::KILL).is_ok()
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_who_carries_the_mark_is_killed() {
        let (mine, other) = (Mark::of_worker(), Mark::of_worker());
        let start =
            |mark: &Mark| Command::new("sleep").arg("60").envs([mark.variable()]).spawn().expect("sleep");
        let (mut one, mut two) = (start(&mine), start(&other));

        sweep(&[mine]);

        assert!(!one.wait().expect("an end").success());
        assert_eq!(two.try_wait().expect("a look"), None, "the other worker's process lives");
        two.kill().expect("a kill");
        two.wait().expect("an end");
    }
}
