//! From files to a [`Pipeline`]: reads, checks the files by themselves and against each other, then resolves.

use std::path::{Path, PathBuf};

use tillstream_connectors::registry::Registry;
use tillstream_connectors::sink::Idempotency;

use super::check::{Checked, Checker};
use super::colocation;
use super::document::{Document, Span};
use super::keys;
use super::overlay;
use super::report::{Code, Problem, Report};
use super::secrets::Environment;
use super::tree::{self, Node, Value};
use super::{Connector, Pipeline};

mod connector;
mod pipeline;
mod place;
mod tested;
#[cfg(test)]
mod tests;
mod text;

pub use place::blame;
pub use tested::{Tested, load_tests};
pub use text::{FileText, changed_keys};

use connector::read_connector;
use pipeline::{admin, changed_at, column_rules, journal, protect, source, source_tables};
use place::top_of;

/// Reads a pipeline file and its connector files. `${env:…}` is looked up in the process's environment.
///
/// # Errors
/// Every problem of every file.
pub fn load(path: &Path, registry: &Registry) -> Result<Pipeline, Report> {
    load_with(path, registry, &|name| std::env::var(name).ok())
}

/// A pipeline file without problems.
#[derive(Debug)]
pub struct CheckedFile {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub pipeline: Pipeline,
    /// The files of its connectors, in their order.
    pub connectors: Vec<PathBuf>,
    /// What they say, in the same order.
    pub texts: Vec<FileText>,
}

/// Reads a pipeline file and its connector files, and keeps what they said.
///
/// # Errors
/// Every problem of every file.
pub fn load_file(path: &Path, registry: &Registry) -> Result<CheckedFile, Report> {
    let mut report = Report::default();
    match read_pipeline(path, registry, &|name| std::env::var(name).ok(), &mut report) {
        Some(file) if report.is_empty() => Ok(file),
        _ => Err(report),
    }
}

/// Checks pipeline and connector files and returns the pipelines among them. A connector file by itself is checked without knowing the source's tables.
///
/// # Errors
/// Every problem of every file.
pub fn check_files(paths: &[PathBuf], registry: &Registry) -> Result<Vec<CheckedFile>, Report> {
    let environment = |name: &str| std::env::var(name).ok();
    let (mut report, mut pipelines) = (Report::default(), Vec::new());
    for path in paths {
        match is_connector(path) {
            true => {
                read_connector(path, registry, &environment, &[], &mut report);
            }
            false => pipelines.extend(read_pipeline(path, registry, &environment, &mut report)),
        }
    }
    if report.is_empty() { Ok(pipelines) } else { Err(report) }
}

/// The connectors of pipeline files, and of connector files by themselves, which are checked without knowing the source's tables.
///
/// # Errors
/// Every problem of every file.
pub fn load_connectors(paths: &[PathBuf], registry: &Registry) -> Result<Vec<Connector>, Report> {
    let environment = |name: &str| std::env::var(name).ok();
    let (mut report, mut connectors) = (Report::default(), Vec::new());
    for path in paths {
        match is_connector(path) {
            true => connectors.extend(read_connector(path, registry, &environment, &[], &mut report).map(|(connector, _)| connector)),
            false => {
                connectors.extend(read_pipeline(path, registry, &environment, &mut report).into_iter().flat_map(|f| f.pipeline.connectors))
            }
        }
    }
    if report.is_empty() { Ok(connectors) } else { Err(report) }
}

/// The connector files that a pipeline file names, as far as it can be read.
#[must_use]
pub fn connector_paths(path: &Path) -> Vec<PathBuf> {
    let Some((document, tree)) = Document::read(path).ok().and_then(|d| tree::parse(&d, &mut Vec::new()).map(|tree| (d, tree))) else {
        return Vec::new();
    };
    let Value::Map(entries) = &tree.value else { return Vec::new() };
    let items = entries.iter().find(|(key, _)| key.text == "connectors").map(|(_, node)| &node.value);
    let Some(Value::List(items)) = items else { return Vec::new() };
    let path = |item: &Node| if let Value::Scalar { text, .. } = &item.value { Some(document.dir.join(text)) } else { None };
    items.iter().filter_map(path).collect()
}

/// What is sound in these files and should be looked at all the same: secrets that stand in them, mappings without tests, targets that take repeats.
/// The files have no problems.
#[must_use]
pub fn warnings(files: &[CheckedFile], alone: &[PathBuf]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut secrets = |path: &Path| {
        let Ok(mut document) = Document::read(path) else { return };
        overlay::parse(path, &mut document, &mut Vec::new());
        for span in document.literal_secrets() {
            let help = "write ${env:NAME} or ${file:PATH}, and change the secret: whoever reads this file knows it".to_owned();
            let problem = document.problem(Code::LiteralSecret, span, "a secret stands in the file", "here", Some(help));
            found.push(document.standing(problem));
        }
    };
    for path in alone {
        secrets(path);
    }
    for file in files {
        secrets(&file.path);
        file.connectors.iter().for_each(|path| secrets(path));
    }
    for file in files {
        for (connector, path) in file.pipeline.connectors.iter().zip(&file.connectors) {
            if connector.mapping.is_some() && connector.tests.is_empty() {
                let (message, help) = (
                    format!("connector {} chooses or maps events and has no tests", connector.name),
                    "add `tests`; `tillstream preview` shows events to take",
                );
                found.push(blame(path, &["connector"], &connector.name, Code::Untested, message, help.to_owned()));
            }
            if connector.target.plan().idempotency == Idempotency::None {
                let message = format!("nothing keeps a repeat from having a second effect at the target of connector {}", connector.name);
                let help = "name the header in which the target takes a key for each effect, if it takes any";
                found.push(blame(path, &["to"], connector.kind, Code::NoIdempotency, message, help.to_owned()));
            }
        }
    }
    found
}

/// Whether the file has the key that only connector files have.
pub(crate) fn is_connector(path: &Path) -> bool {
    let Some(tree) = Document::read(path).ok().and_then(|document| tree::parse(&document, &mut Vec::new())) else { return false };
    matches!(&tree.value, Value::Map(entries) if entries.iter().any(|(k, _)| k.text == "connector") && !entries.iter().any(|(k, _)| k.text == "source"))
}

pub(crate) fn load_with(path: &Path, registry: &Registry, environment: Environment<'_>) -> Result<Pipeline, Report> {
    let mut report = Report::default();
    let pipeline = read_pipeline(path, registry, environment, &mut report);
    match pipeline {
        Some(file) if report.is_empty() => Ok(file.pipeline),
        _ => Err(report),
    }
}

fn read_pipeline(path: &Path, registry: &Registry, environment: Environment<'_>, report: &mut Report) -> Option<CheckedFile> {
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
    let Some(tree) = tree else {
        report.add(&document, checker.problems);
        return None;
    };
    let top = checker.block(&tree, top_of(&tree), "", &keys::PIPELINE, &keys::PIPELINE);
    let tables = top.block("source").map(|source| source_tables(&mut checker, source)).unwrap_or_default();
    let columns = top.block("source").map(|source| column_rules(&mut checker, source, &tables)).unwrap_or_default();
    let paths: Vec<(PathBuf, Span)> = top
        .list("connectors")
        .iter()
        .filter_map(|item| if let Checked::Path(path) = &item.value { Some((path.clone(), item.span)) } else { None })
        .collect();
    for (i, (path, span)) in paths.iter().enumerate() {
        if paths[..i].iter().any(|(other, _)| other == path) {
            checker.problem(
                Code::DuplicateName,
                *span,
                "this connector file is listed twice",
                "again",
                Some("remove one of the two".to_owned()),
            );
        }
    }
    let (mut connectors, mut texts): (Vec<Connector>, Vec<FileText>) = Default::default();
    let mut files = Report::default();
    for (i, (path, span)) in paths.iter().enumerate() {
        if paths[..i].iter().any(|(other, _)| other == path) {
            continue;
        }
        let Some((connector, text)) = read_connector(path, registry, environment, &tables, &mut files) else { continue };
        if connectors.iter().any(|c| c.name == connector.name) {
            let message = format!("two connector files are named `{}`", connector.name);
            let help = "checkpoints and idempotency keys go by the name: give each its own".to_owned();
            checker.problem(Code::DuplicateName, *span, message, "the second", Some(help));
        }
        connectors.push(connector);
        texts.push(text);
    }
    let protect = top.block("protect").and_then(|block| protect(&mut checker, block));
    let admin = top.block("admin").and_then(|block| admin(&mut checker, block));
    let sound = checker.problems.is_empty() && files.is_empty();
    report.add(&document, checker.problems);
    report.extend(files);
    if !sound {
        return None;
    }
    let journal = journal(top.block("journal")?)?;
    let apart = connectors.iter().zip(&paths).filter_map(|(connector, (path, _))| colocation::check(connector, path, &tables, &journal));
    let apart: Vec<Problem> = apart.collect();
    if !apart.is_empty() {
        apart.into_iter().for_each(|problem| report.push(problem));
        return None;
    }
    let source = source(top.block("source")?, tables, columns, &journal)?;
    let pipeline = Pipeline {
        name: top.text("pipeline")?,
        source,
        journal,
        admin: admin?,
        protect: protect?,
        changed_at: changed_at(top.block("source")?),
        canary: top.block("canary").and_then(|canary| canary.duration("every")),
        connectors,
    };
    Some(CheckedFile { path: path.to_owned(), pipeline, connectors: paths.into_iter().map(|(path, _)| path).collect(), texts })
}
