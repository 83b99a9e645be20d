//! Why a command did not do what it should: one exit code, what happened, why, and what to do about it.
//!
//! The codes are those of `interlock help exit-codes`. Everything that the server said is cleaned before it is printed.

use std::io::Write as _;

use interlock_client::{ClientError, Refusal};
use interlock_model::RunId;
use interlock_model::run::RunState;
use interlock_model::wire::{FieldError, Loc, Problem, RunView};

use super::global::{Form, Global};
use super::text::{block, line};
use super::ui::{Ui, json_text};

/// Exit codes of every command.
pub(crate) mod exit {
    pub(crate) const ERROR: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NOT_FOUND: u8 = 3;
    pub(crate) const SIGN_IN: u8 = 4;
    pub(crate) const FORBIDDEN: u8 = 5;
    pub(crate) const CONFLICT: u8 = 6;
    pub(crate) const PARAMETERS: u8 = 7;
    pub(crate) const UNREACHABLE: u8 = 8;
    pub(crate) const TASK_FAILED: u8 = 10;
    pub(crate) const CANCELLED: u8 = 11;
    pub(crate) const STOPPED: u8 = 12;
    pub(crate) const UNVERIFIED: u8 = 13;
    pub(crate) const TIMED_OUT: u8 = 124;
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// What to do when there is no usable token. [`super::execute`] replaces it by the full command for the server in question.
pub(crate) const SIGN_IN_HINT: &str = "interlock login";

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What happened.
    pub(crate) error: String,
    /// Why.
    pub(crate) cause: Option<String>,
    /// What to do.
    pub(crate) hint: String,
    /// What the server said.
    pub(crate) problem: Option<Box<Problem>>,
    /// Standard output has the whole answer already, so JSON output must not get a second document.
    pub(crate) answered: bool,
    /// It is what the person chose, not an error.
    pub(crate) chosen: bool,
}

impl Failure {
    pub(crate) fn new(code: u8, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
            cause: None,
            hint: hint.into(),
            problem: None,
            answered: false,
            chosen: false,
        }
    }

    pub(crate) fn usage(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(exit::USAGE, error, hint)
    }

    #[must_use]
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Whoever read our standard output has enough. Not an error.
    pub(crate) fn reader_left() -> Self {
        Self { code: 0, answered: true, ..Self::new(0, "", "") }
    }

    /// A file of ours.
    pub(crate) fn file(
        what: &str,
        path: &std::path::Path,
        error: &std::io::Error,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(exit::ERROR, format!("{what} {}", path.display()), hint).because(error.to_string())
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints it: words on standard error, or with JSON output the problem on standard output.
    pub(crate) fn print(&self, global: &Global) {
        if self.code == 0 {
            return;
        }
        let ui = Ui::new(global);
        if matches!(global.output, Form::Json | Form::Jsonl | Form::Yaml) && !self.answered {
            let _ = ui.out(&json_text(&self.document(), global.output != Form::Jsonl));
            return;
        }
        let label = if self.chosen { ui.bold("note: ") } else { ui.red("error:") };
        let mut text = format!("{label} {}\n", indented(&self.error));
        if let Some(cause) = self.cause.as_ref().filter(|cause| !cause.is_empty()) {
            text.extend([&ui.bold("cause:"), " ", &indented(cause), "\n"]);
        }
        if !self.hint.is_empty() {
            text.extend([&ui.bold("hint:"), "  ", &indented(&self.hint), "\n"]);
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// The problem as a document (RFC 9457), made up where no server gave one.
    fn document(&self) -> serde_json::Value {
        let mut problem = self.problem.as_deref().cloned().unwrap_or_else(|| Problem {
            code: local_code(self.code).to_owned(),
            detail: self
                .cause
                .as_ref()
                .map_or_else(|| self.error.clone(), |cause| format!("{}: {cause}", self.error)),
            ..Problem::default()
        });
        if problem.detail.is_empty() {
            problem.detail.clone_from(&self.error);
        }
        let mut document = serde_json::to_value(problem).unwrap_or_default();
        if let Some(members) = document.as_object_mut() {
            members.insert("title".to_owned(), self.error.clone().into());
            members.insert("hint".to_owned(), self.hint.clone().into());
            members.insert("exit_code".to_owned(), self.code.into());
        }
        document
    }
}

/// Later lines stand under the first.
fn indented(text: &str) -> String {
    block(text).trim_end().replace('\n', "\n       ")
}

fn local_code(code: u8) -> &'static str {
    match code {
        exit::USAGE => "usage",
        exit::NOT_FOUND => "not_found",
        exit::SIGN_IN => "unauthorized",
        exit::FORBIDDEN => "forbidden",
        exit::CONFLICT => "conflict",
        exit::PARAMETERS => "invalid_parameters",
        exit::UNREACHABLE => "unreachable",
        exit::TASK_FAILED => "task_failed",
        exit::CANCELLED => "run_cancelled",
        exit::STOPPED => "emergency_stop_engaged",
        exit::UNVERIFIED => "verification_failed",
        exit::TIMED_OUT => "timed_out",
        exit::INTERRUPTED => "interrupted",
        _ => "error",
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&line(&self.error))?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {}", line(cause)))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Settings(text) => Self::usage(
                text,
                "`interlock context show` says which server and CA file are in force; --url and --ca-file overrule it. A client certificate is given with interlock login --cert FILE --key FILE",
            ),
            ClientError::Unreachable { url, reason, sent: _ } => {
                let hint = "check the address with `interlock context show` and the network; on the server: `interlock doctor`";
                Self::new(exit::UNREACHABLE, format!("the server at {url} cannot be reached"), hint)
                    .because(reason)
            }
            ClientError::Tls { url, reason } => {
                let hint = if reason.contains("does not speak TLS") {
                    "check the address: a development server on this machine has one that begins with http://"
                } else {
                    "give the file of the server's own certificate authority with --ca-file; if it was trusted before, ask the \
                     administrator before you go on"
                };
                Self::new(exit::UNREACHABLE, format!("no trusted connection to {url}"), hint).because(reason)
            }
            ClientError::Problem(refusal) => Self::from_refusal(*refusal),
            ClientError::SignInNeeded(cause) => {
                Self::new(exit::SIGN_IN, "you are not signed in", SIGN_IN_HINT).because(cause)
            }
            ClientError::BadAnswer { url, reason } => {
                let hint = "check that the address is that of an Interlock server: `interlock context show`";
                Self::new(exit::ERROR, format!("the answer of {url} cannot be understood"), hint)
                    .because(reason)
            }
        }
    }
}

/// What is wrong with a field; with its place if that lies deeper than a name that the sentence tells.
fn placed(field: &FieldError) -> String {
    let deep = field.loc.iter().any(|part| matches!(part, Loc::Index(_)));
    if !deep {
        return field.msg.clone();
    }
    let mut place = String::new();
    for part in field.loc.iter().skip(1) {
        match part {
            Loc::Index(at) => place.extend(["[", &at.to_string(), "]"]),
            Loc::Name(name) if place.is_empty() => place.push_str(name),
            Loc::Name(name) => place.extend([".", name]),
        }
    }
    format!("{place}: {}", field.msg)
}

impl Failure {
    fn from_refusal(refusal: Refusal) -> Self {
        let Refusal { problem, status, retry_after, run } = refusal;
        let mut hint = hint_for(&problem.code, run);
        if let Some(seconds) = retry_after {
            hint = format!(
                "try again in {seconds} s{}",
                if hint.is_empty() { String::new() } else { format!("; {hint}") }
            );
        }
        if hint.is_empty() {
            hint = if problem.request_id.is_empty() {
                "the server's log has more".to_owned()
            } else {
                format!("the server's log has more under request id {}", line(&problem.request_id))
            };
        }
        let mut lines: Vec<String> = problem.errors.iter().map(placed).collect();
        lines.dedup();
        let cause = if problem.errors.is_empty() { None } else { Some(lines.join("\n")) };
        let error = match (cause.is_some(), problem.code.as_str()) {
            (true, "invalid_parameters") => "the parameters are refused; nothing was done".to_owned(),
            (true, _) => "the request is refused".to_owned(),
            (false, _) => problem.detail.clone(),
        };
        Self {
            code: code_for(&problem.code, status),
            error,
            cause,
            hint,
            problem: Some(Box::new(problem)),
            answered: false,
            chosen: false,
        }
    }

    /// A run that is over and did not succeed; `None` when it did.
    pub(crate) fn of_run(run: &RunView) -> Option<Self> {
        let code = run.error.as_ref().map_or("", |error| error.code.as_str());
        let exit = match run.state {
            RunState::Succeeded => return None,
            RunState::TimedOut => exit::TIMED_OUT,
            RunState::Uncertain => exit::TASK_FAILED,
            RunState::Failed | RunState::Cancelled | RunState::Queued | RunState::Running => match code {
                "bad_parameters" | "rule_broken" => exit::PARAMETERS,
                "emergency_stop_engaged" => exit::STOPPED,
                "device_busy" | "device_needs_attention" => exit::CONFLICT,
                "device_unavailable" | "unavailable" => exit::UNREACHABLE,
                _ if run.state == RunState::Cancelled => exit::CANCELLED,
                _ => exit::TASK_FAILED,
            },
        };
        let words = match run.state {
            RunState::Cancelled => "was cancelled",
            RunState::TimedOut => "did not end within its time limit",
            RunState::Uncertain => "has an unknown end",
            _ => "failed",
        };
        let mut failure =
            Self::new(exit, format!("{} {words} ({})", run.action, run.id), hint_for(code, Some(run.id)));
        failure.cause = run.error.as_ref().map(|error| error.message.clone());
        failure.problem = run.error.as_ref().map(|error| {
            let (code, detail) = (error.code.clone(), error.message.clone());
            Box::new(Problem { code, detail, request_id: run.request_id.clone(), ..Problem::default() })
        });
        if failure.hint.is_empty() {
            failure.hint = format!("interlock logs {}", run.id);
        }
        Some(failure)
    }
}

/// The exit code for a problem's code and status.
fn code_for(code: &str, status: u16) -> u8 {
    match code {
        "emergency_stop_engaged" => exit::STOPPED,
        "run_cancelled" | "run_not_started" => exit::CANCELLED,
        "run_uncertain"
        | "task_failed"
        | "worker_crashed"
        | "result_too_large"
        | "result_not_serialisable" => exit::TASK_FAILED,
        "task_timed_out" => exit::TIMED_OUT,
        "idempotency_key_reused" | "rate_limited" => exit::CONFLICT,
        "device_unavailable" | "unavailable" => exit::UNREACHABLE,
        _ => match status {
            401 => exit::SIGN_IN,
            403 => exit::FORBIDDEN,
            404 => exit::NOT_FOUND,
            409 | 412 | 423 | 429 => exit::CONFLICT,
            400 | 413 | 415 | 422 => exit::PARAMETERS,
            502..=504 => exit::UNREACHABLE,
            _ => exit::ERROR,
        },
    }
}

/// What helps against a problem.
fn hint_for(code: &str, run: Option<RunId>) -> String {
    let of_run = |command: &str| {
        run.map_or_else(|| "interlock runs list".to_owned(), |run| format!("{command} {run}"))
    };
    match code {
        "invalid_parameters" | "bad_parameters" | "rule_broken" => "`interlock action schema ACTION` shows what an action takes".to_owned(),
        "task_not_found" => "interlock action list".to_owned(),
        "device_busy" => "`interlock status` shows what runs; start it again when the device is free".to_owned(),
        "emergency_stop_engaged" => "`interlock status` says who engaged it; when the device is safe, an administrator runs: \
                                     interlock release --reason \"checked, safe\""
            .to_owned(),
        "device_needs_attention" => "look at the device, then: interlock attention clear --reason \"checked, safe\"".to_owned(),
        "run_uncertain" => format!("look at the device; what is known: {}", of_run("interlock logs")),
        "task_failed" | "worker_crashed" | "task_timed_out" | "run_cancelled" | "result_too_large" | "result_not_serialisable" => {
            of_run("interlock logs")
        }
        "run_not_started" => "nothing was done; start it again".to_owned(),
        "device_unavailable" => "`interlock status` says how the device is; the server's log says why its program does not run".to_owned(),
        "idempotency_key_reused" => "leave out --idempotency-key, or use a new one".to_owned(),
        "forbidden" => "`interlock whoami` shows your roles; an administrator sets them: interlock user role NAME ROLE,ROLE".to_owned(),
        "step_up_required" => "interlock account step-up".to_owned(),
        "second_factor_required" => "wait for the next code of your app, then: interlock login --otp CODE".to_owned(),
        "second_factor_missing" => "interlock account factor add".to_owned(),
        "invitation_not_found" => "ask for a new one: interlock invitation make NAME --role ROLE".to_owned(),
        "device_code_not_found" => "compare with the code that the device shows; it lives for ten minutes".to_owned(),
        "factor_not_found" => "interlock account factor list".to_owned(),
        "run_not_found" => "interlock runs list".to_owned(),
        "user_not_found" => "interlock user list".to_owned(),
        "artifact_not_found" => "`interlock runs show RUN` lists the files of a run".to_owned(),
        "conflict" => "look how it is now (`interlock status`, `interlock user list`), then decide".to_owned(),
        "invalid_request" => "change what is named and start the command again".to_owned(),
        "not_found" => "check the path and the name".to_owned(),
        "payload_too_large" => "send less, or ask the administrator to raise MAX_REQUEST_SIZE".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str, status: u16) -> Failure {
        let problem =
            Problem { code: code.to_owned(), detail: "no".to_owned(), status, ..Problem::default() };
        Failure::from(ClientError::Problem(Box::new(Refusal {
            problem,
            status,
            retry_after: None,
            run: None,
        })))
    }

    #[test]
    fn every_refusal_has_its_exit_code_and_a_hint() {
        for (code, status, expected) in [
            ("invalid_parameters", 400, 7),
            ("invalid_request", 422, 7),
            ("idempotency_key_reused", 422, 6),
            ("forbidden", 403, 5),
            ("task_not_found", 404, 3),
            ("device_busy", 409, 6),
            ("emergency_stop_engaged", 409, 12),
            ("device_needs_attention", 409, 6),
            ("run_cancelled", 409, 11),
            ("run_uncertain", 409, 10),
            ("task_failed", 500, 10),
            ("worker_crashed", 500, 10),
            ("internal", 500, 1),
            ("device_unavailable", 503, 8),
            ("task_timed_out", 504, 124),
            ("rate_limited", 429, 6),
        ] {
            let failure = refused(code, status);

            assert_eq!(failure.code, expected, "{code}");
            assert!(!failure.hint.is_empty(), "{code}");
        }
    }

    #[test]
    fn without_a_token_the_code_is_4() {
        let failure = Failure::from(ClientError::SignInNeeded("no".to_owned()));

        assert_eq!((failure.code, failure.hint.as_str()), (4, "interlock login"));
    }

    #[test]
    fn the_document_of_a_local_failure_is_a_problem_too() {
        let document = Failure::new(exit::UNREACHABLE, "no server", "start it").because("refused").document();

        assert_eq!(document["code"], "unreachable");
        assert_eq!(document["detail"], "no server: refused");
        assert_eq!(document["exit_code"], 8);
    }
}
