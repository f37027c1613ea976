//! The cases. Steps run in session 0 or 1; 8 runs in session 0 and has to fail; 9 captures what there is and ends that run.

/// One case.
pub(super) struct Case {
    /// What it is about, after which of PostgreSQL's tests.
    pub(super) name: &'static str,
    /// First major version that knows the statements.
    pub(super) since: i32,
    pub(super) setup: &'static str,
    pub(super) publication: &'static str,
    pub(super) tables: &'static [&'static str],
    /// Of these without a key.
    pub(super) keyless: &'static [&'static str],
    pub(super) steps: &'static [(usize, &'static str)],
    /// At least so many events: a case that captures nothing shows nothing.
    pub(super) events: usize,
}

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, s text)";
const FOR_T: &str = "FOR TABLE t";

const fn on_t(name: &'static str, events: usize, steps: &'static [(usize, &'static str)]) -> Case {
    Case { name, since: 14, setup: T, publication: FOR_T, tables: &["t"], keyless: &[], steps, events }
}

#[rustfmt::skip] // Scripts, a statement a line.
pub(super) const ROWS: &[Case] = &[
    Case {
        name: "basic changes under each identity (subscription 001)", since: 14, events: 1200,
        setup: "CREATE TABLE t (id int PRIMARY KEY, n int, s text); CREATE TABLE f (id int, n int); ALTER TABLE f REPLICA IDENTITY FULL;
                CREATE TABLE i (id int PRIMARY KEY, code text NOT NULL, n int); CREATE UNIQUE INDEX i_code ON i (code); ALTER TABLE i REPLICA IDENTITY USING INDEX i_code;
                CREATE TABLE c (a int, b text, n int, PRIMARY KEY (b, a)) ",
        publication: "FOR TABLE t, f, i, c", tables: &["t", "f", "i", "c"], keyless: &["f"],
        steps: &[
            (0, "INSERT INTO t SELECT g, g, 'x' FROM generate_series(1, 500) g; UPDATE t SET n = -n WHERE id % 2 = 0; DELETE FROM t WHERE id > 400"),
            (0, "INSERT INTO f SELECT g % 3, g FROM generate_series(1, 50) g; UPDATE f SET n = n + 100 WHERE id = 1; DELETE FROM f WHERE id = 2; INSERT INTO f VALUES (NULL, NULL), (NULL, NULL); DELETE FROM f WHERE id IS NULL"),
            (0, "INSERT INTO i SELECT g, 'c' || g, 0 FROM generate_series(1, 20) g; UPDATE i SET id = id + 100; UPDATE i SET code = 'd' || id WHERE id > 110; DELETE FROM i WHERE code = 'c1'"),
            (0, "INSERT INTO c SELECT g, 'b' || g % 4, g FROM generate_series(1, 40) g; UPDATE c SET b = 'moved' WHERE a < 4; UPDATE c SET n = 0; DELETE FROM c WHERE a > 35"),
            (9, ""),
            (0, "UPDATE t SET id = id + 1000; DELETE FROM t; INSERT INTO t VALUES (1, 1, 'again')"),
        ],
    },
    Case {
        name: "foreign keys cascade (subscription 003)", since: 14, events: 12,
        setup: "CREATE TABLE p (id int PRIMARY KEY, n int); CREATE TABLE k (id int PRIMARY KEY, p int REFERENCES p ON UPDATE CASCADE ON DELETE SET NULL)",
        publication: "FOR TABLE p, k", tables: &["p", "k"], keyless: &[],
        steps: &[(0, "INSERT INTO p VALUES (1, 0), (2, 0); INSERT INTO k VALUES (1, 1), (2, 2), (3, 1)"), (0, "UPDATE p SET id = 10 WHERE id = 1; DELETE FROM p WHERE id = 2; DELETE FROM p")],
    },
    Case {
        name: "values out of line, each storage (test_decoding toast)", since: 14, events: 10,
        setup: "CREATE TABLE t (id int PRIMARY KEY, ext text, main text, n int); ALTER TABLE t ALTER ext SET STORAGE EXTERNAL, ALTER main SET STORAGE MAIN",
        publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[
            (0, "INSERT INTO t SELECT g, repeat('a', 6000), repeat('b', 20000), 0 FROM generate_series(1, 4) g"),
            (0, "UPDATE t SET n = 1; UPDATE t SET main = 'short' WHERE id = 1; UPDATE t SET ext = ext || 'x' WHERE id = 2; BEGIN; UPDATE t SET n = 2; UPDATE t SET ext = NULL WHERE id = 3; UPDATE t SET n = 3; COMMIT"),
            (9, ""),
            (0, "UPDATE t SET n = 4; DELETE FROM t WHERE id = 4"),
        ],
    },
    Case {
        name: "a large key under identity FULL and an index (100 bugs)", since: 14, events: 8,
        setup: "CREATE TABLE t (id text, n int, u text NOT NULL); CREATE UNIQUE INDEX t_u ON t (u); ALTER TABLE t REPLICA IDENTITY USING INDEX t_u; ALTER TABLE t ALTER id SET STORAGE EXTERNAL, ALTER u SET STORAGE EXTERNAL",
        publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (repeat('i', 9000), 0, repeat('u', 2500)); UPDATE t SET n = 1; UPDATE t SET u = repeat('v', 2500); UPDATE t SET n = 2; UPDATE t SET id = 'small'; DELETE FROM t"), (0, "INSERT INTO t VALUES ('a', 1, 'b')")],
    },
    Case {
        name: "many rows in one WAL record (test_decoding ddl)", since: 14, events: 3000, setup: T, publication: FOR_T, tables: &["t"], keyless: &[],
        // COPY and multi-row inserts share an LSN.
        steps: &[(0, "INSERT INTO t SELECT g, g, 'row' FROM generate_series(1, 1000) g"), (0, "CREATE TEMP TABLE src AS SELECT g AS id, -g AS n, 'copied' AS s FROM generate_series(1001, 2000) g; INSERT INTO t SELECT * FROM src; INSERT INTO t SELECT id, 0, 's' FROM src ON CONFLICT (id) DO UPDATE SET n = excluded.n")],
    },
    Case {
        name: "INSERT ON CONFLICT and speculative inserts (test_decoding ddl)", since: 14, events: 6,
        setup: T, publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (1, 1, 'a') ON CONFLICT DO NOTHING; INSERT INTO t VALUES (1, 2, 'b') ON CONFLICT DO NOTHING; INSERT INTO t VALUES (1, 3, 'c') ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n; INSERT INTO t VALUES (2, 1, 'x'), (3, 1, 'y') ON CONFLICT (id) DO UPDATE SET n = 0; INSERT INTO t SELECT g, 0, 'z' FROM generate_series(1, 5) g ON CONFLICT (id) DO UPDATE SET s = excluded.s")],
    },
    Case {
        name: "MERGE (subscription 015 and later)", since: 15, events: 6, setup: T, publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c'); MERGE INTO t USING (VALUES (1, 10), (2, NULL), (9, 90)) v (id, n) ON t.id = v.id WHEN MATCHED AND v.n IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET n = v.n WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.n, 'm')")],
    },
    Case {
        name: "keys that a collation calls equal (subscription 012)", since: 14, events: 5,
        setup: "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE t (id text COLLATE any_case PRIMARY KEY, n int)",
        publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES ('abc', 1), ('x', 2); UPDATE t SET n = 5 WHERE id = 'ABC'; UPDATE t SET id = 'ABC' WHERE id = 'abc'; DELETE FROM t WHERE id = 'X'")],
    },
    Case {
        name: "keys over time (subscription 034)", since: 18, events: 4,
        setup: "CREATE EXTENSION btree_gist; CREATE TABLE t (id int, valid daterange, n int, PRIMARY KEY (id, valid WITHOUT OVERLAPS)); ALTER TABLE t REPLICA IDENTITY FULL",
        publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (1, '[2026-01-01,2026-02-01)', 1), (1, '[2026-02-01,2026-03-01)', 2); UPDATE t SET n = 3 WHERE valid @> date '2026-01-05'; DELETE FROM t WHERE n = 2")],
    },
    Case {
        name: "what is no table's change is none (subscription 009, 036)", since: 14, events: 2,
        setup: "CREATE TABLE t (id serial PRIMARY KEY, n int); CREATE MATERIALIZED VIEW m AS SELECT * FROM t; CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
        publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t (n) VALUES (1); REFRESH MATERIALIZED VIEW m; INSERT INTO u VALUES (1); CREATE TEMP TABLE x AS SELECT 1 AS a; SELECT nextval('t_id_seq'); SELECT setval('t_id_seq', 500); SELECT lo_create(0); INSERT INTO t (n) VALUES (2); SELECT id FROM t FOR UPDATE; REINDEX TABLE t; ANALYZE t"), (0, "VACUUM FULL t"), (0, "CLUSTER t USING t_pkey")],
    },
    Case {
        name: "TRUNCATE of one, of several, with cascade (subscription 010, test_decoding truncate)", since: 14, events: 9,
        setup: "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)",
        publication: "FOR TABLE t, a, b", tables: &["t", "a", "b"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (1), (2); TRUNCATE t; INSERT INTO t VALUES (1)"), (0, "BEGIN; INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1); TRUNCATE a CASCADE; INSERT INTO a VALUES (2); COMMIT"), (0, "BEGIN; TRUNCATE t, a, b; ROLLBACK; TRUNCATE t, b RESTART IDENTITY")],
    },
    Case {
        name: "row locks and multixacts (test_decoding mxact)", since: 14, events: 4, setup: T, publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (1, 1, 'a')"), (0, "BEGIN; SELECT * FROM t FOR KEY SHARE"), (1, "BEGIN; SELECT * FROM t FOR KEY SHARE; UPDATE t SET n = 2; COMMIT"), (0, "COMMIT; UPDATE t SET n = 3; DELETE FROM t")],
    },
];

#[rustfmt::skip]
pub(super) const TRANSACTIONS: &[Case] = &[
    on_t("savepoints and rollbacks, nested (subscription 016, 018, test_decoding xact)", 7, &[
        (0, "BEGIN; INSERT INTO t VALUES (1, 0, ''); SAVEPOINT a; INSERT INTO t VALUES (2, 0, ''); SAVEPOINT b; INSERT INTO t VALUES (3, 0, ''); ROLLBACK TO a; INSERT INTO t VALUES (4, 0, ''); SAVEPOINT b; UPDATE t SET n = 1; RELEASE b; COMMIT"),
        (0, "BEGIN; INSERT INTO t VALUES (5, 0, ''); ROLLBACK"),
        (0, "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (6, 0, ''); RELEASE a; SAVEPOINT a; DELETE FROM t WHERE id = 1; ROLLBACK TO a; SAVEPOINT b; UPDATE t SET id = 7 WHERE id = 6; RELEASE b; RELEASE a; COMMIT"),
    ]),
    on_t("a subtransaction writes before its parent does (test_decoding subxact_without_top)", 3, &[
        (0, "BEGIN; SAVEPOINT a; SAVEPOINT b; INSERT INTO t VALUES (1, 0, ''); RELEASE b; RELEASE a; INSERT INTO t VALUES (2, 0, ''); COMMIT; UPDATE t SET n = 1 WHERE id = 1"),
    ]),
    on_t("a large transaction that spills, with aborted parts (subscription 015, 018, test_decoding spill)", 9000, &[
        (0, "BEGIN; INSERT INTO t SELECT g, 0, repeat('x', 50) FROM generate_series(1, 5000) g; SAVEPOINT a; INSERT INTO t SELECT g, 0, repeat('y', 50) FROM generate_series(5001, 9000) g; ROLLBACK TO a; INSERT INTO t SELECT g, 0, 'z' FROM generate_series(9001, 11000) g; SAVEPOINT b; UPDATE t SET n = 1 WHERE id % 5 = 0; DELETE FROM t WHERE id % 7 = 0; RELEASE b; COMMIT"),
    ]),
    on_t("two large transactions interleaved, the later one first to commit (test_decoding concurrent_stream)", 4000, &[
        (0, "BEGIN; INSERT INTO t SELECT g, 0, repeat('x', 60) FROM generate_series(1, 2000) g"),
        (1, "BEGIN; INSERT INTO t SELECT g, 1, repeat('y', 60) FROM generate_series(3001, 5000) g"),
        (0, "UPDATE t SET n = 5 WHERE id < 100"), (1, "UPDATE t SET n = 6 WHERE id > 4900; COMMIT"), (0, "DELETE FROM t WHERE id = 50; COMMIT"),
    ]),
    on_t("a transaction open across runs of capture (recovery 006, decoding across restart)", 6, &[
        (0, "INSERT INTO t VALUES (1, 0, '')"), (0, "BEGIN; INSERT INTO t VALUES (2, 0, '')"), (1, "INSERT INTO t VALUES (3, 0, '')"), (9, ""),
        (1, "UPDATE t SET n = 1 WHERE id = 3"), (9, ""), (0, "UPDATE t SET n = 2 WHERE id = 2; COMMIT"), (9, ""), (1, "DELETE FROM t WHERE id = 2"),
    ]),
    on_t("five hundred savepoints (test_decoding ddl, subscription 016)", 500, &[
        (0, "DO $$ BEGIN FOR g IN 1..500 LOOP BEGIN INSERT INTO t VALUES (g, 0, 's'); IF g % 10 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN INSERT INTO t VALUES (-g, 1, 'r'); END; END LOOP; END $$"),
    ]),
    on_t("empty transactions between others (subscription 100, DBZ and others)", 2, &[
        (0, "INSERT INTO t VALUES (1, 0, ''); CREATE TABLE other (id int); INSERT INTO other VALUES (1); BEGIN; SELECT pg_current_xact_id(); COMMIT; INSERT INTO other VALUES (2)"),
        (9, ""), (0, "INSERT INTO other VALUES (3)"), (9, ""), (0, "INSERT INTO other VALUES (4); INSERT INTO t VALUES (2, 0, '')"),
    ]),
    on_t("messages beside and inside transactions, some rolled back (subscription 020, test_decoding messages)", 5, &[
        (0, "SELECT pg_logical_emit_message(false, 'm', 'outside'); BEGIN; INSERT INTO t VALUES (1, 0, ''); SELECT pg_logical_emit_message(true, 'm', 'inside'); SELECT pg_logical_emit_message(false, 'm', 'at once'); COMMIT"),
        (0, "BEGIN; SELECT pg_logical_emit_message(true, 'm', 'gone'); INSERT INTO t VALUES (2, 0, ''); ROLLBACK; INSERT INTO t VALUES (3, 0, '')"),
    ]),
    on_t("deferred constraint triggers write at commit (subscription 003)", 3, &[
        (0, "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE t SET n = n + 1 WHERE id = NEW.id AND n < 3; RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER later AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION later(); BEGIN; INSERT INTO t VALUES (1, 0, ''); INSERT INTO t VALUES (2, 5, ''); COMMIT"),
    ]),
    on_t("a statement that fails leaves nothing (test_decoding ddl)", 2, &[
        (0, "INSERT INTO t VALUES (1, 0, '')"), (8, "BEGIN; INSERT INTO t VALUES (2, 0, ''); INSERT INTO t VALUES (1, 0, '')"), (8, "INSERT INTO t SELECT g % 3, 0, '' FROM generate_series(5, 9) g"), (0, "INSERT INTO t VALUES (2, 1, 'then')"),
    ]),
];

#[rustfmt::skip]
pub(super) const DEFINITIONS: &[Case] = &[
    on_t("tables rewritten among changes (subscription 006, test_decoding rewrite)", 7, &[
        (0, "INSERT INTO t VALUES (1, 1, 'a'); ALTER TABLE t ADD v double precision DEFAULT random(); INSERT INTO t VALUES (2, 2, 'b', 5)"),
        (0, "BEGIN; UPDATE t SET n = 10 WHERE id = 1; ALTER TABLE t DROP v; ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET n = 5000000000 WHERE id = 2; COMMIT"),
        (0, "VACUUM FULL t"), (0, "CLUSTER t USING t_pkey"), (0, "UPDATE t SET n = 1; DELETE FROM t WHERE id = 1"),
    ]),
    on_t("definitions change within a transaction and its savepoints (subscription 017, 019)", 6, &[
        (0, "BEGIN; INSERT INTO t VALUES (1, 0, ''); ALTER TABLE t ADD c int; INSERT INTO t VALUES (2, 0, '', 2); SAVEPOINT a; ALTER TABLE t ADD d int; INSERT INTO t VALUES (3, 0, '', 3, 3); ROLLBACK TO a; INSERT INTO t VALUES (4, 0, '', 4); SAVEPOINT a; ALTER TABLE t DROP c; UPDATE t SET n = 1 WHERE id = 1; RELEASE a; INSERT INTO t VALUES (5, 0, ''); COMMIT"),
        (0, "BEGIN; ALTER TABLE t ADD e int; INSERT INTO t VALUES (6, 0, '', 6); ROLLBACK; INSERT INTO t VALUES (7, 0, '')"),
    ]),
    on_t("a change waits for a definition and the other way round (test_decoding concurrent_ddl_dml)", 4, &[
        (0, "BEGIN; INSERT INTO t VALUES (1, 0, '')"), (1, "CREATE TABLE other (id int)"), (0, "UPDATE t SET n = 1; COMMIT"),
        (1, "BEGIN; ALTER TABLE t ADD c int DEFAULT 5"), (1, "INSERT INTO t VALUES (2, 0, '', 6); COMMIT"), (0, "INSERT INTO t VALUES (3, 0, '')"),
    ]),
    on_t("a definition in a transaction that was open when the run began (test_decoding catalog_change_snapshot)", 4, &[
        (0, "BEGIN; SAVEPOINT a; ALTER TABLE t ADD c text; RELEASE a"), (1, "CHECKPOINT; CREATE TABLE noise (id int)"), (0, "INSERT INTO t VALUES (1, 0, '', 'c')"),
        (1, "CREATE TABLE more_noise (id int)"), (0, "COMMIT"), (9, ""), (0, "INSERT INTO t VALUES (2, 0, '', 'd'); UPDATE t SET c = 'e'; CHECKPOINT"),
    ]),
    on_t("a table is emptied and filled by definitions (test_decoding ddl)", 5, &[
        (0, "INSERT INTO t SELECT g, 0, '' FROM generate_series(1, 3) g; CREATE INDEX ON t (n); ALTER TABLE t ALTER s SET DEFAULT 'd', ADD CHECK (id > 0), SET (fillfactor = 50); INSERT INTO t (id) VALUES (4); DROP INDEX t_n_idx; COMMENT ON TABLE t IS 'x'; UPDATE t SET n = 1 WHERE id = 4"),
    ]),
    Case {
        name: "sixteen hundred columns", since: 14, events: 2,
        setup: "DO $$ BEGIN EXECUTE 'CREATE TABLE t (id int PRIMARY KEY, ' || (SELECT string_agg('c' || g || ' bool', ', ') FROM generate_series(2, 1600) g) || ')'; END $$",
        publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t (id, c1600) VALUES (1, true); UPDATE t SET c2 = false, c900 = true")],
    },
];

#[rustfmt::skip]
pub(super) const PUBLICATIONS: &[Case] = &[
    Case {
        name: "partitions, two levels, under their root (subscription 013)", since: 14, events: 10,
        setup: "CREATE TABLE t (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
                CREATE TABLE t_n PARTITION OF t FOR VALUES IN ('n') PARTITION BY RANGE (id);
                CREATE TABLE t_n1 PARTITION OF t_n FOR VALUES FROM (0) TO (100); CREATE TABLE t_n2 PARTITION OF t_n DEFAULT;
                CREATE TABLE t_d (n int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region)); ALTER TABLE t ATTACH PARTITION t_d DEFAULT",
        publication: "FOR TABLE t WITH (publish_via_partition_root = true)", tables: &["t"], keyless: &[],
        steps: &[
            (0, "INSERT INTO t VALUES (1, 'n', 0), (200, 'n', 0), (3, 's', 0), (4, 'e', 0); UPDATE t SET n = id; UPDATE t SET region = 's' WHERE id = 1; UPDATE t SET id = 50 WHERE id = 200; DELETE FROM t_d WHERE id = 4"),
            (9, ""), (0, "TRUNCATE t; INSERT INTO t VALUES (7, 'n', 7)"),
        ],
    },
    Case {
        name: "all tables of a schema (subscription 025)", since: 15, events: 3,
        setup: "CREATE SCHEMA s; CREATE TABLE t (id int PRIMARY KEY, n int)", publication: "FOR TABLES IN SCHEMA public", tables: &["t"], keyless: &[],
        steps: &[(0, "INSERT INTO t VALUES (1, 1); CREATE TABLE s.x (id int PRIMARY KEY); INSERT INTO s.x VALUES (1); CREATE TABLE y (id int PRIMARY KEY); INSERT INTO y VALUES (1); UPDATE t SET n = 2; DELETE FROM y; INSERT INTO t VALUES (2, 2)")],
    },
    on_t("a publication changes among changes (subscription 024, test_decoding invalidation_distribution)", 5, &[
        (0, "CREATE TABLE other (id int PRIMARY KEY)"), (0, "BEGIN; INSERT INTO t VALUES (1, 0, '')"), (1, "ALTER PUBLICATION p ADD TABLE other"),
        (0, "INSERT INTO t VALUES (2, 0, ''); COMMIT; BEGIN; INSERT INTO t VALUES (3, 0, '')"), (1, "ALTER PUBLICATION p DROP TABLE other"), (0, "UPDATE t SET n = 1; COMMIT"),
    ]),
    Case {
        name: "rows that came from elsewhere (subscription 030, test_decoding replorigin)", since: 14, events: 3, setup: T, publication: FOR_T, tables: &["t"], keyless: &[],
        steps: &[
            (0, "DO $$ BEGIN PERFORM pg_replication_origin_create('berlin_' || current_database()); PERFORM pg_replication_origin_session_setup('berlin_' || current_database()); END $$"),
            (0, "BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); INSERT INTO t VALUES (1, 0, 'theirs'); COMMIT"),
            (0, "SELECT pg_replication_origin_session_reset(); INSERT INTO t VALUES (2, 0, 'ours'); UPDATE t SET n = 1 WHERE id = 1; SELECT pg_replication_origin_drop('berlin_' || current_database())"),
        ],
    },
];

#[rustfmt::skip]
pub(super) const PREPARED: &[Case] = &[
    on_t("prepared transactions, committed, rolled back, left over a run (subscription 021, 023, test_decoding prepared, twophase)", 5, &[
        (0, "INSERT INTO t VALUES (1, 0, ''); BEGIN; INSERT INTO t VALUES (2, 0, ''); UPDATE t SET n = 1 WHERE id = 1; PREPARE TRANSACTION 'one'"), (9, ""),
        (1, "INSERT INTO t VALUES (3, 0, '')"), (9, ""), (0, "COMMIT PREPARED 'one'"), (0, "BEGIN; INSERT INTO t VALUES (4, 0, ''); PREPARE TRANSACTION 'two'"), (0, "ROLLBACK PREPARED 'two'"),
        (0, "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (5, 0, ''); ROLLBACK TO a; INSERT INTO t SELECT g, 0, repeat('x', 40) FROM generate_series(100, 4000) g; PREPARE TRANSACTION 'three'"),
        (1, "UPDATE t SET n = 9 WHERE id = 3"), (1, "COMMIT PREPARED 'three'"),
    ]),
];
