//! The doctor inside `run`: the same rules with the same ids, again and again, so that what goes wrong later is said as well.
//!
//! What other watches of a run tell sooner is left to them: kept WAL (every five seconds), what the stream does not hold (every thirty).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::finding::{Finding, Report, Severity};
use super::{Facts, judge, rules};
use crate::capture::CaptureError;
use crate::capture::catalog::Catalog;
use crate::config;
use crate::control::now_ms;
use crate::ops::slots::{self, Slots};

/// How often it looks at the slots, ours and other people's: what somebody else's keeps fills the same disk.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Every so many looks it examines the rest: each five minutes. Settings, keys and roles change by hand; what needs minutes to hurt needs no look every second.
const REPORT_EVERY: u32 = 10;

/// Told sooner by capture's watch and by coverage.
const TOLD_ELSEWHERE: [&str; 10] = [
    "capture.wal_warn",
    "capture.wal_page",
    "capture.wal_shed",
    "capture.slot_active",
    "capture.publication_missing",
    "capture.publication_lacks_table",
    "capture.publication_partial",
    "capture.publication_row_filter",
    "capture.columns_not_published",
    "capture.table_missing",
];

/// What the last look found.
#[derive(Debug, Default)]
pub struct Watched {
    report: Mutex<Option<(i64, Report)>>,
    slots: Mutex<Option<(i64, Slots)>>,
}

impl Watched {
    /// When it looked last (milliseconds since the Unix epoch), and what is to be mended, worst first.
    #[must_use]
    pub fn findings(&self) -> Option<(i64, Vec<Finding>)> {
        let seen = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().map(|(at, report)| (*at, bad(report).cloned().collect()))
    }

    /// The whole report of the last look.
    #[must_use]
    pub fn report(&self) -> Option<(i64, Report)> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the server's slots were looked at last (milliseconds since the Unix epoch), and all of them.
    #[must_use]
    pub fn slots(&self) -> Option<(i64, Slots)> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what was found, and logs what is new and what is over.
    fn tell(&self, report: Report) {
        let before = self.report.lock().unwrap_or_else(PoisonError::into_inner).replace((now_ms(), report.clone()));
        let before = before.map(|(_, report)| report).unwrap_or_default();
        // Numbers in a text change with every look; that it is there is news once.
        let known = |report: &Report, finding: &Finding| bad(report).any(|f| f.id == finding.id && f.severity == finding.severity);
        for finding in bad(&report).filter(|f| !known(&before, f)) {
            let Finding { id: code, what, impact, fix, .. } = finding;
            tracing::warn!(code, severity = finding.severity.as_str(), impact, fix, "{what}");
        }
        for finding in bad(&before).filter(|f| !bad(&report).any(|now| now.id == f.id)) {
            tracing::info!(code = finding.id, "no longer: {}", finding.what);
        }
    }
}

fn bad(report: &Report) -> impl Iterator<Item = &Finding> {
    report.findings.iter().filter(|f| f.severity <= Severity::Warn)
}

/// One look, by a connection that is closed again: one that stayed would keep the server from an orderly shutdown.
async fn look(source: &config::Source, pipeline: &str) -> Result<Report, CaptureError> {
    let catalog = Catalog::connect(source, pipeline, "doctor").await?;
    let facts = Facts::read(&catalog, source, pipeline).await?;
    let mut findings = judge(source, &facts);
    findings.retain(|f| !TOLD_ELSEWHERE.contains(&f.id));
    findings.sort_by_key(|f| (f.severity, f.hurts));
    Ok(Report { subject: format!("source {}", source.name), findings, unchecked: rules::unchecked(&facts) })
}

/// All slots, by a connection that is closed again.
async fn look_at_slots(source: &config::Source, pipeline: &str) -> Result<Slots, CaptureError> {
    let catalog = Catalog::connect(source, pipeline, "doctor").await?;
    slots::look(source, &catalog, Duration::ZERO).await
}

/// Looks until it is stopped; a server that is away is asked again at the next turn, and capture says what it waits for.
pub async fn watch(source: config::Source, pipeline: String, watched: Arc<Watched>, stop: CancellationToken) {
    for turn in 0_u32.. {
        if turn.is_multiple_of(REPORT_EVERY) {
            match look(&source, &pipeline).await {
                Ok(report) => watched.tell(report),
                Err(error) => tracing::debug!(%error, "the source was not examined"),
            }
        }
        match look_at_slots(&source, &pipeline).await {
            Ok(slots) => *watched.slots.lock().unwrap_or_else(PoisonError::into_inner) = Some((now_ms(), slots)),
            Err(error) => tracing::debug!(%error, "the server's slots were not looked at"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::doctor::checks;

    #[test]
    fn what_others_tell_is_known_and_the_rest_is_kept() {
        assert!(TOLD_ELSEWHERE.iter().all(|id| checks::find(id).is_some()));
        let watched = Watched::default();
        assert_eq!(watched.findings(), None);
        let findings = vec![
            Finding::bad(Severity::Warn, "capture.wal_unlimited", "no limit", "the disk fills", "set one"),
            Finding::ok("capture.encoding", "fine"),
        ];
        watched.tell(Report { findings, ..Report::default() });
        let (_, found) = watched.findings().expect("looked");
        assert_eq!(found.iter().map(|f| f.id).collect::<Vec<_>>(), ["capture.wal_unlimited"]);
        watched.tell(Report::default());
        assert!(watched.findings().expect("looked").1.is_empty());
    }
}
