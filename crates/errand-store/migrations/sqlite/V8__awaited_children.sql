-- Whether the parent still waits for it: one that gave its result is a run like any other, and outlives its parent.
ALTER TABLE child_runs ADD COLUMN awaited INTEGER NOT NULL DEFAULT 1;
