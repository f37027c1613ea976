//! What a backfill is asked for: checked by itself, compared with an earlier request, turned into SQL. Pure.

use sha2::{Digest, Sha256};

use super::sql::{literal, quoted};
use crate::config::calendar::{Calendar, Hours};
use crate::control::{BackfillOptions, BackfillSpec};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Stable code.
    pub code: &'static str,
    /// What is wrong and what helps.
    pub what: String,
}

/// Refuses with a code.
pub(super) fn refuse<T>(code: &'static str, what: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { code, what: what.into() })
}

/// Keys in one job, at most: they stand in the control journal.
pub const KEYS_MAX: usize = 50_000;
/// Bytes of them.
const KEY_BYTES_MAX: usize = 4 << 20;
/// A longer id, filter or list of columns is a mistake.
const TEXT_MAX: usize = 4_000;

/// Whether a text may be an id: it stands in commands, paths and logs.
#[must_use]
pub fn is_id(id: &str) -> bool {
    (1..=80).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
        && id.as_bytes()[0].is_ascii_alphanumeric()
}

/// The job's name in event ids and cursors: readable, and different for different ids.
pub(super) fn job_name(id: &str) -> String {
    let plain: String = id.bytes().take(40).map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() as char } else { '_' }).collect();
    let digest = Sha256::digest(id.as_bytes());
    format!("{plain}_{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

/// What is wrong with a request by itself.
pub(super) fn check(spec: &BackfillSpec, options: &BackfillOptions) -> Result<(), Refused> {
    let code = "backfill.bad_request";
    if spec.tables.is_empty() {
        return refuse(code, "no table is named");
    }
    if let Some((at, table)) = spec.tables.iter().enumerate().find(|(at, table)| spec.tables[..*at].contains(table)) {
        return refuse(code, format!("table {table} is named twice (number {})", at + 1));
    }
    if !spec.keys.is_empty() {
        if spec.tables.len() != 1 {
            return refuse(code, "keys belong to one table: name one");
        }
        if spec.filter.is_some() || spec.since.is_some() {
            return refuse(code, "keys, --where and --since cannot be combined: keys name the rows already");
        }
        let bytes: usize = spec.keys.iter().flat_map(|k| &k.0).map(String::len).sum();
        if spec.keys.len() > KEYS_MAX || bytes > KEY_BYTES_MAX {
            return refuse(
                code,
                format!("{} keys with {bytes} bytes: at most {KEYS_MAX} keys and 4 MiB fit into one job", spec.keys.len()),
            );
        }
    }
    if (spec.filter.is_some() || spec.since.is_some()) && spec.tables.len() != 1 {
        return refuse(code, "--where and --since speak of one table's columns: name one table");
    }
    if let Some(filter) = &spec.filter {
        check_filter(filter, options.allow_subquery)?;
    }
    if let Some(since) = &spec.since
        && since != LAST_SUCCESS
        && moment(since).is_none()
    {
        return refuse(code, "--since is neither `last-success` nor a moment as 2026-11-01T00:00Z");
    }
    if options.max_rate == Some(0) {
        return refuse(code, "a rate of nothing never ends; pause the job instead");
    }
    window(options)?;
    Ok(())
}

/// What `--since` goes by when it is not a moment.
pub const LAST_SUCCESS: &str = "last-success";

/// A moment as people write it: RFC 3339, seconds optional, UTC unless it names an offset.
fn moment(text: &str) -> Option<jiff::Timestamp> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Some(moment);
    }
    let local: jiff::civil::DateTime = text.trim_end_matches('Z').parse().ok()?;
    local.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
}

/// A moment as the server takes it.
pub(super) fn canonical_moment(text: &str) -> Option<String> {
    moment(text).map(|m| m.to_string())
}

/// The window of the day in which the job may read.
pub(super) fn window(options: &BackfillOptions) -> Result<Option<Calendar>, Refused> {
    let Some(window) = &options.window else { return Ok(None) };
    let code = "backfill.bad_request";
    let Some(hours) = Hours::parse(window) else { return refuse(code, "--window is no part of the day, as 02:00-05:00") };
    match Calendar::new(options.timezone.as_deref().unwrap_or("UTC"), vec![hours]) {
        Some(calendar) => Ok(Some(calendar)),
        None => refuse(code, "--tz names no time zone, as Europe/Berlin"),
    }
}

/// Words that make a query out of an expression.
const QUERIES: [&str; 4] = ["select", "with", "table", "values"];

/// Refuses what is more than one expression: several statements, comments, an end of the parenthesis it will stand in,
/// and queries unless they are wanted.
fn check_filter(filter: &str, allow_subquery: bool) -> Result<(), Refused> {
    let code = "backfill.bad_where";
    if filter.trim().is_empty() || filter.len() > TEXT_MAX {
        return refuse(code, "--where is empty or longer than 4000 bytes");
    }
    let (mut depth, mut word) = (0_i32, String::new());
    let mut chars = filter.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // A doubled quote inside closes and opens again, which comes to the same.
            '\'' | '"' if !chars.by_ref().any(|inner| inner == c) => {
                return refuse(code, "--where has a quote that is not closed");
            }
            '$' => {
                return refuse(code, "--where uses dollar quotes or parameters; write texts between single quotes");
            }
            '\\' => return refuse(code, "--where holds a backslash outside of quotes"),
            ';' => return refuse(code, "--where holds a semicolon: it has to be one expression"),
            '-' if chars.peek() == Some(&'-') => return refuse(code, "--where holds a comment"),
            '/' if chars.peek() == Some(&'*') => return refuse(code, "--where holds a comment"),
            '(' => depth += 1,
            ')' => depth -= 1,
            c if c.is_control() && !c.is_whitespace() => return refuse(code, "--where holds a control character"),
            _ => {}
        }
        if depth < 0 {
            return refuse(code, "--where closes a parenthesis that it did not open");
        }
        if c.is_alphanumeric() || c == '_' {
            word.extend(c.to_lowercase());
        }
        if !(c.is_alphanumeric() || c == '_') || chars.peek().is_none() {
            if !allow_subquery && QUERIES.contains(&word.as_str()) {
                return refuse(code, format!("--where holds a query ({word}); say --allow-subquery if it is meant"));
            }
            // `e'…'` takes backslashes as escapes, so its end could not be told.
            if c == '\'' && matches!(word.as_str(), "e" | "u") {
                return refuse(code, "--where uses escape texts (E'…'); write plain ones");
            }
            word.clear();
        }
    }
    if depth != 0 {
        return refuse(code, "--where has a parenthesis that is not closed");
    }
    Ok(())
}

/// The conditions of a job's rows as SQL.
pub(super) fn conditions(spec: &BackfillSpec, since: Option<&str>, changed_at: Option<&str>) -> Vec<String> {
    let since = since.zip(changed_at).map(|(moment, column)| format!("{} >= {}", quoted(column), literal(moment)));
    spec.filter.iter().cloned().chain(since).collect()
}

/// What differs between two requests under one id, one line each; keys and texts of conditions are not shown.
#[must_use]
pub fn differences(was: &BackfillSpec, is: &BackfillSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, was: String, is: String| {
        if was != is {
            lines.push(format!("{name}: was {was}, is {is}"));
        }
    };
    let or_none = |t: &Option<String>| t.as_ref().map_or_else(|| "not given".to_owned(), |t| format!("`{t}`"));
    line("tables", was.tables.join(", "), is.tables.join(", "));
    line("where", or_none(&was.filter), or_none(&is.filter));
    line("since", or_none(&was.since), or_none(&is.since));
    let or_all = |c: &[String]| if c.is_empty() { "all".to_owned() } else { c.join(", ") };
    line("columns", or_all(&was.columns), or_all(&is.columns));
    line("connector", or_none(&was.connector), or_none(&is.connector));
    if was.keys != is.keys {
        let digest = |spec: &BackfillSpec| {
            let digest = Sha256::digest(serde_json::to_vec(&spec.keys).unwrap_or_default());
            format!("{} keys ({:02x}{:02x}{:02x}{:02x})", spec.keys.len(), digest[0], digest[1], digest[2], digest[3])
        };
        lines.push(format!("keys: was {}, is {}", digest(was), digest(is)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::KeyTexts;

    fn spec(tables: &[&str]) -> BackfillSpec {
        BackfillSpec { tables: tables.iter().map(|t| (*t).to_owned()).collect(), ..BackfillSpec::default() }
    }

    #[test]
    fn a_filter_is_one_expression() {
        for good in
            ["tier >= 2", "note = 'a;b -- c' AND (x OR \"select\" = 1)", "a ->> 'k' = 'it''s'", "x::date > now() - interval '1 day'"]
        {
            assert_eq!(check_filter(good, false), Ok(()), "{good}");
        }
        for bad in [
            "",
            "a; DROP TABLE t",
            "a) OR (b",
            "a = 'x",
            "a -- b",
            "a /* b */",
            "id IN (SELECT 1)",
            "exists (with x as (table y) values (1))",
            "a = $$x$$",
            "a = $1",
            "a = E'\\'; --'",
            "(a",
            "a = \\x",
        ] {
            assert!(check_filter(bad, false).is_err(), "{bad}");
        }
        assert_eq!(check_filter("id IN (SELECT id FROM other)", true), Ok(()));
    }

    #[test]
    fn requests_that_contradict_themselves_are_refused() {
        let options = BackfillOptions::default();
        assert_eq!(check(&spec(&["public.a", "public.b"]), &options), Ok(()));
        let keys = vec![KeyTexts(vec!["1".to_owned()])];
        for bad in [
            spec(&[]),
            spec(&["public.a", "public.a"]),
            BackfillSpec { keys: keys.clone(), ..spec(&["public.a", "public.b"]) },
            BackfillSpec { keys, filter: Some("x".to_owned()), ..spec(&["public.a"]) },
            BackfillSpec { filter: Some("x".to_owned()), ..spec(&["public.a", "public.b"]) },
            BackfillSpec { since: Some("yesterday".to_owned()), ..spec(&["public.a"]) },
        ] {
            assert!(check(&bad, &options).is_err(), "{bad:?}");
        }
        for since in ["last-success", "2026-11-01T00:00Z", "2026-11-01T00:00:00+01:00", "2026-11-01"] {
            let spec = BackfillSpec { since: Some(since.to_owned()), ..spec(&["public.a"]) };
            assert_eq!(check(&spec, &options), Ok(()), "{since}");
        }
        assert!(check(&spec(&["public.a"]), &BackfillOptions { window: Some("5".to_owned()), ..options.clone() }).is_err());
        let zone = BackfillOptions { window: Some("02:00-05:00".to_owned()), timezone: Some("Nowhere/Here".to_owned()), ..options };
        assert!(check(&spec(&["public.a"]), &zone).is_err());
    }

    #[test]
    fn names_are_readable_and_apart() {
        let name = job_name("Nightly-2026.11.22");
        assert!(name.starts_with("nightly_2026_11_22_") && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
        assert_ne!(job_name("a-b"), job_name("a.b"));
        assert!(is_id("nightly-2026-11-22") && !is_id("") && !is_id("-x") && !is_id("a b") && !is_id("a/b"));
    }

    #[test]
    fn a_difference_is_named() {
        let was = BackfillSpec { filter: Some("a".to_owned()), ..spec(&["public.a"]) };
        let is = BackfillSpec { connector: Some("crm".to_owned()), ..spec(&["public.a"]) };
        assert_eq!(differences(&was, &is), ["where: was `a`, is not given", "connector: was not given, is `crm`"]);
        assert!(differences(&was, &was.clone()).is_empty());
    }
}
