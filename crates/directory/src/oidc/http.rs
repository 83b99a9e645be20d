//! Requests to the provider: no redirects, bounded time, bounded answers, JSON only.

use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderValue, LOCATION};
use serde_json::Value;
use url::Url;

use crate::DirectoryError;

/// Longest answer, in bytes.
pub(crate) const MAX_ANSWER: usize = 64 << 10;

/// A client for one provider.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
}

/// Status, body if it is JSON, and the certificate of the server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Option<Value>,
    pub(crate) certificate: Option<Vec<u8>>,
}

impl Http {
    /// `loopback`: the provider is on this machine, so that no proxy is asked and plain HTTP may be used.
    pub(crate) fn new(
        ca_pem: Option<&str>,
        loopback: bool,
        timeout: Duration,
    ) -> Result<Self, DirectoryError> {
        crate::tls::provider();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("interlock/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(timeout)
            .timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(2)
            .tls_info(true);
        builder = if loopback { builder.no_proxy() } else { builder.https_only(true) };
        if let Some(pem) = ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|_| DirectoryError::misconfigured("OIDC_CA_FILE is not PEM"))?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|_| {
            DirectoryError::misconfigured("this machine trusts no certificate authority; set OIDC_CA_FILE")
        })?;
        Ok(Self { client })
    }

    /// Fetches JSON that must be there.
    pub(crate) async fn document(&self, url: &Url, what: &str) -> Result<Answer, DirectoryError> {
        let answer = self.send(self.client.get(url.clone()), what).await?;
        match (answer.status, &answer.body) {
            (200, Some(_)) => Ok(answer),
            (200, None) => Err(DirectoryError::Misconfigured(format!("{what} is no JSON"))),
            (429 | 500.., _) => {
                Err(DirectoryError::Unavailable(format!("{what}: the provider answered {}", answer.status)))
            }
            (300..400, _) => Err(DirectoryError::Misconfigured(format!(
                "{what}: the provider redirects, which is not followed"
            ))),
            _ => {
                Err(DirectoryError::Misconfigured(format!("{what}: the provider answered {}", answer.status)))
            }
        }
    }

    /// Fetches with an access token.
    pub(crate) async fn with_token(
        &self,
        url: &Url,
        token: &str,
        what: &str,
    ) -> Result<Answer, DirectoryError> {
        self.send(self.client.get(url.clone()).bearer_auth(token), what).await
    }

    /// Posts a form.
    pub(crate) async fn form(
        &self,
        url: &Url,
        fields: &[(&str, String)],
        basic: Option<(String, String)>,
        what: &str,
    ) -> Result<Answer, DirectoryError> {
        let mut request = self.client.post(url.clone()).form(fields);
        if let Some((name, password)) = basic {
            request = request.basic_auth(name, Some(password));
        }
        self.send(request, what).await
    }

    /// Status and redirect of a page, without its body.
    pub(crate) async fn page(&self, url: &Url, what: &str) -> Result<(u16, Option<String>), DirectoryError> {
        let response = self.client.get(url.clone()).send().await.map_err(|error| describe(&error, what))?;
        let location =
            response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok((response.status().as_u16(), location))
    }

    async fn send(&self, request: reqwest::RequestBuilder, what: &str) -> Result<Answer, DirectoryError> {
        let request = request.header(ACCEPT, HeaderValue::from_static("application/json"));
        let mut response = request.send().await.map_err(|error| describe(&error, what))?;
        let too_long =
            || DirectoryError::Unavailable(format!("{what}: the answer is longer than {MAX_ANSWER} bytes"));
        if response.content_length().is_some_and(|length| length > MAX_ANSWER as u64) {
            return Err(too_long());
        }
        let certificate = response
            .extensions()
            .get::<reqwest::tls::TlsInfo>()
            .and_then(|info| info.peer_certificate())
            .map(<[u8]>::to_vec);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| describe(&error, what))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        let body = interlock_model::strict_json::parse(&body).ok();
        Ok(Answer { status: response.status().as_u16(), body, certificate })
    }
}

/// Why a request failed, without addresses: they may hold a code.
fn describe(error: &reqwest::Error, what: &str) -> DirectoryError {
    if let Some(inner) = tls_error(error) {
        let (reason, remedy) = crate::tls::explain(inner);
        let text = format!("{what}: {reason}; {remedy}");
        return if matches!(inner, rustls::Error::InvalidCertificate(_)) {
            DirectoryError::Misconfigured(text)
        } else {
            DirectoryError::Unavailable(text)
        };
    }
    let reason = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    };
    DirectoryError::Unavailable(format!("{what}: {reason}"))
}

/// The error of TLS at the bottom. An I/O error passes over what it wraps when it is asked for its source.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => tls_error(inner),
        None => tls_error(error.source()?),
    }
}
