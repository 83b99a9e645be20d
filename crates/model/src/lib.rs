//! The pure half of Interlock: values, state machines and decisions.
//!
//! Nothing here does I/O, reads a clock, draws randomness or awaits. Everything that must give the same answer on the server,
//! beside the robot and in a test lives here. Start with [`action`] for authority, [`run`] for the life of a run, and
//! [`device`] for what a device offers.

pub mod action;
pub mod audit;
pub mod device;
pub mod grant;
pub mod id;
pub mod jmespath;
pub mod pipeline;
pub mod policy;
pub mod principal;
pub mod rate;
pub mod rule;
pub mod run;
pub mod schedule;
pub mod schema;
pub mod scope;
pub mod screen;
pub mod secret;
pub mod strict_json;
pub mod task;
pub mod text;
pub mod time;
pub mod trace;
pub mod unit;
pub mod wire;

pub use id::RunId;
pub use principal::AgentId;
pub use time::{Clock, Entropy, Timestamp};
