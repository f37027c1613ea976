//! Where a partition's reading begins: behind the checkpoint or the target's own marks, or, when the log's offsets no
//! longer mean what they did, wherever the last position stands now.

use std::sync::Arc;
use std::time::Duration;

use tillstream_connectors::sink::{Batch, LaneId, Sink, SinkError};
use tillstream_schemas::entry::Records;
use tillstream_schemas::{Entry, Kind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::DeliveryError;
use super::events::Shared;
use super::filter::Filter;
use super::gate::Gate;
use super::mark::LaneMark;
use super::membership::Roster;
use super::settlement::Point;
use super::stats::{ConnectorState, ConnectorStats};
use crate::config;
use crate::control::{Checkpoint, Follower};
use crate::journal::{ASK_AGAIN, Bounds, END_PATIENCE, From, Journal, Log, Offset, Reader};
use crate::retry::Delays;

/// How far back a place is looked for first, in entries: more than a broker holds unsynced in a second or two.
const LOOK_BACK: u64 = 100_000;

/// A process that lives has this long to give a partition up that another one is to deliver: longer than calls in the air
/// may take at a stop. After that it is stuck.
const HANDOVER_WITHIN: Duration = Duration::from_secs(8);

/// What a partition's task needs to know.
pub(super) struct Context {
    pub(super) journal: Arc<dyn Journal>,
    pub(super) pipeline: String,
    pub(super) source: String,
    pub(super) owner: String,
    pub(super) connector: Arc<config::Connector>,
    pub(super) partition: u16,
    pub(super) follower: Follower,
    pub(super) roster: watch::Receiver<Roster>,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: Arc<ConnectorStats>,
    pub(super) gate: Gate,
    pub(super) stop: CancellationToken,
    /// Cancelled, and `stop` with it, when calls in the air may finish only for a while: the process ends, or another one waits for the partition.
    pub(super) hurry: CancellationToken,
    /// Cancelled when reading is to end with the transaction, and the partition with everything settled.
    pub(super) settle: CancellationToken,
    /// Whether the last session met a gap, so that the place has to be looked for again.
    pub(super) rewind: bool,
    /// Deliver what stood in the journal at this moment, then end: the offset of the last entry, `None` of an empty log.
    pub(super) until: Option<Option<Offset>>,
}

/// Where reading begins.
pub(super) enum Start {
    /// Nobody was here before: the oldest entry still there.
    First,
    At(Point),
}

/// What has been settled already above the place where reading begins.
pub(super) enum Skipped {
    Ledger(Vec<(u64, u64)>),
    /// Each lane's own mark, which counts from an offset on.
    Own {
        own: Vec<Offset>,
        since: Offset,
    },
}

impl Skipped {
    /// Nothing.
    pub(super) fn nothing() -> Skipped {
        Skipped::Ledger(Vec::new())
    }

    /// Only what lies at or above an offset.
    pub(super) fn from(self, offset: Offset) -> Skipped {
        match self {
            Skipped::Ledger(_) => Skipped::Ledger(self.beyond(offset).collect()),
            Skipped::Own { own, since } => Skipped::Own { own, since: since.max(offset) },
        }
    }

    /// Whether the event at this offset is, in this lane.
    pub(super) fn has(&self, offset: Offset, lane: usize) -> bool {
        self.in_ledger(offset) || self.in_lane(offset, lane)
    }

    /// Whether a ledger has the event at this offset.
    pub(super) fn in_ledger(&self, offset: Offset) -> bool {
        let Skipped::Ledger(ranges) = self else { return false };
        let after = ranges.partition_point(|(first, _)| *first <= offset.0);
        after > 0 && ranges[after - 1].1 >= offset.0
    }

    /// Whether the lane's own mark covers the event at this offset.
    pub(super) fn in_lane(&self, offset: Offset, lane: usize) -> bool {
        let Skipped::Own { own, since } = self else { return false };
        offset >= *since && own.get(lane).is_some_and(|own| offset < *own)
    }

    /// The ranges of a ledger from `reached` on, rising.
    pub(super) fn beyond(&self, reached: Offset) -> impl Iterator<Item = (u64, u64)> {
        let ranges: &[(u64, u64)] = match self {
            Skipped::Ledger(ranges) => ranges,
            Skipped::Own { .. } => &[],
        };
        ranges.iter().filter(move |(_, last)| *last >= reached.0).map(move |(first, last)| ((*first).max(reached.0), *last))
    }
}

impl Context {
    /// One sink a lane.
    pub(super) fn build_sinks(&self) -> Vec<Box<dyn Sink>> {
        let on_delete = self.connector.on_delete;
        let lane = |lane| LaneId { connector: self.connector.name.clone(), partition: self.partition, lane };
        (0..self.connector.delivery.lanes.get()).map(|n| self.connector.target.build(lane(n), on_delete)).collect()
    }

    /// Waits while another process that lives holds the partition.
    pub(super) async fn turn(&mut self) -> Result<(), DeliveryError> {
        let deadline = Instant::now() + HANDOVER_WITHIN;
        loop {
            let held = self.follower.state().lease(&self.connector.name, self.partition).cloned();
            let in_the_way = {
                let roster = self.roster.borrow_and_update();
                held.is_some_and(|l| !l.released && l.member != roster.me && roster.live.contains(&l.member))
            };
            if !in_the_way {
                return Ok(());
            }
            tokio::select! {
                state = self.follower.changed() => if state.is_none() { return Err(DeliveryError::Ended) },
                changed = self.roster.changed() => if changed.is_err() { return Err(DeliveryError::Ended) },
                () = sleep_until(deadline) => return Ok(()),
            }
        }
    }

    /// Repeats a call of the sink until it succeeds; definite errors end it.
    pub(super) async fn until_ready<'s, T>(
        &self,
        sink: &'s mut (dyn Sink + 'static),
        call: impl for<'a> Fn(&'a mut (dyn Sink + 'static)) -> std::pin::Pin<Box<dyn Future<Output = Result<T, SinkError>> + Send + 'a>>,
    ) -> Result<T, DeliveryError> {
        let mut delays = Delays::new(self.connector.retry.base, self.connector.retry.max);
        loop {
            let error = match call(&mut *sink).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let error = DeliveryError::Sink(error);
            if !error.is_transient() {
                return Err(error);
            }
            self.stats.set_error(&error.code(), &error.to_string());
            self.stats.set_state(ConnectorState::Retrying);
            let delay = delays.next_delay();
            tracing::warn!(connector = self.connector.name, %error, retry_in = ?delay, "target not ready");
            sleep(delay).await;
        }
    }

    /// Has every lane of a transactional target stand at this place, whatever its mark said before: a later owner's marks outrank an earlier one's.
    pub(super) async fn move_marks(&self, sinks: &mut [Box<dyn Sink>], lease: u32, to: Point) -> Result<(), DeliveryError> {
        let lanes = self.connector.delivery.lanes.get();
        let mark = LaneMark { lease, floor: to, lanes, own: to.offset }.encode();
        for sink in sinks {
            let store = self.until_ready(sink.as_mut(), |sink| {
                let batch = Batch { items: Vec::new(), mark: mark.clone() };
                Box::pin(async move { sink.deliver(&batch).await })
            });
            store.await?;
        }
        Ok(())
    }

    /// A reader at the start, the filter that goes with it, and the point they stand at.
    pub(super) async fn open(&self, start: Start) -> Result<(Box<dyn Reader>, Filter, Point), DeliveryError> {
        let log = Log::Data(self.partition);
        let mut bounds = self.journal.bounds(log).await?;
        let Start::At(point) = start else {
            let first = bounds.map_or(Offset(0), |b| b.first);
            return Ok((self.journal.reader(log, From::First).await?, Filter::new(), Point { offset: first, ..Point::default() }));
        };
        // A broker that comes back may say for a moment that there is nothing.
        let asked = Instant::now();
        while bounds.is_none() && point.offset > Offset(0) && asked.elapsed() < END_PATIENCE {
            sleep(ASK_AGAIN).await;
            bounds = self.journal.bounds(log).await?;
        }
        let end = bounds.map_or(Offset(0), |b| Offset(b.last.0 + 1));
        // Without a position there is nothing to look for: what was a gap is one again.
        if point.offset <= end && (!self.rewind || point.position.is_none()) {
            let reader = self.journal.reader(log, From::Offset(point.offset)).await?;
            return Ok((reader, Filter::resume(point.token, point.position), point));
        }
        // The log ends below the checkpoint, or what stands there does not follow: it lost its end and was filled again.
        let Some(bounds) = bounds.filter(|_| !point.position.is_none()) else {
            return Err(DeliveryError::Regressed { partition: self.partition, checkpoint: point.offset, end });
        };
        let offset = self.look_back(log, bounds, point).await?;
        tracing::warn!(
            connector = self.connector.name,
            partition = self.partition,
            checkpoint = point.offset.0,
            offset = offset.0,
            "the journal's offsets changed, reading resumes by position"
        );
        let reader = self.journal.reader(log, From::Offset(offset)).await?;
        Ok((reader, Filter::rewound(point.token, point.position), Point { offset, ..point }))
    }

    /// An offset from which everything behind the point's position is read: further and further back, until an entry
    /// stands there that follows nothing later.
    async fn look_back(&self, log: Log, bounds: Bounds, point: Point) -> Result<Offset, DeliveryError> {
        let mut distance = LOOK_BACK;
        loop {
            let from = Offset(point.offset.0.min(bounds.last.0).saturating_sub(distance).max(bounds.first.0));
            if from == bounds.first {
                return Ok(from);
            }
            let chunk = self.journal.reader(log, From::Offset(from)).await?.next().await?;
            let mut entries = Records::new(&chunk.bytes).filter_map(Result::ok).filter_map(|r| Entry::decode(r).ok());
            // What a fence says of `prev` proves nothing.
            let known = entries.find(|e| e.header.kind != Kind::Fence && e.header.token >= point.token);
            if known.is_some_and(|e| e.header.prev <= point.position) {
                return Ok(from);
            }
            distance = distance.saturating_mul(10);
        }
    }
}

/// The highest floor of the last owner that stored one; each lane skips what its own mark covers when the number of lanes is the same. `replayed` is the lease
/// under which a replay was taken up: where a mark of it or later is there, those before it say nothing any more. Also answers the last owner's lease.
pub(super) fn from_marks(marks: &[Option<LaneMark>], replayed: u32) -> (Start, Skipped, u32) {
    let Some(highest) = marks.iter().flatten().max_by_key(|m| (m.lease, m.floor.offset)) else {
        return (Start::First, Skipped::Own { own: Vec::new(), since: Offset(0) }, 0);
    };
    let counts = |mark: &LaneMark| usize::from(mark.lanes) == marks.len() && (mark.lease >= replayed || highest.lease < replayed);
    let own = marks.iter().map(|mark| match mark {
        Some(mark) if counts(mark) => mark.own,
        _ => Offset(0),
    });
    (Start::At(highest.floor), Skipped::Own { own: own.collect(), since: Offset(0) }, highest.lease)
}

/// Behind the checkpoint that is in force.
pub(super) fn from_checkpoint(checkpoint: Option<&Checkpoint>) -> (Start, Skipped) {
    match checkpoint {
        Some(c) => (Start::At(Point { offset: c.offset, position: c.position, token: c.token }), Skipped::Ledger(c.ledger.clone())),
        None => (Start::First, Skipped::Ledger(Vec::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_and_own_marks_say_what_is_settled() {
        let ledger = Skipped::Ledger(vec![(5, 7), (9, 9)]);
        let settled: Vec<u64> = (0..12).filter(|o| ledger.has(Offset(*o), 0)).collect();
        assert_eq!(settled, [5, 6, 7, 9]);
        assert_eq!(ledger.beyond(Offset(6)).collect::<Vec<_>>(), [(6, 7), (9, 9)]);
        assert_eq!(ledger.beyond(Offset(10)).count(), 0);
        let own = Skipped::Own { own: vec![Offset(3), Offset(0)], since: Offset(0) };
        assert!(own.has(Offset(2), 0) && !own.has(Offset(3), 0) && !own.has(Offset(2), 1) && !own.has(Offset(2), 7));
    }

    #[test]
    fn a_start_takes_the_highest_floor_and_forgets_own_marks_of_other_lane_counts() {
        let point = |offset| Point { offset: Offset(offset), ..Point::default() };
        let mark = |floor, lanes, own| Some(LaneMark { lease: 1, floor: point(floor), lanes, own: Offset(own) });
        let (start, skipped, lease) = from_marks(&[mark(10, 2, 40), mark(30, 2, 35)], 0);
        assert!(matches!(start, Start::At(p) if p == point(30)) && lease == 1);
        assert!(skipped.has(Offset(39), 0) && !skipped.has(Offset(39), 1));
        let (start, skipped, _) = from_marks(&[mark(10, 3, 40), None], 0);
        assert!(matches!(start, Start::At(p) if p == point(10)) && !skipped.has(Offset(20), 0));
        assert!(matches!(from_marks(&[None], 0).0, Start::First));
    }

    #[test]
    fn after_a_replay_only_the_marks_of_its_owner_and_later_ones_count() {
        let point = |offset| Point { offset: Offset(offset), ..Point::default() };
        let mark = |lease, floor, own| Some(LaneMark { lease, floor: point(floor), lanes: 2, own: Offset(own) });
        // One lane stored a mark since, the other one's is from before.
        let marks = [mark(2, 10, 12), mark(1, 100, 140)];
        let (start, skipped, lease) = from_marks(&marks, 2);
        assert!(matches!(start, Start::At(p) if p == point(10)) && lease == 2);
        assert!(skipped.has(Offset(11), 0) && !skipped.has(Offset(11), 1));
        assert!(from_marks(&marks, 0).1.has(Offset(11), 1), "without a replay an earlier owner's mark stands");
        // A target that was restored from a backup knows nothing of the replay.
        let (start, skipped, _) = from_marks(&[mark(1, 90, 95), mark(1, 100, 140)], 2);
        assert!(matches!(start, Start::At(p) if p == point(100)) && skipped.has(Offset(139), 1));
    }
}
