//! Reading a `to:` block: every problem at once, unknown keys with a suggestion, values never repeated in a message.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::registry::Problem;

/// A block (or a block within it) under its path, and the problems found so far.
pub(crate) struct Block<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Block<'a> {
    /// The value as a block whose keys are all among `known`.
    pub(crate) fn new(value: &'a Value, path: &str, known: &[&str], problems: &mut Vec<Problem>) -> Option<Block<'a>> {
        let Value::Object(fields) = value else {
            problems.push(problem(path, "must be a block of keys", Some(format!("its keys are {}", known.join(", ")))));
            return None;
        };
        for key in fields.keys().filter(|k| !known.contains(&k.as_str())) {
            let help = match closest(key, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("its keys are {}", known.join(", ")),
            };
            problems.push(problem(&join(path, key), "is not a key of this block", Some(help)));
        }
        Some(Block { path: path.to_owned(), fields })
    }

    /// The path of a key.
    pub(crate) fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// A key's value; null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|v| !v.is_null())
    }

    /// A text. Absent is a problem only where `required` says what to write.
    pub(crate) fn text(&self, key: &str, required: Option<&str>, problems: &mut Vec<Problem>) -> Option<&'a str> {
        match self.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            Some(_) => {
                problems.push(problem(&self.path(key), "must be a text that is not empty", Some("quote it".into())));
                None
            }
            None => {
                if let Some(example) = required {
                    problems.push(problem(&self.path(key), "is missing", Some(format!("write `{example}`"))));
                }
                None
            }
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str, default: bool, problems: &mut Vec<Problem>) -> bool {
        match self.get(key) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(Value::String(text)) if text == "no" || text == "false" => false,
            Some(Value::String(text)) if text == "yes" || text == "true" => true,
            Some(_) => {
                problems.push(problem(&self.path(key), "must be true or false", Some("write true or false".into())));
                default
            }
        }
    }

    /// A duration as `500ms`, `10s`, `2m` between the bounds.
    pub(crate) fn duration(&self, key: &str, default: Duration, bounds: (Duration, Duration), problems: &mut Vec<Problem>) -> Duration {
        let Some(value) = self.get(key) else { return default };
        match value.as_str().and_then(duration) {
            Some(duration) if (bounds.0..=bounds.1).contains(&duration) => duration,
            Some(_) => {
                problems.push(problem(&self.path(key), &format!("must be between {:?} and {:?}", bounds.0, bounds.1), None));
                default
            }
            None => {
                problems.push(problem(&self.path(key), "must be a duration with unit", Some("write as 500ms, 10s or 2m".into())));
                default
            }
        }
    }

    /// A whole number within the bounds.
    pub(crate) fn count(&self, key: &str, default: usize, bounds: std::ops::RangeInclusive<usize>, problems: &mut Vec<Problem>) -> usize {
        let Some(value) = self.get(key) else { return default };
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok()).and_then(|n| usize::try_from(n).ok());
        if let Some(number) = number.filter(|number| bounds.contains(number)) {
            return number;
        }
        let help = format!("write `{key}: {default}`");
        problems.push(problem(&self.path(key), &format!("must be a number from {} to {}", bounds.start(), bounds.end()), Some(help)));
        default
    }

    /// One of some words.
    pub(crate) fn choice<'w>(&self, key: &str, words: &'w [&'w str], problems: &mut Vec<Problem>) -> Option<&'w str> {
        let text = self.text(key, None, problems)?;
        let found = words.iter().find(|w| w.eq_ignore_ascii_case(text)).copied();
        if found.is_none() {
            let help = closest(text, words).map(|w| format!("did you mean `{w}`?"));
            problems.push(problem(&self.path(key), &format!("must be one of {}", words.join(", ")), help));
        }
        found
    }

    /// A block whose keys are names chosen by the user.
    pub(crate) fn entries(&self, key: &str, required: Option<&str>, problems: &mut Vec<Problem>) -> Vec<(&'a str, &'a Value)> {
        match self.get(key) {
            Some(Value::Object(fields)) => fields.iter().map(|(k, v)| (k.as_str(), v)).collect(),
            Some(_) => {
                problems.push(problem(&self.path(key), "must be a block", None));
                Vec::new()
            }
            None => {
                if let Some(example) = required {
                    problems.push(problem(&self.path(key), "is missing", Some(format!("write `{example}`"))));
                }
                Vec::new()
            }
        }
    }
}

/// A vendor has words of its own, so a connector to it needs a `map`; `example` shows one.
pub(crate) fn mapped_only(mapped: bool, example: &str, problems: &mut Vec<Problem>) {
    if !mapped {
        problems.push(problem("", "this kind of sink needs a `map` beside `to`", Some(format!("write `map: {{{example}}}`"))));
    }
}

/// A sink without any guard against repeats is accepted only by whoever says so. `guard` is the key that would give it one.
pub(crate) fn accepts_duplicates(block: &Block<'_>, is_guarded: bool, guard: &str, problems: &mut Vec<Problem>) {
    let accepts = block.flag("i_accept_duplicates", false, problems);
    if !is_guarded && !accepts {
        let help = "write `i_accept_duplicates: true` if a repeated event may have a second effect in the target".to_owned();
        problems.push(problem(&block.path(guard), "leaves nothing that tells a repeat from a new event", Some(help)));
    }
}

/// A list of distinct names.
pub(crate) fn names(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let Value::Array(items) = value else {
        problems.push(problem(path, "must be a list of names", Some("write as [id, name]".into())));
        return names;
    };
    for (n, item) in items.iter().enumerate() {
        match item {
            Value::String(name) if !name.is_empty() && !names.contains(name) => names.push(name.clone()),
            Value::String(name) if !name.is_empty() => problems.push(problem(&join(path, &n.to_string()), "is listed twice", None)),
            _ => problems.push(problem(&join(path, &n.to_string()), "must be a name", None)),
        }
    }
    names
}

/// A table as `schema.table`.
pub(crate) fn table_name(text: &str, path: &str, problems: &mut Vec<Problem>) -> Option<(String, String)> {
    match text.split_once('.') {
        Some((schema, table)) if !schema.is_empty() && !table.is_empty() => Some((schema.to_owned(), table.to_owned())),
        _ => {
            problems.push(problem(path, "must be a table with its schema", Some(format!("write `public.{text}`"))));
            None
        }
    }
}

pub(crate) fn problem(path: &str, message: &str, help: Option<String>) -> Problem {
    let message = if path.is_empty() { message.to_owned() } else { format!("`{path}` {message}") };
    Problem { path: path.to_owned(), message, help }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

pub(crate) fn closest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    let scored = known.iter().map(|k| (strsim::damerau_levenshtein(word, k), *k));
    scored.filter(|(distance, k)| *distance <= (k.len().max(word.len()) / 3).max(1)).min_by_key(|(distance, _)| *distance).map(|(_, k)| k)
}

/// `500ms`, `10s`, `2m`, `1h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn problems_name_the_path_and_the_meant_key() {
        let mut problems = Vec::new();
        let value = json!({"ulr": "x", "timeout": "10", "mode": "bach", "zzz": 1});
        let block = Block::new(&value, "", &["url", "timeout", "mode"], &mut problems).expect("a block");
        block.text("url", Some("url: https://api.example"), &mut problems);
        block.duration("timeout", Duration::ZERO, (Duration::ZERO, Duration::MAX), &mut problems);
        block.choice("mode", &["single", "batch"], &mut problems);
        let said: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.path, p.help.clone().unwrap_or_default())).collect();
        assert_eq!(
            said,
            [
                "ulr: did you mean `url`?",
                "zzz: its keys are url, timeout, mode",
                "url: write `url: https://api.example`",
                "timeout: write as 500ms, 10s or 2m",
                "mode: did you mean `batch`?"
            ]
        );
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, milliseconds) in
            [("500ms", Some(500)), ("10s", Some(10_000)), ("2m", Some(120_000)), ("10", None), ("s", None), ("", None)]
        {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        }
    }
}
