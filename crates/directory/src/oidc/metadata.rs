//! What a provider says about itself (OpenID Connect Discovery 1.0), and what of it we believe.

use serde_json::Value;
use url::Url;

use super::config::{OidcConfig, is_loopback, server_url};
use super::token::Algorithm;
use crate::DirectoryError;

/// Endpoints and abilities of a provider.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) authorization: Url,
    pub(crate) token: Url,
    pub(crate) keys: Url,
    pub(crate) user_info: Option<Url>,
    pub(crate) end_session: Option<Url>,
    /// It puts `iss` into its answers (RFC 9207).
    pub(crate) answers_with_issuer: bool,
    /// Whether it says that it checks PKCE with S256; `None` if it says nothing.
    pub(crate) pkce: Option<bool>,
    pub(crate) client_auth: Vec<String>,
    pub(crate) algorithms: Vec<Algorithm>,
}

/// Where the document of an issuer is.
pub(crate) fn address(issuer: &str) -> Result<Url, DirectoryError> {
    let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    server_url(&text).map_err(|reason| DirectoryError::Misconfigured(format!("OIDC_ISSUER {reason}")))
}

/// The address of an endpoint: as safe as the issuer itself. Only a provider on loopback may name plain HTTP on loopback.
fn endpoint(document: &Value, name: &str, issuer: &str) -> Result<Option<Url>, DirectoryError> {
    let wrong = |reason: &str| Err(DirectoryError::Misconfigured(format!("the provider's {name} {reason}")));
    let text = match document.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.len() <= 2048 => text,
        Some(_) => return wrong("is no address"),
    };
    let local = Url::parse(issuer).is_ok_and(|issuer| is_loopback(&issuer));
    match server_url(text) {
        Ok(url) if url.scheme() == "http" && !local => wrong("is plain HTTP"),
        Ok(url) if url.fragment().is_some() => wrong("holds '#'"),
        Ok(url) => Ok(Some(url)),
        Err(reason) => wrong(reason),
    }
}

fn texts(document: &Value, name: &str) -> Option<Vec<String>> {
    let list = document.get(name)?.as_array()?;
    Some(list.iter().take(100).filter_map(Value::as_str).map(str::to_owned).collect())
}

impl Metadata {
    /// Believes a document only if it names the very issuer that was configured.
    ///
    /// # Errors
    /// [`DirectoryError::Misconfigured`] with what is wrong.
    pub(crate) fn read(document: &Value, config: &OidcConfig) -> Result<Self, DirectoryError> {
        issuer(document, &config.issuer)?;
        let needed = |name: &str| {
            endpoint(document, name, &config.issuer)?
                .ok_or_else(|| DirectoryError::Misconfigured(format!("the provider names no {name}")))
        };
        if texts(document, "response_types_supported")
            .is_some_and(|types| !types.iter().any(|kind| kind == "code"))
        {
            return Err(DirectoryError::misconfigured("the provider does not support the code flow"));
        }
        let pkce = texts(document, "code_challenge_methods_supported")
            .map(|methods| methods.iter().any(|method| method == "S256"));
        if pkce == Some(false) {
            return Err(DirectoryError::misconfigured("the provider does not support PKCE with S256"));
        }
        let offered = texts(document, "id_token_signing_alg_values_supported")
            .unwrap_or_else(|| vec!["RS256".to_owned()]);
        let algorithms: Vec<Algorithm> = offered
            .iter()
            .filter_map(|name| Algorithm::named(name))
            .filter(|algorithm| config.algorithms.contains(algorithm))
            .collect();
        if algorithms.is_empty() {
            return Err(DirectoryError::misconfigured(
                "the provider signs ID tokens with no algorithm that is allowed here",
            ));
        }
        Ok(Self {
            authorization: needed("authorization_endpoint")?,
            token: needed("token_endpoint")?,
            keys: needed("jwks_uri")?,
            user_info: endpoint(document, "userinfo_endpoint", &config.issuer)?,
            end_session: endpoint(document, "end_session_endpoint", &config.issuer)?,
            answers_with_issuer: document["authorization_response_iss_parameter_supported"] == true,
            pkce,
            client_auth: texts(document, "token_endpoint_auth_methods_supported")
                .unwrap_or_else(|| vec!["client_secret_basic".to_owned()]),
            algorithms,
        })
    }
}

/// The issuer in a document, character for character (Discovery 1.0, section 4.3).
fn issuer(document: &Value, expected: &str) -> Result<(), DirectoryError> {
    match document.get("issuer").and_then(Value::as_str) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(DirectoryError::Misconfigured(format!(
            "the provider calls itself '{}', and OIDC_ISSUER is '{expected}'; they must be equal to the character",
            crate::step::printable(found, 200)
        ))),
        None => {
            Err(DirectoryError::misconfigured("the document at OIDC_ISSUER is no description of a provider"))
        }
    }
}

/// Only the address of the keys, for issuers of workload tokens.
pub(crate) fn keys_of(document: &Value, expected: &str) -> Result<Url, DirectoryError> {
    issuer(document, expected)?;
    endpoint(document, "jwks_uri", expected)?
        .ok_or_else(|| DirectoryError::misconfigured("the issuer names no jwks_uri"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ClientAuth;

    fn read(change: impl FnOnce(&mut Value)) -> Result<Metadata, String> {
        let config =
            OidcConfig::new("https://id.example", "me", ClientAuth::Public, "https://lab.example/cb");
        let mut document = json!({
            "issuer": "https://id.example",
            "authorization_endpoint": "https://id.example/auth",
            "token_endpoint": "https://token.id.example/token",
            "jwks_uri": "https://id.example/keys",
        });
        change(&mut document);
        Metadata::read(&document, &config).map_err(|error| error.reason())
    }

    #[test]
    fn a_document_that_lies_is_not_believed() {
        let metadata = read(|_| {}).expect("the plain one is fine");
        assert_eq!(metadata.algorithms, [Algorithm::Rs256], "the default of the specification");

        for (name, value, says) in [
            ("issuer", json!("https://id.example/"), "calls itself"),
            ("issuer", json!("https://evil.example"), "calls itself"),
            ("issuer", json!(7), "no description"),
            ("token_endpoint", json!("http://id.example/token"), "https"),
            ("token_endpoint", json!("http://127.0.0.1:1/token"), "plain HTTP"),
            ("token_endpoint", json!("https://a:b@id.example/"), "password"),
            ("token_endpoint", json!("file:///etc/passwd"), "https"),
            ("jwks_uri", Value::Null, "names no jwks_uri"),
            ("jwks_uri", json!(["https://id.example/keys"]), "no address"),
            ("end_session_endpoint", json!("javascript:alert(1)"), "https"),
            ("authorization_endpoint", json!("https://id.example/auth#x"), "'#'"),
            ("response_types_supported", json!(["id_token"]), "code flow"),
            ("code_challenge_methods_supported", json!(["plain"]), "PKCE"),
            ("id_token_signing_alg_values_supported", json!(["none", "HS256"]), "no algorithm"),
        ] {
            let reason = read(|document| document[name] = value.clone()).expect_err(name);
            assert!(reason.contains(says), "{name} {value}: {reason}");
        }
    }
}
