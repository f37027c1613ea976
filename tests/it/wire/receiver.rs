//! A bare receiver: our connection and nothing behind it. What it reads is counted and thrown away, so it is the limit for everything that does more.

use tillstream::capture::source::{Frame, Replication};
use tillstream::capture::wire::PgSource;
use tillstream::config::Source;
use tillstream_schemas::Lsn;

use super::server::source;

/// Reads a slot up to `end`; answers the number of row changes.
pub(crate) async fn count(url: &str, slot: &str, publication: &str, end: Lsn) -> u64 {
    let source = Source { slot: slot.to_owned(), publication: publication.to_owned(), ..source(url) };
    let mut connection = PgSource::new(&source, "bare").log_in().await.expect("logs in");
    connection.start().await.expect("takes the slot");
    let (mut changes, mut done) = (0, false);
    while !done {
        // Never told that it is behind: it has to find out.
        connection.fill(false).await.expect("bytes");
        while let Some(frame) = connection.next().expect("frames") {
            match frame {
                Frame::XLogData { data, .. } => match data.first() {
                    Some(b'I' | b'U' | b'D') => changes += 1,
                    // flags, commit LSN, end LSN
                    Some(b'C') => done = data.get(10..18).is_some_and(|b| b >= &end.0.to_be_bytes()[..]),
                    _ => {}
                },
                Frame::Keepalive { wal_end, .. } => done = wal_end >= end,
            }
        }
    }
    connection.stop().await;
    changes
}

/// Reads a slot until so many transactions came, and answers when each of them had come.
pub(crate) async fn times(url: &str, slot: &str, publication: &str, transactions: usize) -> Vec<std::time::Instant> {
    let source = Source { slot: slot.to_owned(), publication: publication.to_owned(), ..source(url) };
    let mut connection = PgSource::new(&source, "bare").log_in().await.expect("logs in");
    connection.start().await.expect("takes the slot");
    let mut times = Vec::with_capacity(transactions);
    while times.len() < transactions {
        connection.fill(false).await.expect("bytes");
        let now = std::time::Instant::now();
        while let Some(frame) = connection.next().expect("frames") {
            if let Frame::XLogData { data, .. } = frame
                && data.first() == Some(&b'C')
            {
                times.push(now);
            }
        }
    }
    connection.stop().await;
    times
}
