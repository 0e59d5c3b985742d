-- Times are milliseconds since the epoch. Ids are 16 bytes (UUID v7) but for sandboxes (text).

CREATE TABLE teams (
    id             BLOB PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    created_at     INTEGER NOT NULL,
    webhook_secret BLOB NOT NULL            -- sealed
) STRICT, WITHOUT ROWID;

CREATE TABLE users (
    id            BLOB PRIMARY KEY,
    email         TEXT UNIQUE COLLATE NOCASE, -- null: an owner that nobody has claimed yet
    password_hash TEXT,                       -- argon2id, PHC string
    created_at    INTEGER NOT NULL,
    disabled_at   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE memberships (
    team_id    BLOB NOT NULL REFERENCES teams(id),
    user_id    BLOB NOT NULL REFERENCES users(id),
    role       TEXT NOT NULL CHECK (role IN ('member', 'admin', 'owner')),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE set_up_links (
    token_hash BLOB PRIMARY KEY,              -- SHA-256 of the token
    user_id    BLOB NOT NULL REFERENCES users(id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
    id           BLOB PRIMARY KEY,
    team_id      BLOB NOT NULL REFERENCES teams(id),
    created_by   BLOB NOT NULL REFERENCES users(id),
    name         TEXT NOT NULL,
    prefix       TEXT NOT NULL,
    hash         BLOB NOT NULL UNIQUE,        -- SHA-256 of the key, whose 190 bits are random
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER,
    expires_at   INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_team ON api_keys (team_id, created_at);

CREATE TABLE agents (
    id         BLOB PRIMARY KEY,
    team_id    BLOB NOT NULL REFERENCES teams(id),
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX agents_by_team ON agents (team_id, created_at) WHERE deleted_at IS NULL;

CREATE TABLE builds (
    id          BLOB PRIMARY KEY,
    team_id     BLOB NOT NULL REFERENCES teams(id),
    agent_id    BLOB NOT NULL REFERENCES agents(id),
    number      INTEGER NOT NULL,
    name        TEXT NOT NULL,
    description TEXT,
    config      TEXT NOT NULL,                -- JSON, as it was given
    created_by  BLOB REFERENCES users(id),
    created_at  INTEGER NOT NULL,
    UNIQUE (agent_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE sandboxes (
    id         TEXT PRIMARY KEY,
    team_id    BLOB NOT NULL REFERENCES teams(id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,              -- the last use and sandbox.ttl
    deleted_at INTEGER,
    owner_run  BLOB,                          -- the run that it serves now
    leaving    BLOB                           -- claim of a driver of that run that was told to end and may still be at work
) STRICT, WITHOUT ROWID;

CREATE INDEX sandboxes_expiring ON sandboxes (expires_at) WHERE deleted_at IS NULL;

CREATE TABLE runs (
    id                 BLOB PRIMARY KEY,
    team_id            BLOB NOT NULL REFERENCES teams(id),
    agent_id           BLOB NOT NULL REFERENCES agents(id),
    build_id           BLOB NOT NULL REFERENCES builds(id),
    status             TEXT NOT NULL CHECK (status IN ('pending', 'starting', 'running', 'waiting', 'completed', 'failed', 'interrupted')),
    source             TEXT,
    title              TEXT,
    sandbox_id         TEXT REFERENCES sandboxes(id),
    sandbox_ttl_ms     INTEGER NOT NULL,
    webhook_url        TEXT,
    human_webhook_url  TEXT,
    people             INTEGER NOT NULL,      -- human_in_the_loop
    error_code         TEXT,
    error_message      TEXT,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    started_at         INTEGER,
    completed_at       INTEGER,
    position           INTEGER NOT NULL,      -- of the last entry
    shown              INTEGER NOT NULL,      -- messages of the API
    sequence           INTEGER NOT NULL,      -- of the last event
    newest_user        INTEGER NOT NULL,      -- position of the newest user's message
    turn               INTEGER NOT NULL,      -- position of the first entry of the model's last turn
    step               INTEGER NOT NULL,      -- the driver's own step number
    claim_token        BLOB,
    claim_boot         BLOB,
    claimed_at         INTEGER,
    wake_at            INTEGER,               -- when it wants a driver; null: it does not
    deadline_at        INTEGER,               -- the end of its working time, while claimed
    seconds_limit_ms   INTEGER NOT NULL,
    worked_ms          INTEGER NOT NULL,
    waiting_kind       TEXT,
    waiting_who        TEXT,
    waiting_since      INTEGER,
    waiting_deadline   INTEGER,
    request_id         BLOB,                  -- the pending human request
    steps              INTEGER NOT NULL,
    model_calls        INTEGER NOT NULL,
    tool_calls         INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    cached_tokens      INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cost_usd           REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_team ON runs (team_id, created_at);
CREATE INDEX runs_by_status ON runs (team_id, status, created_at);
CREATE INDEX runs_by_source ON runs (team_id, source, created_at);
CREATE INDEX runs_by_agent ON runs (team_id, agent_id, created_at);
CREATE INDEX runs_wanting ON runs (wake_at) WHERE wake_at IS NOT NULL AND claim_token IS NULL;
CREATE INDEX runs_ready ON runs (team_id, wake_at) WHERE wake_at IS NOT NULL AND claim_token IS NULL;
CREATE INDEX runs_claimed ON runs (deadline_at) WHERE claim_token IS NOT NULL;
CREATE INDEX runs_by_sandbox ON runs (sandbox_id, updated_at) WHERE status NOT IN ('completed', 'failed', 'interrupted');

-- A run that has ended is left by a message or a retry, which make it pending, and by nothing else.
CREATE TRIGGER runs_ended_is_final BEFORE UPDATE OF status ON runs
WHEN OLD.status IN ('completed', 'failed', 'interrupted') AND NEW.status NOT IN (OLD.status, 'pending')
BEGIN SELECT RAISE(ABORT, 'a run that has ended is left only through pending'); END;


CREATE TABLE messages (
    run_id     BLOB NOT NULL REFERENCES runs(id),
    position   INTEGER NOT NULL,
    shown      INTEGER,                       -- number among the API's messages; null: the engine's own note
    id         BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL,                 -- JSON of errand_core::transcript::Body
    PRIMARY KEY (run_id, position)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX messages_shown ON messages (run_id, shown) WHERE shown IS NOT NULL;

-- The transcript only grows.
CREATE TRIGGER messages_are_final BEFORE UPDATE ON messages
BEGIN SELECT RAISE(ABORT, 'a transcript is append-only'); END;

CREATE TABLE human_requests (
    id           BLOB PRIMARY KEY,
    run_id       BLOB NOT NULL REFERENCES runs(id),
    team_id      BLOB NOT NULL REFERENCES teams(id),
    request      TEXT NOT NULL,               -- JSON of errand_core::human::HumanRequest
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    closed_at    INTEGER,
    resolution   TEXT,                        -- JSON of errand_core::human::Resolution
    responded_by BLOB REFERENCES users(id)
) STRICT, WITHOUT ROWID;
CREATE INDEX human_requests_lapsing ON human_requests (expires_at) WHERE closed_at IS NULL AND expires_at IS NOT NULL;
CREATE UNIQUE INDEX human_requests_pending ON human_requests (run_id) WHERE closed_at IS NULL;

CREATE TABLE events (
    number     INTEGER PRIMARY KEY,           -- rises for each team; gaps are other teams' events
    run_id     BLOB NOT NULL REFERENCES runs(id),
    sequence   INTEGER NOT NULL,
    team_id    BLOB NOT NULL,
    kind       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    position   INTEGER,                       -- of the message it tells of
    data       TEXT                           -- JSON, where it is no message
) STRICT;
CREATE UNIQUE INDEX events_by_run ON events (run_id, sequence);

CREATE TABLE deliveries (
    number       INTEGER PRIMARY KEY,
    id           BLOB NOT NULL,               -- the event's id, the webhook-id
    run_id       BLOB NOT NULL REFERENCES runs(id),
    team_id      BLOB NOT NULL REFERENCES teams(id),
    event        TEXT NOT NULL,
    sequence     INTEGER NOT NULL,
    url          TEXT NOT NULL,
    body         BLOB NOT NULL,
    created_at   INTEGER NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'gone', 'exhausted')),
    attempts     INTEGER NOT NULL,
    due_at       INTEGER                      -- null once it is no longer pending
) STRICT;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE state = 'pending';
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted');
CREATE INDEX deliveries_by_run ON deliveries (run_id, sequence);

CREATE TABLE delivery_attempts (
    delivery    INTEGER NOT NULL REFERENCES deliveries(number),
    attempt     INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    status      INTEGER,
    error       TEXT,
    PRIMARY KEY (delivery, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    api_key_id  BLOB NOT NULL,
    method      TEXT NOT NULL,
    path        TEXT NOT NULL,
    key         TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    status      INTEGER NOT NULL,
    answer      BLOB NOT NULL,
    PRIMARY KEY (api_key_id, method, path, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_at);
