//! A scripted backfill: now and then it hands over rows and then a cursor that must not be stored before them.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tillstream::capture::hook::{HandOver, Hook, Hooks, Write};
use tillstream::capture::pgoutput::Tuple;
use tillstream::capture::read_rows::{ReadChunk, ReadRow, ReadRows};
use tillstream::capture::relations::{ColumnSpec, TableOptions, table_schema};
use tillstream::control::{Cursor, Record, State};
use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::table::Identity;
use tillstream_schemas::{Lsn, Position, TableSchema};
use tokio::time::{Sleep, sleep};

use super::checker::Checker;
use super::dice::Dice;

/// Makes the script of each session.
pub(crate) struct Script {
    pub(crate) dice: Dice,
    pub(crate) checker: Checker,
}

impl Hooks for Script {
    fn session(&self, _state: &State, epoch: u32) -> Option<Box<dyn Hook>> {
        let column = |name: &str, type_oid, in_identity| ColumnSpec { name: name.to_owned(), type_oid, type_modifier: -1, in_identity };
        let columns = [column("id", 23, true), column("note", 25, false)];
        let table =
            table_schema(1, ("public", "orders"), ("public", "orders"), Identity::Default, columns.into_iter(), &TableOptions::default());
        Some(Box::new(Load {
            dice: self.dice.clone(),
            checker: self.checker.clone(),
            table: Arc::new(table.expect("a plain table")),
            epoch,
            at: Lsn(0),
            inside: false,
            queue: VecDeque::new(),
            cursors: HashMap::new(),
            next: 0,
            timer: Box::pin(sleep(self.dice.millis(100, 20_000))),
        }))
    }
}

struct Load {
    dice: Dice,
    checker: Checker,
    table: Arc<TableSchema>,
    epoch: u32,
    at: Lsn,
    inside: bool,
    queue: VecDeque<Write>,
    /// Number of the cursor behind each hand-over.
    cursors: HashMap<u64, u64>,
    next: u64,
    timer: Pin<Box<Sleep>>,
}

impl Load {
    fn hand_over(&mut self) {
        let chunk = self.dice.within(1, 1 << 31) as u32;
        let number = u64::from(chunk);
        let as_of = Position::new(self.epoch, self.at, 0);
        let rows = self.dice.within(1, 6) as u32;
        let mut values = ReadRows::new(2);
        for _ in 0..rows {
            let note = "y".repeat(if self.dice.chance(5) { 5_000 } else { 30 });
            values.push([Some(self.dice.within(1, 12).to_string().as_str()), Some(&note)]);
        }
        let table = "public.orders".to_owned();
        let first = ReadId { epoch: self.epoch, job: "model".to_owned(), table, chunk, attempt: 0, row: 0 };
        let chunk = Arc::new(ReadChunk::new(self.table.clone(), Arc::new(values), None, first, as_of));
        let mut ids = Vec::new();
        for row in 0..rows {
            let read = ReadRow { chunk: chunk.clone(), row, gone: false };
            ids.push(read.id());
            self.queue.push_back(Write::Row(read));
        }
        self.checker.promised(number, ids);
        self.next += 1;
        self.cursors.insert(self.next, number);
        let cursor = Cursor {
            job: "model".to_owned(),
            table: "public.orders".to_owned(),
            part: String::new(),
            epoch: self.epoch,
            chunk: 1,
            attempt: 0,
            after: None,
            bound: None,
            rows: number,
            done: false,
            started_at_ms: 0,
            at_ms: 0,
        };
        self.queue.push_back(Write::Record(HandOver(self.next), Box::new(Record::Cursor(cursor))));
    }
}

impl Hook for Load {
    fn live(&mut self, _live: bool) {}

    fn watches(&self) -> bool {
        true
    }

    fn begin(&mut self, _xid: u32, commit_lsn: Lsn) {
        assert!(!self.inside, "transactions do not nest");
        (self.inside, self.at) = (true, commit_lsn);
    }

    fn change(&mut self, _oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) {
        assert!(self.inside && table.columns.len() == 2 && (old.is_some() || new.is_some()));
    }

    fn truncate(&mut self, _oid: u32, _table: &TableSchema) {
        assert!(self.inside);
    }

    fn message(&mut self, prefix: &[u8], content: &[u8], at: Position) {
        assert!(prefix == b"tillstream/x" && content.starts_with(b"mark-") && at.commit_lsn >= self.at);
    }

    fn commit(&mut self, _xid: u32, _end: Lsn) {
        self.inside = false;
        if self.dice.chance(15) {
            self.hand_over();
        }
    }

    fn idle(&mut self, _reached: Lsn) {
        assert!(!self.inside);
    }

    fn write(&mut self) -> Option<Write> {
        assert!(!self.inside, "rows stand between transactions");
        self.queue.pop_front()
    }

    fn stored(&mut self, upto: HandOver) {
        self.checker.believed(self.cursors[&upto.0]);
    }

    fn is_done(&self) -> bool {
        false
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.queue.is_empty() {
            return Poll::Ready(());
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.timer = Box::pin(sleep(self.dice.millis(100, 20_000)));
        self.hand_over();
        Poll::Ready(())
    }
}
