//! Stretches of the journal that are delivered again: what comes, what does not, and what becomes of it when the process is killed meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tillstream::config::{self, Connector, LocalJournal, Retention};
use tillstream::control::{self, Writer};
use tillstream::delivery::dead_letter;
use tillstream::delivery::place::Place;
use tillstream::delivery::replay::{self, Part, ReplayError, RowKey, Wanted};
use tillstream::delivery::{DeliveryError, Mode};
use tillstream::journal::{Journal, Log, Offset};
use tillstream_connectors::mapping::{Definition, Lookup, Mapping};
use tillstream_connectors::registry::Registry;
use tillstream_connectors::sandbox::{Sandbox, Settings};
use tillstream_connectors::scripted::{Act, Script, refuse};
use tillstream_connectors::sink::Idempotency;

use super::http::{Api, mapped_target};
use super::pos::{Capture, Change, catch_up, connector, insert, journal, start, until, update};
use super::sql;
use crate::harness::program;

/// From an offset of partition 0 on; to another one.
pub(super) fn wanted(from: Place, to: Option<u64>, key: Option<&str>) -> Wanted {
    let to = to.map(|offset| Place::Offset(Some(0), Offset(offset)));
    Wanted { from, to, row: key.map(|key| RowKey { table: "public.a".into(), key: key.into() }), mapped: true }
}

fn at(offset: u64) -> Place {
    Place::Offset(Some(0), Offset(offset))
}

async fn plan(journal: &Arc<dyn Journal>, connector: &Connector, wanted: &Wanted) -> Result<Vec<Part>, ReplayError> {
    let state = control::replay(journal.as_ref()).await.expect("replays");
    replay::plan(journal.as_ref(), &state, connector, "pos", wanted).await
}

/// Asks for a replay as the command does.
pub(super) async fn ask(journal: &Arc<dyn Journal>, connector: &Connector, wanted: &Wanted) -> Vec<Part> {
    let parts = plan(journal, connector, wanted).await.expect("a plan");
    let mut operator = operator(journal).await;
    replay::request(&mut operator, &connector.name, &parts, "replay".into(), "a test", "test").await.expect("asks");
    parts
}

async fn operator(journal: &Arc<dyn Journal>) -> Writer {
    let state = control::replay(journal.as_ref()).await.expect("replays");
    Writer::take_operator(journal.clone(), "test", "pos", &state, "test").await.expect("takes over")
}

/// `rows` rows in partition 0, each changed `changes` times, a transaction each: the change `c` of row `r` stands at offset 1 + 2 (c rows + r).
async fn sold(rows: u64, changes: u64) -> (tempfile::TempDir, Arc<dyn Journal>, Capture) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for change in 0..changes {
        for row in 0..rows {
            capture.write(0, &[change_of(row, change)]).await;
        }
    }
    capture.flush().await;
    (dir, journal, capture)
}

fn change_of(row: u64, change: u64) -> Change {
    if change == 0 { insert("a", row, 0) } else { update("a", row, change) }
}

async fn assert_settled(journal: &Arc<dyn Journal>, connector: &str) {
    let state = control::replay(journal.as_ref()).await.expect("replays");
    for partition in 0..journal.partitions() {
        let end = journal.bounds(Log::Data(partition)).await.expect("bounds").expect("not empty").last;
        assert_eq!(state.checkpoint(connector, partition).map(|c| c.offset.0), Some(end.0 + 1), "partition {partition}");
    }
    assert!(replay::under_way(&state, connector, journal.partitions()).is_empty());
}

fn applies() -> Arc<Script> {
    Script::new(Idempotency::Key, |_, _, _| Act::Apply)
}

fn one(script: &Arc<Script>) -> Connector {
    connector("loyalty", script.target())
}

/// The quantities that a target was told, by row; events are named by their transaction.
fn told(script: &Script, rows: u64) -> HashMap<u64, Vec<u64>> {
    let mut told: HashMap<u64, Vec<u64>> = HashMap::new();
    for effect in script.effects() {
        let lsn = effect.event_id.strip_prefix("e1-0/").and_then(|rest| rest.strip_suffix("-0")).expect("one event a transaction");
        let n = u64::from_str_radix(lsn, 16).expect("an LSN") / 0x100 - 0x11;
        told.entry(n % rows).or_default().push(n / rows);
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stretch_comes_again_and_nothing_else_whatever_is_killed() {
    let (_dir, journal, mut capture) = sold(20, 6).await;
    let before = applies();
    catch_up(&journal, vec![one(&before)]).await.expect("catches up");
    assert_eq!(before.effects().len(), 120);
    // A target that has forgotten everything. The second and third change of every row, of 20 rows.
    let target = applies();
    let parts = ask(&journal, &one(&target), &wanted(at(41), Some(121), None)).await;
    let part = &parts[0];
    assert_eq!((parts.len(), part.events, part.from(), part.to, part.stands), (1, 40, Offset(41), Some(Offset(121)), Offset(241)));
    assert_eq!((part.first.map(|e| e.offset.0), part.last.map(|e| e.offset.0), part.changed_later), (Some(41), Some(119), 20));
    // What is sold meanwhile is the next change of the row by whose number `told` knows the transaction: only a row's own changes keep their order.
    for (row, seen) in [(0, 10), (1, 20)] {
        let running = start(&journal, vec![one(&target)], Mode::Continuous);
        until("it goes on", || target.effects().len() >= seen).await;
        running.kill().await;
        capture.commit(0, &[change_of(row, 6)]).await;
    }
    catch_up(&journal, vec![one(&target)]).await.expect("catches up");
    let told = told(&target, 20);
    for row in 0..20 {
        let mut expected = vec![1, 2];
        // What was sold meanwhile stands at the end of the journal, in its order.
        expected.extend(match row {
            0 => vec![6],
            1 => vec![6],
            _ => Vec::new(),
        });
        assert_eq!(told[&row], expected, "row {row}");
    }
    assert_settled(&journal, "loyalty").await;
    let calls = target.calls();
    catch_up(&journal, vec![one(&target)]).await.expect("catches up");
    assert_eq!(target.calls(), calls, "it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_comes_again_alone_whatever_is_killed() {
    let (_dir, journal, _capture) = sold(20, 6).await;
    catch_up(&journal, vec![one(&applies())]).await.expect("catches up");
    let slow = Arc::new(AtomicBool::new(true));
    let held = slow.clone();
    let target =
        Script::new(Idempotency::Key, move |_, _, call| if call == 2 && held.load(Ordering::Relaxed) { Act::Hold } else { Act::Apply });
    let parts = ask(&journal, &one(&target), &wanted(at(30), None, Some("7"))).await;
    assert_eq!((parts[0].events, parts[0].to), (5, Some(Offset(241))));
    let running = start(&journal, vec![one(&target)], Mode::Continuous);
    until("two came", || target.calls() == 3).await;
    running.kill().await;
    slow.store(false, Ordering::Relaxed);
    catch_up(&journal, vec![one(&target)]).await.expect("catches up");
    assert_eq!(told(&target, 20), HashMap::from([(7, vec![1, 2, 3, 4, 5])]));
    assert_settled(&journal, "loyalty").await;
    // The key stands nowhere in the control journal, whose request names a hash.
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let request = state.replay("loyalty", 0).expect("the last one");
    assert_eq!(request.row.as_ref().map(String::len), Some(16));
    assert_eq!(state.audit().last().map(|a| (a.why.as_str(), a.who.as_str())), Some(("a test", "test")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_end_the_connector_goes_back_and_delivers_everything_from_there() {
    let (_dir, journal, mut capture) = sold(10, 4).await;
    catch_up(&journal, vec![one(&applies())]).await.expect("catches up");
    let target = applies();
    let parts = ask(&journal, &one(&target), &wanted(at(41), None, None)).await;
    assert_eq!((parts[0].events, parts[0].to, parts[0].changed_later), (20, None, 0));
    capture.commit(0, &[change_of(0, 4)]).await;
    catch_up(&journal, vec![one(&target)]).await.expect("catches up");
    let told = told(&target, 10);
    assert!((0..10).all(|row| told[&row] == if row == 0 { vec![2, 3, 4] } else { vec![2, 3] }), "{told:?}");
    assert_settled(&journal, "loyalty").await;
    // On from where it stands: what lies between is not delivered, and counted before.
    capture.commit(0, &[change_of(1, 4), change_of(2, 4)]).await;
    let parts = ask(&journal, &one(&target), &wanted(Place::Next, None, None)).await;
    assert_eq!((parts[0].skips(), parts[0].events), (true, 2));
    capture.commit(0, &[change_of(3, 5)]).await;
    let before = target.effects().len();
    catch_up(&journal, vec![one(&target)]).await.expect("catches up");
    assert_eq!(target.effects().len(), before + 1);
    assert_settled(&journal, "loyalty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_processes_take_a_replay_up_at_once_and_deliver_what_is_new_behind_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 4).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    let mut sell = async |from: u64, to: u64| {
        for row in from..to {
            capture.write((row % 4) as u16, &[insert("a", row, 1)]).await;
        }
        capture.flush().await;
    };
    sell(0, 80).await;
    let script = applies();
    let first = start(&journal, vec![one(&script)], Mode::Continuous);
    let second = start(&journal, vec![one(&script)], Mode::Continuous);
    let has = |running: &super::pos::Running| running.stats.connector("loyalty").expect("there").partitions().len();
    until("they share", || has(&first) == 2 && has(&second) == 2).await;
    until_settled(&journal).await;
    assert_eq!(script.effects().len(), 80);
    let before = script.absorbed();
    let parts = ask(&journal, &one(&script), &wanted(Place::First, None, None)).await;
    assert_eq!(parts.iter().map(|p| p.events).collect::<Vec<_>>(), [20; 4]);
    until("all came again", || script.absorbed() == before + 80).await;
    sell(80, 100).await;
    until("new ones came", || script.effects().len() == 100).await;
    first.stop().await.expect("stops");
    second.stop().await.expect("stops");
    assert_eq!((script.effects().len(), script.absorbed()), (100, before + 80), "each once more");
    assert_settled(&journal, "loyalty").await;
}

/// Waits until the control journal shows that everything is settled.
async fn until_settled(journal: &Arc<dyn Journal>) {
    let (mut follower, following) = control::Follower::start(journal.clone()).await.expect("follows");
    let follow = tokio::spawn(following);
    let mut ends = Vec::new();
    for partition in 0..journal.partitions() {
        ends.push(journal.bounds(Log::Data(partition)).await.expect("bounds").map_or(0, |b| b.last.0 + 1));
    }
    let settled =
        |state: &control::State| (0u16..).zip(&ends).all(|(p, end)| state.checkpoint("loyalty", p).is_some_and(|c| c.offset.0 >= *end));
    tokio::time::timeout(super::pos::DEADLINE, follower.wait_for(settled)).await.expect("in time");
    follow.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_can_be_ended_and_replaced() {
    let (_dir, journal, mut capture) = sold(20, 6).await;
    catch_up(&journal, vec![one(&applies())]).await.expect("catches up");
    let target = Script::new(Idempotency::Key, |_, _, call| if call < 2 { Act::Apply } else { Act::Hold });
    ask(&journal, &one(&target), &wanted(Place::First, None, None)).await;
    let running = start(&journal, vec![one(&target)], Mode::Continuous);
    until("it holds", || target.calls() == 4).await;
    running.kill().await;
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(replay::under_way(&state, "loyalty", 1), [0]);
    assert_eq!(replay::stands(&state, "loyalty", 0), Some(Offset(241)));
    // A stretch takes the place of everything: what the first one had left out is not delivered, nor what is between.
    let seen = target.effects().len();
    let second = applies();
    let parts = ask(&journal, &one(&second), &wanted(at(201), Some(221), None)).await;
    assert_eq!((parts[0].stands, parts[0].events), (Offset(241), 10));
    capture.commit(0, &[change_of(0, 6)]).await;
    catch_up(&journal, vec![one(&second)]).await.expect("catches up");
    assert_eq!((target.effects().len(), second.effects().len()), (seen, 11));
    assert_settled(&journal, "loyalty").await;
    // Ended before anybody has taken it up, and nothing is left out of what is new.
    let third = applies();
    ask(&journal, &one(&third), &wanted(Place::First, None, None)).await;
    capture.commit(0, &[change_of(1, 6)]).await;
    replay::cancel(&mut operator(&journal).await, "loyalty", &[0], "replay ended".into(), "a test", "test").await.expect("ends");
    catch_up(&journal, vec![one(&third)]).await.expect("catches up");
    assert_eq!(third.effects().len(), 1);
    assert_settled(&journal, "loyalty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_come_a_second_time_once_whatever_is_killed() {
    let (_dir, journal, _capture) = sold(50, 20).await;
    let out = tempfile::tempdir().expect("a directory");
    let target = || Registry::built_in().get("jsonl").expect("built in").validate(&json!({"dir": out.path()}), false).expect("valid");
    let lines = || -> Vec<Value> {
        let files = std::fs::read_dir(out.path()).expect("there").flatten().map(|entry| entry.path());
        let text: String =
            files.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).map(|p| std::fs::read_to_string(p).expect("text")).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let connectors = || vec![connector("loyalty", target())];
    catch_up(&journal, connectors()).await.expect("catches up");
    assert_eq!(lines().len(), 1000);
    // Changes 4 to 15.
    ask(&journal, &connectors()[0], &wanted(at(401), Some(1601), None)).await;
    for part in 1..4 {
        let running = start(&journal, connectors(), Mode::Continuous);
        until("it goes on", || lines().len() >= 1000 + part * 120).await;
        running.kill().await;
    }
    catch_up(&journal, connectors()).await.expect("catches up");
    let mut rows: HashMap<String, Vec<u64>> = HashMap::new();
    for line in lines() {
        rows.entry(line["key"].to_string()).or_default().push(line["after"]["qty"].as_u64().expect("a number"));
    }
    let expected: Vec<u64> = (0..20).chain(4..16).collect();
    assert!(rows.len() == 50 && rows.values().all(|quantities| *quantities == expected), "lost, doubled or out of order: {rows:?}");
    assert_settled(&journal, "loyalty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_with_marks_that_was_not_told_in_time_is_told_again() {
    let (_dir, journal, _capture) = sold(20, 6).await;
    let held = Arc::new(AtomicBool::new(false));
    let hold = held.clone();
    // Every call that brings a mark alone waits.
    let script = Script::new(Idempotency::Transactional, move |_, batch, _| {
        if batch.items.is_empty() && hold.load(Ordering::Relaxed) { Act::Hold } else { Act::Apply }
    });
    catch_up(&journal, vec![one(&script)]).await.expect("catches up");
    ask(&journal, &one(&script), &wanted(at(1), Some(121), Some("7"))).await;
    held.store(true, Ordering::Relaxed);
    let calls = script.calls();
    let running = start(&journal, vec![one(&script)], Mode::Continuous);
    until("its marks are to be moved", || script.calls() > calls).await;
    running.kill().await;
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert!(state.pending_replay("loyalty", 0).is_none(), "it was taken up");
    held.store(false, Ordering::Relaxed);
    catch_up(&journal, vec![one(&script)]).await.expect("catches up");
    assert_eq!((script.effects().len(), script.absorbed()), (120, 3), "the first three changes of one row came again");
    assert_settled(&journal, "loyalty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_database_lost_come_back_and_the_others_are_not_written() {
    let (database, client) = sql::database().await;
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 2).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for change in 0..4 {
        for row in 0..40 {
            capture.write((row % 2) as u16, &[change_of(row, change)]).await;
        }
    }
    capture.flush().await;
    let connectors = || {
        let mut connector = sql::only_a("inventory", sql::target(&database, json!({})));
        connector.delivery.batch_items_max = 5;
        vec![connector]
    };
    catch_up(&journal, connectors()).await.expect("catches up");
    let contents = sql::contents(&client).await;
    client.batch_execute("DELETE FROM a WHERE id % 5 = 0").await.expect("damages it");
    let look = async || client.query_one("SELECT count(*), sum(writes) FROM a", &[]).await.expect("reads");
    let next = control::replay(journal.as_ref()).await.expect("replays").next();
    let parts = plan(&journal, &connectors()[0], &wanted(Place::First, None, None)).await.expect("a plan");
    assert_eq!(parts.iter().map(|p| (p.partition, p.events)).collect::<Vec<_>>(), [(0, 80), (1, 80)]);
    assert_eq!(control::replay(journal.as_ref()).await.expect("replays").next(), next, "planning writes nothing");
    let row = look().await;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (32, 128));

    ask(&journal, &connectors()[0], &wanted(Place::First, None, None)).await;
    let mut absorbed = 0;
    for _ in 0..2 {
        let running = start(&journal, connectors(), Mode::Continuous);
        let stats = running.stats.connector("inventory").expect("there").clone();
        until("it goes on", || stats.absorbed.load(Ordering::Relaxed) >= 20).await;
        running.kill().await;
        absorbed += stats.absorbed.load(Ordering::Relaxed);
    }
    let stats = catch_up(&journal, connectors()).await.expect("catches up");
    absorbed += stats.connector("inventory").expect("there").absorbed.load(Ordering::Relaxed);
    assert_eq!(sql::contents(&client).await, contents);
    let written: i64 = client.query_one("SELECT count(*) FROM a WHERE writes <> 4 AND id % 5 <> 0", &[]).await.expect("reads").get(0);
    assert_eq!(written, 0, "rows that were there were written again");
    // What a killed process had not reported is not counted.
    assert!(absorbed <= 128, "{absorbed}");
    assert_settled(&journal, "inventory").await;
}

async fn api() -> (Arc<Api>, String) {
    Api::start(|_, _| axum::response::IntoResponse::into_response(axum::Json(json!({"ok": true})))).await
}

fn facts(url: &str, definition: Definition<'_>) -> Connector {
    let mapping = Mapping::define(definition).unwrap_or_else(|problems| panic!("{problems:?}"));
    let target = mapped_target(url, json!({"mode": "single"}));
    Connector { mapping: Some(Arc::new(mapping)), tables: vec![("public".into(), "a".into())], ..connector("loyalty", target) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_meets_the_rows_that_stood_beside_it_then_under_the_key_it_had() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for change in 0..30 {
        capture.commit(0, &[if change == 0 { insert("b", 1, 0) } else { update("b", 1, change) }, change_of(change % 3, change)]).await;
    }
    let lookups = Lookup::read(&json!({"b": {"table": "public.b", "by": "id"}})).expect("sound");
    let map = json!({"id": "{{ idempotency_key }}", "qty": "{{ after.qty }}", "beside": "{{ lookup('b', 1).qty }}"});
    let definition = Definition { when: Some("{{ after.qty != 11 }}"), map: Some(&map), lookups: &lookups, ..Definition::default() };
    let (api, url) = api().await;
    let one = || facts(&url, definition);
    catch_up(&journal, vec![one()]).await.expect("catches up");
    api.assert_once(29);
    let before = api.requests();
    let parts = ask(&journal, &one(), &wanted(at(16), Some(76), None)).await;
    assert_eq!((parts[0].events, parts[0].filtered, parts[0].failing), (20, 1, 0));
    catch_up(&journal, vec![one()]).await.expect("catches up");
    assert_eq!(api.requests() - before, 19);
    // Also that every repeat brought the same bytes.
    api.assert_once(29);
    assert!(api.items().iter().all(|item| item["qty"] == item["beside"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_comes_again_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for order in 0..10 {
        capture.commit(0, &[insert("a", order * 10, order), insert("a", order * 10 + 1, order), insert("a", order * 10 + 2, order)]).await;
    }
    let map = json!({"id": "{{ idempotency_key }}", "order": "{{ events[0].after.qty }}", "rows": "{{ events | length }}"});
    let definition = Definition { id: Some("order:{{ events[0].after.qty }}"), map: Some(&map), grouped: true, ..Definition::default() };
    let (api, url) = api().await;
    let one = || facts(&url, definition);
    catch_up(&journal, vec![one()]).await.expect("catches up");
    api.assert_once(10);
    // Four entries a transaction, with its end, behind the fence.
    let inside = plan(&journal, &one(), &wanted(at(10), None, None)).await.expect_err("inside");
    assert_eq!((inside.code().as_str(), inside.to_string().contains("0/1300")), ("replay.inside_transaction", true), "{inside}");
    let row = plan(&journal, &one(), &wanted(at(9), None, Some("20"))).await.expect_err("a row of it");
    assert_eq!(row.code(), "replay.row_of_transaction");
    let before = api.requests();
    // It ends within a transaction, which comes as a whole.
    let parts = ask(&journal, &one(), &wanted(at(9), Some(18), None)).await;
    assert_eq!((parts[0].events, parts[0].to), (9, Some(Offset(21))));
    catch_up(&journal, vec![one()]).await.expect("catches up");
    assert_eq!(api.requests() - before, 3);
    api.assert_once(10);
    assert!(api.items().iter().all(|item| item["rows"] == 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_dead_letters_are_left_to_their_redrive() {
    let (_dir, journal, _capture) = sold(10, 2).await;
    let poison = Script::new(Idempotency::Key, |_, batch, _| {
        let outcome = |item: &tillstream_connectors::sink::Item| {
            if item.event.id() == "e1-0/1400-0" { refuse("scripted.no") } else { tillstream_connectors::sink::Outcome::Delivered }
        };
        Act::Answer(batch.items.iter().map(outcome).collect())
    });
    catch_up(&journal, vec![one(&poison)]).await.expect("catches up");
    let target = applies();
    let parts = ask(&journal, &one(&target), &wanted(Place::First, None, None)).await;
    assert_eq!((parts[0].events, parts[0].parked), (20, 1));
    catch_up(&journal, vec![one(&target)]).await.expect("catches up");
    assert!(target.effects().len() == 19 && target.effects().iter().all(|e| e.event_id != "e1-0/1400-0"));
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_found_and_what_retention_removed_is_told() {
    let (_dir, journal, _capture) = sold(20, 6).await;
    let script = applies();
    catch_up(&journal, vec![one(&script)]).await.expect("catches up");
    let from = async |place| plan(&journal, &one(&script), &wanted(place, None, None)).await.map(|parts| parts.first().map(|p| p.from().0));
    // The transaction n commits at 0x1100 + n * 0x100 and stands at 1 + 2 n.
    for (lsn, offset) in [(0x1100, 1), (0x1101, 3), (0x1200, 3), (0x11FF, 3), (0x1100 + 119 * 0x100, 239)] {
        assert_eq!(from(Place::Lsn(tillstream_schemas::Lsn(lsn))).await.expect("found"), Some(offset), "{lsn:x}");
    }
    assert_eq!(from(Place::Lsn(tillstream_schemas::Lsn(0x1_0000_0000))).await.expect("the end"), None);
    assert_eq!((from(at(42)).await.expect("found"), from(Place::Time(0)).await.expect("found")), (Some(42), Some(1)));
    assert_eq!(from(Place::Offset(Some(0), Offset(500))).await.expect_err("beyond").code(), "usage.arguments");

    let dir = tempfile::tempdir().expect("a directory");
    let partitions = std::num::NonZeroU16::MIN;
    let local = LocalJournal { dir: dir.path().to_owned(), partitions, retention: Retention { age: None, bytes: Some(20_000) } };
    let small = tillstream::journal::open(&config::Journal::Local(local), "test").expect("opens");
    small.set_up().await.expect("sets up");
    let mut capture = Capture::new(small.as_ref(), 1).await;
    for row in 0..400 {
        capture.commit(0, &[insert("a", row, 0)]).await;
    }
    catch_up(&small, vec![one(&script)]).await.expect("catches up");
    let oldest = small.bounds(Log::Data(0)).await.expect("bounds").expect("not empty").first;
    assert!(oldest > Offset(100));
    for place in [at(5), Place::Lsn(tillstream_schemas::Lsn(0x1200)), Place::Time(1)] {
        let error = plan(&small, &one(&script), &wanted(place, None, None)).await.expect_err("expired");
        assert!(error.code() == "replay.expired" && error.to_string().contains(&format!("offset {}", oldest.0)), "{place:?}: {error}");
    }
    let parts = plan(&small, &one(&script), &wanted(Place::First, None, None)).await.expect("what is there");
    assert!(parts[0].from() >= oldest);
    // A request that retention overtakes before it is taken up begins at the oldest entry.
    let target = applies();
    let parts = ask(&small, &one(&target), &wanted(Place::First, None, None)).await;
    for row in 400..500 {
        capture.commit(0, &[insert("a", row, 0)]).await;
    }
    assert!(small.bounds(Log::Data(0)).await.expect("bounds").expect("not empty").first > parts[0].from());
    let result: Result<_, DeliveryError> = catch_up(&small, vec![one(&target)]).await;
    result.expect("goes on with what is left");
    let left = small.bounds(Log::Data(0)).await.expect("bounds").expect("not empty");
    assert_eq!(target.effects().len() as u64, (left.last.0 - left.first.0).div_ceil(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsn_is_found_in_a_long_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    let (transactions, rows) = (260u64, 1000u64);
    for n in 0..transactions {
        capture.write(0, &(0..rows).map(|row| insert("a", n * rows + row, 0)).collect::<Vec<_>>()).await;
    }
    capture.flush().await;
    for n in [0, 1, 77, 130, 199, 258, 259] {
        // Behind the fence, each with its end.
        let wanted = 1 + n * (rows + 1);
        for lsn in [0x1100 + n * 0x100, 0x1100 + n * 0x100 - 1] {
            let place = Place::Lsn(tillstream_schemas::Lsn(lsn));
            let from = place.read_from(journal.as_ref(), 0, 1).await.expect("found");
            assert_eq!(from, tillstream::journal::From::Offset(Offset(wanted)), "transaction {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_was_changed_since_is_told_by_the_target_and_parked() {
    let (_dir, journal, _capture) = sold(3, 1).await;
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings::default()).await.expect("listens");
    let one = |map: &Value| facts(&sandbox.url("/http/events"), Definition { map: Some(map), ..Definition::default() });
    let before = json!({"row": "{{ key.id }}", "points": "{{ after.qty * 10 }}"});
    catch_up(&journal, vec![one(&before)]).await.expect("catches up");
    assert_eq!(sandbox.effects().len(), 3);
    // Rows 0 and 1 are told otherwise.
    let after = json!({"row": "{{ key.id }}", "points": "{{ after.qty * 10 + (1 if key.id < 2 else 0) }}"});
    ask(&journal, &one(&after), &wanted(Place::First, None, None)).await;
    let stats = catch_up(&journal, vec![one(&after)]).await.expect("catches up");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let letters: Vec<_> = state.dead_letters().map(|l| (l.letter.event_id.as_str(), l.letter.code.as_str(), l.letter.attempts)).collect();
    assert_eq!(letters, [("e1-0/1100-0", "http.key_reused", 1), ("e1-0/1200-0", "http.key_reused", 1)]);
    assert_eq!(sandbox.effects().len(), 3, "what came first stands");
    // Under the file before they are what the target knows.
    let mut operator = operator(&journal).await;
    dead_letter::redrive(&mut operator, &state, &dead_letter::Wanted::default(), "test").await.expect("asks");
    catch_up(&journal, vec![one(&before)]).await.expect("catches up");
    assert_eq!(control::replay(journal.as_ref()).await.expect("replays").dead_letters().count(), 0);
    assert_eq!((sandbox.effects().len(), stats.connector("loyalty").expect("there").rejected.load(Ordering::Relaxed)), (3, 2));
}

const PIPELINE: &str = r#"
version: 1
pipeline: test
source: {name: pos, url: "postgres://nobody@127.0.0.1:9/pos?sslmode=disable", slot: s, publication: p, tables: [public.a, public.b]}
journal: {local: {dir: .}}
connectors: [lines.yaml, crm.yaml]
"#;
const LINES: &str = r#"
version: 1
connector: lines
from: {tables: [public.a, public.b], ops: [insert, update]}
on_delete: ignore
to: {jsonl: {dir: /tmp}}
"#;
const CRM: &str = r#"
version: 1
connector: crm
from: {tables: [public.a], ops: [insert, update]}
on_delete: ignore
when: "{{ after.qty != 1 }}"
map: {row: "{{ key.id }}", qty: "{{ after.qty }}"}
to: {http: {url: "https://crm.example/v1/events"}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_tells_what_would_come_and_refuses_what_was_not_accepted() {
    let (dir, journal, mut capture) = sold(10, 3).await;
    let script = applies();
    catch_up(&journal, ["lines", "crm"].map(|name| connector(name, script.target())).to_vec()).await.expect("catches up");
    capture.commit(0, &[change_of(4, 3)]).await;
    drop(capture);
    for (name, text) in [("tillstream.yaml", PIPELINE), ("lines.yaml", LINES), ("crm.yaml", CRM)] {
        std::fs::write(dir.path().join(name), text).expect("written");
    }
    let run = async |arguments: &[&str]| {
        let ended =
            tokio::process::Command::new(program()).arg("replay").args(arguments).current_dir(dir.path()).output().await.expect("starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (ended.status.code().expect("ends"), text(ended.stdout), text(ended.stderr))
    };
    // The same places for those who only look.
    for place in ["0/2500", "p0@41", "41", "0/24F0"] {
        let looks = ["tap", "--from", place, "--until-end", "--limit", "1"];
        let looked = tokio::process::Command::new(program()).args(looks).current_dir(dir.path()).output().await.expect("starts");
        assert!(String::from_utf8_lossy(&looked.stdout).contains(" p0@41 update   public.a e1-0/2500-0 "), "{place}: {looked:?}");
    }
    let next = async || control::replay(journal.as_ref()).await.expect("replays").next();
    let before = next().await;
    let (code, said, _) = run(&["crm", "--from", "21", "--dry-run"]).await;
    assert_eq!(code, 0, "{said}");
    for line in [
        "crm: 20 events (10 of them filtered, 0 cannot be mapped)",
        "  partition 0: goes back from offset 61 to 21, 20 events from offset 21 to 59,",
    ] {
        assert!(said.lines().any(|l| l.starts_with(line)), "{line}\nis not in\n{said}");
    }
    assert!(said.ends_with("nothing was done\n") && said.contains("no second effect while the target remembers"), "{said}");
    let (_, said, _) = run(&["crm", "--from", "0/2500", "--to", "0/2700", "--dry-run", "--format", "json"]).await;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&said["events"], &said["partitions"][0]["changed_later"], &said["requested"]),
        (&json!(2), &json!(0), &json!(false)),
        "{said}"
    );
    let cases: [(&[&str], i32, &str); 12] = [
        (&["crm", "--from", "first"], 2, "say why in --reason"),
        (&["crn", "--from", "first", "--reason", "x"], 2, "there is no connector `crn`"),
        (&["crm", "--from", "yesterday", "--dry-run"], 2, "an LSN as 0/16B3748"),
        (&["crm", "--from", "9999", "--dry-run"], 2, "partition 0 ends at offset 63"),
        (&["crm", "--from", "p7@1", "--dry-run"], 2, "partition 7 does not exist"),
        (&["lines", "--from", "first", "--key", "3", "--dry-run"], 2, "name the row's table"),
        (&["crm", "--from", "first", "--key", "99", "--reason", "x"], 1, "error[replay.nothing]"),
        (&["crm", "--from", "61", "--to", "63", "--reason", "x"], 1, "error[replay.nothing]"),
        (&["crm", "--cancel", "--reason", "x"], 1, "error[replay.nothing]"),
        (&["lines", "--from", "first", "--reason", "x"], 1, "error[replay.would_duplicate]"),
        (&["crm", "--from", "first", "--to", "21", "--reason", "x"], 1, "error[replay.older_states]"),
        (&["crm", "--from", "next", "--reason", "x"], 1, "error[replay.would_skip]"),
    ];
    for (arguments, code, says) in cases {
        let (ended, said, failed) = run(arguments).await;
        assert!(ended == code && failed.contains(says), "{arguments:?} ended with {ended}: {said}{failed}");
    }
    assert_eq!(next().await, before, "nothing was stored");
    let (code, said, _) = run(&["lines", "--from", "first", "--dry-run"]).await;
    assert!(code == 0 && said.contains("would be refused (replay.would_duplicate)"), "{said}");
    // Accepted: asked for, written down without the key, and ended again.
    let (code, said, failed) =
        run(&["crm", "--from", "first", "--to", "21", "--key", "7", "--accept-older", "--reason", "one guest"]).await;
    assert!(code == 0 && said.contains("asked for; the process that delivers"), "{said}{failed}");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let audit = state.audit().last().expect("written down");
    assert_eq!(
        (audit.what.as_str(), audit.why.as_str()),
        ("connector crm: replay of p0 from 1 to 21 (stood at 61), one row of public.a", "one guest")
    );
    assert!(state.pending_replay("crm", 0).is_some_and(|request| request.row.is_some()) && state.pending_replay("lines", 0).is_none());
    let (code, said, _) = run(&["crm", "--cancel", "--reason", "the wrong guest", "--format", "json"]).await;
    assert_eq!((code, said.trim()), (0, r#"{"cancelled":true,"partitions":[0]}"#));
    let calls = script.calls();
    catch_up(&journal, vec![connector("crm", script.target())]).await.expect("catches up");
    assert_eq!(script.calls(), calls + 1, "what was sold meanwhile, and nothing else");
    assert_settled(&journal, "crm").await;
}
