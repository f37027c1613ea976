//! `tillstream doctor`: what would keep the pipeline from working, or hurt the point of sale; reads only.
//!
//! ```text
//! facts (fewer than twenty light queries, any login) ─▶ rules (pure) ─▶ findings ─▶ report ─▶ people, JSON, console
//!                      └────────── again and again inside `run`: watch ──────────┘
//! ```
//!
//! Owns the findings about the source, the journal and the targets, their order and how they are shown; [`checks`] holds what is the same
//! each time, [`versions`] what each PostgreSQL brings. Never changes anything, takes no slot, and shows no row value. What a login may not
//! see is named as not checked, and never fails the command.

use std::time::Duration;

use secrecy::SecretString;

use crate::capture::CaptureError;
use crate::capture::catalog::Catalog;
use crate::capture::wire::{Locality, Method, PgSource, application_name};
use crate::config;

pub mod checks;
mod facts;
mod finding;
mod journal;
mod rules;
mod targets;
pub mod versions;
mod watch;

pub use checks::{Group, Hurts, Needs, Only};
pub use facts::Facts;
pub use finding::{FailOn, Finding, Report, Severity, Unchecked};
pub use journal::journal;
pub use rules::judge;
pub use targets::targets;
pub use watch::{Watched, watch};

/// The whole look takes less than five seconds: whatever has not answered by then is named as such.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(4500);

/// Looks at source, journal and targets at once, and keeps what is wanted, worst first.
pub async fn look(pipeline: &config::Pipeline, login: Option<&SecretString>, only: &Only) -> Report {
    let source = async {
        match only.wants_any(&Group::SOURCE) {
            true => examine_as(&pipeline.source, &pipeline.name, login).await,
            false => Report { subject: format!("source {}", pipeline.source.name), ..Report::default() },
        }
    };
    let journal = async {
        match only.wants_any(&[Group::Journal]) {
            true => journal(pipeline).await,
            false => Report::default(),
        }
    };
    let targets = async {
        match only.wants_any(&[Group::Targets]) {
            true => targets(pipeline).await,
            false => Report::default(),
        }
    };
    let (mut report, journal, targets) = tokio::join!(source, journal, targets);
    report.add(journal);
    report.add(targets);
    report.finish(only);
    report
}

/// Looks at the source as the role of its URL.
pub async fn examine(source: &config::Source, pipeline: &str) -> Report {
    let mut report = examine_as(source, pipeline, None).await;
    report.finish(&Only::default());
    report
}

/// Looks at the source by any login; what is said of roles is about those that the configuration names.
pub async fn examine_as(source: &config::Source, pipeline: &str, login: Option<&SecretString>) -> Report {
    let (mut report, stream) = tokio::join!(catalogue(source, pipeline, login), try_replication(source, pipeline));
    // What kept us out of the catalogue usually keeps the stream out too: that is said once.
    if !report.findings.iter().any(|f| f.severity == Severity::Fail && f.id == stream.id) {
        report.findings.push(stream);
    }
    report
}

async fn catalogue(source: &config::Source, pipeline: &str, login: Option<&SecretString>) -> Report {
    let mut report = Report { subject: format!("source {}", source.name), ..Report::default() };
    let looking = async {
        let url = login.unwrap_or(&source.url);
        let catalog = Catalog::connect_url(url, &application_name(pipeline, "doctor"), source.allow_weak_auth).await?;
        Facts::read(&catalog, source, pipeline).await
    };
    match in_time(looking).await {
        Ok(facts) => {
            let server = &facts.server;
            report.subject = format!(
                "source {}   PostgreSQL {} ({})   database {}   role {}",
                source.name,
                server.version,
                facts.provider.name(),
                server.database,
                server.user
            );
            report.findings = judge(source, &facts);
            report.unchecked = rules::unchecked(&facts);
        }
        Err(error) => {
            report.findings.push(Finding::failed(&error));
            let why = if login.is_some() { "no connection" } else { "no connection; --login-url names any other login to look with" };
            report.unchecked.push(Unchecked::new("everything that the catalogue tells", why));
        }
    }
    report
}

async fn in_time<T>(work: impl Future<Output = Result<T, CaptureError>>) -> Result<T, CaptureError> {
    let late = || CaptureError::Unavailable(format!("the server did not answer within {:.1} s", ANSWER_WITHIN.as_secs_f64()));
    tokio::time::timeout(ANSWER_WITHIN, work).await.unwrap_or_else(|_| Err(late()))
}

/// Logs in as the stream would, which needs its own line in pg_hba.conf and passes no pooler. Takes no slot.
async fn try_replication(source: &config::Source, pipeline: &str) -> Finding {
    let id = "capture.source_unavailable";
    match in_time(PgSource::new(source, pipeline).log_in()).await {
        Ok(mut connection) => {
            use crate::capture::source::Replication;
            let method = connection.method();
            connection.stop().await;
            let local = crate::capture::wire::locality(&source.url).is_ok_and(|l| l == Locality::Local);
            match method {
                Method::None if local => Finding::ok(id, "a replication connection is accepted, without a password"),
                Method::None => Finding::bad(
                    Severity::Warn,
                    "capture.auth_none",
                    "a replication connection from another host is accepted without a password",
                    "whoever reaches the port can read every change of the point of sale",
                    "write scram-sha-256 in place of trust in pg_hba.conf, then SELECT pg_reload_conf();",
                ),
                Method::Scram => Finding::ok(id, "a replication connection is accepted, by SCRAM-SHA-256"),
                Method::ScramPlus => {
                    Finding::ok(id, "a replication connection is accepted, by SCRAM-SHA-256-PLUS, bound to the server's certificate")
                }
                Method::Weak => Finding::bad(
                    Severity::Warn,
                    "capture.auth_weak",
                    "a replication connection is accepted by a weak method, which source.allow_weak_auth permits",
                    "whoever listens can log in as the pipeline",
                    "write scram-sha-256 in pg_hba.conf, set the password anew, and take source.allow_weak_auth out",
                ),
            }
        }
        Err(error) => Finding::failed(&error),
    }
}
