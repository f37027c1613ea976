//! The processes that deliver for a pipeline: joins them, tells which of them live, and which partitions are ours.
//!
//! ```text
//!  process A ─ Member (joins, beats, leaves) ─┐                  ┌─▶ Roster of A ─▶ partitions start and end
//!  process B ─ Member ────────────────────────┼─▶ control log ───┤
//!  process C ─ Member ────────────────────────┘                  └─▶ Roster of B …
//! ```
//!
//! A process on the same machine is asked for in `/proc`. One elsewhere is gone when it gave no sign while several of our
//! own went through the log: silence is measured in the log and not by clocks, so that a broker which is away buries
//! nobody. A process that is alone among its kind, or whose companions can all be asked for, beats rarely.
//!
//! Being wrong here costs a handover and nothing else: who may deliver a partition is decided by its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::assignment::{Candidate, Held, assign};
use crate::control::{self, ControlError, Follower, Member, Place, Presence, Record, State, Writer};
use crate::journal::Journal;
use crate::retry::Delays;

/// Between two looks at the others.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two signs of life where somebody needs them.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Between two of them where nobody does: about two megabytes of control log a day.
const BEAT_ALONE_EVERY: Duration = Duration::from_secs(10);
/// Signs of ours that went through the log while another process gave none, until it counts as gone.
const SILENT_BEATS: u64 = 4;
/// Producer names that members take turns in; as many processes can deliver for one pipeline.
const SLOTS: u16 = 64;
/// A process that ends is given this long to say so.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Who delivers what, as this process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roster {
    /// Names this process; empty until it has joined.
    pub(super) me: String,
    /// The processes that live.
    pub(super) live: BTreeSet<String>,
    /// By connector: the partitions that this process is to deliver.
    pub(super) mine: BTreeMap<String, BTreeSet<u16>>,
}

/// What joining needs.
pub(super) struct Membership {
    pub(super) journal: Arc<dyn Journal>,
    pub(super) pipeline: String,
    pub(super) source: String,
    pub(super) owner: String,
    pub(super) connectors: Vec<String>,
    pub(super) roster: watch::Sender<Roster>,
    pub(super) stop: CancellationToken,
}

impl Membership {
    /// Stays a member until stopped; what fails is tried again, while the roster stands as it was.
    pub(super) async fn run(self) {
        let presence = Presence::begin();
        let mut delays = Delays::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let began = Instant::now();
            match self.session(presence.nonce()).await {
                Ok(()) => return,
                // Another process took the slot: a matter of joining again.
                Err(ControlError::Rival { .. }) => {}
                Err(error) => tracing::warn!(%error, "the other processes cannot be seen"),
            }
            if began.elapsed() > Duration::from_secs(30) {
                delays.reset();
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(delays.next_delay()) => {}
            }
        }
    }

    async fn session(&self, nonce: &str) -> Result<(), ControlError> {
        let (follower, following) = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            started = Follower::start(self.journal.clone()) => started?,
        };
        tokio::pin!(following);
        let stay = self.stay(nonce, follower);
        tokio::select! {
            ended = &mut following => ended,
            stayed = stay => stayed,
        }
    }

    async fn stay(&self, nonce: &str, mut follower: Follower) -> Result<(), ControlError> {
        let here = Place::here();
        let mut others = Others { here: here.clone(), seen: BTreeMap::new() };
        let slot = free_slot(&follower.state(), here.as_ref());
        let make = |lease| Member {
            slot,
            lease,
            nonce: nonce.to_owned(),
            beat: 1,
            left: false,
            owner: self.owner.clone(),
            place: here.clone(),
            connectors: self.connectors.clone(),
            at_ms: control::now_ms(),
        };
        let state = follower.state();
        let joining = Writer::take_member(self.journal.clone(), &self.pipeline, &self.source, &state, slot, make);
        let (mut writer, mut me) = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            joined = joining => joined?,
        };
        tracing::info!(slot, "joined the processes that deliver");
        let mut beaten = Instant::now();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    (me.left, me.at_ms) = (true, control::now_ms());
                    // Whoever is not told finds out.
                    let _ = tokio::time::timeout(LEAVE_WITHIN, writer.store(&Record::Member(me))).await;
                    return Ok(());
                }
                state = follower.changed() => if state.is_none() { return Ok(()) },
                _ = tick.tick() => {}
            }
            let state = follower.state();
            match state.member(slot) {
                Some(held) if held.lease > me.lease => {
                    return Err(ControlError::Rival { name: control::member_producer(&self.pipeline, slot).0, lease: held.lease });
                }
                Some(held) if held.lease == me.lease => {}
                // Our own announcement is on its way.
                Some(_) | None => continue,
            }
            let gone = others.look(&state, &me);
            self.publish(&state, &me, &gone);
            // One of those that live says what all of them see.
            let first = state.members().filter(|m| !m.left && !gone.contains(&m.nonce)).map(|m| m.slot).min() == Some(slot);
            for dead in state.members().filter(|m| first && !m.left && gone.contains(&m.nonce)) {
                tracing::info!(owner = dead.owner, "a process that delivered is gone");
                writer.append(&Record::Member(Member { left: true, at_ms: control::now_ms(), ..dead.clone() })).await?;
            }
            let every = if others.need_signs(&state, &me) { BEAT_EVERY } else { BEAT_ALONE_EVERY };
            // Somebody took us for gone.
            let buried = state.member(slot).is_some_and(|m| m.left);
            if beaten.elapsed() >= every || buried {
                beaten = Instant::now();
                (me.beat, me.at_ms) = (me.beat + 1, control::now_ms());
                let sign = Record::Member(me.clone());
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    stored = writer.store(&sign) => stored?,
                }
            }
        }
    }

    fn publish(&self, state: &State, me: &Member, gone: &BTreeSet<String>) {
        let live: Vec<&Member> = state.members().filter(|m| m.nonce == me.nonce || (!m.left && !gone.contains(&m.nonce))).collect();
        let mut named = BTreeSet::new();
        // A process that joined again under another slot stands there twice for a while.
        let candidates: Vec<Candidate<'_>> = live
            .iter()
            .filter(|m| named.insert(m.nonce.as_str()))
            .map(|m| Candidate { nonce: &m.nonce, connectors: &m.connectors })
            .collect();
        let names: BTreeSet<&str> = live.iter().flat_map(|m| m.connectors.iter().map(String::as_str)).collect();
        let holder = |connector: &str, partition| {
            let lease = state.lease(connector, partition).filter(|l| !l.released && named.contains(l.member.as_str()))?;
            Some(lease.member.as_str())
        };
        let partitions = self.journal.partitions();
        let held: Vec<Held<'_>> = names
            .iter()
            .map(|connector| Held { connector, holders: (0..partitions).map(|partition| holder(connector, partition)).collect() })
            .collect();
        let assigned = assign(&held, &candidates);
        let mut mine: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
        for (connector, processes) in names.iter().zip(assigned) {
            let ours = (0..partitions).zip(processes).filter(|(_, p)| *p == Some(me.nonce.as_str())).map(|(partition, _)| partition);
            mine.insert((*connector).to_owned(), ours.collect());
        }
        let live = candidates.iter().map(|c| c.nonce.to_owned()).collect();
        let roster = Roster { me: me.nonce.clone(), live, mine };
        self.roster.send_if_modified(|held| {
            let changed = *held != roster;
            *held = roster;
            changed
        });
    }
}

/// The first slot that nobody holds, as far as can be told at once.
fn free_slot(state: &State, here: Option<&Place>) -> u16 {
    let is_free =
        |slot: &u16| state.member(*slot).is_none_or(|m| m.left || m.place.as_ref().and_then(|p| p.lives(here, &m.nonce)) == Some(false));
    // With all of them taken, the one that gave no sign for the longest time.
    let quietest = || state.members().min_by_key(|m| m.at_ms).map_or(0, |m| m.slot);
    (0..SLOTS).find(is_free).unwrap_or_else(quietest)
}

/// What was seen of the other processes.
struct Others {
    here: Option<Place>,
    /// By slot: its last sign, and how many of ours had gone through the log by then.
    seen: BTreeMap<u16, ((u32, u64), u64)>,
}

impl Others {
    /// Those that are gone though they did not leave.
    fn look(&mut self, state: &State, me: &Member) -> BTreeSet<String> {
        let ours = state.member(me.slot).map_or(0, |m| m.beat);
        let mut gone = BTreeSet::new();
        for other in state.members().filter(|m| m.nonce != me.nonce && !m.left) {
            let sign = (other.lease, other.beat);
            let seen = self.seen.entry(other.slot).or_insert((sign, ours));
            if seen.0 != sign {
                *seen = (sign, ours);
            }
            let lives = other.place.as_ref().and_then(|place| place.lives(self.here.as_ref(), &other.nonce));
            if !lives.unwrap_or(ours.saturating_sub(seen.1) < SILENT_BEATS) {
                gone.insert(other.nonce.clone());
            }
        }
        gone
    }

    /// Whether somebody needs our signs of life: a process on another machine, or one that we listen for.
    fn need_signs(&self, state: &State, me: &Member) -> bool {
        let told = |m: &Member| m.place.as_ref().and_then(|place| place.lives(self.here.as_ref(), &m.nonce)).is_some();
        state.members().any(|m| m.nonce != me.nonce && !m.left && !told(m))
    }
}
