//! Replays as operators ask for them: what a stretch of the journal holds for a connector, and the request to deliver it again.
//!
//! Planning reads the journal as delivery would and changes nothing. The request is stored in the control journal, and whoever delivers the partition
//! takes it up (`again`, `begin`): at once when a process runs, else the next one that does.

use std::collections::HashSet;

use bytes::Bytes;
use tillstream_schemas::entry::Records;
use tillstream_schemas::{Event, Kind, Lsn, Op, Position};

use super::DeliveryError;
use super::filter::{Filter, FilterError, Verdict as Judged};
use super::place::{Found, Place, PlaceError};
use super::preview::{Preview, Verdict};
use super::settlement::Point;
use crate::config::Connector;
use crate::control::{Audit, ControlError, Record, ReplayRequested, State, Writer, now_ms};
use crate::journal::{From, Journal, JournalError, Log, Offset};

/// Rows of a stretch that are compared with what comes behind it; of more it is taken for granted that some changed again.
const ROWS_MAX: usize = 1_000_000;

/// One row, as people name it.
#[derive(Clone, PartialEq, Eq)]
pub struct RowKey {
    /// As `schema.table`.
    pub table: String,
    /// The key's value, or `column=value,…` of a key of several columns.
    pub key: String,
}

/// Never shows the key.
impl std::fmt::Debug for RowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowKey").field("table", &self.table).finish_non_exhaustive()
    }
}

impl RowKey {
    /// Whether an event is of this row.
    #[must_use]
    pub fn is_of(&self, event: &Event) -> bool {
        let same_table = self.table.split_once('.').is_some_and(|(s, t)| event.schema() == Some(s) && event.table() == Some(t));
        let text = |json: &str| match serde_json::from_str(json) {
            Ok(serde_json::Value::String(text)) => text,
            _ => json.to_owned(),
        };
        let columns: Vec<(&str, String)> = event.key().map(|(column, value)| (column, text(value))).collect();
        let named: Option<Vec<(&str, &str)>> = self.key.split(',').map(|part| part.split_once('=')).collect();
        same_table
            && match (columns.as_slice(), named) {
                ([(_, value)], _) if *value == self.key => true,
                (columns, Some(named)) => {
                    columns.len() == named.len() && columns.iter().all(|(c, v)| named.iter().any(|(name, value)| name == c && value == v))
                }
                _ => false,
            }
    }
}

/// What an operator wants delivered again.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// From here on.
    pub from: Place,
    /// Up to here, this place itself not; without it everything, and the checkpoint moves.
    pub to: Option<Place>,
    /// Only this row.
    pub row: Option<RowKey>,
    /// Look through the mapping too, to tell what `when` leaves out and what cannot be mapped.
    pub mapped: bool,
}

/// An event of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Where it stands.
    pub offset: Offset,
    /// When it was committed, milliseconds since the Unix epoch; of a row that a backfill read when it was stored.
    pub committed_at_ms: i64,
}

/// What a replay is in one partition.
#[derive(Clone, Debug)]
pub struct Part {
    /// The partition.
    pub partition: u16,
    from: Point,
    /// The first offset that is not meant; `None` when everything from the beginning on is delivered.
    pub to: Option<Offset>,
    /// Where delivery stands.
    pub stands: Offset,
    /// Events of the connector's tables and operations: that are delivered again, or, of a move beyond where it stands, that are never delivered.
    pub events: u64,
    /// Of these: not wanted by `when`.
    pub filtered: u64,
    /// Of these: cannot be mapped.
    pub failing: u64,
    /// Of these: open dead letters, which a redrive brings and not the replay.
    pub parked: u64,
    /// Rows of the stretch that changed again behind it.
    pub changed_later: u64,
    /// The first event.
    pub first: Option<Edge>,
    /// The last event.
    pub last: Option<Edge>,
    row: Option<u64>,
}

impl Part {
    /// Where delivery goes to.
    #[must_use]
    pub fn from(&self) -> Offset {
        self.from.offset
    }

    /// Whether delivery moves on, and leaves out what it has not delivered yet.
    #[must_use]
    pub fn skips(&self) -> bool {
        self.from.offset > self.stands
    }
}

/// Why there is nothing to replay, or no telling what.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A place is not to be had.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Reading failed.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// The connector makes one event of a whole transaction, and the stretch would begin within one.
    #[error("partition {partition}: the place stands inside the transaction that commits at {lsn}, of which the connector makes one event")]
    InsideTransaction {
        /// The partition.
        partition: u16,
        /// Its commit.
        lsn: Lsn,
    },
    /// The connector makes one event of a whole transaction, which one row is not.
    #[error("the connector makes one event of the rows of a transaction, so that one of them cannot be replayed by itself")]
    RowOfTransaction,
    /// The place where it ends is of another partition than the one where it begins.
    #[error("--from and --to name different partitions")]
    OtherPartition,
}

impl std::convert::From<JournalError> for ReplayError {
    fn from(error: JournalError) -> ReplayError {
        ReplayError::Place(error.into())
    }
}

impl ReplayError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            ReplayError::Place(error) => error.code().into(),
            ReplayError::Delivery(error) => error.code(),
            ReplayError::InsideTransaction { .. } => "replay.inside_transaction".into(),
            ReplayError::RowOfTransaction => "replay.row_of_transaction".into(),
            ReplayError::OtherPartition => "usage.arguments".into(),
        }
    }
}

/// Where a connector stands in a partition: where it stood before the replay in the midst of which it is, if it is.
#[must_use]
pub fn stands(state: &State, connector: &str, partition: u16) -> Option<Offset> {
    let checkpoint = state.checkpoint(connector, partition)?;
    Some(checkpoint.replay.map_or(checkpoint.offset, |taken| checkpoint.offset.max(taken.until.offset)))
}

/// What a replay would be, partition by partition; those where nothing would be different are left out.
///
/// # Errors
/// Places that are not to be had, and those of reading.
pub async fn plan(
    journal: &dyn Journal,
    state: &State,
    connector: &Connector,
    source: &str,
    wanted: &Wanted,
) -> Result<Vec<Part>, ReplayError> {
    let grouped = connector.mapping.as_ref().is_some_and(|mapping| mapping.is_grouped());
    if grouped && wanted.row.is_some() {
        return Err(ReplayError::RowOfTransaction);
    }
    let survey = Survey { journal, state, connector, source, wanted };
    let mut parts = Vec::new();
    for partition in wanted.from.partitions(journal.partitions())? {
        let epoch = state.epoch();
        let Some(found) = wanted.from.find(journal, partition, epoch).await? else { continue };
        if let (true, Some(lsn)) = (grouped, inside(&found)) {
            return Err(ReplayError::InsideTransaction { partition, lsn });
        }
        let mut to = match wanted.to {
            Some(Place::Offset(Some(named), _)) if named != partition => return Err(ReplayError::OtherPartition),
            Some(place) => place.find(journal, partition, epoch).await?,
            None => None,
        };
        if let Some(end) = &mut to
            && grouped
            && inside(end).is_some()
        {
            end.point = end_of_transaction(journal, partition, end.point).await?;
        }
        let Some(bounds) = journal.bounds(Log::Data(partition)).await? else { continue };
        let stands = stands(state, &connector.name, partition).unwrap_or(bounds.first);
        let bounded = wanted.to.is_some() || wanted.row.is_some();
        let point = found.point;
        let mut part = Part {
            partition,
            from: point,
            to: to.map(|end| end.point.offset.min(stands)).or(bounded.then_some(stands)),
            stands,
            events: 0,
            filtered: 0,
            failing: 0,
            parked: 0,
            changed_later: 0,
            first: None,
            last: None,
            row: None,
        };
        if point.offset < stands {
            survey.count(&mut part, point, stands).await?;
        } else if point.offset > stands && !bounded {
            // What stands there was not read yet, so nothing is known of it.
            let from = Place::Offset(Some(partition), stands.max(bounds.first)).find(journal, partition, epoch).await?;
            let (from, end) = (from.map_or(point, |found| found.point), point.offset);
            survey.count(&mut part, from, end).await?;
        }
        if part.events > 0 {
            parts.push(part);
        }
    }
    Ok(parts)
}

/// The commit of the transaction that a place stands inside of.
fn inside(found: &Found) -> Option<Lsn> {
    let (before, here) = (found.point.position, found.position?);
    let same = before.epoch == here.epoch && before.commit_lsn == here.commit_lsn && before.ordinal != Position::END_ORDINAL;
    (same && !before.is_none()).then_some(here.commit_lsn)
}

/// Behind the transaction that a point stands inside of.
async fn end_of_transaction(journal: &dyn Journal, partition: u16, point: Point) -> Result<Point, ReplayError> {
    let mut end = None;
    read(journal, partition, point, None, |offset, passed_end, position, token, _| {
        if passed_end {
            end = Some(Point { offset: Offset(offset.0 + 1), position, token });
        }
        Ok(end.is_none())
    })
    .await?;
    Ok(end.unwrap_or(point))
}

/// Reads a partition from a point up to `end`, or to its own end, and shows every entry that counts: its offset, whether it ends a transaction, what is
/// known behind it, and its event with the time it was stored. `visit` says whether to go on.
async fn read(
    journal: &dyn Journal,
    partition: u16,
    point: Point,
    end: Option<Offset>,
    mut visit: impl FnMut(Offset, bool, Position, u32, Option<(Event, i64)>) -> Result<bool, DeliveryError>,
) -> Result<(), ReplayError> {
    let log = Log::Data(partition);
    let Some(bounds) = journal.bounds(log).await? else { return Ok(()) };
    let end = end.unwrap_or(Offset(u64::MAX)).min(Offset(bounds.last.0 + 1));
    if point.offset >= end {
        return Ok(());
    }
    let from = if point.offset <= bounds.first { From::First } else { From::Offset(point.offset) };
    let mut reader = journal.reader(log, from).await?;
    let mut filter = Filter::resume(point.token, point.position);
    loop {
        let chunk = reader.next().await?;
        for (offset, record) in (chunk.first_offset.0..).map(Offset).zip(Records::new(&chunk.bytes)) {
            if offset >= end {
                return Ok(());
            }
            let failed = |error| ReplayError::Place(PlaceError::Filter(partition, error));
            let record = record.map_err(|error| failed(FilterError::Malformed { offset, error }))?;
            let Judged::Pass(passed) = filter.push(offset, record).map_err(failed)? else { continue };
            let (kind, token) = (passed.header.whole, passed.header.token);
            let position = if passed.header.is_live() { passed.header.position } else { passed.header.prev };
            let event = match kind {
                Kind::Event | Kind::Read => {
                    let event =
                        Event::parse(Bytes::copy_from_slice(passed.body)).map_err(|error| DeliveryError::Event { offset, error })?;
                    Some((event, chunk.stored_at_ms))
                }
                _ => None,
            };
            if !visit(offset, kind == Kind::End, position, token, event)? {
                return Ok(());
            }
        }
        if chunk.next_offset() >= end {
            return Ok(());
        }
    }
}

/// What stretches are looked through for.
struct Survey<'a> {
    journal: &'a dyn Journal,
    state: &'a State,
    connector: &'a Connector,
    source: &'a str,
    wanted: &'a Wanted,
}

impl Survey<'_> {
    /// Counts what `from..end` holds for the connector; behind `part.to` only whether rows changed again.
    async fn count(&self, part: &mut Part, from: Point, end: Offset) -> Result<(), ReplayError> {
        let Survey { journal, state, connector, source, wanted } = *self;
        let mut preview = Preview::of_partition(connector, source, part.partition);
        if wanted.mapped {
            preview.restore_to(journal, part.partition, from.offset).await?;
        }
        let parked: HashSet<&str> = state
            .dead_letters()
            .filter(|l| l.letter.connector == connector.name)
            .map(|l| l.letter.event_id.split_once('#').map_or(l.letter.event_id.as_str(), |(id, _)| id))
            .collect();
        // A fact is stated once, and no later one makes it wrong.
        let states = connector.mapping.as_ref().is_none_or(|mapping| !mapping.has_id());
        let (to, row) = (part.to.unwrap_or(Offset(u64::MAX)), wanted.row.as_ref());
        let mut rows = HashSet::new();
        let mut changed = HashSet::new();
        let mut verdicts = Vec::new();
        read(journal, part.partition, from, Some(end), |offset, _, _, _, event| {
            let Some((event, stored_at_ms)) = event else { return Ok(true) };
            let is_meant = preview.wants(&event) && row.is_none_or(|row| row.is_of(&event));
            let (hash, has_key) = (event.key_hash(), event.key().len() > 0 && event.op() != Op::Truncate);
            if offset >= to {
                if is_meant && rows.len() <= ROWS_MAX && rows.contains(&hash) {
                    changed.insert(hash);
                }
                return Ok(true);
            }
            if !is_meant {
                if wanted.mapped {
                    preview.pass(event)?;
                }
                return Ok(true);
            }
            let committed = event.committed_at().and_then(|t| t.parse::<jiff::Timestamp>().ok());
            let edge = Edge { offset, committed_at_ms: committed.map_or(stored_at_ms, jiff::Timestamp::as_millisecond) };
            part.first.get_or_insert(edge);
            part.last = Some(edge);
            part.events += 1;
            part.parked += u64::from(parked.contains(event.id()));
            if row.is_some() {
                part.row = Some(hash);
            }
            if states && has_key && rows.len() <= ROWS_MAX {
                rows.insert(hash);
            }
            if wanted.mapped {
                verdicts.extend(preview.of(event)?.into_iter().map(|(_, verdict)| verdict));
                tally(part, &mut verdicts);
            }
            Ok(true)
        })
        .await?;
        if wanted.mapped {
            verdicts.extend(preview.flush()?.into_iter().map(|(_, verdict)| verdict));
            tally(part, &mut verdicts);
        }
        part.changed_later = if rows.len() > ROWS_MAX && to < end { 1 } else { changed.len() as u64 };
        Ok(())
    }
}

fn tally(part: &mut Part, verdicts: &mut Vec<Verdict>) {
    for verdict in verdicts.drain(..) {
        match verdict {
            Verdict::NotTaken => {}
            Verdict::Filtered => part.filtered += 1,
            Verdict::Sent(items) => part.failing += u64::from(items.iter().any(|item| matches!(item.mapped, Some(Err(_))))),
        }
    }
}

/// Asks for a replay. The decision is written down first, then the request for each partition; answers its number.
///
/// # Errors
/// Those of the control journal.
pub async fn request(writer: &mut Writer, connector: &str, parts: &[Part], what: String, why: &str, by: &str) -> Result<u32, ControlError> {
    audit(writer, what, why, by).await?;
    for part in parts {
        let request = ReplayRequested {
            connector: connector.to_owned(),
            partition: part.partition,
            number: writer.lease(),
            from: Some(part.from.into()),
            to: part.to,
            row: part.row.map(|row| format!("{row:016x}")),
            by: by.to_owned(),
            at_ms: now_ms(),
        };
        writer.store_proven(&Record::ReplayRequested(request)).await?;
    }
    Ok(writer.lease())
}

/// The partitions in which a replay of this connector waits or is under way.
#[must_use]
pub fn under_way(state: &State, connector: &str, partitions: u16) -> Vec<u16> {
    let is_under_way = |partition: &u16| {
        let taken = state.checkpoint(connector, *partition).is_some_and(|c| c.replay.is_some_and(|taken| c.offset < taken.until.offset));
        taken || state.pending_replay(connector, *partition).is_some()
    };
    (0..partitions).filter(is_under_way).collect()
}

/// Ends replays: delivery goes on where it stood before them.
///
/// # Errors
/// Those of the control journal.
pub async fn cancel(
    writer: &mut Writer,
    connector: &str,
    partitions: &[u16],
    what: String,
    why: &str,
    by: &str,
) -> Result<u32, ControlError> {
    audit(writer, what, why, by).await?;
    for partition in partitions {
        let request = ReplayRequested {
            connector: connector.to_owned(),
            partition: *partition,
            number: writer.lease(),
            from: None,
            to: None,
            row: None,
            by: by.to_owned(),
            at_ms: now_ms(),
        };
        writer.store_proven(&Record::ReplayRequested(request)).await?;
    }
    Ok(writer.lease())
}

async fn audit(writer: &mut Writer, what: String, why: &str, by: &str) -> Result<(), ControlError> {
    let audit = Audit { who: by.to_owned(), what, why: why.to_owned(), at_ms: now_ms() };
    writer.store_proven(&Record::Audit(audit)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_row_is_named_by_its_key() {
        let event = |key: Value| {
            let body = json!({
                "id": "e1-0/1-0", "op": "insert", "schema": "public", "table": "order", "key": key, "before": null, "after": {}, "unchanged": [],
                "commit_lsn": "0/1", "ordinal": 0, "xid": 1, "committed_at": "2026-11-22T10:00:00.000000Z",
            });
            Event::parse(body.to_string().into()).expect("an event")
        };
        let is_meant = |event: &Event, table: &str, key: &str| RowKey { table: table.to_owned(), key: key.to_owned() }.is_of(event);
        let one = event(json!({"id": 7}));
        assert!(is_meant(&one, "public.order", "7") && is_meant(&one, "public.order", "id=7"));
        assert!(!is_meant(&one, "public.order", "8") && !is_meant(&one, "public.orders", "7") && !is_meant(&one, "public.order", "no=7"));
        let two = event(json!({"id": 7, "day": "2026-11-22"}));
        assert!(is_meant(&two, "public.order", "day=2026-11-22,id=7") && !is_meant(&two, "public.order", "7"));
        assert!(is_meant(&event(json!({"no": "A=1"})), "public.order", "A=1"));
        assert!(!format!("{:?}", RowKey { table: "public.order".into(), key: "secret".into() }).contains("secret"));
    }

    #[test]
    fn a_place_inside_a_transaction_is_told() {
        let at = |ordinal| Position::new(1, Lsn(9), ordinal);
        let found = |before, here| Found { point: Point { position: before, ..Point::default() }, position: here };
        assert_eq!(inside(&found(at(1), Some(at(2)))), Some(Lsn(9)));
        assert_eq!(inside(&found(at(1), Some(Position::end(1, Lsn(9))))), Some(Lsn(9)));
        assert_eq!(inside(&found(Position::end(1, Lsn(8)), Some(at(0)))), None);
        assert_eq!((inside(&found(Position::NONE, Some(at(0)))), inside(&found(at(1), None))), (None, None));
    }
}
