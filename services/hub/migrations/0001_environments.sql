-- Environments, their versions, and the uploads on their way to being one.

CREATE TABLE environments (
    name           text COLLATE "C" PRIMARY KEY,
    -- The highest version by semver precedence that is not yanked; null when all are.
    latest_version text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- When the latest version was published.
    updated_at     timestamptz NOT NULL DEFAULT now()
);

-- A row is written once, as the last act of a publication: whatever has a row can be run.
CREATE TABLE versions (
    digest           text PRIMARY KEY,
    environment      text COLLATE "C" NOT NULL REFERENCES environments (name),
    version          text COLLATE "C" NOT NULL,
    -- Sorts as semver precedence does.
    precedence       text COLLATE "C" NOT NULL,
    inputs_digest    text NOT NULL,
    targets_digest   text NOT NULL,
    -- Empty without an oracle.
    solutions_digest text NOT NULL,
    scoring_digest   text NOT NULL,
    scoring_json     text NOT NULL,
    materialiser     text NOT NULL,
    cases            integer NOT NULL CHECK (cases > 0),
    primary_rule     text NOT NULL,
    split            text NOT NULL,
    title            text NOT NULL,
    description      text NOT NULL,
    category         text NOT NULL,
    tags             text[] NOT NULL,
    license          text NOT NULL,
    generation       jsonb NOT NULL,
    verification     jsonb NOT NULL,
    manifest_yaml    text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    yanked_at        timestamptz,
    UNIQUE (environment, version)
);

CREATE INDEX versions_by_precedence ON versions (environment, precedence DESC, version DESC)
    WHERE yanked_at IS NULL;

-- The promise that a published version never changes, kept even against our own mistakes.
CREATE FUNCTION refuse_version_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - 'yanked_at' = to_jsonb(OLD) - 'yanked_at' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a published version never changes and is never deleted';
END
$$;

CREATE TRIGGER versions_never_change BEFORE UPDATE OR DELETE ON versions
    FOR EACH ROW EXECUTE FUNCTION refuse_version_change();

CREATE TABLE publications (
    id                  text PRIMARY KEY,
    request_id          uuid NOT NULL UNIQUE,
    -- Of the uploaded zip, which is the object `uploads/<sha256>.zip`.
    upload_sha256       text NOT NULL,
    upload_bytes        bigint NOT NULL,
    state               text NOT NULL DEFAULT 'UPLOADED' CHECK (state IN
        ('UPLOADED', 'VALIDATING', 'MATERIALISING', 'VERIFYING', 'READY', 'REJECTED')),
    problems            jsonb NOT NULL DEFAULT '[]',
    -- Known from validation on.
    digest              text,
    environment_version text,
    cases               integer,
    verification        jsonb,
    already_published   boolean NOT NULL DEFAULT false,
    -- Who works on it, and until when nobody else may.
    claim_token         uuid,
    claimed_until       timestamptz NOT NULL DEFAULT now(),
    -- How often the work ended without an answer.
    deaths              integer NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL DEFAULT now(),
    ended_at            timestamptz
);

CREATE INDEX publications_open ON publications (claimed_until, created_at)
    WHERE state NOT IN ('READY', 'REJECTED');

-- The same zip again is answered at once.
CREATE INDEX publications_ready ON publications (upload_sha256) WHERE state = 'READY';
