//! Authority is decided again later: it is neither copied nor stored.

use interlock_engine::auth::Permit;
use interlock_model::action::EmergencyStop;

fn wants_clone<T: Clone>() {}
fn wants_serialize<T: serde::Serialize>() {}
fn wants_default<T: Default>() {}

fn main() {
    wants_clone::<Permit<EmergencyStop>>();
    wants_serialize::<Permit<EmergencyStop>>();
    wants_default::<Permit<EmergencyStop>>();
}
