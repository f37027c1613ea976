//! `diff`: compares a table with what a connector's target holds, and repairs what drifted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;
use tillstream_schemas::Lsn;

use super::ConfigFile;
use super::backfill::{follow_to_end, who};
use super::backfill_link::Link;
use super::output::{self, End, Format};
use crate::backfill::diff::{Comparison, Report, TargetPosition};
use crate::backfill::{Refused, Request, spec};
use crate::config::settings::Settings;
use crate::config::{Pipeline, units};
use crate::control::{BackfillSpec, KeyTexts};
use crate::journal::{self, Journal, Log};
use crate::ops::failure::{Class, Failure};

/// How often the pipeline is asked how far the target is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Compares a table with what a connector's target holds of it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream diff public.orders --connector inventory\n  tillstream diff public.orders --connector inventory --repair\n\nBoth may move meanwhile: a difference counts only when the row stayed as it is while the target passed the position of its reading.\nWithout a running pipeline both are taken as they stand.\n\nEnds with 1 when rows drifted (and were not repaired), with 75 when some rows changed too quickly to be told."
)]
pub(super) struct Arguments {
    /// The table, as public.orders
    table: String,
    /// The connector whose target is compared
    #[arg(long, value_name = "NAME")]
    connector: String,
    /// Have drifted rows read again for this connector, and compare them once more
    #[arg(long)]
    repair: bool,
    /// Write the keys of drifted rows to this file, one JSON array a line, as `backfill start --keys-file` takes them
    #[arg(long, value_name = "FILE")]
    keys_out: Option<PathBuf>,
    /// How long to wait for the target to pass a position
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = settle)]
    settle: Duration,
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

fn settle(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "write a whole number and ms, s, m, h or d, as 90s".to_owned())
}

pub(super) async fn run(arguments: Arguments, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let pipeline = arguments.config.load(registry)?;
    let base = super::admin::base(arguments.url.as_deref(), settings.admin.listen, &pipeline.admin);
    let link = Link::http(&base)?;
    let report = compare(&pipeline, &link, &arguments.connector, &arguments.table, arguments.settle, Scope::default()).await?;
    print(&arguments, &report)?;
    let mut drifted: Vec<KeyTexts> = report.drifted().cloned().collect();
    if let Some(path) = &arguments.keys_out {
        let lines: String = drifted.iter().map(|key| format!("{}\n", json!(key.0))).collect();
        std::fs::write(path, lines).map_err(|e| Failure::new("internal.output", format!("{}: {e}", path.display())))?;
    }
    if arguments.repair && !drifted.is_empty() {
        repair(&link, &arguments, &drifted).await?;
        let scope = Scope { only: Some(&drifted), filter: None };
        let again = compare(&pipeline, &link, &arguments.connector, &arguments.table, arguments.settle, scope).await?;
        let left = again.drifted().count();
        match arguments.format {
            Format::Json => output::print(json!({"repaired": drifted.len() - left, "still_drifted": left}))?,
            Format::Human => output::print(format_args!("repaired {} of {} rows", drifted.len() - left, drifted.len()))?,
        }
        drifted = again.drifted().cloned().collect();
    }
    match (drifted.is_empty(), report.unsettled.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(End::Code(Class::Temporary.exit_code())),
        (false, _) => Err(End::Code(Class::Check.exit_code())),
    }
}

/// Compares the tables of a backfill that is done; exit 1 when they differ.
pub(super) async fn after_backfill(config: &ConfigFile, registry: &Registry, link: &Link, spec: &BackfillSpec) -> Result<(), End> {
    let pipeline = config.load(registry)?;
    let connector = spec.connector.as_deref().unwrap_or_default();
    let mut drifted = 0;
    for table in &spec.tables {
        let scope = Scope { only: (!spec.keys.is_empty()).then_some(&spec.keys), filter: spec.filter.as_deref() };
        let report = compare(&pipeline, link, connector, table, Duration::from_secs(60), scope).await?;
        output::print(document(connector, table, &report))?;
        drifted += report.drifted().count();
    }
    if drifted == 0 { Ok(()) } else { Err(End::Code(Class::Check.exit_code())) }
}

/// Which rows are compared; all when nothing is said.
#[derive(Clone, Copy, Default)]
struct Scope<'a> {
    only: Option<&'a Vec<KeyTexts>>,
    filter: Option<&'a str>,
}

async fn compare(
    pipeline: &Pipeline,
    link: &Link,
    connector: &str,
    table: &str,
    settle: Duration,
    scope: Scope<'_>,
) -> Result<Report, Failure> {
    let found = pipeline.connectors.iter().find(|c| c.name == connector);
    let found = found.ok_or_else(|| Failure::new("backfill.unknown_connector", format!("there is no connector {connector}")))?;
    let target = found.target.compare().ok_or_else(|| {
        Failure::new(
            "diff.not_readable",
            format!("the target of connector {connector} ({}) cannot be read, so nothing can be compared", found.kind),
        )
    })?;
    let configured = pipeline.source.tables.iter().find(|t| format!("{}.{}", t.schema, t.table) == table);
    let configured = configured.ok_or_else(|| Failure::new("backfill.unknown_table", format!("table {table} is not in source.tables")))?;
    let journal = journal::open(&pipeline.journal, "tillstream diff")?;
    let position = Running { link, journal, connector, settle };
    let (source, name) = (&pipeline.source, &pipeline.name);
    let comparison = Comparison { source, pipeline: name, table: configured, target, position: &position, filter: scope.filter };
    Ok(comparison.run(scope.only.map(Vec::as_slice)).await?)
}

/// How far the target is, by the pipeline's status and the journal's own extent.
struct Running<'a> {
    link: &'a Link,
    journal: Arc<dyn Journal>,
    connector: &'a str,
    settle: Duration,
}

#[async_trait::async_trait]
impl TargetPosition for Running<'_> {
    async fn passed(&self, upto: Lsn) -> Result<bool, Refused> {
        let began = Instant::now();
        let mut ends: Option<Vec<Option<u64>>> = None;
        loop {
            let Ok(status) = self.link.document("/api/status").await else { return Ok(false) };
            let confirmed = status["source"]["confirmed_lsn"].as_str().and_then(|t| t.parse::<Lsn>().ok());
            let Some(connector) =
                status["connectors"].as_array().into_iter().flatten().find(|c| c["name"].as_str() == Some(self.connector))
            else {
                return Ok(false);
            };
            if ends.is_none() && confirmed.is_some_and(|c| c >= upto) {
                let mut all = Vec::new();
                for partition in 0..self.journal.partitions() {
                    let bounds = self.journal.bounds(Log::Data(partition)).await;
                    let bounds = bounds.map_err(|e| Refused { code: e.code(), what: e.to_string() })?;
                    all.push(bounds.map(|b| b.last.0));
                }
                ends = Some(all);
            }
            if let Some(ends) = &ends {
                let settled = |partition: usize| {
                    let partitions = connector["partitions"].as_array().into_iter().flatten();
                    let mut of = partitions.filter(|p| p["partition"].as_u64() == Some(partition as u64));
                    of.next().and_then(|p| p["settled"].as_u64())
                };
                if ends.iter().enumerate().all(|(p, last)| last.is_none_or(|last| settled(p).is_some_and(|s| s > last))) {
                    return Ok(true);
                }
            }
            if began.elapsed() > self.settle {
                let what = format!("connector {} did not reach {upto} within {}", self.connector, units::show_duration(self.settle));
                return Err(Refused { code: "diff.behind", what });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Has the rows read again for the connector alone.
async fn repair(link: &Link, arguments: &Arguments, keys: &[KeyTexts]) -> Result<(), End> {
    for keys in keys.chunks(spec::KEYS_MAX) {
        let request = Request {
            spec: BackfillSpec {
                tables: vec![arguments.table.clone()],
                connector: Some(arguments.connector.clone()),
                keys: keys.to_vec(),
                ..BackfillSpec::default()
            },
            by: who(),
            ..Request::default()
        };
        let started = link.start(&request).await?;
        follow_to_end(link, &started["backfill"]).await?;
    }
    Ok(())
}

fn document(connector: &str, table: &str, report: &Report) -> Value {
    json!({
        "table": table, "connector": connector, "rows": report.rows, "ranges": report.ranges, "ranges_equal": report.ranges_equal,
        "drifted": report.drifted().count(), "differing_or_missing": report.differing.len(), "extra": report.extra.len(),
        "unsettled": report.unsettled.len(), "looked_for_extra": report.looked_for_extra, "position_known": report.position_known,
    })
}

fn print(arguments: &Arguments, report: &Report) -> Result<(), End> {
    if arguments.format == Format::Json {
        return Ok(output::print(document(&arguments.connector, &arguments.table, report))?);
    }
    let drifted = report.drifted().count();
    let mut text = format!("{} and connector {}: {} rows compared, {drifted} drifted", arguments.table, arguments.connector, report.rows);
    if drifted > 0 {
        text.push_str(&format!(" ({} differ or are missing in the target, {} only there)", report.differing.len(), report.extra.len()));
    }
    if !report.unsettled.is_empty() {
        text.push_str(&format!(", {} changed each time they were looked at", report.unsettled.len()));
    }
    output::print(output::clean(&text))?;
    if !report.looked_for_extra {
        eprintln!("rows that only the target holds were not looked for: its key is not the source's");
    }
    if !report.position_known {
        eprintln!("no pipeline tells how far the target is: what is on its way counts as drift");
    }
    if drifted > 0 && !arguments.repair {
        eprintln!(
            "mend them: tillstream diff {} --connector {} --repair",
            output::clean(&arguments.table),
            output::clean(&arguments.connector)
        );
    }
    Ok(())
}
