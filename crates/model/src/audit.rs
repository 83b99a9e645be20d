//! The audit chain: every entry carries the hash of the one before it.
//!
//! `hash = SHA-256("interlock audit entry v1\n" || prev_hash || canonical)`, where `canonical` is the compact JSON array of
//! the fields in the order of [`Fields`]. The first entry's `prev_hash` is 32 zero bytes. A change of any field,
//! an entry taken out, put in or moved breaks the chain at that position; the loss of the newest entries shows only against a
//! number and hash that were noted elsewhere.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Timestamp;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// What to record. The storage adds number and hashes.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditDraft {
    /// When.
    pub at: Timestamp,
    /// Name of the principal, `null` for a stranger.
    pub actor: Option<String>,
    /// A stable name such as `device.executed`.
    pub action: String,
    /// What was acted on.
    pub subject: Option<String>,
    /// Facts. Never secrets, tokens or parameter values marked sensitive.
    pub details: Value,
    /// Resolved address of the client.
    pub client_ip: Option<String>,
    /// The request.
    pub request_id: Option<String>,
}

/// An entry of the chain.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// Counts from 1 without gaps.
    pub seq: u64,
    /// What was recorded.
    pub draft: AuditDraft,
    /// Hash of the entry before.
    pub prev_hash: Hash,
    /// Hash of this entry.
    pub hash: Hash,
}

impl AuditEntry {
    /// Links `draft` behind the entry numbered `seq - 1` whose hash is `prev_hash`.
    pub fn link(seq: u64, prev_hash: Hash, draft: AuditDraft) -> Self {
        let details = draft.details.to_string();
        Self::link_told(seq, prev_hash, draft, &details)
    }

    /// As [`AuditEntry::link`], where the details of `draft` have been written as compact JSON text already.
    pub fn link_told(seq: u64, prev_hash: Hash, draft: AuditDraft, details: &str) -> Self {
        let hash = draft.fields(seq, details).hash(&prev_hash);
        Self { seq, draft, prev_hash, hash }
    }

    /// Whether this entry's own hash is right.
    pub fn is_sound(&self) -> bool {
        let details = self.draft.details.to_string();
        self.draft.fields(self.seq, &details).hash(&self.prev_hash) == self.hash
    }

    /// What the chain needs of it.
    pub fn checked(&self) -> Link {
        Link { seq: self.seq, prev_hash: self.prev_hash, hash: self.hash, sound: self.is_sound() }
    }
}

impl AuditDraft {
    fn fields<'a>(&'a self, seq: u64, details: &'a str) -> Fields<'a> {
        Fields {
            seq,
            at: self.at,
            actor: self.actor.as_deref(),
            action: &self.action,
            subject: self.subject.as_deref(),
            details,
            client_ip: self.client_ip.as_deref(),
            request_id: self.request_id.as_deref(),
        }
    }
}

/// What is under the hash of an entry, where it lies: a check of a whole log copies nothing and builds no JSON values.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// Counts from 1 without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// As [`AuditDraft::actor`].
    pub actor: Option<&'a str>,
    /// As [`AuditDraft::action`].
    pub action: &'a str,
    /// As [`AuditDraft::subject`].
    pub subject: Option<&'a str>,
    /// Compact JSON with sorted keys.
    pub details: &'a str,
    /// As [`AuditDraft::client_ip`].
    pub client_ip: Option<&'a str>,
    /// As [`AuditDraft::request_id`].
    pub request_id: Option<&'a str>,
}

impl Fields<'_> {
    /// The hash of an entry of these fields behind the entry with the hash `prev_hash`.
    pub fn hash(&self, prev_hash: &Hash) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(b"interlock audit entry v1\n");
        hasher.update(prev_hash);
        hasher.update(self.canonical());
        hasher.finalize().into()
    }

    /// The entry of these fields with the two hashes that are told of it.
    pub fn checked(&self, prev_hash: Hash, hash: Hash) -> Link {
        Link { seq: self.seq, prev_hash, hash, sound: self.hash(&prev_hash) == hash }
    }

    /// The bytes under the hash.
    fn canonical(&self) -> Vec<u8> {
        let before = (self.seq, self.at.micros(), self.actor, self.action, self.subject);
        let mut bytes = Vec::with_capacity(256 + self.details.len());
        let told = serde_json::to_writer(&mut bytes, &before).and_then(|()| {
            // One array of all of them: its end comes behind the rest.
            bytes.pop();
            bytes.push(b',');
            bytes.extend_from_slice(self.details.as_bytes());
            bytes.push(b',');
            serde_json::to_writer(&mut bytes, &self.client_ip)?;
            bytes.push(b',');
            serde_json::to_writer(&mut bytes, &self.request_id)
        });
        told.expect("texts and numbers are always JSON");
        bytes.push(b']');
        bytes
    }
}

/// What the chain needs of an entry: its place, its hashes, and whether its own is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the entry.
    pub seq: u64,
    /// Hash of the entry before.
    pub prev_hash: Hash,
    /// Hash of the entry.
    pub hash: Hash,
    /// Whether `hash` is that of what the entry says.
    pub sound: bool,
}

/// Where a chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Broken {
    /// The numbers have a gap or go back.
    #[error("entry {found} follows entry {after}: an entry is missing, added or moved")]
    Sequence {
        /// Last good entry.
        after: u64,
        /// The number that follows it.
        found: u64,
    },
    /// The link to the entry before is wrong.
    #[error("entry {0} does not follow from the entry before it")]
    Link(u64),
    /// The content is not what was hashed.
    #[error("entry {0} was changed")]
    Content(u64),
}

/// Checks a chain entry by entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verifier {
    /// Number of the last good entry.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Verifier {
    /// Takes the next entry.
    ///
    /// # Errors
    /// The first way in which the chain is broken.
    pub fn next(&mut self, entry: &AuditEntry) -> Result<(), Broken> {
        self.next_checked(&entry.checked())
    }

    /// Takes the next entry, whose content was looked at before: most of the work, and it can be shared out.
    ///
    /// # Errors
    /// The first way in which the chain is broken.
    pub fn next_checked(&mut self, entry: &Link) -> Result<(), Broken> {
        if entry.seq != self.seq + 1 {
            return Err(Broken::Sequence { after: self.seq, found: entry.seq });
        }
        if entry.prev_hash != self.hash {
            return Err(Broken::Link(entry.seq));
        }
        if !entry.sound {
            return Err(Broken::Content(entry.seq));
        }
        self.seq = entry.seq;
        self.hash = entry.hash;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(length: u64) -> Vec<AuditEntry> {
        let mut entries: Vec<AuditEntry> = Vec::new();
        for seq in 1..=length {
            let prev = entries.last().map_or([0; 32], |e| e.hash);
            let draft = AuditDraft {
                at: Timestamp::from_seconds(i64::try_from(seq).expect("small")),
                actor: Some("ana".into()),
                action: "device.executed".into(),
                subject: Some(format!("run {seq}")),
                details: json!({"b": 1, "a": [true, null]}),
                client_ip: None,
                request_id: Some("req-1".into()),
            };
            entries.push(AuditEntry::link(seq, prev, draft));
        }
        entries
    }

    fn verify(entries: &[AuditEntry]) -> Result<(), Broken> {
        let mut verifier = Verifier::default();
        entries.iter().try_for_each(|entry| verifier.next(entry))
    }

    /// Chains that are on disk must verify for ever.
    #[test]
    fn the_bytes_under_the_hash_are_fixed() {
        let draft = chain(1).remove(0).draft;

        assert_eq!(
            String::from_utf8(draft.fields(7, &draft.details.to_string()).canonical()).expect("text"),
            r#"[7,1000000,"ana","device.executed","run 1",{"a":[true,null],"b":1},null,"req-1"]"#
        );
    }

    #[test]
    fn an_untouched_chain_verifies() {
        assert_eq!(verify(&chain(20)), Ok(()));
    }

    #[test]
    fn every_tampering_is_found_at_its_position() {
        let good = chain(9);

        let mut edited = good.clone();
        edited[4].draft.actor = Some("eve".into());
        assert_eq!(verify(&edited), Err(Broken::Content(5)));

        let mut rehashed = edited.clone();
        rehashed[4] = AuditEntry::link(5, rehashed[4].prev_hash, rehashed[4].draft.clone());
        assert_eq!(verify(&rehashed), Err(Broken::Link(6)));

        let mut deleted = good.clone();
        deleted.remove(4);
        assert_eq!(verify(&deleted), Err(Broken::Sequence { after: 4, found: 6 }));

        let mut swapped = good.clone();
        swapped.swap(2, 3);
        assert_eq!(verify(&swapped), Err(Broken::Sequence { after: 2, found: 4 }));

        let mut moved_time = good;
        moved_time[0].draft.at = Timestamp::from_seconds(0);
        assert_eq!(verify(&moved_time), Err(Broken::Content(1)));
    }
}
