//! The key of the installation that secrets are stored under, where they must be read again.
//!
//! AES-256-GCM with a fresh nonce each time. What a text is and whose it is are bound to it: a sealed text that is moved to
//! another place does not open. While a key is exchanged there is a second one, which opens and never seals; the database
//! says which key seals, so that nothing is sealed with the old one any more once that was said (see [`super::resealing`]).

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::id::hexadecimal;
use interlock_model::secret::Secret;
use interlock_store::identity::{self, Document};
use interlock_store::{Error, Tx};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Why there is no usable key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the master key is not 32 bytes in base64 or hexadecimal. Make one with `openssl rand -base64 32`, or leave it unset to have one made"
)]
pub struct BadMasterKey;

/// A sealed text does not open: another key, another place, or damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stored secret does not open with this server's master key; servers that share a database need the same MASTER_KEY"
)]
pub(crate) struct DoesNotOpen;

/// Which key seals in this installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealing {
    /// Id of the key.
    pub(super) kid: String,
}

impl Document for Sealing {
    const KIND: &'static str = "master_key";

    fn id(&self) -> String {
        "seals".to_owned()
    }
}

/// Seals with one key and opens with it and the one before.
pub struct MasterKey(ArcSwap<Ring>);

struct Ring {
    current: Key,
    previous: Option<Key>,
}

struct Key {
    aead: RandomizedNonceKey,
    kid: String,
}

impl Key {
    fn new(bytes: &[u8]) -> Result<Self, BadMasterKey> {
        let aead = (bytes.len() == KEY_BYTES).then(|| RandomizedNonceKey::new(&AES_256_GCM, bytes));
        let aead = aead.and_then(Result::ok).ok_or(BadMasterKey)?;
        let digest = Sha256::digest([b"interlock master key id\n", bytes].concat());
        Ok(Self { aead, kid: hexadecimal(&digest[..8]) })
    }

    fn open(&self, kind: &str, owner: &str, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let length = self.aead.open_in_place(nonce, bound(kind, owner), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// From 32 random bytes.
    ///
    /// # Errors
    /// [`BadMasterKey`] for another length.
    pub fn new(bytes: &[u8]) -> Result<Self, BadMasterKey> {
        Ok(Self(ArcSwap::from_pointee(Ring { current: Key::new(bytes)?, previous: None })))
    }

    /// Also opens with the key before.
    ///
    /// # Errors
    /// [`BadMasterKey`] for another length.
    pub fn with_previous(self, bytes: &[u8]) -> Result<Self, BadMasterKey> {
        let previous = Some(Key::new(bytes)?);
        let ring = Arc::into_inner(self.0.into_inner()).ok_or(BadMasterKey)?;
        Ok(Self(ArcSwap::from_pointee(Ring { previous, ..ring })))
    }

    /// Goes on with other keys.
    pub fn exchange(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// Whether one of the keys has this id.
    pub(super) fn knows(&self, kid: &str) -> bool {
        let ring = self.0.load();
        std::iter::once(&ring.current).chain(&ring.previous).any(|key| key.kid == kid)
    }

    /// Id of the key that seals.
    pub(super) fn kid(&self) -> String {
        self.0.load().current.kid.clone()
    }

    /// Whether this key is to seal, as far as the database knows. Ask it in the transaction that stores what was sealed: the
    /// first one that does decides.
    pub(crate) async fn seals(&self, tx: &mut dyn Tx) -> Result<bool, Error> {
        let kid = self.kid();
        if let Some(known) = identity::get::<Sealing>(tx, "seals").await? {
            return Ok(known.kid == kid);
        }
        identity::insert(tx, &Sealing { kid }).await?;
        Ok(true)
    }

    /// The bytes of a setting: 32 in base64 or hexadecimal.
    ///
    /// # Errors
    /// [`BadMasterKey`].
    pub fn read(text: &Secret) -> Result<Zeroizing<Vec<u8>>, BadMasterKey> {
        let text = text.expose().trim();
        let hexadecimal = || -> Option<Vec<u8>> {
            (text.len() == 2 * KEY_BYTES && text.is_ascii()).then_some(())?;
            (0..KEY_BYTES).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
        };
        let bytes = hexadecimal().or_else(|| STANDARD.decode(text).ok()).map(Zeroizing::new);
        bytes.filter(|bytes| bytes.len() == KEY_BYTES).ok_or(BadMasterKey)
    }

    /// Seals a secret for a place, such as `totp`, and its owner.
    ///
    /// # Errors
    /// [`DoesNotOpen`] when the operating system gives no randomness.
    pub(crate) fn seal(&self, kind: &str, owner: &str, secret: &[u8]) -> Result<String, DoesNotOpen> {
        let mut text = secret.to_vec();
        let ring = self.0.load();
        let sealed = ring.current.aead.seal_in_place_append_tag(bound(kind, owner), &mut text);
        let nonce = sealed.map_err(|_| DoesNotOpen)?;
        Ok(STANDARD.encode([nonce.as_ref().as_slice(), &text].concat()))
    }

    /// Opens what was sealed for this place and owner.
    ///
    /// # Errors
    /// [`DoesNotOpen`].
    pub(crate) fn open(
        &self,
        kind: &str,
        owner: &str,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        let bytes = STANDARD.decode(sealed).map_err(|_| DoesNotOpen)?;
        let ring = self.0.load();
        let mut keys = std::iter::once(&ring.current).chain(&ring.previous);
        keys.find_map(|key| key.open(kind, owner, &bytes)).ok_or(DoesNotOpen)
    }

    /// Whether the key that seals now has sealed this, too.
    pub(super) fn has_sealed(&self, kind: &str, owner: &str, sealed: &str) -> bool {
        let bytes = STANDARD.decode(sealed).unwrap_or_default();
        self.0.load().current.open(kind, owner, &bytes).is_some()
    }
}

/// Lengths first, so that no two pairs are the same bytes.
fn bound(kind: &str, owner: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("interlock {} {kind} {} {owner}", kind.len(), owner.len()).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_in_its_own_place_only() {
        let key = MasterKey::new(&[7; KEY_BYTES]).expect("a key");
        let sealed = key.seal("totp", "ana", b"twenty octets long..").expect("sealed");

        assert_eq!(key.open("totp", "ana", &sealed).expect("opened").as_slice(), b"twenty octets long..");
        assert_ne!(sealed, key.seal("totp", "ana", b"twenty octets long..").expect("sealed"));
        assert!(key.open("totp", "ben", &sealed).is_err());
        assert!(key.open("other", "ana", &sealed).is_err());
        assert!(MasterKey::new(&[8; KEY_BYTES]).expect("a key").open("totp", "ana", &sealed).is_err());
    }

    #[test]
    fn the_key_before_opens_and_never_seals() {
        let old = MasterKey::new(&[7; KEY_BYTES]).expect("a key");
        let sealed = old.seal("totp", "ana", b"secret").expect("sealed");
        let both = MasterKey::new(&[8; KEY_BYTES]).expect("a key");
        let both = both.with_previous(&[7; KEY_BYTES]).expect("a key");

        assert_eq!(both.open("totp", "ana", &sealed).expect("opened").as_slice(), b"secret");
        assert!(!both.has_sealed("totp", "ana", &sealed));
        let again = both.seal("totp", "ana", b"secret").expect("sealed");
        assert!(both.has_sealed("totp", "ana", &again) && old.open("totp", "ana", &again).is_err());
        old.exchange(&both);
        assert!(old.has_sealed("totp", "ana", &again));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let key = MasterKey::new(&[7; KEY_BYTES]).expect("a key");
        let sealed = STANDARD.decode(key.seal("totp", "ana", b"secret").expect("sealed")).expect("base64");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("totp", "ana", &STANDARD.encode(changed)).is_err(), "byte {at}");
        }
        for short in ["", "AAAA", "not base64!"] {
            assert!(key.open("totp", "ana", short).is_err());
        }
    }

    #[test]
    fn a_setting_is_base64_or_hexadecimal_of_32_bytes() {
        for good in ["07".repeat(32), STANDARD.encode([7; 32])] {
            assert!(MasterKey::read(&Secret::new(good)).is_ok());
        }
        for bad in [String::new(), "07".repeat(31), STANDARD.encode([7; 31]), "ü".repeat(32)] {
            assert!(MasterKey::read(&Secret::new(bad)).is_err());
        }
    }
}
