//! The one error that clients see: RFC 9457 with the members that both earlier systems had (docs/reference/device-http.md).
//!
//! Every `From` names its cases one by one, without a wildcard, so that a new failure must be placed before it compiles. The
//! perimeter renders the body, because request id and time belong to the request.

mod identity;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use interlock_engine::auth::{Refused, SignInError, TokenError};
use interlock_engine::bans::BanError;
use interlock_engine::devices::DeviceError;
use interlock_engine::executions::ExecuteError;
use interlock_engine::notary::NotaryError;
use interlock_engine::users::UserError;
use interlock_model::strict_json::BadJson;
use interlock_model::wire::{FieldError, Loc};

/// A refusal or failure, not yet rendered.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: &'static str,
    /// A sentence for the caller. For 5xx it is the same for every cause.
    pub detail: String,
    /// Refused fields.
    pub errors: Vec<FieldError>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// `WWW-Authenticate` challenge.
    pub challenge: Option<&'static str>,
    /// In the form of OAuth: `application/json` with `error_description` (RFC 6749 section 5.2).
    pub oauth: bool,
}

impl ApiError {
    /// A refusal that the client caused or can mend.
    pub fn client(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            challenge: None,
            oauth: false,
        }
    }

    /// A refusal of the OAuth endpoints.
    pub fn oauth(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { oauth: true, ..Self::client(status, code, detail) }
    }

    /// A failure of ours: the cause goes to the log under the request id, never to the caller.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = cause.to_string();
        let mut source = cause.source();
        while let Some(inner) = source {
            chain.push_str(": ");
            chain.push_str(&inner.to_string());
            source = inner.source();
        }
        tracing::error!(error = chain, "a request failed");
        Self::client(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The server failed. Its log has the cause under this request id.",
        )
    }

    /// The storage failed.
    pub fn storage(cause: &interlock_engine::StoreError) -> Self {
        let mut error = Self::internal(cause);
        error.status = StatusCode::SERVICE_UNAVAILABLE;
        error.code = "unavailable";
        "The server cannot read or record data at the moment. Nothing was done."
            .clone_into(&mut error.detail);
        error.retry_after = Some(1);
        error
    }

    /// A body that is not acceptable.
    pub fn unprocessable(detail: impl Into<String>, errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::client(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", detail) }
    }

    /// One refused field.
    pub fn field(location: &[&str], kind: &str, message: impl Into<String>) -> Self {
        let msg = message.into();
        let loc = location.iter().map(|&part| part.into()).collect();
        Self::unprocessable(msg.clone(), vec![FieldError { loc, kind: kind.to_owned(), msg }])
    }

    /// With a time to wait.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response.extensions_mut().insert(Rendered(self));
        response
    }
}

/// An error on its way to the perimeter, which gives it a body.
#[derive(Debug, Clone)]
pub(crate) struct Rendered(pub(crate) ApiError);

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let challenge = match error {
            TokenError::Missing => "Bearer",
            TokenError::Invalid
            | TokenError::Expired
            | TokenError::Revoked
            | TokenError::Principal
            | TokenError::Certificate
            | TokenError::Grant => "Bearer error=\"invalid_token\"",
        };
        let mut refusal =
            Self::client(StatusCode::UNAUTHORIZED, "unauthorized", "Invalid authentication credentials");
        refusal.challenge = Some(challenge);
        refusal
    }
}

impl From<Refused> for ApiError {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Denied(message) => {
                let mut refusal = Self::client(StatusCode::FORBIDDEN, "forbidden", message);
                refusal.challenge = Some("Bearer error=\"insufficient_scope\"");
                refusal
            }
            Refused::StepUp => {
                let mut refusal = Self::client(
                    StatusCode::FORBIDDEN,
                    "step_up_required",
                    "Prove again who you are: POST /auth/step-up. The last proof is older than 15 minutes, or lacked the second factor.",
                );
                refusal.challenge =
                    Some("Bearer error=\"insufficient_user_authentication\", max_age=\"900\"");
                refusal
            }
            Refused::NoSecondFactor => Self::client(
                StatusCode::FORBIDDEN,
                "second_factor_missing",
                "Administrators need a second factor here. Set one up first: POST /auth/factors/totp.",
            ),
            Refused::Stale => Self::client(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The server cannot know at the moment which credentials were revoked. Nothing was done.",
            )
            .after(1),
        }
    }
}

/// The client has proved who it is and may not use this way to a token (RFC 6749 section 5.2).
pub(crate) const NO_GRANT: &str = "This client may not use this grant type.";

impl From<SignInError> for ApiError {
    fn from(error: SignInError) -> Self {
        match error {
            SignInError::Refused => {
                let mut refusal =
                    Self::client(StatusCode::UNAUTHORIZED, "unauthorized", "Incorrect username or password");
                refusal.challenge = Some("Bearer");
                refusal
            }
            SignInError::SecondFactor { wrong } => {
                let detail = if wrong {
                    "The code is not right, or was used already. Wait for the next one."
                } else {
                    "Send the code of your second factor as otp, or a recovery code."
                };
                let mut refusal = Self::client(StatusCode::UNAUTHORIZED, "second_factor_required", detail);
                refusal.challenge = Some("Bearer");
                refusal
            }
            SignInError::Wait(wait) => {
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                Self::client(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limited",
                    "Too many sign-in attempts. Wait, then try again.",
                )
                .after(seconds)
            }
            SignInError::Elsewhere => Self::client(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The directory that knows this person cannot be asked at the moment. Local accounts can sign in.",
            )
            .after(5),
            SignInError::NotOffered => {
                Self::client(StatusCode::NOT_FOUND, "not_found", "This way of signing in is not set up")
            }
            SignInError::Grant => Self::client(StatusCode::BAD_REQUEST, "unauthorized_client", NO_GRANT),
            SignInError::Scope => Self::client(
                StatusCode::BAD_REQUEST,
                "invalid_scope",
                "A scope was asked for that is not granted.",
            ),
            SignInError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<interlock_engine::StoreError> for ApiError {
    fn from(error: interlock_engine::StoreError) -> Self {
        Self::storage(&error)
    }
}

impl From<BadJson> for ApiError {
    fn from(error: BadJson) -> Self {
        let msg = error.to_string();
        Self::unprocessable(
            format!("The body is not acceptable JSON: {msg}"),
            vec![FieldError { loc: vec!["body".into()], kind: "json_invalid".to_owned(), msg }],
        )
    }
}

impl From<ExecuteError> for ApiError {
    fn from(error: ExecuteError) -> Self {
        match error {
            // The path's name is told by the handler, which knows that it is a plain word.
            ExecuteError::NoSuchAction => {
                Self::client(StatusCode::NOT_FOUND, "task_not_found", "Task not found")
            }
            ExecuteError::Parameters(refused) => {
                let detail =
                    refused.iter().map(|error| error.message.as_str()).collect::<Vec<_>>().join("; ");
                let errors = refused
                    .into_iter()
                    .map(|error| {
                        let mut loc = vec!["body".into()];
                        loc.extend(error.loc.into_iter().map(Loc::from));
                        FieldError { loc, kind: error.kind.to_owned(), msg: error.message }
                    })
                    .collect();
                Self { errors, ..Self::client(StatusCode::BAD_REQUEST, "invalid_parameters", detail) }
            }
            ExecuteError::KeyReused => Self::client(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request. Nothing was done. Use a new key.",
            ),
            ExecuteError::Stopping => Self::client(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The server is stopping. Nothing was done.",
            )
            .after(5),
            ExecuteError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<DeviceError> for ApiError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Refused(reason) => Self::client(StatusCode::CONFLICT, "conflict", reason),
            DeviceError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<BanError> for ApiError {
    fn from(error: BanError) -> Self {
        match error {
            BanError::Network | BanError::TooWide => {
                Self::field(&["body", "network"], "format", error.to_string())
            }
            BanError::Length => Self::field(&["body", "seconds"], "range", error.to_string()),
            BanError::Reason => Self::field(&["body", "reason"], "format", error.to_string()),
            BanError::OwnAddress | BanError::Allowed => {
                Self::client(StatusCode::CONFLICT, "conflict", error.to_string())
            }
            BanError::NoSuchBan => {
                Self::client(StatusCode::NOT_FOUND, "ban_not_found", "There is no ban of this network")
            }
            BanError::Store(cause) => Self::storage(&cause),
        }
    }
}

impl From<NotaryError> for ApiError {
    fn from(error: NotaryError) -> Self {
        match error {
            NotaryError::NoEntry(number) => Self::client(
                StatusCode::NOT_FOUND,
                "not_found",
                format!(
                    "Entry {number} is not in the audit trail, was deleted after its retention, or is not signed for yet"
                ),
            ),
            NotaryError::Store(cause) => Self::storage(&cause),
            NotaryError::Tampered(_) | NotaryError::Io(_) => Self::internal(&error),
        }
    }
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        match error {
            UserError::Name => Self::field(&["body", "name"], "format", error.to_string()),
            UserError::Role => Self::field(&["body", "roles"], "enum", error.to_string()),
            UserError::Hash => Self::field(&["body", "password_hash"], "format", error.to_string()),
            UserError::Password(_) => Self::field(&["body", "password"], "password", error.to_string()),
            UserError::Exists => {
                Self::client(StatusCode::CONFLICT, "conflict", "There is a user of this name already.")
            }
            UserError::NoSuchUser => Self::client(StatusCode::NOT_FOUND, "user_not_found", "User not found"),
            UserError::ByLink => Self::client(StatusCode::FORBIDDEN, "forbidden", error.to_string()),
            UserError::LastAdmin
            | UserError::ShortPassword
            | UserError::Sealed
            | UserError::Own
            | UserError::Elsewhere
            | UserError::Conflict => Self::client(StatusCode::CONFLICT, "conflict", error.to_string()),
            UserError::Overloaded => Self::client(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The server is busy. Nothing was done.",
            )
            .after(1),
            UserError::Store(cause) => Self::storage(&cause),
        }
    }
}
