-- Tasks, the queue of their runs, finished runs, events. Ids are the 16 bytes of a UUID. See 0021 in docs/adr.

CREATE TABLE tasks (
    id                    BYTEA   NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    title                 TEXT    NOT NULL,
    description           TEXT    NOT NULL,
    kind                  TEXT    NOT NULL CHECK (kind IN ('cron', 'rrule', 'once', 'event', 'condition', 'manual')),
    expression            TEXT,
    zone                  TEXT    NOT NULL,
    anchor                BIGINT  NOT NULL,
    payload               TEXT    NOT NULL,
    status                TEXT    NOT NULL CHECK (status IN ('active', 'paused', 'canceled')),
    priority              BIGINT  NOT NULL CHECK (priority BETWEEN 1 AND 9),
    dedupe_key            TEXT,
    dedupe_window_seconds BIGINT  NOT NULL CHECK (dedupe_window_seconds >= 0),
    max_retries           BIGINT  NOT NULL CHECK (max_retries BETWEEN 0 AND 10),
    backoff               TEXT    NOT NULL CHECK (backoff IN ('exponential_jitter', 'linear', 'fixed')),
    concurrency_key       TEXT,
    misfire               TEXT    NOT NULL CHECK (misfire IN ('run_once', 'run_all', 'skip')),
    created_by            TEXT    NOT NULL,
    created_at            BIGINT  NOT NULL,
    updated_at            BIGINT  NOT NULL,
    version               BIGINT  NOT NULL
);
CREATE INDEX tasks_by_owner ON tasks (created_by, id);
CREATE INDEX tasks_by_listening ON tasks (kind, expression, id) WHERE kind IN ('event', 'condition') AND status = 'active';
CREATE UNIQUE INDEX tasks_by_dedupe_key ON tasks (created_by, dedupe_key) WHERE dedupe_key IS NOT NULL AND status <> 'canceled';

-- When a task is due next. Narrow, because it is written at each due time.
CREATE TABLE task_due (
    task   BYTEA   NOT NULL PRIMARY KEY REFERENCES tasks (id),
    due_at BIGINT  NOT NULL
);
CREATE INDEX task_due_by_time ON task_due (due_at);

-- When a task with a dedupe window last made a run.
CREATE TABLE task_triggers (
    task BYTEA   NOT NULL PRIMARY KEY REFERENCES tasks (id),
    at   BIGINT  NOT NULL
);

-- Runs that are not over; a row leaves when its run ends. Lanes: 0 ready, 1 not before ready_at, 2 another run holds its
-- concurrency key, 3 held by a worker, 4 its task is paused, 5 a person must decide first.
CREATE TABLE queue (
    number        BIGINT  GENERATED ALWAYS AS IDENTITY,
    run           BYTEA   NOT NULL PRIMARY KEY CHECK (length(run) = 16),
    lineage       BYTEA   NOT NULL CHECK (length(lineage) = 16),
    task          BYTEA   NOT NULL,
    owner         TEXT    NOT NULL,
    lane          BIGINT  NOT NULL CHECK (lane BETWEEN 0 AND 5),
    rank          BIGINT  NOT NULL,
    ready_at      BIGINT  NOT NULL,
    priority      BIGINT  NOT NULL,
    attempt       BIGINT  NOT NULL,
    cause         TEXT    NOT NULL,
    scheduled_for BIGINT,
    event         BYTEA,
    ckey          TEXT,
    worker        TEXT,
    fence         BIGINT  NOT NULL,
    rescues       BIGINT  NOT NULL,
    cancel        TEXT,
    created_at    BIGINT  NOT NULL,
    started_at    BIGINT
);
CREATE INDEX queue_ready ON queue (rank, number) WHERE lane = 0;
CREATE INDEX queue_delayed ON queue (ready_at, number) WHERE lane = 1;
CREATE INDEX queue_blocked ON queue (ckey, rank, number) WHERE lane = 2;
CREATE INDEX queue_leased ON queue (worker) WHERE lane = 3;
CREATE INDEX queue_by_task ON queue (task);

-- Which run holds a concurrency key: from when it is ready until it is over.
CREATE TABLE concurrency (
    ckey TEXT NOT NULL PRIMARY KEY,
    run  BYTEA NOT NULL
);

-- Processes that carry out runs. Others watch `beat` move by their own clocks.
CREATE TABLE workers (
    id         TEXT    NOT NULL PRIMARY KEY,
    beat       BIGINT  NOT NULL,
    started_at BIGINT  NOT NULL,
    seen_at    BIGINT  NOT NULL
);

-- Runs that are over: one row for each attempt, never changed.
CREATE TABLE task_runs (
    id            BYTEA   NOT NULL PRIMARY KEY,
    lineage       BYTEA   NOT NULL,
    task          BYTEA   NOT NULL,
    owner         TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled', 'timed_out', 'uncertain')),
    attempt       BIGINT  NOT NULL,
    cause         TEXT    NOT NULL,
    scheduled_for BIGINT,
    worker        TEXT,
    error         TEXT,
    output        TEXT,
    created_at    BIGINT  NOT NULL,
    started_at    BIGINT,
    finished_at   BIGINT  NOT NULL
);
CREATE INDEX task_runs_by_task ON task_runs (task, id);
CREATE INDEX task_runs_by_owner ON task_runs (owner, id);
CREATE INDEX task_runs_by_end ON task_runs (finished_at, state);

-- What steps of a run left behind, so that another worker can go on where one stopped.
CREATE TABLE run_steps (
    lineage BYTEA   NOT NULL,
    seq     BIGINT  NOT NULL,
    at      BIGINT  NOT NULL,
    data    TEXT    NOT NULL,
    PRIMARY KEY (lineage, seq)
);

CREATE TABLE events (
    millis       BIGINT  NOT NULL,
    number       BIGINT  NOT NULL,
    id           BYTEA   NOT NULL UNIQUE CHECK (length(id) = 16),
    topic        TEXT    NOT NULL,
    payload      TEXT    NOT NULL,
    source       TEXT    NOT NULL,
    published_by TEXT    NOT NULL,
    published_at BIGINT  NOT NULL,
    PRIMARY KEY (millis, number)
);
CREATE INDEX events_by_source ON events (source, millis, number);

-- The newest position of the stream: positions rise in the order of commits.
CREATE TABLE event_head (
    id     BIGINT  NOT NULL PRIMARY KEY CHECK (id = 1),
    millis BIGINT  NOT NULL,
    number BIGINT  NOT NULL
);
INSERT INTO event_head (id, millis, number) VALUES (1, 0, 0);

CREATE TABLE approvals (
    id         BYTEA   NOT NULL PRIMARY KEY,
    lineage    BYTEA   NOT NULL,
    step       TEXT    NOT NULL,
    run        BYTEA   NOT NULL,
    task       BYTEA   NOT NULL,
    requester  TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'used', 'withdrawn')),
    digest     BYTEA   NOT NULL CHECK (length(digest) = 32),
    subject    TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    created_at BIGINT  NOT NULL,
    expires_at BIGINT  NOT NULL,
    decided_at BIGINT,
    decided_by TEXT,
    note       TEXT,
    UNIQUE (lineage, step, digest)
);
CREATE INDEX approvals_pending ON approvals (expires_at) WHERE state = 'pending';
CREATE INDEX approvals_by_run ON approvals (run);

-- Answers that are given again to whoever repeats a request under the same key.
CREATE TABLE answers (
    actor      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    digest     BYTEA   NOT NULL CHECK (length(digest) = 32),
    answer     TEXT    NOT NULL,
    expires_at BIGINT  NOT NULL,
    PRIMARY KEY (actor, key)
);
CREATE INDEX answers_by_end ON answers (expires_at);

-- Rows come and go: clean up early, and leave room for the lease in the same page.
ALTER TABLE queue SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
ALTER TABLE task_due SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE workers SET (fillfactor = 50);
ALTER TABLE event_head SET (fillfactor = 50);
