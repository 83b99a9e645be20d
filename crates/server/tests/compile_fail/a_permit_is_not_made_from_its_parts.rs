//! No code outside the engine can put authority together.

use std::sync::Arc;

use interlock_engine::auth::{Caller, Permit};
use interlock_model::action::{EmergencyStop, Installation};

pub fn make(caller: Arc<Caller>) -> Permit<EmergencyStop> {
    Permit { caller, target: Installation {}, recorded: Default::default() }
}

fn main() {}
