//! The Merkle tree of RFC 9162 (section 2.1; the same as in RFC 6962) over SHA-256.
//!
//! Leaf number `n` (from 0) of an audit log holds the hash of entry `n + 1`. A proof has at most 64 hashes.

use interlock_model::audit::Hash;
use sha2::{Digest, Sha256};

/// The hash of a leaf.
pub fn leaf_hash(data: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    hasher.update(data);
    hasher.finalize().into()
}

/// The hash of a node over its two children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([1]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// What has to be remembered of a tree so that leaves can be added: one hash for each bit that is set in its size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// Roots of the complete subtrees, the largest first.
    nodes: Vec<Hash>,
}

impl Frontier {
    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        self.push_subtree(leaf, 0);
    }

    /// Adds a complete subtree of `2^height` leaves by its root.
    ///
    /// # Panics
    /// When the size is not a multiple of `2^height`: then the subtree has no place here.
    pub fn push_subtree(&mut self, root: Hash, height: u32) {
        assert!(
            self.size.trailing_zeros() >= height || self.size == 0,
            "a subtree starts at a multiple of its size"
        );
        let mut node = root;
        let mut rest = self.size >> height;
        while rest & 1 == 1 {
            if let Some(left) = self.nodes.pop() {
                node = node_hash(&left, &node);
            }
            rest >>= 1;
        }
        self.nodes.push(node);
        self.size += 1 << height;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let mut nodes = self.nodes.iter().rev();
        let Some(last) = nodes.next() else { return empty_root() };
        nodes.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// Where the roots of complete subtrees come from.
pub trait Subtrees {
    /// Why one cannot be had.
    type Error;

    /// The root of the `index`-th complete subtree of `2^height` leaves.
    ///
    /// # Errors
    /// When it cannot be had.
    fn complete(&mut self, height: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Leaves in memory.
impl Subtrees for &[Hash] {
    type Error = std::convert::Infallible;

    fn complete(&mut self, height: u32, index: u64) -> Result<Hash, Self::Error> {
        let (first, count) = (index << height, 1_u64 << height);
        let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let mut frontier = Frontier::default();
        for leaf in self.get(place(first)..place(first + count)).unwrap_or_default() {
            frontier.push(*leaf);
        }
        Ok(frontier.root())
    }
}

/// The largest power of two that is smaller than `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root over the leaves `first..first + count`; `first` is a multiple of the largest power of two that is at most `count`.
fn root_over<S: Subtrees>(first: u64, count: u64, source: &mut S) -> Result<Hash, S::Error> {
    if count.is_power_of_two() {
        let height = count.trailing_zeros();
        return source.complete(height, first >> height);
    }
    let left = split(count);
    Ok(node_hash(&root_over(first, left, source)?, &root_over(first + left, count - left, source)?))
}

/// The root of the first `size` leaves.
///
/// # Errors
/// The source's.
pub fn root<S: Subtrees>(size: u64, source: &mut S) -> Result<Hash, S::Error> {
    if size == 0 { Ok(empty_root()) } else { root_over(0, size, source) }
}

/// Proof that leaf `index` is in the tree of the first `size` leaves (RFC 9162, 2.1.3.1). `None` when it is not in it.
///
/// # Errors
/// The source's.
pub fn inclusion<S: Subtrees>(index: u64, size: u64, source: &mut S) -> Result<Option<Vec<Hash>>, S::Error> {
    if index >= size {
        return Ok(None);
    }
    let (mut first, mut count) = (0, size);
    let mut path = Vec::new();
    while count > 1 {
        let left = split(count);
        if index < first + left {
            path.push(root_over(first + left, count - left, source)?);
            count = left;
        } else {
            path.push(root_over(first, left, source)?);
            first += left;
            count -= left;
        }
    }
    path.reverse();
    Ok(Some(path))
}

/// Whether `path` proves that `leaf` is leaf `index` of the tree with this size and root (RFC 9162, 2.1.3.2).
pub fn includes(leaf: Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut node) = (index, size - 1, leaf);
    for other in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            node = node_hash(other, &node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            node = node_hash(&node, other);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && node == *root
}

/// Proof that the tree of `old` leaves is the beginning of the one of `new` leaves (RFC 9162, 2.1.4.1). `None` when `old` is 0
/// or larger than `new`; empty when both are the same.
///
/// # Errors
/// The source's.
pub fn consistency<S: Subtrees>(old: u64, new: u64, source: &mut S) -> Result<Option<Vec<Hash>>, S::Error> {
    if old == 0 || old > new {
        return Ok(None);
    }
    let (mut first, mut count, mut whole) = (0, new, true);
    let mut path = Vec::new();
    while old - first != count {
        let left = split(count);
        if old - first <= left {
            path.push(root_over(first + left, count - left, source)?);
            count = left;
        } else {
            path.push(root_over(first, left, source)?);
            first += left;
            count -= left;
            whole = false;
        }
    }
    if !whole {
        path.push(root_over(first, count, source)?);
    }
    path.reverse();
    Ok(Some(path))
}

/// Whether `path` proves that the tree with the old size and root is the beginning of the one with the new (RFC 9162, 2.1.4.2).
pub fn continues((old, old_root): (u64, &Hash), (new, new_root): (u64, &Hash), path: &[Hash]) -> bool {
    if old == new {
        return path.is_empty() && old_root == new_root;
    }
    if old == 0 || old > new {
        return false;
    }
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let mut rest = path.iter();
    // A complete old tree is itself the first hash, and is left out of the proof.
    let seed = if old.is_power_of_two() { Some(*old_root) } else { rest.next().copied() };
    let Some(seed) = seed else { return false };
    let (mut from_old, mut from_new) = (seed, seed);
    for other in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            from_old = node_hash(other, &from_old);
            from_new = node_hash(other, &from_new);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, other);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == *old_root && from_new == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_model::id::hexadecimal;
    use proptest::prelude::*;

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|number| leaf_hash(&number.to_be_bytes())).collect()
    }

    fn grown(leaves: &[Hash]) -> Frontier {
        let mut frontier = Frontier::default();
        for leaf in leaves {
            frontier.push(*leaf);
        }
        frontier
    }

    /// The leaves and roots that implementations of RFC 6962 agree on.
    #[test]
    fn the_roots_are_those_of_the_standard() {
        let data: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let leaves: Vec<Hash> = data.iter().map(|data| leaf_hash(data)).collect();

        let root = |count: usize| hexadecimal(&grown(&leaves[..count]).root());

        assert_eq!(root(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(root(1), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(root(2), "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
        assert_eq!(root(3), "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77");
        assert_eq!(root(8), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn every_proof_of_every_small_tree_holds_and_no_other_does() {
        let all = leaves(40);
        for size in 1..=all.len() {
            let (count, root_of) = (size as u64, grown(&all[..size]).root());
            assert_eq!(root(count, &mut &all[..]), Ok(root_of));
            for index in 0..count {
                let place = usize::try_from(index).expect("small");
                let path = inclusion(index, count, &mut &all[..]).expect("leaves").expect("in it");
                assert!(includes(all[place], index, count, &path, &root_of), "{index} of {count}");
                assert!(!includes(all[(place + 1) % 40], index, count, &path, &root_of));
                assert!(!includes(all[place], index + 1, count, &path, &root_of), "{index} of {count}");
                let old_root = grown(&all[..=place]).root();
                let path = consistency(index + 1, count, &mut &all[..]).expect("leaves").expect("older");
                assert!(continues((index + 1, &old_root), (count, &root_of), &path), "{index} of {count}");
                assert!(!continues((index + 1, &[0xff; 32]), (count, &root_of), &path));
                assert!(index == 0 || !continues((index, &old_root), (count, &root_of), &path));
            }
        }
        assert_eq!(inclusion(40, 40, &mut &all[..]), Ok(None));
        assert_eq!(consistency(0, 40, &mut &all[..]), Ok(None));
        assert_eq!(consistency(41, 40, &mut &all[..]), Ok(None));
        // Every tree begins with nothing, so that would prove nothing; and none grows shorter.
        let (whole, less) = (grown(&all).root(), grown(&all[..39]).root());
        assert!(!continues((0, &empty_root()), (40, &whole), &[]));
        assert!(!continues((40, &whole), (39, &less), &[]));
    }

    proptest! {
        #[test]
        fn a_changed_proof_does_not_hold(size in 2_usize..300, pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let all = leaves(size);
            let (count, root_of) = (size as u64, grown(&all).root());
            let place = pick.index(size);
            let mut path = inclusion(place as u64, count, &mut &all[..]).expect("leaves").expect("in it");
            prop_assert!(includes(all[place], place as u64, count, &path, &root_of));
            let hash = at.index(path.len());
            path[hash][at.index(32)] ^= 1 << bit;
            prop_assert!(!includes(all[place], place as u64, count, &path, &root_of));
        }

        #[test]
        fn subtrees_and_leaves_give_the_same_root(tiles in 0_usize..4, rest in 0_usize..256) {
            let all = leaves(tiles * 256 + rest);
            let mut frontier = Frontier::default();
            for tile in all[..tiles * 256].chunks(256) {
                frontier.push_subtree(grown(tile).root(), 8);
            }
            for leaf in &all[tiles * 256..] {
                frontier.push(*leaf);
            }
            prop_assert_eq!(frontier, grown(&all));
        }
    }
}
