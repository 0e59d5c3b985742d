-- The store itself. What is older than it was left by another store, and is never taken for a leftover of this one.
CREATE TABLE store (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    created_at INTEGER NOT NULL
) STRICT;
-- A store that is older than this table is as old as its first team. One that is being made notes its time itself.
INSERT INTO store (id, created_at) SELECT 1, min(created_at) FROM teams HAVING count(*) > 0;
