//! A checked connector file as a connector: its events, its mapping and tests, its sink.

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use tillstream_connectors::mapping::{Case, Definition, Given, Lookup, Mapping};
use tillstream_connectors::registry::{self, Registry};
use tillstream_connectors::sink::Idempotency;
use tillstream_schemas::Op;

use super::pipeline::unknown_table;
use super::place::{locate, place, place_problem, top_of};
use super::text::FileText;
use crate::config::check::{Block, Checked, Checker, Item, nearest};
use crate::config::document::Document;
use crate::config::keys;
use crate::config::overlay;
use crate::config::report::{Code, Report};
use crate::config::secrets::{Environment, Secrets};
use crate::config::{Connector, Delivery, Keep, Later, OnDelete, Rate, Retry, SchemaChange, SourceTable};

/// Reads one connector file. `tables` are the source's; none when the source is not known.
pub(super) fn read_connector(
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
pub(super) fn events(
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
    let tree = |item: &Item| {
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

/// Hands the block to its kind and brings the kind's problems back to their places.
pub(super) fn sink(
    checker: &mut Checker<'_>,
    item: &Item,
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
pub(super) fn words(checker: &mut Checker<'_>, top: &Block, registry: &Registry) {
    let of = |key: &str| top.get(key).map(|item| &item.value);
    let (Some(Checked::Sink { kind, block, .. }), Some(Checked::Tree { value: map, .. })) = (of("to"), of("map")) else { return };
    for problem in registry.get(kind).map(|kind| kind.check_map(block, map)).unwrap_or_default() {
        place(checker, top, problem);
    }
}
