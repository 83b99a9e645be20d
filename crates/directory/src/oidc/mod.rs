//! Sign-in with OpenID Connect: code flow with PKCE, state, nonce and the provider's name in its answer.
//!
//! `begin` makes the address and the secrets, `finish` judges what comes back. Between them lies a browser, and the caller
//! ties both ends to it (see [`PendingFlow`]). Everything asked of the provider goes to addresses out of its discovery
//! document, which is believed only if it names the configured issuer.

mod cached;
mod check;
mod claims;
mod config;
mod exchange;
mod flow;
pub(crate) mod http;
mod keys;
mod logout;
mod metadata;
mod token;

use std::sync::Arc;

use interlock_model::secret::Secret;
use interlock_model::{Entropy, Timestamp};
use serde_json::Value;

pub use config::{ClientAuth, OidcConfig};
pub use flow::{Begun, PendingFlow};
pub use logout::Logout;
pub use token::{Algorithm, TokenFault};

pub(crate) use cached::Cached;
pub(crate) use claims::{at_path, audience, issuer, subject, text, times};
pub(crate) use config::{is_loopback, server_url};
pub(crate) use keys::{Wanted, fetch};
pub(crate) use metadata::{address, keys_of};
pub(crate) use token::{Keys, Parsed};

use crate::step::{Trace, printable};
use crate::{DirectoryError, Identity, Refusal};
use claims::Claims;
use http::Http;
use metadata::Metadata;

/// One provider.
#[derive(Debug)]
pub struct Oidc {
    config: OidcConfig,
    http: Http,
    metadata: Cached<Metadata>,
    keys: Cached<Keys>,
    logouts: logout::Seen,
}

/// A person who is signed in, and what signing out will need.
#[derive(Debug)]
pub struct SignedIn {
    /// Who it is.
    pub identity: Identity,
    /// The session at the provider.
    pub session: ProviderSession,
}

/// The session at the provider.
#[derive(Debug)]
pub struct ProviderSession {
    /// Its id, for sign-out by the provider.
    pub sid: Option<String>,
    /// The ID token, which the provider wants back at sign-out. A secret.
    pub id_token: Secret,
    /// How strongly the person signed in (`acr`), for the audit trail.
    pub context: Option<String>,
}

/// The name under which a subject of an issuer is known here.
pub(crate) fn subject_of(issuer: &str, subject: &str) -> String {
    format!("oidc:{issuer}#{subject}")
}

impl Oidc {
    /// Takes the settings. Connects to nothing.
    ///
    /// # Errors
    /// [`DirectoryError::Misconfigured`] with what [`OidcConfig::validate`] says.
    pub fn new(config: OidcConfig) -> Result<Self, DirectoryError> {
        config.validate().map_err(|wrong| DirectoryError::Misconfigured(wrong.join("; ")))?;
        let loopback = server_url(&config.issuer).is_ok_and(|url| is_loopback(&url));
        let http = Http::new(config.ca_pem.as_deref(), loopback, config.timeout)?;
        Ok(Self {
            config,
            http,
            metadata: Cached::new(),
            keys: Cached::new(),
            logouts: logout::Seen::default(),
        })
    }

    /// Fetches what the provider says about itself, so that the first sign-in does not wait for it. Kept for an hour; used
    /// for a day while the provider is away.
    ///
    /// # Errors
    /// [`DirectoryError::Unavailable`] and [`DirectoryError::Misconfigured`].
    pub async fn discover(&self) -> Result<(), DirectoryError> {
        let metadata = self.metadata().await?;
        self.keys(&metadata, |_| true).await.map(|_| ())
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, DirectoryError> {
        self.metadata
            .get(
                |_| true,
                async || {
                    let answer = self.http.document(&address(&self.config.issuer)?, "discovery").await?;
                    Metadata::read(answer.body.as_ref().unwrap_or(&Value::Null), &self.config)
                },
            )
            .await
    }

    async fn keys(
        &self,
        metadata: &Metadata,
        enough: impl Fn(&Keys) -> bool,
    ) -> Result<Arc<Keys>, DirectoryError> {
        self.keys.get(enough, async || keys::fetch(&self.http, &metadata.keys).await).await
    }

    /// Begins a sign-in.
    ///
    /// # Errors
    /// [`DirectoryError::Unavailable`] and [`DirectoryError::Misconfigured`].
    pub async fn begin(&self, now: Timestamp, entropy: &dyn Entropy) -> Result<Begun, DirectoryError> {
        let metadata = self.limited(self.metadata()).await?;
        Ok(flow::begin(&self.config, &metadata, now, entropy))
    }

    /// Ends a sign-in with the query of the address that the browser came back with. A code is sent once and never again.
    ///
    /// # Errors
    /// [`DirectoryError`]. Every refusal is to look the same from outside.
    pub async fn finish(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
        flow: PendingFlow,
        query: &str,
    ) -> Result<SignedIn, DirectoryError> {
        self.finish_with(now, entropy, flow, query, &mut Trace::default()).await
    }

    async fn finish_with(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
        flow: PendingFlow,
        query: &str,
        trace: &mut Trace,
    ) -> Result<SignedIn, DirectoryError> {
        let result = self.limited(Box::pin(self.judge(now, entropy, &flow, query, trace))).await;
        if let Err(error) = &result {
            trace.fail(error);
        }
        result
    }

    async fn judge(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
        flow: &PendingFlow,
        query: &str,
        trace: &mut Trace,
    ) -> Result<SignedIn, DirectoryError> {
        let config = &self.config;
        trace.begin("discovery");
        let metadata = self.metadata().await?;
        trace.pass("known");
        trace.begin("answer");
        let code = flow::code(flow, query, &config.issuer, metadata.answers_with_issuer, now)?;
        trace.pass("belongs to this sign-in and comes from this provider");

        trace.begin("code");
        let grant = [
            ("code", code.expose().to_owned()),
            ("redirect_uri", flow.redirect_uri.clone()),
            ("code_verifier", flow.code_verifier.expose().to_owned()),
        ];
        let answer = exchange::send(&self.http, config, &metadata, grant, now, entropy).await?;
        let tokens = exchange::read(&answer)?;
        trace.pass("exchanged for tokens");

        trace.begin("ID token");
        let parsed = Parsed::read(tokens.id_token.expose())?;
        let algorithm = parsed.algorithm;
        if parsed.kind.as_deref().is_some_and(|kind| kind != "jwt") {
            return Err(TokenFault::Kind.into());
        }
        let wanted = Wanted::by(&parsed, &config.algorithms)?;
        let keys = self.keys(&metadata, |keys| wanted.is_in(keys)).await?;
        let mut token = parsed.verify(&keys, &config.algorithms)?;
        claims::issuer(&token, &config.issuer)?;
        claims::audience(&token, &config.client_id, true)?;
        claims::times(&token, now, config.skew, Some(flow.begun), None)?;
        claims::nonce(&token, &flow.nonce)?;
        claims::hash(&token, "at_hash", algorithm, tokens.access_token.as_ref().map(Secret::expose))?;
        claims::hash(&token, "c_hash", algorithm, Some(code.expose()))?;
        claims::context(&token, &config.required_acr)?;
        let subject = claims::subject(&token)?;
        if token.contains_key("events") {
            return Err(TokenFault::Kind.into());
        }
        trace.pass(format!(
            "signed with {}, for us, for this sign-in; subject {}",
            algorithm.name(),
            printable(&subject, 255)
        ));

        let session = ProviderSession {
            sid: claims::text(&token, "sid").map(str::to_owned),
            context: claims::text(&token, "acr").map(|acr| printable(acr, 255)),
            id_token: tokens.id_token,
        };
        self.add_user_info(&metadata, &mut token, &subject, tokens.access_token.as_ref(), trace).await?;
        Ok(SignedIn { identity: self.identity(&token, &subject, trace), session })
    }

    /// Adds what the ID token does not say and the user info endpoint does, for the same subject only.
    async fn add_user_info(
        &self,
        metadata: &Metadata,
        token: &mut Claims,
        subject: &str,
        access: Option<&Secret>,
        trace: &mut Trace,
    ) -> Result<(), DirectoryError> {
        let config = &self.config;
        let missing = |path: &str| claims::at_path(token, path).is_none();
        if !config.always_user_info && !missing(&config.username_claim) && !missing(&config.groups_claim) {
            trace.skip("user info", "the ID token says everything");
            return Ok(());
        }
        let Some((endpoint, access)) = metadata.user_info.as_ref().zip(access) else {
            trace.skip("user info", "the provider has no such endpoint");
            return Ok(());
        };
        trace.begin("user info");
        let answer = self.http.with_token(endpoint, access.expose(), "the user info endpoint").await?;
        let more = match (answer.status, answer.body) {
            (200, Some(Value::Object(more))) => more,
            (429 | 500.., _) => {
                return Err(DirectoryError::unavailable("the user info endpoint does not answer"));
            }
            _ => return Err(DirectoryError::misconfigured("the user info endpoint gives no JSON object")),
        };
        if claims::text(&more, "sub") != Some(subject) {
            return Err(Refusal::UserInfo.into());
        }
        for (name, value) in more {
            token.entry(name).or_insert(value);
        }
        trace.pass("for the same subject");
        Ok(())
    }

    fn identity(&self, token: &Claims, subject: &str, trace: &mut Trace) -> Identity {
        let config = &self.config;
        let clean = |text: &str| Some(printable(text.trim(), 253)).filter(|text| !text.is_empty());
        let mail = claims::text(token, "email")
            .filter(|mail| token.get("email_verified") == Some(&Value::Bool(true)) && mail.contains('@'))
            .and_then(clean);
        // An address that nobody checked is no name: anyone could have typed it.
        let named = claims::at_path(token, &config.username_claim)
            .and_then(Value::as_str)
            .filter(|_| config.username_claim != "email" || mail.is_some())
            .and_then(clean);
        trace.begin("groups");
        let groups = claims::groups(token, &config.groups_claim);
        let elsewhere = token.get("_claim_names").and_then(|names| names.get(&config.groups_claim)).is_some();
        match &groups {
            Some(groups) => trace.pass(groups.join(" | ")),
            None if elsewhere => trace.warn(
                "the provider keeps them elsewhere because there are too many; addresses in tokens are not asked",
                "let the provider send only groups that are assigned to this application, or roles instead",
            ),
            None => trace.warn(
                format!("no claim {}", printable(&config.groups_claim, 200)),
                "have the provider send it, or set OIDC_GROUPS_CLAIM and OIDC_SCOPES",
            ),
        }
        let groups = groups.unwrap_or_default();
        let roles = config.roles.roles(groups.iter().map(String::as_str));
        trace.begin("roles");
        if roles.is_empty() {
            trace.warn(
                "none: this person could sign in and do nothing",
                "add one of the groups to OIDC_ROLE_MAP",
            );
        } else {
            trace.pass(roles.join(", "));
        }
        let identity = Identity {
            subject: subject_of(&config.issuer, subject),
            name: named.or_else(|| mail.clone()).unwrap_or_else(|| subject.to_owned()),
            display_name: claims::text(token, "name").and_then(clean),
            mail,
            groups,
            roles,
        };
        trace.begin("identity");
        trace.pass(format!("{} ({})", identity.name, printable(&identity.subject, 300)));
        identity
    }

    /// Where to send a browser that signs out, if the provider has such a place. `back_to` must be registered there.
    ///
    /// # Errors
    /// [`DirectoryError::Unavailable`] and [`DirectoryError::Misconfigured`].
    pub async fn logout_url(
        &self,
        id_token: Option<&Secret>,
        back_to: Option<&str>,
        state: Option<&str>,
    ) -> Result<Option<String>, DirectoryError> {
        let metadata = self.limited(self.metadata()).await?;
        Ok(metadata
            .end_session
            .as_ref()
            .map(|place| logout::url(place, &self.config, id_token, back_to, state)))
    }

    /// Judges a logout token, which anyone may send: the keys are fetched anew at most once a minute.
    ///
    /// # Errors
    /// [`DirectoryError::Refused`] for every token that is not an order of the provider to sign somebody out, for us, now, for
    /// the first time.
    pub async fn back_channel_logout(&self, now: Timestamp, token: &str) -> Result<Logout, DirectoryError> {
        let parsed = Parsed::read(token)?;
        if parsed.kind.as_deref() != Some("logout+jwt") {
            return Err(TokenFault::Kind.into());
        }
        if parsed.unverified_issuer() != Some(&self.config.issuer) {
            return Err(TokenFault::Issuer.into());
        }
        let token = self
            .limited(async {
                let metadata = self.metadata().await?;
                let wanted = Wanted::by(&parsed, &self.config.algorithms)?;
                let keys = self.keys(&metadata, |keys| wanted.is_in(keys)).await?;
                Ok(parsed.verify(&keys, &self.config.algorithms)?)
            })
            .await?;
        let logout = logout::judge(&token, &self.config, now)?;
        self.logouts.first_time(&logout, now)?;
        Ok(logout)
    }

    async fn limited<T>(
        &self,
        work: impl Future<Output = Result<T, DirectoryError>>,
    ) -> Result<T, DirectoryError> {
        let limit = self.config.timeout;
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(DirectoryError::Unavailable(format!("no answer within {} ms", limit.as_millis())))
        })
    }
}
