//! One worker process: its pipes, its death, its process group.
//!
//! Answers for three things: nothing is reaped before its whole group has been sent SIGKILL (until then its id cannot belong
//! to anybody else), no line is longer than its bound, and nobody ever waits for the process. Knows lines and messages, but
//! not what they mean.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Limits;
use crate::escaped::{self, Mark};
use crate::lines::{LineReader, LogReader};
use crate::wire::{self, Message};

/// Lines longer than this are parsed on another thread, so that the supervisor stays quick.
const PARSE_INLINE: usize = 256 << 10;

/// The end of the message stream comes a moment before the death that explains it.
const CLOSED_WAIT: Duration = Duration::from_millis(200);

/// The process groups that an emergency stop kills, without asking anybody.
#[derive(Default)]
pub(crate) struct Registry(Mutex<Vec<Entry>>);

struct Entry {
    pid: Pid,
    mark: Mark,
    exempt: bool,
}

impl Registry {
    fn list(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills every group that is not exempt, then what has left those groups. Ids in the list are never those of other
    /// processes: an entry is removed before its process is reaped, under this lock.
    pub(crate) fn kill_all(&self) {
        let list = self.list();
        let killed = list.iter().filter(|entry| !entry.exempt);
        let marks = killed.map(|entry| {
            kill_group(entry.pid);
            entry.mark.clone()
        });
        escaped::kill(marks.collect());
    }

    /// A process that waits to run the safe-state hook, or runs it after a kill, is not killed by [`Self::kill_all`].
    fn set_exempt(&self, pid: Pid, exempt: bool) {
        if let Some(entry) = self.list().iter_mut().find(|entry| entry.pid == pid) {
            entry.exempt = exempt;
        }
    }
}

fn kill_group(pid: Pid) {
    if let Err(error) = rustix::process::kill_process_group(pid, Signal::KILL)
        && error != rustix::io::Errno::SRCH
    {
        tracing::error!(%error, process.id = pid.as_raw_nonzero(), "the worker's process group cannot be killed");
    }
}

/// Something that a process did.
#[derive(Debug)]
pub(crate) enum Event {
    Message(Message),
    /// A line that the code printed.
    Printed(String),
    /// It broke the protocol; it should be killed.
    Broken(String),
    /// It is dead, and a zombie until [`Proc::reap`].
    Dead,
}

enum Death {
    Pidfd(AsyncFd<OwnedFd>),
    /// For kernels and sandboxes without pidfds.
    Thread(oneshot::Receiver<()>),
}

/// A running worker or standby.
pub(crate) struct Proc {
    child: Child,
    pid: Pid,
    mark: Mark,
    registry: Arc<Registry>,
    stdin: Option<pipe::Sender>,
    outbox: Vec<u8>,
    stdout: Option<pipe::Receiver>,
    lines: LineReader,
    stderr: Option<pipe::Receiver>,
    log: LogReader,
    death: Death,
    /// Its message stream has ended: it should be dead by then.
    closed: Option<Instant>,
    parsing: Option<JoinHandle<Result<Message, String>>>,
    result_bytes: usize,
    spare_on_drop: bool,
    reaped: bool,
}

impl Proc {
    /// Starts `command` as the leader of a new process group. `exempt`: an emergency stop leaves it alone.
    pub(crate) fn spawn(
        mut command: Command,
        limits: &Limits,
        registry: &Arc<Registry>,
        exempt: bool,
    ) -> io::Result<Self> {
        let mark = Mark::of_worker();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command.envs([mark.variable()]);
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        registry.list().push(Entry { pid, mark: mark.clone(), exempt });
        let mut parts = || -> io::Result<_> {
            let stdin = child.stdin.take().map(OwnedFd::from).map(pipe::Sender::from_owned_fd);
            let stdout = child.stdout.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd);
            let stderr = child.stderr.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd);
            Ok((stdin.transpose()?, stdout.transpose()?, stderr.transpose()?, watch(pid)?))
        };
        match parts() {
            Ok((stdin, stdout, stderr, death)) => Ok(Self {
                child,
                pid,
                mark,
                registry: Arc::clone(registry),
                stdin,
                outbox: Vec::new(),
                stdout,
                lines: LineReader::new(limits.line_bytes),
                stderr,
                log: LogReader::new(limits.log_line_bytes),
                death,
                closed: None,
                parsing: None,
                result_bytes: limits.result_bytes,
                spare_on_drop: false,
                reaped: false,
            }),
            Err(error) => {
                kill_group(pid);
                registry.list().retain(|entry| entry.pid != pid);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its id and the mark of everything that it starts, for the standby that may have to kill them.
    pub(crate) fn to_guard(&self) -> (u32, &str) {
        (self.child.id(), self.mark.as_str())
    }

    /// Queues a line; writes at once what the pipe takes.
    pub(crate) fn send(&mut self, line: &[u8]) {
        let Some(stdin) = &self.stdin else { return };
        let mut rest = line;
        if self.outbox.is_empty() {
            match rustix::io::write(stdin, line) {
                Ok(written) => rest = &line[written..],
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // Its death will be noticed; there is nobody to tell.
                Err(_) => return,
            }
        }
        self.outbox.extend_from_slice(rest);
    }

    /// Whether everything sent so far is in the pipe.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Waits for the next thing the process does. Safe to cancel.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            if let Some(parsing) = &mut self.parsing {
                let parsed = parsing.await;
                self.parsing = None;
                return match parsed {
                    Ok(parsed) => told(parsed),
                    Err(_) => Event::Broken("its message could not be read".to_owned()),
                };
            }
            if let Some(line) = self.log.pop() {
                return Event::Printed(line);
            }
            if let Some(event) = self.next_message() {
                return event;
            }
            if self.parsing.is_some() {
                continue;
            }
            tokio::select! {
                biased;
                read = read_some(&mut self.stdout, &mut self.lines.buffer) => {
                    if !matches!(read, Ok(read) if read > 0) {
                        self.stdout = None;
                        self.closed = Some(Instant::now() + CLOSED_WAIT);
                    }
                }
                () = flush(&mut self.stdin, &mut self.outbox) => {}
                read = read_some(&mut self.stderr, &mut self.log.buffer) => {
                    if matches!(read, Ok(read) if read > 0) {
                        self.log.digest();
                    } else {
                        self.stderr = None;
                        self.log.end();
                    }
                }
                () = dead(&mut self.death) => return Event::Dead,
                () = reached(self.closed) => {
                    self.closed = None;
                    return Event::Broken("it closed its message stream".to_owned());
                }
            }
        }
    }

    fn next_message(&mut self) -> Option<Event> {
        match self.lines.next() {
            Ok(Some(range)) if range.len() > PARSE_INLINE => {
                let line = self.lines.buffer[range].to_vec();
                let result_bytes = self.result_bytes;
                self.parsing = Some(tokio::task::spawn_blocking(move || wire::parse(&line, result_bytes)));
                self.lines.shrink();
                None
            }
            Ok(Some(range)) => Some(told(wire::parse(&self.lines.buffer[range], self.result_bytes))),
            Ok(None) => None,
            Err(problem) => {
                self.stdout = None;
                Some(Event::Broken(problem))
            }
        }
    }

    /// Takes what has been printed so far, without waiting.
    pub(crate) fn printed(&mut self) -> Vec<String> {
        if let Some(stderr) = &self.stderr {
            // One pipe's content is enough: what was printed before the message that is being handled.
            for _ in 0..16 {
                if !matches!(read_now(stderr, &mut self.log.buffer), Ok(read) if read > 0) {
                    break;
                }
                self.log.digest();
            }
        }
        std::iter::from_fn(|| self.log.pop()).collect()
    }

    /// After its death: what it had still said. Never waits, also when a descendant holds the pipe.
    pub(crate) fn last_words(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut total = 0;
        loop {
            match self.lines.next() {
                Ok(Some(range)) => {
                    messages.extend(wire::parse(&self.lines.buffer[range], self.result_bytes).ok());
                    continue;
                }
                Ok(None) => {}
                Err(_) => return messages,
            }
            let Some(stdout) = &self.stdout else { return messages };
            match read_now(stdout, &mut self.lines.buffer) {
                Ok(read) if read > 0 && total < self.lines.longest() => total += read,
                _ => return messages,
            }
        }
    }

    /// A message that was being read when the process died.
    pub(crate) fn take_parsing(&mut self) -> Option<JoinHandle<Result<Message, String>>> {
        self.parsing.take()
    }

    /// Whether an emergency stop leaves this process alone.
    pub(crate) fn set_exempt(&mut self, exempt: bool) {
        self.registry.set_exempt(self.pid, exempt);
    }

    /// Dropping this process closes its pipes and nothing else: a standby then runs the hook for a lost host.
    pub(crate) fn set_spare_on_drop(&mut self, spare: bool) {
        self.spare_on_drop = spare;
    }

    /// Interrupts the process itself, not what it started.
    pub(crate) fn interrupt(&self) {
        if !self.reaped {
            let _ = rustix::process::kill_process(self.pid, Signal::INT);
        }
    }

    /// Kills the whole group. Death follows as an event; what has left the group is killed after it.
    pub(crate) fn kill(&self) {
        if !self.reaped {
            kill_group(self.pid);
        }
    }

    /// Takes a dead process off the list and out of the process table; kills what is left of its group first.
    pub(crate) fn reap(&mut self) -> Option<ExitStatus> {
        let mut list = self.registry.list();
        kill_group(self.pid);
        list.retain(|entry| entry.pid != self.pid);
        let status = self.child.try_wait().ok().flatten();
        self.reaped = status.is_some();
        escaped::kill(vec![self.mark.clone()]);
        status
    }

    /// Waits for death and reaps. For a process that nobody needs any more.
    pub(crate) async fn bury(mut self) {
        self.stdin = None;
        dead(&mut self.death).await;
        self.reap();
    }

    /// Waits until everything is written, or can no longer be.
    pub(crate) async fn flushed(&mut self) {
        while !self.outbox.is_empty() && self.stdin.is_some() {
            flush(&mut self.stdin, &mut self.outbox).await;
        }
    }

    /// Waits for its death.
    pub(crate) async fn died(&mut self) {
        dead(&mut self.death).await;
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.reaped || self.spare_on_drop {
            return;
        }
        self.reap();
    }
}

fn told(parsed: Result<Message, String>) -> Event {
    parsed.map_or_else(Event::Broken, Event::Message)
}

#[expect(deprecated, reason = "sound for an `OwnedFd`; the replacement is an unsafe function")]
fn watch(pid: Pid) -> io::Result<Death> {
    if let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
        return Ok(Death::Pidfd(AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)?));
    }
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("interlock-wait".to_owned()).spawn(move || {
        // NOWAIT leaves the zombie, and with it the process group's id, until it is reaped.
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
        let _ = sender.send(());
    })?;
    Ok(Death::Thread(receiver))
}

/// Waits until then; for ever when there is no such moment.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn dead(death: &mut Death) {
    match death {
        Death::Pidfd(fd) => {
            // An error here means that the runtime is shutting down: then nothing is waited for any more.
            let _ = fd.readable().await;
        }
        Death::Thread(receiver) => {
            let _ = receiver.await;
        }
    }
}

/// Reads once; waits for ever when there is no pipe.
async fn read_some(pipe: &mut Option<pipe::Receiver>, buffer: &mut Vec<u8>) -> io::Result<usize> {
    use tokio::io::AsyncReadExt as _;
    let Some(pipe) = pipe else { return std::future::pending().await };
    // A message of usual size takes one small read; a long one fills the pipe each time.
    buffer.reserve(if buffer.len() < 8 << 10 { 8 << 10 } else { 64 << 10 });
    pipe.read_buf(buffer).await
}

/// Reads once without waiting and without asking the runtime, which may not have heard of the data yet.
fn read_now(pipe: &pipe::Receiver, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 16 << 10];
    let read = rustix::io::read(pipe, &mut chunk[..])?;
    buffer.extend_from_slice(&chunk[..read]);
    Ok(read)
}

/// Writes some of the outbox; waits for ever when there is nothing to write.
async fn flush(pipe: &mut Option<pipe::Sender>, outbox: &mut Vec<u8>) {
    let Some(sender) = pipe.as_ref().filter(|_| !outbox.is_empty()) else {
        return std::future::pending().await;
    };
    let written = match sender.writable().await {
        Ok(()) => sender.try_write(outbox),
        Err(error) => Err(error),
    };
    match written {
        Ok(written) => {
            outbox.drain(..written);
            if outbox.is_empty() && outbox.capacity() > 1 << 20 {
                *outbox = Vec::new();
            }
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => {
            outbox.clear();
            *pipe = None;
        }
    }
}

/// Why a process ended, for people.
pub(crate) fn describe(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("the process ended with exit code {code}"),
        Some((None, Some(signal))) => {
            let name = match signal {
                4 => " (illegal instruction)",
                6 => " (abort)",
                7 => " (bus error)",
                8 => " (arithmetic error)",
                9 => " (killed; the system does this when memory runs out)",
                11 => " (segmentation fault)",
                15 => " (terminated)",
                _ => "",
            };
            format!("the process was ended by signal {signal}{name}")
        }
        _ => "the process ended in an unknown way".to_owned(),
    }
}
