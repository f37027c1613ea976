//! Writing: one task and one connection per log, on the node that leads it.
//!
//! ```text
//! append ─▶ window ─take─▶ Publish frames ─▶ broker
//!             ▲                                │
//!             └──── watermark ◀── confirms ────┘
//! ```
//!
//! A batch is one sub-entry batch under one publishing id: stored or dropped as a whole. After a lost connection everything
//! unconfirmed is sent again, in order, under the same ids, before anything new; the broker drops and confirms what it already has.
//! A broker that comes back without what it had confirmed, or without what it says it has, ends the writer: the gap is its owner's to fill.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::Names;
use super::chunk::{ENTRY_HEADER, Packer, seal};
use super::connection::{Connection, FrameReader, Halves, SharedBroker, closed, goodbye, heartbeat};
use super::deliver::last;
use super::frame::{Frame, Incoming, code, code_error, key};
use super::patience::Patience;
use crate::config::Compression;
use crate::journal::window::{Handle, Limits, Portion, Window};
use crate::journal::{Batch, JournalError, Log, ProducerName, PublishId, Writer};

/// Unconfirmed bytes: some 30 ms of what one broker takes in, many round trips. The broker joins what is under way into one
/// chunk, so that this also bounds what every reader has to hold at once.
const UNCONFIRMED_BYTES_MAX: usize = 4 << 20;

/// Unconfirmed batches: far below the 50,000 at which the broker stops reading from a connection.
const UNCONFIRMED_BATCHES_MAX: usize = 4_096;

/// Bytes of one Publish frame when several batches wait; a larger batch travels alone. A frame wakes half a dozen of the broker's threads,
/// which costs it more than storing a quarter of this; RabbitMQ's own limit is a megabyte.
const FRAME_BYTES: usize = 1 << 20;

/// Unconfirmed bytes of a log at which frames are filled: no live point of sale has as many under way, a backlog always has.
const BUSY_BYTES: usize = 512 << 10;

/// How long a batch may stay unconfirmed on a connection that is otherwise alive before the connection is given up: longer than a
/// leader election, and a disk alarm that lasts for hours costs one connection a minute.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a Publish frame that are not batches: size, key, version, publisher, count.
const FRAME_HEADER: usize = 4 + 2 + 2 + 1 + 4;

/// Leaves room in a frame for headers and for what a broker may count beside them.
const RESERVE: usize = 4 << 10;

pub(super) struct RabbitWriter {
    shared: Arc<Shared>,
    window: Handle,
    /// Logs whose task runs.
    running: BTreeSet<Log>,
}

struct Shared {
    broker: SharedBroker,
    names: Arc<Names>,
    producer: ProducerName,
    window: Arc<Window>,
    lz4: bool,
}

impl RabbitWriter {
    /// `batch_bytes_max` is the largest batch. Connects when a log is first written to.
    pub(super) fn new(
        broker: SharedBroker,
        names: Arc<Names>,
        producer: ProducerName,
        compression: Compression,
        batch_bytes_max: usize,
    ) -> Result<Self, JournalError> {
        if producer.0.is_empty() || producer.0.len() > 255 {
            return Err(JournalError::Unusable(format!("a producer name has 1 to 255 bytes, not {}", producer.0.len())));
        }
        let limits = Limits { bytes_max: UNCONFIRMED_BYTES_MAX, batches_max: UNCONFIRMED_BATCHES_MAX, batch_bytes_max };
        let window = Window::new(limits);
        let handle = window.handle();
        let lz4 = compression == Compression::Lz4;
        Ok(RabbitWriter { shared: Arc::new(Shared { broker, names, producer, window, lz4 }), window: handle, running: BTreeSet::new() })
    }
}

impl Shared {
    /// Whether the stream ends with a batch of ours when the broker says that it took unconfirmed ones, up to `stored`.
    ///
    /// It can be wrong about that: at a new segment RabbitMQ (4.0.5; `osiris_writer:handle_batch/2`) first writes a snapshot of
    /// the publishers' ids, and those of the entries that it is about to write are among them. Killed in between, it comes back without the
    /// entries, takes them for repeats when they are sent again, and confirms them.
    async fn holds_claimed(&self, log: Log, stream: &str, stored: PublishId) -> Result<bool, JournalError> {
        let claimed = self.window.claimed(log, stored);
        if claimed.is_empty() {
            return Ok(true);
        }
        let (_, last) = last(self.broker.connect_to_leader(stream).await?, stream).await?;
        // After another producer's entry this says no where it might say yes: then what is there is read again, and nothing is lost.
        Ok(last.is_some_and(|last| claimed.contains(&last.bytes)))
    }
}

#[async_trait]
impl Writer for RabbitWriter {
    async fn append(&mut self, log: Log, id: PublishId, batch: Batch) -> Result<(), JournalError> {
        if !self.running.contains(&log) {
            let stream = self.shared.names.stream(log)?.to_owned();
            self.running.insert(log);
            tokio::spawn(run(Arc::clone(&self.shared), log, stream));
        }
        self.window.append(log, id, batch).await
    }

    fn confirmed(&self, log: Log) -> PublishId {
        self.window.confirmed(log)
    }

    async fn progress(&mut self) -> Result<(), JournalError> {
        self.window.progress().await
    }

    fn unconfirmed_bytes(&self) -> usize {
        self.window.unconfirmed_bytes()
    }

    fn unconfirmed_age(&self) -> Option<Duration> {
        self.window.unconfirmed_age()
    }

    async fn flush(&mut self) -> Result<(), JournalError> {
        self.window.flush().await
    }
}

/// Keeps one log written until the writer is dropped or can not go on.
async fn run(shared: Arc<Shared>, log: Log, stream: String) {
    let mut patience = Patience::new();
    let mut gone = shared.window.work();
    while !shared.window.is_closed() {
        let session = async {
            let mut connection = shared.broker.connect_to_leader(&stream).await?;
            connection.declare_publisher(&shared.producer.0, &stream).await?;
            let stored = PublishId(connection.publisher_sequence(&shared.producer.0, &stream).await?);
            let whole = stored >= shared.window.confirmed(log) && shared.holds_claimed(log, &stream, stored).await?;
            Ok((connection, whole))
        };
        // Connecting may take long; a writer that is dropped meanwhile has nothing to say any more.
        let connected = tokio::select! {
            connected = session => connected,
            _ = gone.wait_for(|_| shared.window.is_closed()) => return,
        };
        let ended = match connected {
            Ok((_, false)) => {
                // The broker lost what it had confirmed but not synced, or counts what it never stored. Going on would leave a gap;
                // whoever writes has to look at the tail again, and may still be able to write what is missing.
                warn!(%stream, "the broker has lost entries that it had taken");
                return shared.window.fail(JournalError::Unavailable(format!("stream {stream} has lost entries that it had taken")));
            }
            Ok((connection, true)) => {
                debug!(%stream, broker = %connection.address(), "publishing");
                shared.window.rewind(log);
                let before = shared.window.confirmed(log);
                let ended = publish(&shared, log, connection).await;
                patience.connected(shared.window.confirmed(log) > before);
                ended
            }
            Err(error) => Err(error),
        };
        let Err(error) = ended else { return };
        match patience.judge(error) {
            Ok((delay, error)) => {
                warn!(%stream, error = %error, delay_ms = delay.as_millis(), "journal connection lost; what is unconfirmed will be sent again");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    _ = gone.wait_for(|_| shared.window.is_closed()) => return,
                }
            }
            Err(error) => return shared.window.fail(error),
        }
    }
}

/// Publishes over one connection until it fails, or `Ok` when the writer was dropped.
async fn publish(shared: &Shared, log: Log, connection: Connection) -> Result<(), JournalError> {
    let Halves { reader, mut writer, heartbeat, frame_max, early } = connection.into_halves().await?;
    let mut early = early.into_iter();
    if let Some(error) = early.find_map(|frame| take_in(shared, log, reader.about(), frame).err()) {
        return Err(error);
    }
    let ended = tokio::select! {
        ended = confirms(shared, log, reader, heartbeat) => ended,
        ended = batches(shared, log, &mut writer, heartbeat, frame_max) => ended,
    };
    if ended.is_ok() {
        let _ = timeout(Duration::from_secs(1), async {
            writer.write_all(&goodbye()).await?;
            writer.shutdown().await
        })
        .await;
    }
    ended
}

/// Takes confirms in, for ever.
async fn confirms(shared: &Shared, log: Log, mut reader: FrameReader, heartbeat: Duration) -> Result<(), JournalError> {
    let begun = Instant::now();
    let mut tick = interval(heartbeat / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            frame = reader.next() => {
                let frame = frame?;
                take_in(shared, log, reader.about(), frame)?;
            }
            _ = tick.tick() => {
                reader.check_alive(heartbeat)?;
                if begun.elapsed() > CONFIRM_PATIENCE && shared.window.oldest(log).is_some_and(|age| age > CONFIRM_PATIENCE) {
                    return Err(JournalError::Unavailable(format!("{}: no confirm for {} s", reader.about(), CONFIRM_PATIENCE.as_secs())));
                }
            }
        }
    }
}

fn take_in(shared: &Shared, log: Log, about: &str, frame: Incoming) -> Result<(), JournalError> {
    match frame {
        Incoming::Confirm(ids) => shared.window.confirm(log, ids.into_iter().map(PublishId)),
        Incoming::PublishError(errors) => {
            let stream = shared.names.stream(log)?;
            return match errors.first() {
                // The stream is being moved or deleted, or the broker forgot us: a new connection finds out which.
                Some((
                    _,
                    code::STREAM_NOT_AVAILABLE | code::STREAM_DOES_NOT_EXIST | code::PUBLISHER_DOES_NOT_EXIST | code::INTERNAL_ERROR,
                )) => Err(JournalError::Unavailable(format!("{about}: stream {stream} does not take entries"))),
                Some((_, code)) => Err(code_error(*code, &format!("publishing to stream {stream}"))),
                None => Ok(()),
            };
        }
        Incoming::MetadataUpdate { stream, .. } => {
            return Err(JournalError::Unavailable(format!("{about}: stream {stream} was moved or deleted")));
        }
        Incoming::Close { code, reason, .. } => return Err(closed(about, code, &reason)),
        _ => {}
    }
    Ok(())
}

/// Sends what is handed over, until the writer is dropped.
async fn batches(
    shared: &Shared,
    log: Log,
    writer: &mut (dyn AsyncWrite + Send + Unpin),
    beat: Duration,
    frame_max: u32,
) -> Result<(), JournalError> {
    let broken = |error: std::io::Error| JournalError::Unavailable(format!("publishing: {error}"));
    let portion = portion(frame_max);
    let mut packer = shared.lz4.then(Packer::default);
    let mut work = shared.window.work();
    let mut tick = interval(beat / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        work.mark_unchanged();
        if shared.window.is_closed() {
            return Ok(());
        }
        let batches = shared.window.take(log, portion);
        if batches.is_empty() {
            tokio::select! {
                _ = work.changed() => {}
                _ = tick.tick() => writer.write_all(&heartbeat()).await.map_err(broken)?,
            }
            continue;
        }
        write_frame(writer, frame(batches, packer.as_mut(), frame_max)?).await.map_err(broken)?;
    }
}

/// What one frame has room for.
fn portion(frame_max: u32) -> Portion {
    let bytes_max = if frame_max == 0 { FRAME_BYTES } else { FRAME_BYTES.min(frame_max as usize) };
    Portion { bytes_max: bytes_max - FRAME_HEADER.min(bytes_max), beside: ENTRY_HEADER, busy: BUSY_BYTES }
}

/// A Publish frame in pieces, so that batches are not copied.
fn frame(batches: Vec<(PublishId, Batch)>, mut packer: Option<&mut Packer>, frame_max: u32) -> Result<Vec<Bytes>, JournalError> {
    let count = u32::try_from(batches.len()).expect("the window is bounded");
    let mut pieces = vec![Bytes::new()];
    for (id, batch) in batches {
        let (head, body) = seal(id.0, batch.records, &batch.bytes, packer.as_deref_mut());
        pieces.push(Bytes::copy_from_slice(&head));
        pieces.push(body);
    }
    let len = pieces.iter().map(Bytes::len).sum();
    if frame_max != 0 && FRAME_HEADER + len > frame_max as usize {
        // Batches were cut when more was allowed. They can not be cut again: what is unconfirmed must be sent unchanged.
        return Err(JournalError::Unusable(format!(
            "the broker now allows frames of {frame_max} bytes only; {} are needed",
            FRAME_HEADER + len
        )));
    }
    pieces[0] = Frame::new(key::PUBLISH).u8(0).u32(count).finish(len);
    Ok(pieces)
}

async fn write_frame(writer: &mut (dyn AsyncWrite + Send + Unpin), pieces: Vec<Bytes>) -> std::io::Result<()> {
    let mut pieces = std::collections::VecDeque::from(pieces);
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> = pieces.iter().take(64).map(|piece| IoSlice::new(piece)).collect();
        let mut written = writer.write_vectored(&slices).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while let Some(front) = pieces.front_mut() {
            if front.len() > written {
                front.advance(written);
                break;
            }
            written -= front.len();
            pieces.pop_front();
        }
    }
    writer.flush().await
}

/// The largest batch that fits the frame size, alone in its frame. 0 means no limit.
pub(super) fn batch_bytes_max(frame_max: u32) -> usize {
    /// What brokers refuse to unfold beyond.
    const MAX: usize = 64 << 20;
    const _: () = assert!(RESERVE > FRAME_HEADER + ENTRY_HEADER);
    match frame_max as usize {
        0 => MAX,
        frame_max => frame_max.saturating_sub(RESERVE).min(MAX),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::journal::contract::entries;

    #[test]
    fn a_frame_holds_its_batches_and_says_its_length() {
        let batches = vec![(PublishId(5), entries(0..3, 20)), (PublishId(6), entries(3..4, 30))];
        let frame = frame(batches.clone(), None, 1 << 20).unwrap().concat();
        let len = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
        assert_eq!(len, frame.len() - 4);
        assert_eq!(frame[4..13], [0, 2, 0, 1, 0, 0, 0, 0, 2]);
        assert_eq!(frame[13..21], 5_u64.to_be_bytes());
        assert_eq!(frame[21..24], [0x80, 0, 3]);
        assert_eq!(frame[32..32 + 72], *batches[0].1.bytes);
        assert_eq!(frame[104..112], 6_u64.to_be_bytes());
    }

    /// What callgrind counts of [`framing`].
    #[inline(never)]
    fn counted<T>(work: impl FnOnce() -> T) -> T {
        std::hint::black_box(work())
    }

    /// For `tests/instructions.sh`: a thousand frames of two batches.
    #[test]
    fn framing() {
        let batches = vec![(PublishId(5), entries(0..500, 480)), (PublishId(6), entries(500..1000, 480))];
        let frames = vec![batches; 1_000];
        let pieces = counted(|| frames.into_iter().map(|batches| frame(batches, None, 0).unwrap().len()).sum::<usize>());
        assert_eq!(pieces, 5_000);
    }

    #[test]
    fn a_batch_as_large_as_allowed_fits_its_frame() {
        for frame_max in [8192, 1 << 20, 0] {
            let max = batch_bytes_max(frame_max);
            assert!(frame(vec![(PublishId(1), entries(0..1, max - 4))], None, frame_max).is_ok());
        }
        // Many small ones as well, as a broker that was away for a while finds them.
        for frame_max in [8192, 100_000, 1 << 20, 0] {
            let window = Window::new(Limits { bytes_max: 4 << 20, batches_max: 40_000, batch_bytes_max: batch_bytes_max(frame_max) });
            let handle = window.handle();
            for id in 1..=40_000 {
                assert!(handle.append(Log::Data(0), PublishId(id), entries(id..id + 1, 40)).now_or_never().is_some_and(|r| r.is_ok()));
            }
            let batches = window.take(Log::Data(0), portion(frame_max));
            assert!(batches.len() > 50 && frame(batches, None, frame_max).is_ok(), "{frame_max}");
        }
        let too_large = frame(vec![(PublishId(1), entries(0..1, 8192))], None, 8192);
        assert!(matches!(too_large, Err(JournalError::Unusable(_))));
    }

    #[tokio::test]
    async fn a_frame_is_written_whole_whatever_the_pipe_takes_at_once() {
        let pieces: Vec<Bytes> = (0..200_u8).map(|n| Bytes::from(vec![n; usize::from(n)])).collect();
        let wanted = pieces.concat();
        let (mut near, mut far) = tokio::io::duplex(37);
        let write = async move { write_frame(&mut near, pieces).await };
        let mut got = Vec::new();
        let (written, read) = tokio::join!(write, tokio::io::AsyncReadExt::read_to_end(&mut far, &mut got));
        written.unwrap();
        read.unwrap();
        assert_eq!(got, wanted);
    }
}
