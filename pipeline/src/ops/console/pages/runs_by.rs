//! What a connector runs by: what is different about its file, and what a repeat does under it.

use maud::{Markup, html};

use super::super::text;

/// Lines that went and came.
pub(super) fn difference(lines: &[String]) -> Markup {
    html! {
        pre { @for line in lines.iter().take(1_000) {
            @let class = if line.starts_with('+') { "came" } else { "went" };
            span class=(class) { (text::inert(line, 400)) } "\n"
        } }
    }
}

/// What a repeat does at the target.
pub(super) fn repeats(idempotency: &str) -> &'static str {
    match idempotency {
        "transactional" => "cannot come: rows and place are one transaction",
        "key" => "is known by its key",
        "version" => "is older than what is there",
        _ => "has a second effect",
    }
}
