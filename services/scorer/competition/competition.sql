-- name: insert_programs
-- Sent twice is the same as sent once.
INSERT INTO task_programs (run_id, position, trial, attempt, step, name, ended, exit_code, seconds, stdout, stderr, cut)
SELECT $1, * FROM unnest($2::int[], $3::int[], $4::int[], $5::text[], $6::text[], $7::text[], $8::int[], $9::float8[],
                         $10::text[], $11::text[], $12::boolean[])
ON CONFLICT DO NOTHING;

-- name: insert_scoring
-- Whoever is second reads what the first one wrote.
INSERT INTO task_scorings (run_id, position, trial, scores, reasons, error, cases, case_count, details)
SELECT run_id, $2, $3, $4, $5, $6, $7, $8, $9 FROM runs WHERE run_id = $1 AND removed_at IS NULL
ON CONFLICT DO NOTHING;

-- name: scoring
SELECT scores, reasons, error FROM task_scorings WHERE run_id = $1 AND position = $2 AND trial = $3;

-- name: task
SELECT r.position, r.trial, r.attempt, r.payload_digest, r.payload_bytes, s.error, coalesce(s.case_count, 0) AS case_count,
       s.details IS NOT NULL AS has_details, s.run_id IS NOT NULL AS scored
FROM results r LEFT JOIN task_scorings s USING (run_id, position, trial)
WHERE r.run_id = $1 AND r.case_id = $2 AND r.trial = $3;

-- name: programs_of
SELECT step, name, ended, exit_code, seconds, stdout, stderr, cut FROM task_programs
WHERE run_id = $1 AND position = $2 AND trial = $3 AND attempt = $4
ORDER BY step, name;

-- name: files_of
SELECT cases, details FROM task_scorings WHERE run_id = $1 AND position = $2 AND trial = $3;

-- name: case_counts
SELECT coalesce(sum(case_count), 0) FROM task_scorings WHERE run_id = $1;

-- name: means
-- Of each column and case over its repeats, and how many of them have a score.
SELECT rule, position, avg(value) AS mean, count(value) AS scored, count(*) AS made FROM scores
WHERE run_id = $1 AND scoring = 0 AND trial >= 0
GROUP BY rule, position;

-- name: put_on_leaderboard
INSERT INTO leaderboard (digest, phase, run_id, label, scores) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (digest, phase, run_id) DO UPDATE SET label = $4, scores = $5, reported_at = now();

-- name: leaderboard
SELECT l.run_id, l.label, l.scores, l.reported_at, r.spec
FROM leaderboard l JOIN runs r USING (run_id)
WHERE l.digest = $1 AND l.phase = $2 AND r.removed_at IS NULL
ORDER BY l.reported_at LIMIT $3;

-- name: forget_failed
-- Tasks with something missing: a run that goes on has them scored anew.
DELETE FROM task_scorings WHERE run_id = $1 AND (error <> '' OR reasons <> '{}');

-- name: remove_programs
DELETE FROM task_programs WHERE ctid = ANY (ARRAY(SELECT ctid FROM task_programs WHERE run_id = $1 LIMIT $2))
RETURNING 1;

-- name: remove_scorings
DELETE FROM task_scorings WHERE ctid = ANY (ARRAY(SELECT ctid FROM task_scorings WHERE run_id = $1 LIMIT $2))
RETURNING 1;

-- name: remove_from_leaderboard
DELETE FROM leaderboard WHERE run_id = $1;
