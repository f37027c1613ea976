//! The row finder: `why`, as a page.

use maud::html;
use serde_json::{Value, json};

use super::super::super::admin::Admin;
use super::super::super::admin::looks::Row;
use super::super::super::failure::Failure;
use super::super::{Fields, View, parts, shell, text};
use super::given;

pub(super) async fn view(admin: &Admin, fields: &Fields) -> Result<View, Failure> {
    let row = Row {
        table: given(fields, "table").unwrap_or_default().to_owned(),
        key: given(fields, "key").unwrap_or_default().to_owned(),
        since: given(fields, "since").unwrap_or("1d").to_owned(),
    };
    let asked = !row.table.is_empty() && !row.key.is_empty();
    let found = if asked { Some(admin.why(&row).await) } else { None };
    let form = html! {
        form.panel.find method="get" action="/rows" role="search" {
            label { span { "Table" } input name="table" value=(row.table) required placeholder="public.customer" autocomplete="off"; }
            label { span { "Key" } input name="key" value=(row.key) required placeholder="7, or id=7,day=2026-11-22" autocomplete="off"; }
            label { span { "Since" } input name="since" value=(row.since) placeholder="first, 1d, 0/16B3748" autocomplete="off"; }
            button type="submit" { "Find" }
        }
        @if asked { p { (parts::command(&format!("tillstream why {} {} --since {}", parts::quoted(&row.table), parts::quoted(&row.key), parts::quoted(&row.since)))) } }
    };
    let (document, headline, result) = match found {
        None => (json!({"events": []}), "Name a table and a key.".to_owned(), html! {}),
        Some(Err(failure)) => (failure.to_json(), "The row was not looked for.".to_owned(), shell::failure(&failure)),
        Some(Ok(document)) => {
            let events = document["events"].as_array().map_or(0, Vec::len);
            let result = html! {
                @if events == 0 { (parts::none("No event of this row is stored since then: it did not change, retention removed it, or the key is another one.")) }
                ol.life { @for event in document["events"].as_array().into_iter().flatten() { (told(event)) } }
            };
            let headline = format!("{} events of this row.", text::grouped(events as u64));
            (document, headline, result)
        }
    };
    Ok(View { document, headline, live: html! { (form) (result) }, still: html! {} })
}

fn told(event: &Value) -> maud::Markup {
    html! {
        li {
            p.when { @if event["committed_at"].is_string() { (parts::time(&event["committed_at"])) } @else { (parts::time(&event["stored_at_ms"])) } " " span class=(format!("op op-{}", event["op"].as_str().unwrap_or_default())) { (parts::cell(&event["op"])) } }
            p { code { (text::cell(&event["id"])) } }
            p.dim {
                "stored at " code { "p" (text::cell(&event["partition"])) "@" (text::cell(&event["offset"])) }
                @if let Some(ms) = event["stored_after_ms"].as_f64() { ", " (text::span((ms / 1e3).max(0.0))) " after the commit" } @else { ", read by a backfill" }
            }
            @for (name, lines) in event["connectors"].as_object().into_iter().flatten() {
                div.fate { strong { (parts::word(name)) } @for line in lines.as_array().into_iter().flatten() { span { (text::inert(line.as_str().unwrap_or_default(), 400)) } } }
            }
            @if event["connectors"].as_object().is_none_or(serde_json::Map::is_empty) { p.dim { "No connector takes it." } }
        }
    }
}
