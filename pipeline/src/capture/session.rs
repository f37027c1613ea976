//! One capture session, from the first frame to the last acknowledgement. [`opening`](super::opening) is what comes before.
//!
//! ```text
//!  fill ▸ take every whole message ▸ append ▸ confirm ▸ promise ▸ acknowledge ─┐
//!   ▲                                                                          └──▶ again
//! ```
//!
//! Losing the slot's connection ends the session. A journal that takes nothing does not: the server goes on hearing from
//! us and keeps the slot, and its WAL, for us. Only when it wants to shut down meanwhile, the session ends, so that it can.

use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use rand::rngs::StdRng;
use tillstream_schemas::Lsn;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::appender::Ready;
use super::control_log::ControlLog;
use super::intake::{Intake, diverged};
use super::link::{Link, shutting_down, until};
use super::opening::{self, Opened, fenced};
use super::pgoutput;
use super::promise::Promises;
use super::source::Frame;
use super::spans::{self, Spans};
use super::stats::{Pressure, State, Stats};
use super::streamed::{Next, Streamed};
use super::turns::Turns;
use super::{CaptureError, CaptureParts, Mode, Stopped};
use crate::control::{Record, Released, now_ms};
use crate::journal::{Log, PublishId, Writer};

/// An acknowledgement that moved is sent at most this often: it frees WAL, and costs the server a wake-up.
const ACKNOWLEDGE_INTERVAL: Duration = Duration::from_secs(1);

/// A journal that takes nothing for this long is worth a word in `status`.
const STALL_NOTICE: Duration = Duration::from_secs(1);

/// How long a stopping session waits for confirms. SIGTERM has ten seconds in all.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A round that took at least this many bytes came out of a backlog: live traffic wakes us for a transaction at a time.
const BEHIND_BYTES: u64 = 32 << 10;

/// While behind, batches fill up before they go out, but never wait longer than this: a partition that gets little
/// would otherwise hold back every acknowledgement.
const BEHIND_LINGER: Duration = Duration::from_millis(50);

/// Rows of a backfill taken in one round, in bytes: what the stream brings meanwhile waits for these, about half a
/// millisecond.
const HOOK_BYTES: usize = 64 << 10;

/// What a round takes of a streamed transaction that has committed: some milliseconds of encoding, between which the server
/// hears from us and the journal's confirms are taken.
const REPLAY_BYTES: u64 = 1 << 20;

/// How often a run that waits to be caught up asks the server where it is.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(200);

/// Of so many messages one is decoded a second time with a clock beside it, to tell decoding from encoding at no cost for the others.
pub(super) const SAMPLED: u32 = 256;

/// WAL that the server may have beyond what came without being behind: what stands there between two of our looks.
const STARVED_BYTES: u64 = 1 << 20;

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
        opened = Box::pin(opening::open(parts, random)) => opened?,
    };
    parts.stats.enter(State::Streaming);
    let mut streaming = Streaming::new(parts, opened);
    if mode == Mode::UntilCaughtUp {
        streaming.target = Some(*target.get_or_insert(streaming.link.replication.identity().wal_flush));
    }
    let ended = streaming.stream().await;
    let complete = match ended {
        Ok(()) => streaming.finish().await,
        Err(error) => {
            if matches!(error, CaptureError::EpochBegan { .. }) {
                // What belongs to the epoch before ends there, as far as the journal takes it.
                streaming.finish().await;
            }
            *acknowledged = (*acknowledged).max(streaming.link.sent.flush);
            return Err(error);
        }
    };
    *acknowledged = (*acknowledged).max(streaming.link.sent.flush);
    Ok(Stopped { complete, acknowledged: *acknowledged })
}

/// Why the loop wakes up.
enum Wake {
    Stop,
    Confirmed,
    Control(crate::journal::Chunk),
    Hook,
    Filled,
    Ending,
    Due,
}

/// The batch whose way to its confirm is measured.
struct Probe {
    log: Log,
    id: PublishId,
    at: Instant,
    /// Of the newest transaction that had come.
    committed_at_ms: i64,
}

/// A session whose fence is verified.
struct Streaming {
    parts: CaptureParts,
    link: Link,
    writer: Box<dyn Writer>,
    control: ControlLog,
    intake: Intake,
    /// Transactions that come before they commit, where that is asked for.
    streamed: Option<Streamed>,
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
    /// The hook may have more rows to write.
    hook_has_more: bool,
    /// Whether rows of a backfill may be written.
    turns: Turns,
    /// When the oldest byte entered a batch that has not been cut.
    gathering_since: Option<Instant>,
    /// A batch could not be handed over before the stop's deadline: nothing may follow it.
    gave_up: bool,
    promises: Promises,
    /// Messages taken, for the samples of decoding.
    messages: u32,
    probe: Option<Probe>,
    spans: Spans,
    /// Up to when the wait for confirms is counted; `None` while nothing waits.
    unconfirmed_since: Option<Instant>,
    /// The commit whose way was measured last: a batch without a newer one tells nothing of it.
    published_ms: i64,
}

impl Streaming {
    fn new(parts: &CaptureParts, opened: Opened) -> Self {
        let Opened { link, writer, control, intake, promises } = opened;
        let streaming = parts.settings.source.streaming;
        let streamed = streaming.on.then(|| Streamed::new(&std::env::temp_dir(), streaming.spool_max));
        // Whatever an earlier session held is gone.
        parts.stats.spool_bytes.store(0, Relaxed);
        let logs = (0..intake.appender.partitions()).map(Log::Data).chain([Log::Control]).collect();
        Streaming {
            parts: parts.clone(),
            link,
            writer,
            control,
            intake,
            streamed,
            logs,
            target: None,
            heard_at: Instant::now(),
            idle_at: Lsn(0),
            reply: false,
            behind: false,
            hook_has_more: false,
            turns: Turns::default(),
            gathering_since: None,
            gave_up: false,
            promises,
            messages: 0,
            probe: None,
            spans: Spans::default(),
            unconfirmed_since: None,
            published_ms: 0,
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
            self.turns.events(stats.events.load(Relaxed), now);
            if let Some(hook) = self.intake.hook() {
                hook.live(self.turns.is_live(now));
            }
            if self.hook_may_write(now) {
                self.hook_has_more = self.intake.take_from_hook(HOOK_BYTES);
                self.turns.wrote(now, self.intake.appender.required());
            }
            // Behind the hook: a record of its that waits for nothing goes out at once.
            self.confirm(now);
            self.promise(now);
            // A round without bytes, as a confirm makes one, tells nothing.
            if received > 0 {
                self.behind = received >= BEHIND_BYTES;
            }
            stats.behind.store(self.behind, Relaxed);
            // A backfill fills its batches; what the stream brought goes out with what is there.
            let gathers = self.behind || (self.hook_has_more && received == 0 && !self.turns.is_live(now));
            if !gathers || now - *self.gathering_since.get_or_insert(now) >= BEHIND_LINGER {
                self.intake.appender.cut_all();
                self.gathering_since = None;
                self.behind &= received > 0;
            }
            if !gathers {
                self.intake.appender.rest();
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
            let waited = waited.elapsed();
            Stats::time(&stats.receive_wait_ns, waited);
            if self.is_starved() {
                Stats::time(&stats.starved_ns, waited);
            }
            match wake {
                Wake::Stop => return Ok(()),
                Wake::Filled => self.heard_at = Instant::now(),
                Wake::Control(chunk) => {
                    let proven = self.control.take(&chunk)?;
                    self.intake.proven(proven);
                    self.write_snapshot();
                }
                Wake::Hook => self.hook_has_more = true,
                Wake::Confirmed | Wake::Due | Wake::Ending => {}
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
            if self.is_replaying() {
                Stats::time(&stats.encode_ns, began.elapsed());
                received += self.replay().await?;
                began = Instant::now();
                if self.is_replaying() || self.gave_up {
                    break;
                }
            }
            match self.link.replication.next()? {
                None => break,
                Some(Frame::XLogData { data, .. }) => {
                    received += data.len() as u64;
                    match self.streamed.as_mut().map_or(Ok(Next::Direct), |streamed| streamed.take(data))? {
                        Next::Direct => {
                            while let Some(description) = self.streamed.as_mut().and_then(|streamed| streamed.needed(data)) {
                                self.intake.take(&description)?;
                            }
                            if self.messages.is_multiple_of(SAMPLED) {
                                sample_decoding(&stats, data);
                            }
                            self.messages = self.messages.wrapping_add(1);
                            self.intake.take(data)?;
                        }
                        Next::Kept | Next::Replay => continue,
                    }
                }
                Some(Frame::Keepalive { wal_end, reply_requested }) => {
                    Stats::lsn(&stats.server_lsn, wal_end);
                    if !self.intake.appender.in_transaction() {
                        self.intake.appender.reached(wal_end).map_err(diverged)?;
                        self.idle_at = self.idle_at.max(wal_end);
                        self.intake.idle(wal_end);
                    }
                    if reply_requested {
                        self.reply = true;
                        self.link.pinged(wal_end);
                    }
                    continue;
                }
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
            self.link.moved();
        }
        Stats::time(&stats.encode_ns, began.elapsed());
        self.intake.publish_counts();
        if self.intake.appender.in_transaction() {
            stats.transaction_events.fetch_max(self.intake.appender.next_ordinal(), Relaxed);
        }
        if let Some(streamed) = &self.streamed {
            stats.spool_bytes.store(streamed.held(), Relaxed);
        }
        Ok(received)
    }

    /// Whether a streamed transaction that has committed is being taken; the server's next message waits meanwhile.
    fn is_replaying(&self) -> bool {
        self.streamed.as_ref().is_some_and(Streamed::is_replaying)
    }

    /// Takes a round's worth of a streamed transaction that has committed. Answers how many bytes that were.
    async fn replay(&mut self) -> Result<u64, CaptureError> {
        let stats = self.parts.stats.clone();
        let (mut taken, mut began) = (0, Instant::now());
        while taken < REPLAY_BYTES && !self.gave_up {
            let Some(message) = self.streamed.as_mut().map_or(Ok(None), Streamed::next_message)? else { break };
            taken += message.len() as u64;
            if self.messages.is_multiple_of(SAMPLED) {
                sample_decoding(&stats, message);
            }
            self.messages = self.messages.wrapping_add(1);
            self.intake.take(message)?;
            if self.intake.appender.has_ready() {
                Stats::time(&stats.encode_ns, began.elapsed());
                self.append().await?;
                began = Instant::now();
            }
        }
        Stats::time(&stats.encode_ns, began.elapsed());
        Ok(taken)
    }

    /// Whether rows of a backfill may be written now.
    fn hook_may_write(&mut self, now: Instant) -> bool {
        !self.gave_up
            && !self.intake.appender.in_transaction()
            && self.turns.may_write(now, self.writer.unconfirmed_bytes())
            && self.intake.hook().is_some()
    }

    /// Hands finished batches to the journal, in order, and waits as long as it has no room; the server goes on
    /// hearing from us, and the slot stays ours. When the session is asked to end meanwhile and the journal still takes
    /// nothing, it gives up: nothing may be appended after a batch that was not.
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
            let (mut give_up_at, mut noticed) = (None, false);
            let mut span = spans::begin(log, id, &batch);
            let mut append = self.writer.append(log, id, batch);
            loop {
                // Only over an open window, hence not more often than needed.
                let notice =
                    if noticed { self.link.sent_at + self.link.status_interval } else { started.max(self.link.sent_at) + STALL_NOTICE };
                let patience = self.link.deadline().map(|at| at.max(started + STALL_NOTICE));
                tokio::select! {
                    biased;
                    done = &mut append => {
                        done.map_err(|error| fenced(error, token))?;
                        self.spans.handed(log, id, span.take());
                        if self.probe.is_none() && log != Log::Control {
                            let committed_at_ms = stats.committed_at_ms.load(Relaxed);
                            self.probe = Some(Probe { log, id, at: started, committed_at_ms });
                        }
                        break;
                    }
                    () = self.parts.stop.cancelled(), if give_up_at.is_none() => give_up_at = Some(Instant::now() + STOP_DEADLINE),
                    () = until(give_up_at) => {
                        self.gave_up = true;
                        return Ok(());
                    }
                    () = until(patience) => return Err(shutting_down()),
                    () = self.link.end_noticed() => {}
                    () = sleep_until(notice) => {
                        noticed = true;
                        stats.enter(State::WaitingForJournal);
                        self.link.repeat_unread().await?;
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
        self.turns.confirm(now, |log| writer.confirmed(logs[log]));
        self.spans.confirm(|log| writer.confirmed(log));
        let (stats, unconfirmed) = (&self.parts.stats, writer.unconfirmed_bytes());
        stats.unconfirmed_bytes.store(unconfirmed as u64, Relaxed);
        if let Some(since) = self.unconfirmed_since {
            Stats::time(&stats.confirm_wait_ns, now - since);
        }
        self.unconfirmed_since = (unconfirmed > 0).then_some(now);
        if let Some(probe) = self.probe.take_if(|probe| writer.confirmed(probe.log) >= probe.id) {
            stats.confirm_times.observe(now - probe.at);
            if probe.committed_at_ms > self.published_ms {
                self.published_ms = probe.committed_at_ms;
                stats.publish_times.observe(Duration::from_millis(u64::try_from(now_ms() - probe.committed_at_ms).unwrap_or(0)));
            }
        }
    }

    /// Whether the server has more for us than has come.
    fn is_starved(&self) -> bool {
        let server = self.parts.stats.server_lsn.load(Relaxed);
        let reached = self.intake.received().max(self.idle_at).0;
        self.intake.appender.in_transaction() || server.saturating_sub(reached) > STARVED_BYTES
    }

    /// What may be acknowledged now.
    fn acknowledgeable(&mut self, now: Instant, release: bool) -> Lsn {
        if self.intake.appender.is_replaying() {
            return self.link.sent.flush;
        }
        self.intake.progress.acknowledgeable(now, release);
        if self.intake.is_clear() {
            self.intake.progress.idle(self.idle_at);
        }
        let stored = self.intake.progress.acknowledgeable(now, release);
        let (reach, settled) = (self.reach(), self.intake.progress.nothing_in_flight());
        stored.min(self.promises.allowed(now, reach, settled, release)).max(self.link.sent.flush)
    }

    /// What could be acknowledged but for the hold-back: everything up to here is stored, or was never for us.
    fn reach(&self) -> Lsn {
        let confirmed = self.intake.progress.confirmed();
        let idle = self.intake.is_clear() && self.intake.progress.nothing_in_flight();
        if idle { confirmed.max(self.idle_at) } else { confirmed }
    }

    /// Whether nothing is held back any more: the server ends, or its WAL does.
    fn releases(&self) -> bool {
        self.link.ends_since().is_some() || self.parts.stats.pressure() == Pressure::Shed
    }

    /// Writes to the control log what may be acknowledged, when that is due.
    fn promise(&mut self, now: Instant) {
        let watermark = self.writer.confirmed(Log::Control);
        self.promises.confirm(now, watermark);
        let reach = self.reach();
        let ends = self.link.ends_since().is_some() || self.parts.stop.is_cancelled() || self.target.is_some_and(|target| reach >= target);
        if !self.intake.appender.is_replaying() && self.promises.is_due(now, reach, ends) {
            let epoch = self.intake.appender.run().epoch;
            let id = self.intake.append_record(&Record::Released(Released { epoch, upto: reach, at_ms: now_ms() }));
            self.promises.written(reach, id, now);
        }
    }

    /// Tells the server what it may forget, when it is time to.
    async fn acknowledge(&mut self) -> Result<(), CaptureError> {
        let now = Instant::now();
        let ends = self.link.ends_since();
        let flush = self.acknowledgeable(now, self.releases());
        if self.link.deadline().is_some_and(|deadline| now >= deadline) && self.is_late() {
            return Err(shutting_down());
        }
        let silent = now - self.heard_at;
        if silent >= 2 * self.link.silence {
            return Err(CaptureError::Unavailable(format!("the server has been silent for {} seconds", silent.as_secs())));
        }
        let since_status = now - self.link.sent_at;
        let pause = if ends.is_some() { Duration::ZERO } else { ACKNOWLEDGE_INTERVAL };
        let ask =
            silent >= self.link.silence && since_status >= ACKNOWLEDGE_INTERVAL || self.target.is_some() && since_status >= CAUGHT_UP_POLL;
        let moved = flush > self.link.sent.flush && since_status >= pause;
        if self.reply || ask || moved || since_status >= self.link.status_interval {
            self.reply = false;
            self.link.send(self.intake.received().max(self.idle_at), flush, ask).await?;
        }
        Ok(())
    }

    /// Whether a server that shuts down would go on waiting for us.
    fn is_late(&self) -> bool {
        let stuck = self.writer.unconfirmed_age().is_some_and(|age| age >= STALL_NOTICE);
        (self.link.is_pressed() && !self.intake.progress.nothing_in_flight()) || stuck || self.behind
    }

    /// When [`Self::acknowledge`] has something to do although nothing happened.
    fn due(&mut self) -> Instant {
        let (now, sent_at) = (Instant::now(), self.link.sent_at);
        let acknowledgeable = self.acknowledgeable(now, self.releases());
        let silence = self.heard_at + self.link.silence;
        let silence = if sent_at < silence { silence } else { sent_at + ACKNOWLEDGE_INTERVAL };
        let settled = self.intake.progress.nothing_in_flight();
        // While the server sends again what is stored, nothing is promised and nothing released.
        let free = !self.intake.appender.is_replaying();
        let due = [
            Some(sent_at + self.link.status_interval),
            Some(silence),
            (acknowledgeable > self.link.sent.flush).then_some(sent_at + ACKNOWLEDGE_INTERVAL),
            self.intake.progress.next_release().filter(|_| free),
            self.promises.next_due(self.reach()).filter(|_| free),
            self.promises.next_release(settled).filter(|_| free),
            self.target.map(|_| sent_at + CAUGHT_UP_POLL),
            self.link.deadline().map(|at| if at > now { at } else { now + ACKNOWLEDGE_INTERVAL }),
            self.gathering_since.map(|since| since + BEHIND_LINGER),
            self.turns.due(now).filter(|_| self.hook_has_more),
        ];
        due.into_iter().flatten().min().unwrap_or(sent_at)
    }

    fn is_caught_up(&mut self) -> bool {
        let Some(target) = self.target else { return false };
        let stored = self.intake.is_clear() && self.intake.progress.nothing_in_flight() && !self.intake.awaits_records();
        let done = self.intake.hook().is_none_or(|hook| hook.is_done());
        stored && done && self.idle_at.max(self.intake.progress.confirmed()) >= target
    }

    /// Waits for whatever comes first. Bytes from the server come late: the others are rare, and end. A backfill's rows
    /// come last.
    async fn wait(&mut self) -> Result<Wake, CaptureError> {
        let due = self.due();
        let token = self.intake.appender.run().token;
        let between = !self.intake.appender.in_transaction();
        let (more, may_write) = (self.hook_has_more, self.hook_may_write(Instant::now()));
        let replaying = self.is_replaying();
        let mut hook = self.intake.hook().filter(|_| between && !more);
        tokio::select! {
            biased;
            () = self.parts.stop.cancelled() => Ok(Wake::Stop),
            moved = self.writer.progress() => moved.map(|()| Wake::Confirmed).map_err(|error| fenced(error, token)),
            chunk = self.control.next() => chunk.map(Wake::Control),
            () = std::future::poll_fn(|cx| hook.as_mut().map_or(Poll::Pending, |hook| hook.poll(cx))) => Ok(Wake::Hook),
            ended = self.link.filled(self.behind) => ended.map(|filled| if filled { Wake::Filled } else { Wake::Ending }),
            () = std::future::ready(()), if replaying => Ok(Wake::Due),
            () = std::future::ready(()), if more && may_write => Ok(Wake::Hook),
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
            self.link.during(self.writer.flush()).await??;
            self.confirm(Instant::now());
            self.promise(Instant::now());
            self.append().await?;
            self.link.during(self.writer.flush()).await??;
            self.promises.confirm(Instant::now(), self.writer.confirmed(Log::Control));
            Ok::<(), CaptureError>(())
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

/// Decodes a message with a clock beside it.
fn sample_decoding(stats: &Stats, data: &[u8]) {
    let began = Instant::now();
    // Whoever takes it says what is wrong with it.
    let decoded = std::hint::black_box(pgoutput::parse(data)).is_ok();
    if decoded {
        Stats::time(&stats.decode_ns, began.elapsed() * SAMPLED);
    }
}
