//! What several servers of one installation share through Redis: the counters of rate limits, and the news that something
//! changed in the database. And a stream into which events are copied for others.
//!
//! Redis is never needed. Every question has a deadline, a Redis that is away is not asked again until it answers a heartbeat,
//! and whoever asks decides what holds meanwhile. Nothing that is kept here is a secret or the only copy of anything.

mod config;
mod counters;
mod link;
mod news;
mod stream;

pub use config::{OwnCertificate, RedisConfig};
pub use link::{Link, SharedError};
pub use stream::{Entry, Stream, StreamError};
