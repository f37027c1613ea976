//! `tillstream doctor queries`: the database's own load, because slow queries are outages too; reads only.
//!
//! ```text
//! counters (facts) ─▶ rules (pure) ─▶ findings
//!     └─▶ statements ─▶ advice: which index would help, asked of the planner (hypopg)
//! ```
//!
//! Texts come from pg_stat_statements alone, without any value; the text of a session holds values and is never read. What of the load is
//! the pipeline's own is said as well.

use std::fmt;
use std::time::Duration;

use secrecy::SecretString;
use serde::Serialize;

use super::doctor::{Finding, Only, Report, Unchecked};
use crate::capture::catalog::{Catalog, identifier};
use crate::capture::wire::{Address, application_name};
use crate::config::{self, units};

mod advice;
mod facts;
mod rules;
mod statement;

pub use advice::Advice;

/// A statement that takes time.
#[derive(Clone, Debug, Serialize)]
pub struct Top {
    /// As pg_stat_statements numbers it.
    pub id: i64,
    /// Part of all time, 0 to 1.
    pub share: f64,
    /// How often it was run.
    pub calls: i64,
    /// Mean time.
    pub milliseconds: f64,
    /// Pages per call.
    pub pages: i64,
    /// Rows per call.
    pub rows: i64,
    /// Who runs it.
    pub role: String,
    /// Its text without values; `None` where it may not be shown.
    pub text: Option<String>,
}

/// What of the load is the pipeline's own.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ours {
    /// Sessions whose application is this pipeline's.
    pub sessions: usize,
    /// Seconds that the oldest transaction of them is open.
    pub oldest_transaction_seconds: Option<f64>,
    /// Part of all time that statements of its roles take, 0 to 1; `None` where statements are not counted.
    pub statements_share: Option<f64>,
    /// How often they were run.
    pub statements_calls: i64,
    /// What the server decoded for the slot, and what of it went over its disk.
    pub decoded_bytes: Option<i64>,
    /// See above.
    pub spilled_bytes: Option<i64>,
    /// WAL that the slot keeps.
    pub slot_keeps_bytes: Option<i64>,
    /// Whether the slot is streamed from.
    pub streams: bool,
    /// Pages that walsenders read, all of them together (16 and later).
    pub walsender_reads: Option<i64>,
}

/// The load of a database.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Queries {
    /// Findings, worst first, and what could not be looked at.
    #[serde(flatten)]
    pub report: Report,
    /// Seconds that the counters are about.
    pub seconds: f64,
    /// Statements by time, most first.
    pub top: Vec<Top>,
    /// What of the load is the pipeline's own.
    pub ours: Ours,
    /// Indexes to create, tested by the planner where that is possible.
    pub advice: Vec<Advice>,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Wish {
    /// How many statements to list.
    pub top: usize,
    /// Two looks so far apart, for the load of just now; else everything since counters began.
    pub over: Option<Duration>,
}

/// At most so many statements are asked about.
const ADVISED_MAX: usize = 20;

/// Looks at the load, by any login.
pub async fn look(source: &config::Source, pipeline: &str, login: Option<&SecretString>, wish: &Wish) -> Queries {
    let mut queries = Queries::default();
    queries.report.subject = format!("load of source {}", source.name);
    let url = login.unwrap_or(&source.url);
    let read = async {
        let catalog = Catalog::connect_url(url, &application_name(pipeline, "doctor"), source.allow_weak_auth).await?;
        let facts = facts::read(&catalog, source, wish.over).await?;
        Ok((catalog, facts))
    };
    let (catalog, facts) = match read.await {
        Ok(read) => read,
        Err(error) => {
            queries.report.findings.push(Finding::failed(&error));
            return queries;
        }
    };
    let statements = facts.statements.iter().flatten();
    let asked = statements.filter(|s| statement::shown(&s.text).is_some() && s.milliseconds > 0.0).take(ADVISED_MAX);
    let mut advice: Vec<Advice> = Vec::new();
    for one in asked.filter_map(|s| advice::index_for(&facts, s)) {
        // One index may help several statements: it is named once, for the heaviest.
        if !advice.iter().any(|a| a.ddl == one.ddl) {
            advice.push(one);
        }
    }
    advice::test(catalog.client(), &facts, &mut advice).await;
    // The planner's word counts: an index that it would not use is none.
    advice.retain(|a| a.cost.is_none_or(|(before, after)| after < before * 0.8));
    queries.report.findings = rules::judge(&facts, &advice);
    queries.report.unchecked = unchecked(&facts, &catalog.server().user);
    queries.report.finish(&Only::default());
    queries.report.subject = format!(
        "load of source {}   PostgreSQL {}   database {}   role {}   counted over {}",
        source.name,
        catalog.server().version,
        catalog.server().database,
        catalog.server().user,
        units::show_duration(Duration::from_secs(facts.overview.seconds.max(0.0) as u64))
    );
    queries.seconds = facts.overview.seconds;
    queries.top = top(&facts, wish.top);
    queries.ours = ours(&facts, source, pipeline);
    queries.advice = advice;
    queries
}

fn top(facts: &facts::Facts, most: usize) -> Vec<Top> {
    let one = |s: &facts::Statement| {
        let calls = s.calls.max(1);
        Top {
            id: s.id,
            share: s.milliseconds / facts.all_milliseconds.max(0.001),
            calls: s.calls,
            milliseconds: s.milliseconds / calls as f64,
            pages: s.pages / calls,
            rows: s.rows / calls,
            role: s.role.clone(),
            text: statement::shown(&s.text),
        }
    };
    facts.statements.iter().flatten().take(most).map(one).collect()
}

fn ours(facts: &facts::Facts, source: &config::Source, pipeline: &str) -> Ours {
    let users = [Some(&source.url), source.backfill_url.as_ref()];
    let roles: Vec<String> = users.into_iter().flatten().filter_map(|url| Some(Address::parse(url).ok()?.user)).collect();
    let prefix = application_name(pipeline, "");
    let sessions: Vec<_> = facts.sessions.iter().filter(|s| s.application.starts_with(&prefix)).collect();
    let mine = |s: &&facts::Statement| roles.contains(&s.role);
    let stream = facts.stream.clone().unwrap_or_default();
    Ours {
        sessions: sessions.len(),
        oldest_transaction_seconds: sessions.iter().filter_map(|s| s.transaction).reduce(f64::max),
        statements_share: facts
            .statements
            .as_ref()
            .map(|all| all.iter().filter(mine).fold(0.0, |sum, s| sum + s.milliseconds) / facts.all_milliseconds.max(0.001)),
        statements_calls: facts.statements.iter().flatten().filter(mine).map(|s| s.calls).sum(),
        decoded_bytes: stream.decoded_bytes,
        spilled_bytes: stream.spilled_bytes,
        slot_keeps_bytes: stream.keeps_bytes,
        streams: stream.streams,
        walsender_reads: facts.io.iter().find(|(kind, ..)| kind == "walsender").map(|(_, reads, _)| *reads),
    }
}

fn unchecked(facts: &facts::Facts, user: &str) -> Vec<Unchecked> {
    let mut left = facts.unread.clone();
    if !facts.overview.sees_activity {
        let why = format!("hidden from this role; GRANT pg_read_all_stats TO {}; shows them, or --login-url", identifier(user));
        left.push(Unchecked::new("texts of statements, transactions, locks and idle sessions of other roles", why));
    }
    if facts.overview.never_reset {
        left.push(Unchecked::new("since when counters count", "they were never reset; the server's start is taken"));
    }
    left.push(Unchecked::new(
        "processor time of decoding",
        "pg_stat_statements does not count walsenders; `top` on the server's host shows theirs",
    ));
    left.push(Unchecked::new("bloat of indexes", "only reading them whole tells (pgstattuple), which is no light query"));
    left
}

impl Queries {
    /// For people.
    #[must_use]
    pub fn render(&self, verbose: bool) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            write!(f, "{}", self.report.render(verbose))?;
            if !self.top.is_empty() {
                writeln!(f, "\nstatements by time\n  share   calls      ms each   pages each  rows each  role        statement")?;
            }
            for t in &self.top {
                let text = t.text.as_deref().unwrap_or("(its text is not shown)");
                writeln!(
                    f,
                    "  {:>4.0} %  {:>7}  {:>10.2}  {:>11}  {:>9}  {:<10}  {} {text}",
                    t.share * 100.0,
                    t.calls,
                    t.milliseconds,
                    t.pages,
                    t.rows,
                    t.role,
                    t.id
                )?;
            }
            writeln!(f, "\nof all this, ours\n  {}", self.ours)
        })
    }
}

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: i64| units::show_size(u64::try_from(bytes).unwrap_or(0));
        write!(f, "{} sessions", self.sessions)?;
        if let Some(seconds) = self.oldest_transaction_seconds {
            write!(f, ", the oldest transaction {seconds:.0} s")?;
        }
        match self.statements_share {
            Some(share) => write!(f, "; {:.1} % of statement time in {} calls", share * 100.0, self.statements_calls)?,
            None => write!(f, "; statements are not counted")?,
        }
        write!(f, "; the slot is {}", if self.streams { "streamed from" } else { "not streamed from" })?;
        for (word, bytes) in [
            ("keeps", self.slot_keeps_bytes),
            ("was decoded", self.decoded_bytes),
            ("of it went over the server's disk", self.spilled_bytes),
        ] {
            if let Some(bytes) = bytes {
                let size = size(bytes);
                match word {
                    "keeps" => write!(f, ", keeps {size} of WAL")?,
                    _ => write!(f, ", {size} {word}")?,
                }
            }
        }
        if let Some(reads) = self.walsender_reads {
            write!(f, "; walsenders read {reads} pages")?;
        }
        Ok(())
    }
}
