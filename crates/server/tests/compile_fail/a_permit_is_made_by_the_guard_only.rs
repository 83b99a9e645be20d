//! The constructor of authority is the guard's.

use std::sync::Arc;

use interlock_engine::auth::{Caller, Permit};
use interlock_model::action::{EmergencyStop, Installation};

pub fn make(caller: Arc<Caller>) -> Permit<EmergencyStop> {
    Permit::new(caller, Installation {})
}

fn main() {}
