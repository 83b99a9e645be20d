//! The keys that sign tokens: one that signs, which can be exchanged while the server runs, and one that only verifies.
//!
//! Where a key lies and when it is exchanged is not decided here; see [`super::Tokens`] for what is signed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use interlock_model::secret::Secret;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use sha2::{Digest as _, Sha256};

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

/// The signing key, which can be exchanged while the server runs, and the keys that only verify.
pub struct Keys {
    pub(super) current: ArcSwap<Signing>,
    /// A configured key that still verifies (HS256).
    pub(super) previous: Option<(String, DecodingKey)>,
}

/// A key that signs, and its half that verifies.
pub(super) struct Signing {
    pub(super) algorithm: Algorithm,
    pub(super) kid: String,
    pub(super) private: EncodingKey,
    pub(super) verifying: DecodingKey,
    /// The public key, where there is one.
    public: Option<Vec<u8>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let current = self.current.load();
        write!(f, "Keys({:?}, kid {})", current.algorithm, current.kid)
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
        let current = Signing {
            algorithm: Algorithm::HS256,
            kid: kid_of(bytes),
            private: EncodingKey::from_secret(bytes),
            verifying: DecodingKey::from_secret(bytes),
            public: None,
        };
        let previous = previous.map(|previous| {
            let bytes = previous.expose().as_bytes();
            (kid_of(bytes), DecodingKey::from_secret(bytes))
        });
        Ok(Self { current: ArcSwap::from_pointee(current), previous })
    }

    /// EdDSA with a stored key in PKCS#8 form.
    ///
    /// # Errors
    /// [`KeysError::Damaged`].
    pub fn ed25519(pkcs8: &[u8]) -> Result<Self, KeysError> {
        Ok(Self { current: ArcSwap::from_pointee(Signing::ed25519(pkcs8)?), previous: None })
    }

    /// Signs with another EdDSA key from here on. The one before verifies as long as its public half is published.
    ///
    /// # Errors
    /// [`KeysError::Damaged`]; then the old key stays.
    pub fn exchange(&self, pkcs8: &[u8]) -> Result<(), KeysError> {
        self.current.store(Arc::new(Signing::ed25519(pkcs8)?));
        Ok(())
    }

    /// Key id and public half of a stored key.
    ///
    /// # Errors
    /// [`KeysError::Damaged`].
    pub fn public_of(pkcs8: &[u8]) -> Result<(String, String), KeysError> {
        Self::ed25519(pkcs8)?.public().ok_or(KeysError::Damaged)
    }

    /// Key id and public half of the signing key, for EdDSA.
    pub fn public(&self) -> Option<(String, String)> {
        let current = self.current.load();
        current.public.as_ref().map(|public| (current.kid.clone(), interlock_model::id::hexadecimal(public)))
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
        if self.current.load().algorithm == Algorithm::EdDSA { "EdDSA" } else { "HS256" }
    }
}

impl Signing {
    fn ed25519(pkcs8: &[u8]) -> Result<Self, KeysError> {
        use aws_lc_rs::signature::KeyPair as _;
        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeysError::Damaged)?;
        let public = pair.public_key().as_ref();
        Ok(Self {
            algorithm: Algorithm::EdDSA,
            kid: kid_of(public),
            private: EncodingKey::from_ed_der(pkcs8),
            verifying: DecodingKey::from_ed_der(public),
            public: Some(public.to_vec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
