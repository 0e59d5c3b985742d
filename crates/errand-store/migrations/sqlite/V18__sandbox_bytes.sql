-- Bytes that a sandbox held on disk when that was last recorded; the quota of its team counts them. 0 in older rows, until
-- the server has measured them.
ALTER TABLE sandboxes ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0);
-- The sum of a team is read from here. Most sandboxes never hold a file, and are not in it.
CREATE INDEX sandboxes_by_bytes ON sandboxes (team_id, bytes) WHERE bytes > 0;
