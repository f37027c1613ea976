//! What tells a backfill to go easy: the source's load, the peak calendar, how far capture and the targets are behind.
//!
//! One task looks every two seconds while something is read. A brake engages with the first look that is above its limit
//! and lets go after two looks well below it. Whoever reads asks [`Brakes::slow`] before each chunk.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::SimpleQueryMessage;

use super::gate::Bucket;
use crate::capture::catalog::Catalog;
use crate::config::{InPeak, Protect, Source, units};

/// How often the source is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A look that takes longer than this says that the source has other things to do.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// Looks below the limit after which a brake lets go.
const CALM_LOOKS: u32 = 2;
/// How often a look counts sessions; the highest count is taken. The statements of a till take a millisecond each, so that a single count often
/// finds a busy server idle.
const COUNTS: u32 = 5;
/// Between two counts.
const COUNT_AGAIN: Duration = Duration::from_millis(40);
/// A brake lets go below this part of its limit.
const CALM_SHARE: f64 = 0.8;
/// Part of its time that a trickling reader reads. A job has several, and what they read has to be encoded and written as well, perhaps on the
/// same machine: at two percent each a saturated server lost seven percent of its transactions.
const TRICKLE: f64 = 0.005;
/// A target's capacity is known once it was at work for this part of the time.
const BUSY_MIN: f64 = 0.05;
/// The rate at which a target of unknown capacity is first asked, in rows a second; it doubles with each look.
const RATE_FIRST: f64 = 2_000.0;

/// What slows the readers now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slow {
    /// Stable word for metrics.
    pub(super) cause: &'static str,
    /// For people: `peak window until 14:00`.
    pub(super) text: String,
    /// Part of its time that a reader may read; `None` means not at all.
    pub(super) share: Option<f64>,
}

/// How the rest of the process is doing; asked at every look.
#[derive(Clone, Debug, Default)]
pub struct Pressure {
    /// WAL that capture has not received or that is not confirmed.
    pub capture_lag_bytes: u64,
    /// Every connector that takes rows of backfills.
    pub connectors: Vec<ConnectorPressure>,
}

/// One connector's numbers.
#[derive(Clone, Debug, Default)]
pub struct ConnectorPressure {
    /// Its name.
    pub name: String,
    /// Events settled so far.
    pub settled: u64,
    /// Time spent in calls so far, all lanes together, in microseconds.
    pub busy_us: u64,
    /// Calls that may be under way at once.
    pub lanes: u64,
    /// Entries between what is settled and the newest.
    pub behind: u64,
}

/// Asks the process how it is doing.
pub type Ask = Arc<dyn Fn() -> Pressure + Send + Sync>;

/// The brakes of one process.
pub(super) struct Brakes {
    protect: Protect,
    ask: Option<Ask>,
    /// Rows given to the targets beyond their share.
    pub(super) sinks: Bucket,
    seen: Mutex<Seen>,
}

impl fmt::Debug for Brakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brakes").field("protect", &self.protect).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Seen {
    looked: bool,
    /// Engaged brakes, each with the looks since it was last above its limit.
    engaged: BTreeMap<&'static str, (Slow, u32)>,
    /// The connectors at the last look.
    last: Option<(Instant, Vec<ConnectorPressure>)>,
    /// The slowest connector's share, in rows a second.
    rates: BTreeMap<String, f64>,
    /// What keeps the brakes from seeing.
    blind: Option<String>,
}

impl Brakes {
    /// Brakes with these limits; `ask` tells of the rest of the process.
    pub(super) fn new(protect: Protect, ask: Option<Ask>) -> Arc<Brakes> {
        Arc::new(Brakes { protect, ask, sinks: Bucket::default(), seen: Mutex::default() })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What slows the readers now, the strictest first.
    pub(super) fn slow(&self) -> Option<Slow> {
        if let Some(peak) = self.peak() {
            return Some(peak);
        }
        let seen = self.seen();
        if !seen.looked {
            return Some(Slow { cause: "look", text: "the first look at the source's load".to_owned(), share: None });
        }
        let order = |slow: &&Slow| slow.share.unwrap_or(0.0);
        seen.engaged.values().map(|(slow, _)| slow).min_by(|a, b| order(a).total_cmp(&order(b))).cloned()
    }

    /// What the brakes cannot see, and why.
    pub(super) fn blind(&self) -> Option<String> {
        self.seen().blind.clone()
    }

    fn peak(&self) -> Option<Slow> {
        let until = self.protect.peak.as_ref()?.inside_until(jiff::Timestamp::now())?;
        let share = match self.protect.in_peak {
            InPeak::Pause => None,
            InPeak::Trickle => Some(TRICKLE),
        };
        Some(Slow { cause: "peak", text: format!("peak window until {until}"), share })
    }

    /// Rows a second that the slowest target's share allows, and its connector; `None` when nobody delivers.
    pub(super) fn sink_rate(&self) -> Option<(f64, String)> {
        let seen = self.seen();
        seen.rates.iter().min_by(|a, b| a.1.total_cmp(b.1)).map(|(name, rate)| (*rate, name.clone()))
    }

    /// Looks until it is dropped.
    pub(super) async fn watch(self: Arc<Self>, source: Source, pipeline: String) {
        let mut catalog = None;
        self.seen().looked = false;
        loop {
            if catalog.is_none() {
                catalog = tokio::time::timeout(LOOK_WITHIN, Catalog::connect_backfill(&source, &pipeline)).await.ok().and_then(Result::ok);
            }
            let look = match &catalog {
                Some(catalog) => tokio::time::timeout(LOOK_WITHIN, load(catalog)).await.ok().flatten(),
                None => None,
            };
            if look.is_none() {
                catalog = None;
            }
            self.look(look);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Takes note of one look at the source (`None`: it did not answer) and of the process.
    fn look(&self, load: Option<Load>) {
        let limits = &self.protect;
        let pressure = self.ask.as_ref().map(|ask| ask()).unwrap_or_default();
        let mut seen = self.seen();
        let mut brake = |cause: &'static str, value: f64, limit: f64, share: Option<f64>, text: &dyn Fn() -> String| {
            if value >= limit {
                seen.engaged.insert(cause, (Slow { cause, text: text(), share }, 0));
            } else if let Some((_, calm)) = seen.engaged.get_mut(cause) {
                *calm = if value < limit * CALM_SHARE { *calm + 1 } else { 0 };
                if *calm >= CALM_LOOKS {
                    seen.engaged.remove(cause);
                }
            }
        };
        match &load {
            None => brake("source", 1.0, 1.0, Some(TRICKLE), &|| "the source does not answer at once".to_owned()),
            Some(load) => {
                brake("source", 0.0, 1.0, None, &String::new);
                let (sessions, waits) = (load.active_sessions, load.lock_waits);
                brake("active_sessions", sessions, f64::from(limits.active_sessions), Some(TRICKLE), &|| {
                    format!("{sessions:.0} active sessions at the source (limit {})", limits.active_sessions)
                });
                brake("lock_waits", waits, f64::from(limits.lock_waits), Some(TRICKLE), &|| {
                    format!("{waits:.0} sessions wait for locks at the source (limit {})", limits.lock_waits)
                });
                let lag = load.replica_lag_s;
                brake("replica_lag", lag, limits.replica_lag.as_secs_f64(), None, &|| {
                    format!("a replica is {lag:.1} s behind (limit {})", units::show_duration(limits.replica_lag))
                });
                let wal = load.safe_wal_bytes.unwrap_or(f64::MAX);
                // Less is worse here, so both sides are turned round.
                brake("wal_budget", -wal, -(limits.wal_budget as f64), None, &|| {
                    format!("only {} of WAL left before the slot is in danger", units::show_size(wal.max(0.0) as u64))
                });
            }
        }
        let lag = pressure.capture_lag_bytes;
        brake("capture_lag", lag as f64, limits.capture_lag as f64, None, &|| {
            format!("the journal is {} behind the source; live changes go first", units::show_size(lag))
        });
        seen.looked = true;
        seen.blind = load
            .filter(|l| !l.sees_all)
            .map(|l| format!("other sessions' load cannot be seen: GRANT pg_read_all_stats TO {}", super::sql::quoted(&l.role)));
        share_sinks(&mut seen, pressure.connectors, f64::from(limits.sink_share) / 100.0);
    }
}

/// What each target's share is now: its capacity is what it settled while it was at work.
fn share_sinks(seen: &mut Seen, connectors: Vec<ConnectorPressure>, share: f64) {
    let now = Instant::now();
    if let Some((at, last)) = &seen.last {
        let seconds = now.duration_since(*at).as_secs_f64().max(0.1);
        let mut rates = BTreeMap::new();
        for connector in &connectors {
            let Some(before) = last.iter().find(|c| c.name == connector.name) else { continue };
            let settled = connector.settled.saturating_sub(before.settled) as f64 / seconds;
            let busy = connector.busy_us.saturating_sub(before.busy_us) as f64 / 1e6 / seconds / connector.lanes.max(1) as f64;
            let known = seen.rates.get(&connector.name).copied().unwrap_or(RATE_FIRST);
            let rate = if busy >= BUSY_MIN && settled > 0.0 {
                // Half of the way, so that one odd look does not decide.
                (known + share * settled / busy) / 2.0
            } else if connector.behind as f64 > known * 10.0 {
                // It stands still with a backlog: live events wait behind it.
                known / 2.0
            } else {
                known * 2.0
            };
            rates.insert(connector.name.clone(), rate.clamp(10.0, 10e6));
        }
        seen.rates = rates;
    } else {
        seen.rates = connectors.iter().map(|c| (c.name.clone(), RATE_FIRST)).collect();
    }
    seen.last = Some((now, connectors));
}

/// The source's load.
#[derive(Clone, Debug, Default)]
struct Load {
    active_sessions: f64,
    lock_waits: f64,
    replica_lag_s: f64,
    safe_wal_bytes: Option<f64>,
    sees_all: bool,
    role: String,
}

async fn load(catalog: &Catalog) -> Option<Load> {
    let mut load = count(catalog).await?;
    for _ in 1..COUNTS {
        tokio::time::sleep(COUNT_AGAIN).await;
        let again = count(catalog).await?;
        load.active_sessions = load.active_sessions.max(again.active_sessions);
        load.lock_waits = load.lock_waits.max(again.lock_waits);
    }
    Some(load)
}

async fn count(catalog: &Catalog) -> Option<Load> {
    // Sessions of ours count for nothing. Without pg_read_all_stats other roles' sessions show no state. What replays
    // nothing, as pg_receivewal, has no replay lag, whatever the view prints.
    let sql = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' \
                       AND application_name NOT LIKE 'tillstream%'), \
                      (SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted), \
                      (SELECT coalesce(max(extract(epoch FROM replay_lag)), 0) FROM pg_stat_replication WHERE application_name NOT LIKE 'tillstream%' \
                       AND replay_lsn IS NOT NULL), \
                      (SELECT min(safe_wal_size) FROM pg_replication_slots WHERE active AND database = current_database()), \
                      pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), current_user";
    let messages = catalog.client().simple_query(sql).await.ok()?;
    messages.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let number = |at: usize| row.get(at).and_then(|t| t.parse::<f64>().ok());
        Some(Load {
            active_sessions: number(0)?,
            lock_waits: number(1)?,
            replica_lag_s: number(2)?,
            safe_wal_bytes: number(3),
            sees_all: row.get(4) == Some("t"),
            role: row.get(5).unwrap_or_default().to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::calendar::{Calendar, Hours};

    fn calm() -> Load {
        Load { sees_all: true, ..Load::default() }
    }

    #[test]
    fn a_brake_engages_at_once_and_lets_go_slowly() {
        let brakes = Brakes::new(Protect::default(), None);
        assert_eq!(brakes.slow().map(|s| s.cause), Some("look"), "nothing is read before the first look");
        brakes.look(Some(calm()));
        assert_eq!(brakes.slow(), None);
        let limit = f64::from(brakes.protect.active_sessions);
        brakes.look(Some(Load { active_sessions: limit, ..calm() }));
        let slow = brakes.slow().expect("engaged");
        assert_eq!((slow.cause, slow.share), ("active_sessions", Some(TRICKLE)));
        // The strictest counts.
        brakes.look(Some(Load { active_sessions: limit * 0.9, replica_lag_s: 99.0, ..calm() }));
        assert_eq!(brakes.slow().map(|s| (s.cause, s.share)), Some(("replica_lag", None)));
        brakes.look(Some(Load { active_sessions: limit * 0.5, ..calm() }));
        assert!(brakes.slow().is_some(), "one calm look is not enough");
        brakes.look(Some(calm()));
        assert_eq!(brakes.slow(), None);
        brakes.look(Some(Load { safe_wal_bytes: Some(1.0), ..calm() }));
        assert_eq!(brakes.slow().map(|s| s.cause), Some("wal_budget"));
        brakes.look(None);
        assert!(brakes.seen().engaged.contains_key("source"), "a source that does not answer has other things to do");
    }

    #[test]
    fn the_calendar_comes_before_everything() {
        let all_day = Calendar::new("UTC", vec![Hours::parse("daily 00:00-24:00").expect("hours")]);
        let brakes = Brakes::new(Protect { peak: all_day, ..Protect::default() }, None);
        let slow = brakes.slow().expect("peak");
        assert!(slow.cause == "peak" && slow.share.is_none() && slow.text.starts_with("peak window until "), "{slow:?}");
    }

    #[test]
    fn a_target_is_given_its_share() {
        let mut seen = Seen::default();
        let at = |settled, busy_us, behind| ConnectorPressure { name: "crm".to_owned(), settled, busy_us, lanes: 2, behind };
        share_sinks(&mut seen, vec![at(0, 0, 0)], 0.3);
        assert_eq!(seen.rates["crm"], RATE_FIRST);
        let later = |seen: &mut Seen, settled, busy_us, behind| {
            seen.last.as_mut().expect("seen").0 -= Duration::from_secs(2);
            let (s, b) = {
                let last = &seen.last.as_ref().expect("seen").1[0];
                (last.settled, last.busy_us)
            };
            share_sinks(seen, vec![at(s + settled, b + busy_us, behind)], 0.3);
        };
        // A thousand a second while half busy: two thousand is what it can, six hundred its share.
        for _ in 0..12 {
            later(&mut seen, 2_000, 2_000_000, 0);
        }
        assert!((590.0..650.0).contains(&seen.rates["crm"]), "{:?}", seen.rates);
        later(&mut seen, 0, 0, 100_000);
        assert!(seen.rates["crm"] < 330.0, "stands still with a backlog: {:?}", seen.rates);
        later(&mut seen, 0, 0, 0);
        assert!(seen.rates["crm"] > 500.0, "idle: {:?}", seen.rates);
    }
}
