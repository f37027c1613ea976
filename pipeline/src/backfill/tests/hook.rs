//! What the hook hands over, and when.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tillstream_schemas::{EventId, Lsn, Position};
use tokio::sync::{mpsc, oneshot};

use super::super::hook::{PREFIX, ReadHook, STEPS_MAX, Step, Taken, Verdict};
use super::{OID, change_bytes, chunk, opening, schema};
use crate::capture::catalog::Snapshot;
use crate::capture::hook::{Hook, Write};
use crate::capture::pgoutput::{Message, parse};
use crate::control::{Cursor, KeyTexts, Record};

fn cursor() -> Cursor {
    Cursor {
        job: "load".to_owned(),
        table: "public.t".to_owned(),
        part: String::new(),
        epoch: 1,
        chunk: 4,
        attempt: 2,
        after: Some(KeyTexts(vec!["c".to_owned()])),
        bound: Some(KeyTexts(vec!["z".to_owned()])),
        rows: 10,
        done: false,
        started_at_ms: 0,
        at_ms: 0,
    }
}

fn taken(keys: &[&str], stored: oneshot::Sender<()>) -> Step {
    let mut chunk = chunk(keys);
    chunk.snapshot = Some(Snapshot { xmin: 7, xmax: 10, in_progress: vec![7] });
    Step::Chunk(Box::new(Taken { id: 1, chunk, scope: None, number: 3, cursor: cursor(), stored, stats: Arc::default() }))
}

#[test]
fn rows_then_the_cursor_then_the_word_that_it_is_stored() {
    let table = schema();
    let (steps, receiver) = mpsc::channel(STEPS_MAX);
    let mut hook = ReadHook::new(receiver, 1, true, Arc::default());
    let (verdict, mut answer) = oneshot::channel();
    let (stored, mut is_stored) = oneshot::channel();
    steps.try_send(Step::Open { id: 1, opening: opening(&table), verdict }).expect("room");
    hook.begin(5, Lsn(5));
    hook.message(PREFIX.as_bytes(), b"low", Position::new(1, Lsn(5), 0));
    hook.commit(5, Lsn(6));
    hook.begin(7, Lsn(6));
    assert!(hook.watches());
    let bytes = change_bytes(None, Some(&[Some("b"), Some("1")]));
    let Ok(Message::Insert { new, .. }) = parse(&bytes) else { panic!("an insert") };
    hook.change(OID, &table, None, Some(&new));
    hook.commit(7, Lsn(7));
    steps.try_send(taken(&["a", "b", "c"], stored)).expect("room");
    assert!(hook.write().is_none(), "nothing before the high watermark");
    hook.message(b"tillstream/other", b"high", Position::new(1, Lsn(9), 0));
    assert!(hook.write().is_none());
    hook.message(PREFIX.as_bytes(), b"high", Position::new(1, Lsn(9), 0));

    for (row, id) in [(0, "e1-bload-public.t-3.2-0"), (2, "e1-bload-public.t-3.2-2")] {
        assert!(answer.try_recv().is_err(), "the reader goes on behind the last row");
        let Some(Write::Row(read)) = hook.write() else { panic!("a row") };
        assert_eq!((read.row, read.id().as_str(), read.chunk.as_of), (row, id, Position::new(1, Lsn(9), 0)));
        assert!(id.parse::<EventId>().is_ok());
    }
    let Some(Write::Record(hand_over, stored)) = hook.write() else { panic!("the cursor") };
    let Record::Cursor(stored) = *stored else { panic!("the cursor") };
    assert_eq!((stored.chunk, stored.rows), (4, 12));
    assert_eq!(answer.try_recv(), Ok(Verdict::Written { cursor: Box::new(stored), cut: None }));
    assert!(hook.write().is_none() && !hook.watches());
    assert!(is_stored.try_recv().is_err());
    hook.stored(hand_over);
    assert_eq!(is_stored.try_recv(), Ok(()));
}

#[test]
fn the_engine_is_woken_for_a_record_and_left_alone_otherwise() {
    let (steps, receiver) = mpsc::channel(STEPS_MAX);
    let mut hook = ReadHook::new(receiver, 1, false, Arc::default());
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(hook.poll(&mut cx), Poll::Pending);
    assert!(hook.is_done());
    let (stored, _is_stored) = oneshot::channel();
    steps.try_send(Step::Record { record: Box::new(Record::Cursor(cursor())), stored }).expect("room");
    assert_eq!(hook.poll(&mut cx), Poll::Ready(()));
    assert!(matches!(hook.write(), Some(Write::Record(..))));
    assert_eq!(hook.poll(&mut cx), Poll::Pending);
    // What sent the steps has ended: a hook that does nothing is left.
    drop(steps);
    assert_eq!(hook.poll(&mut cx), Poll::Pending);
}
