//! One reader of a job: one connection, one part after the other, one chunk at a time.
//!
//! ```text
//!  gate ─▶ open ─▶ low watermark ─▶ read chunk ─▶ verdict on the one before ─▶ high watermark ─┐
//!   ▲                                              │ written otherwise: drop it, read again     │
//!   └──────────────────────────────────────────────┴────────────────────────────────────────────┘
//! ```
//!
//! Never writes to the source but for the two logical messages of each chunk, and never holds a snapshot longer than
//! one chunk. Ends when its hook is dropped.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tillstream_schemas::Lsn;
use tokio::sync::{mpsc, oneshot};

use super::gate::{Gate, Halt, Speed};
use super::hook::{Step, Taken, Verdict};
use super::pace::Pace;
use super::plan;
use super::read::{Failure, Read, Session, Unread, joined, of_standby};
use super::sql::{Choice, ChunkedTable, Refusal, Source};
use super::stats::Stats;
use super::window::{Again, Chunk, Marks, Opening, WindowId};
use crate::capture::CaptureError;
use crate::capture::read_rows::ReadScope;
use crate::config;
use crate::control::{Cursor, KeyTexts, Record, now_ms};
use crate::retry::Delays;

/// Keys that one statement reads.
const KEYS_MAX: usize = 1_000;
/// A chunk that cannot be used for so long is worth a word.
const TROUBLE_AFTER: Duration = Duration::from_secs(2);
/// A chunk of one row that takes too long so often never comes.
const TIMEOUTS_MAX: u32 = 5;

/// What all readers of a job share.
pub(super) struct Shared {
    pub(super) source: config::Source,
    pub(super) pipeline: String,
    pub(super) steps: mpsc::Sender<Step>,
    pub(super) stats: Arc<Stats>,
    pub(super) gate: Gate,
    /// Names windows; shared by all jobs of a session.
    pub(super) windows: Arc<AtomicU64>,
    /// Whether the stream brings changes meanwhile.
    pub(super) live: Arc<AtomicBool>,
    pub(super) choice: Choice,
    pub(super) connector: Option<String>,
    /// Keys asked for; empty when a job reads ranges.
    pub(super) keys: Vec<KeyTexts>,
    /// How far the parts are, this run's progress included.
    pub(super) reached: Mutex<Vec<Cursor>>,
}

/// A table as its readers share it.
pub(super) struct Table {
    pub(super) chunked: ChunkedTable,
    pub(super) configured: config::SourceTable,
    /// The next chunk's number: no two chunks of a table have one under one attempt.
    pub(super) numbers: AtomicU32,
}

/// A part to read.
pub(super) struct Part {
    pub(super) table: Arc<Table>,
    pub(super) source: Source,
    pub(super) cursor: Cursor,
}

/// How a part ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything is read and stored.
    Done,
    /// The job was asked to stop; what was read is stored.
    Halted,
    /// The table cannot be read any more.
    Refused(Refusal),
}

impl Shared {
    pub(super) async fn send(&self, step: Step) -> Result<(), Failure> {
        self.steps.send(step).await.map_err(|_| Failure::HookGone)
    }

    /// Stores a record.
    pub(super) async fn store(&self, record: Record) -> Result<(), Failure> {
        let (stored, is_stored) = oneshot::channel();
        self.send(Step::Record { record: Box::new(record), stored }).await?;
        is_stored.await.map_err(|_| Failure::HookGone)
    }

    fn with_reached<T>(&self, act: impl FnOnce(&mut Vec<Cursor>) -> T) -> T {
        act(&mut self.reached.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How far the parts of a table are.
    pub(super) fn cursors(&self, table: &str) -> Vec<Cursor> {
        self.with_reached(|all| all.iter().filter(|c| c.table == table).cloned().collect())
    }

    /// From here on a table has these parts.
    pub(super) fn reached_all(&self, table: &str, cursors: impl Iterator<Item = Cursor>) {
        self.with_reached(|all| {
            all.retain(|c| c.table != table);
            all.extend(cursors);
        });
    }

    fn reached(&self, cursor: &Cursor) {
        self.with_reached(|all| {
            if let Some(found) = all.iter_mut().find(|c| c.table == cursor.table && c.part == cursor.part) {
                *found = cursor.clone();
            }
        });
    }

    /// What the rows of a table have in common.
    fn scope(&self, table: &ChunkedTable) -> Option<Arc<ReadScope>> {
        let scope = ReadScope { connector: self.connector.clone(), omitted: table.omitted.clone() };
        (scope != ReadScope::default()).then(|| Arc::new(scope))
    }
}

/// A chunk that was read; its high watermark is not written yet.
struct Ahead {
    id: WindowId,
    read: Read,
    high: String,
    answer: oneshot::Receiver<Verdict>,
}

/// A chunk could not be read in time, or its lock was not to be had: a smaller one may be.
struct TooSlow;

/// A chunk that the hook has; what comes of it is not known yet.
struct Sent {
    /// Where it began.
    from: Cursor,
    answer: oneshot::Receiver<Verdict>,
    stored: oneshot::Receiver<()>,
}

/// One reader.
pub(super) struct Reader {
    shared: Arc<Shared>,
    session: Session,
    pace: Pace,
    /// With bounds by position: above every transaction that had committed when the reader came.
    horizon: Option<u32>,
    /// Rows and time of the last chunk, for the gate.
    last: (u64, Duration),
    timeouts: u32,
}

impl Reader {
    /// Connects.
    pub(super) async fn open(shared: Arc<Shared>) -> Result<Reader, Failure> {
        let session = Session::open(&shared.source, &shared.pipeline).await?;
        Reader::with(shared, session).await
    }

    /// Reads in a session that is there.
    pub(super) async fn with(shared: Arc<Shared>, session: Session) -> Result<Reader, Failure> {
        if shared.choice.conditions.is_empty() && shared.keys.is_empty() {
            session.walk().await?;
        }
        let mut horizon = None;
        if !session.messages {
            horizon = session.horizon().await?;
            if horizon.is_none() {
                shared.wait_for_standby(&session).await?;
            }
        }
        Ok(Reader { shared, session, pace: Pace::new(), horizon, last: (0, Duration::ZERO), timeouts: 0 })
    }

    /// Reads one part to its end. Unless the stream is live the next chunk is read while the hook writes one; whether that one is wanted is known once the
    /// hook has said what came of the one before, so that only then it is handed over.
    pub(super) async fn part(&mut self, part: Part) -> Result<Ended, Failure> {
        let Part { table, mut source, mut cursor } = part;
        let mut chunked = table.chunked.clone();
        let mut scope = self.shared.scope(&chunked);
        self.pace = Pace::new();
        let mut delays = Delays::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut trouble: Option<Instant> = None;
        let mut sent: Option<Sent> = None;
        // One chunk more may be under way than is stored.
        let mut unstored: Option<oneshot::Receiver<()>> = None;
        loop {
            // Beside a live stream one thing is done at a time.
            let waits = sent.is_some() && self.shared.live.load(Ordering::Relaxed);
            let (ahead, halted) = if cursor.done || waits { (Ok(None), false) } else { self.ahead(&chunked, &source, &cursor).await };
            // Even when reading failed: what the hook was given it writes, and whoever reads on has to know.
            let (mut why, mut wanted) = (None, true);
            if let Some(Sent { from, answer, stored }) = sent.take() {
                match answer.await.map_err(|_| Failure::HookGone)? {
                    Verdict::Written { cursor: written, cut } => {
                        unstored = Some(stored);
                        wanted = cut.is_none();
                        if cut.is_some() {
                            self.shared.stats.again(cut);
                        }
                        cursor = *written;
                        self.shared.reached(&cursor);
                        delays.reset();
                        trouble = None;
                    }
                    Verdict::Again(again) => {
                        if again == Again::TooManyKeys {
                            self.pace.too_large();
                        }
                        (why, wanted, cursor) = (Some(Some(again)), false, from);
                    }
                }
            }
            match ahead? {
                Some(Ok(ahead)) if wanted => {
                    let (next, given) = self.give(&table, &chunked, &cursor, scope.clone(), ahead, &mut unstored).await?;
                    (sent, cursor) = (Some(given), next);
                    continue;
                }
                Some(Ok(ahead)) => self.shared.send(Step::Abandon(ahead.id)).await?,
                Some(Err(TooSlow)) => why = why.or(Some(None)),
                None => {}
            }
            if halted {
                settle(&mut unstored).await?;
                return Ok(Ended::Halted);
            }
            let Some(why) = why else {
                if cursor.done {
                    settle(&mut unstored).await?;
                    return Ok(Ended::Done);
                }
                continue;
            };
            self.shared.stats.again(why);
            if trouble.get_or_insert_with(Instant::now).elapsed() > TROUBLE_AFTER {
                self.shared.stats.waiting(Some(trouble_text(why).to_owned()));
            }
            if why == Some(Again::TableChanged) {
                let publication = plan::publication(&self.session, &self.shared.source).await?;
                let (columns, choice) = (&self.shared.source.columns, &self.shared.choice);
                match plan::describe(&self.session, &publication, &table.configured, columns, choice).await? {
                    Ok(described) => chunked = described,
                    Err(refusal) => return Ok(Ended::Refused(refusal)),
                }
                scope = self.shared.scope(&chunked);
                if source.name.is_empty() {
                    source = chunked.whole();
                }
            }
            tokio::time::sleep(delays.next_delay()).await;
        }
    }

    /// Waits until the gate is open and reads the chunk behind the cursor, unless the job is asked to stop.
    async fn ahead(
        &mut self,
        table: &ChunkedTable,
        source: &Source,
        cursor: &Cursor,
    ) -> (Result<Option<Result<Ahead, TooSlow>>, Failure>, bool) {
        let (rows, took) = std::mem::take(&mut self.last);
        let passed = self.shared.gate.pass(rows, took).await;
        let live = self.shared.live.load(Ordering::Relaxed);
        match passed {
            Ok(Speed::Full) => self.pace.at_full_speed(live),
            Ok(Speed::Trickle) => self.pace.trickle(live),
            Err(Halt) => return (Ok(None), true),
        }
        (self.chunk(table, source, cursor).await.map(Some), false)
    }

    /// Opens a window and reads one chunk in it.
    async fn chunk(&mut self, table: &ChunkedTable, source: &Source, cursor: &Cursor) -> Result<Result<Ahead, TooSlow>, Failure> {
        let shared = self.shared.clone();
        let id = shared.windows.fetch_add(1, Ordering::Relaxed);
        let nonce = format!("{:032x}", rand::random::<u128>());
        let (low, high) = (format!("{nonce}/low"), format!("{nonce}/high"));
        let marks = match self.session.messages {
            true => Marks::Messages { low: low.clone(), high: high.clone() },
            false => Marks::Positions { horizon: self.horizon },
        };
        let opening = Opening { oid: table.oid, table: table.schema.clone(), marks };
        let (verdict, answer) = oneshot::channel();
        shared.send(Step::Open { id, opening, verdict }).await?;
        if self.session.messages {
            self.session.mark(&low).await?;
        } else {
            // The window is open once the hook has taken the step: what it stores afterwards proves that.
            shared.open_is_taken().await?;
        }
        let began = Instant::now();
        let read = match self.read(table, source, cursor).await {
            Ok(read) => read,
            Err(unread) => {
                shared.send(Step::Abandon(id)).await?;
                return match unread {
                    Unread::TooSlow => {
                        self.timeouts = if self.pace.rows() == 1 { self.timeouts + 1 } else { 0 };
                        self.pace.too_large();
                        if self.timeouts >= TIMEOUTS_MAX {
                            let message = "reading a single row takes longer than 30 s, or its lock is not to be had".to_owned();
                            return Err(Failure::Table { code: "backfill.too_slow", message });
                        }
                        Ok(Err(TooSlow))
                    }
                    Unread::Failed(failure) => Err(failure),
                };
            }
        };
        self.timeouts = 0;
        let took = began.elapsed();
        self.last = ((read.rows.len() + read.gone.len()) as u64, took);
        self.pace.read(read.rows.len(), read.rows.bytes(), took);
        Ok(Ok(Ahead { id, read, high, answer }))
    }

    /// Hands a chunk over, behind the cursor, and answers the cursor behind the chunk.
    async fn give(
        &mut self,
        shared_table: &Table,
        table: &ChunkedTable,
        cursor: &Cursor,
        scope: Option<Arc<ReadScope>>,
        ahead: Ahead,
        unstored: &mut Option<oneshot::Receiver<()>>,
    ) -> Result<(Cursor, Sent), Failure> {
        let Ahead { id, read, high, answer } = ahead;
        let next = self.behind(table, cursor, &read)?;
        let number = shared_table.numbers.fetch_add(1, Ordering::Relaxed);
        let next = Cursor { chunk: number + 1, at_ms: now_ms(), ..next };
        let keyed = !self.shared.keys.is_empty();
        let (rows, gone_from, mut snapshot) = joined(read, table.schema.columns.len());
        if self.session.catalog.server().in_recovery {
            snapshot = snapshot.map(of_standby);
        }
        let upto = if self.session.messages { Lsn(0) } else { self.session.seen_upto().await? };
        let chunk = Chunk { rows, gone_from, snapshot, key: (!keyed).then(|| table.key.clone()), high: upto };
        settle(unstored).await?;
        let (stored, is_stored) = oneshot::channel();
        let taken = Taken { id, chunk, scope, number, cursor: next.clone(), stored, stats: self.shared.stats.clone() };
        self.shared.send(Step::Chunk(Box::new(taken))).await?;
        if self.session.messages {
            self.session.mark(&high).await?;
        }
        Ok((next, Sent { from: cursor.clone(), answer, stored: is_stored }))
    }

    async fn read(&self, table: &ChunkedTable, source: &Source, cursor: &Cursor) -> Result<Read, Unread> {
        if self.shared.keys.is_empty() {
            let Some(bound) = &cursor.bound else {
                return Err(Unread::Failed(Failure::Source(CaptureError::Unavailable("a cursor without a bound".to_owned()))));
            };
            return self.session.chunk(table, source, cursor.after.as_ref(), bound, self.pace.rows()).await;
        }
        let from = dealt_with(cursor);
        let upto = self.shared.keys.len().min(from + KEYS_MAX);
        self.session.keyed(table, &self.shared.keys[from.min(upto)..upto]).await
    }

    /// The cursor behind a chunk.
    fn behind(&self, table: &ChunkedTable, cursor: &Cursor, read: &Read) -> Result<Cursor, Failure> {
        if !self.shared.keys.is_empty() {
            let upto = self.shared.keys.len().min(dealt_with(cursor) + KEYS_MAX);
            return Ok(Cursor { after: Some(KeyTexts(vec![upto.to_string()])), done: upto == self.shared.keys.len(), ..cursor.clone() });
        }
        let after = match read.rows.len().checked_sub(1) {
            Some(last) => Some(table.key_of(&read.rows, last).ok_or_else(|| Failure::Table {
                code: "backfill.null_in_key",
                message: "a key column holds NULL; a key's columns have to be NOT NULL".to_owned(),
            })?),
            None => cursor.after.clone(),
        };
        Ok(Cursor { after, done: read.last, ..cursor.clone() })
    }
}

impl Shared {
    /// Waits until the hook has taken what was sent before.
    async fn open_is_taken(&self) -> Result<(), Failure> {
        let (taken, is_taken) = oneshot::channel();
        self.send(Step::Taken(taken)).await?;
        is_taken.await.map_err(|_| Failure::HookGone)
    }

    /// Waits until a standby has replayed everything that the primary has now: then nothing that was delivered before
    /// can be missing from its snapshots.
    async fn wait_for_standby(&self, session: &Session) -> Result<(), Failure> {
        let primary = crate::capture::catalog::Catalog::connect(&self.source, &self.pipeline, "backfill").await?;
        let wanted = primary.current_wal().await?;
        while session.seen_upto().await? < wanted {
            self.stats.waiting(Some("the standby that is read from has not replayed what the primary has".to_owned()));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }
}

/// How many of the keys asked for were dealt with.
fn dealt_with(cursor: &Cursor) -> usize {
    cursor.after.as_ref().and_then(|k| k.0.first()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Waits until the chunk before is stored.
async fn settle(unstored: &mut Option<oneshot::Receiver<()>>) -> Result<(), Failure> {
    match unstored.take() {
        Some(stored) => stored.await.map_err(|_| Failure::HookGone),
        None => Ok(()),
    }
}

fn trouble_text(why: Option<Again>) -> &'static str {
    match why {
        Some(Again::NotVisible) => {
            "a transaction that is older than the chunk is not visible yet: its commit waits for a standby, or it has been open since \
             before the backfill began"
        }
        Some(Again::TableChanged) => "the table changes its columns",
        Some(Again::KeyUnknown) => "changes of the table do not name their rows",
        Some(Again::Incomplete) => "rows with large values are changed all the time",
        Some(Again::TooManyKeys) => "a bulk change of the table is under way",
        Some(Again::Disorder) => "the watermarks do not come back in their order",
        None => "reading takes too long, or a lock on the table is not to be had",
    }
}
