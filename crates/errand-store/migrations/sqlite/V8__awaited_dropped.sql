-- Whether the parent still waits for it: one that gave its result is a run like any other, and outlives its parent.
ALTER TABLE child_runs ADD COLUMN awaited INTEGER NOT NULL DEFAULT 1;
UPDATE child_runs SET awaited = 0
WHERE EXISTS (SELECT 1 FROM runs r WHERE r.id = child_runs.child AND r.status IN ('completed', 'failed', 'interrupted'))
    AND EXISTS (SELECT 1 FROM runs r WHERE r.id = child_runs.parent AND r.waiting_kind IS NOT 'child_run');

-- All that were not delivered and will not be: their number is what deliveries lack that have arrived.
DROP INDEX deliveries_given_up;
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted', 'dropped');

-- Scheme, host and port of a delivery's address: a receiver that is slow must not be in the way of others.
ALTER TABLE deliveries ADD COLUMN receiver TEXT GENERATED ALWAYS AS (
    substr(url, 1, instr(url, '://') + 2 + CASE instr(replace(replace(substr(url, instr(url, '://') + 3), '?', '/'), '#', '/'), '/')
        WHEN 0 THEN length(url)
        ELSE instr(replace(replace(substr(url, instr(url, '://') + 3), '?', '/'), '#', '/'), '/') - 1 END)) VIRTUAL;
CREATE INDEX deliveries_by_receiver ON deliveries (receiver, due_at) WHERE state = 'pending';

-- What a start looks for among all sandboxes: those that a run holds.
CREATE INDEX sandboxes_held ON sandboxes (owner_run) WHERE owner_run IS NOT NULL;
