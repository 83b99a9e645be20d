//! The use cases together with a real database: what must hold when many act at once and when processes die.

mod bench;
mod elsewhere;
mod executions;
mod notary;
mod principals;
mod reconcile;
mod recorder;
mod signing_in;
