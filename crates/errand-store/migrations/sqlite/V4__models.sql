-- What network models use up, whose key started a run, a team's own providers and its limit.

ALTER TABLE runs ADD COLUMN api_key_id BLOB;                       -- null: not started with a key
ALTER TABLE runs ADD COLUMN model_ms INTEGER NOT NULL DEFAULT 0;   -- spent waiting for network models' answers

ALTER TABLE teams ADD COLUMN cost_usd_month REAL;                  -- what its runs may cost in a calendar month (UTC); null: no limit

-- Sums by day (UTC), so that no question about usage reads all runs. Written in the step's own transaction.
CREATE TABLE usage_days (
    team_id       BLOB NOT NULL REFERENCES teams(id),
    day           INTEGER NOT NULL,           -- days since 1970-01-01
    agent_id      BLOB NOT NULL,
    api_key_id    BLOB NOT NULL,              -- with which the run was started; empty: with none
    model         TEXT NOT NULL,              -- provider/name
    runs          INTEGER NOT NULL,           -- started on this day
    model_calls   INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_usd      REAL NOT NULL,
    model_ms      INTEGER NOT NULL,
    PRIMARY KEY (team_id, day, agent_id, api_key_id, model)
) STRICT, WITHOUT ROWID;

-- The same for a team and a month: what its limit is held against, before each model call.
CREATE TABLE usage_months (
    team_id  BLOB NOT NULL REFERENCES teams(id),
    month    INTEGER NOT NULL,                -- months since 0000-01
    cost_usd REAL NOT NULL,
    PRIMARY KEY (team_id, month)
) STRICT, WITHOUT ROWID;

CREATE TABLE providers (
    team_id    BLOB NOT NULL REFERENCES teams(id),
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL CHECK (kind IN ('anthropic', 'openai', 'gemini', 'openai_compatible')),
    base_url   TEXT,
    api_key    BLOB,                          -- sealed; null: none
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, name)
) STRICT, WITHOUT ROWID;
