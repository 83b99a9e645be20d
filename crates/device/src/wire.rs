//! The lines of the worker protocol (docs/reference/worker-protocol.md).
//!
//! Turns bytes into [`Message`]s and commands into bytes. Does no I/O and keeps no state.

use std::collections::BTreeMap;

use interlock_model::RunId;
use interlock_model::device::{ActionSpec, Call, Declarations, Rung, WorkerError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::HostConfig;

/// The version that this host speaks.
pub(crate) const PROTOCOL: u32 = 1;

/// Which part a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Worker,
    Standby,
}

/// Why the safe-state hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Cancelled,
    TimedOut,
    Crashed,
    EmergencyStop,
    HostLost,
    Test,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Crashed => "crashed",
            Self::EmergencyStop => "emergency_stop",
            Self::HostLost => "host_lost",
            Self::Test => "test",
        }
    }
}

/// What a worker says.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    Ready(Box<Ready>),
    LoadFailed(WorkerError),
    Started,
    StartFailed(WorkerError),
    Progress { run: RunId, current: f64, total: Option<f64>, message: Option<String> },
    Log { run: Option<RunId>, level: String, message: String },
    Metric { run: RunId, name: String, value: f64, unit: Option<String>, labels: BTreeMap<String, String> },
    Artifact { run: RunId, name: String, media_type: String, bytes: u64, path: String },
    Returned { run: RunId, result: Value, duration_ms: f64 },
    Raised { run: RunId, error: WorkerError, duration_ms: f64 },
    Cancelled { run: RunId, rung: Rung },
    SafeStateEntered,
    SafeStateDone { ok: bool, error: Option<WorkerError> },
    Pong,
    Unknown(String),
}

/// The answer to `hello`.
#[derive(Debug, PartialEq)]
pub(crate) struct Ready {
    pub(crate) language: Option<String>,
    pub(crate) declarations: Declarations,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    run: Option<RunId>,
    result: Option<Value>,
    duration_ms: Option<f64>,
    error: Option<WorkerError>,
    rung: Option<Rung>,
    ok: Option<bool>,
    message: Option<String>,
    level: Option<String>,
    current: Option<f64>,
    total: Option<f64>,
    name: Option<String>,
    value: Option<f64>,
    unit: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    media_type: Option<String>,
    bytes: Option<u64>,
    path: Option<String>,
    protocol: Option<u32>,
    language: Option<String>,
    title: Option<String>,
    description: Option<String>,
    actions: Option<Vec<ActionSpec>>,
    hooks: Option<Hooks>,
}

#[derive(Deserialize, Default)]
struct Hooks {
    #[serde(default)]
    on_start: bool,
    #[serde(default)]
    safe_state: bool,
}

/// What is left of a `returned` line whose result this host cannot hold.
#[derive(Deserialize)]
struct Slim {
    #[serde(rename = "type")]
    kind: String,
    run: Option<RunId>,
    #[serde(default)]
    duration_ms: f64,
}

/// Reads one line, without its newline.
///
/// # Errors
/// A sentence that says how the line breaks the protocol. Never holds what was in it.
pub(crate) fn parse(line: &[u8], result_bytes: usize) -> Result<Message, String> {
    if line.len() > result_bytes.saturating_add(1024)
        && let Ok(slim) = serde_json::from_slice::<Slim>(line)
        && slim.kind == "returned"
    {
        return refused(&slim, "result_too_large", "the result is larger than the host accepts");
    }
    match serde_json::from_slice::<Line>(line) {
        Ok(line) => line.into_message(),
        Err(error) => match serde_json::from_slice::<Slim>(line) {
            Ok(slim) if slim.kind == "returned" => {
                let why = "the result is nested too deeply or holds a number that is too large";
                refused(&slim, "result_not_serialisable", why)
            }
            _ => Err(format!("the worker sent a line that is not a message ({error})")),
        },
    }
}

fn refused(slim: &Slim, code: &str, message: &str) -> Result<Message, String> {
    let error = WorkerError {
        class: "ValueError".to_owned(),
        message: message.to_owned(),
        code: Some(code.to_owned()),
        ..WorkerError::default()
    };
    Ok(Message::Raised { run: want(slim.run, "run")?, error, duration_ms: slim.duration_ms })
}

fn want<T>(member: Option<T>, name: &str) -> Result<T, String> {
    member.ok_or_else(|| format!("the worker sent a message without '{name}'"))
}

impl Line {
    fn into_message(self) -> Result<Message, String> {
        let duration_ms = self.duration_ms.unwrap_or(0.0);
        Ok(match self.kind.as_str() {
            "returned" => Message::Returned {
                run: want(self.run, "run")?,
                result: self.result.unwrap_or(Value::Null),
                duration_ms,
            },
            "raised" => Message::Raised {
                run: want(self.run, "run")?,
                error: self.error.unwrap_or_default(),
                duration_ms,
            },
            "cancelled" => Message::Cancelled {
                run: want(self.run, "run")?,
                rung: self.rung.unwrap_or(Rung::Checkpoint),
            },
            "progress" => Message::Progress {
                run: want(self.run, "run")?,
                current: want(self.current, "current")?,
                total: self.total,
                message: self.message,
            },
            "log" => Message::Log {
                run: self.run,
                level: self.level.unwrap_or_else(|| "info".to_owned()),
                message: self.message.unwrap_or_default(),
            },
            "metric" => Message::Metric {
                run: want(self.run, "run")?,
                name: want(self.name, "name")?,
                value: want(self.value, "value")?,
                unit: self.unit,
                labels: self.labels.unwrap_or_default(),
            },
            "artifact" => Message::Artifact {
                run: want(self.run, "run")?,
                name: want(self.name, "name")?,
                media_type: self.media_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
                bytes: self.bytes.unwrap_or(0),
                path: want(self.path, "path")?,
            },
            "ready" => self.into_ready()?,
            "load_failed" => Message::LoadFailed(self.error.unwrap_or_default()),
            "started" => Message::Started,
            "start_failed" => Message::StartFailed(self.error.unwrap_or_default()),
            "safe_state_entered" => Message::SafeStateEntered,
            "safe_state_done" => Message::SafeStateDone { ok: want(self.ok, "ok")?, error: self.error },
            "pong" => Message::Pong,
            _ => Message::Unknown(self.kind),
        })
    }

    fn into_ready(self) -> Result<Message, String> {
        let protocol = want(self.protocol, "protocol")?;
        if protocol != PROTOCOL {
            return Err(format!(
                "the worker speaks version {protocol} of the protocol, this host version {PROTOCOL}"
            ));
        }
        let hooks = self.hooks.unwrap_or_default();
        Ok(Message::Ready(Box::new(Ready {
            language: self.language,
            declarations: Declarations {
                title: self.title,
                description: self.description,
                actions: want(self.actions, "actions")?,
                has_safe_state: hooks.safe_state,
                has_on_start: hooks.on_start,
            },
        })))
    }
}

fn line(value: &Value) -> Vec<u8> {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

pub(crate) fn hello(config: &HostConfig, role: Role, artifact_dir: &std::path::Path) -> Vec<u8> {
    line(&json!({
        "type": "hello",
        "protocol": PROTOCOL,
        "role": match role { Role::Worker => "worker", Role::Standby => "standby" },
        "simulate": config.simulate,
        "limits": {
            "line_bytes": config.limits.line_bytes,
            "result_bytes": config.limits.result_bytes,
            "artifact_bytes": config.limits.artifact_bytes,
            "lost_ms": u64::try_from(config.lost_limit().as_millis()).unwrap_or(u64::MAX),
        },
        "artifact_dir": artifact_dir.to_string_lossy(),
    }))
}

pub(crate) fn start() -> Vec<u8> {
    line(&json!({"type": "start"}))
}

/// The line for a call. Made by the caller's task, not by the supervisor.
pub(crate) fn call(call: &Call) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Command<'a> {
        r#type: &'static str,
        run: RunId,
        action: &'a str,
        parameters: &'a serde_json::Map<String, Value>,
        simulated: bool,
        timeout_ms: u64,
    }
    let command = Command {
        r#type: "call",
        run: call.run,
        action: &call.action,
        parameters: &call.parameters,
        simulated: call.simulated,
        timeout_ms: u64::try_from(call.timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let mut bytes = Vec::with_capacity(256);
    // Cannot fail: every key is a string and the writer is memory.
    let _ = serde_json::to_writer(&mut bytes, &command);
    bytes.push(b'\n');
    bytes
}

pub(crate) fn cancel(run: RunId, reason: &str) -> Vec<u8> {
    line(&json!({"type": "cancel", "run": run, "reason": reason}))
}

pub(crate) fn safe_state(reason: Reason) -> Vec<u8> {
    line(&json!({"type": "safe_state", "reason": reason.as_str()}))
}

pub(crate) fn guard(worker: Option<(u32, &str)>) -> Vec<u8> {
    let (pid, mark) = worker.unzip();
    line(&json!({"type": "guard", "worker_pid": pid, "worker_mark": mark}))
}

pub(crate) fn exit() -> Vec<u8> {
    line(&json!({"type": "exit"}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: &str = "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d";

    fn run() -> RunId {
        RUN.parse().expect("valid")
    }

    #[test]
    fn a_result_comes_through() {
        let line =
            format!(r#"{{"type":"returned","run":"{RUN}","duration_ms":1.5,"result":[1,null],"new":true}}"#);

        let message = parse(line.as_bytes(), 1000);

        assert_eq!(message, Ok(Message::Returned { run: run(), result: json!([1, null]), duration_ms: 1.5 }));
    }

    #[test]
    fn a_result_that_cannot_be_held_is_an_error_of_the_action_not_of_the_worker() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let long = format!("1{}", "0".repeat(400));
        for (result, code) in [(deep, "result_not_serialisable"), (long, "result_not_serialisable")] {
            let line = format!(r#"{{"type":"returned","run":"{RUN}","result":{result}}}"#);
            match parse(line.as_bytes(), 100_000) {
                Ok(Message::Raised { error, .. }) => assert_eq!(error.code.as_deref(), Some(code)),
                other => panic!("{other:?}"),
            }
        }
        let line = format!(r#"{{"type":"returned","run":"{RUN}","result":"{}"}}"#, "x".repeat(5000));
        match parse(line.as_bytes(), 100) {
            Ok(Message::Raised { error, .. }) => assert_eq!(error.code.as_deref(), Some("result_too_large")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_message_is_refused_and_a_new_kind_is_not() {
        for line in
            ["", "[]", "{}", "{\"type\":1}", "{\"type\":\"returned\"}", "hello", "{\"type\":\"started\"}x"]
        {
            assert!(parse(line.as_bytes(), 1000).is_err(), "{line}");
        }
        assert_eq!(parse(b"{\"type\":\"news\"}", 1000), Ok(Message::Unknown("news".to_owned())));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&line, 100);
        }
    }
}
