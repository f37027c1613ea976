//! How an owner of a partition finds the place where its reading begins: behind what is settled, or where a replay wants it.

use std::collections::HashSet;

use tillstream_connectors::sink::{Idempotency, Sink};

use super::DeliveryError;
use super::again::{self, Again};
use super::filter::Filter;
use super::keep::{Keep, UpTo};
use super::mark::LaneMark;
use super::partition::books::LEDGER_MAX;
use super::settlement::Point;
use super::start::{Context, Skipped, Start, from_checkpoint, from_marks};
use crate::control::{self, Checkpoint, Record, ReplayTaken, State};
use crate::journal::{Log, Reader};

/// Where a partition begins.
pub(super) struct Beginning {
    pub(super) reader: Box<dyn Reader>,
    pub(super) filter: Filter,
    pub(super) from: Point,
    pub(super) skipped: Skipped,
    pub(super) keep: Option<Keep>,
    /// The last replay that was taken up.
    pub(super) replay: Option<ReplayTaken>,
    /// What it passes over, while it is under way.
    pub(super) again: Option<Again>,
}

/// Finds the place where reading begins: behind what is settled, or where a replay wants it, which is taken up here.
pub(super) async fn begin(
    context: &mut Context,
    state: &State,
    lease: u32,
    sinks: &mut [Box<dyn Sink>],
    mut control: control::Writer,
) -> Result<(Beginning, control::Writer), DeliveryError> {
    let (name, partition) = (context.connector.name.clone(), context.partition);
    let transactional = context.connector.target.plan().idempotency == Idempotency::Transactional;
    let checkpoint = state.checkpoint(&name, partition);
    let mut replay = checkpoint.and_then(|c| c.replay);
    let (mut start, mut skipped, stored_under) = if transactional {
        let mut marks = Vec::new();
        for sink in sinks.iter_mut() {
            let mark = context.until_ready(sink.as_mut(), |sink| Box::pin(sink.resume())).await?;
            marks.push(mark.map(|m| LaneMark::decode(&m)).transpose()?);
        }
        from_marks(&marks, replay.map_or(0, |taken| taken.lease))
    } else {
        let (start, skipped) = from_checkpoint(checkpoint);
        (start, skipped, checkpoint.map_or(0, |c| c.lease))
    };
    let mut under_way = replay.filter(|taken| again::is_under_way(taken, &start, stored_under));
    let unmoved = replay.filter(|taken| transactional && again::is_unmoved(taken, &start, stored_under));
    // What the last owner had taken up and could not tell the target is taken up again, with what it knew.
    under_way = under_way.or(unmoved);
    let pending = state.replay(&name, partition).filter(|r| unmoved.is_some() || replay.is_none_or(|taken| r.number > taken.number));
    let mut moves = false;
    if let Some(request) = pending {
        let taken = again::take(request, start, skipped, under_way, lease);
        (start, skipped, replay, moves) = (taken.start, taken.skipped, Some(taken.replay), taken.moves);
        under_way = replay.filter(|taken| again::is_under_way(taken, &start, lease));
        // The place is a new one; that it follows what was read is looked at there.
        context.rewind &= !moves;
        let oldest = context.journal.bounds(Log::Data(partition)).await?.map(|b| b.first);
        if let (Start::At(point), Some(oldest)) = (&start, oldest)
            && moves
            && point.offset < oldest
        {
            tracing::warn!(connector = name, partition, wanted = point.offset.0, oldest = oldest.0, "retention was faster than the replay");
            start = Start::First;
        }
    }
    let (mut reader, mut filter, mut from) = context.open(start).await?;
    if filter.is_rewound() {
        // Offsets that were settled mean nothing where offsets changed, and neither do those of a replay.
        skipped = Skipped::nothing();
        let stood = under_way.take().filter(|_| state.replay(&name, partition).is_some_and(control::ReplayRequested::is_bounded));
        if let Some(taken) = stood {
            tracing::error!(connector = name, partition, code = "replay.cut_short", "the journal's offsets changed: the replay ends here");
            (reader, filter, from) = context.open(Start::At(taken.until.into())).await?;
        }
    }
    if let (Some(taken), None) = (&mut replay, under_way) {
        // Over, or unknown to the target: nobody is to take it for under way.
        taken.until = Point::default().into();
    }
    let keep = Keep::new(&context.connector);
    if let Some(keep) = &keep {
        let up_to = if filter.is_rewound() { UpTo::Position(from.position, from.offset) } else { UpTo::Offset(from.offset) };
        keep.restore(context.journal.as_ref(), partition, up_to).await?;
    }
    let parked = || {
        let letters = state.dead_letters().filter(|l| l.letter.connector == name);
        letters.map(|l| l.letter.event_id.clone()).collect::<HashSet<_>>()
    };
    let request = state.replay(&name, partition);
    let again = under_way.and_then(|taken| request.map(|request| Again::new(request, &taken, parked())));
    if let (Some(taken), true) = (replay, pending.is_some()) {
        // Believed only when it is read back: from here on the request counts as taken up.
        let ledger: Vec<_> = skipped.beyond(from.offset).take(LEDGER_MAX).collect();
        let record = checkpoint_of(context, lease, from, ledger, Some(taken));
        control.store_proven(&Record::Checkpoint(record)).await?;
        if transactional && moves {
            context.move_marks(sinks, lease, from).await?;
        }
        let (number, offset, until) = (taken.number, from.offset.0, taken.until.offset.0);
        tracing::info!(connector = name, partition, number, offset, until, "replay begins");
    }
    Ok((Beginning { reader, filter, from, skipped, keep, replay, again }, control))
}

/// The record of a place where everything before is settled.
pub(super) fn checkpoint_of(
    context: &Context,
    lease: u32,
    point: Point,
    ledger: Vec<(u64, u64)>,
    replay: Option<ReplayTaken>,
) -> Checkpoint {
    Checkpoint {
        connector: context.connector.name.clone(),
        partition: context.partition,
        lease,
        offset: point.offset,
        position: point.position,
        token: point.token,
        ledger,
        replay,
        at_ms: control::now_ms(),
    }
}
