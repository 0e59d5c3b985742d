-- Whether the parent still waits for it: one that gave its result is a run like any other, and outlives its parent.
ALTER TABLE child_runs ADD COLUMN awaited INTEGER NOT NULL DEFAULT 1;
UPDATE child_runs SET awaited = 0
WHERE EXISTS (SELECT 1 FROM runs r WHERE r.id = child_runs.child AND r.status IN ('completed', 'failed', 'interrupted'))
    AND EXISTS (SELECT 1 FROM runs r WHERE r.id = child_runs.parent AND r.waiting_kind IS NOT 'child_run');

-- All that were not delivered and will not be: their number is what deliveries lack that have arrived.
DROP INDEX deliveries_given_up;
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted', 'dropped');
