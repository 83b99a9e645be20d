//! One sign-in in a browser: what is sent along, what is kept here, what must come back.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use interlock_model::secret::Secret;
use interlock_model::{Entropy, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

use super::config::OidcConfig;
use super::metadata::Metadata;
use crate::{DirectoryError, Refusal};

/// A sign-in at the provider takes no longer than this.
const LIFETIME: Duration = Duration::from_mins(10);
/// Longest answer in the address of a browser, in bytes.
const MAX_QUERY: usize = 8 << 10;

/// A sign-in that was begun.
#[derive(Debug)]
pub struct Begun {
    /// Where to send the browser.
    pub url: String,
    /// What to keep for it.
    pub flow: PendingFlow,
}

/// What must be kept from the beginning of a sign-in to its end: 10 minutes at most, on our side only.
///
/// The caller ties it to the browser that began (a cookie `__Host-…; HttpOnly; Secure; SameSite=Lax` with a random key to it,
/// never `state` itself, which the provider sees). It is not `Clone`, and the end consumes it: a second use does not compile;
/// a store must remove it in the same step that reads it.
#[derive(Debug)]
pub struct PendingFlow {
    pub(crate) state: Secret,
    pub(crate) nonce: Secret,
    pub(crate) code_verifier: Secret,
    pub(crate) redirect_uri: String,
    pub(crate) begun: Timestamp,
    pub(crate) expires: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    state: String,
    nonce: String,
    code_verifier: String,
    redirect_uri: String,
    begun: Timestamp,
    expires: Timestamp,
}

impl PendingFlow {
    /// After this it is of no use.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// As a text for a store that several servers share. It is as secret as a password.
    pub fn into_stored(self) -> Secret {
        let stored = Stored {
            state: self.state.expose().to_owned(),
            nonce: self.nonce.expose().to_owned(),
            code_verifier: self.code_verifier.expose().to_owned(),
            redirect_uri: self.redirect_uri,
            begun: self.begun,
            expires: self.expires,
        };
        Secret::new(serde_json::to_string(&stored).unwrap_or_default())
    }

    /// Back from a store; `None` when the text is none of ours.
    pub fn from_stored(text: &Secret) -> Option<Self> {
        let stored: Stored = serde_json::from_str(text.expose()).ok()?;
        Some(Self {
            state: Secret::new(stored.state),
            nonce: Secret::new(stored.nonce),
            code_verifier: Secret::new(stored.code_verifier),
            redirect_uri: stored.redirect_uri,
            begun: stored.begun,
            expires: stored.expires,
        })
    }
}

/// 256 random bits as text.
fn random(entropy: &dyn Entropy) -> Secret {
    let mut bytes = [0; 32];
    entropy.fill(&mut bytes);
    Secret::new(URL_SAFE_NO_PAD.encode(bytes))
}

/// Makes the three secrets of a sign-in and the address that carries them.
pub(crate) fn begin(
    config: &OidcConfig,
    metadata: &Metadata,
    now: Timestamp,
    entropy: &dyn Entropy,
) -> Begun {
    let flow = PendingFlow {
        state: random(entropy),
        nonce: random(entropy),
        code_verifier: random(entropy),
        redirect_uri: config.redirect_uri.clone(),
        begun: now,
        expires: now.plus(LIFETIME),
    };
    let mut url = metadata.authorization.clone();
    {
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &config.client_id)
            .append_pair("redirect_uri", &flow.redirect_uri)
            .append_pair("scope", &config.scopes.join(" "))
            .append_pair("state", flow.state.expose())
            .append_pair("nonce", flow.nonce.expose())
            .append_pair("code_challenge", &challenge(&flow.code_verifier))
            .append_pair("code_challenge_method", "S256");
        if !config.required_acr.is_empty() {
            query.append_pair("acr_values", &config.required_acr.join(" "));
        }
    }
    Begun { url: url.into(), flow }
}

/// PKCE, S256 (RFC 7636, section 4.2).
fn challenge(verifier: &Secret) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.expose().as_bytes()))
}

/// What the provider sent back through the browser.
#[derive(Default)]
struct Callback {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

impl Callback {
    /// A parameter that comes twice makes the whole answer void (RFC 6749, section 3.1).
    fn read(query: &str) -> Result<Self, Refusal> {
        if query.len() > MAX_QUERY {
            return Err(Refusal::Callback);
        }
        let mut callback = Self::default();
        for (name, value) in form_urlencoded::parse(query.trim_start_matches('?').as_bytes()) {
            let place = match name.as_ref() {
                "state" => &mut callback.state,
                "code" => &mut callback.code,
                "iss" => &mut callback.iss,
                "error" => &mut callback.error,
                _ => continue,
            };
            if place.replace(value.into_owned()).is_some() {
                return Err(Refusal::Callback);
            }
        }
        Ok(callback)
    }
}

/// Checks the answer against the sign-in and gives the code.
pub(crate) fn code(
    flow: &PendingFlow,
    query: &str,
    issuer: &str,
    must_name_issuer: bool,
    now: Timestamp,
) -> Result<Secret, DirectoryError> {
    let callback = Callback::read(query)?;
    if !callback.state.is_some_and(|state| flow.state.matches(&state)) {
        return Err(Refusal::State.into());
    }
    if now >= flow.expires {
        return Err(Refusal::FlowExpired.into());
    }
    // RFC 9207, section 2.4: an answer with another issuer, or without one where one was promised, comes from elsewhere.
    match callback.iss {
        Some(found) if found != issuer => return Err(Refusal::Issuer.into()),
        None if must_name_issuer => return Err(Refusal::Issuer.into()),
        _ => {}
    }
    if let Some(error) = callback.error {
        return Err(denied(&error));
    }
    match callback.code {
        Some(code) if (1..=4096).contains(&code.len()) => Ok(Secret::new(code)),
        _ => Err(Refusal::Callback.into()),
    }
}

/// What an error of the authorisation endpoint means for us. Its words are not repeated.
fn denied(error: &str) -> DirectoryError {
    let known = [
        "invalid_request",
        "unauthorized_client",
        "unsupported_response_type",
        "invalid_scope",
        "invalid_request_uri",
        "invalid_request_object",
        "request_not_supported",
    ];
    match error {
        "server_error" | "temporarily_unavailable" => {
            DirectoryError::Unavailable(format!("the provider answered {error}"))
        }
        error if known.contains(&error) => DirectoryError::Misconfigured(format!(
            "the provider answered {error}; check OIDC_CLIENT_ID, OIDC_REDIRECT_URI and OIDC_SCOPES there"
        )),
        _ => Refusal::Denied.into(),
    }
}

/// Whether an address that a provider redirects to is our own with an error in it.
pub(crate) fn error_in(location: &str, redirect_uri: &str) -> Option<DirectoryError> {
    let query = Url::parse(location).ok()?.query()?.to_owned();
    let error = Callback::read(&query).ok()?.error?;
    location.starts_with(redirect_uri).then(|| denied(&error))
}

#[cfg(test)]
mod tests {
    use interlock_model::time::TestEntropy;
    use serde_json::json;

    use super::*;
    use crate::ClientAuth;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn begun() -> Begun {
        let mut config =
            OidcConfig::new("https://id.example", "me", ClientAuth::Public, "https://lab.example/cb");
        config.required_acr = vec!["urn:mfa".to_owned()];
        let document = json!({
            "issuer": "https://id.example",
            "authorization_endpoint": "https://id.example/auth?tenant=7",
            "token_endpoint": "https://id.example/token",
            "jwks_uri": "https://id.example/keys",
        });
        let metadata = Metadata::read(&document, &config).expect("metadata");
        begin(&config, &metadata, NOW, &TestEntropy::seeded(1))
    }

    #[test]
    fn the_address_carries_the_challenge_and_not_the_verifier() {
        let Begun { url, flow } = begun();

        assert!(url.starts_with("https://id.example/auth?tenant=7&response_type=code&"), "{url}");
        assert!(url.contains("code_challenge_method=S256") && url.contains("acr_values=urn%3Amfa"));
        assert!(!url.contains(flow.code_verifier.expose()));
        assert_eq!(flow.code_verifier.expose().len(), 43);
        assert!(
            flow.state.expose() != flow.nonce.expose() && flow.nonce.expose() != flow.code_verifier.expose()
        );
        // RFC 7636, appendix B.
        assert_eq!(
            challenge(&Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }

    #[test]
    fn an_answer_must_belong_to_the_sign_in() {
        let flow = begun().flow;
        let state = flow.state.expose();
        let refusal = |query: &str, must: bool, now| match code(&flow, query, "https://id.example", must, now)
        {
            Err(DirectoryError::Refused(refusal)) => Some(refusal),
            Err(error) => panic!("{error:?}"),
            Ok(_) => None,
        };

        let good = format!("?code=c&state={state}&iss=https%3A%2F%2Fid.example");
        assert_eq!(refusal(&good, true, NOW), None);
        assert_eq!(refusal(&format!("code=c&state={state}"), false, NOW), None);
        assert_eq!(refusal(&format!("code=c&state={state}"), true, NOW), Some(Refusal::Issuer));
        let mixed_up = format!("code=c&state={state}&iss=https%3A%2F%2Fevil.example");
        assert_eq!(refusal(&mixed_up, false, NOW), Some(Refusal::Issuer));
        assert_eq!(refusal("code=c", false, NOW), Some(Refusal::State));
        assert_eq!(refusal("code=c&state=foreign", false, NOW), Some(Refusal::State));
        assert_eq!(refusal(&format!("{good}&state=x"), false, NOW), Some(Refusal::Callback));
        assert_eq!(refusal(&format!("state={state}"), false, NOW), Some(Refusal::Callback));
        assert_eq!(refusal(&format!("code=&state={state}"), false, NOW), Some(Refusal::Callback));
        assert_eq!(refusal(&format!("error=access_denied&state={state}"), false, NOW), Some(Refusal::Denied));
        assert_eq!(refusal("error=access_denied&state=x", false, NOW), Some(Refusal::State));
        assert_eq!(refusal(&good, true, NOW.plus(LIFETIME)), Some(Refusal::FlowExpired));
        assert_eq!(refusal(&"x".repeat(MAX_QUERY + 1), true, NOW), Some(Refusal::Callback));
    }

    #[test]
    fn a_flow_survives_a_store() {
        let flow = begun().flow;
        let (state, expires) = (flow.state.expose().to_owned(), flow.expires());

        let back = PendingFlow::from_stored(&flow.into_stored()).expect("a flow");

        assert!(back.state.matches(&state) && back.expires() == expires);
        assert!(PendingFlow::from_stored(&Secret::new("{}")).is_none());
    }
}
