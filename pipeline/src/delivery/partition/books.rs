//! What became of events: outcomes booked, dead letters stored and sent again, progress shown, checkpoints saved.

use std::time::Duration;

use tokio::time::Instant;

use super::super::DeliveryError;
use super::super::begin::checkpoint_of;
use super::super::events::Prepared;
use super::super::lane::{Order, Outcomes};
use super::super::outputs::GROUPS_OUTPUTS_MAX;
use super::super::queue::{Origin, Rejected};
use super::super::settlement::Sequence;
use super::super::stats::{ConnectorStats, PartitionProgress};
use super::{LookAtEnd, Partition, REDRIVES_MAX, Redrive};
use crate::control::{self, Body, ControlError, DeadLetter, DeadLetterSettled, Record, Settled};
use crate::journal::Log;

/// How often a checkpoint is saved: a crash repeats about this much, and the targets absorb it.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often an idle transactional sink stores how far reading went, so that a restart does not read it again.
const MARK_EVERY: Duration = Duration::from_secs(30);
/// How long nothing comes before the log's end is looked at: a log that lost its end would be waited for in vain.
const LOOK_AT_END_AFTER: Duration = Duration::from_secs(10);
/// Ranges in a checkpoint's ledger.
pub(in crate::delivery) const LEDGER_MAX: usize = 500;

impl Partition {
    pub(super) async fn book(&mut self, outcomes: Outcomes) -> Result<(), DeliveryError> {
        let Outcomes { delivered, absorbed, rejected, superseded, stored, marked } = outcomes;
        let stats = self.context.stats.clone();
        ConnectorStats::add(&stats.delivered, delivered.len());
        ConnectorStats::add(&stats.absorbed, absorbed.len());
        if marked {
            self.marking = false;
            self.marked.0 = Instant::now();
        }
        for origin in delivered.into_iter().chain(absorbed).chain(superseded) {
            self.settle(origin).await?;
        }
        self.store_letters(&rejected).await?;
        ConnectorStats::add(&stats.rejected, rejected.len());
        for letter in rejected {
            match letter.origin {
                Origin::Journal(sequence) => self.settled(sequence),
                // The event as a whole could not be mapped, and one of its outputs has a letter of its own now.
                Origin::Redrive(before) if self.selection.letter_id(&letter.item) != before.event_id => {
                    self.settle(Origin::Redrive(before)).await?;
                }
                Origin::Redrive(letter) => drop(self.redriven(&letter)),
            }
        }
        self.floor.set(self.settlement.checkpoint());
        if let Some(stored) = stored {
            // The lane may be gone; then it needs no answer.
            let _ = stored.send(());
        }
        Ok(())
    }

    /// One output of a dead letter is through; whether it was the last.
    pub(super) fn redriven(&mut self, letter: &DeadLetter) -> bool {
        let Some(redrive) = self.redrives.get_mut(&letter.event_id) else { return true };
        redrive.left = redrive.left.saturating_sub(1);
        redrive.done |= redrive.left == 0;
        redrive.left == 0
    }

    pub(super) fn settled(&mut self, sequence: Sequence) {
        if self.outputs.settle(sequence) {
            self.settlement.settle(sequence);
        }
    }

    pub(super) async fn settle(&mut self, origin: Origin) -> Result<(), DeliveryError> {
        match origin {
            Origin::Journal(sequence) => self.settled(sequence),
            // Its other outputs are under way.
            Origin::Redrive(letter) if self.redrives.get(&letter.event_id).is_some_and(|redrive| redrive.left > 1) => {
                self.redriven(&letter);
            }
            Origin::Redrive(letter) => {
                let settled = DeadLetterSettled {
                    connector: letter.connector.clone(),
                    event_id: letter.event_id.clone(),
                    how: Settled::Redriven,
                    reason: String::new(),
                    by: self.context.owner.clone(),
                    at_ms: control::now_ms(),
                };
                self.control.store(&Record::DeadLetterSettled(settled)).await?;
                ConnectorStats::add(&self.context.stats.redriven, 1);
                self.redriven(&letter);
            }
        }
        Ok(())
    }

    /// Stores dead letters and believes only what it reads back: a confirm is no proof for an owner that was replaced.
    pub(super) async fn store_letters(&mut self, rejected: &[Rejected]) -> Result<(), DeliveryError> {
        let Some(last) = rejected.len().checked_sub(1) else { return Ok(()) };
        let state = self.context.follower.state();
        for (n, rejected) in rejected.iter().enumerate() {
            let letter = self.letter(rejected);
            state.room_for_letter(letter.event.stored_len())?;
            tracing::warn!(
                connector = letter.connector,
                event = letter.event_id,
                code = letter.code,
                reason = letter.message,
                attempts = letter.attempts,
                "event refused, stored as a dead letter"
            );
            self.context.stats.set_error(&letter.code, &letter.message);
            let record = Record::DeadLetter(letter);
            if n == last {
                // One writer's records are stored in order: with the last one, all are.
                self.control.store_proven(&record).await?;
            } else {
                self.control.append(&record).await?;
            }
        }
        Ok(())
    }

    pub(super) fn letter(&self, rejected: &Rejected) -> DeadLetter {
        let now = control::now_ms();
        let event = &rejected.item.event;
        let mut letter = DeadLetter {
            connector: self.context.connector.name.clone(),
            partition: self.context.partition,
            offset: rejected.offset,
            event_id: self.selection.letter_id(&rejected.item),
            event: Body::new(event.body()),
            code: rejected.reason.code.clone(),
            message: rejected.reason.message.clone(),
            attempts: rejected.attempts,
            first_at_ms: rejected.first_at_ms,
            last_at_ms: now,
            idempotency_key: rejected.item.idempotency_key.clone(),
            version: rejected.item.version,
        };
        if let Origin::Redrive(before) = &rejected.origin {
            letter.attempts = letter.attempts.saturating_add(before.attempts);
            letter.first_at_ms = before.first_at_ms;
        }
        letter
    }

    /// Ends this owner once another process has announced a later lease.
    pub(super) fn check_lease(&self) -> Result<(), ControlError> {
        let state = self.context.follower.state();
        match state.lease(&self.context.connector.name, self.context.partition) {
            Some(held) if held.lease > self.control.lease() => {
                let name = control::delivery_producer(&self.context.pipeline, &self.context.connector.name, self.context.partition).0;
                Err(ControlError::Rival { name, lease: held.lease })
            }
            _ => Ok(()),
        }
    }

    /// Sends dead letters again that someone asked for, under the key and version they had.
    pub(super) async fn redrive(&mut self) -> Result<(), DeliveryError> {
        let state = self.context.follower.state();
        let (name, partition) = (self.context.connector.name.as_str(), self.context.partition);
        let shown = |r: &Redrive| state.dead_letter(name, &r.letter.event_id).is_none_or(|l| *l.letter != *r.letter);
        self.redrives.retain(|_, redrive| !(redrive.done && shown(redrive)));
        let asked = state.dead_letters().filter(|l| l.redrive_requested && l.letter.connector == name && l.letter.partition == partition);
        let (mut orders, mut unwanted) = (Vec::new(), Vec::new());
        for letter in asked {
            let letter = &letter.letter;
            let under_way: usize = self.redrives.values().map(|redrive| redrive.left).sum();
            if self.redrives.len() >= REDRIVES_MAX || under_way >= REDRIVES_MAX {
                break;
            }
            if self.redrives.contains_key(&letter.event_id) {
                continue;
            }
            let body = letter.event.bytes();
            let Some(Ok(prepared)) = body.as_deref().map(|b| Prepared::parse(b, letter.first_at_ms)) else {
                tracing::error!(
                    connector = name,
                    event = letter.event_id,
                    code = "delivery.redrive_impossible",
                    "the dead letter holds no event"
                );
                self.redrives.insert(letter.event_id.clone(), Redrive { letter: letter.clone(), left: 0, done: true });
                continue;
            };
            let outputs = self.selection.again(&prepared, self.keep.as_ref(), &letter.event_id, &letter.idempotency_key);
            if outputs.is_empty() || outputs.len() > GROUPS_OUTPUTS_MAX {
                unwanted.push(letter.clone());
                continue;
            }
            self.redrives.insert(letter.event_id.clone(), Redrive { letter: letter.clone(), left: outputs.len(), done: false });
            for (prepared, mut output) in outputs {
                // It was read already: it never waits.
                if let Some(cause) = self.shapes.cause_again(&prepared.event, output.is_unmapped(), &state) {
                    cause.refuse(&mut output);
                }
                output.item.version = letter.version;
                orders.push(self.work(Origin::Redrive(letter.clone()), letter.offset, &prepared, output));
            }
        }
        for (lane, work) in orders {
            self.gathered[lane].push(work);
        }
        // The connector's `when` does not want them any more: there is nothing to send.
        for letter in unwanted {
            self.redrives.insert(letter.event_id.clone(), Redrive { letter: letter.clone(), left: 1, done: false });
            self.settle(Origin::Redrive(letter)).await?;
        }
        Ok(())
    }

    pub(super) fn store_mark(&mut self) {
        self.marking = true;
        self.marked.1 = self.settlement.checkpoint().offset;
        self.floor.set(self.settlement.checkpoint());
        self.order(0, Order::StoreMark);
    }

    pub(super) async fn tick(&mut self) -> Result<(), DeliveryError> {
        let (checkpoint, reached) = (self.settlement.checkpoint(), self.settlement.reached());
        self.floor.set(checkpoint);
        self.waited();
        self.context.stats.set_progress(
            self.context.partition,
            PartitionProgress {
                read: reached.offset,
                settled: checkpoint.offset,
                position: checkpoint.position,
                in_flight: self.settlement.unsettled() as u64,
                oldest_commit_ms: self
                    .settlement
                    .oldest_commit_ms()
                    .or(self.waiting.as_ref().map(|waiting| waiting.prepared.committed_at_ms)),
                replay_until: self.replay.map(|taken| taken.until.offset).filter(|until| checkpoint.offset < *until),
                filter: self.filter.counts(),
                full: !self.has_room(),
                work: self.worked,
                resting: false,
                entry_bytes: None,
            },
        );
        let now = Instant::now();
        if self.look_at_end.is_none() && self.walk.is_none() && now - self.last_read >= LOOK_AT_END_AFTER {
            self.last_read = now;
            let (journal, log) = (self.context.journal.clone(), Log::Data(self.context.partition));
            let ask = tokio::spawn(async move { journal.bounds(log).await });
            self.look_at_end = Some(LookAtEnd { reached: reached.offset, ask });
        }
        let idle = self.transactional && !self.marking && self.settlement.unsettled() == 0;
        if idle && self.marked.1 < checkpoint.offset && now - self.marked.0 >= MARK_EVERY {
            self.store_mark();
        }
        if self.saving.is_none() && now - self.saved.0 >= SAVE_EVERY {
            if let Some(record) = self.checkpoint_record() {
                self.saving = Some(self.control.append(&record).await?);
            }
            self.saved.0 = now;
        }
        Ok(())
    }

    /// The checkpoint, when it says more than the last one.
    pub(super) fn checkpoint_record(&mut self) -> Option<Record> {
        let point = self.settlement.checkpoint();
        let above = self.settlement.settled_above();
        if (point, above) == (self.saved.1, self.saved.2) {
            return None;
        }
        (self.saved.1, self.saved.2) = (point, above);
        Some(Record::Checkpoint(checkpoint_of(&self.context, self.control.lease(), point, self.ledger(), self.replay)))
    }

    /// What is settled above the checkpoint: by this owner, and by those before it where this one has not read yet.
    pub(super) fn ledger(&self) -> Vec<(u64, u64)> {
        let mut ledger = self.settlement.ledger(LEDGER_MAX);
        ledger.extend(self.skipped.beyond(self.settlement.reached().offset));
        ledger.truncate(LEDGER_MAX);
        ledger
    }
}
