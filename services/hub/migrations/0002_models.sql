-- Registered endpoints. Their secrets are in a table of their own, so that no list can ever select one.

CREATE TABLE models (
    name                text COLLATE "C" PRIMARY KEY,
    request_id          uuid NOT NULL UNIQUE,
    base_url            text NOT NULL,
    model_id            text NOT NULL,
    -- US dollars per million tokens, as decimal strings; null is unknown.
    input_usd_per_mtok  text,
    output_usd_per_mtok text,
    cached_usd_per_mtok text,
    max_concurrency     integer NOT NULL CHECK (max_concurrency BETWEEN 1 AND 100000),
    generation          jsonb NOT NULL,
    description         text NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE model_secrets (
    model  text COLLATE "C" PRIMARY KEY REFERENCES models (name) ON DELETE CASCADE,
    -- Key id, nonce and AES-256-GCM ciphertext.
    sealed bytea NOT NULL
);
