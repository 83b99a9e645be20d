//! What a worker started and what left its process group: programs that called `setsid`, daemons.
//!
//! Every worker has a mark of its own in its environment, which everything that it starts inherits. After the group was killed,
//! whoever still carries the mark is killed too. Nobody waits for that: it takes a look at every process of the machine, and a
//! stop has to be quicker. Needs `/proc`; a program that was started with an environment of its own is not found.

use std::ffi::OsString;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable that carries the mark.
const VARIABLE: &str = "INTERLOCK_WORKER_MARK";

/// Looks at all processes this often: one may start another while it is being looked for.
const PASSES: u32 = 10;
/// Until this many looks in a row found nothing. One is not enough: in the moment in which it becomes another program, a process
/// shows no environment.
const QUIET_PASSES: u32 = 2;
/// A killed process needs a moment to be gone.
const PAUSE: Duration = Duration::from_millis(10);

/// What everything that one worker starts has in its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark(String);

impl Mark {
    /// One that no other worker has, of this host or of another one on the same machine. It is no secret.
    pub(crate) fn new() -> Self {
        let random = || RandomState::new().build_hasher().finish();
        Self(format!("{:016x}{:016x}", random(), random()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The variable for a worker's environment.
    pub(crate) fn variable(&self) -> (OsString, OsString) {
        (VARIABLE.into(), self.0.clone().into())
    }

    fn is_carried_by(&self, pid: Pid) -> bool {
        let Ok(environment) = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else {
            return false;
        };
        environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| variable.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))
            .any(|value| value == self.0.as_bytes())
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

fn sweep(marks: &[Mark]) {
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
        let (mine, other) = (Mark::new(), Mark::new());
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
