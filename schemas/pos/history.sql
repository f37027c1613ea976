-- The oracle of the demo and the tests: triggers that write every change of every table in `public` into a history, in the same
-- transaction as the change. What commits is in it, what rolls back is not, whatever process dies. Never published.
--
-- Per key the order of `seq` is the order of commits: two transactions that change one row wait for each other.

CREATE SCHEMA tillstream_oracle;
CREATE TABLE tillstream_oracle.history (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tbl text NOT NULL,
    op  text NOT NULL,
    key jsonb,
    row jsonb,
    xid bigint NOT NULL DEFAULT (pg_current_xact_id()::xid::text::bigint)
);

-- Arguments: the table's name (a partition's trigger would name the partition), then the key columns (none: keyless).
CREATE FUNCTION tillstream_oracle.record() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    old_row jsonb; new_row jsonb; old_key jsonb; new_key jsonb;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO tillstream_oracle.history (tbl, op) VALUES (TG_ARGV[0], 'truncate');
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN old_row := to_jsonb(OLD); END IF;
    IF TG_OP <> 'DELETE' THEN new_row := to_jsonb(NEW); END IF;
    IF TG_NARGS > 1 THEN
        SELECT jsonb_object_agg(k, old_row -> k) FILTER (WHERE old_row IS NOT NULL), jsonb_object_agg(k, new_row -> k) FILTER (WHERE new_row IS NOT NULL)
        INTO old_key, new_key FROM unnest(TG_ARGV[1:]) k;
    ELSE
        old_key := old_row; new_key := new_row;
    END IF;
    IF TG_OP = 'UPDATE' AND old_key <> new_key THEN
        -- A changed key is two facts: the old row is gone, a new one is there.
        INSERT INTO tillstream_oracle.history (tbl, op, key, row) VALUES (TG_ARGV[0], 'delete', old_key, NULL), (TG_ARGV[0], 'insert', new_key, new_row);
    ELSE
        INSERT INTO tillstream_oracle.history (tbl, op, key, row) VALUES (TG_ARGV[0], lower(TG_OP), coalesce(new_key, old_key), new_row);
    END IF;
    RETURN NULL;
END $$;

DO $$
DECLARE t record; arguments text;
BEGIN
    FOR t IN SELECT c.oid, c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition LOOP
        SELECT string_agg(quote_literal(name), ', ' ORDER BY place) INTO arguments FROM (
            SELECT t.relname AS name, 0 AS place
            UNION ALL
            SELECT a.attname, k.place FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, place)
            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum WHERE i.indrelid = t.oid AND i.indisprimary) names;
        EXECUTE format('CREATE TRIGGER tillstream_oracle AFTER INSERT OR UPDATE OR DELETE ON public.%I FOR EACH ROW EXECUTE FUNCTION tillstream_oracle.record(%s)', t.relname, arguments);
        EXECUTE format('CREATE TRIGGER tillstream_oracle_truncate AFTER TRUNCATE ON public.%I FOR EACH STATEMENT EXECUTE FUNCTION tillstream_oracle.record(%s)', t.relname, arguments);
    END LOOP;
END $$;
