-- A run can be resumed: the time of work before it, and since when it has been worked on now (null: it is not).

ALTER TABLE runs ADD COLUMN worked_seconds double precision NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN working_since timestamptz;
UPDATE runs SET working_since = started_at WHERE started_at IS NOT NULL AND state <> 'PAUSED';

-- Runs that were removed and whose results, at the scorer, are not all removed yet.
CREATE TABLE removed_runs (
    run_id     text COLLATE "C" PRIMARY KEY,
    -- The serialised RunSpec.
    spec       bytea NOT NULL,
    created_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL
);

-- For runs that have been kept long enough.
CREATE INDEX runs_ended ON runs (ended_at) WHERE ended_at IS NOT NULL;
