//! Text from outside, made inert for people's eyes; numbers in plain units. HTML's own signs are escaped where text is put into a page (maud does that
//! with every text); here is what a browser would still act upon: control and direction characters, and length.

use std::time::Duration;

use serde_json::Value;

use crate::config::units;

/// Longest text of a cell.
pub(super) const CELL: usize = 160;
/// Longest text of anything.
pub(super) const LONG: usize = 4_000;

/// Whether a character would change how its neighbours look, or look like nothing.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The text with hidden characters spelt out, cut to so many characters.
pub(super) fn inert(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(4 * max));
    let mut chars = text.chars();
    for c in chars.by_ref().take(max) {
        match is_hidden(c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    let left = chars.count();
    if left > 0 {
        out.push_str(&format!("… ({} characters in all)", grouped((max + left) as u64)));
    }
    out
}

/// As [`inert`], but lines stay lines.
pub(super) fn inert_lines(text: &str, max: usize) -> String {
    let cut: String = text.chars().take(max).collect();
    let mut out = cut.split('\n').map(|line| inert(line, max)).collect::<Vec<_>>().join("\n");
    if cut.len() < text.len() {
        out.push_str(&format!("\n… ({} bytes in all)", grouped(text.len() as u64)));
    }
    out
}

/// A JSON text for a cell; a dash for what is none.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => inert(text, CELL),
        Value::Null => "–".to_owned(),
        other => inert(&other.to_string(), CELL),
    }
}

/// `12 345`, with thin spaces.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// `1 event was`, `3 events were`.
pub(super) fn many(n: u64, one: &str, more: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { more })
}

/// A count; a dash for what is none.
pub(super) fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| "–".to_owned(), grouped)
}

/// Three digits that matter: `0.4`, `12.5`, `9 876`, `1.2 M`.
pub(super) fn short(n: f64) -> String {
    match n {
        n if !n.is_finite() => "–".to_owned(),
        n if n < 0.05 => "0".to_owned(),
        n if n < 10.0 => format!("{n:.1}"),
        n if n < 1e4 => grouped(n.round() as u64),
        n if n < 1e6 => format!("{:.1} k", n / 1e3),
        n => format!("{:.1} M", n / 1e6),
    }
}

/// So many a second; a dash for what is none.
pub(super) fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), |n| format!("{}/s", short(n)))
}

/// A size; a dash for what is none.
pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "–".to_owned(), units::show_size)
}

/// Seconds as people say them: `340 ms`, `1.9 s`, `2 h 10 m`; a dash for what is none.
pub(super) fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), span)
}

/// See [`seconds`].
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() || s < 0.0 => "–".to_owned(),
        s if s < 0.000_000_5 => "0".to_owned(),
        s if s < 0.000_5 => format!("{:.0} µs", s * 1e6),
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s => Duration::try_from_secs_f64(s.round()).map_or_else(|_| "–".to_owned(), units::show_duration),
    }
}

/// `87 %`.
pub(super) fn percent(ratio: f64) -> String {
    format!("{:.0} %", (ratio * 100.0).clamp(0.0, 999.0))
}

/// Milliseconds since the Unix epoch as RFC 3339 to the second.
pub(super) fn moment(ms: i64) -> String {
    jiff::Timestamp::from_second(ms.div_euclid(1000)).map_or_else(|_| "–".to_owned(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_spelt_out_and_cut() {
        assert_eq!(inert("a\u{202e}b\u{200b}\n\u{7}", 10), "a\\u{202e}b\\u{200b}\\u{a}\\u{7}");
        assert_eq!(inert("Müller 東京", 20), "Müller 東京");
        let long = inert(&"x".repeat(1 << 20), 10);
        assert_eq!(long, "xxxxxxxxxx… (1\u{202f}048\u{202f}576 characters in all)");
        assert_eq!(inert_lines("a\r\n\tb", 10), "a\\u{d}\n\\u{9}b");
        assert!(inert(&"\u{202e}".repeat(1 << 20), 50).len() < 1000);
    }

    #[test]
    fn numbers_are_plain() {
        assert_eq!(
            (short(0.01), short(3.25), short(9876.4), short(1_234_567.0)),
            ("0".into(), "3.2".into(), "9\u{202f}876".into(), "1.2 M".into())
        );
        assert_eq!((span(0.34), span(1.94), span(7800.0)), ("340 ms".into(), "1.9 s".into(), "2 h 10 m".into()));
        assert_eq!((span(0.0), span(0.000_02)), ("0".into(), "20 µs".into()));
        assert_eq!((span(f64::NAN), span(-1.0), percent(0.876)), ("–".into(), "–".into(), "88 %".into()));
    }
}
