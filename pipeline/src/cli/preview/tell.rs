//! Events told one by one: what changed, what the connector makes of it, and the request that its target would get.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use tillstream_connectors::show::{self, Shown, Text};
use tillstream_schemas::{Event, Op};

use super::{Arrived, Audience, failed};
use crate::cli::output::{self, End, Format};
use crate::config::{Connector, Secrets};
use crate::delivery::preview::{Fate, Preview, Told, Verdict};
use crate::journal::Offset;

/// Places kept of events that are told only when their transaction is over.
const PLACES_MAX: usize = 100_000;

/// How things are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Values too.
    pub(super) unmask: bool,
    pub(super) format: Format,
}

#[derive(Default)]
struct Counts {
    taken: u64,
    filtered: u64,
    failed: u64,
    not_taken: u64,
}

/// Prints what becomes of each event.
pub(super) struct Teller<'c> {
    connector: &'c Connector,
    source: &'c str,
    limit: u64,
    look: Look,
    previews: BTreeMap<u16, Preview>,
    places: Places,
    counts: Counts,
}

impl<'c> Teller<'c> {
    pub(super) fn new(connector: &'c Connector, source: &'c str, limit: u64, look: Look) -> Teller<'c> {
        let (previews, places) = (BTreeMap::new(), Places::default());
        Teller { connector, source, limit, look, previews, places, counts: Counts::default() }
    }

    fn preview(&mut self, partition: u16) -> &mut Preview {
        self.previews.entry(partition).or_insert_with(|| Preview::of_partition(self.connector, self.source, partition))
    }

    fn print(&mut self, partition: u16, event: &Event, verdict: &Verdict) -> Result<(), End> {
        let items = match verdict {
            Verdict::NotTaken => {
                self.counts.not_taken += 1;
                return Ok(());
            }
            Verdict::Filtered => &[][..],
            Verdict::Sent(items) => items,
        };
        let preview = self.previews.entry(partition).or_insert_with(|| Preview::of_partition(self.connector, self.source, partition));
        let told: Vec<Told> = items.iter().map(|item| preview.tell(item)).collect();
        self.counts.taken += 1;
        self.counts.filtered += u64::from(told.is_empty());
        self.counts.failed += u64::from(told.iter().any(|told| told.fate != Fate::Sent));
        let place = self.places.remove(event.id());
        match self.look.format {
            Format::Json => {
                let mut document = head(event, place, self.look);
                document["verdict"] = word(&told).into();
                let of = |told: &Told| output(told, self.look, &self.connector.secrets);
                document["outputs"] = told.iter().map(of).collect();
                output::print(document)?;
            }
            Format::Human => {
                output::print(format_args!("{} {}", title(event, place), word(&told)))?;
                for line in changes(event, self.look) {
                    output::print(format_args!("    {}", output::clean(&line)))?;
                }
                for told in &told {
                    for line in lines(told, self.look, &self.connector.secrets) {
                        output::print(format_args!("  {}", output::clean(&line)))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Audience for Teller<'_> {
    fn take(&mut self, arrived: Arrived) -> Result<bool, End> {
        let Arrived { partition, offset, event, is_meant } = arrived;
        if !is_meant {
            self.preview(partition).pass(event).map_err(|e| failed(&e))?;
            return Ok(false);
        }
        self.places.note(partition, offset, &event);
        for (event, verdict) in self.preview(partition).of(event).map_err(|e| failed(&e))? {
            self.print(partition, &event, &verdict)?;
        }
        Ok(self.counts.taken >= self.limit)
    }

    fn previews(&mut self, partition: u16) -> Vec<&mut Preview> {
        vec![self.preview(partition)]
    }

    fn end(&mut self) -> Result<bool, End> {
        for partition in self.previews.keys().copied().collect::<Vec<_>>() {
            if self.counts.taken >= self.limit {
                break;
            }
            for (event, verdict) in self.preview(partition).flush().map_err(|e| failed(&e))? {
                self.print(partition, &event, &verdict)?;
            }
        }
        let Counts { taken, filtered, failed, not_taken } = self.counts;
        match self.look.format {
            Format::Json => output::print(json!({"taken": taken, "filtered": filtered, "failed": failed, "not_taken": not_taken}))?,
            Format::Human => output::print(format_args!(
                "{taken} events that it takes ({filtered} of them filtered, {failed} would fail), {not_taken} others passed over; nothing was delivered"
            ))?,
        }
        Ok(false)
    }
}

/// Where events stand in the journal, until they are told.
#[derive(Default)]
pub(super) struct Places(HashMap<String, (u16, Offset)>);

impl Places {
    pub(super) fn note(&mut self, partition: u16, offset: Option<Offset>, event: &Event) {
        if self.0.len() >= PLACES_MAX {
            self.0.clear();
        }
        if let Some(offset) = offset {
            self.0.insert(event.id().to_owned(), (partition, offset));
        }
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<(u16, Offset)> {
        self.0.remove(id)
    }
}

/// What becomes of an event in one word.
fn word(told: &[Told]) -> &'static str {
    match told {
        [] => "filtered",
        told if told.iter().any(|t| matches!(t.fate, Fate::Stops(_))) => "stops the connector",
        told if told.iter().any(|t| t.fate != Fate::Sent) => "fails",
        _ => "sent",
    }
}

/// An event in one line.
pub(super) fn title(event: &Event, place: Option<(u16, Offset)>) -> String {
    let mut title = format!("{:<8} {} {}", event.op().as_str(), output::clean(&table(event)), output::clean(event.id()));
    if let Some((partition, offset)) = place {
        title.push_str(&format!(" p{partition}@{}", offset.0));
    }
    title
}

/// An event as a document.
pub(super) fn head(event: &Event, place: Option<(u16, Offset)>, look: Look) -> Value {
    let shown = |value: Value| if look.unmask { value } else { show::masked(&value) };
    let row = |fields: Vec<(&str, Value)>| fields.into_iter().map(|(name, value)| (name.to_owned(), shown(value))).collect::<Map<_, _>>();
    let (changed, same) = changed(event);
    let side = |value: Option<Value>| value.map_or(Value::Null, shown);
    let changed: Vec<Value> = changed
        .into_iter()
        .map(|Changed { column, before, after }| {
            let mut change = json!({"column": column});
            // What is not known is not there; what is null is.
            if before.is_some() {
                change["before"] = side(before);
            }
            if after.is_some() {
                change["after"] = side(after);
            }
            change
        })
        .collect();
    json!({
        "id": event.id(), "op": event.op().as_str(), "table": table(event), "place": place.map(|(p, o)| format!("p{p}@{}", o.0)),
        "committed_at": event.committed_at(), "key": row(event.key().map(|(name, raw)| (name, parsed(raw))).collect()),
        "changes": changed, "same": same,
    })
}

fn table(event: &Event) -> String {
    match (event.schema(), event.table()) {
        (Some(schema), Some(table)) => format!("{schema}.{table}"),
        _ => String::new(),
    }
}

/// A column and what the change did to it, as far as the event tells.
struct Changed {
    column: String,
    before: Option<Value>,
    after: Option<Value>,
}

fn parsed(raw: &str) -> Value {
    serde_json::from_str(raw).unwrap_or_default()
}

/// The columns that changed, and those that an update left as they were.
fn changed(event: &Event) -> (Vec<Changed>, Vec<String>) {
    let side = |column: &str, raw: &str, is_before: bool| {
        let (column, value) = (column.to_owned(), Some(parsed(raw)));
        if is_before { Changed { column, before: value, after: None } } else { Changed { column, before: None, after: value } }
    };
    if event.op() == Op::Delete {
        let known: Vec<(&str, &str)> = if event.before().len() > 0 { event.before().collect() } else { event.key().collect() };
        return (known.into_iter().map(|(column, raw)| side(column, raw, true)).collect(), Vec::new());
    }
    let (mut changed, mut same) = (Vec::new(), Vec::new());
    for (column, raw) in event.after() {
        match event.old_column(column) {
            Some(old) if old == raw => same.push(column.to_owned()),
            Some(old) => changed.push(Changed { column: column.to_owned(), before: Some(parsed(old)), after: Some(parsed(raw)) }),
            None => changed.push(side(column, raw, false)),
        }
    }
    same.extend(event.unchanged().map(str::to_owned));
    (changed, same)
}

/// What changed, a line for each column.
fn changes(event: &Event, look: Look) -> Vec<String> {
    let text = |value: &Value| if look.unmask { value.to_string() } else { word_of(value) };
    let (changed, same) = changed(event);
    let line = |Changed { column, before, after }: &Changed| match (before, after) {
        (Some(before), Some(after)) => format!("{column}: {} -> {}", text(before), text(after)),
        (Some(before), None) => format!("{column}: {} -> gone", text(before)),
        (_, after) => format!("{column}: {}", after.as_ref().map_or_else(String::new, text)),
    };
    let mut lines: Vec<String> = changed.iter().map(line).collect();
    if !same.is_empty() {
        lines.push(format!("unchanged: {}", same.join(", ")));
    }
    lines
}

/// The form of a value in a word.
pub(super) fn word_of(value: &Value) -> String {
    match show::masked(value) {
        Value::String(word) => word,
        form => form.to_string(),
    }
}

/// A header's or address's text, as it may be shown.
fn text(text: &Text, look: Look, secrets: &Secrets) -> String {
    match text {
        Text::Fixed(text) => secrets.hide(text),
        Text::OfRow(text) if look.unmask => secrets.hide(text),
        Text::OfRow(_) => "text".to_owned(),
        Text::Secret => "***".to_owned(),
        Text::OfAttempt => "(of the attempt)".to_owned(),
    }
}

/// Where a request goes. Of one that depends on the row its host; what is behind a question mark may be a secret of the file.
fn to(shown: &Shown, look: Look, secrets: &Secrets) -> String {
    let whole = match &shown.to {
        Text::OfRow(url) if !look.unmask => {
            let after = url.find("://").map_or(0, |at| at + 3);
            let host_ends = url[after..].find(['/', '?']).map_or(url.len(), |at| after + at);
            format!("{}/…", secrets.hide(&url[..host_ends]))
        }
        Text::OfRow(url) | Text::Fixed(url) => secrets.hide(url),
        other => text(other, look, secrets),
    };
    match whole.split_once('?') {
        Some((path, _)) if !look.unmask => format!("{path}?…"),
        _ => whole,
    }
}

/// The request of an output as a document; null when there is none.
pub(super) fn request(told: &Told, look: Look, secrets: &Secrets) -> Value {
    let body = secrets.hide_in(if look.unmask { &told.body } else { &told.masked });
    match (&told.fate, &told.request) {
        (Fate::Sent, Some(shown)) => {
            let headers = shown.headers.iter().map(|(name, value)| (name.clone(), Value::from(text(value, look, secrets))));
            json!({"method": shown.method, "to": to(shown, look, secrets), "headers": headers.collect::<Map<_, _>>(), "body": body})
        }
        (Fate::Sent, None) => json!({ "body": body }),
        _ => Value::Null,
    }
}

/// An output as a document.
fn output(told: &Told, look: Look, secrets: &Secrets) -> Value {
    let verdict = match told.fate {
        Fate::Sent => "sent",
        Fate::Refused(_) => "fails",
        Fate::Stops(_) => "stops",
    };
    let reason = told.fate.reason().map(|reason| json!({"code": reason.code, "message": reason.message}));
    json!({"idempotency_key": told.idempotency_key, "verdict": verdict, "reason": reason, "request": request(told, look, secrets)})
}

/// An output in lines.
fn lines(told: &Told, look: Look, secrets: &Secrets) -> Vec<String> {
    let mut lines = vec![format!("key {}", told.idempotency_key)];
    if let Some(reason) = told.fate.reason() {
        let what = if matches!(told.fate, Fate::Stops(_)) { "the connector stops" } else { "dead letter" };
        lines.push(format!("{what}: {}: {}", reason.code, reason.message));
        return lines;
    }
    if let Some(shown) = &told.request {
        lines.push(format!("{} {}", shown.method, to(shown, look, secrets)));
        lines.extend(shown.headers.iter().map(|(name, value)| format!("  {name}: {}", text(value, look, secrets))));
    }
    lines.push(secrets.hide_in(if look.unmask { &told.body } else { &told.masked }).to_string());
    lines
}
