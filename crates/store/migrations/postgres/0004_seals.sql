-- The Merkle tree over the audit chain (crate interlock-evidence).

-- The hashes of 256 entries in a row: entry 256 * idx + 1 and those behind it. They stay when the entries are deleted.
CREATE TABLE audit_tiles (
    idx    BIGINT NOT NULL PRIMARY KEY CHECK (idx >= 0),
    root   BYTEA NOT NULL CHECK (octet_length(root) = 32),
    hashes BYTEA NOT NULL CHECK (octet_length(hashes) = 8192)
);

-- Signed checkpoints: what the chain held when it had so many entries.
CREATE TABLE audit_seals (
    size BIGINT NOT NULL PRIMARY KEY CHECK (size > 0),
    root BYTEA NOT NULL CHECK (octet_length(root) = 32),
    at   BIGINT NOT NULL,
    note TEXT NOT NULL
);
