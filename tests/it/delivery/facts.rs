//! Events that become several outputs, look rows up, or are one with the others of their transaction: what reaches the target, what is repeated, and
//! what becomes of a dead letter.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tillstream::config::{Connector, Keep};
use tillstream::control::{self, Writer};
use tillstream::delivery::Mode;
use tillstream::delivery::dead_letter::{self, Wanted};
use tillstream::journal::Journal;
use tillstream_connectors::mapping::{Definition, Lookup, Mapping};
use tillstream_connectors::registry::{Registry, Target};
use tillstream_schemas::Op;

use super::http::{Api, mapped_target};
use super::pos::{Capture, Change, catch_up, connector, delete, insert, journal, start, until, update};

fn mapped(name: &str, target: Arc<dyn Target>, definition: Definition<'_>) -> Connector {
    let mapping = Mapping::define(definition).unwrap_or_else(|problems| panic!("{problems:?}"));
    Connector { mapping: Some(Arc::new(mapping)), tables: vec![("public".into(), "a".into())], ..connector(name, target) }
}

/// A row of `a` with a list.
fn listed(id: u64, list: &[u64]) -> Change {
    let after = json!({"id": id, "list": list}).to_string();
    Change { op: Op::Insert, table: "a", key: format!("{{\"id\":{id}}}"), after: Some(after) }
}

async fn api() -> (Arc<Api>, String) {
    Api::start(|_, _| axum::response::IntoResponse::into_response(axum::Json(json!({"ok": true})))).await
}

/// Every second call fails, half of them after it was applied.
async fn moody() -> (Arc<Api>, String) {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    Api::start(|call, _| match call % 4 {
        1 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        3 => (StatusCode::INTERNAL_SERVER_ERROR, [("x-applied", "all")]).into_response(),
        _ => axum::Json(json!({"ok": true})).into_response(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_output_of_an_event_arrives_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for id in 0..150 {
        // More than a batch holds, several, one and none.
        let list: Vec<u64> = (0..[23, 4, 1, 0][id as usize % 4]).collect();
        capture.write(0, &[listed(id, &list)]).await;
    }
    capture.flush().await;
    let outputs: usize = (0..150).map(|id| [23, 4, 1, 0][id % 4]).sum();
    let map = json!({"id": "{{ idempotency_key }}", "fact": "{{ key.id }}-{{ item }}"});
    let definition =
        Definition { each: Some("{{ after.list }}"), id: Some("{{ key.id }}-{{ item }}"), map: Some(&map), ..Definition::default() };
    let (api, url) = moody().await;
    let lines = Registry::built_in().get("jsonl").expect("built in").validate(&json!({"dir": out.path()}), true).expect("valid");
    let connectors =
        || vec![mapped("http", mapped_target(&url, json!({"mode": "batch"})), definition), mapped("lines", lines.clone(), definition)];
    let written = || -> Vec<Value> {
        let files = std::fs::read_dir(out.path()).expect("there").flatten().map(|entry| entry.path());
        let text: String =
            files.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).map(|p| std::fs::read_to_string(p).expect("text")).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    for part in 1..5 {
        let running = start(&journal, connectors(), Mode::Continuous);
        until("it goes on", || api.items().len() >= part * 100 && written().len() >= part * 100).await;
        running.kill().await;
    }
    let stats = catch_up(&journal, connectors()).await.expect("catches up");
    api.assert_once(outputs);
    let mut facts: HashMap<String, u32> = HashMap::new();
    for line in written() {
        *facts.entry(line["fact"].to_string()).or_default() += 1;
    }
    assert_eq!((facts.len(), facts.values().max()), (outputs, Some(&1)), "lost or doubled lines");
    assert_eq!(stats.connector("http").expect("there").rejected.load(Ordering::Relaxed), 0);
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let end = journal.bounds(tillstream::journal::Log::Data(0)).await.expect("bounds").expect("not empty").last;
    assert_eq!(state.checkpoint("http", 0).map(|c| c.offset.0), Some(end.0 + 1), "everything is settled");
}

async fn letters(journal: &Arc<dyn Journal>) -> Vec<(String, String, String)> {
    let state = control::replay(journal.as_ref()).await.expect("replays");
    state.dead_letters().map(|l| (l.letter.event_id.clone(), l.letter.code.clone(), l.letter.idempotency_key.clone())).collect()
}

async fn redrive(journal: &Arc<dyn Journal>) {
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let mut operator = Writer::take_operator(journal.clone(), "test", "pos", &state, "test").await.expect("takes over");
    dead_letter::redrive(&mut operator, &state, &Wanted::default(), "test").await.expect("asks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_output_is_a_dead_letter_by_itself_and_is_redriven_under_its_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    capture.commit(0, &[listed(1, &[10, 11, 12]), listed(2, &[20, 20]), listed(3, &[30, 31])]).await;
    let (api, url) = api().await;
    let broken = json!({"id": "{{ idempotency_key }}", "v": "{{ item if item not in (11, 31) else after.gone }}"});
    let mended = json!({"id": "{{ idempotency_key }}", "v": "{{ item }}"});
    let by_item =
        Definition { each: Some("{{ after.list }}"), id: Some("{{ key.id }}-{{ item }}"), map: Some(&broken), ..Definition::default() };
    let target = || mapped_target(&url, json!({"mode": "single"}));
    catch_up(&journal, vec![mapped("facts", target(), by_item)]).await.expect("catches up");
    api.assert_once(3);
    let parked = letters(&journal).await;
    let (first, whole, last) = (&parked[0], &parked[1], &parked[2]);
    assert!(first.0.starts_with("e1-0/1100-0#") && last.0.starts_with("e1-0/1100-2#"), "{parked:?}");
    assert_eq!((whole.0.as_str(), whole.1.as_str()), ("e1-0/1100-1", "mapping.duplicate_id"));

    // Before anything is mended a redrive changes nothing.
    redrive(&journal).await;
    catch_up(&journal, vec![mapped("facts", target(), by_item)]).await.expect("catches up");
    assert_eq!(letters(&journal).await, parked);
    api.assert_once(3);
    assert_eq!(api.requests(), 3);

    redrive(&journal).await;
    let mended = Definition { map: Some(&mended), ..by_item };
    catch_up(&journal, vec![mapped("facts", target(), mended)]).await.expect("catches up");
    api.assert_once(5);
    assert_eq!(api.requests(), 5, "of events with several outputs only those that were refused are sent again");
    assert_eq!(letters(&journal).await, parked[1..2], "two of one name stay parked");
    // The event that could not be named is sent whole, one of its outputs is refused, and gets a letter of its own.
    let half = json!({"id": "{{ idempotency_key }}", "v": "{{ item if index == 0 else after.gone }}"});
    let by_index = Definition { id: Some("{{ key.id }}-{{ index }}"), map: Some(&half), ..mended };
    redrive(&journal).await;
    catch_up(&journal, vec![mapped("facts", target(), by_index)]).await.expect("catches up");
    api.assert_once(6);
    assert_eq!(api.requests(), 6);
    let left = letters(&journal).await;
    assert!(left.len() == 1 && left[0].0.starts_with("e1-0/1100-1#"), "{left:?}");
    let keys: Vec<String> = api.items().iter().map(|item| item["id"].to_string()).collect();
    assert!([first, last].iter().all(|letter| keys.iter().any(|key| key.contains(&letter.2))), "under their own keys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_does_not_send_is_kept_from_the_journal_over_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    let lookups = Lookup::read(&json!({"b": {"table": "public.b", "by": "id"}})).expect("sound");
    let map = json!({"id": "{{ idempotency_key }}", "row": "{{ key.id }}", "from": "{{ before.qty }}", "to": "{{ after.qty if after else none }}", "b": "{{ lookup('b', key.id).qty }}"});
    let definition = Definition {
        when: Some("{{ op == 'delete' or (op == 'update' and changed('qty')) }}"),
        map: Some(&map),
        lookups: &lookups,
        ..Definition::default()
    };
    let (api, url) = api().await;
    let connectors = || {
        let one = mapped("steps", mapped_target(&url, json!({"mode": "single"})), definition);
        vec![Connector { keep: Keep { images: true, memory: 1 << 20 }, ..one }]
    };
    let said = || {
        let mut said: Vec<String> = api.items().iter().map(|i| format!("{} {}->{} b{}", i["row"], i["from"], i["to"], i["b"])).collect();
        said.sort();
        said
    };
    capture.commit(0, &[insert("a", 1, 5), insert("b", 1, 100), insert("a", 2, 7), insert("b", 2, 200)]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    assert!(said().is_empty());
    // Another process: it has to know what stood there, and the look-up is of that place in the journal, whatever comes later.
    capture.commit(0, &[update("a", 1, 6), update("b", 1, 101), update("a", 1, 6), update("a", 1, 8)]).await;
    capture.commit(0, &[update("b", 1, 102), delete("b", 2)]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    capture.commit(0, &[update("a", 1, 9), delete("a", 1), delete("a", 2)]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    assert_eq!(said(), ["1 5->6 b100", "1 6->8 b101", "1 8->9 b102", "1 9->null b102"]);
    // What is not there any more is a dead letter with a code of its own; it keeps the image from before.
    let parked = letters(&journal).await;
    assert_eq!(parked.iter().map(|l| l.1.as_str()).collect::<Vec<_>>(), ["mapping.lookup_missing"]);
    capture.commit(0, &[insert("b", 2, 201)]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    redrive(&journal).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    assert_eq!(said().last().map(String::as_str), Some("2 7->null b201"));
    assert_eq!(letters(&journal).await, []);
    // A bound that is too small stops the connector, and nothing is skipped.
    let small = || vec![Connector { keep: Keep { images: true, memory: 300 }, ..connectors().remove(0) }];
    capture.commit(0, &[insert("a", 3, 1), insert("a", 4, 1), update("a", 3, 2)]).await;
    assert_eq!(catch_up(&journal, small()).await.expect_err("full").code(), "delivery.lookup_full");
    catch_up(&journal, connectors()).await.expect("catches up");
    assert_eq!(said().last().map(String::as_str), Some("2 7->null b201"));
    assert_eq!(letters(&journal).await.len(), 1, "row 3 of b is not there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_one_fact_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for order in 0..120u64 {
        // Two orders in a transaction, and rows that nobody wants between them.
        let lines = (0..5).flat_map(|n| {
            [insert("a", order * 100 + n, 2 * order), insert("b", order * 100 + n, 0), insert("a", order * 100 + 50 + n, 2 * order + 1)]
        });
        capture.write(0, &lines.collect::<Vec<_>>()).await;
    }
    capture.flush().await;
    let map = json!({"id": "{{ idempotency_key }}", "order": "{{ events[0].after.qty }}", "lines": "{{ events | map(attribute='after.id') | list }}"});
    let definition = Definition {
        key: Some("{{ after.qty }}"),
        id: Some("order:{{ events[0].after.qty }}"),
        map: Some(&map),
        grouped: true,
        ..Definition::default()
    };
    let (api, url) = moody().await;
    let lines = Registry::built_in().get("jsonl").expect("built in").validate(&json!({"dir": out.path()}), true).expect("valid");
    let connectors =
        || vec![mapped("http", mapped_target(&url, json!({"mode": "batch"})), definition), mapped("lines", lines.clone(), definition)];
    let written = || -> Vec<Value> {
        let files = std::fs::read_dir(out.path()).expect("there").flatten().map(|entry| entry.path());
        let text: String =
            files.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).map(|p| std::fs::read_to_string(p).expect("text")).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    for part in 1..4 {
        let running = start(&journal, connectors(), Mode::Continuous);
        until("it goes on", || api.items().len() >= part * 40 && written().len() >= part * 40).await;
        running.kill().await;
    }
    catch_up(&journal, connectors()).await.expect("catches up");
    api.assert_once(240);
    for (what, facts) in [("http", api.items()), ("lines", written())] {
        let mut orders: HashMap<u64, u32> = HashMap::new();
        for fact in &facts {
            let order = fact["order"].as_u64().expect("a number");
            *orders.entry(order).or_default() += 1;
            let wanted: Vec<u64> = (0..5).map(|n| order / 2 * 100 + order % 2 * 50 + n).collect();
            assert_eq!(fact["lines"], json!(wanted), "{what}: torn");
        }
        // A batch that was sent twice is one to the target, and twice in its list of bodies.
        assert_eq!(orders.len(), 240, "{what}");
        assert!(what == "http" || orders.values().all(|n| *n == 1), "{what}: doubled");
    }
    // More than it may hold stops it, and nothing is skipped.
    let large: Vec<Change> = (0..40).map(|n| insert("a", 100_000 + n, 1)).collect();
    capture.commit(0, &large).await;
    let small = |memory| {
        let one = mapped("http", mapped_target(&url, json!({"mode": "batch"})), definition);
        vec![Connector { keep: Keep { images: false, memory }, ..one }]
    };
    assert_eq!(catch_up(&journal, small(4_000)).await.expect_err("too large").code(), "delivery.group_too_large");
    catch_up(&journal, small(1 << 20)).await.expect("catches up");
    api.assert_once(240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_end_is_not_stored_waits_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    let begun = capture.begin(0, &[insert("a", 2, 1), insert("a", 3, 1)]).await;
    let map = json!({"id": "{{ idempotency_key }}", "rows": "{{ events | length }}"});
    let definition = Definition { id: Some("{{ id }}"), map: Some(&map), grouped: true, ..Definition::default() };
    let (api, url) = api().await;
    let connectors = || vec![mapped("http", mapped_target(&url, json!({"mode": "single"})), definition)];
    for _ in 0..2 {
        catch_up(&journal, connectors()).await.expect("catches up");
        api.assert_once(1);
    }
    capture.end(0, begun, &[insert("a", 4, 1)]).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    api.assert_once(2);
    let mut rows: Vec<u64> = api.items().iter().filter_map(|item| item["rows"].as_u64()).collect();
    rows.sort_unstable();
    assert_eq!(rows, [1, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_end_never_came_is_a_dead_letter_of_its_own_code() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    // The history does not continue behind it.
    capture.begin(0, &[insert("a", 2, 1), insert("a", 3, 1)]).await;
    capture.commit(0, &[insert("a", 4, 1)]).await;
    let map = json!({"id": "{{ idempotency_key }}", "rows": "{{ events | length }}"});
    let definition = Definition { id: Some("{{ id }}"), map: Some(&map), grouped: true, ..Definition::default() };
    let (api, url) = api().await;
    let connectors = || vec![mapped("http", mapped_target(&url, json!({"mode": "single"})), definition)];
    catch_up(&journal, connectors()).await.expect("catches up");
    api.assert_once(2);
    let parked = letters(&journal).await;
    assert_eq!(parked.iter().map(|l| (l.0.as_str(), l.1.as_str())).collect::<Vec<_>>(), [("e1-0/1200-0", "delivery.group_incomplete")]);
    // Somebody who knows that nothing is missing has what came delivered.
    redrive(&journal).await;
    catch_up(&journal, connectors()).await.expect("catches up");
    api.assert_once(3);
    let mut rows: Vec<u64> = api.items().iter().filter_map(|item| item["rows"].as_u64()).collect();
    rows.sort_unstable();
    assert_eq!((rows, letters(&journal).await.len()), (vec![1, 1, 2], 0));
}
