//! What the simulated database commits, and what must come of it.

use tillstream_schemas::partition::partition_of;
use tillstream_schemas::{Half, Lsn, Position};

use super::dice::Dice;
use crate::pgoutput_writer::{self as pg, Old, Value, column};

/// Rows above this many bytes go to the dead letters in the model: small, so that it happens.
pub(crate) const ROW_BYTES_MAX: usize = 6_000;

/// Tables by OID; the last one is published but not captured.
pub(crate) const TABLES: [(u32, &str); 3] = [(11, "orders"), (12, "payment"), (13, "audit")];
const NOT_CAPTURED: u32 = 13;
const INT4: u32 = 23;
const TEXT: u32 = 25;

/// An event that must be stored exactly once, in its place.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// `e1-0/16B3748-17`
    pub(crate) id: String,
    /// Where: one partition, or all.
    pub(crate) partitions: Vec<u16>,
    /// Text that stands in no other event's body.
    pub(crate) mark: String,
}

/// One message and the relations that it needs.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) needs: Vec<u32>,
    pub(crate) bytes: Vec<u8>,
}

/// A transaction, or a message outside any.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Where its commit record (or its message record) begins: sent when the slot has not confirmed beyond.
    pub(crate) start: Lsn,
    /// The byte after it.
    pub(crate) end: Lsn,
    /// Commit LSN as positions name it.
    pub(crate) commit_lsn: Lsn,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) expected: Vec<Expected>,
    /// Ids of events that are too large.
    pub(crate) dead: Vec<String>,
    /// Whether `end` entries follow.
    pub(crate) is_transaction: bool,
}

/// Makes up records.
pub(crate) struct Author {
    dice: Dice,
    partitions: u16,
    next_lsn: u64,
    next_xid: u32,
    marks: u64,
}

impl Author {
    pub(crate) fn new(dice: Dice, partitions: u16) -> Self {
        let next_lsn = 0x0100_0000 + dice.within(0, 0xFFFF) * 8;
        Author { dice, partitions, next_lsn, next_xid: 700, marks: 0 }
    }

    /// Where WAL ends for now.
    pub(crate) fn wal_end(&self) -> Lsn {
        Lsn(self.next_lsn)
    }

    /// Other databases write.
    pub(crate) fn pass_by(&mut self) {
        self.next_lsn += self.dice.within(1, 64) * 8;
    }

    fn mark(&mut self) -> String {
        self.marks += 1;
        format!("mark-{}.", self.marks)
    }

    pub(crate) fn record(&mut self) -> Record {
        if self.dice.chance(6) { self.message() } else { self.transaction() }
    }

    /// A message outside any transaction: named by the end of its record, placed at the byte before.
    fn message(&mut self) -> Record {
        let start = Lsn(self.next_lsn);
        self.next_lsn += self.dice.within(1, 20) * 8;
        let end = Lsn(self.next_lsn);
        let place = Lsn(end.0 - 1);
        let own = self.dice.chance(40);
        let mark = self.mark();
        let bytes = pg::message(false, end, if own { "tillstream/x" } else { "till" }, mark.as_bytes());
        let id = format!("e{}", Position::new(1, place, 0));
        let expected = if own { Vec::new() } else { vec![Expected { id, partitions: vec![0], mark }] };
        let pieces = vec![Piece { needs: Vec::new(), bytes }];
        Record { start, end, commit_lsn: place, pieces, expected, dead: Vec::new(), is_transaction: false }
    }

    fn transaction(&mut self) -> Record {
        let dice = self.dice.clone();
        let changes = match dice.within(0, 19) {
            0 => dice.within(20, 60),
            1..=5 => 1,
            _ => dice.within(1, 8),
        };
        // Sometimes the commit begins exactly where the record before ended.
        if dice.chance(70) {
            self.next_lsn += dice.within(1, 40) * 8;
        }
        let start = Lsn(self.next_lsn);
        self.next_lsn += dice.within(1, 8) * 8;
        let end = Lsn(self.next_lsn);
        let xid = self.next_xid;
        self.next_xid += 1;
        let commit_time = 800_000_000_000_000 + i64::from(xid) * 1_000_003;
        let mut record = Record {
            start,
            end,
            commit_lsn: start,
            pieces: vec![Piece { needs: Vec::new(), bytes: pg::begin(start, commit_time, xid) }],
            expected: Vec::new(),
            dead: Vec::new(),
            is_transaction: true,
        };
        let mut ordinal = 0;
        for _ in 0..changes {
            self.change(&mut record, &mut ordinal);
        }
        record.pieces.push(Piece { needs: Vec::new(), bytes: pg::commit(start, end, commit_time) });
        record
    }

    fn change(&mut self, record: &mut Record, ordinal: &mut u32) {
        let dice = self.dice.clone();
        let at = |ordinal: u32, half| format!("e{}", Position { half, ..Position::new(1, record.commit_lsn, ordinal) });
        let kind = dice.within(0, 99);
        if kind < 3 {
            let oids: Vec<u32> = TABLES.iter().map(|(oid, _)| *oid).filter(|_| dice.chance(60)).collect();
            if oids.is_empty() {
                return;
            }
            for oid in &oids {
                if *oid != NOT_CAPTURED {
                    let id = at(*ordinal, Half::Whole);
                    record.expected.push(Expected { mark: id.clone(), id, partitions: (0..self.partitions).collect() });
                }
                *ordinal += 1;
            }
            record.pieces.push(Piece { bytes: pg::truncate(&oids), needs: oids });
            return;
        }
        if kind < 7 {
            let (own, mark) = (dice.chance(50), self.mark());
            let bytes = pg::message(true, record.start, if own { "tillstream/x" } else { "till" }, mark.as_bytes());
            record.pieces.push(Piece { needs: Vec::new(), bytes });
            if !own {
                record.expected.push(Expected { id: at(*ordinal, Half::Whole), partitions: vec![0], mark });
            }
            *ordinal += 1;
            return;
        }
        let (oid, _) = TABLES[dice.below(TABLES.len())];
        let key = dice.within(1, 12).to_string();
        let mark = self.mark();
        let size = match dice.within(0, 99) {
            0 => ROW_BYTES_MAX + 500,
            1..=4 => 5_000,
            5..=15 => 900,
            _ => 20,
        };
        let note = format!("{mark}{}", "x".repeat(size));
        let (id_text, note) = (Value::from(key.as_str()), Value::from(note.as_str()));
        let row = [id_text.clone(), note];
        let old = [id_text, Value::Null];
        let mut expected = Vec::new();
        let bytes = if kind < 50 {
            expected.push((Half::Whole, key, mark));
            pg::insert(oid, &row)
        } else if kind < 75 {
            expected.push((Half::Whole, key, mark));
            pg::update(oid, None, &row)
        } else if kind < 88 {
            let id = at(*ordinal, Half::Whole);
            expected.push((Half::Whole, key, id));
            pg::delete(oid, Old::Key(&old))
        } else {
            let before = (dice.within(1, 12) + 100).to_string();
            let id = at(*ordinal, Half::Delete);
            expected.push((Half::Delete, before.clone(), id));
            expected.push((Half::Insert, key, mark));
            pg::update(oid, Some(Old::Key(&[Value::from(before.as_str()), Value::Null])), &row)
        };
        if oid != NOT_CAPTURED {
            if bytes.len() > ROW_BYTES_MAX {
                record.dead.push(at(*ordinal, Half::Whole));
            } else {
                for (half, key, mark) in expected {
                    let partition = partition_of([Some(key.as_bytes())].into_iter(), self.partitions);
                    record.expected.push(Expected { id: at(*ordinal, half), partitions: vec![partition], mark });
                }
            }
        }
        record.pieces.push(Piece { needs: vec![oid], bytes });
        *ordinal += 1;
    }
}

/// The Relation message of a table.
pub(crate) fn relation(oid: u32) -> Vec<u8> {
    let name = TABLES.iter().find(|(o, _)| *o == oid).map(|(_, name)| *name).expect("a table of the model");
    pg::relation(oid, "public", name, b'd', &[column("id", INT4, true), column("note", TEXT, false)])
}
