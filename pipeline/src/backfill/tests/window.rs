//! Single rules of the window.

use std::sync::Arc;

use tillstream_schemas::{Lsn, Position, TableSchema};

use super::super::window::{Again, Chunk, Closed, Marks, Next, Opening, Windows, as_of, as_of_passed};
use super::{CHANGER, OID, before_changer, chunk, chunk_with, feed, opening, schema, schema_of};
use crate::capture::catalog::Snapshot;
use crate::control::KeyTexts;

/// A window whose low watermark came by, inside the changer's transaction. What came before is visible.
fn opened(table: &Arc<TableSchema>) -> Windows {
    let mut window = Windows::default();
    window.open(1, opening(table));
    window.begin(1);
    assert_eq!(window.watermark(b"low"), None);
    window.commit();
    window.begin(CHANGER);
    window
}

/// What is left of a chunk once its high watermark came by; the rows that were written before a cut count.
fn written(window: &mut Windows, keys: &[&[&str]]) -> Result<Vec<usize>, Again> {
    match window.watermark(b"high").expect("closes") {
        (1, Closed::Ready) => {}
        (_, Closed::Again(why)) => return Err(why),
        other => panic!("{other:?}"),
    }
    let mut written = Vec::new();
    loop {
        match window.next(1) {
            Next::Row { row, gone: false } => written.push(row),
            Next::Row { .. } => panic!("nothing is gone"),
            Next::Done { evicted } => {
                assert_eq!(written.len() as u64 + evicted, keys.len() as u64);
                return Ok(written);
            }
            Next::Cut { why, .. } => return Err(why),
        }
    }
}

fn close(mut window: Windows, keys: &[&str]) -> Result<Vec<String>, Again> {
    window.chunk(1, chunk(keys));
    let slices: Vec<&[&str]> = keys.iter().map(std::slice::from_ref).collect();
    Ok(written(&mut window, &slices)?.into_iter().map(|row| keys[row].to_owned()).collect())
}

#[test]
fn rows_are_versioned_below_any_later_event() {
    assert_eq!(as_of(Position::new(1, Lsn(9), 3)), Position::new(1, Lsn(9), 0));
    // The next commit stands at 9 or later, and every event so far below it.
    assert_eq!(as_of_passed(1, Lsn(9)), Position::new(1, Lsn(8), 0));
}

#[test]
fn changed_keys_are_evicted_old_and_new() {
    let table = schema();
    let mut window = opened(&table);
    feed(&mut window, &table, Some(&[Some("a"), Some("")]), Some(&[Some("b"), Some("1")]));
    feed(&mut window, &table, Some(&[Some("c"), Some("")]), None);
    feed(&mut window, &table, None, Some(&[Some("d"), Some("1")]));
    window.commit();
    assert_eq!(close(window, &["a", "b", "c", "d", "e"]), Ok(vec!["e".to_owned()]));
}

#[test]
fn a_row_that_has_the_change_stays_and_one_that_lost_a_value_is_read_again() {
    let table = schema();
    let touched = || {
        let mut window = opened(&table);
        feed(&mut window, &table, None, Some(&[Some("a"), None]));
        window.commit();
        window
    };
    assert_eq!(close(touched(), &["a", "b"]), Err(Again::Incomplete));
    assert_eq!(close(touched(), &["b"]), Ok(vec!["b".to_owned()]), "another row's value is none of this chunk's");
    let mut window = touched();
    window.chunk(1, chunk_with(&[&["a"]], Some(Snapshot { xmin: 8, xmax: 8, in_progress: vec![] })));
    assert_eq!(written(&mut window, &[&["a"]]), Ok(vec![0]), "the chunk saw the change");
}

#[test]
fn a_change_that_comes_before_the_row_is_written_evicts_it() {
    let table = schema();
    let mut window = opened(&table);
    window.commit();
    window.chunk(1, chunk(&["a", "b", "c", "d"]));
    assert_eq!(window.watermark(b"high"), Some((1, Closed::Ready)));
    assert_eq!(window.next(1), Next::Row { row: 0, gone: false });
    window.begin(20);
    feed(&mut window, &table, None, Some(&[Some("b"), Some("1")]));
    window.commit();
    assert_eq!(window.next(1), Next::Row { row: 2, gone: false });
    // One that leaves a value out cuts the chunk behind what was dealt with.
    window.begin(21);
    feed(&mut window, &table, None, Some(&[Some("d"), None]));
    window.commit();
    let after = Some(KeyTexts(vec!["c".to_owned()]));
    assert_eq!(window.next(1), Next::Cut { why: Again::Incomplete, after, evicted: 1 });
    assert!(!window.any_open());
}

#[test]
fn a_window_by_positions_closes_once_the_stream_has_passed() {
    let table = schema();
    let mut window = Windows::default();
    window.begin(30);
    // What is open when the window opens was not looked into: it has to be visible.
    window.open(1, Opening { marks: Marks::Positions { horizon: Some(5) }, ..opening(&table) });
    window.change(OID, &table, None, None);
    window.commit();
    let with = |upto: &str| Chunk { high: Lsn(100), ..chunk_with(&[&["a"]], Snapshot::parse(upto)) };
    window.chunk(1, with("6:31:30"));
    assert_eq!(window.passed(Lsn(99)), None);
    assert_eq!(window.passed(Lsn(100)), Some((1, Closed::Again(Again::NotVisible))));
    window.open(2, Opening { marks: Marks::Positions { horizon: Some(5) }, ..opening(&table) });
    window.chunk(2, with("31:31:"));
    assert_eq!(window.passed(Lsn(100)), Some((2, Closed::Ready)));
}

#[test]
fn a_truncate_empties_the_chunk_and_other_tables_do_not_matter() {
    let table = schema();
    let mut window = opened(&table);
    window.truncate(OID + 1);
    assert_eq!(close(window, &["a"]), Ok(vec!["a".to_owned()]));
    let mut window = opened(&table);
    window.truncate(OID);
    assert_eq!(close(window, &["a"]), Ok(vec![]));
}

#[test]
fn a_key_that_was_not_sent_or_another_shape_means_again() {
    let table = schema();
    let mut window = opened(&table);
    feed(&mut window, &table, None, Some(&[None, Some("1")]));
    assert_eq!(close(window, &["a"]), Err(Again::KeyUnknown));
    // An unchanged key that the old tuple names is known.
    let mut window = opened(&table);
    feed(&mut window, &table, Some(&[Some("a"), Some("")]), Some(&[None, Some("1")]));
    assert_eq!(close(window, &["b"]), Ok(vec!["b".to_owned()]));
    let mut window = opened(&table);
    let wider = schema_of(&[("k", true), ("v", false), ("w", false)]);
    feed(&mut window, &wider, None, Some(&[Some("z"), Some("1"), Some("2")]));
    assert_eq!(close(window, &["a"]), Err(Again::TableChanged));
}

#[test]
fn keys_of_several_columns_do_not_run_together() {
    let table = schema_of(&[("a", true), ("b", true)]);
    let mut window = opened(&table);
    feed(&mut window, &table, None, Some(&[Some("x"), Some("yz")]));
    let keys: [&[&str]; 2] = [&["xy", "z"], &["x", "yz"]];
    window.chunk(1, chunk_with(&keys, Some(before_changer())));
    assert_eq!(written(&mut window, &keys), Ok(vec![0]));
}

#[test]
fn too_many_keys_and_transactions_are_bounded() {
    let table = schema();
    let mut window = opened(&table);
    for n in 0..200_001 {
        feed(&mut window, &table, None, Some(&[Some(&n.to_string()), Some("")]));
    }
    assert_eq!(close(window, &["a"]), Err(Again::TooManyKeys));

    // More delivered transactions than are remembered one by one: the chunk needs a snapshot that sees them all.
    let mut window = opened(&table);
    window.commit();
    window.abandon(1);
    for xid in 10..1_200_000 {
        window.begin(xid);
        window.commit();
    }
    let attempt = |window: &mut Windows, snapshot: &str| {
        window.open(1, opening(&table));
        window.begin(1_200_000);
        window.watermark(b"low");
        window.chunk(1, chunk_with(&[&["a"]], Snapshot::parse(snapshot)));
        let closed = window.watermark(b"high").expect("closes").1;
        window.abandon(1);
        closed
    };
    assert_eq!(attempt(&mut window, "900000:1300000:900000"), Closed::Again(Again::NotVisible));
    assert_eq!(attempt(&mut window, "1048580:1300000:1048580"), Closed::Again(Again::NotVisible));
    assert_eq!(attempt(&mut window, "1048590:1300000:1048590"), Closed::Ready);
}

#[test]
fn watermarks_of_others_and_out_of_order_write_nothing() {
    let table = schema();
    let mut window = opened(&table);
    assert_eq!(window.watermark(b"other/high"), None);
    // The high one before the low one.
    let mut window = Windows::default();
    window.open(1, opening(&table));
    window.chunk(1, chunk(&["a"]));
    assert_eq!(window.watermark(b"high"), Some((1, Closed::Again(Again::Disorder))));
    assert_eq!(close(opened(&table), &["a"]), Ok(vec!["a".to_owned()]));
}

#[test]
fn what_was_delivered_before_anybody_watched_has_to_be_visible() {
    let table = schema();
    let mut window = Windows::default();
    window.open(1, opening(&table));
    // The low watermark's own transaction has number 40: whatever committed before it has a lower one.
    window.begin(40);
    window.watermark(b"low");
    window.commit();
    window.chunk(1, chunk_with(&[&["a"]], Snapshot::parse("39:45:39")));
    assert_eq!(window.watermark(b"high"), Some((1, Closed::Again(Again::NotVisible))), "39 may have been delivered to an earlier run");
    window.open(2, opening(&table));
    window.begin(50);
    window.watermark(b"low");
    window.commit();
    window.chunk(2, chunk_with(&[&["a"]], Snapshot::parse("45:55:45")));
    assert_eq!(window.watermark(b"high"), Some((2, Closed::Ready)), "45 was not, or it would be remembered");
}
