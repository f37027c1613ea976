//! The page "write your own connector": its program is compiled here, and does what the page says.

// `main` is the program's, and this binary has its own.
#[allow(dead_code)]
#[path = "fixtures/own_connector/main.rs"]
mod program;

use std::sync::Arc;

use serde_json::json;
use tillstream_connectors::sink::{Batch, Item, LaneId, Mark, OnDelete, Sink};
use tillstream_schemas::{Event, Position};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::harness::root;

#[test]
fn the_page_shows_the_program_that_is_compiled() {
    let page = std::fs::read_to_string(root().join("connectors/README.md")).expect("there");
    let shown = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).expect("one block of Rust");
    let program = std::fs::read_to_string(root().join("tests/it/fixtures/own_connector/main.rs")).expect("there");
    if std::env::var_os("TILLSTREAM_UPDATE").is_some() {
        std::fs::write(
            root().join("connectors/README.md"),
            page.replacen(&format!("```rust\n{shown}```"), &format!("```rust\n{program}```"), 1),
        )
        .expect("written");
    }
    assert_eq!(shown, program, "TILLSTREAM_UPDATE=1 writes it anew");
}

fn item(n: u32) -> Item {
    let body = json!({"id": format!("e1-0/1-{n}"), "op": "insert", "schema": "s", "table": "t", "key": {"id": n}, "before": null, "after": {"id": n},
        "unchanged": [], "commit_lsn": "0/1", "ordinal": n, "xid": 1, "committed_at": "2026-11-23T10:00:00.000000Z"});
    let event = Arc::new(Event::parse(body.to_string().into()).expect("an event"));
    Item { event, idempotency_key: format!("key{n}"), version: Position::NONE, mapped: Some(Ok(format!("{{\"n\":{n}}}").into())) }
}

#[tokio::test]
async fn it_delivers_absorbs_refuses_and_repeats() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let registry = program::registry();
    let kind = registry.get("display").expect("added");
    assert_eq!(kind.validate(&json!({}), true).expect_err("incomplete")[0].path, "address");
    let target = kind.validate(&json!({"address": address}), true).expect("valid");
    let mut sink: Box<dyn Sink> = target.build(LaneId { connector: "kitchen".into(), partition: 0, lane: 0 }, OnDelete::Ignore);
    let display = tokio::spawn(async move {
        let mut lines = Vec::new();
        for answers in [&["ok\n", "known\n", "no\n", "?\n"][..], &["ok\n"]] {
            let (connection, _) = listener.accept().await.expect("a connection");
            let mut connection = BufReader::new(connection);
            for answer in answers {
                let mut line = String::new();
                connection.read_line(&mut line).await.expect("a line");
                connection.write_all(answer.as_bytes()).await.expect("taken");
                lines.push(line);
            }
        }
        lines
    });
    let batch = |ns: std::ops::Range<u32>| Batch { items: ns.map(item).collect(), mark: Mark(Vec::new()) };
    let outcomes = sink.deliver(&batch(0..5)).await.expect("answers");
    assert_eq!(super::sinks::said(&outcomes), ["delivered", "absorbed", "display.refused"], "the fourth is not known and comes again");
    assert_eq!(super::sinks::said(&sink.deliver(&batch(3..4)).await.expect("answers")), ["delivered"]);
    let lines = display.await.expect("ends");
    assert_eq!((lines.len(), lines[0].as_str(), lines[3] == lines[4]), (5, "key0 {\"n\":0}\n", true));
    assert_eq!(sink.check().await.expect_err("nobody listens").code, "display.away");
}
