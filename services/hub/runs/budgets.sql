-- name: set_budget
UPDATE runs SET max_picousd = $2, max_tokens = $3, max_seconds = $4, max_errors = $5, errors_before = $6 WHERE id = $1

-- name: set_key_limits
-- What was said later counts, whichever arrives first.
INSERT INTO key_limits (key_id, version, max_picousd, max_tokens) VALUES ($1, $2, $3, $4)
ON CONFLICT (key_id) DO UPDATE
SET version = excluded.version, max_picousd = excluded.max_picousd, max_tokens = excluded.max_tokens
WHERE key_limits.version < excluded.version

-- name: open_grant
-- The spend of the key and the day is there from then on: whoever deals locks it.
WITH opened AS (
    INSERT INTO grants (run_id, number, attempt, key_id, day, state)
    SELECT id, $2, $3, key_id, (statement_timestamp() AT TIME ZONE 'UTC')::date, 'OPEN' FROM runs WHERE id = $1
    ON CONFLICT DO NOTHING
    RETURNING key_id, day
), run AS (
    INSERT INTO run_spend (run_id) VALUES ($1) ON CONFLICT DO NOTHING
)
INSERT INTO key_spend (key_id, day) SELECT key_id, day FROM opened ON CONFLICT DO NOTHING

-- name: lock_key
SELECT 1 FROM key_spend k JOIN grants g USING (key_id, day)
WHERE g.run_id = $1 AND g.number = $2 AND g.attempt = $3 FOR UPDATE OF k

-- name: ledger
SELECT g.key_id, g.day, g.state, g.sequence, g.granted_picousd, g.granted_tokens, g.spent_picousd, g.spent_tokens,
       r.max_picousd, r.max_tokens, r.max_seconds, r.max_errors, r.errors_before,
       (r.worked_seconds + coalesce(extract(epoch FROM statement_timestamp() - r.working_since), 0))::float8 AS worked,
       s.held_picousd AS run_held_picousd, s.held_tokens AS run_held_tokens,
       s.spent_picousd AS run_spent_picousd, s.spent_tokens AS run_spent_tokens,
       l.max_picousd AS key_max_picousd, l.max_tokens AS key_max_tokens,
       k.held_picousd AS key_held_picousd, k.held_tokens AS key_held_tokens,
       k.spent_picousd AS key_spent_picousd, k.spent_tokens AS key_spent_tokens,
       (SELECT count(*)::int FROM grants o WHERE o.run_id = g.run_id AND o.state = 'OPEN') AS leases
FROM grants g
JOIN runs r ON r.id = g.run_id
JOIN run_spend s ON s.run_id = g.run_id
JOIN key_spend k ON k.key_id = g.key_id AND k.day = g.day
LEFT JOIN key_limits l ON l.key_id = g.key_id
WHERE g.run_id = $1 AND g.number = $2 AND g.attempt = $3

-- name: lose_grant
-- What it counts for stays the same, so nothing else changes.
UPDATE grants SET state = 'LOST', lost_at = statement_timestamp()
WHERE run_id = $1 AND number = $2 AND attempt = $3 AND state = 'OPEN'

-- name: put_grant
-- With what that changes of what grants add up to.
WITH put AS (
    UPDATE grants
    SET state = $4, sequence = $5, granted_picousd = $6, granted_tokens = $7, spent_picousd = $8, spent_tokens = $9
    WHERE run_id = $1 AND number = $2 AND attempt = $3
    RETURNING key_id, day
), run AS (
    UPDATE run_spend
    SET held_picousd = held_picousd + $10, held_tokens = held_tokens + $11,
        spent_picousd = spent_picousd + $12, spent_tokens = spent_tokens + $13
    WHERE run_id = $1
)
UPDATE key_spend k
SET held_picousd = k.held_picousd + $10, held_tokens = k.held_tokens + $11,
    spent_picousd = k.spent_picousd + $12, spent_tokens = k.spent_tokens + $13
FROM put WHERE k.key_id = put.key_id AND k.day = put.day

-- name: raise_spent
-- What was spent before there was anything to count it.
INSERT INTO run_spend AS s (run_id, held_picousd, held_tokens, spent_picousd, spent_tokens)
VALUES ($1, $2, $3, $2, $3)
ON CONFLICT (run_id) DO UPDATE
SET held_picousd = s.held_picousd + greatest($2 - s.spent_picousd, 0), spent_picousd = greatest($2, s.spent_picousd),
    held_tokens = s.held_tokens + greatest($3 - s.spent_tokens, 0), spent_tokens = greatest($3, s.spent_tokens)

-- name: lost_grants
SELECT g.run_id, r.pool, g.number, g.attempt
FROM grants g JOIN runs r ON r.id = g.run_id
WHERE g.state = 'LOST' AND g.lost_at < statement_timestamp() - $1::interval
ORDER BY g.run_id, g.number, g.attempt LIMIT $2

-- name: watched_runs
SELECT id, pool, state, epoch, max_seconds, max_errors, errors_before,
       (worked_seconds + coalesce(extract(epoch FROM statement_timestamp() - working_since), 0))::float8 AS worked
FROM runs
WHERE state IN ('QUEUED', 'RUNNING') AND (max_seconds IS NOT NULL OR max_errors IS NOT NULL) AND id > $1
ORDER BY id LIMIT $2

-- name: spends
SELECT r.id, r.max_picousd, r.max_tokens, r.max_seconds, r.max_errors, r.errors_before,
       (r.worked_seconds + coalesce(extract(epoch FROM CASE WHEN r.state IN ('QUEUED', 'RUNNING')
            THEN statement_timestamp() - r.working_since
            ELSE greatest(r.worked_until - r.working_since, '0') END), 0))::float8 AS worked,
       coalesce(s.held_picousd, 0) AS held_picousd, coalesce(s.held_tokens, 0) AS held_tokens,
       coalesce(s.spent_picousd, 0) AS spent_picousd, coalesce(s.spent_tokens, 0) AS spent_tokens
FROM runs r LEFT JOIN run_spend s ON s.run_id = r.id
WHERE r.id = ANY($1::text[])

-- name: forget_grants
-- Of a run that is about to be removed: what was reserved for it and not spent is its key's again.
UPDATE key_spend k
SET held_picousd = k.held_picousd - left_over.picousd, held_tokens = k.held_tokens - left_over.tokens
FROM (
    SELECT key_id, day, sum(greatest(granted_picousd - spent_picousd, 0)) AS picousd,
           sum(greatest(granted_tokens - spent_tokens, 0)) AS tokens
    FROM grants WHERE run_id = $1 AND state <> 'CLOSED' GROUP BY key_id, day
) AS left_over
WHERE k.key_id = left_over.key_id AND k.day = left_over.day
