//! The doctor at the journal: reachable, its logs there and led, how long its entries last, and who is about to miss some. Reads only.
//!
//! Everything here is what the stream protocol tells; what only the broker's management knows is named as not checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{ANSWER_WITHIN, Finding, Report, Severity, Unchecked};
use crate::config::{self, Pipeline, Retention, units};
use crate::control::{self, now_ms};
use crate::journal::{Bounds, Copies, From, Journal, JournalError, Log, Offset};
use crate::ops::kept::remaining;

/// Retention removes whole segments: with fewer of them than this, a good part of the window goes at once.
const SEGMENTS_MIN: u64 = 4;

/// A broker's clock that is further ahead makes entries look younger than they are.
const CLOCK_AHEAD_MAX_MS: i64 = 2_000;

/// A connector that is nearer to losing entries needs a person now.
const LOSS_NEAR: Duration = Duration::from_secs(3600);

/// The journal, as configured.
pub async fn journal(pipeline: &Pipeline) -> Report {
    let mut report = Report::default();
    let until = Instant::now() + ANSWER_WITHIN;
    let retention = pipeline.journal.retention();
    let segment = match &pipeline.journal {
        config::Journal::Rabbitmq(rabbit) => Some(rabbit.segment_bytes),
        config::Journal::Local(_) => None,
    };
    if let Some(segment) = segment {
        report.findings.push(segments(retention, segment));
        report.unchecked.push(Unchecked::new(
            "the broker's alarms, its free disk, and how many producer names a stream has (255 at most)",
            "the stream protocol does not tell them; `rabbitmq-diagnostics check_alarms` does, and the broker's own metrics",
        ));
    } else {
        report.unchecked.push(Unchecked::new("free disk of the journal's directory", "look with `df`; retention bounds what it takes"));
    }
    let journal = match crate::journal::open(&pipeline.journal, "tillstream doctor") {
        Ok(journal) => journal,
        Err(error) => {
            report.findings.push(failed(&error));
            return report;
        }
    };
    match in_time(until, journal.describe()).await {
        Ok(kind) => report.findings.push(Finding::ok("journal.unavailable", format!("the journal answers: {kind}"))),
        // A file that nobody has written yet.
        Err(JournalError::Missing(name)) => {
            report.findings.push(missing(&name));
            return report;
        }
        Err(error) => {
            report.findings.push(failed(&error));
            report.unchecked.push(Unchecked::new("the journal's logs", "it does not answer"));
            return report;
        }
    }
    let (extents, copies, control) = tokio::join!(
        extents(until, journal.as_ref()),
        in_time(until, journal.copies()),
        tokio::time::timeout_at(until, control::replay(journal.as_ref()))
    );
    if lacking(&mut report, journal.as_ref(), &extents) {
        return report;
    }
    match copies {
        Ok(copies) => report.findings.extend(spread(&copies)),
        Err(error) => report.unchecked.push(Unchecked::new("leaders and copies of the streams", error.to_string())),
    }
    match control {
        Ok(Ok(state)) => {
            let mut stands: BTreeMap<u16, (Offset, String)> = BTreeMap::new();
            let configured = |name: &str| pipeline.connectors.iter().any(|c| c.name == name);
            for checkpoint in state.checkpoints().filter(|c| configured(&c.connector)) {
                let stand = (checkpoint.offset, checkpoint.connector.clone());
                stands.entry(checkpoint.partition).and_modify(|s| *s = s.clone().min(stand.clone())).or_insert(stand);
            }
            let looks = stands.into_iter().filter_map(|(partition, stand)| {
                let bounds = extents.iter().find(|(log, _)| *log == Log::Data(partition))?.1.as_ref().ok().copied().flatten()?;
                Some(loss(until, journal.as_ref(), partition, stand, bounds, retention))
            });
            let found: Vec<Finding> = join_all(looks).await.into_iter().flatten().collect();
            if found.is_empty() {
                report.findings.push(Finding::ok("journal.retention_near", "no connector is near the end of what the journal keeps"));
            }
            report.findings.extend(found);
        }
        Ok(Err(error)) => report.unchecked.push(Unchecked::new("how far connectors are", error.to_string())),
        Err(_) => report.unchecked.push(Unchecked::new("how far connectors are", "the control log could not be read in time")),
    }
    if let Ok(Some(chunk)) = in_time(until, journal.tail(Log::Control)).await {
        let ahead = chunk.stored_at_ms - now_ms();
        report.findings.push(if ahead > CLOCK_AHEAD_MAX_MS {
            Finding::bad(
                Severity::Warn,
                "journal.clock_offset",
                format!("the journal's newest entry was stored {:.1} s from now by its clock", ahead as f64 / 1000.0),
                "retention by age and `--from TIME` are off by as much",
                "let the broker's nodes follow the same time server as this host",
            )
        } else {
            Finding::ok("journal.clock_offset", "the journal's clock is not ahead of ours")
        });
    }
    report
}

type Extents = Vec<(Log, Result<Option<Bounds>, JournalError>)>;

async fn extents(until: Instant, journal: &dyn Journal) -> Extents {
    let logs = (0..journal.partitions()).map(Log::Data).chain([Log::Control]);
    join_all(logs.map(|log| async move { (log, in_time(until, journal.bounds(log)).await) })).await
}

/// Whether logs are missing, which is said.
fn lacking(report: &mut Report, journal: &dyn Journal, extents: &Extents) -> bool {
    let mut absent = Vec::new();
    for (_, extent) in extents {
        match extent {
            Ok(_) => {}
            Err(JournalError::Missing(name)) => absent.push(name.clone()),
            Err(error) => report.findings.push(failed(error)),
        }
    }
    if absent.is_empty() {
        let what = format!("{} partitions and the control log are there", journal.partitions());
        report.findings.push(Finding::ok("journal.missing", what));
        return extents.iter().any(|(_, extent)| extent.is_err());
    }
    report.findings.push(missing(&absent.join(", ")));
    true
}

fn missing(names: &str) -> Finding {
    Finding::bad(
        Severity::Warn,
        "journal.missing",
        format!("not there: {names}"),
        "none before the first run; after it, what they held is lost",
        "`tillstream run` creates them; if they were deleted, load the tables again",
    )
}

fn failed(error: &JournalError) -> Finding {
    let fix = crate::ops::codes::find(error.code()).map_or("", |known| known.fix);
    let impact = "changes cannot be stored, so PostgreSQL keeps its WAL meanwhile";
    Finding::bad(Severity::Fail, error.code(), error.to_string(), impact, fix)
}

async fn in_time<T>(until: Instant, work: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
    let late = JournalError::Unavailable(format!("no answer within {:.1} s", ANSWER_WITHIN.as_secs_f64()));
    tokio::time::timeout_at(until, work).await.unwrap_or(Err(late))
}

/// Segment size against retention. Below two segments set-up refuses.
fn segments(retention: Retention, segment: u64) -> Finding {
    let show = units::show_size;
    match retention.bytes {
        Some(bytes) if bytes < 2 * segment => Finding::bad(
            Severity::Fail,
            "journal.unusable",
            format!("a retention of {} is less than two segments of {}", show(bytes), show(segment)),
            "the pipeline does not start: retention removes whole segments, and would take all but the newest entries at once",
            "lower journal.rabbitmq.segment or raise retention.bytes",
        ),
        Some(bytes) if bytes < SEGMENTS_MIN * segment => Finding::bad(
            Severity::Warn,
            "journal.segments_coarse",
            format!("a retention of {} is {} segments of {}", show(bytes), bytes / segment, show(segment)),
            "retention removes whole segments: a slow connector loses a large part of the window at once",
            format!("set journal.rabbitmq.segment to {} or less, in a new stream", show(bytes / SEGMENTS_MIN / 2)),
        ),
        _ => Finding::ok("journal.segments_coarse", "retention is made of enough segments"),
    }
}

/// Leaders and copies.
fn spread(copies: &[Copies]) -> Vec<Finding> {
    let name = |log: Log| match log {
        Log::Data(n) => format!("partition {n}"),
        Log::Control => "the control log".to_owned(),
    };
    let mut found = Vec::new();
    if copies.is_empty() {
        return found;
    }
    let headless: Vec<String> = copies.iter().filter(|c| c.leader.is_none()).map(|c| name(c.log)).collect();
    if headless.is_empty() {
        found.push(Finding::ok("journal.no_leader", "every stream has a leader"));
    } else {
        found.push(Finding::bad(
            Severity::Fail,
            "journal.no_leader",
            format!("without a leader: {}", headless.join(", ")),
            "nothing can be stored there, so capture waits and PostgreSQL keeps its WAL",
            "bring the broker's nodes back: a majority of a stream's copies is needed (`rabbitmq-streams stream_status NAME`)",
        ));
    }
    let single: Vec<&Copies> = copies.iter().filter(|c| c.leader.is_some() && c.replicas.is_empty()).collect();
    let local = |c: &&Copies| c.leader.as_ref().is_some_and(|l| ["127.0.0.1:", "localhost:", "::1:"].iter().any(|h| l.starts_with(h)));
    if single.is_empty() {
        found.push(Finding::ok("journal.one_copy", "every stream has copies on several nodes"));
    } else {
        let severity = if single.iter().all(local) { Severity::Note } else { Severity::Warn };
        found.push(Finding::bad(
            severity,
            "journal.one_copy",
            format!("{} of {} streams have one copy", single.len(), copies.len()),
            "a broken disk takes confirmed events with it; what PostgreSQL still keeps is sent again, the rest has to be loaded",
            "three nodes and journal.rabbitmq.replicas: 3, in a new stream (or `rabbitmq-streams add_replica`)",
        ));
    }
    let data: Vec<&Copies> = copies.iter().filter(|c| matches!(c.log, Log::Data(_))).collect();
    let leaders: BTreeSet<&String> = data.iter().filter_map(|c| c.leader.as_ref()).collect();
    let nodes: BTreeSet<&String> = data.iter().flat_map(|c| c.leader.iter().chain(&c.replicas)).collect();
    if nodes.len() > 1 && data.len() > 1 && leaders.len() == 1 {
        found.push(Finding::bad(
            Severity::Warn,
            "journal.leaders_together",
            format!("one of {} nodes leads all {} partitions", nodes.len(), data.len()),
            "that node carries all writes, and its restart interrupts every partition at once",
            "`rabbitmq-queues rebalance stream`",
        ));
    } else {
        found.push(Finding::ok("journal.leaders_together", "partitions are led by as many nodes as there are, or there is one"));
    }
    found
}

/// How long the slowest connector of a partition has until what it needs is removed.
async fn loss(
    until: Instant,
    journal: &dyn Journal,
    partition: u16,
    stand: (Offset, String),
    bounds: Bounds,
    retention: Retention,
) -> Option<Finding> {
    let (offset, connector) = stand;
    if offset > bounds.last {
        return None;
    }
    let stored = async |from: From| -> Result<i64, JournalError> {
        in_time(until, async {
            let mut reader = journal.reader(Log::Data(partition), from).await?;
            Ok(reader.next().await?.stored_at_ms)
        })
        .await
    };
    let needed = match stored(From::Offset(offset)).await {
        Ok(at) => at,
        Err(error @ JournalError::Expired { .. }) => {
            return Some(Finding::bad(
                Severity::Fail,
                error.code(),
                format!("connector {connector}, partition {partition}: {error}"),
                "events that it had not delivered are gone: its target stays behind the point of sale",
                "raise retention, then `tillstream backfill start --connector NAME` for its tables",
            ));
        }
        Err(_) => return None,
    };
    let oldest = if bounds.first > Offset(0) { stored(From::First).await.ok() } else { None };
    remaining(needed, oldest, now_ms(), retention).and_then(|(left, window)| verdict(&connector, partition, left, window))
}

fn verdict(connector: &str, partition: u16, left_ms: i64, window_ms: i64) -> Option<Finding> {
    let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
    // A small window is small from the beginning: half of it has to be gone before that is news.
    let near = left < LOSS_NEAR && left_ms <= window_ms / 2;
    if !near && left_ms > window_ms / 4 {
        return None;
    }
    let severity = if near { Severity::Fail } else { Severity::Warn };
    Some(Finding::bad(
        severity,
        "journal.retention_near",
        format!("connector {connector}, partition {partition}: what it needs next is removed in {}", units::show_duration(left)),
        "then its target misses events, and its tables have to be loaded again",
        "make its target take events (`tillstream status`), or raise the stream's retention by a policy of the broker now",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copies(log: Log, leader: Option<&str>, replicas: &[&str]) -> Copies {
        Copies { log, leader: leader.map(str::to_owned), replicas: replicas.iter().map(|r| (*r).to_owned()).collect() }
    }

    fn bad(found: &[Finding]) -> Vec<(Severity, &str)> {
        found.iter().filter(|f| f.severity != Severity::Ok).map(|f| (f.severity, f.id)).collect()
    }

    #[test]
    fn leaders_and_copies_are_judged() {
        let three = |leader: &str, n| copies(Log::Data(n), Some(leader), &["b:5552", "c:5552"]);
        assert_eq!(bad(&spread(&[three("a:5552", 0), three("d:5552", 1)])), []);
        assert_eq!(bad(&spread(&[three("a:5552", 0), three("a:5552", 1)])), [(Severity::Warn, "journal.leaders_together")]);
        assert_eq!(bad(&spread(&[copies(Log::Data(0), Some("a:5552"), &[])])), [(Severity::Warn, "journal.one_copy")]);
        assert_eq!(bad(&spread(&[copies(Log::Data(0), Some("127.0.0.1:5552"), &[])])), [(Severity::Note, "journal.one_copy")]);
        assert_eq!(bad(&spread(&[copies(Log::Control, None, &["a:1"])])), [(Severity::Fail, "journal.no_leader")]);
        assert_eq!(bad(&spread(&[])), []);
    }

    #[test]
    fn segments_are_held_against_retention() {
        let judged = |bytes| segments(Retention { age: None, bytes: Some(bytes) }, 100).severity;
        assert_eq!([199, 200, 399, 400].map(judged), [Severity::Fail, Severity::Warn, Severity::Warn, Severity::Ok]);
        assert_eq!(segments(Retention::default(), 100).severity, Severity::Ok);
    }

    #[test]
    fn who_is_about_to_miss_entries_is_told_in_time() {
        let hour = 3_600_000;
        let severity = |left: i64, window: i64| verdict("c", 0, left, window).map(|f| f.severity);
        assert_eq!(severity(167 * hour, 168 * hour), None);
        assert_eq!(severity(40 * hour, 168 * hour), Some(Severity::Warn));
        assert_eq!(severity(hour / 2, 168 * hour), Some(Severity::Fail));
        assert_eq!(severity(hour / 2, hour / 2), None, "a small window that is full");
    }
}
