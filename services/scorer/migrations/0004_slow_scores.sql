-- Scores that are made after the result is stored: one row for each, inserted with the result, deleted with the score.
CREATE TABLE pending_scores (
    run_id      text NOT NULL,
    scoring     smallint NOT NULL,
    rule        smallint NOT NULL,
    position    int NOT NULL,
    trial       int NOT NULL,
    -- From when on it may be taken. A claim moves it to when the claim ends, a fault to when it is tried again.
    due_at      timestamptz NOT NULL DEFAULT now(),
    -- Whose claim it is: only who shows the token writes the score.
    token       uuid,
    -- How often it was claimed, those times left out when it was handed back.
    claims      smallint NOT NULL DEFAULT 0,
    -- How often it could not be judged without the response's doing, and why the last time.
    faults      smallint NOT NULL DEFAULT 0,
    fault       text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, scoring, rule, position, trial)
);

CREATE INDEX pending_scores_claimed ON pending_scores (token) WHERE token IS NOT NULL;
-- How long the oldest one waits.
CREATE INDEX pending_scores_age ON pending_scores (created_at);
