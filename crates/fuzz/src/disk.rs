//! What is read back from the disk, or brought by somebody as a file.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::LazyLock;

use interlock_evidence::bundle;
use interlock_evidence::checkpoint::{self, VerifyingKey};
use interlock_evidence::examine::Trust;
use interlock_evidence::proof::Proof;
use interlock_evidence::tree;
use interlock_model::audit::Hash;

use crate::config::Config;
use crate::sealed::{Opener, PrivateKey};
use crate::{split, text};

/// A folder in memory, of this process.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder for the files of a target")
}

/// The key of the logs in the corpora.
fn keys() -> Vec<VerifyingKey> {
    include_str!("../corpora/keys/log").lines().filter_map(|line| line.parse().ok()).collect()
}

/// Signed notes: what opens is signed, so nothing but the seeds' own note opens.
pub(crate) fn checkpoint(data: &[u8]) {
    static SIGNED: &str = include_str!("../corpora/checkpoint/good");
    let Some(text) = text(data) else { return };
    if let Ok(found) = checkpoint::open(text, &keys()) {
        let good = checkpoint::open(SIGNED, &keys()).expect("the note of the seeds is signed");
        assert_eq!((found.size, found.root), (good.size, good.root), "a checkpoint was forged");
    }
    if let Ok(key) = text.parse::<VerifyingKey>() {
        assert_eq!(
            key.to_string().parse::<VerifyingKey>().ok(),
            Some(key),
            "a key does not survive its own text"
        );
    }
}

/// A whole log as a file: it is good only if it is the one that was signed, or a beginning of it with its checkpoint.
pub(crate) fn bundle(data: &[u8]) {
    let _ = bundle::verify(data, Trust::in_keys(keys()));
}

/// A proof of one entry.
pub(crate) fn proof(data: &[u8]) {
    if let Ok(proof) = serde_json::from_slice::<Proof>(data) {
        let _ = proof.verify(&keys());
    }
}

/// Proofs in trees: any numbers, any hashes, an end.
pub(crate) fn tree(data: &[u8]) {
    let (Some(numbers), Some(rest)) = (data.first_chunk::<16>(), data.get(16..)) else { return };
    let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight bytes"));
    let (one, other) = (number(0), number(8));
    let hashes: Vec<Hash> = rest.chunks_exact(32).map(|hash| hash.try_into().expect("32 bytes")).collect();
    let Some((root, path)) = hashes.split_first() else { return };
    let leaf = tree::leaf_hash(data);
    assert!(!tree::includes(leaf, one, other, path, root), "a proof for a leaf that holds the proof itself");
    if tree::continues((one, root), (other, &leaf), path) {
        assert!(one <= other, "a tree goes on in a smaller one");
    }
}

/// A backup: what opens is what was sealed.
pub(crate) fn backup(data: &[u8]) {
    static KEY: LazyLock<PrivateKey> = LazyLock::new(|| {
        PrivateKey::read(include_str!("../corpora/keys/backup")).expect("the key of the seeds")
    });
    let mut plain = Vec::new();
    if let Ok(mut opener) = Opener::begin(data, &KEY)
        && opener.read_to_end(&mut plain).is_ok()
    {
        assert_eq!(plain, include_bytes!("../corpora/keys/sealed-text"), "a backup was forged");
    }
}

/// The device's memory of what was started: read without panic, and read twice the same.
pub(crate) fn journal(data: &[u8]) {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(folder);
    interlock_device::fuzzing::journal(FOLDER.path(), data);
}

/// Settings: a file, then variables.
pub(crate) fn config(data: &[u8]) {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(folder);
    let (file, variables) = split(data);
    let (Some(file), Some(variables)) = (text(file), text(variables)) else { return };
    // Settings that name files would have the target read whatever lies on this machine.
    if file.contains("_file")
        || variables.contains("_FILE")
        || variables.to_ascii_lowercase().contains("_file")
    {
        return;
    }
    let path = FOLDER.path().join("interlock.toml");
    std::fs::write(&path, file).expect("the file can be written");
    let variables: BTreeMap<String, String> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Ok(config) = Config::load(Some(&path), &variables, &[]) {
        let _ = config.server();
        for (_, shown, _) in config.shown() {
            assert!(shown.len() <= file.len() + 4096, "a setting is shown longer than it was written");
        }
    }
}
