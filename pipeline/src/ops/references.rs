//! The last layer of `validate`: names in configuration files against the live catalogue. Reads only.

use std::collections::BTreeMap;
use std::path::Path;

use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, TableFacts};
use crate::config::{self, CheckedFile, Code, Report};

/// What the catalogue was compared with, for the layer's line.
pub struct Compared {
    /// The problems found, placed in the files.
    pub report: Report,
    /// Server and version.
    pub server: String,
}

/// Compares a pipeline's tables and columns with the source's catalogue.
///
/// # Errors
/// When the server cannot be asked.
pub async fn compare(file: &CheckedFile) -> Result<Compared, CaptureError> {
    let pipeline = &file.pipeline;
    let catalog = Catalog::connect(&pipeline.source, &pipeline.name, "validate").await?;
    let publication = catalog.publication(&pipeline.source.publication).await?;
    let names: Vec<(String, String)> = pipeline.source.tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
    let facts = catalog.tables(&names).await?;
    let server = format!("PostgreSQL {}, database {}", catalog.server().version, catalog.server().database);
    let mut found = Found { report: Report::default(), columns: BTreeMap::new() };
    if publication.is_none() {
        let help = "run `tillstream setup`, or correct the name".to_owned();
        let message = format!("publication `{}` does not exist", pipeline.source.publication);
        found.add(&file.path, &["source", "publication"], &pipeline.source.publication, Code::UnknownTable, message, help);
    }
    for (configured, facts) in pipeline.source.tables.iter().zip(&facts) {
        found.table(&file.path, configured, &pipeline.source.columns, facts.as_ref(), publication.as_ref());
    }
    for (connector, path) in pipeline.connectors.iter().zip(&file.connectors) {
        for (table, columns) in &connector.target.plan().columns {
            for column in columns {
                found.column(path, &["to"], table, column);
            }
        }
        for lookup in connector.mapping.iter().flat_map(|mapping| mapping.lookups()) {
            let table = format!("{}.{}", lookup.table.0, lookup.table.1);
            for column in lookup.by.iter().chain(lookup.columns.iter().flatten()) {
                found.column(path, &["lookup", &lookup.name], &table, column);
            }
        }
        // Which of several tables an expression means is not known before an event comes.
        if let (Some(mapping), [(schema, table)]) = (&connector.mapping, connector.tables.as_slice()) {
            for column in mapping.columns() {
                found.column(path, &[], &format!("{schema}.{table}"), column);
            }
        }
    }
    Ok(Compared { report: found.report, server })
}

struct Found {
    report: Report,
    /// Columns of each table that is there, as events have them.
    columns: BTreeMap<String, Vec<String>>,
}

impl Found {
    fn add(&mut self, file: &Path, below: &[&str], word: &str, code: Code, message: String, help: String) {
        self.report.push(config::blame(file, below, word, code, message, help));
    }

    fn table(
        &mut self,
        file: &Path,
        configured: &config::SourceTable,
        rules: &config::ColumnRules,
        facts: Option<&TableFacts>,
        publication: Option<&PublicationFacts>,
    ) {
        let name = format!("{}.{}", configured.schema, configured.table);
        let Some(facts) = facts else {
            let help = "correct the name as the catalogue spells it, or create the table".to_owned();
            return self.add(file, &["source", "tables"], &name, Code::UnknownTable, format!("table `{name}` does not exist"), help);
        };
        let Some(publication) = publication else { return };
        let Some(published) = publication.table(&configured.schema, &configured.table) else {
            let message = format!("publication `{}` does not hold table `{name}`", publication.name);
            let help = format!("ALTER PUBLICATION {} ADD TABLE {};", publication.name, facts.qualified());
            return self.add(file, &["source", "tables"], &name, Code::UnknownTable, message, help);
        };
        let policies = rules.of(&configured.schema, &configured.table);
        let policy = |column: &str| policies.and_then(|p| p.get(column)).copied();
        for column in policies.into_iter().flat_map(|p| p.keys()).filter(|column| !facts.columns.iter().any(|c| c.name == **column)) {
            let message = format!("table `{name}` has no column `{column}`, which has a policy");
            let help = match config::nearest(column, facts.columns.iter().map(|c| c.name.as_str())) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "correct the name; a former name may stay here while changes from before may still come".to_owned(),
            };
            self.add(file, &["source", "columns"], column, Code::UnknownColumn, message, help);
        }
        let appears = |column: &str| match policy(column) {
            Some(policy) => policy.appears(),
            None => !rules.hold_new || facts.primary_key.iter().chain(&facts.identity_columns).any(|key| key == column),
        };
        let columns = facts.published_columns(published).map(|c| c.name.clone()).filter(|c| appears(c)).collect();
        self.columns.insert(name.clone(), columns);
        for column in configured.partition_by.iter().flatten() {
            self.column(file, &["source", "partition_by"], &name, column);
        }
    }

    fn column(&mut self, file: &Path, below: &[&str], table: &str, column: &str) {
        let Some(known) = self.columns.get(table) else { return };
        if known.iter().any(|c| c == column) {
            return;
        }
        let help = match config::nearest(column, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the published columns are {}", known.join(", ")),
        };
        self.add(file, below, column, Code::UnknownColumn, format!("table `{table}` publishes no column `{column}`"), help);
    }
}
