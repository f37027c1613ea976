//! Bytes into messages: one buffer, filled from the socket, out of which whole messages are lent without copying.
//!
//! ```text
//! │ done │ messages not yet taken │ part of one │ room │
//!        ▲ start                                ▲ end
//! ```
//!
//! The buffer grows only with bytes that have arrived, so a false length in a header costs nothing.

use std::ops::Range;

use tillstream_schemas::Lsn;

use crate::capture::CaptureError;
use crate::capture::source::Frame;

/// What one read may bring: what bulk reading lets gather, and what arrives while the reader wakes up.
pub(super) const READ_BYTES: usize = 512 * 1024;

/// A buffer that a large row made grow beyond this is given back once the row is through.
const KEPT_BYTES: usize = 4 * READ_BYTES;

/// PostgreSQL builds every message in one allocation of less than 1 GiB; what claims to be longer is not one.
pub(super) const STREAM_MESSAGE_MAX: usize = (1 << 30) + 64;

/// Before streaming begins only short messages come.
pub(super) const STARTUP_MESSAGE_MAX: usize = 1 << 20;

/// Tag and length.
const HEADER: usize = 5;

/// Received bytes and how far they were taken.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    message_max: usize,
}

impl Buffer {
    pub(super) fn new() -> Buffer {
        Buffer { bytes: Vec::new(), start: 0, end: 0, message_max: STARTUP_MESSAGE_MAX }
    }

    /// Sets the longest message that is accepted, in bytes of its body.
    pub(super) fn set_message_max(&mut self, bytes: usize) {
        self.message_max = bytes;
    }

    /// Room for the next read: never empty. Ends the loan of every message taken before.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
        }
        if self.bytes.len() - self.end < READ_BYTES / 2 {
            // Moving what is left costs at most what one message does; doubling keeps a long one linear.
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let wanted = (2 * self.end).max(READ_BYTES);
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// Accounts for `n` bytes that were read into [`Buffer::room`].
    pub(super) fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Length of the next message's body once its header is there.
    fn body_len(&self) -> Result<Option<usize>, CaptureError> {
        let Some([_, l0, l1, l2, l3]) = self.bytes.get(self.start..self.end).and_then(|b| b.first_chunk::<HEADER>()) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize;
        match length.checked_sub(4) {
            Some(body) if body <= self.message_max => Ok(Some(body)),
            _ => Err(CaptureError::Unavailable(format!(
                "the server sent a message of {length} bytes; not PostgreSQL, or damaged on the way"
            ))),
        }
    }

    /// Bytes that were received and not taken.
    pub(super) fn held(&self) -> usize {
        self.end - self.start
    }

    /// Whether [`Buffer::take`] has something.
    pub(super) fn has_message(&self) -> Result<bool, CaptureError> {
        Ok(self.body_len()?.is_some_and(|body| self.end - self.start >= HEADER + body))
    }

    /// Takes the next whole message: its tag and where its body lies, valid until the next [`Buffer::room`].
    pub(super) fn take(&mut self) -> Result<Option<(u8, Range<usize>)>, CaptureError> {
        let Some(body) = self.body_len()? else { return Ok(None) };
        let from = self.start + HEADER;
        if self.end - self.start < HEADER + body {
            return Ok(None);
        }
        let tag = self.bytes[self.start];
        self.start = from + body;
        Ok(Some((tag, from..from + body)))
    }

    /// The bytes of a body that [`Buffer::take`] named.
    pub(super) fn body(&self, at: Range<usize>) -> &[u8] {
        self.bytes.get(at).unwrap_or_default()
    }
}

/// Reads the body of a CopyData message as a frame of the replication stream.
pub(super) fn frame(body: &[u8]) -> Result<Frame<'_>, CaptureError> {
    let lsn = |b: &[u8; 8]| Lsn(u64::from_be_bytes(*b));
    match body.split_first() {
        Some((b'w', rest)) => {
            let (wal_start, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let (wal_end, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let (_clock, data) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            Ok(Frame::XLogData { wal_start: lsn(wal_start), wal_end: lsn(wal_end), data })
        }
        Some((b'k', rest)) => {
            let (wal_end, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let (_clock, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let reply = rest.first().ok_or_else(short)?;
            Ok(Frame::Keepalive { wal_end: lsn(wal_end), reply_requested: *reply == 1 })
        }
        Some((tag, _)) => Err(CaptureError::Unavailable(format!("the server sent an unknown replication message (tag {tag})"))),
        None => Err(short()),
    }
}

fn short() -> CaptureError {
    CaptureError::Unavailable("the server sent a replication message that ends early".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_data(payload: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend(u32::try_from(payload.len() + 4).expect("short").to_be_bytes());
        message.extend(payload);
        message
    }

    fn xlog(data: &[u8]) -> Vec<u8> {
        copy_data(&[&b"w"[..], &1u64.to_be_bytes(), &2u64.to_be_bytes(), &3u64.to_be_bytes(), data].concat())
    }

    fn keepalive(reply: u8) -> Vec<u8> {
        copy_data(&[&b"k"[..], &9u64.to_be_bytes(), &3u64.to_be_bytes(), &[reply]].concat())
    }

    fn feed(buffer: &mut Buffer, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = buffer.room();
            let n = room.len().min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            buffer.filled(n);
            bytes = &bytes[n..];
        }
    }

    fn drain(buffer: &mut Buffer) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some((tag, at)) = buffer.take().expect("sound") {
            assert_eq!(tag, b'd');
            seen.push(format!("{:?}", frame(buffer.body(at)).expect("a frame")));
        }
        seen
    }

    #[test]
    fn a_stream_split_at_every_byte_gives_the_same_frames() {
        let stream = [xlog(b"begin"), keepalive(1), xlog(b""), xlog(&[0xAB; 300]), keepalive(0)].concat();
        let mut whole = Buffer::new();
        feed(&mut whole, &stream);
        let expected = drain(&mut whole);
        assert_eq!(expected.len(), 5);
        assert!(expected[1].contains("reply_requested: true") && expected[1].contains("wal_end: Lsn(9)"));
        for split in 0..=stream.len() {
            let mut buffer = Buffer::new();
            let mut seen = Vec::new();
            for piece in [&stream[..split], &stream[split..]] {
                feed(&mut buffer, piece);
                assert_eq!(buffer.has_message().expect("sound"), buffer.end - buffer.start > 0 && clone_take(&buffer).is_some());
                seen.extend(drain(&mut buffer));
            }
            assert_eq!(seen, expected, "split at {split}");
        }
        let mut buffer = Buffer::new();
        let mut seen = Vec::new();
        for byte in &stream {
            feed(&mut buffer, std::slice::from_ref(byte));
            seen.extend(drain(&mut buffer));
        }
        assert_eq!(seen, expected, "byte by byte");
    }

    fn clone_take(buffer: &Buffer) -> Option<(u8, Range<usize>)> {
        let mut copy = Buffer { bytes: buffer.bytes.clone(), ..*buffer };
        copy.take().expect("sound")
    }

    #[test]
    fn a_long_row_passes_and_its_memory_is_given_back() {
        let long = vec![0x5A; 9 << 20];
        let mut buffer = Buffer::new();
        buffer.set_message_max(STREAM_MESSAGE_MAX);
        feed(&mut buffer, &xlog(&long));
        let (_, at) = buffer.take().expect("sound").expect("whole");
        let Frame::XLogData { data, .. } = frame(buffer.body(at)).expect("a frame") else { panic!("data") };
        assert!(data == long);
        assert!(buffer.bytes.len() <= 4 * long.len(), "the buffer follows what arrived");
        assert_eq!(buffer.room().len(), READ_BYTES);
    }

    #[test]
    fn a_false_length_is_refused_and_reserves_nothing() {
        for (length, max) in
            [(0u32, STREAM_MESSAGE_MAX), (3, STREAM_MESSAGE_MAX), (u32::MAX, STREAM_MESSAGE_MAX), (2 << 20, STARTUP_MESSAGE_MAX)]
        {
            let mut buffer = Buffer::new();
            buffer.set_message_max(max);
            feed(&mut buffer, &[&b"d"[..], &length.to_be_bytes()].concat());
            assert!(buffer.take().is_err() && buffer.has_message().is_err(), "{length}");
            assert!(buffer.bytes.len() <= READ_BYTES);
        }
    }

    #[test]
    fn truncated_frames_are_errors_not_panics() {
        for message in [xlog(b"x"), keepalive(0)] {
            let body = &message[HEADER..];
            for end in 0..body.len().min(18) {
                assert!(frame(&body[..end]).is_err());
            }
        }
        assert!(frame(b"z123").is_err());
    }
}
