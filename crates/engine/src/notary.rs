//! Signs what the audit log holds, checks it, hands it out, and deletes what is too old.
//!
//! Entries are signed for some moments after they were written, off every request's path. A server that ends in between loses
//! nothing: the next one signs for them. Before it signs more than was signed before, the notary builds the tree anew and
//! compares: a log that was changed while no server ran is not signed again, and the alarm says so.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use interlock_evidence::bundle::Writer;
use interlock_evidence::checkpoint::Signer;
use interlock_evidence::examine::Examiner;
pub use interlock_evidence::examine::{Finding, Report, Trust};
use interlock_evidence::proof::Proof;
use interlock_evidence::tree::{Frontier, Subtrees, inclusion, leaf_hash, root};
use interlock_evidence::{TILE, TILE_HEIGHT};
use interlock_model::audit::{AuditEntry, Broken, Hash, Link};
use interlock_store::orchestrator::ask;
use interlock_store::seals::{Seal, Tile};
use interlock_store::{AuditFilter, Error, Page, Store, transact_repeatable};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Ambient;
use crate::auth::{Db, Recorded, SystemPermit};
use crate::security;

/// Entries that are read and sealed together.
const BATCH: u32 = 4_096;
/// Entries that are read at a time where a whole log is gone through.
const PART: u16 = 1_024;
/// Parts that are read ahead meanwhile, by as many readers as the storage has.
const AHEAD: usize = 4;
/// Tiles that are read together: 1 MiB.
const TILES: u32 = 128;
/// [`TILE`] as a limit of a read.
const TILE_ENTRIES: u32 = 256;
/// Entries that are deleted together: other writes wait that long.
const DELETED: u32 = 2_000;

/// Why nothing was signed, or nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum NotaryError {
    /// What is stored is not what was signed.
    #[error(transparent)]
    Tampered(#[from] Finding),
    /// There is no such entry, or nothing that was signed covers it yet.
    #[error("entry {0} is not here, or not signed for yet")]
    NoEntry(u64),
    /// The destination cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The storage's.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The tree as far as it was built.
#[derive(Debug, Clone, Default)]
struct Grown {
    frontier: Frontier,
    /// Hashes of the entries behind the last full tile.
    partial: Vec<Hash>,
}

impl Grown {
    /// Adds an entry; gives back the tile that it completes.
    fn push(&mut self, hash: Hash) -> Option<Tile> {
        let index = self.frontier.size() / TILE;
        self.frontier.push(leaf_hash(&hash));
        self.partial.push(hash);
        (self.partial.len() as u64 == TILE).then(|| {
            let hashes = std::mem::take(&mut self.partial);
            Tile { index, root: tile_root(&hashes), hashes }
        })
    }
}

fn tile_root(hashes: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    for hash in hashes {
        frontier.push(leaf_hash(hash));
    }
    frontier.root()
}

/// Builds the tree and signs it.
pub struct Notary {
    store: Arc<dyn Store>,
    signer: Arc<Signer>,
    ambient: Ambient,
    grown: Option<Grown>,
}

impl std::fmt::Debug for Notary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notary({:?})", self.signer)
    }
}

impl Notary {
    /// For the log in this storage.
    pub fn new(store: Arc<dyn Store>, signer: Arc<Signer>, ambient: Ambient) -> Self {
        Self { store, signer, ambient, grown: None }
    }

    /// Writes the public half of the key into the log, unless it is there. Whoever trusts one key of a log can so see which
    /// others sign for it.
    ///
    /// # Errors
    /// The storage's.
    pub async fn publish_key(&self, db: &Db, permit: &SystemPermit) -> Result<(), Error> {
        let key = self.signer.key().to_string();
        let filter = AuditFilter {
            action: Some(KEY_PUBLISHED.to_owned()),
            subject: Some(key.clone()),
            ..AuditFilter::default()
        };
        if self.store.audit(&filter, Page { limit: 1, offset: 0 }).await?.total > 0 {
            return Ok(());
        }
        let proof = permit.acting(KEY_PUBLISHED, Some(key));
        let nothing = Recorded { value: (), details: json!({}) };
        db.write(&proof, move |_| async move { Ok::<_, Error>(nothing) }.boxed()).await
    }

    /// Signs every `period` until `stop`, then a last time. Run it as a background task.
    pub async fn seal_until(mut self, period: Duration, stop: CancellationToken) {
        let mut alarmed = false;
        loop {
            let last = stop.is_cancelled();
            match self.seal().await {
                Ok(_) => {
                    metrics::gauge!("audit_seal_failing").set(0.0);
                    alarmed = false;
                }
                Err(error) => {
                    // Whatever was built may not be what is stored.
                    self.grown = None;
                    metrics::gauge!("audit_seal_failing").set(1.0);
                    let tampered = matches!(error, NotaryError::Tampered(_));
                    if tampered && !alarmed {
                        let reason = json!({ "reason": error.to_string() });
                        security::event(security::Event::AuditTampered, None, None, reason);
                    }
                    if !std::mem::replace(&mut alarmed, true) {
                        tracing::error!(%error, "the audit log is not being signed");
                    }
                }
            }
            if last {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(if alarmed { period * 10 } else { period }) => {}
            }
        }
    }

    /// Signs for what was written since; gives back how many entries are signed for.
    ///
    /// # Errors
    /// [`NotaryError::Tampered`] when the log is not what was signed before; the storage's.
    pub async fn seal(&mut self) -> Result<u64, NotaryError> {
        let mut grown = match self.grown.take() {
            Some(grown) => grown,
            None => self.build().await?,
        };
        loop {
            let after = grown.frontier.size();
            let (newest, seals, hashes) = ask(&*self.store, move |mut reads| {
                async move {
                    let newest = reads.newest_seal().await?;
                    let between = reads.seals(after.saturating_sub(1), BATCH).await?;
                    Ok((newest, between, reads.entry_hashes(after, BATCH).await?))
                }
                .boxed()
            })
            .await?;
            let mut seals = seals.into_iter().peekable();
            let mut tiles = Vec::new();
            let full = hashes.len() == BATCH as usize;
            compare(&grown, &mut seals)?;
            for (number, hash) in hashes {
                if number != grown.frontier.size() + 1 {
                    let after = grown.frontier.size();
                    return Err(Finding::Chain(Broken::Sequence { after, found: number }).into());
                }
                tiles.extend(grown.push(hash));
                compare(&grown, &mut seals)?;
            }
            let size = grown.frontier.size();
            let signed = newest.map_or(0, |newest| newest.size);
            if signed > size && !full {
                return Err(Finding::CutOff { good: after, noted: signed, last: size }.into());
            }
            if size > signed {
                let (at, root) = (self.ambient.clock.now(), grown.frontier.root());
                let seal = Seal { size, root, at, note: self.signer.sign(size, root, at) };
                let kept = Arc::new((tiles, seal));
                transact_repeatable(&*self.store, move |tx| {
                    let kept = Arc::clone(&kept);
                    async move { tx.orchestrator().seal(&kept.0, &kept.1).await }.boxed()
                })
                .await?;
            }
            if !full {
                self.grown = Some(grown);
                return Ok(size.max(signed));
            }
        }
    }

    /// What the tiles hold.
    async fn build(&self) -> Result<Grown, NotaryError> {
        let mut grown = Grown::default();
        loop {
            let next = grown.frontier.size() / TILE;
            let roots = ask(&*self.store, move |mut reads| {
                async move { reads.tile_roots(next, BATCH).await }.boxed()
            })
            .await?;
            if roots.is_empty() {
                return Ok(grown);
            }
            for (index, root) in roots {
                let after = grown.frontier.size();
                if index * TILE != after {
                    return Err(Finding::Misplaced { after, what: "tile" }.into());
                }
                grown.frontier.push_subtree(root, TILE_HEIGHT);
            }
        }
    }
}

/// The action under which keys are in the log.
const KEY_PUBLISHED: &str = "audit.key_published";

/// Compares with what was signed for a log of just this size.
fn compare(grown: &Grown, seals: &mut std::iter::Peekable<std::vec::IntoIter<Seal>>) -> Result<(), Finding> {
    let size = grown.frontier.size();
    while let Some(seal) = seals.next_if(|seal| seal.size <= size) {
        if seal.size == size && seal.root != grown.frontier.root() {
            return Err(Finding::Root { first: 1, last: size });
        }
    }
    Ok(())
}

/// A part of the log, in the order in which it is checked.
enum Part<T> {
    Tile(Tile),
    Entry(T),
    Seal(Seal),
}

/// An entry, whole or only its links.
trait Numbered {
    fn number(&self) -> u64;
}

impl Numbered for AuditEntry {
    fn number(&self) -> u64 {
        self.seq
    }
}

impl Numbered for Link {
    fn number(&self) -> u64 {
        self.seq
    }
}

/// Goes through the log from its first entry to the one that is the newest now. `read` gives [`PART`] entries behind a number,
/// `begin` is told which entry is the first.
async fn walk<'a, S, T: Numbered>(
    store: &'a dyn Store,
    read: impl Fn(u64) -> BoxFuture<'a, Result<Vec<T>, Error>>,
    begin: impl FnOnce(u64) -> Result<S, NotaryError>,
    mut each: impl FnMut(&mut S, Part<T>) -> Result<(), NotaryError>,
) -> Result<S, NotaryError> {
    // In this order: what is signed for is there.
    let (newest, span) = ask(store, |mut reads| {
        async move { Ok((reads.newest_seal().await?, reads.audit_span().await?)) }.boxed()
    })
    .await?;
    let (first, last) = span.unwrap_or((1, 0));
    let mut state = begin(first)?;
    let mut tiles = Ahead::default();
    let mut seals = Ahead::default();
    let mut number = first.saturating_sub(1);
    loop {
        // Where each part begins is known before the one in front of it was read, as long as no entry is missing.
        let from = number;
        let mut parts = stream::iter((from..last).step_by(PART.into())).map(&read).buffered(AHEAD);
        let mut expected = from;
        while let Some(entries) = parts.try_next().await? {
            for entry in entries.into_iter().take_while(|entry| entry.number() <= last) {
                number = entry.number();
                while let Some(tile) = tiles.tile(store, number.div_ceil(TILE), last).await? {
                    each(&mut state, Part::Tile(tile))?;
                }
                each(&mut state, Part::Entry(entry))?;
                while let Some(seal) = seals.seal(store, number, last).await? {
                    // Those of entries that were deleted are covered by later ones.
                    if seal.size >= first {
                        each(&mut state, Part::Seal(seal))?;
                    }
                }
            }
            expected += u64::from(PART);
            if number != expected {
                // One is missing, or this is the end: what was read ahead does not follow.
                break;
            }
        }
        if number == from || number >= last {
            break;
        }
    }
    if let Some(newest) = newest.filter(|newest| newest.size > last) {
        each(&mut state, Part::Seal(newest))?;
    }
    Ok(state)
}

/// Something that is read in larger pieces than it is needed in.
struct Ahead<T> {
    waiting: std::collections::VecDeque<T>,
    next: u64,
    ended: bool,
}

impl<T> Default for Ahead<T> {
    fn default() -> Self {
        Self { waiting: std::collections::VecDeque::new(), next: 0, ended: false }
    }
}

impl Ahead<Tile> {
    /// The next tile below `end` whose entries all are among the first `last`.
    async fn tile(&mut self, store: &dyn Store, end: u64, last: u64) -> Result<Option<Tile>, Error> {
        if self.waiting.is_empty() && !self.ended && self.next < end {
            let from = self.next;
            let read =
                ask(store, move |mut reads| async move { reads.tiles(from, TILES).await }.boxed()).await?;
            self.ended = read.is_empty();
            self.waiting = read.into();
        }
        let ready = |tile: &mut Tile| tile.index < end && (tile.index + 1) * TILE <= last;
        let tile = self.waiting.pop_front_if(ready);
        if let Some(tile) = &tile {
            self.next = tile.index + 1;
        }
        Ok(tile)
    }
}

impl Ahead<Seal> {
    /// The next checkpoint of at most `size` entries.
    async fn seal(&mut self, store: &dyn Store, size: u64, last: u64) -> Result<Option<Seal>, Error> {
        if self.waiting.is_empty() && !self.ended && self.next < last {
            let after = self.next;
            let read =
                ask(store, move |mut reads| async move { reads.seals(after, BATCH).await }.boxed()).await?;
            self.ended = read.is_empty();
            self.waiting = read.into();
        }
        let seal = self.waiting.pop_front_if(|seal| seal.size <= size);
        if let Some(seal) = &seal {
            self.next = seal.size;
        }
        Ok(seal)
    }
}

/// Checks the whole log: every entry, the chain, the tree, every signature, and what was noted elsewhere.
///
/// # Errors
/// Where it breaks, or why it cannot be read.
pub async fn verify(store: &dyn Store, trust: Trust) -> Result<Report, NotaryError> {
    let read = |after| store.audit_links(after, PART.into());
    let begin = |first| Ok(Examiner::new(trust, first)?);
    let examiner = walk(store, read, begin, |examiner, part| {
        match part {
            Part::Tile(tile) => examiner.tile(tile.index, tile.hashes)?,
            Part::Entry(entry) => examiner.checked(&entry)?,
            Part::Seal(seal) => examiner.checkpoint(&seal.note)?,
        }
        Ok(())
    })
    .await?;
    Ok(examiner.finish()?)
}

/// Writes the whole log as a file that can be checked without a server ([`interlock_evidence::bundle`]).
///
/// # Errors
/// The destination's and the storage's.
pub async fn export<W: std::io::Write>(store: &dyn Store, signer: &Signer, out: W) -> Result<W, NotaryError> {
    let key = signer.key().clone();
    let begin = |first| Ok(Writer::start(out, key.name(), first, std::slice::from_ref(&key))?);
    let read = |after| store.audit_from(after, PART.into());
    let writer = walk(store, read, begin, |writer, part| {
        match part {
            Part::Tile(tile) => writer.tile(tile.index, &tile.hashes)?,
            Part::Entry(entry) => writer.entry(entry)?,
            Part::Seal(seal) => writer.checkpoint(&seal.note)?,
        }
        Ok(())
    })
    .await?;
    Ok(writer.finish()?)
}

/// The newest checkpoint.
///
/// # Errors
/// The storage's.
pub async fn newest(store: &dyn Store) -> Result<Option<Seal>, Error> {
    ask(store, |mut reads| async move { reads.newest_seal().await }.boxed()).await
}

/// What is needed of the tree to prove one entry.
struct Known {
    roots: Vec<Hash>,
    /// The leaves of the entry's tile and of the one under way: where they begin, and they.
    leaves: Vec<(u64, Vec<Hash>)>,
}

impl Subtrees for Known {
    type Error = Infallible;

    fn complete(&mut self, height: u32, index: u64) -> Result<Hash, Infallible> {
        let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let mut frontier = Frontier::default();
        if height >= TILE_HEIGHT {
            let count = 1 << (height - TILE_HEIGHT);
            let (first, end) = (place(index * count), place(index * count + count));
            for root in self.roots.get(first..end).unwrap_or_default() {
                frontier.push_subtree(*root, TILE_HEIGHT);
            }
        } else {
            let (first, count) = (index << height, 1_u64 << height);
            for (begin, leaves) in &self.leaves {
                let part = first.checked_sub(*begin).and_then(|at| leaves.get(place(at)..place(at + count)));
                if let Some(part) = part {
                    for leaf in part {
                        frontier.push(*leaf);
                    }
                    break;
                }
            }
        }
        Ok(frontier.root())
    }
}

/// What is needed to prove entry `index + 1` in the log of `size` entries.
async fn known(store: &dyn Store, index: u64, size: u64) -> Result<Known, NotaryError> {
    let mut roots = Vec::new();
    while (roots.len() as u64) < size / TILE {
        let first = roots.len() as u64;
        let read =
            ask(store, move |mut reads| async move { reads.tile_roots(first, BATCH).await }.boxed()).await?;
        if read.is_empty() {
            return Err(Finding::Misplaced { after: first * TILE, what: "tile" }.into());
        }
        roots.extend(read.into_iter().map(|(_, root)| root));
    }
    let (of_entry, under_way) = (index - index % TILE, size - size % TILE);
    let leaves = ask(store, move |mut reads| {
        async move {
            let mut leaves = Vec::new();
            for first in [of_entry, under_way] {
                let tile =
                    reads.tiles(first / TILE, 1).await?.pop().filter(|tile| tile.index == first / TILE);
                let hashes = match tile {
                    Some(tile) => tile.hashes,
                    None => reads
                        .entry_hashes(first, TILE_ENTRIES)
                        .await?
                        .into_iter()
                        .map(|(_, hash)| hash)
                        .collect(),
                };
                leaves.push((first, hashes.iter().map(|hash| leaf_hash(hash)).collect()));
            }
            Ok(leaves)
        }
        .boxed()
    })
    .await?;
    Ok(Known { roots, leaves })
}

/// The root over the first `size` entries; `None` when there are not so many.
///
/// # Errors
/// The storage's.
pub async fn root_of(store: &dyn Store, size: u64) -> Result<Option<Hash>, NotaryError> {
    let span = ask(store, |mut reads| async move { reads.audit_span().await }.boxed()).await?;
    if span.is_none_or(|(_, last)| last < size) {
        return Ok(None);
    }
    let mut known = known(store, size.saturating_sub(1), size).await?;
    let Ok(root) = root(size, &mut known);
    Ok(Some(root))
}

/// Proves that an entry is in the log.
///
/// # Errors
/// [`NotaryError::NoEntry`]; [`NotaryError::Tampered`] when what is stored does not give what was signed; the storage's.
pub async fn prove(store: &dyn Store, number: u64) -> Result<Proof, NotaryError> {
    let missing = || NotaryError::NoEntry(number);
    let index = number.checked_sub(1).ok_or_else(missing)?;
    let entry =
        store.audit_from(index, 1).await?.pop().filter(|entry| entry.seq == number).ok_or_else(missing)?;
    let seal = newest(store).await?.filter(|seal| seal.size >= number).ok_or_else(missing)?;
    let mut known = known(store, index, seal.size).await?;
    let Ok(whole) = root(seal.size, &mut known);
    if whole != seal.root {
        return Err(Finding::Root { first: 1, last: seal.size }.into());
    }
    let Ok(path) = inclusion(index, seal.size, &mut known);
    Ok(Proof::new(entry, &path.ok_or_else(missing)?, seal.note))
}

/// Deletes what is too old, as [`forget`] does, once in every `period` until dropped. Run it as a background task.
pub async fn forget_forever(db: Db, ambient: Ambient, permit: SystemPermit, days: u32, period: Duration) {
    loop {
        if let Err(error) = forget(&db, &ambient, &permit, days).await {
            if let NotaryError::Tampered(finding) = &error {
                let reason = json!({ "reason": finding.to_string() });
                security::event(security::Event::AuditTampered, None, None, reason);
            }
            tracing::error!(%error, "audit entries beyond their retention could not be deleted");
        }
        tokio::time::sleep(period).await;
    }
}

/// Deletes entries that are older than `days`, in whole tiles that are signed for; returns how many. Their hashes stay. What is
/// not as it was signed is evidence of something, and stays.
///
/// # Errors
/// [`NotaryError::Tampered`]; then nothing was deleted. The storage's; then what was deleted until then stays deleted.
pub async fn forget(
    db: &Db,
    ambient: &Ambient,
    permit: &SystemPermit,
    days: u32,
) -> Result<u64, NotaryError> {
    let before = ambient.clock.settled().minus(Duration::from_hours(24 * u64::from(days)));
    let (old, newest, span) = ask(db.read(), move |mut reads| {
        async move {
            Ok((reads.audit_before(before).await?, reads.newest_seal().await?, reads.audit_span().await?))
        }
        .boxed()
    })
    .await?;
    let (Some(old), Some(newest), Some((first, last))) = (old, newest, span) else { return Ok(0) };
    // The newest entry stays in any case: the chain goes on from it.
    let upto = old.min(newest.size).min(last - 1);
    let upto = upto - upto % TILE;
    if upto < first {
        return Ok(0);
    }
    compare_tiles(db.read(), (first - 1) / TILE, upto / TILE).await?;
    let mut deleted = 0;
    loop {
        let step = transact_repeatable(db.read(), move |tx| {
            async move { tx.orchestrator().forget_audit(upto, DELETED).await }.boxed()
        })
        .await?;
        deleted += step;
        if step == 0 {
            break;
        }
        // Whoever waits to write goes first.
        tokio::task::yield_now().await;
    }
    let proof = permit.acting("audit.retention_applied", None);
    let details = json!({ "deleted": deleted, "upto": upto, "older_than_days": days });
    let recorded = Recorded { value: deleted, details };
    Ok(db.write(&proof, move |_| async move { Ok::<_, Error>(recorded) }.boxed()).await?)
}

/// Whether the entries of these tiles are those that the tiles were made of.
async fn compare_tiles(store: &dyn Store, first: u64, end: u64) -> Result<(), NotaryError> {
    for index in first..end {
        let tile =
            ask(store, move |mut reads| async move { reads.tiles(index, 1).await }.boxed()).await?.pop();
        let misplaced = Finding::Misplaced { after: index * TILE, what: "tile" };
        let tile = tile
            .filter(|tile| tile.index == index && tile_root(&tile.hashes) == tile.root)
            .ok_or(misplaced)?;
        let entries = store.audit_from(index * TILE, TILE_ENTRIES).await?;
        for (number, (hash, entry)) in (index * TILE + 1..).zip(tile.hashes.iter().zip(&entries)) {
            if entry.seq != number {
                return Err(Finding::Chain(Broken::Sequence { after: number - 1, found: entry.seq }).into());
            }
            if !entry.is_sound() {
                return Err(Finding::Chain(Broken::Content(number)).into());
            }
            if entry.hash != *hash {
                return Err(Finding::Replaced(number).into());
            }
        }
    }
    Ok(())
}
