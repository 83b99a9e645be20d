//! What a device offers and reports: actions, calls, outcomes, events, status.
//!
//! [`ActionSpec`] is what the worker declares (docs/reference/worker-protocol.md); [`Catalogue`] is the checked form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rule::Rule;
use crate::run::RunState;
use crate::schema::Schema;
use crate::{RunId, Timestamp};

/// A cross-field rule as declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// The expression; it must be true.
    pub expr: String,
    /// What to tell a person when it is not.
    pub message: String,
}

/// One parameter as declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamSpec {
    /// The name, as in the function's signature.
    pub name: String,
    /// A label for people.
    #[serde(default)]
    pub title: Option<String>,
    /// One sentence of help.
    #[serde(default)]
    pub help: Option<String>,
    /// Whether a caller must give it.
    #[serde(default)]
    pub required: bool,
    /// Used when the caller gives nothing.
    #[serde(default)]
    pub default: Value,
    /// `integer number string boolean array object any`.
    #[serde(rename = "type")]
    pub kind: String,
    /// UCUM code of the unit the number is in, such as `uL`.
    #[serde(default)]
    pub unit: Option<String>,
    /// A hint for forms, such as `plate96`.
    #[serde(default)]
    pub widget: Option<String>,
    /// Never shown, logged or audited.
    #[serde(default)]
    pub sensitive: bool,
    /// The JSON Schema subset of the worker protocol.
    #[serde(default)]
    pub schema: Value,
}

/// One action as declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionSpec {
    /// The name that callers use.
    pub name: String,
    /// A label for people.
    #[serde(default)]
    pub title: Option<String>,
    /// The documentation text.
    #[serde(default)]
    pub doc: Option<String>,
    /// Declared with `async def`.
    #[serde(default)]
    pub is_async: bool,
    /// The role that may execute it when that is not `operator`.
    #[serde(default)]
    pub role: Option<String>,
    /// Whether executing it twice is as good as once. Only then is it ever repeated.
    #[serde(default)]
    pub idempotent: bool,
    /// `moves heats doses reads none`.
    #[serde(default)]
    pub effects: Option<String>,
    /// Deadline in seconds; `None` means the server's default.
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
    /// Typical duration, for people.
    #[serde(default)]
    pub duration: Option<String>,
    /// Parts of the device that it uses.
    #[serde(default)]
    pub resources: Vec<String>,
    /// Who needs an approval: `never agents always` or a rule.
    #[serde(default)]
    pub approve: Option<String>,
    /// Cross-field rules.
    #[serde(default)]
    pub rules: Vec<RuleSpec>,
    /// Parameters in the order of the signature.
    #[serde(default)]
    pub parameters: Vec<ParamSpec>,
}

/// A file's declarations, as the worker reports them when it is ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Declarations {
    /// Title of the device, if the file gives one.
    #[serde(default)]
    pub title: Option<String>,
    /// Description of the device.
    #[serde(default)]
    pub description: Option<String>,
    /// The actions, in the order of the file.
    pub actions: Vec<ActionSpec>,
    /// Whether there is a safe-state hook.
    #[serde(default)]
    pub has_safe_state: bool,
    /// Whether there is a start hook.
    #[serde(default)]
    pub has_on_start: bool,
}

/// One parameter, checked and ready to validate values.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// As declared.
    pub spec: ParamSpec,
    /// The compiled schema.
    pub schema: Schema,
}

/// One action, checked and ready to validate calls.
#[derive(Clone, Debug)]
pub struct DeviceAction {
    /// As declared.
    pub spec: ActionSpec,
    /// Compiled parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Compiled rules with their messages.
    pub rules: Vec<(Rule, String)>,
}

/// The checked actions of a device, by name.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// As declared.
    pub declarations: Declarations,
    actions: BTreeMap<String, DeviceAction>,
}

/// Why a file's declarations cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadCatalogue {
    /// The name cannot stand in a URL.
    #[error(
        "action name {0:?} is not allowed: use a letter or underscore, then up to 63 letters, digits or underscores"
    )]
    ActionName(String),
    /// Two actions have one name.
    #[error("two actions are called {0:?}")]
    Duplicate(String),
    /// A parameter cannot be checked.
    #[error("parameter {parameter:?} of action {action:?}: {reason}")]
    Parameter {
        /// Name of the action.
        action: String,
        /// Name of the parameter.
        parameter: String,
        /// What is wrong.
        reason: String,
    },
    /// A rule cannot be evaluated.
    #[error("rule {rule:?} of action {action:?}: {reason}")]
    Rule {
        /// Name of the action.
        action: String,
        /// The expression.
        rule: String,
        /// What is wrong.
        reason: String,
    },
    /// It asks for a safeguard that does not exist.
    #[error(
        "action {action:?}: approve must be \"never\" or \"agents\": this server cannot ask a person for approval yet"
    )]
    Approval {
        /// Name of the action.
        action: String,
    },
    /// A number is out of range.
    #[error("action {action:?}: timeout_seconds must be more than 0 and at most 604800")]
    Timeout {
        /// Name of the action.
        action: String,
    },
}

/// One refused parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterError {
    /// Where: parameter name, then keys and indices inside it. Empty for a cross-field rule.
    pub loc: Vec<String>,
    /// `missing unexpected type range format rule unit`.
    pub kind: &'static str,
    /// A sentence for people; never holds the value.
    pub message: String,
}

impl Catalogue {
    /// Checks every name, schema, default, unit and rule.
    ///
    /// # Errors
    /// The first thing that would make a declared limit meaningless.
    pub fn check(declarations: Declarations) -> Result<Self, BadCatalogue> {
        let mut actions = BTreeMap::new();
        for spec in &declarations.actions {
            let action = DeviceAction::check(spec.clone())?;
            if actions.insert(spec.name.clone(), action).is_some() {
                return Err(BadCatalogue::Duplicate(spec.name.clone()));
            }
        }
        Ok(Self { declarations, actions })
    }

    /// The action of this name.
    pub fn action(&self, name: &str) -> Option<&DeviceAction> {
        self.actions.get(name)
    }

    /// All actions, by name.
    pub fn actions(&self) -> impl ExactSizeIterator<Item = &DeviceAction> {
        self.actions.values()
    }
}

/// Unexpected parameters that an answer names.
const MAX_UNEXPECTED: usize = 10;

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
        && name.len() <= 64
        && bytes.all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

impl DeviceAction {
    fn check(spec: ActionSpec) -> Result<Self, BadCatalogue> {
        if !is_name(&spec.name) {
            return Err(BadCatalogue::ActionName(spec.name));
        }
        // A declared safeguard that nothing enforces would be worse than none. People are the only callers there are today.
        if !matches!(spec.approve.as_deref(), None | Some("never" | "agents")) {
            return Err(BadCatalogue::Approval { action: spec.name });
        }
        if spec.timeout_seconds.is_some_and(|t| !(t > 0.0 && t <= 604_800.0)) {
            return Err(BadCatalogue::Timeout { action: spec.name });
        }
        let mut parameters: Vec<Parameter> = Vec::with_capacity(spec.parameters.len());
        for parameter in &spec.parameters {
            let bad = |reason: String| BadCatalogue::Parameter {
                action: spec.name.clone(),
                parameter: parameter.name.clone(),
                reason,
            };
            if parameters.iter().any(|earlier| earlier.spec.name == parameter.name) {
                return Err(bad("declared twice".to_owned()));
            }
            let schema = Schema::compile(&parameter.schema).map_err(|error| bad(error.to_string()))?;
            if let Some(unit) = &parameter.unit
                && crate::unit::find(unit).is_none()
            {
                return Err(bad(format!("unit {unit:?} is not in the table of units")));
            }
            if !parameter.required && !parameter.default.is_null() {
                schema
                    .validate(&parameter.default)
                    .map_err(|_| bad("its default breaks its own limits".to_owned()))?;
            }
            parameters.push(Parameter { spec: parameter.clone(), schema });
        }
        let names: Vec<&str> = spec.parameters.iter().map(|p| p.name.as_str()).collect();
        let mut rules = Vec::with_capacity(spec.rules.len());
        for rule in &spec.rules {
            let compiled = Rule::compile(&rule.expr, &names).map_err(|error| BadCatalogue::Rule {
                action: spec.name.clone(),
                rule: rule.expr.clone(),
                reason: error.to_string(),
            })?;
            rules.push((compiled, rule.message.clone()));
        }
        Ok(Self { spec, parameters, rules })
    }

    /// The role that may execute this action.
    pub fn role(&self) -> &str {
        self.spec.role.as_deref().unwrap_or("operator")
    }

    /// Checks a call: converts units, applies defaults, validates every value, then every rule.
    ///
    /// # Errors
    /// All refused parameters at once; rules are checked only when every parameter is right.
    pub fn check_call(
        &self,
        mut given: Map<String, Value>,
    ) -> Result<Map<String, Value>, Vec<ParameterError>> {
        let mut errors = Vec::new();
        let mut parameters = Map::new();
        for parameter in &self.parameters {
            let name = &parameter.spec.name;
            match given.remove(name) {
                Some(value) => match parameter.check(value) {
                    Ok(value) => {
                        parameters.insert(name.clone(), value);
                    }
                    Err(mut found) => errors.append(&mut found),
                },
                None if parameter.spec.required => errors.push(ParameterError {
                    loc: vec![name.clone()],
                    kind: "missing",
                    message: format!("parameter '{name}' is required"),
                }),
                None => {
                    parameters.insert(name.clone(), parameter.spec.default.clone());
                }
            }
        }
        for name in given.keys().take(MAX_UNEXPECTED) {
            // A plain word can be said back; anything else may be an attack on whoever reads the answer.
            let (loc, what) = if is_name(name) {
                (vec![name.clone()], format!("parameter '{name}'"))
            } else {
                (vec![], "a parameter".to_owned())
            };
            let message = format!("{what} is unexpected; '{}' takes {}", self.spec.name, self.names());
            errors.push(ParameterError { loc, kind: "unexpected", message });
        }
        if errors.is_empty() {
            for (rule, message) in &self.rules {
                if !rule.holds(&parameters) {
                    errors.push(ParameterError { loc: vec![], kind: "rule", message: message.clone() });
                }
            }
        }
        if errors.is_empty() { Ok(parameters) } else { Err(errors) }
    }

    fn names(&self) -> String {
        if self.parameters.is_empty() {
            return "no parameters".to_owned();
        }
        self.parameters.iter().map(|p| format!("'{}'", p.spec.name)).collect::<Vec<_>>().join(", ")
    }

    /// The parameters with sensitive values replaced, for answers, logs and the audit trail.
    pub fn mask(&self, parameters: &Map<String, Value>) -> Map<String, Value> {
        let sensitive = |name: &str| self.parameters.iter().any(|p| p.spec.sensitive && p.spec.name == name);
        parameters
            .iter()
            .map(|(name, value)| {
                (name.clone(), if sensitive(name) { Value::from(HIDDEN) } else { value.clone() })
            })
            .collect()
    }

    /// The sensitive values, as texts in which they may be repeated. A text of one or two characters occurs everywhere; hiding
    /// it would hide everything.
    pub fn secrets(&self, parameters: &Map<String, Value>) -> Vec<String> {
        let mut texts = Vec::new();
        for parameter in self.parameters.iter().filter(|p| p.spec.sensitive) {
            leaves(parameters.get(&parameter.spec.name).unwrap_or(&Value::Null), &mut texts);
        }
        texts.retain(|text| text.chars().count() > 2);
        // A text that holds another is hidden first, or its rest would be left.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        texts
    }
}

/// What stands in the place of a sensitive value.
const HIDDEN: &str = "***";

fn leaves(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => texts.push(number.to_string()),
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| leaves(item, texts)),
        Value::Object(members) => members.values().for_each(|member| leaves(member, texts)),
    }
}

/// A text without the sensitive values that it repeats.
pub fn hide(text: &mut String, secrets: &[String]) {
    for secret in secrets {
        if text.contains(secret) {
            *text = text.replace(secret, HIDDEN);
        }
    }
}

impl WorkerError {
    /// Takes out the sensitive values: exceptions like to repeat what they were given.
    pub fn hide(&mut self, secrets: &[String]) {
        hide(&mut self.message, secrets);
        if let Some(traceback) = &mut self.traceback {
            hide(traceback, secrets);
        }
    }
}

impl Parameter {
    fn check(&self, value: Value) -> Result<Value, Vec<ParameterError>> {
        let name = &self.spec.name;
        let value = match (&value, &self.spec.unit) {
            (Value::String(text), Some(unit)) => match crate::unit::convert(text, unit) {
                // The worker gets what the signature says: a whole number stays one.
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "whole and within the exact range of a double"
                )]
                Ok(number) if self.spec.kind == "integer" && number.fract() == 0.0 && number.abs() < 9e15 => {
                    Value::from(number as i64)
                }
                Ok(number) => Value::from(number),
                Err(error) => {
                    let message = format!("parameter '{name}': {error}");
                    return Err(vec![ParameterError { loc: vec![name.clone()], kind: "unit", message }]);
                }
            },
            _ => value,
        };
        self.schema.validate(&value).map_err(|errors| {
            errors
                .into_iter()
                .map(|error| {
                    let mut loc = vec![name.clone()];
                    loc.extend(error.path);
                    // A limit of the number itself is told in its unit; "at least 2 items" is not.
                    let about_number = error.kind == "range" && loc.len() == 1 && value.is_number();
                    let unit = self.spec.unit.as_ref().filter(|_| about_number);
                    let unit = unit.map(|unit| format!(" {unit}")).unwrap_or_default();
                    ParameterError {
                        message: format!("parameter '{}': {}{unit}", loc.join("."), error.message),
                        loc,
                        kind: error.kind,
                    }
                })
                .collect::<Vec<_>>()
        })?;
        Ok(value)
    }
}

/// One execution that the device is asked for. The parameters are checked.
#[derive(Clone, Debug)]
pub struct Call {
    /// The run that this is.
    pub run: RunId,
    /// Name of the action.
    pub action: String,
    /// Checked parameters.
    pub parameters: Map<String, Value>,
    /// Execute with the device's simulator.
    pub simulated: bool,
    /// Deadline of the function itself.
    pub timeout: std::time::Duration,
    /// Longest wait for the device to become free; `None` waits as long as it takes.
    pub queue_limit: Option<std::time::Duration>,
}

/// An error that the worker reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerError {
    /// Class name of the exception.
    #[serde(default)]
    pub class: String,
    /// Its text.
    #[serde(default)]
    pub message: String,
    /// Whether the author allowed callers to see the text.
    #[serde(default)]
    pub public: bool,
    /// One of the protocol's codes.
    #[serde(default)]
    pub code: Option<String>,
    /// For the log only.
    #[serde(default)]
    pub traceback: Option<String>,
    /// File where the error is, for load errors.
    #[serde(default)]
    pub file: Option<String>,
    /// Line where the error is, for load errors.
    #[serde(default)]
    pub line: Option<u64>,
}

/// How a call ended. Every variant is a truth about the robot, not about the connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The function returned.
    Returned {
        /// What it returned.
        result: Value,
        /// Time in the function, in milliseconds.
        duration_ms: f64,
    },
    /// The function raised.
    Raised {
        /// What the worker said.
        error: WorkerError,
        /// Time in the function, in milliseconds.
        duration_ms: f64,
    },
    /// The worker process died during the call.
    Crashed {
        /// Exit code or signal, for people.
        reason: String,
    },
    /// Stopped on request, after it had started.
    Cancelled {
        /// The rung of the ladder that ended it.
        rung: Rung,
    },
    /// The deadline passed and the ladder ended it.
    TimedOut {
        /// The rung of the ladder that ended it.
        rung: Rung,
    },
    /// It never started, and never will under this run.
    NotStarted {
        /// Why.
        reason: NotStarted,
    },
    /// Started, and nobody can know how it ended.
    Uncertain {
        /// What is known.
        reason: String,
    },
}

/// Why a call did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotStarted {
    /// The device stayed busy longer than the caller would wait, or too many wait already.
    Busy,
    /// The emergency stop is engaged.
    EmergencyStop,
    /// The device could not be brought to its safe state and waits for a person.
    NeedsAttention,
    /// No worker could be started.
    Unavailable,
    /// Cancelled while it waited.
    Cancelled,
    /// The host stopped before the call was sent.
    HostStopped,
    /// The journal could not be written.
    JournalFailed,
}

/// A rung of the cancel ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The function stopped at a checkpoint.
    Checkpoint,
    /// An interrupt ended it.
    Interrupt,
    /// The process group was killed.
    Kill,
    /// A new worker took over.
    Restart,
    /// The safe-state hook.
    SafeState,
}

/// Something that happened during a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum EventKind {
    /// The run changed its state.
    State {
        /// The new state.
        state: RunState,
    },
    /// How far it is.
    Progress {
        /// Done so far.
        current: f64,
        /// Of how many, if known.
        total: Option<f64>,
        /// One line for people.
        message: Option<String>,
    },
    /// A line of log.
    Log {
        /// `debug info warning error`.
        level: String,
        /// The text; control characters are still in it.
        message: String,
    },
    /// A measured value.
    Metric {
        /// Name of the series.
        name: String,
        /// The value.
        value: f64,
        /// UCUM code.
        unit: Option<String>,
        /// Labels of the series.
        labels: BTreeMap<String, String>,
    },
    /// A file that the run produced.
    Artifact {
        /// File name without folders.
        name: String,
        /// Media type as the worker declared it. Not to be trusted.
        media_type: String,
        /// Size.
        bytes: u64,
    },
    /// A rung of the cancel ladder was tried.
    Rung {
        /// Which.
        rung: Rung,
        /// `asked done failed none`.
        outcome: String,
        /// How long it took, in milliseconds.
        duration_ms: f64,
    },
}

/// An event with its run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEvent {
    /// The run.
    pub run: RunId,
    /// What happened.
    pub kind: EventKind,
}

/// What the device's journal knows about a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Journaled {
    /// The journal proves that the call was never sent to a worker.
    NeverStarted,
    /// The call was, or may have been, sent; no end is recorded.
    Started,
    /// It ended like this.
    Finished(Outcome),
}

/// Answer to an emergency stop, per device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStop {
    /// The device.
    pub name: String,
    /// The worker is known to be dead and the safe-state hook has ended well, or there is none.
    pub confirmed: bool,
    /// Time from the call until the worker's process group was dead, in milliseconds.
    pub killed_ms: Option<f64>,
    /// `entered done failed none`.
    pub safe_state: String,
    /// Time from the call until the hook was entered, in milliseconds.
    pub safe_state_entered_ms: Option<f64>,
    /// Time from the call until the hook had ended, in milliseconds.
    pub safe_state_done_ms: Option<f64>,
    /// What went wrong, for people.
    pub error: Option<String>,
    /// The run that was executing.
    pub cancelled_run: Option<RunId>,
}

/// The latched emergency stop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StopLatch {
    /// Whether motion is refused.
    pub engaged: bool,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Who engaged it.
    pub by: Option<String>,
    /// Why, in their words.
    pub reason: Option<String>,
}

/// A device that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Since when.
    pub since: Timestamp,
    /// Why, for people.
    pub reason: String,
    /// Calls are refused until a person clears it.
    pub held: bool,
}

/// The process that executes calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Process id, if one lives.
    pub pid: Option<u32>,
    /// Language and version, as the worker says.
    pub language: Option<String>,
    /// When it became ready.
    pub started_at: Option<Timestamp>,
    /// How often a worker had to be replaced since the host started.
    pub restarts: u64,
    /// Whether a standby is ready to run the safe-state hook.
    pub standby: bool,
}

/// A device as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Short name.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// `starting ready busy stopped held unavailable`.
    pub state: String,
    /// The run that executes.
    pub running: Option<RunId>,
    /// Calls that wait.
    pub queued: usize,
    /// The latch.
    pub emergency_stop: StopLatch,
    /// Set when a person should look.
    pub attention: Option<Attention>,
    /// The worker.
    pub worker: WorkerStatus,
    /// Number of actions.
    pub actions: usize,
}
