//! Writes what the tests of a connector file came to into their `expect`: only there, only what differs; everything else stays byte for byte.

use std::path::Path;

use serde_json::Value as Json;

use super::document::Document;
use super::overlay;
use super::tree::{self, Node, Value};

/// Longest text of a nested block that is written on one line.
const FLOW_MAX: usize = 80;

/// Why a file is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotWritten(String);

fn not<T>(why: impl Into<String>) -> Result<T, NotWritten> {
    Err(NotWritten(why.into()))
}

/// A replacement of bytes of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

/// The text of a connector file whose `expect` of the test with this number, from 0, says this; nothing else is changed.
///
/// # Errors
/// The file cannot be read, has an overlay, or the value cannot stand there.
pub fn rewrite(path: &Path, test: usize, expect: &Json) -> Result<String, NotWritten> {
    if overlay::of(path).is_some() {
        return not("the file has an overlay for this environment: run it without `--environment`");
    }
    let text = std::fs::read_to_string(path).map_err(|e| NotWritten(format!("cannot be read: {e}")))?;
    rewritten(&text, test, expect)
}

/// Puts the text in the place of the file's, all of it or nothing.
///
/// # Errors
/// The file system's.
pub fn write(path: &Path, text: &str) -> std::io::Result<()> {
    // A link stays one.
    let path = path.canonicalize()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let permissions = std::fs::metadata(&path)?.permissions();
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::set_permissions(&beside, permissions));
    written.and_then(|()| std::fs::rename(&beside, &path)).inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

fn rewritten(whole: &str, test: usize, expect: &Json) -> Result<String, NotWritten> {
    if holds_reference(expect) {
        return not("the output holds `${`, which would be read as a reference");
    }
    let (mark, text) = whole.strip_prefix('\u{feff}').map_or(("", whole), |text| ("\u{feff}", text));
    let node = expected(text, test)?;
    let mut editor = Editor { text, newline: if text.contains("\r\n") { "\r\n" } else { "\n" }, edits: Vec::new() };
    editor.update(&node, expect)?;
    let mut edits = editor.edits;
    edits.sort_by_key(|edit| std::cmp::Reverse(edit.start));
    let mut new = text.to_owned();
    for Edit { start, end, text } in edits {
        new.replace_range(start..end, &text);
    }
    // Whoever reads it has to find what was meant, there and nowhere else.
    let read = expected(&new, test).map(|node| json(&node));
    if read.as_ref() != Ok(expect) || !same_but_for(text, &new, test) {
        return not("what stands there is written in a way that is left to people");
    }
    Ok(format!("{mark}{new}"))
}

fn holds_reference(value: &Json) -> bool {
    match value {
        Json::String(text) => text.contains("${"),
        Json::Array(items) => items.iter().any(holds_reference),
        Json::Object(fields) => fields.iter().any(|(name, value)| name.contains("${") || holds_reference(value)),
        _ => false,
    }
}

fn tree(text: &str) -> Result<Node, NotWritten> {
    let document = Document::from_bytes(String::new(), std::path::PathBuf::new(), text.as_bytes().to_vec());
    let tree = document.ok().and_then(|document| tree::parse(&document, &mut Vec::new()));
    tree.ok_or_else(|| NotWritten("the file cannot be read again".to_owned()))
}

fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
        _ => None,
    }
}

fn expected(text: &str, test: usize) -> Result<Node, NotWritten> {
    let tree = tree(text)?;
    let tests = entry(&tree, "tests").map(|tests| &tests.value);
    let test = if let Some(Value::List(items)) = tests { items.get(test) } else { None };
    test.and_then(|test| entry(test, "expect")).cloned().ok_or_else(|| NotWritten("the test has no `expect`".to_owned()))
}

/// Whether the two files say the same everywhere else.
fn same_but_for(before: &str, after: &str, test: usize) -> bool {
    let without = |text: &str| {
        let mut tree = tree(text).ok()?;
        let Value::Map(entries) = &mut tree.value else { return None };
        let (_, tests) = entries.iter_mut().find(|(key, _)| key.text == "tests")?;
        let Value::List(tests) = &mut tests.value else { return None };
        let Value::Map(entries) = &mut tests.get_mut(test)?.value else { return None };
        entries.retain(|(key, _)| key.text != "expect");
        Some(tree)
    };
    matches!((without(before), without(after)), (Some(a), Some(b)) if a.same(&b))
}

/// What a node says, as the checks read it.
fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries.iter().map(|(key, node)| (key.text.clone(), json(node))).collect(),
        Value::Scalar { text, plain } => match serde_json::from_str(text) {
            Ok(value @ (Json::Number(_) | Json::Bool(_))) if *plain => value,
            _ => text.as_str().into(),
        },
    }
}

struct Editor<'t> {
    text: &'t str,
    newline: &'static str,
    edits: Vec<Edit>,
}

impl Editor<'_> {
    /// Makes a node say this, by as small a change as there is.
    fn update(&mut self, node: &Node, wanted: &Json) -> Result<(), NotWritten> {
        if json(node) == *wanted {
            return Ok(());
        }
        match (&node.value, wanted) {
            (Value::Map(entries), Json::Object(fields))
                if entries.len() == fields.len() && entries.iter().all(|(key, _)| fields.contains_key(&key.text)) =>
            {
                let known = self.edits.len();
                for (key, below) in entries {
                    if self.update(below, &fields[&key.text]).is_err() {
                        self.edits.truncate(known);
                        return self.replace(node, wanted);
                    }
                }
                Ok(())
            }
            (Value::List(items), Json::Array(values)) if items.len() == values.len() => {
                let known = self.edits.len();
                for (below, value) in items.iter().zip(values) {
                    if self.update(below, value).is_err() {
                        self.edits.truncate(known);
                        return self.replace(node, wanted);
                    }
                }
                Ok(())
            }
            (Value::Scalar { .. }, value) if !is_block_scalar(self.of(node)) && node.span.len > 0 => {
                let quoted = self.of(node).starts_with(['"', '\'']);
                let text = match value {
                    Json::String(text) if quoted => Json::from(text.as_str()).to_string(),
                    value => flow(value),
                };
                self.edits.push(Edit { start: node.span.start, end: node.span.start + node.span.len, text });
                Ok(())
            }
            (Value::Map(_) | Value::List(_), _) => self.replace(node, wanted),
            _ => not("a value stands there in a form that is left to people"),
        }
    }

    fn of(&self, node: &Node) -> &str {
        self.text.get(node.span.start..node.span.start + node.span.len).unwrap_or_default()
    }

    /// Writes a block or list anew; comments within it go above it.
    fn replace(&mut self, node: &Node, wanted: &Json) -> Result<(), NotWritten> {
        let start = self.start(node);
        let line = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let column = self.text[line..start].chars().count();
        let is_flow = self.text[start..].starts_with(['{', '[']);
        let end = if is_flow { flow_end(self.text, start) } else { Some(self.block_end(node, start, column)) };
        let Some(end) = end else { return not("its end is not found") };
        let comments = comments(&self.text[start..end]);
        if is_flow && !comments.is_empty() {
            return not("there are comments between its braces");
        }
        // A list may begin in the column of its key, and nothing else may.
        let shift =
            if matches!(node.value, Value::List(_)) && !is_flow && !matches!(wanted, Json::Array(i) if !i.is_empty()) { 2 } else { 0 };
        let column = column + shift;
        let indent = format!("{}{}", self.newline, " ".repeat(column));
        let mut text = " ".repeat(shift);
        for comment in comments {
            text.push_str(&comment);
            text.push_str(&indent);
        }
        text.push_str(&if is_flow { flow(wanted) } else { block(wanted, column, self.newline) });
        self.edits.push(Edit { start, end, text });
        Ok(())
    }

    /// Where a block or list begins. Of a list in the column of its key the parser names the first item instead of its dash.
    fn start(&self, node: &Node) -> usize {
        let start = node.span.start;
        let first = if let Value::List(items) = &node.value { items.first() } else { None };
        let is_item = first.is_some_and(|first| first.span.start == start);
        self.text[..start].rfind('-').filter(|_| is_item).unwrap_or(start)
    }

    /// Behind the last line of a block that begins in this column.
    fn block_end(&self, node: &Node, start: usize, column: usize) -> usize {
        let is_list = matches!(node.value, Value::List(_));
        let mut end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let mut at = end;
        while at < self.text.len() {
            let begin = at + 1;
            let stop = self.text[begin..].find('\n').map_or(self.text.len(), |found| begin + found);
            let (line, trimmed) = (&self.text[begin..stop], self.text[begin..stop].trim());
            let indent = line.len() - line.trim_start().len();
            let is_inside = match is_list {
                true => indent > column || (indent == column && (trimmed == "-" || trimmed.starts_with("- "))),
                false => indent >= column,
            };
            if !trimmed.is_empty() && !trimmed.starts_with('#') {
                if !is_inside {
                    break;
                }
                end = stop;
            }
            at = stop;
        }
        start + self.text[start..end].trim_end().len()
    }
}

fn is_block_scalar(text: &str) -> bool {
    text.starts_with(['|', '>'])
}

/// Behind the bracket that closes the one at `start`.
fn flow_end(text: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut end = None;
    scan(&text[start..], |at, c| {
        depth = match c {
            '{' | '[' => depth + 1,
            '}' | ']' => depth.saturating_sub(1),
            _ => depth,
        };
        if depth == 0 {
            end = Some(start + at + 1);
        }
        depth > 0
    });
    end
}

/// The comments of a piece of YAML.
fn comments(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    scan(text, |at, c| {
        if c == '#' {
            found.push(text[at..].lines().next().unwrap_or_default().trim_end().to_owned());
        }
        true
    });
    found
}

/// Walks over what is neither quoted nor, but for its first sign, a comment; until `visit` says no.
fn scan(text: &str, mut visit: impl FnMut(usize, char) -> bool) {
    let (mut quote, mut escaped, mut comment, mut before) = (None, false, false, '\n');
    for (at, c) in text.char_indices() {
        match quote {
            _ if comment => comment = c != '\n',
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            // A quote within a word is a letter of it.
            None if matches!(c, '"' | '\'') && (before.is_whitespace() || "{[,:-".contains(before)) => quote = Some(c),
            None => {
                comment = c == '#' && before.is_whitespace();
                if (c != '#' || comment) && !visit(at, c) {
                    return;
                }
            }
        }
        before = c;
    }
}

/// A text as it may stand without quotes, in braces too.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 11] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan"];
    let fits = |b: u8| b.is_ascii_alphanumeric() || b" _./-".contains(&b);
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.ends_with(' ')
        && text.bytes().all(fits)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

fn word(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { Json::from(text).to_string() }
}

/// A value on one line.
fn flow(value: &Json) -> String {
    match value {
        Json::String(text) => word(text),
        Json::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Json::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{}: {}", word(name), flow(value))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// A value over several lines, the first of which begins in this column already.
fn block(value: &Json, column: usize, newline: &str) -> String {
    let indent = format!("{newline}{}", " ".repeat(column));
    let nested = |value: &Json| {
        let line = flow(value);
        let is_long = matches!(value, Json::Object(f) if !f.is_empty()) || matches!(value, Json::Array(i) if !i.is_empty());
        if is_long && line.len() > FLOW_MAX { Err(block(value, column + 2, newline)) } else { Ok(line) }
    };
    match value {
        Json::Object(fields) if !fields.is_empty() => {
            let field = |(name, value): (&String, &Json)| match nested(value) {
                Ok(line) => format!("{}: {line}", word(name)),
                Err(lines) => format!("{}:{newline}{}{lines}", word(name), " ".repeat(column + 2)),
            };
            fields.iter().map(field).collect::<Vec<_>>().join(&indent)
        }
        Json::Array(items) if !items.is_empty() => {
            let item = |value: &Json| format!("- {}", nested(value).unwrap_or_else(|lines| lines));
            items.iter().map(item).collect::<Vec<_>>().join(&indent)
        }
        other => flow(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FILE: &str = "\
# A file of ours.
version: 1
tests:
  - name: \"one # line\"     # why
    given: {op: insert, after: {id: 7, name: 'it''s # 7'}}
    expect: {total: 5, name: Ann, 'odd': \"}\"}   # to be sent
  - name: several lines
    expect:
      # What is paid.
      total: 5     # in cents
      profile: {external_id: \"12\"}

      tags:
        - a
        - b
    given: {op: insert}   # below

  - expect:
    - {id: 1}
    - {id: 2}
    name: a list
# The end.
";

    fn update(test: usize, expect: &Json) -> String {
        rewritten(FILE, test, expect).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The lines that went and came.
    fn changed(new: &str) -> Vec<String> {
        let mark = |sign: &str, text: &str, other: &str| {
            let missing = |line: &&str| other.lines().filter(|l| l == line).count() < text.lines().filter(|l| l == line).count();
            text.lines().filter(missing).map(|line| format!("{sign}{line}")).collect::<Vec<_>>()
        };
        [mark("-", FILE, new), mark("+", new, FILE)].concat()
    }

    #[test]
    fn a_value_is_changed_where_it_stands() {
        let new = update(0, &json!({"total": 6.5, "name": "no", "odd": "}"}));
        assert_eq!(
            changed(&new),
            [
                "-    expect: {total: 5, name: Ann, 'odd': \"}\"}   # to be sent",
                "+    expect: {total: 6.5, name: \"no\", 'odd': \"}\"}   # to be sent"
            ]
        );
        let new = update(1, &json!({"total": "5", "profile": {"external_id": "13"}, "tags": ["a", "c"]}));
        assert_eq!(
            changed(&new),
            [
                "-      total: 5     # in cents",
                "-      profile: {external_id: \"12\"}",
                "-        - b",
                "+      total: \"5\"     # in cents",
                "+      profile: {external_id: \"13\"}",
                "+        - c"
            ]
        );
        assert_eq!(update(2, &json!([{"id": 1}, {"id": 3}])), FILE.replace("{id: 2}", "{id: 3}"));
    }

    #[test]
    fn another_structure_is_written_in_the_style_of_the_old_one_and_keeps_its_comments() {
        let new = update(0, &json!({"total": 5}));
        assert_eq!(new, FILE.replace("{total: 5, name: Ann, 'odd': \"}\"}", "{total: 5}"));
        let new = update(1, &json!({"total": 5, "profile": {"external_id": "12", "email": null}, "tags": ["a"]}));
        let expected = FILE
            .replace("{external_id: \"12\"}", "{external_id: \"12\", email: null}")
            .replace("        - a\n        - b\n", "        - a\n");
        assert_eq!(new, expected);
        let new = update(1, &json!({"total": 5, "gratuity": 1, "note": "x".repeat(90), "tags": []}));
        let (begin, end) =
            (FILE.find("      # What is paid.").expect("there"), FILE.find("    given: {op: insert}   # below").expect("there"));
        let between = format!(
            "      # What is paid.\n      # in cents\n      total: 5\n      gratuity: 1\n      note: {}\n      tags: []\n",
            "x".repeat(90)
        );
        assert_eq!(new, format!("{}{between}{}", &FILE[..begin], &FILE[end..]));
        assert_eq!(update(2, &json!([])), FILE.replace("- {id: 1}\n    - {id: 2}", "  []"));
    }

    #[test]
    fn line_ends_and_marks_stay() {
        let windows = format!("\u{feff}{}", FILE.replace('\n', "\r\n"));
        let new = rewritten(&windows, 1, &json!({"total": 7})).expect("written");
        assert!(
            new.starts_with('\u{feff}') && new.contains("      total: 7\r\n") && new.matches('\n').count() == new.matches("\r\n").count()
        );
    }

    #[test]
    fn what_cannot_be_written_is_left() {
        assert!(rewritten(FILE, 0, &json!({"total": "${env:X}"})).is_err());
        assert!(rewritten(FILE, 9, &json!({})).is_err());
        let commented = "tests:\n  - expect: {a: 1, # why\n      b: 2}\n";
        assert!(rewritten(commented, 0, &json!({"a": 1})).expect_err("comments").0.contains("comments"));
        assert_eq!(rewritten(commented, 0, &json!({"a": 1, "b": 3})), Ok(commented.replace("b: 2", "b: 3")));
        let block = "tests:\n  - expect:\n      text: |\n        two\n        lines\n      n: 1\n";
        assert_eq!(rewritten(block, 0, &json!({"text": "two\nlines\n", "n": 2})), Ok(block.replace("n: 1", "n: 2")));
    }

    #[test]
    fn any_value_is_read_as_it_was_written() {
        let values = [
            json!({"a b": "x: y", "#": "- z", "true": true, "7": "7", "e": "", "n": null, "l": [[], {}, [{"deep": ["a", 1.25e30]}]], "u": "ü\n\t\"'"}),
            json!({"long": {"text": "x".repeat(90), "more": [{"a": "y".repeat(90)}, "z"]}, "list": [{"a": 1, "text": "w".repeat(90)}]}),
            json!([1, "two", ["three"]]),
            json!("alone"),
            json!(null),
        ];
        for value in &values {
            for test in 0..3 {
                let new = rewritten(FILE, test, value).unwrap_or_else(|why| panic!("{why}: {test} {value}"));
                assert_eq!(json(&expected(&new, test).expect("there")), *value, "{new}");
                assert!(new.starts_with("# A file of ours.") && new.ends_with("# The end.\n"));
            }
        }
    }
}
