-- A claim changes no index any more: a run that a worker holds stays where it stands, and `worker` says that it is held. See 0032
-- in docs/adr. `lane` becomes `place`, so that the statements of a program that does not know this fail instead of taking held
-- runs for free ones. Places: 0 ready or held by a worker, 1 not before ready_at, 2 another run holds its concurrency key,
-- 4 its task is paused, 5 a person must decide first.

DROP INDEX queue_leased;
ALTER TABLE queue RENAME COLUMN lane TO place;
UPDATE queue SET place = 0 WHERE place = 3;
UPDATE queue SET worker = NULL WHERE place <> 0;
-- The claim in which steps of it began last: only of that one can it be said that its worker died with it.
ALTER TABLE queue ADD COLUMN begun BIGINT;
UPDATE queue SET begun = fence WHERE worker IS NOT NULL AND started_at IS NOT NULL;
-- Held by workers that had been declared dead before they claimed: nobody would have freed them.
UPDATE queue SET worker = NULL, fence = fence + 1 WHERE worker IS NOT NULL AND worker NOT IN (SELECT id FROM workers);
CREATE INDEX queue_cancelled ON queue (run) WHERE cancel IS NOT NULL;
-- Room in each page for the rows of that page to be claimed.
ALTER TABLE queue SET (fillfactor = 45);

-- Rows come in the order of their ends: the bounds of each range of pages are enough.
DROP INDEX task_runs_by_end;
CREATE INDEX task_runs_by_end ON task_runs USING brin (finished_at) WITH (pages_per_range = 32, autosummarize = on);
