//! Where transactions that are not committed yet wait: a little in memory, the rest in temporary files.
//!
//! Owns bytes and files, knows nothing of what they mean. A file has no name from the moment it is there, so nothing of it
//! outlives the process however that ends: the server sends again whatever was not acknowledged.
//!
//! Reads and writes block the capture task. They are sequential, of a quarter of a MiB or one row, and go to the page cache, which
//! takes less than decoding the same bytes; a disk that holds one up for longer than `wal_sender_timeout` costs the session, and
//! the next one begins anew.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::CaptureError;
use crate::config::units;

/// What a transaction may hold in memory before it gets a file: most of those that are streamed at all because their
/// neighbours filled the server's memory are smaller.
const MEMORY_MAX: usize = 1 << 20;

/// What all of them may hold in memory together.
const MEMORY_TOTAL_MAX: usize = 16 << 20;

/// Writes and reads of a file.
const PIECE_BYTES: usize = 256 << 10;

/// Length and transaction number before each record.
const RECORD_HEADER: usize = 8;

/// Records of transactions.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    /// Most bytes of all transactions together.
    limit: u64,
    held: u64,
    memory: usize,
    transactions: HashMap<u32, Stored>,
}

/// The records of one transaction.
#[derive(Debug, Default)]
struct Stored {
    /// What is not in the file.
    buffer: Vec<u8>,
    file: Option<File>,
    bytes: u64,
}

impl Spool {
    /// An empty one whose files lie in this directory.
    pub(super) fn new(dir: &Path, limit: u64) -> Spool {
        Spool { dir: dir.to_owned(), limit, held: 0, memory: 0, transactions: HashMap::new() }
    }

    /// Bytes held.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Appends a record made of these pieces to a transaction.
    ///
    /// # Errors
    /// The spool is full, or a file cannot be written.
    pub(super) fn append(&mut self, transaction: u32, xid: u32, pieces: [&[u8]; 2]) -> Result<(), CaptureError> {
        let length = pieces[0].len() + pieces[1].len();
        let bytes = (RECORD_HEADER + length) as u64;
        if self.held + bytes > self.limit {
            return Err(full(self.limit));
        }
        if self.memory >= MEMORY_TOTAL_MAX {
            // All at once, and seldom: were it the newest alone, every message of it would be a write.
            for stored in self.transactions.values_mut().filter(|stored| !stored.buffer.is_empty()) {
                self.memory -= stored.buffer.len();
                stored.write(&self.dir).map_err(|error| failed(&error))?;
                stored.buffer = Vec::new();
            }
        }
        let stored = self.transactions.entry(transaction).or_default();
        let before = stored.buffer.len();
        stored.buffer.extend_from_slice(&u32::try_from(length).map_err(|_| failed(&io::ErrorKind::FileTooLarge.into()))?.to_be_bytes());
        stored.buffer.extend_from_slice(&xid.to_be_bytes());
        stored.buffer.extend_from_slice(pieces[0]);
        stored.buffer.extend_from_slice(pieces[1]);
        stored.bytes += bytes;
        self.held += bytes;
        self.memory += stored.buffer.len() - before;
        let most = if stored.file.is_some() { PIECE_BYTES } else { MEMORY_MAX };
        if stored.buffer.len() >= most {
            self.memory -= stored.buffer.len();
            stored.write(&self.dir).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// No record of this transaction comes for a while: what has a file needs no memory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn rest(&mut self, transaction: u32) -> Result<(), CaptureError> {
        let Some(stored) = self.transactions.get_mut(&transaction).filter(|stored| stored.file.is_some()) else { return Ok(()) };
        self.memory -= stored.buffer.len();
        stored.write(&self.dir).map_err(|error| failed(&error))?;
        stored.buffer = Vec::new();
        Ok(())
    }

    /// Forgets a transaction.
    pub(super) fn forget(&mut self, transaction: u32) {
        if let Some(stored) = self.transactions.remove(&transaction) {
            self.held -= stored.bytes;
            self.memory -= stored.buffer.len();
        }
    }

    /// Hands out a transaction's records; what they take stays counted until they are given [`back`](Self::back).
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn take(&mut self, transaction: u32) -> Result<Reading, CaptureError> {
        self.rest(transaction)?;
        let Stored { buffer, file, bytes } = self.transactions.remove(&transaction).unwrap_or_default();
        self.memory -= buffer.len();
        let unread = match &file {
            Some(_) => bytes,
            None => 0,
        };
        let mut reading = Reading { file, buffer, at: 0, unread, bytes };
        if let Some(file) = &mut reading.file {
            file.seek(SeekFrom::Start(0)).map_err(|error| failed(&error))?;
        }
        Ok(reading)
    }

    /// Takes note that the records were read.
    pub(super) fn back(&mut self, reading: Reading) {
        self.held -= reading.bytes;
    }
}

impl Stored {
    /// Writes what is in memory to the file.
    fn write(&mut self, dir: &Path) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(dir)?),
        };
        file.write_all(&self.buffer)?;
        self.buffer.clear();
        self.buffer.shrink_to(PIECE_BYTES);
        Ok(())
    }
}

/// Goes through a transaction's records.
#[derive(Debug)]
pub(super) struct Reading {
    file: Option<File>,
    buffer: Vec<u8>,
    /// Where the next record begins in the buffer.
    at: usize,
    /// Bytes that are still to be read from the file.
    unread: u64,
    bytes: u64,
}

/// A record: whose it is, and where it stands until the next one is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) xid: u32,
    pub(super) at: Range<usize>,
}

impl Reading {
    /// The next record, which stays the next one until it is [`passed`](Self::pass).
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Record>, CaptureError> {
        if !self.fill(RECORD_HEADER)? {
            return Ok(None);
        }
        let number = |at: usize| self.buffer[at..].first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let (length, xid) = (number(self.at) as usize, number(self.at + 4));
        if !self.fill(RECORD_HEADER + length)? {
            return Err(failed(&io::ErrorKind::UnexpectedEof.into()));
        }
        let from = self.at + RECORD_HEADER;
        Ok(Some(Record { xid, at: from..from + length }))
    }

    /// Goes on behind a record.
    pub(super) fn pass(&mut self, record: &Record) {
        self.at = record.at.end;
    }

    /// The bytes of the last record asked for.
    pub(super) fn bytes(&self, at: Range<usize>) -> &[u8] {
        &self.buffer[at]
    }

    /// Makes so many bytes stand in the buffer; false when nothing is left.
    fn fill(&mut self, wanted: usize) -> Result<bool, CaptureError> {
        let held = self.buffer.len() - self.at;
        if held >= wanted {
            return Ok(true);
        }
        let more = (wanted - held).max(PIECE_BYTES) as u64;
        let more = more.min(self.unread);
        let Some(file) = self.file.as_mut().filter(|_| more > 0) else { return Ok(false) };
        self.buffer.drain(..self.at);
        self.at = 0;
        file.take(more).read_to_end(&mut self.buffer).map_err(|error| failed(&error))?;
        self.unread -= more;
        Ok(self.buffer.len() >= wanted)
    }
}

/// A file that nobody else can open and that vanishes with the process. It holds rows as the server sends them, before any column
/// policy.
fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("tillstream-{}-{:016x}.spool", std::process::id(), rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn full(limit: u64) -> CaptureError {
    CaptureError::Definite {
        code: "capture.spool_full",
        what: format!("transactions that are not committed yet fill source.spool_max ({})", units::show_size(limit)),
        why: "nothing of them may be told before they commit, and the server sends them already; nothing is lost, the slot still holds everything"
            .to_owned(),
        fix: "set source.streaming: off, so that the server keeps them until they commit; or raise source.spool_max".to_owned(),
    }
}

fn failed(error: &io::Error) -> CaptureError {
    CaptureError::Spool(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(limit: u64) -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(dir.path(), limit);
        (dir, spool)
    }

    fn read(spool: &mut Spool, transaction: u32) -> Vec<(u32, Vec<u8>)> {
        let mut reading = spool.take(transaction).expect("readable");
        let mut records = Vec::new();
        while let Some(record) = reading.next().expect("whole") {
            assert_eq!(reading.next().expect("whole"), Some(record.clone()), "it stays the next one");
            records.push((record.xid, reading.bytes(record.at.clone()).to_vec()));
            assert!(reading.buffer.capacity() < 4 << 20, "reading takes constant memory: {}", reading.buffer.capacity());
            reading.pass(&record);
        }
        spool.back(reading);
        records
    }

    #[test]
    fn records_come_back_in_order_from_memory_and_from_files() {
        let (dir, mut spool) = spool(64 << 20);
        let mut expected: HashMap<u32, Vec<(u32, Vec<u8>)>> = HashMap::new();
        for n in 0..30_000_u32 {
            // One transaction stays in memory, two get files; now and then a row is larger than a piece.
            let transaction = [1, 2, 2, 3][n as usize % 4];
            let size = if transaction == 1 { 5 } else { 200 + usize::from(n % 5000 == 2) * 700_000 };
            let text = vec![n.to_le_bytes()[0]; size];
            spool.append(transaction, n + 1, [b"x", &text]).expect("room");
            expected.entry(transaction).or_default().push((n + 1, [b"x".as_slice(), &text].concat()));
            if n % 1000 == 0 {
                spool.rest(transaction).expect("writable");
            }
            assert!(spool.memory <= MEMORY_TOTAL_MAX + MEMORY_MAX);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "no file has a name");
        assert!(spool.transactions[&1].file.is_none() && spool.transactions[&2].file.is_some());
        for transaction in [3, 1, 2] {
            assert!(read(&mut spool, transaction) == expected[&transaction], "transaction {transaction}");
        }
        assert_eq!((spool.held(), spool.memory), (0, 0));
    }

    #[test]
    fn memory_is_bounded_over_many_transactions() {
        let (_dir, mut spool) = spool(1 << 30);
        let text = [7; 10_000];
        for transaction in 1..100 {
            for _ in 0..50 {
                spool.append(transaction, transaction, [&text, b""]).expect("room");
            }
            spool.rest(transaction).expect("writable");
            assert!(spool.memory <= MEMORY_TOTAL_MAX + MEMORY_MAX);
        }
        for transaction in 1..100 {
            spool.forget(transaction);
        }
        assert_eq!((spool.held(), spool.memory, spool.transactions.len()), (0, 0, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_way_out_and_what_is_forgotten_makes_room() {
        let (_dir, mut spool) = spool(100);
        spool.append(1, 1, [&[0; 50], b""]).expect("room");
        let error = spool.append(2, 2, [&[0; 50], b""]).expect_err("full");
        assert_eq!(error.code(), "capture.spool_full");
        assert!(!error.is_transient());
        let CaptureError::Definite { fix, .. } = error else { panic!("{error}") };
        assert!(fix.contains("source.streaming: off") && fix.contains("source.spool_max"), "{fix}");
        spool.forget(1);
        spool.append(2, 2, [&[0; 50], b""]).expect("room");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_failure_that_a_new_session_may_mend() {
        let mut spool = Spool::new(Path::new("/proc/nowhere"), 1 << 30);
        let text = vec![0; MEMORY_MAX];
        let error = spool.append(1, 1, [&text, b""]).expect_err("no file");
        assert_eq!(error.code(), "capture.spool_failed");
        assert!(error.is_transient());
    }
}
