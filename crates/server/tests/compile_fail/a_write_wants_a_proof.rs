//! A transaction opens against a proof.

use interlock_engine::StoreError;
use interlock_engine::auth::{Db, Recorded};
use serde_json::Value;

pub async fn write(db: &Db) -> Result<(), StoreError> {
    db.write(&(), |_| Box::pin(async { Ok(Recorded { value: (), details: Value::Null }) })).await
}

fn main() {}
