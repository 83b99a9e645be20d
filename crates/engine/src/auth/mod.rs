//! Who is calling, what they may do, and the proof of it.
//!
//! The way of a request: a token becomes a [`Caller`] ([`Guard::authenticate`]); a caller and a target become a [`Permit`]
//! ([`Guard::permit`]); a permit opens a transaction ([`Db::write`]). Each step exists only if the one before succeeded.

mod account;
mod activity;
mod agent_sign_in;
mod assertion;
mod bcrypt_hash;
mod blocked;
mod breached;
mod certificate;
mod certificate_sign_in;
mod clients;
mod db;
mod device_code;
pub mod documents;
mod elsewhere;
mod factors;
mod guard;
mod keys;
mod manage;
mod notices;
mod opening;
mod passkeys;
mod password;
mod permit;
mod principals;
mod refreshing;
mod resealing;
mod reviews;
mod sealing;
mod sessions;
mod sign_in;
mod signing_keys;
mod throttle;
mod tokens;
mod totp;
mod workload;

pub(crate) use account::note_length;
pub use account::{Account, AccountError};
pub use agent_sign_in::AgentProof;
pub use assertion::{BadKey, check_keys};
pub(crate) use bcrypt_hash::{cost as bcrypt_cost, is_importable};
pub use breached::Breached;
pub use certificate::{BadName, Bound, ClientCertificate, NamedPerson, check_names};
pub use certificate_sign_in::CertificateSignIn;
pub use clients::{AccessRules, ClientPolicy};
pub use db::{Db, Recorded};
pub use device_code::{Begun, DecideError, DeviceCodes, INTERVAL, PollError};
pub(crate) use elsewhere::NO_PASSWORD;
pub use elsewhere::{
    Arrivals, Directories, Elsewhere, External, PasswordDirectory, SignedOut, WebArrival, WebBegun,
    WebDirectory, WebSignIn,
};
pub use factors::{Enrolment, FactorError, SecondFactor};
pub(crate) use factors::{clear as clear_factors, reset as reset_factors};
pub use guard::{Guard, Refused, StepUpPolicy};
pub(crate) use keys::new_agent_secret;
pub use keys::{ApiKeys, KeyError, NewKey};
pub use manage::{Manage, ManageError, Revoke};
pub(crate) use notices::Notices;
pub use notices::{Notice, NoticeBoard};
pub use passkeys::{Ceremonies, Ceremony, Challenge, NewPasskey, Passkeys};
pub(crate) use password::stands_alone;
pub use password::{Factors, Hasher, PasswordRefused, Passwords, Scheme, accept_password};
pub use permit::{Permit, Proof, SystemPermit};
pub use principals::Principals;
pub use refreshing::RefreshError;
pub use resealing::{Resealed, examine as examine_sealed, reseal};
pub use reviews::{ReviewedCredential, ReviewedPrincipal, Reviews};
pub use sealing::{BadMasterKey, KEY_BYTES, MasterKey};
pub use sessions::{Issued, Sessions};
pub use sign_in::{SignInError, SignIns, SignedIn, Wanted};
pub use signing_keys::{Keys, KeysError};
pub use throttle::{LockedNetwork, Lockout, Throttle};
pub use tokens::{Lifetimes, TokenError, TokenKind, Tokens};
pub use workload::{Workload, WorkloadDirectory};

use std::net::IpAddr;
use std::sync::Arc;

use interlock_model::Timestamp;
use interlock_model::policy::{Grants, PrincipalKind};
use interlock_model::trace::TraceContext;

/// Where a request comes from, resolved once by the perimeter.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Resolved address of the client.
    pub client_ip: IpAddr,
    /// The request.
    pub request_id: String,
    /// As sent, shortened, without control characters.
    pub user_agent: String,
    /// The certificate that the client has shown on this connection.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Where the request stands in a trace, while traces are exported.
    pub trace: Option<TraceContext>,
}

/// An authenticated principal with the rights it has at this moment.
#[derive(Clone, Debug)]
pub struct Caller {
    kind: PrincipalKind,
    name: String,
    grants: Arc<Grants>,
    session: String,
    auth_time: Option<Timestamp>,
    amr: Vec<String>,
    expires_at: Timestamp,
    origin: Origin,
}

impl Caller {
    /// Person or agent.
    pub fn kind(&self) -> PrincipalKind {
        self.kind
    }

    /// Name of the user, or id of the agent: the actor in the audit trail.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a thing of this owner may be seen and changed, given the scope for it.
    pub(crate) fn reaches(&self, owner: &str) -> bool {
        self.grants.reaches_others() || owner == self.name
    }

    /// Rights in force.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// End of the credential.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Where the request comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The session that the token belongs to; empty for API keys.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// When the principal last proved who it is; `None` for API keys.
    pub fn auth_time(&self) -> Option<Timestamp> {
        self.auth_time
    }

    /// The factors of that proof (RFC 8176).
    pub fn amr(&self) -> &[String] {
        &self.amr
    }
}
