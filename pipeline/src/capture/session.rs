//! One capture session: token, slot, fence, verify; then the loop.
//!
//! ```text
//!  look at all tails ─▶ token ─▶ take the slot ─▶ fence: control log, confirmed ─▶ fence: data logs, confirmed
//!        ▲                                                                                    │
//!        └── a rival's entry ◀── read back until the own fence or a rival's ◀─────────────────┘
//!                                        │ own
//!                                        ▼
//!                      fill ▸ take every whole message ▸ append ▸ confirm ▸ acknowledge ─┐
//!                       ▲                                                                └──▶ again
//! ```
//!
//! The order of the first line matters. A token taken *after* the slot could outrank the rightful owner when its
//! process stalls in between; a data fence before the control fence could drop a predecessor's backfill rows whose
//! cursor is then still stored. A confirm proves nothing about a fenced-off writer, so only what is read back counts.
//!
//! Losing the slot's connection ends the session. The server hears from us at least every ten seconds even while the
//! journal takes nothing, because it would otherwise give the slot away.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use tillstream_schemas::entry::BatchBuffer;
use tillstream_schemas::{Header, Kind, Lineage, Lsn, Position};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::appender::{Appender, Ready, Run, Tail};
use super::control_log::{self, ControlLog};
use super::intake::{Boundary, Intake};
use super::progress::Progress;
use super::source::{Frame, Replication, StandbyStatus, SystemIdentity};
use super::stats::{State, Stats};
use super::tail::{self, Look, Verified};
use super::{CaptureError, CaptureParts, Mode, Settings, Stopped};
use crate::config;
use crate::control::{self, Partitioning, Record, Session, Stamp, now_ms};
use crate::journal::{Batch, Journal, JournalError, Log, ProducerName, PublishId, Writer};

/// The server gives a slot away after `wal_sender_timeout` (60 s by default) without a word from us; a sixth of that
/// leaves room for a slow network and for lower settings.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// An acknowledgement that moved is sent at most this often: it frees WAL, and costs the server a wake-up.
const ACKNOWLEDGE_INTERVAL: Duration = Duration::from_secs(1);

/// Without a byte for this long we ask the server for an answer, and after twice that the connection is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the journal may take nothing, and the own fence not come back. A healthy journal needs milliseconds, a
/// broker that elects a new leader some seconds. Whoever holds the slot keeps the server from shutting down, so beyond
/// that the slot is given back, and taken again once the journal answers.
const STALL_DEADLINE: Duration = Duration::from_secs(20);

/// A journal that takes nothing for this long is worth a word in `status`.
const STALL_NOTICE: Duration = Duration::from_secs(1);

/// How long a stopping session waits for confirms. SIGTERM has ten seconds in all.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A server that shuts down waits until we have acknowledged everything; what the journal cannot take by then is
/// sent again after the restart.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// So many requests for an answer, one right after another at the same position, are what a server does that shuts
/// down; its ordinary ones are half a `wal_sender_timeout` apart.
const SHUTDOWN_PINGS: u32 = 3;
const SHUTDOWN_PING_GAP: Duration = Duration::from_millis(250);

/// A round that took at least this many bytes came out of a backlog: live traffic wakes us for a transaction at a time.
const BEHIND_BYTES: u64 = 32 << 10;

/// While behind, batches fill up before they go out, but never wait longer than this: a partition that gets little
/// would otherwise hold back every acknowledgement.
const BEHIND_LINGER: Duration = Duration::from_millis(50);

/// How often a run that waits to be caught up asks the server where it is.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(200);

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

/// Runs one session. `target` is where a run until caught up ends; the first session that learns it sets it.
pub(super) async fn run(
    parts: &CaptureParts,
    mode: Mode,
    random: &mut StdRng,
    target: &mut Option<Lsn>,
    acknowledged: &mut Lsn,
) -> Result<Stopped, CaptureError> {
    Stats::add(&parts.stats.sessions, 1);
    let opened = tokio::select! {
        biased;
        () = parts.stop.cancelled() => return Ok(Stopped { complete: false, acknowledged: *acknowledged }),
        opened = Box::pin(open(parts, random)) => opened?,
    };
    let mut streaming = opened;
    if mode == Mode::UntilCaughtUp {
        streaming.target = Some(*target.get_or_insert(streaming.link.replication.identity().wal_flush));
    }
    let ended = streaming.stream().await;
    let complete = match ended {
        Ok(()) => streaming.finish().await,
        Err(error) => {
            *acknowledged = (*acknowledged).max(streaming.link.sent.flush);
            return Err(error);
        }
    };
    *acknowledged = (*acknowledged).max(streaming.link.sent.flush);
    Ok(Stopped { complete, acknowledged: *acknowledged })
}

/// Everything before the first frame.
async fn open(parts: &CaptureParts, random: &mut StdRng) -> Result<Streaming, CaptureError> {
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
    let partitioning = partitioning(settings, journal.partitions());
    check_history(settings, state.session(), &identity, epoch, lineage, look.highest())?;
    check_partitioning(state.session(), epoch, &partitioning)?;
    let mut link = Link::new(replication, stats.clone());
    link.replication.start().await?;

    stats.enter(State::Fencing);
    stats.token.store(token, Relaxed);
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
        at_ms: now_ms(),
    };
    let name = producer_name(&settings.pipeline, identity.system_id, &settings.source.slot);
    let stamp = Stamp { token, writer: name.0.clone(), source: settings.source.name.clone(), lineage };
    let fencing = Box::pin(timeout(STALL_DEADLINE, fence(journal.as_ref(), &name, state, &look, &session, &stamp)));
    let fenced = link.during(fencing).await?;
    let Fenced { writer, control, tails } = fenced.map_err(|_| {
        CaptureError::Unavailable(format!("the fence of run {token} did not come back from the journal within {STALL_DEADLINE:?}"))
    })??;
    tracing::info!(token, epoch, tails = ?tails.iter().map(|t| t.position.to_string()).collect::<Vec<_>>(), "capture run fenced and verified");

    let batch_max = journal.batch_bytes_max();
    let run = Run { token, epoch, lineage, source: settings.source.name.clone() };
    let mut appender = Appender::new(run, batch_max, &tails);
    mark(&mut appender, &tails);
    let progress = Progress::new(tails.len() + 1, settings.source.hold_back);
    let mut intake = Intake::new(settings, appender, progress, stamp, batch_max, stats.clone());
    intake.set_hook(parts.hooks.as_ref().and_then(|hooks| hooks.session(control.state(), epoch)));
    stats.enter(State::Streaming);
    Ok(Streaming::new(parts, link, writer, control, intake))
}

/// Compares the server with what the journal holds.
fn check_history(
    settings: &Settings,
    last: Option<&Session>,
    identity: &SystemIdentity,
    epoch: u32,
    lineage: Lineage,
    stored: Position,
) -> Result<(), CaptureError> {
    if let Some(last) = last
        && last.epoch >= epoch
        && last.lineage != lineage
    {
        let (was, is) = if last.system_id == identity.system_id {
            (format!("slot \"{}\"", last.slot), format!("slot \"{}\"", settings.source.slot))
        } else {
            (format!("system {}", last.system_id), format!("system {}", identity.system_id))
        };
        return Err(CaptureError::Definite {
            code: "capture.source_changed",
            what: format!("the journal was written from {was}, the server answers as {is}"),
            why: "positions of two histories cannot be compared: what is skipped as stored could be something else".to_owned(),
            fix: "connect to the former server and slot; or, if the change is wanted, begin a new epoch and load the tables again"
                .to_owned(),
        });
    }
    if stored.epoch == epoch && identity.wal_flush < stored.commit_lsn {
        return Err(CaptureError::Definite {
            code: "capture.source_regressed",
            what: format!(
                "the server's WAL ends at {}, the journal holds a transaction that committed at {}",
                identity.wal_flush, stored.commit_lsn
            ),
            why: "the database was restored to an earlier moment, so later changes will reuse positions that are stored already".to_owned(),
            fix: "if the restore is wanted, begin a new epoch and load the tables again; otherwise connect to the right server".to_owned(),
        });
    }
    Ok(())
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
fn mark(appender: &mut Appender, tails: &[Tail]) {
    for (partition, tail) in (0..).zip(tails) {
        let body = match &tail.evidence {
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

/// The connection that holds the slot, and what the server knows from us.
struct Link {
    replication: Box<dyn Replication>,
    sent: StandbyStatus,
    sent_at: Instant,
    stats: Arc<Stats>,
}

impl Link {
    fn new(replication: Box<dyn Replication>, stats: Arc<Stats>) -> Self {
        Link { replication, sent: StandbyStatus::default(), sent_at: Instant::now(), stats }
    }

    /// Sends a status. What was acknowledged once stays acknowledged.
    async fn send(&mut self, write: Lsn, flush: Lsn, reply_requested: bool) -> Result<(), CaptureError> {
        assert!(flush >= self.sent.flush, "an acknowledgement never goes back");
        self.sent = StandbyStatus { write: write.max(self.sent.write).max(flush), flush, reply_requested };
        self.replication.send_status(self.sent).await?;
        self.sent_at = Instant::now();
        Stats::lsn(&self.stats.acknowledged_lsn, flush);
        Ok(())
    }

    /// Sends the last status again.
    async fn repeat(&mut self) -> Result<(), CaptureError> {
        self.send(self.sent.write, self.sent.flush, false).await
    }

    /// Does something that may take long, without the server missing us meanwhile.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, CaptureError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = sleep_until(self.sent_at + STATUS_INTERVAL) => self.repeat().await?,
            }
        }
    }
}

/// Why the loop wakes up.
enum Wake {
    Stop,
    Confirmed,
    Control(crate::journal::Chunk),
    Hook,
    Filled,
    Due,
}

/// A session whose fence is verified.
struct Streaming {
    parts: CaptureParts,
    link: Link,
    writer: Box<dyn Writer>,
    control: ControlLog,
    intake: Intake,
    /// The logs in the order in which the intake counts them.
    logs: Vec<Log>,
    /// Ends the session once everything up to here is stored.
    target: Option<Lsn>,
    /// When the last byte came.
    heard_at: Instant,
    /// What the server last said between two transactions: everything before it was sent to us.
    idle_at: Lsn,
    /// The server wants an answer at once.
    reply: bool,
    behind: bool,
    /// When the oldest byte entered a batch that has not been cut.
    gathering_since: Option<Instant>,
    /// A batch could not be handed over before the stop's deadline: nothing may follow it.
    gave_up: bool,
    shutdown: Shutdown,
}

/// Whether the server waits for us in order to shut down.
#[derive(Debug, Default)]
struct Shutdown {
    pings: u32,
    at: Lsn,
    last: Option<Instant>,
    since: Option<Instant>,
}

impl Shutdown {
    /// A keepalive came that wants an answer.
    fn ping(&mut self, wal_end: Lsn, now: Instant) {
        let again = wal_end == self.at && self.last.is_some_and(|last| now - last < SHUTDOWN_PING_GAP);
        self.pings = if again { self.pings + 1 } else { 1 };
        (self.at, self.last) = (wal_end, Some(now));
        if self.pings >= SHUTDOWN_PINGS {
            self.since.get_or_insert(now);
        }
    }
}

impl Streaming {
    fn new(parts: &CaptureParts, link: Link, writer: Box<dyn Writer>, control: ControlLog, intake: Intake) -> Self {
        let logs = (0..intake.appender.partitions()).map(Log::Data).chain([Log::Control]).collect();
        Streaming {
            parts: parts.clone(),
            link,
            writer,
            control,
            intake,
            logs,
            target: None,
            heard_at: Instant::now(),
            idle_at: Lsn(0),
            reply: false,
            behind: false,
            gathering_since: None,
            gave_up: false,
            shutdown: Shutdown::default(),
        }
    }

    /// The loop. Answers when the session is asked to end or has reached its target.
    async fn stream(&mut self) -> Result<(), CaptureError> {
        let stats = self.parts.stats.clone();
        self.write_snapshot();
        loop {
            let received = self.take_messages().await?;
            if self.gave_up {
                return Ok(());
            }
            let now = Instant::now();
            self.confirm(now);
            self.behind = received >= BEHIND_BYTES;
            stats.behind.store(self.behind, Relaxed);
            if !self.behind || now - *self.gathering_since.get_or_insert(now) >= BEHIND_LINGER {
                self.intake.appender.cut_all();
                self.gathering_since = None;
            }
            self.append().await?;
            if self.gave_up {
                return Ok(());
            }
            self.acknowledge().await?;
            if self.is_caught_up() {
                return Ok(());
            }
            let waited = Instant::now();
            let wake = self.wait().await?;
            Stats::time(&stats.receive_wait_ns, waited.elapsed());
            match wake {
                Wake::Stop => return Ok(()),
                Wake::Filled => self.heard_at = Instant::now(),
                Wake::Control(chunk) => {
                    let proven = self.control.take(&chunk)?;
                    self.intake.proven(proven);
                    self.write_snapshot();
                }
                Wake::Hook => self.drain_hook().await?,
                Wake::Confirmed | Wake::Due => {}
            }
        }
    }

    fn write_snapshot(&mut self) {
        if let Some(record) = self.control.snapshot() {
            self.intake.append_record(&record);
        }
    }

    /// Takes every whole message out of the connection's buffer. Answers how many bytes of changes that were.
    async fn take_messages(&mut self) -> Result<u64, CaptureError> {
        let stats = self.parts.stats.clone();
        let mut began = Instant::now();
        let mut received = 0;
        loop {
            let boundary = match self.link.replication.next()? {
                None => break,
                Some(Frame::XLogData { data, .. }) => {
                    received += data.len() as u64;
                    self.intake.take(data)?
                }
                Some(Frame::Keepalive { wal_end, reply_requested }) => {
                    Stats::lsn(&stats.server_lsn, wal_end);
                    if !self.intake.appender.in_transaction() {
                        self.idle_at = self.idle_at.max(wal_end);
                    }
                    if reply_requested {
                        self.reply = true;
                        self.shutdown.ping(wal_end, Instant::now());
                    }
                    continue;
                }
            };
            if boundary == Boundary::Between && self.intake.hook().is_some() {
                self.drain_hook().await?;
            }
            if self.intake.appender.has_ready() {
                Stats::time(&stats.encode_ns, began.elapsed());
                self.append().await?;
                began = Instant::now();
            }
            if self.gave_up {
                break;
            }
        }
        if received > 0 {
            self.shutdown = Shutdown::default();
        }
        Stats::time(&stats.encode_ns, began.elapsed());
        self.intake.publish_counts();
        Ok(received)
    }

    /// Takes everything that the hook has to write at this point of the stream.
    async fn drain_hook(&mut self) -> Result<(), CaptureError> {
        while !self.gave_up && self.intake.take_from_hook() {
            self.append().await?;
        }
        Ok(())
    }

    /// Hands finished batches to the journal, in order, and waits as long as it has no room; the server goes on
    /// hearing from us. When the session is asked to end meanwhile and the journal still takes nothing, it gives up:
    /// nothing may be appended after a batch that was not.
    async fn append(&mut self) -> Result<(), CaptureError> {
        if !self.intake.appender.has_ready() || self.gave_up {
            return Ok(());
        }
        let stats = self.parts.stats.clone();
        let token = self.intake.appender.run().token;
        let began = Instant::now();
        while let Some(Ready { log, id, batch }) = self.intake.appender.take_ready() {
            Stats::add(&stats.batches, 1);
            Stats::add(&stats.bytes, batch.bytes.len() as u64);
            let started = Instant::now();
            let mut give_up_at = started + STALL_DEADLINE;
            let mut stopping = false;
            let mut append = self.writer.append(log, id, batch);
            loop {
                tokio::select! {
                    biased;
                    done = &mut append => {
                        done.map_err(|error| fenced(error, token))?;
                        break;
                    }
                    () = self.parts.stop.cancelled(), if !stopping => {
                        stopping = true;
                        give_up_at = Instant::now() + STOP_DEADLINE;
                    }
                    () = sleep_until(give_up_at) => {
                        if stopping {
                            self.gave_up = true;
                            return Ok(());
                        }
                        // The next session asks the journal first and takes the slot only when it answers.
                        return Err(CaptureError::Journal(JournalError::Unavailable(format!("it took nothing for {STALL_DEADLINE:?}"))));
                    }
                    () = sleep_until(self.link.sent_at + STALL_NOTICE) => {
                        stats.enter(State::WaitingForJournal);
                        self.link.repeat().await?;
                    }
                }
            }
        }
        let spent = began.elapsed();
        Stats::time(&stats.publish_wait_ns, spent);
        if spent >= STALL_NOTICE {
            stats.enter(State::Streaming);
            // We did not listen meanwhile.
            self.heard_at = Instant::now();
        }
        Ok(())
    }

    fn confirm(&mut self, now: Instant) {
        let (writer, logs) = (&self.writer, &self.logs);
        self.intake.confirm(now, |log| writer.confirmed(logs[log]));
        self.parts.stats.unconfirmed_bytes.store(writer.unconfirmed_bytes() as u64, Relaxed);
    }

    /// What may be acknowledged now.
    fn acknowledgeable(&mut self, now: Instant, release: bool) -> Lsn {
        self.intake.progress.acknowledgeable(now, release);
        if self.intake.is_clear() {
            self.intake.progress.idle(self.idle_at);
        }
        self.intake.progress.acknowledgeable(now, release)
    }

    /// Tells the server what it may forget, when it is time to.
    async fn acknowledge(&mut self) -> Result<(), CaptureError> {
        let now = Instant::now();
        let ends = self.shutdown.since;
        let flush = self.acknowledgeable(now, ends.is_some());
        if let Some(since) = ends
            && now - since >= SHUTDOWN_DEADLINE
            && !self.intake.progress.nothing_in_flight()
        {
            return Err(CaptureError::Unavailable("the server shuts down, and the journal does not confirm what it waits for".into()));
        }
        let silent = now - self.heard_at;
        if silent >= 2 * SILENCE {
            return Err(CaptureError::Unavailable(format!("the server has been silent for {} seconds", silent.as_secs())));
        }
        let since_status = now - self.link.sent_at;
        let pause = if ends.is_some() { Duration::ZERO } else { ACKNOWLEDGE_INTERVAL };
        let ask = silent >= SILENCE && since_status >= ACKNOWLEDGE_INTERVAL || self.target.is_some() && since_status >= CAUGHT_UP_POLL;
        let moved = flush > self.link.sent.flush && since_status >= pause;
        if self.reply || ask || moved || since_status >= STATUS_INTERVAL {
            self.reply = false;
            self.link.send(self.intake.received().max(self.idle_at), flush, ask).await?;
        }
        Ok(())
    }

    /// When [`Self::acknowledge`] has something to do although nothing happened.
    fn due(&mut self) -> Instant {
        let sent_at = self.link.sent_at;
        let acknowledgeable = self.intake.progress.acknowledgeable(Instant::now(), false);
        let silence = if sent_at < self.heard_at + SILENCE { self.heard_at + SILENCE } else { sent_at + ACKNOWLEDGE_INTERVAL };
        let due = [
            Some(sent_at + STATUS_INTERVAL),
            Some(silence),
            (acknowledgeable > self.link.sent.flush).then_some(sent_at + ACKNOWLEDGE_INTERVAL),
            self.intake.progress.next_release(),
            self.target.map(|_| sent_at + CAUGHT_UP_POLL),
            self.shutdown.since.map(|since| since + SHUTDOWN_DEADLINE),
            self.gathering_since.map(|since| since + BEHIND_LINGER),
        ];
        due.into_iter().flatten().min().unwrap_or(sent_at)
    }

    fn is_caught_up(&mut self) -> bool {
        let Some(target) = self.target else { return false };
        let stored = self.intake.is_clear() && self.intake.progress.nothing_in_flight() && !self.intake.awaits_records();
        let done = self.intake.hook().is_none_or(|hook| hook.is_done());
        stored && done && self.idle_at.max(self.intake.progress.confirmed()) >= target
    }

    /// Waits for whatever comes first. Bytes from the server come last: the others are rare, and end.
    async fn wait(&mut self) -> Result<Wake, CaptureError> {
        let due = self.due();
        let token = self.intake.appender.run().token;
        let between = !self.intake.appender.in_transaction();
        let mut hook = self.intake.hook().filter(|_| between);
        tokio::select! {
            biased;
            () = self.parts.stop.cancelled() => Ok(Wake::Stop),
            moved = self.writer.progress() => moved.map(|()| Wake::Confirmed).map_err(|error| fenced(error, token)),
            chunk = self.control.next() => chunk.map(Wake::Control),
            () = std::future::poll_fn(|cx| hook.as_mut().map_or(Poll::Pending, |hook| hook.poll(cx))) => Ok(Wake::Hook),
            filled = self.link.replication.fill(self.behind) => filled.map(|()| Wake::Filled),
            () = sleep_until(due) => Ok(Wake::Due),
        }
    }

    /// Stores and acknowledges what was read, within a deadline, and gives the slot back. Answers whether everything
    /// handed to the journal was confirmed.
    async fn finish(&mut self) -> bool {
        self.parts.stats.enter(State::Stopping);
        let deadline = Instant::now() + STOP_DEADLINE;
        self.intake.appender.cut_all();
        let stored = timeout_at(deadline, async {
            self.append().await?;
            let flushed = self.link.during(self.writer.flush()).await?;
            flushed.map_err(CaptureError::from)
        })
        .await;
        let complete = matches!(stored, Ok(Ok(()))) && !self.gave_up;
        self.confirm(Instant::now());
        let flush = self.acknowledgeable(Instant::now(), true);
        let write = self.intake.received().max(self.idle_at);
        if flush > self.link.sent.flush && self.link.send(write, flush, false).await.is_err() {
            tracing::debug!("the last acknowledgement was not taken; the next run skips what is stored");
        }
        self.link.replication.stop().await;
        complete
    }
}

fn fenced(error: JournalError, token: u32) -> CaptureError {
    match error {
        // A journal that can tell says at once what reading back would show.
        JournalError::Fenced => CaptureError::Fenced { token },
        other => CaptureError::Journal(other),
    }
}
