-- Claims that a run lost in a row without committing a step: its driver was gone, with the whole program. -1: the next loss
-- does not count, since the program stopped in order. It is read and written by a start, and by the first step after it.
ALTER TABLE runs ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
CREATE INDEX runs_lost ON runs (lost) WHERE lost > 0;
