//! What opens a transaction cannot be made up outside the engine.

use interlock_engine::auth::Proof;
use serde_json::Value;

pub struct Invented;

impl Proof for Invented {
    fn draft(&self, _: interlock_model::Timestamp, _: Value) -> interlock_model::audit::AuditDraft {
        loop {}
    }
}

fn main() {}
