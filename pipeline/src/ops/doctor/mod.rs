//! `tillstream doctor`: what would keep the pipeline from working, or hurt the point of sale; reads only.
//!
//! Owns the findings about the source, their order and how they are shown. Other areas add findings of theirs to the
//! same [`Report`]. Never changes anything, takes no slot, and shows no row value.

use std::fmt;

use serde::Serialize;

use crate::capture::CaptureError;
use crate::capture::catalog::Catalog;
use crate::capture::wire::{Method, PgSource};
use crate::config;

mod beyond;
mod facts;
mod rules;

pub use beyond::{journal, targets};
pub use facts::Facts;
pub use rules::{LAST_MAJOR, judge};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pipeline cannot work, or the point of sale is or will be hurt.
    Fail,
    /// It works, and should be mended.
    Warn,
    /// Checked and fine.
    Ok,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable dotted code; where capture would fail with an error, that error's code.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// The SQL that shows it, to be run by hand.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub evidence: &'static str,
    /// What it means for the point of sale or its targets.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub impact: String,
    /// What mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// Whether mending it needs a restart of the server.
    pub restart: bool,
}

impl Finding {
    /// Something that is fine.
    #[must_use]
    pub fn ok(id: &'static str, what: impl Into<String>) -> Finding {
        let nothing = String::new();
        Finding { id, severity: Severity::Ok, what: what.into(), evidence: "", impact: nothing.clone(), fix: nothing, restart: false }
    }

    /// An error that stops what was tried.
    #[must_use]
    pub fn failed(error: &CaptureError) -> Finding {
        let (what, impact, fix) = match error {
            CaptureError::Definite { what, why, fix, .. } => (what.clone(), why.clone(), fix.clone()),
            other => (other.to_string(), "nothing can be captured meanwhile".to_owned(), "check host, port and network".to_owned()),
        };
        Finding {
            id: error.code(),
            severity: Severity::Fail,
            what,
            evidence: "",
            impact,
            fix,
            restart: error.code() == "capture.wal_level",
        }
    }
}

/// All findings about one pipeline.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What was looked at: source, version, database, role.
    pub subject: String,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<String>,
}

impl Report {
    /// How many findings are this bad.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// The exit code: 1 when something fails.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(self.count(Severity::Fail) > 0)
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "subject": self.subject,
            "fail": self.count(Severity::Fail), "warn": self.count(Severity::Warn), "ok": self.count(Severity::Ok),
            "findings": self.findings, "unchecked": self.unchecked,
        })
    }

    /// For people; `verbose` shows what is fine as well.
    #[must_use]
    pub fn render(&self, verbose: bool) -> Rendered<'_> {
        Rendered { report: self, verbose }
    }
}

/// A [`Report`] as text.
pub struct Rendered<'a> {
    report: &'a Report,
    verbose: bool,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        writeln!(f, "{}", report.subject)?;
        let width = report.findings.iter().map(|x| x.id.len()).max().unwrap_or(0);
        let mut sorted: Vec<&Finding> = report.findings.iter().collect();
        sorted.sort_by_key(|finding| finding.severity);
        for finding in sorted {
            let word = match finding.severity {
                Severity::Fail => "FAIL",
                Severity::Warn => "WARN",
                Severity::Ok if self.verbose => "OK",
                Severity::Ok => continue,
            };
            writeln!(f, " {word:<4}  {:<width$}  {}", finding.id, finding.what)?;
            let restart = if finding.restart { "  (RESTART of PostgreSQL needed)" } else { "" };
            for (name, text) in [("impact", finding.impact.as_str()), ("fix", finding.fix.as_str()), ("see", finding.evidence)] {
                if !text.is_empty() {
                    writeln!(f, "       {name:<6}  {text}{}", if name == "fix" { restart } else { "" })?;
                }
            }
        }
        let fine = report.count(Severity::Ok);
        if fine > 0 && !self.verbose {
            writeln!(f, " OK    {fine} checks    (show with --verbose)")?;
        }
        for reason in &report.unchecked {
            writeln!(f, "not checked: {reason}")?;
        }
        if report.count(Severity::Fail) > 0 {
            writeln!(f, "next: tillstream setup --dry-run")?;
        }
        Ok(())
    }
}

/// Looks at the source as the role of its URL.
pub async fn examine(source: &config::Source, pipeline: &str) -> Report {
    let mut report = Report { subject: format!("source {}", source.name), ..Report::default() };
    let catalog = match Catalog::connect(source, pipeline, "doctor").await {
        Ok(catalog) => catalog,
        Err(error) => {
            report.findings.push(Finding::failed(&error));
            report.unchecked.push("everything that needs a connection".to_owned());
            return report;
        }
    };
    let server = catalog.server();
    report.subject =
        format!("source {}   PostgreSQL {}   database {}   role {}", source.name, server.version, server.database, server.user);
    match Facts::read(&catalog, source, pipeline).await {
        Ok(facts) => {
            report.findings = judge(source, &facts);
            report.unchecked = rules::unchecked(&facts);
        }
        Err(error) => report.findings.push(Finding::failed(&error)),
    }
    report.findings.push(try_replication(source, pipeline).await);
    report
}

/// Logs in as the stream would, which needs its own line in pg_hba.conf and passes no pooler. Takes no slot.
async fn try_replication(source: &config::Source, pipeline: &str) -> Finding {
    match PgSource::new(source, pipeline).log_in().await {
        Ok(mut connection) => {
            use crate::capture::source::Replication;
            let how = match connection.method() {
                Method::None => "without a password",
                Method::Scram => "by SCRAM-SHA-256",
                Method::ScramPlus => "by SCRAM-SHA-256-PLUS, bound to the server's certificate",
                Method::Weak => "by a weak method, which source.allow_weak_auth permits",
            };
            connection.stop().await;
            Finding::ok("capture.source_unavailable", format!("a replication connection is accepted, {how}"))
        }
        Err(error) => Finding::failed(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_first_and_decide_the_exit_code() {
        let warn = Finding { severity: Severity::Warn, fix: "do".to_owned(), ..Finding::ok("a.warn", "odd") };
        let fail = Finding { severity: Severity::Fail, restart: true, fix: "mend".to_owned(), ..Finding::ok("a.fail", "broken") };
        let mut report =
            Report { subject: "source pos".to_owned(), findings: vec![Finding::ok("a.ok", "fine"), warn], ..Report::default() };
        assert_eq!(report.exit_code(), 0);
        report.findings.push(fail);
        assert_eq!(report.exit_code(), 1);
        let text = report.render(false).to_string();
        assert!(text.find("FAIL").expect("shown") < text.find("WARN").expect("shown"));
        assert!(text.contains("RESTART") && text.contains("1 checks") && !text.contains("a.ok"));
        assert!(report.render(true).to_string().contains("a.ok"));
        assert_eq!(report.to_json()["findings"][2]["severity"], "fail");
    }
}
