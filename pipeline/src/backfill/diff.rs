//! Compares a table with what a connector's target holds of it, while both move.
//!
//! ```text
//!  source: range of keys ──keys──▶ target: one digest of the same rows ── equal: next range
//!                                        └── else row by row ──▶ candidates
//!  target: its keys ──▶ source: which of them are not there ──▶ candidates
//!  candidates: read again at a position ─▶ wait until the target has passed it ─▶ compare ─▶ unchanged at the source? drift
//! ```
//!
//! A difference counts only when the source's row stayed as it is while the target passed the position of its reading:
//! what is merely on its way is no drift. Reads only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tillstream_connectors::sink::{Compare, Item, SinkError};
use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::{Event, Lsn, Position};

use super::plan;
use super::read::{Failure, Read, Session, Unread, joined};
use super::spec::Refused;
use super::sql::{Choice, ChunkedTable};
use crate::capture::encode;
use crate::capture::read_rows::{ReadChunk, ReadRow, ReadRows, ReadScope};
use crate::config;
use crate::control::KeyTexts;

/// Rows compared at once.
const RANGE_ROWS: u32 = 2_000;
/// Keys read again at once.
const KEYS_AT_ONCE: usize = 1_000;
/// Candidates kept; more means that the two are different tables.
const CANDIDATES_MAX: usize = 200_000;
/// Times that rows which move under the comparison are looked at again.
const ROUNDS: u32 = 8;
/// A range whose reading fails because it takes too long is tried again so often.
const SLOW_MAX: u32 = 5;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows of the source that were compared.
    pub rows: u64,
    /// Ranges of keys, and how many of them were equal by their digests.
    pub ranges: u64,
    /// See `ranges`.
    pub ranges_equal: u64,
    /// Rows that the target holds otherwise, or not at all.
    pub differing: Vec<KeyTexts>,
    /// Rows that the target holds and the source does not.
    pub extra: Vec<KeyTexts>,
    /// Rows that changed each time they were looked at: nothing is known of them.
    pub unsettled: Vec<KeyTexts>,
    /// Whether rows that only the target holds were looked for: its key has to be the source's.
    pub looked_for_extra: bool,
    /// Whether the target's position was known; otherwise what is on its way counts as drift.
    pub position_known: bool,
}

impl Report {
    /// Every drifted row's key, in the order of the source's key columns.
    pub fn drifted(&self) -> impl Iterator<Item = &KeyTexts> {
        self.differing.iter().chain(&self.extra)
    }
}

/// Tells how far the target is.
#[async_trait::async_trait]
pub trait TargetPosition: Send + Sync {
    /// Waits until everything that committed before `upto` has reached the target; false when nobody can tell.
    async fn passed(&self, upto: Lsn) -> Result<bool, Refused>;
}

/// What is compared.
pub struct Comparison<'a> {
    /// The source.
    pub source: &'a config::Source,
    /// Name of the pipeline.
    pub pipeline: &'a str,
    /// The table.
    pub table: &'a config::SourceTable,
    /// The target.
    pub target: Box<dyn Compare>,
    /// How far it is.
    pub position: &'a dyn TargetPosition,
    /// Only rows of the source for which this SQL expression is true; rows that only the target holds are not looked for then.
    pub filter: Option<&'a str>,
}

/// The table on both sides.
struct Sides {
    session: Session,
    chunked: ChunkedTable,
    scope: Option<Arc<ReadScope>>,
    /// Positions of the target's key columns in a row.
    key: Vec<usize>,
    /// Of its other columns.
    columns: Vec<usize>,
    target: Box<dyn Compare>,
}

impl Comparison<'_> {
    /// Compares. `only` narrows it to rows with these keys.
    ///
    /// # Errors
    /// The source or the target cannot be read, or they are different tables altogether.
    pub async fn run(self, only: Option<&[KeyTexts]>) -> Result<Report, Refused> {
        let (schema, table) = (self.table.schema.as_str(), self.table.table.as_str());
        let unknown = || Refused { code: "backfill.unknown_table", what: format!("the connector's target does not take {schema}.{table}") };
        let (key_names, column_names) = self.target.columns(schema, table).ok_or_else(unknown)?;
        let walks = only.is_none() && self.filter.is_none();
        let session = Session::open(self.source, self.pipeline).await.map_err(source)?;
        if walks {
            session.walk().await.map_err(source)?;
        }
        let publication = plan::publication(&session, self.source).await.map_err(source)?;
        let conditions = self.filter.map(str::to_owned).into_iter().collect();
        let choice = Choice { columns: key_names.iter().chain(&column_names).cloned().collect(), conditions };
        let described = plan::describe(&session, &publication, self.table, &self.source.columns, &choice).await.map_err(source)?;
        let chunked = described.map_err(|refusal| Refused { code: refusal.code, what: refusal.message })?;
        let at = |name: &String| {
            let missing = || Refused { code: "backfill.unknown_column", what: format!("{schema}.{table} has no published column {name}") };
            chunked.schema.columns.iter().position(|c| c.name == *name).ok_or_else(missing)
        };
        let key = key_names.iter().map(at).collect::<Result<Vec<_>, _>>()?;
        let columns = column_names.iter().map(at).collect::<Result<Vec<_>, _>>()?;
        let scope = (!chunked.omitted.is_empty()).then(|| Arc::new(ReadScope { connector: None, omitted: chunked.omitted.clone() }));
        let mut sides = Sides { session, chunked, scope, key, columns, target: self.target };
        let mut report = Report::default();
        let mut candidates = BTreeSet::new();
        match only {
            Some(keys) => candidates.extend(keys.iter().cloned()),
            None => {
                sides.forwards(&mut report, &mut candidates).await?;
                if self.filter.is_none() {
                    sides.backwards(&mut report, &mut candidates).await?;
                }
            }
        }
        sides.settle(candidates, self.position, &mut report).await?;
        Ok(report)
    }
}

impl Sides {
    /// The source's rows, range by range, against the target.
    async fn forwards(&mut self, report: &mut Report, candidates: &mut BTreeSet<KeyTexts>) -> Result<(), Refused> {
        for part in plan::sources(&self.session, &self.chunked).await.map_err(source)? {
            let Some(bound) = self.session.keys(&self.chunked.bound(&part)).await.map_err(source)?.pop() else { continue };
            let (mut after, mut slow) = (None, 0);
            loop {
                let read = match self.session.chunk(&self.chunked, &part, after.as_ref(), &bound, RANGE_ROWS).await {
                    Ok(read) => read,
                    Err(Unread::TooSlow) if slow < SLOW_MAX => {
                        slow += 1;
                        continue;
                    }
                    Err(Unread::TooSlow) => {
                        return Err(Refused { code: "backfill.too_slow", what: "reading a range takes too long".to_owned() });
                    }
                    Err(Unread::Failed(failure)) => return Err(source(failure)),
                };
                let last = read.last;
                if let Some(row) = read.rows.len().checked_sub(1) {
                    after = self.chunked.key_of(&read.rows, row);
                }
                let (rows, gone_from, _) = joined(read, self.chunked.schema.columns.len());
                report.rows += rows.len() as u64;
                if !rows.is_empty() {
                    report.ranges += 1;
                    if self.digest(&rows).await? {
                        report.ranges_equal += 1;
                    } else {
                        candidates.extend(self.differing(&rows, gone_from).await?);
                        bounded(candidates)?;
                    }
                }
                if last {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The target's keys that the source does not have.
    async fn backwards(&mut self, report: &mut Report, candidates: &mut BTreeSet<KeyTexts>) -> Result<(), Refused> {
        // Where each of the source's key columns stands in the target's key.
        let order: Option<Vec<usize>> = self.chunked.key.iter().map(|at| self.key.iter().position(|k| k == at)).collect();
        let Some(order) = order.filter(|o| o.len() == self.key.len()) else { return Ok(()) };
        report.looked_for_extra = true;
        let (schema, table) = (self.chunked.schema.schema.clone(), self.chunked.schema.table.clone());
        let mut after: Option<Vec<String>> = None;
        loop {
            let keys = self.target.keys_after(&schema, &table, after.as_deref(), KEYS_AT_ONCE as u32).await.map_err(target)?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.clone());
            let keys: Vec<KeyTexts> = keys.iter().map(|k| KeyTexts(order.iter().filter_map(|at| k.get(*at).cloned()).collect())).collect();
            let read = self.keyed(&keys).await?;
            candidates.extend((0..read.gone.len()).filter_map(|row| self.chunked.key_of(&read.gone, row)));
            bounded(candidates)?;
        }
    }

    /// Looks at the candidates until each is known to be drift or not.
    async fn settle(&mut self, candidates: BTreeSet<KeyTexts>, position: &dyn TargetPosition, report: &mut Report) -> Result<(), Refused> {
        let mut open: Vec<KeyTexts> = candidates.into_iter().collect();
        report.position_known = true;
        for _ in 0..ROUNDS {
            let mut moving = Vec::new();
            for keys in open.chunks(KEYS_AT_ONCE) {
                let before = self.keyed(keys).await?;
                let upto = self.session.seen_upto().await.map_err(source)?;
                // Something has to commit behind that position, or the stream never passes it on an idle source.
                if self.session.messages {
                    self.session.mark("diff").await.map_err(source)?;
                }
                report.position_known &= position.passed(upto).await?;
                let (rows, gone_from, _) = joined(before, self.chunked.schema.columns.len());
                let differing: Vec<KeyTexts> = self.differing(&rows, gone_from).await?.into_iter().collect();
                if differing.is_empty() {
                    continue;
                }
                let after = self.keyed(&differing).await?;
                let (now, now_gone_from, _) = joined(after, self.chunked.schema.columns.len());
                for row in 0..now.len() {
                    let Some(key) = self.chunked.key_of(&now, row) else { continue };
                    let was = (0..rows.len()).find(|at| self.chunked.key_of(&rows, *at).as_ref() == Some(&key));
                    let (gone, was_gone) = (row >= now_gone_from, was.is_some_and(|at| at >= gone_from));
                    let same = was.is_some_and(|at| (0..self.chunked.schema.columns.len()).all(|c| rows.get(at, c) == now.get(row, c)));
                    match (same && gone == was_gone, gone) {
                        (true, false) => report.differing.push(key),
                        (true, true) => report.extra.push(key),
                        (false, _) => moving.push(key),
                    }
                }
            }
            open = moving;
            if open.is_empty() {
                return Ok(());
            }
        }
        report.unsettled = open;
        Ok(())
    }

    async fn keyed(&self, keys: &[KeyTexts]) -> Result<Read, Refused> {
        let began = Instant::now();
        loop {
            match self.session.keyed(&self.chunked, keys).await {
                Ok(read) => return Ok(read),
                Err(Unread::TooSlow) if began.elapsed() < Duration::from_secs(120) => {}
                Err(Unread::TooSlow) => {
                    return Err(Refused { code: "backfill.too_slow", what: "reading rows by their keys takes too long".to_owned() });
                }
                Err(Unread::Failed(failure)) => return Err(source(failure)),
            }
        }
    }

    /// Whether the target has one digest with these rows.
    async fn digest(&mut self, rows: &ReadRows) -> Result<bool, Refused> {
        let mut digest = Sha256::new();
        let mut keys = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            digest.update(b"+");
            for column in &self.columns {
                match rows.get(row, *column) {
                    None => digest.update(b"~"),
                    Some(text) => {
                        digest.update(text.len().to_string().as_bytes());
                        digest.update(b":");
                        digest.update(text.as_bytes());
                    }
                }
            }
            keys.push(self.key.iter().map(|k| rows.get(row, *k).unwrap_or_default().to_owned()).collect::<Vec<_>>());
        }
        let ours: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let (schema, table) = (self.chunked.schema.schema.clone(), self.chunked.schema.table.clone());
        Ok(ours == self.target.digest(&schema, &table, &keys).await.map_err(target)?)
    }

    /// Keys of the rows that the target does not hold as they are.
    async fn differing(&mut self, rows: &Arc<ReadRows>, gone_from: usize) -> Result<Vec<KeyTexts>, Refused> {
        let mut items = Vec::with_capacity(rows.len());
        let schema = &self.chunked.schema;
        let table = format!("{}.{}", schema.schema, schema.table);
        let first = ReadId { epoch: 1, job: "diff".to_owned(), table, chunk: 0, attempt: 0, row: 0 };
        let chunk = Arc::new(ReadChunk::new(schema.clone(), rows.clone(), self.scope.clone(), first, Position::new(1, Lsn(1), 0)));
        for row in 0..rows.len() {
            let number = u32::try_from(row).unwrap_or(u32::MAX);
            let read = ReadRow { chunk: chunk.clone(), row: number, gone: row >= gone_from };
            let mut body = Vec::new();
            encode::read(&mut body, &read);
            let event = Event::parse(body.into()).map_err(|e| Refused { code: e.code(), what: e.to_string() })?;
            items.push(Item { version: event.version(), event: Arc::new(event), idempotency_key: String::new(), mapped: None });
        }
        let differing = self.target.differing(&items).await.map_err(target)?;
        Ok(differing.into_iter().filter_map(|row| self.chunked.key_of(rows, row)).collect())
    }
}

fn bounded(candidates: &BTreeSet<KeyTexts>) -> Result<(), Refused> {
    if candidates.len() <= CANDIDATES_MAX {
        return Ok(());
    }
    let what =
        format!("more than {CANDIDATES_MAX} rows differ: the target was never loaded, or holds another table; backfill it as a whole");
    Err(Refused { code: "diff.too_many", what })
}

fn source(failure: Failure) -> Refused {
    super::request::refused(failure)
}

fn target(error: SinkError) -> Refused {
    // Codes of sinks are their own; the text names it.
    Refused { code: "diff.target", what: error.to_string() }
}
