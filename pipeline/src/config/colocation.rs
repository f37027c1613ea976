//! Whether the rows that a mapping brings together stand in one partition: what is looked up, and what a transaction makes one fact of, is kept and
//! read a partition at a time.

use std::path::Path;

use super::raw::blame;
use super::report::{Code, Problem};
use super::{Connector, Journal, SourceTable};

/// The problem with a connector whose tables are spread without saying how they belong together. With one partition there is none.
pub(super) fn check(connector: &Connector, path: &Path, tables: &[SourceTable], journal: &Journal) -> Option<Problem> {
    let partitions = match journal {
        Journal::Rabbitmq(rabbit) => rabbit.partitions.get(),
        Journal::Local(local) => local.partitions.get(),
    };
    let mapping = connector.mapping.as_ref()?;
    let (key, word) = match mapping.lookups().first() {
        _ if partitions == 1 => return None,
        Some(lookup) => ("lookup", lookup.name.as_str()),
        None if mapping.is_grouped() => ("group", "transaction"),
        None => return None,
    };
    let mut together: Vec<&(String, String)> = connector.tables.iter().collect();
    for lookup in mapping.lookups() {
        if !together.contains(&&lookup.table) {
            together.push(&lookup.table);
        }
    }
    let columns = |(schema, table): &(String, String)| {
        let configured = tables.iter().find(|t| t.schema == *schema && t.table == *table);
        configured.and_then(|t| t.partition_by.as_ref())
    };
    let refuse = |word: &str, message: String, help: String| Some(blame(path, &[key], word, Code::NotColocated, message, help));
    if let Some((schema, table)) = together.iter().find(|table| columns(table).is_none()) {
        let message = format!(
            "`{key}` brings rows together that stand in {partitions} partitions: nothing says where those of `{schema}.{table}` belong"
        );
        let list: Vec<String> = together.iter().map(|(schema, table)| format!("{schema}.{table}: [location_id]")).collect();
        let help = format!(
            "name the column that all of them share in the pipeline's `source.partition_by`, as `{{{}}}`, or use one partition",
            list.join(", ")
        );
        return refuse(word, message, help);
    }
    let count = |table: &(String, String)| columns(table).map_or(0, Vec::len);
    let first = together.first().map_or(0, |table| count(table));
    if let Some((schema, table)) = together.iter().find(|table| count(table) != first) {
        let message = format!(
            "`{key}` brings rows together that `partition_by` spreads by other columns: those of `{schema}.{table}` are not as many as of the others"
        );
        return refuse(word, message, "name as many columns for each of these tables, in the same order".to_owned());
    }
    // Where a lookup's own columns choose the partition, what is asked for chooses it too; elsewhere the columns have to be the same.
    let from: Vec<&Vec<String>> = connector.tables.iter().filter_map(columns).collect();
    let apart = mapping.lookups().iter().find(|lookup| {
        let by = columns(&lookup.table);
        by != Some(&lookup.by) && !from.iter().all(|columns| Some(*columns) == by)
    });
    if let Some(lookup) = apart {
        let (schema, table) = &lookup.table;
        let message = format!("lookup `{}` may find rows of `{schema}.{table}` that stand in another partition", lookup.name);
        let help = "spread that table by the columns of the lookup, or by the same columns as the tables of `from`".to_owned();
        return refuse(&lookup.name, message, help);
    }
    if mapping.is_grouped() && !mapping.has_key() {
        let message = format!("a transaction is spread over {partitions} partitions, so nobody sees all of it");
        let help = "add a `key` of what its rows share, as `key: \"{{ row.order_id }}\"`: each is a fact of its own".to_owned();
        return Some(blame(path, &["group"], "transaction", Code::NotColocated, message, help));
    }
    None
}
