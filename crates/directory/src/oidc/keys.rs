//! The provider's keys, and verifying with them through a rotation.

use url::Url;

use super::http::Http;
use super::token::{Algorithm, Keys, Parsed, TokenFault};
use crate::DirectoryError;

/// Fetches the keys.
pub(crate) async fn fetch(http: &Http, address: &Url) -> Result<Keys, DirectoryError> {
    let answer = http.document(address, "keys").await?;
    answer
        .body
        .as_ref()
        .and_then(Keys::read)
        .ok_or_else(|| DirectoryError::misconfigured("keys: the document at jwks_uri is no set of keys"))
}

/// The key that a token asks for.
pub(crate) struct Wanted {
    kid: Option<String>,
    algorithm: Algorithm,
}

impl Wanted {
    /// The key of this token. One with an algorithm that is not `allowed` gets no answer whatever the keys are, so nothing is
    /// asked for it.
    pub(crate) fn by(token: &Parsed<'_>, allowed: &[Algorithm]) -> Result<Self, DirectoryError> {
        if !allowed.contains(&token.algorithm) {
            return Err(TokenFault::Algorithm.into());
        }
        Ok(Self { kid: token.kid.clone(), algorithm: token.algorithm })
    }

    /// Whether these keys have it; if not, newer ones are looked for.
    pub(crate) fn is_in(&self, keys: &Keys) -> bool {
        !matches!(keys.find(self.kid.as_deref(), self.algorithm), Err(TokenFault::UnknownKey))
    }
}
