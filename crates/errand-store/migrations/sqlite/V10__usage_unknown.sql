-- Tokens whose price is not known, and tokens that the provider did not count. What was used before counts as known.

ALTER TABLE runs ADD COLUMN unpriced_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN estimated_tokens INTEGER NOT NULL DEFAULT 0;   -- of calls that were not counted, or not whole

ALTER TABLE usage_days ADD COLUMN unpriced_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_days ADD COLUMN estimated_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_months ADD COLUMN unpriced_tokens INTEGER NOT NULL DEFAULT 0;
