//! A host in a process of its own, so that it can be killed, and given a full disk.
//!
//! The test binary starts itself again with only [`host_of_another_process`], which does nothing unless it is told to. It takes
//! commands on its standard input and answers on its standard output, in lines that begin with `@@`.

#![expect(clippy::print_stdout, reason = "the helper answers on its standard output")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use interlock_device::Host;
use interlock_model::RunId;

use crate::lab::{Lab, PATIENCE, call};

const FOLDER: &str = "LAB_HELPER";

/// A host in another process.
pub(crate) struct Helper {
    pub(crate) child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

/// A call that the other process is making.
pub(crate) struct HelperCall<'a> {
    helper: &'a Helper,
    pub(crate) run: RunId,
}

impl Helper {
    /// Starts the host of `lab` elsewhere and waits until it is ready.
    pub(crate) fn start(lab: &Lab, environment: &[(&str, &str)]) -> Self {
        // Ignoring SIGXFSZ makes writes beyond the limit fail instead of killing the process.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "helper::host_of_another_process", "--nocapture"])
            .env(FOLDER, lab.folder.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix("@@ ") {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let helper = Self { child, stdin, lines };
        helper.expect("ready");
        helper
    }

    pub(crate) fn tell(&self, command: &str) {
        writeln!(&self.stdin, "{command}").unwrap();
    }

    /// The next line that begins with `start`; what comes before it is skipped.
    pub(crate) fn expect(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {start:?} in time"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }

    pub(crate) fn call(&self, action: &str) -> HelperCall<'_> {
        self.tell(&format!("call {action}"));
        let run = self.expect("called ").parse().unwrap();
        HelperCall { helper: self, run }
    }

    /// Kills the host's process, as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl HelperCall<'_> {
    /// Waits for the outcome, in its debug form.
    pub(crate) fn finished(&self) -> String {
        self.helper.expect(&format!("outcome {} ", self.run))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: see the head of this file.
#[test]
fn host_of_another_process() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let lab = Lab::new("");
    let mut config = lab.config.clone();
    let folder = std::path::PathBuf::from(folder);
    config.file = folder.join("device.py");
    config.state_dir = folder.join("state");
    config.environment = vec![("LAB".to_owned(), folder.to_str().unwrap().to_owned())];
    runtime.block_on(async move {
        let host = Host::start(config).await.unwrap();
        println!("@@ ready");
        let (sender, mut commands) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        while let Some(command) = commands.recv().await {
            let (verb, rest) = command.split_once(' ').unwrap_or((&command, ""));
            match verb {
                "call" => {
                    let call = call(rest);
                    let run = call.run;
                    println!("@@ called {run}");
                    let host = host.clone();
                    tokio::spawn(async move { println!("@@ outcome {run} {:?}", host.call(call).await) });
                }
                "queued" => {
                    let wanted: usize = rest.parse().unwrap();
                    crate::lab::eventually("queued", || host.status().queued == wanted).await;
                    // Armed, too: the journal's thread has had this long.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    println!("@@ queued");
                }
                "standby" => {
                    crate::lab::standby_is_ready(&host).await;
                    println!("@@ standby");
                }
                "limit" => {
                    let current = rest.parse().ok();
                    let limit = rustix::process::Rlimit { current, maximum: None };
                    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
                    println!("@@ limited");
                }
                "stop" => println!("@@ stopped {:?}", host.emergency_stop("mo", None).await),
                "release" => println!("@@ released {:?}", host.release("mo", "test").await),
                "status" => println!("@@ status {:?}", host.status()),
                _ => panic!("{command}"),
            }
        }
    });
}
