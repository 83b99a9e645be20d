//! What a step of a pipeline may use.
//!
//! [`Tool`] is a port: `interlock-tools` reaches the world, `cli` wires it. Here are those that concern the run itself
//! ([`builtin`]), who may use what ([`Allowed`]), and the labelled mode in which nothing is done ([`Simulated`]). Carrying a
//! step out, with its time limit and its record, is [`crate::pipeline`]'s.

mod builtin;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use interlock_model::pipeline::{Catalogue, Effect, Known, Misuse};
use interlock_model::scope::Scope;
use interlock_model::task::{TaskId, TaskRunId};
use interlock_model::{Clock, Timestamp};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::pipeline::{Question, RunHost};

/// One call of a tool.
pub struct Call<'a> {
    /// What the step gives it, rendered.
    pub input: Map<String, Value>,
    /// Address under which the step uses it.
    pub address: &'a str,
    /// The same for every attempt of this step in this run, and for no other: what receivers tell repetitions by.
    pub key: String,
    /// Whose task it is.
    pub owner: &'a str,
    /// The task.
    pub task: TaskId,
    /// The attempt of the run.
    pub run: TaskRunId,
    /// The first attempt of the run.
    pub lineage: TaskRunId,
    /// SHA-256 of the payload of the task.
    pub pipeline: [u8; 32],
    /// Place of the step, from 0.
    pub step: u32,
    /// Until when the step waited, if it did.
    pub until: Option<Timestamp>,
    /// How long it may take. After that and [`Tool::grace`] the call is dropped.
    pub timeout: Duration,
    /// Fires when the run is to end. After [`Tool::grace`] the call is dropped.
    pub cancel: CancellationToken,
    /// What keeps the run.
    pub host: &'a dyn RunHost,
    /// What a person sees of the steps that follow.
    pub following: &'a (dyn Fn() -> Value + Send + Sync),
    /// Time of day.
    pub clock: &'a dyn Clock,
}

impl Call<'_> {
    /// Where the step stands in a trace, for whoever is called; while traces are exported.
    pub fn traceparent(&self) -> Option<String> {
        crate::spans::is_on().then(|| crate::spans::step(self.run, self.step).to_string())
    }
}

/// How a call ended that did not fail.
#[derive(Debug)]
pub enum Done {
    /// With a result.
    Value(Value),
    /// Not yet: it is called again at this time. Nothing was done.
    Wait(Timestamp),
    /// Not yet: it is called again when a person has decided. Nothing was done.
    Ask(Question),
}

/// How a call failed. The texts are shown to whoever may see the run: no secrets, no addresses of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing was done, and asking again will not help.
    #[error("{0}")]
    Refused(String),
    /// Nothing was done; it may work later.
    #[error("{0}")]
    Unreached(String),
    /// It was tried and failed, for certain.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// Whether it may work later.
        again: bool,
    },
    /// Its own time limit ended it, for certain.
    #[error("{0}")]
    TimedOut(String),
    /// It was ended because the run was, for certain.
    #[error("it was cancelled")]
    Cancelled,
    /// It may have been done.
    #[error("{0}")]
    Unknown(String),
    /// The run belongs to another worker now.
    #[error("the lease of the run is lost")]
    Lost,
}

/// Something that a step can use.
#[async_trait]
pub trait Tool: Send + Sync {
    /// What it is for, one sentence for people.
    fn description(&self) -> String;

    /// Checks what is known of its input, and says what it does to the world with it, at worst.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse>;

    /// Scopes that its user must hold.
    fn needs(&self, address: &str) -> Vec<String> {
        vec![format!("tool:{address}")]
    }

    /// How much longer than its time limit, or than a cancellation, it may take to end by itself.
    fn grace(&self) -> Duration {
        Duration::ZERO
    }

    /// How long whoever is called knows a call by its key. Within that time, what was begun and whose end is unknown is called
    /// again with the same key, and answered with what became of it instead of being done twice.
    fn remembers(&self) -> Duration {
        Duration::ZERO
    }

    /// Does it.
    ///
    /// # Errors
    /// [`Failure`], which says above all whether something was done.
    async fn call(&self, call: Call<'_>) -> Result<Done, Failure>;
}

/// Where tools are found.
pub trait Toolbox: Send + Sync {
    /// The tool at an address.
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>>;
    /// All of them, by address.
    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>>;
}

/// The tools of a toolbox that may be used with these scopes.
pub struct Allowed<'a> {
    toolbox: &'a dyn Toolbox,
    scopes: &'a [Scope],
}

impl std::fmt::Debug for Allowed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Allowed")
    }
}

impl<'a> Allowed<'a> {
    /// Of these.
    pub fn new(toolbox: &'a dyn Toolbox, scopes: &'a [Scope]) -> Self {
        Self { toolbox, scopes }
    }

    fn may(&self, address: &str, tool: &dyn Tool) -> bool {
        tool.needs(address).iter().all(|needed| self.scopes.iter().any(|scope| scope.covers(needed)))
    }

    /// The tool, if there is one and it may be used.
    pub fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        self.toolbox.tool(address).filter(|tool| self.may(address, tool.as_ref()))
    }

    /// The answer of GET `/tools`: what may be used, with its description.
    pub fn listing(&self) -> Value {
        let all = self.toolbox.all();
        let allowed = all.into_iter().filter(|(address, tool)| self.may(address, tool.as_ref()));
        Value::Object(
            allowed.map(|(address, tool)| (address, json!({ "description": tool.description() }))).collect(),
        )
    }
}

impl Catalogue for Allowed<'_> {
    fn check(&self, uses: &str, known: Known<'_>) -> Result<Effect, Misuse> {
        self.tool(uses).ok_or(Misuse::Unknown)?.check(known)
    }
}

/// A toolbox made of others; the first that knows an address answers. The tools that concern the run itself are always there.
pub struct Tools {
    builtin: BTreeMap<String, Arc<dyn Tool>>,
    others: Vec<Arc<dyn Toolbox>>,
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tools")
    }
}

impl Tools {
    /// The built-in tools and these.
    pub fn new(others: Vec<Arc<dyn Toolbox>>) -> Self {
        Self { builtin: builtin::all(), others }
    }
}

impl Toolbox for Tools {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        let builtin = self.builtin.get(address).cloned();
        builtin.or_else(|| self.others.iter().find_map(|toolbox| toolbox.tool(address)))
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        let mut all = BTreeMap::new();
        for toolbox in self.others.iter().rev() {
            all.extend(toolbox.all());
        }
        all.extend(self.builtin.clone());
        all
    }
}

/// The tools of another toolbox, which check what they are given and then do nothing: `TOOL_MODE=simulate`. Every result says
/// so.
pub struct Simulated<T>(pub T);

impl<T> std::fmt::Debug for Simulated<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simulated")
    }
}

struct SimulatedTool(Arc<dyn Tool>);

impl<T: Toolbox> Toolbox for Simulated<T> {
    fn tool(&self, address: &str) -> Option<Arc<dyn Tool>> {
        self.0.tool(address).map(|tool| Arc::new(SimulatedTool(tool)) as Arc<dyn Tool>)
    }

    fn all(&self) -> BTreeMap<String, Arc<dyn Tool>> {
        let all = self.0.all().into_iter();
        all.map(|(address, tool)| (address, Arc::new(SimulatedTool(tool)) as Arc<dyn Tool>)).collect()
    }
}

#[async_trait]
impl Tool for SimulatedTool {
    fn description(&self) -> String {
        format!("{} (simulated: nothing is done)", self.0.description())
    }

    fn check(&self, known: Known<'_>) -> Result<Effect, Misuse> {
        self.0.check(known).map(|_| Effect::None)
    }

    fn needs(&self, address: &str) -> Vec<String> {
        self.0.needs(address)
    }

    async fn call(&self, call: Call<'_>) -> Result<Done, Failure> {
        Ok(Done::Value(json!({
            "status": "simulated",
            "tool_address": call.address,
            "input_args": call.input,
            "timestamp": call.clock.now().to_string(),
            "message": format!("{} was not called: TOOL_MODE is simulate", call.address),
        })))
    }
}

/// Names in an input that a tool does not know, as a mistake.
///
/// # Errors
/// The first one.
pub fn only(known: &Known<'_>, names: &[&str]) -> Result<(), Misuse> {
    match known.names().find(|name| !names.contains(name)) {
        None => Ok(()),
        Some(name) => {
            Err(Misuse::Input(Some(name.to_owned()), format!("this tool knows {}", names.join(", "))))
        }
    }
}

/// A mistake in one member of an input.
pub fn misuse<T>(name: &str, message: impl Into<String>) -> Result<T, Misuse> {
    Err(Misuse::Input(Some(name.to_owned()), message.into()))
}
