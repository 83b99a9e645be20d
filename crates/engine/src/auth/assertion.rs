//! Signed client assertions: `private_key_jwt` (RFC 7523 section 2.2, OpenID Connect Core section 9).
//!
//! An agent registers public keys; the assertion names itself as issuer and subject and this installation as audience, ends
//! within minutes and is used once. The key is chosen among the registered ones only: nothing in the token is fetched.

use interlock_model::Timestamp;
use interlock_model::text::{Form as _, KeyId, KeyMember};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::documents::Used;

/// Longest assertion that is looked at, in bytes.
const MAX_BYTES: usize = 4096;
/// Longest time from now to its end, in seconds.
const MAX_AHEAD: i64 = 300;
/// Clocks may differ by this much, in seconds.
const LEEWAY: i64 = 30;
/// Most keys of one agent.
pub(super) const MAX_KEYS: usize = 4;

/// An assertion that holds.
#[derive(Debug)]
pub(super) struct Assertion {
    subject: String,
    jti: String,
    exp: i64,
}

impl Assertion {
    /// The mark that it was used, to be stored once.
    pub(super) fn used(&self) -> Used {
        let until = Timestamp::from_seconds(self.exp.saturating_add(2 * LEEWAY));
        Used { what: format!("assertion {} {}", self.subject, self.jti), until }
    }
}

#[derive(Deserialize)]
struct AssertionClaims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    jti: String,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    iat: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Why a key cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// More than [`MAX_KEYS`].
    #[error("at most 4 keys")]
    TooMany,
    /// Not a public key that is accepted.
    #[error("each key must be a public JSON Web Key: OKP Ed25519, EC P-256, or RSA of at least 2048 bits")]
    Form,
    /// The private half was sent.
    #[error(
        "this is a private key; send its public half, and make a new key: this one is no secret any more"
    )]
    Private,
}

fn algorithm_of(key: &Jwk) -> Option<Algorithm> {
    match &key.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            Some(Algorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            Some(Algorithm::ES256)
        }
        // 2048 bits are 342 characters of base64url.
        AlgorithmParameters::RSA(rsa) if rsa.n.len() >= 342 => Some(Algorithm::RS256),
        _ => None,
    }
}

/// Checks public keys that an agent registers and returns what is kept of them: nothing but the key itself and its id.
///
/// # Errors
/// [`BadKey`].
pub fn check_keys(keys: &[Value]) -> Result<Vec<Value>, BadKey> {
    if keys.len() > MAX_KEYS {
        return Err(BadKey::TooMany);
    }
    let mut kept = Vec::new();
    for key in keys {
        let members = key.as_object().ok_or(BadKey::Form)?;
        if ["d", "p", "q", "dp", "dq", "qi", "k", "oth"].iter().any(|name| members.contains_key(*name)) {
            return Err(BadKey::Private);
        }
        let parsed: Jwk = serde_json::from_value(key.clone()).map_err(|_| BadKey::Form)?;
        algorithm_of(&parsed).and(DecodingKey::from_jwk(&parsed).ok()).ok_or(BadKey::Form)?;
        let known = ["kty", "crv", "x", "y", "n", "e", "kid"];
        let plain: serde_json::Map<String, Value> = members
            .iter()
            .filter(|(name, _)| known.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let rule = |name: &str| if name == "kid" { KeyId::RULE } else { KeyMember::RULE };
        if plain.iter().any(|(name, value)| value.as_str().is_none_or(|text| !rule(name).holds(text))) {
            return Err(BadKey::Form);
        }
        kept.push(Value::Object(plain));
    }
    Ok(kept)
}

/// Checks an assertion of `agent` for the installation, whose names are `ours`, against the agent's registered keys.
pub(super) fn verify(
    text: &str,
    agent: &str,
    ours: &[&str],
    keys: &[Value],
    now: Timestamp,
) -> Option<Assertion> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let claims = keys.iter().find_map(|key| claims_under(text, key))?;
    let named = match &claims.aud {
        Audience::One(one) => is_ours(one, ours),
        // One audience only: a list invites use elsewhere (RFC 7523bis).
        Audience::Many(many) => many.len() == 1 && is_ours(&many[0], ours),
    };
    let now = now.seconds();
    let in_force = claims.exp.saturating_add(LEEWAY) > now
        && claims.exp <= now + MAX_AHEAD + LEEWAY
        && claims.nbf.is_none_or(|nbf| nbf <= now + LEEWAY)
        && claims.iat.is_none_or(|iat| iat <= now + LEEWAY);
    let itself = claims.iss == agent && claims.sub == agent;
    let named_once = (1..=128).contains(&claims.jti.len());
    (named && in_force && itself && named_once).then(|| Assertion {
        subject: agent.to_owned(),
        jti: claims.jti,
        exp: claims.exp,
    })
}

/// The audience is a name of the installation, its issuer among them, or that issuer's token endpoint.
fn is_ours(audience: &str, ours: &[&str]) -> bool {
    ours.iter().any(|name| audience == *name || audience.strip_suffix("/oauth/token") == Some(name))
}

fn claims_under(text: &str, key: &Value) -> Option<AssertionClaims> {
    let key: Jwk = serde_json::from_value(key.clone()).ok()?;
    let algorithm = algorithm_of(&key)?;
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let header = jsonwebtoken::decode_header(text).ok()?;
    // A header that asks for more than we understand is refused (RFC 7515 section 4.1.11).
    if header.alg != algorithm || header.crit.is_some() {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&key).ok()?;
    jsonwebtoken::decode::<AssertionClaims>(text, &decoding, &validation).ok().map(|data| data.claims)
}
