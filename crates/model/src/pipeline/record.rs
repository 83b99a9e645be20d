//! What is kept of a step, so that a run goes on where it stopped.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Effect;
use crate::Timestamp;

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Its tool was called, or is about to be. Kept before it is.
    Started,
    /// It waits for a time or for a person, without a worker. Its tool has not been called.
    Waiting,
    /// It ended well. It is never carried out again.
    Finished,
    /// Its condition did not hold. It is not asked again.
    Skipped,
    /// It ended badly, and that is certain.
    Failed,
}

/// What is known of one step of a run and of all the attempts of it. One for each step; a later one replaces an earlier.
///
/// Stored as JSON. New members have defaults, so that a server reads what an older one wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its place, from 0.
    pub step: u32,
    /// Where it is.
    pub state: StepState,
    /// Address of its tool.
    pub uses: String,
    /// What it does to the world, with the input that it was begun with.
    pub effect: Effect,
    /// How often it has been begun.
    pub attempt: u32,
    /// When it was begun first.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// Until when it waits.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// What it gave.
    #[serde(default)]
    pub output: Option<Value>,
    /// Why it failed. May be shown to whoever may see the run.
    #[serde(default)]
    pub error: Option<String>,
}
