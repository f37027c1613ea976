//! Golden files: what capture writes, byte for byte; what the JSON Schemas say; what readers get back.
//!
//! `TILLSTREAM_BLESS=1` writes the files anew; a change of theirs is a change of a stored format.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::{Value, json};
use tillstream_schemas::entry::{BatchBuffer, PartInfo};
use tillstream_schemas::partition::{hash, partition_of};
use tillstream_schemas::{Entry, Event, Header, Kind, Lineage, Position};

use super::samples::samples;

fn schemas() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../schemas")
}

/// Compares with a golden file of `schemas/examples/`, or writes it when blessing.
fn golden(file: &str, text: &str) {
    let path = schemas().join("examples").join(file);
    if std::env::var_os("TILLSTREAM_BLESS").is_some() {
        std::fs::write(&path, text).expect("write the golden file");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, stored, "{file}");
}

fn validator(file: &str) -> jsonschema::Validator {
    let text = std::fs::read_to_string(schemas().join("json").join(file)).expect("a schema");
    jsonschema::validator_for(&serde_json::from_str(&text).expect("JSON")).expect("a JSON Schema")
}

fn problems(validator: &jsonschema::Validator, body: &[u8]) -> Vec<String> {
    let value: Value = serde_json::from_slice(body).expect("JSON");
    validator.iter_errors(&value).map(|e| format!("{} at {}", e, e.instance_path())).collect()
}

#[test]
fn capture_writes_the_golden_examples() {
    for sample in samples() {
        golden(&format!("{}.json", sample.name), &format!("{}\n", String::from_utf8(sample.body).expect("UTF-8")));
    }
}

#[test]
fn the_examples_are_what_the_schemas_say() {
    let (event, end) = (validator("event.v1.schema.json"), validator("end.v1.schema.json"));
    for sample in samples() {
        let schema = if sample.name == "end" { &end } else { &event };
        assert_eq!(problems(schema, &sample.body), Vec::<String>::new(), "{}", sample.name);
        assert!(!problems(if sample.name == "end" { &event } else { &end }, &sample.body).is_empty(), "{}", sample.name);
    }
    let fence = tillstream::control::Record::Session(tillstream::control::Session {
        token: 7,
        nonce: "00c0ffee00c0ffee".to_owned(),
        owner: "till-host/4711".to_owned(),
        pipeline: "main".to_owned(),
        source: "shop".to_owned(),
        system_id: 7_572_990_311_206_465_537,
        timeline: 1,
        slot: "tillstream_main".to_owned(),
        epoch: 1,
        lineage: Lineage(0x0011_2233_4455_6677),
        partitioning: None,
        confirmed: None,
        at_ms: 1_795_341_600_123,
    });
    let body = fence.to_json();
    assert_eq!(problems(&validator("fence.v1.schema.json"), &body), Vec::<String>::new());
    golden("fence.json", &format!("{}\n", std::str::from_utf8(&body).expect("UTF-8")));
}

/// The schema has teeth: each of these alterations of an example is found.
#[test]
fn the_event_schema_refuses_what_is_no_event() {
    let schema = validator("event.v1.schema.json");
    let sample = |name: &str| -> Value {
        let body = samples().into_iter().find(|s| s.name == name).expect("a sample").body;
        serde_json::from_slice(&body).expect("JSON")
    };
    let altered: [(&str, &str, Value); 16] = [
        ("event-insert", "id", json!("17")),
        ("event-insert", "op", json!("upsert")),
        ("event-insert", "table", Value::Null),
        ("event-insert", "key", json!({})),
        ("event-insert", "before", json!({"id": 7})),
        ("event-insert", "after", Value::Null),
        ("event-insert", "unchanged", Value::Null),
        ("event-insert", "commit_lsn", json!("0/16b3748")),
        ("event-insert", "ordinal", json!(-1)),
        ("event-insert", "xid", Value::Null),
        ("event-insert", "committed_at", json!("2026-11-22 10:00:00+00")),
        ("event-delete", "after", json!({"id": 7})),
        ("event-truncate", "key", json!({"id": 7})),
        ("event-read", "xid", json!(753)),
        ("event-message", "schema", json!("public")),
        ("event-message", "after", json!({"prefix": "p"})),
    ];
    for (name, field, value) in altered {
        let mut event = sample(name);
        assert!(schema.is_valid(&event));
        event[field] = value;
        assert!(!schema.is_valid(&event), "{name} with another {field}");
        event.as_object_mut().expect("an object").remove(field);
        assert!(!schema.is_valid(&event), "{name} without {field}");
    }
}

#[test]
fn readers_get_the_examples_back() {
    for sample in samples().into_iter().filter(|s| s.name != "end") {
        let value: Value = serde_json::from_slice(&sample.body).expect("JSON");
        let event = Event::parse(Bytes::from(sample.body.clone())).unwrap_or_else(|e| panic!("{}: {e}", sample.name));
        assert_eq!(event.id(), value["id"]);
        assert_eq!(event.event_id().to_string(), value["id"].as_str().expect("text"));
        assert_eq!(event.op().as_str(), value["op"]);
        assert_eq!((event.schema(), event.table()), (value["schema"].as_str(), value["table"].as_str()));
        assert_eq!(event.commit_lsn().to_string(), value["commit_lsn"].as_str().expect("text"));
        assert_eq!(event.ordinal(), value["ordinal"]);
        assert_eq!(event.xid().map(Value::from).unwrap_or_default(), value["xid"]);
        assert_eq!(event.committed_at(), value["committed_at"].as_str());
        let same = |fields: Vec<(&str, &str)>, part: &str| {
            let wanted = value[part].as_object().cloned().unwrap_or_default();
            assert_eq!(fields.len(), wanted.len(), "{} {part}", sample.name);
            for ((name, raw), (wanted_name, wanted_value)) in fields.iter().zip(&wanted) {
                assert_eq!(name, wanted_name);
                assert_eq!(&serde_json::from_str::<Value>(raw).expect("JSON"), wanted_value, "{} {part} {name}", sample.name);
            }
        };
        same(event.key().collect(), "key");
        same(event.before().collect(), "before");
        same(event.after().collect(), "after");
        let unchanged: Vec<&str> = event.unchanged().collect();
        assert_eq!(json!(unchanged), value["unchanged"]);
        for name in unchanged {
            assert_eq!(event.column(name), None, "an unchanged column has no value");
        }
    }
}

/// What the traps are about, said in words rather than in bytes.
#[test]
fn traps_are_kept() {
    let event = |name: &str| {
        let body = samples().into_iter().find(|s| s.name == name).expect("a sample").body;
        Event::parse(Bytes::from(body)).expect("an event")
    };
    assert_eq!(event("event-update-unchanged").unchanged().collect::<Vec<_>>(), ["receipt"]);
    let full = event("event-update-full");
    assert_eq!((full.unchanged().len(), full.column("note")), (0, Some("\"a long note\"")), "the old row fills it in");
    assert_eq!(full.key().collect::<Vec<_>>(), [("id", "1")], "the primary key is the key, though FULL flags every column");
    let (gone, come) = (event("event-key-change-delete"), event("event-key-change-insert"));
    assert_eq!((gone.version().commit_lsn, gone.version().ordinal), (come.version().commit_lsn, come.version().ordinal));
    assert!(gone.version() < come.version() && gone.key_hash() != come.key_hash());
    let (gone, come) = (event("event-partition-change-delete"), event("event-partition-change-insert"));
    assert_eq!((gone.key_hash(), gone.old_column("location")), (come.key_hash(), Some("\"north\"")));
    let outside = event("event-message-outside");
    assert_ne!(outside.version().commit_lsn, event("event-message").version().commit_lsn, "a commit may begin where its record ends");
}

#[test]
fn frames_are_the_golden_bytes() {
    let position = |text: &str| text.parse::<Position>().expect("a position");
    let header = |kind, at: &str, prev: &str| Header {
        kind,
        whole: kind,
        token: 7,
        position: position(at),
        prev: position(prev),
        lineage: Lineage(0x0011_2233_4455_6677),
        part: None,
        source: "shop",
    };
    let none = Position::NONE.to_string();
    let part = PartInfo { index: 1, count: 3, length: 5_000_000, crc: 0xdead_beef };
    let frames = [
        ("fence", header(Kind::Fence, &none, &none), "{\"type\":\"session\"}"),
        ("event", header(Kind::Event, "1-0/16B3748-17", "1-0/16B3748-16"), "{\"id\":\"e1-0/16B3748-17\"}"),
        ("key change's insert", header(Kind::Event, "1-0/16B3748-18i", "1-0/16B3748-18d"), "{\"id\":\"e1-0/16B3748-18i\"}"),
        ("end", header(Kind::End, "1-0/16B3748-end", "1-0/16B3748-18i"), "{\"commit_lsn\":\"0/16B3748\"}"),
        ("read", header(Kind::Read, "1-0/16B3800-0", "1-0/16B3748-end"), "{\"id\":\"e1-binitial-public.order_item-12.0-44\"}"),
        (
            "part of an event",
            Header { kind: Kind::Part, whole: Kind::Event, part: Some(part), ..header(Kind::Event, "2-1/0-0", "1-0/16B3748-end") },
            "…middle third…",
        ),
        (
            "marker with the longest source name",
            Header { source: &"s".repeat(tillstream_schemas::entry::SOURCE_NAME_MAX), ..header(Kind::Marker, &none, "2-1/0-0") },
            "{}",
        ),
    ];
    let mut list = Vec::new();
    for (name, header, body) in &frames {
        let mut buffer = BatchBuffer::default();
        buffer.push(header, body.as_bytes());
        // A batch puts each entry's length before it; the frame is what follows.
        let frame = &buffer.as_bytes()[4..];
        let entry = Entry::decode(frame).expect("decodes");
        assert_eq!((&entry.header, entry.body), (header, body.as_bytes()));
        list.push(json!({
            "name": name,
            "kind": header.kind.as_str(),
            "whole": header.whole.as_str(),
            "token": header.token,
            "position": header.position.to_string(),
            "prev": header.prev.to_string(),
            "lineage": format!("{:016x}", header.lineage.0),
            "part": header.part.map(|p| json!({"index": p.index, "count": p.count, "length": p.length, "crc32": format!("{:08x}", p.crc)})),
            "source": header.source,
            "body": body,
            "frame_hex": frame.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        }));
    }
    golden("frames.json", &format!("{}\n", serde_json::to_string_pretty(&list).expect("JSON")));
}

#[test]
fn partitions_are_the_golden_ones() {
    let rows: [&[Option<&str>]; 12] = [
        &[],
        &[Some("")],
        &[None],
        &[Some("1")],
        &[Some("42")],
        &[Some("9223372036854775807")],
        &[Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")],
        &[Some("north"), Some("42")],
        &[Some("north"), None],
        &[None, Some("42")],
        &[Some("Zürich ☕"), Some("日本")],
        &[Some("a"), Some(""), Some("0123456789abcdef")],
    ];
    let list: Vec<Value> = rows
        .iter()
        .map(|row| {
            let texts = || row.iter().map(|v| v.map(str::as_bytes));
            let in_all: serde_json::Map<String, Value> =
                [1u16, 2, 3, 16, 1000].iter().map(|count| (count.to_string(), json!(partition_of(texts(), *count)))).collect();
            json!({ "values": row, "hash": hash(texts()), "partition_of_count": in_all })
        })
        .collect();
    golden("partition.json", &format!("{}\n", serde_json::to_string_pretty(&list).expect("JSON")));
}
