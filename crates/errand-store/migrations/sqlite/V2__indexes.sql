-- Counts of deliveries that were given up, for metrics.
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted');

-- Without updated_at, which changes with each step: a step leaves this index alone.
DROP INDEX runs_by_sandbox;
CREATE INDEX runs_by_sandbox ON runs (sandbox_id) WHERE sandbox_id IS NOT NULL AND status NOT IN ('completed', 'failed', 'interrupted');

-- Entries of all runs side by side, in the order in which they are written: a batch of steps fills a few pages, and does
-- not change one of each run's. What is left for each run is one index; a page by `shown` is found from it.
CREATE TABLE entries (
    number     INTEGER PRIMARY KEY,
    run_id     BLOB NOT NULL REFERENCES runs(id),
    position   INTEGER NOT NULL,
    shown      INTEGER,                       -- number among the API's messages; null: the engine's own note
    id         BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL                  -- JSON of errand_core::transcript::Body
) STRICT;
INSERT INTO entries (run_id, position, shown, id, created_at, body)
    SELECT run_id, position, shown, id, created_at, body FROM messages ORDER BY created_at, run_id, position;
DROP TABLE messages;
ALTER TABLE entries RENAME TO messages;
CREATE UNIQUE INDEX messages_by_run ON messages (run_id, position);
CREATE TRIGGER messages_are_final BEFORE UPDATE ON messages
BEGIN SELECT RAISE(ABORT, 'a transcript is append-only'); END;
