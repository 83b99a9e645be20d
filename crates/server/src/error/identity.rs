//! Failures of identity as clients see them.

use axum::http::StatusCode;
use interlock_engine::agents::AgentError;
use interlock_engine::auth::{
    AccountError, DecideError, FactorError, KeyError, ManageError, RefreshError, SignInError, TokenError,
};
use interlock_engine::invitations::InvitationError;
use interlock_engine::resets::ResetError;

use super::ApiError;

fn busy() -> ApiError {
    ApiError::client(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The server is busy. Nothing was done.")
        .after(1)
}

fn capital(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

impl From<RefreshError> for ApiError {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Token(TokenError::Grant) => SignInError::Grant.into(),
            RefreshError::Token(error) => error.into(),
            // A thief must not learn that the theft was noticed.
            RefreshError::Reused => TokenError::Revoked.into(),
            RefreshError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        let text = capital(&error);
        match error {
            // Not 401: the token is in force, and a client must not throw it away.
            AccountError::Wrong => Self::field(&["body", "current"], "credentials", text),
            AccountError::WrongCode => Self::field(&["body", "otp"], "credentials", text),
            AccountError::OtherProof => Self::field(&["body"], "choice", text),
            AccountError::Wait(wait) => SignInError::Wait(wait).into(),
            AccountError::Password(_) | AccountError::Same => Self::field(&["body", "new"], "password", text),
            AccountError::Conflict => Self::client(StatusCode::CONFLICT, "conflict", text),
            AccountError::Overloaded => busy(),
            AccountError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<FactorError> for ApiError {
    fn from(error: FactorError) -> Self {
        let text = capital(&error);
        match error {
            FactorError::Wrong => Self::field(&["body", "code"], "credentials", text),
            FactorError::WrongPasskey => Self::field(&["body", "credential"], "credentials", text),
            FactorError::NotOffered => Self::client(StatusCode::NOT_FOUND, "not_found", text),
            FactorError::Wait(wait) => SignInError::Wait(wait).into(),
            FactorError::Name => Self::field(&["body", "name"], "length", text),
            FactorError::NoSuchFactor => {
                Self::client(StatusCode::NOT_FOUND, "factor_not_found", "Second factor not found")
            }
            FactorError::NoSuchUser => {
                Self::client(StatusCode::NOT_FOUND, "user_not_found", "User not found")
            }
            FactorError::NothingPending
            | FactorError::TooMany
            | FactorError::TooManyPasskeys
            | FactorError::NoPasskeys
            | FactorError::ShortPassword
            | FactorError::NoFactor
            | FactorError::Conflict => Self::client(StatusCode::CONFLICT, "conflict", text),
            FactorError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<InvitationError> for ApiError {
    fn from(error: InvitationError) -> Self {
        match error {
            // One answer for unknown, used, ended and taken back.
            InvitationError::NotOpen | InvitationError::NoSuchInvitation => {
                Self::client(StatusCode::NOT_FOUND, "invitation_not_found", capital(&error))
            }
            InvitationError::User(error) => error.into(),
        }
    }
}

impl From<ResetError> for ApiError {
    fn from(error: ResetError) -> Self {
        let text = capital(&error);
        match error {
            // One answer for unknown, used, ended and taken back.
            ResetError::NotOpen => Self::client(StatusCode::NOT_FOUND, "reset_not_found", text),
            ResetError::Wrong => Self::field(&["body", "password"], "credentials", text),
            ResetError::SignIn(error) => error.into(),
            ResetError::User(error) => error.into(),
        }
    }
}

impl From<DecideError> for ApiError {
    fn from(error: DecideError) -> Self {
        let text = capital(&error);
        match error {
            DecideError::NoSuchCode => Self::client(StatusCode::NOT_FOUND, "device_code_not_found", text),
            DecideError::Wait(wait) => SignInError::Wait(wait).into(),
            DecideError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let text = capital(&error);
        match error {
            AgentError::Name => Self::field(&["body", "name"], "length", text),
            AgentError::Exists => Self::client(StatusCode::BAD_REQUEST, "agent_exists", text),
            AgentError::NoSuchAgent => {
                Self::client(StatusCode::NOT_FOUND, "agent_not_found", "Agent not found")
            }
            // Which scope is told to a caller who manages agents and named it.
            AgentError::Grant(_) | AgentError::TwoPeople(_) => {
                Self::client(StatusCode::FORBIDDEN, "forbidden", text)
            }
            AgentError::PeopleOnly(_) => Self::field(&["body", "scopes"], "scope", text),
            AgentError::Webhook => Self::field(&["body", "webhook_url"], "url", text),
            AgentError::Protected(reason) => Self::client(StatusCode::BAD_REQUEST, "agent_protected", reason),
            AgentError::Secret(_) => Self::field(&["body", "password"], "password", text),
            AgentError::Overlap => Self::field(&["body", "overlap_seconds"], "range", text),
            AgentError::Expiry => Self::field(&["body", "expires_at"], "range", text),
            AgentError::Keys(_) => Self::field(&["body", "keys"], "key", text),
            AgentError::Names(_) => Self::field(&["body", "names"], "name", text),
            AgentError::NoWebhook | AgentError::KeysOnly | AgentError::Conflict => {
                Self::client(StatusCode::CONFLICT, "conflict", text)
            }
            AgentError::Overloaded => busy(),
            AgentError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        let text = capital(&error);
        match error {
            KeyError::ByKey | KeyError::Scope(_) => Self::client(StatusCode::FORBIDDEN, "forbidden", text),
            KeyError::NoScope => Self::field(&["body", "scopes"], "length", text),
            KeyError::Life => Self::field(&["body", "expires_in_days"], "range", text),
            KeyError::Name => Self::field(&["body", "name"], "length", text),
            KeyError::TooMany | KeyError::KeysOnly => Self::client(StatusCode::CONFLICT, "conflict", text),
            KeyError::NoSuchPrincipal => {
                Self::client(StatusCode::NOT_FOUND, "agent_not_found", "Agent not found")
            }
            KeyError::NoSuchKey => Self::client(StatusCode::NOT_FOUND, "key_not_found", "Key not found"),
            KeyError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<ManageError> for ApiError {
    fn from(error: ManageError) -> Self {
        let text = capital(&error);
        match error {
            ManageError::NoSuchSession => {
                Self::client(StatusCode::NOT_FOUND, "session_not_found", "Session not found")
            }
            ManageError::NoSuchPrincipal => {
                Self::client(StatusCode::NOT_FOUND, "principal_not_found", "Principal not found")
            }
            ManageError::NoSuchRole => {
                Self::client(StatusCode::NOT_FOUND, "role_not_found", "Role not found")
            }
            ManageError::RoleName => Self::field(&["path", "role"], "format", text),
            ManageError::Grant(_) => Self::client(StatusCode::FORBIDDEN, "forbidden", text),
            ManageError::Conflict => Self::client(StatusCode::CONFLICT, "conflict", text),
            ManageError::Store(cause) => Self::storage(&cause),
        }
    }
}
