-- What the connector NAME writes to. `_version` and `_deleted` are the sink's own: they let it tell an older change from a newer one.
CREATE TABLE stock_level (
    ingredient_id bigint NOT NULL,
    location_id bigint NOT NULL,
    on_hand numeric NOT NULL,
    updated_at timestamptz,
    _version text COLLATE "C" NOT NULL,
    _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY (ingredient_id, location_id)
);
-- How far each lane has come.
CREATE TABLE tillstream_mark (
    connector text NOT NULL,
    partition integer NOT NULL,
    lane integer NOT NULL,
    mark bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (connector, partition, lane)
);
