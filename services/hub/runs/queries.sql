-- name: insert_run
WITH run AS (
    INSERT INTO runs (id, request_id, request, key_id, environment, environment_name, model, subject_kind, pool, cap,
                      priority, spec, selection, trials, planned, shards, shards_open)
    VALUES ($1, $2, $3, $4, $5, split_part($5, '@', 1), $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15)
    ON CONFLICT (request_id) DO NOTHING
    RETURNING id
)
INSERT INTO shards (run_id, number, pool, first, count)
SELECT run.id, number, $8, number * $16, least($16, $14 - number * $16)
FROM run, generate_series(0, $15 - 1) AS number

-- name: request_of
SELECT id, request FROM runs WHERE request_id = $1

-- name: run
SELECT id, state, state_message, epoch, priority, spec, pool, planned, shards, shards_open, created_at, started_at,
       worked_until, ended_at
FROM runs WHERE id = $1

-- name: list_runs
SELECT id, state, state_message, epoch, priority, spec, pool, planned, shards, shards_open, created_at, started_at,
       worked_until, ended_at
FROM runs
WHERE ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2))
  AND ($3 = '' OR environment = $3 OR environment_name = $3)
  AND ($4 = '' OR model = $4)
  AND ($5 = '' OR state = $5)
ORDER BY created_at DESC, id DESC
LIMIT $6

-- name: has_active_runs
SELECT EXISTS (SELECT FROM runs
               WHERE model = $1 AND subject_kind = 'endpoint' AND state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))

-- name: run_facts
SELECT pool, spec FROM runs WHERE id = $1

-- name: move_run
UPDATE runs
SET state = $3,
    state_message = coalesce($4, state_message),
    epoch = epoch + $5,
    started_at = CASE WHEN $3 = 'RUNNING' THEN coalesce(started_at, statement_timestamp()) ELSE started_at END,
    ended_at = CASE WHEN $6 THEN statement_timestamp() END
WHERE id = $1 AND state = $2
RETURNING true

-- name: lease_view
-- A shard, its run, and the table that the permits of its pool are dealt at.
SELECT s.first, s.count, s.state, s.attempt, s.faults, s.epoch, s.runner, s.request_id,
       coalesce(extract(epoch FROM s.expires_at - statement_timestamp()), 0)::float8 AS remaining,
       r.state AS run_state, r.epoch AS run_epoch, r.trials,
       r.selection[s.first / r.trials + 1 : (s.first + s.count - 1) / r.trials + 1] AS selected,
       coalesce(active.cap, r.cap) AS cap,
       greatest(coalesce(active.open, 0) - running.shards, 0) AS waiting,
       running.own AS leases,
       coalesce((SELECT calls FROM runners WHERE id = $3), 0) AS calls,
       (SELECT count(*) FROM runners n
        WHERE n.id <> $3 AND n.seen_at > statement_timestamp() - $4::interval
          AND NOT EXISTS (SELECT FROM permits p WHERE p.pool = s.pool AND p.runner = n.id)
          AND n.shards > (SELECT count(*) FROM shards x WHERE x.runner = n.id AND x.state = 'RUNNING')) AS idle,
       (extract(epoch FROM statement_timestamp())::float8 / $5::float8)::int AS turn,
       held.runners, held.granted, held.told, held.calls AS holder_calls
FROM shards s
JOIN runs r ON r.id = s.run_id
CROSS JOIN LATERAL (
    SELECT min(cap) AS cap, sum(shards_open)::int AS open
    FROM runs WHERE pool = s.pool AND state IN ('QUEUED', 'RUNNING')
) AS active
CROSS JOIN LATERAL (
    SELECT count(*)::int AS shards, count(*) FILTER (WHERE x.runner = $3)::int AS own
    FROM shards x WHERE x.pool = s.pool AND x.state = 'RUNNING'
) AS running
CROSS JOIN LATERAL (
    SELECT array_agg(p.runner) AS runners, array_agg(p.granted) AS granted, array_agg(p.told) AS told,
           array_agg(coalesce(n.calls, 0)) AS calls
    FROM permits p LEFT JOIN runners n ON n.id = p.runner
    WHERE p.pool = s.pool
) AS held
WHERE s.run_id = $1 AND s.number = $2

-- name: take_shard
UPDATE shards
SET state = 'RUNNING', attempt = attempt + 1, epoch = $4, runner = $5, request_id = $6, reason = '',
    expires_at = statement_timestamp() + $7::interval
WHERE run_id = $1 AND number = $2 AND attempt = $3 AND state IN ('PENDING', 'QUEUED')
RETURNING attempt

-- name: keep_shard
-- A lease that had run out counted as a fault; that it is taken up again shows that it was none.
UPDATE shards
SET state = 'RUNNING', faults = CASE WHEN state = 'RUNNING' THEN faults ELSE greatest(faults - 1, 0) END,
    expires_at = statement_timestamp() + $4::interval
WHERE run_id = $1 AND number = $2 AND attempt = $3 AND state IN ('PENDING', 'QUEUED', 'RUNNING')

-- name: end_shard
WITH ended AS (
    UPDATE shards
    SET state = $4, reason = $5, faults = $6, ended_at = statement_timestamp()
    WHERE run_id = $1 AND number = $2 AND attempt = $3 AND state IN ('PENDING', 'QUEUED', 'RUNNING')
    RETURNING run_id
)
UPDATE runs
SET shards_open = shards_open - 1, worked_until = statement_timestamp()
FROM ended
WHERE runs.id = ended.run_id
RETURNING shards_open, state

-- name: return_shard
UPDATE shards
SET state = 'PENDING', reason = $5, faults = $6, runner = $4
WHERE run_id = $1 AND number = $2 AND attempt = $3 AND state = 'RUNNING'

-- name: abandon_waiting
WITH ended AS (
    UPDATE shards
    SET state = 'ABANDONED', reason = $2, ended_at = statement_timestamp()
    WHERE run_id = $1 AND state IN ('PENDING', 'QUEUED')
    RETURNING run_id
)
UPDATE runs
SET shards_open = shards_open - (SELECT count(*) FROM ended),
    worked_until = CASE WHEN EXISTS (SELECT FROM ended) THEN statement_timestamp() ELSE worked_until END
WHERE id = $1
RETURNING shards_open

-- name: unqueue
UPDATE shards SET state = 'PENDING' WHERE run_id = $1 AND state = 'QUEUED'

-- name: runners_of
SELECT DISTINCT runner FROM shards WHERE pool = $1 AND run_id = $2 AND state = 'RUNNING'

-- name: put_permits
INSERT INTO permits (pool, runner, granted, told) VALUES ($1, $2, $3, $4)
ON CONFLICT (pool, runner) DO UPDATE SET granted = excluded.granted, told = excluded.told

-- name: drop_permits
DELETE FROM permits WHERE pool = $1 AND runner = $2

-- name: drop_idle_permits
DELETE FROM permits p
WHERE p.pool = $1
  AND NOT EXISTS (SELECT FROM shards s WHERE s.runner = p.runner AND s.pool = p.pool AND s.state = 'RUNNING')

-- name: permit_holders
SELECT runner FROM permits WHERE pool = $1

-- name: told
SELECT told FROM permits WHERE pool = $1 AND runner = $2

-- name: is_held
SELECT EXISTS (SELECT FROM shards WHERE run_id = $1 AND number = $2 AND attempt = $3 AND runner = $4
                                    AND state = 'RUNNING')

-- name: keep_runner
INSERT INTO runners (id, shards, calls, seen_at) VALUES ($1, $2, $3, statement_timestamp())
ON CONFLICT (id) DO UPDATE SET shards = excluded.shards, calls = excluded.calls, seen_at = excluded.seen_at
RETURNING xmax = 0

-- name: remove_runner
DELETE FROM runners WHERE id = $1

-- name: forget_runners
DELETE FROM runners WHERE seen_at < statement_timestamp() - $1::interval

-- name: pools_to_dispatch
-- Scalar subqueries keep the planner from reading all of a big run to find its first pending shard.
SELECT DISTINCT r.pool
FROM runs r
WHERE r.state IN ('QUEUED', 'RUNNING') AND r.subject_kind <> 'loaded'
  AND ((SELECT s.number FROM shards s WHERE s.run_id = r.id AND s.state = 'PENDING' ORDER BY s.number LIMIT 1)
           IS NOT NULL
       OR (SELECT min(s.rung_at) FROM shards s WHERE s.pool = r.pool AND s.run_id = r.id AND s.state = 'QUEUED')
           < statement_timestamp() - $1::interval)

-- name: runners
-- How many runners are there, and how many more shards they can hold than they do.
SELECT count(*)::int AS there, coalesce(sum(greatest(n.shards - busy.shards, 0)), 0)::int AS free
FROM runners n
CROSS JOIN LATERAL (SELECT count(*) AS shards FROM shards s WHERE s.runner = n.id AND s.state = 'RUNNING') AS busy
WHERE n.seen_at > statement_timestamp() - $1::interval

-- name: fill_window
-- Runs take turns, those with the fewest shards in hand first; one that has none in hand does not wait for room.
WITH active AS (
    SELECT r.id, r.priority, r.created_at,
           (SELECT count(*) FROM shards h
            WHERE h.pool = $1 AND h.run_id = r.id AND h.state IN ('QUEUED', 'RUNNING')) AS held
    FROM runs r
    WHERE r.pool = $1 AND r.state IN ('QUEUED', 'RUNNING') AND r.subject_kind <> 'loaded'
), rung AS (
    SELECT greatest($2 - count(*), 0) AS room FROM shards WHERE pool = $1 AND state = 'QUEUED'
), ranked AS (
    SELECT active.id, pending.number, rung.room, active.held + pending.turn = 1 AS starts,
           row_number() OVER (ORDER BY active.priority DESC, active.held + pending.turn, active.created_at, active.id)
               AS place
    FROM active
    CROSS JOIN rung
    CROSS JOIN LATERAL (
        SELECT s.number, row_number() OVER (ORDER BY s.number) AS turn
        FROM shards s WHERE s.run_id = active.id AND s.state = 'PENDING'
        ORDER BY s.number LIMIT greatest(rung.room, 1)
    ) AS pending
)
UPDATE shards s
SET state = 'QUEUED', ring = s.ring + 1, rung_at = statement_timestamp()
FROM ranked
WHERE (ranked.place <= ranked.room OR ranked.starts)
  AND s.run_id = ranked.id AND s.number = ranked.number AND s.state = 'PENDING'
RETURNING s.run_id, s.number, s.attempt, s.ring, ranked.place

-- name: ring_again
UPDATE shards s
SET ring = s.ring + 1, rung_at = statement_timestamp()
FROM (SELECT run_id, number FROM shards
      WHERE pool = $1 AND state = 'QUEUED' AND rung_at < statement_timestamp() - $2::interval
      ORDER BY rung_at LIMIT $3) AS stale
WHERE s.run_id = stale.run_id AND s.number = stale.number AND s.state = 'QUEUED'
RETURNING s.run_id, s.number, s.attempt, s.ring, 0 AS place

-- name: pools_with_expired
SELECT DISTINCT pool FROM shards WHERE state = 'RUNNING' AND expires_at < statement_timestamp()

-- name: expired
SELECT s.run_id, s.number, s.attempt, s.faults, s.runner, r.state AS run_state
FROM shards s JOIN runs r ON r.id = s.run_id
WHERE s.pool = $1 AND s.state = 'RUNNING' AND s.expires_at < statement_timestamp()

-- name: runs_to_seal
SELECT id, state, state_message, epoch, priority, spec, pool, planned, shards, shards_open, created_at, started_at,
       worked_until, ended_at
FROM runs WHERE state IN ('SCORING', 'CANCELLING') AND shards_open = 0
ORDER BY worked_until LIMIT $1

-- name: shards_to_load
SELECT r.id, s.number
FROM runs r
CROSS JOIN LATERAL (
    SELECT number FROM shards WHERE run_id = r.id AND state = 'PENDING' ORDER BY number LIMIT $2
) AS s
WHERE r.pool = $1 AND r.state IN ('QUEUED', 'RUNNING')
ORDER BY r.priority DESC, r.created_at, s.number
LIMIT $2
