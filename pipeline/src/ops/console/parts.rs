//! What pages are put together from: states, bars, lines over time, commands, forms.

use maud::{Markup, PreEscaped, html};
use serde_json::Value;

use super::text::{self, CELL};
use crate::ops::admin::access::Caller;

/// The icon of a state: its shape says the same as its colour and its word.
fn icon(state: &str) -> &'static str {
    match state {
        "healthy" | "done" | "applied" => "ok",
        "catching_up" | "running" => "go",
        "paused" | "cancelled" => "pause",
        "degraded" | "waiting" => "warn",
        "blocked" => "block",
        "failed" | "failing" | "refused" => "fail",
        _ => "unknown",
    }
}

/// The icons, once a page.
pub(super) fn icons() -> Markup {
    // Drawn in a square of sixteen; each with a shape of its own.
    const ICONS: &str = concat!(
        r##"<svg class="sprite" aria-hidden="true" focusable="false"><defs>"##,
        r##"<symbol id="i-ok" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7"/><path class="cut" d="M4.5 8.3l2.4 2.4 4.6-5"/></symbol>"##,
        r##"<symbol id="i-go" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7"/><path class="cut" d="M6 5l5 3-5 3z"/></symbol>"##,
        r##"<symbol id="i-pause" viewBox="0 0 16 16"><rect x="1" y="1" width="14" height="14" rx="3"/><path class="cut" d="M6 5v6M10 5v6"/></symbol>"##,
        r##"<symbol id="i-warn" viewBox="0 0 16 16"><path d="M8 .8L15.6 14.5H.4z"/><path class="cut" d="M8 6v4M8 12v.3"/></symbol>"##,
        r##"<symbol id="i-block" viewBox="0 0 16 16"><path d="M5 1h6l4 4v6l-4 4H5l-4-4V5z"/><path class="cut" d="M4.5 8h7"/></symbol>"##,
        r##"<symbol id="i-fail" viewBox="0 0 16 16"><path d="M5 1h6l4 4v6l-4 4H5l-4-4V5z"/><path class="cut" d="M5.5 5.5l5 5M10.5 5.5l-5 5"/></symbol>"##,
        r##"<symbol id="i-unknown" viewBox="0 0 16 16"><circle class="dash" cx="8" cy="8" r="6.5"/><path class="line" d="M6 6.3c0-2.6 4-2.6 4 0 0 1.6-2 1.7-2 3.2M8 11.8v.2"/></symbol>"##,
        r##"</defs></svg>"##
    );
    PreEscaped(ICONS.to_owned())
}

/// A state: icon, word, colour.
pub(super) fn state(value: &Value) -> Markup {
    let word = value.as_str().unwrap_or("unknown");
    named(word, word)
}

/// A state by another name, as a server has it.
pub(super) fn named(state: &str, word: &str) -> Markup {
    let icon = icon(state);
    html! {
        span class=(format!("state s-{icon}")) data-state {
            (PreEscaped(format!("<svg class=\"icon\" aria-hidden=\"true\"><use href=\"#i-{icon}\"/></svg>")))
            span { (text::inert(&word.replace('_', " "), 30)) }
        }
    }
}

/// A state with since when and why.
pub(super) fn standing(entity: &Value) -> Markup {
    html! {
        div.standing {
            (state(&entity["state"]))
            @if entity["since"].is_string() { " " span.dim { "since " (time(&entity["since"])) } }
            @if let Some(why) = entity["why"].as_str() { p.why { (text::inert(why, 400)) } }
        }
    }
}

/// A moment; the script shows it in the viewer's zone.
pub(super) fn time(value: &Value) -> Markup {
    let moment = match value {
        Value::String(moment) => moment.parse::<jiff::Timestamp>().map(|t| text::moment(t.as_millisecond())).unwrap_or_default(),
        Value::Number(ms) => ms.as_i64().filter(|ms| *ms > 0).map(text::moment).unwrap_or_default(),
        _ => String::new(),
    };
    html! {
        @if moment.is_empty() { "–" } @else { time datetime=(moment) { (moment.replace('T', " ").replace('Z', " UTC")) } }
    }
}

/// A bar of 0 to 1; `limit` where it is what limits.
pub(super) fn bar(ratio: f64, limit: bool, label: &str) -> Markup {
    let width = (ratio.clamp(0.0, 1.0) * 100.0).round() as u32;
    let level = if limit { "bar limit" } else { "bar" };
    html! {
        svg class=(level) viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.rail width="100" height="8" rx="2" {}
            rect.fill width=(width) height="8" rx="2" {}
        }
    }
}

/// A gauge of 0 to 1 with marks: where it warns, where somebody is called, and what else matters.
pub(super) fn gauge(ratio: f64, marks: &[f64], label: &str) -> Markup {
    let at = |ratio: f64| (ratio.clamp(0.0, 1.0) * 600.0).round() as u32;
    let class = match marks.iter().filter(|mark| ratio >= **mark).count() {
        0 => "gauge",
        1 => "gauge warn",
        _ => "gauge page",
    };
    html! {
        svg class=(class) viewBox="0 0 600 22" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.rail y="4" width="600" height="14" rx="3" {}
            rect.fill y="4" width=(at(ratio)) height="14" rx="3" {}
            @for mark in marks { line.mark x1=(at(*mark)) x2=(at(*mark)) y1="0" y2="22" {} }
        }
    }
}

/// A line over time, from zero to its highest value; `unit` says a value in words.
pub(super) fn line(values: &[Option<f64>], what: &str, unit: impl Fn(f64) -> String) -> Markup {
    let highest = values.iter().flatten().fold(0.0_f64, |a, b| a.max(*b));
    let last = values.iter().rev().find_map(|v| *v);
    let scale = if highest > 0.0 { 34.0 / highest } else { 0.0 };
    let step = 300.0 / values.len().saturating_sub(1).max(1) as f64;
    let mut path = String::new();
    let mut pen = 'M';
    for (i, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                path.push_str(&format!("{pen}{:.1} {:.1}", i as f64 * step, 37.0 - value * scale));
                pen = 'L';
            }
            // A hole in what is known is a hole in the line.
            None => pen = 'M',
        }
    }
    let label = match last {
        Some(last) => format!("{what}: {} now, {} at most", unit(last), unit(highest)),
        None => format!("{what}: not known yet"),
    };
    html! {
        figure.spark {
            svg viewBox="0 0 300 40" preserveAspectRatio="none" role="img" aria-label=(label) {
                line.base x1="0" x2="300" y1="38" y2="38" {}
                path d=(path) {}
            }
            figcaption { (label) }
        }
    }
}

/// Name and value.
pub(super) fn fact(name: &str, value: Markup) -> Markup {
    html! { div.fact { dt { (name) } dd { (value) } } }
}

/// A command that does the same.
pub(super) fn command(line: &str) -> Markup {
    html! { code.command data-copy { (text::inert(line, 600)) } }
}

/// An argument of a shown command, quoted where a shell would not take it as it is.
pub(super) fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=+,".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    }
}

/// A form that does something: its fields, the reason that it asks for, and the command that does the same. Shown as what it is to whoever may not.
pub(super) struct Deed<'a> {
    /// Where it goes, below `/act/`.
    pub(super) to: &'a str,
    /// The button.
    pub(super) verb: &'a str,
    /// What cannot be undone looks so.
    pub(super) grave: bool,
    /// Who may.
    pub(super) role: crate::config::Role,
    /// Hidden fields.
    pub(super) fields: &'a [(&'a str, &'a str)],
    /// Fields to fill in.
    pub(super) more: Markup,
    /// The same on the command line.
    pub(super) command: String,
}

impl Deed<'_> {
    pub(super) fn show(self, caller: &Caller) -> Markup {
        html! {
            @if caller.role < self.role {
                p.dim { (self.verb) ": for the role " (self.role.as_str()) "." }
                (command(&self.command))
            } @else {
                form class="deed" method="post" action=(format!("/act/{}", self.to)) {
                    input type="hidden" name="form_token" value=(caller.form_token);
                    @for (name, value) in self.fields { input type="hidden" name=(name) value=(value); }
                    (self.more)
                    label { span { "Reason" } input type="text" name="reason" required maxlength="300" autocomplete="off" placeholder="kept in the audit"; }
                    button type="submit" class=(if self.grave { "grave" } else { "" }) { (self.verb) }
                    div.same { span.dim { "the same: " } (command(&self.command)) }
                }
            }
        }
    }
}

/// A table with sortable heads. `numbers`: columns that are numbers, from 0.
pub(super) fn table(caption: &str, heads: &[&str], numbers: &[usize], rows: Vec<Vec<Markup>>) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption) {
            table data-sort {
                caption { (caption) }
                thead { tr { @for (i, head) in heads.iter().enumerate() { th scope="col" class=(if numbers.contains(&i) { "n" } else { "" }) { (head) } } } }
                tbody {
                    @for row in rows { tr { @for (i, cell) in row.into_iter().enumerate() {
                        @if i == 0 { th scope="row" class=(if numbers.contains(&0) { "n" } else { "" }) { (cell) } } @else { td class=(if numbers.contains(&i) { "n" } else { "" }) { (cell) } }
                    } } }
                }
            }
        }
    }
}

/// Text of a cell.
pub(super) fn cell(value: &Value) -> Markup {
    html! { bdi { (text::cell(value)) } }
}

/// Text from outside.
pub(super) fn word(text: &str) -> Markup {
    html! { bdi { (text::inert(text, CELL)) } }
}

/// A code with the page that explains it.
pub(super) fn code(value: &Value) -> Markup {
    let code = value.as_str().unwrap_or_default();
    html! {
        @if crate::ops::codes::find(code).is_some() { a href=(format!("/explain?code={code}")) { code { (code) } } }
        @else { code { (text::inert(code, 80)) } }
    }
}

/// Nothing to show.
pub(super) fn none(text: &str) -> Markup {
    html! { p.none { (text) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_text_is_inert_in_every_part() {
        let evil = Value::String("<script>alert(1)</script>\u{202e}\"'><img src=x onerror=y>".repeat(40_000));
        let text = evil.as_str().unwrap_or_default();
        let entity = serde_json::json!({"state": text, "since": text, "why": text});
        let deed = Deed {
            to: "redrive",
            verb: "Redrive",
            grave: true,
            role: crate::config::Role::Viewer,
            // A hidden field is sent back as it was.
            fields: &[("connector", &text[..25])],
            more: html! {},
            command: format!("tillstream x {}", quoted(text)),
        };
        let caller = Caller { name: String::new(), role: crate::config::Role::Admin, form_token: "t".to_owned(), open: true };
        let parts = [state(&evil), standing(&entity), time(&evil), cell(&evil), word(text), code(&evil), command(text), deed.show(&caller)];
        for part in parts {
            let part = part.into_string();
            assert!(!part.contains("<script") && !part.contains("<img") && !part.contains('\u{202e}'), "{}", &part[..part.len().min(500)]);
            assert!(part.len() < 6_000, "{} bytes", part.len());
        }
        assert_eq!((quoted("a b'c"), quoted("p0@12"), quoted("")), ("'a b'\\''c'".to_owned(), "p0@12".to_owned(), "''".to_owned()));
    }

    #[test]
    fn a_line_has_holes_where_nothing_is_known() {
        let drawn = line(&[Some(1.0), None, Some(2.0)], "lag", text::span).into_string();
        assert!(drawn.contains("M0.0 20.0M300.0 3.0") && drawn.contains("2.0 s now"), "{drawn}");
        assert!(line(&[], "lag", text::span).into_string().contains("not known yet"));
    }
}
