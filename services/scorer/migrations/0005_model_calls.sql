-- Calls that programs made through the model proxy, each committed before the program saw its answer.
CREATE TABLE model_calls (
    run_id            text NOT NULL,
    position          int NOT NULL,
    trial             int NOT NULL,
    -- In the order in which they were stored, from 1.
    number            int NOT NULL,
    attempt           int NOT NULL,
    call_id           text NOT NULL,
    endpoint          text NOT NULL,
    request_digest    bytea NOT NULL,
    -- How many answers to the same request came before it. Null for calls that are not replayed: failed ones, and those
    -- that another attempt's answer stands for.
    occurrence        int,
    -- JSON, as text: JSON has characters that jsonb has no place for.
    request           text NOT NULL,
    answer            text NOT NULL,
    error             text,
    reported_model    text,
    -- Of the last try.
    input_tokens      int,
    output_tokens     int,
    cached_tokens     int,
    reasoning_tokens  int,
    latency_ms        float8,
    first_byte_ms     float8,
    started_at        timestamptz,
    -- Of all tries.
    tries             int NOT NULL,
    cost_picousd      bigint,
    failed_calls      jsonb,
    -- The call whose answer the program got instead.
    answered_by       int,
    recorded_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, position, trial, number)
);

-- Of two attempts that ask the same at once, the first answer stands for both.
CREATE UNIQUE INDEX model_calls_answers ON model_calls (run_id, position, trial, request_digest, occurrence)
    WHERE occurrence IS NOT NULL;

-- How each start of a program went, by every trial that it was started for. Attempts whose result was replaced keep theirs.
CREATE TABLE program_runs (
    run_id             text NOT NULL,
    position           int NOT NULL,
    trial              int NOT NULL,
    attempt            int NOT NULL,
    ended              text NOT NULL,
    exit_code          int,
    signal             int,
    wall_seconds       float8 NOT NULL,
    cpu_seconds        float8 NOT NULL,
    peak_memory_bytes  bigint,
    stdout             text NOT NULL,
    stderr             text NOT NULL,
    cut                boolean NOT NULL,
    batch              int NOT NULL,
    PRIMARY KEY (run_id, position, trial, attempt)
);
