//! How a table is read: described from the catalogue, divided into partitions and ranges of keys.

use super::read::{Failure, Session};
use super::sql::{Choice, ChunkedTable, Refusal, Source, literal, quoted};
use crate::capture::catalog::PublicationFacts;
use crate::config;
use crate::control::KeyTexts;

/// A part with fewer rows is read as one range: dividing it would cost more than it gives.
const RANGE_ROWS_MIN: f64 = 100_000.0;
/// Ranges of one part, at most: enough that no reader waits long for the last of another.
const RANGES_MAX: u16 = 8;
/// Rows looked at to divide a part: quantiles of so many are off by a few percent.
const SAMPLE_ROWS: f64 = 5_000.0;

/// What is read of a part: rows after one key and up to another.
#[derive(Clone, Debug)]
pub(super) struct Range {
    /// Names it in cursors.
    pub(super) name: String,
    /// Where its rows come from.
    pub(super) source: Source,
    /// Rows behind this key.
    pub(super) after: Option<KeyTexts>,
    /// Up to this one; `None` when there is nothing to read.
    pub(super) bound: Option<KeyTexts>,
}

/// A configured table as the catalogue describes it now.
pub(super) async fn describe(
    session: &Session,
    publication: &PublicationFacts,
    configured: &config::SourceTable,
    rules: &config::ColumnRules,
    choice: &Choice,
) -> Result<Result<ChunkedTable, Refusal>, Failure> {
    let facts = session.catalog.table(&configured.schema, &configured.table).await?;
    let published = publication.table(&configured.schema, &configured.table);
    let (Some(facts), Some(published)) = (facts, published) else {
        return Err(Failure::Table {
            code: "backfill.table_missing",
            message: "the table does not exist or the publication does not hold it".to_owned(),
        });
    };
    Ok(ChunkedTable::new(&facts, published, configured, rules, choice)?)
}

/// The publication.
pub(super) async fn publication(session: &Session, source: &config::Source) -> Result<PublicationFacts, Failure> {
    session.catalog.publication(&source.publication).await?.ok_or_else(|| Failure::Table {
        code: "capture.publication_missing",
        message: format!("publication \"{}\" does not exist", source.publication),
    })
}

/// Where a table's rows come from: a partitioned one's leaf by leaf, so that each chunk walks one index.
///
/// A leaf is read by itself where the role may, else through the root with the leaf's own constraint, by which the
/// server finds it. What has neither (hash partitions without a grant) is read through the root as a whole.
pub(super) async fn sources(session: &Session, table: &ChunkedTable) -> Result<Vec<Source>, Failure> {
    if !table.is_partitioned {
        return Ok(vec![table.whole()]);
    }
    let columns: Vec<String> = (0..table.schema.columns.len())
        .filter(|at| !table.omitted.contains(at))
        .map(|at| literal(&table.schema.columns[at].name))
        .collect();
    let sql = format!(
        "SELECT n.nspname, c.relname, c.reltuples::float8, c.relkind, pg_get_partition_constraintdef(c.oid), \
                has_table_privilege(c.oid, 'SELECT') \
                OR (SELECT bool_and(has_column_privilege(c.oid, x, 'SELECT')) FROM unnest(ARRAY[{}]::text[]) x) \
         FROM pg_partition_tree({}::oid::regclass) t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE t.isleaf AND c.oid <> {1} ORDER BY 1, 2",
        columns.join(", "),
        table.relation,
    );
    let mut sources = Vec::new();
    for row in session.rows(&sql).await? {
        let mut row = row.into_iter();
        let mut text = || row.next().flatten();
        let (schema, leaf) = (text().unwrap_or_default(), text().unwrap_or_default());
        let rows_estimate = text().and_then(|t| t.parse().ok()).unwrap_or(-1.0);
        let (kind, constraint, may_read) = (text().unwrap_or_default(), text(), text());
        if kind != "r" {
            let message = format!("its partition {schema}.{leaf} is a foreign table, whose rows are not read");
            return Err(Failure::Table { code: "backfill.not_a_table", message });
        }
        let name = format!("{schema}.{leaf}");
        let direct = may_read.as_deref() == Some("t");
        let from = if direct { format!("ONLY {}.{}", quoted(&schema), quoted(&leaf)) } else { table.from.clone() };
        let condition = if direct { None } else { constraint.filter(|c| !c.contains("satisfies_hash_partition")) };
        if !direct && condition.is_none() {
            return Ok(vec![table.whole()]);
        }
        sources.push(Source { name, from, condition, rows_estimate });
    }
    Ok(sources)
}

/// Divides what a source holds now into ranges of keys.
pub(super) async fn ranges(session: &Session, table: &ChunkedTable, source: &Source) -> Result<Vec<Range>, Failure> {
    let bound = session.keys(&table.bound(source)).await?.pop();
    let mut splits = Vec::new();
    let wanted = (source.rows_estimate / RANGE_ROWS_MIN) as u16;
    if bound.is_some() && wanted > 1 {
        let percent = (SAMPLE_ROWS / source.rows_estimate * 100.0).clamp(0.01, 100.0);
        splits = session.keys(&table.splits(source, wanted.min(RANGES_MAX), percent)).await?;
    }
    let mut ranges = Vec::new();
    let mut after = None;
    for upto in splits.into_iter().map(Some).chain([bound]) {
        let name = if ranges.is_empty() { source.name.clone() } else { format!("{}#{}", source.name, ranges.len()) };
        ranges.push(Range { name, source: source.clone(), after: after.clone(), bound: upto.clone() });
        after = upto;
    }
    Ok(ranges)
}

/// The source that a part's name tells; `None` when it is gone.
pub(super) fn source_of<'a>(sources: &'a [Source], part: &str) -> Option<&'a Source> {
    let leaf = part.rsplit_once('#').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())).map_or(part, |(leaf, _)| leaf);
    sources.iter().find(|s| s.name == leaf)
}
