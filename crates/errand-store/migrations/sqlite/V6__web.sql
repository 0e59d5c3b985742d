-- Who is logged in to the web interface.
CREATE TABLE sessions (
    token_hash BLOB PRIMARY KEY,              -- SHA-256 of the cookie, whose 190 bits are random
    user_id    BLOB NOT NULL REFERENCES users(id),
    team_id    BLOB REFERENCES teams(id),     -- the team that is looked at; null: the first
    created_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,              -- to the hour
    expires_at INTEGER NOT NULL               -- moved with seen_at, and never beyond the longest life
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_end ON sessions (expires_at);

-- What waits for a person, and what was answered last, by team.
CREATE INDEX human_requests_open ON human_requests (team_id, created_at) WHERE closed_at IS NULL;
CREATE INDEX human_requests_closed ON human_requests (team_id, closed_at) WHERE closed_at IS NOT NULL;

-- Counts and cost by day and by agent, from the index alone. A run is in it from its end on: its steps leave it alone.
CREATE INDEX runs_ended ON runs (team_id, created_at, agent_id, status, cost_usd)
    WHERE status IN ('completed', 'failed', 'interrupted');
