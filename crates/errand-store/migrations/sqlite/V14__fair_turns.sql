-- Whose run it is, for a fair share of the slots: the API key or the person that started it. The runs that it starts have
-- the same. Runs from before have their key; without one, all of a team share one turn.
ALTER TABLE runs ADD COLUMN principal BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
UPDATE runs SET principal = api_key_id
WHERE api_key_id IS NOT NULL AND status NOT IN ('completed', 'failed', 'interrupted');
DROP INDEX runs_ready;
CREATE INDEX runs_ready ON runs (team_id, principal, wake_at) WHERE wake_at IS NOT NULL AND claim_token IS NULL;

-- Deliveries take turns by team, and within a team by receiver.
DROP INDEX deliveries_by_receiver;
CREATE INDEX deliveries_waiting ON deliveries (team_id, receiver, due_at) WHERE state = 'pending';
