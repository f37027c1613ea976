//! Compares both ends: the history that triggers wrote in the point of sale, the journal behind the reader's filter, and what
//! the target systems hold.
//!
//! ```text
//! triggers' history ──┐
//!                     ├─ lost, duplicated, reordered, differing
//! journal, filtered ──┤
//!                     ├─ facts of the engagement API: each once
//! tables of the point of sale ── equal ── tables of the inventory
//! ```
//!
//! The history is the oracle: it commits and rolls back with the changes themselves, so no kill can make it wrong. Reads
//! only, apart from a temporary table in the point of sale's session.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tillstream_connectors::registry::Registry;
use tokio_postgres::{Client, NoTls};

use self::journal::JournalCounts;
use super::DemoError;
use crate::config;

mod engagement;
mod inventory;
mod journal;
mod oracle;

/// What is compared.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The pipeline's file: journal, tables and connectors are taken from it.
    #[arg(long)]
    pub config: PathBuf,
    /// The point of sale, as a role that may read the history and the tables.
    #[arg(long)]
    pub source: String,
    /// The inventory database; its tables bear the names of the point of sale's.
    #[arg(long)]
    pub inventory: Option<String>,
    /// Name of the connector that feeds the inventory.
    #[arg(long, default_value = "inventory")]
    pub inventory_connector: String,
    /// The log of the pretend engagement API.
    #[arg(long)]
    pub engagement: Option<PathBuf>,
    /// Name of the connector that feeds the engagement API.
    #[arg(long, default_value = "engagement")]
    pub engagement_connector: String,
    /// A JSON object whose fields are added to the printed line.
    #[arg(long)]
    pub note: Option<String>,
}

/// Compares, prints one JSON line.
///
/// # Errors
/// `demo.differs` with exit code 1 when anything was lost, doubled or out of order; otherwise what kept it from comparing.
pub async fn run(arguments: Arguments) -> Result<(), DemoError> {
    let pipeline = config::load(&arguments.config, &Registry::built_in()).map_err(|report| DemoError {
        code: "config.invalid",
        message: report.render(false),
        exit: 2,
    })?;
    let mut note = match arguments.note.as_deref().map(serde_json::from_str::<Map<String, Value>>) {
        None => Map::new(),
        Some(Ok(note)) => note,
        Some(Err(error)) => return Err(DemoError { code: "demo.usage", message: format!("--note: {error}"), exit: 2 }),
    };
    let source = connect(&arguments.source, "the point of sale").await?;
    let journal = crate::journal::open(&pipeline.journal, "tillstream demo verify")
        .map_err(|error| DemoError::unavailable("open the journal", error))?;
    let description = journal.describe().await.map_err(|error| DemoError::unavailable("read the journal", error))?;

    oracle::prepare(&source).await?;
    let engagement_connector = pipeline.connectors.iter().find(|c| c.name == arguments.engagement_connector);
    let mut facts = engagement::Expected::new(engagement_connector);
    let counts = journal::read(journal.as_ref(), &source, &mut facts).await?;
    let oracle = oracle::compare(&source, &pipeline.source.tables).await?;

    let mut line = Map::new();
    let JournalCounts { filter, entries, began_inside } = counts;
    let mut put = |key: &str, value: Value| {
        line.insert(key.to_owned(), value);
    };
    put("journal", json!(description));
    put("pos_changes", json!(oracle.changes));
    put("journal_events", json!(filter.events));
    put("journal_reads", json!(filter.reads));
    put("journal_entries", json!(entries));
    put("raw_repeats", json!(filter.repeats));
    put("raw_fenced", json!(filter.fenced));
    put("runs", json!(filter.fences));
    put("runs_began_inside_a_transaction", json!(began_inside));
    put("lost", json!(oracle.lost));
    put("duplicated", json!(oracle.duplicated));
    put("reordered", json!(oracle.reordered));
    put("differing", json!(oracle.differing));
    put("initial_rows_missing", json!(oracle.initial_missing));
    let mut sound = oracle.is_clean();

    if let Some(url) = &arguments.inventory {
        let inventory = connect(url, "the inventory").await?;
        let connector = pipeline.connectors.iter().find(|c| c.name == arguments.inventory_connector).ok_or_else(|| DemoError {
            code: "demo.usage",
            message: format!("the pipeline has no connector \"{}\"", arguments.inventory_connector),
            exit: 2,
        })?;
        let compared = inventory::compare(&source, &inventory, &connector.tables).await?;
        put("inventory_rows", json!(compared.rows));
        put("inventory_differing", json!(compared.differing));
        put("inventory_equal", json!(compared.differing == 0));
        sound &= compared.differing == 0;
    }
    if let Some(log) = &arguments.engagement {
        let compared = facts.compare(log)?;
        put("engagement_facts", json!(compared.expected));
        put("engagement_lost", json!(compared.lost));
        put("engagement_doubled", json!(compared.doubled));
        put("engagement_once", json!(compared.is_once()));
        put("target_429", json!(compared.answered_429));
        put("target_500", json!(compared.answered_500));
        put("target_refused", json!(compared.refused));
        put("repeats_absorbed", json!(compared.absorbed));
        sound &= compared.is_once();
    }
    for sample in &oracle.samples {
        eprintln!("differs: {sample}");
    }
    line.append(&mut note);
    println!("{}", Value::Object(line));
    if sound {
        return Ok(());
    }
    Err(DemoError { code: "demo.differs", message: "the two ends differ; the line on stdout says where".to_owned(), exit: 1 })
}

async fn connect(url: &str, what: &str) -> Result<Client, DemoError> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.map_err(|error| DemoError::unavailable(&format!("connect to {what}"), error))?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}
