//! The demo's stock connector against the point of sale: what the kitchen used, to the last gram, after kills, repeats and a step back.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use tillstream::config::Connector;
use tillstream::delivery::Mode;
use tillstream::delivery::place::Place;
use tillstream::delivery::replay::Wanted;
use tillstream_connectors::registry::Registry;
use tokio_postgres::Client;

use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, program, root};

use super::http::{Api, mapped_target};
use super::pos::{start, until};
use super::replay::ask;

/// What was used, and what of it for nothing: by location and ingredient, in units of a ten-millionth.
type Totals = BTreeMap<(String, i64, i64), i128>;

fn scaled(quantity: &str) -> i128 {
    let (sign, digits) = quantity.strip_prefix('-').map_or((1, quantity), |rest| (-1, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    assert!(fraction.len() <= 10, "{quantity}");
    sign * format!("{whole}{fraction:0<10}").parse::<i128>().expect("a number")
}

/// Every fact once; a second one of a name has to be the same.
fn totals<'f>(facts: impl Iterator<Item = &'f Value>) -> Totals {
    let mut totals = Totals::new();
    for fact in facts {
        let account = if fact["what"] == "refunded" { "for nothing" } else { "used" };
        let sign = if fact["what"] == "voided" || fact["what"] == "returned" { -1 } else { 1 };
        let number = |name: &str| fact[name].as_i64().expect("a number");
        let key = (account.to_owned(), number("location"), number("ingredient"));
        *totals.entry(key).or_default() += sign * scaled(fact["quantity"].as_str().expect("a decimal"));
    }
    totals.retain(|_, total| *total != 0);
    totals
}

/// The same from the tables of the point of sale.
async fn oracle(pos: &Client) -> Totals {
    let parts = "SELECT i.id, i.check_id, i.location_id, i.item_id, NULL::int AS modifier_id, i.qty, i.fired_at FROM order_item i WHERE state IN ('fired', 'comped') \
                 UNION ALL SELECT i.id, i.check_id, i.location_id, NULL, m.modifier_id, i.qty * m.qty, i.fired_at FROM order_item i \
                 JOIN order_item_modifier m ON m.order_item_id = i.id WHERE state IN ('fired', 'comped')";
    let sums = |account: &str, more: &str| {
        format!(
            "SELECT '{account}', p.location_id::bigint, l.ingredient_id::bigint, sum(p.qty * l.qty)::text FROM ({parts}) p \
             JOIN recipe r ON (r.item_id = p.item_id OR r.modifier_id = p.modifier_id) AND r.valid_from <= (p.fired_at AT TIME ZONE 'UTC')::date \
             AND (r.valid_to IS NULL OR (p.fired_at AT TIME ZONE 'UTC')::date < r.valid_to) JOIN recipe_line l ON l.recipe_id = r.id {more} GROUP BY 2, 3"
        )
    };
    let refunds = "JOIN payment y ON y.check_id = p.check_id JOIN refund f ON f.payment_id = y.id";
    let query = format!("{} UNION ALL {}", sums("used", ""), sums("for nothing", refunds));
    let rows = pos.query(&query, &[]).await.expect("reads");
    let mut totals: Totals = rows.iter().map(|row| ((row.get(0), row.get(1), row.get(2)), scaled(&row.get::<_, String>(3)))).collect();
    totals.retain(|_, total| *total != 0);
    totals
}

/// What the demo's traffic does not do: dishes that are ordered first, and then fired or voided; modifiers that come and go; new versions of recipes.
async fn serve(pos: &Client, n: u32) {
    let id = |what: u32| format!("00000000-0000-4000-8000-{:012}", n * 10 + what);
    let (order, check, fired, voided) = (id(0), id(1), id(2), id(3));
    for sql in [
        format!(
            "BEGIN; INSERT INTO \"order\" (id, business_date, location_id, employee_id, channel, number, opened_at) VALUES ('{order}', current_date, 1, 1, 'kiosk', {n}, now());
             INSERT INTO check_ (id, order_id, business_date, no, subtotal, tax, total) VALUES ('{check}', '{order}', current_date, 1, 1, 1, 2);
             INSERT INTO order_item (id, check_id, location_id, item_id, qty, unit_price) VALUES ('{fired}', '{check}', 1, 1 + {n} % 48, 1.125, 1), ('{voided}', '{check}', 1, 7, 3, 1);
             INSERT INTO order_item_modifier VALUES ('{fired}', 1 + {n} % 18, 2), ('{voided}', 4, 1); COMMIT"
        ),
        format!("UPDATE order_item SET state = 'voided' WHERE id = '{voided}'"),
        format!("UPDATE order_item SET state = 'fired', fired_at = now() WHERE id = '{fired}'"),
        format!("INSERT INTO order_item_modifier VALUES ('{fired}', 1 + ({n} + 5) % 18, 1)"),
        format!("DELETE FROM order_item_modifier WHERE order_item_id = '{fired}' AND modifier_id = 1 + {n} % 18"),
        format!("UPDATE order_item SET note = 'again' WHERE id = '{fired}'"),
        // A later version of a recipe, which counts from tomorrow, ends the present one.
        format!(
            "BEGIN; UPDATE recipe SET valid_to = current_date + 2 WHERE id = 1 + {n} % 48; INSERT INTO recipe (id, item_id, valid_from) VALUES (5000 + {n}, 1 + {n} % 48, current_date + 2);
             INSERT INTO recipe_line VALUES (5000 + {n}, 1, 77, 'g'); COMMIT"
        ),
    ] {
        pos.batch_execute(&sql).await.expect("serves");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kitchen_used_is_told_to_the_last_gram() {
    let kills = Level::pick(2, 3, 12);
    let server = &Postgres::private("stock-postgres", "").await;
    let mut pipeline = Pipeline::new("stock", server, Journal::Local, |file| {
        file.replace("connectors: [inventory.yaml, engagement.yaml]", "connectors: [stock.yaml]")
    })
    .await;
    std::fs::copy(root().join("docker/demo/stock.yaml"), pipeline.dir.join("stock.yaml")).expect("the demo's file is there");
    let out = pipeline.dir.join("out");
    std::fs::create_dir_all(&out).expect("created");
    pipeline.set("STOCK_DIR", out.display().to_string());
    assert!(pipeline.command("test", &["test", "stock.yaml"]).await.contains("1 passed, 0 failed"));
    pipeline.set_up().await;
    let pos = pipeline.pos.connect().await;
    // Master data that was there before anything was captured comes by the initial load: a sale before its recipe would be a dead letter.
    pipeline.drain().await;
    let capture = pipeline.run("capture", &["--only", "capture"]);
    capture.ready().await;
    let mut delivery = pipeline.run("delivery", &["--only", "delivery"]);
    let seconds = Level::pick(8, 12, 90);
    let traffic = pipeline.traffic(600, seconds, &["--even"]);
    for n in 0..kills {
        serve(&pos, n).await;
        let seen = delivered(&delivery.until("facts to flow", |status| delivered(status) > 0).await);
        delivery.until("more facts", |status| delivered(status) > seen).await;
        delivery.process.kill9().await;
        delivery = pipeline.run("delivery", &["--only", "delivery"]);
    }
    traffic.finish(PATIENCE * 2).await;
    serve(&pos, kills).await;
    capture.process.terminate(PATIENCE).await;
    delivery.process.terminate(PATIENCE).await;
    pipeline.drain().await;

    let wanted = oracle(&pos).await;
    let facts = lines(&out);
    let mut names: Vec<&str> = facts.iter().map(|fact| fact["id"].as_str().expect("a text")).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "no fact twice");
    let grams = |totals: &Totals| totals.values().map(|t| t.abs()).sum::<i128>() as f64 / 1e10;
    println!("{count} facts after {kills} kills: {} sums of {:.4} units in all", wanted.len(), grams(&wanted));
    assert!(wanted.len() > 500 && wanted.keys().any(|(account, ..)| account == "for nothing"), "{}", wanted.len());
    assert!(totals(facts.iter()) == wanted, "the sums differ: {:?}", difference(&totals(facts.iter()), &wanted));
    let said = pipeline.command("letters", &["dead-letters", "list", "--format", "json"]).await;
    assert!(!said.contains("\"code\""), "{said}");

    let shown = pipeline.command("preview", &["preview", "stock", "--from", "first", "--limit", "200"]).await;
    assert!(shown.contains("  {\"id\":\"text\",\"what\":\"text\",") && !shown.contains(" fails "), "{shown}");

    again_by_http(&pipeline, &facts, &wanted).await;
    drop(pos);
    pipeline.judge(&[]);
    pipeline.drop(server).await;
}

/// The same facts to a target that knows keys and fails every second call, killed twice; then everything is delivered once more from the beginning.
async fn again_by_http(pipeline: &Pipeline, facts: &[Value], wanted: &Totals) {
    use axum::response::IntoResponse;
    let (api, url) = Api::start(|call, _| match call % 4 {
        1 => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        3 => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, [("x-applied", "all")]).into_response(),
        _ => axum::Json(serde_json::json!({"ok": true})).into_response(),
    })
    .await;
    let registry = Registry::built_in();
    let file = std::fs::read_to_string(pipeline.dir.join("stock.yaml")).expect("there").replace("${env:STOCK_DIR}", "/tmp");
    let path = pipeline.dir.join("stock-http.yaml");
    std::fs::write(&path, file).expect("written");
    let loaded = tillstream::config::load_connectors(&[path], &registry).unwrap_or_else(|report| panic!("{}", report.render(false)));
    let base = loaded.into_iter().next().expect("one");
    let connector = || Connector { target: mapped_target(&url, serde_json::json!({"mode": "batch"})), kind: "http", ..base.clone() };
    let local = tillstream::config::LocalJournal {
        dir: pipeline.dir.join("journal"),
        partitions: std::num::NonZeroU16::MIN,
        retention: tillstream::config::Retention::default(),
    };
    let journal = tillstream::journal::open(&tillstream::config::Journal::Local(local), "test").expect("opens");
    // Another target, which has nothing of what the files have; then the same once more.
    for round in 0..2 {
        let all = Wanted { mapped: false, ..super::replay::wanted(Place::First, None, None) };
        ask(&journal, &connector(), &all).await;
        let before = api.requests();
        for part in 1..3 {
            let running = start(&journal, vec![connector()], Mode::Continuous);
            until("it goes on", || api.requests() > before + part * 10).await;
            running.kill().await;
        }
        super::pos::catch_up(&journal, vec![connector()]).await.expect("catches up");
        // The number of names is that of the files: no fact was told under two.
        api.assert_once(facts.len());
        let told: BTreeMap<String, Value> =
            api.items().into_iter().map(|item| (item["id"].as_str().expect("a text").to_owned(), item)).collect();
        assert!(totals(told.values()) == *wanted, "round {round}: {:?}", difference(&totals(told.values()), wanted));
        assert!(facts.iter().all(|fact| told.get(fact["id"].as_str().unwrap_or_default()) == Some(fact)), "round {round}: other bodies");
        println!("round {round}: {} calls, {} facts, sums equal", api.requests() - before, told.len());
    }
}

fn delivered(status: &Value) -> u64 {
    status["connectors"][0]["delivered"].as_u64().unwrap_or(0)
}

fn lines(dir: &std::path::Path) -> Vec<Value> {
    let files = std::fs::read_dir(dir).expect("there").flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
    let text: String = files.map(|path| std::fs::read_to_string(path).expect("text")).collect();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn difference(got: &Totals, wanted: &Totals) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = got.keys().chain(wanted.keys()).collect();
    let differs = keys.into_iter().filter(|key| got.get(*key) != wanted.get(*key));
    differs.take(5).map(|key| format!("{key:?}: {:?} instead of {:?}", got.get(key), wanted.get(key))).collect()
}

const LINES: &str = r#"
version: 1
connector: lines
from: {tables: [public.order_item_modifier], ops: [insert]}
on_delete: ignore
lookup: {line: {table: public.order_item, by: id, columns: [location_id, item_id]}}
id: "modifier:{{ key.order_item_id }}:{{ key.modifier_id }}"
map: {id: "{{ idempotency_key }}", line: "{{ key.order_item_id }}", modifier: "{{ key.modifier_id }}", item: "{{ lookup('line', key.order_item_id).item_id }}"}
to: {jsonl: {dir: "${env:STOCK_DIR}"}}
"#;

const PAID: &str = r#"
version: 1
connector: paid
from: {tables: [public.check_, public.payment], ops: [insert, update]}
on_delete: ignore
group: transaction
when: "{{ table == 'payment' and op == 'insert' or op == 'update' and after.status == 'paid' }}"
key: "{{ after.check_id if table == 'payment' else after.id }}"
id: "paid:{{ events[0].after.check_id if events[0].table == 'payment' else events[0].after.id }}"
map:
  id: "{{ idempotency_key }}"
  tables: "{{ events | map(attribute='table') | list }}"
  paid: "{{ (events | selectattr('table', 'eq', 'payment') | first).after.amount }}"
  check: "{{ (events | selectattr('table', 'eq', 'check_') | first).after.id }}"
  total: "{{ (events | selectattr('table', 'eq', 'check_') | first).after.total }}"
to: {jsonl: {dir: "${env:STOCK_DIR}"}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_partitions_need_tables_that_stand_together_and_then_lose_nothing() {
    let server = &Postgres::private("together-postgres", "").await;
    let mut pipeline = Pipeline::new("together", server, Journal::Local, |file| {
        file.replace("{dir: journal}", "{dir: journal, partitions: 4}")
            .replace("connectors: [inventory.yaml, engagement.yaml]", "connectors: [lines.yaml, paid.yaml, stock.yaml]")
    })
    .await;
    let out = pipeline.dir.join("out");
    std::fs::create_dir_all(&out).expect("created");
    pipeline.set("STOCK_DIR", out.display().to_string());
    std::fs::copy(root().join("docker/demo/stock.yaml"), pipeline.dir.join("stock.yaml")).expect("the demo's file is there");
    std::fs::write(pipeline.dir.join("lines.yaml"), LINES).expect("written");
    std::fs::write(pipeline.dir.join("paid.yaml"), PAID).expect("written");
    let edit = |from: &str, to: &str| {
        let path = pipeline.dir.join("tillstream.yaml");
        let text = std::fs::read_to_string(&path).expect("there");
        assert!(text.contains(from), "{from}");
        std::fs::write(path, text.replace(from, to)).expect("written");
    };
    let refused = |command: &[&str]| {
        let mut process = Command::new(program());
        process.args(command).current_dir(&pipeline.dir).env("STOCK_DIR", &out);
        for name in ["DEMO_SOURCE_URL", "DEMO_BACKFILL_URL"] {
            process.env(name, &pipeline.pos.url);
        }
        let output = process.output().expect("starts");
        assert!(!output.status.success());
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    for command in [&["validate", "--offline"][..], &["run", "--only", "delivery"]] {
        let said = refused(command);
        for part in ["config.not_colocated", "lines.yaml:6", "paid.yaml:6", "stock.yaml:", "source.partition_by", "public.order_item"] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
    }
    // A recipe is no order's: the stock connector needs one partition.
    edit(", stock.yaml]", "]");
    edit(
        "  slot: ",
        "  partition_by: {public.order_item: [id], public.order_item_modifier: [order_item_id], public.check_: [id], public.payment: [check_id]}\n  slot: ",
    );
    // Without the rest of the row a deletion would not say where its row stands.
    let pos = pipeline.pos.connect().await;
    pos.batch_execute("ALTER TABLE payment REPLICA IDENTITY FULL").await.expect("alters");
    pipeline.set_up().await;
    pipeline.drain().await;
    let running = pipeline.run("run", &[]);
    running.ready().await;
    pipeline.traffic(600, Level::pick(5, 8, 30), &["--even"]).finish(PATIENCE).await;
    running.process.kill9().await;
    pipeline.drain().await;
    let facts = lines(&out);
    let (paid, modified): (Vec<&Value>, Vec<&Value>) = facts.iter().partition(|fact| fact["tables"].is_array());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let said =
        sorted(paid.iter().map(|fact| format!("{} {} {}", text(&fact["check"]), text(&fact["paid"]), text(&fact["total"]))).collect());
    let stored =
        pos.query("SELECT format('%s %s %s', c.id, y.amount, c.total) FROM payment y JOIN check_ c ON c.id = y.check_id", &[]).await;
    let stored = sorted(stored.expect("reads").iter().map(|row| row.get(0)).collect());
    assert!(stored.len() > 20 && said == stored, "{} facts of {} payments", said.len(), stored.len());
    // Modifiers go with their lines, so what the history of the tables saw counts.
    let said = sorted(modified.iter().map(|fact| format!("{} {} {}", text(&fact["line"]), fact["modifier"], fact["item"])).collect());
    let history = "SELECT DISTINCT format('%s %s %s', m.row ->> 'order_item_id', m.row ->> 'modifier_id', i.row ->> 'item_id') FROM tillstream_oracle.history m \
                   JOIN tillstream_oracle.history i ON i.tbl = 'order_item' AND i.op = 'insert' AND i.row ->> 'id' = m.row ->> 'order_item_id' \
                   WHERE m.tbl = 'order_item_modifier' AND m.op = 'insert'";
    let stored = sorted(pos.query(history, &[]).await.expect("reads").iter().map(|row| row.get(0)).collect());
    assert!(stored.len() > 20 && said == stored, "{} facts of {} modifiers", said.len(), stored.len());
    let partitions: std::collections::BTreeSet<String> = std::fs::read_dir(&out)
        .expect("there")
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|m| m.len() > 0))
        .filter_map(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(|n| n.split('-').nth(1)).map(str::to_owned)
        })
        .collect();
    assert_eq!(partitions.len(), 4, "rows stand in every partition");
    println!("4 partitions: {} payments with their checks, {} modifiers with their lines", paid.len(), modified.len());
    drop(pos);
    pipeline.drop(server).await;
}
