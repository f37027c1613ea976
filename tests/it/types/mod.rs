//! Every type, text-exact: rows of every type that the server has, written by the server, read back from it, and compared with
//! the events.
//!
//! The oracle is the server: each value's text by its own output function (`format('%s', …)`) under settings of this test's own
//! session, each array's elements by `array_to_json`. How a class looks in JSON is stated here a second time, in the plainest way.

mod samples;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::{Database, Level, Postgres};
use crate::matrix::{Bench, Captured};
use samples::{Class, Sample, samples};

/// A column of the test's table.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    sql_type: String,
    class: Class,
    array: bool,
    /// SQL expressions of values to choose from.
    values: Vec<String>,
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A scalar and an array column of every type.
fn columns(samples: &[Sample]) -> Vec<Column> {
    let mut columns = Vec::new();
    for (at, sample) in samples.iter().enumerate() {
        let literal = |text: &String| format!("{}::{}", quoted(text), sample.sql_type);
        let values: Vec<String> = sample.texts.iter().map(literal).collect();
        if sample.array {
            let (a, b) = (&values[0], &values[values.len() - 1]);
            let kind = format!("{}[]", sample.sql_type);
            let arrays = vec![
                format!("ARRAY[{}]", values.join(", ")),
                format!("ARRAY[{a}, NULL, {b}]"),
                format!("ARRAY[[{a}, {b}], [NULL, {a}]]"),
                format!("ARRAY[[[{a}], [{b}]]]"),
                format!("('[2:3]=' || ARRAY[{a}, {b}]::text)::{kind}"),
                format!("('[-1:0][5:5]=' || ARRAY[[{a}], [{b}]]::text)::{kind}"),
                format!("'{{}}'::{kind}"),
            ];
            columns.push(Column { name: format!("a{at}"), sql_type: kind, class: sample.class, array: sample.built_in, values: arrays });
        }
        let class = sample.class;
        columns.push(Column { name: format!("c{at}"), sql_type: sample.sql_type.clone(), class, array: false, values });
    }
    columns
}

/// The JSON that a value's text has to become.
fn scalar(class: Class, text: &str) -> String {
    let string = || serde_json::to_string(text).expect("a string");
    match class {
        Class::Text | Class::Numeric => string(),
        Class::Integer => text.to_owned(),
        Class::Float if text.contains(['N', 'I']) => string(),
        Class::Float => text.to_owned(),
        Class::Boolean => if text == "t" { "true" } else { "false" }.to_owned(),
        Class::Json => text.to_owned(),
        Class::Bytes => {
            let hex = text.strip_prefix("\\x").expect("hex");
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
            format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        // What RFC 3339 can say: four digits of a year, no BC, no infinity.
        Class::Timestamp | Class::TimestampTz => {
            let sayable = text.as_bytes().get(4) == Some(&b'-') && !text.ends_with("BC") && !text.contains("infinity");
            if !sayable {
                return string();
            }
            let iso = text.replacen(' ', "T", 1);
            match (class, iso.strip_suffix("+00")) {
                (Class::TimestampTz, Some(utc)) => format!("\"{utc}Z\""),
                _ => format!("\"{iso}\""),
            }
        }
    }
}

/// As [`scalar`], of nested arrays of texts.
fn array(class: Class, elements: &Value) -> String {
    match elements {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::String(text) => scalar(class, text),
        Value::Array(items) => format!("[{}]", items.iter().map(|item| array(class, item)).collect::<Vec<_>>().join(",")),
        other => panic!("not a text: {other}"),
    }
}

/// What every row's columns have to look like, by id.
async fn expected(client: &Client, table: &str, columns: &[Column]) -> BTreeMap<i64, Vec<String>> {
    let text = |c: &Column| format!("CASE WHEN {0} IS NOT NULL OR {0}::text IS NOT NULL THEN format('%s', {0}) END", c.name);
    // A cast to text is another function than output for a few types; for these JSON takes the output, and for the others the cast is it.
    let cast =
        |c: &Column| if matches!(c.sql_type.as_str(), "boolean[]" | "inet[]" | "character[]" | "character(4)[]") { "" } else { "::text[]" };
    let elements = |c: &Column| match c.array {
        true => format!(
            "CASE WHEN cardinality({0}) = 0 OR array_lower({0}, 1) = 1 AND coalesce(array_lower({0}, 2), 1) = 1 \
             AND coalesce(array_lower({0}, 3), 1) = 1 THEN array_to_json({0}{1})::text END",
            c.name,
            cast(c)
        ),
        false => "NULL".to_owned(),
    };
    let list: Vec<String> = columns.iter().flat_map(|c| [text(c), elements(c)]).collect();
    let mut found = BTreeMap::new();
    // Wide rows: a target list holds at most 1,664 entries.
    for (at, part) in list.chunks(800).enumerate() {
        let sql = format!("SELECT id, ARRAY[{}]::text[] FROM {table} ORDER BY id", part.join(", "));
        for row in client.query(&sql, &[]).await.unwrap_or_else(|e| panic!("{e:?}")) {
            let texts: Vec<Option<String>> = row.get(1);
            let values: &mut Vec<String> = found.entry(row.get::<_, i64>(0)).or_default();
            for (column, pair) in columns[at * 400..].iter().zip(texts.chunks(2)) {
                values.push(match (&pair[0], &pair[1]) {
                    (None, _) => "null".to_owned(),
                    (Some(_), Some(elements)) => array(column.class, &serde_json::from_str(elements).expect("JSON")),
                    (Some(text), None) if column.array => serde_json::to_string(text).expect("a string"),
                    (Some(text), None) => scalar(column.class, text),
                });
            }
        }
    }
    found
}

fn compare(event: &Captured, columns: &[Column], expected: &[String], row: &str) {
    let found: BTreeMap<&str, &str> = match row {
        "after" => event.event.after().collect(),
        _ => event.event.before().collect(),
    };
    for (column, expected) in columns.iter().zip(expected) {
        let found = found.get(column.name.as_str()).copied().unwrap_or("(absent)");
        assert_eq!(found, expected, "{} {row}, {} ({})", event.op(), column.name, column.sql_type);
    }
}

/// Settings that change how values print, on everyone who connects without their own.
const ODD_SETTINGS: [&str; 7] = [
    "datestyle = 'German, DMY'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'Asia/Kolkata'",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
    "lc_monetary = 'C'",
    "xmloption = 'document'",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_text_exact() {
    let seed = std::env::var("TILLSTREAM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random::<u64>());
    println!("TILLSTREAM_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let server = Postgres::shared().await;
    let database = Database::empty(server, "types").await;
    let setup = database.connect().await;
    for setting in ODD_SETTINGS {
        setup.batch_execute(&format!("ALTER DATABASE {} SET {setting}", database.name)).await.expect("a setting");
    }
    setup.batch_execute(samples::PREPARE).await.unwrap_or_else(|e| panic!("{e:?}"));
    let version: i32 = setup.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await.expect("a version").get(0);
    let samples = samples(version, &mut random);

    // Nothing that the server calls a type and lets a table hold is left out.
    let covered: BTreeSet<&str> = samples.iter().map(|s| s.sql_type.as_str()).collect();
    let all = setup.query(samples::STORABLE, &[]).await.expect("types");
    let missing: Vec<String> = all.iter().map(|row| row.get::<_, String>(0)).filter(|name| !covered.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "no sample of {missing:?}");

    let columns = columns(&samples);
    let list = columns.iter().map(|c| format!("{} {}", c.name, c.sql_type)).collect::<Vec<_>>().join(", ");
    let sql = format!("CREATE TABLE everything (id bigint PRIMARY KEY, touched int, {list}); ALTER TABLE everything REPLICA IDENTITY FULL");
    let bench = Bench::over(database, "types", &sql, "FOR TABLE everything", &["everything"]).await;
    let rows = Level::pick(20, 60, 600);
    for id in 0..rows {
        // The first rows hold every value in turn, the others any, and a NULL here and there.
        let value = |c: &Column, random: &mut StdRng| match random.random_range(0..12) {
            0 if id > 12 && c.sql_type != "share" => "NULL".to_owned(),
            _ if id <= 12 => c.values[id % c.values.len()].clone(),
            _ => c.values[random.random_range(0..c.values.len())].clone(),
        };
        let values = columns.iter().map(|c| value(c, &mut random)).collect::<Vec<_>>().join(", ");
        bench.sql(&format!("SET search_path = public, pg_catalog; INSERT INTO everything VALUES ({id}, 0, {values})")).await;
    }
    let reader = bench.database.connect().await;
    reader
        .batch_execute(
            "SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET bytea_output = hex; SET timezone = 'UTC'; \
             SET lc_monetary = 'C'; SET search_path = ''",
        )
        .await
        .expect("settings");
    let expected = expected(&reader, "public.everything", &columns).await;
    bench.sql("UPDATE everything SET touched = 1; DELETE FROM everything").await;
    let events = bench.events().await;
    assert_eq!(events.len(), 3 * rows, "one event for every change");
    for event in &events {
        let id = event.key()["id"].as_i64().expect("a key");
        match event.op() {
            "insert" => compare(event, &columns, &expected[&id], "after"),
            "update" => {
                compare(event, &columns, &expected[&id], "after");
                compare(event, &columns, &expected[&id], "before");
            }
            _ => compare(event, &columns, &expected[&id], "before"),
        }
    }
    println!("{} columns of {} types, {rows} rows, {} values compared", columns.len(), samples.len(), columns.len() * rows * 4);
    bench.end(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encodings_are_converted_or_replaced_and_never_stop_anything() {
    let server = Postgres::shared().await;
    for (encoding, bytes, text) in [
        ("LATIN1", r"\xe9", "é"),
        ("EUC_JP", r"\xa4a2", "あ"),
        ("WIN1252", r"\x80", "€"),
        // No encoding at all: what is not UTF-8 is replaced, byte for byte where it is UTF-8.
        ("SQL_ASCII", r"\xe9", "\u{FFFD}"),
        ("SQL_ASCII", r"\xc3a9", "é"),
    ] {
        let database = Database::encoded(server, "encoding", encoding).await;
        let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, j json, a text[])";
        let bench = Bench::over(database, "encoding", sql, "FOR TABLE t", &["t"]).await;
        // The text is made on the server, so that no client's encoding comes in between.
        bench
            .sql(&format!(
                "INSERT INTO t SELECT 1, v, ('\"' || v || '\"')::json, ARRAY[v, 'plain'] FROM convert_from('{bytes}'::bytea, '{encoding}') v"
            ))
            .await;
        bench.sql("INSERT INTO t VALUES (2, 'after')").await;
        let events = bench.events().await;
        assert_eq!(events.len(), 2, "{encoding}");
        let after = events[0].after();
        assert_eq!((&after["v"], &after["j"], &after["a"][0]), (&text.into(), &text.into(), &text.into()), "{encoding} {bytes}");
        bench.end(server).await;
    }
}
