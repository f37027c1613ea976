//! What a vendor takes of a connector's `map`: names and types in one table. The map is held against it when the file is read, as far as it tells, and
//! what the map made of an event before it is sent; so neither lets pass what the other refuses.

use serde_json::{Map, Value};

use crate::block::{closest, problem};
use crate::registry::Problem;

/// An object that a vendor takes.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) fields: &'static [Field],
    /// Of these one at least is there.
    pub(crate) any_of: &'static [&'static str],
    /// Names that are refused with a word of their own.
    pub(crate) never: Option<(&'static [&'static str], &'static str)>,
}

/// A field of it.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) of: Of,
    pub(crate) is_required: bool,
}

/// What a field's value has to be; null is as good as nothing.
#[derive(Debug)]
pub(crate) enum Of {
    /// A text that is not empty, or a number: ids are numbers as often as not.
    Text,
    /// A text that may be empty, or a number.
    Words,
    /// A text or number that this finds no fault with.
    Checked(fn(&str) -> Option<&'static str>),
    /// One of these words.
    Choice(&'static [&'static str]),
    Number,
    Object(&'static Shape),
    /// An object with names of the vendor's customer.
    Free,
}

/// A field that may be left out.
pub(crate) const fn may(name: &'static str, of: Of) -> Field {
    Field { name, of, is_required: false }
}

/// A field that has to be there.
pub(crate) const fn must(name: &'static str, of: Of) -> Field {
    Field { name, of, is_required: true }
}

/// Whether expressions are still to be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Written,
    Filled,
}

/// What does not fit.
#[derive(Debug)]
pub(crate) struct Misfit {
    /// Dotted, from the object that was looked at.
    pub(crate) path: String,
    pub(crate) what: String,
    help: Option<String>,
    /// The last name of the path is none of the table's, and may come from a row.
    pub(crate) is_unknown: bool,
}

impl Shape {
    /// What of a map, as it stands in the file, does not fit. Paths begin with `map`.
    pub(crate) fn of_map(&self, map: &Value) -> Vec<Problem> {
        let mut misfits = Vec::new();
        if let Value::Object(fields) = map {
            self.object("", fields, Stage::Written, &mut misfits);
        }
        let told = |misfit: Misfit| {
            let path = if misfit.path.is_empty() { "map".to_owned() } else { format!("map.{}", misfit.path) };
            problem(&path, &misfit.what, misfit.help.or_else(|| Some(format!("give `{path}` another value"))))
        };
        misfits.into_iter().map(told).collect()
    }

    /// The first thing that does not fit of what a map made.
    pub(crate) fn misfit(&self, fields: &Map<String, Value>) -> Option<Misfit> {
        let mut misfits = Vec::new();
        self.object("", fields, Stage::Filled, &mut misfits);
        misfits.into_iter().next()
    }

    fn object(&self, path: &str, fields: &Map<String, Value>, stage: Stage, misfits: &mut Vec<Misfit>) {
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let names: Vec<&str> = self.fields.iter().map(|field| field.name).collect();
        let mut misfit = |path: String, what: &str, help: Option<String>, is_unknown| {
            misfits.push(Misfit { path, what: what.to_owned(), help, is_unknown });
        };
        for name in fields.keys().filter(|name| !names.contains(&name.as_str())) {
            if let Some((_, why)) = self.never.filter(|(never, _)| never.contains(&name.as_str())) {
                misfit(below(name), why, Some("remove it".to_owned()), false);
                continue;
            }
            let known = names.join(", ");
            let help = closest(name, &names).map_or_else(|| format!("the names are {known}"), |meant| format!("did you mean `{meant}`?"));
            misfit(below(name), &format!("is not among {known}"), Some(help), true);
        }
        let is_there = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        for field in self.fields.iter().filter(|field| field.is_required && !is_there(field.name)) {
            misfit(below(field.name), "is missing", Some(format!("add `{}` {}", field.name, field.of.example())), false);
        }
        if !self.any_of.is_empty() && !self.any_of.iter().any(|name| is_there(name)) {
            let names = self.any_of.join(", ");
            misfit(path.to_owned(), &format!("names nobody: it needs one of {names}"), Some(format!("add one of {names}")), false);
        }
        for field in self.fields {
            if let Some(value) = fields.get(field.name).filter(|value| !value.is_null()) {
                field.of.value(&below(field.name), value, stage, misfits);
            }
        }
    }
}

/// A text in which something is filled in later. Of one that is nothing else nobody knows what it will be.
fn is_expression(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("{{") && text.ends_with("}}") && text.matches("{{").count() == 1
}

impl Of {
    fn value(&self, path: &str, value: &Value, stage: Stage, misfits: &mut Vec<Misfit>) {
        let template = value.as_str().filter(|text| stage == Stage::Written && text.contains("{{"));
        if template.is_some_and(is_expression) {
            return;
        }
        let misfit = match (self, value) {
            (Of::Object(shape), Value::Object(fields)) => return shape.object(path, fields, stage, misfits),
            (Of::Free, Value::Object(_)) | (Of::Number, Value::Number(_)) => None,
            (Of::Text, Value::String(text)) if text.is_empty() => Some(("must be a text that is not empty".to_owned(), None)),
            (Of::Text | Of::Words, Value::String(_) | Value::Number(_)) => None,
            // What is filled in decides.
            (Of::Checked(_) | Of::Choice(_), _) if template.is_some() => None,
            (Of::Checked(check), Value::String(text)) => check(text).map(|why| (why.to_owned(), None)),
            (Of::Checked(check), Value::Number(number)) => check(&number.to_string()).map(|why| (why.to_owned(), None)),
            (Of::Choice(words), Value::String(word)) if words.contains(&word.as_str()) => None,
            (Of::Choice(words), given) => {
                let meant = given.as_str().and_then(|word| closest(word, words)).map(|meant| format!("did you mean `{meant}`?"));
                Some((format!("is not among {}", words.join(", ")), meant.or_else(|| Some(format!("write one of {}", words.join(", "))))))
            }
            (Of::Text | Of::Words | Of::Checked(_), _) => Some(("must be a text".to_owned(), None)),
            (Of::Number, _) => {
                Some(("must be a number".to_owned(), Some("write a number without quotes, or `\"{{ … | float }}\"`".to_owned())))
            }
            (Of::Object(_) | Of::Free, _) => Some(("must be an object".to_owned(), None)),
        };
        if let Some((what, help)) = misfit {
            let help = help.or_else(|| Some(format!("write {}", self.example())));
            misfits.push(Misfit { path: path.to_owned(), what, help, is_unknown: false });
        }
    }

    fn example(&self) -> String {
        match self {
            Of::Text | Of::Words | Of::Checked(_) => "as a text or an expression, `\"{{ after.… }}\"`".to_owned(),
            Of::Choice(words) => format!("as one of {}", words.join(", ")),
            Of::Number => "as a number or an expression, `\"{{ after.… }}\"`".to_owned(),
            Of::Object(shape) => {
                let first = shape.any_of.first().copied().or_else(|| shape.fields.first().map(|field| field.name));
                format!("as a block, `{{{}: …}}`", first.unwrap_or("name"))
            }
            Of::Free => "as a block, `{name: …}`".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INNER: Shape = Shape { fields: &[may("id", Of::Text), may("size", Of::Number)], any_of: &["id"], never: None };
    const OUTER: Shape = Shape {
        fields: &[
            must("kind", Of::Choice(&["big", "small"])),
            may("inner", Of::Object(&INNER)),
            may("free", Of::Free),
            may("even", Of::Checked(|text| (!text.ends_with(['0', '2', '4', '6', '8'])).then_some("must be even"))),
        ],
        any_of: &[],
        never: Some((&["consent"], "is never sent")),
    };

    fn told(map: &Value) -> Vec<String> {
        OUTER.of_map(map).iter().map(|p| format!("{} / {}", p.message, p.help.as_deref().unwrap_or_default())).collect()
    }

    #[test]
    fn a_map_is_told_what_its_structure_tells() {
        assert_eq!(
            told(&json!({"kind": "{{ after.kind }}", "inner": "{{ after.inner }}", "free": {"x": true}, "even": "{{ a }}0"})),
            [""; 0]
        );
        assert_eq!(
            told(&json!({"knid": "big", "inner": {"size": "12"}, "free": "x{{ y }}", "even": 7, "consent": true})),
            [
                "`map.knid` is not among kind, inner, free, even / did you mean `kind`?",
                "`map.consent` is never sent / remove it",
                "`map.kind` is missing / add `kind` as one of big, small",
                "`map.inner` names nobody: it needs one of id / add one of id",
                "`map.inner.size` must be a number / write a number without quotes, or `\"{{ … | float }}\"`",
                "`map.free` must be an object / write as a block, `{name: …}`",
                "`map.even` must be even / write as a text or an expression, `\"{{ after.… }}\"`",
            ]
        );
        assert_eq!(told(&json!({"kind": "bgi"})), ["`map.kind` is not among big, small / did you mean `big`?"]);
    }

    #[test]
    fn whatever_is_refused_as_written_is_refused_filled_in() {
        for map in [
            json!({"kind": null}),
            json!({"kind": "medium"}),
            json!({"kind": "big", "unknown": 1}),
            json!({"kind": "big", "consent": 1}),
            json!({"kind": "big", "inner": {}}),
            json!({"kind": "big", "inner": {"id": ""}}),
            json!({"kind": "big", "inner": {"id": 1, "size": "1"}}),
            json!({"kind": "big", "inner": [1]}),
            json!({"kind": "big", "even": "1"}),
        ] {
            let written = OUTER.of_map(&map).first().map(|p| p.path.clone());
            let filled =
                OUTER.misfit(map.as_object().expect("an object")).map(|m| format!("map.{}", m.path).trim_end_matches('.').to_owned());
            assert!(written.is_some() && written == filled, "{map}: {written:?}, {filled:?}");
        }
        // What an expression becomes is known only then.
        assert!(OUTER.misfit(json!({"kind": "{{ big }}"}).as_object().expect("an object")).is_some());
    }
}
