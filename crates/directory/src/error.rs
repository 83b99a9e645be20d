//! Why a sign-in did not happen: refused, or the directory could not be asked.

use crate::oidc::TokenFault;

/// A sign-in that did not happen.
///
/// To the person every `Refused` is the same answer (401), and the others are "try again later" (503). The texts are for
/// logs and operators; they hold no secrets and nothing that the other side wrote freely.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory was asked and this person is not let in. The reason is for the audit trail only.
    #[error("accept the sign-in")]
    Refused(Refusal),
    /// The directory did not answer as one; trying again later may help.
    #[error("ask the directory: {0}")]
    Unavailable(String),
    /// A setting is wrong, here or at the directory; trying again does not help.
    #[error("use the directory as it is set up: {0}")]
    Misconfigured(String),
}

impl DirectoryError {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }

    pub(crate) fn misconfigured(reason: impl Into<String>) -> Self {
        Self::Misconfigured(reason.into())
    }

    /// The whole reason for log and audit trail; never for the person who signs in.
    pub fn reason(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.to_string(),
            Self::Unavailable(reason) | Self::Misconfigured(reason) => reason.clone(),
        }
    }
}

impl From<Refusal> for DirectoryError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TokenFault> for DirectoryError {
    fn from(fault: TokenFault) -> Self {
        Self::Refused(Refusal::Token(fault))
    }
}

/// Why a person was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An empty password would be an unauthenticated bind (RFC 4513, section 5.1.2), which many servers answer with success.
    #[error("the password is empty")]
    EmptyPassword,
    /// Not 1 to 256 bytes, or with control characters or white space at an end.
    #[error("the name cannot be a sign-in name")]
    BadName,
    /// The password is longer than 1024 bytes or holds a NUL.
    #[error("the password cannot be one")]
    BadPassword,
    /// The directory has no such person, or hides them.
    #[error("no such user")]
    UnknownUser,
    /// Two entries or more match.
    #[error("the name matches more than one entry")]
    Ambiguous,
    /// The entry that came back is not the one that was asked for.
    #[error("the directory's answer does not carry the name that was asked for")]
    ForeignEntry,
    /// Disabled, locked or expired.
    #[error("the account is disabled, locked or expired")]
    Disabled,
    /// The password is wrong.
    #[error("wrong password")]
    WrongPassword,
    /// The directory wants a new password first.
    #[error("the password must be changed at the directory first")]
    PasswordExpired,
    /// The directory points elsewhere; referrals are not followed.
    #[error("the directory refers to another server")]
    Referral,
    /// The answer of the provider belongs to no sign-in that this browser began, or to one that is over.
    #[error("the answer does not belong to this sign-in (state)")]
    State,
    /// The sign-in took too long.
    #[error("the sign-in was begun too long ago")]
    FlowExpired,
    /// The answer comes from another provider (RFC 9207).
    #[error("the answer comes from another provider (iss)")]
    Issuer,
    /// The answer is not what a provider sends.
    #[error("the answer of the provider is malformed")]
    Callback,
    /// The person or the provider said no.
    #[error("the provider denied the sign-in")]
    Denied,
    /// The code is unknown, used or over.
    #[error("the provider does not accept the code")]
    Code,
    /// The user info belongs to somebody else than the ID token.
    #[error("the user info belongs to another subject")]
    UserInfo,
    /// A token is not acceptable.
    #[error("the token is not acceptable: {0}")]
    Token(TokenFault),
    /// A logout token came twice.
    #[error("the token was used before")]
    Replayed,
    /// No rule names this workload.
    #[error("no rule names this workload")]
    NoRule,
}
