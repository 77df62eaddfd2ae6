-- API keys, and the answers that repeated requests get.

CREATE TABLE api_keys (
    id text PRIMARY KEY,
    name text NOT NULL,
    -- sha256 of the key in lower-case hex; the key itself is known to its holder only.
    hash text NOT NULL UNIQUE,
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);

-- One row per `Idempotency-Key` of a caller. A row without a status is a claim: somebody executes the request.
CREATE TABLE idempotency (
    key_id text NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    idempotency_key text NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    claim uuid NOT NULL,
    -- A claim that nobody keeps is over at this time: its holder died.
    claimed_until timestamptz NOT NULL,
    -- sha256 of the body; set with the answer, because uploads are hashed as they arrive.
    request_hash text,
    status int,
    headers jsonb,
    body bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, idempotency_key)
);

CREATE INDEX idempotency_created_at ON idempotency (created_at);
