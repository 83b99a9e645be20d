//! Why a host does not start or does not obey, with what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use interlock_model::device::{BadCatalogue, WorkerError};

use crate::journal::JournalError;

/// Why a host could not be started. [`StartError::remedy`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be used.
    #[error("the folder {path} cannot be used: {source}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another host works in the state folder.
    #[error("another Interlock process is using the folder {path}")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The journal cannot be read or written.
    #[error("the device's journal cannot be used: {0}")]
    Journal(#[from] JournalError),
    /// The file of actions is not there.
    #[error("there is no file {path}")]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// The interpreter, or the worker command, cannot be started.
    #[error("{program} cannot be started: {source}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file could not be loaded.
    #[error("{}", failure("the file cannot be loaded", .0))]
    Load(Box<WorkerError>),
    /// A hook that runs at the start failed.
    #[error("{}", failure("the @on_start hook failed", .0))]
    Hook(Box<WorkerError>),
    /// What the file declares cannot be used.
    #[error("what the file declares cannot be used: {0}")]
    Catalogue(#[from] BadCatalogue),
    /// The worker ended or broke the protocol before it was ready.
    #[error("the worker did not get ready: {reason}{}", quoted(.printed))]
    Died {
        /// How it ended.
        reason: String,
        /// The last lines that it printed.
        printed: Vec<String>,
    },
    /// Loading or starting took too long.
    #[error("the worker was not ready after {seconds} s{}", quoted(.printed))]
    Slow {
        /// The deadline that passed.
        seconds: u64,
        /// The last lines that it printed.
        printed: Vec<String>,
    },
}

fn failure(what: &str, error: &WorkerError) -> String {
    let place = match (&error.file, error.line) {
        (Some(file), Some(line)) => format!(" at {file}:{line}"),
        (Some(file), None) => format!(" at {file}"),
        _ => String::new(),
    };
    format!("{what}{place}: {}: {}", error.class, error.message)
}

fn quoted(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |text, line| text + "\n  | " + line)
}

/// The name in Python's "No module named 'x'".
fn missing_module(error: &WorkerError) -> Option<&str> {
    let named = matches!(error.class.as_str(), "ModuleNotFoundError" | "ImportError");
    error.message.strip_prefix("No module named ").filter(|_| named).map(|name| name.trim_matches('\''))
}

impl StartError {
    pub(crate) fn folder(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Folder { path: path.to_owned(), source }
    }

    /// What to do about it, as one or two sentences.
    pub fn remedy(&self) -> String {
        use std::io::ErrorKind;
        let of_io = |source: &std::io::Error| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "Free some space on this disk.",
            ErrorKind::PermissionDenied => "Give the user that runs Interlock the right to write there.",
            ErrorKind::ReadOnlyFilesystem => "Choose a state folder on a disk that can be written.",
            _ => "Look at the disk and at the rights of the folder.",
        };
        match self {
            Self::Folder { source, .. } | Self::Journal(JournalError::Io { source, .. }) => of_io(source).to_owned(),
            Self::Locked { .. } => "Stop the other process, or give this device a state folder of its own.".to_owned(),
            Self::Journal(JournalError::Newer { .. }) => {
                "Start the newer version again, or use another state folder.".to_owned()
            }
            Self::NoFile { .. } => "Check the path of the file.".to_owned(),
            Self::Program { source, program } => match source.kind() {
                ErrorKind::NotFound => {
                    format!("Install it, or say where it is: {} was not found.", program.display())
                }
                ErrorKind::PermissionDenied => format!("Make {} executable.", program.display()),
                _ => "Look at the system's limits on processes and open files.".to_owned(),
            },
            Self::Load(error) => match missing_module(error) {
                Some(module) => format!(
                    "Install the module '{module}' for the Python interpreter that runs this device, or choose the \
                     interpreter that has it."
                ),
                None if error.class.ends_with("SyntaxError") || error.class == "IndentationError" => {
                    "Mend the file at that line.".to_owned()
                }
                None => "Mend the file; run it with the interpreter alone to see the whole traceback.".to_owned(),
            },
            Self::Hook(_) => "Check that the machine is on and connected; the hook opens the connection to it.".to_owned(),
            Self::Catalogue(_) => "Mend the declaration in the file.".to_owned(),
            Self::Died { .. } => "Run the file with the interpreter alone to see what ends it.".to_owned(),
            Self::Slow { .. } => {
                "Look for a loop or a wait at the top of the file or in its @on_start hook, or allow more time.".to_owned()
            }
        }
    }
}

/// Why a stop was not released, or a mark not cleared.
#[derive(Debug)]
pub enum ReleaseError {
    /// The change could not be written; the device stays as it was.
    Disk(std::io::Error),
    /// Somebody stopped the device again meanwhile.
    StoppedAgain,
    /// The stop is still being carried out.
    StillStopping,
    /// The latch is released, but no worker has become ready; the host goes on trying.
    NotReady(String),
    /// The host is shutting down.
    Closing,
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(_) => f.write_str("the change could not be written to disk; nothing has changed"),
            Self::StoppedAgain => f.write_str("the device was stopped again meanwhile"),
            Self::StillStopping => f.write_str("the emergency stop is still being carried out"),
            Self::NotReady(why) => write!(f, "released, but the device's program is not running: {why}"),
            Self::Closing => f.write_str("the host is shutting down"),
        }
    }
}

impl std::error::Error for ReleaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Disk(source) => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_module_and_a_syntax_error_are_named() {
        let error = |class: &str, message: &str| {
            StartError::Load(Box::new(WorkerError {
                class: class.into(),
                message: message.into(),
                file: Some("/robot/ot2.py".into()),
                line: Some(7),
                ..WorkerError::default()
            }))
        };

        let missing = error("ModuleNotFoundError", "No module named 'opentrons'");
        let syntax = error("SyntaxError", "invalid syntax");

        assert!(missing.remedy().contains("'opentrons'"), "{}", missing.remedy());
        assert_eq!(
            syntax.to_string(),
            "the file cannot be loaded at /robot/ot2.py:7: SyntaxError: invalid syntax"
        );
    }
}
