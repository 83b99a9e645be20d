//! What can go wrong between here and the server, in sentences that can be shown.
//!
//! Texts of the server in here are as the server sent them: whoever prints them strips control characters first.

use std::error::Error as StdError;
use std::io;

use interlock_model::RunId;
use interlock_model::wire::Problem;

/// A request that did not lead to an answer of the expected form.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address, file or header of ours cannot be used. Nothing was sent.
    #[error("{0}")]
    Settings(String),
    /// No connection, or it broke.
    #[error("the server at {url} cannot be reached: {reason}")]
    Unreachable {
        /// The server's address.
        url: String,
        /// What happened, for people.
        reason: String,
        /// The request may have arrived all the same.
        sent: bool,
    },
    /// The server's certificate or its TLS is not acceptable. Nothing was sent.
    #[error("no trusted connection to {url}: {reason}")]
    Tls {
        /// The server's address.
        url: String,
        /// What is wrong, for people.
        reason: String,
    },
    /// The server refused, or the run did not succeed.
    #[error("{}", .0.problem.detail)]
    Problem(Box<Refusal>),
    /// There is no token, or the server does not take it any more.
    #[error("{0}")]
    SignInNeeded(String),
    /// The answer is not what the contract says.
    #[error("the answer of {url} cannot be understood: {reason}")]
    BadAnswer {
        /// The server's address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A problem body with what came in the headers.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The body.
    pub problem: Problem,
    /// HTTP status.
    pub status: u16,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// The run that the answer belongs to.
    pub run: Option<RunId>,
}

impl ClientError {
    /// From a failed exchange. `sent` is false when the request cannot have arrived.
    pub(crate) fn from_transport(url: &str, error: &reqwest::Error) -> Self {
        let url = url.to_owned();
        if let Some(reason) = tls_reason(error) {
            return Self::Tls { url, reason };
        }
        let sent = !error.is_connect() && !error.is_builder();
        Self::Unreachable { url, reason: transport_reason(error), sent }
    }

    /// The refusal, if the server gave one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Problem(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether trying the very same thing again may help: the connection broke, or the server is overloaded.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Problem(refusal) => matches!(refusal.status, 429 | 502..=504) && refusal.run.is_none(),
            Self::Settings(_) | Self::Tls { .. } | Self::SignInNeeded(_) | Self::BadAnswer { .. } => false,
        }
    }
}

/// Every cause of an error, outermost first. An `io::Error` hides the error it wraps behind `get_ref`.
fn causes(error: &reqwest::Error) -> Vec<&(dyn StdError + 'static)> {
    let mut found: Vec<&(dyn StdError + 'static)> = Vec::new();
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = next
        && found.len() < 16
    {
        found.push(cause);
        let wrapped = cause.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        next = match wrapped {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    found
}

fn tls_reason(error: &reqwest::Error) -> Option<String> {
    use rustls::{CertificateError as Bad, Error};
    let cause = causes(error).into_iter().find_map(|cause| cause.downcast_ref::<Error>())?;
    Some(match cause {
        Error::InvalidCertificate(Bad::UnknownIssuer) => {
            "its certificate is not signed by an authority that is trusted here".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate was made for another name".to_owned()
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired, or the clock here is wrong".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet, or the clock here is wrong".to_owned()
        }
        Error::InvalidMessage(_) => "what answers there does not speak TLS".to_owned(),
        other => other.to_string(),
    })
}

fn transport_reason(error: &reqwest::Error) -> String {
    let causes = causes(error);
    let kind = causes.iter().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    if error.is_timeout() || kind == Some(io::ErrorKind::TimedOut) {
        return if error.is_connect() {
            "no connection within the time limit"
        } else {
            "no answer within the time limit"
        }
        .to_owned();
    }
    // The connector of hyper has no public type for this.
    if causes.iter().any(|cause| cause.to_string().starts_with("dns error")) {
        return "its name is not known here".to_owned();
    }
    if causes.iter().any(|cause| cause.to_string().starts_with("invalid HTTP version")) {
        return "what answers there does not speak HTTP; does its address begin with https://?".to_owned();
    }
    let text = match kind {
        Some(io::ErrorKind::ConnectionRefused) => "nothing listens there",
        Some(
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof,
        ) => "the connection broke",
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            "there is no way to it in this network"
        }
        _ => {
            return causes
                .last()
                .map_or_else(|| error.to_string(), |cause| format!("the connection failed ({cause})"));
        }
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_about_a_run_is_no_reason_to_try_again() {
        let refused = |status, run| {
            let problem = Problem { status, ..Problem::default() };
            ClientError::Problem(Box::new(Refusal { problem, status, retry_after: None, run }))
        };
        let run: RunId = "run_018f6b1e2c3d7a4b8c9d0e1f2a3b4c5d".parse().expect("a run id");

        assert!(refused(503, None).is_passing());
        assert!(!refused(504, Some(run)).is_passing());
        assert!(!refused(409, None).is_passing());
    }
}
