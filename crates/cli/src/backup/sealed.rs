//! The form of a backup file: sealed for one public key with HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM), in pieces.
//!
//! Whoever makes backups needs the public key only and cannot read one afterwards, nor can who steals the machine. Each piece is
//! bound to its place by HPKE's counter, and the last one says that it is the last: a file that was cut off, changed or put
//! together from others does not open.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use aws_lc_rs::agreement::{PrivateKey as Scalar, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{
    EncapsulatedSecret, Hpke as _, HpkeOpener, HpkePrivateKey, HpkePublicKey, HpkeSealer,
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// How a file begins.
const MAGIC: &[u8; 19] = b"interlock backup 1\n";
/// Bytes that are sealed together.
const PIECE: usize = 64 << 10;
/// What sealing adds to them.
const TAG: usize = 16;
/// Set in the length of the last piece.
const LAST: u32 = 1 << 31;
const KEY_BYTES: usize = 32;
const ID_BYTES: usize = 8;
const PUBLIC: &str = "interlock-backup-key-";
const PRIVATE: &str = "interlock-backup-private-key-";

/// Why a file or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("this is not a backup of Interlock, or one of a form that this program does not know")]
    NotABackup,
    #[error("the backup was made for the key {wanted}, and this is the private key of {given}")]
    OtherKey { wanted: String, given: String },
    #[error("the backup is damaged or was changed, at byte {0}")]
    Damaged(u64),
    #[error("the backup is cut off at byte {0}")]
    CutOff(u64),
    #[error("the backup goes on behind its end")]
    TooLong,
    #[error("this is no {0} key for backups; make a pair with: interlock backup key FILE")]
    NoKey(&'static str),
    #[error("the system gives no randomness")]
    NoRandomness,
}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Whom backups are for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Recipient([u8; KEY_BYTES]);

impl Recipient {
    fn id(&self) -> [u8; ID_BYTES] {
        let digest = Sha256::digest([b"interlock backup key id\n".as_slice(), &self.0].concat());
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&digest[..ID_BYTES]);
        id
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

impl FromStr for Recipient {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let encoded = text.trim().strip_prefix(PUBLIC).ok_or(SealError::NoKey("public"))?;
        let bytes = STANDARD.decode(encoded).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(SealError::NoKey("public"))
    }
}

/// What opens backups. Never shown.
pub(crate) struct PrivateKey(Zeroizing<[u8; KEY_BYTES]>);

impl PrivateKey {
    /// A new one.
    pub(crate) fn generate() -> Result<Self, SealError> {
        let (_, private) = SUITE.generate_key_pair().map_err(|_| SealError::NoRandomness)?;
        let bytes = private.secret_bytes().try_into().map_err(|_| SealError::NoRandomness)?;
        Ok(Self(Zeroizing::new(bytes)))
    }

    /// As it is kept in a file.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PRIVATE}{}\n", STANDARD.encode(*self.0)))
    }

    /// From such a file.
    pub(crate) fn read(text: &str) -> Result<Self, SealError> {
        let encoded = text.trim().strip_prefix(PRIVATE).ok_or(SealError::NoKey("private"))?;
        let bytes = STANDARD.decode(encoded).ok().map(Zeroizing::new);
        let bytes = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
        bytes.map(|bytes| Self(Zeroizing::new(bytes))).ok_or(SealError::NoKey("private"))
    }

    /// Its public half.
    pub(crate) fn recipient(&self) -> Result<Recipient, SealError> {
        let bad = || SealError::NoKey("private");
        let scalar = Scalar::from_private_key(&X25519, &*self.0).map_err(|_| bad())?;
        let public = scalar.compute_public_key().map_err(|_| bad())?;
        public.as_ref().try_into().map(Recipient).map_err(|_| bad())
    }
}

/// Seals what is written to it.
pub(crate) struct Sealer<W> {
    out: W,
    hpke: Box<dyn HpkeSealer>,
    piece: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Begins a file.
    pub(crate) fn begin(mut out: W, recipient: &Recipient) -> io::Result<Self> {
        let id = recipient.id();
        let public = HpkePublicKey(recipient.0.to_vec());
        let setup = SUITE.setup_sealer(&info(id), &public).map_err(|_| SealError::NoRandomness)?;
        let (secret, hpke) = setup;
        out.write_all(MAGIC)?;
        out.write_all(&id)?;
        out.write_all(&secret.0)?;
        Ok(Self { out, hpke, piece: Vec::with_capacity(PIECE) })
    }

    fn put(&mut self, last: u32) -> io::Result<()> {
        let sealed = self.hpke.seal(&last.to_be_bytes(), &self.piece).map_err(io::Error::other)?;
        let length = u32::try_from(sealed.len()).map_err(io::Error::other)?;
        self.out.write_all(&(length | last).to_be_bytes())?;
        self.out.write_all(&sealed)?;
        self.piece.clear();
        Ok(())
    }

    /// Ends the file; without it, it does not open.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.put(LAST)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            self.put(0)?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The key's id is bound to what is sealed for it.
fn info(id: [u8; ID_BYTES]) -> Vec<u8> {
    [MAGIC.as_slice(), &id].concat()
}

/// Opens what was sealed. Gives out only what is proven; its end is the end that was written.
pub(crate) struct Opener<R> {
    from: R,
    hpke: Box<dyn HpkeOpener>,
    piece: Vec<u8>,
    given: usize,
    at: u64,
    ended: bool,
}

impl<R: Read> Opener<R> {
    /// Begins to read a file.
    pub(crate) fn begin(mut from: R, key: &PrivateKey) -> io::Result<Self> {
        let mut head = [0; MAGIC.len() + ID_BYTES + KEY_BYTES];
        exactly(&mut from, &mut head, 0).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => SealError::NotABackup.into(),
            _ => error,
        })?;
        let (magic, rest) = head.split_at(MAGIC.len());
        let (id, secret) = rest.split_at(ID_BYTES);
        if magic != MAGIC {
            return Err(SealError::NotABackup.into());
        }
        let recipient = key.recipient()?;
        let own = recipient.id();
        if id != own {
            let words = |id: &[u8]| interlock_model::id::hexadecimal(id);
            return Err(SealError::OtherKey { wanted: words(id), given: words(&own) }.into());
        }
        let private = HpkePrivateKey::from(key.0.to_vec());
        let secret = EncapsulatedSecret(secret.to_vec());
        let hpke = SUITE.setup_opener(&secret, &info(own), &private);
        let at = head.len() as u64;
        let hpke = hpke.map_err(|_| SealError::Damaged(MAGIC.len() as u64))?;
        Ok(Self { from, hpke, piece: Vec::new(), given: 0, at, ended: false })
    }

    fn next(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        exactly(&mut self.from, &mut length, self.at)?;
        let length = u32::from_be_bytes(length);
        let (last, length) = (length & LAST, (length & !LAST) as usize);
        if !(TAG..=PIECE + TAG).contains(&length) {
            return Err(SealError::Damaged(self.at).into());
        }
        let mut sealed = vec![0; length];
        exactly(&mut self.from, &mut sealed, self.at)?;
        let opened = self.hpke.open(&last.to_be_bytes(), &sealed);
        self.piece = opened.map_err(|_| SealError::Damaged(self.at))?;
        self.given = 0;
        self.at += 4 + length as u64;
        self.ended = last != 0;
        if self.ended && self.from.read(&mut [0])? != 0 {
            return Err(SealError::TooLong.into());
        }
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let taken = into.len().min(self.piece.len() - self.given);
        into[..taken].copy_from_slice(&self.piece[self.given..self.given + taken]);
        self.given += taken;
        Ok(taken)
    }
}

fn exactly(from: &mut impl Read, into: &mut [u8], at: u64) -> io::Result<()> {
    from.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SealError::CutOff(at).into(),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &PrivateKey, content: &[u8]) -> Vec<u8> {
        let recipient = key.recipient().expect("a public half");
        let mut sealer = Sealer::begin(Vec::new(), &recipient).expect("begun");
        sealer.write_all(content).expect("sealed");
        sealer.finish().expect("ended")
    }

    fn opened(key: &PrivateKey, file: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Opener::begin(file, key)?.read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn what_was_sealed_opens_with_the_key_of_its_owner() {
        let key = PrivateKey::generate().expect("a key");
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let content: Vec<u8> = (0_u8..251).cycle().take(length).collect();
            let file = sealed(&key, &content);
            assert_eq!(opened(&key, &file).expect("opened"), content, "{length} bytes");
        }
        let again = PrivateKey::read(&key.text()).expect("read");
        assert_eq!(again.recipient().expect("public"), key.recipient().expect("public"));
        let text = key.recipient().expect("public").to_string();
        assert_eq!(text.parse::<Recipient>().expect("parsed"), key.recipient().expect("public"));
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let (key, other) = (PrivateKey::generate().expect("a key"), PrivateKey::generate().expect("a key"));
        let said = opened(&other, &sealed(&key, b"content")).expect_err("refused").to_string();
        assert!(said.contains("was made for the key"), "{said}");
        assert!(opened(&key, b"PK\x03\x04").expect_err("refused").to_string().contains("not a backup"));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let key = PrivateKey::generate().expect("a key");
        let file = sealed(&key, b"content that matters");
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(opened(&key, &changed).is_err(), "byte {at}");
            assert!(opened(&key, &file[..at]).is_err(), "cut at {at}");
        }
        assert!(opened(&key, &[file.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn pieces_cannot_change_places_or_be_left_out() {
        let key = PrivateKey::generate().expect("a key");
        let file = sealed(&key, &vec![7; 3 * PIECE]);
        let (head, piece) = (MAGIC.len() + ID_BYTES + KEY_BYTES, 4 + PIECE + TAG);
        let (first, rest) = file[head..].split_at(piece);
        let (second, third) = rest.split_at(piece);
        let start = &file[..head];
        assert_eq!(opened(&key, &[start, first, second, third].concat()).expect("whole").len(), 3 * PIECE);
        for parts in [
            [start, second, first, third],
            [start, first, third, b""],
            [start, first, second, b""],
            [start, third, b"", b""],
        ] {
            assert!(opened(&key, &parts.concat()).is_err());
        }
    }

    #[test]
    fn texts_that_are_no_keys_are_refused() {
        for text in
            ["", "interlock-backup-key-", "interlock-backup-key-AAAA", "interlock-backup-private-key-AAAA"]
        {
            assert!(text.parse::<Recipient>().is_err() && PrivateKey::read(text).is_err(), "{text}");
        }
    }
}
