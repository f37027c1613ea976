//! What the data logs hold when a run begins: how far each partition is, and which run wrote last.
//!
//! Two steps, because a predecessor may still be writing while the first one looks:
//!
//! 1. [`look`], before the slot is taken: the highest token, and where each log's reading goes on.
//! 2. [`Look::verify`], once the run's fence is confirmed: reads on until the *own* fence or a rival is seen. Evidence
//!    decides, never the end of a lagging read. Everything before the own fence is final then, so the position found
//!    is where writing goes on.
//!
//! Never reads the control log, never writes.

use serde::Deserialize;
use tillstream_schemas::entry::Records;
use tillstream_schemas::{Entry, Kind, Position};

use super::CaptureError;
use super::appender::{Evidence, Tail};
use crate::journal::{Chunk, From, Journal, JournalError, Log, Offset};

/// How far back the last live entry is looked for, in entries, one after another. Every entry names the live position
/// before it, so only fences (and the wish for evidence) ever lead beyond the tail's own chunk; the last step is
/// bounded by what a start may take: about a second of reading.
const LOOK_BACK: [u64; 3] = [1_000, 20_000, 400_000];

/// What the entries read so far say.
#[derive(Clone, Debug, Default)]
struct Scan {
    /// The highest token seen.
    token: u32,
    /// The live position after the last entry that proves one.
    live: Option<Position>,
    /// Whatever fences claimed: a lower bound, should retention have left nothing else.
    claimed: Position,
    /// The transaction of the last live entry that was seen whole.
    evidence: Option<(Position, Evidence)>,
}

/// What tells a transaction; the rest of a body is not looked at.
#[derive(Deserialize)]
struct Stamp<'a> {
    xid: Option<u32>,
    committed_at: Option<&'a str>,
}

impl Scan {
    fn entry(&mut self, entry: &Entry<'_>) {
        let header = &entry.header;
        if header.token < self.token {
            return;
        }
        self.token = header.token;
        if header.kind == Kind::Fence {
            // Written before its run knew the tail for certain.
            self.claimed = self.claimed.max(header.prev);
            return;
        }
        let live = header.live_after();
        if self.live.is_none_or(|known| live >= known) {
            self.live = Some(live);
        }
        // An event or an end names its own transaction, a marker that of its `prev`.
        let names = (header.is_live() && header.kind != Kind::Part) || header.kind == Kind::Marker;
        if names && let Some(evidence) = evidence(entry.body) {
            self.evidence = Some((live, evidence));
        }
    }

    fn tail(self) -> Tail {
        let position = self.live.unwrap_or(self.claimed);
        let evidence = self.evidence.filter(|(at, _)| at.commit_lsn == position.commit_lsn && at.epoch == position.epoch);
        Tail { position, evidence: evidence.map(|(_, evidence)| evidence) }
    }
}

/// Reads xid and commit time from a body; `None` when it has none (a message outside a transaction).
fn evidence(body: &[u8]) -> Option<Evidence> {
    let stamp: Stamp<'_> = serde_json::from_slice(body).ok()?;
    Some(Evidence { xid: stamp.xid?, committed_at: stamp.committed_at?.to_owned() })
}

/// Where one log stood before the slot was taken.
#[derive(Clone, Debug)]
struct LogLook {
    scan: Scan,
    /// Where the chunk began that was read last: reading goes on there.
    from: From,
    /// Everything below is in `scan` already.
    next: Offset,
}

/// Where all data logs stood before the slot was taken.
#[derive(Clone, Debug)]
pub struct Look {
    logs: Vec<LogLook>,
}

/// What [`Look::verify`] found in one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The own fence, and what was before it.
    Own(Tail),
    /// Another run's entry first: a higher token, or the same one under another nonce.
    Rival(u32),
}

/// Reads the tails of all data logs.
///
/// # Errors
/// Those of the journal, and entries that this program cannot read.
pub async fn look(journal: &dyn Journal) -> Result<Look, CaptureError> {
    let mut logs = Vec::with_capacity(usize::from(journal.partitions()));
    for partition in 0..journal.partitions() {
        logs.push(look_at(journal, Log::Data(partition)).await?);
    }
    Ok(Look { logs })
}

async fn look_at(journal: &dyn Journal, log: Log) -> Result<LogLook, CaptureError> {
    let Some(chunk) = journal.tail(log).await? else {
        let scan = Scan { live: Some(Position::NONE), ..Scan::default() };
        return Ok(LogLook { scan, from: From::First, next: Offset(0) });
    };
    let next = after(&chunk);
    let from = From::Offset(chunk.first_offset);
    let mut scan = Scan::default();
    each_entry(&chunk, Offset(0), |entry| {
        scan.entry(entry);
        None::<()>
    })?;
    for entries in LOOK_BACK {
        if scan.live.is_some() && (scan.evidence.is_some() || scan.live == Some(Position::NONE)) {
            break;
        }
        let first = journal.bounds(log).await?.map_or(chunk.first_offset, |bounds| bounds.first);
        let start = chunk.first_offset.0.saturating_sub(entries).max(first.0);
        if start >= chunk.first_offset.0 {
            break;
        }
        let mut further = Scan::default();
        let mut reader = match journal.reader(log, From::Offset(Offset(start))).await {
            Ok(reader) => reader,
            // Retention was faster.
            Err(JournalError::Expired { .. }) => break,
            Err(error) => return Err(error.into()),
        };
        loop {
            let chunk = match reader.next().await {
                Ok(chunk) => chunk,
                Err(JournalError::Expired { .. }) => break,
                Err(error) => return Err(error.into()),
            };
            each_entry(&chunk, Offset(start), |entry| {
                further.entry(entry);
                None::<()>
            })?;
            if after(&chunk) >= next {
                scan = further;
                break;
            }
        }
    }
    Ok(LogLook { scan, from, next })
}

impl Look {
    /// The highest token of any log.
    #[must_use]
    pub fn token(&self) -> u32 {
        self.logs.iter().map(|log| log.scan.token).max().unwrap_or_default()
    }

    /// The live position of a partition as far as is known: what its fence says of `prev`.
    #[must_use]
    pub fn position(&self, partition: u16) -> Position {
        self.logs[usize::from(partition)].scan.clone().tail().position
    }

    /// The highest live position of all partitions.
    #[must_use]
    pub fn highest(&self) -> Position {
        (0..self.logs.len() as u16).map(|partition| self.position(partition)).max().unwrap_or_default()
    }

    /// Reads a partition on until the fence with this token and body is seen, or a rival.
    ///
    /// # Errors
    /// Those of the journal, and entries that this program cannot read.
    pub async fn verify(&self, journal: &dyn Journal, partition: u16, token: u32, fence: &[u8]) -> Result<Verified, CaptureError> {
        let look = &self.logs[usize::from(partition)];
        let mut scan = look.scan.clone();
        let mut reader = journal.reader(Log::Data(partition), look.from).await?;
        loop {
            let chunk = reader.next().await?;
            let found = each_entry(&chunk, look.next, |entry| {
                let header = &entry.header;
                if header.token >= token {
                    // Nothing of ours can come before our fence, so whatever else has our token is another run's.
                    let own = header.kind == Kind::Fence && header.token == token && entry.body == fence;
                    return Some(if own { None } else { Some(header.token) });
                }
                scan.entry(entry);
                None
            })?;
            match found {
                Some(None) => return Ok(Verified::Own(scan.tail())),
                Some(Some(rival)) => return Ok(Verified::Rival(rival)),
                None => {}
            }
        }
    }
}

fn after(chunk: &Chunk) -> Offset {
    Offset(chunk.first_offset.0 + u64::from(chunk.records))
}

/// Visits the entries of a chunk at or above `from` until `visit` answers. Messages of other producers are passed over.
fn each_entry<T>(chunk: &Chunk, from: Offset, mut visit: impl FnMut(&Entry<'_>) -> Option<T>) -> Result<Option<T>, CaptureError> {
    use tillstream_schemas::entry::EntryError;
    for (offset, record) in (chunk.first_offset.0..).zip(Records::new(&chunk.bytes)) {
        match record.and_then(Entry::decode) {
            Ok(entry) if offset >= from.0 => {
                if let Some(answer) = visit(&entry) {
                    return Ok(Some(answer));
                }
            }
            Ok(_) | Err(EntryError::Foreign(_)) => {}
            Err(error) => {
                return Err(CaptureError::Definite {
                    code: "capture.malformed_entry",
                    what: format!("the entry at offset {offset} of a data log cannot be read: {error}"),
                    why: "what the journal holds decides what is skipped, so an entry that cannot be read could hide a loss".to_owned(),
                    fix: "if a later version of this program wrote it, run that version; if the log is damaged, begin a new stream and \
                          load it afresh"
                        .to_owned(),
                });
            }
        }
    }
    Ok(None)
}
