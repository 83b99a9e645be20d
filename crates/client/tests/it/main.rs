//! The client against a small server of scripted answers, over real sockets.

mod follow;
mod mock;
mod requests;
