//! Tables that change under running connectors: what each of them does, by its sink, its mapping and its `schema_change`.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::http::Api;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, RabbitMq, Running, wait_for};

/// Connectors of the test, what their targets do with rows, and their `schema_change`.
const CONNECTORS: [(&str, &str, &str); 8] = [
    ("rows", "sql", "adapt"),
    ("rows_letters", "sql", "dead-letter"),
    ("whole", "{{ after }}", "adapt"),
    ("listed", "columns", "adapt"),
    ("posted", "body", "adapt"),
    ("mapped", "{{ after.total }}", "adapt"),
    ("strict", "{{ after.total }}", "pause"),
    ("letters", "{{ after.total }}", "dead-letter"),
];

/// What an API was told, in order, a repeat under the same key once.
#[derive(Default)]
struct Told {
    log: Arc<Mutex<Vec<Value>>>,
}

impl Told {
    async fn start(&self) -> String {
        let log = self.log.clone();
        let (_, url) = Api::start(move |_, items| {
            log.lock().expect("sound").extend(items.iter().cloned());
            axum::Json(json!({"ok": true})).into_response()
        })
        .await;
        url
    }

    /// The numbers of the changes.
    fn numbers(&self) -> Vec<u64> {
        let log = self.log.lock().expect("sound").clone();
        let mut keys = HashSet::new();
        let first = log.iter().filter(|item| keys.insert(item["id"].to_string()));
        first
            .map(|item| ["n", "row", "data"].iter().find_map(|at| item[at].as_u64().or(item[at]["n"].as_u64())).expect("a number"))
            .collect()
    }
}

/// A connector file whose column of money has this name.
fn file(name: &str, what: &str, mode: &str, url: &str, money: Option<&str>) -> String {
    let head = format!(
        "version: 1\nconnector: {name}\nfrom: {{tables: [public.sale], ops: [insert, update]}}\non_delete: ignore\nschema_change: {mode}\n\
         delivery: {{lanes: 2, batch: {{linger: 5ms}}}}\n"
    );
    let columns = ["id", "n"].into_iter().chain(money).collect::<Vec<_>>().join(", ");
    let http = format!("to:\n  http:\n    url: {url}\n    allow_private: true\n");
    match what {
        "sql" => {
            let table = format!("      public.sale: {{into: {name}, key: [id], columns: [{columns}]}}\n");
            format!("{head}to:\n  sql:\n    url: ${{env:DEMO_INVENTORY_URL}}\n    create: true\n    tables:\n{table}")
        }
        "columns" => format!("{head}{http}    columns: {{public.sale: [{columns}]}}\n"),
        "body" => {
            let total = money.map_or_else(String::new, |money| format!(", \"total\": \"{{{{ after.{money} }}}}\""));
            format!(
                "{head}{http}    content_type: application/json\n    body: '{{\"id\": \"{{{{ idempotency_key }}}}\", \"n\": {{{{ after.n }}}}{total}}}'\n"
            )
        }
        "{{ after }}" => format!("{head}map: {{id: \"{{{{ idempotency_key }}}}\", row: \"{what}\"}}\n{http}"),
        _ => {
            let total = money.map_or_else(String::new, |money| format!(", total: \"{}\"", what.replace("total", money)));
            format!("{head}map: {{id: \"{{{{ idempotency_key }}}}\", n: \"{{{{ after.n }}}}\"{total}}}\n{http}")
        }
    }
}

struct Bench {
    pipeline: Pipeline,
    told: BTreeMap<&'static str, (Told, String)>,
    pos: tokio_postgres::Client,
    inventory: tokio_postgres::Client,
    /// Changes so far.
    step: u64,
}

impl Bench {
    async fn new(name: &str, server: &Postgres, journal: Journal<'_>) -> Bench {
        let pipeline = Pipeline::new(name, server, journal, |file| {
            let from = file.find("  tables:").expect("the demo's tables");
            let to = file.find("  # The broker").expect("the demo's next key");
            let names: Vec<String> = CONNECTORS.iter().map(|(name, ..)| format!("{name}.yaml")).collect();
            format!("{}  tables: [public.sale]\n{}", &file[..from], &file[to..])
                .replace("connectors: [inventory.yaml, engagement.yaml]", &format!("connectors: [{}]", names.join(", ")))
                .replace("local: {dir: journal}", "local: {dir: journal, partitions: 4}")
        })
        .await;
        let pos = pipeline.pos.connect().await;
        pos.batch_execute("CREATE TABLE sale (id int PRIMARY KEY, n int NOT NULL, total numeric(10,2), note text)").await.expect("creates");
        let inventory = pipeline.inventory.connect().await;
        for table in ["rows", "rows_letters"] {
            let sql = format!("CREATE TABLE {table} (id int PRIMARY KEY, n int, total text)");
            inventory.batch_execute(&sql).await.expect("creates");
        }
        let mut told = BTreeMap::new();
        for (name, ..) in CONNECTORS {
            let api = Told::default();
            let url = api.start().await;
            told.insert(name, (api, url));
        }
        let bench = Bench { pipeline, told, pos, inventory, step: 0 };
        bench.write_files(Some("total"));
        bench.pipeline.set_up().await;
        // Columns that come while the table is still loaded are not the matter here: the loading role may read them all.
        let grant = "GRANT SELECT ON sale TO tillstream_backfill";
        bench.pos.batch_execute(grant).await.expect("grants");
        bench
    }

    fn write_files(&self, money: Option<&str>) {
        for (name, what, mode) in CONNECTORS {
            let text = file(name, what, mode, &self.told[name].1, money);
            std::fs::write(self.pipeline.dir.join(format!("{name}.yaml")), text).expect("written");
        }
    }

    /// A change of the table and, in a transaction of their own, a new row and one more state of the first one.
    async fn change(&mut self, ddl: &str) {
        self.pos.batch_execute(ddl).await.expect("changes");
        self.step += 1;
        let step = self.step;
        let sql =
            format!("BEGIN; INSERT INTO sale (id, n) VALUES ({step}, {step}); UPDATE sale SET n = {} WHERE id = 1; COMMIT", 100 + step);
        self.pos.batch_execute(&sql).await.expect("writes");
    }

    /// What a connector has to have told, in order of the row that changes all the time.
    fn states(&self) -> Vec<u64> {
        (1..=self.step).map(|step| 100 + step).collect()
    }

    /// How many rows the inventory has at their last state.
    async fn rows(&self, table: &str) -> Vec<(i32, i32)> {
        let rows = self.inventory.query(&format!("SELECT id, n FROM {table} ORDER BY id"), &[]).await.expect("reads");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn has_all(&self, name: &str) {
        let (wanted, step) = (usize::try_from(self.step * 2).expect("few"), i32::try_from(self.step).expect("few"));
        wait_for(&format!("{name} to be told all"), PATIENCE, || async {
            match self.told[name].0.numbers().len() {
                _ if name.starts_with("rows") => {
                    let rows = self.rows(name).await;
                    (rows.len() == wanted / 2 && rows[0] == (1, 100 + step)).then_some(())
                }
                told => (told >= wanted).then_some(()),
            }
        })
        .await;
    }

    /// Waits until exactly these connectors wait for a person, each with the code, and all others have told everything.
    async fn paused(&self, running: &Running, names: &[&str]) {
        for (name, _, mode) in CONNECTORS {
            if names.contains(&name) {
                let status = running.until(&format!("{name} to pause"), |status| state(status, name) == "paused").await;
                let why = connector(&status, name)["why"].as_str().unwrap_or_default().to_owned();
                assert!(why.starts_with("delivery.schema_changed: public.sale ") && why.contains("tillstream apply"), "{name}: {why}");
            } else if mode != "dead-letter" {
                self.has_all(name).await;
            }
        }
        for (name, ..) in CONNECTORS.iter().filter(|(name, ..)| !names.contains(name)) {
            running.until(&format!("{name} to be well"), |status| state(status, name) == "healthy").await;
        }
    }

    async fn resume(&self, name: &str) {
        let said = self.pipeline.command("resume", &["connector", "resume", name, "--reason", "seen"]).await;
        assert!(said.contains(&format!("{name}: goes on with public.sale as it is")), "{said}");
    }

    /// Open dead letters by connector; all have the one code.
    async fn letters(&self) -> BTreeMap<String, u64> {
        let listed = self.pipeline.command("letters", &["dead-letters", "list", "--format", "json"]).await;
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let groups = listed.as_array().expect("a list").iter();
        groups
            .map(|group| {
                assert_eq!(group["code"], "delivery.schema_changed", "{group}");
                assert!(group["message"].as_str().is_some_and(|why| why.contains("public.sale does not have `")), "{group}");
                (group["connector"].as_str().expect("a name").to_owned(), group["count"].as_u64().expect("a count"))
            })
            .collect()
    }

    async fn has_letters(&self, wanted: &[(&str, u64)]) {
        let wanted: BTreeMap<String, u64> = wanted.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        wait_for("dead letters", PATIENCE, || async { (self.letters().await == wanted).then_some(()) }).await;
    }
}

fn connector<'s>(status: &'s Value, name: &str) -> &'s Value {
    status["connectors"].as_array().and_then(|all| all.iter().find(|c| c["name"] == name)).unwrap_or(&Value::Null)
}

fn state<'s>(status: &'s Value, name: &str) -> &'s str {
    connector(status, name)["state"].as_str().unwrap_or_default()
}

async fn every_change_has_its_answer(name: &str, journal: Journal<'_>) {
    let server = Postgres::shared().await;
    let mut bench = Bench::new(name, server, journal).await;
    let running = bench.pipeline.run("run", &[]);
    bench.change("SELECT 1").await;
    bench.paused(&running, &[]).await;
    for ddl in ["ALTER TABLE sale ADD tip numeric DEFAULT 1.5", "ALTER TABLE sale DROP note", "ALTER TABLE sale ALTER total TYPE text"] {
        bench.change(ddl).await;
        bench.paused(&running, &["strict"]).await;
        bench.resume("strict").await;
        bench.paused(&running, &[]).await;
        println!("{ddl}: only `pause` waits");
    }
    assert_eq!(bench.letters().await, BTreeMap::new());

    bench.change("ALTER TABLE sale RENAME total TO amount").await;
    let waiting = ["rows", "listed", "posted", "mapped", "strict"];
    bench.paused(&running, &waiting).await;
    bench.has_letters(&[("letters", 2), ("rows_letters", 2)]).await;
    println!("RENAME of a column that is used: {} wait, dead letters of the others that use it", waiting.join(", "));

    // Killed while they wait: nothing is told before somebody has decided, and the others go on.
    running.process.kill9().await;
    bench.change("SELECT 1").await;
    let once = bench.pipeline.run("once", &["--until-caught-up"]);
    assert!(!once.process.wait(PATIENCE).await.success(), "what waits is not caught up");
    let running = bench.pipeline.run("run", &[]);
    bench.paused(&running, &waiting).await;
    bench.has_letters(&[("letters", 4), ("rows_letters", 4)]).await;
    for name in ["listed", "posted", "mapped", "strict"] {
        assert_eq!(bench.told[name].0.numbers().len(), 8, "{name}");
    }
    // A file that asks for a column which is not there either goes back to the one before.
    std::fs::write(
        bench.pipeline.dir.join("mapped.yaml"),
        file("mapped", "{{ after.note }}", "adapt", &bench.told["mapped"].1, Some("total")),
    )
    .expect("written");
    let trial = ["apply", "--url", &running.admin, "--probation", "1m"];
    let status = bench.pipeline.start("apply-note", &trial).wait(PATIENCE).await;
    let said = std::fs::read_to_string(bench.pipeline.dir.join("apply-note.out")).expect("its output");
    assert!(status.code() == Some(1) && said.contains("ROLLED BACK: it stands still: delivery.schema_changed"), "{said}");

    let apply = ["apply", "--url", &running.admin, "--probation", "1s"];
    bench.inventory.batch_execute("ALTER TABLE rows ADD amount text; ALTER TABLE rows_letters ADD amount text").await.expect("adds");
    bench.write_files(Some("amount"));
    let said = bench.pipeline.command("apply", &apply).await;
    assert_eq!(said.matches(": applied; ").count(), 7, "{said}");
    bench.pipeline.command("redrive", &["dead-letters", "redrive", "--all"]).await;
    bench.paused(&running, &[]).await;
    bench.has_letters(&[]).await;
    println!("kill -9 while they wait, a file that fails, a file that is mended: everything is told");

    // A column that is gone: whoever goes on without it makes dead letters of what asks for it.
    bench.change("ALTER TABLE sale DROP amount").await;
    bench.paused(&running, &waiting).await;
    for name in waiting {
        bench.resume(name).await;
    }
    bench.paused_letters(&running).await;
    bench.write_files(None);
    bench.pipeline.command("apply", &apply).await;
    bench.pipeline.command("redrive", &["dead-letters", "redrive", "--all"]).await;
    bench.has_letters(&[]).await;
    bench.change("SELECT 1").await;
    bench.paused(&running, &[]).await;

    for (name, ..) in CONNECTORS {
        bench.has_all(name).await;
        if name.starts_with("rows") {
            continue;
        }
        let told = bench.told[name].0.numbers();
        let (distinct, all): (HashSet<u64>, usize) = (told.iter().copied().collect(), told.len());
        assert_eq!((all, distinct.len()), (usize::try_from(bench.step * 2).expect("few"), all), "{name}: each change once: {told:?}");
        let states: Vec<u64> = told.into_iter().filter(|n| *n > 100).collect();
        if name != "letters" {
            assert_eq!(states, bench.states(), "{name}: in order");
        }
    }
    running.process.terminate(PATIENCE).await;
    bench.pipeline.judge(&["delivery.schema_changed", "apply.rolled_back"]);
    let Bench { pipeline, pos, inventory, .. } = bench;
    drop((pos, inventory));
    pipeline.drop(server).await;
}

impl Bench {
    /// Waits until nobody waits any more and every connector that uses the column has dead letters of the last change.
    async fn paused_letters(&self, running: &Running) {
        let users = ["rows", "rows_letters", "listed", "posted", "mapped", "strict", "letters"];
        self.has_letters(&users.map(|name| (name, 2))).await;
        for name in users {
            running.until(&format!("{name} to go on"), |status| state(status, name) == "healthy").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_changes_stops_who_cannot_tell_it_and_nobody_else() {
    every_change_has_its_answer("schema-local", Journal::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_streams() {
    if Level::get() == Level::Quick {
        return println!("skipped in a quick run: the local journal has shown it");
    }
    every_change_has_its_answer("schema-rabbit", Journal::Rabbit(RabbitMq::shared().await)).await;
}
