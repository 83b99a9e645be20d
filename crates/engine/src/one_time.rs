//! Tokens that work once: an invitation, a reset. Each kind has a prefix; of the token itself only its digest is stored.
//!
//! A text is `<prefix><id>_<secret>` in hexadecimal: 64 random bits to find it by and 256 that nobody can guess, so nothing
//! slow is needed to compare.

use interlock_model::Entropy;
use interlock_model::id::{hexadecimal, random_hex};
use interlock_model::secret::Secret;
use sha2::{Digest as _, Sha256};

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token that was just made.
pub(crate) struct New {
    /// What it is found by; no secret.
    pub(crate) id: String,
    /// Shown once.
    pub(crate) token: Secret,
    /// What is stored of it.
    pub(crate) digest: String,
}

/// A new token of the kind with this prefix.
pub(crate) fn make(prefix: &str, entropy: &dyn Entropy) -> New {
    let id = random_hex(entropy, ID_BYTES);
    let token = Secret::new(format!("{prefix}{id}_{}", random_hex(entropy, SECRET_BYTES)));
    New { id, digest: digest(&token), token }
}

/// A token that somebody shows.
pub(crate) struct Shown {
    /// What to look for.
    pub(crate) id: String,
    digest: Secret,
}

/// Reads a token of the kind with this prefix; `None` if the text cannot be one.
pub(crate) fn read(prefix: &str, token: &Secret) -> Option<Shown> {
    let (id, secret) = token.expose().strip_prefix(prefix)?.split_once('_')?;
    let well_formed = id.len() == 2 * ID_BYTES && secret.len() == 2 * SECRET_BYTES;
    well_formed.then(|| Shown { id: id.to_owned(), digest: Secret::new(digest(token)) })
}

impl Shown {
    /// Whether it is the token that this was stored of.
    pub(crate) fn is_of(&self, stored: &str) -> bool {
        self.digest.matches(stored)
    }
}

fn digest(token: &Secret) -> String {
    hexadecimal(&Sha256::digest(token.expose().as_bytes()))
}
