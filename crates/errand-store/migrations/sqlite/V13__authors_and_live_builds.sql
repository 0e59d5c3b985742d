-- Who started a run, and with which API key a request was answered. A key that is deleted keeps its name here.
ALTER TABLE runs ADD COLUMN started_by BLOB;               -- the user; null: another run did, or it is older than this column
ALTER TABLE human_requests ADD COLUMN responded_key BLOB;  -- null: answered in the web interface, or by nobody

CREATE TABLE deleted_api_keys (
    id         BLOB PRIMARY KEY,
    team_id    BLOB NOT NULL REFERENCES teams(id),
    name       TEXT NOT NULL,
    created_by BLOB NOT NULL REFERENCES users(id)
) STRICT, WITHOUT ROWID;
-- Wherever a key is deleted.
CREATE TRIGGER api_keys_keep_their_names AFTER DELETE ON api_keys
BEGIN INSERT OR REPLACE INTO deleted_api_keys (id, team_id, name, created_by) VALUES (OLD.id, OLD.team_id, OLD.name, OLD.created_by); END;
CREATE VIEW named_api_keys AS
    SELECT id, team_id, name, created_by FROM api_keys
    UNION ALL SELECT id, team_id, name, created_by FROM deleted_api_keys;

-- The live build of an agent is what new runs use. Null: its newest that is no draft, as before there were drafts.
ALTER TABLE agents ADD COLUMN live_build BLOB REFERENCES builds(id);
ALTER TABLE agents ADD COLUMN created_by BLOB REFERENCES users(id);  -- null: older than this column
ALTER TABLE agents ADD COLUMN updated_by BLOB REFERENCES users(id);  -- null: nobody changed it since
ALTER TABLE builds ADD COLUMN draft INTEGER NOT NULL DEFAULT 0;  -- never promoted; new runs do not use it
ALTER TABLE builds ADD COLUMN parent_id BLOB REFERENCES builds(id);  -- the build that it was made of by a change
ALTER TABLE builds ADD COLUMN updated_at INTEGER;                -- when its name, description or state last changed; null: never
CREATE INDEX builds_by_parent ON builds (parent_id) WHERE parent_id IS NOT NULL;
