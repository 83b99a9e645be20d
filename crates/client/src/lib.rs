//! Talks to an Interlock server: typed requests, strict TLS, and the events of a run as they happen.
//!
//! Answers for what is sent where: a token goes to the one address that the client was built for, never over plain HTTP to
//! another machine, never after a redirect. Decides nothing about people: no prompts, no files, no environment. Start with
//! [`Client::builder`]; [`Client::submit`] starts a run and [`Client::follow`] watches it.

mod account;
mod answer;
mod api;
mod builder;
mod device_code;
mod error;
mod execute;
mod follow;
mod identity;
mod renewal;
mod sse;
mod stream;
pub mod trust;

pub use account::{
    Accepted, Enrolment, Factor, Factors, FinishedReset, Invitation, Invited, Proof, RecoveryCodes,
    StartedReset,
};
pub use api::{AuditQuery, Body, Checked, Client, NewUser, Raw, RunsQuery, UserEdit};
pub use builder::{Builder, server_address};
pub use device_code::{DeviceCode, DeviceGrant, DeviceToken, Polled};
pub use error::{ClientError, Refusal};
pub use execute::{Submission, Submitted};
pub use follow::{Follow, News};
pub use identity::{
    AgentEdit, AgentSecretAnswer, ApiKeyAnswer, Explanation, NewAgent, NewAgentSecret, NewApiKey, Question,
    Revoke, WebhookSecretAnswer,
};
pub use renewal::{TokenPair, TokenStore};
pub use stream::{Stream, StreamEvent, Told};
