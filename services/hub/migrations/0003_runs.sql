-- Runs, their shards, and who works on them. The shard table is the queue.
--
-- Whatever changes shards, permits or the state of runs that share a permit pool (`pool`) holds that pool's advisory
-- lock (services/hub/runs/locks.py); only a new run does without.

CREATE TABLE runs (
    id               text COLLATE "C" PRIMARY KEY,
    request_id       uuid NOT NULL UNIQUE,
    -- The CreateRunRequest as it came, to tell a repeated request from another one.
    request          bytea NOT NULL,
    -- The API key that asked.
    key_id           text NOT NULL,
    -- `name@version` and the name alone.
    environment      text COLLATE "C" NOT NULL,
    environment_name text COLLATE "C" NOT NULL,
    -- The name of the model, or the label of the predictions.
    model            text COLLATE "C" NOT NULL,
    -- Who answers: runners, by calling an endpoint or by themselves; or the scorer, which loads what is there.
    subject_kind     text NOT NULL CHECK (subject_kind IN ('endpoint', 'builtin', 'loaded')),
    -- The permit pool: runs of one pool share one cap of calls in flight.
    pool             text COLLATE "C" NOT NULL,
    cap              integer NOT NULL CHECK (cap > 0),
    state            text NOT NULL DEFAULT 'QUEUED' CHECK (state IN
        ('QUEUED', 'RUNNING', 'SCORING', 'SUCCEEDED', 'FAILED', 'CANCELLING', 'CANCELLED', 'PAUSED')),
    state_message    text NOT NULL DEFAULT '',
    epoch            integer NOT NULL DEFAULT 1,
    priority         integer NOT NULL CHECK (priority BETWEEN -100 AND 100),
    -- A serialised RunSpec; never changes.
    spec             bytea NOT NULL,
    -- The dataset positions of a sample, ascending; null: 0, 1, 2, ...
    selection        integer[],
    trials           integer NOT NULL CHECK (trials > 0),
    planned          integer NOT NULL CHECK (planned > 0),
    shards           integer NOT NULL CHECK (shards > 0),
    -- How many of them are neither DONE nor ABANDONED. The lock on this row orders the last ones.
    shards_open      integer NOT NULL CHECK (shards_open BETWEEN 0 AND shards),
    created_at       timestamptz NOT NULL DEFAULT now(),
    -- When the first shard was leased, and when the latest one ended.
    started_at       timestamptz,
    worked_until     timestamptz,
    ended_at         timestamptz
) WITH (fillfactor = 80);

CREATE INDEX runs_newest ON runs (created_at DESC, id DESC);
CREATE INDEX runs_active ON runs (pool) WHERE state IN ('QUEUED', 'RUNNING');
CREATE INDEX runs_ending ON runs (id) WHERE state IN ('SCORING', 'CANCELLING');

CREATE TABLE shards (
    run_id     text COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    number     integer NOT NULL CHECK (number >= 0),
    pool       text COLLATE "C" NOT NULL,
    -- The first trial, counted over the run as case x trials + trial, and how many there are.
    first      integer NOT NULL CHECK (first >= 0),
    count      integer NOT NULL CHECK (count BETWEEN 1 AND 256),
    state      text NOT NULL DEFAULT 'PENDING' CHECK (state IN
        ('PENDING', 'QUEUED', 'RUNNING', 'DONE', 'ABANDONED')),
    -- Goes up with every lease: the fencing token.
    attempt    integer NOT NULL DEFAULT 0,
    -- How many leases ended in a fault.
    faults     integer NOT NULL DEFAULT 0,
    -- Of the latest lease; they stay when it ends, so that a late holder is known.
    epoch      integer NOT NULL DEFAULT 0,
    runner     text COLLATE "C" NOT NULL DEFAULT '',
    request_id text NOT NULL DEFAULT '',
    expires_at timestamptz,
    -- Goes up with every ring, over all attempts: a ring's message id is never used twice.
    ring       integer NOT NULL DEFAULT 0,
    rung_at    timestamptz,
    -- Why the latest lease ended, where it did not end well.
    reason     text NOT NULL DEFAULT '',
    ended_at   timestamptz,
    PRIMARY KEY (run_id, number)
) WITH (fillfactor = 80);

CREATE INDEX shards_pending ON shards (run_id, number) WHERE state = 'PENDING';
CREATE INDEX shards_held ON shards (pool, run_id, state) WHERE state IN ('QUEUED', 'RUNNING');
CREATE INDEX shards_working ON shards (runner, pool) WHERE state = 'RUNNING';
CREATE INDEX shards_expiring ON shards (expires_at) WHERE state = 'RUNNING';

-- Runners that said that they are there.
CREATE TABLE runners (
    id      text COLLATE "C" PRIMARY KEY,
    -- How many shards it can hold at once, and how many calls it can have in flight.
    shards  integer NOT NULL CHECK (shards > 0),
    calls   integer NOT NULL CHECK (calls >= 0),
    seen_at timestamptz NOT NULL
);

-- Calls that runners may have in flight. The sum of `granted` over a pool never passes its cap. A row is there for as
-- long as its runner holds a lease for the pool.
CREATE TABLE permits (
    pool    text COLLATE "C" NOT NULL,
    runner  text COLLATE "C" NOT NULL,
    -- The most that the runner can have in flight: it counts until the runner has said that it has less.
    granted integer NOT NULL CHECK (granted >= 0),
    -- What the runner was told last.
    told    integer NOT NULL CHECK (told >= 0 AND told <= granted),
    PRIMARY KEY (pool, runner)
);
