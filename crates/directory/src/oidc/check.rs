//! *Test sign-in* for a provider: everything that can be known without a person, then the answer of a browser.

use interlock_model::{Entropy, Timestamp};
use serde_json::Value;
use url::Url;

use super::{Begun, ClientAuth, Oidc, PendingFlow, address, exchange, flow, keys, metadata::Metadata};
use crate::step::{Trace, printable};
use crate::{DirectoryError, Step};

impl Oidc {
    /// Asks the provider afresh and tells each step. If all is well, a sign-in is begun for a person to go through; its end
    /// goes to [`Oidc::test_finish`].
    pub async fn test(&self, now: Timestamp, entropy: &dyn Entropy) -> (Vec<Step>, Option<Begun>) {
        let mut trace = Trace::default();
        let result = self.limited(Box::pin(self.examine(now, entropy, &mut trace))).await;
        if let Err(error) = &result {
            trace.fail(error);
        }
        (trace.into_steps(), result.ok())
    }

    /// As [`Oidc::finish`], telling each step.
    pub async fn test_finish(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
        flow: PendingFlow,
        query: &str,
    ) -> Vec<Step> {
        let mut trace = Trace::default();
        let _ = self.finish_with(now, entropy, flow, query, &mut trace).await;
        trace.into_steps()
    }

    async fn examine(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
        trace: &mut Trace,
    ) -> Result<Begun, DirectoryError> {
        trace.begin("discovery");
        let place = address(&self.config.issuer)?;
        let answer = self.http.document(&place, "discovery").await?;
        trace.pass(format!("{place} answers"));
        trace.begin("TLS");
        match &answer.certificate {
            Some(der) => trace.pass(crate::tls::facts(der)),
            None => {
                trace.warn("none: the provider is on this machine", "use https:// for a provider elsewhere");
            }
        }
        trace.begin("metadata");
        let metadata = Metadata::read(answer.body.as_ref().unwrap_or(&Value::Null), &self.config)?;
        let names: Vec<&str> = metadata.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        trace.pass(format!("issuer as configured; ID tokens signed with {}", names.join(", ")));
        trace.begin("PKCE");
        if metadata.pkce.is_some() {
            trace.pass("S256");
        } else {
            trace.warn(
                "the provider does not say whether it checks PKCE; it is sent",
                "none, unless sign-in fails",
            );
        }
        trace.begin("keys");
        let found = keys::fetch(&self.http, &metadata.keys).await?;
        if found.count() == 0 {
            let error = DirectoryError::misconfigured("keys: none that can verify");
            return Err(trace.failed(error, "have the provider sign with RS256, PS256, ES256 or EdDSA"));
        }
        trace.pass(format!("{} that can verify", found.count()));
        self.examine_client(&metadata, now, entropy, trace).await?;
        let begun = flow::begin(&self.config, &metadata, now, entropy);
        self.examine_page(&begun, trace).await?;
        Ok(begun)
    }

    /// Sends a code that cannot exist: a provider that knows us complains about the code, another one about us.
    async fn examine_client(
        &self,
        metadata: &Metadata,
        now: Timestamp,
        entropy: &dyn Entropy,
        trace: &mut Trace,
    ) -> Result<(), DirectoryError> {
        trace.begin("client");
        let how = match self.config.client_auth {
            ClientAuth::Public => "public client",
            ClientAuth::Secret(_) => "client secret",
            ClientAuth::PrivateKey { .. } => "private key",
        };
        let grant = [
            ("code", interlock_model::id::random_hex(entropy, 16)),
            ("redirect_uri", self.config.redirect_uri.clone()),
            ("code_verifier", interlock_model::id::random_hex(entropy, 32)),
        ];
        let answer = exchange::send(&self.http, &self.config, metadata, grant, now, entropy).await?;
        match (answer.status, exchange::error(&answer)) {
            (_, Some("invalid_grant")) => trace.pass(format!("{how} accepted")),
            (_, Some("invalid_client" | "unauthorized_client")) => {
                let error = DirectoryError::Misconfigured(format!(
                    "the provider does not accept OIDC_CLIENT_ID with this {how}"
                ));
                return Err(trace.failed(error, "check OIDC_CLIENT_ID and OIDC_CLIENT_SECRET"));
            }
            (status, error) => trace.warn(
                format!("the token endpoint answered {status} {}", error.unwrap_or("")),
                "sign in to see whether it works",
            ),
        }
        Ok(())
    }

    /// Asks for the page that a browser would see.
    async fn examine_page(&self, begun: &Begun, trace: &mut Trace) -> Result<(), DirectoryError> {
        trace.begin("sign-in page");
        let url = Url::parse(&begun.url)
            .map_err(|_| DirectoryError::misconfigured("the address cannot be made"))?;
        let (status, location) = self.http.page(&url, "the sign-in page").await?;
        let remedy = "register OIDC_REDIRECT_URI at the provider, to the character, and allow OIDC_SCOPES";
        if let Some(error) = location.as_deref().and_then(|to| flow::error_in(to, &self.config.redirect_uri))
        {
            return Err(trace.failed(error, remedy));
        }
        match status {
            200..400 => trace
                .pass(format!("answers {status}; redirect to {}", printable(&self.config.redirect_uri, 300))),
            429 | 500.. => {
                return Err(DirectoryError::Unavailable(format!("the sign-in page answers {status}")));
            }
            _ => {
                let error = DirectoryError::Misconfigured(format!("the sign-in page answers {status}"));
                return Err(trace.failed(error, remedy));
            }
        }
        Ok(())
    }
}
