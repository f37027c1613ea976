//! The newest events: what of, where from, which columns; no value.

use maud::html;

use super::super::super::admin::Admin;
use super::super::super::admin::looks::Tail;
use super::super::super::failure::Failure;
use super::super::{Fields, View, parts, text};
use super::given;

/// Events on the page.
const SHOWN: usize = 40;

pub(super) async fn view(admin: &Admin, fields: &Fields) -> Result<View, Failure> {
    let table = given(fields, "table").map(str::to_owned);
    let document = admin.tail(&Tail { table: table.clone(), limit: Some(SHOWN) }).await?;
    let events = document["events"].as_array().cloned().unwrap_or_default();
    let rows = events.iter().map(|e| {
        let names = |list: &serde_json::Value| {
            let names: Vec<String> =
                list.as_array().into_iter().flatten().filter_map(|n| n.as_str()).take(8).map(|n| text::inert(n, 24)).collect();
            let more = list.as_array().map_or(0, Vec::len).saturating_sub(8);
            if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
        };
        vec![
            html! { code { (text::cell(&e["id"])) } },
            html! { span class=(format!("op op-{}", e["op"].as_str().unwrap_or_default())) { (parts::cell(&e["op"])) } },
            parts::cell(&e["table"]),
            parts::time(&e["committed_at"]),
            // As `tap --from` takes it.
            html! { code { "p" (text::cell(&e["partition"])) "@" (text::cell(&e["offset"])) } },
            html! { (names(&e["key"])) },
            html! { (names(&e["columns"])) },
        ]
    });
    let live = parts::table(
        "Newest events, newest first",
        &["Event", "Did", "Table", "Committed", "Stored", "Key", "Columns"],
        &[],
        rows.collect(),
    );
    let headline = format!("{} of the newest {} events.", text::count(&document["shown"]), text::count(&document["read"]));
    let told = headline.clone();
    let live = html! { p.dim { (told) " A sample: between two looks more may pass." } (live) };
    let flag = table.as_deref().map_or_else(String::new, |table| format!(" --table {}", parts::quoted(table)));
    let still = html! {
        form.panel.find method="get" action="/tail" {
            label { span { "Table" } input name="table" value=(table.unwrap_or_default()) placeholder="all" autocomplete="off"; }
            button type="submit" { "Show" }
            button type="button" data-pause hidden { "Pause" }
        }
        p { (parts::command(&format!("tillstream tap{flag}"))) }
    };
    Ok(View { document, headline, live, still })
}
