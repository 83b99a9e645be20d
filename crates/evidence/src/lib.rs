//! The audit log as evidence.
//!
//! The entries of the log ([`interlock_model::audit`]) are chained by their hashes; that alone finds accidents, not somebody who
//! can write the whole database anew. So the hashes are also the leaves of a Merkle tree ([`tree`], RFC 9162), whose root is
//! signed again and again with a key that is not in the database ([`checkpoint`]). [`examine`] checks entries, tree and
//! signatures in one pass with little memory, and says where it breaks. [`bundle`] is the file in which all of it travels, so
//! that an auditor needs that file, the public key and nothing of the server.
//!
//! *Deliberately absent:* a clock, storage, the network.

pub mod bundle;
pub mod checkpoint;
pub mod examine;
pub mod proof;
pub mod tree;

/// Entries whose hashes are kept together, as one tile of the tree. What is deleted after its retention are whole tiles; their
/// hashes stay, so that every proof about what is left stays possible.
pub const TILE: u64 = 256;

/// Height of the subtree over one tile.
pub const TILE_HEIGHT: u32 = 8;
