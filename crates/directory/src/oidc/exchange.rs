//! From the code to the tokens: the token endpoint and how we prove there who we are.

use std::time::Duration;

use interlock_model::secret::Secret;
use interlock_model::{Entropy, Timestamp};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::config::{ClientAuth, OidcConfig};
use super::http::{Answer, Http};
use super::metadata::Metadata;
use crate::{DirectoryError, Refusal};

/// How long an assertion of ours is valid.
const ASSERTION_LIFETIME: Duration = Duration::from_mins(1);

/// What the token endpoint gave.
pub(crate) struct Tokens {
    pub(crate) id_token: Secret,
    pub(crate) access_token: Option<Secret>,
}

/// Sends a code, once: it is never tried again.
pub(crate) async fn send(
    http: &Http,
    config: &OidcConfig,
    metadata: &Metadata,
    grant: [(&'static str, String); 3],
    now: Timestamp,
    entropy: &dyn Entropy,
) -> Result<Answer, DirectoryError> {
    let mut fields = vec![("grant_type", "authorization_code".to_owned())];
    fields.extend(grant);
    let mut basic = None;
    match &config.client_auth {
        ClientAuth::Public => fields.push(("client_id", config.client_id.clone())),
        ClientAuth::Secret(secret) => {
            let takes = |method: &str| metadata.client_auth.iter().any(|one| one == method);
            if takes("client_secret_basic") || !takes("client_secret_post") {
                // RFC 6749, section 2.3.1: both are form-encoded before they go into the header.
                basic = Some((encoded(&config.client_id), encoded(secret.expose())));
            } else {
                fields.push(("client_id", config.client_id.clone()));
                fields.push(("client_secret", secret.expose().to_owned()));
            }
        }
        ClientAuth::PrivateKey { .. } => {
            fields.push(("client_id", config.client_id.clone()));
            fields.push((
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned(),
            ));
            fields.push(("client_assertion", assertion(config, metadata, now, entropy)?));
        }
    }
    http.form(&metadata.token, &fields, basic, "the token endpoint").await
}

/// Reads the tokens out of the answer, or the reason why there are none.
pub(crate) fn read(answer: &Answer) -> Result<Tokens, DirectoryError> {
    let body = answer.body.as_ref();
    let text = |name: &str| body.and_then(|body| body.get(name)).and_then(Value::as_str);
    if answer.status != 200 {
        return Err(match (answer.status, text("error")) {
            (400 | 401, Some("invalid_grant")) => Refusal::Code.into(),
            (400 | 401, Some("invalid_client" | "unauthorized_client")) => DirectoryError::misconfigured(
                "the provider does not accept OIDC_CLIENT_ID with this secret or key",
            ),
            (429 | 500.., _) => {
                DirectoryError::Unavailable(format!("the token endpoint answered {}", answer.status))
            }
            (300..400, _) => {
                DirectoryError::misconfigured("the token endpoint redirects, which is not followed")
            }
            _ => DirectoryError::Misconfigured(format!("the token endpoint answered {}", answer.status)),
        });
    }
    let bearer = text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    match text("id_token") {
        Some(token) if bearer => {
            Ok(Tokens { id_token: Secret::new(token), access_token: text("access_token").map(Secret::new) })
        }
        _ => Err(DirectoryError::misconfigured(
            "the token endpoint gave no ID token; OIDC_SCOPES must hold openid",
        )),
    }
}

/// The error in an answer of the token endpoint, if it is one that the specification knows.
pub(crate) fn error(answer: &Answer) -> Option<&str> {
    let known = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    ];
    let error = answer.body.as_ref()?.get("error")?.as_str()?;
    known.contains(&error).then_some(error)
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A signed assertion (RFC 7523, section 3): for the token endpoint alone, one minute, one use.
fn assertion(
    config: &OidcConfig,
    metadata: &Metadata,
    now: Timestamp,
    entropy: &dyn Entropy,
) -> Result<String, DirectoryError> {
    let ClientAuth::PrivateKey { pem, algorithm, kid } = &config.client_auth else {
        return Err(DirectoryError::misconfigured("there is no private key"));
    };
    let unusable = |_| DirectoryError::misconfigured("the client's private key cannot sign");
    let key = algorithm.signing_key(pem).map_err(unusable)?;
    let mut header = jsonwebtoken::Header::new(algorithm.library());
    header.kid.clone_from(kid);
    let claims = json!({
        "iss": config.client_id,
        "sub": config.client_id,
        "aud": metadata.token.as_str(),
        "jti": interlock_model::id::random_hex(entropy, 16),
        "iat": now.seconds(),
        "exp": now.plus(ASSERTION_LIFETIME).seconds(),
    });
    jsonwebtoken::encode(&header, &claims, &key).map_err(unusable)
}
