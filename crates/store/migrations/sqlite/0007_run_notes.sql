-- What runs of tasks report while they are carried out: steps, progress, lines of log. Kept apart from the queue; a run that is over
-- within a moment has none.
CREATE TABLE run_notes (
    run  BLOB    NOT NULL CHECK (length(run) = 16),
    seq  INTEGER NOT NULL,
    at   INTEGER NOT NULL,
    data TEXT    NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_notes_by_age ON run_notes (at);
