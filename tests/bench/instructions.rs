//! Instructions of the hot paths, counted by callgrind: the same on every machine and at any load, so that a change that makes an event dearer is
//! seen by CI. `tests/instructions.sh` runs each of these tests below callgrind, which counts what [`counted`] runs, and compares with
//! `tests/bench/instructions.txt`. Run by hand they only show that the work is done.

use bytes::Bytes;
use tillstream::capture::intake::Intake;
use tillstream::capture::pgoutput::{self, Message};
use tillstream::delivery::filter::{Filter, FilterError, Verdict};
use tillstream::delivery::settlement::{Point, Settlement};
use tillstream::journal::{Chunk, Offset};
use tillstream_connectors::mapping::{Mapped, Mapping};
use tillstream_schemas::entry::Records;
use tillstream_schemas::{Event, Kind, Lsn};

use crate::mutations;
use crate::pgoutput_writer::{self as write, Value, column};

/// Transactions of ten rows.
const TRANSACTIONS: u64 = 1_000;
const ROWS: u64 = 10;

/// What is counted: nothing of a test's preparation.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}

/// What a point of sale writes most of.
fn messages() -> Vec<Vec<u8>> {
    let columns = [
        ("id", 20, true),
        ("sale_id", 20, false),
        ("item", 25, false),
        ("quantity", 1700, false),
        ("price", 1700, false),
        ("modifiers", 3802, false),
        ("created_at", 1184, false),
    ];
    let relation = write::relation(1, "public", "t", b'd', &columns.map(|(name, oid, key)| column(name, oid, key)));
    let mut all = Vec::new();
    for n in 0..TRANSACTIONS {
        let at = Lsn(0x1_0000 + n * 0x1000);
        all.push(write::begin(at, 847_000_000_123_456, 700 + n as u32));
        if n == 0 {
            all.push(relation.clone());
        }
        for row in n * ROWS..(n + 1) * ROWS {
            let text = |text: String| Value::from(text.as_str());
            let modifiers = if row % 10 == 3 { Value::from("{\"add\": [\"oat milk\"]}") } else { Value::Null };
            all.push(write::insert(
                1,
                &[
                    text(row.to_string()),
                    text((row / 10).to_string()),
                    text(format!("Espresso doppio no. {}", row % 10)),
                    text(format!("{}.000", 1 + row % 3)),
                    text(format!("{}.40", 2 + row % 10)),
                    modifiers,
                    text(format!("2026-11-22 10:{:02}:{:02}.{:06}+00", row / 60 % 60, row % 60, row)),
                ],
            ));
        }
        all.push(write::commit(at, Lsn(at.0 + 0x30), 847_000_000_123_456));
    }
    all
}

fn take(intake: &mut Intake, messages: &[Vec<u8>]) -> Vec<Bytes> {
    let mut batches = Vec::new();
    for message in messages {
        intake.take(message).expect("sound");
        while let Some(ready) = intake.appender.take_ready() {
            batches.push(ready.batch.bytes);
        }
    }
    intake.appender.cut_all();
    while let Some(ready) = intake.appender.take_ready() {
        batches.push(ready.batch.bytes);
    }
    batches
}

/// The batches of the first data log, as a reader gets them.
fn chunks() -> Vec<Chunk> {
    let mut intake = mutations::intake_of(1);
    let mut next = 0;
    take(&mut intake, &messages())
        .into_iter()
        .map(|bytes| {
            let records = Records::new(&bytes).count() as u32;
            next += u64::from(records);
            Chunk { first_offset: Offset(next - u64::from(records)), stored_at_ms: 0, bytes, records }
        })
        .collect()
}

fn events() -> Vec<Event> {
    let mut events = Vec::new();
    let mut filter = Filter::new();
    for chunk in chunks() {
        filter
            .chunk::<FilterError>(&chunk, |_, verdict| {
                if let Verdict::Pass(passed) = verdict
                    && passed.header.kind == Kind::Event
                {
                    events.push(Event::parse(Bytes::copy_from_slice(passed.body)).expect("an event"));
                }
                Ok(())
            })
            .expect("no gap");
    }
    assert_eq!(events.len() as u64, TRANSACTIONS * ROWS);
    events
}

#[test]
fn decode() {
    let messages = messages();
    let bytes = counted(|| {
        let mut bytes = 0;
        for message in &messages {
            if let Message::Insert { new, .. } = pgoutput::parse(message).expect("sound") {
                bytes += new.values().filter_map(|value| value.text()).map(<[u8]>::len).sum::<usize>();
            }
        }
        bytes
    });
    assert!(bytes > 500_000);
}

#[test]
fn encode() {
    let (messages, mut intake) = (messages(), mutations::intake_of(1));
    let batches = counted(|| take(&mut intake, &messages));
    assert!(batches.iter().map(Bytes::len).sum::<usize>() > 3_000_000);
}

#[test]
fn deliver() {
    let chunks = chunks();
    let mut filter = Filter::new();
    let events = counted(|| {
        let mut events = 0;
        for chunk in &chunks {
            filter
                .chunk::<FilterError>(chunk, |_, verdict| {
                    if let Verdict::Pass(passed) = verdict
                        && passed.header.kind == Kind::Event
                    {
                        let event = Event::parse(chunk.bytes.slice_ref(passed.body)).expect("an event");
                        events += usize::from(event.column("price").is_some());
                    }
                    Ok(())
                })
                .expect("no gap");
        }
        events
    });
    assert_eq!(events as u64, TRANSACTIONS * ROWS);
}

#[test]
fn map() {
    let template = serde_json::json!({"sku": "{{ after.item }}", "amount": "{{ after.price }}", "note": "sold {{ after.quantity }}", "at": "{{ after.created_at }}"});
    let mapping = Mapping::compile(Some("{{ op == 'insert' }}"), Some(&template)).expect("sound");
    let events = events();
    let made = counted(|| events.iter().filter(|event| matches!(mapping.apply(event, "k"), Ok(Mapped::Body(_)))).count());
    assert_eq!(made as u64, TRANSACTIONS * ROWS);
}

#[test]
fn settle() {
    let point = |offset: u64| Point { offset: Offset(offset), ..Point::default() };
    let mut settlement = Settlement::new(point(0));
    let checkpoint = counted(|| {
        for base in (0..TRANSACTIONS * ROWS).step_by(100) {
            let admitted: Vec<_> = (base..base + 100).map(|offset| settlement.admit(Offset(offset), 480, 0)).collect();
            settlement.reach(point(base + 100));
            // Lanes answer in another order than they were given.
            for lane in 0..4 {
                admitted.iter().skip(3 - lane).step_by(4).for_each(|sequence| settlement.settle(*sequence));
            }
        }
        settlement.checkpoint()
    });
    assert_eq!(checkpoint.offset, Offset(TRANSACTIONS * ROWS));
}
