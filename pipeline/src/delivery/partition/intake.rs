//! From the entries of the journal to the lanes: filtered, fitted to the layout, mapped, joined to one event where a transaction is one.

use tillstream_connectors::mapping::Fault;
use tillstream_schemas::{Kind, Op};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::DeliveryError;
use super::super::events::{Output, Prepared};
use super::super::filter::{FilterError, Skip, Verdict};
use super::super::group::{self, Transaction};
use super::super::keep::Keep;
use super::super::lane::Order;
use super::super::outputs::GROUPS_OUTPUTS_MAX;
use super::super::queue::{Origin, Work};
use super::super::settlement::Point;
use super::super::shape::{self, Cause, Fit};
use super::super::stats::ConnectorStats;
use super::{Barrier, CANARIES_MAX, Partition, Waiting};
use crate::journal::Offset;
use crate::telemetry::canary::Canary;

/// Entries handled before the task looks for outcomes again.
const STEP: usize = 256;

impl Partition {
    pub(super) fn step(&mut self) -> Result<(), DeliveryError> {
        for _ in 0..STEP {
            if !self.has_room() {
                return Ok(());
            }
            let Some(walk) = &mut self.walk else { return Ok(()) };
            let offset = Offset(walk.offset);
            let Some(next) = walk.next() else {
                self.walk = None;
                return Ok(());
            };
            let range = next.map_err(|error| FilterError::Malformed { offset, error })?;
            let (stored_at_ms, record) = (walk.chunk.stored_at_ms, &walk.chunk.bytes[range]);
            let (mut prepared, mut ended, mut canary) = (None, None, None);
            match self.filter.push(offset, record)? {
                Verdict::Pass(passed) if matches!(passed.header.whole, Kind::Event | Kind::Read) => {
                    let read = self.context.shared.prepare(offset.0, passed.header.position, passed.body, stored_at_ms);
                    prepared = Some(read.map_err(|error| DeliveryError::Event { offset, error })?);
                }
                Verdict::Pass(passed) if passed.header.whole == Kind::End => ended = Some(Transaction::of(passed.header.position)),
                Verdict::Pass(passed) if passed.header.whole == Kind::Marker => canary = Canary::of_marker(passed.body),
                Verdict::Pass(_) => {}
                Verdict::Skip(Skip::Part | Skip::Fenced | Skip::Repeat | Skip::Foreign) => {}
            }
            if let (Some(keep), Some(event)) = (&self.keep, prepared.take_if(|_| self.keep.is_some())) {
                prepared = Some(keep.note(event)?);
            }
            let meant = |p: &Prepared| self.again.as_ref().is_none_or(|again| !again.passes_over(offset, p.row));
            if let Some(prepared) = prepared.filter(|p| self.selection.wants(&p.event) && meant(p))
                && !self.pass(offset, prepared)?
            {
                return Ok(());
            }
            if let Some(transaction) = ended {
                self.end_group(offset, transaction)?;
            }
            self.reach(offset);
            if let Some(canary) = canary {
                self.context.stats.canary_came(self.context.partition, canary);
                self.canaries.truncate(CANARIES_MAX - 1);
                self.canaries.push_back((offset, canary));
            }
        }
        Ok(())
    }

    /// A canary is through once everything before it is settled.
    pub(super) fn pass_canaries(&mut self) {
        while let Some((offset, canary)) = self.canaries.front().copied() {
            if offset >= self.settlement.checkpoint().offset {
                return;
            }
            self.canaries.pop_front();
            self.context.stats.canary_through(self.context.partition, canary);
        }
    }

    /// The entry at this offset needs no more reading.
    pub(super) fn reach(&mut self, offset: Offset) {
        // Reading can resume no later than at the first part of a body that is not complete.
        let next = self.filter.open_since().unwrap_or(Offset(offset.0 + 1));
        self.settlement.reach(self.point(next));
    }

    /// Takes an event in, unless it has to wait because its table has changed.
    pub(super) fn pass(&mut self, offset: Offset, prepared: Prepared) -> Result<bool, DeliveryError> {
        let why = match self.shapes.fit(&prepared.event, || self.context.follower.state()) {
            Fit::Fits => None,
            Fit::Untold => Some(None),
            Fit::Changed(why) => Some(Some(why)),
        };
        let group = self.selection.grouped().and(Transaction::of_event(&prepared.event));
        let why = match (why, group) {
            (Some(why), _) => why,
            (None, Some(transaction)) => match self.shapes.keeps_out(&prepared.event) {
                Some(cause) => Some(cause.what),
                None => return self.join(offset, transaction, prepared).map(|()| true),
            },
            (None, None) => match self.admit(offset, &prepared) {
                Some(cause) => Some(cause.what),
                None => return Ok(true),
            },
        };
        self.shapes.forget(&prepared.event);
        if let Some(why) = &why {
            let name = &self.context.connector.name;
            let message = format!(
                "{why}: `tillstream schema history` tells how; mend the file and `tillstream apply` it, or accept the change with \
                 `tillstream connector resume {name}`"
            );
            if self.context.stats.hold(self.context.partition, &message) {
                tracing::error!(connector = name, partition = self.context.partition, code = shape::CODE, "delivery is paused: {message}");
                self.context.stats.set_error(shape::CODE, &message);
            }
        }
        self.waiting = Some(Waiting { offset, prepared, why });
        Ok(false)
    }

    /// Looks again at an event that waits.
    pub(super) fn try_again(&mut self) -> Result<(), DeliveryError> {
        // Whoever begins anew reads it again.
        if self.moving.is_some() {
            return Ok(());
        }
        let Some(Waiting { offset, prepared, .. }) = self.waiting.take() else { return Ok(()) };
        if self.pass(offset, prepared)? {
            self.reach(offset);
            if self.context.stats.release(self.context.partition) {
                tracing::info!(connector = self.context.connector.name, partition = self.context.partition, "delivery goes on");
            }
        }
        Ok(())
    }

    pub(super) fn point(&self, offset: Offset) -> Point {
        Point { offset, position: self.filter.position(), token: self.filter.token() }
    }

    /// Admits what an event is made into, or says why it has to wait.
    pub(super) fn admit(&mut self, offset: Offset, prepared: &Prepared) -> Option<Cause> {
        let barrier = prepared.event.op() == Op::Truncate;
        let lane = if barrier { 0 } else { self.lane(prepared.row) };
        if self.skipped.has(offset, lane) {
            // Booked, and not merely passed over: the next checkpoint's ledger has to hold it too.
            let sequence = self.settlement.admit(offset, prepared.bytes, prepared.committed_at_ms);
            self.settlement.settle(sequence);
            return None;
        }
        let mut outputs = self.selection.outputs(prepared, self.keep.as_ref(), None);
        if outputs.is_empty() {
            ConnectorStats::add(&self.context.stats.filtered, 1);
            return None;
        }
        outputs.retain(|output| !self.is_parked(offset, output));
        if outputs.is_empty() {
            return None;
        }
        let failed = outputs.iter().any(Output::is_unmapped);
        if let Some(cause) = self.shapes.cause(&prepared.event, failed, || self.context.follower.state()) {
            if !cause.refuse {
                return Some(cause);
            }
            outputs.iter_mut().for_each(|output| cause.refuse(output));
        }
        let bytes = outputs.iter().map(|output| output.bytes).sum();
        let sequence = self.settlement.admit(offset, bytes, prepared.committed_at_ms);
        self.outputs.expect(sequence, outputs.len());
        self.worked.events += 1;
        for output in outputs {
            let (lane, work) = self.work(Origin::Journal(sequence), offset, prepared, output);
            if barrier {
                self.barrier = Some(Barrier::Waiting(Box::new(work)));
            } else {
                self.gathered[lane].push(work);
            }
        }
        None
    }

    /// Whether a replay leaves an output to the redrive of its dead letter.
    pub(super) fn is_parked(&self, offset: Offset, output: &Output) -> bool {
        let letter = || self.selection.letter_id(&output.item);
        self.again.as_ref().is_some_and(|again| again.is_parked(offset, output.item.event.id(), letter))
    }

    pub(super) fn work(&self, origin: Origin, offset: Offset, prepared: &Prepared, output: Output) -> (usize, Work) {
        let Output { item, key, lane, bytes } = output;
        let prepared = Prepared { row: key, bytes, ..prepared.clone() };
        (self.lane(lane), Work::new(origin, offset, &prepared, item, Instant::now()))
    }

    /// An event joins the facts of its transaction.
    pub(super) fn join(&mut self, offset: Offset, transaction: Transaction, prepared: Prepared) -> Result<(), DeliveryError> {
        if self.group.as_ref().is_some_and(|open| open.transaction != transaction) {
            // Its history did not continue: what it was to be nobody knows.
            let fault = Fault {
                code: "delivery.group_incomplete",
                path: "group".to_owned(),
                what: "the transaction's end never came".to_owned(),
                detail: None,
            };
            self.close_group(offset, Some(fault))?;
        }
        let Some(mapping) = self.selection.grouped() else { return Ok(()) };
        let joins = match mapping.joins(&prepared.event, self.keep.as_ref().map(Keep::tables)) {
            Ok(None) => {
                ConnectorStats::add(&self.context.stats.filtered, 1);
                return Ok(());
            }
            Ok(Some(key)) => Ok(key),
            Err(fault) => Err(fault),
        };
        let mut open = match self.group.take() {
            Some(open) => open,
            None => {
                let sequence = self.settlement.admit(offset, prepared.bytes, prepared.committed_at_ms);
                // One owner settled the whole transaction, or nothing of it.
                let settled = self.skipped.in_ledger(offset);
                if settled {
                    self.settlement.settle(sequence);
                }
                group::Open::new(transaction, (!settled).then_some(sequence))
            }
        };
        let bytes = open.add(joins, prepared);
        self.group = Some(open);
        self.group_fits(bytes, transaction)
    }

    pub(super) fn group_fits(&self, bytes: usize, transaction: Transaction) -> Result<(), DeliveryError> {
        let limit = usize::try_from(self.context.connector.keep.memory / 4).unwrap_or(usize::MAX);
        if bytes > limit { Err(DeliveryError::GroupTooLarge { transaction: transaction.lsn(), limit }) } else { Ok(()) }
    }

    pub(super) fn end_group(&mut self, offset: Offset, transaction: Transaction) -> Result<(), DeliveryError> {
        match &self.group {
            Some(open) if open.transaction == transaction => self.close_group(offset, None),
            _ => Ok(()),
        }
    }

    /// A transaction is over: its groups become outputs, all at the offset at hand, behind which every event of theirs lies.
    pub(super) fn close_group(&mut self, offset: Offset, incomplete: Option<Fault>) -> Result<(), DeliveryError> {
        let Some(open) = self.group.take() else { return Ok(()) };
        let (transaction, Some(sequence)) = (open.transaction, open.sequence) else { return Ok(()) };
        let lane = transaction.lane();
        if self.transactional && self.skipped.in_lane(offset, self.lane(lane)) {
            self.settlement.settle(sequence);
            return Ok(());
        }
        let (groups, fault) = open.close().map_err(|error| DeliveryError::Event { offset, error })?;
        let fault = incomplete.or(fault);
        let (mut works, mut bytes) = (Vec::new(), 0);
        for group in groups {
            let mut outputs = self.selection.group(&group, None, lane, fault.as_ref(), self.keep.as_ref());
            outputs.retain(|output| !self.is_parked(offset, output));
            for mut output in outputs {
                let cause = self.shapes.cause(&group.prepared.event, output.is_unmapped(), || self.context.follower.state());
                if let Some(cause) = cause.filter(|cause| cause.refuse) {
                    cause.refuse(&mut output);
                }
                bytes += output.bytes;
                works.push(self.work(Origin::Journal(sequence), offset, &group.prepared, output));
            }
            self.group_fits(if works.len() > GROUPS_OUTPUTS_MAX { usize::MAX } else { bytes }, transaction)?;
        }
        if works.is_empty() {
            ConnectorStats::add(&self.context.stats.filtered, 1);
            self.settlement.settle(sequence);
        }
        self.outputs.expect(sequence, works.len());
        self.worked.events += 1;
        for (lane, work) in works {
            self.gathered[lane].push(work);
        }
        Ok(())
    }

    pub(super) fn lane(&self, row: u64) -> usize {
        usize::try_from(row % self.lanes.len() as u64).unwrap_or(0)
    }

    /// Hands over what was gathered for the lanes: a message and a wake-up for many events.
    pub(super) fn hand_over(&mut self) {
        for lane in 0..self.lanes.len() {
            if !self.gathered[lane].is_empty() {
                let works = std::mem::take(&mut self.gathered[lane]);
                self.send(lane, Order::Work(works));
            }
        }
    }

    /// Behind everything that was gathered for the lane.
    pub(super) fn order(&mut self, lane: usize, order: Order) {
        self.hand_over();
        self.send(lane, order);
    }

    fn send(&self, lane: usize, order: Order) {
        match self.lanes[lane].try_send(order) {
            Ok(()) => {}
            // The lane has failed and says so in a report, which ends this task.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => unreachable!("a lane has room for everything that may be under way"),
        }
    }

    /// A truncate goes alone: everything before it is settled first, and nothing follows until it is.
    pub(super) fn pass_barrier(&mut self) {
        match self.barrier.take() {
            Some(Barrier::Waiting(work)) if self.settlement.unsettled() == 1 => {
                self.order(0, Order::Work(vec![*work]));
                self.barrier = Some(Barrier::Sent);
            }
            Some(Barrier::Sent) if self.settlement.unsettled() == 0 => {}
            other => self.barrier = other,
        }
    }
}
