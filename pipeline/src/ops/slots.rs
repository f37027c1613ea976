//! Replication slots from outside, ours and other people's: what each keeps, who reads it, how far it has acknowledged, and how long
//! until the ceiling. Reads only, but for [`drop_slot`].

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tillstream_schemas::Lsn;
use tokio_postgres::error::SqlState;

use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, sql, sql_error};
use crate::config::{self, units};

/// One row a slot, as JSON, so that a column that a version lacks is simply absent. `$1` is our slot, which comes first.
pub const QUERY: &str = "SELECT jsonb_build_object('slot', to_jsonb(s), 'xmin_age', age(s.catalog_xmin), \
       'heard_seconds', extract(epoch FROM clock_timestamp() - r.reply_time), 'flush_lag_seconds', extract(epoch FROM r.flush_lag), \
       'inactive_seconds', extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz), \
       'reader', (SELECT concat_ws(' ', nullif(a.application_name, ''), 'as ' || a.usename::text, 'from ' || coalesce(host(a.client_addr), 'a local socket')) \
                  FROM pg_stat_activity a WHERE a.pid = s.active_pid))::text \
     FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
     ORDER BY s.slot_name = $1::text::name DESC, s.restart_lsn NULLS LAST, s.slot_name";

/// The same for people with psql.
pub const BY_HAND: &str = "SELECT slot_name, active_pid, wal_status, pg_size_pretty(safe_wal_size) AS safe, \
pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS kept, \
pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)) AS unacknowledged FROM pg_replication_slots ORDER BY restart_lsn;";

/// Where WAL stands, how much may be kept, and how much was written since when.
const SERVER: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text, \
     (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
     (SELECT setting::int8 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), \
     wal_bytes::float8, extract(epoch FROM clock_timestamp() - stats_reset)::float8 FROM pg_stat_wal";

/// A slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether it is the configured one.
    pub ours: bool,
    /// `logical` or `physical`.
    pub kind: String,
    /// Output plugin of a logical slot.
    pub plugin: Option<String>,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Process that streams from it.
    pub active_pid: Option<i32>,
    /// Who that is, as far as this role may see.
    pub reader: Option<String>,
    /// Since the reader was last heard, in seconds.
    pub heard_seconds: Option<f64>,
    /// From a flush of WAL until the reader acknowledged it, in seconds; absent when nothing was written lately.
    pub acknowledgement_lag_seconds: Option<f64>,
    /// Oldest WAL it keeps.
    pub restart_lsn: Option<String>,
    /// What its reader has acknowledged.
    pub confirmed_lsn: Option<String>,
    /// WAL it keeps.
    pub retained_bytes: Option<u64>,
    /// WAL that its reader has not acknowledged.
    pub unacknowledged_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// WAL that can still be written before it is in danger; absent without a limit.
    pub safe_wal_bytes: Option<u64>,
    /// What it may keep at most: the server's limit, and for ours `source.wal_budget` when that is lower.
    pub ceiling_bytes: Option<u64>,
    /// Until the ceiling, at the rate of [`Slots::wal_bytes_per_second`].
    pub seconds_to_ceiling: Option<u64>,
    /// Since when nobody reads it (17 and later).
    pub inactive_since: Option<String>,
    /// The same in seconds.
    pub inactive_seconds: Option<f64>,
    /// Why it was invalidated (17 and later), or what else says that it is lost.
    pub invalidation_reason: Option<String>,
    /// Transactions since the oldest row version that it holds in the catalogue.
    pub catalog_xmin_age: Option<i64>,
    /// Whether it follows a failover (17 and later).
    pub failover: Option<bool>,
    /// Whether it was copied from the primary (17 and later).
    pub synced: Option<bool>,
}

/// All slots of a server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Slots {
    /// Server, version, database, role.
    pub subject: String,
    /// How far the server has written.
    pub wal_lsn: String,
    /// `max_slot_wal_keep_size` in bytes; absent without a limit.
    pub keep_bytes: Option<u64>,
    /// `idle_replication_slot_timeout` in seconds (18 and later); absent when nothing is dropped for being idle.
    pub idle_timeout_seconds: Option<u64>,
    /// The higher of the two rates below: how fast WAL grows.
    pub wal_bytes_per_second: f64,
    /// Since the server's statistics began.
    pub average_bytes_per_second: f64,
    /// While this was looked at.
    pub sampled_bytes_per_second: f64,
    /// Ours first, then by what they keep.
    pub slots: Vec<Slot>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Row {
    slot: Catalogued,
    xmin_age: Option<i64>,
    heard_seconds: Option<f64>,
    flush_lag_seconds: Option<f64>,
    inactive_seconds: Option<f64>,
    reader: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Catalogued {
    slot_name: String,
    slot_type: String,
    plugin: Option<String>,
    database: Option<String>,
    active_pid: Option<i32>,
    restart_lsn: Option<String>,
    confirmed_flush_lsn: Option<String>,
    wal_status: Option<String>,
    safe_wal_size: Option<i64>,
    inactive_since: Option<String>,
    invalidation_reason: Option<String>,
    conflicting: Option<bool>,
    failover: Option<bool>,
    synced: Option<bool>,
}

/// Looks at all slots of the source's server. `sample` is how long the growth of WAL is watched.
///
/// # Errors
/// The server is away or refuses.
pub async fn look(source: &config::Source, catalog: &Catalog, sample: Duration) -> Result<Slots, CaptureError> {
    let client = catalog.client();
    let before = catalog.current_wal().await?;
    let begun = std::time::Instant::now();
    if !sample.is_zero() {
        tokio::time::sleep(sample).await;
    }
    let row = client.query_one(SERVER, &[]).await.map_err(sql_error)?;
    let wal: Lsn = row.get::<_, Option<String>>(0).and_then(|text| text.parse().ok()).unwrap_or_default();
    let megabytes = |n: Option<i64>| n.filter(|n| *n >= 0).and_then(|n| u64::try_from(n).ok()).map(|n| n << 20);
    let (written, since): (Option<f64>, Option<f64>) = (row.get(3), row.get(4));
    let average = written.zip(since).map_or(0.0, |(bytes, seconds)| bytes / seconds.max(1.0));
    let sampled = wal.0.saturating_sub(before.0) as f64 / begun.elapsed().as_secs_f64().max(0.001);
    let server = catalog.server();
    let mut slots = Slots {
        subject: format!("source {}   PostgreSQL {}   database {}   role {}", source.name, server.version, server.database, server.user),
        wal_lsn: wal.to_string(),
        keep_bytes: megabytes(row.get(1)),
        idle_timeout_seconds: row.get::<_, Option<i64>>(2).and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0),
        average_bytes_per_second: average.round(),
        sampled_bytes_per_second: if sample.is_zero() { 0.0 } else { sampled.round() },
        ..Slots::default()
    };
    slots.wal_bytes_per_second = slots.average_bytes_per_second.max(slots.sampled_bytes_per_second);
    for row in client.query(QUERY, &[&source.slot]).await.map_err(sql_error)? {
        let row: Row =
            serde_json::from_str(row.get(0)).map_err(|e| CaptureError::Unavailable(format!("the catalogue cannot be read: {e}")))?;
        let slot = judge(row, source, wal, &slots);
        slots.slots.push(slot);
    }
    Ok(slots)
}

fn judge(row: Row, source: &config::Source, wal: Lsn, server: &Slots) -> Slot {
    let Row { slot, xmin_age, heard_seconds, flush_lag_seconds, inactive_seconds, reader } = row;
    let behind = |lsn: &Option<String>| Some(wal.0.saturating_sub(lsn.as_deref()?.parse::<Lsn>().ok()?.0));
    let ours = slot.slot_name == source.slot;
    let retained = behind(&slot.restart_lsn);
    let keep = server.keep_bytes.filter(|bytes| *bytes > 0);
    let ceiling = if ours { Some(source.wal_budget.min(keep.unwrap_or(u64::MAX))) } else { keep };
    let safe = slot.safe_wal_size.map(|n| u64::try_from(n).unwrap_or(0));
    let left = ceiling.zip(retained).map(|(ceiling, retained)| ceiling.saturating_sub(retained).min(safe.unwrap_or(u64::MAX)));
    let rate = server.wal_bytes_per_second;
    let lost = slot.wal_status.as_deref() == Some("lost");
    Slot {
        ours,
        unacknowledged_bytes: behind(&slot.confirmed_flush_lsn),
        seconds_to_ceiling: left.filter(|_| rate >= 1.0 && !lost).map(|left| (left as f64 / rate) as u64),
        invalidation_reason: slot
            .invalidation_reason
            .or_else(|| (slot.conflicting == Some(true)).then(|| "it conflicted with recovery".to_owned()))
            .or_else(|| lost.then(|| "wal_status = lost".to_owned())),
        name: slot.slot_name,
        kind: slot.slot_type,
        plugin: slot.plugin,
        database: slot.database,
        active_pid: slot.active_pid,
        reader: reader.filter(|r| !r.is_empty()),
        heard_seconds,
        acknowledgement_lag_seconds: flush_lag_seconds,
        restart_lsn: slot.restart_lsn,
        confirmed_lsn: slot.confirmed_flush_lsn,
        retained_bytes: retained,
        wal_status: slot.wal_status,
        safe_wal_bytes: safe,
        ceiling_bytes: ceiling,
        inactive_since: slot.inactive_since,
        inactive_seconds,
        catalog_xmin_age: xmin_age,
        failover: slot.failover,
        synced: slot.synced,
    }
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), units::show_size)
}

fn seconds(value: f64) -> String {
    units::show_duration(Duration::from_secs_f64(value.max(0.0)))
}

impl Slots {
    /// All of them, a line each.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.slots.iter().map(|s| s.name.len()).max().unwrap_or(4).max(4);
        let mut out = format!(
            "{}\n{:<width$}  {:<8}  {:>10}  {:>10}  {:<10}  {:>11}  read by\n",
            self.subject, "slot", "kind", "keeps", "unacked", "status", "to ceiling"
        );
        for slot in &self.slots {
            let left = slot.seconds_to_ceiling.map_or_else(|| "-".to_owned(), |s| units::show_duration(Duration::from_secs(s)));
            let reader = match (&slot.reader, slot.active_pid, slot.inactive_seconds) {
                (Some(reader), _, _) => reader.clone(),
                (None, Some(pid), _) => format!("process {pid}"),
                (None, None, Some(for_long)) => format!("nobody for {}", seconds(for_long)),
                (None, None, None) => "nobody".to_owned(),
            };
            let _ = writeln!(
                out,
                "{:<width$}  {:<8}  {:>10}  {:>10}  {:<10}  {left:>11}  {reader}{}",
                slot.name,
                slot.kind,
                size(slot.retained_bytes),
                size(slot.unacknowledged_bytes),
                slot.wal_status.as_deref().unwrap_or("-"),
                if slot.ours { "   (this pipeline's)" } else { "" },
            );
        }
        let _ = writeln!(out, "WAL grows by {}/s; {}", units::show_size(self.wal_bytes_per_second as u64), self.limit());
        out
    }

    fn limit(&self) -> String {
        let mut text = match self.keep_bytes {
            Some(bytes) => format!("the server keeps up to {} for a slot (max_slot_wal_keep_size)", units::show_size(bytes)),
            None => "the server keeps WAL for slots without limit (max_slot_wal_keep_size = -1): the disk is the ceiling".to_owned(),
        };
        if let Some(timeout) = self.idle_timeout_seconds {
            let _ = write!(text, "; a slot that nobody reads for {} is invalidated", units::show_duration(Duration::from_secs(timeout)));
        }
        text
    }

    /// One slot in full; `None` when there is none of that name.
    #[must_use]
    pub fn page(&self, name: &str) -> Option<String> {
        let slot = self.slots.iter().find(|s| s.name == name)?;
        let mut out = format!("{}\n", self.subject);
        let mut line = |what: &str, text: String| {
            let _ = writeln!(out, "  {what:<13}{text}");
        };
        let of = [Some(slot.kind.as_str()), slot.plugin.as_deref(), slot.database.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ");
        line("slot", format!("{} ({of}){}", slot.name, if slot.ours { ", this pipeline's" } else { ", somebody else's" }));
        if let Some(reason) = &slot.invalidation_reason {
            line("LOST", format!("{reason}: nobody can stream from it any more"));
        }
        line(
            "read by",
            match (slot.active_pid, &slot.reader) {
                (Some(pid), reader) => {
                    let hidden = || ", when it was last heard is shown to members of pg_read_all_stats".to_owned();
                    let heard = slot.heard_seconds.map_or_else(hidden, |s| format!(", last heard {} ago", seconds(s)));
                    format!("process {pid}: {}{heard}", reader.as_deref().unwrap_or("hidden from this role"))
                }
                (None, _) => match (slot.inactive_seconds, &slot.inactive_since) {
                    (Some(for_long), Some(since)) => format!("nobody, for {} (since {since})", seconds(for_long)),
                    _ => "nobody".to_owned(),
                },
            },
        );
        if slot.confirmed_lsn.is_some() {
            let lag = slot
                .acknowledgement_lag_seconds
                .map_or_else(String::new, |s| format!("; acknowledged {} after it was written", seconds(s)));
            line(
                "acknowledged",
                format!(
                    "{}, {} behind {}{lag}",
                    slot.confirmed_lsn.as_deref().unwrap_or("-"),
                    size(slot.unacknowledged_bytes),
                    self.wal_lsn
                ),
            );
        }
        let oldest = slot.restart_lsn.as_deref().unwrap_or("nothing");
        line("keeps", format!("{} of WAL, from {oldest} ({})", size(slot.retained_bytes), slot.wal_status.as_deref().unwrap_or("-")));
        if let Some(safe) = slot.safe_wal_bytes {
            line("safe", format!("{} more may be written before it is in danger (safe_wal_size)", units::show_size(safe)));
        }
        let rate = format!("{}/s", units::show_size(self.wal_bytes_per_second as u64));
        line(
            "ceiling",
            match (slot.ceiling_bytes, slot.seconds_to_ceiling) {
                (Some(ceiling), Some(left)) => {
                    let left = units::show_duration(Duration::from_secs(left));
                    format!("{}; if nothing were acknowledged, at {rate} reached in {left}", units::show_size(ceiling))
                }
                (Some(ceiling), None) => format!("{}; WAL does not grow", units::show_size(ceiling)),
                (None, _) => "none but the disk".to_owned(),
            },
        );
        line(
            "WAL",
            format!(
                "{}/s now, {}/s on average; {}",
                units::show_size(self.sampled_bytes_per_second as u64),
                units::show_size(self.average_bytes_per_second as u64),
                self.limit()
            ),
        );
        if let Some(age) = slot.catalog_xmin_age.filter(|_| slot.kind == "logical") {
            line("catalogue", format!("row versions of the last {age} transactions are kept for it"));
        }
        match (slot.failover, slot.synced) {
            (Some(true), _) => line("failover", "follows a promotion".to_owned()),
            (Some(false), _) => line("failover", "does not follow a promotion".to_owned()),
            (None, _) => {}
        }
        let others: Vec<&Slot> = self.slots.iter().filter(|s| s.name != slot.name).collect();
        let worst = others.iter().max_by_key(|s| s.retained_bytes);
        line(
            "others",
            match worst {
                None => "no other slot on this server".to_owned(),
                Some(worst) => format!(
                    "{} more, of which {} keeps most: {}  (tillstream slot list)",
                    others.len(),
                    worst.name,
                    size(worst.retained_bytes)
                ),
            },
        );
        line("by hand", BY_HAND.to_owned());
        Some(out)
    }
}

/// Drops a slot.
///
/// # Errors
/// `slot.unknown`, `setup.slot_in_use`, `slot.not_permitted`; the server is away.
pub async fn drop_slot(catalog: &Catalog, name: &str) -> Result<(), CaptureError> {
    let definite = |code, what: String, why: String, fix: &str| CaptureError::Definite { code, what, why, fix: fix.to_owned() };
    let Some(slot) = catalog.slot(name).await? else {
        return Err(definite(
            "slot.unknown",
            format!("there is no slot \"{name}\""),
            "nothing was dropped".to_owned(),
            "tillstream slot list",
        ));
    };
    let in_use = |why: String| {
        definite("setup.slot_in_use", format!("slot \"{name}\" is in use"), why, "end the pipeline and its standbys, then run it again")
    };
    if let Some(pid) = slot.active_pid {
        return Err(in_use(format!("process {pid} streams from it")));
    }
    catalog.client().batch_execute(&sql::drop_slot(name)).await.map_err(|error| match error.code() {
        Some(code) if *code == SqlState::OBJECT_IN_USE => {
            in_use(error.as_db_error().map_or_else(String::new, |db| db.message().to_owned()))
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => definite(
            "slot.not_permitted",
            format!("the role \"{}\" may not drop slot \"{name}\"", catalog.server().user),
            "dropping a slot needs REPLICATION".to_owned(),
            "name a role that has it by --admin-url",
        ),
        _ => sql_error(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::setup::testing::source;

    fn row(json: serde_json::Value) -> Row {
        serde_json::from_value(json).expect("a row")
    }

    fn slots() -> Slots {
        let mut all = Slots {
            subject: "source pos".to_owned(),
            wal_lsn: "1/0".to_owned(),
            keep_bytes: Some(1 << 30),
            wal_bytes_per_second: 1024.0 * 1024.0,
            ..Slots::default()
        };
        let ours = row(
            serde_json::json!({"slot": {"slot_name": "s", "slot_type": "logical", "plugin": "pgoutput", "database": "pos", "active_pid": 7,
            "restart_lsn": "0/F0000000", "confirmed_flush_lsn": "0/FFF00000", "wal_status": "reserved", "safe_wal_size": 700_000_000}, "heard_seconds": 0.4, "reader": "tillstream/demo/capture as tillstream from 127.0.0.1"}),
        );
        let theirs = row(
            serde_json::json!({"slot": {"slot_name": "legacy", "slot_type": "logical", "restart_lsn": "0/0", "wal_status": "lost", "safe_wal_size": -5},
            "inactive_seconds": 7200.0}),
        );
        for row in [ours, theirs] {
            let slot = judge(row, &source(), "1/0".parse().expect("an LSN"), &all);
            all.slots.push(slot);
        }
        all
    }

    #[test]
    fn the_time_to_the_ceiling_counts_what_is_safe() {
        let all = slots();
        // 256 MiB of 1 GiB are kept, 768 would be left; the server itself says that fewer are safe.
        assert_eq!(all.slots[0].retained_bytes, Some(256 << 20));
        assert_eq!(all.slots[0].seconds_to_ceiling, Some(700_000_000 / 1_048_576));
        assert_eq!(all.slots[1].seconds_to_ceiling, None);
        assert_eq!(all.slots[1].invalidation_reason.as_deref(), Some("wal_status = lost"));
    }

    #[test]
    fn other_peoples_slots_are_told_apart() {
        let all = slots();
        let page = all.page("s").expect("a page");
        assert!(page.contains("this pipeline's") && page.contains("1 more, of which legacy keeps most: 4.0 GiB"), "{page}");
        assert!(page.contains("last heard 400 ms ago") && page.contains("1.0 MiB behind"), "{page}");
        let page = all.page("legacy").expect("a page");
        assert!(page.contains("somebody else's") && page.contains("LOST"), "{page}");
        assert!(all.table().contains("nobody for 2 h 0 m"), "{}", all.table());
        assert!(all.page("none").is_none());
    }
}
