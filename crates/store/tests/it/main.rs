//! The rules of the port on both backends, and what only one of them must do.

#[cfg(feature = "sqlite")]
mod crash;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
