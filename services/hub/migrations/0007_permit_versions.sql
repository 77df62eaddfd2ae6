-- Answers about permits may arrive in any order: each has a number, and the highest one counts.
CREATE SEQUENCE permit_versions;
ALTER TABLE permits ADD COLUMN version bigint NOT NULL DEFAULT nextval('permit_versions');
-- Of a runner that holds no lease of the pool any more and did not say that its calls have ended: until then what it
-- was granted still counts. Null: it holds a lease.
ALTER TABLE permits ADD COLUMN free_at timestamptz;
COMMENT ON TABLE permits IS 'A row is there while its runner holds a lease for the pool, and until free_at afterwards.';
