//! Everything before the first frame: token, slot, fence, verify.
//!
//! ```text
//!  look at all tails ─▶ token ─▶ identity ─▶ take the slot ─▶ fence: control log, confirmed ─▶ fence: data logs, confirmed
//!        ▲                                                                                                │
//!        └── a rival's entry ◀── read back until the own fence or a rival's ◀─────────────────────────────┘
//!                                        │ own
//!                                        ▼
//!                            is the slot where we left it? ─▶ stream
//! ```
//!
//! The order matters. A token taken *after* the slot could outrank the rightful owner when its process stalls in between;
//! a data fence before the control fence could drop a predecessor's backfill rows whose cursor is then still stored. A
//! confirm proves nothing about a fenced-off writer, so only what is read back counts; and only behind the own fence is
//! it certain what the predecessor promised of the slot.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use tillstream_schemas::entry::BatchBuffer;
use tillstream_schemas::{Header, Kind, Lineage, Lsn, Position};
use tokio::time::timeout;

use super::appender::{Appender, Run, Tail};
use super::control_log::{self, ControlLog};
use super::identity::{Known, Standing};
use super::intake::Intake;
use super::link::Link;
use super::progress::Progress;
use super::promise::Promises;
use super::source::{Looked, Source};
use super::stats::State;
use super::tail::{self, Look, Verified};
use super::watch::{self, Watch};
use super::{CaptureError, CaptureParts, Settings};
use crate::config::{self, HoldBack};
use crate::control::{self, Partitioning, Record, Session, Stamp, now_ms};
use crate::journal::{Batch, Journal, JournalError, Log, ProducerName, PublishId, Writer};

/// How long the own fence may take to come back. A healthy journal needs milliseconds, a broker that elects a new leader
/// some seconds. A run that cannot fence has read nothing yet, so it gives the slot back for whoever can.
const FENCE_DEADLINE: Duration = Duration::from_secs(20);

/// What is held back may take this part of the WAL that may be kept at all.
const HOLD_BACK_PART: u64 = 4;

/// Identifies the history that a slot belongs to.
fn history(system_id: u64, slot: &str) -> u64 {
    let digest = Sha256::digest(format!("{system_id}/{slot}"));
    let (head, _) = digest.split_first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*head)
}

/// The name under which all runs of a pipeline write, for ever: what a broker orders and drops by.
#[must_use]
pub fn producer_name(pipeline: &str, system_id: u64, slot: &str) -> ProducerName {
    ProducerName(format!("tillstream/{pipeline}/{:016x}", history(system_id, slot)))
}

/// What a session streams with, once its fence is verified.
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) writer: Box<dyn Writer>,
    pub(super) control: ControlLog,
    pub(super) intake: Intake,
    pub(super) promises: Promises,
}

/// Everything before the first frame.
pub(super) async fn open(parts: &CaptureParts, random: &mut StdRng) -> Result<Opened, CaptureError> {
    let CaptureParts { source, journal, settings, stats, .. } = parts;
    stats.enter(State::Starting);
    let state = control_log::replay(journal.as_ref()).await?;
    let look = tail::look(journal.as_ref()).await?;
    let token = state.token().max(look.token()) + 1;
    if token > PublishId::TOKEN_MAX {
        return Err(tokens_used_up());
    }

    let replication = source.connect().await?;
    let identity = replication.identity().clone();
    let epoch = state.epoch().max(1);
    let lineage = Lineage(history(identity.system_id, &settings.source.slot));
    let last = state.session().cloned();
    let known = known(settings, epoch, last.as_ref(), look.highest());
    known.check(&identity, lineage)?;
    let partitioning = partitioning(settings, journal.partitions());
    check_partitioning(last.as_ref(), epoch, &partitioning)?;
    let watch = Watch::start(Arc::clone(source), Arc::clone(stats), settings.source.wal_budget);
    let mut link = Link::new(replication, stats.clone(), watch);
    if let Err(error) = link.replication.start().await {
        return Err(name_holder(error, source.as_ref(), last.as_ref()).await);
    }
    let looked = link.during(source.look()).await??;
    let confirmed = confirmed(&looked, &settings.source.slot)?;

    stats.enter(State::Fencing);
    stats.token.store(token, std::sync::atomic::Ordering::Relaxed);
    let session = Session {
        token,
        nonce: format!("{:016x}", random.next_u64()),
        owner: settings.owner.clone(),
        pipeline: settings.pipeline.clone(),
        source: settings.source.name.clone(),
        system_id: identity.system_id,
        timeline: identity.timeline,
        slot: settings.source.slot.clone(),
        epoch,
        lineage,
        partitioning: Some(partitioning),
        confirmed: Some(confirmed),
        at_ms: now_ms(),
    };
    let name = producer_name(&settings.pipeline, identity.system_id, &settings.source.slot);
    let stamp = Stamp { token, writer: name.0.clone(), source: settings.source.name.clone(), lineage };
    let fencing = Box::pin(timeout(FENCE_DEADLINE, fence(journal.as_ref(), &name, state, &look, &session, &stamp)));
    let fenced = link.during(fencing).await?;
    let Fenced { writer, control, tails } = fenced.map_err(|_| {
        CaptureError::Unavailable(format!("the fence of run {token} did not come back from the journal within {FENCE_DEADLINE:?}"))
    })??;
    known.check_slot(&identity, confirmed, control.state().released_before())?;
    tracing::info!(token, epoch, tails = ?tails.iter().map(|t| t.position.to_string()).collect::<Vec<_>>(), %confirmed, "capture run fenced and verified");
    // What the slot has confirmed is what this connection has told.
    link.sent.flush = confirmed;

    let batch_max = journal.batch_bytes_max();
    let run = Run { token, epoch, lineage, source: settings.source.name.clone() };
    let mut appender = Appender::new(run, batch_max, &tails);
    mark(&mut appender, epoch, &tails);
    let hold_back = settings.source.hold_back;
    let ceiling = watch::ceiling(&looked, settings.source.wal_budget);
    let hold_back = HoldBack { bytes: hold_back.bytes.min(ceiling / HOLD_BACK_PART), ..hold_back };
    let progress = Progress::new(tails.len() + 1, hold_back);
    let mut intake = Intake::new(settings, appender, progress, stamp, batch_max, stats.clone());
    intake.set_layouts(control.state().layouts());
    intake.set_hook(parts.hooks.as_ref().and_then(|hooks| hooks.session(control.state(), epoch)));
    Ok(Opened { link, writer, control, intake, promises: Promises::new(hold_back, confirmed) })
}

fn known<'a>(settings: &'a Settings, epoch: u32, last: Option<&'a Session>, stored: Position) -> Known<'a> {
    Known { pipeline: &settings.pipeline, slot: &settings.source.slot, epoch, last, stored }
}

/// What the slot has confirmed. It is ours, so it is there.
fn confirmed(looked: &Looked, slot: &str) -> Result<Lsn, CaptureError> {
    let confirmed = looked.slot.as_ref().and_then(|slot| slot.confirmed);
    confirmed.ok_or_else(|| CaptureError::Unavailable(format!("slot \"{slot}\" does not say what it has confirmed")))
}

/// Adds to "the slot is taken" who has taken it: what the server says of its session, and what its run said of itself.
async fn name_holder(error: CaptureError, source: &dyn Source, last: Option<&Session>) -> CaptureError {
    let CaptureError::SlotActive { slot, pid, holder: None } = error else { return error };
    let seen = source.look().await.ok().and_then(|looked| looked.slot).and_then(|slot| slot.holder);
    let run = last.map(|last| format!("run {} of {}", last.token, last.owner));
    let holder = match (seen, run) {
        (Some(seen), Some(run)) => Some(format!("{seen}; {run} wrote last")),
        (seen, run) => seen.or(run),
    };
    CaptureError::SlotActive { slot, pid, holder }
}

/// How things stand, without taking the slot: what a start would find.
///
/// # Errors
/// Those of the journal. That the server is away is part of the answer.
pub async fn stand(source: &dyn Source, journal: &dyn Journal, settings: &Settings) -> Result<Standing, CaptureError> {
    let state = control_log::replay(journal).await?;
    let look = tail::look(journal).await?;
    let epoch = state.epoch().max(1);
    let server = async {
        let mut replication = source.connect().await?;
        let identity = replication.identity().clone();
        replication.stop().await;
        Ok((identity, source.look().await?))
    };
    let server: Result<_, CaptureError> = server.await;
    let known = known(settings, epoch, state.session(), look.highest());
    let verdict = match &server {
        Ok((identity, looked)) => {
            let lineage = Lineage(history(identity.system_id, &settings.source.slot));
            known.check(identity, lineage).and_then(|()| match looked.slot.as_ref() {
                Some(slot) => slot.confirmed.map_or(Ok(()), |confirmed| known.check_slot(identity, confirmed, state.released())),
                None => Err(super::wire::slot_missing(&settings.source.slot, None)),
            })
        }
        Err(error) => Err(CaptureError::Unavailable(error.to_string())),
    };
    Ok(Standing { epoch, last: state.session().cloned(), stored: look.highest(), released: state.released(), server, verdict })
}

/// How this run spreads rows.
fn partitioning(settings: &Settings, partitions: u16) -> Partitioning {
    let table = |t: &config::SourceTable| (format!("{}.{}", t.schema, t.table), t.partition_by.clone());
    Partitioning { partitions, tables: settings.source.tables.iter().map(table).collect() }
}

/// Refuses to spread rows otherwise than the run before. Tables may come and go.
fn check_partitioning(last: Option<&Session>, epoch: u32, partitioning: &Partitioning) -> Result<(), CaptureError> {
    let last = last.filter(|last| last.epoch >= epoch).and_then(|last| last.partitioning.as_ref());
    let Some(difference) = last.and_then(|last| last.difference(partitioning)) else { return Ok(()) };
    Err(CaptureError::Definite {
        code: "capture.partitioning_changed",
        what: format!("the journal was written with another partitioning: {difference}"),
        why: "what is stored already is known per partition: rows that move to another one could be lost or stored twice".to_owned(),
        fix:
            "put partitions and partition_by back as they were; or, if the change is wanted, begin a new stream (or a new epoch) and load \
              the tables again"
                .to_owned(),
    })
}

fn tokens_used_up() -> CaptureError {
    CaptureError::Definite {
        code: "capture.tokens_used_up",
        what: format!("the journal was written by run {}, the highest there can be", PublishId::TOKEN_MAX),
        why: "a later run could not be told from an earlier one".to_owned(),
        fix: "begin a new stream and load it afresh".to_owned(),
    }
}

/// What fencing yields.
struct Fenced {
    writer: Box<dyn Writer>,
    control: ControlLog,
    tails: Vec<Tail>,
}

/// Fences the control log, then the data logs, and reads all of them back.
async fn fence(
    journal: &dyn Journal,
    name: &ProducerName,
    state: control::State,
    look: &Look,
    session: &Session,
    stamp: &Stamp,
) -> Result<Fenced, CaptureError> {
    let token = session.token;
    let fenced = |error| fenced(error, token);
    let mut writer = journal.writer(name).await?;
    let record = Record::Session(session.clone());
    let id = PublishId::new(token, 0);
    for batch in control::encode(&record, stamp, journal.batch_bytes_max()) {
        writer.append(Log::Control, id, batch).await.map_err(fenced)?;
    }
    writer.flush().await.map_err(fenced)?;
    let body = record.to_json();
    for partition in 0..journal.partitions() {
        let batch = fence_batch(stamp, look.position(partition), &body);
        writer.append(Log::Data(partition), id, batch).await.map_err(fenced)?;
    }
    writer.flush().await.map_err(fenced)?;
    let control = ControlLog::open(journal, state, session).await?;
    let mut tails = Vec::with_capacity(usize::from(journal.partitions()));
    for partition in 0..journal.partitions() {
        match look.verify(journal, partition, token, &body).await? {
            Verified::Own(tail) => tails.push(tail),
            Verified::Rival(token) => return Err(CaptureError::Fenced { token }),
        }
    }
    Ok(Fenced { writer, control, tails })
}

fn fence_batch(stamp: &Stamp, prev: Position, body: &[u8]) -> Batch {
    let mut buffer = BatchBuffer::default();
    let header = Header {
        kind: Kind::Fence,
        whole: Kind::Fence,
        token: stamp.token,
        position: Position::NONE,
        prev,
        lineage: stamp.lineage,
        part: None,
        source: &stamp.source,
    };
    buffer.push(&header, body);
    Batch { bytes: Bytes::copy_from_slice(buffer.as_bytes()), records: buffer.records() }
}

/// Begins every partition with a marker. Unlike the fence it is written by a run that knows the tail, so the next
/// start finds position and transaction in the last entry even if this run writes nothing else.
fn mark(appender: &mut Appender, epoch: u32, tails: &[Tail]) {
    for (partition, tail) in (0..).zip(tails) {
        let body = match &tail.evidence {
            _ if !tail.position.is_none() && tail.position.epoch < epoch => serde_json::json!({ "marker": "epoch", "epoch": epoch }),
            Some(e) => serde_json::json!({ "marker": "resume", "xid": e.xid, "committed_at": e.committed_at }),
            None => serde_json::json!({ "marker": "resume" }),
        };
        let written: Result<(), std::convert::Infallible> = appender.aside(partition, Kind::Marker, Position::NONE, |to| {
            to.extend_from_slice(body.to_string().as_bytes());
            Ok(())
        });
        let Ok(()) = written;
    }
}

pub(super) fn fenced(error: JournalError, token: u32) -> CaptureError {
    match error {
        // A journal that can tell says at once what reading back would show.
        JournalError::Fenced => CaptureError::Fenced { token },
        other => CaptureError::Journal(other),
    }
}
