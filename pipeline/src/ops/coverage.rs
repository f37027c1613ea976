//! Compares what is captured with what is in the database, again and again while capture runs, and names what is not covered.
//!
//! The stream tells nothing of what it leaves out: a table that leaves the publication simply falls silent. Reads the catalogue
//! only, through a connection of its own, and changes nothing; [`judge`] is pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, TableFacts, sql_error};
use crate::config;

/// How often it looks: a table that falls silent is named within half a minute, for two cheap queries.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Something that is not captured as the configuration says, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Gap {
    /// Stable code, as `coverage.not_published`.
    pub code: &'static str,
    /// `schema.table`, or the publication's name.
    pub of: String,
    /// What was found.
    pub what: String,
    /// What mends it.
    pub fix: String,
    /// Changes are being missed; the others are only worth knowing.
    pub loses: bool,
}

/// What was found last.
#[derive(Debug, Default)]
pub struct Coverage {
    gaps: Mutex<Vec<Gap>>,
}

impl Coverage {
    /// What was found last, worst first.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, gaps: Vec<Gap>) -> Vec<Gap> {
        std::mem::replace(&mut *self.gaps.lock().unwrap_or_else(PoisonError::into_inner), gaps)
    }
}

/// What one look saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The publication; `None` when it is gone.
    pub publication: Option<PublicationFacts>,
    /// The configured tables, in the order of the configuration.
    pub tables: Vec<Option<TableFacts>>,
    /// Where the OIDs of the start are now, as (schema, table).
    pub by_oid: HashMap<u32, (String, String)>,
    /// Ordinary tables in the schemas of the captured ones, as (schema, table).
    pub neighbours: BTreeSet<(String, String)>,
}

/// What the start knew.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// OIDs of the configured tables.
    pub oids: HashMap<u32, (String, String)>,
    /// Tables that were there; `None` before the first look.
    pub neighbours: Option<BTreeSet<(String, String)>>,
}

/// Names what is not covered, worst first.
#[must_use]
pub fn judge(source: &config::Source, start: &Start, seen: &Seen) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut add = |code, of: &str, what: String, fix: String, loses| gaps.push(Gap { code, of: of.to_owned(), what, fix, loses });
    let name = &source.publication;
    let Some(publication) = &seen.publication else {
        let fix = "run `tillstream setup` for its statements; a slot older than the publication has to be created anew".to_owned();
        add("coverage.publication_missing", name, format!("publication \"{name}\" does not exist"), fix, true);
        return gaps;
    };
    if publication.tables.is_empty() {
        let fix = "ALTER PUBLICATION … ADD TABLE …: `tillstream setup` prints it".to_owned();
        add("coverage.publication_emptied", name, format!("publication \"{name}\" holds no table"), fix, true);
    }
    for (op, on) in
        [("insert", publication.insert), ("update", publication.update), ("delete", publication.delete), ("truncate", publication.truncate)]
    {
        if !on {
            let fix = format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');");
            add("coverage.operation_missing", name, format!("publication \"{name}\" does not publish {op}"), fix, op != "truncate");
        }
    }
    for (configured, facts) in source.tables.iter().zip(&seen.tables) {
        let shown = format!("{}.{}", configured.schema, configured.table);
        let oid = start.oids.iter().find(|(_, (s, t))| *s == configured.schema && *t == configured.table).map(|(oid, _)| *oid);
        let moved = oid.and_then(|oid| seen.by_oid.get(&oid)).filter(|now| **now != (configured.schema.clone(), configured.table.clone()));
        let Some(facts) = facts else {
            match moved {
                Some((schema, table)) => {
                    let what = format!("{shown} is {schema}.{table} now; its changes go on under the configured name");
                    add(
                        "coverage.table_renamed",
                        &shown,
                        what,
                        format!("name {schema}.{table} in source.tables before the next start"),
                        false,
                    );
                }
                None => {
                    let fix = "remove it from source.tables, or create it again".to_owned();
                    add("coverage.table_missing", &shown, format!("{shown} does not exist any more"), fix, true);
                }
            }
            continue;
        };
        if oid.is_some_and(|oid| oid != facts.oid) {
            let fix = "restart the pipeline and load the table again, if the former rows are not to stay in the targets".to_owned();
            add("coverage.table_recreated", &shown, format!("{shown} is another table than at the start"), fix, false);
        }
        let Some(published) = publication.table(&configured.schema, &configured.table) else {
            let fix = format!("ALTER PUBLICATION {name} ADD TABLE {}; then load what was missed", facts.qualified());
            add(
                "coverage.not_published",
                &shown,
                format!("publication \"{name}\" does not hold {shown}: its changes are missed"),
                fix,
                true,
            );
            continue;
        };
        if published.row_filter.is_some() {
            let what = format!("publication \"{name}\" filters the rows of {shown}");
            add("coverage.row_filter", &shown, what, "nothing, if that is meant".to_owned(), false);
        }
        let sent: Vec<&str> = facts.published_columns(published).map(|c| c.name.as_str()).collect();
        let unsent: Vec<&str> = facts.columns.iter().map(|c| c.name.as_str()).filter(|c| !sent.contains(c)).collect();
        if !unsent.is_empty() {
            let what = format!("columns of {shown} that are not published: {}", unsent.join(", "));
            add("coverage.column_list", &shown, what, "nothing, if that is meant".to_owned(), false);
        }
        let policies = source.columns.of(&configured.schema, &configured.table);
        let key = |c: &str| facts.primary_key.iter().chain(&facts.identity_columns).any(|k| k == c);
        let held: Vec<&str> =
            sent.into_iter().filter(|c| source.columns.hold_new && !key(c) && policies.is_none_or(|p| !p.contains_key(*c))).collect();
        if !held.is_empty() {
            let what = format!("columns of {shown} that are held back until they are classified: {}", held.join(", "));
            add("coverage.column_held", &shown, what, format!("name them in source.columns of {shown}"), false);
        }
    }
    let captured = |n: &(String, String)| source.tables.iter().any(|t| t.schema == n.0 && t.table == n.1);
    let moved = |n: &(String, String)| start.oids.keys().any(|oid| seen.by_oid.get(oid) == Some(n));
    for new in seen.neighbours.iter().filter(|n| start.neighbours.as_ref().is_some_and(|before| !before.contains(*n))) {
        if !captured(new) && !moved(new) {
            let shown = format!("{}.{}", new.0, new.1);
            let what = format!("{shown} is new and not captured");
            add(
                "coverage.new_table",
                &shown,
                what,
                "add it to source.tables and to the publication, if it is to be captured".to_owned(),
                false,
            );
        }
    }
    gaps.sort_by_key(|gap| !gap.loses);
    gaps
}

/// Looks now.
///
/// # Errors
/// The server is away or refuses.
pub async fn look(catalog: &Catalog, source: &config::Source, start: &Start) -> Result<Seen, CaptureError> {
    let names: Vec<(String, String)> = source.tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
    let schemas: Vec<&str> = names.iter().map(|(schema, _)| schema.as_str()).collect();
    let oids: Vec<u32> = start.oids.keys().copied().collect();
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, n.nspname = ANY($1) AND NOT c.relispartition AND c.relpersistence = 'p' \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND (c.oid = ANY($2) OR n.nspname = ANY($1))";
    let mut seen =
        Seen { publication: catalog.publication(&source.publication).await?, tables: catalog.tables(&names).await?, ..Seen::default() };
    for row in catalog.client().query(sql, &[&schemas, &oids]).await.map_err(sql_error)? {
        let (oid, name, neighbour): (u32, (String, String), bool) = (row.get(0), (row.get(1), row.get(2)), row.get(3));
        if start.oids.contains_key(&oid) {
            seen.by_oid.insert(oid, name.clone());
        }
        if neighbour {
            seen.neighbours.insert(name);
        }
    }
    Ok(seen)
}

/// Looks until it is stopped; a server that is away is asked again at the next turn, and capture says what it waits for.
pub async fn watch(source: config::Source, pipeline: String, mut start: Start, coverage: Arc<Coverage>, stop: CancellationToken) {
    let mut catalog: Option<Catalog> = None;
    loop {
        if catalog.is_none() {
            catalog = Catalog::connect(&source, &pipeline, "coverage").await.ok();
        }
        if let Some(connected) = &catalog {
            match look(connected, &source, &start).await {
                Ok(seen) => {
                    start.neighbours.get_or_insert_with(|| seen.neighbours.clone());
                    tell(&coverage, judge(&source, &start, &seen));
                }
                Err(error) => {
                    tracing::debug!(%error, "coverage was not compared");
                    catalog = None;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Keeps what was found, and logs what is new and what is over.
fn tell(coverage: &Coverage, gaps: Vec<Gap>) {
    let before = coverage.set(gaps.clone());
    for gap in gaps.iter().filter(|gap| !before.contains(gap)) {
        if gap.loses {
            tracing::warn!(code = gap.code, of = gap.of, fix = gap.fix, "changes are missed: {}", gap.what);
        } else {
            tracing::info!(code = gap.code, of = gap.of, fix = gap.fix, "{}", gap.what);
        }
    }
    for gap in before.iter().filter(|gap| !gaps.contains(gap)) {
        tracing::info!(code = gap.code, of = gap.of, "no longer: {}", gap.what);
    }
}
