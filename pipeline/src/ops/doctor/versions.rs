//! What each major version of PostgreSQL brings, lacks, and how long it is mended.
//!
//! Dates: <https://www.postgresql.org/support/versioning/>. The minor versions are those of 8 May 2025, which keep a change of a publication or
//! table beside an open transaction from losing that transaction's rows.

use jiff::civil::Date;

/// One major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major version.
    pub major: i32,
    /// The last day on which it gets corrections.
    pub ends: Date,
    /// The first `server_version_num` that loses nothing beside DDL; 0 where none lacks it.
    pub corrected: i32,
    /// What capture uses of it, or lacks.
    pub brings: &'static str,
    /// What its owner must know.
    pub beware: &'static str,
}

const fn version(major: i32, ends: Date, corrected: i32, brings: &'static str, beware: &'static str) -> Version {
    Version { major, ends, corrected, brings, beware }
}

/// The oldest that can be captured from: logical messages in the stream begin with it.
pub const FIRST_MAJOR: i32 = 14;

/// The newest major version that Tillstream is tested with.
pub const LAST_MAJOR: i32 = 18;

/// All that are known, oldest first.
#[rustfmt::skip] // A table: one line each.
pub const VERSIONS: [Version; 6] = [
    version(13, jiff::civil::date(2025, 11, 13), 0, "no logical messages in the stream: nothing can be captured", "it gets no corrections any more"),
    version(14, jiff::civil::date(2026, 11, 12), 140_018, "large transactions can come before they commit; counters of what decoding spills", "no column lists and no row filters: whole rows leave the server"),
    version(15, jiff::civil::date(2027, 11, 11), 150_013, "column lists keep personal data inside the server; row filters; TABLES IN SCHEMA", "no slot follows a promotion, and none survives an upgrade to 17"),
    version(16, jiff::civil::date(2028, 11, 9), 160_009, "decoding on a standby; changes of other origins can be left out; pg_stat_io", "no slot follows a promotion; on a standby, creating a slot waits for pg_log_standby_snapshot() on the primary"),
    version(17, jiff::civil::date(2029, 11, 8), 170_005, "failover slots; inactive_since and invalidation_reason of slots; slots survive pg_upgrade from here on", "a name in synchronized_standby_slots that no standby has stops every failover slot"),
    version(18, jiff::civil::date(2030, 11, 14), 0, "generated columns can be published", "idle_replication_slot_timeout drops the slot of a pipeline that is stopped for longer"),
];

/// A major version's entry.
#[must_use]
pub fn find(major: i32) -> Option<&'static Version> {
    VERSIONS.iter().find(|v| v.major == major)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_that_is_supported_is_known() {
        for major in FIRST_MAJOR..=LAST_MAJOR {
            let version = find(major).expect("known");
            assert!(version.corrected == 0 || version.corrected / 10_000 == major);
        }
        assert!(VERSIONS.windows(2).all(|pair| pair[0].major + 1 == pair[1].major && pair[0].ends < pair[1].ends));
    }
}
