-- name: find_cached
SELECT request, response, reasoning, finish_reason, reported_model, input_digest, input_tokens, output_tokens,
       cached_tokens, reasoning_tokens, payload_digest, payload_bytes
FROM cached_responses
WHERE model = $1 AND request = ANY($2::bytea[]) AND kept_at > now() - $3::interval;

-- name: keep
-- In one order in all transactions, and before anything else is locked: two that meet wait, and never for each other.
INSERT INTO cached_responses (
    model, request, response, reasoning, finish_reason, reported_model, input_digest, input_tokens, output_tokens,
    cached_tokens, reasoning_tokens, payload_digest, payload_bytes
)
SELECT * FROM unnest(
    $1::bytea[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::int[], $9::int[],
    $10::int[], $11::int[], $12::text[], $13::bigint[]
)
ORDER BY 1, 2
ON CONFLICT DO NOTHING;

-- name: hold_payloads
-- Which of these objects the cache still names; it goes on doing so until the transaction ends.
SELECT payload_digest FROM cached_responses WHERE payload_digest = ANY($1::text[]) FOR KEY SHARE;

-- name: forget
DELETE FROM cached_responses WHERE model = $1 AND request = $2;

-- name: expire
-- Whoever removes waits for nobody: see `keep`.
DELETE FROM cached_responses WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM cached_responses WHERE kept_at <= now() - $1::interval
    ORDER BY kept_at LIMIT $2 FOR UPDATE SKIP LOCKED
))
RETURNING 1;

-- name: now
SELECT now();

-- name: clear
DELETE FROM cached_responses WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM cached_responses WHERE model = $1 AND kept_at <= $2
    ORDER BY request LIMIT $3 FOR UPDATE SKIP LOCKED
))
RETURNING 1;

-- name: is_left
SELECT EXISTS (SELECT FROM cached_responses WHERE model = $1 AND kept_at <= $2);
