-- The tables of a PostgreSQL token store of schema version 3, as the last tree before version 4 made them with partitions=3.
CREATE SCHEMA "vault_schema";
CREATE TABLE "vault_schema".tokens (
    revision bigint NOT NULL,
    key_version bigint NOT NULL,
    status bigint NOT NULL,
    created_ms bigint NOT NULL,
    reference bytea NOT NULL,
    pan_fingerprint bytea NOT NULL,
    seal bytea NOT NULL,
    requestor text COLLATE "C" NOT NULL,
    token text COLLATE "C" NOT NULL PRIMARY KEY,
    program bytea NOT NULL,
    last4_key bytea NOT NULL,
    customer text COLLATE "C" NOT NULL,
    body bytea NOT NULL
) PARTITION BY HASH (token);
CREATE TABLE "vault_schema".tokens_0 PARTITION OF "vault_schema".tokens FOR VALUES WITH (MODULUS 3, REMAINDER 0) WITH (fillfactor = 85);
CREATE TABLE "vault_schema".tokens_1 PARTITION OF "vault_schema".tokens FOR VALUES WITH (MODULUS 3, REMAINDER 1) WITH (fillfactor = 85);
CREATE TABLE "vault_schema".tokens_2 PARTITION OF "vault_schema".tokens FOR VALUES WITH (MODULUS 3, REMAINDER 2) WITH (fillfactor = 85);
CREATE INDEX tokens_by_reference ON "vault_schema".tokens (reference);
CREATE INDEX tokens_by_pan_fingerprint ON "vault_schema".tokens (pan_fingerprint, token);
CREATE INDEX tokens_by_group ON "vault_schema".tokens (requestor, program, status, created_ms, token);
CREATE INDEX tokens_by_customer ON "vault_schema".tokens (customer, token) WHERE customer <> '';
CREATE INDEX tokens_by_last4_key ON "vault_schema".tokens (last4_key, token) WHERE length(last4_key) > 0;
CREATE TABLE "vault_schema".token_counts (
    tokens bigint NOT NULL,
    status bigint NOT NULL,
    shard bigint NOT NULL,
    requestor text COLLATE "C" NOT NULL,
    program bytea NOT NULL,
    PRIMARY KEY (requestor, program, status, shard)
) WITH (fillfactor = 20);
CREATE TABLE "vault_schema".events (
    number bigint NOT NULL,
    stream bytea NOT NULL,
    mac bytea NOT NULL,
    reference bytea NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (stream, number)
);
CREATE TABLE "vault_schema".event_index (
    number bigint NOT NULL,
    reference bytea NOT NULL,
    use_id bytea NOT NULL,
    stream bytea NOT NULL,
    PRIMARY KEY (reference, use_id, stream, number)
);
CREATE TABLE "vault_schema".domains (digest bytea PRIMARY KEY, document bytea NOT NULL);
CREATE TABLE "vault_schema".meta (name text COLLATE "C" PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE "vault_schema".schema_version (version integer NOT NULL);
INSERT INTO "vault_schema".schema_version VALUES (3);
