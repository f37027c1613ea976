//! How many rows the next chunk reads. Pure.

use std::time::Duration;

/// Sizes chunks so that each takes about half a second and a few megabytes: short enough that a chunk's snapshot holds
/// back no vacuum and its eviction window stays small, long enough that watermarks and cursors cost little.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    rows: u32,
    time: Duration,
}

impl Pace {
    /// Time that a chunk's read should take.
    const TIME: Duration = Duration::from_millis(500);
    /// The same while the source has other things to do: short enough that nobody notices one.
    const TRICKLE: Duration = Duration::from_millis(20);
    /// The same while the stream is live: a chunk's read keeps a processor of the server and one of ours busy, and a change
    /// that commits meanwhile waits for them at every step of its way.
    const LIVE: Duration = Duration::from_millis(3);
    /// Bytes that a chunk should have. Two chunks are in memory at most.
    const BYTES: usize = 4 << 20;
    /// Bytes after which reading a chunk ends early, whatever its row count: bounds memory when rows turn out large.
    pub(super) const BYTES_MAX: usize = 2 * Self::BYTES;
    /// A first guess that is cheap for any table.
    const FIRST: u32 = 500;
    /// More rows than this make the window's key set large without making the load faster.
    const MAX: u32 = 50_000;

    /// The pace of a table's first chunk.
    pub(super) fn new() -> Self {
        Pace { rows: Self::FIRST, time: Self::TIME }
    }

    /// Rows to ask for.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// The source has time, but for the changes of a live stream.
    pub(super) fn at_full_speed(&mut self, live: bool) {
        self.aim(if live { Self::LIVE } else { Self::TIME });
    }

    /// The source has none: the next chunk is a small one.
    pub(super) fn trickle(&mut self, live: bool) {
        self.aim(if live { Self::LIVE } else { Self::TRICKLE });
    }

    fn aim(&mut self, time: Duration) {
        if time < self.time {
            let share = time.as_secs_f64() / self.time.as_secs_f64();
            // Beside a live stream a chunk may be short, but not so short that its statements are all it costs.
            let least = if time == Self::LIVE { Self::FIRST.min(self.rows) } else { 1 };
            self.rows = ((f64::from(self.rows) * share) as u32).max(least);
        }
        self.time = time;
    }

    /// Learns from a chunk that was read.
    pub(super) fn read(&mut self, rows: usize, bytes: usize, took: Duration) {
        if rows == 0 {
            return;
        }
        let by_time = self.time.as_secs_f64() / took.as_secs_f64().max(1e-6);
        let by_bytes = Self::BYTES as f64 / bytes.max(1) as f64;
        let factor = by_time.min(by_bytes);
        // What was read, not what was asked for: the last chunk of a table is short.
        let wanted = (rows as f64 * factor).min(f64::from(self.rows) * 2.0);
        // A busy server takes longer than that for the statements around a chunk: fewer rows would not make it faster.
        let least = if self.time == Self::LIVE { (rows as f64 * by_bytes).min(f64::from(Self::FIRST)) as u32 } else { 1 };
        self.rows = (wanted as u32).clamp(least.max(1), Self::MAX);
    }

    /// Learns that a chunk took too long or changed too much while it was read.
    pub(super) fn too_large(&mut self) {
        self.rows = (self.rows / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_time_and_bytes() {
        let mut pace = Pace::new();
        pace.read(500, 50_000, Duration::from_millis(5));
        assert_eq!(pace.rows(), 1_000, "at most twice as many");
        for _ in 0..20 {
            pace.read(pace.rows() as usize, pace.rows() as usize * 100, Duration::from_millis(5));
        }
        assert_eq!(pace.rows(), 41_943, "100-byte rows end at the byte budget");
        pace.read(40_000, 4_000_000, Duration::from_secs(2));
        assert_eq!(pace.rows(), 10_000);
        pace.read(8, Pace::BYTES_MAX, Duration::from_millis(100));
        assert_eq!(pace.rows(), 4, "megabyte rows");
        for _ in 0..9 {
            pace.too_large();
        }
        assert_eq!(pace.rows(), 1);
        let mut pace = Pace { rows: 40_000, time: Pace::TIME };
        pace.trickle(false);
        assert_eq!(pace.rows(), 1_600);
        pace.at_full_speed(true);
        assert_eq!(pace.rows(), 500, "not so small that only its statements cost");
        pace.read(500, 50_000, Duration::from_millis(40));
        assert_eq!(pace.rows(), 500);
        pace.read(8, Pace::BYTES_MAX, Duration::from_millis(2));
        assert_eq!(pace.rows(), 4, "but for large rows");
        pace.at_full_speed(false);
        pace.read(4, 400, Duration::from_millis(3));
        assert_eq!(pace.rows(), 8, "it grows again by what it finds");
    }
}
