-- name: insert_run
INSERT INTO runs (run_id, spec) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: insert_progress
-- Nothing for a run that was removed; its row is locked until that is certain.
INSERT INTO run_progress (run_id, epoch)
SELECT run_id, $2 FROM runs WHERE run_id = $1 AND removed_at IS NULL FOR SHARE
ON CONFLICT DO NOTHING;

-- name: insert_scoring
INSERT INTO scorings (run_id, scoring, digest, rules)
SELECT run_id, 0, $2, $3 FROM runs WHERE run_id = $1 AND removed_at IS NULL
ON CONFLICT DO NOTHING;

-- name: get_standing
SELECT epoch, sealed_at IS NOT NULL AS sealed FROM run_progress WHERE run_id = $1;

-- name: unseal
-- The hub gave a lease in an epoch after that of the seal: the run was resumed.
UPDATE run_progress SET epoch = $2, sealed_at = NULL WHERE run_id = $1 AND epoch < $2 AND sealed_at IS NOT NULL
RETURNING 1;

-- name: find_incomplete
-- Of these stretches of trials those with fewer final results than they have trials, counted from 0.
SELECT r.place - 1 AS place
FROM unnest($2::int[], $3::int[], $4::int[], $5::int[], $6::int[]) WITH ORDINALITY
     AS r (first_position, first_trial, last_position, last_trial, trials, place)
WHERE r.trials > (
    SELECT count(*) FROM results
    WHERE run_id = $1 AND outcome <= 5
      AND (position, trial) >= (r.first_position, r.first_trial)
      AND (position, trial) <= (r.last_position, r.last_trial)
)
ORDER BY r.place;

-- name: held_trials
-- Final results among a shard's trials.
SELECT position, trial FROM results
WHERE run_id = $1 AND position BETWEEN $2 AND $3 AND outcome <= 5;

-- name: insert_results
-- A trial that has a result already is left as it is, and missing from the answer.
INSERT INTO results (
    run_id, position, trial, attempt, outcome, case_id, response, reasoning, finish_reason, reported_model, error,
    input_digest, input_tokens, output_tokens, cached_tokens, reasoning_tokens, latency_ms, first_byte_ms, started_at,
    calls, cost_picousd, failed_calls, payload_digest, payload_bytes, cluster, slices, saved
)
SELECT $1, * FROM unnest($2::result_row_3[])
ON CONFLICT DO NOTHING
RETURNING position, trial;

-- name: store_new
-- The whole of a batch in one trip, when all of it is new and the run is open; otherwise nothing of it.
WITH inserted AS (
    INSERT INTO results (
        run_id, position, trial, attempt, outcome, case_id, response, reasoning, finish_reason, reported_model, error,
        input_digest, input_tokens, output_tokens, cached_tokens, reasoning_tokens, latency_ms, first_byte_ms,
        started_at, calls, cost_picousd, failed_calls, payload_digest, payload_bytes, cluster, slices, saved
    )
    SELECT $1, * FROM unnest($2::result_row_3[])
    ON CONFLICT DO NOTHING
    RETURNING 1
), scored AS (
    INSERT INTO scores (run_id, scoring, rule, position, trial, value, passed, answer, explanation, error)
    SELECT $1, 0, * FROM unnest($3::score_row[])
    ON CONFLICT DO NOTHING
), counted AS (
    UPDATE run_progress
    SET recorded = recorded + $4, scored = scored + $5, passed = passed + $6, faults = faults + $7,
        calls = calls + $8, input_tokens = input_tokens + $9, output_tokens = output_tokens + $10,
        cost_picousd = cost_picousd + $11, calls_of_unknown_cost = calls_of_unknown_cost + $12,
        cache_hits = cache_hits + $13
    WHERE run_id = $1 AND sealed_at IS NULL
      -- Not before the results are in: the lock is the last thing to wait for.
      AND (SELECT count(*) FROM inserted) = $4
    RETURNING 1
)
SELECT must(EXISTS (SELECT FROM counted));

-- name: lock_progress
-- Whoever decides between attempts decides alone: until it commits, no other batch does, and the run is not sealed.
SELECT 1 FROM run_progress WHERE run_id = $1 AND sealed_at IS NULL FOR UPDATE;

-- name: standing_results
-- One by one: see list_failed.
SELECT r.position, r.trial, r.attempt, r.outcome, r.saved IS NOT NULL AS cached
FROM unnest($2::int[], $3::int[]) AS k (position, trial) CROSS JOIN LATERAL (
    SELECT * FROM results WHERE run_id = $1 AND position = k.position AND trial = k.trial OFFSET 0
) r;

-- name: file_standing
-- Moves results that are about to be replaced to the attempts. They are faults: they have no scores.
WITH moved AS (
    DELETE FROM results r USING unnest($2::int[], $3::int[]) AS k (position, trial)
    WHERE r.run_id = $1 AND r.position = k.position AND r.trial = k.trial
    RETURNING r.*
)
INSERT INTO attempts (run_id, position, trial, attempt, outcome, response, error, input_tokens, output_tokens,
                      latency_ms, calls, cost_picousd, recorded_at)
SELECT run_id, position, trial, attempt, outcome, response, error, input_tokens, output_tokens, latency_ms, calls,
       cost_picousd, recorded_at
FROM moved
ON CONFLICT DO NOTHING;

-- name: file_attempts
-- Answers with those that were new: only their spend counts.
INSERT INTO attempts (run_id, position, trial, attempt, outcome, response, error, input_tokens, output_tokens,
                      latency_ms, calls, cost_picousd)
SELECT $1, * FROM unnest($2::int[], $3::int[], $4::int[], $5::smallint[], $6::text[], $7::text[], $8::int[], $9::int[],
                         $10::float8[], $11::int[], $12::bigint[])
ON CONFLICT DO NOTHING
RETURNING position, trial, attempt;

-- name: insert_scores
INSERT INTO scores (run_id, scoring, rule, position, trial, value, passed, answer, explanation, error)
SELECT $1, 0, * FROM unnest($2::score_row[])
ON CONFLICT DO NOTHING;

-- name: add_progress
-- Last in a batch's transaction: it holds the lock that orders batches and the seal. Answers nothing for a sealed run.
UPDATE run_progress
SET recorded = recorded + $2, scored = scored + $3, passed = passed + $4, faults = faults + $5, calls = calls + $6,
    input_tokens = input_tokens + $7, output_tokens = output_tokens + $8, cost_picousd = cost_picousd + $9,
    calls_of_unknown_cost = calls_of_unknown_cost + $10, cache_hits = cache_hits + $11
WHERE run_id = $1 AND sealed_at IS NULL
RETURNING 1;

-- name: add_charges
-- In the transaction of a batch, after its progress: that lock orders them.
INSERT INTO charges AS c (run_id, shard, attempt, picousd, tokens)
SELECT $1, * FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[])
ON CONFLICT (run_id, shard, attempt) DO UPDATE
SET picousd = c.picousd + excluded.picousd, tokens = c.tokens + excluded.tokens;

-- name: get_charges
SELECT coalesce(c.picousd, 0) AS picousd, coalesce(c.tokens, 0) AS tokens
FROM unnest($2::text[], $3::int[]) WITH ORDINALITY AS l (shard, attempt, place)
LEFT JOIN charges c ON c.run_id = $1 AND c.shard = l.shard AND c.attempt = l.attempt
ORDER BY l.place;

-- name: remove_charges
DELETE FROM charges WHERE run_id = $1;

-- name: seal
-- Sealing a sealed run changes nothing, unless a later epoch ends: then the run was cancelled before it was reported.
UPDATE run_progress
SET sealed_at = now(), seal = seal + 1, epoch = $2, final_state = $3, seconds = $4
WHERE run_id = $1 AND (epoch < $2 OR (epoch = $2 AND sealed_at IS NULL));

-- name: get_progress
SELECT run_id, recorded, scored, passed, faults, calls, input_tokens, output_tokens, cost_picousd,
       calls_of_unknown_cost, cache_hits
FROM run_progress WHERE run_id = ANY($1::text[]);

-- name: sealed_progress
SELECT seal, pending_scores, final_state, seconds, recorded, scored, passed, faults, calls, input_tokens,
       output_tokens, cost_picousd, calls_of_unknown_cost, cache_hits
FROM run_progress WHERE run_id = $1 AND sealed_at IS NOT NULL;

-- name: try_claim_report
-- Held until the transaction ends: whoever dies frees it.
SELECT pg_try_advisory_xact_lock(hashtextextended('report:' || $1, 0));

-- name: has_report
SELECT 1 FROM reports WHERE run_id = $1 AND number = $2;

-- name: insert_report
INSERT INTO reports (run_id, number, report) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING;

-- name: latest_report
SELECT report FROM reports WHERE run_id = $1 ORDER BY number DESC LIMIT 1;

-- name: get_spec
SELECT spec FROM runs WHERE run_id = $1 AND removed_at IS NULL;

-- name: get_rules
SELECT rules FROM scorings WHERE run_id = $1 AND scoring = 0;

-- name: outcome_counts
SELECT outcome, count(*) AS n FROM results WHERE run_id = $1 GROUP BY outcome;

-- name: latency
SELECT count(*) AS n, avg(latency_ms) AS mean,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_ms) AS p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS p95
FROM results WHERE run_id = $1 AND latency_ms IS NOT NULL;

-- name: saved_tokens
-- What the answers from the cache once took.
SELECT sum((saved->>'input_tokens')::bigint)::bigint AS input, sum((saved->>'output_tokens')::bigint)::bigint AS output
FROM results WHERE run_id = $1 AND saved IS NOT NULL;

-- name: cost_coverage
-- Trials that called a model, or brought their cost with them (answers from the cache: none), and those of them whose
-- every call has a known cost. The calls of programs are counted one by one: they may belong to trials that never got a
-- result.
WITH begun AS (
    SELECT position, trial, bool_and(cost_picousd IS NOT NULL) AS known
    FROM model_calls WHERE run_id = $1 AND tries > 0 GROUP BY position, trial
), earlier AS (
    SELECT position, trial, bool_or(calls > 0) AS called, bool_and(calls = 0 OR cost_picousd IS NOT NULL) AS known
    FROM attempts WHERE run_id = $1 GROUP BY position, trial
), trials AS (
    SELECT r.calls > 0 OR r.cost_picousd IS NOT NULL OR coalesce(a.called, false) AS called,
           (r.calls = 0 OR r.cost_picousd IS NOT NULL) AND coalesce(a.known, true) AS known
    FROM results r LEFT JOIN earlier a USING (position, trial) WHERE r.run_id = $1
    UNION ALL
    SELECT true, known FROM begun b
    WHERE NOT EXISTS (SELECT FROM results r WHERE r.run_id = $1 AND r.position = b.position AND r.trial = b.trial)
)
SELECT count(*) FILTER (WHERE called) AS called, count(*) FILTER (WHERE called AND known) AS known FROM trials;

-- name: rule_statistics
-- Per rule: sufficient statistics over questions, each the mean of its trials. Added up in one order, which the index
-- gives anyway: the last digits of a sum depend on it, and a report must not depend on who came first.
WITH questions AS (
    SELECT rule, position, avg(value ORDER BY trial) AS mean, sum(value ORDER BY trial) AS score_sum, count(*) AS trials,
           bool_and(value IN (0, 1)) AS binary_valued,
           count(*) FILTER (WHERE passed) AS passed, count(*) FILTER (WHERE NOT passed) AS failed
    FROM scores WHERE run_id = $1 AND scoring = $2 AND trial >= 0 AND value IS NOT NULL
    GROUP BY rule, position
)
SELECT rule, count(*) AS n, sum(mean ORDER BY position) AS total,
       sum(mean * mean ORDER BY position) AS squares, sum(trials) AS trials,
       sum(score_sum ORDER BY position) AS score_sum,
       bool_and(binary_valued) AS binary_valued, sum(passed) AS passed,
       sum(failed) AS failed
FROM questions GROUP BY rule ORDER BY rule;

-- name: tallies
-- How many questions have so many scored trials, so many of them passed: what pass@k is made from.
SELECT rule, trials, passed, count(*) AS questions FROM (
    SELECT rule, position, count(*) AS trials, count(*) FILTER (WHERE passed) AS passed
    FROM scores WHERE run_id = $1 AND scoring = $2 AND trial >= 0 AND value IS NOT NULL
    GROUP BY rule, position
) q GROUP BY rule, trials, passed ORDER BY rule, trials, passed;

-- name: rule_errors
SELECT rule, count(*) AS n FROM scores
WHERE run_id = $1 AND scoring = $2 AND error IS NOT NULL
GROUP BY rule;

-- name: trials_with_errors
SELECT count(DISTINCT (position, trial)) FROM scores
WHERE run_id = $1 AND scoring = $2 AND error IS NOT NULL;

-- name: trials_scored_by_all
-- Where rules judge later, one may have judged a trial and another not.
SELECT count(*) FROM (
    SELECT FROM scores WHERE run_id = $1 AND scoring = $2 AND trial >= 0 AND value IS NOT NULL
    GROUP BY position, trial HAVING count(*) = $3
) s;

-- name: cluster_statistics
-- Per rule: what the clustered standard error needs, over the clusters that the environment names.
WITH questions AS (
    SELECT s.rule, s.position, min(r.cluster) AS cluster, avg(s.value ORDER BY s.trial) AS mean
    FROM scores s JOIN results r USING (run_id, position, trial)
    WHERE s.run_id = $1 AND s.scoring = $2 AND s.trial >= 0 AND s.value IS NOT NULL AND r.cluster IS NOT NULL
    GROUP BY s.rule, s.position
), clusters AS (
    SELECT rule, cluster, count(*) AS n, sum(mean ORDER BY position) AS total FROM questions GROUP BY rule, cluster
)
SELECT rule, count(*) AS clusters, sum(n) AS n, sum(total * total ORDER BY cluster) AS total_squares,
       sum(n * total ORDER BY cluster) AS n_totals,
       sum(n * n) AS n_squares
FROM clusters GROUP BY rule;

-- name: slice_statistics
-- The primary rule by the values of the fields that the environment names.
WITH questions AS (
    SELECT e.key AS field, e.value AS value, s.position, avg(s.value ORDER BY s.trial) AS mean, count(*) AS trials,
           bool_and(s.value IN (0, 1)) AS binary_valued, count(*) FILTER (WHERE s.passed) AS passed,
           count(*) FILTER (WHERE NOT s.passed) AS failed
    FROM scores s JOIN results r USING (run_id, position, trial), jsonb_each_text(r.slices) e
    WHERE s.run_id = $1 AND s.scoring = $2 AND s.rule = $3 AND s.trial >= 0 AND s.value IS NOT NULL
    GROUP BY e.key, e.value, s.position
)
SELECT field, value, count(*) AS n, sum(mean ORDER BY position) AS total,
       sum(mean * mean ORDER BY position) AS squares, sum(trials) AS trials,
       bool_and(binary_valued) AS binary_valued, sum(passed) AS passed,
       sum(failed) AS failed
FROM questions GROUP BY field, value ORDER BY field, value;

-- name: walk_indexes
-- Before a page is listed. A planner that takes a run for small would read all of it and sort it, for one page.
SET LOCAL enable_bitmapscan = off;

-- name: list_results
SELECT * FROM results
WHERE run_id = $1 AND (position, trial) > ($2::int, $3::int)
ORDER BY position, trial LIMIT $4;

-- name: list_case
-- All trials of a case, of which there are at most 1,000, are found first: through the index of cases, since nothing
-- else is asked of them.
WITH found AS MATERIALIZED (SELECT position, trial FROM results WHERE run_id = $1 AND case_id = $5),
page AS MATERIALIZED (
    SELECT position, trial FROM found WHERE (position, trial) > ($2::int, $3::int)
    ORDER BY position, trial LIMIT $4
)
SELECT r.* FROM page CROSS JOIN LATERAL (
    SELECT * FROM results WHERE run_id = $1 AND position = page.position AND trial = page.trial OFFSET 0
) r ORDER BY r.position, r.trial;

-- name: list_failed
-- The page is chosen first, through an index; then its results are looked up one by one. OFFSET 0 keeps the planner
-- from joining in another order, which it does where it knows nothing of a new run yet, or thinks it small.
WITH page AS MATERIALIZED (
    SELECT position, trial FROM scores
    WHERE run_id = $1 AND scoring = $5 AND rule = $6 AND passed IS NOT TRUE AND NOT passed
      AND (position, trial) > ($2::int, $3::int)
    ORDER BY position, trial LIMIT $4
)
SELECT r.* FROM page CROSS JOIN LATERAL (
    SELECT * FROM results WHERE run_id = $1 AND position = page.position AND trial = page.trial OFFSET 0
) r ORDER BY r.position, r.trial;

-- name: list_passed
WITH page AS MATERIALIZED (
    SELECT position, trial FROM scores
    WHERE run_id = $1 AND scoring = $5 AND rule = $6 AND passed AND (position, trial) > ($2::int, $3::int)
    ORDER BY position, trial LIMIT $4
)
SELECT r.* FROM page CROSS JOIN LATERAL (
    SELECT * FROM results WHERE run_id = $1 AND position = page.position AND trial = page.trial OFFSET 0
) r ORDER BY r.position, r.trial;

-- name: list_unscored
-- Faults that are not the model's doing, and those that the rule failed on; each has a small index of its own.
WITH page AS MATERIALIZED (
    (
        SELECT position, trial FROM results
        WHERE run_id = $1 AND outcome > 5 AND (position, trial) > ($2::int, $3::int)
        ORDER BY position, trial LIMIT $4
    )
    UNION ALL
    (
        SELECT position, trial FROM scores
        WHERE run_id = $1 AND scoring = $5 AND rule = $6 AND error IS NOT NULL
          AND (position, trial) > ($2::int, $3::int)
        ORDER BY position, trial LIMIT $4
    )
    ORDER BY position, trial LIMIT $4
)
SELECT r.* FROM page CROSS JOIN LATERAL (
    SELECT * FROM results WHERE run_id = $1 AND position = page.position AND trial = page.trial OFFSET 0
) r ORDER BY r.position, r.trial;

-- name: scores_of
-- One by one: see list_failed. The rules are named because the index needs them.
SELECT s.position, s.trial, s.rule, s.value, s.passed, s.answer, s.explanation, s.error
FROM unnest($3::int[], $4::int[]) AS k (position, trial) CROSS JOIN LATERAL (
    SELECT * FROM scores
    WHERE run_id = $1 AND scoring = $2 AND rule = ANY($5::smallint[]) AND position = k.position AND trial = k.trial
    OFFSET 0
) s
ORDER BY s.position, s.trial, s.rule;

-- name: try_claim_removal
SELECT pg_try_advisory_xact_lock(hashtextextended('removal:' || $1, 0));

-- name: mark_removed
INSERT INTO runs (run_id, spec, removed_at) VALUES ($1, '', now())
ON CONFLICT (run_id) DO UPDATE SET spec = '', removed_at = coalesce(runs.removed_at, now());

-- name: remove_progress
-- Waits for batches under way; those that come later find nothing to add to, and are refused.
DELETE FROM run_progress WHERE run_id = $1;

-- name: remove_scorings
DELETE FROM scorings WHERE run_id = $1;

-- name: remove_reports
DELETE FROM reports WHERE run_id = $1;

-- name: remove_results
DELETE FROM results WHERE ctid = ANY (ARRAY(SELECT ctid FROM results WHERE run_id = $1 LIMIT $2))
RETURNING payload_digest;

-- name: remove_attempts
DELETE FROM attempts WHERE ctid = ANY (ARRAY(SELECT ctid FROM attempts WHERE run_id = $1 LIMIT $2))
RETURNING 1;

-- name: remove_scores
DELETE FROM scores WHERE ctid = ANY (ARRAY(SELECT ctid FROM scores WHERE run_id = $1 LIMIT $2))
RETURNING 1;

-- name: payloads_in_use
SELECT digest FROM unnest($1::text[]) AS u (digest)
WHERE EXISTS (SELECT FROM results WHERE payload_digest = u.digest)
   OR EXISTS (SELECT FROM cached_responses WHERE payload_digest = u.digest);
