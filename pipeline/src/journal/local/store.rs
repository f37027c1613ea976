//! The file: its tables, and every SQL statement. Blocking; never called on the runtime's threads.

use std::fs::{DirBuilder, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use crate::config::Retention;
use crate::journal::{Batch, Bounds, Chunk, From, JournalError, Log, Offset, PublishId, count_records};

/// Marks the file as ours: "Till" in ASCII.
const APPLICATION_ID: i64 = 0x5469_6c6c;

/// Version of the tables.
const FORMAT: i64 = 1;

/// How long a statement waits for another process's transaction before it reports a busy file. Transactions take milliseconds;
/// a stalled process must not stop the others for ever without a word.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const TABLES: &str = "
    CREATE TABLE log (
        log INTEGER PRIMARY KEY,
        next_offset INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE chunk (
        log INTEGER NOT NULL,
        first_offset INTEGER NOT NULL,
        records INTEGER NOT NULL,
        stored_at_ms INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX chunk_offset ON chunk (log, first_offset);
    CREATE TABLE producer (
        name TEXT NOT NULL,
        log INTEGER NOT NULL,
        last_id INTEGER NOT NULL,
        PRIMARY KEY (name, log)
    ) STRICT, WITHOUT ROWID;
";

/// An open file.
#[derive(Debug)]
pub(super) struct Store {
    db: Connection,
    path: PathBuf,
    /// Device and inode when it was opened: a file that was deleted and made anew is another journal.
    identity: (u64, u64),
}

impl Store {
    /// Creates directory, file and tables where they are missing, then checks what is there.
    pub(super) fn create(dir: &Path, partitions: u16) -> Result<(), JournalError> {
        // Entries hold row values, so that nobody else may read the file.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| io_error(dir, &e))?;
        let path = path_in(dir);
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(|e| io_error(&path, &e))?;
        let mut db = connect(&path)?;
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| sql_error(&e))?;
        let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(|e| sql_error(&e))?;
        if tables == 0 {
            tx.execute_batch(TABLES).map_err(|e| sql_error(&e))?;
            tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(|e| sql_error(&e))?;
            tx.pragma_update(None, "user_version", FORMAT).map_err(|e| sql_error(&e))?;
            for log in (0..partitions).map(Log::Data).chain([Log::Control]) {
                tx.execute("INSERT INTO log VALUES (?1, 0, 0)", [key(log)]).map_err(|e| sql_error(&e))?;
            }
        }
        tx.commit().map_err(|e| sql_error(&e))?;
        drop(db);
        Store::open(dir, partitions).map(drop)
    }

    /// Opens a file that [`Store::create`] made and checks that it is ours and has these partitions.
    pub(super) fn open(dir: &Path, partitions: u16) -> Result<Self, JournalError> {
        let path = path_in(dir);
        let identity = identify(&std::fs::metadata(&path).map_err(|e| io_error(&path, &e))?);
        let db = connect(&path)?;
        let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(|e| sql_error(&e));
        match (pragma("application_id")?, pragma("user_version")?) {
            (APPLICATION_ID, FORMAT) => {}
            (APPLICATION_ID, other) => {
                return Err(JournalError::Unusable(format!("{} has format {other}, this version knows {FORMAT}", path.display())));
            }
            (0, 0) => return Err(JournalError::Missing(path.display().to_string())),
            _ => return Err(JournalError::Unusable(format!("{} belongs to another program", path.display()))),
        }
        let stored: i64 = db.query_row("SELECT count(*) FROM log WHERE log >= 0", [], |row| row.get(0)).map_err(|e| sql_error(&e))?;
        if stored != i64::from(partitions) {
            return Err(JournalError::Unusable(format!(
                "{} has {stored} partitions, the configuration says {partitions}; the number is fixed when the journal is created",
                path.display()
            )));
        }
        Ok(Store { db, path, identity })
    }

    /// Stores batches of one log in one transaction and applies the log's retention. Returns how many were stored: fewer than given
    /// when an id was not above the highest of this producer, and nothing from there on.
    pub(super) fn append(
        &mut self,
        name: &str,
        log: Log,
        batches: &[(PublishId, Batch)],
        retention: Retention,
    ) -> Result<usize, JournalError> {
        self.check_identity()?;
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| sql_error(&e))?;
        let stored = append(&tx, name, log, batches, retention).map_err(|e| sql_error(&e))?;
        tx.commit().map_err(|e| sql_error(&e))?;
        Ok(stored)
    }

    /// Where reading from `from` begins: an offset at which a chunk begins or ends, or one inside a chunk.
    pub(super) fn locate(&self, log: Log, from: From) -> Result<Offset, JournalError> {
        let bounds = self.bounds(log)?;
        let next = Offset(to_u64(self.next_offset(log)?));
        match from {
            From::First => Ok(bounds.map_or(next, |b| b.first)),
            From::Next => Ok(next),
            From::Offset(wanted) => match bounds {
                Some(b) if wanted < b.first => Err(JournalError::Expired { wanted, first: b.first }),
                _ => Ok(wanted),
            },
            From::Time(ms) => {
                let sql = "SELECT first_offset FROM chunk WHERE log = ?1 AND stored_at_ms <= ?2 ORDER BY first_offset DESC LIMIT 1";
                let found: Option<i64> =
                    self.db.query_row(sql, params![key(log), ms], |row| row.get(0)).optional().map_err(|e| sql_error(&e))?;
                Ok(found.map_or_else(|| bounds.map_or(next, |b| b.first), |n| Offset(to_u64(n))))
            }
        }
    }

    /// The chunk that holds `at` and those after it, until they make `bytes_max`; none when the log ends before `at`.
    pub(super) fn read(&self, log: Log, at: Offset, bytes_max: usize) -> Result<Vec<Chunk>, JournalError> {
        self.check_identity()?;
        // The chunk around `at` is looked for by its numbers alone: a waiting reader asks often, and the bytes before `at` are not its business.
        let sql = "SELECT first_offset, first_offset + records FROM chunk WHERE log = ?1 AND first_offset <= ?2 ORDER BY first_offset DESC LIMIT 1";
        let mut around = self.db.prepare_cached(sql).map_err(|e| sql_error(&e))?;
        let around: Option<(i64, i64)> = around
            .query_row(params![key(log), to_i64(at.0)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(|e| sql_error(&e))?;
        let start = around.filter(|(_, end)| *end > to_i64(at.0)).map_or(to_i64(at.0), |(first, _)| first);
        let sql =
            "SELECT first_offset, records, stored_at_ms, crc, bytes FROM chunk WHERE log = ?1 AND first_offset >= ?2 ORDER BY first_offset";
        let mut statement = self.db.prepare_cached(sql).map_err(|e| sql_error(&e))?;
        let mut rows = statement.query(params![key(log), start]).map_err(|e| sql_error(&e))?;
        let (mut chunks, mut bytes, mut next) = (Vec::new(), 0, at);
        while let Some(row) = rows.next().map_err(|e| sql_error(&e))? {
            let chunk = chunk(row)?;
            if chunk.first_offset > next {
                // Offsets are dense, so that a missing chunk was deleted, unless it is missing in the middle.
                return match chunks.is_empty() {
                    true => Err(JournalError::Expired { wanted: at, first: chunk.first_offset }),
                    false => Err(JournalError::Damaged(format!("the log has no entry {next:?}, yet later ones"))),
                };
            }
            next = chunk.next_offset();
            bytes += chunk.bytes.len();
            chunks.push(chunk);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(chunks)
    }

    /// The last chunk of a log.
    pub(super) fn tail(&self, log: Log) -> Result<Option<Chunk>, JournalError> {
        let sql = "SELECT first_offset, records, stored_at_ms, crc, bytes FROM chunk WHERE log = ?1 ORDER BY first_offset DESC LIMIT 1";
        let mut statement = self.db.prepare(sql).map_err(|e| sql_error(&e))?;
        let mut rows = statement.query([key(log)]).map_err(|e| sql_error(&e))?;
        rows.next().map_err(|e| sql_error(&e))?.map(chunk).transpose()
    }

    /// First and last offset of a log.
    pub(super) fn bounds(&self, log: Log) -> Result<Option<Bounds>, JournalError> {
        let sql = "SELECT (SELECT min(first_offset) FROM chunk WHERE log = ?1), next_offset FROM log WHERE log = ?1";
        let found: Option<(Option<i64>, i64)> =
            self.db.query_row(sql, [key(log)], |row| Ok((row.get(0)?, row.get(1)?))).optional().map_err(|e| sql_error(&e))?;
        Ok(found.and_then(|(first, next)| Some(Bounds { first: Offset(to_u64(first?)), last: Offset(to_u64(next - 1)) })))
    }

    fn next_offset(&self, log: Log) -> Result<i64, JournalError> {
        self.db.query_row("SELECT next_offset FROM log WHERE log = ?1", [key(log)], |row| row.get(0)).map_err(|e| sql_error(&e))
    }

    /// A number that another connection's commit changes.
    pub(super) fn data_version(&self) -> Result<i64, JournalError> {
        self.check_identity()?;
        self.db.pragma_query_value(None, "data_version", |row| row.get(0)).map_err(|e| sql_error(&e))
    }

    /// Without this, a process would go on writing to a file that nobody can open any more.
    fn check_identity(&self) -> Result<(), JournalError> {
        match std::fs::metadata(&self.path) {
            Ok(now) if identify(&now) == self.identity => Ok(()),
            Ok(_) => Err(JournalError::Missing(format!("{} (another file took its place)", self.path.display()))),
            Err(error) => Err(io_error(&self.path, &error)),
        }
    }
}

fn append(tx: &Connection, name: &str, log: Log, batches: &[(PublishId, Batch)], retention: Retention) -> rusqlite::Result<usize> {
    let sql = "SELECT last_id FROM producer WHERE name = ?1 AND log = ?2";
    let last_id: Option<i64> = tx.prepare_cached(sql)?.query_row(params![name, key(log)], |row| row.get(0)).optional()?;
    let mut last_id = last_id.map_or(0, i64::cast_unsigned);
    let (mut next, mut bytes): (i64, i64) = tx
        .prepare_cached("SELECT next_offset, bytes FROM log WHERE log = ?1")?
        .query_row([key(log)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let newest = "SELECT stored_at_ms FROM chunk WHERE log = ?1 ORDER BY first_offset DESC LIMIT 1";
    let newest: Option<i64> = tx.prepare_cached(newest)?.query_row([key(log)], |row| row.get(0)).optional()?;
    // Times never go back, so that looking a moment up is unambiguous even after the clock was set.
    let now = now_ms().max(newest.unwrap_or(i64::MIN));
    let mut insert = tx.prepare_cached("INSERT INTO chunk VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut stored = 0;
    for (id, batch) in batches {
        if id.0 <= last_id {
            break;
        }
        insert.execute(params![key(log), next, batch.records, now, crc32fast::hash(&batch.bytes), batch.bytes.as_ref()])?;
        last_id = id.0;
        next += i64::from(batch.records);
        bytes += len(&batch.bytes);
        stored += 1;
    }
    if stored > 0 {
        bytes -= retain(tx, log, bytes, now, retention)?;
        tx.prepare_cached("UPDATE log SET next_offset = ?2, bytes = ?3 WHERE log = ?1")?.execute(params![key(log), next, bytes])?;
        tx.prepare_cached("INSERT INTO producer VALUES (?1, ?2, ?3) ON CONFLICT (name, log) DO UPDATE SET last_id = excluded.last_id")?
            .execute(params![name, key(log), last_id.cast_signed()])?;
    }
    Ok(stored)
}

/// Deletes whole chunks, oldest first, that are too old or too much; never the last one. Returns their bytes.
fn retain(tx: &Connection, log: Log, mut bytes: i64, now: i64, retention: Retention) -> rusqlite::Result<i64> {
    let bytes_max = retention.bytes.map_or(i64::MAX, to_i64);
    let oldest = retention.age.map_or(i64::MIN, |age| now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
    let sql = "SELECT rowid, stored_at_ms, length(bytes) FROM chunk
               WHERE log = ?1 AND first_offset < (SELECT max(first_offset) FROM chunk WHERE log = ?1) ORDER BY first_offset";
    let mut delete = tx.prepare_cached("DELETE FROM chunk WHERE rowid = ?1")?;
    let mut doomed: Vec<(i64, i64)> = Vec::new();
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query([key(log)])?;
    while let Some(row) = rows.next()? {
        let (rowid, stored_at_ms, len): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if bytes <= bytes_max && stored_at_ms >= oldest {
            break;
        }
        bytes -= len;
        doomed.push((rowid, len));
    }
    for (rowid, _) in &doomed {
        delete.execute([rowid])?;
    }
    Ok(doomed.iter().map(|(_, len)| len).sum())
}

fn chunk(row: &rusqlite::Row<'_>) -> Result<Chunk, JournalError> {
    let column = |error: rusqlite::Error| JournalError::Damaged(error.to_string());
    let first_offset = Offset(to_u64(row.get(0).map_err(column)?));
    let (records, stored_at_ms, crc): (u32, i64, u32) =
        (row.get(1).map_err(column)?, row.get(2).map_err(column)?, row.get(3).map_err(column)?);
    let bytes: Vec<u8> = row.get(4).map_err(column)?;
    if crc32fast::hash(&bytes) != crc {
        return Err(JournalError::Damaged(format!("the chunk at offset {} fails its checksum", first_offset.0)));
    }
    if records == 0 || count_records(&bytes) != Some(records) {
        return Err(JournalError::Damaged(format!("the chunk at offset {} does not hold {records} entries", first_offset.0)));
    }
    Ok(Chunk { first_offset, stored_at_ms, bytes: Bytes::from(bytes), records })
}

fn connect(path: &Path) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(|e| sql_error(&e))?;
    db.busy_timeout(BUSY_TIMEOUT).map_err(|e| sql_error(&e))?;
    // The page size takes effect only while the file is empty: batches are tens of kilobytes, and long chains of small pages cost.
    // `journal_size_limit` lets the write-ahead file shrink after a burst.
    let settings = "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                    PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -4096;";
    db.execute_batch(settings).map_err(|e| sql_error(&e))?;
    Ok(db)
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join("journal.sqlite")
}

fn identify(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A log's number in the tables.
fn key(log: Log) -> i64 {
    match log {
        Log::Data(n) => i64::from(n),
        Log::Control => -1,
    }
}

// SQLite's integers are signed; offsets never come near the sign. Ids use all 64 bits and are compared as what they are, in Rust.
fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn to_u64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn len(bytes: &Bytes) -> i64 {
    i64::try_from(bytes.len()).expect("a buffer is never larger than isize::MAX")
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn io_error(path: &Path, error: &std::io::Error) -> JournalError {
    match error.kind() {
        ErrorKind::NotFound => JournalError::Missing(path.display().to_string()),
        ErrorKind::PermissionDenied => JournalError::Refused(format!("{}: {error}", path.display())),
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::ReadOnlyFilesystem => {
            JournalError::Unusable(format!("{}: {error}", path.display()))
        }
        _ => JournalError::Unavailable(format!("{}: {error}", path.display())),
    }
}

fn sql_error(error: &rusqlite::Error) -> JournalError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => JournalError::Damaged(text),
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::AuthorizationForStatementDenied) => JournalError::Refused(text),
        _ => JournalError::Unavailable(text),
    }
}
