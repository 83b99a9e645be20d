//! A transaction opens against a proof, and a proof cannot be made up.

use interlock_engine::StoreError;
use interlock_engine::auth::{Db, Proof, Recorded};
use serde_json::Value;

pub struct Invented;

impl Proof for Invented {
    fn draft(&self, _: interlock_model::Timestamp, _: Value) -> interlock_model::audit::AuditDraft {
        unimplemented!()
    }
}

pub async fn write(db: &Db) -> Result<(), StoreError> {
    db.write(&(), |_| Box::pin(async { Ok(Recorded { value: (), details: Value::Null }) })).await
}

fn main() {}
