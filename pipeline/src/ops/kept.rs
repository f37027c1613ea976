//! How long the journal keeps what a connector has not settled: what a pause may last.

use std::time::Duration;

use crate::config::{Retention, units};
use crate::control::{State, now_ms};
use crate::journal::{From, Journal, JournalError, Log};

/// What waits for a connector, and for how long it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Entries that wait, of all partitions.
    pub entries: u64,
    /// Time until the first of what waits is removed, or of what comes now; `None`: nothing is removed, or nothing was yet and it goes by size.
    pub left: Option<Duration>,
}

/// Time until an entry of that age is removed, and the window that it stands in, in milliseconds. Where entries were removed already and by
/// size, they last as long as the oldest one did.
pub(super) fn remaining(needed_ms: i64, oldest_ms: Option<i64>, now_ms: i64, retention: Retention) -> Option<(i64, i64)> {
    let age = retention.age.and_then(|age| i64::try_from(age.as_millis()).ok()).map(|age| (needed_ms + age - now_ms, age));
    let size = retention.bytes.and(oldest_ms).map(|oldest| (needed_ms - oldest, now_ms - oldest));
    age.into_iter().chain(size).min()
}

/// Looks at every partition.
///
/// # Errors
/// Those of the journal.
pub async fn kept(journal: &dyn Journal, state: &State, connector: &str, retention: Retention) -> Result<Kept, JournalError> {
    let (mut entries, mut left, now) = (0, None, now_ms());
    for partition in 0..journal.partitions() {
        let log = Log::Data(partition);
        let bounds = journal.bounds(log).await?;
        let stored = async |from| Ok::<_, JournalError>(journal.reader(log, from).await?.next().await?.stored_at_ms);
        let oldest = match bounds {
            // A log begins at 0 or 1.
            Some(bounds) if bounds.first.0 > 1 => Some(stored(From::First).await?),
            _ => None,
        };
        let settled = state.checkpoint(connector, partition).map(|c| c.offset);
        let needed = match bounds {
            Some(bounds) if settled.is_none_or(|settled| settled <= bounds.last) => {
                let settled = settled.map_or(bounds.first, |settled| settled.max(bounds.first));
                entries += bounds.last.0 + 1 - settled.0;
                stored(From::Offset(settled)).await?
            }
            _ => now,
        };
        left = left.into_iter().chain(remaining(needed, oldest, now, retention).map(|(left, _)| left)).min();
    }
    let left = left.map(|left| Duration::from_millis(u64::try_from(left).unwrap_or(0)));
    Ok(Kept { entries, left })
}

/// Until when, for people.
#[must_use]
pub fn until(left: Option<Duration>, retention: Retention) -> String {
    match (left, retention.bytes) {
        (Some(left), _) => {
            let until = jiff::Timestamp::now().checked_add(left).unwrap_or(jiff::Timestamp::MAX);
            format!("until {} ({})", until.strftime("%Y-%m-%d %H:%M UTC"), units::show_duration(Duration::from_secs(left.as_secs())))
        }
        (None, Some(bytes)) => format!("until it holds {} in a partition", units::show_size(bytes)),
        (None, None) => "for ever".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_until_entries_are_missed_is_that_of_the_limit_that_comes_first() {
        let hour = 3_600_000;
        let by_age = Retention { age: Some(Duration::from_secs(7 * 86_400)), bytes: None };
        assert_eq!(remaining(0, None, hour, by_age), Some((167 * hour, 168 * hour)));
        let both = Retention { bytes: Some(1 << 30), ..by_age };
        assert_eq!(remaining(10 * hour, Some(8 * hour), 20 * hour, both), Some((2 * hour, 12 * hour)));
        assert_eq!(remaining(0, None, hour, Retention { age: None, bytes: Some(1) }), None, "nothing was removed yet");
    }

    #[test]
    fn until_when_is_told_for_people() {
        let told = until(Some(Duration::from_secs(3600)), Retention::default());
        assert!(told.starts_with("until 2") && told.ends_with(" UTC (1 h 0 m)"), "{told}");
        assert_eq!(until(None, Retention { age: None, bytes: Some(1 << 30) }), "until it holds 1.0 GiB in a partition");
        assert_eq!(until(None, Retention::default()), "for ever");
    }
}
