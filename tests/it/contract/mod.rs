//! The journal contract suite on RabbitMQ, and what a broker and a network can do to it. The local journal runs the suite beside its code.

mod broker;
mod speed;
mod tls;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rabbitmq_stream_client::{Client, ClientOptions};
use tillstream::config::{self, Compression, RabbitJournal, Retention};
use tillstream::journal::contract::{self, Clients, entries, numbers};
use tillstream::journal::{From, Journal, JournalError, Log, Offset, ProducerName, PublishId, open};
use tokio::time::timeout;

use crate::harness::{Level, Proxy, RabbitMq};

const LOG: Log = Log::Data(0);
const DEADLINE: Duration = Duration::from_secs(90);

/// A configuration for streams of its own.
fn config(url: &str) -> RabbitJournal {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    RabbitJournal {
        urls: vec![url.into()],
        stream: format!("contract-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        partitions: NonZeroU16::MIN,
        replicas: None,
        segment_bytes: 50_000_000,
        retention: Retention::default(),
        frame_max: 1 << 20,
        compression: Compression::None,
        tls_ca: None,
    }
}

fn journal(config: &RabbitJournal) -> Arc<dyn Journal> {
    open(&config::Journal::Rabbitmq(config.clone()), "tillstream/contract").expect("a good configuration")
}

fn host_of(url: &str) -> &str {
    url.rsplit('@').next().expect("a URL with a user")
}

/// Deletes streams, by a client that is not ours.
async fn delete(url: &str, config: &RabbitJournal) {
    let (host, port) = host_of(url).split_once(':').expect("host:port");
    let options = ClientOptions::builder().host(host).port(port.parse().expect("a port")).build();
    let client = Client::connect(options).await.expect("the broker is there");
    if config.partitions.get() > 1 {
        client.delete_super_stream(&config.stream).await.expect("deleted");
    } else {
        client.delete_stream(&config.stream).await.expect("deleted");
    }
    client.delete_stream(&format!("{}.control", config.stream)).await.expect("deleted");
    client.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_passes_the_contract_with_one_partition_and_with_three() {
    let url = &RabbitMq::shared().await.url;
    let all = [(1, Compression::None), (3, Compression::Lz4), (3, Compression::None), (1, Compression::Lz4)];
    for (partitions, compression) in all.into_iter().take(Level::pick(2, 4, 4)) {
        let config = RabbitJournal { partitions: NonZeroU16::new(partitions).expect("not zero"), compression, ..config(url) };
        contract::suite(&Clients { one: journal(&config), other: journal(&config) }).await;
        delete(url, &config).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_tells_a_reader_what_retention_deleted() {
    let url = &RabbitMq::shared().await.url;
    let retention = Retention { age: None, bytes: Some(400_000) };
    let config = RabbitJournal { segment_bytes: 150_000, retention, ..config(url) };
    contract::reading_what_retention_deleted_is_an_error(journal(&config).as_ref()).await;
    delete(url, &config).await;
}

/// Writes and reads through a proxy while it cuts connections every few batches: nothing lost, nothing twice, in order.
#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_nothing_and_double_nothing() {
    let url = &RabbitMq::shared().await.url;
    for compression in [Compression::None, Compression::Lz4] {
        let proxy = Arc::new(Proxy::start(host_of(url)).await);
        let config = RabbitJournal { compression, ..config(&format!("rabbitmq-stream://guest:guest@{}", proxy.address())) };
        let journal = journal(&config);
        journal.set_up().await.expect("set-up");
        let cuts = Level::pick(10, 40, 200);
        let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
        let mut writer = journal.writer(&ProducerName("cut".into())).await.expect("a writer");
        let cutting = Arc::clone(&proxy);
        let write = tokio::spawn(async move {
            let (mut id, mut next) = (0, 0);
            for cut in 0..cuts {
                // Cut when this many bytes more have passed: in the middle of handshakes, batches, confirms and deliveries.
                let until = cutting.bytes() + 1_000 + cut * 7_919 % 400_000;
                while cutting.bytes() < until {
                    id += 1;
                    let count = 1 + id * 31 % 200;
                    writer.append(LOG, PublishId(id), entries(next..next + count, 100)).await.expect("append");
                    next += count;
                }
                cutting.cut();
            }
            writer.flush().await.expect("flush");
            assert_eq!(writer.confirmed(LOG), PublishId(id));
            next
        });
        let read = tokio::spawn(async move {
            let mut read = 0;
            loop {
                match timeout(Duration::from_secs(20), reader.next()).await {
                    Ok(chunk) => {
                        for number in numbers(&chunk.expect("a chunk")) {
                            assert_eq!(number, read, "lost, doubled or out of order");
                            read += 1;
                        }
                    }
                    Err(_) => return read,
                }
            }
        });
        let written = timeout(DEADLINE * 4, write).await.expect("in time").expect("written");
        assert_eq!(timeout(DEADLINE * 4, read).await.expect("in time").expect("read"), written);
        // Again, undisturbed: what a new reader sees is what is stored.
        let mut again = journal.reader(LOG, From::First).await.expect("a reader");
        let mut stored = 0;
        while stored < written {
            for number in numbers(&timeout(DEADLINE, again.next()).await.expect("in time").expect("a chunk")) {
                assert_eq!(number, stored);
                stored += 1;
            }
        }
        println!("{written} entries, {cuts} cuts, {} connections", proxy.accepted());
        delete(url, &config).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_network_is_noticed_and_left_behind() {
    if Level::get() < Level::Full {
        return;
    }
    let url = &RabbitMq::shared().await.url;
    let proxy = Proxy::start(host_of(url)).await;
    let config = config(&format!("rabbitmq-stream://guest:guest@{}", proxy.address()));
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
    let mut writer = journal.writer(&ProducerName("stall".into())).await.expect("a writer");
    writer.append(LOG, PublishId(1), entries(1..2, 100)).await.expect("append");
    writer.flush().await.expect("flush");
    proxy.stall(true);
    writer.append(LOG, PublishId(2), entries(2..3, 100)).await.expect("append");
    let before = proxy.accepted();
    // Both give their connections up after two silent heartbeats and make new ones, which hang as well until the network is back.
    timeout(DEADLINE, async {
        while proxy.accepted() < before + 2 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("new connections in time");
    assert!(writer.unconfirmed_age().expect("unconfirmed") > Duration::from_secs(10));
    proxy.stall(false);
    timeout(DEADLINE, writer.flush()).await.expect("in time").expect("flush");
    let mut read = Vec::new();
    while read.len() < 2 {
        read.extend(numbers(&timeout(DEADLINE, reader.next()).await.expect("in time").expect("a chunk")));
    }
    assert_eq!(read, [1, 2]);
    delete(url, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_missing_for_writer_and_reader() {
    let url = &RabbitMq::shared().await.url;
    let config = config(url);
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut reader = journal.reader(LOG, From::First).await.expect("a reader");
    let mut writer = journal.writer(&ProducerName("deleted".into())).await.expect("a writer");
    writer.append(LOG, PublishId(1), entries(1..2, 100)).await.expect("append");
    writer.flush().await.expect("flush");
    assert_eq!(numbers(&reader.next().await.expect("a chunk")), [1]);
    delete(url, &config).await;
    let error = timeout(DEADLINE, reader.next()).await.expect("in time").expect_err("the stream is gone");
    assert!(matches!(error, JournalError::Missing(_)), "the reader got {error}");
    let gone = async {
        loop {
            if let Err(error) = writer.progress().await {
                return error;
            }
        }
    };
    let error = timeout(DEADLINE, gone).await.expect("in time");
    assert!(matches!(error, JournalError::Missing(_)), "the writer got {error}");
    assert!(matches!(journal.tail(LOG).await, Err(JournalError::Missing(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_before_the_wanted_offset_is_damaged() {
    let url = &RabbitMq::shared().await.url;
    let config = config(url);
    let journal = journal(&config);
    journal.set_up().await.expect("set-up");
    let mut writer = journal.writer(&ProducerName("end".into())).await.expect("a writer");
    writer.append(LOG, PublishId(1), entries(0..10, 100)).await.expect("append");
    writer.flush().await.expect("flush");
    journal.reader(LOG, From::Offset(Offset(10))).await.expect("the end itself can be waited at");
    let error = journal.reader(LOG, From::Offset(Offset(11))).await.err().expect("beyond the end");
    assert!(matches!(&error, JournalError::Damaged(why) if why.contains("ends at offset 10")), "{error}");
    delete(url, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_work_is_said_with_its_reason() {
    let url = &RabbitMq::shared().await.url;
    let good = config(url);
    journal(&good).set_up().await.expect("set-up");
    let three = RabbitJournal { partitions: NonZeroU16::new(3).expect("not zero"), ..good.clone() };
    let other_segment = RabbitJournal { segment_bytes: 60_000_000, ..good.clone() };
    let narrow = RabbitJournal { retention: Retention { age: None, bytes: Some(60_000_000) }, ..good.clone() };
    for (config, wanted) in [
        (three, "is a stream with one partition, the configuration says 3"),
        (other_segment, "exists with other arguments than queue-leader-locator=balanced, stream-max-segment-size-bytes=60000000"),
        (narrow, "less than two segments"),
    ] {
        match journal(&config).set_up().await {
            Err(JournalError::Unusable(why)) => assert!(why.contains(wanted), "{why}"),
            other => panic!("{wanted}: {other:?}"),
        }
    }
    let password = config(&format!("rabbitmq-stream://guest:wrong@{}", host_of(url)));
    let answer = journal(&password).describe().await;
    assert!(matches!(&answer, Err(JournalError::Refused(why)) if why.contains("wrong user or password")), "{answer:?}");
    let vhost = config(&format!("{url}/nowhere"));
    let answer = journal(&vhost).describe().await;
    assert!(matches!(&answer, Err(JournalError::Refused(why)) if why.contains("virtual host")), "{answer:?}");
    let nobody = RabbitJournal { urls: vec!["rabbitmq-stream://127.0.0.1:1".into(), url.as_str().into()], ..good.clone() };
    assert!(journal(&nobody).describe().await.expect("the second address answers").starts_with("rabbitmq "));
    let nobody = RabbitJournal { urls: vec!["rabbitmq-stream://127.0.0.1:1".into()], ..good.clone() };
    let answer = journal(&nobody).describe().await;
    assert!(matches!(&answer, Err(JournalError::Unavailable(why)) if why.contains("127.0.0.1:1")), "{answer:?}");
    delete(url, &good).await;
}
