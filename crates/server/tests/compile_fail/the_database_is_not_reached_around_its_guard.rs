//! Reading needs a permit as well: what lies behind `Db` is the engine's.

use interlock_engine::auth::Db;

pub async fn peek(db: &Db) -> usize {
    db.read().users().await.map_or(0, |users| users.len())
}

fn main() {}
