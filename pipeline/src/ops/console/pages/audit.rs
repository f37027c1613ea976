//! Who decided what, and why.

use maud::html;

use super::super::super::admin::Admin;
use super::super::super::failure::Failure;
use super::super::{View, nothing, parts, text};

/// Decisions on the page.
const SHOWN: usize = 256;

pub(super) fn view(admin: &Admin) -> Result<View, Failure> {
    let document = admin.audit(SHOWN)?;
    let empty = Vec::new();
    let records = document["audit"].as_array().unwrap_or(&empty);
    let rows = records.iter().map(|a| {
        let long = |value: &serde_json::Value| text::inert(value.as_str().unwrap_or_default(), 400);
        vec![parts::time(&a["at_ms"]), parts::cell(&a["who"]), html! { (long(&a["what"])) }, html! { (long(&a["why"])) }]
    });
    let live = html! {
        @if records.is_empty() { (parts::none("Nothing has been decided yet.")) }
        @else { (parts::table("Decisions, newest first", &["When", "Who", "What", "Why"], &[], rows.collect())) }
    };
    let headline = format!(
        "{} at hand; older ones stay in the control journal until its retention drops them.",
        text::many(records.len() as u64, "decision is", "decisions are")
    );
    let still = nothing();
    let live = html! { (live) p.dim { (headline) } };
    Ok(View { headline, live, still, document })
}
