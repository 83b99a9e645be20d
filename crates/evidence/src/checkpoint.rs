//! Signed checkpoints: what a log held when it had a certain size, in the form of the C2SP specifications *tlog-checkpoint* and
//! *signed-note*, signed with Ed25519 (RFC 8032). Other tools for transparency logs and their witnesses can read them.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use interlock_model::Timestamp;
use interlock_model::audit::Hash;
use sha2::{Digest as _, Sha256};

/// Longest note that is read, in bytes.
const LONGEST: usize = 64 << 10;
/// Ed25519 among the signature types of a signed note.
const TYPE_ED25519: u8 = 1;
/// Before the time in the extension line.
const TIME: &str = "time ";

/// What a log held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log, such as `interlock/5b0c…`; also the name of the keys that sign for it.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// When that was, by the clock of the server that signed.
    pub at: Timestamp,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}\n{TIME}{}", self.origin, self.size, STANDARD.encode(self.root), self.at)
    }
}

/// What is wrong with a note or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note, or not a checkpoint in one.
    #[error("this is not a signed checkpoint: {0}")]
    Form(&'static str),
    /// A key that is trusted has signed something else.
    #[error("the signature of {0} does not fit: the checkpoint was changed")]
    Forged(String),
    /// Nobody who is trusted has signed.
    #[error("no key that is trusted has signed the checkpoint")]
    Stranger,
    /// Not a verification key.
    #[error("this is not a verification key; it looks like NAME+HASH+KEY")]
    Key,
}

/// A checkpoint's text alone.
impl FromStr for Checkpoint {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut lines = text.split_terminator('\n');
        let mut line = |what| lines.next().ok_or(NoteError::Form(what));
        let origin = line("the origin is missing")?;
        let size = line("the size is missing")?;
        let root = line("the root is missing")?;
        let at = line("the time is missing")?;
        if !is_name(origin) {
            return Err(NoteError::Form("the origin is not a name"));
        }
        let canonical =
            size.bytes().all(|byte| byte.is_ascii_digit()) && (size == "0" || !size.starts_with('0'));
        let number = size.parse().ok().filter(|_| canonical);
        let root = STANDARD.decode(root).ok().and_then(|root| Hash::try_from(root).ok());
        let at = at.strip_prefix(TIME).and_then(|at| at.parse().ok());
        Ok(Self {
            origin: origin.to_owned(),
            size: number.ok_or(NoteError::Form("the size is not a number"))?,
            root: root.ok_or(NoteError::Form("the root is not 32 bytes in Base64"))?,
            at: at.ok_or(NoteError::Form("the time is not one"))?,
        })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 200 && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'+')
}

/// Who may sign for a log: `NAME+HASH+KEY`, the form of other tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    id: [u8; 4],
    public: [u8; 32],
}

impl VerifyingKey {
    fn new(name: &str, public: [u8; 32]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(name.as_bytes());
        hasher.update([b'\n', TYPE_ED25519]);
        hasher.update(public);
        let digest: Hash = hasher.finalize().into();
        Self { name: name.to_owned(), id: [digest[0], digest[1], digest[2], digest[3]], public }
    }

    /// The name: the origin of the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same key under another name: for what is signed beside the log. A note under one name is none under the other.
    #[must_use]
    pub fn under(&self, name: &str) -> Self {
        Self::new(name, self.public)
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut typed = vec![TYPE_ED25519];
        typed.extend_from_slice(&self.public);
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id), STANDARD.encode(typed))
    }
}

impl FromStr for VerifyingKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let typed = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let public = typed.strip_prefix(&[TYPE_ED25519]).and_then(|public| public.try_into().ok());
        let key = Self::new(name, public.ok_or(NoteError::Key)?);
        let fits = id.len() == 8 && u32::from_str_radix(id, 16).ok() == Some(u32::from_be_bytes(key.id));
        if is_name(name) && fits { Ok(key) } else { Err(NoteError::Key) }
    }
}

/// Signs checkpoints of one log.
pub struct Signer {
    pair: Ed25519KeyPair,
    key: VerifyingKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.key)
    }
}

impl Signer {
    /// A new private key in PKCS#8 form, to be stored with mode 0600.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the operating system gives no randomness.
    pub fn generate() -> Result<Vec<u8>, NoteError> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let document = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| NoteError::Key)?;
        Ok(document.as_ref().to_vec())
    }

    /// With a stored private key, for the log with this origin.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the key is damaged, [`NoteError::Form`] when the origin is not a name.
    pub fn from_pkcs8(origin: &str, pkcs8: &[u8]) -> Result<Self, NoteError> {
        if !is_name(origin) {
            return Err(NoteError::Form("the origin is not a name"));
        }
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| NoteError::Key)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Key)?;
        Ok(Self { pair, key: VerifyingKey::new(origin, public) })
    }

    /// What others need to verify.
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// The signed note that says that the log held this.
    pub fn sign(&self, size: u64, root: Hash, at: Timestamp) -> String {
        let text = Checkpoint { origin: self.key.name.clone(), size, root, at }.to_string();
        let mut signature = self.key.id.to_vec();
        signature.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n— {} {}\n", self.key.name, STANDARD.encode(signature))
    }
}

/// The checkpoint in a note that one of `keys` has signed. Signatures by others, such as witnesses, are passed over.
///
/// # Errors
/// Why it is not to be believed.
pub fn open(note: &str, keys: &[VerifyingKey]) -> Result<Checkpoint, NoteError> {
    if note.len() > LONGEST {
        return Err(NoteError::Form("it is longer than 64 KiB"));
    }
    let (text, signatures) = note.rsplit_once("\n\n").ok_or(NoteError::Form("there is no signature"))?;
    let text = format!("{text}\n");
    let mut signed = false;
    for line in signatures.split_terminator('\n') {
        let (name, signature) = line
            .strip_prefix("— ")
            .and_then(|line| line.split_once(' '))
            .ok_or(NoteError::Form("a line of the signatures is none"))?;
        let signature =
            STANDARD.decode(signature).map_err(|_| NoteError::Form("a signature is not Base64"))?;
        let Some((id, signature)) = signature.split_at_checked(4) else {
            return Err(NoteError::Form("a signature is too short"));
        };
        let Some(key) = keys.iter().find(|key| key.name == name && key.id == id) else { continue };
        UnparsedPublicKey::new(&ED25519, key.public)
            .verify(text.as_bytes(), signature)
            .map_err(|_| NoteError::Forged(name.to_owned()))?;
        signed = true;
    }
    if signed { text.parse() } else { Err(NoteError::Stranger) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(name: &str) -> Signer {
        Signer::from_pkcs8(name, &Signer::generate().expect("a key")).expect("a signer")
    }

    #[test]
    fn a_note_has_the_form_of_the_specification() {
        let signer = signer("interlock/lab");

        let note = signer.sign(7, [1; 32], Timestamp::from_seconds(1_800_000_000));

        let lines: Vec<_> = note.split('\n').collect();
        assert_eq!(lines[..2], ["interlock/lab", "7"]);
        assert_eq!(lines[2], "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
        assert!(lines[3].starts_with("time 2027-01-15T08:00:00"), "{note}");
        assert_eq!(lines[4], "");
        assert!(lines[5].starts_with("— interlock/lab "));
        assert_eq!((lines[6], lines.len()), ("", 7));
    }

    /// A key and a note that other implementations of signed notes use as their example.
    #[test]
    fn keys_and_signatures_are_those_of_other_tools() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key: VerifyingKey = text.parse().expect("a key");
        let note = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n\
                    — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

        assert_eq!(key.to_string(), text);
        assert_eq!(text.replace("c74f", "c74e").parse::<VerifyingKey>(), Err(NoteError::Key));
        // It is signed by that key, and is no checkpoint.
        assert_eq!(open(note, std::slice::from_ref(&key)), Err(NoteError::Form("the root is missing")));
        assert!(matches!(open(&note.replace("think", "thank"), &[key]), Err(NoteError::Forged(_))));
    }

    #[test]
    fn what_was_signed_is_read_back_and_nothing_else() {
        let (mine, other) = (signer("interlock/lab"), signer("interlock/lab"));
        let at = Timestamp::from_seconds(1_800_000_000);
        let note = mine.sign(7, [1; 32], at);
        let keys = [mine.key().clone()];

        let expected = Checkpoint { origin: "interlock/lab".into(), size: 7, root: [1; 32], at };
        assert_eq!(open(&note, &keys), Ok(expected));
        assert_eq!(open(&note, &[other.key().clone()]), Err(NoteError::Stranger));
        assert!(matches!(open(&note.replace("\n7\n", "\n8\n"), &keys), Err(NoteError::Forged(_))));
        let witnessed = format!("{note}— witness.example {}\n", STANDARD.encode([9; 68]));
        assert!(open(&witnessed, &keys).is_ok());
        for bad in ["", "\n\n", "a\n\n— b\n", "interlock/lab\n7\n\n— interlock/lab AA==\n"] {
            assert!(matches!(open(bad, &keys), Err(NoteError::Form(_) | NoteError::Stranger)), "{bad}");
        }
    }

    #[test]
    fn only_one_way_to_write_a_checkpoint_is_read() {
        let root = STANDARD.encode([1; 32]);
        let time = "time 2027-01-15T08:00:00Z";
        for (text, good) in [
            (format!("a/b\n7\n{root}\n{time}\n"), true),
            (format!("a/b\n07\n{root}\n{time}\n"), false),
            (format!("a/b\n+7\n{root}\n{time}\n"), false),
            (format!("a b\n7\n{root}\n{time}\n"), false),
            (format!("a/b\n7\nAAAA\n{time}\n"), false),
            (format!("a/b\n7\n{root}\n"), false),
            (format!("a/b\n99999999999999999999\n{root}\n{time}\n"), false),
        ] {
            assert_eq!(text.parse::<Checkpoint>().is_ok(), good, "{text}");
        }
    }
}
