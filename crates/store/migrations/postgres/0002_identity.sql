-- Agents, sessions, API keys, roles and the like: records of one life cycle (see identity.rs). Times are microseconds since
-- the Unix epoch, UTC; data is compact JSON.

CREATE TABLE identity (
    kind       TEXT COLLATE "C" NOT NULL,
    id         TEXT COLLATE "C" NOT NULL,
    -- Another name, unique within the kind.
    alias      TEXT COLLATE "C",
    owner      TEXT COLLATE "C",
    data       TEXT   NOT NULL,
    version    BIGINT NOT NULL CHECK (version > 0),
    expires_at BIGINT,
    -- The mark of its last change: servers ask for what is newer than what they have in memory.
    changed    BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE UNIQUE INDEX identity_by_alias ON identity (kind, alias) WHERE alias IS NOT NULL;
CREATE INDEX identity_by_owner ON identity (kind, owner) WHERE owner IS NOT NULL;
CREATE INDEX identity_by_change ON identity (changed);
CREATE INDEX identity_by_end ON identity (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE identity_mark (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    mark BIGINT  NOT NULL
) WITH (fillfactor = 50);
INSERT INTO identity_mark (id, mark) VALUES (1, 0);

-- The mark is given at the commit: marks become visible in their order, so that nobody who has seen one has missed a smaller
-- one, and its row lock is short.
CREATE FUNCTION mark_identity() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    next BIGINT;
BEGIN
    UPDATE identity_mark SET mark = mark + 1 WHERE id = 1 RETURNING mark INTO next;
    UPDATE identity SET changed = next WHERE kind = NEW.kind AND id = NEW.id;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER identity_added AFTER INSERT ON identity
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mark_identity();
CREATE CONSTRAINT TRIGGER identity_changed AFTER UPDATE ON identity
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.version IS DISTINCT FROM NEW.version) EXECUTE FUNCTION mark_identity();
