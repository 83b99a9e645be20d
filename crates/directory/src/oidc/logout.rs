//! Signing out: at the provider by the browser, and by the provider without one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use interlock_model::Timestamp;
use interlock_model::secret::Secret;
use url::Url;

use super::claims::{self, Claims};
use super::config::OidcConfig;
use super::token::TokenFault;
use crate::{DirectoryError, Refusal};

/// A logout token is for at most this long.
const LONGEST: Duration = Duration::from_mins(10);
/// Most logout tokens that are remembered.
const MAX_SEEN: usize = 10_000;
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Whom the provider signs out: the sessions with this `sid`, or without one all of this subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logout {
    /// As [`crate::Identity::subject`].
    pub subject: Option<String>,
    /// As [`super::ProviderSession::sid`].
    pub sid: Option<String>,
    /// Id of the token. Several servers must remember it together until `expires`.
    pub jti: String,
    /// End of the token, with the allowance for clocks.
    pub expires: Timestamp,
}

/// What a logout token must say (OpenID Connect Back-Channel Logout 1.0, section 2.6). Signature and `typ` are checked already.
pub(crate) fn judge(token: &Claims, config: &OidcConfig, now: Timestamp) -> Result<Logout, TokenFault> {
    claims::issuer(token, &config.issuer)?;
    claims::audience(token, &config.client_id, false)?;
    let expires = claims::times(token, now, config.skew, None, Some(LONGEST))?.plus(config.skew);
    let event = token.get("events").and_then(|events| events.get(EVENT));
    if !event.is_some_and(serde_json::Value::is_object) {
        return Err(TokenFault::Event);
    }
    // A nonce marks an ID token: those must never pass for an order to sign out.
    if token.contains_key("nonce") {
        return Err(TokenFault::Nonce);
    }
    let subject = if token.contains_key("sub") {
        Some(super::subject_of(&config.issuer, &claims::subject(token)?))
    } else {
        None
    };
    let sid = claims::text(token, "sid").filter(|sid| (1..=255).contains(&sid.len())).map(str::to_owned);
    if subject.is_none() && sid.is_none() {
        return Err(TokenFault::Subject);
    }
    let jti =
        claims::text(token, "jti").filter(|jti| (1..=255).contains(&jti.len())).ok_or(TokenFault::Claim)?;
    Ok(Logout { subject, sid, jti: jti.to_owned(), expires })
}

/// Ids of logout tokens that were used, until they are over.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashMap<String, Timestamp>>);

impl Seen {
    /// Remembers it; refuses it the second time, and everything while too many are remembered.
    pub(crate) fn first_time(&self, logout: &Logout, now: Timestamp) -> Result<(), DirectoryError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_SEEN {
            seen.retain(|_, expires| *expires > now);
        }
        if seen.len() >= MAX_SEEN {
            return Err(DirectoryError::unavailable("too many sign-outs at one time"));
        }
        match seen.insert(logout.jti.clone(), logout.expires) {
            Some(_) => Err(Refusal::Replayed.into()),
            None => Ok(()),
        }
    }
}

/// Where to send a browser that signs out (OpenID Connect RP-Initiated Logout 1.0).
pub(crate) fn url(
    end_session: &Url,
    config: &OidcConfig,
    id_token: Option<&Secret>,
    back_to: Option<&str>,
    state: Option<&str>,
) -> String {
    let mut url = end_session.clone();
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("client_id", &config.client_id);
        let optional = [
            ("id_token_hint", id_token.map(Secret::expose)),
            ("post_logout_redirect_uri", back_to),
            ("state", state),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
    }
    url.into()
}
