//! Reading: one task and one connection per reader, on a node that has a copy of the stream.
//!
//! Owns credits (how many chunks the broker may send ahead), skipping inside the first chunk, and going on at the next offset after a
//! lost connection. Only confirmed entries are delivered by the broker. Whatever retention deleted under the reader is an error.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::chunk;
use super::connection::{Connection, REQUEST_TIMEOUT, SharedBroker, Start, Stats};
use super::frame::{Incoming, code};
use super::patience::Patience;
use crate::journal::{ASK_AGAIN, Chunk, END_PATIENCE, From, JournalError, Offset, Reader};

/// Bytes that may be under way or waiting, beside one chunk that is larger: some round trips of full speed, times every reader of a process.
const AHEAD_BYTES: usize = 4 << 20;

/// The most chunks under way: live chunks are small, and one round trip for each would be slow.
const AHEAD_CHUNKS: usize = 32;

pub(super) struct RabbitReader {
    deliveries: mpsc::Receiver<Result<Delivery, JournalError>>,
    flow: Arc<Flow>,
    ready: VecDeque<Chunk>,
    /// Why reading ended; told again on every later call.
    ended: Option<JournalError>,
}

/// One chunk of the stream.
struct Delivery {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

/// What waits between the task and the reader.
#[derive(Debug, Default)]
struct Flow {
    waiting_bytes: AtomicUsize,
    waiting: AtomicUsize,
    taken: Notify,
}

impl RabbitReader {
    /// Subscribes; resolves once it is clear where reading begins.
    pub(super) async fn open(broker: SharedBroker, stream: String, from: From) -> Result<Self, JournalError> {
        let mut place = match from {
            From::First => Place::First,
            From::Time(ms) => Place::Time(ms),
            From::Offset(offset) => Place::At(offset),
            // The end is asked for, and not left to the broker: after a lost connection reading goes on from there.
            From::Next => Place::At(end(broker.connect_to_leader(&stream).await?, &stream).await?),
        };
        let connection = attach(&broker, &stream, &mut place).await?;
        let flow = Arc::new(Flow::default());
        let (sender, deliveries) = mpsc::channel(AHEAD_CHUNKS + 1);
        let task = Task { broker, stream, flow: Arc::clone(&flow), place, sender: sender.clone() };
        tokio::spawn(async move {
            tokio::select! {
                Err(error) = task.run(connection) => { let _ = sender.send(Err(error)).await; }
                () = sender.closed() => {}
            }
        });
        Ok(RabbitReader { deliveries, flow, ready: VecDeque::new(), ended: None })
    }
}

#[async_trait]
impl Reader for RabbitReader {
    async fn next(&mut self) -> Result<Chunk, JournalError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(chunk);
            }
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            match self.deliveries.recv().await {
                Some(Ok(delivery)) => {
                    self.flow.waiting.fetch_sub(1, Ordering::Relaxed);
                    self.flow.waiting_bytes.fetch_sub(delivery.bytes, Ordering::Relaxed);
                    self.flow.taken.notify_one();
                    self.ready = delivery.chunks;
                }
                Some(Err(error)) => self.ended = Some(error),
                None => return Err(JournalError::Unavailable("the process is ending".into())),
            }
        }
    }
}

/// Where reading goes on.
#[derive(Clone, Copy, Debug)]
enum Place {
    First,
    Time(i64),
    At(Offset),
}

struct Task {
    broker: SharedBroker,
    stream: String,
    flow: Arc<Flow>,
    place: Place,
    sender: mpsc::Sender<Result<Delivery, JournalError>>,
}

impl Task {
    /// Reads for ever; ends with an error only. Its caller drops it when nobody reads any more.
    async fn run(mut self, connection: Connection) -> Result<Infallible, JournalError> {
        let mut patience = Patience::new();
        let mut connected = Ok(connection);
        loop {
            let error = match connected {
                Ok(connection) => {
                    let mut useful = false;
                    let Err(error) = self.read(connection, &mut useful).await;
                    patience.connected(useful);
                    error
                }
                Err(error) => error,
            };
            let (delay, error) = patience.judge(error)?;
            warn!(stream = %self.stream, error = %error, delay_ms = delay.as_millis(), "journal connection lost; reading will go on where it was");
            sleep(delay).await;
            connected = attach(&self.broker, &self.stream, &mut self.place).await;
        }
    }

    /// Reads over one subscription until it fails.
    async fn read(&mut self, mut connection: Connection, useful: &mut bool) -> Result<Infallible, JournalError> {
        debug!(stream = %self.stream, broker = %connection.address(), place = ?self.place, "reading");
        let mut credits = Credits { under_way: 1, largest: 0 };
        loop {
            let more = credits.more(self.flow.waiting.load(Ordering::Relaxed), self.flow.waiting_bytes.load(Ordering::Relaxed));
            if more > 0 {
                connection.credit(more);
            }
            tokio::select! {
                frame = connection.next() => match frame? {
                    Incoming::Deliver(bytes) => {
                        let delivered = chunk::parse(&bytes)?;
                        // What is compressed takes its full size once it waits here.
                        credits.came(delivered.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>().max(bytes.len()));
                        *useful = true;
                        self.take(&mut connection, delivered).await?;
                    }
                    Incoming::MetadataUpdate { code, .. } => {
                        let what = if code == code::STREAM_NOT_AVAILABLE { "is not available here any more" } else { "has changed" };
                        return Err(JournalError::Unavailable(format!("stream {} {what}", self.stream)));
                    }
                    _ => {}
                },
                () = self.flow.taken.notified() => {}
            }
        }
    }

    /// Hands on what was delivered, less what lies before our place.
    async fn take(&mut self, connection: &mut Connection, delivered: chunk::Delivered) -> Result<(), JournalError> {
        let mut chunks = VecDeque::from(delivered.chunks);
        if let Place::At(wanted) = self.place {
            if delivered.first_offset > wanted {
                // The broker spends offsets on its own bookkeeping, and jumps to the oldest chunk when what comes next was deleted. Only its
                // oldest offset tells the two apart.
                not_deleted(connection.stats(&self.stream).await?, wanted)?;
            }
            chunks.retain(|chunk| chunk.next_offset() > wanted);
            if let Some(first) = chunks.pop_front() {
                chunks.push_front(first.skip_to(wanted)?);
            }
        }
        let next = match self.place {
            Place::At(wanted) => delivered.next_offset.max(wanted),
            Place::First | Place::Time(_) => delivered.next_offset,
        };
        self.place = Place::At(next);
        if !chunks.is_empty() {
            let bytes = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
            self.flow.waiting.fetch_add(1, Ordering::Relaxed);
            self.flow.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
            // The receiver is gone: the caller is about to drop this task.
            let _ = self.sender.send(Ok(Delivery { chunks, bytes })).await;
        }
        Ok(())
    }
}

/// How many chunks the broker may send.
#[derive(Debug)]
struct Credits {
    /// Granted and not delivered.
    under_way: usize,
    /// The largest chunk seen lately, bytes.
    largest: usize,
}

impl Credits {
    fn came(&mut self, bytes: usize) {
        self.under_way = self.under_way.saturating_sub(1);
        // Falls slowly, so that one small chunk between large ones does not let many large ones in.
        self.largest = bytes.max(self.largest - self.largest / 8);
    }

    /// How many more to grant, and notes them as granted: as many as fit when each is as large as the largest, and always one when nothing is
    /// under way and less than half is waiting.
    fn more(&mut self, waiting: usize, waiting_bytes: usize) -> u16 {
        let room = AHEAD_BYTES.saturating_sub(waiting_bytes);
        // Before the first chunk nothing is known of their size.
        let fit = room.checked_div(self.largest).unwrap_or(1);
        let fit = if room > AHEAD_BYTES / 2 { fit.max(1) } else { fit };
        let more = fit.min(AHEAD_CHUNKS.saturating_sub(waiting)).saturating_sub(self.under_way);
        self.under_way += more;
        u16::try_from(more).expect("at most AHEAD_CHUNKS")
    }
}

/// Connects and subscribes at `place`.
async fn attach(broker: &SharedBroker, stream: &str, place: &mut Place) -> Result<Connection, JournalError> {
    let mut connection = broker.connect_to_copy(stream).await?;
    let start = match *place {
        Place::First => Start::First,
        Place::Time(ms) => Start::Time(ms),
        Place::At(offset) => {
            check_inside(broker, &mut connection, stream, offset).await?;
            Start::Offset(offset)
        }
    };
    connection.subscribe(stream, start, 1).await?;
    Ok(connection)
}

/// The broker moves an offset beyond the end to the end without a word: what is stored next would be taken for something else.
async fn check_inside(broker: &SharedBroker, connection: &mut Connection, stream: &str, wanted: Offset) -> Result<(), JournalError> {
    let stats = connection.stats(stream).await?;
    not_deleted(stats, wanted)?;
    let near = stats.committed.map_or(0, |id| id.0 + 1);
    if wanted.0 <= near {
        return Ok(());
    }
    // Inside or behind the last chunk; its leader knows.
    let asked = Instant::now();
    loop {
        let end = end(broker.connect_to_leader(stream).await?, stream).await?;
        if wanted <= end {
            return Ok(());
        }
        if asked.elapsed() > END_PATIENCE {
            let why = "it was created anew, or its broker lost what it had not written to disk";
            return Err(JournalError::Damaged(format!("stream {stream} ends at offset {}, before the wanted {}: {why}", end.0, wanted.0)));
        }
        sleep(ASK_AGAIN).await;
    }
}

fn not_deleted(stats: Stats, wanted: Offset) -> Result<(), JournalError> {
    match stats.first {
        Some(first) if first > wanted => Err(JournalError::Expired { wanted, first }),
        _ => Ok(()),
    }
}

/// The offset that the next entry gets at the earliest. `connection` leads to the leader.
pub(super) async fn end(connection: Connection, stream: &str) -> Result<Offset, JournalError> {
    let (stats, last) = last(connection, stream).await?;
    let behind_chunk = stats.committed.map_or(Offset(0), |id| Offset(id.0 + 1));
    Ok(last.map_or(behind_chunk, |chunk| chunk.next_offset().max(behind_chunk)))
}

/// The last confirmed entries of a stream: those of its last batch. `connection` leads to the leader, the only one that knows the end.
pub(super) async fn last(mut connection: Connection, stream: &str) -> Result<(Stats, Option<Chunk>), JournalError> {
    let asked = Instant::now();
    let mut stats = connection.stats(stream).await?;
    while stats.committed.is_none() && stats.first.or(stats.last).is_some() {
        // Its writer has just started and has not found out yet how far its entries are confirmed.
        if asked.elapsed() > END_PATIENCE {
            return Err(JournalError::Unavailable(format!("stream {stream}: none of its entries is confirmed")));
        }
        sleep(ASK_AGAIN).await;
        stats = connection.stats(stream).await?;
    }
    if stats.committed.is_none() {
        connection.close().await;
        return Ok((stats, None));
    }
    connection.subscribe(stream, Start::Last, 1).await?;
    // The broker answers in order: a chunk that can be delivered comes before this answer. When none came, the last chunk is not confirmed yet,
    // or there is none but the broker's own.
    let after = connection.stats(stream).await?;
    if !connection.has_delivery() && after.first == after.committed && after.last == after.committed {
        connection.close().await;
        return Ok((after, None));
    }
    let delivered = timeout(REQUEST_TIMEOUT, async {
        loop {
            if let Incoming::Deliver(bytes) = connection.next().await? {
                return chunk::parse(&bytes);
            }
        }
    });
    let Ok(delivered) = delivered.await else {
        return Err(JournalError::Unavailable(format!("stream {stream}: its last entries are not confirmed")));
    };
    let last = delivered?.chunks.pop();
    connection.close().await;
    Ok((after, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_follow_the_size_of_chunks() {
        let mut credits = Credits { under_way: 1, largest: 0 };
        assert_eq!(credits.more(0, 0), 0, "one is under way");
        credits.came(1_000);
        assert_eq!(credits.more(1, 1_000), 31, "small chunks come in numbers");
        let mut credits = Credits { under_way: 1, largest: 0 };
        credits.came(AHEAD_BYTES);
        assert_eq!(credits.more(1, AHEAD_BYTES), 0, "a large one has to be taken first");
        assert_eq!(credits.more(0, 0), 1);
        credits.came(1_000);
        assert_eq!(credits.more(1, 1_000), 1, "one small chunk does not let many large ones in");
        let mut credits = Credits { under_way: 1, largest: 0 };
        credits.came(100 << 20);
        assert_eq!(credits.more(0, 0), 1, "a chunk above the bound comes alone");
    }
}
