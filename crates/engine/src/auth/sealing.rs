//! The key of the installation that secrets are stored under, where they must be read again.
//!
//! AES-256-GCM with a fresh nonce each time. What a text is and whose it is are bound to it: a sealed text that is moved to
//! another place does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::secret::Secret;
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
pub(super) struct DoesNotOpen;

/// Seals and opens.
pub struct MasterKey(RandomizedNonceKey);

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
        let key = (bytes.len() == KEY_BYTES).then(|| RandomizedNonceKey::new(&AES_256_GCM, bytes));
        key.and_then(Result::ok).map(Self).ok_or(BadMasterKey)
    }

    /// From a setting: 32 bytes in base64 or hexadecimal.
    ///
    /// # Errors
    /// [`BadMasterKey`].
    pub fn parse(text: &Secret) -> Result<Self, BadMasterKey> {
        let text = text.expose().trim();
        let hexadecimal = || -> Option<Vec<u8>> {
            (text.len() == 2 * KEY_BYTES && text.is_ascii()).then_some(())?;
            (0..KEY_BYTES).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
        };
        let bytes = hexadecimal().or_else(|| STANDARD.decode(text).ok()).ok_or(BadMasterKey)?;
        Self::new(&Zeroizing::new(bytes))
    }

    /// Seals a secret for a place, such as `totp`, and its owner.
    ///
    /// # Errors
    /// [`DoesNotOpen`] when the operating system gives no randomness.
    pub(super) fn seal(&self, kind: &str, owner: &str, secret: &[u8]) -> Result<String, DoesNotOpen> {
        let mut text = secret.to_vec();
        let nonce =
            self.0.seal_in_place_append_tag(bound(kind, owner), &mut text).map_err(|_| DoesNotOpen)?;
        Ok(STANDARD.encode([nonce.as_ref().as_slice(), &text].concat()))
    }

    /// Opens what was sealed for this place and owner.
    ///
    /// # Errors
    /// [`DoesNotOpen`].
    pub(super) fn open(
        &self,
        kind: &str,
        owner: &str,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        let bytes = STANDARD.decode(sealed).map_err(|_| DoesNotOpen)?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or(DoesNotOpen)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| DoesNotOpen)?;
        let mut text = Zeroizing::new(text.to_vec());
        let length =
            self.0.open_in_place(nonce, bound(kind, owner), &mut text).map_err(|_| DoesNotOpen)?.len();
        text.truncate(length);
        Ok(text)
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
            assert!(MasterKey::parse(&Secret::new(good)).is_ok());
        }
        for bad in [String::new(), "07".repeat(31), STANDARD.encode([7; 31]), "ü".repeat(32)] {
            assert!(MasterKey::parse(&Secret::new(bad)).is_err());
        }
    }
}
