//! What a transactional sink stores beside its rows, version 1.
//!
//! ```text
//!  0  u8    version, 1
//!  1  u32   lease of the owner that wrote it
//!  5  u64   floor: everything of the partition below this offset is applied; reading resumes here
//! 13  17 B  live position before the floor: epoch u32, commit LSN u64, ordinal u32, half u8
//! 30  u32   highest token before the floor
//! 34  u16   how many lanes the partition had
//! 36  u64   own: everything of this lane below this offset is applied too
//! ```
//!
//! All integers big-endian, so that a later mark of a lane is greater byte by byte, and a later owner's is greater
//! than any of an earlier one: the sink compares without knowing what it stores.
//!
//! The *floor* is the same for every lane, so a lane that got nothing for hours holds nobody back: a start takes the
//! highest floor. A target that was restored from a backup brings its marks with it and is filled from there.

use tillstream_connectors::sink::Mark;
use tillstream_schemas::{Half, Lsn, Position};

use super::settlement::Point;
use crate::journal::Offset;

const VERSION: u8 = 1;
const LENGTH: usize = 44;

/// The progress of one lane of a transactional sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneMark {
    /// Lease of the owner that wrote it.
    pub lease: u32,
    /// Everything of the partition before it is applied.
    pub floor: Point,
    /// How many lanes the partition had; `own` counts for nothing under another number.
    pub lanes: u16,
    /// Everything of this lane below it is applied.
    pub own: Offset,
}

/// The target holds a mark that this program does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target holds a mark of another form ({0} bytes, version {1})")]
pub struct MarkError(pub usize, pub u8);

impl LaneMark {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Mark {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.lease.to_be_bytes());
        bytes.extend_from_slice(&self.floor.offset.0.to_be_bytes());
        bytes.extend_from_slice(&self.floor.position.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.floor.position.commit_lsn.0.to_be_bytes());
        bytes.extend_from_slice(&self.floor.position.ordinal.to_be_bytes());
        bytes.push(self.floor.position.half as u8);
        bytes.extend_from_slice(&self.floor.token.to_be_bytes());
        bytes.extend_from_slice(&self.lanes.to_be_bytes());
        bytes.extend_from_slice(&self.own.0.to_be_bytes());
        Mark(bytes)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// The bytes are none of ours, or of a later version: starting from them would lose or repeat.
    pub fn decode(mark: &Mark) -> Result<LaneMark, MarkError> {
        let error = MarkError(mark.0.len(), mark.0.first().copied().unwrap_or_default());
        let bytes: &[u8; LENGTH] = mark.0.as_slice().try_into().map_err(|_| error)?;
        if bytes[0] != VERSION {
            return Err(error);
        }
        Ok(LaneMark {
            lease: u32::from_be_bytes(at(bytes, 1)),
            floor: Point {
                offset: Offset(u64::from_be_bytes(at(bytes, 5))),
                position: Position {
                    epoch: u32::from_be_bytes(at(bytes, 13)),
                    commit_lsn: Lsn(u64::from_be_bytes(at(bytes, 17))),
                    ordinal: u32::from_be_bytes(at(bytes, 25)),
                    half: Half::from_u8(bytes[29]).ok_or(error)?,
                },
                token: u32::from_be_bytes(at(bytes, 30)),
            },
            lanes: u16::from_be_bytes(at(bytes, 34)),
            own: Offset(u64::from_be_bytes(at(bytes, 36))),
        })
    }
}

fn at<const N: usize>(bytes: &[u8; LENGTH], from: usize) -> [u8; N] {
    let mut piece = [0; N];
    piece.copy_from_slice(&bytes[from..from + N]);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(lease: u32, floor: u64, own: u64) -> LaneMark {
        let position = Position { half: Half::Insert, ..Position::new(2, Lsn(0x16B_3748), 17) };
        LaneMark { lease, floor: Point { offset: Offset(floor), position, token: 9 }, lanes: 4, own: Offset(own) }
    }

    #[test]
    fn marks_round_trip_and_later_ones_are_greater() {
        let marks = [mark(1, 5, 6), mark(1, 5, 300), mark(1, 256, 300), mark(2, 4, 4), mark(300, 0, 0)];
        for pair in marks.windows(2) {
            assert!(pair[0].encode().0 < pair[1].encode().0);
        }
        for m in marks {
            assert_eq!(LaneMark::decode(&m.encode()), Ok(m));
        }
    }

    #[test]
    fn strange_marks_are_errors() {
        let mut bytes = mark(1, 2, 3).encode().0;
        assert!(LaneMark::decode(&Mark(bytes[..20].to_vec())).is_err());
        assert!(LaneMark::decode(&Mark(Vec::new())).is_err());
        bytes[29] = 9;
        assert!(LaneMark::decode(&Mark(bytes.clone())).is_err());
        (bytes[29], bytes[0]) = (0, 2);
        assert_eq!(LaneMark::decode(&Mark(bytes)), Err(MarkError(LENGTH, 2)));
    }
}
