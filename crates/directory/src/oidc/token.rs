//! Signed tokens: reading, algorithms, keys, signatures. What the claims must say is `claims`.
//!
//! The header of a token chooses nothing: it names a key, and the key's own kind decides which algorithm may verify.
//! Addresses and keys inside a token (`jku`, `x5u`, `jwk`, `x5c`) are not looked at.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use interlock_model::secret::Secret;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde_json::{Map, Value};

/// Longest token, in bytes.
pub(crate) const MAX_TOKEN: usize = 16 << 10;
/// Most keys of one provider.
const MAX_KEYS: usize = 100;

/// Why a token is not acceptable. For log and audit trail only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Not three parts of base64url with JSON in them, or too long.
    #[error("malformed")]
    Malformed,
    /// It wants extensions to be understood (`crit`).
    #[error("critical extension")]
    Critical,
    /// An algorithm that is not allowed, or not that of the key; `none` and `HS256` are never allowed.
    #[error("algorithm")]
    Algorithm,
    /// No such key at the provider.
    #[error("unknown key")]
    UnknownKey,
    /// The signature is wrong.
    #[error("signature")]
    Signature,
    /// A token of another kind (`typ`).
    #[error("kind of token")]
    Kind,
    /// Another issuer.
    #[error("issuer")]
    Issuer,
    /// For another audience.
    #[error("audience")]
    Audience,
    /// For another client (`azp`).
    #[error("authorised party")]
    AuthorizedParty,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time has not come (`nbf`), or it was issued in the future.
    #[error("not valid yet")]
    NotYet,
    /// Issued before the sign-in began, or long ago, or for a longer time than is taken.
    #[error("issued too early or for too long")]
    Age,
    /// From another sign-in.
    #[error("nonce")]
    Nonce,
    /// Does not belong to the access token or the code beside it.
    #[error("hash of access token or code")]
    Hash,
    /// No usable subject.
    #[error("subject")]
    Subject,
    /// Not signed in strongly enough (`acr`).
    #[error("authentication context")]
    Context,
    /// No logout event.
    #[error("event")]
    Event,
    /// A claim that a rule asks for has another value.
    #[error("claim")]
    Claim,
}

/// Algorithms with a public key and 128 bits of strength. `none` and `HS…` cannot be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, PKCS#1 v1.5, SHA-256.
    Rs256,
    /// RSA, PSS, SHA-256.
    Ps256,
    /// ECDSA, P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    /// As in `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// By its name in `alg`.
    pub fn named(name: &str) -> Option<Self> {
        // RFC 9864 gives EdDSA with this curve a name of its own.
        let name = if name == "Ed25519" { "EdDSA" } else { name };
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub(crate) const fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// When it is no PKCS#8 PEM for this algorithm.
    pub(crate) fn signing_key(self, pem: &Secret) -> Result<EncodingKey, jsonwebtoken::errors::Error> {
        let pem = pem.expose().as_bytes();
        let key = match self {
            Self::Rs256 | Self::Ps256 => EncodingKey::from_rsa_pem(pem),
            Self::Es256 => EncodingKey::from_ec_pem(pem),
            Self::EdDsa => EncodingKey::from_ed_pem(pem),
        }?;
        // Some keys are read and turn out unusable when they sign.
        jsonwebtoken::crypto::sign(b"", &key, self.library()).map(|_| key)
    }
}

/// A token that was taken apart and not judged.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) kid: Option<String>,
    /// `typ`, in lower case, without `application/`.
    pub(crate) kind: Option<String>,
    signed: &'a str,
    signature: &'a str,
    claims: Map<String, Value>,
}

impl<'a> Parsed<'a> {
    pub(crate) fn read(token: &'a str) -> Result<Self, TokenFault> {
        if token.len() > MAX_TOKEN {
            return Err(TokenFault::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
        let header = object(header)?;
        if header.contains_key("crit") {
            return Err(TokenFault::Critical);
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= 512 => Ok(Some(text.clone())),
            Some(_) => Err(TokenFault::Malformed),
        };
        let algorithm = text("alg")?.ok_or(TokenFault::Algorithm)?;
        let kind = text("typ")?.map(|kind| {
            let kind = kind.to_ascii_lowercase();
            kind.strip_prefix("application/").map_or_else(|| kind.clone(), str::to_owned)
        });
        Ok(Self {
            algorithm: Algorithm::named(&algorithm).ok_or(TokenFault::Algorithm)?,
            kid: text("kid")?,
            kind,
            signed,
            signature,
            claims: object(payload)?,
        })
    }

    /// The issuer that it names, before anything is verified: only to choose whose keys are asked.
    pub(crate) fn unverified_issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Verifies the signature and gives the claims.
    pub(crate) fn verify(self, keys: &Keys, allowed: &[Algorithm]) -> Result<Map<String, Value>, TokenFault> {
        if !allowed.contains(&self.algorithm) {
            return Err(TokenFault::Algorithm);
        }
        let key = keys.find(self.kid.as_deref(), self.algorithm)?;
        match jsonwebtoken::crypto::verify(
            self.signature,
            self.signed.as_bytes(),
            key,
            self.algorithm.library(),
        ) {
            Ok(true) => Ok(self.claims),
            _ => Err(TokenFault::Signature),
        }
    }
}

fn object(part: &str) -> Result<Map<String, Value>, TokenFault> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)?;
    match interlock_model::strict_json::parse(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(TokenFault::Malformed),
    }
}

/// The public keys of a provider that can verify.
#[derive(Debug, Default)]
pub(crate) struct Keys(Vec<Key>);

struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    verifying: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, {:?})", self.kid, self.algorithms)
    }
}

impl Keys {
    /// Reads a JWK set (RFC 7517). Keys that cannot verify here are left out.
    pub(crate) fn read(document: &Value) -> Option<Self> {
        let keys = document.get("keys")?.as_array()?;
        Some(Self(keys.iter().take(MAX_KEYS).filter_map(Key::read).collect()))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The key for a token: the one of that id; without an id the only one that fits.
    pub(crate) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&DecodingKey, TokenFault> {
        let mut named = self.0.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid).peekable();
        named.peek().ok_or(TokenFault::UnknownKey)?;
        let mut fitting = named.filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(&key.verifying),
            (None, _) => Err(TokenFault::Algorithm),
            (Some(_), Some(_)) => Err(TokenFault::UnknownKey),
        }
    }
}

impl Key {
    fn read(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        // A private key in public is nobody's key any more.
        if jwk.get("d").is_some() || text("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops") {
            operations.as_array()?.iter().find(|operation| *operation == "verify")?;
        }
        let (kinds, verifying): (&[Algorithm], DecodingKey) = match (text("kty")?, text("crv")) {
            ("RSA", None) => {
                let modulus = URL_SAFE_NO_PAD.decode(text("n")?).ok()?;
                let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
                // 2048 to 8192 bits.
                (256..=1024).contains(&significant).then_some(())?;
                (
                    &[Algorithm::Rs256, Algorithm::Ps256],
                    DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?,
                )
            }
            ("EC", Some("P-256")) => {
                (&[Algorithm::Es256], DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            ("OKP", Some("Ed25519")) => {
                (&[Algorithm::EdDsa], DecodingKey::from_ed_components(text("x")?).ok()?)
            }
            _ => return None,
        };
        let pinned = text("alg");
        let algorithms: Vec<_> = kinds
            .iter()
            .copied()
            .filter(|kind| pinned.is_none_or(|name| Algorithm::named(name) == Some(*kind)))
            .collect();
        (!algorithms.is_empty()).then(|| Self { kid: text("kid").map(str::to_owned), algorithms, verifying })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str) -> String {
        format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode("{}"))
    }

    #[test]
    fn headers_that_choose_for_us_are_refused() {
        for (header, fault) in [
            (r#"{"alg":"none"}"#, TokenFault::Algorithm),
            (r#"{"alg":"HS256"}"#, TokenFault::Algorithm),
            (r#"{"alg":"RS1"}"#, TokenFault::Algorithm),
            (r#"{"typ":"JWT"}"#, TokenFault::Algorithm),
            (r#"{"alg":"RS256","crit":["b64"],"b64":false}"#, TokenFault::Critical),
            (r#"{"alg":"RS256","alg":"none"}"#, TokenFault::Malformed),
            (r#"{"alg":"RS256","kid":7}"#, TokenFault::Malformed),
            ("[]", TokenFault::Malformed),
        ] {
            assert_eq!(Parsed::read(&token(header)).map(|_| ()), Err(fault), "{header}");
        }
        for text in ["", "a.b", "..", "a.b.c.d", &"a".repeat(MAX_TOKEN + 1)] {
            assert_eq!(Parsed::read(text).map(|_| ()), Err(TokenFault::Malformed), "{text:.10}");
        }
    }

    #[test]
    fn keys_that_cannot_or_must_not_verify_are_left_out() {
        let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let long = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let x = URL_SAFE_NO_PAD.encode([1; 32]);
        let keys = serde_json::json!({"keys": [
            {"kty": "RSA", "kid": "short", "n": short, "e": "AQAB"},
            {"kty": "RSA", "kid": "enc", "use": "enc", "n": long, "e": "AQAB"},
            {"kty": "RSA", "kid": "private", "n": long, "e": "AQAB", "d": "AQAB"},
            {"kty": "oct", "kid": "secret", "k": x},
            {"kty": "EC", "crv": "P-384", "kid": "p384", "x": x, "y": x},
            {"kty": "OKP", "crv": "Ed25519", "kid": "rsa-alg", "alg": "RS256", "x": x},
            {"kty": "OKP", "crv": "Ed25519", "kid": "sign", "key_ops": ["sign"], "x": x},
            {"kty": "RSA", "kid": "good", "alg": "RS256", "n": long, "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": x},
            7,
        ]});

        let keys = Keys::read(&keys).expect("a set");

        assert_eq!(keys.0.iter().filter_map(|key| key.kid.as_deref()).collect::<Vec<_>>(), ["good", "ed"]);
        assert!(keys.find(Some("good"), Algorithm::Rs256).is_ok());
        assert_eq!(keys.find(Some("good"), Algorithm::Ps256).err(), Some(TokenFault::Algorithm));
        assert_eq!(keys.find(Some("ed"), Algorithm::Rs256).err(), Some(TokenFault::Algorithm));
        assert_eq!(keys.find(Some("other"), Algorithm::Rs256).err(), Some(TokenFault::UnknownKey));
        assert!(keys.find(None, Algorithm::Rs256).is_ok(), "the only one that fits");
    }
}
