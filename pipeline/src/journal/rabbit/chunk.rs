//! A chunk of a RabbitMQ stream, taken apart: the unit the broker stores and delivers.
//!
//! ```text
//!  0  u8  magic and version, 0x50        24  u64 offset of the first record
//!  1  u8  0 user, 1 or 2 tracking        32  u32 CRC-32 of the data
//!  2  u16 entries                        36  u32 data length
//!  4  u32 records                        40  u32 trailer length (the trailer is not delivered)
//!  8  i64 stored at, ms                  44  u8  filter length, u24 reserved
//! 16  u64 epoch                          48  data: entries
//! ```
//!
//! An entry with the highest bit clear is one record behind its length; with it set, a sub-batch: compression in three bits,
//! u16 records, u32 uncompressed and u32 stored length, then records behind their lengths. Both are already what a
//! [`Chunk`] holds, so that nothing is copied unless it is compressed.

use std::io::Read;

use bytes::Bytes;

use crate::journal::{Chunk, JournalError, Offset, count_records};

/// The header's length.
const HEADER: usize = 48;

/// The most bytes a compressed sub-batch may unfold to: what brokers allow too. A damaged or hostile length must not take all memory.
const UNCOMPRESSED_MAX: usize = 64 << 20;

/// Codes of compressions.
pub(super) const NONE: u8 = 0;
pub(super) const LZ4: u8 = 3;

/// Entries of one delivered chunk.
#[derive(Debug)]
pub(super) struct Delivered {
    /// The offset of the first record.
    pub(super) first_offset: Offset,
    /// The offset after the last.
    pub(super) next_offset: Offset,
    /// What was stored, in order; empty for the broker's own tracking chunks.
    pub(super) chunks: Vec<Chunk>,
}

/// Takes a delivered chunk apart and checks it.
///
/// # Errors
/// [`JournalError::Damaged`] for bytes that are no chunk, [`JournalError::Unusable`] for a compression we do not know.
pub(super) fn parse(bytes: &Bytes) -> Result<Delivered, JournalError> {
    let header = bytes.first_chunk::<HEADER>().ok_or_else(|| damaged("is shorter than its header", None))?;
    let u32_at = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    let first = u64_at(24);
    if header[0] != 0x50 {
        return Err(JournalError::Unusable(format!("a chunk of the unknown format {:#04x}", header[0])));
    }
    let (entries, records) = (u16::from_be_bytes([header[2], header[3]]), u32_at(4));
    let next = first.checked_add(u64::from(records)).ok_or_else(|| damaged("has an impossible count of records", Some(first)))?;
    let data_len = u32_at(36) as usize;
    let data = match bytes.len() - HEADER {
        len if len >= data_len => bytes.slice(HEADER..HEADER + data_len),
        _ => return Err(damaged("is shorter than its data", Some(first))),
    };
    if crc32fast::hash(&data) != u32_at(32) {
        return Err(damaged("fails its checksum", Some(first)));
    }
    let mut delivered = Delivered { first_offset: Offset(first), next_offset: Offset(next), chunks: Vec::new() };
    if header[1] == 0 {
        delivered.chunks = entries_of(&data, entries, first, u64_at(8).cast_signed())?;
        let read: u64 = delivered.chunks.iter().map(|chunk| u64::from(chunk.records)).sum();
        if read != u64::from(records) {
            return Err(damaged("does not hold the records it counts", Some(first)));
        }
    }
    Ok(delivered)
}

fn entries_of(data: &Bytes, entries: u16, first: u64, stored_at_ms: i64) -> Result<Vec<Chunk>, JournalError> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let (mut at, mut offset, mut simple_from) = (0, first, None);
    // A run of simple entries is one chunk: bytes from where it began to where the next sub-batch begins.
    let close_run = |chunks: &mut Vec<Chunk>, from: &mut Option<(usize, u64)>, at: usize, offset: u64| {
        if let Some((begin, run_offset)) = from.take() {
            let records = u32::try_from(offset - run_offset).expect("a chunk has at most 65,535 entries");
            chunks.push(Chunk { first_offset: Offset(run_offset), stored_at_ms, bytes: data.slice(begin..at), records });
        }
    };
    for _ in 0..entries {
        let kind = *data.get(at).ok_or_else(|| damaged("has fewer entries than it counts", Some(first)))?;
        if kind & 0x80 == 0 {
            simple_from.get_or_insert((at, offset));
            let len = u32_in(data, at).ok_or_else(|| damaged("ends inside an entry", Some(first)))? as usize;
            at = at.checked_add(4 + len).filter(|end| *end <= data.len()).ok_or_else(|| damaged("ends inside an entry", Some(first)))?;
            offset += 1;
        } else {
            close_run(&mut chunks, &mut simple_from, at, offset);
            let head = data.get(at..at + 11).ok_or_else(|| damaged("ends inside a sub-batch", Some(first)))?;
            let records = u16::from_be_bytes([head[1], head[2]]);
            let (plain_len, len) = (u32_in(head, 3).unwrap_or(0) as usize, u32_in(head, 7).unwrap_or(0) as usize);
            let body = at + 11..at.saturating_add(11).saturating_add(len);
            if body.end > data.len() {
                return Err(damaged("ends inside a sub-batch", Some(first)));
            }
            at = body.end;
            let bytes = unfold(kind >> 4 & 7, data.slice(body), plain_len, offset)?;
            if count_records(&bytes) != Some(u32::from(records)) {
                return Err(damaged("has a sub-batch that does not hold the records it counts", Some(first)));
            }
            if records > 0 {
                chunks.push(Chunk { first_offset: Offset(offset), stored_at_ms, bytes, records: u32::from(records) });
            }
            offset += u64::from(records);
        }
    }
    close_run(&mut chunks, &mut simple_from, at, offset);
    if at != data.len() {
        return Err(damaged("has bytes after its last entry", Some(first)));
    }
    Ok(chunks)
}

/// The records of a sub-batch.
fn unfold(compression: u8, body: Bytes, plain_len: usize, offset: u64) -> Result<Bytes, JournalError> {
    match compression {
        NONE => Ok(body),
        LZ4 => {
            if plain_len > UNCOMPRESSED_MAX {
                return Err(damaged("claims to unfold to more than any batch may hold", Some(offset)));
            }
            let broken = || damaged("has a sub-batch that can not be unfolded", Some(offset));
            let plain = match body.strip_prefix(&LZ4_FRAME) {
                Some(blocks) => unpack(blocks, plain_len).ok_or_else(broken)?,
                // Another producer's frame. Grows with what really comes out, and stops one byte after what should.
                None => {
                    let mut plain = Vec::with_capacity(plain_len.min(1 << 20));
                    let mut decoder = lz4_flex::frame::FrameDecoder::new(body.as_ref()).take(plain_len as u64 + 1);
                    decoder.read_to_end(&mut plain).map_err(|_| broken())?;
                    plain
                }
            };
            if plain.len() != plain_len {
                return Err(damaged("has a sub-batch that unfolds to another length", Some(offset)));
            }
            Ok(Bytes::from(plain))
        }
        other => {
            let name = ["none", "gzip", "snappy", "lz4", "zstd"].get(usize::from(other)).copied().unwrap_or("of an unknown kind");
            Err(JournalError::Unusable(format!("entries at offset {offset} are compressed ({name}); only none and lz4 can be read")))
        }
    }
}

fn u32_in(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

fn damaged(what: &str, offset: Option<u64>) -> JournalError {
    match offset {
        Some(offset) => JournalError::Damaged(format!("the chunk at offset {offset} {what}")),
        None => JournalError::Damaged(format!("a chunk {what}")),
    }
}

/// The longest header of an entry in a Publish frame: publishing id and sub-batch header.
pub(super) const ENTRY_HEADER: usize = 8 + 11;

/// A batch as an entry of a Publish frame: its header, and its bytes, compressed when a packer is given and it is worth it.
pub(super) fn seal(id: u64, records: u32, plain: &Bytes, packer: Option<&mut Packer>) -> ([u8; ENTRY_HEADER], Bytes) {
    let packed = packer.and_then(|packer| packer.pack(plain));
    let (compression, body) = packed.map_or((NONE, plain.clone()), |packed| (LZ4, packed));
    let mut head = [0; ENTRY_HEADER];
    head[..8].copy_from_slice(&id.to_be_bytes());
    head[8] = 0x80 | compression << 4;
    head[9..11].copy_from_slice(&u16::try_from(records).expect("a batch has at most 65,535 entries").to_be_bytes());
    let len = |bytes: &Bytes| u32::try_from(bytes.len()).expect("a batch is below the frame size").to_be_bytes();
    head[11..15].copy_from_slice(&len(plain));
    head[15..19].copy_from_slice(&len(&body));
    (head, body)
}

/// An LZ4 frame: magic number, version 01 with independent blocks and no checksums, blocks of up to 4 MiB, and the byte that
/// checks these two (lz4_Frame_format.md, 1.6.4).
const LZ4_FRAME: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73];

/// Bytes of one block of it.
const LZ4_BLOCK_MAX: usize = 4 << 20;

/// The most that a byte of an LZ4 block unfolds to (lz4_Block_format.md).
const LZ4_RATIO_MAX: usize = 255;

/// The blocks of a frame that [`Packer`] made. The library's own decoder allocates and clears several of the largest blocks for every frame, and
/// live ones hold a few rows.
fn unpack(mut blocks: &[u8], plain_len: usize) -> Option<Vec<u8>> {
    // A false length reserves no more than the bytes that are there can fill.
    if plain_len / LZ4_RATIO_MAX > blocks.len() {
        return None;
    }
    let (mut plain, mut at) = (vec![0; plain_len], 0);
    loop {
        let (len, rest) = blocks.split_first_chunk::<4>()?;
        // Incompressible blocks have the highest bit; we make none, as such a batch is sent as it is.
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 {
            plain.truncate(at);
            return rest.is_empty().then_some(plain);
        }
        let room = plain.len().min(at + LZ4_BLOCK_MAX);
        at += lz4_flex::block::decompress_into(rest.get(..len)?, plain.get_mut(at..room)?).ok()?;
        blocks = &rest[len..];
    }
}

/// Makes LZ4 frames. Blocks into frames by hand: the library's own encoder copies every byte once more and takes nearly twice as long.
#[derive(Default)]
pub(super) struct Packer(Vec<u8>);

impl Packer {
    /// LZ4 frame of the bytes, unless it would not be smaller.
    fn pack(&mut self, plain: &[u8]) -> Option<Bytes> {
        let Packer(out) = self;
        let mut len = LZ4_FRAME.len();
        out.resize(len.max(out.len()), 0);
        out[..len].copy_from_slice(&LZ4_FRAME);
        for block in plain.chunks(LZ4_BLOCK_MAX) {
            let at = len + 4;
            let room = at + lz4_flex::block::get_maximum_output_size(block.len()) + 4;
            out.resize(room.max(out.len()), 0);
            let packed = lz4_flex::block::compress_into(block, &mut out[at..]).ok()?;
            out[len..at].copy_from_slice(&u32::try_from(packed).ok()?.to_le_bytes());
            len = at + packed;
        }
        // The end mark; a block's room has it.
        out.get_mut(len..len + 4)?.fill(0);
        len += 4;
        (len < plain.len()).then(|| Bytes::copy_from_slice(&out[..len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::{entries, numbers};

    fn chunk(kind: u8, entries: u16, records: u32, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x50, kind];
        out.extend(entries.to_be_bytes());
        out.extend(records.to_be_bytes());
        out.extend(1_700_000_000_000_u64.to_be_bytes());
        out.extend(1_u64.to_be_bytes());
        out.extend(100_u64.to_be_bytes());
        out.extend(crc32fast::hash(data).to_be_bytes());
        out.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        out.extend([0; 8]);
        out.extend(data);
        out
    }

    fn sealed(numbers: std::ops::Range<u64>, lz4: bool) -> Vec<u8> {
        let batch = entries(numbers, 40);
        let (head, body) = seal(7, batch.records, &batch.bytes, lz4.then_some(&mut Packer::default()));
        [&head[8..], body.as_ref()].concat()
    }

    /// Two simple entries, a sub-batch of three, one of two in lz4, one simple entry.
    fn mixed() -> Vec<u8> {
        let simple = |numbers| entries(numbers, 12).bytes.to_vec();
        let data = [simple(0..2), sealed(2..5, false), sealed(5..7, true), simple(7..8)].concat();
        chunk(0, 5, 8, &data)
    }

    #[test]
    fn a_chunk_of_all_kinds_of_entries_is_taken_apart() {
        let delivered = parse(&Bytes::from(mixed())).unwrap();
        assert_eq!((delivered.first_offset, delivered.next_offset), (Offset(100), Offset(108)));
        let found: Vec<_> = delivered.chunks.iter().map(|c| (c.first_offset.0, numbers(c))).collect();
        assert_eq!(found, [(100, vec![0, 1]), (102, vec![2, 3, 4]), (105, vec![5, 6]), (107, vec![7])]);
        assert!(delivered.chunks.iter().all(|c| c.stored_at_ms == 1_700_000_000_000));
        let packed = sealed(5..7, true);
        assert!(packed[0] == 0xb0 && packed.len() < sealed(5..7, false).len(), "lz4 was worth it");
    }

    #[test]
    fn tracking_chunks_hold_no_entries() {
        let delivered = parse(&Bytes::from(chunk(2, 1, 1, b"whatever"))).unwrap();
        assert_eq!((delivered.chunks.len(), delivered.next_offset), (0, Offset(101)));
    }

    #[test]
    fn a_frame_of_several_blocks_and_one_made_after_a_longer_one_are_read() {
        let (mut packer, long) = (Packer::default(), b"till ".repeat(2 * LZ4_BLOCK_MAX / 5 + 7));
        for plain in [long.as_slice(), &long[..1_000], &long[..LZ4_BLOCK_MAX]] {
            let packed = packer.pack(plain).unwrap();
            // As anybody else reads it, and as we do.
            let mut read = Vec::new();
            std::io::Read::read_to_end(&mut lz4_flex::frame::FrameDecoder::new(packed.as_ref()), &mut read).unwrap();
            assert!(read == plain, "{} bytes", plain.len());
            assert!(unfold(LZ4, packed.clone(), plain.len(), 0).unwrap() == plain, "{} bytes", plain.len());
            for wrong in [0, plain.len() - 1, plain.len() + 1, 3 * plain.len()] {
                assert!(unfold(LZ4, packed.clone(), wrong, 0).is_err(), "{wrong} for {} bytes", plain.len());
            }
        }
    }

    #[test]
    fn another_producers_frame_is_read() {
        let plain = b"till ".repeat(50_000);
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        let packed = Bytes::from(encoder.finish().unwrap());
        assert!(packed[..LZ4_FRAME.len()] != LZ4_FRAME, "another header than ours");
        assert!(unfold(LZ4, packed.clone(), plain.len(), 0).unwrap() == plain);
        assert!(unfold(LZ4, packed, plain.len() - 1, 0).is_err());
    }

    #[test]
    fn what_does_not_shrink_is_sent_as_it_is() {
        let noise: Vec<u8> = (0..64_u32).flat_map(|n| crc32fast::hash(&n.to_be_bytes()).to_be_bytes()).collect();
        let (head, body) = seal(1, 1, &Bytes::from(noise.clone()), Some(&mut Packer::default()));
        assert_eq!((head[8], body.as_ref()), (0x80, noise.as_slice()));
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_an_error_not_a_panic() {
        let good = mixed();
        for len in 0..good.len() {
            assert!(parse(&Bytes::copy_from_slice(&good[..len])).is_err(), "{len} bytes");
        }
        for at in HEADER..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                assert!(matches!(parse(&Bytes::from(bad.clone())), Err(JournalError::Damaged(_))), "byte {at}");
                // The same with a checksum that fits: nothing may panic, whatever comes out.
                let crc = crc32fast::hash(&bad[HEADER..]);
                bad[32..36].copy_from_slice(&crc.to_be_bytes());
                let _ = parse(&Bytes::from(bad));
            }
        }
        for at in 0..HEADER {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = parse(&Bytes::from(bad));
            }
        }
    }

    #[test]
    fn unknown_compressions_and_bombs_are_refused() {
        let mut data = sealed(0..2, false);
        data[0] = 0x80 | 4 << 4;
        assert!(matches!(parse(&Bytes::from(chunk(0, 1, 2, &data))), Err(JournalError::Unusable(why)) if why.contains("zstd")));
        let mut bomb = sealed(0..2, true);
        bomb[3..7].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(parse(&Bytes::from(chunk(0, 1, 2, &bomb))), Err(JournalError::Damaged(_))));
        let mut short = sealed(0..2, true);
        short[3..7].copy_from_slice(&10_u32.to_be_bytes());
        assert!(matches!(parse(&Bytes::from(chunk(0, 1, 2, &short))), Err(JournalError::Damaged(_))));
    }
}
