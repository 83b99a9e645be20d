-- The Merkle tree over the audit chain (crate interlock-evidence).

-- The hashes of 256 entries in a row: entry 256 * idx + 1 and those behind it. They stay when the entries are deleted.
CREATE TABLE audit_tiles (
    idx    INTEGER NOT NULL PRIMARY KEY CHECK (idx >= 0),
    root   BLOB NOT NULL CHECK (length(root) = 32),
    hashes BLOB NOT NULL CHECK (length(hashes) = 8192)
) STRICT;

-- Signed checkpoints: what the chain held when it had so many entries.
CREATE TABLE audit_seals (
    size INTEGER NOT NULL PRIMARY KEY CHECK (size > 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    at   INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT;
