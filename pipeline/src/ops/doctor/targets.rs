//! The doctor at each connector's target: reachable, permitted, and on time. Changes nothing there.

use futures_util::future::join_all;
use tillstream_connectors::sink::LaneId;
use tokio::time::Instant;

use super::{ANSWER_WITHIN, Finding, Report, Severity, Unchecked};
use crate::config::{Connector, Pipeline};
use crate::control::now_ms;

/// A target's clock that is further off makes its times useless for finding out what came when. HTTP tells whole seconds.
const CLOCK_OFFSET_MAX_MS: i64 = 5_000;

/// All targets at once.
pub async fn targets(pipeline: &Pipeline) -> Report {
    let mut report = Report::default();
    for one in join_all(pipeline.connectors.iter().map(target)).await {
        report.add(one);
    }
    report
}

async fn target(connector: &Connector) -> Report {
    let lane = LaneId { connector: connector.name.clone(), partition: 0, lane: 0 };
    let mut sink = connector.target.build(lane, connector.on_delete);
    let name = &connector.name;
    let mut report = Report::default();
    let until = Instant::now() + ANSWER_WITHIN;
    let error = match tokio::time::timeout_at(until, sink.check()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {:.1} s", ANSWER_WITHIN.as_secs_f64())),
    };
    if let Some(error) = error {
        report.findings.push(Finding::bad(
            Severity::Fail,
            "connector.target",
            format!("connector {name}: {error}"),
            "events wait in the journal until it works",
            "mend the target, or the connector's `to:` block",
        ));
        return report;
    }
    report.findings.push(Finding::ok("connector.target", format!("connector {name}: its target answers and permits")));
    let asked = now_ms();
    match tokio::time::timeout_at(until, sink.clock()).await {
        Ok(Ok(Some(clock))) => {
            let offset = clock - (asked + now_ms()) / 2;
            report.findings.push(if offset.abs() > CLOCK_OFFSET_MAX_MS {
                Finding::bad(
                    Severity::Warn,
                    "connector.clock_offset",
                    format!("connector {name}: its target's clock is {:+.0} s from ours", offset as f64 / 1000.0),
                    "times there do not compare with times here; signed requests and tokens may be refused as too old or too new",
                    "let both hosts follow the same time server",
                )
            } else {
                Finding::ok("connector.clock_offset", format!("connector {name}: the clocks agree"))
            });
        }
        _ => report
            .unchecked
            .push(Unchecked::new(format!("clock of connector {name}'s target"), "a target of this kind does not tell its time")),
    }
    report
}
