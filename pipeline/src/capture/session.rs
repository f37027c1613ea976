//! One capture session: the loop between the slot's connection and the journal's writer.
//!
//! ```text
//!  open ▸ fill ▸ take every whole message ▸ append ▸ confirm ▸ acknowledge ─┐
//!          ▲                                                                └──▶ again
//! ```
//!
//! Losing the slot's connection ends the session. The server hears from us at least every ten seconds even while the
//! journal takes nothing, because it would otherwise give the slot away.

use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use rand::rngs::StdRng;
use tillstream_schemas::Lsn;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::appender::Ready;
use super::control_log::ControlLog;
use super::intake::{Boundary, Intake};
use super::link::{Link, STATUS_INTERVAL, Shutdown};
use super::opening::{self, Opened, STALL_DEADLINE, fenced};
use super::source::Frame;
use super::stats::{State, Stats};
use super::{CaptureError, CaptureParts, Mode, Stopped};
use crate::journal::{JournalError, Log, Writer};

/// An acknowledgement that moved is sent at most this often: it frees WAL, and costs the server a wake-up.
const ACKNOWLEDGE_INTERVAL: Duration = Duration::from_secs(1);

/// Without a byte for this long we ask the server for an answer, and after twice that the connection is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// A journal that takes nothing for this long is worth a word in `status`.
const STALL_NOTICE: Duration = Duration::from_secs(1);

/// How long a stopping session waits for confirms. SIGTERM has ten seconds in all.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A server that shuts down waits until we have acknowledged everything; what the journal cannot take by then is
/// sent again after the restart.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// A round that took at least this many bytes came out of a backlog: live traffic wakes us for a transaction at a time.
const BEHIND_BYTES: u64 = 32 << 10;

/// While behind, batches fill up before they go out, but never wait longer than this: a partition that gets little
/// would otherwise hold back every acknowledgement.
const BEHIND_LINGER: Duration = Duration::from_millis(50);

/// How often a run that waits to be caught up asks the server where it is.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(200);

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
    let mut streaming = Streaming::new(parts, opened);
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

impl Streaming {
    fn new(parts: &CaptureParts, opened: Opened) -> Self {
        let Opened { link, writer, control, intake } = opened;
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
                    () = sleep_until(started.max(self.link.sent_at) + STALL_NOTICE) => {
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
