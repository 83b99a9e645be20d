//! The HTTPS surface of Interlock. Cannot name storage; reaches the engine's services only.
//!
//! Start with [`perimeter`], which reads as the order in which a request is treated, then [`routes`], then `api`.

mod api;
mod body;
pub mod config;
mod connection;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
pub mod listener;
pub mod openapi;
pub mod perimeter;
mod query;
pub mod routes;
pub mod state;
pub mod tls;

pub use api::{challenge_router, internal_router, router, routes};
pub use state::{AppState, DeviceServices, Services};
