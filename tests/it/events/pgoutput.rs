//! What the writer writes the parser reads; what is cut or altered it refuses or reads as something else, without a panic.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tillstream::capture::pgoutput::{Message, PgOutputError, TupleKind, TupleValue, parse};
use tillstream_schemas::Lsn;

use crate::pgoutput_writer::{self as write, Old, Value, column};

/// One message of each kind, with every kind of value.
fn messages() -> Vec<Vec<u8>> {
    let key = [Value::from("7"), Value::Null, Value::Null];
    let row = [Value::from("7"), Value::from("Zoë's \"best\""), Value::Null];
    let new = [Value::from("8"), Value::Unchanged, Value::from("")];
    vec![
        write::begin(Lsn(0x16_B3748), 847_000_000_123_456, 753),
        write::origin(Lsn(5), "berlin"),
        write::type_name(16_500, "public", "order_state"),
        write::relation(
            16_400,
            "public",
            "order_item",
            b'd',
            &[column("id", 20, true), column("näme", 25, false), column("note", 25, false)],
        ),
        write::insert(16_400, &row),
        write::update(16_400, None, &new),
        write::update(16_400, Some(Old::Key(&key)), &new),
        write::update(16_400, Some(Old::Row(&row)), &new),
        write::delete(16_400, Old::Key(&key)),
        write::delete(16_400, Old::Row(&row)),
        write::truncate(&[16_400, 16_401]),
        write::message(true, Lsn(77), "till/mark", b"\x00\xff content"),
        write::message(false, Lsn(78), "", b""),
        write::commit(Lsn(0x16_B3748), Lsn(0x16_B3778), 847_000_000_123_456),
    ]
}

fn texts<'a>(values: impl Iterator<Item = TupleValue<'a>>) -> Vec<String> {
    values
        .map(|v| match v {
            TupleValue::Null => "null".to_owned(),
            TupleValue::Unchanged => "unchanged".to_owned(),
            TupleValue::Text(text) => format!("={}", String::from_utf8_lossy(text)),
        })
        .collect()
}

#[test]
fn every_message_reads_as_it_was_written() {
    let all = messages();
    let Ok(Message::Begin(begin)) = parse(&all[0]) else { panic!("a begin") };
    assert_eq!((begin.final_lsn, begin.commit_time, begin.xid), (Lsn(0x16_B3748), 847_000_000_123_456, 753));
    assert_eq!(parse(&all[1]), Ok(Message::Origin { commit_lsn: Lsn(5), name: b"berlin" }));
    assert_eq!(parse(&all[2]), Ok(Message::Type { oid: 16_500, namespace: b"public", name: b"order_state" }));
    let Ok(Message::Relation(relation)) = parse(&all[3]) else { panic!("a relation") };
    assert_eq!((relation.oid, relation.namespace, relation.name), (16_400, b"public".as_slice(), b"order_item".as_slice()));
    assert_eq!((relation.identity, relation.len()), (b'd', 3));
    let columns: Vec<_> = relation.columns().map(|c| (c.name.to_vec(), c.type_oid, c.type_modifier, c.in_identity)).collect();
    assert_eq!(columns[0], (b"id".to_vec(), 20, -1, true));
    assert_eq!(columns[1], ("näme".as_bytes().to_vec(), 25, -1, false));
    let Ok(Message::Insert { oid: 16_400, new }) = parse(&all[4]) else { panic!("an insert") };
    assert_eq!(texts(new.values()), ["=7", "=Zoë's \"best\"", "null"]);
    let Ok(Message::Update { old: None, new, .. }) = parse(&all[5]) else { panic!("an update") };
    assert_eq!(texts(new.values()), ["=8", "unchanged", "="]);
    for (bytes, kind) in [(&all[6], TupleKind::OldKey), (&all[7], TupleKind::OldRow)] {
        let Ok(Message::Update { old: Some(old), new, .. }) = parse(bytes) else { panic!("an update") };
        assert_eq!((old.kind(), new.kind(), old.len(), new.len()), (kind, TupleKind::New, 3, 3));
    }
    for (bytes, kind) in [(&all[8], TupleKind::OldKey), (&all[9], TupleKind::OldRow)] {
        let Ok(Message::Delete { oid: 16_400, old }) = parse(bytes) else { panic!("a delete") };
        assert_eq!(old.kind(), kind);
    }
    let Ok(Message::Truncate(truncate)) = parse(&all[10]) else { panic!("a truncate") };
    assert_eq!(truncate.oids().collect::<Vec<_>>(), [16_400, 16_401]);
    let Ok(Message::Message(message)) = parse(&all[11]) else { panic!("a message") };
    assert_eq!((message.transactional, message.lsn), (true, Lsn(77)));
    assert_eq!((message.prefix, message.content), (b"till/mark".as_slice(), b"\x00\xff content".as_slice()));
    let Ok(Message::Commit(commit)) = parse(&all[13]) else { panic!("a commit") };
    assert_eq!((commit.commit_lsn, commit.end_lsn), (Lsn(0x16_B3748), Lsn(0x16_B3778)));
}

#[test]
fn every_truncation_and_every_surplus_byte_is_refused() {
    for message in messages() {
        for n in 0..message.len() {
            assert!(parse(&message[..n]).is_err(), "{:?} cut at {n}", message[0] as char);
        }
        for n in 1..4 {
            let longer = [message.as_slice(), &[0; 4][..n]].concat();
            assert_eq!(parse(&longer), Err(PgOutputError::Trailing(n)), "{:?}", message[0] as char);
        }
    }
}

#[test]
fn what_the_protocol_does_not_allow_is_refused() {
    let row = [Value::from("7"), Value::Null];
    let one = [Value::from("7")];
    // A value's length stands behind tag, oid, 'N', count and kind.
    let with_length = |n: u32| {
        let mut bytes = write::insert(1, &one);
        bytes[9..13].copy_from_slice(&n.to_be_bytes());
        bytes
    };
    let with = |mut bytes: Vec<u8>, at: usize, byte: u8| {
        bytes[at] = byte;
        bytes
    };
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("nothing at all", vec![]),
        ("unknown type", b"Q".to_vec()),
        ("negative length", with_length(u32::MAX)),
        ("length above what is left", with_length(2)),
        ("length whose sum would overflow", with_length(i32::MAX as u32)),
        ("column count above the limit", with(with(write::insert(1, &one), 6, 0xff), 7, 0xff)),
        ("column count above what is there", with(write::insert(1, &one), 7, 2)),
        ("binary value", with(write::insert(1, &one), 8, b'b')),
        ("unknown kind of value", with(write::insert(1, &one), 8, b'x')),
        ("unchanged value in an old key", write::delete(1, Old::Key(&[Value::Unchanged]))),
        ("unchanged value in an old row", write::update(1, Some(Old::Row(&[Value::Unchanged])), &one)),
        ("insert without N", with(write::insert(1, &row), 5, b'K')),
        ("delete of a new tuple", with(write::delete(1, Old::Key(&row)), 5, b'N')),
        ("update without N", with(write::update(1, None, &row), 5, b'I')),
        ("two old tuples", [&write::update(1, Some(Old::Key(&one)), &one)[..13], b"K", &[0; 9]].concat()),
        ("truncate of no table", write::truncate(&[])),
        ("truncate of more tables than there are", with(write::truncate(&[1]), 4, 2)),
        ("truncate of very many", with(write::truncate(&[1]), 1, 0xff)),
        ("truncate with unknown options", with(write::truncate(&[1]), 5, 4)),
        ("commit with flags", with(write::commit(Lsn(1), Lsn(2), 3), 1, 1)),
        ("message with unknown flags", with(write::message(true, Lsn(1), "p", b"c"), 1, 2)),
        ("message of 1 GiB that is not there", with(write::message(true, Lsn(1), "p", b"c"), 12, 0x40)),
        ("relation with an unknown identity", write::relation(1, "a", "b", b'x', &[])),
        ("relation whose name does not end", b"R\0\0\0\x01public\0items".to_vec()),
        ("type with an embedded NUL", write::type_name(1, "a\0b", "c")),
    ];
    for (what, bytes) in malformed {
        let error = parse(&bytes).expect_err(what);
        assert!(error.code().starts_with("capture."), "{what}: {error}");
    }
    for tag in *b"SEcAbPKrp" {
        assert_eq!(parse(&[tag, 0, 0]), Err(PgOutputError::NotAskedFor(tag)));
    }
}

/// Going through whatever was accepted: the counts must hold.
fn walk(bytes: &[u8]) {
    let Ok(message) = parse(bytes) else { return };
    let check = |tuple: tillstream::capture::pgoutput::Tuple<'_>| assert_eq!(tuple.values().count(), tuple.len());
    match message {
        Message::Insert { new, .. } => check(new),
        Message::Update { old, new, .. } => {
            check(new);
            old.into_iter().for_each(check);
        }
        Message::Delete { old, .. } => check(old),
        Message::Relation(relation) => assert_eq!(relation.columns().count(), relation.len()),
        Message::Truncate(truncate) => assert!(truncate.oids().count() > 0),
        _ => {}
    }
}

#[test]
fn altered_messages_never_panic() {
    let seed = std::env::var("TILLSTREAM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random::<u64>());
    println!("TILLSTREAM_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let all = messages();
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        for _ in 0..1000 {
            let mut bytes = all[rng.random_range(0..all.len())].clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] = rng.random(),
                    1 => bytes[at] ^= 1 << rng.random_range(0..8),
                    2 => bytes.insert(at, rng.random()),
                    _ => {
                        if bytes.len() > 1 {
                            bytes.remove(at);
                        }
                    }
                }
            }
            walk(&bytes);
        }
    }
}
