//! The runtime against scripted sinks, on a real local journal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tillstream::control::{self, Writer};
use tillstream::delivery::dead_letter::{self, Wanted};
use tillstream::delivery::{ConnectorState, Mode};
use tillstream::journal::Journal;
use tillstream_connectors::scripted::{Act, Effect, Script, refuse, retry};
use tillstream_connectors::sink::{Class, Idempotency, Outcome};
use tokio::time::timeout;

use super::pos::{Capture, DEADLINE, Running, catch_up, connector, insert, journal, start, truncate, until, update};

/// Rows in the order of their changes: what every target has to show.
fn by_row(effects: &[Effect]) -> HashMap<String, Vec<String>> {
    let mut rows: HashMap<String, Vec<String>> = HashMap::new();
    for effect in effects {
        rows.entry(effect.row.clone()).or_default().push(effect.event_id.clone());
    }
    rows
}

/// `rows` rows, each changed `changes` times, over all partitions.
async fn sell(journal: &Arc<dyn Journal>, rows: u64, changes: u64) {
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for change in 0..changes {
        for row in 0..rows {
            let partition = u16::try_from(row % u64::from(journal.partitions())).expect("small");
            let changed = if change == 0 { insert("a", row, 0) } else { update("a", row, change) };
            capture.write(partition, &[changed, insert("unwanted", row, 0)]).await;
        }
    }
    capture.flush().await;
}

fn assert_complete(effects: &[Effect], rows: u64, changes: u64) {
    let by_row = by_row(effects);
    assert_eq!(by_row.len() as u64, rows);
    for (row, ids) in by_row {
        assert_eq!(ids.len() as u64, changes, "{row}");
        let parsed: Vec<tillstream_schemas::EventId> = ids.iter().map(|id| id.parse().expect("an id")).collect();
        let positions: Vec<_> =
            parsed.iter().map(|id| if let tillstream_schemas::EventId::Change(p) = id { *p } else { unreachable!() }).collect();
        assert!(positions.is_sorted(), "{row}: {ids:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_once_and_in_order_whatever_the_target_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 2).await;
    sell(&journal, 40, 5).await;
    let script = Script::new(Idempotency::Key, |_, batch, call| match call % 7 {
        1 => Act::Fail(Class::Transient),
        2 => Act::ApplyAndLose,
        // Every second item has to be repeated.
        4 => Act::Answer((0..batch.items.len()).map(|n| if n % 2 == 0 { Outcome::Delivered } else { retry(None) }).collect()),
        // Only the first was attempted.
        5 => Act::Answer(vec![Outcome::Delivered]),
        _ => Act::Apply,
    });
    let stats = catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    assert_complete(&script.effects(), 40, 5);
    let stats = stats.connector("loyalty").expect("there");
    let (delivered, absorbed) = (stats.delivered.load(Ordering::Relaxed), stats.absorbed.load(Ordering::Relaxed));
    assert_eq!(delivered + absorbed, 200);
    assert!(absorbed > 0 && script.absorbed() >= absorbed, "lost answers are repeated under the same key: {absorbed}");

    let calls = script.calls();
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    assert_eq!(script.calls(), calls, "the second time there is nothing to deliver");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_repeats_little_and_a_keyed_target_absorbs_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 100, 4).await;
    let script = Script::new(Idempotency::Key, |_, _, call| if call % 5 == 3 { Act::ApplyAndLose } else { Act::Apply });
    for part in 1..4 {
        let running = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
        timeout(DEADLINE, script.wait_for_effects(part * 90)).await.expect("delivers");
        running.kill().await;
    }
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    assert_complete(&script.effects(), 100, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transactional_target_sees_nothing_twice_after_a_kill() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 100, 4).await;
    let script = Script::new(Idempotency::Transactional, |_, _, _| Act::Apply);
    for part in 1..4 {
        let running = start(&journal, vec![connector("inventory", script.target())], Mode::Continuous);
        timeout(DEADLINE, script.wait_for_effects(part * 90)).await.expect("delivers");
        running.kill().await;
    }
    catch_up(&journal, vec![connector("inventory", script.target())]).await.expect("catches up");
    assert_complete(&script.effects(), 100, 4);
    assert_eq!(script.absorbed(), 0, "each lane goes on exactly behind its mark");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_repeats_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 100, 4).await;
    let script = Script::new(Idempotency::Key, |_, _, _| Act::Apply);
    for part in 1..4 {
        let running = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
        timeout(DEADLINE, script.wait_for_effects(part * 90)).await.expect("delivers");
        running.stop().await.expect("stops");
    }
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    assert_complete(&script.effects(), 100, 4);
    assert_eq!(script.absorbed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_out_of_order_stays_settled_over_several_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 100, 4).await;
    let closed = Arc::new(AtomicBool::new(true));
    let stuck = closed.clone();
    // The first lane's target is away, so the checkpoint stays low and everything else stands in the ledger.
    let script = Script::new(Idempotency::Key, move |lane, _, _| match lane.lane == 0 && stuck.load(Ordering::Relaxed) {
        true => Act::Fail(Class::Transient),
        false => Act::Apply,
    });
    for _ in 0..4 {
        let running = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
        let stats = running.stats.connector("loyalty").expect("there").clone();
        until("the first lane fails", || stats.state() == ConnectorState::Retrying).await;
        running.stop().await.expect("stops");
    }
    closed.store(false, Ordering::Relaxed);
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    assert_complete(&script.effects(), 100, 4);
    assert_eq!(script.absorbed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_event_becomes_a_dead_letter_and_is_redriven_under_its_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 10, 2).await;
    let mended = Arc::new(AtomicBool::new(false));
    let refuses = mended.clone();
    let script = Script::new(Idempotency::Key, move |_, batch, _| {
        let answer = |row: String| {
            if row.ends_with('7') && !refuses.load(Ordering::SeqCst) { refuse("scripted.invalid") } else { Outcome::Delivered }
        };
        Act::Answer(batch.items.iter().map(|i| answer(i.event.key_text())).collect())
    });
    let running = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
    let stats = running.stats.connector("loyalty").expect("there").clone();
    until("all settled", || stats.delivered.load(Ordering::Relaxed) == 18 && stats.rejected.load(Ordering::Relaxed) == 2).await;

    let state = control::replay(journal.as_ref()).await.expect("replays");
    let groups = dead_letter::list(&state, &Wanted::default());
    assert_eq!((groups.len(), groups[0].count, groups[0].code.as_str()), (1, 2, "scripted.invalid"));
    let keys: Vec<String> = state.dead_letters().map(|l| l.letter.idempotency_key.clone()).collect();

    mended.store(true, Ordering::SeqCst);
    let mut operator = Writer::take_operator(journal.clone(), "test", "pos", &state, "test").await.expect("takes over");
    let asked = dead_letter::redrive(&mut operator, &state, &Wanted::default(), "test").await.expect("asks");
    assert_eq!(asked, 2);
    until("redriven", || stats.redriven.load(Ordering::Relaxed) == 2).await;
    running.stop().await.expect("stops");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 0);
    let effects = script.effects();
    assert_eq!(effects.len(), 20);
    for key in keys {
        assert_eq!(effects.iter().filter(|e| e.idempotency_key == key).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_redrive_waits_for_the_next_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 1, 1).await;
    let script =
        Script::new(Idempotency::Key, |_, _, call| Act::Answer(vec![if call < 2 { refuse("scripted.no") } else { Outcome::Delivered }]));
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    for (refusals, left) in [(2, 1), (2, 0)] {
        let state = control::replay(journal.as_ref()).await.expect("replays");
        let mut operator = Writer::take_operator(journal.clone(), "test", "pos", &state, "test").await.expect("takes over");
        dead_letter::redrive(&mut operator, &state, &Wanted::default(), "test").await.expect("asks");
        catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
        let state = control::replay(journal.as_ref()).await.expect("replays");
        assert_eq!(state.dead_letters().count(), left);
        assert!(state.dead_letters().all(|l| !l.redrive_requested && l.letter.attempts == refusals));
    }
    assert_eq!(script.effects().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_waits_holds_its_row_and_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 20, 3).await;
    let blocked = Arc::new(AtomicBool::new(true));
    let blocks = blocked.clone();
    let script = Script::new(Idempotency::Key, move |_, batch, _| {
        let answer = |row: String| if row.ends_with("\u{1f}7") && blocks.load(Ordering::SeqCst) { retry(None) } else { Outcome::Delivered };
        Act::Answer(batch.items.iter().map(|i| answer(i.event.key_text())).collect())
    });
    let running = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
    timeout(DEADLINE, script.wait_for_effects(57)).await.expect("the others go on");
    blocked.store(false, Ordering::SeqCst);
    timeout(DEADLINE, script.wait_for_effects(60)).await.expect("the row follows");
    running.stop().await.expect("stops");
    assert_complete(&script.effects(), 20, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_stands_between_what_was_before_and_after() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for round in 0..4 {
        let rows: Vec<_> = (0..30).map(|row| insert("a", row, round)).collect();
        capture.write(0, &rows).await;
        capture.write(0, &[truncate("a")]).await;
    }
    capture.flush().await;
    let script = Script::new(Idempotency::Version, |_, _, call| if call % 4 == 2 { Act::Fail(Class::Transient) } else { Act::Apply });
    catch_up(&journal, vec![connector("inventory", script.target())]).await.expect("catches up");
    let truncates: Vec<usize> = script.effects().iter().enumerate().filter(|(_, e)| e.row == "public.a").map(|(n, _)| n).collect();
    assert_eq!(truncates, [30, 61, 92, 123]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_that_someone_has_to_mend_stops_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 10, 1).await;
    let broken = Script::new(Idempotency::Key, |_, _, _| Act::Fail(Class::Definite));
    let sound = Script::new(Idempotency::Key, |_, _, _| Act::Apply);
    let connectors = || vec![connector("broken", broken.target()), connector("sound", sound.target())];
    let running = start(&journal, connectors(), Mode::Continuous);
    timeout(DEADLINE, sound.wait_for_effects(10)).await.expect("the other goes on");
    let stats = running.stats.connector("broken").expect("there").clone();
    until("failed", || stats.state() == ConnectorState::Failed).await;
    assert_eq!(stats.last_error().expect("an error").code, "scripted.failed");
    running.stop().await.expect("stops");
    let error = catch_up(&journal, connectors()).await.expect_err("says so");
    assert_eq!(error.code(), "scripted.failed");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!(state.dead_letters().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_stops_delivery_before_the_first_wrong_effect() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    capture.commit(0, &[insert("a", 1, 1)]).await;
    capture.lose_one(0);
    capture.commit(0, &[insert("a", 2, 1)]).await;
    let script = Script::new(Idempotency::Key, |_, _, _| Act::Apply);
    let error = catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect_err("a gap");
    assert_eq!(error.code(), "delivery.gap");
    assert!(script.effects().len() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_was_filled_again_under_other_offsets_is_read_on_by_position() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for row in 0..50 {
        capture.commit(0, &[insert("a", row, 1)]).await;
    }
    // What a checkpoint says after the broker lost its end: the position stands, the offset does not. One lies beyond
    // the log, the other in the midst of it.
    for (round, offset) in [(0, 10_000), (1, 90)] {
        let connector_name = format!("loyalty{round}");
        let state = control::replay(journal.as_ref()).await.expect("replays");
        let (mut writer, lease) =
            Writer::take_lease(journal.clone(), "test", "pos", &state, &connector_name, 0, "before", "").await.expect("takes");
        let checkpoint = control::Checkpoint {
            connector: connector_name.clone(),
            partition: 0,
            lease: lease.lease,
            offset: tillstream::journal::Offset(offset),
            // The end of the 20th transaction.
            position: tillstream_schemas::Position::end(1, tillstream_schemas::Lsn(0x1000 + 20 * 0x100)),
            token: 1,
            ledger: vec![(offset + 1, offset + 20)],
            replay: None,
            at_ms: 0,
        };
        writer.store(&control::Record::Checkpoint(checkpoint)).await.expect("stores");
        let script = Script::new(Idempotency::Key, |_, _, _| Act::Apply);
        catch_up(&journal, vec![connector(&connector_name, script.target())]).await.expect("finds its place");
        assert_eq!(script.effects().len(), 30, "{offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_the_partitions_and_take_over_from_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 4).await;
    sell(&journal, 40, 2).await;
    let script = Script::new(Idempotency::Key, |_, _, _| Act::Apply);
    let has = |running: &Running| {
        running.stats.connector("loyalty").expect("there").partitions().into_keys().collect::<std::collections::BTreeSet<u16>>()
    };
    let first = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
    until("the first has all", || has(&first).len() == 4).await;
    let second = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
    until("each has two", || has(&first).len() == 2 && has(&second).len() == 2).await;
    assert!(has(&first).is_disjoint(&has(&second)));
    let third = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
    until("the third has one", || has(&first).len() + has(&second).len() == 3 && has(&third).len() == 1).await;
    let begun = std::time::Instant::now();
    second.kill().await;
    until("two share after a death", || has(&first).len() == 2 && has(&third).len() == 2).await;
    println!("two processes had all partitions {:?} after the third was killed", begun.elapsed());
    first.stop().await.expect("stops");
    until("one has all after an end", || has(&third).len() == 4).await;
    third.stop().await.expect("stops");
    assert_complete(&script.effects(), 40, 2);
    // Nobody holds anything: the next one need not wait.
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert!(state.leases().all(|l| l.released) && state.members().all(|m| m.left));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_a_call_in_the_air() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 1, 1).await;
    let script = Script::new(Idempotency::Key, |_, _, _| Act::Hold);
    let running = start(&journal, vec![connector("loyalty", script.target())], Mode::Continuous);
    until("the call is in the air", || script.calls() == 1).await;
    let release = script.clone();
    let stopping = tokio::spawn(running.stop());
    tokio::spawn(async move { release.release() });
    timeout(DEADLINE, stopping).await.expect("in time").expect("no panic").expect("stops");
    assert_eq!(script.effects().len(), 1);
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    assert_eq!(script.calls(), 1, "its outcome was saved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_dead_letter_is_settled_and_never_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    sell(&journal, 3, 1).await;
    let script = Script::new(Idempotency::Key, |_, batch, _| Act::Answer(batch.items.iter().map(|_| refuse("scripted.no")).collect()));
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    let calls = script.calls();
    let state = control::replay(journal.as_ref()).await.expect("replays");
    let first = state.dead_letters().next().expect("three").letter.event_id.clone();
    let mut operator = Writer::take_operator(journal.clone(), "test", "pos", &state, "test").await.expect("takes over");
    let wanted = Wanted { event_ids: vec![first.clone()], ..Wanted::default() };
    assert_eq!(dead_letter::discard(&mut operator, &state, &wanted, "a test guest", "test").await.expect("stored"), 1);
    catch_up(&journal, vec![connector("loyalty", script.target())]).await.expect("catches up");
    let state = control::replay(journal.as_ref()).await.expect("replays");
    assert_eq!((state.dead_letters().count(), state.dead_letters().any(|l| l.letter.event_id == first)), (2, false));
    assert_eq!(script.calls(), calls, "nothing was sent");
}
