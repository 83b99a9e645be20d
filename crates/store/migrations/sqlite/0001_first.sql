-- Times are microseconds since the Unix epoch, UTC. JSON is compact text. Booleans are 0 and 1.

CREATE TABLE users (
    name              TEXT    NOT NULL PRIMARY KEY,
    password_hash     TEXT    NOT NULL,
    roles             TEXT    NOT NULL,
    disabled          INTEGER NOT NULL CHECK (disabled IN (0, 1)),
    tokens_valid_from INTEGER NOT NULL,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    version           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id          TEXT    NOT NULL PRIMARY KEY,
    device      TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out', 'uncertain')),
    simulated   INTEGER NOT NULL CHECK (simulated IN (0, 1)),
    parameters  TEXT    NOT NULL,
    result      TEXT,
    error       TEXT,
    actor       TEXT    NOT NULL,
    request_id  TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    started_at  INTEGER,
    finished_at INTEGER,
    duration_ms REAL
) STRICT, WITHOUT ROWID;
-- Almost every run ends as "succeeded": an index of those would be written at each call and seldom help. See 0013 in docs/adr.
CREATE INDEX runs_by_state ON runs (state, id) WHERE state <> 'succeeded';
CREATE INDEX runs_by_action ON runs (action, id);

CREATE TABLE run_events (
    run  TEXT    NOT NULL REFERENCES runs (id),
    seq  INTEGER NOT NULL CHECK (seq > 0),
    at   INTEGER NOT NULL,
    data TEXT    NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE keys (
    actor      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    run        TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_end ON keys (expires_at);

CREATE TABLE revocations (
    jti        TEXT    NOT NULL PRIMARY KEY,
    expires_at INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX revocations_by_end ON revocations (expires_at);

-- The chain: each hash covers its row and the hash before it (interlock_model::audit).
CREATE TABLE audit (
    seq        INTEGER NOT NULL PRIMARY KEY CHECK (seq > 0),
    at         INTEGER NOT NULL,
    actor      TEXT,
    action     TEXT    NOT NULL,
    subject    TEXT,
    details    TEXT    NOT NULL,
    client_ip  TEXT,
    request_id TEXT,
    prev_hash  BLOB    NOT NULL CHECK (length(prev_hash) = 32),
    hash       BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE INDEX audit_by_action ON audit (action, seq);
CREATE INDEX audit_by_actor ON audit (actor, seq) WHERE actor IS NOT NULL;
CREATE INDEX audit_by_subject ON audit (subject, seq) WHERE subject IS NOT NULL;

-- Moves with every change of who may sign in, whoever makes it: servers compare it with what they have in memory.
CREATE TABLE changes (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    mark INTEGER NOT NULL
) STRICT;
INSERT INTO changes (id, mark) VALUES (1, 0);
CREATE TRIGGER users_added AFTER INSERT ON users BEGIN UPDATE changes SET mark = mark + 1; END;
CREATE TRIGGER users_changed AFTER UPDATE ON users BEGIN UPDATE changes SET mark = mark + 1; END;
CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN UPDATE changes SET mark = mark + 1; END;
CREATE TRIGGER revocations_added AFTER INSERT ON revocations BEGIN UPDATE changes SET mark = mark + 1; END;

-- Networks whose requests are refused. A row outlives its end for a while, because the next ban of the same network is longer.
CREATE TABLE bans (
    network    TEXT    NOT NULL PRIMARY KEY,
    reason     TEXT    NOT NULL,
    added_by   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    ends_at    INTEGER,
    forget_at  INTEGER,
    offences   INTEGER NOT NULL CHECK (offences >= 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX bans_by_end ON bans (forget_at) WHERE forget_at IS NOT NULL;
CREATE TRIGGER bans_added AFTER INSERT ON bans BEGIN UPDATE changes SET mark = mark + 1; END;
CREATE TRIGGER bans_changed AFTER UPDATE ON bans BEGIN UPDATE changes SET mark = mark + 1; END;
CREATE TRIGGER bans_deleted AFTER DELETE ON bans BEGIN UPDATE changes SET mark = mark + 1; END;
