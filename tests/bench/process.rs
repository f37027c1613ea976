//! What processes spend: a reader, the walsender that it reads from, and the broker.

use std::time::Duration;

use tokio_postgres::Client;

/// What one reader of a slot did and cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) per_second: f64,
    /// CPU time of the reader, microseconds a change.
    pub(super) own_us: f64,
    /// Of the walsender.
    pub(super) server_us: f64,
    /// Of the broker; zero where there is none.
    pub(super) broker_us: f64,
    /// The most memory the reader held.
    pub(super) rss_mib: f64,
}

/// CPU time as last looked at: all but the broker's end with their process.
#[derive(Clone, Copy, Default)]
pub(super) struct Spent {
    own: Duration,
    server: Duration,
    rss_kib: u64,
}

impl Spent {
    /// Looks at a reader and at the walsender of its slot, which it finds when there is one.
    pub(super) async fn look(&mut self, own: u32, walsender: &mut Option<u32>, pos: &Client, slot: &str) {
        if let Some((cpu, rss)) = usage(own) {
            (self.own, self.rss_kib) = (cpu, rss);
        }
        if walsender.is_none() {
            let pid = pos.query_opt("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", &[&slot]).await.expect("reads");
            *walsender = pid.and_then(|row| row.get::<_, Option<i32>>(0)).and_then(|pid| u32::try_from(pid).ok());
        }
        if let Some((cpu, _)) = walsender.and_then(usage) {
            self.server = cpu;
        }
    }

    pub(super) fn measured(self, changes: u64, elapsed: Duration, broker: Duration) -> Measured {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / changes as f64;
        Measured {
            per_second: changes as f64 / elapsed.as_secs_f64(),
            own_us: each(self.own),
            server_us: each(self.server),
            broker_us: each(broker),
            rss_mib: self.rss_kib as f64 / 1024.0,
        }
    }
}

/// CPU time and highest resident memory (KiB) of a process; `None` once it has ended.
pub(super) fn usage(pid: u32) -> Option<(Duration, u64)> {
    // Linux counts in hundredths of a second on every platform that we build for.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
    Some((Duration::from_millis(ticks * 10), kib))
}
