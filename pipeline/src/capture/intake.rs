//! One message of the replication stream at a time: counted, given its place, encoded and put into a batch.
//!
//! Owns what lasts from message to message: the tables, the open transaction, the batches, what may be acknowledged,
//! and the backfill's hook. Synchronous and without I/O; nothing here allocates per event, waits or looks at a clock.
//! Every way in which messages can contradict each other is an error before anything is written.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tillstream_schemas::table::Identity;
use tillstream_schemas::{Column, Kind, Layout, Lsn, Policy, Position, TableSchema};
use tokio::time::Instant;

use super::appender::{Appender, Diverged, Put};
use super::encode::{self, Row, TxContext};
use super::hook::{HandOver, Hook, Write};
use super::pgoutput::{self, Begin, Commit, LogicalMessage, Message, Relation, Tuple};
use super::progress::Progress;
use super::read_rows::{ReadChunk, ReadRow};
use super::relations::{RelationError, Relations};
use super::stats::Stats;
use super::{CaptureError, Settings};
use crate::control::{self, Body, DeadLetter, LayoutColumn, Record, Stamp, TableLayout, now_ms};
use crate::journal::{Offset, PublishId};
use crate::telemetry::canary::{self, Canary};

/// Prefix of our own logical messages: they carry a backfill's watermarks and canaries, and are never published.
pub const OWN_PREFIX: &[u8] = b"tillstream/";

/// The name under which dead letters of capture itself stand beside those of the connectors.
pub const DEAD_LETTER_OWNER: &str = "capture";

/// What the envelope of a backfill's row takes beside its values, about.
const ENVELOPE_BYTES: usize = 200;

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01 00:00 UTC.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// The open transaction.
struct Open {
    begin: Begin,
    context: TxContext,
}

/// Numbers of the current round, added to the shared ones once a round.
#[derive(Debug, Default)]
struct Counts {
    transactions: u64,
    events: u64,
    reads: u64,
    skipped: u64,
    dead_letters: u64,
    received_bytes: u64,
}

/// A record that waits for what was handed over before it.
struct Waiting {
    required: Box<[PublishId]>,
    hand_over: HandOver,
    record: Box<Record>,
}

/// What lasts from message to message of one session.
pub struct Intake {
    relations: Relations,
    /// The last layout of each captured table that the control log holds, and since when.
    layouts: HashMap<String, (Position, Layout)>,
    /// That of the last row that a backfill handed over: a change of it is worth a look.
    read_layout: Layout,
    /// Batches.
    pub appender: Appender,
    /// What may be acknowledged.
    pub progress: Progress,
    open: Option<Open>,
    hook: Option<Box<dyn Hook>>,
    /// Whether the hook wants the rows of the open transaction.
    watched: bool,
    /// Bounded by the hook: it waits for a chunk's record before it reads the next but one.
    waiting: VecDeque<Waiting>,
    /// Records in the control log's writer, each with the id of its last batch.
    written: VecDeque<(PublishId, HandOver)>,
    /// A canary of the open transaction.
    canary: Option<Canary>,
    /// A canary whose markers are written, and what has to be confirmed until they are stored.
    marked: Option<(Canary, Box<[PublishId]>)>,
    stamp: Stamp,
    batch_max: usize,
    row_bytes_max: usize,
    /// End of what was received: of the last commit, or of the last message outside a transaction.
    received: Lsn,
    committed_at_ms: i64,
    counts: Counts,
    stats: Arc<Stats>,
}

impl Intake {
    /// An intake that writes with this appender.
    #[must_use]
    pub fn new(settings: &Settings, appender: Appender, progress: Progress, stamp: Stamp, batch_max: usize, stats: Arc<Stats>) -> Self {
        let relations = Relations::new(&settings.source.tables, &settings.primary_keys);
        Intake {
            relations: relations.with_rules(&settings.source.columns).with_oids(&settings.oids),
            layouts: HashMap::new(),
            read_layout: Layout::default(),
            appender,
            progress,
            open: None,
            hook: None,
            watched: false,
            waiting: VecDeque::new(),
            written: VecDeque::new(),
            canary: None,
            marked: None,
            stamp,
            batch_max,
            row_bytes_max: settings.row_bytes_max,
            received: Lsn(0),
            committed_at_ms: 0,
            counts: Counts::default(),
            stats,
        }
    }

    /// Takes note of the layouts that the control log holds already.
    pub fn set_layouts<'l>(&mut self, layouts: impl Iterator<Item = &'l TableLayout>) {
        // In order, so the last one of each table stays.
        let layout = |l: &TableLayout| u64::from_str_radix(&l.layout, 16).map(Layout).unwrap_or_default();
        self.layouts = layouts.map(|l| (l.table.clone(), (l.since, layout(l)))).collect();
    }

    /// Lets a backfill see the stream from here on.
    pub fn set_hook(&mut self, hook: Option<Box<dyn Hook>>) {
        self.hook = hook;
    }

    /// The backfill's hook.
    pub fn hook(&mut self) -> Option<&mut Box<dyn Hook>> {
        self.hook.as_mut()
    }

    /// End of what was received.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Whether nothing is open and everything is handed to the journal.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.open.is_none() && !self.appender.has_unwritten()
    }

    /// Whether a hook still waits for one of its records.
    #[must_use]
    pub fn awaits_records(&self) -> bool {
        !self.waiting.is_empty() || !self.written.is_empty()
    }

    /// Takes one message.
    ///
    /// # Errors
    /// Always definite: the message cannot be read, contradicts an earlier one, or contradicts the journal.
    #[inline]
    pub fn take(&mut self, data: &[u8]) -> Result<(), CaptureError> {
        self.counts.received_bytes += data.len() as u64;
        match pgoutput::parse(data)? {
            Message::Insert { oid, new } => self.row(oid, Changed::Insert(new), data.len())?,
            Message::Update { oid, old, new } => self.row(oid, Changed::Update { old, new }, data.len())?,
            Message::Delete { oid, old } => self.row(oid, Changed::Delete(old), data.len())?,
            Message::Begin(begin) => self.begin(begin)?,
            Message::Commit(commit) => self.commit(commit)?,
            Message::Relation(relation) => self.relation(&relation)?,
            Message::Type { oid, namespace, name } => self.relations.learn_type(oid, namespace, name),
            Message::Truncate(truncate) => {
                for oid in truncate.oids() {
                    self.truncate(oid)?;
                }
            }
            Message::Message(message) => self.message(&message)?,
            Message::Origin { .. } => {}
        }
        Ok(())
    }

    /// Learns a table's description, and keeps it in the control log when it is a new one.
    fn relation(&mut self, relation: &Relation<'_>) -> Result<(), CaptureError> {
        let Some(open) = &self.open else { return Err(contradiction("a table is described outside a transaction")) };
        let known = self.relations.learn(relation)?;
        if !known.captured {
            return Ok(());
        }
        let since = Position::new(self.appender.run().epoch, open.begin.final_lsn, self.appender.next_ordinal());
        let (table, renamed) = (Arc::clone(&known.table), known.renamed.clone());
        self.keep_layout(&table, renamed, since, open.begin.commit_time.saturating_add(POSTGRES_EPOCH_US) / 1000);
        Ok(())
    }

    /// Writes a table's layout to the control log unless it is the last one there.
    fn keep_layout(&mut self, table: &TableSchema, renamed: Option<String>, since: Position, at_ms: i64) {
        let name = format!("{}.{}", table.schema, table.table);
        // A replay describes tables as they were: what is older than the last layout is in the log.
        let last = self.layouts.get(&name);
        if last.is_some_and(|(last, held)| since <= *last || *held == table.layout) {
            return;
        }
        if last.is_some() {
            tracing::info!(table = name, layout = %table.layout, oid = table.oid, renamed, "a table has changed; `schema history` tells how");
        }
        let column = |column: &Column| LayoutColumn {
            name: column.name.clone(),
            type_name: self.relations.type_name(column.type_id),
            key: column.in_key,
            policy: (column.policy != Policy::Pass).then(|| column.policy.to_string()),
        };
        let identity = match table.identity {
            Identity::Default => "default",
            Identity::Index => "index",
            Identity::Full => "full",
            Identity::Nothing => "nothing",
        };
        let record = TableLayout {
            table: name.clone(),
            layout: table.layout.to_string(),
            since,
            oid: table.oid,
            renamed,
            identity: identity.to_owned(),
            columns: table.columns.iter().map(column).collect(),
            at_ms,
        };
        self.layouts.insert(name, (since, table.layout));
        self.append_record(&Record::Layout(record));
    }

    fn begin(&mut self, begin: Begin) -> Result<(), CaptureError> {
        if self.open.is_some() {
            return Err(contradiction("a transaction begins inside another one"));
        }
        if begin.final_lsn < self.received {
            return Err(contradiction("a transaction commits before the end of the one before it"));
        }
        self.appender.begin(begin.final_lsn, begin.xid, begin.commit_time).map_err(diverged)?;
        let context = TxContext::new(self.appender.run().epoch, begin.final_lsn, begin.xid, begin.commit_time);
        if let Some(hook) = &mut self.hook {
            hook.begin(begin.xid, begin.final_lsn);
            self.watched = hook.watches();
        }
        self.open = Some(Open { begin, context });
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(), CaptureError> {
        let Some(open) = self.open.take() else { return Err(contradiction("a transaction ends that did not begin")) };
        if open.begin.final_lsn != commit.commit_lsn || commit.end_lsn <= self.received {
            return Err(contradiction("a transaction ends elsewhere than it said"));
        }
        let context = &open.context;
        self.appender.commit(|to, here, total| encode::end(to, context, u64::from(here), u64::from(total))).map_err(diverged)?;
        if let Some(canary) = self.canary.take() {
            self.mark(canary);
        }
        self.ended(commit.end_lsn);
        self.counts.transactions += 1;
        self.committed_at_ms = commit.commit_time.saturating_add(POSTGRES_EPOCH_US) / 1000;
        if let Some(hook) = &mut self.hook {
            hook.commit(open.begin.xid, commit.end_lsn);
        }
        Ok(())
    }

    /// Sends a canary on: a marker in every partition. Only our own and only once: what the server sends again after a restart
    /// tells nothing of now.
    fn mark(&mut self, canary: Canary) {
        self.appender.mark(&format!(r#""marker":"{}","canary":{}"#, canary::MARKER, canary.content()));
        // While one is under way for long the next ones are not waited for: its time is the one that tells.
        if self.marked.is_none() {
            self.marked = Some((canary, self.appender.required().into()));
        }
    }

    fn ended(&mut self, end: Lsn) {
        self.received = end;
        self.progress.commit(end, self.appender.required());
    }

    #[inline]
    fn row(&mut self, oid: u32, changed: Changed<'_>, bytes: usize) -> Result<(), CaptureError> {
        let Some(open) = &self.open else { return Err(contradiction("a row outside a transaction")) };
        let position = self.appender.change().ok_or_else(too_many_changes)?;
        let known = self.relations.get(oid)?;
        let table = &known.table;
        if self.watched
            && let Some(hook) = &mut self.hook
        {
            let (old, new) = changed.tuples();
            hook.change(oid, table, old, new);
        }
        if !known.captured {
            return Ok(());
        }
        let (row, second) = match changed {
            Changed::Insert(new) => (Row::Insert(new), None),
            Changed::Update { old, new } => Row::of_update(table, old, new),
            Changed::Delete(old) => (Row::Delete(old), None),
        };
        if bytes > self.row_bytes_max {
            let letter = too_large(position, encode::partition(table, &row, self.appender.partitions()), bytes, self.row_bytes_max);
            self.dead_letter(letter);
            return Ok(());
        }
        self.counts.put(put(&mut self.appender, &open.context, position, table, &row)?);
        if let Some(second) = second {
            self.counts.put(put(&mut self.appender, &open.context, position, table, &second)?);
        }
        Ok(())
    }

    fn truncate(&mut self, oid: u32) -> Result<(), CaptureError> {
        let Some(open) = &self.open else { return Err(contradiction("a truncate outside a transaction")) };
        let position = self.appender.change().ok_or_else(too_many_changes)?;
        let known = self.relations.get(oid)?;
        let table = &known.table;
        if let Some(hook) = &mut self.hook {
            hook.truncate(oid, table);
        }
        if known.captured {
            let written: Result<Put, CaptureError> = self.appender.event_everywhere(position, |to| {
                encode::truncate(to, &open.context, position.ordinal, table);
                Ok(())
            });
            self.counts.put(written?);
        }
        Ok(())
    }

    /// A logical message has no key: it goes to the first partition.
    fn message(&mut self, message: &LogicalMessage<'_>) -> Result<(), CaptureError> {
        let own = message.prefix.starts_with(OWN_PREFIX);
        let epoch = self.appender.run().epoch;
        let outside;
        let (position, context) = match &self.open {
            Some(open) => (self.appender.change().ok_or_else(too_many_changes)?, &open.context),
            None => {
                if message.lsn <= self.received {
                    return Err(contradiction("a message stands before what came before it"));
                }
                outside = TxContext::outside(epoch, message);
                self.appender.outside(outside.commit_lsn());
                (Position::new(epoch, outside.commit_lsn(), 0), &outside)
            }
        };
        if own && message.prefix == canary::PREFIX.as_bytes() {
            let through = self.stats.canary.get().through;
            let canary = Canary::of_content(message.content).filter(Canary::is_own);
            self.canary = canary.filter(|canary| through.is_none_or(|last| canary.is_later_than(&last.canary)));
            if let Some(canary) = self.canary {
                self.stats.canary.came(canary);
            }
        } else if own {
            if let Some(hook) = &mut self.hook {
                hook.message(message.prefix, message.content, position);
            }
        } else {
            let written: Result<Put, CaptureError> = self.appender.event(0, position, |to| {
                encode::message(to, context, position.ordinal, message);
                Ok(())
            });
            self.counts.put(written?);
        }
        if self.open.is_none() {
            self.ended(message.lsn);
        }
        Ok(())
    }

    /// Takes what the hook has to write, until it has nothing, a batch waits to be taken, or `bytes_max` bytes of rows
    /// were taken. Answers whether the hook may have more.
    pub fn take_from_hook(&mut self, bytes_max: usize) -> bool {
        debug_assert!(self.open.is_none(), "a hook writes between transactions");
        let mut bytes = 0;
        while bytes < bytes_max && !self.appender.has_ready() {
            match self.hook.as_mut().and_then(|hook| hook.write()) {
                None => return false,
                Some(Write::Row(row)) => {
                    let ReadChunk { table, as_of, .. } = &*row.chunk;
                    if table.layout != self.read_layout {
                        self.read_layout = table.layout;
                        self.keep_layout(table, None, *as_of, now_ms());
                    }
                    // A row costs beside its values what its envelope costs.
                    let row_bytes = row.bytes();
                    bytes += row_bytes + ENVELOPE_BYTES;
                    if let Err(letter) = read(&mut self.appender, &row, row_bytes, self.row_bytes_max) {
                        append_letter(&mut self.appender, &self.stamp, self.batch_max, letter);
                        self.counts.dead_letters += 1;
                    } else {
                        self.counts.reads += 1;
                    }
                }
                Some(Write::Record(hand_over, record)) => {
                    self.waiting.push_back(Waiting { required: self.appender.required().into(), hand_over, record });
                }
            }
        }
        true
    }

    /// Tells the hook how far the stream is known to have come while nothing is open.
    pub fn idle(&mut self, reached: Lsn) {
        if let Some(hook) = &mut self.hook {
            hook.idle(reached);
        }
    }

    /// Takes note of what the journal has confirmed: transactions become acknowledgeable, and records whose turn it is
    /// go to the control log.
    pub fn confirm(&mut self, now: Instant, confirmed: impl Fn(usize) -> PublishId) {
        self.progress.confirm(now, &confirmed);
        let stored = |required: &[PublishId]| required.iter().enumerate().all(|(log, id)| confirmed(log) >= *id);
        if let Some((canary, _)) = self.marked.take_if(|(_, required)| stored(required)) {
            self.stats.canary.through(canary);
        }
        while let Some(first) = self.waiting.front() {
            if !stored(&first.required) {
                break;
            }
            let Some(Waiting { hand_over, record, .. }) = self.waiting.pop_front() else { break };
            let id = self.append_record(&record);
            self.written.push_back((id, hand_over));
        }
    }

    /// Appends a record to the control log.
    pub fn append_record(&mut self, record: &Record) -> PublishId {
        let mut id = PublishId::default();
        for batch in control::encode(record, &self.stamp, self.batch_max) {
            id = self.appender.control(batch);
        }
        id
    }

    /// Takes note of how far the control log was read back: what stands in it under our fence is stored.
    pub fn proven(&mut self, id: PublishId) {
        while let Some((record, hand_over)) = self.written.front().copied() {
            if record > id {
                break;
            }
            self.written.pop_front();
            if let Some(hook) = &mut self.hook {
                hook.stored(hand_over);
            }
        }
    }

    fn dead_letter(&mut self, letter: DeadLetter) {
        // Even below the tail: the record is in another log than the event's neighbours, so what follows the event
        // being stored does not prove that the record is. A second one under the same id changes nothing.
        append_letter(&mut self.appender, &self.stamp, self.batch_max, letter);
        self.counts.dead_letters += 1;
    }

    /// Adds the round's numbers to the shared ones.
    pub fn publish_counts(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        let stats = &self.stats;
        for (counter, n) in [
            (&stats.transactions, counts.transactions),
            (&stats.events, counts.events),
            (&stats.reads, counts.reads),
            (&stats.skipped, counts.skipped),
            (&stats.dead_letters, counts.dead_letters),
            (&stats.received_bytes, counts.received_bytes),
        ] {
            if n > 0 {
                Stats::add(counter, n);
            }
        }
        Stats::lsn(&stats.received_lsn, self.received);
        Stats::lsn(&stats.confirmed_lsn, self.progress.confirmed());
        if self.committed_at_ms != 0 {
            stats.committed_at_ms.store(self.committed_at_ms, Relaxed);
        }
    }
}

impl Counts {
    #[inline]
    fn put(&mut self, put: Put) {
        match put {
            Put::Written => self.events += 1,
            Put::Skipped => self.skipped += 1,
        }
    }
}

#[inline]
fn put(appender: &mut Appender, context: &TxContext, position: Position, table: &TableSchema, row: &Row<'_>) -> Result<Put, RelationError> {
    let partition = encode::partition(table, row, appender.partitions());
    let position = Position { half: row.half(), ..position };
    appender.event(partition, position, |to| encode::change(to, context, position.ordinal, table, row))
}

/// Appends a backfill's row, unless it is too large.
fn read(appender: &mut Appender, row: &ReadRow, bytes: usize, row_bytes_max: usize) -> Result<(), DeadLetter> {
    let partition = encode::partition_of_read(row, appender.partitions());
    if bytes > row_bytes_max {
        let letter = too_large(row.chunk.as_of, partition, bytes, row_bytes_max);
        return Err(DeadLetter { event_id: row.id(), idempotency_key: row.id(), ..letter });
    }
    let written: Result<(), std::convert::Infallible> = appender.aside(partition, Kind::Read, row.chunk.as_of, |to| {
        encode::read(to, row);
        Ok(())
    });
    let Ok(()) = written;
    Ok(())
}

fn append_letter(appender: &mut Appender, stamp: &Stamp, batch_max: usize, letter: DeadLetter) {
    for batch in control::encode(&Record::DeadLetter(letter), stamp, batch_max) {
        appender.control(batch);
    }
}

fn too_large(position: Position, partition: u16, bytes: usize, limit: usize) -> DeadLetter {
    let id = format!("e{position}");
    let now = now_ms();
    DeadLetter {
        connector: DEAD_LETTER_OWNER.to_owned(),
        partition,
        offset: Offset(0),
        event_id: id.clone(),
        event: Body::Omitted(bytes as u64),
        code: "capture.row_too_large".to_owned(),
        message: format!("the row takes {bytes} bytes; the limit is {limit}"),
        attempts: 0,
        first_at_ms: now,
        last_at_ms: now,
        idempotency_key: id,
        version: position,
    }
}

pub(super) fn contradiction(what: &str) -> CaptureError {
    CaptureError::Definite {
        code: "capture.malformed_message",
        what: format!("the replication stream contradicts itself: {what}"),
        why: "skipping it could lose a change, so nothing after it is taken".to_owned(),
        fix: "start again; if it comes back, report it with the server's version".to_owned(),
    }
}

fn too_many_changes() -> CaptureError {
    CaptureError::Definite {
        code: "capture.transaction_too_large",
        what: "a transaction has more than 4,294,967,293 changes".to_owned(),
        why: "a change's number within its transaction has 32 bits".to_owned(),
        fix: "split the transaction at the source".to_owned(),
    }
}

pub(super) fn diverged(error: Diverged) -> CaptureError {
    CaptureError::Definite {
        code: "capture.source_diverged",
        what: error.to_string(),
        why: "the database's history is not the one in the journal: it was restored, or another server answers under its name; \
              going on could skip changes that were never stored"
            .to_owned(),
        fix: "connect to the right server; or, if the restore is wanted, `tillstream epoch bump`: a new epoch, in which the tables are loaded again"
            .to_owned(),
    }
}
/// A row as the server said it changed. An update of a row whose key stayed carries no old tuple, so the tuples alone do not
/// tell it from an insert.
enum Changed<'a> {
    Insert(Tuple<'a>),
    Update { old: Option<Tuple<'a>>, new: Tuple<'a> },
    Delete(Tuple<'a>),
}

impl<'a> Changed<'a> {
    /// The old tuple and the new one.
    fn tuples(&self) -> (Option<&Tuple<'a>>, Option<&Tuple<'a>>) {
        match self {
            Changed::Insert(new) => (None, Some(new)),
            Changed::Update { old, new } => (old.as_ref(), Some(new)),
            Changed::Delete(old) => (Some(old), None),
        }
    }
}
