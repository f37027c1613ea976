//! A transaction snapshot, as `pg_current_snapshot()` prints it, asked about transaction ids of the stream.

use tokio_postgres::Client;

use super::sql_error;
use crate::capture::CaptureError;

/// Which transactions a query sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below is over.
    pub xmin: u64,
    /// No transaction from here on had begun to matter.
    pub xmax: u64,
    /// Transactions between the two that were in progress; sorted.
    pub in_progress: Vec<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xid,xid`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':');
        let (xmin, xmax, list) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let mut in_progress = list.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().ok()).collect::<Option<Vec<u64>>>()?;
        in_progress.sort_unstable();
        (parts.next().is_none() && xmin <= xmax).then_some(Snapshot { xmin, xmax, in_progress })
    }

    /// Whether a query under this snapshot sees what the committed transaction `xid` wrote. The stream names
    /// transactions by the low 32 bits; one that is compared here lies within two thousand million of the snapshot.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        let low = u32::try_from(self.xmax & u64::from(u32::MAX)).unwrap_or(0);
        // The distance from xmax, as a signed number, names the epoch.
        let distance = i64::from(xid.wrapping_sub(low).cast_signed());
        let Some(xid) = self.xmax.checked_add_signed(distance) else { return true };
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

pub(super) async fn current(client: &Client) -> Result<Snapshot, CaptureError> {
    let text: String = client.query_one("SELECT pg_current_snapshot()::text", &[]).await.map_err(sql_error)?.get(0);
    Snapshot::parse(&text).ok_or_else(|| CaptureError::Unavailable("the server printed a snapshot that cannot be read".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_and_not_in_progress_is_seen() {
        let snapshot = Snapshot::parse("100:110:103,101").expect("valid");
        for (xid, seen) in [(99, true), (100, true), (101, false), (102, true), (103, false), (109, true), (110, false), (111, false)] {
            assert_eq!(snapshot.sees(xid), seen, "{xid}");
        }
    }

    #[test]
    fn transaction_ids_of_another_epoch_are_placed_by_distance() {
        let around = (7u64 << 32) + 5;
        let snapshot = Snapshot::parse(&format!("{}:{around}:{}", around - 10, around - 10)).expect("valid");
        assert!(snapshot.sees(u32::MAX), "six before xmax, in the epoch before");
        assert!(!snapshot.sees(u32::MAX - 4), "the one in progress");
        assert!(!snapshot.sees(5), "xmax itself");
    }

    #[test]
    fn anything_else_is_no_snapshot() {
        for text in ["", "1", "1:2", "2:1:", "1:2:x", "1:2:3:4", "-1:2:"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
