-- name: pending
-- One narrow row a run: 10 ms for 100,000 runs.
SELECT coalesce(sum(pending_scores), 0)::int FROM run_progress
