-- name: pending
-- One narrow row a run: 10 ms for 100,000 runs.
SELECT coalesce(sum(pending_scores), 0)::int FROM run_progress;

-- name: claims
SELECT (SELECT count(*) FROM pending_scores WHERE token IS NOT NULL)::int AS claimed,
       coalesce(extract(epoch FROM now() - (SELECT min(created_at) FROM pending_scores)), 0)::float8 AS lag
