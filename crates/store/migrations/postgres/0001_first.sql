-- Times are microseconds since the Unix epoch, UTC. JSON is compact text: audit details must read back byte for byte, and
-- JSONB can hold neither U+0000 nor every number. COLLATE "C" orders as SQLite does, whatever the database's language.

CREATE TABLE users (
    name              TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    password_hash     TEXT    NOT NULL,
    roles             TEXT    NOT NULL,
    disabled          BOOLEAN NOT NULL,
    tokens_valid_from BIGINT  NOT NULL,
    created_at        BIGINT  NOT NULL,
    updated_at        BIGINT  NOT NULL,
    version           BIGINT  NOT NULL
);

CREATE TABLE runs (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    device      TEXT    NOT NULL,
    action      TEXT COLLATE "C" NOT NULL,
    state       TEXT COLLATE "C" NOT NULL
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out', 'uncertain')),
    simulated   BOOLEAN NOT NULL,
    parameters  TEXT    NOT NULL,
    result      TEXT,
    error       TEXT,
    actor       TEXT    NOT NULL,
    request_id  TEXT    NOT NULL,
    created_at  BIGINT  NOT NULL,
    started_at  BIGINT,
    finished_at BIGINT,
    duration_ms DOUBLE PRECISION
);
-- Almost every run ends as "succeeded": an index of those would be written at each call and seldom help. See 0013 in docs/adr.
CREATE INDEX runs_by_state ON runs (state, id) WHERE state <> 'succeeded';
CREATE INDEX runs_by_action ON runs (action, id);

CREATE TABLE run_events (
    run  TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    seq  BIGINT NOT NULL CHECK (seq > 0),
    at   BIGINT NOT NULL,
    data TEXT   NOT NULL,
    PRIMARY KEY (run, seq)
);

CREATE TABLE keys (
    actor      TEXT COLLATE "C" NOT NULL,
    key        TEXT COLLATE "C" NOT NULL,
    digest     BYTEA  NOT NULL CHECK (octet_length(digest) = 32),
    run        TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (actor, key)
);
CREATE INDEX keys_by_end ON keys (expires_at);

CREATE TABLE revocations (
    jti        TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    reason     TEXT   NOT NULL,
    at         BIGINT NOT NULL
);
CREATE INDEX revocations_by_end ON revocations (expires_at);

-- The chain: each hash covers its row and the hash before it (interlock_model::audit).
CREATE TABLE audit (
    seq        BIGINT NOT NULL PRIMARY KEY CHECK (seq > 0),
    at         BIGINT NOT NULL,
    actor      TEXT COLLATE "C",
    action     TEXT COLLATE "C" NOT NULL,
    subject    TEXT COLLATE "C",
    details    TEXT   NOT NULL,
    client_ip  TEXT,
    request_id TEXT,
    prev_hash  BYTEA  NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash       BYTEA  NOT NULL CHECK (octet_length(hash) = 32)
);
-- By hash, not by text: a subject may be longer than an index entry of a B-tree can be (2704 bytes).
CREATE INDEX audit_by_action ON audit (action, seq);
CREATE INDEX audit_by_actor ON audit USING hash (actor) WHERE actor IS NOT NULL;
CREATE INDEX audit_by_subject ON audit USING hash (subject) WHERE subject IS NOT NULL;

-- The end of the chain. Its row is locked by the transaction that appends, so numbers have no gaps.
CREATE TABLE audit_head (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq  BIGINT  NOT NULL,
    hash BYTEA   NOT NULL CHECK (octet_length(hash) = 32)
) WITH (fillfactor = 50);
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'));

-- Moves with every change of who may sign in, whoever makes it: servers compare it with what they have in memory. A row
-- and not a sequence, because a sequence moves before the change can be seen. Deferred to the commit, so that its row lock
-- is the last that any transaction takes.
CREATE TABLE changes (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    mark BIGINT  NOT NULL
) WITH (fillfactor = 50);
INSERT INTO changes (id, mark) VALUES (1, 0);
CREATE FUNCTION move_mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE changes SET mark = mark + 1 WHERE id = 1;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER users_changed AFTER INSERT OR UPDATE OR DELETE ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION move_mark();
CREATE CONSTRAINT TRIGGER revocations_added AFTER INSERT ON revocations
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION move_mark();

-- Networks whose requests are refused. A row outlives its end for a while, because the next ban of the same network is longer.
CREATE TABLE bans (
    network    TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    reason     TEXT   NOT NULL,
    added_by   TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    ends_at    BIGINT,
    forget_at  BIGINT,
    offences   BIGINT NOT NULL CHECK (offences >= 0)
);
CREATE INDEX bans_by_end ON bans (forget_at) WHERE forget_at IS NOT NULL;
CREATE CONSTRAINT TRIGGER bans_changed AFTER INSERT OR UPDATE OR DELETE ON bans
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION move_mark();
