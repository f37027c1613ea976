//! Reads a normalised statement: enough of it to show it without values, and to see which index would help.
//!
//! pg_stat_statements puts `$1` in place of constants, but not everywhere and not always: whatever literal or comment is left is taken out
//! before a text is shown, and only SELECT, INSERT, UPDATE, DELETE and MERGE are shown at all (a utility statement may hold a password).

use std::collections::BTreeMap;

/// Longest text that is shown, in characters.
const SHOWN_MAX: usize = 240;

/// Functions by whose result an index may be made: they give the same for ever.
const IMMUTABLE: [&str; 4] = ["lower", "upper", "md5", "length"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A name or keyword, as the server reads it: small unless quoted. With its text.
    Word(String, &'a str),
    /// `$1`.
    Parameter(&'a str),
    /// A text or a number.
    Literal(&'a str),
    /// An operator or a mark.
    Mark(&'a str),
}

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(w, text) if w == word && !text.starts_with('"'))
    }

    fn mark(&self) -> Option<&str> {
        match self {
            Token::Mark(mark) => Some(mark),
            _ => None,
        }
    }

    fn word(&self) -> Option<&str> {
        match self {
            Token::Word(word, _) => Some(word),
            _ => None,
        }
    }

    /// As it stands in the text.
    fn text(&self) -> &str {
        match self {
            Token::Word(_, text) | Token::Parameter(text) | Token::Literal(text) | Token::Mark(text) => text,
        }
    }

    fn is_value(&self) -> bool {
        matches!(self, Token::Parameter(_) | Token::Literal(_))
    }
}

/// The end of what a predicate takes from `rest`.
fn span(rest: &str, mut more: impl FnMut(char) -> bool) -> usize {
    rest.char_indices().find(|(_, c)| !more(*c)).map_or(rest.len(), |(at, _)| at)
}

/// Where a quoted text ends, its closing quote included; doubled quotes are part of it.
fn quoted(rest: &str, quote: char, escapes: bool) -> usize {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote {
            match chars.peek() {
                Some((_, next)) if *next == quote => drop(chars.next()),
                _ => return at + 1,
            }
        }
    }
    rest.len()
}

/// `$tag$ … $tag$`; `None` when it is none.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let tag = span(&rest[1..], |c| c.is_alphanumeric() || c == '_') + 1;
    let opening = rest.get(..tag + 1).filter(|o| o.ends_with('$') && !o[1..].starts_with(|c: char| c.is_ascii_digit()))?;
    Some(rest[tag + 1..].find(opening).map_or(rest.len(), |at| tag + 1 + at + opening.len()))
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("--") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    rest.starts_with("/*").then(|| {
        let (mut at, mut depth) = (2, 1);
        while depth > 0 {
            let tail = &rest[at..];
            match (tail.find("/*"), tail.find("*/")) {
                (Some(open), Some(close)) if open < close => (at, depth) = (at + open + 2, depth + 1),
                (_, Some(close)) => (at, depth) = (at + close + 2, depth - 1),
                _ => return rest.len(),
            }
        }
        at
    })
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let literal = |len: usize| (len, Some(Token::Literal(&rest[..len])));
        let (len, token) = if first.is_whitespace() {
            (span(rest, char::is_whitespace), None)
        } else if let Some(len) = comment(rest) {
            (len, None)
        } else if first == '\'' {
            literal(quoted(rest, '\'', false))
        } else if matches!(first, 'e' | 'E' | 'b' | 'B' | 'x' | 'X' | 'n' | 'N') && rest[1..].starts_with('\'') {
            literal(1 + quoted(&rest[1..], '\'', matches!(first, 'e' | 'E')))
        } else if matches!(first, 'u' | 'U') && rest[1..].starts_with("&'") {
            literal(2 + quoted(&rest[2..], '\'', false))
        } else if first == '"' {
            let len = quoted(rest, '"', false);
            let name = rest[1..len].strip_suffix('"').unwrap_or(&rest[1..len]).replace("\"\"", "\"");
            (len, Some(Token::Word(name, &rest[..len])))
        } else if first == '$' && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
            let len = 1 + span(&rest[1..], |c| c.is_ascii_digit());
            (len, Some(Token::Parameter(&rest[..len])))
        } else if first == '$'
            && let Some(len) = dollar_quoted(rest)
        {
            literal(len)
        } else if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            literal(span(rest, |c| c.is_ascii_alphanumeric() || c == '.' || c == '_'))
        } else if first.is_alphabetic() || first == '_' {
            let len = span(rest, |c| c.is_alphanumeric() || c == '_' || c == '$');
            (len, Some(Token::Word(rest[..len].to_lowercase(), &rest[..len])))
        } else {
            let two = rest.get(..2).filter(|two| ["<=", ">=", "<>", "!=", "::", "~~", "||", "->", "@>"].contains(two));
            let len = two.map_or(first.len_utf8(), str::len);
            (len, Some(Token::Mark(&rest[..len])))
        };
        found.extend(token);
        rest = &rest[len..];
    }
    found
}

/// A statement as it may be shown: without values, comments and line ends, and not too long. `None` for whatever does not read or write rows.
#[must_use]
pub(super) fn shown(text: &str) -> Option<String> {
    let tokens = tokens(text);
    if !["select", "insert", "update", "delete", "merge", "with"].iter().any(|word| tokens.first().is_some_and(|t| t.is(word))) {
        return None;
    }
    let mut out = String::new();
    for token in &tokens {
        let piece = match token {
            Token::Parameter(_) | Token::Literal(_) => "?",
            other => other.text(),
        };
        let tight = matches!(piece, "," | ")" | "." | ";" | "::" | "[" | "]") || out.ends_with(['(', '.', '[']) || out.ends_with("::");
        let call = piece == "("
            && matches!(out.rsplit(' ').next(), Some(word) if word.starts_with(char::is_alphabetic) && !KEYWORDS.contains(&word.to_lowercase().as_str()));
        if !out.is_empty() && !tight && !call {
            out.push(' ');
        }
        out.push_str(piece);
    }
    if out.chars().count() > SHOWN_MAX {
        out = out.chars().take(SHOWN_MAX).chain(['…']).collect();
    }
    Some(out)
}

/// Words before a parenthesis that no function has.
const KEYWORDS: [&str; 16] =
    ["in", "values", "and", "or", "not", "exists", "from", "where", "any", "all", "select", "on", "as", "using", "over", "by"];

/// Words that end a list of tables, so that they are no alias.
const NO_ALIAS: [&str; 22] = [
    "where",
    "join",
    "inner",
    "left",
    "right",
    "full",
    "cross",
    "natural",
    "on",
    "using",
    "set",
    "group",
    "order",
    "limit",
    "offset",
    "having",
    "for",
    "union",
    "returning",
    "values",
    "select",
    "window",
];

/// A table with its columns, as the catalogue has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
    /// Names of its columns.
    pub columns: Vec<String>,
}

/// How a statement looks for rows of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Access {
    /// Which of the known tables.
    pub table: usize,
    /// Columns or expressions compared by `=`, in order.
    pub equal: Vec<Part>,
    /// Columns compared by order.
    pub range: Vec<Part>,
    /// Columns matched by a pattern.
    pub like: Vec<Part>,
}

/// A column, or a function of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// A column.
    Column(String),
    /// A function of a column.
    Call(String, String),
}

/// Which rows of which known tables a statement looks for.
#[must_use]
pub(super) fn accesses(text: &str, known: &[Known]) -> Vec<Access> {
    let tokens = tokens(text);
    let names: Vec<(String, usize)> = tables(&tokens, known).into_iter().filter_map(|n| Some((n.alias, n.known?))).collect();
    let mut found: BTreeMap<usize, Access> = BTreeMap::new();
    // What stands in SET is written, not looked for; with OR, an index on one side alone does not help.
    let mut in_set = false;
    if tokens.iter().any(|t| t.is("or")) {
        return Vec::new();
    }
    for at in 0..tokens.len() {
        if tokens[at].is("set") {
            in_set = true;
        } else if tokens[at].is("where") || tokens[at].is("from") {
            in_set = false;
        }
        let Some((len, table, part)) = (!in_set).then(|| operand(&tokens[at..], &names, known)).flatten() else { continue };
        if at > 0 && tokens[at - 1].mark() == Some(".") {
            continue;
        }
        let rest = tokens.get(at + len..).unwrap_or_default();
        let before = at.checked_sub(1).and_then(|i| tokens.get(i));
        let value_before = at >= 2 && before.and_then(Token::mark) == Some("=") && tokens[at - 2].is_value();
        let access = found.entry(table).or_insert_with(|| Access { table, ..Access::default() });
        let list = match rest {
            [mark, next, ..] if mark.mark() == Some("=") && !next.is("all") => &mut access.equal,
            [word, ..] if word.is("in") => &mut access.equal,
            [mark, ..] if matches!(mark.mark(), Some("<" | ">" | "<=" | ">=")) => &mut access.range,
            [word, ..] if word.is("between") => &mut access.range,
            [word, ..] if word.is("like") || word.is("ilike") || word.mark() == Some("~~") => &mut access.like,
            _ if value_before || before.and_then(Token::mark) == Some("=") => &mut access.equal,
            _ => continue,
        };
        if !list.contains(&part) {
            list.push(part);
        }
    }
    found.into_values().filter(|a| !(a.equal.is_empty() && a.range.is_empty() && a.like.is_empty())).collect()
}

/// A table as the statement names it.
struct Named {
    alias: String,
    /// Which of the known ones.
    known: Option<usize>,
    /// Where its name stands, and how many tokens that is.
    at: usize,
    len: usize,
}

/// What the statement reads from and writes to.
fn tables(tokens: &[Token<'_>], known: &[Known]) -> Vec<Named> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let opens = ["from", "join", "update", "into"].iter().any(|word| tokens[at].is(word));
        at += 1;
        if !opens {
            continue;
        }
        loop {
            if tokens.get(at).is_some_and(|t| t.is("only")) {
                at += 1;
            }
            let Some(first) = tokens.get(at).and_then(Token::word) else { break };
            let (schema, table, len) = match tokens.get(at + 1..at + 3) {
                Some([dot, name]) if dot.mark() == Some(".") => (Some(first), name.word().unwrap_or_default(), 3),
                _ => (None, first, 1),
            };
            let hit = known.iter().position(|k| k.table == table && schema.is_none_or(|s| s == k.schema));
            let place = at;
            at += len;
            if tokens.get(at).is_some_and(|t| t.is("as")) {
                at += 1;
            }
            let alias = tokens.get(at).and_then(Token::word).filter(|word| !NO_ALIAS.contains(word));
            at += usize::from(alias.is_some());
            found.push(Named { alias: alias.unwrap_or(table).to_owned(), known: hit, at: place, len });
            if tokens.get(at).and_then(Token::mark) != Some(",") {
                break;
            }
            at += 1;
        }
    }
    found
}

/// The statement with every table qualified, so that it can be planned under an empty search path: no function, operator or type but the
/// server's own is reached, whoever wrote it. `None` where that cannot be had.
#[must_use]
pub(super) fn plannable(text: &str, known: &[Known]) -> Option<String> {
    let tokens = tokens(text);
    if !tokens.first()?.is("select") || tokens.iter().any(|t| t.is("operator") || t.is("into") || t.mark() == Some(";")) {
        return None;
    }
    let names = tables(&tokens, known);
    let mut out = String::new();
    let mut at = 0;
    while at < tokens.len() {
        if let Some(name) = names.iter().find(|n| n.at == at) {
            let table = &known[name.known?];
            let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            out.push_str(&format!("{}.{} ", quoted(&table.schema), quoted(&table.table)));
            at += name.len;
            continue;
        }
        // A dot leads from a table to its column; whatever else is qualified could be anybody's.
        if tokens[at].mark() == Some(".") {
            let before = at.checked_sub(1).and_then(|i| tokens[i].word())?;
            let is_call = tokens.get(at + 2).and_then(Token::mark) == Some("(");
            if is_call || !names.iter().any(|n| n.alias == before) {
                return None;
            }
        }
        out.push_str(tokens[at].text());
        let glued = tokens[at].mark().is_some_and(|m| m.len() == 1 && !matches!(m, "." | "(" | ")" | "," | "[" | "]"))
            && tokens.get(at + 1).and_then(Token::mark).is_some();
        if !glued {
            out.push(' ');
        }
        at += 1;
    }
    Some(out)
}

/// A column at the head of `tokens`, or a function of one: how many tokens it takes, its table, and itself.
fn operand(tokens: &[Token<'_>], names: &[(String, usize)], known: &[Known]) -> Option<(usize, usize, Part)> {
    let column = |tokens: &[Token<'_>]| -> Option<(usize, usize, String)> {
        let first = tokens.first()?.word()?;
        let has = |n: usize, column: &str| known[n].columns.iter().any(|c| c == column);
        if let Some([dot, name, ..]) = tokens.get(1..)
            && dot.mark() == Some(".")
        {
            let name = name.word()?;
            let table = names.iter().find(|(alias, _)| alias == first)?.1;
            return has(table, name).then(|| (3, table, name.to_owned()));
        }
        let mut tables: Vec<usize> = names.iter().map(|(_, n)| *n).filter(|n| has(*n, first)).collect();
        tables.dedup();
        match tables[..] {
            [table] => Some((1, table, first.to_owned())),
            _ => None,
        }
    };
    let function = tokens.first()?.word().filter(|word| IMMUTABLE.contains(word));
    if let (Some(function), Some("(")) = (function, tokens.get(1).and_then(Token::mark)) {
        let (len, table, name) = column(tokens.get(2..)?)?;
        let mut end = 2 + len;
        // A cast of the column to text is what the server writes for varchar; anything else is another expression.
        if tokens.get(end).and_then(Token::mark) == Some("::") && tokens.get(end + 1).is_some_and(|t| t.is("text")) {
            end += 2;
        }
        return (tokens.get(end).and_then(Token::mark) == Some(")")).then(|| (end + 1, table, Part::Call(function.to_owned(), name)));
    }
    let (len, table, name) = column(tokens)?;
    Some((len, table, Part::Column(name)))
}

/// How many parameters a statement has.
#[must_use]
pub(super) fn parameters(text: &str) -> usize {
    let mut most = 0;
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        let digits = span(rest, |c| c.is_ascii_digit());
        most = most.max(rest[..digits].parse().unwrap_or(0));
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Known> {
        let table = |table: &str, columns: &[&str]| Known {
            schema: "public".to_owned(),
            table: table.to_owned(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        };
        vec![table("item", &["id", "order_id", "sku", "at"]), table("order", &["id", "email", "status"])]
    }

    fn column(name: &str) -> Part {
        Part::Column(name.to_owned())
    }

    #[test]
    fn no_value_is_shown() {
        for (text, expected) in [
            ("SELECT *\n FROM item WHERE id = $1 -- by 'Anna'", "SELECT * FROM item WHERE id = ?"),
            ("/* user=7 /* nested */ */ SELECT lower('x''y'), 4711, 1.5e3", "SELECT lower(?), ?, ?"),
            ("select E'a\\'b', $tag$ secret $tag$, U&'x', \"Col\"\"umn\"", "select ?, ?, ?, \"Col\"\"umn\""),
            (
                "WITH x AS (SELECT 1) SELECT a::text FROM x WHERE b IN ($1, $2)",
                "WITH x AS (SELECT ?) SELECT a::text FROM x WHERE b IN (?, ?)",
            ),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["CREATE ROLE x PASSWORD 'y'", "COPY t FROM STDIN", "SET a = 'b'", "", "CALL p('x')", "<insufficient privilege>"] {
            assert_eq!(shown(text), None, "{text}");
        }
        assert!(shown(&format!("SELECT {}", "a, ".repeat(500))).expect("shown").chars().count() <= SHOWN_MAX + 1);
        for broken in ["SELECT 'open", "SELECT $a$ x", "SELECT /* x", "SELECT \"x", "SELECT 'a\\", "SELECT $", "é = 'ö'", "SELECT é'x'"]
        {
            let _ = shown(broken);
        }
    }

    #[test]
    fn what_a_statement_looks_for_is_found() {
        let known = known();
        let of = |text: &str| accesses(text, &known);
        let one = of("SELECT i.sku FROM item i WHERE i.order_id = $1 AND i.at >= $2 ORDER BY i.at");
        assert_eq!(one, [Access { table: 0, equal: vec![column("order_id")], range: vec![column("at")], like: Vec::new() }]);
        let call = of("SELECT id FROM public.\"order\" WHERE lower(email) = lower($1)");
        assert_eq!(call[0].equal, [Part::Call("lower".to_owned(), "email".to_owned())]);
        assert_eq!(of("UPDATE item SET sku = $1 WHERE id = $2")[0].equal, [column("id")]);
        let join = of("SELECT count(*) FROM \"order\" o JOIN item i ON i.order_id = o.id WHERE o.status = $1");
        assert_eq!(join[0].equal, [column("order_id")]);
        assert_eq!(join[1].equal, [column("id"), column("status")]);
        assert_eq!(of("SELECT 1 FROM item WHERE sku LIKE $1")[0].like, [column("sku")]);
        assert_eq!(of("DELETE FROM item WHERE at BETWEEN $1 AND $2")[0].range, [column("at")]);
        for nothing in [
            "SELECT * FROM item",
            "SELECT * FROM other WHERE id = $1",
            "SELECT * FROM item WHERE sku = $1 OR id = $2",
            "INSERT INTO item (id) VALUES ($1)",
        ] {
            assert_eq!(of(nothing), [], "{nothing}");
        }
        assert_eq!(
            plannable("SELECT i.sku FROM item i WHERE i.id = $1 AND at !~* 'x'", &known).as_deref(),
            Some("SELECT i . sku FROM \"public\".\"item\" i WHERE i . id = $1 AND at !~* 'x' ")
        );
        for refused in [
            "SELECT evil.f() FROM item",
            "SELECT * FROM v",
            "DELETE FROM item",
            "SELECT 1; SELECT 2",
            "SELECT a::evil.t FROM item",
            "SELECT 1 OPERATOR(evil.+) 2",
        ] {
            assert_eq!(plannable(refused, &known), None, "{refused}");
        }
        assert_eq!((parameters("a $1 b $12"), parameters("none")), (12, 0));
    }
}
