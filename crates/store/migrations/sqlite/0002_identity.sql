-- Agents, sessions, API keys, roles and the like: records of one life cycle (see identity.rs). Times are microseconds since
-- the Unix epoch, UTC; data is compact JSON.

CREATE TABLE identity (
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    -- Another name, unique within the kind.
    alias      TEXT,
    owner      TEXT,
    data       TEXT    NOT NULL,
    version    INTEGER NOT NULL CHECK (version > 0),
    expires_at INTEGER,
    -- The mark of its last change: servers ask for what is newer than what they have in memory.
    changed    INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX identity_by_alias ON identity (kind, alias) WHERE alias IS NOT NULL;
CREATE INDEX identity_by_owner ON identity (kind, owner) WHERE owner IS NOT NULL;
CREATE INDEX identity_by_change ON identity (changed);
CREATE INDEX identity_by_end ON identity (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE identity_mark (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    mark INTEGER NOT NULL
) STRICT;
INSERT INTO identity_mark (id, mark) VALUES (1, 0);
