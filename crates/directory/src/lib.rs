//! Sign-in of people against directories: LDAP and Active Directory, OpenID Connect; and workload identity tokens.
//!
//! Connectors only: they say who somebody is and which roles the groups give. What that person may do, sessions, counting
//! of guesses and the audit trail belong to the engine; the local administrator never comes through here. This crate fences
//! in the LDAP library and the HTTP to providers (docs/adr/0015). Start with [`Ldap::authenticate`], [`Oidc::begin`] and
//! [`Workloads::validate`].
//!
//! Invariants: every call ends within its time limit and holds a bounded amount of what the other side sends. Nothing that
//! the other side says in free text is repeated, neither to the caller nor in a log. No address out of a token is asked.

mod error;
mod federation;
#[doc(hidden)]
pub mod fuzzing;
pub mod ldap;
pub mod oidc;
mod roles;
mod step;
mod tls;

pub use error::{DirectoryError, Refusal};
pub use federation::{SubjectRule, WorkloadIdentity, WorkloadTrust, Workloads};
pub use ldap::{Ldap, LdapConfig};
pub use oidc::{
    Algorithm, Begun, ClientAuth, Logout, Oidc, OidcConfig, PendingFlow, ProviderSession, SignedIn,
    TokenFault,
};
pub use roles::RoleMap;
pub use step::{Outcome, Step};

/// Who somebody is, as a directory says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Identity {
    /// Never given to anyone else: `entryuuid:…`, `objectguid:…`, `dn:…` or `oidc:<issuer>#<sub>`. Accounts are joined by this
    /// and not by name, because names change hands.
    pub subject: String,
    /// The sign-in name as the directory writes it: 1 to 256 bytes without control characters.
    pub name: String,
    /// For people to read.
    pub display_name: Option<String>,
    /// A mail address that the directory vouches for.
    pub mail: Option<String>,
    /// Distinguished names (LDAP) or names (OpenID Connect), sorted, at most 1000.
    pub groups: Vec<String>,
    /// What the role map makes of the groups, sorted. Empty is an answer: this person has no role here.
    pub roles: Vec<String>,
}
