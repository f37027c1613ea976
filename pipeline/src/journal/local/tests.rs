//! The contract, and what only a file can suffer.

use std::num::NonZeroU16;
use std::path::Path;

use super::*;
use crate::journal::contract::{self, Clients, entries, numbers};
use crate::journal::{Offset, PublishId};

fn journal(dir: &Path, partitions: u16, retention: Retention) -> Arc<dyn Journal> {
    let config = config::LocalJournal { dir: dir.join("journal"), partitions: NonZeroU16::new(partitions).unwrap(), retention };
    Arc::new(LocalJournal::new(&config))
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds() {
    for partitions in [1, 3] {
        let dir = temp();
        let client = || journal(dir.path(), partitions, Retention::default());
        contract::suite(&Clients { one: client(), other: client() }).await;
        let same = client();
        let dir = temp();
        let one = journal(dir.path(), partitions, Retention::default());
        contract::suite(&Clients { one: Arc::clone(&one), other: one }).await;
        drop(same);
    }
}

#[tokio::test]
async fn retention_by_size_deletes_whole_chunks_and_tells_the_reader() {
    let dir = temp();
    let retention = Retention { age: None, bytes: Some(300_000) };
    contract::reading_what_retention_deleted_is_an_error(journal(dir.path(), 1, retention).as_ref()).await;
}

#[tokio::test]
async fn retention_by_age_keeps_the_last_chunk_and_the_control_log() {
    let dir = temp();
    let retention = Retention { age: Some(std::time::Duration::ZERO), bytes: None };
    let journal = journal(dir.path(), 1, retention);
    journal.set_up().await.unwrap();
    let mut writer = journal.writer(&ProducerName("w".into())).await.unwrap();
    let mut id = 0;
    let first = loop {
        id += 1;
        for log in [Log::Data(0), Log::Control] {
            writer.append(log, PublishId(id), entries(id..id + 1, 20)).await.unwrap();
        }
        writer.flush().await.unwrap();
        let bounds = journal.bounds(Log::Data(0)).await.unwrap().unwrap();
        if bounds.first > Offset(0) {
            break bounds.first;
        }
    };
    assert!(first <= Offset(id - 1), "the last chunk stays");
    assert_eq!(journal.bounds(Log::Control).await.unwrap().unwrap().first, Offset(0));
}

#[tokio::test]
async fn damage_is_found_by_the_reader_and_by_the_tail() {
    let dir = temp();
    let journal = journal(dir.path(), 1, Retention::default());
    journal.set_up().await.unwrap();
    let mut writer = journal.writer(&ProducerName("w".into())).await.unwrap();
    for id in 1..=3 {
        writer.append(Log::Data(0), PublishId(id), entries(id..id + 1, 20)).await.unwrap();
        writer.flush().await.unwrap();
    }
    let db = rusqlite::Connection::open(dir.path().join("journal/journal.sqlite")).unwrap();
    db.execute("UPDATE chunk SET bytes = x'00000002ffff' WHERE first_offset = 1", []).unwrap();
    let mut reader = journal.reader(Log::Data(0), From::First).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(reader.next().await, Err(JournalError::Damaged(_))), "and it stays so");
    }
    assert_eq!(numbers(&journal.tail(Log::Data(0)).await.unwrap().unwrap()), [3]);
    db.execute("UPDATE chunk SET bytes = x'00000009ffff', crc = 0 WHERE first_offset = 2", []).unwrap();
    assert!(matches!(journal.tail(Log::Data(0)).await, Err(JournalError::Damaged(_))));
}

#[tokio::test]
async fn a_file_that_went_away_is_missing_not_written_to_in_secret() {
    let dir = temp();
    let journal = journal(dir.path(), 1, Retention::default());
    journal.set_up().await.unwrap();
    let mut writer = journal.writer(&ProducerName("w".into())).await.unwrap();
    let mut reader = journal.reader(Log::Data(0), From::First).await.unwrap();
    std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
    journal.set_up().await.unwrap();
    writer.append(Log::Data(0), PublishId(1), entries(1..2, 20)).await.unwrap();
    assert!(matches!(writer.flush().await, Err(JournalError::Missing(_))));
    assert!(matches!(reader.next().await, Err(JournalError::Missing(_))));
}

#[tokio::test]
async fn what_can_not_work_is_said_with_its_reason() {
    let dir = temp();
    journal(dir.path(), 2, Retention::default()).set_up().await.unwrap();
    let error = journal(dir.path(), 3, Retention::default()).set_up().await.unwrap_err();
    assert!(matches!(&error, JournalError::Unusable(why) if why.contains("has 2 partitions, the configuration says 3")), "{error}");
    let file = dir.path().join("journal/journal.sqlite");
    let db = rusqlite::Connection::open(&file).unwrap();
    db.pragma_update(None, "user_version", 7).unwrap();
    assert!(matches!(journal(dir.path(), 2, Retention::default()).tail(Log::Control).await, Err(JournalError::Unusable(_))));
    drop(db);
    std::fs::write(&file, "this is no database, and long enough to be looked at as one").unwrap();
    let error = journal(dir.path(), 2, Retention::default()).tail(Log::Control).await.unwrap_err();
    assert!(matches!(error, JournalError::Damaged(_)), "{error}");
}

#[tokio::test]
async fn the_file_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = temp();
    journal(dir.path(), 1, Retention::default()).set_up().await.unwrap();
    for (path, mode) in [("journal", 0o700), ("journal/journal.sqlite", 0o600)] {
        assert_eq!(std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777, mode, "{path}");
    }
}
