//! The doctor beyond the source: the journal and each connector's target. Reads only.

use std::time::Duration;

use tillstream_connectors::sink::LaneId;

use super::{Finding, Report, Severity};
use crate::config::Pipeline;
use crate::journal::{JournalError, Log};

/// A server that does not answer a light question within this time is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The journal: reachable, of a version that works, and its logs there.
pub async fn journal(pipeline: &Pipeline, report: &mut Report) {
    let failed = |error: &JournalError| Finding {
        severity: Severity::Fail,
        impact: "changes cannot be stored, so PostgreSQL keeps its WAL meanwhile".to_owned(),
        fix: crate::ops::codes::find(error.code()).map_or_else(String::new, |known| known.fix.to_owned()),
        ..Finding::ok(error.code(), error.to_string())
    };
    let journal = match crate::journal::open(&pipeline.journal, "tillstream doctor") {
        Ok(journal) => journal,
        Err(error) => return report.findings.push(failed(&error)),
    };
    match in_time(journal.describe()).await {
        Ok(kind) => report.findings.push(Finding::ok("journal.unavailable", format!("the journal answers: {kind}"))),
        Err(error) => {
            report.findings.push(failed(&error));
            return report.unchecked.push("the journal's logs".to_owned());
        }
    }
    let mut missing = Vec::new();
    for log in (0..journal.partitions()).map(Log::Data).chain([Log::Control]) {
        match in_time(journal.bounds(log)).await {
            Ok(_) => {}
            Err(JournalError::Missing(name)) => missing.push(name),
            Err(error) => report.findings.push(failed(&error)),
        }
    }
    if missing.is_empty() {
        report.findings.push(Finding::ok("journal.missing", format!("{} partitions and the control log are there", journal.partitions())));
    } else {
        report.findings.push(Finding {
            severity: Severity::Warn,
            impact: "none before the first run; after it, what they held is lost".to_owned(),
            fix: "`tillstream run` creates them; if they were deleted, load the tables again".to_owned(),
            ..Finding::ok("journal.missing", format!("not there: {}", missing.join(", ")))
        });
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
    let late = JournalError::Unavailable(format!("no answer within {} s", ANSWER_WITHIN.as_secs()));
    tokio::time::timeout(ANSWER_WITHIN, work).await.unwrap_or(Err(late))
}

/// Each connector's target: reachable and permitted.
pub async fn targets(pipeline: &Pipeline, report: &mut Report) {
    for connector in &pipeline.connectors {
        let lane = LaneId { connector: connector.name.clone(), partition: 0, lane: 0 };
        let mut sink = connector.target.build(lane, connector.on_delete);
        let name = &connector.name;
        let fix = || "mend the target, or the connector's `to:` block".to_owned();
        match tokio::time::timeout(ANSWER_WITHIN, sink.check()).await {
            Ok(Ok(())) => {
                report.findings.push(Finding::ok("connector.target", format!("connector {name}: its target answers and permits")))
            }
            Ok(Err(error)) => report.findings.push(Finding {
                severity: Severity::Fail,
                impact: "events wait in the journal until it works".to_owned(),
                fix: fix(),
                ..Finding::ok("connector.target", format!("connector {name}: {error}"))
            }),
            Err(_) => report.findings.push(Finding {
                severity: Severity::Fail,
                impact: "events wait in the journal until it works".to_owned(),
                fix: fix(),
                ..Finding::ok("connector.target", format!("connector {name}: no answer within {} s", ANSWER_WITHIN.as_secs()))
            }),
        }
    }
}
