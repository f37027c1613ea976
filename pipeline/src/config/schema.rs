//! The JSON Schemas of the two kinds of file, for editors: printed from the key table, so that they say what the checker says. What only the checker
//! can tell (names that refer to each other, expressions, a sink's own values) is left to `validate`.

use serde_json::{Map, Value, json};
use tillstream_connectors::registry::Registry;

use super::keys::{self, Key, Need, Type};

/// Which kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// A pipeline file.
    Pipeline,
    /// A connector file.
    Connector,
}

/// The schema of one kind of file (draft 2020-12). `registry` tells the kinds of sink.
#[must_use]
pub fn of(file: File, registry: &Registry) -> Value {
    let (title, keys): (_, &'static [Key]) = match file {
        File::Pipeline => ("Tillstream pipeline file", &keys::PIPELINE),
        File::Connector => ("Tillstream connector file", &keys::CONNECTOR),
    };
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.insert("title".to_owned(), title.into());
    if let Value::Object(block) = block(keys, registry) {
        schema.extend(block);
    }
    schema.into()
}

fn block(keys: &'static [Key], registry: &Registry) -> Value {
    let required: Vec<&str> = keys.iter().filter(|k| matches!(k.need, Need::Required(_))).map(|k| k.name).collect();
    let mut schema = json!({"type": "object", "properties": properties(keys, registry), "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn properties(keys: &'static [Key], registry: &Registry) -> Value {
    let property = |key: &'static Key| {
        let mut schema = value(&key.ty, registry);
        let need = match key.need {
            Need::Required(example) => format!("Required, as `{example}`."),
            Need::Optional(absent) => format!("When absent: {absent}."),
            Need::Default(default) => format!("Default: {default}."),
            Need::Implied => "Its keys have defaults.".to_owned(),
        };
        schema["description"] = format!("{} {need}", key.doc).into();
        (key.name.to_owned(), schema)
    };
    Value::Object(keys.iter().map(property).collect())
}

/// A text of a form, or one with a reference, whose value nobody knows here.
fn text(pattern: &str) -> Value {
    json!({"type": "string", "pattern": format!("({pattern})|{REFERENCE}")})
}

const REFERENCE: &str = r"\$\{(env|file):[^}]+\}";

fn value(ty: &Type, registry: &Registry) -> Value {
    let or_reference = |schema: Value| json!({"anyOf": [schema, {"type": "string", "pattern": REFERENCE}]});
    match ty {
        Type::Version => json!({"const": 1}),
        Type::Name => text("^[a-z0-9][a-z0-9_-]{0,39}$"),
        Type::SlotName => text("^[a-z0-9][a-z0-9_]{0,62}$"),
        Type::Text | Type::Column => json!({"type": ["string", "number", "boolean"], "minLength": 1}),
        Type::Path => json!({"type": "string", "minLength": 1}),
        Type::Url(schemes) => text(&format!("^({})://", schemes.join("|").replace('+', r"\+"))),
        Type::Bool => or_reference(json!({"type": "boolean"})),
        Type::Count(min, max) => or_reference(json!({"type": "integer", "minimum": min, "maximum": max})),
        Type::Duration(..) => text("^([0-9]+(ms|s|m|h|d))+$"),
        Type::Rate => text("^[0-9]+ ?/ ?(([0-9]+(ms|s|m|h|d))+|ms|s|m|h|d)$"),
        Type::Size(..) => text("^[0-9]+ ?(B|[KMGT]iB|[kKMGT]B)$"),
        Type::Address => text(r"^(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]+$"),
        Type::Table => text(r#"^[^.*"]+\.[^.*"]+$"#),
        Type::Choice(words) => or_reference(json!({"enum": words})),
        Type::Secret => text("^.{16,}$"),
        Type::Policy => {
            json!({"anyOf": [{"type": "null"}, {"type": "string", "pattern": r"^(pass|drop|null|mask|hash|truncate\([0-9]+\))$"}]})
        }
        Type::List(of) => json!({"type": "array", "minItems": 1, "items": value(of, registry)}),
        Type::PerTable(of) => json!({
            "type": "object", "propertyNames": {"pattern": r#"^[^.*"]+\.[^.*"]+$"#}, "additionalProperties": value(of, registry),
        }),
        Type::PerColumn(of) => json!({"type": "object", "additionalProperties": value(of, registry)}),
        Type::Block(keys) => block(keys, registry),
        Type::OneOf(keys) => json!({
            "type": "object", "properties": properties(keys, registry), "additionalProperties": false, "minProperties": 1, "maxProperties": 1,
        }),
        Type::Sink => json!({
            "type": "object", "properties": kinds(registry), "additionalProperties": false, "minProperties": 1, "maxProperties": 1,
        }),
        Type::Tree => json!({"type": ["object", "array"]}),
    }
}

/// The kinds of sink with the names of their keys; what a key's value has to be, the kind itself tells.
fn kinds(registry: &Registry) -> Value {
    let kind = |name: &'static str| {
        let keys = registry.get(name).map_or(&[][..], |kind| kind.keys());
        let properties: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect();
        let schema = match properties.is_empty() {
            true => json!({"type": "object"}),
            false => json!({"type": "object", "properties": properties, "additionalProperties": false}),
        };
        (name.to_owned(), schema)
    };
    Value::Object(registry.names().into_iter().map(kind).collect())
}
