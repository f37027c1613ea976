//! Two files of one connector on the same events: how many fare the same, and what is different about the others.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tillstream_schemas::Event;

use super::tell::{self, Look, Places};
use super::{Arrived, Audience, failed};
use crate::cli::output::{self, End, Format};
use crate::config::{Connector, Secrets};
use crate::delivery::preview::{Fate, Preview, Told, Verdict};
use crate::journal::Offset;

/// Events of each class that are shown.
const SAMPLES_MAX: usize = 3;

/// Lines of a sample.
const LINES_MAX: usize = 40;

/// Events of which one file has not told yet: a transaction of as many, or events that only the other file tells one by one.
const OPEN_MAX: usize = 10_000;

/// How an event fares by both files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Different,
    OnlyOldSends,
    OnlyNewSends,
    FailsNow,
    FailsBefore,
    FailsInBoth,
    Same,
    SentByNeither,
}

impl Class {
    const ALL: [Class; 8] = [
        Class::Same,
        Class::Different,
        Class::OnlyOldSends,
        Class::OnlyNewSends,
        Class::FailsNow,
        Class::FailsBefore,
        Class::FailsInBoth,
        Class::SentByNeither,
    ];

    /// For machines.
    fn name(self) -> &'static str {
        match self {
            Class::Same => "same",
            Class::Different => "different",
            Class::OnlyOldSends => "only_old_sends",
            Class::OnlyNewSends => "only_new_sends",
            Class::FailsNow => "fails_now",
            Class::FailsBefore => "fails_before",
            Class::FailsInBoth => "fails_in_both",
            Class::SentByNeither => "sent_by_neither",
        }
    }

    /// For people.
    fn words(self) -> &'static str {
        match self {
            Class::Same => "sent as before",
            Class::Different => "sent otherwise",
            Class::OnlyOldSends => "no longer sent",
            Class::OnlyNewSends => "sent now, and not before",
            Class::FailsNow => "fail now",
            Class::FailsBefore => "failed before, and not now",
            Class::FailsInBoth => "fail as before",
            Class::SentByNeither => "sent by neither",
        }
    }

    /// Whether the files do differ here.
    fn differs(self) -> bool {
        !matches!(self, Class::Same | Class::FailsInBoth | Class::SentByNeither)
    }
}

/// What one file makes of an event; `None` when it does not take such events.
type Side = Option<Vec<Told>>;

/// An event of which one side may not be known yet: that of a file that joins a transaction is told when it is over.
#[derive(Default)]
struct Pair {
    event: Option<Arc<Event>>,
    place: Option<(u16, Offset)>,
    sides: [Option<Side>; 2],
}

/// An event that fares differently.
struct Sample {
    class: Class,
    head: Value,
    title: String,
    diff: Vec<Line>,
}

/// Counts how events fare by two files, and keeps samples.
pub(super) struct Comparison<'c> {
    files: [&'c Connector; 2],
    source: &'c str,
    limit: u64,
    look: Look,
    previews: BTreeMap<u16, [Preview; 2]>,
    places: Places,
    open: HashMap<String, Pair>,
    /// In which order they came.
    order: VecDeque<String>,
    counts: BTreeMap<Class, u64>,
    samples: Vec<Sample>,
}

impl<'c> Comparison<'c> {
    pub(super) fn new(old: &'c Connector, new: &'c Connector, source: &'c str, limit: u64, look: Look) -> Comparison<'c> {
        Comparison {
            files: [old, new],
            source,
            limit,
            look,
            previews: BTreeMap::new(),
            places: Places::default(),
            open: HashMap::new(),
            order: VecDeque::new(),
            counts: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    fn both(&mut self, partition: u16) -> &mut [Preview; 2] {
        let (files, source) = (self.files, self.source);
        self.previews.entry(partition).or_insert_with(|| files.map(|file| Preview::of_partition(file, source, partition)))
    }

    fn compared(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Takes in what one file makes of an event.
    fn note(&mut self, partition: u16, side: usize, event: Arc<Event>, verdict: &Verdict) {
        let told = match verdict {
            Verdict::NotTaken => None,
            Verdict::Filtered => Some(Vec::new()),
            Verdict::Sent(items) => Some(items.iter().map(|item| self.both(partition)[side].tell(item)).collect()),
        };
        let id = event.id().to_owned();
        if !self.open.contains_key(&id) {
            let place = self.places.remove(&id);
            self.order.push_back(id.clone());
            self.open.insert(id.clone(), Pair { place, ..Pair::default() });
        }
        if let Some(pair) = self.open.get_mut(&id) {
            pair.event = Some(event);
            pair.sides[side] = Some(told);
        }
    }

    /// Judges the events of which both sides are known; at the end all, since nothing more comes.
    fn settle(&mut self, is_end: bool) {
        while let Some(id) = self.order.front() {
            let is_known = self.open.get(id).is_none_or(|pair| pair.sides.iter().all(Option::is_some));
            if !(is_known || is_end || self.order.len() > OPEN_MAX) {
                return;
            }
            let pair = self.order.pop_front().and_then(|id| self.open.remove(&id));
            let Some(Pair { event: Some(event), place, sides: [old, new], .. }) = pair else { continue };
            match (old.flatten(), new.flatten()) {
                (None, None) => {}
                (old, new) => self.judge(&event, place, &old.unwrap_or_default(), &new.unwrap_or_default()),
            }
        }
    }

    fn judge(&mut self, event: &Event, place: Option<(u16, Offset)>, old: &[Told], new: &[Told]) {
        let secrets = self.files.map(|file| &file.secrets);
        let class = class(old, new, secrets);
        *self.counts.entry(class).or_default() += 1;
        let shown = self.samples.iter().filter(|sample| sample.class == class).count();
        if !class.differs() || shown >= SAMPLES_MAX {
            return;
        }
        let diff = diff(old, new, self.look, secrets);
        self.samples.push(Sample { class, head: tell::head(event, place, self.look), title: tell::title(event, place), diff });
    }

    fn print(&mut self) -> Result<(), End> {
        self.samples.sort_by_key(|sample| sample.class);
        let compared = self.compared();
        let count = |class: Class| self.counts.get(&class).copied().unwrap_or_default();
        if self.look.format == Format::Json {
            let counts: Map<String, Value> = Class::ALL.iter().map(|class| (class.name().to_owned(), count(*class).into())).collect();
            let sample = |sample: &Sample| {
                let diff: Vec<String> = sample.diff.iter().map(Line::to_string).collect();
                json!({"class": sample.class.name(), "event": sample.head, "diff": diff})
            };
            let samples: Vec<Value> = self.samples.iter().map(sample).collect();
            return Ok(output::print(json!({"compared": compared, "counts": counts, "samples": samples}))?);
        }
        output::print(format_args!("{compared} events compared; nothing was delivered"))?;
        for class in Class::ALL.into_iter().filter(|class| count(*class) > 0) {
            output::print(format_args!("  {:>7}  {}", count(class), class.words()))?;
        }
        for sample in &self.samples {
            output::print(format_args!("\n{}: {}", sample.class.words(), sample.title))?;
            for line in sample.diff.iter().take(LINES_MAX) {
                output::print(format_args!("  {}", output::clean(&line.to_string())))?;
            }
            if sample.diff.len() > LINES_MAX {
                output::print(format_args!("  and {} more", sample.diff.len() - LINES_MAX))?;
            }
        }
        Ok(())
    }
}

impl Audience for Comparison<'_> {
    fn take(&mut self, arrived: Arrived) -> Result<bool, End> {
        let Arrived { partition, offset, event, is_meant } = arrived;
        if !is_meant {
            for preview in self.both(partition) {
                preview.pass(event.clone()).map_err(|e| failed(&e))?;
            }
            return Ok(false);
        }
        self.places.note(partition, offset, &event);
        for side in 0..2 {
            for (event, verdict) in self.both(partition)[side].of(event.clone()).map_err(|e| failed(&e))? {
                self.note(partition, side, event, &verdict);
            }
        }
        self.settle(false);
        Ok(self.compared() >= self.limit)
    }

    fn previews(&mut self, partition: u16) -> Vec<&mut Preview> {
        self.both(partition).iter_mut().collect()
    }

    fn end(&mut self) -> Result<bool, End> {
        if self.compared() < self.limit {
            for partition in self.previews.keys().copied().collect::<Vec<_>>() {
                for side in 0..2 {
                    for (event, verdict) in self.both(partition)[side].flush().map_err(|e| failed(&e))? {
                        self.note(partition, side, event, &verdict);
                    }
                }
            }
            self.settle(true);
        }
        self.print()?;
        Ok(Class::ALL.into_iter().any(|class| class.differs() && self.counts.contains_key(&class)))
    }
}

fn class(old: &[Told], new: &[Told], secrets: [&Secrets; 2]) -> Class {
    let fails = |told: &[Told]| told.iter().any(|told| told.fate != Fate::Sent);
    match (fails(old), fails(new), old.is_empty(), new.is_empty()) {
        (true, true, ..) => Class::FailsInBoth,
        (false, true, ..) => Class::FailsNow,
        (true, false, ..) => Class::FailsBefore,
        (.., true, true) => Class::SentByNeither,
        (.., false, true) => Class::OnlyOldSends,
        (.., true, false) => Class::OnlyNewSends,
        _ => {
            let documents = |told: &[Told], secrets| told.iter().map(|told| document(told, true, secrets)).collect::<Vec<_>>();
            if documents(old, secrets[0]) == documents(new, secrets[1]) { Class::Same } else { Class::Different }
        }
    }
}

/// What is compared of an output.
fn document(told: &Told, unmask: bool, secrets: &Secrets) -> Value {
    let look = Look { unmask, format: Format::Json };
    let fails = told.fate.reason().map(|reason| format!("{}: {}", reason.code, reason.message));
    json!({"idempotency_key": told.idempotency_key, "fails": fails, "request": tell::request(told, look, secrets)})
}

/// A line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Gone(String, String),
    New(String, String),
    /// The same form, and another value that is not shown.
    Other(String, String),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Gone(path, value) => write!(f, "- {path}: {value}"),
            Line::New(path, value) => write!(f, "+ {path}: {value}"),
            Line::Other(path, word) => write!(f, "~ {path}: {word}, another value"),
        }
    }
}

/// The outputs of both files, those with one key beside each other, the others in their order.
fn pairs<'t>(old: &'t [Told], new: &'t [Told]) -> Vec<(Option<&'t Told>, Option<&'t Told>)> {
    let has = |all: &[Told], told: &Told| all.iter().any(|other| other.idempotency_key == told.idempotency_key);
    let mut alone = new.iter().filter(|told| !has(old, told));
    let of = |told: &'t Told| new.iter().find(|other| other.idempotency_key == told.idempotency_key);
    let mut pairs: Vec<_> = old.iter().map(|told| (Some(told), of(told).or_else(|| alone.next()))).collect();
    pairs.extend(alone.map(|told| (None, Some(told))));
    pairs
}

fn diff(old: &[Told], new: &[Told], look: Look, secrets: [&Secrets; 2]) -> Vec<Line> {
    let pairs = pairs(old, new);
    let mut lines = Vec::new();
    for (number, (old, new)) in pairs.iter().enumerate() {
        let prefix = if pairs.len() > 1 { format!("output {}: ", number + 1) } else { String::new() };
        let leaves = |told: &Option<&Told>, unmask, secrets| {
            let mut leaves = BTreeMap::new();
            if let Some(told) = told {
                flatten(String::new(), &document(told, unmask, secrets), &mut leaves);
            }
            leaves
        };
        let (was, is) = (leaves(old, true, secrets[0]), leaves(new, true, secrets[1]));
        let (was_masked, is_masked) = (leaves(old, look.unmask, secrets[0]), leaves(new, look.unmask, secrets[1]));
        let told = |masked: &BTreeMap<String, Value>, path: &str, value: &Value| match masked.get(path) {
            Some(Value::String(word)) if !look.unmask => word.clone(),
            Some(shown) => shown.to_string(),
            None => tell::word_of(value),
        };
        let mut paths: Vec<&String> = was.keys().chain(is.keys()).collect();
        paths.sort();
        paths.dedup();
        for path in paths {
            let name = format!("{prefix}{}", path.trim_start_matches("request."));
            let sides = (was.get(path), is.get(path));
            if sides.0 == sides.1 {
                continue;
            }
            let gone = sides.0.map(|value| told(&was_masked, path, value));
            let new = sides.1.map(|value| told(&is_masked, path, value));
            match (gone, new) {
                (Some(gone), Some(new)) if gone == new => lines.push(Line::Other(name, new)),
                (gone, new) => {
                    lines.extend(gone.map(|gone| Line::Gone(name.clone(), gone)));
                    lines.extend(new.map(|new| Line::New(name, new)));
                }
            }
        }
    }
    lines
}

/// Every single value by its path. What is null says nothing, except below `body`, where it clears a field.
fn flatten(path: String, value: &Value, leaves: &mut BTreeMap<String, Value>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) if !fields.is_empty() => fields.iter().for_each(|(name, value)| flatten(below(name), value, leaves)),
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(n, item)| flatten(below(&n.to_string()), item, leaves));
        }
        Value::Null if !path.contains("body") => {}
        leaf => drop(leaves.insert(path, leaf.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tillstream_connectors::sink::Reason;

    fn told(key: &str, body: Value) -> Told {
        let masked = tillstream_connectors::show::masked(&body);
        Told { idempotency_key: key.to_owned(), fate: Fate::Sent, request: None, body, masked }
    }

    fn fails() -> Told {
        let reason = Reason::new("mapping.failed", "`map.x`: the event does not have it");
        Told { fate: Fate::Refused(reason), body: Value::Null, masked: Value::Null, ..told("k", Value::Null) }
    }

    #[test]
    fn every_way_to_differ_is_a_class() {
        let (secrets, one, other) = (Secrets::default(), || vec![told("k", json!({"a": 1}))], || vec![told("k", json!({"a": 2}))]);
        let of = |old: Vec<Told>, new: Vec<Told>| class(&old, &new, [&secrets, &secrets]);
        assert_eq!(of(one(), one()), Class::Same);
        assert_eq!(of(one(), other()), Class::Different);
        assert_eq!(of(one(), vec![told("other", json!({"a": 1}))]), Class::Different);
        assert_eq!(of(one(), vec![]), Class::OnlyOldSends);
        assert_eq!(of(vec![], one()), Class::OnlyNewSends);
        assert_eq!(of(vec![], vec![]), Class::SentByNeither);
        assert_eq!(of(one(), vec![fails()]), Class::FailsNow);
        assert_eq!(of(vec![], vec![fails()]), Class::FailsNow);
        assert_eq!(of(vec![fails()], one()), Class::FailsBefore);
        assert_eq!(of(vec![fails()], vec![fails()]), Class::FailsInBoth);
    }

    #[test]
    fn a_difference_shows_values_on_request_only() {
        let secrets = Secrets::default();
        let old = [told("k", json!({"total": 5, "name": "Ann", "gone": true, "tags": ["a"]}))];
        let new = [told("k", json!({"total": "5.00", "name": "Bob", "tags": ["a", "b"]}))];
        let lines = |unmask| {
            let look = Look { unmask, format: Format::Human };
            diff(&old, &new, look, [&secrets, &secrets]).iter().map(Line::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            lines(false),
            [
                "- body.gone: boolean",
                "~ body.name: text, another value",
                "+ body.tags.1: text",
                "- body.total: number",
                "+ body.total: text"
            ]
        );
        assert_eq!(lines(true)[1..3], ["- body.name: \"Ann\"", "+ body.name: \"Bob\""]);
    }

    #[test]
    fn outputs_are_paired_by_their_keys_and_then_by_their_order() {
        let (old, new) = ([told("a", json!(1)), told("b", json!(2))], [told("c", json!(3)), told("b", json!(2)), told("d", json!(4))]);
        let keys: Vec<_> =
            pairs(&old, &new).iter().map(|(o, n)| (o.map(|t| &*t.idempotency_key), n.map(|t| &*t.idempotency_key))).collect();
        assert_eq!(keys, [(Some("a"), Some("c")), (Some("b"), Some("b")), (None, Some("d"))]);
    }
}
