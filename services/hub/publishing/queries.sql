-- name: insert_publication
-- A zip that was published before is known without another look.
WITH known AS (
    SELECT digest, environment_version, cases, verification
    FROM publications WHERE upload_sha256 = $3 AND state = 'READY' LIMIT 1
)
INSERT INTO publications (id, request_id, upload_sha256, upload_bytes, wanted_name, wanted_version, state, digest,
                          environment_version, cases, verification, already_published, ended_at)
SELECT $1, $2, $3, $4, $5, $6, CASE WHEN known.digest IS NULL THEN 'UPLOADED' ELSE 'READY' END, known.digest,
       known.environment_version, known.cases, known.verification, known.digest IS NOT NULL,
       CASE WHEN known.digest IS NOT NULL THEN now() END
FROM (SELECT 1) AS one LEFT JOIN known ON true
ON CONFLICT (request_id) DO NOTHING

-- name: publication
SELECT id, state, problems, digest, environment_version, cases, verification, already_published, created_at
FROM publications WHERE id = $1

-- name: publication_of_request
SELECT id, state, problems, digest, environment_version, cases, verification, already_published, created_at
FROM publications WHERE request_id = $1

-- name: claim
UPDATE publications SET claim_token = $1, claimed_until = now() + $2
WHERE id = (
    SELECT id FROM publications
    WHERE state NOT IN ('READY', 'REJECTED') AND claimed_until <= now()
    ORDER BY claimed_until, created_at
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING id, upload_sha256, wanted_name, wanted_version

-- name: renew
UPDATE publications SET claimed_until = now() + $3
WHERE id = $1 AND claim_token = $2
RETURNING true

-- name: release
UPDATE publications SET claim_token = NULL, claimed_until = now() + $3
WHERE id = $1 AND claim_token = $2

-- name: advance
UPDATE publications
SET state = $3, digest = coalesce($4, digest), environment_version = coalesce($5, environment_version),
    cases = coalesce($6, cases)
WHERE id = $1 AND claim_token = $2
RETURNING true

-- name: count_death
UPDATE publications SET deaths = deaths + 1, claim_token = NULL, claimed_until = now() + $3
WHERE id = $1 AND claim_token = $2 AND deaths + 1 < $4
RETURNING true

-- name: reject
UPDATE publications
SET state = 'REJECTED', problems = $3, verification = $4, claim_token = NULL, ended_at = now()
WHERE id = $1 AND claim_token = $2
RETURNING true

-- name: finish
UPDATE publications
SET state = 'READY', digest = $3, environment_version = $4, cases = $5, verification = $6, already_published = $7,
    problems = '[]', claim_token = NULL, ended_at = now()
WHERE id = $1 AND claim_token = $2
RETURNING true

-- name: insert_environment
INSERT INTO environments (name) VALUES ($1) ON CONFLICT (name) DO NOTHING

-- name: lock_environment
SELECT name FROM environments WHERE name = $1 FOR UPDATE

-- name: insert_version
INSERT INTO versions (digest, environment, version, precedence, inputs_digest, targets_digest, solutions_digest,
                      scoring_digest, scoring_json, materialiser, cases, primary_rule, split, title, description,
                      category, tags, license, generation, verification, manifest_yaml, harness_json, competition_run,
                      competition_about)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)
ON CONFLICT DO NOTHING
RETURNING true

-- name: point_at_latest
UPDATE environments AS e
SET latest_version = latest.version, updated_at = coalesce(latest.created_at, e.updated_at)
FROM (SELECT 1) AS one LEFT JOIN LATERAL (
    SELECT version, created_at FROM versions
    WHERE environment = $1 AND yanked_at IS NULL
    ORDER BY precedence DESC, version DESC
    LIMIT 1
) AS latest ON true
WHERE e.name = $1

-- name: highest_version
SELECT version FROM versions WHERE environment = $1 ORDER BY precedence DESC, version DESC LIMIT 1

-- name: yank
UPDATE versions SET yanked_at = now() WHERE environment = $1 AND version = $2 AND yanked_at IS NULL

-- name: version_by_digest
SELECT * FROM versions WHERE digest = $1

-- name: version_by_name
SELECT * FROM versions WHERE environment = $1 AND version = $2

-- name: latest_version
SELECT v.* FROM environments e JOIN versions v ON v.environment = e.name AND v.version = e.latest_version
WHERE e.name = $1

-- name: version_numbers
SELECT version FROM versions WHERE environment = $1 AND yanked_at IS NULL
ORDER BY precedence DESC, version DESC LIMIT 10

-- name: list_versions
SELECT * FROM versions
WHERE environment = $1 AND yanked_at IS NULL AND ($2::text IS NULL OR (precedence, version) < ($2, $3))
ORDER BY precedence DESC, version DESC
LIMIT $4

-- name: environment_names
SELECT name FROM environments WHERE latest_version IS NOT NULL ORDER BY updated_at DESC LIMIT 10000

-- name: environment
SELECT e.name, e.latest_version, e.created_at, e.updated_at, v.title, v.description, v.category, v.tags, v.cases
FROM environments e LEFT JOIN versions v ON v.environment = e.name AND v.version = e.latest_version
WHERE e.name = $1

-- name: list_environments
SELECT e.name, e.latest_version, e.created_at, e.updated_at, v.title, v.description, v.category, v.tags, v.cases
FROM environments e JOIN versions v ON v.environment = e.name AND v.version = e.latest_version
WHERE $1::text IS NULL OR e.name > $1
ORDER BY e.name
LIMIT $2

-- name: wanted_uploads
-- Of these uploads those whose publication is under way; an ended one has its own bundle.
SELECT DISTINCT upload_sha256 FROM publications
WHERE upload_sha256 = ANY($1::text[]) AND state NOT IN ('READY', 'REJECTED')
