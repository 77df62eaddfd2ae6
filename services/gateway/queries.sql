-- Statements of the gateway: API keys, idempotency keys.

-- name: find_key
-- The key with this hash; notes its use, once a minute at most.
WITH found AS (
    SELECT id, name, scopes, expires_at, revoked_at, daily_picousd, daily_tokens, budget_version
    FROM api_keys WHERE hash = $1
), used AS (
    UPDATE api_keys SET last_used_at = now()
    FROM found
    WHERE api_keys.id = found.id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
)
SELECT * FROM found

-- name: add_key
INSERT INTO api_keys (id, name, hash, scopes, expires_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (hash) DO NOTHING

-- name: list_keys
SELECT id, name, scopes, created_at, expires_at, revoked_at, last_used_at, daily_picousd, daily_tokens, budget_version
FROM api_keys ORDER BY created_at, id

-- name: set_key_budget
UPDATE api_keys SET daily_picousd = $2, daily_tokens = $3, budget_version = budget_version + 1 WHERE id = $1

-- name: revoke_key
UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL

-- name: claim
-- Take the right to execute a request: nobody had it, or who had it is gone.
INSERT INTO idempotency (key_id, idempotency_key, method, path, claim, claimed_until)
VALUES ($1, $2, $3, $4, $5, now() + $6)
ON CONFLICT (key_id, idempotency_key) DO UPDATE
SET claim = excluded.claim, claimed_until = excluded.claimed_until
WHERE idempotency.status IS NULL
    AND idempotency.claimed_until < now()
    AND idempotency.method = excluded.method
    AND idempotency.path = excluded.path
RETURNING claim

-- name: known_request
SELECT method, path, request_hash, status, headers, body
FROM idempotency
WHERE key_id = $1 AND idempotency_key = $2

-- name: keep_claim
UPDATE idempotency SET claimed_until = now() + $4
WHERE key_id = $1 AND idempotency_key = $2 AND claim = $3

-- name: answer_claim
UPDATE idempotency SET request_hash = $4, status = $5, headers = $6::jsonb, body = $7
WHERE key_id = $1 AND idempotency_key = $2 AND claim = $3

-- name: release_claim
DELETE FROM idempotency
WHERE key_id = $1 AND idempotency_key = $2 AND claim = $3 AND status IS NULL

-- name: forget_answers
DELETE FROM idempotency WHERE created_at < now() - $1::interval
