-- Secrets of a team: what `{{ secret.NAME }}` stands for. Written, used and deleted; never read back by anybody.
CREATE TABLE secrets (
    team_id    BLOB NOT NULL REFERENCES teams(id),
    name       TEXT NOT NULL,
    value      BLOB NOT NULL,               -- sealed
    created_by BLOB REFERENCES users(id),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, name)
) STRICT, WITHOUT ROWID;

-- MCP servers that a team's builds may name.
CREATE TABLE connections (
    id         BLOB PRIMARY KEY,
    team_id    BLOB NOT NULL REFERENCES teams(id),
    name       TEXT NOT NULL,
    setup      TEXT NOT NULL,               -- JSON of errand_store::connections::Setup: how it is reached; holds marks, no secret
    floors     TEXT NOT NULL,               -- JSON {tool or "*": policy}: how strict a build must be at least
    trusted    INTEGER NOT NULL,            -- whether what its closed tools give counts as trusted
    tools      TEXT,                        -- JSON list of errand_core::connection::ProbedTool; null: never probed
    probed_at  INTEGER,
    sign_in    BLOB,                        -- sealed
    sign_in_of TEXT,                        -- who issued it, for people
    created_by BLOB REFERENCES users(id),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX connections_by_name ON connections (team_id, name) WHERE deleted_at IS NULL;

-- A sign-in that was begun and waits for its callback.
CREATE TABLE sign_ins (
    state_hash    BLOB PRIMARY KEY,         -- SHA-256 of the state that the callback brings
    team_id       BLOB NOT NULL REFERENCES teams(id),
    connection_id BLOB NOT NULL REFERENCES connections(id),
    held          BLOB NOT NULL,            -- sealed
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A run that another run waits for: a call of `run_assignment` by the parent.
CREATE TABLE child_runs (
    child   BLOB PRIMARY KEY REFERENCES runs(id),
    parent  BLOB NOT NULL REFERENCES runs(id),
    call_id TEXT NOT NULL,
    depth   INTEGER NOT NULL,               -- 1 for the child of a run that somebody started
    UNIQUE (parent, call_id)
) STRICT, WITHOUT ROWID;
