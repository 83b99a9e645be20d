//! Commands that work on this machine: serving, settings, checks.

pub(crate) mod config;
pub(crate) mod dev;
pub(crate) mod directory;
pub(crate) mod doctor;
mod hardening;
pub(crate) mod net;
pub(crate) mod orchestrate;
pub(crate) mod probe;
pub(crate) mod serve;
