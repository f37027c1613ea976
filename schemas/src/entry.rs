//! The journal entry's frame, version 1: an AMQP 1.0 message that any RabbitMQ stream client can read.
//!
//! ```text
//! application-properties  "kind" -> str8   event | read | fence | end | part | marker
//!                         "ts"   -> vbin8  the header below: what the protocol needs
//! data                    vbin32           the body: the event's JSON, or a fence's, an end's, a marker's
//! ```
//!
//! The header, all integers big-endian:
//!
//! ```text
//!  0  u8   format version, 1
//!  1  u8   kind of the whole (differs from "kind" only in a part)
//!  2  u32  token: the number of the capture run that wrote the entry; 0 for other writers
//!  6  17 B position: epoch u32, commit LSN u64, ordinal u32, half u8; all zero where there is none
//! 23  17 B prev: position of the last live entry before this one in the same partition
//! 40  u64  lineage
//! 48  12 B only in a part: index u16, count u16, length u32 of the whole body, CRC-32 of the whole body
//!     ..   source name, UTF-8, to the end
//! ```
//!
//! A *live* entry is an event or an end that comes from the write-ahead log; only these move a partition's position.
//! Entries stand in a batch one after another, each behind its length as u32: the form that RabbitMQ's sub-entry
//! batches and the local journal both store.

use crate::position::{Half, Lineage, Lsn, Position};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A change event from the write-ahead log.
    Event = 1,
    /// A row read by a backfill.
    Read = 2,
    /// The first entry of a capture run: fences off every run with a lower token.
    Fence = 3,
    /// Closes a transaction in this partition; its body counts the transaction's events.
    End = 4,
    /// A piece of a body too large for one entry.
    Part = 5,
    /// Anything else the pipeline records in the journal.
    Marker = 6,
}

impl Kind {
    /// The property's text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Event => "event",
            Kind::Read => "read",
            Kind::Fence => "fence",
            Kind::End => "end",
            Kind::Part => "part",
            Kind::Marker => "marker",
        }
    }

    fn from_str(text: &[u8]) -> Option<Kind> {
        [Kind::Event, Kind::Read, Kind::Fence, Kind::End, Kind::Part, Kind::Marker].into_iter().find(|k| k.as_str().as_bytes() == text)
    }

    fn from_u8(n: u8) -> Option<Kind> {
        [Kind::Event, Kind::Read, Kind::Fence, Kind::End, Kind::Part, Kind::Marker].into_iter().find(|k| *k as u8 == n)
    }
}

/// Where a part belongs in the body it was cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// 0-based.
    pub index: u16,
    /// How many parts there are, at least 2.
    pub count: u16,
    /// Length of the whole body in bytes.
    pub length: u32,
    /// CRC-32 (IEEE) of the whole body.
    pub crc: u32,
}

/// The protocol's part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// What the entry is.
    pub kind: Kind,
    /// What the body is once its parts are joined; equals `kind` unless that is [`Kind::Part`].
    pub whole: Kind,
    /// Number of the capture run that wrote it; 0 for other writers.
    pub token: u32,
    /// Of an event or end its own position, of a read the position as of which it was read, else [`Position::NONE`].
    pub position: Position,
    /// The last live position before this entry in the same partition.
    pub prev: Position,
    /// The history that the positions belong to.
    pub lineage: Lineage,
    /// Set exactly when `kind` is [`Kind::Part`].
    pub part: Option<PartInfo>,
    /// The configured name of the source.
    pub source: &'a str,
}

impl Header<'_> {
    /// Whether this entry, once whole, moves its partition's position.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.whole, Kind::Event | Kind::End)
    }

    /// The partition's last live position once this entry stands in it: what `prev` of the next entry must be.
    /// Only the last part of a split event moves it.
    #[must_use]
    pub fn live_after(&self) -> Position {
        let complete = self.part.is_none_or(|p| p.index + 1 == p.count);
        if self.is_live() && complete { self.position } else { self.prev }
    }
}

/// One decoded entry, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The protocol's part.
    pub header: Header<'a>,
    /// The body.
    pub body: &'a [u8],
}

/// Why bytes are not an entry of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The AMQP message does not have our properties: some other producer wrote it.
    #[error("not a tillstream entry: {0}")]
    Foreign(&'static str),
    /// A later format version than this program reads.
    #[error("entry format version {0} is not known; this program reads version 1")]
    Version(u8),
    /// The bytes end early or contradict themselves.
    #[error("malformed entry: {0}")]
    Malformed(&'static str),
}

const VERSION: u8 = 1;
const FIXED: usize = 48;
const PART: usize = 12;
/// The longest source name: header and name together must fit the 255 bytes of a vbin8.
pub const SOURCE_NAME_MAX: usize = 255 - FIXED - PART;

/// AMQP 1.0 format codes (OASIS AMQP 1.0, part 1 section 1.6 and part 3 section 3.2).
mod amqp {
    pub(super) const DESCRIBED: u8 = 0x00;
    pub(super) const SMALL_ULONG: u8 = 0x53;
    pub(super) const ULONG: u8 = 0x80;
    pub(super) const APPLICATION_PROPERTIES: u64 = 0x74;
    pub(super) const DATA: u64 = 0x75;
    pub(super) const MAP8: u8 = 0xc1;
    pub(super) const MAP32: u8 = 0xd1;
    pub(super) const STR8: u8 = 0xa1;
    pub(super) const STR32: u8 = 0xb1;
    pub(super) const SYM8: u8 = 0xa3;
    pub(super) const VBIN8: u8 = 0xa0;
    pub(super) const VBIN32: u8 = 0xb0;
}

/// Writes entries, length-prefixed, into one reused buffer.
///
/// Usage per entry: [`begin`](Self::begin), append the body to [`buffer`](Self::buffer), [`finish`](Self::finish).
#[derive(Debug, Default)]
pub struct BatchBuffer {
    bytes: Vec<u8>,
    records: u32,
    /// Where the open entry begins, and where its body begins.
    open: Option<(usize, usize)>,
}

impl BatchBuffer {
    /// An empty buffer that holds `bytes` bytes before it grows.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        BatchBuffer { bytes: Vec::with_capacity(bytes), records: 0, open: None }
    }

    /// Starts an entry: everything up to its body.
    ///
    /// # Panics
    /// When the last entry was not finished, or the source name is longer than [`SOURCE_NAME_MAX`] (config refuses it).
    #[inline]
    pub fn begin(&mut self, header: &Header<'_>) {
        assert!(self.open.is_none(), "the last entry was finished");
        let start = self.bytes.len();
        let kind = header.kind.as_str().as_bytes();
        let ts = FIXED + if header.part.is_some() { PART } else { 0 } + header.source.len();
        assert!(ts <= 255, "source names are checked by config");
        let b = &mut self.bytes;
        b.extend_from_slice(&[0; 4]);
        // Map content: "kind" -> str8, "ts" -> vbin8; a map's count is of keys plus values.
        let content = 1 + (2 + 4) + (2 + kind.len()) + (2 + 2) + (2 + ts);
        b.extend_from_slice(&[amqp::DESCRIBED, amqp::SMALL_ULONG, amqp::APPLICATION_PROPERTIES as u8]);
        match u8::try_from(content) {
            Ok(n) => b.extend_from_slice(&[amqp::MAP8, n, 4]),
            Err(_) => {
                b.push(amqp::MAP32);
                b.extend_from_slice(&(content as u32 + 3).to_be_bytes());
                b.extend_from_slice(&4u32.to_be_bytes());
            }
        }
        b.extend_from_slice(&[amqp::STR8, 4]);
        b.extend_from_slice(b"kind");
        b.extend_from_slice(&[amqp::STR8, kind.len() as u8]);
        b.extend_from_slice(kind);
        b.extend_from_slice(&[amqp::STR8, 2, b't', b's', amqp::VBIN8, ts as u8]);
        let mut fixed = [0u8; FIXED];
        fixed[0] = VERSION;
        fixed[1] = header.whole as u8;
        fixed[2..6].copy_from_slice(&header.token.to_be_bytes());
        write_position(&mut fixed[6..23], header.position);
        write_position(&mut fixed[23..40], header.prev);
        fixed[40..48].copy_from_slice(&header.lineage.0.to_be_bytes());
        b.extend_from_slice(&fixed);
        if let Some(part) = &header.part {
            b.extend_from_slice(&part.index.to_be_bytes());
            b.extend_from_slice(&part.count.to_be_bytes());
            b.extend_from_slice(&part.length.to_be_bytes());
            b.extend_from_slice(&part.crc.to_be_bytes());
        }
        b.extend_from_slice(header.source.as_bytes());
        b.extend_from_slice(&[amqp::DESCRIBED, amqp::SMALL_ULONG, amqp::DATA as u8, amqp::VBIN32, 0, 0, 0, 0]);
        self.open = Some((start, b.len()));
    }

    /// The buffer, to append the open entry's body to. Nothing before its end may be changed.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The body written so far for the open entry; empty when none is open.
    #[must_use]
    pub fn open_body(&self) -> &[u8] {
        self.open.map_or(&[], |(_, body)| &self.bytes[body..])
    }

    /// Ends the open entry and returns its whole length in bytes, prefix included.
    ///
    /// # Panics
    /// When no entry is open, or the entry is longer than `u32::MAX` bytes (the source's row limit is 1 GiB).
    #[inline]
    pub fn finish(&mut self) -> usize {
        let (start, body) = self.open.take().expect("an entry is open");
        let end = self.bytes.len();
        let body_len = u32::try_from(end - body).expect("an entry is shorter than 4 GiB");
        let len = u32::try_from(end - start - 4).expect("an entry is shorter than 4 GiB");
        self.bytes[body - 4..body].copy_from_slice(&body_len.to_be_bytes());
        self.bytes[start..start + 4].copy_from_slice(&len.to_be_bytes());
        self.records += 1;
        end - start
    }

    /// Drops the open entry.
    pub fn cancel(&mut self) {
        if let Some((start, _)) = self.open.take() {
            self.bytes.truncate(start);
        }
    }

    /// Writes a whole entry.
    pub fn push(&mut self, header: &Header<'_>, body: &[u8]) -> usize {
        self.begin(header);
        self.bytes.extend_from_slice(body);
        self.finish()
    }

    /// Bytes written, the open entry included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Finished entries.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// The finished entries' bytes.
    ///
    /// # Panics
    /// When an entry is open.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        assert!(self.open.is_none(), "the last entry was finished");
        &self.bytes
    }

    /// The finished entries' bytes; the buffer is empty afterwards and goes on in the memory of `next`.
    ///
    /// # Panics
    /// When an entry is open.
    pub fn replace(&mut self, mut next: Vec<u8>) -> Vec<u8> {
        assert!(self.open.is_none(), "the last entry was finished");
        next.clear();
        self.records = 0;
        std::mem::replace(&mut self.bytes, next)
    }

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records = 0;
        self.open = None;
    }
}

#[inline]
fn write_position(to: &mut [u8], p: Position) {
    to[..4].copy_from_slice(&p.epoch.to_be_bytes());
    to[4..12].copy_from_slice(&p.commit_lsn.0.to_be_bytes());
    to[12..16].copy_from_slice(&p.ordinal.to_be_bytes());
    to[16] = p.half as u8;
}

fn read_position(from: &[u8; 17]) -> Result<Position, EntryError> {
    let [e0, e1, e2, e3, l0, l1, l2, l3, l4, l5, l6, l7, o0, o1, o2, o3, half] = *from;
    Ok(Position {
        epoch: u32::from_be_bytes([e0, e1, e2, e3]),
        commit_lsn: Lsn(u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7])),
        ordinal: u32::from_be_bytes([o0, o1, o2, o3]),
        half: Half::from_u8(half).ok_or(EntryError::Malformed("half of a position"))?,
    })
}

/// A cursor over bytes that never reads past their end.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], EntryError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(EntryError::Malformed("ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(EntryError::Malformed("ends early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, EntryError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, EntryError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, EntryError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// The descriptor of the next AMQP section.
    fn section(&mut self) -> Result<u64, EntryError> {
        if self.u8()? != amqp::DESCRIBED {
            return Err(EntryError::Foreign("no AMQP 1.0 section"));
        }
        match self.u8()? {
            amqp::SMALL_ULONG => Ok(u64::from(self.u8()?)),
            amqp::ULONG => Ok(u64::from_be_bytes(self.array()?)),
            _ => Err(EntryError::Foreign("section without a numeric descriptor")),
        }
    }

    /// A string, symbol or binary value.
    fn bytes(&mut self) -> Result<&'a [u8], EntryError> {
        match self.u8()? {
            amqp::STR8 | amqp::SYM8 | amqp::VBIN8 => {
                let n = self.u8()?;
                self.take(usize::from(n))
            }
            amqp::STR32 | amqp::VBIN32 => {
                let n = self.u32()?;
                self.take(n as usize)
            }
            _ => Err(EntryError::Foreign("a property of a type that tillstream does not write")),
        }
    }
}

impl<'a> Entry<'a> {
    /// Decodes one entry (without its length prefix), borrowing from it.
    ///
    /// # Errors
    /// [`EntryError::Foreign`] for messages of other producers, [`EntryError::Version`] for a later format,
    /// [`EntryError::Malformed`] for damaged bytes. Never panics.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Entry<'a>, EntryError> {
        let mut c = Cursor(bytes);
        if c.section()? != amqp::APPLICATION_PROPERTIES {
            return Err(EntryError::Foreign("no application properties first"));
        }
        let count = match c.u8()? {
            amqp::MAP8 => {
                c.u8()?;
                u32::from(c.u8()?)
            }
            amqp::MAP32 => {
                c.u32()?;
                c.u32()?
            }
            _ => return Err(EntryError::Foreign("application properties are not a map")),
        };
        let (mut kind, mut ts) = (None, None);
        for _ in 0..count / 2 {
            let key = c.bytes()?;
            let value = c.bytes()?;
            match key {
                b"kind" => kind = Kind::from_str(value),
                b"ts" => ts = Some(value),
                _ => {}
            }
        }
        let (Some(kind), Some(ts)) = (kind, ts) else { return Err(EntryError::Foreign("no kind or no header")) };
        let header = read_header(kind, ts)?;
        if c.section()? != amqp::DATA {
            return Err(EntryError::Foreign("no data section second"));
        }
        let body = c.bytes()?;
        if !c.0.is_empty() {
            return Err(EntryError::Malformed("bytes after the body"));
        }
        Ok(Entry { header, body })
    }
}

fn read_header(kind: Kind, ts: &[u8]) -> Result<Header<'_>, EntryError> {
    let mut c = Cursor(ts);
    let version = c.u8()?;
    if version != VERSION {
        return Err(EntryError::Version(version));
    }
    let whole = Kind::from_u8(c.u8()?).ok_or(EntryError::Malformed("kind of the whole"))?;
    let token = c.u32()?;
    let position = read_position(&c.array()?)?;
    let prev = read_position(&c.array()?)?;
    let lineage = Lineage(u64::from_be_bytes(c.array()?));
    let part = match kind {
        Kind::Part => {
            let part = PartInfo { index: c.u16()?, count: c.u16()?, length: c.u32()?, crc: c.u32()? };
            if part.index >= part.count || whole == Kind::Part {
                return Err(EntryError::Malformed("index of a part"));
            }
            Some(part)
        }
        _ if whole == kind => None,
        _ => return Err(EntryError::Malformed("kind of the whole")),
    };
    let source = std::str::from_utf8(c.0).map_err(|_| EntryError::Malformed("source name"))?;
    Ok(Header { kind, whole, token, position, prev, lineage, part, source })
}

/// The entries of a batch, each without its length prefix.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Walks the bytes of a batch.
    #[must_use]
    pub fn new(batch: &'a [u8]) -> Self {
        Records(batch)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], EntryError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut c = Cursor(self.0);
        let record = c.u32().and_then(|n| c.take(n as usize));
        self.0 = if record.is_ok() { c.0 } else { &[] };
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind) -> Header<'static> {
        Header {
            kind,
            whole: if kind == Kind::Part { Kind::Event } else { kind },
            token: 7,
            position: Position { epoch: 1, commit_lsn: Lsn(0x16B_3748), ordinal: 17, half: Half::Insert },
            prev: Position::new(1, Lsn(0x16B_3748), 16),
            lineage: Lineage(0x0123_4567_89AB_CDEF),
            part: (kind == Kind::Part).then_some(PartInfo { index: 1, count: 3, length: 99, crc: 5 }),
            source: "pos",
        }
    }

    #[test]
    fn entries_round_trip() {
        let mut batch = BatchBuffer::default();
        let kinds = [Kind::Event, Kind::Read, Kind::Fence, Kind::End, Kind::Part, Kind::Marker];
        for kind in kinds {
            batch.push(&header(kind), b"{\"id\":1}");
        }
        assert_eq!(batch.records(), 6);
        let read: Vec<_> = Records::new(batch.as_bytes()).map(|r| Entry::decode(r.expect("framed")).expect("decodes")).collect();
        for (kind, entry) in kinds.iter().zip(&read) {
            assert_eq!(entry.header, header(*kind));
            assert_eq!(entry.body, b"{\"id\":1}");
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_an_answer_not_a_panic() {
        let mut batch = BatchBuffer::default();
        batch.push(&header(Kind::Part), b"body");
        let whole = batch.as_bytes()[4..].to_vec();
        for n in 0..whole.len() {
            assert!(Entry::decode(&whole[..n]).is_err());
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[n] ^= 1 << bit;
                let _ = Entry::decode(&flipped);
            }
        }
    }

    #[test]
    fn long_source_names_use_the_wide_map() {
        let name = "n".repeat(SOURCE_NAME_MAX);
        let mut batch = BatchBuffer::default();
        let header = Header { source: &name, ..header(Kind::Part) };
        batch.push(&header, b"x");
        assert_eq!(Entry::decode(&batch.as_bytes()[4..]).expect("decodes").header, header);
    }
}
