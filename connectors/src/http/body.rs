//! The JSON of an event for an API. Pure: the same event gives the same bytes for ever.

use tillstream_schemas::{Event, Op};

use crate::sink::{Class, Item, SinkError};

/// The columns of a table that are sent.
#[derive(Clone, Debug)]
pub(crate) struct Columns(Vec<(String, String)>);

impl Columns {
    pub(crate) fn new(names: Vec<String>) -> Columns {
        Columns(names.into_iter().map(|name| (quoted(&name), name)).collect())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(_, name)| name.clone()).collect()
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Appends the event as one JSON object.
///
/// `id` names the effect and is the same on every attempt; `version` orders the effects on one row as text.
pub(crate) fn write(item: &Item, columns: &Columns, out: &mut String) -> Result<(), SinkError> {
    let event: &Event = &item.event;
    let mut field = |name: &str, value: &str| {
        out.push_str(if name == "id" { "{\"" } else { ",\"" });
        out.push_str(name);
        out.push_str("\":");
        out.push_str(value);
    };
    field("id", &quoted(&item.idempotency_key));
    field("event_id", &quoted(event.id()));
    field("op", &quoted(event.op().as_str()));
    field("schema", &quoted(event.schema().unwrap_or_default()));
    field("table", &quoted(event.table().unwrap_or_default()));
    field("key", &object(event.key().map(|(name, value)| (quoted(name), value))));
    let mut unchanged = Vec::new();
    let data = if event.has_after() {
        let mut pairs = Vec::with_capacity(columns.0.len());
        for (quoted, name) in &columns.0 {
            match event.column(name) {
                Some(value) => pairs.push((quoted.clone(), value)),
                None if event.unchanged().any(|u| u == name) => unchanged.push(quoted.as_str()),
                None => return Err(missing(event, name)),
            }
        }
        object(pairs.into_iter())
    } else {
        "null".to_owned()
    };
    field("data", &data);
    if !unchanged.is_empty() {
        field("unchanged", &format!("[{}]", unchanged.join(",")));
    }
    field("version", &quoted(&item.version.version_text()));
    field("committed_at", &event.committed_at().map_or("null".to_owned(), quoted));
    out.push('}');
    Ok(())
}

fn object<'a>(pairs: impl Iterator<Item = (String, &'a str)>) -> String {
    let mut out = String::from("{");
    for (n, (name, value)) in pairs.enumerate() {
        if n > 0 {
            out.push(',');
        }
        out.push_str(&name);
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

fn missing(event: &Event, column: &str) -> SinkError {
    let (schema, table) = (event.schema().unwrap_or_default(), event.table().unwrap_or_default());
    let message = format!("{schema}.{table}: events do not have the column {column}");
    SinkError { code: "http.column_missing".into(), message, class: Class::Definite, after: None }
}

/// Whether this sink can say anything about the event.
pub(crate) fn has_table(event: &Event) -> bool {
    event.op() != Op::Message
}
