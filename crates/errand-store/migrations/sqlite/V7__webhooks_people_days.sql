-- A team's subscriptions to events of all its runs.
CREATE TABLE webhooks (
    id              BLOB PRIMARY KEY,
    team_id         BLOB NOT NULL REFERENCES teams(id),
    url             TEXT NOT NULL,
    events          TEXT NOT NULL,            -- words, separated by commas
    description     TEXT,
    enabled         INTEGER NOT NULL,
    disabled_reason TEXT,                     -- where the server did it: why
    created_by      BLOB REFERENCES users(id),
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    deleted_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX webhooks_by_team ON webhooks (team_id, url) WHERE deleted_at IS NULL;

-- Webhook secrets that were replaced, and sign beside the present one for a while.
CREATE TABLE retired_webhook_secrets (
    team_id     BLOB NOT NULL REFERENCES teams(id),
    retired_at  INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    secret      BLOB NOT NULL,                -- sealed
    PRIMARY KEY (team_id, retired_at, secret)
) STRICT, WITHOUT ROWID;

-- Deliveries have ids of their own now, belong to a webhook or to a run's own address, may be of no run (a test), and
-- may be dropped or sent again. What SQLite cannot change in a table is made anew.
CREATE TABLE new_deliveries (
    number       INTEGER PRIMARY KEY,
    delivery_id  BLOB NOT NULL,
    id           BLOB NOT NULL,               -- the event's id, the webhook-id
    run_id       BLOB REFERENCES runs(id),    -- null: a test
    webhook_id   BLOB REFERENCES webhooks(id), -- null: the run's own address
    team_id      BLOB NOT NULL REFERENCES teams(id),
    event        TEXT NOT NULL,
    sequence     INTEGER NOT NULL,
    url          TEXT NOT NULL,
    body         BLOB NOT NULL,
    created_at   INTEGER NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'gone', 'exhausted', 'dropped')),
    attempts     INTEGER NOT NULL,
    resent_at    INTEGER,                     -- when its present schedule began, where it was sent again
    resent_after INTEGER NOT NULL DEFAULT 0,  -- attempts before that
    due_at       INTEGER                      -- null once it is no longer pending
) STRICT;
-- An id of version 7 from the moment and the number, which is unique.
INSERT INTO new_deliveries (number, delivery_id, id, run_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at)
    SELECT number, unhex(printf('%012x7%03x8%03x%012x', created_at, number & 4095, (number >> 12) & 4095, number >> 24)),
        id, run_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at
    FROM deliveries ORDER BY number;
CREATE TABLE new_delivery_attempts (
    delivery    INTEGER NOT NULL REFERENCES new_deliveries(number),
    attempt     INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    status      INTEGER,
    error       TEXT,
    answer      TEXT,                         -- the first bytes of the receiver's answer
    PRIMARY KEY (delivery, attempt)
) STRICT, WITHOUT ROWID;
INSERT INTO new_delivery_attempts (delivery, attempt, at, duration_ms, status, error)
    SELECT delivery, attempt, at, duration_ms, status, error FROM delivery_attempts ORDER BY delivery, attempt;
DROP TABLE delivery_attempts;
DROP TABLE deliveries;
ALTER TABLE new_deliveries RENAME TO deliveries;
ALTER TABLE new_delivery_attempts RENAME TO delivery_attempts;
CREATE UNIQUE INDEX deliveries_by_id ON deliveries (delivery_id);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE state = 'pending';
CREATE INDEX deliveries_by_run ON deliveries (run_id, sequence) WHERE run_id IS NOT NULL;
CREATE INDEX deliveries_by_webhook ON deliveries (webhook_id, number) WHERE webhook_id IS NOT NULL;
CREATE INDEX deliveries_given_up ON deliveries (state) WHERE state IN ('gone', 'exhausted');

-- Links by which somebody joins a team, each once.
CREATE TABLE invitations (
    id         BLOB PRIMARY KEY,
    team_id    BLOB NOT NULL REFERENCES teams(id),
    token_hash BLOB NOT NULL UNIQUE,          -- SHA-256 of the token
    role       TEXT NOT NULL CHECK (role IN ('member', 'admin', 'owner')),
    email      TEXT COLLATE NOCASE,           -- whom it is for; null: whoever has it
    created_by BLOB NOT NULL REFERENCES users(id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,
    used_by    BLOB REFERENCES users(id)
) STRICT, WITHOUT ROWID;
CREATE INDEX invitations_open ON invitations (team_id, created_at) WHERE used_at IS NULL;
CREATE INDEX memberships_by_user ON memberships (user_id);
CREATE INDEX api_keys_by_creator ON api_keys (created_by, team_id);

-- Search through titles: read from this index alone. Nothing of it ever changes, so that no step touches it.
CREATE INDEX runs_by_title ON runs (team_id, created_at, title);

-- How runs went, by day (UTC) and agent, counted in the transactions that start and end them: a run that is resumed ends
-- again.
CREATE TABLE run_days (
    team_id     BLOB NOT NULL REFERENCES teams(id),
    day         INTEGER NOT NULL,             -- days since 1970-01-01
    agent_id    BLOB NOT NULL,
    started     INTEGER NOT NULL,
    completed   INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    interrupted INTEGER NOT NULL,
    PRIMARY KEY (team_id, day, agent_id)
) STRICT, WITHOUT ROWID;
INSERT INTO run_days (team_id, day, agent_id, started, completed, failed, interrupted)
    SELECT team_id, day, agent_id, sum(started), sum(completed), sum(failed), sum(interrupted)
    FROM (SELECT team_id, created_at / 86400000 AS day, agent_id, 1 AS started, 0 AS completed, 0 AS failed, 0 AS interrupted FROM runs
          UNION ALL
          SELECT team_id, completed_at / 86400000, agent_id, 0, status = 'completed', status = 'failed', status = 'interrupted'
          FROM runs WHERE completed_at IS NOT NULL)
    GROUP BY team_id, day, agent_id;
