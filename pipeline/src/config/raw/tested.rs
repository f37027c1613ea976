//! The tests of connector files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tillstream_connectors::mapping::{Case, Mapping};
use tillstream_connectors::registry::Registry;

use super::connector::{events, sink, words};
use super::is_connector;
use super::pipeline::source_tables;
use super::place::top_of;
use crate::config::SourceTable;
use crate::config::check::{Checked, Checker};
use crate::config::document::Document;
use crate::config::keys;
use crate::config::overlay;
use crate::config::report::{Code, Report};
use crate::config::secrets::Environment;

/// The tests of one connector file.
#[derive(Debug)]
pub struct Tested {
    /// The file.
    pub path: PathBuf,
    /// Name of the connector.
    pub name: String,
    /// What is tested.
    pub mapping: Option<Arc<Mapping>>,
    /// The tests.
    pub tests: Vec<Case>,
}

/// The tests of connector files, and of those that pipeline files name. They send nothing, so what a secret or an address refers to need not be there.
///
/// # Errors
/// Every other problem of every file.
pub fn load_tests(paths: &[PathBuf], registry: &Registry) -> Result<Vec<Tested>, Report> {
    let environment = |name: &str| std::env::var(name).ok();
    let (mut report, mut tested) = (Report::default(), Vec::new());
    for path in paths {
        if is_connector(path) {
            tested.extend(read_tests(path, registry, &environment, &[], &mut report));
            continue;
        }
        let mut document = match Document::read(path) {
            Ok(document) => document,
            Err(problem) => {
                report.push(problem);
                continue;
            }
        };
        let mut problems = Vec::new();
        let tree = overlay::parse(path, &mut document, &mut problems);
        let mut checker = Checker::new(&document, &environment, problems);
        let mut connectors = Vec::new();
        if let Some(tree) = tree {
            let top = checker.block(&tree, top_of(&tree), "", &keys::PIPELINE, &keys::PIPELINE);
            let tables = top.block("source").map(|source| source_tables(&mut checker, source)).unwrap_or_default();
            let paths =
                top.list("connectors").iter().filter_map(|item| if let Checked::Path(path) = &item.value { Some(path) } else { None });
            connectors.extend(paths.map(|path| (path.clone(), tables.clone())));
        }
        checker.problems.retain(|problem| problem.code != Code::SecretMissing);
        report.add(&document, checker.problems);
        for (path, tables) in connectors {
            tested.extend(read_tests(&path, registry, &environment, &tables, &mut report));
        }
    }
    if report.is_empty() { Ok(tested) } else { Err(report) }
}

fn read_tests(
    path: &Path,
    registry: &Registry,
    environment: Environment<'_>,
    tables: &[SourceTable],
    report: &mut Report,
) -> Option<Tested> {
    let mut document = match Document::read(path) {
        Ok(document) => document,
        Err(problem) => {
            report.push(problem);
            return None;
        }
    };
    let mut problems = Vec::new();
    let tree = overlay::parse(path, &mut document, &mut problems);
    let mut checker = Checker::new(&document, environment, problems);
    let tested = tree.and_then(|tree| {
        let top = checker.block(&tree, top_of(&tree), "", &keys::CONNECTOR, &keys::CONNECTOR);
        let (_, mapping, tests) = events(&mut checker, &top, tables);
        // A target that lacks nothing but its secrets was left out above.
        if let Some(item) = top.get("to") {
            let wanted: Vec<_> =
                top.block("from").map(|from| from.tables("tables")).unwrap_or_default().into_iter().map(|(t, _)| t).collect();
            sink(&mut checker, item, registry, &wanted, top.get("map").is_some());
            words(&mut checker, &top, registry);
        }
        Some(Tested { path: path.to_owned(), name: top.text("connector")?, mapping: mapping?, tests: tests? })
    });
    checker.problems.retain(|problem| problem.code != Code::SecretMissing);
    let sound = checker.problems.is_empty();
    report.add(&document, checker.problems);
    tested.filter(|_| sound)
}
