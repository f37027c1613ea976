//! From files to a [`Pipeline`]: reads, checks the files by themselves and against each other, then resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tillstream_connectors::mapping::{Case, Definition, Given, Lookup, Mapping};
use tillstream_connectors::registry::{self, Registry};
use tillstream_connectors::sink::Idempotency;
use tillstream_schemas::{HashKey, Op, Policy};

use super::calendar::{Calendar, Hours};
use super::check::{Block, Checked, Checker, nearest};
use super::colocation;
use super::document::{Document, Span};
use super::keys;
use super::overlay;
use super::report::{Code, Problem, Report};
use super::secrets::{Environment, Secrets};
use super::tree::{self, Node, Value};
use super::{
    Admin, AdminTls, AdminToken, ColumnRules, Compression, Connector, Delivery, HoldBack, InPeak, Journal, Keep, Later, LocalJournal,
    OnDelete, Origin, Pipeline, Protect, RabbitJournal, Rate, Retention, Retry, Role, SchemaChange, Source, SourceTable, Streaming,
};

/// What both journals keep when nothing is said: a week covers a long weekend and a day of repair.
const RETENTION_DEFAULT: Retention = Retention { age: Some(Duration::from_secs(7 * 86_400)), bytes: None };

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

/// What a file said when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileText {
    /// Its text, secrets masked; references stand as they are.
    pub shown: String,
    /// Names the text as it was: twelve hexadecimal digits.
    pub hash: String,
}

/// Stands between a file and its overlay where both are shown.
const OVERLAY: &str = "\n# overlay ";

impl FileText {
    fn of(document: &Document) -> FileText {
        let digest = Sha256::digest(document.text.as_bytes());
        let shown = match &document.overlay {
            Some((_, overlay)) => format!("{}{OVERLAY}{overlay}\n{}", document.shown_of(&document.name), document.shown_of(overlay)),
            None => document.shown(),
        };
        FileText { shown, hash: digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect() }
    }
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

/// The keys at the top whose values differ between two texts of a file, in the order of the key table; all that are there when one cannot be read.
#[must_use]
pub fn changed_keys(before: &str, after: &str) -> Vec<&'static str> {
    let parse = |text: &str| {
        let document = Document::from_bytes(String::new(), PathBuf::new(), text.as_bytes().to_vec()).ok()?;
        tree::parse(&document, &mut Vec::new())
    };
    // A key has changed where it did in the file or in its overlay.
    let read = |text: &str| match text.split_once(OVERLAY) {
        Some((base, overlay)) => [parse(base), parse(overlay)],
        None => [parse(text), None],
    };
    let of = |tree: &Option<Node>, name: &str| match tree.as_ref().map(|tree| &tree.value) {
        Some(Value::Map(entries)) => entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node.clone()),
        _ => None,
    };
    let (before, after) = (read(before), read(after));
    let differs = |name: &&str| {
        before.iter().zip(&after).any(|(before, after)| match (of(before, name), of(after, name)) {
            (Some(a), Some(b)) => !a.same(&b),
            (a, b) => a.is_some() || b.is_some(),
        })
    };
    keys::CONNECTOR.iter().map(|key| key.name).filter(|name| differs(name)).collect()
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

/// The admin endpoint; complains where others could reach it unasked.
fn admin(checker: &mut Checker<'_>, block: &Block) -> Option<Admin> {
    let (mut tokens, mut names): (Vec<AdminToken>, BTreeSet<String>) = Default::default();
    for item in block.list("tokens") {
        let Checked::Block(entry) = &item.value else { continue };
        let (Some(name), Some(role), Some(token)) = (entry.text("name"), entry.text("role"), entry.secret("token")) else { continue };
        let role = match role.as_str() {
            "admin" => Role::Admin,
            "operator" => Role::Operator,
            _ => Role::Viewer,
        };
        if !names.insert(name.clone()) {
            let help = Some("the audit goes by the name: give each its own".to_owned());
            checker.problem(Code::DuplicateName, item.span, format!("two tokens are named `{name}`"), "the second", help);
        }
        if tokens.iter().any(|other| other.token.expose_secret() == token.expose_secret()) {
            let help = Some("give each its own: `openssl rand -hex 32`".to_owned());
            checker.problem(Code::Conflict, item.span, format!("`{name}` has the token of another one"), "the second", help);
        }
        tokens.push(AdminToken { name, role, token });
    }
    let tls = block.block("tls").and_then(|tls| Some(AdminTls { certificate: tls.path("certificate")?, key: tls.path("key")? }));
    let admin = Admin { listen: block.address("listen")?, tokens, tls };
    if let (Some(why), Some(item)) = (admin.exposed_at(admin.listen), block.get("listen")) {
        let help = Some("listen on 127.0.0.1, or give it both `tokens` and `tls`".to_owned());
        checker.problem(Code::ExposedAdmin, item.span, format!("the admin endpoint is exposed: {why}"), "others reach this address", help);
    }
    Some(admin)
}

/// Where a missing key of the top level belongs: the first key.
fn top_of(tree: &Node) -> Span {
    match &tree.value {
        Value::Map(entries) => entries.first().map_or(tree.span, |(key, _)| key.span),
        _ => tree.span,
    }
}

/// The source's tables with their partition columns; complains of repeats and of columns for tables that are not listed.
fn source_tables(checker: &mut Checker<'_>, source: &Block) -> Vec<SourceTable> {
    let mut tables: Vec<SourceTable> = Vec::new();
    for ((schema, table), span) in source.tables("tables") {
        if tables.iter().any(|t| t.schema == schema && t.table == table) {
            let message = format!("table `{schema}.{table}` is listed twice");
            checker.problem(Code::DuplicateName, span, message, "again", Some("remove one of the two".to_owned()));
            continue;
        }
        tables.push(SourceTable { schema, table, partition_by: None });
    }
    for key in ["partition_by", "changed_at"] {
        let Some(Checked::PerTable(entries)) = source.get(key).map(|item| item.value.clone()) else { continue };
        for (table, columns) in entries {
            let Checked::Table(schema, name) = &table.value else { continue };
            let text = |item: &super::check::Item| if let Checked::Text(text) = &item.value { Some(text.clone()) } else { None };
            match (tables.iter_mut().find(|t| t.schema == *schema && t.table == *name), &columns.value) {
                (Some(found), Checked::List(columns)) => found.partition_by = Some(columns.iter().filter_map(text).collect()),
                (Some(_), _) => {}
                (None, _) => unknown_table(checker, schema, name, table.span, &tables, "`source.tables`"),
            }
        }
    }
    tables
}

fn unknown_table(checker: &mut Checker<'_>, schema: &str, table: &str, span: Span, tables: &[SourceTable], of: &str) {
    let known: Vec<String> = tables.iter().map(|t| format!("{}.{}", t.schema, t.table)).collect();
    let help = match nearest(&format!("{schema}.{table}"), known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add it to {of}, or choose one of {}", known.join(", ")),
    };
    checker.problem(Code::UnknownTable, span, format!("table `{schema}.{table}` is not in {of}"), "not captured", Some(help));
}

fn source(block: &Block, tables: Vec<SourceTable>, columns: ColumnRules, journal: &Journal) -> Option<Source> {
    let hold_back = match (block.block("hold_back"), journal) {
        (Some(block), _) => HoldBack { time: block.duration("time")?, bytes: block.size("bytes")? },
        // Streams confirm before they sync: twice the half minute that an operating system takes to write its cache back.
        (None, Journal::Rabbitmq(_)) => HoldBack { time: Duration::from_secs(60), bytes: 256 << 20 },
        // SQLite syncs before it confirms.
        (None, Journal::Local(_)) => HoldBack { time: Duration::ZERO, bytes: 0 },
    };
    Some(Source {
        name: block.text("name")?,
        url: block.secret("url")?,
        backfill_url: block.secret("backfill_url"),
        slot: block.text("slot")?,
        publication: block.text("publication")?,
        tables,
        hold_back,
        wal_budget: block.size("wal_budget")?,
        initial_load: block.bool("initial_load")?,
        allow_weak_auth: block.bool("allow_weak_auth")?,
        columns,
        streaming: Streaming { on: block.text("streaming")? == "on", spool_max: block.size("spool_max")? },
        origin: if block.text("origin")? == "none" { Origin::None } else { Origin::Any },
    })
}

/// `changed_at` by `schema.table`.
fn changed_at(source: &Block) -> BTreeMap<String, String> {
    let Some(Checked::PerTable(entries)) = source.get("changed_at").map(|item| &item.value) else { return BTreeMap::new() };
    let column = |(table, column): &(super::check::Item, super::check::Item)| match (&table.value, &column.value) {
        (Checked::Table(schema, name), Checked::Text(column)) => Some((format!("{schema}.{name}"), column.clone())),
        _ => None,
    };
    entries.iter().filter_map(column).collect()
}

fn protect(checker: &mut Checker<'_>, block: &Block) -> Option<Protect> {
    let mut hours = Vec::new();
    for item in block.list("peak") {
        let Checked::Text(text) = &item.value else { continue };
        match Hours::parse(text) {
            Some(part) => hours.push(part),
            None => {
                let message = "this is no part of the week".to_owned();
                let help = Some("write `Mon-Fri 11:00-14:00`, `Sat,Sun 10:00-15:00` or `daily 17:00-21:30`".to_owned());
                checker.problem(Code::BadChoice, item.span, message, "not understood", help);
            }
        }
    }
    let zone = block.text("timezone")?;
    let calendar = Calendar::new(&zone, hours);
    if calendar.is_none()
        && let Some(item) = block.get("timezone")
    {
        let help = Some("write a name of the time zone database, as `America/Chicago` or `Europe/Berlin`".to_owned());
        checker.problem(Code::BadChoice, item.span, "this time zone is not known".to_owned(), "not a time zone", help);
    }
    Some(Protect {
        peak: Some(calendar?).filter(|c| !c.is_empty()),
        in_peak: if block.text("in_peak")? == "trickle" { InPeak::Trickle } else { InPeak::Pause },
        active_sessions: block.count("active_sessions")?,
        lock_waits: block.count("lock_waits")?,
        replica_lag: block.duration("replica_lag")?,
        wal_budget: block.size("wal_budget")?,
        capture_lag: block.size("capture_lag")?,
        sink_share: block.count("sink_share")?,
    })
}

/// Column policies; complains of tables that are not captured, of hashes without a key, and of tables that nobody has
/// classified although unknown columns are held back.
fn column_rules(checker: &mut Checker<'_>, source: &Block, tables: &[SourceTable]) -> ColumnRules {
    let key = source.block("hash_key").and_then(|block| Some((block.text("id")?, block.secret("secret")?)));
    let mut rules = ColumnRules {
        tables: BTreeMap::new(),
        hold_new: source.text("on_new_column").as_deref() == Some("hold"),
        hash_key: key.map(|(id, secret)| Arc::new(HashKey::new(&id, secret.expose_secret().as_bytes()))),
    };
    let entries = match source.get("columns").map(|item| item.value.clone()) {
        Some(Checked::PerTable(entries)) => entries,
        _ => Vec::new(),
    };
    for (table, columns) in entries {
        let (Checked::Table(schema, name), Checked::PerColumn(columns)) = (&table.value, &columns.value) else { continue };
        if !tables.iter().any(|t| t.schema == *schema && t.table == *name) {
            unknown_table(checker, schema, name, table.span, tables, "`source.tables`");
        }
        let policies = rules.tables.entry((schema.clone(), name.clone())).or_default();
        for (column, policy) in columns {
            let (Checked::Text(column), Checked::Policy(word)) = (&column.value, &policy.value) else { continue };
            if *word == Policy::Hash && source.get("hash_key").is_none() {
                let help = Some("add `hash_key: {id: k1, secret: \"${env:COLUMN_KEY}\"}` to `source`".to_owned());
                checker.problem(Code::MissingKey, policy.span, "a hashed column needs `source.hash_key`", "hashed here", help);
            }
            policies.insert(column.clone(), *word);
        }
    }
    if rules.hold_new {
        let span = source.get("on_new_column").map(|item| item.span);
        for table in tables.iter().filter(|t| rules.of(&t.schema, &t.table).is_none()) {
            let (Some(span), name) = (span, format!("{}.{}", table.schema, table.table)) else { continue };
            let help = Some(format!("add `{name}: {{column: pass, …}}` to `source.columns`"));
            let message = format!("`on_new_column: hold` needs `source.columns` of `{name}`: all but its key would be held back");
            checker.problem(Code::MissingKey, span, message, "asked for here", help);
        }
    }
    rules
}

fn journal(block: &Block) -> Option<Journal> {
    let retention = |block: &Block| match block.block("retention") {
        Some(retention) => Retention { age: retention.duration("age"), bytes: retention.size("bytes") },
        None => RETENTION_DEFAULT,
    };
    if let Some(local) = block.block("local") {
        return Some(Journal::Local(LocalJournal { dir: local.path("dir")?, partitions: partitions(local)?, retention: retention(local) }));
    }
    let rabbit = block.block("rabbitmq")?;
    let secret = |item: &super::check::Item| if let Checked::Secret(secret) = &item.value { Some(secret.clone()) } else { None };
    Some(Journal::Rabbitmq(RabbitJournal {
        urls: rabbit.list("urls").iter().filter_map(secret).collect(),
        stream: rabbit.text("stream")?,
        partitions: partitions(rabbit)?,
        replicas: rabbit.count("replicas"),
        segment_bytes: rabbit.size("segment")?,
        retention: retention(rabbit),
        frame_max: rabbit.size("frame_max")?,
        compression: if rabbit.text("compression")? == "lz4" { Compression::Lz4 } else { Compression::None },
        tls_ca: rabbit.block("tls").and_then(|tls| tls.path("ca")),
    }))
}

fn partitions(block: &Block) -> Option<NonZeroU16> {
    NonZeroU16::new(block.count("partitions")?)
}

/// Reads one connector file. `tables` are the source's; none when the source is not known.
fn read_connector(
    path: &Path,
    registry: &Registry,
    environment: Environment<'_>,
    tables: &[SourceTable],
    report: &mut Report,
) -> Option<(Connector, FileText)> {
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
    let connector = tree.and_then(|tree| {
        let top = checker.block(&tree, top_of(&tree), "", &keys::CONNECTOR, &keys::CONNECTOR);
        connector(&mut checker, &top, registry, tables)
    });
    let sound = checker.problems.is_empty();
    report.add(&document, checker.problems);
    connector.filter(|_| sound).map(|connector| (connector, FileText::of(&document)))
}

fn connector(checker: &mut Checker<'_>, top: &Block, registry: &Registry, tables: &[SourceTable]) -> Option<Connector> {
    let from = top.block("from");
    let has_map = top.get("map").is_some();
    let (wanted, mapping, tests) = events(checker, top, tables);
    let target = top.get("to").and_then(|item| sink(checker, item, registry, &wanted, has_map));
    words(checker, top, registry);
    let (from, (kind, target)) = (from?, target?);
    let ops = from.list("ops").iter().filter_map(|item| if let Checked::Text(text) = &item.value { op(text) } else { None }).collect();
    let on_delete = match top.text("on_delete")?.as_str() {
        "tombstone" => OnDelete::Tombstone,
        "delete" => OnDelete::Delete,
        _ => OnDelete::Ignore,
    };
    let (delivery, retry) = (top.block("delivery")?, top.block("retry")?);
    let batch = delivery.block("batch")?;
    let (lanes, later) = (NonZeroU16::new(delivery.count("lanes")?)?, retry.text("later")?);
    if let Some(mapping) = mapping.as_ref().and_then(Option::as_ref) {
        facts(checker, top, mapping, target.plan().idempotency, lanes.get(), &later);
    }
    Some(Connector {
        name: top.text("connector")?,
        tables: wanted,
        ops,
        mapping: mapping?,
        tests: tests?,
        on_delete,
        kind,
        delivery: Delivery {
            lanes,
            batch_items_max: batch.count("items")?,
            batch_bytes_max: batch.size("bytes")?,
            linger: batch.duration("linger")?,
            in_flight: delivery.count("in_flight"),
            rate: delivery.rate("rate").or(target.plan().budget.map(|budget| Rate { events: budget.events, per: budget.per })),
            timeout: delivery.duration("timeout"),
        },
        retry: Retry {
            base: retry.duration("base")?,
            max: retry.duration("max")?,
            give_up_after: retry.duration("give_up_after"),
            later: if later == "supersede" { Later::Supersede } else { Later::Wait },
        },
        keep: Keep { images: from.text("before")? == "kept", memory: top.size("memory")? },
        schema_change: match top.text("schema_change")?.as_str() {
            "pause" => SchemaChange::Pause,
            "dead-letter" => SchemaChange::DeadLetter,
            _ => SchemaChange::Adapt,
        },
        secrets: Secrets::new(std::mem::take(&mut checker.yielded)),
        target,
    })
}

/// Which events a connector takes, what it makes of them, and its tests.
#[allow(clippy::type_complexity)] // Three parts of one file, taken apart at once.
fn events(
    checker: &mut Checker<'_>,
    top: &Block,
    tables: &[SourceTable],
) -> (Vec<(String, String)>, Option<Option<Arc<Mapping>>>, Option<Vec<Case>>) {
    let from = top.block("from");
    let mut wanted: Vec<(String, String)> = Vec::new();
    for ((schema, table), span) in from.map(|from| from.tables("tables")).unwrap_or_default() {
        if wanted.contains(&(schema.clone(), table.clone())) {
            let message = format!("table `{schema}.{table}` is listed twice");
            checker.problem(Code::DuplicateName, span, message, "again", Some("remove one of the two".to_owned()));
        } else if !tables.is_empty() && !tables.iter().any(|t| t.schema == schema && t.table == table) {
            unknown_table(checker, &schema, &table, span, tables, "the pipeline's `source.tables`");
        }
        wanted.push((schema, table));
    }
    let has_map = top.get("map").is_some();
    let lookups = lookups(checker, top, tables);
    let mapping = mapping(checker, top, lookups.as_deref().unwrap_or_default());
    let tests = tests(checker, top, &wanted, has_map, lookups.as_deref().unwrap_or_default());
    (wanted, mapping, tests)
}

fn op(text: &str) -> Option<Op> {
    Some(match text {
        "insert" => Op::Insert,
        "update" => Op::Update,
        "delete" => Op::Delete,
        "truncate" => Op::Truncate,
        "read" => Op::Read,
        "message" => Op::Message,
        _ => return None,
    })
}

/// What its `lookup` names; complains of tables that are not captured.
fn lookups(checker: &mut Checker<'_>, top: &Block, tables: &[SourceTable]) -> Option<Vec<Lookup>> {
    let Some(item) = top.get("lookup") else { return Some(Vec::new()) };
    let Checked::Tree { value, node } = &item.value else { return None };
    match Lookup::read(value) {
        Ok(lookups) => {
            for Lookup { name, table: (schema, table), .. } in &lookups {
                if !tables.is_empty() && !tables.iter().any(|t| t.schema == *schema && t.table == *table) {
                    let span = locate(node, item.span, &format!("{name}.table")).0;
                    unknown_table(checker, schema, table, span, tables, "the pipeline's `source.tables`");
                }
            }
            Some(lookups)
        }
        Err(problems) => {
            for problem in problems {
                place(checker, top, problem);
            }
            None
        }
    }
}

/// What does not go together with facts and keys of their own.
fn facts(checker: &mut Checker<'_>, top: &Block, mapping: &Mapping, idempotency: Idempotency, lanes: u16, later: &str) {
    let mut refuse = |key: &str, message: &str, help: &str| {
        let span = top.get(key).map_or_else(|| top.get("to").map(|item| item.span), |item| Some(item.span));
        if let Some(span) = span {
            checker.problem(Code::BadMapping, span, message.to_owned(), "here", Some(help.to_owned()));
        }
    };
    if later == "supersede" && (mapping.has_each() || mapping.has_id() || mapping.is_grouped()) {
        let message = "`later: supersede` leaves out what a newer event replaces, and facts are never replaced";
        refuse("retry", message, "write `later: wait`, or remove `each`, `id` and `group`");
    }
    if idempotency == Idempotency::Transactional && mapping.has_key() && lanes > 1 && !mapping.is_grouped() {
        let message = "`key` cannot order what this kind of target gets in several lanes: its marks go by rows";
        refuse("key", message, "write `delivery: {lanes: 1}`, or remove `key`");
    }
}

/// A connector's mapping, when it has any.
fn mapping(checker: &mut Checker<'_>, top: &Block, lookups: &[Lookup]) -> Option<Option<Arc<Mapping>>> {
    let tree = |item: &super::check::Item| {
        if let Checked::Tree { value, node } = &item.value { Some((value.clone(), node.clone())) } else { None }
    };
    let (when, key, each, id) = (top.text("when"), top.text("key"), top.text("each"), top.text("id"));
    let (map, grouped) = (top.get("map").and_then(tree), top.text("group").is_some());
    if [&when, &key, &each, &id].iter().all(|text| text.is_none()) && map.is_none() && !grouped {
        return Some(None);
    }
    let definition = Definition {
        when: when.as_deref(),
        key: key.as_deref(),
        each: each.as_deref(),
        id: id.as_deref(),
        map: map.as_ref().map(|(value, _)| value),
        lookups,
        grouped,
    };
    match Mapping::define(definition) {
        Ok(mapping) => Some(Some(Arc::new(mapping))),
        Err(problems) => {
            for problem in problems {
                place(checker, top, problem);
            }
            None
        }
    }
}

fn tests(checker: &mut Checker<'_>, top: &Block, tables: &[(String, String)], has_map: bool, lookups: &[Lookup]) -> Option<Vec<Case>> {
    let Some(Checked::Tree { value, .. }) = top.get("tests").map(|item| &item.value) else { return Some(Vec::new()) };
    let (grouped, several) = (top.text("group").is_some(), top.get("each").is_some());
    match Case::read(value, &Given { tables, lookups, has_map, grouped, several }) {
        Ok(_) if !has_map && top.get("when").is_none() => {
            let help = Some("add a `when` or a `map`, or remove them".to_owned());
            checker.problem(Code::BadMapping, top.get("tests")?.span, "`tests` have nothing to test".to_owned(), "here", help);
            None
        }
        Ok(cases) => Some(cases),
        Err(problems) => {
            for problem in problems {
                place(checker, top, problem);
            }
            None
        }
    }
}

/// Brings a problem of a mapping to its place: its path begins with a key of the file.
fn place(checker: &mut Checker<'_>, top: &Block, problem: registry::Problem) {
    let (key, below) = problem.path.split_once('.').unwrap_or((&problem.path, ""));
    let Some(item) = top.get(key) else { return };
    let span = match &item.value {
        Checked::Tree { node, .. } => locate(node, item.span, below).0,
        _ => item.span,
    };
    checker.problem(Code::BadMapping, span, problem.message, "here", problem.help);
}

/// Hands the block to its kind and brings the kind's problems back to their places.
fn sink(
    checker: &mut Checker<'_>,
    item: &super::check::Item,
    registry: &Registry,
    wanted: &[(String, String)],
    mapped: bool,
) -> Option<(&'static str, Arc<dyn registry::Target>)> {
    let Checked::Sink { kind: name, kind_span, block, node } = &item.value else { return None };
    let Some(kind) = registry.get(name) else {
        let names = registry.names();
        let help = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the kinds of this program are {}", names.join(", ")),
        };
        checker.problem(Code::UnknownKind, *kind_span, format!("unknown kind of sink `{name}`"), "not a kind", Some(help));
        return None;
    };
    let target = match kind.validate(block, mapped) {
        Ok(target) => target,
        Err(problems) => {
            for problem in problems {
                let problem = place_problem(checker.document, problem, node, *kind_span);
                checker.problems.push(problem);
            }
            return None;
        }
    };
    for (table, _) in &target.plan().columns {
        if !wanted.iter().any(|(s, t)| format!("{s}.{t}") == *table) {
            let (span, _) = locate(node, *kind_span, &format!("tables.{table}"));
            let known: Vec<String> = wanted.iter().map(|(s, t)| format!("{s}.{t}")).collect();
            let help = match nearest(table, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "add it to `from.tables`, or remove it here".to_owned(),
            };
            let message = format!("the sink names table `{table}`, which `from.tables` does not");
            checker.problem(Code::UnknownTable, span, message, "not delivered", Some(help));
        }
    }
    Some((kind.name(), target))
}

/// Holds the `map` against the words that its target takes.
fn words(checker: &mut Checker<'_>, top: &Block, registry: &Registry) {
    let of = |key: &str| top.get(key).map(|item| &item.value);
    let (Some(Checked::Sink { kind, block, .. }), Some(Checked::Tree { value: map, .. })) = (of("to"), of("map")) else { return };
    for problem in registry.get(kind).map(|kind| kind.check_map(block, map)).unwrap_or_default() {
        place(checker, top, problem);
    }
}

/// A sink's problem at the place its path leads to.
fn place_problem(document: &Document, problem: registry::Problem, node: &Node, kind_span: Span) -> Problem {
    let (span, found) = locate(node, kind_span, &problem.path);
    let named = problem.path.is_empty() || problem.message.starts_with(&format!("`{}`", problem.path));
    let message = if named { problem.message } else { format!("`{}`: {}", problem.path, problem.message) };
    // Whoever is told that something is wrong is told what to do.
    let help = problem.help.unwrap_or_else(|| match problem.path.as_str() {
        "" => "mend the block of this kind".to_owned(),
        path => format!("give `{path}` another value, or remove it"),
    });
    // What the path names may be the very thing that is missing.
    document.problem(Code::BadSink, span, message, if found { "here" } else { "it belongs here" }, Some(help))
}

/// A problem that was found outside the file: at the first place below `below` where `word` stands, else at the block itself.
#[must_use]
pub fn blame(file: &Path, below: &[&str], word: &str, code: Code, message: String, help: String) -> Problem {
    let read = Document::read(file).ok().and_then(|mut document| Some((overlay::parse(file, &mut document, &mut Vec::new())?, document)));
    let Some((tree, document)) = read else {
        // It was there a moment ago.
        return Problem::of_file(&file.display().to_string(), code, message, Some(help));
    };
    let (mut node, mut key) = (&tree, top_of(&tree));
    for name in below {
        let Value::Map(entries) = &node.value else { break };
        let Some((k, v)) = entries.iter().find(|(k, _)| k.text == *name) else { break };
        (node, key) = (v, k.span);
    }
    let mentioned = |text: &str| text.contains("{{") && [format!(".{word}"), format!("'{word}'")].iter().any(|m| text.contains(m));
    let span = find_word(node, &|text| text == word).or_else(|| find_word(node, &mentioned)).unwrap_or(key);
    document.standing(document.problem(code, span, message, "named here", Some(help)))
}

fn find_word(node: &Node, is_it: &dyn Fn(&str) -> bool) -> Option<Span> {
    match &node.value {
        Value::Scalar { text, .. } => is_it(text).then_some(node.span),
        Value::List(items) => items.iter().find_map(|item| find_word(item, is_it)),
        Value::Map(entries) => entries.iter().find_map(|(k, v)| if is_it(&k.text) { Some(k.span) } else { find_word(v, is_it) }),
        Value::Null => None,
    }
}

/// Follows a dotted path as far as it goes: the place of the value it leads to (of a block its key), and whether it was followed to its end.
/// Keys may hold dots (`tables.public.orders`), so the longest key that fits is taken.
fn locate(node: &Node, key: Span, path: &str) -> (Span, bool) {
    let here = || if matches!(node.value, Value::Scalar { .. }) { node.span } else { key };
    if path.is_empty() {
        return (here(), true);
    }
    match &node.value {
        Value::Map(entries) => {
            let rest_of = |name: &str| {
                let rest = path.strip_prefix(name)?;
                if rest.is_empty() { Some("") } else { rest.strip_prefix('.').or_else(|| rest.starts_with('[').then_some(rest)) }
            };
            let next = entries.iter().filter_map(|(k, v)| Some((k, v, rest_of(&k.text)?))).max_by_key(|(k, ..)| k.text.len());
            next.map_or((key, false), |(k, v, rest)| locate(v, k.span, rest))
        }
        Value::List(items) => {
            let digits = path.trim_start_matches('[');
            let end = digits.find([']', '.']).unwrap_or(digits.len());
            let item = digits[..end].parse::<usize>().ok().and_then(|i| items.get(i));
            item.map_or((key, false), |item| locate(item, item.span, digits[end..].trim_start_matches([']', '.'])))
        }
        Value::Null | Value::Scalar { .. } => (here(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in entries {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        dir
    }

    fn codes(text: &str) -> Vec<(&'static str, usize, usize)> {
        let dir = files(&[("t.yaml", text)]);
        match load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None) {
            Ok(_) => Vec::new(),
            Err(report) => report.problems().iter().map(|p| (p.code.as_str(), p.line, p.column)).collect(),
        }
    }

    const GOOD: &str = "version: 1\npipeline: shop\nsource:\n  name: pos\n  url: postgres://u@h/d\n  slot: s\n  publication: p\n  tables: [public.orders]\njournal: {local: {dir: ./j}}\n";

    #[test]
    fn a_small_file_gets_every_default() {
        let dir = files(&[("t.yaml", GOOD)]);
        let pipeline = load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(pipeline.admin.listen.to_string(), "127.0.0.1:7410");
        assert!(pipeline.source.initial_load && !pipeline.source.allow_weak_auth);
        assert_eq!(pipeline.source.hold_back, HoldBack { time: Duration::ZERO, bytes: 0 });
        assert_eq!(pipeline.source.streaming, Streaming::default());
        assert_eq!(pipeline.source.origin, Origin::Any);
        let Journal::Local(local) = pipeline.journal else { panic!("local") };
        assert_eq!((local.dir, local.partitions.get(), local.retention), (dir.path().join("./j"), 1, RETENTION_DEFAULT));
    }

    #[test]
    fn an_endpoint_that_others_reach_wants_tokens_and_encryption() {
        let with = |admin: &str| format!("{GOOD}admin: {{listen: \"0.0.0.0:7410\"{admin}}}\n");
        let tokens = ", tokens: [{name: dana, role: admin, token: 0123456789abcdef}]";
        let tls = ", tls: {certificate: c.pem, key: k.pem}";
        assert_eq!(codes(&with("")), [("config.exposed_admin", 10, 17)]);
        assert_eq!(codes(&with(tokens)), [("config.exposed_admin", 10, 17)]);
        assert_eq!(codes(&with(tls)), [("config.exposed_admin", 10, 17)]);
        assert_eq!(codes(&with(&format!("{tokens}{tls}"))), []);
        let twice = tokens.replace("}]", "}, {name: dana, role: viewer, token: 0123456789abcdef}]");
        let found: Vec<_> = codes(&with(&format!("{twice}{tls}"))).iter().map(|c| c.0).collect();
        assert_eq!(found, ["config.duplicate_name", "config.conflict"]);
    }

    #[test]
    fn what_the_server_is_asked_for_is_read() {
        let text = GOOD.replace("  slot: s\n", "  slot: s\n  streaming: on\n  spool_max: 1GiB\n  origin: none\n");
        let dir = files(&[("t.yaml", &text)]);
        let pipeline = load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(pipeline.source.streaming, Streaming { on: true, spool_max: 1 << 30 });
        assert_eq!(pipeline.source.origin, Origin::None);
        assert_eq!(codes(&text.replace("streaming: on", "streaming: parallel")), [("config.bad_choice", 7, 14)]);
    }

    #[test]
    fn every_problem_is_found_at_its_place() {
        let text = GOOD.replace("  slot: s\n", "  slots: s\n").replace("public.orders", "orders").replace("local", "locale");
        assert_eq!(codes(&text), [("config.unknown_key", 6, 3), ("config.bad_table", 8, 12), ("config.unknown_key", 9, 11)]);
        assert_eq!(codes(""), [("config.empty", 1, 1)]);
        assert_eq!(codes("[1, 2]"), [("config.wrong_type", 1, 1)]);
        assert_eq!(codes("version: 1\nversion: 1\n").first(), Some(&("config.missing_key", 1, 1)));
    }

    #[test]
    fn hostile_files_end_in_one_problem() {
        let bomb = format!("a: &a [x, x]\n{}", (0..20).map(|i| format!("k{i}: [*a, *a, *a]\n")).collect::<String>());
        assert_eq!(codes(&bomb).first().map(|c| c.0), Some("config.too_complex"));
        assert_eq!(codes(&"[".repeat(5000)).len(), 1);
        for text in [
            "\tversion: 1",
            "version: 1\n\tpipeline: x",
            "version: [1",
            "version: 1: 2",
            "--- a\n--- b\n",
            "a: !!binary x\n",
            "? [a]\n: b\n",
            "<<: {a: 1}\n",
            "*x",
        ] {
            assert!(!codes(text).is_empty(), "{text:?}");
        }
        let crlf = GOOD.replace('\n', "\r\n");
        assert_eq!(codes(&crlf), []);
        assert_eq!(codes(&format!("\u{feff}{GOOD}")), []);
        assert_eq!(codes(&GOOD.replace("  slot: s\n", "  slot: S!\n").replace('\n', "\r\n")), [("config.bad_name", 6, 9)]);
    }

    #[test]
    fn no_mutation_of_a_file_panics() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.yaml");
        let try_bytes = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            if let Err(report) = load_with(&path, &Registry::default(), &|_| None) {
                assert!(!report.is_empty() && !report.render(false).is_empty());
            }
        };
        let good = GOOD.replace("slot: s", "slot: \"ß\" # é");
        for at in 0..good.len() {
            try_bytes(&good.as_bytes()[..at]);
            for byte in [b':', b'\n', b'\t', b'{', b'[', b'"', b'&', b'$', 0xc3] {
                let mut mutated = good.clone().into_bytes();
                mutated[at] = byte;
                try_bytes(&mutated);
            }
        }
    }

    #[test]
    fn a_password_in_a_file_is_never_shown() {
        let text = GOOD.replace("postgres://u@h/d", "postgre://u:hunter2@h/d").replace("pipeline: shop", "pipeline: Shop");
        let dir = files(&[("t.yaml", &text)]);
        let report = load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None).expect_err("two problems");
        assert_eq!(report.problems().len(), 2);
        assert!(!report.render(true).contains("hunter2") && !report.to_json().to_string().contains("hunter2"), "{report}");
    }
}
