//! The device server from outside: every row of the contract, in process, on a temporary database.

mod audit;
mod bodies;
mod execute;
mod factors;
mod fake;
mod flaky;
mod framing;
mod http2;
mod idempotency;
mod lab;
mod limits;
mod listener;
mod matrix;
mod people;
mod perimeter;
mod runs;
mod service;
mod sign_in;
mod stop;
mod storage;
mod users;
mod vectors;
mod wire;
