-- Counts of deliveries that were given up, for metrics.
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted');
