-- Answers of models, kept for runs that ask for them: outcome `ok`, and no other. Nothing here belongs to a run.
CREATE TABLE cached_responses (
    -- sha256 of API, endpoint and model id; sha256 of the request and the number of the repeat.
    model             bytea NOT NULL,
    request           bytea NOT NULL,
    response          text NOT NULL,
    reasoning         text,
    finish_reason     text,
    reported_model    text,
    input_digest      bytea,
    -- Of the call that it took.
    input_tokens      int,
    output_tokens     int,
    cached_tokens     int,
    reasoning_tokens  int,
    payload_digest    text,
    payload_bytes     bigint,
    kept_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, request)
);

-- Old ones are removed, and an object with a long answer stays as long as anybody names it.
CREATE INDEX cached_responses_age ON cached_responses (kept_at);
CREATE INDEX cached_responses_payloads ON cached_responses (payload_digest) WHERE payload_digest IS NOT NULL;

-- Of a result that was taken from the cache: the tokens of the call that was spared, as JSON; null for all others.
ALTER TABLE results ADD COLUMN saved jsonb;
ALTER TABLE run_progress ADD COLUMN cache_hits int NOT NULL DEFAULT 0;

-- The version before goes on with the type that it knows.
CREATE TYPE result_row_3 AS (
    position int, trial int, attempt int, outcome smallint, case_id text, response text, reasoning text,
    finish_reason text, reported_model text, error text, input_digest bytea, input_tokens int, output_tokens int,
    cached_tokens int, reasoning_tokens int, latency_ms float8, first_byte_ms float8, started_at timestamptz,
    calls int, cost_picousd bigint, failed_calls jsonb, payload_digest text, payload_bytes bigint, cluster text,
    slices jsonb, saved jsonb
);
