//! What the owner of a source database gets: SQL that runs twice, its way back byte for byte, drift and the SQL that mends it, slots.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tillstream::capture::catalog::Catalog;
use tillstream::config::{HoldBack, Source, SourceTable};
use tillstream::ops::provider::Provider;
use tillstream::ops::setup::{Options, apply, prepare, prepare_removal, ticket};
use tillstream::ops::{publication, slots};
use tokio_postgres::Client;

use crate::harness::{Database, PATIENCE, Postgres, program, scratch, wait_for};

/// The catalogue as far as a setup may change it, as one text: roles of this test, this database's rights, schemas, tables, columns,
/// functions, publications and slots. Rights of schemas are told in full, because PostgreSQL writes the default out once it was changed.
const DUMP: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM ( \
     SELECT format('role %s %s', r.rolname, to_jsonb(r) - 'oid') AS line FROM pg_roles r WHERE r.rolname LIKE $1::text \
     UNION ALL SELECT format('member %s of %s', m.rolname, g.rolname) FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member \
            JOIN pg_roles g ON g.oid = a.roleid WHERE m.rolname LIKE $1::text \
     UNION ALL SELECT format('setting %s %s', r.rolname, s.setconfig) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE r.rolname LIKE $1::text \
     UNION ALL SELECT format('database %s %s', datname, datacl) FROM pg_database WHERE datname = current_database() \
     UNION ALL SELECT format('schema %s %s', nspname, coalesce(nspacl, acldefault('n', nspowner))) FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' \
     UNION ALL SELECT format('relation %s %s %s %s', c.oid::regclass, c.relkind, c.relreplident, c.relacl) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' \
     UNION ALL SELECT format('column %s.%s %s', a.attrelid::regclass, a.attname, a.attacl) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
            JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' \
     UNION ALL SELECT format('function %s %s', p.oid::regprocedure, p.proacl) FROM pg_proc p \
     UNION ALL SELECT format('publication %s', to_jsonb(p) - 'oid') FROM pg_publication p \
     UNION ALL SELECT format('published %s', to_jsonb(t)) FROM pg_publication_tables t \
     UNION ALL SELECT format('slot %s %s', slot_name, plugin) FROM pg_replication_slots WHERE database = current_database() \
     UNION ALL SELECT format('default %s', to_jsonb(d) - 'oid') FROM pg_default_acl d) lines";

const TABLES: [(&str, &str); 4] = [("public", "order"), ("public", "customer"), ("kitchen", "recipe"), ("public", "audit")];

const SCHEMA: &str = "CREATE TABLE \"order\" (id int, day date, note text, doubled int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); \
     CREATE TABLE order_any PARTITION OF \"order\" DEFAULT; \
     CREATE TABLE customer (id int PRIMARY KEY, mail text, \"Tier\" int); \
     CREATE SCHEMA kitchen; CREATE TABLE kitchen.recipe (id int PRIMARY KEY, name text); \
     CREATE TABLE audit (line text); CREATE TABLE public.other (id int PRIMARY KEY); GRANT SELECT ON customer TO PUBLIC; REVOKE SELECT ON customer FROM PUBLIC";

/// A database with a source over it; roles, slot and publication have names of their own, since the server is shared.
struct Bench {
    database: Database,
    client: Client,
    source: Source,
    options: Options,
    admin: secrecy::SecretString,
    dir: std::path::PathBuf,
}

impl Bench {
    async fn new(server: &Postgres, name: &str) -> Bench {
        let database = Database::empty(server, name).await;
        let client = database.connect().await;
        client.batch_execute(SCHEMA).await.expect("tables");
        let own = database.name.clone();
        let options = Options { stream_role: format!("{own}_stream"), backfill_role: format!("{own}_read"), ..Options::default() };
        let source = Source {
            name: "pos".to_owned(),
            url: database.url_as(&options.stream_role).into(),
            backfill_url: Some(database.url_as(&options.backfill_role).into()),
            slot: format!("{own}_slot"),
            publication: format!("{own} Pub"),
            tables: TABLES.map(|(s, t)| SourceTable { schema: s.to_owned(), table: t.to_owned(), partition_by: None }).into(),
            hold_back: HoldBack { time: Duration::ZERO, bytes: 0 },
            wal_budget: 5 << 30,
            initial_load: false,
            allow_weak_auth: false,
            columns: Default::default(),
            streaming: Default::default(),
            origin: Default::default(),
        };
        let admin = database.url.clone().into();
        Bench { dir: scratch(name), database, client, source, options, admin }
    }

    async fn dump(&self) -> String {
        let roles = format!("{}%", self.database.name.replace('_', "\\_"));
        self.client.query_one(DUMP, &[&roles]).await.expect("a dump").get(0)
    }

    /// What PostgreSQL's own tool says of the database, where it is new enough to read the server.
    fn pg_dump(&self) -> Option<String> {
        let output = Command::new("pg_dump").arg("--schema-only").arg(&self.database.url).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Newer versions frame the text by a word of their own making.
        output
            .status
            .success()
            .then(|| text.lines().filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict")).collect::<Vec<_>>().join("\n"))
    }

    /// Runs a script as its reader would.
    fn psql(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        std::fs::write(&path, text).expect("written");
        let output = Command::new("psql")
            .arg(&self.database.url)
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&path)
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{name}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    }

    async fn set_up(&self) -> (String, String) {
        let prepared = prepare(&self.source, "shop", Some(&self.admin), &self.options).await.expect("a plan");
        (prepared.plan.to_string(), prepared.plan.rollback().to_string())
    }

    async fn allowed(&self, url: &str, sql: &str) -> bool {
        let catalog = Catalog::connect_url(&url.to_owned().into(), "test", true).await.expect("connects");
        catalog.client().batch_execute(sql).await.is_ok()
    }

    async fn end(self, server: &Postgres) {
        self.database.drop(server).await;
        let admin = server.connect("postgres").await;
        for role in [&self.options.stream_role, &self.options.backfill_role] {
            admin.batch_execute(&format!("DROP ROLE IF EXISTS {role}")).await.expect("drops");
        }
    }
}

fn assert_same(before: &str, after: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (old, new) = (lines(before), lines(after));
    let (gone, come): (Vec<_>, Vec<_>) = (old.difference(&new).collect(), new.difference(&old).collect());
    assert!(before == after, "gone: {gone:#?}\ncome: {come:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_runs_twice_and_its_rollback_leaves_the_catalogue_as_it_was_byte_for_byte() {
    let server = Postgres::shared().await;
    let bench = Bench::new(server, "setup").await;
    let (before, tool) = (bench.dump().await, bench.pg_dump());
    let (script, rollback) = bench.set_up().await;
    eprintln!("{script}\n{rollback}");
    for _ in 0..2 {
        bench.psql("setup.sql", &script);
    }
    assert_ne!(before, bench.dump().await);

    // The role that streams may read nothing; the one that reads may read columns, and write nothing.
    let (stream, read) = (bench.database.url_as(&bench.options.stream_role), bench.database.url_as(&bench.options.backfill_role));
    assert!(!bench.allowed(&stream, "SELECT id FROM public.customer").await);
    assert!(
        bench
            .allowed(
                &read,
                "SELECT id, mail, \"Tier\" FROM public.customer; SELECT name FROM kitchen.recipe; SELECT note FROM public.\"order\""
            )
            .await
    );
    assert!(!bench.allowed(&read, "SELECT id FROM public.other").await);
    assert!(!bench.allowed(&read, "SELECT doubled FROM public.\"order\"").await, "no event shows it");
    assert!(!bench.allowed(&read, "SET default_transaction_read_only = off; INSERT INTO public.customer VALUES (1)").await);
    let whole: i64 = bench
        .client
        .query_one(
            "SELECT count(*) FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee WHERE r.rolname = $1::text",
            &[&bench.options.backfill_role],
        )
        .await
        .expect("counted")
        .get(0);
    assert_eq!(whole, 0, "columns are granted, not tables");

    for _ in 0..2 {
        bench.psql("rollback.sql", &rollback);
    }
    assert_same(&before, &bench.dump().await);
    assert!(tool == bench.pg_dump(), "pg_dump sees a difference");

    // The same through the program, and away again by --remove.
    let prepared = prepare(&bench.source, "shop", Some(&bench.admin), &bench.options).await.expect("a plan");
    apply(&prepared.plan, &prepared.catalog, |_| {}).await.expect("applied");
    // Other tests have slots on this server, and what stays for their sake is told in a unit test.
    let all = Options { drop_roles: true, ..bench.options.clone() };
    let removal = prepare_removal(&bench.source, "shop", Some(&bench.admin), &all).await.expect("a plan");
    eprintln!("{}", removal.plan);
    apply(&removal.plan, &removal.catalog, |_| {}).await.expect("removed");
    assert_same(&before, &bench.dump().await);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_leaves_what_somebody_else_had_made() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new(server, "partly").await;
    let (read, publication) = (bench.options.backfill_role.clone(), bench.source.publication.clone());
    bench
        .client
        .batch_execute(&format!(
            "CREATE ROLE {read} LOGIN; ALTER ROLE {read} SET statement_timeout = '9s'; GRANT SELECT (id) ON customer TO {read}; \
             GRANT USAGE ON SCHEMA kitchen TO {read}; CREATE PUBLICATION \"{publication}\" FOR TABLE customer"
        ))
        .await
        .expect("made");
    let before = bench.dump().await;
    bench.options.column_lists = true;
    let (script, rollback) = bench.set_up().await;
    for _ in 0..2 {
        bench.psql("setup.sql", &script);
    }
    let after = bench.dump().await;
    assert!(after.contains("statement_timeout=5s") && after.contains("kitchen.recipe"), "{after}");
    for _ in 0..2 {
        bench.psql("rollback.sql", &rollback);
    }
    assert_same(&before, &bench.dump().await);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_providers_script_runs_where_its_roles_are() {
    let server = Postgres::shared().await;
    let mut bench = Bench::new(server, "clouds").await;
    let (script, rollback) = bench.set_up().await;
    for provider in Provider::ALL {
        bench.options.provider = Some(provider);
        let prepared = prepare(&bench.source, "shop", Some(&bench.admin), &bench.options).await.expect("a plan");
        let text = prepared.plan.to_string();
        let told = ticket(&bench.source, "shop", &prepared.facts, &prepared.plan);
        assert!(text.contains(provider.name()) && told.contains(provider.name()), "{text}");
        if matches!(provider, Provider::Rds | Provider::Aurora) {
            // Only Amazon has that role.
            assert!(text.contains("GRANT rds_replication"), "{text}");
            continue;
        }
        bench.psql(provider.as_str(), &text);
        bench.psql("rollback.sql", &prepared.plan.rollback().to_string());
    }
    bench.psql("setup.sql", &script);
    bench.psql("rollback.sql", &rollback);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_found_and_its_sql_mends_it_and_slots_are_told() {
    let server = Postgres::shared().await;
    let bench = Bench::new(server, "drift").await;
    let (script, _) = bench.set_up().await;
    bench.psql("setup.sql", &script);
    let drift = || async { publication::compare(&bench.source, "shop", Some(&bench.admin)).await.expect("compared") };
    let codes = |drift: &publication::Drift| {
        let mut codes: Vec<(String, String)> = drift.differences.iter().map(|d| (d.code.to_owned(), d.of.clone())).collect();
        codes.sort();
        codes
    };
    assert_eq!(codes(&drift().await), [], "what setup made agrees with the file");

    let version: i32 = bench.client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.expect("a version").get(0);
    let publication = &bench.source.publication;
    bench
        .client
        .batch_execute(&format!(
            "ALTER PUBLICATION \"{publication}\" DROP TABLE kitchen.recipe; ALTER PUBLICATION \"{publication}\" ADD TABLE other; \
             ALTER PUBLICATION \"{publication}\" SET (publish = 'insert, update'); ALTER TABLE customer ADD phone text; DROP TABLE audit CASCADE"
        ))
        .await
        .expect("changed");
    let mut expected = vec![
        ("backfill.no_permission", "public.customer"),
        ("capture.publication_extra_table", "public.other"),
        ("coverage.not_published", "kitchen.recipe"),
        ("coverage.operation_missing", publication.as_str()),
        ("coverage.table_missing", "public.audit"),
    ];
    if version >= 150_000 {
        // A list of columns does not follow the table.
        bench
            .client
            .batch_execute(&format!(
                "ALTER PUBLICATION \"{publication}\" DROP TABLE customer; ALTER PUBLICATION \"{publication}\" ADD TABLE customer (id, mail) WHERE (id > 0)"
            ))
            .await
            .expect("changed");
        expected.push(("coverage.column_list", "public.customer"));
    }
    expected.sort_unstable();
    let found = drift().await;
    eprintln!("{}", found.human());
    let of: Vec<(String, String)> = expected.iter().map(|(code, of)| ((*code).to_owned(), (*of).to_owned())).collect();
    assert_eq!(codes(&found), of);
    bench.psql("mend.sql", &found.sql());
    let left = drift().await;
    assert_eq!(codes(&left), [("coverage.table_missing".to_owned(), "public.audit".to_owned())], "{}", left.human());
    if version >= 150_000 {
        let kept: String = bench
            .client
            .query_one("SELECT to_jsonb(t)::text FROM pg_publication_tables t WHERE tablename = 'customer'", &[])
            .await
            .expect("published")
            .get(0);
        assert!(kept.contains("phone") && kept.contains("Tier") && kept.contains("(id > 0)"), "the row filter stays: {kept}");
    }

    // Slots: ours, and somebody else's.
    let other = format!("{}_other", bench.database.name);
    bench.client.batch_execute(&format!("SELECT pg_create_logical_replication_slot('{other}', 'pgoutput')")).await.expect("a slot");
    bench.client.batch_execute("INSERT INTO customer SELECT n FROM generate_series(1, 2000) n").await.expect("WAL");
    let catalog = Catalog::connect_url(&bench.admin, "test", true).await.expect("connects");
    let seen = slots::look(&bench.source, &catalog, Duration::from_millis(200)).await.expect("looked");
    eprintln!("{}{}", seen.table(), seen.page(&bench.source.slot).expect("our slot"));
    let ours = &seen.slots[0];
    assert!(ours.ours && ours.retained_bytes > Some(50_000) && ours.unacknowledged_bytes > Some(50_000), "{ours:?}");
    assert_eq!((ours.wal_status.as_deref(), ours.active_pid, ours.ceiling_bytes), (Some("reserved"), None, Some(5 << 30)));
    assert_eq!(ours.inactive_since.is_some(), version >= 170_000);
    assert!(seen.slots.iter().any(|s| s.name == other && !s.ours));
    assert!(seen.wal_bytes_per_second > 0.0 && ours.seconds_to_ceiling.is_some(), "{seen:?}");
    slots::drop_slot(&catalog, &other).await.expect("dropped");
    assert_eq!(slots::drop_slot(&catalog, &other).await.expect_err("gone").code(), "slot.unknown");
    bench.end(server).await;
}

fn tillstream(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).current_dir(dir).env("NO_COLOR", "1").output().expect("the program starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_written_once_and_what_destroys_asks_first() {
    let server = Postgres::shared().await;
    let bench = Bench::new(server, "files").await;
    let Bench { database, source, options, dir, .. } = &bench;
    let tables = TABLES.map(|(s, t)| format!("{s}.{t}")).join(", ");
    let file = format!(
        "version: 1\npipeline: shop\nsource:\n  name: pos\n  url: {}\n  backfill_url: {}\n  slot: {}\n  publication: {}\n  tables: [{tables}]\njournal: {{local: {{dir: ./journal}}}}\n",
        database.url_as(&options.stream_role),
        database.url_as(&options.backfill_role),
        source.slot,
        source.publication,
    );
    std::fs::write(dir.join("tillstream.yaml"), file).expect("written");
    let roles = [
        "--stream-role",
        options.stream_role.as_str(),
        "--backfill-role",
        options.backfill_role.as_str(),
        "--admin-url",
        database.url.as_str(),
    ];
    let setup = |more: &[&str]| tillstream(dir, &[&["setup"], &roles[..], more].concat());
    let says = |output: &Output| format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    let scripts = ["--as-script", "setup.sql", "--rollback-script", "rollback.sql", "--change-ticket", "ticket.txt"];
    let written = setup(&scripts);
    assert_eq!(written.status.code(), Some(0), "{}", says(&written));
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("written");
    assert!(read("setup.sql").contains("CREATE PUBLICATION") && read("rollback.sql").contains("DROP PUBLICATION"));
    let told = read("ticket.txt");
    eprintln!("{told}");
    for part in ["What changes", "Restart", "Duration", "Risk", "Rollback", "Monitoring", "publication of 4 tables"] {
        assert!(
            told.contains(part) || told.contains(&part.replace("publication", &format!("publication {}", source.publication))),
            "{part}: {told}"
        );
    }
    let again = setup(&scripts);
    assert!(again.status.code() == Some(2) && says(&again).contains("setup.exists"), "{}", says(&again));

    let before = bench.dump().await;
    let applied = setup(&["--apply"]);
    assert_eq!(applied.status.code(), Some(0), "{}", says(&applied));
    let shown = tillstream(dir, &["slot", "show", "--sample", "100ms"]);
    eprintln!("{}", says(&shown));
    assert!(shown.status.code() == Some(0) && says(&shown).contains("this pipeline's"), "{}", says(&shown));
    assert_eq!(tillstream(dir, &["publication", "diff", "--format", "json"]).status.code(), Some(0));

    // Nothing goes without the name and a reason.
    for refused in [&["--remove", "--apply"][..], &["--remove", "--apply", "--reason", "moved", "--confirm", "shopp"]] {
        let output = setup(refused);
        assert!(output.status.code() == Some(2), "{refused:?}: {}", says(&output));
    }
    let unconfirmed = tillstream(dir, &["slot", "drop", &source.slot, "--reason", "test", "--confirm", "other"]);
    assert!(says(&unconfirmed).contains("usage.not_confirmed"), "{}", says(&unconfirmed));
    let printed = setup(&["--remove"]);
    assert!(says(&printed).contains("DROP PUBLICATION") && bench.dump().await != before, "printing changes nothing");
    let removed = setup(&["--remove", "--apply", "--drop-roles", "--reason", "moved", "--confirm", "shop"]);
    assert_eq!(removed.status.code(), Some(0), "{}", says(&removed));
    assert_same(&before, &bench.dump().await);
    bench.end(server).await;
}

/// A transaction that is open holds the slot up for longer than a lock is waited for, and is waited for all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_waits_for_transactions_longer_than_for_locks() {
    let server = Postgres::shared().await;
    let bench = Bench::new(server, "slot_waits").await;
    let open = bench.database.connect().await;
    open.batch_execute("BEGIN; INSERT INTO other VALUES (1)").await.expect("begun");
    let prepared = prepare(&bench.source, "shop", Some(&bench.admin), &bench.options).await.expect("a plan");
    let ending = async {
        let sql = "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_create_logical_replication_slot%' AND datname = current_database() \
                   AND state = 'active' AND query_start < clock_timestamp() - interval '5500 ms'";
        wait_for("the slot to wait longer than for a lock", PATIENCE, || async {
            bench.client.query_opt(sql, &[]).await.expect("asks").map(drop)
        })
        .await;
        open.batch_execute("COMMIT").await.expect("ends");
    };
    let (applied, ()) = tokio::join!(apply(&prepared.plan, &prepared.catalog, |_| {}), ending);
    applied.expect("made once the transaction has ended");
    drop((open, prepared));
    bench.end(server).await;
}
