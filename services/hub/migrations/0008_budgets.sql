-- What runs and API keys may spend, and what of that is reserved for leases and spent.

-- Null: no such limit. Money is in 1e-12 US dollars.
ALTER TABLE runs ADD COLUMN max_picousd bigint CHECK (max_picousd >= 0);
ALTER TABLE runs ADD COLUMN max_tokens bigint CHECK (max_tokens >= 0);
ALTER TABLE runs ADD COLUMN max_seconds double precision CHECK (max_seconds >= 0);
ALTER TABLE runs ADD COLUMN max_errors integer CHECK (max_errors >= 0);
-- How many results stood at a fault when the run was resumed last.
ALTER TABLE runs ADD COLUMN errors_before integer NOT NULL DEFAULT 0;
CREATE INDEX runs_watched ON runs (id)
    WHERE state IN ('QUEUED', 'RUNNING') AND (max_seconds IS NOT NULL OR max_errors IS NOT NULL);

-- What API keys may spend a day, as the gateway said last: the higher version is the later word.
CREATE TABLE key_limits (
    key_id      text COLLATE "C" PRIMARY KEY,
    version     bigint NOT NULL,
    max_picousd bigint CHECK (max_picousd >= 0),
    max_tokens  bigint CHECK (max_tokens >= 0)
);

-- One row a lease of a run that is metered. It counts against the budgets of the run and, on the day (UTC) on which it
-- was given, of the API key: with what is granted while it is OPEN or LOST, with what was spent when it is CLOSED.
CREATE TABLE grants (
    run_id          text COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    number          integer NOT NULL,
    attempt         integer NOT NULL,
    key_id          text COLLATE "C" NOT NULL,
    day             date NOT NULL,
    -- LOST: the lease ran out, and what was recorded under it has not been asked for yet.
    state           text NOT NULL CHECK (state IN ('OPEN', 'LOST', 'CLOSED')),
    -- Of the holder's words the latest that was heard.
    sequence        bigint NOT NULL DEFAULT 0,
    granted_picousd bigint NOT NULL DEFAULT 0,
    granted_tokens  bigint NOT NULL DEFAULT 0,
    spent_picousd   bigint NOT NULL DEFAULT 0,
    spent_tokens    bigint NOT NULL DEFAULT 0,
    lost_at         timestamptz,
    PRIMARY KEY (run_id, number, attempt)
) WITH (fillfactor = 80);
CREATE INDEX grants_open ON grants (run_id) WHERE state = 'OPEN';
CREATE INDEX grants_lost ON grants (lost_at) WHERE state = 'LOST';

-- What the grants of a run add up to. `held` counts what is reserved, too.
CREATE TABLE run_spend (
    run_id        text COLLATE "C" PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    held_picousd  bigint NOT NULL DEFAULT 0,
    held_tokens   bigint NOT NULL DEFAULT 0,
    spent_picousd bigint NOT NULL DEFAULT 0,
    spent_tokens  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- The same of an API key and a day. Its lock orders what runs of several models reserve.
CREATE TABLE key_spend (
    key_id        text COLLATE "C" NOT NULL,
    day           date NOT NULL,
    held_picousd  bigint NOT NULL DEFAULT 0,
    held_tokens   bigint NOT NULL DEFAULT 0,
    spent_picousd bigint NOT NULL DEFAULT 0,
    spent_tokens  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (key_id, day)
) WITH (fillfactor = 50);
