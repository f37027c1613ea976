//! Walks a tree beside the key table: unknown, missing and wrong things become problems, the rest becomes checked values.
//! Never stops at the first problem.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tillstream_schemas::Policy;

use super::document::{Document, Span};
use super::keys::{Key, Need, Type};
use super::report::{Code, Problem};
use super::secrets::{self, Environment, ReferenceError};
use super::tree::{Node, Value};
use super::units;

/// A checked value and its place. Of a default the place is that of the block which lacks it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) span: Span,
    pub(crate) value: Checked,
}

/// What a value turned out to be.
#[derive(Debug, Clone)]
pub(crate) enum Checked {
    Text(String),
    Secret(SecretString),
    Bool(bool),
    Count(u64),
    Duration(Duration),
    Rate(super::Rate),
    Size(u64),
    Path(PathBuf),
    Address(SocketAddr),
    Table(String, String),
    List(Vec<Item>),
    PerTable(Vec<(Item, Item)>),
    PerColumn(Vec<(Item, Item)>),
    Policy(Policy),
    Block(Block),
    /// Kind, and the block below it with references resolved; the node keeps the places.
    Sink {
        kind: String,
        kind_span: Span,
        block: serde_json::Value,
        node: Node,
    },
    /// A value with references resolved; the node keeps the places.
    Tree {
        value: serde_json::Value,
        node: Node,
    },
}

/// A checked block: what is sound in it, by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Block {
    entries: BTreeMap<&'static str, Item>,
}

/// Getters: `None` when the key is absent or its value was a problem.
impl Block {
    pub(crate) fn get(&self, key: &str) -> Option<&Item> {
        self.entries.get(key)
    }

    pub(crate) fn block(&self, key: &str) -> Option<&Block> {
        match &self.get(key)?.value {
            Checked::Block(block) => Some(block),
            _ => None,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match &self.get(key)?.value {
            Checked::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub(crate) fn secret(&self, key: &str) -> Option<SecretString> {
        match &self.get(key)?.value {
            Checked::Secret(secret) => Some(secret.clone()),
            _ => None,
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)?.value {
            Checked::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// A count; its bounds in the key table make it fit the wanted type.
    pub(crate) fn count<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        match self.get(key)?.value {
            Checked::Count(n) => T::try_from(n).ok(),
            _ => None,
        }
    }

    /// A size; its bounds in the key table make it fit the wanted type.
    pub(crate) fn size<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        match self.get(key)?.value {
            Checked::Size(n) => T::try_from(n).ok(),
            _ => None,
        }
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        match self.get(key)?.value {
            Checked::Duration(d) => Some(d),
            _ => None,
        }
    }

    pub(crate) fn rate(&self, key: &str) -> Option<super::Rate> {
        match self.get(key)?.value {
            Checked::Rate(rate) => Some(rate),
            _ => None,
        }
    }

    pub(crate) fn path(&self, key: &str) -> Option<PathBuf> {
        match &self.get(key)?.value {
            Checked::Path(path) => Some(path.clone()),
            _ => None,
        }
    }

    pub(crate) fn address(&self, key: &str) -> Option<SocketAddr> {
        match self.get(key)?.value {
            Checked::Address(address) => Some(address),
            _ => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> &[Item] {
        match self.get(key).map(|item| &item.value) {
            Some(Checked::List(items)) => items,
            _ => &[],
        }
    }

    /// The tables of a list, each with its place.
    pub(crate) fn tables(&self, key: &str) -> Vec<((String, String), Span)> {
        let table = |item: &Item| match &item.value {
            Checked::Table(schema, table) => Some(((schema.clone(), table.clone()), item.span)),
            _ => None,
        };
        self.list(key).iter().filter_map(table).collect()
    }
}

/// The word nearest to `wrong`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(wrong: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |word: &str| strsim::jaro_winkler(&wrong.to_lowercase(), &word.to_lowercase());
    let best = words.into_iter().map(|word| (score(word), word)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    // Misspelt keys score above 0.8 in practice; unrelated words of our tables stay below 0.75.
    (best.0 > 0.78 || strsim::damerau_levenshtein(wrong, best.1) <= 2 && wrong.len() > 3).then_some(best.1)
}

/// Checks one document.
pub(crate) struct Checker<'a> {
    pub(crate) document: &'a Document,
    pub(crate) environment: Environment<'a>,
    pub(crate) problems: Vec<Problem>,
    /// What references yielded so far.
    pub(crate) yielded: Vec<String>,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(document: &'a Document, environment: Environment<'a>, problems: Vec<Problem>) -> Checker<'a> {
        Checker { document, environment, problems, yielded: Vec::new() }
    }
}

impl Checker<'_> {
    /// Records a problem.
    pub(crate) fn problem(&mut self, code: Code, span: Span, message: impl Into<String>, label: &str, help: Option<String>) {
        self.problems.push(self.document.problem(code, span, message, label, help));
    }

    /// Checks a block of keys. `at` is the place of the block's own key, `path` its dotted name for messages (empty at the top).
    pub(crate) fn block(&mut self, node: &Node, at: Span, path: &str, keys: &'static [Key], root: &'static [Key]) -> Block {
        let Value::Map(entries) = &node.value else {
            let what = if path.is_empty() { "the file".to_owned() } else { format!("`{path}`") };
            let (code, span) = match node.value {
                Value::Null => (Code::MissingValue, at),
                _ => (Code::WrongType, node.span),
            };
            let help = format!("it has the keys {}", names(keys));
            self.problem(
                code,
                span,
                format!("{what} must be a block of keys, this is {}", node.value.kind()),
                "expected keys here",
                Some(help),
            );
            return Block::default();
        };
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        let mut block = Block::default();
        let mut meant = Vec::new();
        for (key, value) in entries {
            let Some(known) = keys.iter().find(|k| k.name == key.text) else {
                let suggestion =
                    nearest(&key.text, keys.iter().map(|k| k.name).filter(|name| !entries.iter().any(|(k, _)| k.text == *name)));
                meant.extend(suggestion);
                let place = if path.is_empty() { "at the top".to_owned() } else { format!("in `{path}`") };
                let help = match (suggestion, find_elsewhere(&key.text, root, "")) {
                    (Some(suggestion), _) => format!("did you mean `{suggestion}`?"),
                    (None, Some(elsewhere)) => format!("it belongs to `{elsewhere}`"),
                    (None, None) => format!("the keys here are {}", names(keys)),
                };
                self.problem(Code::UnknownKey, key.span, format!("unknown key `{}` {place}", key.text), "not a key here", Some(help));
                continue;
            };
            let path = format!("{prefix}{}", known.name);
            // A key without value stands for an empty block where no key below is required.
            if let Some(value) = self.value(value, key.span, &path, &known.ty, root) {
                block.entries.insert(known.name, value);
            }
        }
        for key in keys {
            if entries.iter().any(|(k, _)| k.text == key.name) {
                continue;
            }
            match key.need {
                Need::Optional(_) => {}
                Need::Default(text) => {
                    block.entries.insert(key.name, self.default(text, at, key));
                }
                Need::Implied => {
                    if let Type::Block(below) = &key.ty {
                        let empty = Node { span: at, value: Value::Map(Vec::new()) };
                        let value = Checked::Block(self.block(&empty, at, key.name, below, root));
                        block.entries.insert(key.name, Item { span: at, value });
                    }
                }
                Need::Required(_) if meant.contains(&key.name) => {}
                Need::Required(example) => {
                    let place = if path.is_empty() { String::new() } else { format!(" in `{path}`") };
                    let help = Some(format!("add `{example}`"));
                    self.problem(Code::MissingKey, at, format!("key `{}` is missing{place}", key.name), "it belongs here", help);
                }
            }
        }
        block
    }

    /// A default is written as in a file and read the same way.
    fn default(&mut self, text: &str, at: Span, key: &Key) -> Item {
        let node = match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            Some(words) => Value::List(words.split(", ").map(|word| plain(word, at)).collect()),
            None => plain(text, at).value,
        };
        let item = self.value(&Node { span: at, value: node }, at, key.name, &key.ty, &[]);
        item.expect("defaults in the key table are sound; a test reads them all")
    }

    fn value(&mut self, node: &Node, at: Span, path: &str, ty: &Type, root: &'static [Key]) -> Option<Item> {
        let item = |value| Some(Item { span: node.span, value });
        match ty {
            Type::Block(keys) => item(Checked::Block(self.block(node, at, path, keys, root))),
            Type::OneOf(keys) => self.one_of(node, at, path, keys, root),
            Type::List(of) => self.list(node, at, path, of, root),
            Type::PerTable(of) => self.per_table(node, at, path, of, root),
            Type::PerColumn(of) => self.per_column(node, at, path, of, root),
            Type::Sink => self.sink(node, at, path),
            Type::Tree => {
                let before = self.problems.len();
                let value = self.json(node, path);
                // Of a block its key is shown, as everywhere.
                (self.problems.len() == before).then(|| Item { span: at, value: Checked::Tree { value, node: node.clone() } })
            }
            // YAML reads the word as nothing.
            Type::Policy if self.says_null(node) => item(Checked::Policy(Policy::Null)),
            _ => {
                let (text, plain, referenced) = self.scalar(node, at, path, ty)?;
                self.checked(&text, plain, referenced, node.span, path, ty).map(|value| Item { span: node.span, value })
            }
        }
    }

    /// Whether the word `null` stands there, and not merely nothing.
    fn says_null(&self, node: &Node) -> bool {
        let text = self.document.text.get(node.span.start..node.span.start + node.span.len);
        matches!(node.value, Value::Null) && text == Some("null")
    }

    fn one_of(&mut self, node: &Node, at: Span, path: &str, keys: &'static [Key], root: &'static [Key]) -> Option<Item> {
        let before = self.problems.len();
        let block = self.block(node, at, path, keys, root);
        let Value::Map(entries) = &node.value else { return None };
        match entries.iter().filter(|(k, _)| keys.iter().any(|known| known.name == k.text)).collect::<Vec<_>>().as_slice() {
            [] if self.problems.len() == before => {
                let help = Some(format!("choose one of {}", names(keys)));
                self.problem(Code::MissingKey, at, format!("`{path}` names no kind"), "it belongs here", help);
            }
            [_, (second, _), ..] => {
                let help = Some(format!("keep one of {}", names(keys)));
                self.problem(Code::Conflict, second.span, format!("`{path}` names more than one kind"), "a second kind", help);
            }
            _ => {}
        }
        Some(Item { span: node.span, value: Checked::Block(block) })
    }

    fn list(&mut self, node: &Node, at: Span, path: &str, of: &Type, root: &'static [Key]) -> Option<Item> {
        let items = match &node.value {
            Value::List(items) if !items.is_empty() => items,
            Value::List(_) | Value::Null => {
                let help = Some(format!("each entry is {}", of.describe()));
                self.problem(Code::MissingValue, at, format!("`{path}` has no entries"), "empty", help);
                return None;
            }
            other => {
                let help = Some("write `[first, second]`, or one line `- entry` for each".to_owned());
                self.problem(Code::WrongType, node.span, format!("`{path}` must be a list, this is {}", other.kind()), "not a list", help);
                return None;
            }
        };
        let checked: Vec<Item> = items.iter().filter_map(|item| self.value(item, item.span, path, of, root)).collect();
        Some(Item { span: node.span, value: Checked::List(checked) })
    }

    fn per_table(&mut self, node: &Node, at: Span, path: &str, of: &Type, root: &'static [Key]) -> Option<Item> {
        let Value::Map(entries) = &node.value else {
            let help = Some("write `schema.table: value`".to_owned());
            self.problem(
                Code::WrongType,
                at,
                format!("`{path}` must have tables as keys, this is {}", node.value.kind()),
                "no tables",
                help,
            );
            return None;
        };
        let mut checked = Vec::new();
        for (key, value) in entries {
            let table = self.checked(&key.text, true, false, key.span, path, &Type::Table);
            let value = self.value(value, key.span, &format!("{path}.{}", key.text), of, root);
            if let (Some(table), Some(value)) = (table, value) {
                checked.push((Item { span: key.span, value: table }, value));
            }
        }
        Some(Item { span: node.span, value: Checked::PerTable(checked) })
    }

    fn per_column(&mut self, node: &Node, at: Span, path: &str, of: &Type, root: &'static [Key]) -> Option<Item> {
        let Value::Map(entries) = &node.value else {
            let help = Some("write `column: value`".to_owned());
            let message = format!("`{path}` must have columns as keys, this is {}", node.value.kind());
            self.problem(Code::WrongType, at, message, "no columns", help);
            return None;
        };
        let mut checked = Vec::new();
        for (key, value) in entries {
            let column = self.checked(&key.text, true, false, key.span, path, &Type::Column);
            let value = self.value(value, key.span, &format!("{path}.{}", key.text), of, root);
            if let (Some(column), Some(value)) = (column, value) {
                checked.push((Item { span: key.span, value: column }, value));
            }
        }
        Some(Item { span: node.span, value: Checked::PerColumn(checked) })
    }

    fn sink(&mut self, node: &Node, at: Span, path: &str) -> Option<Item> {
        let entries = match &node.value {
            Value::Map(entries) if entries.len() == 1 => entries,
            Value::Map(entries) if entries.len() > 1 => {
                let help = Some("keep one kind; a second target is a connector of its own".to_owned());
                self.problem(
                    Code::Conflict,
                    entries[1].0.span,
                    format!("`{path}` names more than one kind of sink"),
                    "a second kind",
                    help,
                );
                return None;
            }
            _ => {
                let help = Some("write `to: {sql: {…}}` or another kind".to_owned());
                self.problem(Code::MissingValue, at, format!("`{path}` names no kind of sink"), "a kind belongs here", help);
                return None;
            }
        };
        let (kind, below) = &entries[0];
        let before = self.problems.len();
        let block = self.json(below, path);
        (self.problems.len() == before).then(|| Item {
            span: node.span,
            value: Checked::Sink { kind: kind.text.clone(), kind_span: kind.span, block, node: below.clone() },
        })
    }

    /// A sink's block as JSON: plain scalars become numbers, booleans and null, references are resolved.
    fn json(&mut self, node: &Node, path: &str) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::List(items) => items.iter().map(|item| self.json(item, path)).collect(),
            Value::Map(entries) => {
                entries.iter().map(|(key, value)| (key.text.clone(), self.json(value, &format!("{path}.{}", key.text)))).collect()
            }
            Value::Scalar { text, plain } => {
                let Some((resolved, referenced)) = self.resolved(text, node.span, path) else { return serde_json::Value::Null };
                match serde_json::from_str(&resolved) {
                    Ok(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) if *plain && !referenced => value,
                    _ => resolved.into(),
                }
            }
        }
    }

    /// A single value with references resolved: text, whether it stood unquoted, whether it came from a reference.
    fn scalar(&mut self, node: &Node, at: Span, path: &str, ty: &Type) -> Option<(String, bool, bool)> {
        match &node.value {
            Value::Scalar { text, plain } => {
                let (text, referenced) = self.resolved(text, node.span, path)?;
                Some((text, *plain, referenced))
            }
            Value::Null => {
                self.problem(
                    Code::MissingValue,
                    at,
                    format!("`{path}` has no value"),
                    "empty",
                    Some(format!("it must be {}", ty.describe())),
                );
                None
            }
            other => {
                let message = format!("`{path}` must be {}, this is {}", ty.describe(), other.kind());
                let help = Some("write one value after the colon".to_owned());
                self.problem(Code::WrongType, node.span, message, "not a single value", help);
                None
            }
        }
    }

    fn resolved(&mut self, text: &str, span: Span, path: &str) -> Option<(String, bool)> {
        match secrets::resolve(text, &self.document.dir, self.environment) {
            Ok(None) => Some((text.to_owned(), false)),
            Ok(Some(resolved)) => {
                self.yielded.extend(resolved.yielded);
                Some((resolved.text, true))
            }
            Err(ReferenceError::Missing(why)) => {
                let help = Some("set it where the program is started; secrets never belong into the file".to_owned());
                self.problem(Code::SecretMissing, span, format!("`{path}`: {why}"), "refers to it here", help);
                None
            }
            Err(ReferenceError::Form(why)) => {
                let help = Some("write ${env:NAME} or ${file:PATH}".to_owned());
                self.problem(Code::BadReference, span, format!("`{path}`: {why}"), "here", help);
                None
            }
        }
    }

    /// A single value against its type. Messages never repeat what a reference yielded.
    fn checked(&mut self, text: &str, plain: bool, referenced: bool, span: Span, path: &str, ty: &Type) -> Option<Checked> {
        let shown = if referenced { "the value of the reference".to_owned() } else { format!("`{}`", clip(text)) };
        let expected = ty.describe();
        let mut wrong = |code, help: String| {
            self.problem(code, span, format!("{shown} is not {expected}"), "this value", Some(help));
            None
        };
        match ty {
            Type::Version => {
                if text == "1" {
                    return Some(Checked::Count(1));
                }
                wrong(Code::BadVersion, "this program reads version 1 of the format".to_owned())
            }
            Type::Name => match is_name(text, "abcdefghijklmnopqrstuvwxyz0123456789_-", 40) {
                true => Some(Checked::Text(text.to_owned())),
                false => wrong(Code::BadName, "begin with a letter or digit; letters are small".to_owned()),
            },
            Type::SlotName => match is_name(text, "abcdefghijklmnopqrstuvwxyz0123456789_", 63) {
                true => Some(Checked::Text(text.to_owned())),
                false => wrong(Code::BadName, "PostgreSQL allows small letters, digits and underscores".to_owned()),
            },
            Type::Text | Type::Column => match text.trim().is_empty() {
                true => wrong(Code::MissingValue, format!("`{path}` must not be empty")),
                false => Some(Checked::Text(text.to_owned())),
            },
            Type::Url(schemes) => {
                let rest = schemes.iter().find_map(|s| text.strip_prefix(s)?.strip_prefix("://"));
                match rest {
                    Some(rest) if !rest.is_empty() && !text.contains(char::is_whitespace) => Some(Checked::Secret(text.to_owned().into())),
                    _ => {
                        let help = format!("write {}://user:password@host:port/…, the password as ${{env:NAME}}", schemes[0]);
                        // A URL may hold a password, so it is not repeated.
                        self.problem(Code::BadUrl, span, format!("`{path}` is not {expected}"), "this value", Some(help));
                        None
                    }
                }
            }
            Type::Bool => match text {
                "true" => Some(Checked::Bool(true)),
                "false" => Some(Checked::Bool(false)),
                _ => wrong(Code::WrongType, "write true or false".to_owned()),
            },
            Type::Count(min, max) => match text.parse::<u64>() {
                Ok(n) if (*min..=*max).contains(&n) && (plain || referenced) => Some(Checked::Count(n)),
                _ => wrong(Code::BadNumber, "write digits only, without quotes".to_owned()),
            },
            Type::Duration(min, max) => match units::duration(text) {
                Some(d) if (u128::from(*min)..=u128::from(*max)).contains(&d.as_millis()) => Some(Checked::Duration(d)),
                Some(_) => {
                    let show = |ms| units::show_duration(Duration::from_millis(ms));
                    let help = format!("it must be from {} to {}", show(*min), show(*max));
                    self.problem(Code::BadDuration, span, format!("{shown} is out of bounds"), "this value", Some(help));
                    None
                }
                None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                    wrong(Code::BadDuration, format!("add the unit: `{text}s` for seconds (ms, s, m, h, d)"))
                }
                None => wrong(Code::BadDuration, "write a whole number and ms, s, m, h or d; 1h30m is possible".to_owned()),
            },
            Type::Rate => match units::rate(text) {
                Some(rate) => Some(Checked::Rate(rate)),
                None => wrong(Code::BadNumber, "write a whole number of events and a time: 20/s, 750/m, 1000/h or 5/10s".to_owned()),
            },
            Type::Size(min, max) => match units::size(text) {
                Some(n) if (*min..=*max).contains(&n) => Some(Checked::Size(n)),
                Some(_) => {
                    let help = format!("it must be from {} to {}", units::show_size(*min), units::show_size(*max));
                    self.problem(Code::BadSize, span, format!("{shown} is out of bounds"), "this value", Some(help));
                    None
                }
                None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                    wrong(Code::BadSize, format!("add the unit: `{text}B` for bytes (B, KiB, MiB, GiB, TiB)"))
                }
                None => wrong(
                    Code::BadSize,
                    "write a whole number and B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB for powers of 1000)".to_owned(),
                ),
            },
            Type::Path => match text.is_empty() {
                true => wrong(Code::MissingValue, format!("`{path}` must not be empty")),
                false => Some(Checked::Path(self.document.dir.join(text))),
            },
            Type::Address => match text.parse() {
                Ok(address) => Some(Checked::Address(address)),
                Err(_) => wrong(Code::BadAddress, "names are not resolved here: write 127.0.0.1:7410 or [::1]:7410".to_owned()),
            },
            Type::Table => match text.split_once('.') {
                Some((schema, table)) if !schema.is_empty() && !table.is_empty() && !table.contains('.') && !text.contains(['"', '*']) => {
                    Some(Checked::Table(schema.to_owned(), table.to_owned()))
                }
                None if !text.is_empty() => wrong(Code::BadTable, format!("name the schema too: `public.{}`", clip(text))),
                _ => wrong(Code::BadTable, "write schema.table as the catalogue spells it, without quotes or wildcards".to_owned()),
            },
            Type::Choice(words) => match words.contains(&text) {
                true => Some(Checked::Text(text.to_owned())),
                false => {
                    let help = nearest(text, words.iter().copied())
                        .map_or_else(|| format!("choose one of {}", words.join(", ")), |w| format!("did you mean `{w}`?"));
                    wrong(Code::BadChoice, help)
                }
            },
            Type::Policy => match Policy::parse(text) {
                Some(policy) => Some(Checked::Policy(policy)),
                None => {
                    let near = nearest(text, ["pass", "drop", "null", "mask", "hash", "truncate(8)"]);
                    wrong(Code::BadChoice, near.map_or_else(|| format!("choose {expected}"), |near| format!("did you mean `{near}`?")))
                }
            },
            Type::Secret if text.len() < SECRET_BYTES_MIN => {
                // What it is must not be repeated, nor how long it is.
                let help = Some(format!("take {SECRET_BYTES_MIN} random bytes or more: openssl rand -hex 32"));
                self.problem(Code::BadSecret, span, format!("`{path}` is too short to be a key"), "this value", help);
                None
            }
            Type::Secret => Some(Checked::Secret(text.to_owned().into())),
            Type::List(_) | Type::PerTable(_) | Type::PerColumn(_) | Type::Block(_) | Type::OneOf(_) | Type::Sink | Type::Tree => None,
        }
    }
}

/// A key that can be guessed protects nothing: the values that it hides are names and telephone numbers.
const SECRET_BYTES_MIN: usize = 16;

fn plain(text: &str, span: Span) -> Node {
    Node { span, value: Value::Scalar { text: text.to_owned(), plain: true } }
}

fn is_name(text: &str, alphabet: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.chars().all(|c| alphabet.contains(c)) && !text.starts_with(['-', '_'])
}

/// Shortens what is repeated in a message.
fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}

fn names(keys: &[Key]) -> String {
    keys.iter().map(|k| format!("`{}`", k.name)).collect::<Vec<_>>().join(", ")
}

/// The dotted path of the block that knows a key of this name.
fn find_elsewhere(name: &str, keys: &'static [Key], path: &str) -> Option<String> {
    for key in keys {
        if let Type::Block(below) | Type::OneOf(below) = &key.ty {
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            if below.iter().any(|k| k.name == name) {
                return Some(path);
            }
            if let Some(found) = find_elsewhere(name, below, &path) {
                return Some(found);
            }
        }
    }
    None
}

/// Both tables, for tests over all keys.
#[cfg(test)]
const ALL: [&[Key]; 2] = [&super::keys::PIPELINE, &super::keys::CONNECTOR];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_sound() {
        fn visit(checker: &mut Checker<'_>, keys: &'static [Key]) {
            for key in keys {
                if let Need::Default(text) = key.need {
                    checker.default(text, Span::default(), key);
                }
                if let Type::Block(below) | Type::OneOf(below) = &key.ty {
                    visit(checker, below);
                }
            }
        }
        let document = Document { name: "x".to_owned(), dir: ".".into(), text: String::new(), overlay: None };
        let mut checker = Checker::new(&document, &|_| None, Vec::new());
        for keys in ALL {
            visit(&mut checker, keys);
        }
        assert!(checker.problems.is_empty(), "{:?}", checker.problems);
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let words = ["tables", "slot", "publication", "partition_by", "hold_back", "initial_load"];
        for (wrong, right) in [
            ("tabels", "tables"),
            ("publicaton", "publication"),
            ("Slot", "slot"),
            ("holdback", "hold_back"),
            ("partitionBy", "partition_by"),
        ] {
            assert_eq!(nearest(wrong, words), Some(right));
        }
        for wrong in ["x", "password", "retention", "journal"] {
            assert_eq!(nearest(wrong, words), None, "{wrong}");
        }
    }
}
