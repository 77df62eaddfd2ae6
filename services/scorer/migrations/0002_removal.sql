-- A run that was removed keeps its row, so that no late lease makes it anew.
ALTER TABLE runs ADD COLUMN removed_at timestamptz;

-- Whether an object with a long answer is still named by anybody.
CREATE INDEX results_payloads ON results (payload_digest) WHERE payload_digest IS NOT NULL;
