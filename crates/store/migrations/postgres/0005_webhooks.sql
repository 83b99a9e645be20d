-- Telling agents how runs of theirs ended: an outbox that is filled in the write that ends a run. See 0026 in docs/adr.

-- Agents whose outcomes are told. The address itself is part of the agent.
CREATE TABLE webhooks (
    agent TEXT NOT NULL PRIMARY KEY
);
INSERT INTO webhooks (agent)
    SELECT id FROM identity WHERE kind = 'agent' AND data::json ->> 'webhook_url' IS NOT NULL AND NOT (data::json ->> 'disabled')::boolean;

-- What is to be told, or was: one row for each run that is over for good. What is told is in task_runs.
CREATE TABLE deliveries (
    run        BYTEA    NOT NULL PRIMARY KEY CHECK (length(run) = 16),
    agent      TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts   BIGINT NOT NULL,
    -- Not before; while somebody is at it: when others may try.
    next_at    BIGINT NOT NULL,
    -- The server that is at it.
    holder     TEXT,
    created_at BIGINT NOT NULL,
    tried_at   BIGINT,
    error      TEXT
);
CREATE INDEX deliveries_due ON deliveries (next_at, agent) WHERE state = 'pending';
CREATE INDEX deliveries_by_age ON deliveries (created_at);
CREATE INDEX deliveries_by_agent ON deliveries (agent, run);
CREATE INDEX deliveries_held ON deliveries (holder) WHERE holder IS NOT NULL;
