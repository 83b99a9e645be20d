//! The device runtime as its users see it, with real processes.
//!
//! Every test has its own folder and its own worker. Waits are bounded and end as soon as their condition holds.

#![expect(clippy::unwrap_used, reason = "tests")]

mod calls;
mod chaos;
mod crash;
mod disk;
mod ending;
mod fake;
mod helper;
mod lab;
mod start;
mod stop;
