//! What the control log amounts to: a pure function of its records.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tillstream_schemas::{Header, Lsn};

use super::ControlError;
use super::backfill::{BackfillJob, BackfillState};
use super::encode::digest;
use super::member::Member;
use super::pause::Pause;
use super::record::{
    Audit, Checkpoint, Cursor, DeadLetter, Epoch, LayoutAccepted, Lease, LoadFinished, OpenLetter, Piece, Record, RedriveRequested,
    Session, Snapshot, TableLayout, now_ms,
};
use super::stretch::ReplayRequested;
use crate::journal::Offset;

/// An open dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The letter, shared with whoever shows or redrives it.
    pub letter: Arc<DeadLetter>,
    /// Whether an operator asked for its redrive and no attempt was recorded since: delivery's work list.
    pub redrive_requested: bool,
}

/// A record as it stands in the control log.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its offset.
    pub offset: Offset,
    /// The token in its header.
    pub token: u32,
    /// Length of its body.
    pub bytes: usize,
    /// What it says.
    pub record: Record,
}

/// A record that is still missing pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assembly {
    whole: String,
    count: u32,
    next: u32,
    text: String,
    first: Offset,
    token: u32,
}

/// Everything known from the control log, up to an offset.
///
/// Applying a record twice changes nothing that applying it once did not, so overlapping reads do no harm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    next: Offset,
    applied_bytes: u64,
    bytes_since_snapshot: u64,
    snapshot_bytes: u64,
    session: Option<Session>,
    rival: Option<Session>,
    epoch: u32,
    released: Option<Lsn>,
    /// The same as the present session found it.
    released_before: Option<Lsn>,
    operator: u32,
    /// By slot.
    members: BTreeMap<u16, Member>,
    leases: BTreeMap<(String, u16), Lease>,
    checkpoints: BTreeMap<(String, u16), Checkpoint>,
    /// The last ones, by connector and partition.
    replays: BTreeMap<(String, u16), ReplayRequested>,
    /// Those that are not over, by connector.
    pauses: BTreeMap<String, Pause>,
    letters: BTreeMap<(String, String), Letter>,
    letter_bytes: usize,
    /// By job, table and part.
    cursors: BTreeMap<(String, String, String), Cursor>,
    /// By id.
    backfills: BTreeMap<String, BackfillJob>,
    loads: BTreeMap<String, LoadFinished>,
    audit: VecDeque<Audit>,
    /// By table, rising by position.
    layouts: BTreeMap<String, VecDeque<TableLayout>>,
    /// By connector and table, oldest first.
    accepted: BTreeMap<(String, String), VecDeque<LayoutAccepted>>,
    assemblies: BTreeMap<String, Assembly>,
    /// The last snapshot met, until [`State::take_snapshot`].
    last_snapshot: Option<Box<Snapshot>>,
}

impl State {
    /// Most bytes of open dead letters' bodies: every process that follows the control log holds them in memory, and
    /// each snapshot carries them. A target that refuses this much needs a person, not more room.
    pub const LETTER_BYTES_MAX: usize = 16 << 20;
    /// Most open dead letters; bounds what a letter takes beside its body.
    pub const LETTERS_MAX: usize = 10_000;
    /// Backfill jobs kept: a year of weekly ones and a month of hourly ones. The oldest that is over goes first.
    pub const BACKFILLS_MAX: usize = 800;
    /// Audit records kept at hand; older ones stay in the log until retention drops them.
    pub const AUDIT_MAX: usize = 256;
    /// Layouts of one table kept at hand: years of migrations. Older ones stay in the log until retention drops them.
    pub const LAYOUTS_MAX: usize = 64;
    /// Pieces whose writer died are forgotten when another takes its place, or after so many offsets: they must not
    /// hold back snapshots. A living writer's pieces follow each other within a few dozen.
    const ASSEMBLY_OFFSETS_MAX: u64 = 10_000;

    /// Where reading goes on: one above the last entry applied.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The highest capture token; 0 before the first run.
    #[must_use]
    pub fn token(&self) -> u32 {
        self.session.as_ref().map_or(0, |s| s.token)
    }

    /// The first session stored under the highest token.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// A second session under that same token, told apart by its nonce: both have to try again with a higher one.
    #[must_use]
    pub fn rival(&self) -> Option<&Session> {
        self.rival.as_ref()
    }

    /// The highest epoch; 0 before the first session.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The highest position of the present epoch that PostgreSQL may have been told to forget; `None` when no run of it
    /// said. A slot that has confirmed more was not moved by us.
    #[must_use]
    pub fn released(&self) -> Option<Lsn> {
        self.released
    }

    /// The same as it was when the present session began: what that session may find its slot at.
    #[must_use]
    pub fn released_before(&self) -> Option<Lsn> {
        self.released_before
    }

    /// The highest operator token; 0 when no command ever wrote.
    #[must_use]
    pub fn operator(&self) -> u32 {
        self.operator
    }

    /// Every process that delivers or did, by slot.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The last process in this slot.
    #[must_use]
    pub fn member(&self, slot: u16) -> Option<&Member> {
        self.members.get(&slot)
    }

    /// The lease in force.
    #[must_use]
    pub fn lease(&self, connector: &str, partition: u16) -> Option<&Lease> {
        self.leases.get(&(connector.to_owned(), partition))
    }

    /// All leases in force.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The checkpoint of the highest lease, and of these the highest offset.
    #[must_use]
    pub fn checkpoint(&self, connector: &str, partition: u16) -> Option<&Checkpoint> {
        self.checkpoints.get(&(connector.to_owned(), partition))
    }

    /// All checkpoints in force.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.values()
    }

    /// The last replay that was asked for.
    #[must_use]
    pub fn replay(&self, connector: &str, partition: u16) -> Option<&ReplayRequested> {
        self.replays.get(&(connector.to_owned(), partition))
    }

    /// The same while nobody has taken it up.
    #[must_use]
    pub fn pending_replay(&self, connector: &str, partition: u16) -> Option<&ReplayRequested> {
        let taken = self.checkpoint(connector, partition).and_then(|c| c.replay).map_or(0, |taken| taken.number);
        self.replay(connector, partition).filter(|request| request.number > taken)
    }

    /// Who paused this connector, when and why; `None` while nobody has.
    #[must_use]
    pub fn pause(&self, connector: &str) -> Option<&Pause> {
        self.pauses.get(connector)
    }

    /// Open dead letters by connector and event id.
    pub fn dead_letters(&self) -> impl Iterator<Item = &Letter> {
        self.letters.values()
    }

    /// One open dead letter.
    #[must_use]
    pub fn dead_letter(&self, connector: &str, event_id: &str) -> Option<&Letter> {
        self.letters.get(&(connector.to_owned(), event_id.to_owned()))
    }

    /// Whether another dead letter with a body of `bytes` bytes fits. Delivery asks before it gives up on an event
    /// and stops when the answer is no; a record that is in the log is never refused.
    ///
    /// # Errors
    /// [`ControlError::Full`].
    pub fn room_for_letter(&self, bytes: usize) -> Result<(), ControlError> {
        // A single body above the bound may still come, alone: it could not be settled otherwise.
        let bytes_after = self.letter_bytes.saturating_add(bytes);
        if self.letters.len() >= Self::LETTERS_MAX || (bytes_after > Self::LETTER_BYTES_MAX && !self.letters.is_empty()) {
            return Err(ControlError::Full { letters: self.letters.len(), bytes: self.letter_bytes });
        }
        Ok(())
    }

    /// How far a backfill job is in the parts of its tables.
    pub fn cursors_of(&self, job: &str) -> impl Iterator<Item = &Cursor> {
        self.cursors.range((job.to_owned(), String::new(), String::new())..).map(|(_, c)| c).take_while(move |c| c.job == job)
    }

    /// Backfill jobs by id.
    pub fn backfills(&self) -> impl Iterator<Item = &BackfillJob> {
        self.backfills.values()
    }

    /// A backfill job.
    #[must_use]
    pub fn backfill(&self, id: &str) -> Option<&BackfillJob> {
        self.backfills.get(id)
    }

    /// All cursors.
    pub fn cursors(&self) -> impl Iterator<Item = &Cursor> {
        self.cursors.values()
    }

    /// The end of a backfill job, if it came.
    #[must_use]
    pub fn load(&self, job: &str) -> Option<&LoadFinished> {
        self.loads.get(job)
    }

    /// The last audit records, oldest first.
    pub fn audit(&self) -> impl Iterator<Item = &Audit> {
        self.audit.iter()
    }

    /// The last layouts of every captured table, by table and position.
    pub fn layouts(&self) -> impl Iterator<Item = &TableLayout> {
        self.layouts.values().flatten()
    }

    /// The layouts of a table that a connector goes on with, oldest decision first.
    pub fn accepted(&self, connector: &str, table: &str) -> impl Iterator<Item = &LayoutAccepted> {
        self.accepted.get(&(connector.to_owned(), table.to_owned())).into_iter().flatten()
    }

    /// The layout that a table had last.
    #[must_use]
    pub fn layout(&self, table: &str) -> Option<&TableLayout> {
        self.layouts.get(table)?.back()
    }

    /// Bytes of record bodies applied so far, to this state and those it was cloned from.
    #[must_use]
    pub fn applied_bytes(&self) -> u64 {
        self.applied_bytes
    }

    /// Bytes of record bodies applied since the last whole snapshot in the log: tells when the next one pays.
    #[must_use]
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// Size of the last whole snapshot in the log; 0 when there was none.
    #[must_use]
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Applies one entry of the control log. `offset` is the entry's own.
    ///
    /// # Errors
    /// [`ControlError::Version`] and [`ControlError::Malformed`]: the log holds something this program cannot read,
    /// and what it would have meant is unknown. Nothing was applied.
    pub fn apply(&mut self, offset: Offset, header: &Header<'_>, body: &[u8]) -> Result<(), ControlError> {
        let record = Record::from_json(body)?;
        self.apply_record(Stored { offset, token: header.token, bytes: body.len(), record })
    }

    /// As [`apply`](Self::apply), of a record that is decoded already.
    ///
    /// # Errors
    /// [`ControlError::Malformed`] when joined pieces are no record.
    pub fn apply_record(&mut self, stored: Stored) -> Result<(), ControlError> {
        let fresh = stored.offset >= self.next;
        if fresh {
            self.next = Offset(stored.offset.0 + 1);
            self.applied_bytes += stored.bytes as u64;
            self.bytes_since_snapshot += stored.bytes as u64;
            self.assemblies.retain(|_, a| stored.offset.0 - a.first.0 <= Self::ASSEMBLY_OFFSETS_MAX);
        }
        self.apply_whole(stored, fresh)
    }

    /// `fresh` is whether the entry was not applied before; only what depends on order asks.
    fn apply_whole(&mut self, stored: Stored, fresh: bool) -> Result<(), ControlError> {
        let Stored { offset, token, bytes, record } = stored;
        // What a fenced-off run wrote late counts for nothing. (A broker drops it; a reader need not rely on that.)
        if record.is_capture_only() && token < self.token() {
            return Ok(());
        }
        match record {
            Record::Session(session) => self.apply_session(session),
            Record::Operator(operator) if operator.token > self.operator => {
                self.operator = operator.token;
                self.assemblies.retain(|writer, _| !writer.ends_with("/operator"));
            }
            Record::Operator(_) => {}
            Record::Member(member) => {
                let sign = |m: &Member| (m.beat, m.left);
                let newer = |held: &Member| {
                    member.lease > held.lease || (member.lease == held.lease && member.nonce == held.nonce && sign(&member) >= sign(held))
                };
                if self.members.get(&member.slot).is_none_or(newer) {
                    self.members.insert(member.slot, member);
                }
            }
            Record::Lease(lease) => {
                let key = (lease.connector.clone(), lease.partition);
                // The first under a number holds it; a second one under the same number lost the race.
                if self.leases.get(&key).is_some_and(|held| lease.released && lease.nonce == held.nonce && lease.lease == held.lease) {
                    self.leases.insert(key, lease);
                } else if self.leases.get(&key).is_none_or(|held| lease.lease > held.lease) {
                    let writer = format!("/delivery/{}/{}", lease.connector, lease.partition);
                    self.assemblies.retain(|of, _| !of.ends_with(&writer));
                    self.leases.insert(key, lease);
                }
            }
            Record::Checkpoint(checkpoint) => {
                let key = (checkpoint.connector.clone(), checkpoint.partition);
                let rank = |c: &Checkpoint| (c.lease, c.offset);
                // An equal rank may carry a fuller ledger.
                if self.checkpoints.get(&key).is_none_or(|held| rank(&checkpoint) >= rank(held)) {
                    self.checkpoints.insert(key, checkpoint);
                }
            }
            Record::DeadLetter(letter) if fresh => self.insert_letter(letter, false),
            Record::DeadLetterSettled(settled) if fresh => self.remove_letter((settled.connector, settled.event_id)),
            Record::RedriveRequested(request) if fresh => self.request_redrive(&request),
            Record::ReplayRequested(request) => {
                let key = (request.connector.clone(), request.partition);
                if self.replays.get(&key).is_none_or(|held| request.number >= held.number) {
                    self.replays.insert(key, request);
                }
            }
            Record::Pause(pause) if fresh && pause.over => {
                self.pauses.remove(&pause.connector);
            }
            // Of two the first says since when and why.
            Record::Pause(pause) if fresh => {
                self.pauses.entry(pause.connector.clone()).or_insert(pause);
            }
            Record::Cursor(cursor) => {
                let key = (cursor.job.clone(), cursor.table.clone(), cursor.part.clone());
                let rank = |c: &Cursor| (c.epoch, c.chunk, c.attempt, c.done);
                if self.cursors.get(&key).is_none_or(|held| rank(&cursor) >= rank(held)) {
                    self.cursors.insert(key, cursor);
                }
            }
            Record::LoadFinished(load) => {
                self.loads.insert(load.job.clone(), load);
            }
            Record::Backfill(job) if fresh => self.apply_backfill(*job),
            Record::Layout(layout) => self.apply_layout(layout),
            Record::LayoutAccepted(accepted) if fresh => self.accept_layout(accepted),
            Record::Released(released) => {
                if released.epoch == self.epoch {
                    self.released = self.released.max(Some(released.upto));
                }
            }
            Record::Epoch(epoch) => self.apply_epoch(&epoch),
            Record::Audit(audit) if fresh => {
                if self.audit.len() == Self::AUDIT_MAX {
                    self.audit.pop_front();
                }
                self.audit.push_back(audit);
            }
            // Whoever has read everything below it learns nothing from a snapshot; replay starts again from the last one.
            Record::Snapshot(snapshot) if fresh => {
                self.last_snapshot = Some(snapshot);
                (self.bytes_since_snapshot, self.snapshot_bytes) = (0, bytes as u64);
            }
            Record::Piece(piece) if fresh => {
                if let Some(whole) = self.join(offset, token, piece)? {
                    self.apply_whole(whole, fresh)?;
                }
            }
            // Order matters for these, so an entry that was applied already is left alone.
            Record::DeadLetter(_)
            | Record::DeadLetterSettled(_)
            | Record::RedriveRequested(_)
            | Record::Pause(_)
            | Record::LayoutAccepted(_)
            | Record::Backfill(_)
            | Record::Audit(_)
            | Record::Snapshot(_)
            | Record::Piece(_) => {}
        }
        Ok(())
    }

    fn apply_epoch(&mut self, begun: &Epoch) {
        if begun.epoch <= self.epoch {
            return;
        }
        self.epoch = begun.epoch;
        self.released = None;
        if !begun.reload {
            for cursor in self.cursors.values_mut() {
                cursor.epoch = begun.epoch;
            }
            for load in self.loads.values_mut() {
                load.epoch = begun.epoch;
            }
            for job in self.backfills.values_mut() {
                job.epoch = begun.epoch;
            }
        }
    }

    fn apply_backfill(&mut self, job: BackfillJob) {
        if matches!(job.state, BackfillState::Done | BackfillState::Cancelled) {
            // Nothing resumes behind them.
            self.cursors.retain(|_, c| c.job != job.job);
        }
        self.backfills.insert(job.id.clone(), job);
        while self.backfills.len() > Self::BACKFILLS_MAX {
            let over = self.backfills.values().filter(|j| j.state.is_over());
            let Some(oldest) = over.min_by_key(|j| j.at_ms).map(|j| (j.id.clone(), j.job.clone())) else { break };
            self.backfills.remove(&oldest.0);
            self.cursors.retain(|_, c| c.job != oldest.1);
        }
    }

    fn apply_session(&mut self, session: Session) {
        if session.epoch > self.epoch {
            (self.epoch, self.released) = (session.epoch, None);
        }
        if session.token > self.token() && session.epoch == self.epoch {
            let moved = self.session.as_ref().is_some_and(|last| last.timeline != session.timeline);
            self.released_before = self.released;
            // What a session finds proves nothing, unless nobody said anything of this timeline before.
            self.released = if moved { session.confirmed } else { self.released.or(session.confirmed) };
        }
        match &self.session {
            Some(held) if held.token > session.token => {}
            Some(held) if held.token == session.token => {
                if held.nonce != session.nonce {
                    self.rival = Some(session);
                }
            }
            _ => {
                self.assemblies.retain(|_, a| a.token == 0 || a.token >= session.token);
                self.session = Some(session);
                self.rival = None;
            }
        }
    }

    /// Adds a layout at its place; one that stands there already comes again when its record was in doubt.
    fn apply_layout(&mut self, layout: TableLayout) {
        let known = self.layouts.entry(layout.table.clone()).or_default();
        let at = known.partition_point(|other| other.since < layout.since);
        if known.get(at).is_some_and(|other| other.since == layout.since && other.layout == layout.layout) {
            return;
        }
        known.insert(at, layout);
        if known.len() > Self::LAYOUTS_MAX {
            known.pop_front();
        }
    }

    fn accept_layout(&mut self, mut accepted: LayoutAccepted) {
        let known = self.accepted.entry((accepted.connector.clone(), accepted.table.clone())).or_default();
        if let Some(at) = known.iter().position(|other| other.layout == accepted.layout) {
            accepted.refuse |= known.remove(at).is_some_and(|other| other.refuse);
        }
        known.push_back(accepted);
        if known.len() > Self::LAYOUTS_MAX {
            known.pop_front();
        }
    }

    fn insert_letter(&mut self, letter: DeadLetter, redrive_requested: bool) {
        let key = (letter.connector.clone(), letter.event_id.clone());
        self.remove_letter(key.clone());
        self.letter_bytes += letter.event.stored_len();
        self.letters.insert(key, Letter { letter: Arc::new(letter), redrive_requested });
    }

    fn remove_letter(&mut self, key: (String, String)) {
        if let Some(gone) = self.letters.remove(&key) {
            self.letter_bytes -= gone.letter.event.stored_len();
        }
    }

    fn request_redrive(&mut self, request: &RedriveRequested) {
        for letter in self.letters.values_mut().filter(|l| request.covers(&l.letter)) {
            letter.redrive_requested = true;
        }
    }

    /// Adds a piece; answers the whole once it has all of them.
    fn join(&mut self, offset: Offset, token: u32, piece: Piece) -> Result<Option<Stored>, ControlError> {
        if piece.index == 0 {
            // A writer writes one whole at a time: what it began before will not be finished.
            let (whole, count) = (piece.whole.clone(), piece.count);
            self.assemblies.insert(piece.writer.clone(), Assembly { whole, count, next: 0, text: String::new(), first: offset, token });
        }
        let Some(open) = self.assemblies.get_mut(&piece.writer) else { return Ok(None) };
        if open.count != piece.count || open.next != piece.index || (piece.index > 0 && open.whole != piece.whole) {
            // A piece of something whose beginning is gone or that was begun anew: never whole.
            return Ok(None);
        }
        open.text.push_str(&piece.text);
        open.next += 1;
        if open.next < open.count {
            return Ok(None);
        }
        let Some(done) = self.assemblies.remove(&piece.writer) else { return Ok(None) };
        if digest(done.text.as_bytes()) != done.whole {
            return Err(ControlError::Malformed("joined pieces differ from what was cut".to_owned()));
        }
        match Record::from_json(done.text.as_bytes())? {
            Record::Piece(_) => Err(ControlError::Malformed("a piece of pieces".to_owned())),
            record => Ok(Some(Stored { offset, token: done.token, bytes: done.text.len(), record })),
        }
    }

    /// Whether two states say the same, however they were read.
    #[cfg(test)]
    pub(super) fn same_facts(&self, other: &State) -> bool {
        let plain = |state: &State| State {
            released_before: None,
            applied_bytes: 0,
            bytes_since_snapshot: 0,
            snapshot_bytes: 0,
            rival: None,
            ..state.clone()
        };
        plain(self) == plain(other)
    }

    /// Takes out the last complete snapshot that was applied.
    pub(super) fn take_snapshot(&mut self) -> Option<Box<Snapshot>> {
        self.last_snapshot.take()
    }

    /// Everything, as one record; `None` while a record in pieces is not whole, since a reader that starts behind its
    /// first piece would never see it.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        if !self.assemblies.is_empty() {
            return None;
        }
        let open = |l: &Letter| OpenLetter { letter: (*l.letter).clone(), redrive_requested: l.redrive_requested };
        Some(Snapshot {
            covers: self.next,
            session: self.session.clone(),
            epoch: self.epoch,
            operator: self.operator,
            leases: self.leases.values().cloned().collect(),
            checkpoints: self.checkpoints.values().cloned().collect(),
            dead_letters: self.letters.values().map(open).collect(),
            cursors: self.cursors.values().cloned().collect(),
            loads: self.loads.values().cloned().collect(),
            backfills: self.backfills.values().cloned().collect(),
            audit: self.audit.iter().cloned().collect(),
            released: self.released,
            members: self.members.values().cloned().collect(),
            layouts: self.layouts().cloned().collect(),
            accepted: self.accepted.values().flatten().cloned().collect(),
            replays: self.replays.values().cloned().collect(),
            pauses: self.pauses.values().cloned().collect(),
            at_ms: now_ms(),
        })
    }

    /// The state that a snapshot holds; reading goes on at `covers`.
    #[must_use]
    pub fn from_snapshot(snapshot: Snapshot) -> State {
        let mut state = State { next: snapshot.covers, epoch: snapshot.epoch, operator: snapshot.operator, ..State::default() };
        state.session = snapshot.session;
        state.released = snapshot.released;
        state.leases = snapshot.leases.into_iter().map(|l| ((l.connector.clone(), l.partition), l)).collect();
        state.checkpoints = snapshot.checkpoints.into_iter().map(|c| ((c.connector.clone(), c.partition), c)).collect();
        state.members = snapshot.members.into_iter().map(|m| (m.slot, m)).collect();
        state.replays = snapshot.replays.into_iter().map(|r| ((r.connector.clone(), r.partition), r)).collect();
        state.pauses = snapshot.pauses.into_iter().map(|p| (p.connector.clone(), p)).collect();
        for open in snapshot.dead_letters {
            state.insert_letter(open.letter, open.redrive_requested);
        }
        state.cursors = snapshot.cursors.into_iter().map(|c| ((c.job.clone(), c.table.clone(), c.part.clone()), c)).collect();
        state.backfills = snapshot.backfills.into_iter().map(|j| (j.id.clone(), j)).collect();
        state.loads = snapshot.loads.into_iter().map(|l| (l.job.clone(), l)).collect();
        state.audit = snapshot.audit.into();
        for layout in snapshot.layouts {
            state.apply_layout(layout);
        }
        for accepted in snapshot.accepted {
            state.accept_layout(accepted);
        }
        state
    }
}
