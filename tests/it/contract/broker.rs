//! A broker that dies, and one whose disk is full.

use tillstream::journal::Writer;

use super::*;

/// Numbers from here on are fences: what a writer writes first when it takes over, so that nobody reads the end before it is one.
const FENCE: u64 = u64::MAX >> 1;

async fn read_numbers(journal: &dyn Journal, count: u64) {
    let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
    let mut next = 0;
    while next < count {
        for number in numbers(&timeout(DEADLINE, reader.next()).await.expect("in time").expect("a chunk")) {
            if number < FENCE {
                assert_eq!(number, next, "lost, doubled or out of order");
                next += 1;
            }
        }
    }
}

/// Goes on behind what the live reader finds before the fence of the writer with this token. A broker that dies again meanwhile costs one more token.
async fn take_over(
    journal: &dyn Journal,
    token: &mut u32,
    fences: &mut tokio::sync::watch::Receiver<(u64, u64)>,
) -> (Box<dyn Writer>, u64) {
    loop {
        *token += 1;
        let fence = FENCE + u64::from(*token);
        let mut writer = journal.writer(&ProducerName("kill9".into())).await.expect("a writer");
        writer.append(LOG, PublishId::new(*token, 0), entries(fence..fence + 1, 100)).await.expect("append");
        if timeout(DEADLINE, writer.flush()).await.expect("in time").is_ok() {
            let seen = timeout(DEADLINE, fences.wait_for(|(seen, _)| *seen == fence)).await.expect("in time").expect("read on");
            let next = seen.1;
            drop(seen);
            return (writer, next);
        }
    }
}

/// A writer that floods the broker, and goes on as its owner would when the broker says that it has lost something: it does at times,
/// killed at a new segment, and here nearly every chunk begins one.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_loses_and_doubles_nothing() {
    let server = RabbitMq::private("journal-kill9").await;
    let config = RabbitJournal { segment_bytes: 1_000_000, ..config(&server.url) };
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut live = journal.reader(LOG, From::First).await.expect("a reader");
    // RabbitMQ writes down late that it coordinates streams at all: killed in the first moments after its first stream was declared, it
    // serves none any more. An orderly restart settles that.
    server.control("restart").await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let (handed_over, appended) = tokio::sync::watch::channel(0);
    let (fenced, mut fences) = tokio::sync::watch::channel((0, 0));
    let writers = Arc::clone(&journal);
    let write = tokio::spawn(async move {
        let mut token = 0;
        let (mut writer, mut next) = take_over(writers.as_ref(), &mut token, &mut fences).await;
        let mut count = 0;
        loop {
            let ended = if *stopped.borrow_and_update() {
                let flushed = timeout(DEADLINE, writer.flush()).await.expect("in time");
                if flushed.is_ok() {
                    return (next, token - 1);
                }
                flushed
            } else {
                count += 1;
                writer.append(LOG, PublishId::new(token, count), entries(next..next + 50, 100)).await
            };
            match ended {
                Ok(()) => {
                    next += 50;
                    handed_over.send_replace(next);
                }
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    (writer, next) = take_over(writers.as_ref(), &mut token, &mut fences).await;
                    count = 0;
                }
            }
        }
    });
    // The reader goes on through every kill. Traffic flows again once it has what was appended after the restart.
    let (progress, mut read) = tokio::sync::watch::channel(0);
    let reading = tokio::spawn(async move {
        let mut next = 0;
        loop {
            for number in numbers(&live.next().await.expect("a chunk")) {
                if number < FENCE {
                    assert_eq!(number, next, "lost, doubled or out of order");
                    next += 1;
                } else {
                    fenced.send_replace((number, next));
                }
            }
            progress.send_replace(next);
        }
    });
    for _ in 0..Level::pick(1, 3, 10) {
        let until = *appended.borrow() + 5_000;
        timeout(DEADLINE, read.wait_for(|read| *read >= until)).await.expect("in time").expect("reading goes on");
        server.control("kill9").await;
        server.control("start").await;
    }
    stop.send_replace(true);
    let (written, lost) = timeout(DEADLINE, write).await.expect("in time").expect("written");
    timeout(DEADLINE, read.wait_for(|read| *read >= written)).await.expect("in time").expect("reading goes on");
    reading.abort();
    read_numbers(journal.as_ref(), written).await;
    println!("{written} entries; the broker had lost what it said to have {lost} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_a_full_disk_is_waited_for() {
    if Level::get() < Level::Full {
        return;
    }
    let server = RabbitMq::private("journal-disk").await;
    let config = config(&server.url);
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut writer = journal.writer(&ProducerName("disk".into())).await.expect("a writer");
    writer.append(LOG, PublishId(1), entries(0..1, 100)).await.expect("append");
    writer.flush().await.expect("flush");
    server.ctl(&["set_disk_free_limit", "900000GB"]).await;
    // The first batch after the alarm may still slip in; then nothing is confirmed for longer than two heartbeats.
    let mut id = 1;
    timeout(DEADLINE, async {
        while writer.unconfirmed_age().is_none_or(|age| age < Duration::from_secs(25)) {
            if writer.unconfirmed_bytes() == 0 {
                id += 1;
                writer.append(LOG, PublishId(id), entries(id - 1..id, 100)).await.expect("append");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the alarm blocks publishing");
    server.ctl(&["set_disk_free_limit", "50MB"]).await;
    timeout(DEADLINE, writer.flush()).await.expect("in time").expect("flush");
    read_numbers(journal.as_ref(), id).await;
}
