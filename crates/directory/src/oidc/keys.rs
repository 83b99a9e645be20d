//! The provider's keys, and verifying with them through a rotation.

use std::sync::Arc;

use url::Url;

use super::claims::Claims;
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

/// Verifies a token with the keys that `ask` gives; `ask` looks for newer ones if these do not have the token's.
pub(crate) async fn verified(
    token: Parsed<'_>,
    allowed: &[Algorithm],
    ask: impl AsyncFnOnce(&dyn Fn(&Keys) -> bool) -> Result<Arc<Keys>, DirectoryError>,
) -> Result<Claims, DirectoryError> {
    // Before anything is asked: such a token gets no answer whatever the keys are.
    if !allowed.contains(&token.algorithm) {
        return Err(TokenFault::Algorithm.into());
    }
    let (kid, algorithm) = (token.kid.clone(), token.algorithm);
    let has_key = |keys: &Keys| !matches!(keys.find(kid.as_deref(), algorithm), Err(TokenFault::UnknownKey));
    let keys = ask(&has_key).await?;
    Ok(token.verify(&keys, allowed)?)
}
