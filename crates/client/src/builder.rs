//! Making a client: which address, which authorities, which limits.

use std::sync::Arc;
use std::time::Duration;

use interlock_model::secret::Secret;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Identity, Url};

use crate::renewal::{Renewal, signed};
use crate::{Client, ClientError, TokenStore};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an ordinary answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client is made of.
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    url: String,
    ca: Option<Vec<u8>>,
    identity: Option<Vec<u8>>,
    token: Option<Secret>,
    renewal: Option<Arc<dyn TokenStore>>,
    answer_timeout: Option<Duration>,
}

impl Client {
    /// A client for the server at this address, such as `https://robot.example.org:8000`.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder { url: url.into(), ..Builder::default() }
    }
}

impl Builder {
    /// Trusts only the authorities in this PEM text. Without it, those of the system.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows this client certificate to servers that ask for one: the chain and its key as one PEM text.
    pub fn identity_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(pem.into());
        self
    }

    /// Signs in with this token.
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// Renews the token with the refresh token of this store, once, when it has ended.
    pub fn renewed_by(mut self, store: Arc<dyn TokenStore>) -> Self {
        self.renewal = Some(store);
        self
    }

    /// Longest wait for an ordinary answer; 30 s unless told. Emergency stops and event streams have their own.
    pub fn answer_timeout(mut self, limit: Duration) -> Self {
        self.answer_timeout = Some(limit);
        self
    }

    /// Makes the client. Connects to nothing.
    ///
    /// # Errors
    /// [`ClientError::Settings`] for an address, a CA file or a token that cannot be used; [`ClientError::Tls`] when this
    /// machine trusts no authority at all.
    pub fn build(self) -> Result<Client, ClientError> {
        let address = server_address(&self.url)?;
        let loopback = is_loopback(&address);
        if address.scheme() == "http" && !loopback {
            return Err(ClientError::Settings(format!(
                "{} is plain HTTP to another machine: passwords and tokens would be readable on the network",
                shown(&address)
            )));
        }
        // The program chooses the provider of cryptography; tests and small tools get the one that we ship.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("interlock/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30));
        if loopback {
            http = http.no_proxy();
        }
        if address.scheme() == "http" {
            // No TLS will happen, so a machine without authorities is no obstacle.
            http = http.tls_certs_only([]);
        } else {
            http = http.https_only(true);
            if let Some(pem) = &self.ca {
                http = http.tls_certs_only(authorities(pem)?);
            }
            if let Some(pem) = &self.identity {
                let identity = Identity::from_pem(pem).map_err(|_| {
                    ClientError::Settings(
                        "the client certificate and its key cannot be used: both are wanted in PEM form"
                            .to_owned(),
                    )
                })?;
                http = http.identity(identity);
            }
        }
        let shown = shown(&address);
        let http = http.build().map_err(|_| match (&self.identity, &self.ca) {
            (Some(_), _) => ClientError::Settings(
                "the client certificate does not belong to its key, or one of them or the CA file cannot be used"
                    .to_owned(),
            ),
            (None, ca) => ClientError::Tls {
                url: shown.clone(),
                reason: if ca.is_some() {
                    "the CA file holds a certificate that cannot be used".to_owned()
                } else {
                    "this machine trusts no certificate authority".to_owned()
                },
            },
        })?;
        let headers = self.token.as_ref().map(signed).transpose()?.unwrap_or_default();
        let renewal = self.renewal.map(|store| Arc::new(Renewal::new(store)));
        Ok(Client::new(http, address, shown, headers, renewal, self.answer_timeout.unwrap_or(ANSWER_TIMEOUT)))
    }
}

fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, ClientError> {
    let unusable = || ClientError::Settings("the CA file holds no PEM certificate".to_owned());
    let found = Certificate::from_pem_bundle(pem).map_err(|_| unusable())?;
    if found.is_empty() { Err(unusable()) } else { Ok(found) }
}

/// Reads the address of a server: `https://host[:port][/prefix]`; `https://` may be left out.
///
/// # Errors
/// [`ClientError::Settings`] when it is no such address. The text never repeats a password in it.
pub fn server_address(text: &str) -> Result<Url, ClientError> {
    let text = text.trim();
    let bad = |reason: &str| {
        ClientError::Settings(format!(
            "the address of the server {reason}; it looks like https://robot.example.org:8000"
        ))
    };
    let spelled = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&spelled).map_err(|_| bad("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("must begin with https://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("must not hold a user name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("must not hold '?' or '#'"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// Without the slash that a URL gives to an empty path.
pub(crate) fn shown(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return address.is_loopback();
    }
    // RFC 6761, section 6.3: these names never leave the machine.
    let host = host.trim_end_matches('.');
    host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        Client::builder(url).build().expect_err("a refusal").to_string()
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for url in ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:1", "http://ot2.localhost"] {
            assert!(Client::builder(url).build().is_ok(), "{url}");
        }
        for url in [
            "http://robot.example.org",
            "http://192.168.1.7:8000",
            "http://localhost.example.org",
            "http://0.0.0.0",
        ] {
            assert!(refused(url).contains("plain HTTP"), "{url}");
        }
    }

    #[test]
    fn an_address_with_secrets_in_it_is_refused_and_not_repeated() {
        let text = refused("https://ana:hunter2@robot.example.org");

        assert!(text.contains("user name or password"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn an_address_may_leave_out_the_scheme_and_end_with_a_slash() {
        for text in ["robot:8000", "https://robot:8000/", " https://robot:8000 "] {
            assert_eq!(shown(&server_address(text).expect("an address")), "https://robot:8000");
        }
        assert_eq!(shown(&server_address("https://lab/ot2/").expect("an address")), "https://lab/ot2");
        for text in ["", "ftp://robot", "https://robot?x=1", "https://robot#x", "https://"] {
            assert!(server_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_no_ca_file() {
        let error = Client::builder("https://robot").ca_pem("hello").build().expect_err("a refusal");

        assert!(error.to_string().contains("no PEM certificate"), "{error}");
    }

    #[test]
    fn a_token_does_not_show_in_debug_output() {
        let client = Client::builder("http://localhost")
            .token(Secret::new("ilk_very_secret"))
            .build()
            .expect("a client");

        assert!(!format!("{client:?}").contains("very_secret"));
    }
}
