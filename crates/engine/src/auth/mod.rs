//! Who is calling, what they may do, and the proof of it.
//!
//! The way of a request: a token becomes a [`Caller`] ([`Guard::authenticate`]); a caller and a target become a [`Permit`]
//! ([`Guard::permit`]); a permit opens a transaction ([`Db::write`]). Each step exists only if the one before succeeded.

mod db;
mod guard;
mod password;
mod permit;
mod sessions;
mod throttle;
mod tokens;

pub use db::{Db, Recorded};
pub use guard::{Guard, Refused};
pub use password::{Hasher, PasswordRefused, Passwords, accept_password};
pub use permit::{Permit, Proof, SystemPermit};
pub use sessions::{Principals, Sessions, SignInError, SignedIn};
pub use throttle::Throttle;
pub use tokens::{Keys, KeysError, TokenError, Tokens};

use std::net::IpAddr;

use interlock_model::Timestamp;
use interlock_model::policy::Grants;

/// Where a request comes from, resolved once by the perimeter.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Resolved address of the client.
    pub client_ip: IpAddr,
    /// The request.
    pub request_id: String,
    /// As sent, shortened, without control characters.
    pub user_agent: String,
}

/// An authenticated principal with the rights it has at this moment.
#[derive(Clone, Debug)]
pub struct Caller {
    name: String,
    grants: Grants,
    jti: String,
    expires_at: Timestamp,
    origin: Origin,
}

impl Caller {
    /// Name of the principal.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rights in force.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// End of the token.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Where the request comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn jti(&self) -> &str {
        &self.jti
    }
}
