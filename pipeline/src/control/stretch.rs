//! A stretch of a partition that a connector is to deliver again: an operator's wish, and what the process that took it up noted.

use serde::{Deserialize, Serialize};
use tillstream_schemas::Position;

use super::record::{offset_number, optional_offset, text};
use crate::journal::Offset;

/// A place in a partition from which reading can go on, and what a reader must know there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The next entry to read.
    #[serde(with = "offset_number")]
    pub offset: Offset,
    /// The live position before it.
    #[serde(with = "text")]
    pub position: Position,
    /// The highest capture token before it.
    pub token: u32,
}

/// An operator wants a connector to go to another place of a partition. Counts until the process that delivers has taken it up, which its checkpoint
/// says ([`ReplayTaken`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayRequested {
    /// The connector.
    pub connector: String,
    /// Journal partition.
    pub partition: u16,
    /// The token of the operator's command: a later request takes the place of an earlier one.
    pub number: u32,
    /// Where delivery goes on; `None`: where it stood before the replay that is under way, which ends with that.
    pub from: Option<Spot>,
    /// The first offset that is not meant any more, so that delivery goes on where it stood; `None`: everything from `from` on is delivered.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_offset")]
    pub to: Option<Offset>,
    /// Only the row of this name, hexadecimal; `None` means all. The name is a hash of its key, which itself is not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
    /// Who asked.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

impl ReplayRequested {
    /// Whether delivery goes on where it stood, behind a stretch or for all rows but one.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.to.is_some() || self.row.is_some() || self.from.is_none()
    }

    /// The name of the row that is meant alone. What cannot be read names no row at all.
    #[must_use]
    pub fn row(&self) -> Option<u64> {
        self.row.as_ref().map(|row| u64::from_str_radix(row, 16).unwrap_or_default())
    }
}

/// The replay that a checkpoint stands in or behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayTaken {
    /// That of the request.
    pub number: u32,
    /// The lease under which it was taken up: what an earlier owner stored in a target knows nothing of it.
    pub lease: u32,
    /// Where delivery stood: everything below it had been settled before.
    pub until: Spot,
    /// Where reading would have begun, had nobody asked: a transactional target whose marks still say so, under an earlier lease, was not told yet.
    #[serde(with = "offset_number")]
    pub found: Offset,
}
