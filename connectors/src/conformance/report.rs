//! Verdicts, and the table of them.

use std::fmt::Write as _;

use super::Fault;

/// What became of a sink under a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Each effect once, in order, each item ended right.
    Ok,
    /// It cannot happen to such a target; why.
    NotApplicable(&'static str),
    /// What went wrong.
    Failed(String),
}

/// A sink's verdicts.
#[derive(Clone, Debug)]
pub struct Row {
    /// The sink.
    pub name: String,
    /// One for each fault, in the order of [`Fault::ALL`].
    pub verdicts: Vec<(Fault, Verdict)>,
}

impl Row {
    /// The faults that it failed.
    #[must_use]
    pub fn failed(&self) -> Vec<Fault> {
        self.verdicts.iter().filter(|(_, v)| matches!(v, Verdict::Failed(_))).map(|(f, _)| *f).collect()
    }
}

/// Sinks by faults, with the reasons below.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.name.len()).max().unwrap_or_default().max(4);
    let mut text = format!("{:<width$}", "sink");
    for fault in Fault::ALL {
        let _ = write!(text, "  {}", fault.name());
    }
    text.push('\n');
    let mut notes = String::new();
    for row in rows {
        let _ = write!(text, "{:<width$}", row.name);
        for fault in Fault::ALL {
            let verdict = row.verdicts.iter().find(|(f, _)| *f == fault).map(|(_, v)| v);
            let word = match verdict {
                Some(Verdict::Ok) => "ok",
                Some(Verdict::NotApplicable(why)) => {
                    let _ = writeln!(notes, "  n/a   {}, {}: {why}", row.name, fault.name());
                    "n/a"
                }
                Some(Verdict::Failed(why)) => {
                    let _ = writeln!(notes, "  FAIL  {}, {}: {why}", row.name, fault.name());
                    "FAIL"
                }
                None => "-",
            };
            let _ = write!(text, "  {word:<w$}", w = fault.name().len());
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text + &notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_verdict_and_every_reason() {
        let mut verdicts: Vec<_> = Fault::ALL.map(|fault| (fault, Verdict::Ok)).into();
        verdicts[1].1 = Verdict::NotApplicable("it keeps no rows");
        verdicts[2].1 = Verdict::Failed("two effects".into());
        let row = Row { name: "http".into(), verdicts };
        assert_eq!(row.failed(), [Fault::LostAnswer]);
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("sink  duplicates  reorder  lost answer"));
        assert!(lines[1].starts_with("http  ok          n/a      FAIL"), "{text}");
        assert_eq!(lines[2..], ["  n/a   http, reorder: it keeps no rows", "  FAIL  http, lost answer: two effects"]);
    }
}
