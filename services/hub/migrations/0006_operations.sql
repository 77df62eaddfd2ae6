-- For operators: what has not ended is counted whenever metrics are asked for.
CREATE INDEX runs_unended ON runs (state) WHERE state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED');

-- The trace that a run was created in, while traces are exported: what continues it has no other way to know.
CREATE TABLE run_traces (
    run_id      text COLLATE "C" PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    traceparent text NOT NULL
);
