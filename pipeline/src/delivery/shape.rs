//! Whether events still have the shape that a connector's file was written for.
//!
//! ```text
//!  event ─layout─▶ met before? ─▶ its layout and the earlier ones in the control log ─▶ columns that were there, are used here and are gone
//!                                                                                        └─▶ hold, or a dead letter: by `schema_change`
//! ```
//!
//! A column that a file merely names is no reason to stop: what counts is that an event cannot be told without it. The earlier layouts of the table say
//! whether it was ever there, so that a misspelt name stays what it is.

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tillstream_connectors::mapping::Mapping;
use tillstream_connectors::registry::Target;
use tillstream_connectors::sink::Reason;
use tillstream_schemas::{Event, Op, Position};
use tokio::time::Instant;

use super::events::Output;
use crate::config::{Connector, SchemaChange};
use crate::control::{LayoutAccepted, State, TableLayout, now_ms};

/// The code of everything that a changed layout stops.
pub(super) const CODE: &str = "delivery.schema_changed";

/// The control log tells of a layout as soon as it is used, but it is another log than the one that the event comes from.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Layouts remembered; more are looked up again.
const SEEN_MAX: usize = 1_000;

/// The layouts that one partition of a connector has met.
#[derive(Debug)]
pub(super) struct Shapes {
    connector: String,
    mode: SchemaChange,
    /// Whether there is anything that a layout could be wrong for.
    watches: bool,
    mapping: Option<Arc<Mapping>>,
    target: Arc<dyn Target>,
    /// What the sink itself reads, by table.
    columns: HashMap<String, Vec<String>>,
    /// Tables whose rows are seen beside an event's own.
    beside: Vec<String>,
    /// By fingerprint, which names the table too.
    seen: HashMap<String, Seen, foldhash::fast::RandomState>,
    /// Whether the sink or its block misses a column in any of them.
    target_misses: bool,
    /// The layout of which nothing was known, and since when.
    untold: Option<(String, Instant)>,
    /// The partition has met these now.
    met: Vec<LayoutAccepted>,
}

/// What is known of a layout.
#[derive(Clone, Debug, Default)]
struct Seen {
    lost: Vec<Lost>,
    /// Somebody said that events which do not fit are to be dead letters.
    refuse: bool,
}

/// A column that is used here, was there, and is gone.
#[derive(Clone, Debug)]
struct Lost {
    /// `schema.table`.
    table: String,
    name: String,
    was_key: bool,
    /// Whether the sink reads it.
    by_sink: bool,
    /// Whether an expression of the sink's block does.
    by_block: bool,
}

/// What an event's layout says.
#[derive(Debug)]
pub(super) enum Fit {
    /// Go on.
    Fits,
    /// The control log does not tell of it yet.
    Untold,
    /// It is to be seen by a person first.
    Changed(String),
}

/// Why an event cannot be told.
#[derive(Debug)]
pub(super) struct Cause {
    /// What is gone.
    pub(super) what: String,
    /// Whether it is to be a dead letter, or else to wait.
    pub(super) refuse: bool,
    /// Whether nothing at all can be sent for the event, whatever was made of it.
    whole: bool,
}

impl Shapes {
    pub(super) fn new(connector: &Connector) -> Shapes {
        let mapping = connector.mapping.clone();
        let name = |(schema, table): &(String, String)| format!("{schema}.{table}");
        let mut beside: Vec<String> = mapping.iter().flat_map(|m| m.lookups()).map(|lookup| name(&lookup.table)).collect();
        if mapping.as_ref().is_some_and(|m| m.is_grouped()) {
            beside.extend(connector.tables.iter().map(name));
        }
        Shapes {
            connector: connector.name.clone(),
            mode: connector.schema_change,
            watches: connector.schema_change == SchemaChange::Pause
                || mapping.is_some()
                || !connector.target.plan().columns.is_empty()
                || connector.target.expressions().is_some(),
            columns: connector.target.plan().columns.iter().cloned().collect(),
            mapping,
            target: connector.target.clone(),
            beside,
            seen: HashMap::default(),
            target_misses: false,
            untold: None,
            met: Vec::new(),
        }
    }

    /// What this partition has met since it was asked last, to be stored before anything of it counts as settled.
    pub(super) fn take_met(&mut self) -> Vec<LayoutAccepted> {
        std::mem::take(&mut self.met)
    }

    /// Whether an event may be looked at at all. Costs a look into a table unless its layout is new.
    pub(super) fn fit(&mut self, event: &Event, state: impl FnOnce() -> Arc<State>) -> Fit {
        let Some(layout) = event.layout().filter(|layout| self.watches && !self.seen.contains_key(*layout)) else { return Fit::Fits };
        let Some((_, table)) = named(event) else { return Fit::Fits };
        let state = state();
        if self.mode == SchemaChange::Pause {
            match acceptance(&state, &self.connector, &table, layout) {
                Acceptance::Nothing => self.met.push(LayoutAccepted {
                    connector: self.connector.clone(),
                    table: table.clone(),
                    layout: layout.to_owned(),
                    refuse: false,
                    by: "delivery".to_owned(),
                    at_ms: now_ms(),
                }),
                Acceptance::Known { .. } => {}
                Acceptance::Other if self.met.iter().any(|met| met.layout == layout) => {}
                Acceptance::Other => return Fit::Changed(format!("{table} has another layout than this connector has met")),
            }
        }
        let told = state.layouts().any(|l| l.table == table && l.layout == layout);
        if !told && (self.mapping.is_some() || self.target.expressions().is_some() || self.columns.contains_key(&table)) {
            let since = match &self.untold {
                Some((untold, since)) if untold == layout => *since,
                _ => Instant::now(),
            };
            self.untold = Some((layout.to_owned(), since));
            if since.elapsed() < TOLD_WITHIN {
                return Fit::Untold;
            }
        }
        let seen = self.look_up(event, &state);
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        self.target_misses |= seen.lost.iter().any(|lost| lost.by_sink || lost.by_block);
        self.seen.insert(layout.to_owned(), seen);
        Fit::Fits
    }

    /// Of a grouped mapping, whose parts nobody can tell apart later: whether the event must not join.
    pub(super) fn keeps_out(&self, event: &Event) -> Option<Cause> {
        let seen = self.seen.get(event.layout()?)?;
        (!seen.lost.is_empty() && !seen.refuse).then(|| cause(seen.lost.iter(), seen.refuse, false))
    }

    /// Why an event cannot be told, when that is for a column which is gone. `failed`: it could not be mapped.
    pub(super) fn cause<S: Deref<Target = State>>(&self, event: &Event, failed: bool, state: impl FnOnce() -> S) -> Option<Cause> {
        if !failed && !self.target_misses {
            return None;
        }
        self.judge(event, self.seen.get(event.layout()?).unwrap_or(&Seen::default()), failed, state)
    }

    /// As [`Self::cause`] of an event that was read long ago and comes again: it never waits, and is no reason for others not to.
    pub(super) fn cause_again(&self, event: &Event, failed: bool, state: &State) -> Option<Cause> {
        match self.seen.get(event.layout()?) {
            Some(seen) => self.judge(event, seen, failed, || state),
            None => self.judge(event, &self.look_up(event, state), failed, || state),
        }
    }

    fn judge<S: Deref<Target = State>>(&self, event: &Event, seen: &Seen, failed: bool, state: impl FnOnce() -> S) -> Option<Cause> {
        let missed = |lost: &&Lost| lost.by_sink && (event.op() != Op::Delete || lost.was_key);
        if seen.lost.iter().any(|lost| missed(&lost)) {
            return Some(cause(seen.lost.iter().filter(missed), seen.refuse, true));
        }
        let asked = |lost: &&Lost| lost.by_block;
        if seen.lost.iter().any(|lost| asked(&lost)) && self.target.expressions().is_some_and(|block| block.apply(event, "key").is_err()) {
            return Some(cause(seen.lost.iter().filter(asked), seen.refuse, true));
        }
        if !failed {
            return None;
        }
        if !seen.lost.is_empty() {
            return Some(cause(seen.lost.iter(), seen.refuse, false));
        }
        if self.beside.is_empty() {
            return None;
        }
        let state = state();
        self.beside.iter().find_map(|table| {
            let seen = self.look(&state, table, state.layout(table)?);
            (!seen.lost.is_empty()).then(|| cause(seen.lost.iter(), seen.refuse, false))
        })
    }

    /// What is known of an event's layout may have changed.
    pub(super) fn forget(&mut self, event: &Event) {
        if let Some(layout) = event.layout() {
            self.seen.remove(layout);
        }
    }

    fn look_up(&self, event: &Event, state: &State) -> Seen {
        let Some((layout, table)) = named(event) else { return Seen::default() };
        let version = event.version();
        let of_table = |l: &&TableLayout| l.table == table && l.layout == layout;
        // A layout may come again; which of them the event has, its place tells.
        let told = state.layouts().filter(of_table).filter(|l| l.since <= version).last().or_else(|| state.layouts().find(of_table));
        told.map(|told| self.look(state, &table, told)).unwrap_or_default()
    }

    fn look(&self, state: &State, table: &str, now: &TableLayout) -> Seen {
        let mut lost: Vec<Lost> = Vec::new();
        let earlier = state.layouts().filter(|l| l.table == table && l.since < now.since);
        for column in earlier.flat_map(|l| &l.columns) {
            let by_sink = self.columns.get(table).is_some_and(|columns| columns.contains(&column.name));
            let by_block = self.target.expressions().is_some_and(|block| block.mentions(&column.name));
            let used = by_sink || by_block || self.mapping.as_ref().is_some_and(|m| m.mentions(&column.name));
            if !used || !column.appears() || now.columns.iter().any(|c| c.name == column.name && c.appears()) {
                continue;
            }
            match lost.iter_mut().find(|known| known.name == column.name) {
                Some(known) => known.was_key = column.key,
                None => lost.push(Lost { table: table.to_owned(), name: column.name.clone(), was_key: column.key, by_sink, by_block }),
            }
        }
        let accepted = acceptance(state, &self.connector, table, &now.layout);
        Seen { lost, refuse: self.mode == SchemaChange::DeadLetter || matches!(accepted, Acceptance::Known { refuse: true }) }
    }
}

impl Cause {
    /// Makes dead letters of the outputs that cannot be told.
    pub(super) fn refuse(&self, output: &mut Output) {
        let why = match &output.item.mapped {
            Some(Err(reason)) => format!("{}: {}", self.what, reason.message),
            _ if self.whole => self.what.clone(),
            _ => return,
        };
        output.item.mapped = Some(Err(Reason { code: CODE.to_owned(), message: why }));
    }
}

fn tables_of(connector: &Connector) -> BTreeSet<String> {
    let looked_up = connector.mapping.iter().flat_map(|m| m.lookups()).map(|lookup| &lookup.table);
    connector.tables.iter().chain(looked_up).map(|(schema, table)| format!("{schema}.{table}")).collect()
}

/// Whether a layout of the connector's tables makes it wait, or will, until somebody decides ([`acceptances`]): one that it has not met where it is to stop
/// before each, or one without a column that it uses.
#[must_use]
pub fn is_undecided(connector: &Connector, state: &State) -> bool {
    let (shapes, tables) = (Shapes::new(connector), tables_of(connector));
    state.layouts().filter(|layout| tables.contains(&layout.table)).any(|layout| {
        let met = || acceptance(state, &connector.name, &layout.table, &layout.layout);
        let is_new = shapes.mode == SchemaChange::Pause && matches!(met(), Acceptance::Other);
        let seen = shapes.look(state, &layout.table, layout);
        is_new || (!seen.lost.is_empty() && !seen.refuse)
    })
}

/// What has to be stored for a connector to go on with its tables as they are now. `refuse`: also where the file as it is cannot tell them.
#[must_use]
pub fn acceptances(connector: &Connector, state: &State, refuse: bool, by: &str) -> Vec<LayoutAccepted> {
    let accept = |layout: &TableLayout| LayoutAccepted {
        connector: connector.name.clone(),
        table: layout.table.clone(),
        layout: layout.layout.clone(),
        refuse,
        by: by.to_owned(),
        at_ms: now_ms(),
    };
    // The newest one, which a load may have followed with an older one.
    let newest = |table: &String| state.layouts().filter(|l| l.table == *table).max_by_key(|l| first(state, table, &l.layout));
    tables_of(connector).iter().filter_map(newest).map(accept).collect()
}

fn cause<'l>(lost: impl Iterator<Item = &'l Lost>, refuse: bool, whole: bool) -> Cause {
    let (mut names, mut table) = (Vec::new(), "");
    for column in lost {
        names.push(format!("`{}`", column.name));
        table = &column.table;
    }
    Cause { what: format!("{table} does not have {} any more", names.join(", ")), refuse, whole }
}

/// The layout and the table of an event that has a row.
fn named(event: &Event) -> Option<(&str, String)> {
    let (layout, schema, table) = (event.layout()?, event.schema()?, event.table()?);
    (event.op() != Op::Truncate).then(|| (layout, format!("{schema}.{table}")))
}

enum Acceptance {
    /// The connector has met no layout of the table.
    Nothing,
    /// It has met others, none of which is later.
    Other,
    Known {
        refuse: bool,
    },
}

/// Where a layout was first: a load that began before a change tells of the layout before it once more.
fn first(state: &State, table: &str, layout: &str) -> Option<Position> {
    state.layouts().filter(|l| l.table == table && l.layout == layout).map(|l| l.since).min()
}

/// What a connector has met includes everything before it.
fn acceptance(state: &State, connector: &str, table: &str, layout: &str) -> Acceptance {
    let here = first(state, table, layout);
    let (mut any, mut found) = (false, None);
    for accepted in state.accepted(connector, table) {
        any = true;
        if accepted.layout == layout || here.is_some_and(|here| first(state, table, &accepted.layout).is_some_and(|other| other > here)) {
            found = Some(found.unwrap_or(false) || accepted.refuse);
        }
    }
    match found {
        Some(refuse) => Acceptance::Known { refuse },
        None if any => Acceptance::Other,
        None => Acceptance::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use serde_json::json;
    use tillstream_connectors::mapping::{Definition, Lookup};
    use tillstream_connectors::registry::Registry;
    use tillstream_connectors::sink::OnDelete;
    use tillstream_schemas::Lsn;

    use super::*;
    use crate::config::{Delivery, Keep, Later, Retry};
    use crate::control::{LayoutColumn, Record, Stored};
    use crate::journal::Offset;

    /// A connector of `public.sale` that uses `id` and `total`: by its sink's `columns`, by its sink's `body`, or by its `map`.
    fn connector(by: &str, mode: SchemaChange) -> Connector {
        let mut block = json!({"url": "https://api.example/v1"});
        match by {
            "columns" => block["columns"] = json!({"public.sale": ["id", "total"]}),
            "body" => {
                block["body"] = json!("<sale>{{ after.total }}</sale>");
                block["content_type"] = json!("application/xml");
            }
            _ => {}
        }
        let target = Registry::built_in().get("http").expect("built in").validate(&block, by == "map").expect("valid");
        let mapping = Mapping::compile(None, Some(&json!({"total": "{{ after['total'] }}", "no_such": "{{ after.totl is defined }}"})));
        Connector {
            name: "crm".into(),
            tables: vec![("public".into(), "sale".into())],
            ops: Op::ALL.to_vec(),
            on_delete: OnDelete::Tombstone,
            mapping: (by == "map").then(|| Arc::new(mapping.expect("sound"))),
            tests: Vec::new(),
            target,
            kind: "http",
            delivery: Delivery {
                lanes: NonZeroU16::MIN,
                batch_items_max: 1,
                batch_bytes_max: 1,
                linger: Duration::ZERO,
                in_flight: None,
                rate: None,
                timeout: None,
            },
            retry: Retry { base: Duration::ZERO, max: Duration::ZERO, give_up_after: None, later: Later::Wait },
            keep: Keep::default(),
            schema_change: mode,
            secrets: crate::config::Secrets::default(),
        }
    }

    /// Layouts `a`, `b`, … of the table, each with these columns, one transaction after another.
    fn told(layouts: &[&[&str]]) -> State {
        let mut state = State::default();
        for (n, columns) in layouts.iter().enumerate() {
            let column = |name: &&str| LayoutColumn {
                name: name.trim_end_matches('!').to_owned(),
                type_name: "text".to_owned(),
                key: *name == "id",
                policy: name.ends_with('!').then(|| "drop".to_owned()),
            };
            let layout = TableLayout {
                table: "public.sale".to_owned(),
                layout: char::from(b'a' + n as u8).to_string(),
                since: Position::new(1, Lsn(0x100 * (n as u64 + 1)), 0),
                oid: 1,
                renamed: None,
                identity: "default".to_owned(),
                columns: columns.iter().map(column).collect(),
                at_ms: 1,
            };
            store(&mut state, Record::Layout(layout));
        }
        state
    }

    fn store(state: &mut State, record: Record) {
        state.apply_record(Stored { offset: state.next(), token: 0, bytes: 1, record }).expect("applied");
        assert!(state.next() > Offset(0));
    }

    fn event(layout: &str, at: u64, op: &str) -> Event {
        let after = if op == "delete" { json!(null) } else { json!({"id": 1}) };
        let body = json!({
            "id": format!("e{}", Position::new(1, Lsn(at), 0)), "op": op, "schema": "public", "table": "sale", "layout": layout, "key": {"id": 1},
            "before": null, "after": after, "unchanged": [], "commit_lsn": Lsn(at).to_string(), "ordinal": 0, "xid": 7,
            "committed_at": "2026-11-23T10:00:00.000000Z",
        });
        Event::parse(body.to_string().into()).expect("an event")
    }

    /// What becomes of an event that was mapped well or not.
    fn verdict(shapes: &mut Shapes, state: &State, event: &Event, failed: bool) -> String {
        let state = Arc::new(state.clone());
        match shapes.fit(event, || state.clone()) {
            Fit::Fits => {}
            Fit::Untold => return "untold".into(),
            Fit::Changed(_) => return "changed".into(),
        }
        match shapes.cause(event, failed, || state.clone()) {
            None => "fits".into(),
            Some(Cause { what, refuse, .. }) => format!("{}: {what}", if refuse { "refused" } else { "waits" }),
        }
    }

    const GONE: &str = "public.sale does not have `total` any more";

    #[test]
    fn an_event_waits_for_a_column_that_was_there_and_is_used() {
        let state = told(&[&["id", "total", "note"], &["id", "total"], &["id"], &["id", "total!"], &["id", "total"]]);
        for by in ["columns", "body", "map"] {
            let (by_sink, failed) = (by == "columns", by == "map");
            let mut shapes = Shapes::new(&connector(by, SchemaChange::Adapt));
            let mut of = |layout: &str, at, op: &str| verdict(&mut shapes, &state, &event(layout, at, op), failed);
            assert_eq!(of("a", 0x100, "insert"), "fits");
            assert_eq!(of("b", 0x200, "insert"), "fits", "nobody uses `note`");
            assert_eq!(of("c", 0x300, "insert"), format!("waits: {GONE}"), "it is gone");
            assert_eq!(of("d", 0x400, "update"), format!("waits: {GONE}"), "it is there and does not appear");
            assert_eq!(of("e", 0x500, "update"), "fits", "it is back");
            // Of a deleted row the sink asks for the key alone.
            assert_eq!(of("c", 0x300, "delete"), if by_sink { "fits".to_owned() } else { format!("waits: {GONE}") });
        }
        // What can be told without it is told.
        let mut shapes = Shapes::new(&connector("map", SchemaChange::Adapt));
        assert_eq!(verdict(&mut shapes, &state, &event("c", 0x300, "insert"), false), "fits");
        // A name that never was a column's is a mistake of the file.
        let mut shapes = Shapes::new(&connector("map", SchemaChange::Adapt));
        assert_eq!(verdict(&mut shapes, &told(&[&["id"], &["id", "n"]]), &event("b", 0x200, "insert"), true), "fits");
    }

    #[test]
    fn what_somebody_accepted_is_refused_event_by_event() {
        let mut state = told(&[&["id", "total"], &["id"], &["id", "n"]]);
        let mut shapes = Shapes::new(&connector("columns", SchemaChange::DeadLetter));
        assert_eq!(verdict(&mut shapes, &state, &event("b", 0x200, "insert"), false), format!("refused: {GONE}"));
        let adapting = connector("columns", SchemaChange::Adapt);
        assert!(is_undecided(&adapting, &state) && !is_undecided(&connector("columns", SchemaChange::DeadLetter), &state));
        let accepted = acceptances(&adapting, &state, true, "op");
        assert_eq!(accepted.iter().map(|a| (&*a.table, &*a.layout)).collect::<Vec<_>>(), [("public.sale", "c")]);
        accepted.into_iter().for_each(|accepted| store(&mut state, Record::LayoutAccepted(accepted)));
        assert!(!is_undecided(&adapting, &state), "it is decided");
        let mut shapes = Shapes::new(&adapting);
        for (layout, at) in [("c", 0x300), ("b", 0x200)] {
            assert_eq!(verdict(&mut shapes, &state, &event(layout, at, "insert"), false), format!("refused: {GONE}"), "and all before it");
        }
        assert_eq!(
            verdict(&mut Shapes::new(&connector("columns", SchemaChange::Pause)), &state, &event("a", 0x100, "insert"), false),
            "fits"
        );
    }

    #[test]
    fn a_connector_that_pauses_meets_each_layout_once() {
        let mut state = told(&[&["id", "total"], &["id", "total", "n"], &["id", "total", "n", "m"]]);
        let pausing = connector("columns", SchemaChange::Pause);
        let mut shapes = Shapes::new(&pausing);
        let of = |shapes: &mut Shapes, state: &State, layout: &str, at| verdict(shapes, state, &event(layout, at, "insert"), false);
        assert_eq!(of(&mut shapes, &state, "b", 0x200), "fits", "it takes the table as it finds it");
        let met = shapes.take_met();
        assert_eq!(met.iter().map(|m| (&*m.layout, m.refuse)).collect::<Vec<_>>(), [("b", false)]);
        met.into_iter().for_each(|met| store(&mut state, Record::LayoutAccepted(met)));
        // So does whoever comes after it, and what another partition brings from before is no change.
        let mut shapes = Shapes::new(&pausing);
        assert_eq!(of(&mut shapes, &state, "a", 0x100), "fits");
        assert_eq!(of(&mut shapes, &state, "c", 0x300), "changed");
        assert_eq!(of(&mut shapes, &state, "c", 0x300), "changed");
        // Rows that a load reads as the table was before are no news of the others.
        let again = TableLayout { since: Position::new(1, Lsn(0x900), 0), ..state.layouts().nth(1).expect("b").clone() };
        store(&mut state, Record::Layout(again));
        assert_eq!(of(&mut shapes, &state, "c", 0x300), "changed");
        // Nor does a dead letter of that layout open the way for others.
        assert!(shapes.cause_again(&event("c", 0x300, "insert"), true, &state).is_none());
        assert_eq!(of(&mut shapes, &state, "c", 0x300), "changed");
        assert!(is_undecided(&pausing, &state) && !is_undecided(&connector("columns", SchemaChange::Adapt), &state));
        acceptances(&pausing, &state, false, "op").into_iter().for_each(|a| store(&mut state, Record::LayoutAccepted(a)));
        assert_eq!(of(&mut shapes, &state, "c", 0x300), "fits");
        assert!(!is_undecided(&pausing, &state));
    }

    #[test]
    fn what_is_looked_up_and_what_is_grouped_counts_too() {
        let mapped = |definition: Definition<'_>| {
            let mapping = Some(Arc::new(Mapping::define(definition).expect("sound")));
            Shapes::new(&Connector { mapping, ..connector("map", SchemaChange::Adapt) })
        };
        let lookups = Lookup::read(&json!({"item": {"table": "public.item", "by": "id"}})).expect("sound");
        let map = json!({"price": "{{ lookup('item', after.id).price }}"});
        let mut shapes = mapped(Definition { map: Some(&map), lookups: &lookups, ..Definition::default() });
        let mut state = told(&[&["id"]]);
        let layouts = told(&[&["id", "price"], &["id"]]);
        for (n, layout) in layouts.layouts().enumerate() {
            let layout = TableLayout { table: "public.item".into(), layout: format!("item{n}"), ..layout.clone() };
            store(&mut state, Record::Layout(layout));
        }
        assert_eq!(verdict(&mut shapes, &state, &event("a", 0x300, "insert"), true), "waits: public.item does not have `price` any more");
        // Of a group, naming it is enough: its events are told together, when it is too late to wait for one of them.
        let map = json!({"totals": "{{ events | map(attribute='after.total') | list }}"});
        let mut shapes = mapped(Definition { map: Some(&map), grouped: true, ..Definition::default() });
        let state = told(&[&["id", "total"], &["id"]]);
        assert_eq!(verdict(&mut shapes, &state, &event("a", 0x100, "insert"), false), "fits");
        assert!(shapes.keeps_out(&event("a", 0x100, "insert")).is_none());
        assert_eq!(verdict(&mut shapes, &state, &event("b", 0x200, "insert"), false), "fits");
        assert!(shapes.keeps_out(&event("b", 0x200, "insert")).is_some_and(|cause| !cause.refuse));
    }

    #[tokio::test(start_paused = true)]
    async fn a_layout_that_nobody_tells_of_holds_nothing_for_long() {
        let state = told(&[&["id", "total"]]);
        let mut shapes = Shapes::new(&connector("columns", SchemaChange::Adapt));
        assert_eq!(verdict(&mut shapes, &state, &event("b", 0x200, "insert"), false), "untold");
        tokio::time::advance(TOLD_WITHIN).await;
        assert_eq!(verdict(&mut shapes, &state, &event("b", 0x200, "insert"), false), "fits");
        assert_eq!(
            verdict(&mut Shapes::new(&connector("columns", SchemaChange::Adapt)), &state, &event("a", 0x100, "insert"), false),
            "fits"
        );
    }
}
