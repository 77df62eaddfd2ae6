-- What all runs of a key may spend a day (UTC); null: no limit. Money is in 1e-12 US dollars.
ALTER TABLE api_keys ADD COLUMN daily_picousd bigint CHECK (daily_picousd >= 0);
ALTER TABLE api_keys ADD COLUMN daily_tokens bigint CHECK (daily_tokens >= 0);
-- Goes up with every change of these: who hears of them late tells the later ones by it.
ALTER TABLE api_keys ADD COLUMN budget_version bigint NOT NULL DEFAULT 0;
