//! Dead letters: groups, then letters one by one, what the files would make of them now, and what is decided.

use maud::{Markup, html};
use serde_json::Value;

use super::super::super::admin::Admin;
use super::super::super::admin::access::Caller;
use super::super::super::admin::letters::Choice;
use super::super::super::failure::Failure;
use super::super::parts::Deed;
use super::super::{Fields, View, link, parts, shell, text};
use super::given;
use crate::config::Role;

/// Letters on a page.
const SHOWN: usize = 25;

pub(super) async fn view(admin: &Admin, caller: &Caller, fields: &Fields) -> Result<View, Failure> {
    let owned = |name: &str| given(fields, name).map(str::to_owned);
    let choice = Choice { connector: owned("connector"), code: owned("code"), id: owned("id"), limit: Some(SHOWN) };
    let wanted = choice.wanted();
    let narrowed = choice.connector.is_some() || choice.code.is_some() || choice.id.is_some();
    let mut document = admin.letter_groups(&wanted)?;
    let open = document["open"].as_u64().unwrap_or(0);
    if narrowed {
        document["dead_letters"] = admin.letters(&wanted, SHOWN)?["dead_letters"].take();
    }
    let diagnosis = match given(fields, "diagnose") {
        Some(_) => Some(admin.diagnose(&wanted).await),
        None => None,
    };
    if let Some(Ok(found)) = &diagnosis {
        document["diagnoses"] = found["diagnoses"].clone();
    }
    let live = html! {
        @if narrowed { p { a href="/dead-letters" { "All dead letters" } } }
        (groups(&document))
        @if let Some(found) = &diagnosis {
            @match found {
                Err(failure) => (shell::failure(failure)),
                Ok(found) => (diagnoses(found)),
            }
        }
        @for letter in document["dead_letters"].as_array().into_iter().flatten() { (one(letter)) }
        @if narrowed && open as usize > SHOWN { p.dim { (SHOWN) " of " (text::grouped(open)) " are shown, oldest first." } }
    };
    let still = if narrowed && open > 0 {
        deeds(caller, &choice, open)
    } else {
        html! {}
    };
    let headline = match open {
        0 => "No dead letter is open.".to_owned(),
        n => text::many(n, "dead letter is open.", "dead letters are open."),
    };
    Ok(View { document, headline, live, still })
}

fn groups(document: &Value) -> Markup {
    let empty = Vec::new();
    let groups = document["groups"].as_array().unwrap_or(&empty);
    let rows = groups.iter().map(|g| {
        let (connector, code) = (g["connector"].as_str().unwrap_or_default(), g["code"].as_str().unwrap_or_default());
        vec![
            html! { a href=(link("/dead-letters", &[("connector", connector), ("code", code)])) { (parts::word(connector)) } },
            parts::code(&g["code"]),
            parts::cell(&g["field"]),
            html! { (text::count(&g["count"])) },
            html! { (text::count(&g["redrive_requested"])) },
            parts::time(&g["first_at_ms"]),
            parts::time(&g["last_at_ms"]),
            parts::cell(&g["message"]),
        ]
    });
    html! {
        @if groups.is_empty() { (parts::none("No dead letter is open.")) } @else {
            (parts::table("Open dead letters by connector, code and field",
                &["Connector", "Code", "Field", "Open", "Asked again", "Oldest", "Newest", "What the target said of one"], &[3, 4], rows.collect()))
        }
    }
}

fn diagnoses(found: &Value) -> Markup {
    let rows = found["diagnoses"].as_array().into_iter().flatten().map(|d| {
        vec![
            parts::cell(&d["connector"]),
            parts::code(&d["code"]),
            html! { (text::count(&d["sent"])) },
            html! { (text::count(&d["filtered"])) },
            html! { (text::count(&d["fails"])) },
            html! { (text::count(&d["not_taken"])) },
            parts::cell(&d["example"]),
        ]
    });
    let heads = ["Connector", "Code", "Can be sent", "Filtered now", "Still fail", "Not taken any more", "Why one fails"];
    html! { section.panel { h2 { "What the files make of them now" } (parts::table("Diagnosis", &heads, &[2, 3, 4, 5], rows.collect()))
    p.dim { "Nothing was sent: what the target would say is not known before it is asked." } } }
}

fn one(letter: &Value) -> Markup {
    let event = &letter["event"];
    let id = letter["event_id"].as_str().unwrap_or_default();
    let connector = letter["connector"].as_str().unwrap_or_default();
    html! {
        article.panel.letter {
            h2 { a href=(link("/dead-letters", &[("connector", connector), ("id", id)])) { code { (text::inert(id, 80)) } } }
            p { (parts::code(&letter["code"])) " · " (parts::word(connector)) " · " (text::many(letter["attempts"].as_u64().unwrap_or(0), "attempt", "attempts")) ", the last " (parts::time(&letter["last_at_ms"]))
                @if letter["redrive_requested"] == true { " · " strong { "asked for again" } } }
            p.why { (text::inert(letter["message"].as_str().unwrap_or_default(), 600)) }
            p.dim { (parts::cell(&event["op"])) " of " (parts::cell(&event["schema"])) "." (parts::cell(&event["table"])) ", partition " (text::count(&letter["partition"])) " offset " (text::count(&letter["offset"])) }
            details id=(format!("event-{}", text::inert(id, 80))) { summary { "The event, values masked" } pre { code { (text::inert_lines(&format!("{event:#}"), text::LONG)) } } }
        }
    }
}

fn deeds(caller: &Caller, choice: &Choice, open: u64) -> Markup {
    let mut fields: Vec<(&str, &str)> = Vec::new();
    let mut flags = String::new();
    for (name, value) in [("connector", &choice.connector), ("code", &choice.code), ("id", &choice.id)] {
        if let Some(value) = value {
            fields.push((name, value));
            flags.push_str(&format!(" --{name} {}", parts::quoted(value)));
        }
    }
    let mut diagnose = fields.clone();
    diagnose.push(("diagnose", "yes"));
    let number = text::grouped(open);
    html! {
        section.panel { h2 { "Actions on " (text::many(open, "dead letter", "dead letters")) }
            p { a.button href=(link("/dead-letters", &diagnose)) { "Diagnose" } " " (parts::command(&format!("tillstream dead-letters diagnose{flags}"))) }
            details id="redrive" { summary { "Deliver them again" }
                p.dim { "Under the ids, keys and versions that they had." }
                (Deed { to: "redrive", verb: "Redrive", grave: false, role: Role::Operator, fields: &fields, more: html! {
                        label { span { "At most" } input type="number" name="limit" min="1" max="100000" placeholder=(number); } },
                    command: format!("tillstream dead-letters redrive{flags} --reason …") }.show(caller))
            }
            details id="discard" { summary { "Settle them without delivering" }
                p.dim { "This cannot be taken back. Type the number of letters to go on." }
                (Deed { to: "discard", verb: "Discard", grave: true, role: Role::Admin, fields: &fields, more: html! {
                        label { span { "Type " (open) } input name="confirm" required inputmode="numeric" autocomplete="off"; } },
                    command: format!("tillstream dead-letters discard{flags} --reason …") }.show(caller))
            }
            @if let (Some(connector), Some(id)) = (&choice.connector, &choice.id) {
                details id="edit" { summary { "Put another value into its row" }
                    (Deed { to: "edit", verb: "Change", grave: true, role: Role::Admin, fields: &[("connector", connector), ("id", id)], more: html! {
                            label { span { "Column" } input name="path" required placeholder="after.tier" autocomplete="off"; }
                            label { span { "Value" } input name="value" placeholder="JSON, or a text" autocomplete="off"; } },
                        command: format!("tillstream dead-letters edit --connector {} --id {} --set after.COLUMN=VALUE --reason …", parts::quoted(connector), parts::quoted(id)) }.show(caller))
                }
                details id="reveal" { summary { "Look at its values" }
                    p.dim { "That you looked, and why, is written down." }
                    (Deed { to: "reveal", verb: "Show values", grave: true, role: Role::Admin, fields: &[("connector", connector), ("id", id)], more: html! {},
                        command: format!("tillstream dead-letters show --connector {} --id {} --unmask", parts::quoted(connector), parts::quoted(id)) }.show(caller))
                }
            }
        }
    }
}

/// One letter with its values, for whoever was allowed to look.
pub(in super::super) fn revealed(letter: &Value) -> Markup {
    html! { (one(letter)) section.panel { h2 { "Values" } pre { code { (text::inert_lines(&format!("{:#}", letter["event"]), 20_000)) } } } }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hostile_row_is_inert() {
        let evil = format!("<script>alert(1)</script>\u{202e}{}", "y".repeat(1 << 20));
        let letter = json!({
            "connector": evil, "event_id": evil, "code": evil, "message": evil, "attempts": 1, "partition": 0, "offset": 1, "last_at_ms": 1,
            "event": {"op": evil, "schema": evil, "table": evil, "after": {evil.clone(): evil}},
        });
        let group = json!({"groups": [letter.clone()]});
        for page in [one(&letter), revealed(&letter), groups(&group), diagnoses(&json!({"diagnoses": [letter]}))] {
            let page = page.into_string();
            assert!(!page.contains("<script") && !page.contains('\u{202e}') && page.contains("&lt;script&gt;"));
            assert!(page.len() < 120_000, "{} bytes", page.len());
        }
    }
}
