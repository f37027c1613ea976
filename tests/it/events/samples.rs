//! One event for every operation and trap, made from the server's messages: what `schemas/examples/` holds.

use std::collections::HashMap;
use std::sync::Arc;

use tillstream::capture::encode::{self, Row, TxContext};
use tillstream::capture::pgoutput::{Message, parse};
use tillstream::capture::read_rows::{ReadChunk, ReadRow, ReadRows};
use tillstream::capture::relations::Relations;
use tillstream::config::SourceTable;
use tillstream_schemas::{EventId, Lsn, Position};

use crate::pgoutput_writer::{self as write, Column, Old, Value, column};

/// A golden file: its name without `.json`, and the body it holds.
pub(super) struct Sample {
    pub(super) name: &'static str,
    pub(super) body: Vec<u8>,
}

const ITEM: u32 = 16_400;
const FULL: u32 = 16_401;
const KEYLESS: u32 = 16_402;
const TYPES: u32 = 16_403;
const NAMES: u32 = 16_404;
const COMMIT: Lsn = Lsn(0x16_B3748);
const COMMIT_TIME: i64 = 848_656_800_123_456;

/// Plays the server to the parser, the relations and the encoder.
struct Server {
    relations: Relations,
    tx: TxContext,
    ordinal: u32,
    samples: Vec<Sample>,
}

fn row(values: &[Option<&str>]) -> Vec<Value> {
    values.iter().map(|v| Value::from(*v)).collect()
}

impl Server {
    fn new() -> Self {
        let tables =
            [SourceTable { schema: "public".to_owned(), table: "stock_level".to_owned(), partition_by: Some(vec!["location".to_owned()]) }];
        let primary_keys = HashMap::from([(("public".to_owned(), "stock_level".to_owned()), vec!["id".to_owned()])]);
        Server {
            relations: Relations::new(&tables, &primary_keys),
            tx: TxContext::new(1, COMMIT, 753, COMMIT_TIME),
            ordinal: 0,
            samples: Vec::new(),
        }
    }

    fn describe(&mut self, oid: u32, name: &str, identity: u8, columns: &[Column]) {
        let bytes = write::relation(oid, "public", name, identity, columns);
        let Ok(Message::Relation(relation)) = parse(&bytes) else { panic!("a relation") };
        self.relations.learn(&relation).expect("a good table");
    }

    /// Sends a message and keeps the bodies it becomes, under these names.
    fn send(&mut self, names: &[&'static str], bytes: &[u8]) {
        let mut bodies = Vec::new();
        let mut one = |relations: &Relations, oid: u32, row: Row<'_>| {
            let mut body = Vec::new();
            encode::change(&mut body, &self.tx, self.ordinal, &relations.get(oid).expect("described").table, &row).expect("fits its table");
            bodies.push(body);
        };
        match parse(bytes).expect("a message") {
            Message::Insert { oid, new } => one(&self.relations, oid, Row::Insert(new)),
            Message::Update { oid, old, new } => {
                let (first, second) = Row::of_update(&self.relations.get(oid).expect("described").table, old, new);
                one(&self.relations, oid, first);
                if let Some(second) = second {
                    one(&self.relations, oid, second);
                }
            }
            Message::Delete { oid, old } => one(&self.relations, oid, Row::Delete(old)),
            Message::Truncate(truncate) => {
                for oid in truncate.oids() {
                    let mut body = Vec::new();
                    encode::truncate(&mut body, &self.tx, self.ordinal, &self.relations.get(oid).expect("described").table);
                    bodies.push(body);
                }
            }
            Message::Message(message) => {
                let mut body = Vec::new();
                if message.transactional {
                    encode::message(&mut body, &self.tx, self.ordinal, &message);
                } else {
                    encode::message(&mut body, &TxContext::outside(1, &message), 0, &message);
                }
                bodies.push(body);
            }
            other => panic!("no event comes from {other:?}"),
        }
        self.ordinal += 1;
        assert_eq!(bodies.len(), names.len(), "{names:?}");
        self.samples.extend(names.iter().zip(bodies).map(|(name, body)| Sample { name, body }));
    }
}

/// Every sample; the order gives their ordinals.
pub(super) fn samples() -> Vec<Sample> {
    let mut server = Server::new();
    order_items(&mut server);
    full_identity(&mut server);
    keyless(&mut server);
    values(&mut server);
    others(&mut server);
    server.samples
}

/// A table with a key of one column and a large text.
fn order_items(server: &mut Server) {
    let columns = [
        column("id", 20, true),
        column("order_id", 20, false),
        column("name", 25, false),
        column("qty", 23, false),
        column("price", 1700, false),
        column("voided", 16, false),
        column("sold_at", 1184, false),
        column("receipt", 25, false),
    ];
    server.describe(ITEM, "order_item", b'd', &columns);
    let item = |id: &'static str, qty: &'static str| {
        row(&[
            Some(id),
            Some("42"),
            Some("Flat \"white\" ☕\n2 shots"),
            Some(qty),
            Some("4.50"),
            Some("f"),
            Some("2026-11-22 10:00:00.123456+00"),
            None,
        ])
    };
    let key = |id: &'static str| row(&[Some(id), None, None, None, None, None, None, None]);
    let unchanged = |id: &'static str, qty: &'static str| {
        let mut values = item(id, qty);
        values[7] = Value::Unchanged;
        values
    };
    server.send(&["event-insert"], &write::insert(ITEM, &item("7", "1")));
    server.send(&["event-update"], &write::update(ITEM, None, &item("7", "2")));
    server.send(&["event-update-unchanged"], &write::update(ITEM, None, &unchanged("7", "3")));
    server.send(
        &["event-key-change-delete", "event-key-change-insert"],
        &write::update(ITEM, Some(Old::Key(&key("7"))), &unchanged("8", "3")),
    );
    server.send(&["event-delete"], &write::delete(ITEM, Old::Key(&key("8"))));
    server.send(&["event-truncate"], &write::truncate(&[ITEM]));
}

/// A table that sends whole old rows: values not sent again come from there, and a row can change its partition.
fn full_identity(server: &mut Server) {
    let columns = [column("id", 20, true), column("location", 25, true), column("on_hand", 1700, true), column("note", 25, true)];
    server.describe(FULL, "stock_level", b'f', &columns);
    let old = row(&[Some("1"), Some("north"), Some("10.000"), Some("a long note")]);
    let mut new = row(&[Some("1"), Some("north"), Some("9.750"), None]);
    new[3] = Value::Unchanged;
    server.send(&["event-update-full"], &write::update(FULL, Some(Old::Row(&old)), &new));
    new[1] = Value::from("south");
    server.send(&["event-partition-change-delete", "event-partition-change-insert"], &write::update(FULL, Some(Old::Row(&old)), &new));
    server.send(&["event-delete-full"], &write::delete(FULL, Old::Row(&old)));
}

fn keyless(server: &mut Server) {
    server.describe(KEYLESS, "audit_log", b'd', &[column("at", 1114, false), column("what", 25, false)]);
    server.send(&["event-insert-keyless"], &write::insert(KEYLESS, &row(&[Some("2026-11-22 10:00:00"), Some("drawer opened")])));
}

/// Every class of value, and names that need care.
fn values(server: &mut Server) {
    let cells: &[(&str, u32, Option<&str>)] = &[
        ("id", 20, Some("9223372036854775807")),
        ("bool", 16, Some("t")),
        ("int2", 21, Some("-1")),
        ("oid", 26, Some("4294967295")),
        ("float8", 701, Some("1e-07")),
        ("float_nan", 701, Some("NaN")),
        ("float_infinity", 700, Some("-Infinity")),
        ("numeric", 1700, Some("123456789012345678901234567890.10")),
        ("numeric_nan", 1700, Some("NaN")),
        ("text", 25, Some("tab\t quote\" back\\ bell\u{7} Zoë 🍕")),
        ("char", 1042, Some("ab   ")),
        ("json", 114, Some("{ \"b\" : 1.50,\"a\":\"\\u0000\"}")),
        ("jsonb", 3802, Some("{\"a\": [1, {\"b\": null}]}")),
        ("bytea", 17, Some("\\x00ff10")),
        ("timestamp", 1114, Some("2026-11-22 10:00:00.5")),
        ("timestamptz", 1184, Some("2026-11-22 10:00:00+00")),
        ("timestamptz_infinity", 1184, Some("infinity")),
        ("timestamptz_bc", 1184, Some("0044-03-15 10:00:00+00 BC")),
        ("timestamptz_far", 1184, Some("12026-11-22 10:00:00+00")),
        ("date", 1082, Some("2026-11-22")),
        ("date_bc", 1082, Some("0044-03-15 BC")),
        ("time", 1083, Some("24:00:00")),
        ("interval", 1186, Some("1 year 2 mons 3 days 04:05:06.789")),
        ("uuid", 2950, Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        ("enum", 16_390, Some("open")),
        ("null", 25, None),
        ("ints", 1007, Some("{1,NULL,-3}")),
        ("ints_nested", 1007, Some("{{1,2},{3,4}}")),
        ("ints_shifted", 1007, Some("[2:3]={1,2}")),
        ("bools", 1000, Some("{t,f}")),
        ("floats", 1022, Some("{1.5,NaN,Infinity}")),
        ("numerics", 1231, Some("{1.10,NULL}")),
        ("texts", 1009, Some("{a,\"b c\",\"d,e\",\"\",\"NULL\",NULL,\"q\\\"q\",\"b\\\\s\",\"{x}\",Zoë}")),
        ("empty", 1009, Some("{}")),
        ("jsonbs", 3807, Some("{\"{\\\"k\\\": \\\"v\\\\\\\\\\\"}\",NULL}")),
        ("byteas", 1001, Some("{\"\\\\x00\",\"\\\\xdeadbeef\"}")),
        ("timestamptzs", 1185, Some("{\"2026-11-22 10:00:00+00\",-infinity}")),
        ("boxes", 1020, Some("{(1,1),(0,0);(3,3),(2,2)}")),
        ("enums", 16_389, Some("{open,closed}")),
    ];
    let columns: Vec<Column> = cells.iter().map(|(name, oid, _)| column(name, *oid, *name == "id")).collect();
    server.describe(TYPES, "all_types", b'd', &columns);
    let values: Vec<Value> = cells.iter().map(|(_, _, text)| Value::from(*text)).collect();
    server.send(&["event-insert-types"], &write::insert(TYPES, &values));

    let columns = [column("Ordner \"Größe\"", 23, true), column("emoji 🍕\u{202e}bidi", 25, true), column("back\\slash", 25, false)];
    server.describe(NAMES, "My \"Quoted\" Täble", b'i', &columns);
    let mut values = row(&[Some("1"), Some("ключ"), None]);
    // A SQL_ASCII database can send what is not UTF-8.
    values[2] = Value::from(b"caf\xe9".as_slice());
    server.send(&["event-insert-names"], &write::insert(NAMES, &values));
}

fn others(server: &mut Server) {
    server.send(&["event-message"], &write::message(true, Lsn(0x16_B3600), "till/close", b"{\"drawer\": 4}"));
    server.send(&["event-message-binary"], &write::message(true, Lsn(0x16_B3700), "till/raw", b"\x00\xff\x10"));
    server.send(&["event-message-outside"], &write::message(false, COMMIT, "till/ping", b""));
    let table = server.relations.get(ITEM).expect("described").table.clone();
    let values = ["7", "42", "Espresso", "1", "2.80", "f", "2026-11-22 09:59:59+00", ""];
    let mut rows = ReadRows::new(values.len());
    for _ in 0..=44 {
        rows.push(values.iter().enumerate().map(|(at, value)| (at != 7).then_some(*value)));
    }
    let EventId::Read(id) = "e1-binitial-public.order_item-12.0-44".parse().expect("an id") else { unreachable!("a row's id") };
    let chunk = ReadChunk::new(table, Arc::new(rows), None, id, Position::new(1, Lsn(0x16_B3800), 0));
    let read = ReadRow { chunk: Arc::new(chunk), row: 44, gone: false };
    let mut body = Vec::new();
    encode::read(&mut body, &read);
    server.samples.push(Sample { name: "event-read", body });
    let mut body = Vec::new();
    encode::end(&mut body, &server.tx, 5, 19);
    server.samples.push(Sample { name: "end", body });
}
