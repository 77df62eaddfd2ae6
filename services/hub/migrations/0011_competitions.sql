-- What runs need of a competition.yaml bundle, and what people read of it; both JSON, and empty for other bundles.
ALTER TABLE versions ADD COLUMN competition_run text NOT NULL DEFAULT '',
                     ADD COLUMN competition_about text NOT NULL DEFAULT '';

-- Such bundles do not say how they are called: the name and version that were asked for with the upload, if any.
ALTER TABLE publications ADD COLUMN wanted_name text NOT NULL DEFAULT '',
                         ADD COLUMN wanted_version text NOT NULL DEFAULT '';
