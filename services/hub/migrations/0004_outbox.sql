-- Events that are published after the transaction that they belong to.

CREATE TABLE outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject    text NOT NULL,
    payload    bytea NOT NULL,
    -- Two hubs may publish the same row: JetStream drops the second by this id.
    message_id text NOT NULL DEFAULT gen_random_uuid()::text,
    created_at timestamptz NOT NULL DEFAULT now()
);
