-- name: lock_trial_calls
-- Until the transaction ends: calls of one trial are numbered one after the other.
SELECT pg_advisory_xact_lock(hashtextextended(format('calls:%s:%s:%s', $1::text, $2::int, $3::int), 0));

-- name: find_call
-- The same call, sent again because the answer was lost.
SELECT number, answered_by FROM model_calls
WHERE run_id = $1 AND position = $2 AND trial = $3 AND call_id = $4;

-- name: find_answer
SELECT number, answer FROM model_calls
WHERE run_id = $1 AND position = $2 AND trial = $3 AND request_digest = $4 AND occurrence = $5;

-- name: answer_of
SELECT answer FROM model_calls WHERE run_id = $1 AND position = $2 AND trial = $3 AND number = $4;

-- name: insert_call
INSERT INTO model_calls (
    run_id, position, trial, number, attempt, call_id, endpoint, request_digest, occurrence, request, answer, error,
    reported_model, input_tokens, output_tokens, cached_tokens, reasoning_tokens, latency_ms, first_byte_ms, started_at,
    tries, cost_picousd, failed_calls, answered_by
)
SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
       $19, $20, $21, $22, $23
FROM model_calls WHERE run_id = $1 AND position = $2 AND trial = $3
RETURNING number;

-- name: count_call
-- Answers nothing for a sealed or removed run.
UPDATE run_progress
SET calls = calls + $2, input_tokens = input_tokens + $3, output_tokens = output_tokens + $4,
    cost_picousd = cost_picousd + $5, calls_of_unknown_cost = calls_of_unknown_cost + $6
WHERE run_id = $1 AND sealed_at IS NULL
RETURNING 1;

-- name: stored_answers
SELECT number, request_digest, occurrence, answer FROM model_calls
WHERE run_id = $1 AND position = $2 AND trial = $3 AND occurrence IS NOT NULL AND number > $4
ORDER BY number LIMIT $5;

-- name: spent_by
-- What the calls of trials come to; nothing for a trial without any.
SELECT k.position, k.trial, c.*
FROM unnest($2::int[], $3::int[]) AS k (position, trial) CROSS JOIN LATERAL (
    SELECT sum(tries)::int AS calls, sum(input_tokens)::bigint AS input_tokens,
           sum(output_tokens)::bigint AS output_tokens, sum(cached_tokens)::bigint AS cached_tokens,
           sum(reasoning_tokens)::bigint AS reasoning_tokens, min(started_at) AS started_at,
           CASE WHEN bool_and(cost_picousd IS NOT NULL) THEN sum(cost_picousd)::bigint END AS cost_picousd
    FROM model_calls WHERE run_id = $1 AND position = k.position AND trial = k.trial
) c
WHERE c.calls IS NOT NULL;

-- name: insert_program_run
INSERT INTO program_runs (run_id, position, trial, attempt, ended, exit_code, signal, wall_seconds, cpu_seconds,
                          peak_memory_bytes, stdout, stderr, cut, batch)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT DO NOTHING;

-- name: program_runs_of
SELECT p.* FROM unnest($2::int[], $3::int[], $4::int[]) AS k (position, trial, attempt) CROSS JOIN LATERAL (
    SELECT * FROM program_runs
    WHERE run_id = $1 AND position = k.position AND trial = k.trial AND attempt = k.attempt OFFSET 0
) p;

-- name: find_case
-- The dataset position of a case that has a result.
SELECT position FROM results WHERE run_id = $1 AND case_id = $2 LIMIT 1;

-- name: list_calls
SELECT * FROM model_calls
WHERE run_id = $1 AND position = $2 AND trial = $3 AND number > $4
ORDER BY number LIMIT $5;

-- name: remove_calls
DELETE FROM model_calls WHERE ctid = ANY (ARRAY(SELECT ctid FROM model_calls WHERE run_id = $1 LIMIT $2))
RETURNING 1;

-- name: remove_program_runs
DELETE FROM program_runs WHERE ctid = ANY (ARRAY(SELECT ctid FROM program_runs WHERE run_id = $1 LIMIT $2))
RETURNING 1;
