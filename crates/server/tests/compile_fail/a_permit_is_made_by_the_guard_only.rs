//! No code outside the engine can make up authority: not from its parts, not by calling its constructor.

use std::sync::Arc;

use interlock_engine::auth::{Caller, Permit};
use interlock_model::action::{EmergencyStop, Installation};

pub fn by_its_parts(caller: Arc<Caller>) -> Permit<EmergencyStop> {
    Permit { caller, target: Installation {}, recorded: Default::default() }
}

pub fn by_its_constructor(caller: Arc<Caller>) -> Permit<EmergencyStop> {
    Permit::new(caller, Installation {})
}

fn main() {}
