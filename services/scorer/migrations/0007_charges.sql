-- What results that were recorded under a lease count for against budgets. Only where there are budgets: what is not
-- known of a call counts as the most that it can have been.
CREATE TABLE charges (
    run_id  text NOT NULL,
    shard   text NOT NULL,
    attempt int NOT NULL,
    picousd bigint NOT NULL,
    tokens  bigint NOT NULL,
    PRIMARY KEY (run_id, shard, attempt)
);
