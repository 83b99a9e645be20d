//! The device runtime: one worker process beside the robot, fed, watched, stopped and remembered.
//!
//! [`Host`] is the whole interface. Inside: `journal` remembers what was started and how it ended; `supervisor` owns the
//! worker; `process` knows pipes and signals; `wire` the protocol's lines; `control` the emergency stop's latch.
//!
//! Knows nothing of HTTP, users or databases. Two promises hold whatever crashes: a call that may have reached the worker is
//! never reported as not started, and an emergency stop kills before it waits for anything.

mod artifacts;
mod config;
mod control;
mod environment;
mod error;
mod escaped;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod journal;
mod lines;
mod process;
mod shared;
mod supervisor;
mod wire;

pub use config::{Durability, HostConfig, Ladder, Limits};
pub use error::{ReleaseError, StartError};
pub use host::{Host, Starting};
pub use journal::JournalError;

/// Makes the folder of a device whose host does not run, and has the device refuse calls until a person has looked: what it did
/// last is not known here. A stop that is engaged stays so.
///
/// # Errors
/// When the folder cannot be written.
pub fn hold(folder: &std::path::Path, reason: &str, now: interlock_model::Timestamp) -> std::io::Result<()> {
    self::folder::create_private(folder)?;
    let control = control::Control::load(folder, now)?;
    control.mark(reason, true, now);
    control.save()
}
