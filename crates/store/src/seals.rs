//! The Merkle tree over the audit chain: tiles of its hashes, signed checkpoints, and what is deleted after its retention.

use interlock_model::Timestamp;
use interlock_model::audit::Hash;

use crate::orchestrator::{Changes, Reads};
use crate::sql::{Row, Value, values};
use crate::{Error, codec};

/// Bytes of the hashes of one tile.
const TILE_BYTES: usize = 8_192;
/// Checkpoints within one minute are replaced by the newest.
const MINUTE_MICROS: i64 = 60_000_000;

/// The hashes of 256 entries in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Which: entry `256 * index + 1` is its first.
    pub index: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// The entries' hashes.
    pub hashes: Vec<Hash>,
}

/// A signed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// How many entries there were.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// When it was signed.
    pub at: Timestamp,
    /// The signed note.
    pub note: String,
}

fn seal_row(row: &Row) -> Result<Seal, Error> {
    Ok(Seal { size: row.count(0)?, root: row.bytes(1)?, at: row.time(2)?, note: row.text(3)?.to_owned() })
}

impl Changes<'_> {
    /// Adds tiles and a checkpoint; what is there already stays, because every server makes the same. Older checkpoints of the
    /// same minute go.
    ///
    /// # Errors
    /// The storage's.
    pub async fn seal(&mut self, tiles: &[Tile], seal: &Seal) -> Result<(), Error> {
        let rows = tiles.iter().map(|tile| {
            let hashes = Value::Bytes(tile.hashes.as_flattened().to_vec());
            values![codec::position(tile.index), &tile.root, hashes]
        });
        self.sql()
            .change_each(
                "INSERT INTO audit_tiles (idx, root, hashes) VALUES (?1, ?2, ?3) ON CONFLICT (idx) DO NOTHING",
                rows.collect(),
            )
            .await?;
        let size = codec::position(seal.size);
        let minute = seal.at.micros() - seal.at.micros().rem_euclid(MINUTE_MICROS);
        self.sql()
            .change(
                "DELETE FROM audit_seals WHERE size < ?1 AND at >= ?2 AND at <= ?3",
                values![size, minute, seal.at],
            )
            .await?;
        self.sql()
            .change(
                "INSERT INTO audit_seals (size, root, at, note) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (size) DO NOTHING",
                values![size, &seal.root, seal.at, &seal.note],
            )
            .await?;
        Ok(())
    }

    /// Deletes entries up to `upto`, at most `limit`, the oldest first; returns how many. Their tiles stay.
    ///
    /// # Errors
    /// The storage's.
    pub async fn forget_audit(&mut self, upto: u64, limit: u32) -> Result<u64, Error> {
        self.sql()
            .change(
                "DELETE FROM audit WHERE seq <= ?1 AND seq < (SELECT min(seq) FROM audit) + ?2",
                values![codec::position(upto), limit],
            )
            .await
    }
}

impl Reads<'_> {
    /// The newest checkpoint.
    ///
    /// # Errors
    /// The storage's.
    pub async fn newest_seal(&mut self) -> Result<Option<Seal>, Error> {
        let found = self
            .sql()
            .row("SELECT size, root, at, note FROM audit_seals ORDER BY size DESC LIMIT 1", values![])
            .await?;
        found.as_ref().map(seal_row).transpose()
    }

    /// Checkpoints of more than `after` entries, the smallest first.
    ///
    /// # Errors
    /// The storage's.
    pub async fn seals(&mut self, after: u64, limit: u32) -> Result<Vec<Seal>, Error> {
        let found = self
            .sql()
            .rows(
                "SELECT size, root, at, note FROM audit_seals WHERE size > ?1 ORDER BY size LIMIT ?2",
                values![codec::position(after), limit],
            )
            .await?;
        found.iter().map(seal_row).collect()
    }

    /// Tiles from `first` on.
    ///
    /// # Errors
    /// The storage's.
    pub async fn tiles(&mut self, first: u64, limit: u32) -> Result<Vec<Tile>, Error> {
        let found = self
            .sql()
            .rows(
                "SELECT idx, root, hashes FROM audit_tiles WHERE idx >= ?1 ORDER BY idx LIMIT ?2",
                values![codec::position(first), limit],
            )
            .await?;
        let tile = |row: &Row| {
            let hashes: [u8; TILE_BYTES] = row.bytes(2)?;
            let (hashes, _) = hashes.as_chunks();
            Ok(Tile { index: row.count(0)?, root: row.bytes(1)?, hashes: hashes.to_vec() })
        };
        found.iter().map(tile).collect()
    }

    /// Numbers and roots of tiles from `first` on.
    ///
    /// # Errors
    /// The storage's.
    pub async fn tile_roots(&mut self, first: u64, limit: u32) -> Result<Vec<(u64, Hash)>, Error> {
        let found = self
            .sql()
            .rows(
                "SELECT idx, root FROM audit_tiles WHERE idx >= ?1 ORDER BY idx LIMIT ?2",
                values![codec::position(first), limit],
            )
            .await?;
        found.iter().map(|row| Ok((row.count(0)?, row.bytes(1)?))).collect()
    }

    /// Numbers and hashes of entries behind `after`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn entry_hashes(&mut self, after: u64, limit: u32) -> Result<Vec<(u64, Hash)>, Error> {
        let found = self
            .sql()
            .rows(
                "SELECT seq, hash FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2",
                values![codec::position(after), limit],
            )
            .await?;
        found.iter().map(|row| Ok((row.count(0)?, row.bytes(1)?))).collect()
    }

    /// The oldest entry that is there, and the newest.
    ///
    /// # Errors
    /// The storage's.
    pub async fn audit_span(&mut self) -> Result<Option<(u64, u64)>, Error> {
        let found = self.sql().row("SELECT min(seq), max(seq) FROM audit", values![]).await?;
        let Some(row) = found else { return Ok(None) };
        let bound = |column| row.optional_number(column)?.map(codec::count).transpose();
        Ok(bound(0)?.zip(bound(1)?))
    }

    /// The newest entry that is older than `time`.
    ///
    /// # Errors
    /// The storage's.
    pub async fn audit_before(&mut self, time: Timestamp) -> Result<Option<u64>, Error> {
        // Times in the log rise with the numbers but for small steps of clocks, so the first young entry ends the old ones.
        let young = self
            .sql()
            .row("SELECT seq FROM audit WHERE at >= ?1 ORDER BY seq LIMIT 1", values![time])
            .await?;
        let last = match young {
            Some(row) => row.count(0)?.checked_sub(1),
            None => self.audit_span().await?.map(|(_, last)| last),
        };
        Ok(last.filter(|last| *last > 0))
    }
}
