-- name: insert
INSERT INTO models (name, request_id, base_url, model_id, input_usd_per_mtok, output_usd_per_mtok,
                    cached_usd_per_mtok, max_concurrency, generation, description)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT DO NOTHING
RETURNING true

-- name: insert_secret
INSERT INTO model_secrets (model, sealed) VALUES ($1, $2)

-- name: secret
SELECT sealed FROM model_secrets WHERE model = $1

-- name: secrets_after
SELECT model, sealed FROM model_secrets WHERE model > $1 ORDER BY model LIMIT $2

-- name: replace_secret
UPDATE model_secrets SET sealed = $3 WHERE model = $1 AND sealed = $2 RETURNING true

-- name: model
SELECT m.*, s.model IS NOT NULL AS has_secret FROM models m LEFT JOIN model_secrets s ON s.model = m.name
WHERE m.name = $1

-- name: model_kept
-- Whoever reads it so keeps it from being removed until the transaction ends.
SELECT m.*, EXISTS (SELECT 1 FROM model_secrets s WHERE s.model = m.name) AS has_secret FROM models m
WHERE m.name = $1
FOR KEY SHARE OF m

-- name: model_of_request
SELECT m.*, s.model IS NOT NULL AS has_secret FROM models m LEFT JOIN model_secrets s ON s.model = m.name
WHERE m.request_id = $1

-- name: names
SELECT name FROM models ORDER BY created_at DESC LIMIT 10000

-- name: list
SELECT m.*, s.model IS NOT NULL AS has_secret FROM models m LEFT JOIN model_secrets s ON s.model = m.name
WHERE $1::text IS NULL OR m.name > $1
ORDER BY m.name
LIMIT $2

-- name: lock
SELECT name FROM models WHERE name = $1 FOR UPDATE

-- name: delete
DELETE FROM models WHERE name = $1
