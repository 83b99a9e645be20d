//! Access tokens: JSON Web Tokens with one fixed algorithm per key (RFC 7519, RFC 8725).
//!
//! The header of a token never chooses the algorithm and may name nothing but `alg`, `typ` and `kid`. Times are judged by our
//! clock. What a token says is only half of an answer: [`super::Sessions`] asks whether its owner still has those rights.

use interlock_model::secret::Secret;
use interlock_model::{Entropy, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest token that is looked at, in bytes.
const MAX_BYTES: usize = 4096;
/// Clocks may differ by this much, in seconds.
const LEEWAY: i64 = 30;

/// Texts that were published as examples of a key. A key that holds one of them is refused.
const PUBLISHED: &[&str] = &[
    "your-256-bit-secret",
    "dev-secret-key-change-in-production",
    "your-secret-key",
    "your_secret_key",
    "change-in-production",
    "changeme",
    "secretkey",
    "jwt_secret_key",
    "supersecret",
];

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The configured key is short.
    #[error(
        "JWT_SECRET_KEY is shorter than 32 bytes. Make one with `openssl rand -base64 48`, or leave it unset to have a key made"
    )]
    Short,
    /// The configured key is no secret.
    #[error(
        "JWT_SECRET_KEY is an example from a document or has almost no variety, so anyone can forge tokens. Make one with `openssl rand -base64 48`, or leave it unset to have a key made"
    )]
    Published,
    /// The stored key is damaged.
    #[error(
        "the stored signing key is damaged; restore it from a backup, or delete the file: then everyone signs in again"
    )]
    Damaged,
}

/// A signing key and the keys that verify.
pub struct Keys {
    algorithm: Algorithm,
    kid: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    previous: Option<DecodingKey>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({:?}, kid {})", self.algorithm, self.kid)
    }
}

fn kid_of(material: &[u8]) -> String {
    let digest = Sha256::digest([b"interlock key id\n", material].concat());
    interlock_model::id::hexadecimal(&digest[..8])
}

impl Keys {
    /// HS256 with a configured secret; `previous` verifies and never signs.
    ///
    /// # Errors
    /// [`KeysError`] when the secret is short or was ever published.
    pub fn hs256(secret: &Secret, previous: Option<&Secret>) -> Result<Self, KeysError> {
        for secret in std::iter::once(secret).chain(previous) {
            let text = secret.expose();
            if text.len() < 32 {
                return Err(KeysError::Short);
            }
            let folded = text.to_ascii_lowercase();
            let distinct = text.bytes().collect::<std::collections::HashSet<_>>().len();
            if distinct < 10 || PUBLISHED.iter().any(|sample| folded.contains(sample)) {
                return Err(KeysError::Published);
            }
        }
        let bytes = secret.expose().as_bytes();
        Ok(Self {
            algorithm: Algorithm::HS256,
            kid: kid_of(bytes),
            signing: EncodingKey::from_secret(bytes),
            verifying: DecodingKey::from_secret(bytes),
            previous: previous.map(|previous| DecodingKey::from_secret(previous.expose().as_bytes())),
        })
    }

    /// EdDSA with a stored key in PKCS#8 form.
    ///
    /// # Errors
    /// [`KeysError::Damaged`].
    pub fn ed25519(pkcs8: &[u8]) -> Result<Self, KeysError> {
        use aws_lc_rs::signature::KeyPair as _;
        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeysError::Damaged)?;
        let public = pair.public_key().as_ref();
        Ok(Self {
            algorithm: Algorithm::EdDSA,
            kid: kid_of(public),
            signing: EncodingKey::from_ed_der(pkcs8),
            verifying: DecodingKey::from_ed_der(public),
            previous: None,
        })
    }

    /// A new key for [`Keys::ed25519`], in PKCS#8 form, to be stored with mode 0600.
    ///
    /// # Errors
    /// [`KeysError::Damaged`] when the operating system gives no randomness.
    pub fn generate() -> Result<Vec<u8>, KeysError> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let document =
            aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| KeysError::Damaged)?;
        Ok(document.as_ref().to_vec())
    }

    /// `EdDSA` or `HS256`.
    pub fn algorithm(&self) -> &'static str {
        if self.algorithm == Algorithm::EdDSA { "EdDSA" } else { "HS256" }
    }
}

/// What an access token says.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Claims {
    /// Sign-in name.
    pub sub: String,
    /// Always `access` here.
    #[serde(rename = "type")]
    pub kind: String,
    /// Roles at issue.
    pub roles: Vec<String>,
    /// Scopes at issue.
    pub scopes: Vec<String>,
    /// Name for people.
    pub name: String,
    /// Issued at, seconds.
    pub iat: i64,
    /// Not before, seconds.
    pub nbf: i64,
    /// Ends at, seconds.
    pub exp: i64,
    /// Id of the token.
    pub jti: String,
    /// Who issued it.
    pub iss: String,
    /// For which installation.
    pub aud: String,
    /// The principal's `tokens_valid_from` at issue, microseconds: when that moves, the token is dead.
    pub epo: i64,
}

/// Why a token is not accepted. To the outside every reason looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid authentication credentials")]
pub enum TokenError {
    /// None was sent.
    Missing,
    /// Not a token of ours, or its signature is wrong.
    Invalid,
    /// Its time is over, or has not come.
    Expired,
    /// It was revoked.
    Revoked,
    /// Its owner is unknown, disabled, or has changed credentials.
    Principal,
}

impl TokenError {
    /// For log and audit only.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing_token",
            Self::Invalid => "invalid_token",
            Self::Expired => "expired_token",
            Self::Revoked => "revoked_token",
            Self::Principal => "unknown_or_disabled_principal",
        }
    }
}

/// Issues and reads tokens.
#[derive(Debug)]
pub struct Tokens {
    keys: Keys,
    issuer: String,
    audience: String,
    lifetime_seconds: i64,
    validation: Validation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    #[serde(default)]
    kid: Option<String>,
}

impl Tokens {
    /// Tokens of one installation. `audience` is unique to it, so that no other installation's token is taken.
    pub fn new(keys: Keys, audience: String, lifetime_seconds: i64) -> Self {
        let mut validation = Validation::new(keys.algorithm);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self { keys, issuer: "interlock".to_owned(), audience, lifetime_seconds, validation }
    }

    /// Lifetime of an access token, in seconds.
    pub fn lifetime_seconds(&self) -> i64 {
        self.lifetime_seconds
    }

    /// `EdDSA` or `HS256`.
    pub fn algorithm(&self) -> &'static str {
        self.keys.algorithm()
    }

    /// Signs a new access token.
    ///
    /// # Errors
    /// [`KeysError::Damaged`] when the key cannot sign.
    pub fn issue(
        &self,
        name: &str,
        roles: &[String],
        epoch: Timestamp,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<(String, Claims), KeysError> {
        let scopes = interlock_model::policy::ROLES
            .iter()
            .filter(|(role, _)| roles.iter().any(|held| held == role))
            .flat_map(|(_, scopes)| scopes.iter().map(|&scope| scope.to_owned()))
            .collect::<std::collections::BTreeSet<_>>();
        let claims = Claims {
            sub: name.to_owned(),
            kind: "access".to_owned(),
            roles: roles.to_vec(),
            scopes: scopes.into_iter().collect(),
            name: name.to_owned(),
            iat: now.seconds(),
            nbf: now.seconds(),
            exp: now.seconds() + self.lifetime_seconds,
            jti: interlock_model::id::random_hex(entropy, 16),
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            epo: epoch.micros(),
        };
        let mut header = Header::new(self.keys.algorithm);
        header.kid = Some(self.keys.kid.clone());
        header.typ = Some("at+jwt".to_owned());
        let token =
            jsonwebtoken::encode(&header, &claims, &self.keys.signing).map_err(|_| KeysError::Damaged)?;
        Ok((token, claims))
    }

    /// Reads a token: form, header, signature, issuer, audience, type. Time is checked by [`Tokens::check_time`], because it
    /// passes.
    ///
    /// # Errors
    /// [`TokenError::Invalid`].
    pub fn read(&self, token: &str) -> Result<Claims, TokenError> {
        let header = strict_header(token).ok_or(TokenError::Invalid)?;
        if header.alg != self.keys.algorithm()
            || !matches!(header.typ.as_deref(), None | Some("at+jwt" | "JWT"))
        {
            return Err(TokenError::Invalid);
        }
        let key = match header.kid {
            None => &self.keys.verifying,
            Some(kid) if kid == self.keys.kid => &self.keys.verifying,
            Some(_) => self.keys.previous.as_ref().ok_or(TokenError::Invalid)?,
        };
        let claims = jsonwebtoken::decode::<Claims>(token, key, &self.validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        let ours = claims.kind == "access" && claims.iss == self.issuer && claims.aud == self.audience;
        if !ours || claims.jti.is_empty() || claims.jti.len() > 64 || claims.sub.is_empty() {
            return Err(TokenError::Invalid);
        }
        Ok(claims)
    }

    /// Whether the token is in force now.
    ///
    /// # Errors
    /// [`TokenError::Expired`].
    pub fn check_time(claims: &Claims, now: Timestamp) -> Result<(), TokenError> {
        let now = now.seconds();
        let in_force = claims.exp.saturating_add(LEEWAY) > now
            && claims.nbf.saturating_sub(LEEWAY) <= now
            && claims.iat.saturating_sub(LEEWAY) <= now;
        if in_force { Ok(()) } else { Err(TokenError::Expired) }
    }
}

fn strict_header(token: &str) -> Option<StrictHeader> {
    use base64::Engine as _;
    if token.len() > MAX_BYTES || token.bytes().filter(|&b| b == b'.').count() != 2 {
        return None;
    }
    let header = token.split('.').next()?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_model::time::TestEntropy;

    fn tokens() -> Tokens {
        Tokens::new(Keys::ed25519(&Keys::generate().expect("key")).expect("key"), "lab".into(), 3600)
    }

    fn issue(tokens: &Tokens) -> (String, Claims) {
        let now = Timestamp::from_seconds(1_000_000);
        tokens
            .issue("ana", &["operator".into()], Timestamp::from_seconds(5), now, &TestEntropy::seeded(1))
            .expect("issued")
    }

    #[test]
    fn a_token_is_read_by_its_own_installation_only() {
        let ours = tokens();
        let (token, claims) = issue(&ours);

        assert_eq!(ours.read(&token), Ok(claims));
        assert_eq!(tokens().read(&token), Err(TokenError::Invalid));
        let hs = Tokens::new(
            Keys::hs256(&Secret::new("0123456789abcdefghijklmnopqrstuvwxyz"), None).expect("key"),
            "lab".into(),
            60,
        );
        assert_eq!(hs.read(&token), Err(TokenError::Invalid));
    }

    #[test]
    fn any_changed_byte_kills_a_token() {
        let ours = tokens();
        let (token, _) = issue(&ours);

        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ascii");
            // The last character of a base64 part may carry unused bits; the decoder refuses or keeps them, never lies.
            assert_eq!(ours.read(&changed), Err(TokenError::Invalid), "byte {at}");
        }
    }

    #[test]
    fn a_header_chooses_nothing() {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let ours = tokens();
        let (token, _) = issue(&ours);
        let rest = token.split_once('.').expect("three parts").1;
        let kid = &ours.keys.kid;

        for header in [
            r#"{"alg":"none"}"#.to_owned(),
            format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"EdDSA","kid":"{kid}","crit":["x"],"x":1}}"#),
            format!(r#"{{"alg":"EdDSA","kid":"{kid}","jwk":{{}}}}"#),
            r#"{"alg":"EdDSA","kid":"other"}"#.to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(
                ours.read(&format!("{}.{rest}", encode(&header))),
                Err(TokenError::Invalid),
                "{header}"
            );
        }
        for junk in ["", ".", "..", "a.b.c", "....", &"a".repeat(5000), "é.é.é"] {
            assert_eq!(ours.read(junk), Err(TokenError::Invalid), "{junk}");
        }
    }

    #[test]
    fn time_is_judged_with_thirty_seconds_of_grace() {
        let (_, claims) = issue(&tokens());
        let at = |seconds: i64| Tokens::check_time(&claims, Timestamp::from_seconds(1_000_000 + seconds));

        assert_eq!(at(0), Ok(()));
        assert_eq!(at(3629), Ok(()));
        assert_eq!(at(3630), Err(TokenError::Expired));
        assert_eq!(at(-30), Ok(()));
        assert_eq!(at(-31), Err(TokenError::Expired));
    }

    #[test]
    fn weak_and_published_keys_stop_the_start() {
        for (key, short) in [
            ("short", true),
            ("your-256-bit-secret-key-here-1234567890", false),
            ("dev-secret-key-change-in-production", false),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            match Keys::hs256(&Secret::new(key), None) {
                Err(KeysError::Short) => assert!(short, "{key}"),
                Err(KeysError::Published) => assert!(!short, "{key}"),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_previous_key_verifies_and_never_signs() {
        let old = Secret::new("0123456789abcdefghijklmnopqrstuvwxyz");
        let new = Secret::new("zyxwvutsrqponmlkjihgfedcba9876543210");
        let before = Tokens::new(Keys::hs256(&old, None).expect("key"), "lab".into(), 60);
        let after = Tokens::new(Keys::hs256(&new, Some(&old)).expect("key"), "lab".into(), 60);

        assert!(after.read(&issue(&before).0).is_ok());
        assert!(before.read(&issue(&after).0).is_err());
    }
}
