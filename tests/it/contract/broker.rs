//! A broker that dies, and one whose disk is full.

use super::*;

async fn read_numbers(journal: &dyn Journal, count: u64) {
    let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
    let mut next = 0;
    while next < count {
        for number in numbers(&timeout(DEADLINE, reader.next()).await.expect("in time").expect("a chunk")) {
            assert_eq!(number, next, "lost, doubled or out of order");
            next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_loses_and_doubles_nothing() {
    let server = RabbitMq::private("journal-kill9").await;
    let config = config(&server.url);
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut live = journal.reader(LOG, From::First).await.expect("a reader");
    // RabbitMQ writes down late that it coordinates streams at all: killed in the first moments after its first stream was declared, it
    // serves none any more. An orderly restart settles that.
    server.control("restart").await;
    let mut writer = journal.writer(&ProducerName("kill9".into())).await.expect("a writer");
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let (handed_over, appended) = tokio::sync::watch::channel(0);
    let write = tokio::spawn(async move {
        let (mut id, mut next) = (0, 0);
        while !*stopped.borrow_and_update() {
            id += 1;
            writer.append(LOG, PublishId(id), entries(next..next + 50, 100)).await.expect("append");
            next += 50;
            handed_over.send_replace(next);
        }
        timeout(DEADLINE, writer.flush()).await.expect("in time").expect("flush");
        next
    });
    // The reader goes on through every kill. Traffic flows again once it has what was appended after the restart.
    let mut read = 0;
    for kill in 0..Level::pick(1, 3, 10) {
        let until = *appended.borrow() + 5_000;
        while read < until {
            for number in numbers(&timeout(DEADLINE, live.next()).await.expect("in time").expect("a chunk")) {
                assert_eq!(number, read, "lost, doubled or out of order after {kill} kills");
                read += 1;
            }
        }
        server.control("kill9").await;
        server.control("start").await;
    }
    stop.send_replace(true);
    let written = timeout(DEADLINE, write).await.expect("in time").expect("written");
    while read < written {
        for number in numbers(&timeout(DEADLINE, live.next()).await.expect("in time").expect("a chunk")) {
            assert_eq!(number, read, "lost, doubled or out of order");
            read += 1;
        }
    }
    read_numbers(journal.as_ref(), written).await;
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
