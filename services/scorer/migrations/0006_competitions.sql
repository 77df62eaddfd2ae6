-- How each program of a competition's task went. Attempts whose result was replaced keep theirs.
CREATE TABLE task_programs (
    run_id     text NOT NULL,
    position   int NOT NULL,
    trial      int NOT NULL,
    attempt    int NOT NULL,
    -- `prediction` or `scoring`, and the program: `ingestion`, `submission`, `scoring`.
    step       text NOT NULL,
    name       text NOT NULL,
    ended      text NOT NULL,
    exit_code  int,
    seconds    float8 NOT NULL,
    stdout     text NOT NULL,
    stderr     text NOT NULL,
    cut        boolean NOT NULL,
    PRIMARY KEY (run_id, position, trial, attempt, step, name)
);

-- What the scoring program of a task gave: one start of it is the scores of all columns. Written once; a run that goes on
-- forgets those with something missing, so that they are made again.
CREATE TABLE task_scorings (
    run_id      text NOT NULL,
    position    int NOT NULL,
    trial       int NOT NULL,
    -- By column: its value, or why it has none.
    scores      jsonb NOT NULL,
    reasons     jsonb NOT NULL,
    -- Why there are no scores at all; empty when there are some.
    error       text NOT NULL,
    -- What it said of single cases, and how many those are.
    cases       bytea,
    case_count  int NOT NULL,
    -- The page with detailed results, as it was written.
    details     bytea,
    scored_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, position, trial)
);

-- Reported runs of competitions by version and phase, with the means over the tasks of the phase by column.
CREATE TABLE leaderboard (
    digest       text NOT NULL,
    phase        int NOT NULL,
    run_id       text NOT NULL REFERENCES runs ON DELETE CASCADE,
    label        text NOT NULL,
    scores       jsonb NOT NULL,
    reported_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (digest, phase, run_id)
);
CREATE INDEX leaderboard_runs ON leaderboard (run_id);
