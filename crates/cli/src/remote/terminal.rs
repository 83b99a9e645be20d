//! Asking a person: lines, passwords without echo, signals, the width of the window.
//!
//! A blocked read of standard input cannot be taken back, so it has its own thread that nobody waits for.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use interlock_model::secret::Secret;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::failure::{Failure, exit};
use super::ui::Ui;

/// Longest secret that is read from standard input.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// A signal that asks us to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Ctrl-C.
    Interrupt,
    /// The session or the machine ends.
    End,
}

/// Signals as a queue. While it lives they do not end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let one = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(exit::ERROR, "signals cannot be received", "start the command again")
                    .because(error.to_string())
            })
        };
        Ok(Self {
            interrupt: one(SignalKind::interrupt())?,
            terminate: one(SignalKind::terminate())?,
            hang_up: one(SignalKind::hangup())?,
        })
    }

    /// The next one. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::End,
        }
    }
}

pub(crate) fn interrupted() -> Failure {
    Failure::new(exit::INTERRUPTED, "interrupted", "nothing was changed; start the command again")
}

/// Reads one line in the background; nothing comes at the end of the input.
pub(crate) fn read_line() -> oneshot::Receiver<Option<String>> {
    let (answer, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_line(&mut text);
        let _ = answer.send(match read {
            Ok(1..) => Some(text.trim_end_matches(['\n', '\r']).to_owned()),
            _ => None,
        });
    });
    receiver
}

/// Asks for a line on a terminal.
pub(crate) async fn ask(ui: &Ui, question: &str, otherwise: &str) -> Result<String, Failure> {
    if !ui.interactive {
        return Err(Failure::usage(format!("{question} is needed, and there is nobody to ask"), otherwise));
    }
    let _ = std::io::stderr().write_all(format!("{question}: ").as_bytes());
    let answer = read_line().await.ok().flatten().map(|text| text.trim().to_owned()).unwrap_or_default();
    if answer.is_empty() {
        Err(Failure::usage(format!("{question} is needed"), otherwise))
    } else {
        Ok(answer)
    }
}

/// Asks yes or no. Without a person the answer is what `--yes` says.
pub(crate) async fn confirm(ui: &Ui, question: &str) -> bool {
    if ui.yes || !ui.interactive {
        return ui.yes;
    }
    let _ = std::io::stderr().write_all(format!("{question} [y/N] ").as_bytes());
    let answer = read_line().await.ok().flatten().unwrap_or_default();
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Restores the terminal, also when the command is interrupted.
struct Echo(Termios);

impl Echo {
    fn off() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        termios::tcsetattr(&stdin, OptionalActions::Flush, &silent).ok()?;
        Some(Self(before))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Asks for a password without showing it.
pub(crate) async fn ask_password(ui: &Ui, question: &str, otherwise: &str) -> Result<Secret, Failure> {
    if !ui.interactive {
        return Err(Failure::usage(format!("{question} is needed, and there is nobody to ask"), otherwise));
    }
    let mut signals = Signals::listen()?;
    let _ = std::io::stderr().write_all(format!("{question}: ").as_bytes());
    let silent = Echo::off()
        .ok_or_else(|| Failure::new(exit::ERROR, "this terminal cannot hide what is typed", otherwise))?;
    let answer = tokio::select! {
        answer = read_line() => Some(answer.ok().flatten()),
        _ = signals.next() => None,
    };
    drop(silent);
    match answer {
        None => {
            let _ = std::io::stderr().write_all(b"\n");
            Err(interrupted())
        }
        Some(Some(text)) if !text.is_empty() => Ok(Secret::new(text)),
        Some(_) => Err(Failure::usage(format!("{question} is needed"), otherwise)),
    }
}

/// A new password, typed twice.
pub(crate) async fn ask_new_password(ui: &Ui, name: &str, otherwise: &str) -> Result<Secret, Failure> {
    let first = ask_password(ui, &format!("New password for {name}"), otherwise).await?;
    let second = ask_password(ui, "The same again", otherwise).await?;
    if first.matches(second.expose()) {
        Ok(first)
    } else {
        Err(Failure::usage("the two passwords differ", "start the command again"))
    }
}

/// The first line of standard input.
pub(crate) fn secret_from_stdin(what: &str) -> Result<Secret, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let hint = format!("pipe the {what} in: interlock … < FILE");
        return Err(Failure::usage(format!("standard input is a terminal; the {what} would be shown"), hint));
    }
    let mut text = String::new();
    let read = stdin.lock().take(MAX_SECRET_BYTES).read_to_string(&mut text);
    let first = text.lines().next().unwrap_or_default();
    if read.is_err() || first.is_empty() {
        return Err(Failure::usage(
            format!("standard input holds no {what}"),
            format!("pipe the {what} in as one line of UTF-8"),
        ));
    }
    Ok(Secret::new(first))
}

/// The first two lines of standard input: a token and a password.
pub(crate) fn secrets_from_stdin() -> Result<(Secret, Secret), Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_SECRET_BYTES).read_to_string(&mut text);
    let mut lines = text.lines().filter(|line| !line.is_empty());
    match (read, lines.next(), lines.next()) {
        (Ok(_), Some(token), Some(password)) => Ok((Secret::new(token), Secret::new(password))),
        _ => Err(Failure::usage(
            "standard input does not hold a token and a password",
            "pipe them in as two lines of UTF-8",
        )),
    }
}

/// Columns of the window behind standard error.
pub(crate) fn width() -> usize {
    termios::tcgetwinsize(std::io::stderr())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|&columns| columns > 0)
        .unwrap_or(80)
}
