//! Requests for a backfill: checked against configuration and catalogue, compared with what is there, then started.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::read::{Failure, Session};
use super::spec::{self, LAST_SUCCESS, Refused, refuse};
use super::sql::{Choice, ChunkedTable};
use super::{Backfill, View, no_session, plan, runner, view};
use crate::control::{BackfillJob, BackfillOptions, BackfillSpec, BackfillState, now_ms};

/// What to do when a job reads one of the tables already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IfRunning {
    /// Nothing; that is a success.
    Skip,
    /// Refuse.
    Fail,
    /// Follow it, if it has the id asked for; otherwise start beside it.
    #[default]
    Attach,
}

/// A request to start a backfill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// What people call it; made up when absent.
    pub id: Option<String>,
    /// What it reads.
    pub spec: BackfillSpec,
    /// How.
    pub options: BackfillOptions,
    /// What to do when a job reads one of the tables already.
    pub if_running: IfRunning,
    /// Only say what it would read.
    pub dry_run: bool,
    /// Who asks.
    pub by: String,
}

/// What came of a request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum Started {
    /// It was new and runs.
    Started {
        /// The job.
        backfill: Box<View>,
    },
    /// It was there and goes on.
    Resumed {
        /// The job.
        backfill: Box<View>,
    },
    /// It runs already.
    Attached {
        /// The job.
        backfill: Box<View>,
    },
    /// It was done before.
    AlreadyComplete {
        /// The job.
        backfill: Box<View>,
    },
    /// Another one reads the table, and the request said to leave it then.
    Skipped {
        /// That other one.
        backfill: Box<View>,
    },
    /// What it would read.
    Plan {
        /// One estimate a table.
        tables: Vec<Estimate>,
    },
}

/// What reading a table would cost, by the server's own estimates.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// `schema.table`.
    pub table: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Minutes at the speed that its rows were read with just now, brakes and targets aside.
    pub minutes: f64,
    /// The index that serves the conditions; `None` when the key's own is walked.
    pub index: Option<String>,
    /// Whether all rows of the table are looked at.
    pub scans: bool,
}

/// A filter without an index is let through on tables smaller than this: looking at all of it takes a moment.
const SMALL_ROWS: f64 = 20_000.0;
/// Transactions that took longer than this before they committed may be missed by `--since last-success`.
const SINCE_MARGIN: &str = "10 minutes";
/// Rows that a dry run reads to tell the speed.
const PROBE_ROWS: u32 = 2_000;

impl Backfill {
    /// Starts a backfill, or finds it there.
    ///
    /// # Errors
    /// The request is refused, with the reason; nothing was changed.
    pub async fn start(self: &Arc<Self>, request: Request) -> Result<Started, Refused> {
        spec::check(&request.spec, &request.options)?;
        let id = match &request.id {
            Some(id) if spec::is_id(id) => id.clone(),
            Some(_) => {
                return refuse(
                    "backfill.bad_request",
                    "an id has letters, digits, `.`, `_`, `:` and `-`, at most 80, and begins with a letter or digit",
                );
            }
            None => made_up(&request.spec),
        };
        if let Some(found) = self.found(&id, &request)? {
            return Ok(found);
        }
        if !request.dry_run
            && let Some(resumed) = self.go_on(&id, request.options.clone(), &request.by).await?
        {
            return Ok(resumed);
        }
        self.check_names(&request.spec)?;
        let session = Session::open(&self.settings.source, &self.settings.pipeline).await.map_err(refused)?;
        // Whether an index can serve a condition is asked, not whether today's statistics prefer it.
        session.one("SET enable_seqscan = off").await.map_err(refused)?;
        let since = self.since(&session, &request.spec).await?;
        let estimates = self.estimates(&session, &request, since.as_deref()).await?;
        if request.dry_run {
            return Ok(Started::Plan { tables: estimates });
        }
        let source_time = session
            .one("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
            .await
            .map_err(refused)?;
        let now = now_ms();
        let record = BackfillJob {
            job: spec::job_name(&id),
            id: id.clone(),
            epoch: 0,
            run: self.jobs().by_id.get(&id).map_or(0, |h| h.record.run),
            spec: request.spec,
            options: request.options,
            state: BackfillState::Running,
            code: None,
            why: None,
            by: request.by,
            source_time,
            since,
            rows: 0,
            started_at_ms: now,
            finished_at_ms: None,
            at_ms: now,
        };
        self.take_up(record).await?;
        let jobs = self.jobs();
        let Some(handle) = jobs.by_id.get(&id) else { return no_session() };
        Ok(Started::Started { backfill: Box::new(view(handle)) })
    }

    async fn take_up(&self, record: BackfillJob) -> Result<(), Refused> {
        let session = self.jobs().session.clone();
        let Some(session) = session else { return no_session() };
        let (reply, answer) = oneshot::channel();
        if session.send(runner::Command::Start { record: Box::new(record), reply }).await.is_err() || answer.await.is_err() {
            return no_session();
        }
        Ok(())
    }

    /// What is there already under the id, or reads the same tables.
    fn found(&self, id: &str, request: &Request) -> Result<Option<Started>, Refused> {
        let (record, shown) = {
            let jobs = self.jobs();
            if jobs.session.is_none() {
                return no_session();
            }
            let overlaps = |h: &super::Handle| {
                h.record.state == BackfillState::Running && h.record.spec.tables.iter().any(|t| request.spec.tables.contains(t))
            };
            let running = jobs.by_id.values().find(|h| overlaps(h) && (h.record.id != id || request.if_running != IfRunning::Attach));
            match (running, request.if_running) {
                (Some(other), IfRunning::Skip) => return Ok(Some(Started::Skipped { backfill: Box::new(view(other)) })),
                (Some(other), IfRunning::Fail) => {
                    return refuse("backfill.running", format!("backfill {} reads the same table", other.record.id));
                }
                _ => {}
            }
            let Some(handle) = jobs.by_id.get(id) else { return Ok(None) };
            (handle.record.clone(), Box::new(view(handle)))
        };
        let differences = spec::differences(&record.spec, &request.spec);
        if !differences.is_empty() {
            return refuse("backfill.id_taken", format!("{id} is the id of another request:\n{}", differences.join("\n")));
        }
        Ok(match record.state {
            _ if request.dry_run => None,
            BackfillState::Done => Some(Started::AlreadyComplete { backfill: shown }),
            BackfillState::Running => Some(Started::Attached { backfill: shown }),
            // What was given up begins anew; the others go on.
            BackfillState::Cancelled | BackfillState::Paused | BackfillState::Failed => None,
        })
    }

    /// Goes on with a job that was paused or failed, under the options of this request; `None` when there is none.
    ///
    /// # Errors
    /// There is no session.
    async fn go_on(&self, id: &str, options: BackfillOptions, by: &str) -> Result<Option<Started>, Refused> {
        let record = {
            let jobs = self.jobs();
            let Some(handle) = jobs.by_id.get(id) else { return Ok(None) };
            if !matches!(handle.record.state, BackfillState::Paused | BackfillState::Failed) {
                return Ok(None);
            }
            BackfillJob { options, by: by.to_owned(), ..handle.record.clone() }
        };
        self.take_up(record).await?;
        let jobs = self.jobs();
        let Some(handle) = jobs.by_id.get(id) else { return no_session() };
        Ok(Some(Started::Resumed { backfill: Box::new(view(handle)) }))
    }

    /// Tables, columns and the connector have to be there.
    fn check_names(&self, spec: &BackfillSpec) -> Result<(), Refused> {
        let settings = &self.settings;
        let known = |table: &String| settings.source.tables.iter().any(|t| format!("{}.{}", t.schema, t.table) == *table);
        if let Some(table) = spec.tables.iter().find(|t| !known(t)) {
            return refuse("backfill.unknown_table", format!("table {table} is not in source.tables"));
        }
        if let Some(connector) = &spec.connector {
            let Some((_, tables)) = settings.connectors.iter().find(|(name, _)| name == connector) else {
                let names: Vec<&str> = settings.connectors.iter().map(|(name, _)| name.as_str()).collect();
                let known = if names.is_empty() { "none does".to_owned() } else { names.join(", ") };
                return refuse(
                    "backfill.unknown_connector",
                    format!("no connector {connector} takes rows of backfills (`from.ops` with `read`): {known}"),
                );
            };
            if let Some(table) = spec.tables.iter().find(|t| !tables.contains(t)) {
                return refuse("backfill.unknown_table", format!("connector {connector} does not take table {table}"));
            }
        }
        Ok(())
    }

    /// What `--since` means now.
    async fn since(&self, session: &Session, request: &BackfillSpec) -> Result<Option<String>, Refused> {
        let Some(since) = &request.since else { return Ok(None) };
        let table = request.tables.first().map(String::as_str).unwrap_or_default();
        let Some(column) = self.settings.changed_at.get(table) else {
            return refuse(
                "backfill.since_undeclared",
                format!(
                    "nothing says which column of {table} tells when a row changed; declare it: source.changed_at: {{{table}: COLUMN}}"
                ),
            );
        };
        let moment = match since.as_str() {
            LAST_SUCCESS => {
                let same =
                    |h: &&super::Handle| h.record.state == BackfillState::Done && spec::differences(&h.record.spec, request).is_empty();
                let jobs = self.jobs();
                let last = jobs.by_id.values().filter(same).filter_map(|h| h.record.source_time.clone()).max();
                match last {
                    Some(last) => last,
                    // The first one reads everything.
                    None => return Ok(None),
                }
            }
            moment => spec::canonical_moment(moment).unwrap_or_else(|| moment.to_owned()),
        };
        let sql = format!(
            "SELECT ({}::timestamptz - interval '{}')::text",
            super::sql::literal(&moment),
            if since == LAST_SUCCESS { SINCE_MARGIN } else { "0" }
        );
        let moment = session.one(&sql).await.map_err(refused)?;
        tracing::debug!(table, column, "rows changed since a moment are read");
        Ok(moment)
    }

    async fn estimates(&self, session: &Session, request: &Request, since: Option<&str>) -> Result<Vec<Estimate>, Refused> {
        let publication = plan::publication(session, &self.settings.source).await.map_err(refused)?;
        let mut estimates = Vec::new();
        for name in &request.spec.tables {
            let Some(configured) = self.settings.source.tables.iter().find(|t| format!("{}.{}", t.schema, t.table) == *name) else {
                continue;
            };
            let changed_at = self.settings.changed_at.get(name).map(String::as_str);
            let conditions = spec::conditions(&request.spec, since, changed_at);
            let choice = Choice { columns: request.spec.columns.clone(), conditions };
            let table =
                match plan::describe(session, &publication, configured, &self.settings.source.columns, &choice).await.map_err(refused)? {
                    Ok(table) => table,
                    Err(refusal) => return refuse(refusal.code, format!("{name}: {}", refusal.message)),
                };
            if let Some(column) = request.spec.columns.iter().find(|c| !table.schema.columns.iter().any(|k| k.name == **c)) {
                return refuse("backfill.unknown_column", format!("{name} has no published column {column}"));
            }
            if let Some(key) = request.spec.keys.iter().find(|k| k.0.len() != table.key.len()) {
                let names = table.key_list("");
                return refuse(
                    "backfill.bad_request",
                    format!("a key of {name} has {} columns ({names}); one given has {}", table.key.len(), key.0.len()),
                );
            }
            estimates.push(estimate(session, &table, &choice, request, name).await?);
        }
        Ok(estimates)
    }
}

/// What reading a table would cost; refuses what would look at all of a large one without need.
async fn estimate(session: &Session, table: &ChunkedTable, choice: &Choice, request: &Request, name: &str) -> Result<Estimate, Refused> {
    let explained = session.one(&format!("EXPLAIN (FORMAT JSON) {}", table.scoped())).await;
    let explained = match explained {
        Ok(text) => text.and_then(|t| serde_json::from_str::<Value>(&t).ok()).unwrap_or_default(),
        Err(Failure::Table { code: "backfill.query_failed", message }) => {
            return refuse(
                "backfill.bad_where",
                format!("the server does not take the condition on {name}: {message}; check its columns and types"),
            );
        }
        Err(failure) => return Err(refused(failure)),
    };
    let plan = &explained[0]["Plan"];
    let mut rows = plan["Plan Rows"].as_f64().unwrap_or(0.0);
    let mut found = Nodes::default();
    found.walk(plan);
    let conditional = !choice.conditions.is_empty();
    let all = match table.is_partitioned {
        false => table.rows_estimate,
        true => plan::sources(session, table).await.map_err(refused)?.iter().map(|s| s.rows_estimate.max(0.0)).sum(),
    };
    if conditional && found.scans && !request.options.allow_scan && all > SMALL_ROWS {
        let columns: Vec<String> =
            table.schema.columns.iter().filter(|c| mentions(&choice.conditions, &c.name)).map(|c| super::sql::quoted(&c.name)).collect();
        let columns = if columns.is_empty() { "…".to_owned() } else { columns.join(", ") };
        return refuse(
            "backfill.where_unindexed",
            format!(
                "no index serves the condition on {name}: each chunk would look at all of its {all:.0} rows; \
                 CREATE INDEX CONCURRENTLY ON {} ({columns}), or say --allow-scan",
                table.from.trim_start_matches("ONLY ")
            ),
        );
    }
    if !request.spec.keys.is_empty() {
        rows = request.spec.keys.len() as f64;
    }
    let width = plan_width(session, table).await?;
    let mut minutes = 0.0;
    if request.dry_run {
        minutes = rows / speed(session, table).await? / 60.0;
    }
    Ok(Estimate {
        table: name.to_owned(),
        rows: rows as u64,
        bytes: (rows * width) as u64,
        minutes: (minutes * 100.0).round() / 100.0,
        index: if conditional { found.index } else { None },
        scans: found.scans || !conditional,
    })
}

/// Bytes of a row's values, by the planner.
async fn plan_width(session: &Session, table: &ChunkedTable) -> Result<f64, Refused> {
    let columns: Vec<String> = table.schema.columns.iter().map(|c| super::sql::quoted(&c.name)).collect();
    let sql = format!("EXPLAIN (FORMAT JSON) SELECT {} FROM {}", columns.join(", "), table.from);
    let text = session.one(&sql).await.map_err(refused)?.unwrap_or_default();
    Ok(serde_json::from_str::<Value>(&text).unwrap_or_default()[0]["Plan"]["Plan Width"].as_f64().unwrap_or(100.0))
}

/// Rows a second that the table is read with, by reading a few.
async fn speed(session: &Session, table: &ChunkedTable) -> Result<f64, Refused> {
    let whole = table.whole();
    let Some(bound) = session.keys(&table.bound(&whole)).await.map_err(refused)?.pop() else { return Ok(1.0) };
    let began = std::time::Instant::now();
    let read = match session.chunk(table, &whole, None, &bound, PROBE_ROWS).await {
        Ok(read) => read,
        Err(super::read::Unread::TooSlow) => return Ok(1.0),
        Err(super::read::Unread::Failed(failure)) => return Err(refused(failure)),
    };
    // A short read says more of its round trips than of its rows: a usual chunk has ten times as many.
    Ok((read.rows.len() as f64 / began.elapsed().as_secs_f64().max(1e-3)).max(1.0))
}

/// What a plan's nodes say.
#[derive(Default)]
struct Nodes {
    /// Whether some node looks at a whole table.
    scans: bool,
    /// The first index that bounds what is looked at.
    index: Option<String>,
}

impl Nodes {
    fn walk(&mut self, plan: &Value) {
        let kind = plan["Node Type"].as_str().unwrap_or_default();
        let bounded = plan["Index Cond"].is_string();
        if kind == "Seq Scan" || (kind.starts_with("Index") && !bounded) {
            self.scans = true;
        }
        if bounded && self.index.is_none() {
            self.index = plan["Index Name"].as_str().map(str::to_owned);
        }
        for child in plan["Plans"].as_array().into_iter().flatten() {
            self.walk(child);
        }
    }
}

/// Whether a condition names a column, as a word of its own.
fn mentions(conditions: &[String], column: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    conditions.iter().any(|condition| {
        condition.match_indices(column).any(|(at, _)| {
            let before = condition[..at].chars().next_back();
            let after = condition[at + column.len()..].chars().next();
            !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
        })
    })
}

/// An id for a request without one: each start is a job of its own then.
fn made_up(spec: &BackfillSpec) -> String {
    let table = spec.tables.first().map(String::as_str).unwrap_or_default();
    let plain: String = table.chars().take(40).map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    format!("{}-{}", plain.trim_start_matches(['-', '_']), jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3f"))
}

pub(super) fn refused(failure: Failure) -> Refused {
    match failure {
        Failure::HookGone => Refused { code: "backfill.no_session", what: "capture does not stream at the moment".to_owned() },
        Failure::Source(error) => Refused { code: error.code(), what: error.to_string() },
        Failure::Table { code, message } => Refused { code, what: message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_says_whether_an_index_bounds_it() {
        let walk = |plan: Value| {
            let mut nodes = Nodes::default();
            nodes.walk(&plan);
            (nodes.scans, nodes.index)
        };
        assert_eq!(walk(json!({"Node Type": "Seq Scan", "Filter": "x"})), (true, None));
        assert_eq!(walk(json!({"Node Type": "Index Scan", "Index Name": "t_pkey", "Filter": "x"})), (true, None));
        let bitmap =
            json!({"Node Type": "Bitmap Heap Scan", "Plans": [{"Node Type": "Bitmap Index Scan", "Index Name": "t_x", "Index Cond": "x"}]});
        assert_eq!(walk(bitmap), (false, Some("t_x".to_owned())));
    }

    #[test]
    fn columns_are_words() {
        let conditions = ["tier >= 2 AND \"Tier2\" = 1".to_owned()];
        assert!(mentions(&conditions, "tier") && mentions(&conditions, "Tier2") && !mentions(&conditions, "ier"));
    }

    #[test]
    fn a_made_up_id_is_one() {
        let spec = BackfillSpec { tables: vec!["public.Order Item\"ü".to_owned()], ..BackfillSpec::default() };
        assert!(spec::is_id(&made_up(&spec)), "{}", made_up(&spec));
    }
}
