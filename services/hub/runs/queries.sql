-- name: insert_run
WITH run AS (
    INSERT INTO runs (id, request_id, request, key_id, environment, environment_name, model, subject_kind, pool, cap,
                      priority, spec, selection, trials, planned, shards, shards_open,
                      max_picousd, max_tokens, max_seconds, max_errors)
    VALUES ($1, $2, $3, $4, $5, split_part($5, '@', 1), $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15,
            $17, $18, $19, $20)
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
       worked_seconds, working_since, worked_until, ended_at,
       num_nonnulls(max_picousd, max_tokens, max_seconds, max_errors) > 0 AS budgeted
FROM runs WHERE id = $1

-- name: list_runs
SELECT id, state, state_message, epoch, priority, spec, pool, planned, shards, shards_open, created_at, started_at,
       worked_seconds, working_since, worked_until, ended_at,
       num_nonnulls(max_picousd, max_tokens, max_seconds, max_errors) > 0 AS budgeted
FROM runs
WHERE ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2))
  AND ($3 = '' OR environment = $3 OR environment_name = $3)
  AND ($4 = '' OR model = $4)
  AND ($5 = '' OR state = $5)
ORDER BY created_at DESC, id DESC
LIMIT $6

-- name: has_active_runs
SELECT EXISTS (SELECT FROM runs
               WHERE model = $1 AND subject_kind = 'endpoint'
                 AND state NOT IN ('PAUSED', 'SUCCEEDED', 'FAILED', 'CANCELLED'))

-- name: run_facts
SELECT pool, spec FROM runs WHERE id = $1

-- name: move_run
UPDATE runs
SET state = $3,
    state_message = coalesce($4, state_message),
    epoch = epoch + $5,
    started_at = CASE WHEN $3 = 'RUNNING' THEN coalesce(started_at, statement_timestamp()) ELSE started_at END,
    worked_seconds = worked_seconds + coalesce(extract(epoch FROM CASE
        WHEN $3 = 'PAUSED' THEN statement_timestamp() - working_since
        WHEN $3 IN ('QUEUED', 'RUNNING') THEN greatest(worked_until - working_since, '0')
    END), 0),
    working_since = CASE
        WHEN $3 = 'RUNNING' THEN statement_timestamp()
        WHEN $3 NOT IN ('QUEUED', 'PAUSED') THEN working_since
    END,
    ended_at = CASE WHEN $6 THEN statement_timestamp() END
WHERE id = $1 AND state = $2 AND ($7::int IS NULL OR epoch = $7)
RETURNING true

-- name: lease_view
-- A shard, its run, and the table that the permits of its pool are dealt at.
SELECT s.first, s.count, s.state, s.attempt, s.faults, s.epoch, s.runner, s.request_id,
       coalesce(extract(epoch FROM s.expires_at - statement_timestamp()), 0)::float8 AS remaining,
       r.state AS run_state, r.epoch AS run_epoch, r.trials,
       r.selection[s.first / r.trials + 1 : (s.first + s.count - 1) / r.trials + 1] AS selected,
       coalesce(active.cap, r.cap) AS cap,
       greatest(coalesce(active.open, 0) - running.shards, 0) AS waiting,
       running.own AS leases, company.suspects, company.most_faults,
       coalesce((SELECT calls FROM runners WHERE id = $3), 0) AS calls,
       (SELECT count(*) FROM runners n
        WHERE n.id <> $3 AND n.seen_at > statement_timestamp() - $4::interval
          AND NOT EXISTS (SELECT FROM permits p WHERE p.pool = s.pool AND p.runner = n.id AND p.free_at IS NULL)
          AND n.shards > (SELECT count(*) FROM shards x WHERE x.runner = n.id AND x.state = 'RUNNING')) AS idle,
       (extract(epoch FROM statement_timestamp())::float8 / $5::float8)::bigint AS turn,
       r.subject_kind <> 'loaded'
           AND (num_nonnulls(r.max_picousd, r.max_tokens, r.max_seconds, r.max_errors) > 0
                OR EXISTS (SELECT FROM key_limits l
                           WHERE l.key_id = r.key_id AND num_nonnulls(l.max_picousd, l.max_tokens) > 0)) AS metered,
       held.runners, held.granted, held.told, held.calls AS holder_calls, held.reserved, held.version, held.leaving
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
    -- What else the runner holds that has had faults, and the faults of the single trials among it.
    SELECT count(*)::int AS suspects, coalesce(max(x.faults) FILTER (WHERE x.count = 1), 0) AS most_faults
    FROM shards x
    WHERE x.runner = $3 AND x.state = 'RUNNING' AND x.faults > 0 AND (x.run_id, x.number) <> (s.run_id, s.number)
) AS company
CROSS JOIN LATERAL (
    SELECT array_agg(p.runner) FILTER (WHERE p.deals) AS runners, array_agg(p.granted) FILTER (WHERE p.deals) AS granted,
           array_agg(p.told) FILTER (WHERE p.deals) AS told, array_agg(p.calls) FILTER (WHERE p.deals) AS calls,
           coalesce(sum(p.granted) FILTER (WHERE NOT p.deals), 0)::int AS reserved,
           max(p.version) FILTER (WHERE p.runner = $3) AS version,
           bool_or(p.free_at IS NOT NULL) FILTER (WHERE p.runner = $3) AS leaving
    FROM (SELECT h.*, coalesce(n.calls, 0) AS calls, h.free_at IS NULL OR h.runner = $3 AS deals
          FROM permits h LEFT JOIN runners n ON n.id = h.runner
          WHERE h.pool = s.pool) AS p
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

-- name: split_shard
-- The parts go on with the attempt of the whole: among results of one trial it tells the later from the earlier.
WITH parts AS (
    SELECT * FROM unnest($5::int[], $6::int[], $7::int[]) WITH ORDINALITY AS p (first, count, faults, place)
), own AS (
    UPDATE shards s
    SET state = 'PENDING', first = p.first, count = p.count, faults = p.faults, reason = $4, runner = ''
    FROM parts p
    WHERE s.run_id = $1 AND s.number = $2 AND s.attempt = $3 AND s.state = 'RUNNING' AND p.place = 1
    RETURNING s.run_id, s.pool, s.attempt, s.epoch
), more AS (
    UPDATE runs
    SET shards = shards + cardinality($5) - 1, shards_open = shards_open + cardinality($5) - 1
    FROM own
    WHERE runs.id = own.run_id
    RETURNING shards - cardinality($5) AS last
)
INSERT INTO shards (run_id, number, pool, first, count, attempt, epoch, faults, reason)
SELECT own.run_id, more.last + p.place - 1, own.pool, p.first, p.count, own.attempt, own.epoch, p.faults, $4
FROM own, more, parts p
WHERE p.place > 1

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

-- name: trial_ranges
-- The cases of a sample are counted through once a page: looking each up would read the whole selection each time.
WITH page AS (
    SELECT s.number, s.first, s.first + s.count - 1 AS last, s.count, r.trials
    FROM shards s JOIN runs r ON r.id = s.run_id
    WHERE s.run_id = $1 AND s.number > $2 AND s.state IN ('DONE', 'ABANDONED')
    ORDER BY s.number LIMIT $3
), picked AS (
    SELECT (u.place - 1)::int AS slot, u.position
    FROM runs r CROSS JOIN LATERAL unnest(r.selection) WITH ORDINALITY AS u (position, place)
    WHERE r.id = $1
)
SELECT page.number, coalesce(a.position, page.first / page.trials), page.first % page.trials,
       coalesce(b.position, page.last / page.trials), page.last % page.trials, page.count
FROM page
LEFT JOIN picked a ON a.slot = page.first / page.trials
LEFT JOIN picked b ON b.slot = page.last / page.trials
ORDER BY page.number

-- name: reopen_shards
WITH reopened AS (
    UPDATE shards
    SET state = 'PENDING', faults = 0, runner = '', reason = '', ended_at = NULL
    WHERE run_id = $1 AND number = ANY($2::int[]) AND state IN ('DONE', 'ABANDONED')
    RETURNING 1
)
UPDATE runs SET shards_open = shards_open + (SELECT count(*) FROM reopened) WHERE id = $1

-- name: forget_faults
UPDATE shards SET faults = 0 WHERE run_id = $1 AND faults > 0 AND state IN ('PENDING', 'QUEUED', 'RUNNING')

-- name: unqueue
UPDATE shards SET state = 'PENDING' WHERE run_id = $1 AND state = 'QUEUED'

-- name: runners_of
SELECT DISTINCT runner FROM shards WHERE pool = $1 AND run_id = $2 AND state = 'RUNNING'

-- name: unaware_runners
SELECT DISTINCT s.runner FROM shards s JOIN runs r ON r.id = s.run_id
WHERE s.state = 'RUNNING' AND (r.state NOT IN ('QUEUED', 'RUNNING') OR s.epoch <> r.epoch)

-- name: put_permits
INSERT INTO permits (pool, runner, granted, told, free_at)
VALUES ($1, $2, $3, $4, statement_timestamp() + $5::interval)
ON CONFLICT (pool, runner) DO UPDATE
SET granted = excluded.granted, told = excluded.told, free_at = excluded.free_at, version = excluded.version
RETURNING version

-- name: drop_permits
WITH gone AS (DELETE FROM permits WHERE pool = $1 AND runner = $2)
SELECT nextval('permit_versions')

-- name: reserve_idle_permits
UPDATE permits p
SET told = 0, free_at = statement_timestamp() + $2::interval, version = nextval('permit_versions')
WHERE p.pool = $1 AND p.free_at IS NULL
  AND NOT EXISTS (SELECT FROM shards s WHERE s.runner = p.runner AND s.pool = p.pool AND s.state = 'RUNNING')

-- name: drop_free_permits
WITH gone AS (
    DELETE FROM permits
    WHERE pool = $1 AND (free_at < statement_timestamp() OR free_at IS NOT NULL AND granted = 0)
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: permit_holders
SELECT runner FROM permits WHERE pool = $1 AND free_at IS NULL

-- name: told
SELECT coalesce(max(told), 0) AS permits, coalesce(max(version), nextval('permit_versions')) AS version
FROM permits WHERE pool = $1 AND runner = $2

-- name: is_held
SELECT EXISTS (SELECT FROM shards WHERE run_id = $1 AND number = $2 AND attempt = $3 AND runner = $4
                                    AND state = 'RUNNING')

-- name: keep_runner
-- Answers with the shards that the runner holds although their run does not go on.
WITH kept AS (
    INSERT INTO runners (id, shards, calls, seen_at) VALUES ($1, $2, $3, statement_timestamp())
    ON CONFLICT (id) DO UPDATE SET shards = excluded.shards, calls = excluded.calls, seen_at = excluded.seen_at
    RETURNING xmax = 0 AS new
)
SELECT kept.new, stopped.runs, stopped.numbers
FROM kept
CROSS JOIN LATERAL (
    SELECT array_agg(s.run_id) AS runs, array_agg(s.number) AS numbers
    FROM shards s JOIN runs r ON r.id = s.run_id
    WHERE s.runner = $1 AND s.state = 'RUNNING' AND (r.state NOT IN ('QUEUED', 'RUNNING') OR r.epoch <> s.epoch)
) AS stopped

-- name: remove_runner
-- It says so when its calls have ended: nothing of it counts any more. Who gives up permits needs no lock.
WITH gone AS (DELETE FROM permits WHERE runner = $1)
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
-- How many runners are there, how many more shards they can hold than they do, and how many hold none.
SELECT count(*)::int AS there, coalesce(sum(greatest(n.shards - busy.shards, 0)), 0)::int AS free,
       (count(*) FILTER (WHERE busy.shards = 0))::int AS idle
FROM runners n
CROSS JOIN LATERAL (SELECT count(*) AS shards FROM shards s WHERE s.runner = n.id AND s.state = 'RUNNING') AS busy
WHERE n.seen_at > statement_timestamp() - $1::interval

-- name: fill_window
-- Runs take turns, those with the fewest shards in hand first; one that has none in hand does not wait for room.
-- What runners hold they cannot leave for what is more urgent: they get no more than keeps them busy, and whoever holds
-- nothing gets something, whatever slow ones hold. The fixed limits tell the planner how few rows it is about: it would
-- read a million pending shards to find these.
WITH active AS (
    SELECT r.id, r.priority, r.created_at,
           (SELECT count(*) FROM shards h
            WHERE h.pool = $1 AND h.run_id = r.id AND h.state IN ('QUEUED', 'RUNNING')) AS held
    FROM runs r
    WHERE r.pool = $1 AND r.state IN ('QUEUED', 'RUNNING') AND r.subject_kind <> 'loaded'
), hand AS (
    SELECT count(*) AS shards, coalesce(sum(count), 0) AS trials, count(*) FILTER (WHERE state = 'QUEUED') AS queued
    FROM shards WHERE pool = $1 AND state IN ('QUEUED', 'RUNNING')
), rung AS (
    SELECT CASE WHEN hand.trials < $4 * (SELECT max(cap) FROM runs WHERE pool = $1 AND state IN ('QUEUED', 'RUNNING'))
                THEN greatest($2 - hand.queued, 0)
                ELSE greatest(least($2 - hand.queued, $3 - hand.shards), $5 - hand.queued, 0) END AS room
    FROM hand
), ranked AS (
    SELECT active.id, pending.number, rung.room, active.held + pending.turn = 1 AS starts,
           row_number() OVER (ORDER BY active.priority DESC, active.held + pending.turn, active.created_at, active.id)
               AS place
    FROM active
    CROSS JOIN rung
    CROSS JOIN LATERAL (
        SELECT s.number, row_number() OVER (ORDER BY s.number) AS turn
        FROM (SELECT number FROM shards WHERE run_id = active.id AND state = 'PENDING' ORDER BY number LIMIT 1024) AS s
        ORDER BY s.number LIMIT greatest(rung.room, 1)
    ) AS pending
), picked AS MATERIALIZED (
    SELECT id, number, place FROM ranked WHERE place <= room OR starts ORDER BY place LIMIT 1024
)
UPDATE shards s
SET state = 'QUEUED', ring = s.ring + 1, rung_at = statement_timestamp()
FROM picked
WHERE s.run_id = picked.id AND s.number = picked.number AND s.state = 'PENDING'
RETURNING s.run_id, s.number, s.attempt, s.ring, picked.place

-- name: ring_again
UPDATE shards s
SET ring = s.ring + 1, rung_at = statement_timestamp()
FROM (SELECT run_id, number FROM shards
      WHERE pool = $1 AND state = 'QUEUED' AND rung_at < statement_timestamp() - $2::interval
      ORDER BY rung_at LIMIT $3) AS stale
WHERE s.run_id = stale.run_id AND s.number = stale.number AND s.state = 'QUEUED'
RETURNING s.run_id, s.number, s.attempt, s.ring, 0 AS place

-- name: pools_with_expired
-- Or with permits of gone runners that are free now.
SELECT pool FROM shards WHERE state = 'RUNNING' AND expires_at < statement_timestamp()
UNION
SELECT pool FROM permits WHERE free_at < statement_timestamp()

-- name: expired
-- A holder that was heard of when it had missed a renewal lives: who dies is not heard of so long after its last one.
SELECT s.run_id, s.number, s.first, s.count, s.attempt, s.faults, s.runner, r.state AS run_state,
       coalesce(n.seen_at > s.expires_at - $2::interval / 3, false) AS alive
FROM shards s JOIN runs r ON r.id = s.run_id LEFT JOIN runners n ON n.id = s.runner
WHERE s.pool = $1 AND s.state = 'RUNNING' AND s.expires_at < statement_timestamp()

-- name: runs_to_seal
SELECT id, state, state_message, epoch, priority, spec, pool, planned, shards, shards_open, created_at, started_at,
       worked_seconds, working_since, worked_until, ended_at,
       num_nonnulls(max_picousd, max_tokens, max_seconds, max_errors) > 0 AS budgeted
FROM runs WHERE state IN ('SCORING', 'CANCELLING') AND shards_open = 0 AND id <> ALL ($2)
ORDER BY worked_until LIMIT $1

-- name: given_up
SELECT sum(count)::bigint AS trials, min(reason) AS reason
FROM shards WHERE run_id = $1 AND state = 'ABANDONED' AND reason <> 'cancelled'

-- name: shards_to_load
SELECT r.id, s.number
FROM runs r
CROSS JOIN LATERAL (
    SELECT number FROM shards WHERE run_id = r.id AND state = 'PENDING' ORDER BY number LIMIT $2
) AS s
WHERE r.pool = $1 AND r.state IN ('QUEUED', 'RUNNING')
ORDER BY r.priority DESC, r.created_at, s.number
LIMIT $2

-- name: remove_run
WITH gone AS (
    DELETE FROM runs WHERE id = $1 RETURNING id, spec, created_at, ended_at
)
INSERT INTO removed_runs (run_id, spec, created_at, ended_at)
SELECT id, spec, created_at, ended_at FROM gone

-- name: removed_runs
SELECT run_id, spec, created_at, ended_at FROM removed_runs ORDER BY ended_at LIMIT $1

-- name: forget_removed
DELETE FROM removed_runs WHERE run_id = $1

-- name: ended_before
SELECT pool, id FROM runs WHERE ended_at < statement_timestamp() - $1::interval ORDER BY ended_at LIMIT $2

-- name: predictions_in_use
-- The digest is written out in the serialised specification, and nothing else there is as long.
SELECT u.digest
FROM unnest($1::text[]) AS u (digest)
WHERE EXISTS (SELECT FROM runs
              WHERE subject_kind = 'loaded' AND position(convert_to(u.digest, 'UTF8') IN spec) > 0)

-- name: insert_trace
INSERT INTO run_traces (run_id, traceparent) VALUES ($1, $2)

-- name: traces
SELECT run_id, traceparent FROM run_traces WHERE run_id = ANY($1::text[])
