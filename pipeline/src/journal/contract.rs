//! What every journal promises, as one suite: each implementation runs it, those that need a server from `tests/`.
//!
//! A broken promise is a panic that says which. The suite wants an empty journal of its own and two clients of it, as two
//! processes would have them.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::{Batch, Chunk, From, Journal, JournalError, Log, Offset, ProducerName, PublishId, Reader, Writer};

/// How long anything may take before the suite calls it lost.
const DEADLINE: Duration = Duration::from_secs(60);

/// Two clients of one journal.
pub struct Clients {
    /// The one that mostly writes.
    pub one: Arc<dyn Journal>,
    /// The one that mostly reads.
    pub other: Arc<dyn Journal>,
}

/// Runs the whole suite on an empty journal that was not set up yet.
///
/// # Panics
/// When a promise is broken.
pub async fn suite(clients: &Clients) {
    let Clients { one, other } = clients;
    nothing_is_there_before_set_up(one.as_ref()).await;
    for _ in 0..2 {
        within("set_up", one.set_up()).await.expect("set_up is idempotent");
    }
    assert!(!one.describe().await.expect("a journal describes itself").is_empty());
    for log in logs(one.as_ref()) {
        an_empty_log_has_neither_tail_nor_bounds(other.as_ref(), log).await;
        confirmed_entries_are_read_in_order(clients, log).await;
        ids_that_are_not_above_the_highest_are_not_stored(clients, log).await;
        a_reader_starts_where_it_is_told(clients, log).await;
        a_waiting_reader_gets_new_entries(clients, log).await;
        large_batches_pass(clients, log).await;
        cancelled_calls_lose_nothing(clients, log).await;
        two_producers_do_not_disturb_each_other(clients, log).await;
    }
    one_writer_serves_all_logs(clients).await;
    bad_batches_and_logs_are_refused(one.as_ref()).await;
}

/// Whether a reader learns that retention was faster: writes until the oldest entry is gone. For a journal whose retention is small.
///
/// # Panics
/// When the reader is not told.
pub async fn reading_what_retention_deleted_is_an_error(journal: &dyn Journal) {
    let log = Log::Data(0);
    within("set_up", journal.set_up()).await.expect("set_up");
    let mut slow = within("reader", journal.reader(log, From::First)).await.expect("a reader of an empty log");
    let mut writer = writer(journal, "retention").await;
    let mut count = 0;
    let bounds = within("retention", async {
        loop {
            count += 1;
            writer.append(log, PublishId(count), entries(count..count + 1, 60_000)).await.expect("append");
            writer.flush().await.expect("flush");
            if let Some(bounds) = journal.bounds(log).await.expect("bounds")
                && bounds.first > Offset(0)
            {
                return bounds;
            }
        }
    })
    .await;
    let expired = async {
        let mut reader = journal.reader(log, From::Offset(Offset(0))).await?;
        reader.next().await
    };
    match within("the error", expired).await {
        Err(JournalError::Expired { wanted: Offset(0), first }) => assert!(first >= bounds.first, "{first:?} after {bounds:?}"),
        other => panic!("reading a deleted offset gave {other:?}"),
    }
    // A reader that fell behind either read everything before it was deleted, or learns that it was not; it never jumps.
    let mut next = 1;
    let mut lagging = Ok(());
    while next <= count && lagging.is_ok() {
        lagging = within("the slow reader", slow.next()).await.map(|chunk| {
            for number in numbers(&chunk) {
                assert_eq!(number, next, "a reader jumped over what retention deleted");
                next += 1;
            }
        });
    }
    assert!(matches!(lagging, Ok(()) | Err(JournalError::Expired { .. })), "the slow reader got {lagging:?}");
    let mut reader = within("reader", journal.reader(log, From::First)).await.expect("a reader of what is left");
    let chunk = within("what is left", reader.next()).await.expect("what is left can be read");
    assert!(chunk.first_offset >= bounds.first);
}

async fn nothing_is_there_before_set_up(journal: &dyn Journal) {
    let found = within("a journal that is not there", journal.tail(Log::Data(0))).await;
    assert!(matches!(found, Err(JournalError::Missing(_))), "a journal that was not set up gave {found:?}");
}

async fn an_empty_log_has_neither_tail_nor_bounds(journal: &dyn Journal, log: Log) {
    assert!(within("tail", journal.tail(log)).await.expect("tail of an empty log").is_none());
    assert!(within("bounds", journal.bounds(log)).await.expect("bounds of an empty log").is_none());
}

async fn confirmed_entries_are_read_in_order(clients: &Clients, log: Log) {
    let mut writer = writer(clients.one.as_ref(), "order").await;
    assert_eq!(writer.confirmed(log), PublishId(0));
    let mut next = 0;
    for id in 1..=60 {
        let count = 1 + id * 7 % 23;
        writer.append(log, PublishId(id), entries(next..next + count, 150)).await.expect("append");
        next += count;
    }
    let mut seen = PublishId(0);
    while seen < PublishId(60) {
        within("progress", writer.progress()).await.expect("progress");
        let now = writer.confirmed(log);
        assert!(now >= seen, "the watermark went back from {seen:?} to {now:?}");
        seen = now;
    }
    within("flush", writer.flush()).await.expect("flush");
    assert_eq!((writer.unconfirmed_bytes(), writer.unconfirmed_age()), (0, None));

    let read = read(clients.other.as_ref(), log, From::First, next).await;
    assert!(read.iter().map(|(_, number)| *number).eq(0..next), "entries in another order");
    let bounds = bounds(clients.other.as_ref(), log).await;
    assert_eq!((bounds.first, bounds.last), (read[0].0, read[read.len() - 1].0));
    let tail = within("tail", clients.other.tail(log)).await.expect("tail").expect("a tail");
    assert_eq!(numbers(&tail).last(), Some(&(next - 1)));
    assert_eq!(tail.next_offset().0, bounds.last.0 + 1);
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_millis()).expect("in range");
    assert!((tail.stored_at_ms - now).abs() < 24 * 3_600_000, "stored at {}, now is {now}", tail.stored_at_ms);
}

async fn ids_that_are_not_above_the_highest_are_not_stored(clients: &Clients, log: Log) {
    let journal = clients.one.as_ref();
    let mut first = writer(journal, "ids").await;
    for id in [5, 9] {
        first.append(log, PublishId::new(1, id), entries(id..id + 1, 50)).await.expect("append");
    }
    within("flush", first.flush()).await.expect("flush");
    let start = bounds(journal, log).await.last;
    // A stalled run of the same name comes back, with an id between and with the highest one.
    for id in [7, 9] {
        let mut late = writer(journal, "ids").await;
        let handed = late.append(log, PublishId::new(1, id), entries(100..101, 50)).await;
        match within("flush", late.flush()).await.and(handed) {
            Ok(()) => assert_eq!(late.confirmed(log), PublishId::new(1, id)),
            Err(error) => assert!(matches!(error, JournalError::Fenced), "a batch that is not above the highest gave {error:?}"),
        }
    }
    let mut next = writer(journal, "ids").await;
    next.append(log, PublishId::new(2, 0), entries(200..201, 50)).await.expect("append");
    within("flush", next.flush()).await.expect("a higher token passes");
    let read = read(clients.other.as_ref(), log, From::Offset(Offset(start.0 + 1)), 1).await;
    assert_eq!(read[0].1, 200, "a batch whose id is not above the highest was stored");
}

async fn a_reader_starts_where_it_is_told(clients: &Clients, log: Log) {
    let mut writer = writer(clients.one.as_ref(), "start").await;
    let before = bounds(clients.one.as_ref(), log).await;
    let mut next = within("reader", clients.other.reader(log, From::Next)).await.expect("reader");
    for id in 1..=3 {
        writer.append(log, PublishId(id), entries(id * 100..id * 100 + 100, 80)).await.expect("append");
    }
    within("flush", writer.flush()).await.expect("flush");
    let reader = clients.other.as_ref();

    let all = read_on(next.as_mut(), 300).await;
    assert!(all.iter().map(|(_, number)| *number).eq(100..400), "Next begins with the first entry stored after the call");
    assert!(all[0].0 > before.last);
    for at in [0, 1, 57, 99, 100, 250, 299] {
        let read = read(reader, log, From::Offset(all[at].0), 300 - at as u64).await;
        assert_eq!(read, all[at..], "an offset inside a batch begins with its own entry");
    }
    let first = read(reader, log, From::First, 1).await;
    assert_eq!(first[0].0, before.first);
    let stored_at = within("tail", reader.tail(log)).await.expect("tail").expect("a tail").stored_at_ms;
    let mut reader = within("reader", reader.reader(log, From::Time(stored_at))).await.expect("reader");
    let begin = within("Time", reader.next()).await.expect("a chunk");
    assert!(begin.first_offset <= all[299].0, "Time must not begin after the moment");
}

async fn a_waiting_reader_gets_new_entries(clients: &Clients, log: Log) {
    let mut writer = writer(clients.one.as_ref(), "wake").await;
    let mut readers = Vec::new();
    for journal in [&clients.one, &clients.other] {
        readers.push(within("reader", journal.reader(log, From::Next)).await.expect("reader"));
    }
    for id in 1..=5 {
        for reader in &mut readers {
            assert!(futures_util::FutureExt::now_or_never(reader.next()).is_none(), "an entry that nobody wrote");
        }
        writer.append(log, PublishId(id), entries(id..id + 1, 30)).await.expect("append");
        for reader in &mut readers {
            let read = read_on(reader.as_mut(), 1).await;
            assert_eq!(read[0].1, id);
        }
    }
}

async fn large_batches_pass(clients: &Clients, log: Log) {
    let journal = clients.one.as_ref();
    let max = journal.batch_bytes_max();
    let mut writer = writer(journal, "large").await;
    let mut reader = within("reader", clients.other.reader(log, From::Next)).await.expect("reader");
    let batches = [entries(0..1, max - 4), entries(1..65_536, 8), entries(65_536..65_539, max / 3 - 4), entries(65_539..65_540, max - 4)];
    for (id, batch) in (1..).zip(batches) {
        writer.append(log, PublishId(id), batch).await.expect("append");
    }
    within("flush", writer.flush()).await.expect("flush");
    let read = read_on(reader.as_mut(), 65_540).await;
    assert!(read.iter().map(|(_, number)| *number).eq(0..65_540));
    let tail = within("tail", clients.other.tail(log)).await.expect("tail").expect("a tail");
    assert_eq!(numbers(&tail).last(), Some(&65_539));
}

async fn cancelled_calls_lose_nothing(clients: &Clients, log: Log) {
    let mut writer = writer(clients.one.as_ref(), "cancel").await;
    let mut reader = within("reader", clients.other.reader(log, From::Next)).await.expect("reader");
    let (mut id, mut read) = (0, Vec::new());
    within("cancelled calls", async {
        while read.len() < 400 {
            if id < 400 {
                id += 1;
                writer.append(log, PublishId(id), entries(id..id + 1, 100)).await.expect("append");
            }
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => {}
                chunk = reader.next() => read.extend(numbers(&chunk.expect("a chunk"))),
            }
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => {}
                progress = writer.progress() => progress.expect("progress"),
            }
        }
    })
    .await;
    assert!(read.into_iter().eq(1..=400));
    within("flush", writer.flush()).await.expect("flush");
}

async fn two_producers_do_not_disturb_each_other(clients: &Clients, log: Log) {
    let mut reader = within("reader", clients.other.reader(log, From::Next)).await.expect("reader");
    let mut high = writer(clients.one.as_ref(), "high").await;
    let mut low = writer(clients.other.as_ref(), "low").await;
    for n in 1..=20 {
        high.append(log, PublishId::new(1_000, n), entries(n..n + 1, 40)).await.expect("append");
        low.append(log, PublishId(n), entries(1_000 + n..1_001 + n, 40)).await.expect("append");
    }
    within("flush", high.flush()).await.expect("flush");
    within("flush", low.flush()).await.expect("flush");
    let read = read_on(reader.as_mut(), 40).await;
    let (low, high): (Vec<u64>, Vec<u64>) = read.into_iter().map(|(_, number)| number).partition(|number| *number > 1_000);
    assert!(high.into_iter().eq(1..=20) && low.into_iter().eq(1_001..=1_020));
}

async fn one_writer_serves_all_logs(clients: &Clients) {
    let mut writer = writer(clients.one.as_ref(), "all").await;
    let logs = logs(clients.one.as_ref());
    let mut readers = Vec::new();
    for log in &logs {
        readers.push(within("reader", clients.other.reader(*log, From::Next)).await.expect("reader"));
    }
    // The same ids in every log: each log counts for itself.
    for id in 1..=30 {
        for (n, log) in logs.iter().enumerate() {
            let number = id * 100 + n as u64;
            writer.append(*log, PublishId(id), entries(number..number + 1, 1_000)).await.expect("append");
        }
    }
    within("flush", writer.flush()).await.expect("flush");
    for (n, (log, reader)) in logs.iter().zip(&mut readers).enumerate() {
        assert_eq!(writer.confirmed(*log), PublishId(30));
        let read = read_on(reader.as_mut(), 30).await;
        assert!(read.into_iter().map(|(_, number)| number).eq((1..=30).map(|id| id * 100 + n as u64)), "{log:?}");
    }
}

async fn bad_batches_and_logs_are_refused(journal: &dyn Journal) {
    let log = Log::Data(0);
    let too_large = entries(0..1, journal.batch_bytes_max() - 3);
    let bad = [too_large, Batch { bytes: Bytes::new(), records: 0 }, Batch { bytes: Bytes::from_static(&[0, 0, 0, 9]), records: 1 }];
    let mut writer = writer(journal, "bad").await;
    for batch in bad {
        let answer = writer.append(log, PublishId(1), batch).await;
        assert!(matches!(answer, Err(JournalError::Unusable(_))), "a bad batch gave {answer:?}");
    }
    let beyond = Log::Data(journal.partitions());
    let answer = within("a partition that is not there", journal.tail(beyond)).await;
    assert!(matches!(answer, Err(JournalError::Missing(_))), "a partition that is not there gave {answer:?}");
    let answer = within("a partition that is not there", async {
        let mut writer = journal.writer(&ProducerName("contract/beyond".into())).await?;
        writer.append(beyond, PublishId(1), entries(0..1, 30)).await?;
        writer.flush().await
    })
    .await;
    assert!(matches!(answer, Err(JournalError::Missing(_))), "writing to a partition that is not there gave {answer:?}");
}

/// A batch of numbered entries with `len` bytes each, at least 8; the bytes after the number follow from it.
///
/// # Panics
/// When the entries do not fit a batch.
#[must_use]
pub fn entries(numbers: Range<u64>, len: usize) -> Batch {
    let records = u32::try_from(numbers.end - numbers.start).expect("at most 65,535 entries");
    let mut bytes = Vec::with_capacity(records as usize * (len + 4));
    for number in numbers {
        bytes.extend(u32::try_from(len).expect("an entry has less than 4 GiB").to_be_bytes());
        bytes.extend(number.to_be_bytes());
        bytes.extend((8..len).map(|at| filler(number, at)));
    }
    Batch { bytes: Bytes::from(bytes), records }
}

/// The numbers of the entries in a chunk, after a check that nothing of them was changed.
///
/// # Panics
/// When the chunk's entries are not as [`entries`] made them.
#[must_use]
pub fn numbers(chunk: &Chunk) -> Vec<u64> {
    assert!(chunk.records > 0, "a chunk without entries");
    let (mut out, mut rest) = (Vec::new(), chunk.bytes.as_ref());
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (entry, after) = after.split_at(u32::from_be_bytes(*len) as usize);
        let number = u64::from_be_bytes(*entry.first_chunk::<8>().expect("an entry begins with its number"));
        assert!(entry.iter().enumerate().skip(8).all(|(at, byte)| *byte == filler(number, at)), "entry {number} was changed");
        out.push(number);
        rest = after;
    }
    assert_eq!(out.len(), chunk.records as usize, "the chunk's count differs from its entries");
    out
}

/// Half repeats, half does not, as JSON does for a compressor.
fn filler(number: u64, at: usize) -> u8 {
    if at % 16 < 8 {
        b'x'
    } else {
        (number.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(at as u64 * 0x2545_F491_4F6C_DD1D) >> 56) as u8
    }
}

fn logs(journal: &dyn Journal) -> Vec<Log> {
    (0..journal.partitions()).map(Log::Data).chain([Log::Control]).collect()
}

async fn writer(journal: &dyn Journal, name: &str) -> Box<dyn Writer> {
    within("writer", journal.writer(&ProducerName(format!("contract/{name}")))).await.expect("a writer")
}

async fn bounds(journal: &dyn Journal, log: Log) -> super::Bounds {
    within("bounds", journal.bounds(log)).await.expect("bounds").expect("a log with entries")
}

async fn read(journal: &dyn Journal, log: Log, from: From, count: u64) -> Vec<(Offset, u64)> {
    let mut reader = within("reader", journal.reader(log, from)).await.expect("a reader");
    read_on(reader.as_mut(), count).await
}

/// The next entries with their offsets: rising, and one by one inside a chunk.
async fn read_on(reader: &mut dyn Reader, count: u64) -> Vec<(Offset, u64)> {
    let mut out: Vec<(Offset, u64)> = Vec::new();
    while (out.len() as u64) < count {
        let chunk = within("the next chunk", reader.next()).await.expect("a chunk");
        assert!(out.last().is_none_or(|(last, _)| chunk.first_offset > *last), "offsets must rise");
        out.extend((chunk.first_offset.0..).map(Offset).zip(numbers(&chunk)));
    }
    out.truncate(usize::try_from(count).expect("a count in memory"));
    out
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}
