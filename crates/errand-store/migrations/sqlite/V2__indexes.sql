-- Counts of deliveries that were given up, for metrics.
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted');

-- Without updated_at, which changes with each step: a step leaves this index alone.
DROP INDEX runs_by_sandbox;
CREATE INDEX runs_by_sandbox ON runs (sandbox_id) WHERE sandbox_id IS NOT NULL AND status NOT IN ('completed', 'failed', 'interrupted');
