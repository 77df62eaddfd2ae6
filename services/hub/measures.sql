-- name: pools
-- What is open, held and permitted for each model with work, from partial indexes: as much to read as there is work.
WITH open AS (
    SELECT pool, min(cap) AS cap, sum(shards_open) AS shards
    FROM runs WHERE state IN ('QUEUED', 'RUNNING') GROUP BY pool
), held AS (
    SELECT s.pool,
           count(*) FILTER (WHERE s.state = 'QUEUED') AS queued,
           count(*) FILTER (WHERE s.state = 'RUNNING') AS running,
           count(*) FILTER (WHERE r.state IN ('QUEUED', 'RUNNING')) AS wanted,
           extract(epoch FROM statement_timestamp() - min(s.rung_at) FILTER (WHERE s.state = 'QUEUED')) AS ring_age
    FROM shards s JOIN runs r ON r.id = s.run_id
    WHERE s.state IN ('QUEUED', 'RUNNING')
    GROUP BY s.pool
), granted AS (
    SELECT pool, sum(granted) AS permits FROM permits GROUP BY pool
)
SELECT pool, coalesce(open.cap, 0)::int AS cap, coalesce(open.shards, 0)::int AS open,
       greatest(coalesce(open.shards, 0) - coalesce(held.wanted, 0), 0)::int AS pending,
       coalesce(held.queued, 0)::int AS queued, coalesce(held.running, 0)::int AS running,
       coalesce(held.ring_age, 0)::float8 AS ring_age, coalesce(granted.permits, 0)::int AS permits
FROM open FULL JOIN held USING (pool) FULL JOIN granted USING (pool)
ORDER BY open DESC, pool

-- name: runs
SELECT state, count(*)::int AS runs,
       max(extract(epoch FROM statement_timestamp()
                              - greatest(created_at, working_since, worked_until)))::float8 AS still
FROM runs WHERE state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
GROUP BY state

-- name: budgets
-- Of runs that have not ended and have a cost budget; from the index of those that have not ended.
SELECT coalesce(sum(r.max_picousd), 0)::float8 AS limit, coalesce(sum(s.spent_picousd), 0)::float8 AS spent,
       coalesce(sum(s.held_picousd - s.spent_picousd), 0)::float8 AS reserved
FROM runs r LEFT JOIN run_spend s ON s.run_id = r.id
WHERE r.state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED') AND r.max_picousd IS NOT NULL

-- name: others
SELECT (SELECT count(*)::int FROM outbox) AS events,
       (SELECT coalesce(extract(epoch FROM statement_timestamp() - min(created_at)), 0)::float8 FROM outbox) AS event_age,
       (SELECT count(*)::int FROM publications WHERE state NOT IN ('READY', 'REJECTED')) AS publications,
       (SELECT coalesce(extract(epoch FROM statement_timestamp() - min(created_at)), 0)::float8
        FROM publications WHERE state NOT IN ('READY', 'REJECTED')) AS publication_age
