//! Transactions that the server sends before they commit (protocol version 2), turned back into what it would have sent at their
//! commit.
//!
//! ```text
//!  message ─▶ take ─┬─ outside a block ──────────────▶ direct: to the intake, behind the descriptions it needs
//!                   ├─ in a block, or its bounds ────▶ kept in the spool, or dropped when it is rolled back
//!                   └─ commit of a streamed one ─────▶ replay: begin, what was kept, commit
//! ```
//!
//! What reaches the intake is therefore the same with and without streaming, and so are ids and order. Nothing here outlives the
//! session: the server sends uncommitted transactions again.
//!
//! Descriptions of tables need care. The server sends them anew in every streamed transaction, takes those of a committed one as
//! known from then on, and those of one that was rolled back as never sent. Which of them describes a table outside a streamed
//! transaction goes by the order in which they came, not by that in which their transactions committed: a transaction that
//! commits late may have described a table before another one altered it. The description of a savepoint that was rolled back
//! stays good for the rest of its transaction, since the server does not repeat it. Each is handed on only before a row that
//! needs it; one that no row needs is no layout that the table ever showed.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use super::CaptureError;
use super::intake::contradiction;
use super::pgoutput::{self, Begin, Commit, StreamMessage};
use super::spool::{Reading, Spool};

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on, behind every description that [`Streamed::needed`] answers.
    Direct,
    /// It was kept, or told something.
    Kept,
    /// A streamed transaction commits: everything that [`Streamed::next_message`] answers goes on before the next message.
    Replay,
}

/// Streamed transactions of one session.
#[derive(Debug)]
pub struct Streamed {
    spool: Spool,
    transactions: HashMap<u32, Transaction>,
    /// The transaction of the open block.
    block: Option<u32>,
    replay: Option<Replay>,
    /// The message made here that was lent last.
    lent: Vec<u8>,
    descriptions: Descriptions,
}

/// A streamed transaction that is open.
#[derive(Debug, Default)]
struct Transaction {
    /// Its parts that are rolled back.
    void: HashSet<u32>,
    /// Whether it holds logical messages.
    messages: bool,
    /// Whether one of them may belong to a part that is rolled back.
    doubtful: bool,
}

#[derive(Debug)]
struct Replay {
    begin: Begin,
    commit: Commit,
    begun: bool,
    void: HashSet<u32>,
    reading: Reading,
    /// What this transaction said of tables so far.
    own: HashMap<u32, Description>,
}

/// What the server said of a table: the message, and its number among all of this kind.
#[derive(Clone, Debug)]
struct Description {
    number: u64,
    message: Bytes,
}

#[derive(Debug, Default)]
struct Descriptions {
    count: u64,
    /// What holds outside streamed transactions.
    valid: HashMap<u32, Description>,
    /// What the intake was told last.
    told: HashMap<u32, Bytes>,
    /// Tables of which it has to be told something else before their next row. Almost always empty.
    due: HashMap<u32, Bytes>,
}

impl Descriptions {
    /// From here on this is what rows of the table need.
    fn want(&mut self, oid: u32, message: &Bytes) {
        if self.told.get(&oid) == Some(message) {
            self.due.remove(&oid);
        } else {
            self.due.insert(oid, message.clone());
        }
    }

    /// What has to be told before this message.
    fn needed(&mut self, message: &[u8]) -> Option<Bytes> {
        if self.due.is_empty() {
            return None;
        }
        let oid = pgoutput::tables_of(message).find(|oid| self.due.contains_key(oid))?;
        let description = self.due.remove(&oid)?;
        self.told.insert(oid, description.clone());
        Some(description)
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// Transaction zero does not exist: records of it hold whatever becomes of the parts, and begin with a number of eight bytes.
const LASTING: u32 = 0;
const NUMBER_BYTES: usize = 8;

/// The table that a Relation message describes.
fn described(message: &[u8]) -> Option<u32> {
    let [b'R', rest @ ..] = message else { return None };
    rest.first_chunk::<4>().map(|oid| u32::from_be_bytes(*oid))
}

/// Where in the replay's buffers the next message stands.
enum Found {
    Made,
    Stored(Range<usize>),
}

impl Streamed {
    /// No transaction yet. What does not fit in memory goes to files in `dir`, `limit` bytes at most.
    #[must_use]
    pub fn new(dir: &Path, limit: u64) -> Streamed {
        Streamed {
            spool: Spool::new(dir, limit),
            transactions: HashMap::new(),
            block: None,
            replay: None,
            lent: Vec::new(),
            descriptions: Descriptions::default(),
        }
    }

    /// Bytes that wait for their commit.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.spool.held()
    }

    /// Whether a transaction is being replayed.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Takes a message from the server.
    ///
    /// # Errors
    /// It contradicts an earlier one, the spool is full, or its file fails.
    ///
    /// # Panics
    /// While a transaction is being replayed.
    pub fn take(&mut self, data: &[u8]) -> Result<Next, CaptureError> {
        assert!(self.replay.is_none(), "a replay ends before the next message");
        match (pgoutput::parse_stream(data)?, self.block) {
            (Some(StreamMessage::Stop), Some(xid)) => {
                self.block = None;
                self.spool.rest(xid)?;
            }
            (Some(StreamMessage::Stop), None) => return Err(contradiction("a block ends that did not begin")),
            (Some(_), Some(_)) => return Err(contradiction("a block of a streamed transaction is not ended")),
            (Some(StreamMessage::Start { xid, first }), None) => {
                if first == self.transactions.contains_key(&xid) {
                    return Err(contradiction("a streamed transaction begins twice or not at all"));
                }
                self.transactions.entry(xid).or_default();
                self.block = Some(xid);
            }
            (Some(StreamMessage::Abort { xid, subxid }), None) if xid == subxid => {
                self.transactions.remove(&xid);
                self.spool.forget(xid);
            }
            (Some(StreamMessage::Abort { xid, subxid }), None) => {
                let Some(transaction) = self.transactions.get_mut(&xid) else {
                    return Err(contradiction("a part of a streamed transaction is rolled back that did not begin"));
                };
                transaction.void.insert(subxid);
                transaction.doubtful |= transaction.messages;
            }
            (Some(StreamMessage::Commit { xid, commit }), None) => return self.commit(xid, commit),
            (None, Some(xid)) => self.keep(xid, data)?,
            (None, None) => {
                if let Some(oid) = described(data) {
                    let message = Bytes::copy_from_slice(data);
                    let number = self.descriptions.number();
                    self.descriptions.due.remove(&oid);
                    self.descriptions.told.insert(oid, message.clone());
                    self.descriptions.valid.insert(oid, Description { number, message });
                }
                return Ok(Next::Direct);
            }
        }
        Ok(Next::Kept)
    }

    /// Keeps a message of the open block.
    fn keep(&mut self, transaction: u32, data: &[u8]) -> Result<(), CaptureError> {
        let Some(message) = pgoutput::parse_in_block(data)? else { return Ok(()) };
        let head = [message.tag];
        match message.tag {
            b'R' | b'Y' => {
                let mut head = self.descriptions.number().to_be_bytes().to_vec();
                head.push(message.tag);
                self.spool.append(transaction, LASTING, [&head, message.body])
            }
            tag => {
                if tag == b'M'
                    && let Some(transaction) = self.transactions.get_mut(&transaction)
                {
                    transaction.messages = true;
                }
                self.spool.append(transaction, message.xid, [&head, message.body])
            }
        }
    }

    fn commit(&mut self, xid: u32, commit: Commit) -> Result<Next, CaptureError> {
        let Some(transaction) = self.transactions.remove(&xid) else {
            return Err(contradiction("a streamed transaction commits that did not begin"));
        };
        if transaction.doubtful {
            return Err(doubtful(xid));
        }
        self.replay = Some(Replay {
            begin: Begin { final_lsn: commit.commit_lsn, commit_time: commit.commit_time, xid },
            commit,
            begun: false,
            void: transaction.void,
            reading: self.spool.take(xid)?,
            own: HashMap::new(),
        });
        Ok(Next::Replay)
    }

    /// A description that goes on before this direct message; asked until there is none.
    #[inline]
    pub fn needed(&mut self, data: &[u8]) -> Option<Bytes> {
        self.descriptions.needed(data)
    }

    /// The next message of the transaction that is replayed; `None` once all of it was answered.
    ///
    /// # Errors
    /// The spool's file fails.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, CaptureError> {
        let found = match &mut self.replay {
            None => return Ok(None),
            Some(replay) => {
                self.lent.clear();
                replay.next(&mut self.descriptions, &mut self.lent)?
            }
        };
        if found.is_none()
            && let Some(replay) = self.replay.take()
        {
            replay.commit.write(&mut self.lent);
            self.settle(replay);
        }
        match (found, &self.replay) {
            (Some(Found::Stored(at)), Some(replay)) => Ok(Some(replay.reading.bytes(at))),
            _ => Ok(Some(&self.lent)),
        }
    }

    /// What a committed transaction said of tables holds from here on, unless something else was said since.
    fn settle(&mut self, replay: Replay) {
        let descriptions = &mut self.descriptions;
        for (oid, own) in replay.own {
            if descriptions.valid.get(&oid).is_none_or(|valid| valid.number < own.number) {
                descriptions.valid.insert(oid, own);
            }
            if let Some(valid) = descriptions.valid.get(&oid).map(|valid| valid.message.clone()) {
                descriptions.want(oid, &valid);
            }
        }
        self.spool.back(replay.reading);
    }
}

impl Replay {
    /// Where the next message stands: in the buffer, or written to `made`; `None` once only the commit is left.
    fn next(&mut self, descriptions: &mut Descriptions, made: &mut Vec<u8>) -> Result<Option<Found>, CaptureError> {
        if !std::mem::replace(&mut self.begun, true) {
            self.begin.write(made);
            return Ok(Some(Found::Made));
        }
        while let Some(record) = self.reading.next()? {
            let bytes = self.reading.bytes(record.at.clone());
            if self.void.contains(&record.xid) {
                self.reading.pass(&record);
                continue;
            }
            if record.xid != LASTING {
                if let Some(description) = descriptions.needed(bytes) {
                    made.extend_from_slice(&description);
                    return Ok(Some(Found::Made));
                }
                self.reading.pass(&record);
                return Ok(Some(Found::Stored(record.at)));
            }
            let Some((number, message)) = bytes.split_first_chunk::<NUMBER_BYTES>() else {
                return Err(contradiction("a record of the spool is too short"));
            };
            let Some(oid) = described(message) else {
                // A type's name.
                let at = record.at.start + NUMBER_BYTES..record.at.end;
                self.reading.pass(&record);
                return Ok(Some(Found::Stored(at)));
            };
            let description = Description { number: u64::from_be_bytes(*number), message: Bytes::copy_from_slice(message) };
            descriptions.want(oid, &description.message);
            self.own.insert(oid, description);
            self.reading.pass(&record);
        }
        Ok(None)
    }
}

/// A logical message carries the number of its whole transaction, not that of the savepoint it belongs to.
fn doubtful(xid: u32) -> CaptureError {
    CaptureError::Definite {
        code: "capture.streamed_message",
        what: format!("transaction {xid} holds logical messages and rolled a savepoint back, and was sent before it committed"),
        why: "the server does not say then which of the messages were rolled back; nothing of the transaction was stored, the slot still holds it"
            .to_owned(),
        fix: "set source.streaming: off and start again".to_owned(),
    }
}
