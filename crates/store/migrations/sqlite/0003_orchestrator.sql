-- Tasks, the queue of their runs, finished runs, events. Ids are the 16 bytes of a UUID. See 0021 in docs/adr.

CREATE TABLE tasks (
    id                    BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    title                 TEXT    NOT NULL,
    description           TEXT    NOT NULL,
    kind                  TEXT    NOT NULL CHECK (kind IN ('cron', 'rrule', 'once', 'event', 'condition', 'manual')),
    expression            TEXT,
    zone                  TEXT    NOT NULL,
    anchor                INTEGER NOT NULL,
    payload               TEXT    NOT NULL,
    status                TEXT    NOT NULL CHECK (status IN ('active', 'paused', 'canceled')),
    priority              INTEGER NOT NULL CHECK (priority BETWEEN 1 AND 9),
    dedupe_key            TEXT,
    dedupe_window_seconds INTEGER NOT NULL CHECK (dedupe_window_seconds >= 0),
    max_retries           INTEGER NOT NULL CHECK (max_retries BETWEEN 0 AND 10),
    backoff               TEXT    NOT NULL CHECK (backoff IN ('exponential_jitter', 'linear', 'fixed')),
    concurrency_key       TEXT,
    misfire               TEXT    NOT NULL CHECK (misfire IN ('run_once', 'run_all', 'skip')),
    created_by            TEXT    NOT NULL,
    created_at            INTEGER NOT NULL,
    updated_at            INTEGER NOT NULL,
    version               INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_by_owner ON tasks (created_by, id);
CREATE INDEX tasks_by_listening ON tasks (kind, expression, id) WHERE kind IN ('event', 'condition') AND status = 'active';
CREATE UNIQUE INDEX tasks_by_dedupe_key ON tasks (created_by, dedupe_key) WHERE dedupe_key IS NOT NULL AND status <> 'canceled';

-- When a task is due next. Narrow, because it is written at each due time.
CREATE TABLE task_due (
    task   BLOB    NOT NULL PRIMARY KEY REFERENCES tasks (id),
    due_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX task_due_by_time ON task_due (due_at);

-- When a task with a dedupe window last made a run.
CREATE TABLE task_triggers (
    task BLOB    NOT NULL PRIMARY KEY REFERENCES tasks (id),
    at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Runs that are not over; a row leaves when its run ends. Lanes: 0 ready, 1 not before ready_at, 2 another run holds its
-- concurrency key, 3 held by a worker, 4 its task is paused, 5 a person must decide first.
CREATE TABLE queue (
    number        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    run           BLOB    NOT NULL UNIQUE CHECK (length(run) = 16),
    lineage       BLOB    NOT NULL CHECK (length(lineage) = 16),
    task          BLOB    NOT NULL,
    owner         TEXT    NOT NULL,
    lane          INTEGER NOT NULL CHECK (lane BETWEEN 0 AND 5),
    rank          INTEGER NOT NULL,
    ready_at      INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    cause         TEXT    NOT NULL,
    scheduled_for INTEGER,
    event         BLOB,
    ckey          TEXT,
    worker        TEXT,
    fence         INTEGER NOT NULL,
    rescues       INTEGER NOT NULL,
    cancel        TEXT,
    created_at    INTEGER NOT NULL,
    started_at    INTEGER
) STRICT;
CREATE INDEX queue_ready ON queue (rank, number) WHERE lane = 0;
CREATE INDEX queue_delayed ON queue (ready_at, number) WHERE lane = 1;
CREATE INDEX queue_blocked ON queue (ckey, rank, number) WHERE lane = 2;
CREATE INDEX queue_leased ON queue (worker) WHERE lane = 3;
CREATE INDEX queue_by_task ON queue (task);

-- Which run holds a concurrency key: from when it is ready until it is over.
CREATE TABLE concurrency (
    ckey TEXT NOT NULL PRIMARY KEY,
    run  BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Processes that carry out runs. Others watch `beat` move by their own clocks.
CREATE TABLE workers (
    id         TEXT    NOT NULL PRIMARY KEY,
    beat       INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Runs that are over: one row for each attempt, never changed.
CREATE TABLE task_runs (
    id            BLOB    NOT NULL PRIMARY KEY,
    lineage       BLOB    NOT NULL,
    task          BLOB    NOT NULL,
    owner         TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled', 'timed_out', 'uncertain')),
    attempt       INTEGER NOT NULL,
    cause         TEXT    NOT NULL,
    scheduled_for INTEGER,
    worker        TEXT,
    error         TEXT,
    output        TEXT,
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    finished_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX task_runs_by_task ON task_runs (task, id);
CREATE INDEX task_runs_by_owner ON task_runs (owner, id);
CREATE INDEX task_runs_by_end ON task_runs (finished_at, state);

-- What steps of a run left behind, so that another worker can go on where one stopped.
CREATE TABLE run_steps (
    lineage BLOB    NOT NULL,
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    data    TEXT    NOT NULL,
    PRIMARY KEY (lineage, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    millis       INTEGER NOT NULL,
    number       INTEGER NOT NULL,
    id           BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    topic        TEXT    NOT NULL,
    payload      TEXT    NOT NULL,
    source       TEXT    NOT NULL,
    published_by TEXT    NOT NULL,
    published_at INTEGER NOT NULL,
    PRIMARY KEY (millis, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_by_source ON events (source, millis, number);

-- The newest position of the stream: positions rise in the order of commits.
CREATE TABLE event_head (
    id     INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    millis INTEGER NOT NULL,
    number INTEGER NOT NULL
) STRICT;
INSERT INTO event_head (id, millis, number) VALUES (1, 0, 0);

CREATE TABLE approvals (
    id         BLOB    NOT NULL PRIMARY KEY,
    lineage    BLOB    NOT NULL,
    step       TEXT    NOT NULL,
    run        BLOB    NOT NULL,
    task       BLOB    NOT NULL,
    requester  TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'used', 'withdrawn')),
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    subject    TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    decided_at INTEGER,
    decided_by TEXT,
    note       TEXT,
    UNIQUE (lineage, step, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX approvals_pending ON approvals (expires_at) WHERE state = 'pending';
CREATE INDEX approvals_by_run ON approvals (run);

-- Answers that are given again to whoever repeats a request under the same key.
CREATE TABLE answers (
    actor      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    answer     TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX answers_by_end ON answers (expires_at);
