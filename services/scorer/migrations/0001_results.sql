-- What the scorer was told of a run. The specification is immutable; it comes with every lease, signed by the hub.
CREATE TABLE runs (
    run_id      text PRIMARY KEY,
    spec        bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- One row a run, changed by every batch in the transaction that stores it: its lock orders batches and the seal.
CREATE TABLE run_progress (
    run_id                 text PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
    epoch                  int NOT NULL DEFAULT 0,
    recorded               int NOT NULL DEFAULT 0,
    scored                 int NOT NULL DEFAULT 0,
    passed                 int NOT NULL DEFAULT 0,
    faults                 int NOT NULL DEFAULT 0,
    calls                  int NOT NULL DEFAULT 0,
    input_tokens           bigint NOT NULL DEFAULT 0,
    output_tokens          bigint NOT NULL DEFAULT 0,
    cost_picousd           bigint NOT NULL DEFAULT 0,
    calls_of_unknown_cost  int NOT NULL DEFAULT 0,
    pending_scores         int NOT NULL DEFAULT 0,
    -- How often the run was sealed: the number of its latest report.
    seal                   int NOT NULL DEFAULT 0,
    sealed_at              timestamptz,
    final_state            text,
    seconds                float8,
    CHECK ((sealed_at IS NULL) OR (final_state IS NOT NULL AND seconds IS NOT NULL))
) WITH (fillfactor = 50);

-- What each trial produced. A row whose outcome is the model's doing is final; any other may be replaced.
CREATE TABLE results (
    run_id            text NOT NULL,
    position          int NOT NULL,
    trial             int NOT NULL,
    attempt           int NOT NULL,
    outcome           smallint NOT NULL,
    case_id           text NOT NULL,
    response          text NOT NULL,
    reasoning         text,
    finish_reason     text,
    reported_model    text,
    error             text,
    input_digest      bytea,
    -- Of the last call.
    input_tokens      int,
    output_tokens     int,
    cached_tokens     int,
    reasoning_tokens  int,
    latency_ms        float8,
    first_byte_ms     float8,
    started_at        timestamptz,
    -- Of all calls of this attempt.
    calls             int NOT NULL,
    cost_picousd      bigint,
    failed_calls      jsonb,
    payload_digest    text,
    payload_bytes     bigint,
    cluster           text,
    slices            jsonb,
    recorded_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, position, trial)
);

-- Attempts that are not the trial's result: provisional ones that were replaced, and answers that came second.
-- They were paid for, so they are kept and their spend counts.
CREATE TABLE attempts (
    run_id         text NOT NULL,
    position       int NOT NULL,
    trial          int NOT NULL,
    attempt        int NOT NULL,
    outcome        smallint NOT NULL,
    response       text NOT NULL,
    error          text,
    input_tokens   int,
    output_tokens  int,
    latency_ms     float8,
    calls          int NOT NULL,
    cost_picousd   bigint,
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, position, trial, attempt)
);

-- One pass of rules over a run. Rules are numbered by their place in the list.
CREATE TABLE scorings (
    run_id      text NOT NULL REFERENCES runs ON DELETE CASCADE,
    scoring     smallint NOT NULL,
    digest      text NOT NULL,
    rules       jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, scoring)
);

-- One rule's value for one subject: a result (position, trial), a case over its trials (trial = -1), or the whole run
-- (position = -1 and trial = -1). A rule that failed has an error and no value.
CREATE TABLE scores (
    run_id       text NOT NULL,
    scoring      smallint NOT NULL,
    rule         smallint NOT NULL,
    position     int NOT NULL,
    trial        int NOT NULL,
    value        float8,
    passed       boolean,
    answer       text,
    explanation  text,
    error        text,
    PRIMARY KEY (run_id, scoring, rule, position, trial),
    CHECK (position >= 0 OR trial = -1),
    CHECK ((value IS NULL) = (error IS NOT NULL))
);

-- The failed cases of a run are what people page through first.
CREATE INDEX scores_not_passed ON scores (run_id, scoring, rule, position, trial) WHERE passed IS NOT TRUE;

-- What went wrong without the model's doing is rare, and looked for when it happens: two small indexes.
CREATE INDEX scores_errors ON scores (run_id, scoring, rule, position, trial) WHERE error IS NOT NULL;
CREATE INDEX results_faults ON results (run_id, position, trial) WHERE outcome > 5;

-- One case of a run: people come from a case id. Measured, batches are stored 1 % slower with it, which is noise.
CREATE INDEX results_cases ON results (run_id, case_id);

-- What a batch is sent as: an array of each. Arrays of columns cost several times as much to encode.
CREATE TYPE result_row AS (
    position int, trial int, attempt int, outcome smallint, case_id text, response text, reasoning text,
    finish_reason text, reported_model text, error text, input_digest bytea, input_tokens int, output_tokens int,
    cached_tokens int, reasoning_tokens int, latency_ms float8, first_byte_ms float8, started_at timestamptz,
    calls int, cost_picousd bigint, failed_calls jsonb, payload_digest text, payload_bytes bigint, cluster text,
    slices jsonb
);
CREATE TYPE score_row AS (
    rule smallint, position int, trial int, value float8, passed boolean, answer text, explanation text, error text
);

-- Ends a statement, and with it all that it did, unless what it is given holds.
CREATE FUNCTION must(holds boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF holds IS NOT TRUE THEN
        RAISE EXCEPTION 'the fast path does not fit' USING ERRCODE = 'BG001';
    END IF;
END
$$;

CREATE TABLE reports (
    run_id      text NOT NULL REFERENCES runs ON DELETE CASCADE,
    number      int NOT NULL,
    report      jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, number)
);
