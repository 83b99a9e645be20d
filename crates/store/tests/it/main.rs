//! The rules of the port on both backends, and what only one of them must do.

#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod copy;
#[cfg(feature = "sqlite")]
mod crash;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
