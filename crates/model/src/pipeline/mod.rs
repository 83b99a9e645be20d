//! Pipelines: the ordered steps of a task, compiled once.
//!
//! [`Pipeline::compile`] reads `payload` when a task is made or changed and tells everything that is wrong with its place.
//! What a step is given is rendered from a [`Context`] when its turn comes. Which tools there are and who may use them is the
//! [`Catalogue`]'s to say; carrying steps out is `engine::pipeline`. For users: docs/reference/pipelines.md.

mod output;
mod record;
mod template;

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::Timestamp;
use crate::jmespath::{Expression, Fuel};
use crate::task::Backoff;
use template::{Budget, Compiler, Scope, Template, size, told};

pub use crate::wire::Loc;
pub use output::RunOutput;
pub use record::{StepRecord, StepState};

/// Most steps of a pipeline.
pub const MOST_STEPS: usize = 200;
/// Largest `payload`, bytes as JSON.
pub const LARGEST_PAYLOAD: usize = 1 << 20;
/// Largest rendered `with` of a step, bytes as JSON.
pub const LARGEST_INPUT: usize = 1 << 20;
/// Largest result of a step, bytes as JSON.
pub const LARGEST_RESULT: usize = 1 << 20;
/// Largest results of all steps of a run together, bytes as JSON.
pub const LARGEST_OUTPUT: usize = 8 << 20;
/// Time limit of a step that states none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time limit of a step.
pub const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);
/// Most retries of a step.
pub const MOST_RETRIES: u32 = 10;
/// What the templates and the condition of one step may cost together, some 20 ms.
const STEP_FUEL: u64 = 500_000;
/// What a condition on an event may cost: it is asked for each event and each task that waits.
const CONDITION_FUEL: u64 = 20_000;
const LONGEST_NAME: usize = 100;
/// What a step may say.
const MEMBERS: [&str; 8] =
    ["uses", "id", "with", "save_as", "if", "timeout_seconds", "max_retries", "backoff_strategy"];
const LONGEST_TOOL: usize = 200;

/// What a tool does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing.
    None,
    /// Something that may be done again without harm.
    Idempotent,
    /// Something that must not be done twice.
    Once,
}

/// A mistake in a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PipelineError {
    /// Where, from `payload` on: `pipeline`, 3, `with`, `url`.
    pub loc: Vec<Loc>,
    /// A sentence that says what is right. Never repeats values of `with`.
    pub message: String,
}

/// What of a step's `with` is known before the run.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Members without templates.
    pub fixed: &'a Map<String, Value>,
    /// Names of the members that are templates.
    pub open: &'a [String],
}

impl Known<'_> {
    /// Whether a member will be there.
    pub fn has(&self, name: &str) -> bool {
        self.fixed.contains_key(name) || self.open.iter().any(|open| open == name)
    }

    /// The names of all members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fixed.keys().chain(self.open).map(String::as_str)
    }
}

/// The members of steps that mean nothing: where the steps lie that have some, below `payload`. They are ignored, unless whoever
/// sent them wants to know.
pub fn unknown_members(payload: &Value) -> Vec<Vec<Loc>> {
    let steps = payload["pipeline"].as_array().map_or(&[][..], Vec::as_slice);
    (0..)
        .zip(steps)
        .filter(|(_, step)| {
            step.as_object().is_some_and(|step| step.keys().any(|name| !MEMBERS.contains(&name.as_str())))
        })
        .map(|(at, _)| vec!["pipeline".into(), Loc::Index(at)])
        .collect()
}

/// Why a step cannot use a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// There is none of this name, or the principal may not use it.
    Unknown,
    /// `with` is wrong: the member, if it is one, and a sentence.
    Input(Option<String>, String),
}

/// The tools that a principal may use.
pub trait Catalogue {
    /// What the worst is that a step with this input does.
    ///
    /// # Errors
    /// [`Misuse`].
    fn check(&self, uses: &str, known: Known<'_>) -> Result<Effect, Misuse>;
}

/// A compiled pipeline.
#[derive(Clone, Debug)]
pub struct Pipeline {
    params: Value,
    steps: Vec<Step>,
    digest: [u8; 32],
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its place, from 0.
    pub index: u32,
    /// Its own name.
    pub id: Option<String>,
    /// Address of its tool.
    pub uses: String,
    /// Under which name later steps find its result.
    pub save_as: Option<String>,
    /// Its time limit.
    pub timeout: Duration,
    /// How often it is tried again within the run.
    pub retries: u32,
    /// How long it waits before that.
    pub backoff: Backoff,
    condition: Option<Expression>,
    input: Template,
}

/// A template or condition of a step failed. May be shown to whoever may see the task; never repeats values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepError(pub String);

impl Pipeline {
    /// Compiles the `payload` of a task for whoever may use the tools of `catalogue`. Bounded: some milliseconds at most.
    ///
    /// # Errors
    /// Everything that is wrong, at most 20 mistakes.
    pub fn compile(
        payload: &Map<String, Value>,
        catalogue: &dyn Catalogue,
    ) -> Result<Self, Vec<PipelineError>> {
        let mut compiler = Compiler { errors: Vec::new(), expressions: 0 };
        let pipeline = compiler.pipeline(payload, catalogue);
        if compiler.errors.is_empty() { Ok(pipeline) } else { Err(compiler.errors) }
    }

    /// SHA-256 of the payload: what an approval is bound to.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Its steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl Compiler {
    fn pipeline(&mut self, payload: &Map<String, Value>, catalogue: &dyn Catalogue) -> Pipeline {
        let mut pipeline = Pipeline { params: json!({}), steps: Vec::new(), digest: [0; 32] };
        let bytes: usize = payload.iter().map(|(name, value)| name.len() + 4 + size(value)).sum();
        if bytes > LARGEST_PAYLOAD {
            self.wrong(&[], format!("the payload has about {bytes} bytes: it may have {LARGEST_PAYLOAD}"));
            return pipeline;
        }
        let text = serde_json::to_vec(payload).unwrap_or_default();
        pipeline.digest = Sha256::digest(&text).into();
        match payload.get("params") {
            None | Some(Value::Null) => {}
            Some(params @ Value::Object(_)) => pipeline.params = params.clone(),
            Some(_) => self.wrong(&["params".into()], "params is an object"),
        }
        let at = Loc::from("pipeline");
        let Some(Value::Array(steps)) = payload.get("pipeline") else {
            self.wrong(&[at], "a payload holds pipeline, a list of steps such as {\"uses\": \"http.request\", \"with\": {…}}");
            return pipeline;
        };
        if steps.is_empty() || steps.len() > MOST_STEPS {
            self.wrong(
                &[at],
                format!("a pipeline has 1 to {MOST_STEPS} steps, this one has {}", steps.len()),
            );
            return pipeline;
        }
        let mut ids = HashSet::new();
        for (index, step) in (0..).zip(steps) {
            let mut loc = vec![at.clone(), Loc::Index(index)];
            let Value::Object(step) = step else {
                self.wrong(&loc, "a step is an object with uses");
                continue;
            };
            if let Some(step) = self.step(index, step, &mut loc, catalogue) {
                if let Some(id) = &step.id
                    && !ids.insert(id.clone())
                {
                    loc.push("id".into());
                    self.wrong(&loc, "another step has this id: each id is used once");
                }
                pipeline.steps.push(step);
            }
        }
        pipeline
    }

    fn step(
        &mut self,
        index: usize,
        step: &Map<String, Value>,
        loc: &mut Vec<Loc>,
        catalogue: &dyn Catalogue,
    ) -> Option<Step> {
        let uses = self.name(step, "uses", LONGEST_TOOL, loc);
        let id = self.name(step, "id", LONGEST_NAME, loc);
        let save_as = self.name(step, "save_as", LONGEST_NAME, loc);
        let condition = match step.get("if") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => self.at(loc, "if", |compiler, loc| compiler.expression(text, loc)),
            Some(_) => self.at(loc, "if", |compiler, loc| {
                compiler.wrong(loc, "if is an expression, as a string");
                None
            }),
        };
        let empty = Value::Object(Map::new());
        let with = match step.get("with") {
            None | Some(Value::Null) => &empty,
            Some(with @ Value::Object(_)) => with,
            Some(_) => {
                self.at(loc, "with", |compiler, loc| compiler.wrong(loc, "with is an object"));
                &empty
            }
        };
        let broken = self.errors.len();
        let input = self.at(loc, "with", |compiler, loc| match with {
            // The whole is never `{"$expr": …}`: what a tool is given has names.
            Value::Object(members) if members.contains_key("$expr") => {
                compiler.wrong(loc, "$expr stands for the value of a member of with, not for with itself");
                Template::Fixed(Value::Null)
            }
            with => compiler.template(with, loc),
        });
        let whole = self.errors.len() == broken;
        let timeout = self.seconds(step, "timeout_seconds", loc);
        let retries = self.retries(step, loc);
        let backoff = match step.get("backoff_strategy") {
            None | Some(Value::Null) => Backoff::ExponentialJitter,
            Some(word) => word.as_str().and_then(Backoff::parse).unwrap_or_else(|| {
                self.at(loc, "backoff_strategy", |compiler, loc| {
                    compiler.wrong(loc, "backoff_strategy is exponential_jitter, linear or fixed");
                });
                Backoff::Fixed
            }),
        };
        let Some(uses) = uses else {
            if matches!(step.get("uses"), None | Some(Value::Null)) {
                self.at(loc, "uses", |compiler, loc| {
                    compiler.wrong(loc, "a step names the tool that it uses, such as \"http.request\"");
                });
            }
            return None;
        };
        if whole {
            let (fixed, open) = input.known();
            self.tool(&uses, Known { fixed: &fixed, open: &open }, retries, loc, catalogue);
        }
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Some(Step { index, id, uses, save_as, timeout, retries, backoff, condition, input })
    }

    fn tool(
        &mut self,
        uses: &str,
        known: Known<'_>,
        retries: u32,
        loc: &mut Vec<Loc>,
        catalogue: &dyn Catalogue,
    ) {
        let (place, message) = match catalogue.check(uses, known) {
            Ok(Effect::Once) if retries > 0 => (
                "max_retries",
                "what this step does must not be done twice, so it is never tried again: leave max_retries out".to_owned(),
            ),
            Ok(_) => return,
            Err(Misuse::Unknown) => {
                ("uses", "there is no such tool that you may use: GET /tools lists those there are".to_owned())
            }
            Err(Misuse::Input(None, message)) => ("with", message),
            Err(Misuse::Input(Some(name), message)) => {
                loc.push("with".into());
                self.at(loc, &name, |compiler, loc| compiler.wrong(loc, message));
                loc.pop();
                return;
            }
        };
        self.at(loc, place, |compiler, loc| compiler.wrong(loc, message));
    }

    fn at<T>(
        &mut self,
        loc: &mut Vec<Loc>,
        name: &str,
        then: impl FnOnce(&mut Self, &mut Vec<Loc>) -> T,
    ) -> T {
        loc.push(name.into());
        let result = then(self, loc);
        loc.pop();
        result
    }

    fn name(
        &mut self,
        step: &Map<String, Value>,
        name: &str,
        longest: usize,
        loc: &mut Vec<Loc>,
    ) -> Option<String> {
        match step.get(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text))
                if (1..=longest).contains(&text.chars().count()) && !text.chars().any(char::is_control) =>
            {
                Some(text.clone())
            }
            Some(_) => self.at(loc, name, |compiler, loc| {
                compiler.wrong(
                    loc,
                    format!("{name} is a string of 1 to {longest} characters without control characters"),
                );
                None
            }),
        }
    }

    fn seconds(&mut self, step: &Map<String, Value>, name: &str, loc: &mut Vec<Loc>) -> Duration {
        match step.get(name) {
            None | Some(Value::Null) => DEFAULT_TIMEOUT,
            Some(value) => value
                .as_f64()
                .filter(|seconds| (0.001..=LONGEST_TIMEOUT.as_secs_f64()).contains(seconds))
                .map_or_else(
                    || {
                        let most = LONGEST_TIMEOUT.as_secs();
                        self.at(loc, name, |compiler, loc| {
                            compiler.wrong(loc, format!("{name} is a number above 0, at most {most}"));
                        });
                        DEFAULT_TIMEOUT
                    },
                    Duration::from_secs_f64,
                ),
        }
    }

    fn retries(&mut self, step: &Map<String, Value>, loc: &mut Vec<Loc>) -> u32 {
        let retries = match step.get("max_retries") {
            None | Some(Value::Null) => return 0,
            Some(value) => value.as_u64().and_then(|retries| u32::try_from(retries).ok()),
        };
        retries.filter(|retries| *retries <= MOST_RETRIES).unwrap_or_else(|| {
            self.at(loc, "max_retries", |compiler, loc| {
                compiler.wrong(loc, format!("max_retries is a whole number from 0 to {MOST_RETRIES}"));
            });
            0
        })
    }
}

/// What the expressions of a run see: `now`, `params`, `steps`, and `event` if one made the run.
#[derive(Clone, Debug)]
pub struct Context {
    now: Timestamp,
    data: Value,
    saved_bytes: usize,
}

impl Context {
    /// Of a run that begins now.
    pub fn new(pipeline: &Pipeline, now: Timestamp, event: Option<Value>) -> Self {
        let mut data = json!({ "now": now.to_string(), "params": pipeline.params, "steps": {} });
        if let (Some(event), Value::Object(data)) = (event, &mut data) {
            data.insert("event".to_owned(), event);
        }
        Self { now, data, saved_bytes: 0 }
    }

    /// Keeps the result of a step for those after it.
    ///
    /// # Errors
    /// The results of this run together are larger than [`LARGEST_OUTPUT`].
    pub fn save(&mut self, name: &str, result: Value) -> Result<(), StepError> {
        self.saved_bytes += size(&result);
        if self.saved_bytes > LARGEST_OUTPUT {
            return Err(StepError(format!(
                "the results of the steps have more than {LARGEST_OUTPUT} bytes together"
            )));
        }
        self.data["steps"][name] = result;
        Ok(())
    }

    /// `params` and `steps`, for the output of the run, which is over.
    pub fn into_parts(mut self) -> (Value, Value) {
        (self.data["params"].take(), self.data["steps"].take())
    }

    fn scope(&self) -> Scope<'_> {
        Scope { data: &self.data, now: self.now }
    }
}

impl Step {
    /// Whether its condition holds. A step without one always runs.
    ///
    /// # Errors
    /// The condition failed.
    pub fn applies(&self, context: &Context) -> Result<bool, StepError> {
        let Some(condition) = &self.condition else { return Ok(true) };
        let holds = condition.holds(&context.data, &mut Fuel::of(STEP_FUEL));
        holds.map_err(|error| StepError(format!("if: {}", told(condition, &error))))
    }

    /// What its tool is given.
    ///
    /// # Errors
    /// A template failed, or what it makes is too large.
    pub fn input(&self, context: &Context) -> Result<Map<String, Value>, StepError> {
        let mut budget = Budget { fuel: Fuel::of(STEP_FUEL), bytes: LARGEST_INPUT };
        match self.input.render(context.scope(), &mut budget) {
            Ok(Value::Object(input)) => Ok(input),
            Ok(_) => Ok(Map::new()),
            Err(error) => Err(StepError(error.0)),
        }
    }
}

/// Whether a result of a step may be kept.
///
/// # Errors
/// A sentence, if it is larger than [`LARGEST_RESULT`].
pub fn check_result(result: &Value) -> Result<(), StepError> {
    let bytes = size(result);
    if bytes > LARGEST_RESULT {
        return Err(StepError(format!(
            "the result has about {bytes} bytes: a step may give {LARGEST_RESULT}"
        )));
    }
    Ok(())
}

/// A condition on events, of tasks with `schedule_kind` `condition`.
#[derive(Clone, Debug)]
pub struct Condition(Expression);

impl Condition {
    /// Compiles it.
    ///
    /// # Errors
    /// A sentence on what is wrong and where.
    pub fn compile(text: &str) -> Result<Self, String> {
        Expression::compile(text).map(Self).map_err(|error| error.to_string())
    }

    /// Whether it holds for an event, an object with `topic`, `payload` and `event_id`, which it sees as `event`. What fails or
    /// costs too much (some 0.5 ms) does not hold.
    pub fn holds(&self, event: &Value) -> bool {
        self.0.holds(&json!({ "event": event }), &mut Fuel::of(CONDITION_FUEL)).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests;
