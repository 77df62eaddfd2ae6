-- name: insert_pending
-- In the transaction that stores the results.
WITH added AS (
    INSERT INTO pending_scores (run_id, scoring, rule, position, trial)
    SELECT $1, 0, * FROM unnest($2::smallint[], $3::int[], $4::int[])
    ON CONFLICT DO NOTHING
    RETURNING 1
)
UPDATE run_progress SET pending_scores = pending_scores + (SELECT count(*) FROM added)
WHERE run_id = $1;

-- name: groups
-- Rules of runs with something to do now, each found by one step through the index, in no order: no run waits for
-- another one's end.
WITH RECURSIVE groups AS (
    (SELECT run_id, scoring, rule FROM pending_scores ORDER BY run_id, scoring, rule LIMIT 1)
    UNION ALL
    SELECT n.run_id, n.scoring, n.rule FROM groups g CROSS JOIN LATERAL (
        SELECT run_id, scoring, rule FROM pending_scores
        WHERE (run_id, scoring, rule) > (g.run_id, g.scoring, g.rule)
        ORDER BY run_id, scoring, rule LIMIT 1
    ) n
)
SELECT g.run_id, g.scoring, g.rule, r.spec
FROM groups g JOIN runs r USING (run_id)
WHERE EXISTS (
    SELECT FROM pending_scores p
    WHERE p.run_id = g.run_id AND p.scoring = g.scoring AND p.rule = g.rule AND p.due_at <= now()
)
ORDER BY random() LIMIT $1;

-- name: claim
-- What somebody else is claiming at this moment is passed over.
UPDATE pending_scores
SET token = $5, due_at = now() + $6::float8 * interval '1 second', claims = claims + 1
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM pending_scores
    WHERE run_id = $1 AND scoring = $2 AND rule = $3 AND due_at <= now()
    ORDER BY position, trial LIMIT $4
    FOR UPDATE SKIP LOCKED
))
RETURNING position, trial, claims, faults, fault;

-- name: claimed_results
-- One by one: see list_failed.
SELECT r.position, r.trial, r.attempt, r.case_id, r.outcome, r.response, r.payload_digest, r.payload_bytes
FROM unnest($2::int[], $3::int[]) AS k (position, trial) CROSS JOIN LATERAL (
    SELECT * FROM results WHERE run_id = $1 AND position = k.position AND trial = k.trial OFFSET 0
) r
ORDER BY r.position, r.trial;

-- name: renew
-- Rows that are being removed with their run are passed over: whoever waited here could be waited for there.
WITH renewed AS (
    UPDATE pending_scores SET due_at = now() + $2::float8 * interval '1 second'
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM pending_scores WHERE token = $1 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) > 0 FROM renewed;

-- name: release
-- Hands back what is still held.
UPDATE pending_scores
SET token = NULL, due_at = now() + $2::float8 * interval '1 second', claims = claims - $3::smallint,
    faults = faults + $4::smallint, fault = coalesce($5, fault)
WHERE ctid = ANY (ARRAY(SELECT ctid FROM pending_scores WHERE token = $1 FOR UPDATE SKIP LOCKED));

-- name: lock_run
-- First in every transaction that writes or drops scores: nobody who holds it waits for pending rows of another.
SELECT 1 FROM run_progress WHERE run_id = $1 FOR UPDATE;

-- name: write
-- Scores for those rows only that are still this claim's; counted with them. $5 is the place of the primary rule.
WITH mine AS (
    DELETE FROM pending_scores p USING unnest($4::score_row[]) s
    WHERE p.run_id = $1 AND p.scoring = $2 AND p.token = $3
      AND p.rule = s.rule AND p.position = s.position AND p.trial = s.trial
    RETURNING s.*
), scored AS (
    INSERT INTO scores (run_id, scoring, rule, position, trial, value, passed, answer, explanation, error)
    SELECT $1, $2, * FROM mine
), counted AS (
    UPDATE run_progress
    SET pending_scores = pending_scores - (SELECT count(*) FROM mine),
        scored = scored + (SELECT count(*) FROM mine WHERE rule = $5 AND value IS NOT NULL),
        passed = passed + (SELECT count(*) FROM mine WHERE rule = $5 AND passed)
    WHERE run_id = $1
)
SELECT count(*) FROM mine;

-- name: drop
WITH dropped AS (DELETE FROM pending_scores WHERE run_id = $1 RETURNING 1)
UPDATE run_progress SET pending_scores = pending_scores - (SELECT count(*) FROM dropped) WHERE run_id = $1;

-- name: forget_errors
-- Of slow rules: a run that goes on tries again what they failed on.
DELETE FROM scores WHERE run_id = $1 AND scoring = 0 AND rule = ANY($2::smallint[]) AND error IS NOT NULL;

-- name: requeue
-- Final results that lack the score of a slow rule.
WITH added AS (
    INSERT INTO pending_scores (run_id, scoring, rule, position, trial)
    SELECT r.run_id, 0, k.rule, r.position, r.trial
    FROM results r CROSS JOIN unnest($2::smallint[]) AS k (rule)
    WHERE r.run_id = $1 AND r.outcome <= 5 AND NOT EXISTS (
        SELECT FROM scores s
        WHERE s.run_id = r.run_id AND s.scoring = 0 AND s.rule = k.rule AND s.position = r.position AND s.trial = r.trial
    )
    ON CONFLICT DO NOTHING
    RETURNING 1
)
UPDATE run_progress SET pending_scores = pending_scores + (SELECT count(*) FROM added) WHERE run_id = $1;

-- name: find_unscored
-- Of these stretches of trials those with a final result that lacks a slow rule's score, and nobody is to make it.
SELECT r.place - 1 AS place
FROM unnest($2::int[], $3::int[], $4::int[], $5::int[], $6::int[]) WITH ORDINALITY
     AS r (first_position, first_trial, last_position, last_trial, trials, place)
WHERE EXISTS (
    SELECT FROM results o CROSS JOIN unnest($7::smallint[]) AS k (rule)
    WHERE o.run_id = $1 AND o.outcome <= 5
      AND (o.position, o.trial) >= (r.first_position, r.first_trial)
      AND (o.position, o.trial) <= (r.last_position, r.last_trial)
      AND NOT EXISTS (
          SELECT FROM scores s WHERE s.run_id = $1 AND s.scoring = 0 AND s.rule = k.rule
          AND s.position = o.position AND s.trial = o.trial AND s.error IS NULL
      )
      AND NOT EXISTS (
          SELECT FROM pending_scores p WHERE p.run_id = $1 AND p.scoring = 0 AND p.rule = k.rule
          AND p.position = o.position AND p.trial = o.trial
      )
)
ORDER BY r.place;

-- name: remove
DELETE FROM pending_scores WHERE ctid = ANY (ARRAY(SELECT ctid FROM pending_scores WHERE run_id = $1 LIMIT $2))
RETURNING 1;
