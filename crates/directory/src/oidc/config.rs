//! Settings of an OpenID Connect provider, and what can be wrong with them.

use std::time::Duration;

use interlock_model::secret::Secret;
use url::{Host, Url};

use super::token::Algorithm;
use crate::RoleMap;

/// How the server proves to the provider who it is.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// Not at all: a public client, held by PKCE alone.
    Public,
    /// With a secret, by HTTP Basic or in the form, whichever the provider takes.
    Secret(Secret),
    /// With a signed assertion (`private_key_jwt`, RFC 7523).
    PrivateKey {
        /// Private key: PKCS#8 as PEM.
        pem: Secret,
        /// Algorithm of the key.
        algorithm: Algorithm,
        /// Id of the key at the provider, if it wants one.
        kid: Option<String>,
    },
}

/// How to sign people in with one provider. Make it with [`OidcConfig::new`], then set the public fields.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// The issuer, character for character as the provider writes it. `https://`; `http://` for a loopback address only.
    pub issuer: String,
    /// Our id at the provider.
    pub client_id: String,
    /// How we prove it.
    pub client_auth: ClientAuth,
    /// Where the provider sends the browser back to, character for character as registered there.
    pub redirect_uri: String,
    /// Scopes to ask for; `openid` is among them.
    pub scopes: Vec<String>,
    /// Claim with the sign-in name. Where it is missing: the mail address if verified, else `sub`.
    pub username_claim: String,
    /// Claim with the groups: a list of texts, or one. `realm_access.roles` looks inside `realm_access`.
    pub groups_claim: String,
    /// Which groups give which role.
    pub roles: RoleMap,
    /// If set, `acr` in the ID token must be one of these; they are asked for.
    pub required_acr: Vec<String>,
    /// Algorithms that an ID token may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// Clocks may differ by this much, at most 5 min. Default 30 s.
    pub skew: Duration,
    /// Authorities to trust, as PEM. Without it, those of this machine.
    pub ca_pem: Option<String>,
    /// Longest time for all requests of one step, 100 ms to 60 s. Default 10 s.
    pub timeout: Duration,
    /// Asks the user info endpoint also when the ID token says everything. It is always asked for what is missing.
    pub always_user_info: bool,
}

impl OidcConfig {
    /// With the usual claims and scopes.
    pub fn new(
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        client_auth: ClientAuth,
        redirect_uri: impl Into<String>,
    ) -> Self {
        Self {
            issuer: issuer.into(),
            client_id: client_id.into(),
            client_auth,
            redirect_uri: redirect_uri.into(),
            scopes: ["openid", "profile", "email"].map(str::to_owned).to_vec(),
            username_claim: "preferred_username".to_owned(),
            groups_claim: "groups".to_owned(),
            roles: RoleMap::default(),
            required_acr: Vec::new(),
            algorithms: Algorithm::ALL.to_vec(),
            skew: Duration::from_secs(30),
            ca_pem: None,
            timeout: Duration::from_secs(10),
            always_user_info: false,
        }
    }

    /// Reads `OIDC_SCOPES`: words with spaces between; `openid` is added.
    pub fn read_scopes(text: &str) -> Vec<String> {
        let mut scopes = vec!["openid".to_owned()];
        scopes.extend(text.split_whitespace().filter(|word| *word != "openid").map(str::to_owned));
        scopes
    }

    /// Checks every setting by itself; connects to nothing.
    ///
    /// # Errors
    /// One sentence for each setting that is wrong, with the setting's name.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if let Err(reason) = server_url(&self.issuer) {
            wrong.push(format!("OIDC_ISSUER {reason}"));
        } else if self.issuer.contains(['?', '#']) {
            wrong.push("OIDC_ISSUER must not hold '?' or '#'".to_owned());
        }
        if let Err(reason) = server_url(&self.redirect_uri) {
            wrong.push(format!("OIDC_REDIRECT_URI {reason}"));
        } else if self.redirect_uri.contains('#') {
            wrong.push("OIDC_REDIRECT_URI must not hold '#'".to_owned());
        }
        if self.client_id.is_empty()
            || self.client_id.len() > 256
            || self.client_id.chars().any(char::is_control)
        {
            wrong.push("OIDC_CLIENT_ID is not set".to_owned());
        }
        match &self.client_auth {
            ClientAuth::Secret(secret) if secret.expose().trim().is_empty() => {
                wrong.push("OIDC_CLIENT_SECRET is empty; leave it unset for a public client".to_owned());
            }
            ClientAuth::PrivateKey { pem, algorithm, .. } if algorithm.signing_key(pem).is_err() => {
                wrong.push("the client's private key is no PKCS#8 PEM for its algorithm".to_owned());
            }
            _ => {}
        }
        if !self.scopes.iter().any(|scope| scope == "openid") {
            wrong.push("OIDC_SCOPES must hold openid".to_owned());
        }
        if self.username_claim.is_empty() || self.groups_claim.is_empty() {
            wrong.push("OIDC_USERNAME_CLAIM and OIDC_GROUPS_CLAIM must name a claim".to_owned());
        }
        if self.algorithms.is_empty() {
            wrong.push("no algorithm is allowed".to_owned());
        }
        if self.skew > Duration::from_mins(5) {
            wrong.push("clocks may differ by at most 5 minutes".to_owned());
        }
        if !(Duration::from_millis(100)..=Duration::from_mins(1)).contains(&self.timeout) {
            wrong.push("the time limit must be 100 ms to 60 s".to_owned());
        }
        if let Some(Err(reason)) = self.ca_pem.as_deref().map(|pem| crate::tls::roots(Some(pem))) {
            wrong.push(format!("OIDC_CA_FILE: {reason}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// An address that we would send secrets or a browser to: `https`, or `http` on a loopback address; no user, no password.
pub(crate) fn server_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is no URL such as https://id.example")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password");
    }
    match url.scheme() {
        "https" if url.host().is_some() => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err("must begin with https:// (http:// is for loopback addresses)"),
        _ => Err("must begin with https://"),
    }
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut OidcConfig)) -> String {
        let mut config =
            OidcConfig::new("https://id.example", "interlock", ClientAuth::Public, "https://lab.example/cb");
        config.validate().expect("valid before the change");
        change(&mut config);
        config.validate().expect_err("a setting is wrong").join("\n")
    }

    #[test]
    fn each_wrong_setting_is_named() {
        assert!(
            wrong(|c| c.issuer = "http://id.example".to_owned())
                .contains("OIDC_ISSUER must begin with https")
        );
        assert!(wrong(|c| c.issuer = "http://127.0.0.1.example".to_owned()).contains("OIDC_ISSUER"));
        assert!(wrong(|c| c.issuer = "https://id.example?x=1".to_owned()).contains("OIDC_ISSUER"));
        assert!(wrong(|c| c.redirect_uri = "https://u:p@lab/cb".to_owned()).contains("OIDC_REDIRECT_URI"));
        assert!(wrong(|c| c.client_id = String::new()).contains("OIDC_CLIENT_ID"));
        assert!(
            wrong(|c| c.client_auth = ClientAuth::Secret(Secret::new(" "))).contains("OIDC_CLIENT_SECRET")
        );
        assert!(wrong(|c| c.scopes = vec!["profile".to_owned()]).contains("openid"));
        assert!(wrong(|c| c.algorithms.clear()).contains("algorithm"));
        assert!(wrong(|c| c.ca_pem = Some("x".to_owned())).contains("OIDC_CA_FILE"));
    }

    #[test]
    fn scopes_always_ask_for_an_id_token() {
        assert_eq!(OidcConfig::read_scopes(" email  openid groups"), ["openid", "email", "groups"]);
    }
}
