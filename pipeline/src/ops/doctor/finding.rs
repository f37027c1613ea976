//! What a check found, and the report that holds all of it: the same value for people, for machines and for the console.

use std::fmt;

use serde::Serialize;

use super::checks::{self, Check, Group, Hurts, Needs, Only};
use crate::capture::CaptureError;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pipeline cannot work, or the point of sale is or will be hurt.
    Fail,
    /// It works, and should be mended.
    Warn,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Checked and fine.
    Ok,
}

impl Severity {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Fail => "fail",
            Severity::Warn => "warn",
            Severity::Note => "note",
            Severity::Ok => "ok",
        }
    }
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable dotted code; where capture would fail with an error, that error's code.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub group: Group,
    /// What suffers.
    pub hurts: Hurts,
    /// What was found.
    pub what: String,
    /// SQL that shows it, to be run by hand.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub evidence: &'static str,
    /// What it means for the point of sale or its targets.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub impact: String,
    /// What mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// What mending takes of the server.
    pub needs: Needs,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, what: String) -> Finding {
        // What capture meets on its way in is no check of its own: it keeps the pipeline out.
        const OTHER: Check = Check { id: "", group: Group::Access, hurts: Hurts::Pipeline, needs: Needs::None, evidence: "" };
        let check = checks::find(id).unwrap_or(&OTHER);
        let (impact, fix) = (String::new(), String::new());
        Finding { id, severity, group: check.group, hurts: check.hurts, what, evidence: check.evidence, impact, fix, needs: check.needs }
    }

    /// Something that is fine.
    #[must_use]
    pub fn ok(id: &'static str, what: impl Into<String>) -> Finding {
        Finding { evidence: "", needs: Needs::None, ..Finding::new(id, Severity::Ok, what.into()) }
    }

    /// Something that is not: what was found, what it means and what mends it.
    #[must_use]
    pub fn bad(
        severity: Severity,
        id: &'static str,
        what: impl Into<String>,
        impact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        Finding { impact: impact.into(), fix: fix.into(), ..Finding::new(id, severity, what.into()) }
    }

    /// An error that stops what was tried.
    #[must_use]
    pub fn failed(error: &CaptureError) -> Finding {
        match error {
            CaptureError::Definite { what, why, fix, .. } => Finding::bad(Severity::Fail, error.code(), what, why, fix),
            other => Finding::bad(
                Severity::Fail,
                error.code(),
                other.to_string(),
                "nothing can be captured meanwhile",
                "check host, port and network",
            ),
        }
    }
}

/// What could not be looked at. Never a failure of the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// What was left out.
    pub what: String,
    /// Why, and what would let it be checked.
    pub why: String,
}

impl Unchecked {
    /// What was left out, and why.
    #[must_use]
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Unchecked {
        Unchecked { what: what.into(), why: why.into() }
    }

    /// What was left out because of an error.
    #[must_use]
    pub fn failed(what: &str, error: &CaptureError) -> Unchecked {
        let why = match error {
            CaptureError::Unavailable(why) | CaptureError::NotAccepting(why) => why.clone(),
            CaptureError::Definite { what, .. } => what.clone(),
            other => other.to_string(),
        };
        Unchecked::new(what, why)
    }
}

/// All findings about one pipeline.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What was looked at: source, version, database, role.
    pub subject: String,
    /// What was found, worst first: by severity, then by what suffers.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<Unchecked>,
}

/// From which severity on `doctor` ends with 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FailOn {
    /// Something fails.
    #[default]
    Fail,
    /// Something fails or should be mended.
    Warn,
    /// Never.
    Never,
}

impl Report {
    /// How many findings are this bad.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// The exit code: 1 when something is at least as bad as asked for.
    #[must_use]
    pub fn exit_code(&self, fail_on: FailOn) -> u8 {
        let worst = self.findings.iter().map(|f| f.severity).min();
        u8::from(match fail_on {
            FailOn::Fail => worst == Some(Severity::Fail),
            FailOn::Warn => worst.is_some_and(|w| w <= Severity::Warn),
            FailOn::Never => false,
        })
    }

    /// Takes over what another look found.
    pub fn add(&mut self, other: Report) {
        self.findings.extend(other.findings);
        self.unchecked.extend(other.unchecked);
    }

    /// Keeps what is wanted and puts what hurts the point of sale first.
    pub fn finish(&mut self, only: &Only) {
        self.findings.retain(|finding| only.wants(finding.id));
        self.findings.sort_by_key(|finding| (finding.severity, finding.hurts));
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "subject": self.subject,
            "fail": self.count(Severity::Fail), "warn": self.count(Severity::Warn),
            "note": self.count(Severity::Note), "ok": self.count(Severity::Ok),
            "findings": self.findings, "unchecked": self.unchecked,
        })
    }

    /// For people; `verbose` shows notes and what is fine as well.
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
        for finding in &report.findings {
            let word = match finding.severity {
                Severity::Fail => "FAIL",
                Severity::Warn => "WARN",
                Severity::Note if self.verbose => "NOTE",
                Severity::Ok if self.verbose => "OK",
                Severity::Note | Severity::Ok => continue,
            };
            writeln!(f, " {word:<4}  {:<width$}  {}", finding.id, finding.what)?;
            let needs = match finding.needs {
                Needs::None => "",
                Needs::Reload => "  (reload)",
                Needs::Restart => "  (RESTART of PostgreSQL needed)",
            };
            for (name, text) in [("impact", finding.impact.as_str()), ("fix", finding.fix.as_str()), ("see", finding.evidence)] {
                if !text.is_empty() {
                    writeln!(f, "       {name:<6}  {text}{}", if name == "fix" { needs } else { "" })?;
                }
            }
        }
        let hidden: Vec<String> = [(Severity::Note, "notes"), (Severity::Ok, "checks OK")]
            .into_iter()
            .map(|(severity, word)| (report.count(severity), word))
            .filter(|(n, _)| *n > 0 && !self.verbose)
            .map(|(n, word)| format!("{n} {word}"))
            .collect();
        if !hidden.is_empty() {
            writeln!(f, " {}    (show with --verbose)", hidden.join(", "))?;
        }
        for Unchecked { what, why } in &report.unchecked {
            writeln!(f, "not checked: {what}: {why}")?;
        }
        if report.count(Severity::Fail) + report.count(Severity::Warn) > 0 {
            writeln!(f, "next: `tillstream doctor --explain ID` tells more of a finding, `tillstream setup` prints what the source lacks")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hurts_the_point_of_sale_comes_first_and_decides_the_exit_code() {
        let bad = |severity, id| Finding::bad(severity, id, "x", "y", "mend");
        let mut report = Report { subject: "source pos".to_owned(), ..Report::default() };
        report.findings = vec![Finding::ok("capture.encoding", "fine"), bad(Severity::Warn, "capture.wal_unlimited")];
        assert_eq!([FailOn::Fail, FailOn::Warn, FailOn::Never].map(|on| report.exit_code(on)), [0, 1, 0]);
        report.findings.push(bad(Severity::Fail, "capture.wal_level"));
        report.findings.push(bad(Severity::Fail, "capture.keyless_table"));
        report.unchecked.push(Unchecked::new("free disk", "SQL does not tell"));
        report.finish(&Only::default());
        assert_eq!([FailOn::Fail, FailOn::Warn, FailOn::Never].map(|on| report.exit_code(on)), [1, 1, 0]);
        let ids: Vec<&str> = report.findings.iter().map(|f| f.id).collect();
        assert_eq!(ids, ["capture.keyless_table", "capture.wal_level", "capture.wal_unlimited", "capture.encoding"]);
        let text = report.render(false).to_string();
        assert!(text.contains("(RESTART") && text.contains("(reload)") && text.contains("1 checks OK"), "{text}");
        assert!(text.contains("not checked: free disk: SQL does not tell") && !text.contains("capture.encoding"), "{text}");
        assert!(report.render(true).to_string().contains("capture.encoding"));
        assert_eq!(report.to_json()["findings"][0]["hurts"], "point_of_sale");
        report.finish(&Only::parse(&["identity".to_owned()]).expect("known"));
        assert_eq!(report.findings.len(), 1);
    }
}
