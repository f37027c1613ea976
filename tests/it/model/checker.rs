//! Watches what the journal commits and what the server is told, and compares both with what was written.
//!
//! Live: every batch is looked at the moment it becomes visible to readers, through the product's own filter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tillstream::control::Record as ControlRecord;
use tillstream::delivery::filter::{Filter, Verdict};
use tillstream::journal::{Log, Offset};
use tillstream_schemas::entry::Records;
use tillstream_schemas::{Entry, Kind, Lsn};

use super::history::Record;

#[derive(Default)]
struct Seen {
    /// How many of a partition's expected events have passed.
    cursor: Vec<usize>,
    filters: Vec<Filter>,
    expected: Vec<Vec<(String, String)>>,
    records: Vec<Expectation>,
    by_commit: BTreeMap<u64, usize>,
    dead_letters: BTreeSet<String>,
    reads: BTreeSet<String>,
    /// Rows that must be stored before a cursor is, by the cursor's number.
    promises: BTreeMap<u64, Vec<String>>,
    /// Numbers of cursors that count.
    cursors: BTreeSet<u64>,
    /// Numbers of cursors that a session believes stored.
    believed: Vec<u64>,
    control_token: u32,
    dropped: u64,
    acknowledged: Lsn,
    problem: Option<String>,
    /// Everything that was seen, hashed: two runs of one seed agree.
    trace: u64,
}

struct Expectation {
    end: Lsn,
    /// How many events each partition has once this record is stored.
    after: Vec<usize>,
    /// How many of them this record has there.
    here: Vec<usize>,
    total: usize,
    dead: Vec<String>,
    ends_missing: BTreeSet<u16>,
}

/// Shared by broker, server and test.
#[derive(Clone)]
pub(crate) struct Checker(Arc<Mutex<Seen>>);

impl Checker {
    pub(crate) fn new(partitions: u16) -> Self {
        let n = usize::from(partitions);
        let filters = (0..n).map(|_| Filter::new()).collect();
        Checker(Arc::new(Mutex::new(Seen { cursor: vec![0; n], expected: vec![Vec::new(); n], filters, ..Seen::default() })))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Seen) -> T) -> T {
        f(&mut self.0.lock().expect("never poisoned"))
    }

    /// The first thing that went wrong.
    pub(crate) fn problem(&self) -> Option<String> {
        self.with(|s| s.problem.clone())
    }

    pub(crate) fn fail(&self, problem: String) {
        self.with(|s| s.fail(problem));
    }

    pub(crate) fn trace(&self) -> u64 {
        self.with(|s| s.trace)
    }

    /// A record was committed in the database.
    pub(crate) fn written(&self, record: &Record) {
        self.with(|s| {
            let before: Vec<usize> = s.expected.iter().map(Vec::len).collect();
            for event in &record.expected {
                for partition in &event.partitions {
                    s.expected[usize::from(*partition)].push((event.id.clone(), event.mark.clone()));
                }
            }
            let after: Vec<usize> = s.expected.iter().map(Vec::len).collect();
            let here: Vec<usize> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            let ends_missing =
                (0u16..).zip(&here).filter(|(_, n)| record.is_transaction && **n > 0).map(|(partition, _)| partition).collect();
            s.by_commit.insert(record.commit_lsn.0, s.records.len());
            let total = record.expected.len();
            s.records.push(Expectation { end: record.end, after, here, total, dead: record.dead.clone(), ends_missing });
        });
    }

    /// A batch became visible to readers.
    pub(crate) fn committed(&self, log: Log, first_offset: u64, bytes: &[u8]) {
        self.with(|s| {
            let result = match log {
                Log::Data(partition) => s.data(partition, first_offset, bytes),
                Log::Control => s.control(bytes),
            };
            if let Err(problem) = result {
                s.fail(format!("{log:?} at {first_offset}: {problem}"));
            }
        });
    }

    /// The slot moved to `flush` on a live connection: everything that ends there must be visible.
    pub(crate) fn acknowledged(&self, flush: Lsn) {
        self.with(|s| {
            s.acknowledged = s.acknowledged.max(flush);
            s.trace = s.trace.wrapping_mul(31).wrapping_add(flush.0);
            let Some(last) = s.records.iter().rposition(|r| r.end <= flush) else { return };
            let stored = s.cursor.iter().zip(&s.records[last].after).all(|(cursor, after)| cursor >= after);
            let letters = s.records[..=last].iter().flat_map(|r| &r.dead).all(|id| s.dead_letters.contains(id));
            let ends = s.records[..=last].iter().all(|r| r.ends_missing.is_empty());
            if !(stored && letters && ends) {
                s.fail(format!("{flush} was acknowledged before everything up to it was stored"));
            }
        });
    }

    /// A backfill hands over rows and then a cursor.
    pub(crate) fn promised(&self, cursor: u64, rows: Vec<String>) {
        self.with(|s| s.promises.insert(cursor, rows));
    }

    /// A session tells its backfill that the cursor is stored.
    pub(crate) fn believed(&self, cursor: u64) {
        self.with(|s| s.believed.push(cursor));
    }

    /// Whether every event, end and dead letter is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.with(|s| {
            s.cursor.iter().zip(&s.expected).all(|(cursor, expected)| *cursor == expected.len())
                && s.records.iter().all(|r| r.ends_missing.is_empty() && r.dead.iter().all(|id| s.dead_letters.contains(id)))
        })
    }

    /// What is missing, for the report.
    pub(crate) fn missing(&self) -> String {
        self.with(|s| {
            let open: Vec<String> = s
                .cursor
                .iter()
                .zip(&s.expected)
                .map(|(cursor, expected)| format!("{cursor}/{} next {:?}", expected.len(), expected.get(*cursor)))
                .collect();
            format!("events {open:?}, acknowledged {}", s.acknowledged)
        })
    }

    /// After everything came to rest.
    pub(crate) fn finish(&self, confirmed: Lsn) {
        self.with(|s| {
            for cursor in s.believed.clone() {
                if !s.cursors.contains(&cursor) {
                    s.fail(format!("a session believed cursor {cursor} stored, and it does not count"));
                }
            }
            if let Some(last) = s.records.last()
                && confirmed < last.end
            {
                let end = last.end;
                s.fail(format!("the slot stays at {confirmed} although everything up to {end} is stored"));
            }
        });
    }

    /// The broker dropped a batch as a duplicate.
    pub(crate) fn dropped(&self) {
        self.with(|s| s.dropped += 1);
    }

    /// What happened, for the report.
    pub(crate) fn summary(&self) -> Summary {
        self.with(|s| Summary {
            events: s.cursor.iter().map(|n| *n as u64).sum(),
            dropped: s.dropped,
            fences: s.filters.iter().map(|f| f.counts().fences).sum(),
            parts_dropped: s.filters.iter().map(|f| f.counts().parts_dropped).sum(),
            runs: u64::from(s.control_token),
            reads: s.reads.len() as u64,
            cursors: s.cursors.len() as u64,
            dead_letters: s.dead_letters.len() as u64,
        })
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    /// Batches that the broker dropped: sent twice, or by a run that was fenced off.
    pub(crate) dropped: u64,
    /// Fences in the data logs.
    pub(crate) fences: u64,
    pub(crate) parts_dropped: u64,
    pub(crate) runs: u64,
    pub(crate) reads: u64,
    pub(crate) cursors: u64,
    pub(crate) dead_letters: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, other: Summary) {
        self.events += other.events;
        self.dropped += other.dropped;
        self.fences += other.fences;
        self.parts_dropped += other.parts_dropped;
        self.runs += other.runs;
        self.reads += other.reads;
        self.cursors += other.cursors;
        self.dead_letters += other.dead_letters;
    }
}

impl Seen {
    fn fail(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    fn data(&mut self, partition: u16, first_offset: u64, bytes: &[u8]) -> Result<(), String> {
        let k = usize::from(partition);
        let mut filter = std::mem::take(&mut self.filters[k]);
        let mut result = Ok(());
        for (offset, record) in (first_offset..).zip(Records::new(bytes)) {
            self.trace = self.trace.wrapping_mul(31).wrapping_add(offset);
            result = match filter.push(Offset(offset), record.map_err(|e| e.to_string())?) {
                Ok(Verdict::Skip(_)) => Ok(()),
                Err(error) => Err(format!("{}: {error}", error.code())),
                Ok(Verdict::Pass(passed)) => {
                    let body = String::from_utf8_lossy(passed.body);
                    match passed.header.kind {
                        Kind::Event => self.event(k, &format!("e{}", passed.header.position), &body),
                        Kind::End => self.end(partition, passed.header.position.commit_lsn, &body),
                        Kind::Read => {
                            let json: serde_json::Value = serde_json::from_str(&body).map_err(|e| e.to_string())?;
                            let id = json["id"].as_str().unwrap_or_default().to_owned();
                            if self.reads.insert(id.clone()) { Ok(()) } else { Err(format!("row {id} is stored twice")) }
                        }
                        Kind::Fence | Kind::Marker | Kind::Part => Ok(()),
                    }
                }
            };
            if result.is_err() {
                break;
            }
        }
        self.filters[k] = filter;
        result
    }

    fn event(&mut self, k: usize, id: &str, body: &str) -> Result<(), String> {
        let Some((expected, mark)) = self.expected[k].get(self.cursor[k]) else { return Err(format!("{id} was never written")) };
        if expected != id {
            return Err(format!("{id} is stored where {expected} belongs"));
        }
        if !body.contains(&format!("\"id\":\"{id}\"")) || !body.contains(mark.as_str()) {
            return Err(format!("{id} has another event's body"));
        }
        self.cursor[k] += 1;
        Ok(())
    }

    fn end(&mut self, partition: u16, commit_lsn: Lsn, body: &str) -> Result<(), String> {
        let k = usize::from(partition);
        let Some(&index) = self.by_commit.get(&commit_lsn.0) else { return Err(format!("an end at {commit_lsn}, where nothing ends")) };
        let record = &mut self.records[index];
        let json: serde_json::Value = serde_json::from_str(body).map_err(|e| e.to_string())?;
        let counts = (json["events"].as_u64(), json["total"].as_u64());
        if counts != (Some(record.here[k] as u64), Some(record.total as u64)) {
            return Err(format!("the end at {commit_lsn} counts {counts:?}, not {} of {}", record.here[k], record.total));
        }
        if self.cursor[k] != record.after[k] {
            return Err(format!("the end at {commit_lsn} stands before events of its transaction"));
        }
        if !record.ends_missing.remove(&partition) {
            return Err(format!("two ends at {commit_lsn}"));
        }
        Ok(())
    }

    fn control(&mut self, bytes: &[u8]) -> Result<(), String> {
        for record in Records::new(bytes) {
            let entry = Entry::decode(record.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            let token = entry.header.token;
            match ControlRecord::from_json(entry.body).map_err(|e| e.to_string())? {
                ControlRecord::Session(session) => self.control_token = self.control_token.max(session.token),
                ControlRecord::DeadLetter(letter) => {
                    self.dead_letters.insert(letter.event_id);
                }
                ControlRecord::Cursor(cursor) if token >= self.control_token => {
                    let rows = self.promises.get(&cursor.rows).ok_or("a cursor that nobody wrote")?;
                    if let Some(row) = rows.iter().find(|row| !self.reads.contains(*row)) {
                        return Err(format!("cursor {} is stored before row {row}", cursor.rows));
                    }
                    self.cursors.insert(cursor.rows);
                }
                _ => {}
            }
        }
        Ok(())
    }
}
