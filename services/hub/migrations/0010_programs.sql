-- The program of a version's harness, as runs have to know it; empty for harnesses without one.
ALTER TABLE versions ADD COLUMN harness_json text NOT NULL DEFAULT '';
