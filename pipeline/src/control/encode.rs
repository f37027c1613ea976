//! Records to batches of the journal. Pure.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tillstream_schemas::entry::BatchBuffer;
use tillstream_schemas::{Header, Kind, Lineage, Position};

use super::record::{Piece, Record};
use crate::journal::Batch;

/// What every entry of one writer says in its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The capture run's token; 0 for delivery and operators, whose records name a lease.
    pub token: u32,
    /// The producer's name: keeps pieces of different writers apart.
    pub writer: String,
    /// Name of the source.
    pub source: String,
    /// The lineage of the run; [`Lineage::default`] for writers that hold no slot.
    pub lineage: Lineage,
}

/// Encodes a record as one batch, or as several when it is larger than `batch_bytes_max`: they are appended in order
/// under rising ids, and the record counts once its last piece is stored.
#[must_use]
pub fn encode(record: &Record, stamp: &Stamp, batch_bytes_max: usize) -> Vec<Batch> {
    let body = record.to_json();
    let kind = if matches!(record, Record::Session(_)) { Kind::Fence } else { Kind::Marker };
    if body.len() + FRAME_BYTES <= batch_bytes_max {
        return vec![batch(kind, stamp, &body)];
    }
    let text = std::str::from_utf8(&body).expect("JSON is UTF-8");
    // A piece is a JSON string of JSON: each quote and backslash takes a second byte, nothing takes more since the
    // whole's own control characters are escaped already.
    let room = batch_bytes_max.saturating_sub(FRAME_BYTES + PIECE_BYTES + 2 * stamp.writer.len()) / 2;
    let pieces = cut(text, room.max(PIECE_MIN));
    let whole = digest(&body);
    let count = u32::try_from(pieces.len()).expect("a record is shorter than 4 GiB");
    let piece = |(index, text): (u32, &&str)| {
        let (writer, whole, text) = (stamp.writer.clone(), whole.clone(), (*text).to_owned());
        batch(Kind::Marker, stamp, &Record::Piece(Piece { writer, whole, index, count, text }).to_json())
    };
    (0..).zip(&pieces).map(piece).collect()
}

/// Frame and header of an entry, at most: two maps and a source name of full length.
const FRAME_BYTES: usize = 512;
/// A piece's own JSON without its text and its writer's name.
const PIECE_BYTES: usize = 256;
/// A journal with smaller batches than this could not store anything else either.
const PIECE_MIN: usize = 64;

/// Names a whole: half of its SHA-256.
pub(super) fn digest(body: &[u8]) -> String {
    Sha256::digest(body)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn batch(kind: Kind, stamp: &Stamp, body: &[u8]) -> Batch {
    let mut buffer = BatchBuffer::with_capacity(body.len() + FRAME_BYTES);
    let header = Header {
        kind,
        whole: kind,
        token: stamp.token,
        position: Position::NONE,
        prev: Position::NONE,
        lineage: stamp.lineage,
        part: None,
        source: &stamp.source,
    };
    buffer.push(&header, body);
    Batch { bytes: Bytes::copy_from_slice(buffer.as_bytes()), records: buffer.records() }
}

/// Cuts a text into pieces of at most `room` bytes, at character boundaries.
fn cut(mut text: &str, room: usize) -> Vec<&str> {
    let mut pieces = Vec::with_capacity(text.len() / room + 1);
    while !text.is_empty() {
        let at = text.floor_char_boundary(room);
        let (piece, rest) = text.split_at(at);
        pieces.push(piece);
        text = rest;
    }
    pieces
}
