//! The life of a run as a pure function.

use serde::{Deserialize, Serialize};

use crate::device::{NotStarted, Outcome};

/// Where a run is. The last five are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Accepted and on record; not sent to the device's worker.
    Queued,
    /// The device's worker has it.
    Running,
    /// The function returned.
    Succeeded,
    /// The function raised, or the worker died while it ran.
    Failed,
    /// Stopped by a person or an emergency stop, or it never started.
    Cancelled,
    /// Its deadline passed.
    TimedOut,
    /// It was started and nobody can know how it ended. A person decides; it is never repeated by itself.
    Uncertain,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
        Self::Uncertain,
    ];

    /// Whether the run is over.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The wire and storage form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Uncertain => "uncertain",
        }
    }

    /// From the wire and storage form.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether a run may go from this state to `next`. Final states are never left.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => !matches!(next, Self::Queued),
            Self::Running => next.is_final(),
            _ => false,
        }
    }
}

/// Why a run did not succeed: a stable code and a sentence that may be shown to callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// One of the codes in docs/reference/device-http.md.
    pub code: String,
    /// For callers. Never holds what the function said unless its author allowed that.
    pub message: String,
}

/// How a call's outcome is recorded and told.
pub fn conclude(outcome: &Outcome) -> (RunState, Option<RunError>) {
    let error =
        |code: &str, message: &str| Some(RunError { code: code.to_owned(), message: message.to_owned() });
    match outcome {
        Outcome::Returned { .. } => (RunState::Succeeded, None),
        Outcome::Raised { error: raised, .. } => {
            let told = ["result_too_large", "result_not_serialisable", "bad_parameters", "rule_broken"];
            let code =
                told.into_iter().find(|&code| raised.code.as_deref() == Some(code)).unwrap_or("task_failed");
            let message = if raised.public {
                raised.message.clone()
            } else {
                match code {
                    "result_too_large" => {
                        "The action ran to its end, but its result is too large to return. Return less, or \
                                           use ctx.artifact for files."
                            .to_owned()
                    }
                    "result_not_serialisable" => {
                        "The action ran to its end, but its result cannot be written as JSON. Return \
                                                  numbers, texts, lists and dictionaries."
                            .to_owned()
                    }
                    "bad_parameters" | "rule_broken" => {
                        "The device refused the parameters; nothing was done.".to_owned()
                    }
                    _ => "The action failed. The cause is in the server's log under this request id."
                        .to_owned(),
                }
            };
            (RunState::Failed, Some(RunError { code: code.to_owned(), message }))
        }
        Outcome::Crashed { .. } => (
            RunState::Failed,
            error(
                "worker_crashed",
                "The process that ran the action died. What it did until then is not known: look at the device before the \
                 next run.",
            ),
        ),
        Outcome::Cancelled { .. } => {
            (RunState::Cancelled, error("run_cancelled", "The run was stopped after it had started."))
        }
        Outcome::TimedOut { .. } => (
            RunState::TimedOut,
            error(
                "task_timed_out",
                "The action did not end within its time limit and was stopped. Look at the device before the next run.",
            ),
        ),
        Outcome::Uncertain { .. } => (
            RunState::Uncertain,
            error(
                "run_uncertain",
                "The action was started and its end is not known. It will not be repeated: look at the device, then start a \
                 new run with a new key.",
            ),
        ),
        Outcome::NotStarted { reason } => {
            let (code, message) = match reason {
                NotStarted::Busy => ("device_busy", "The device is busy. Nothing was done."),
                NotStarted::EmergencyStop => (
                    "emergency_stop_engaged",
                    "The emergency stop is engaged. Nothing was done. Release it first.",
                ),
                NotStarted::NeedsAttention => (
                    "device_needs_attention",
                    "The device could not be brought to its safe state. Nothing was done. Look at it, then clear the attention mark.",
                ),
                NotStarted::Unavailable => {
                    ("device_unavailable", "The device's program is not running. Nothing was done.")
                }
                NotStarted::Cancelled => {
                    ("run_cancelled", "The run was cancelled before it started. Nothing was done.")
                }
                NotStarted::HostStopped => {
                    ("run_not_started", "The server stopped before the action started. Nothing was done.")
                }
                NotStarted::JournalFailed => (
                    "unavailable",
                    "The device's journal cannot be written. Nothing was done. Look at the disk of the server.",
                ),
            };
            (RunState::Cancelled, error(code, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_is_never_left() {
        for from in RunState::ALL {
            for to in RunState::ALL {
                if from.is_final() {
                    assert!(!from.may_become(to), "{from:?} -> {to:?}");
                }
            }
            assert!(!from.may_become(RunState::Queued));
            assert_eq!(RunState::parse(from.as_str()), Some(from));
        }
    }

    #[test]
    fn what_a_function_says_stays_inside_unless_its_author_allows_it() {
        let raised = |public| Outcome::Raised {
            error: crate::device::WorkerError {
                message: "password is hunter2".into(),
                public,
                ..Default::default()
            },
            duration_ms: 1.0,
        };

        let (_, hidden) = conclude(&raised(false));
        let (_, shown) = conclude(&raised(true));

        assert!(!hidden.expect("an error").message.contains("hunter2"));
        assert!(shown.expect("an error").message.contains("hunter2"));
    }
}
