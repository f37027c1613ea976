//! What a code means.

use maud::html;
use serde_json::{Value, json};

use super::super::{Fields, View, nothing, parts};
use super::given;
use crate::ops::{codes, docs};

pub(super) fn view(fields: &Fields) -> View {
    let asked = given(fields, "code").unwrap_or_default();
    match codes::find(asked) {
        Some(e) => {
            let document = json!({"code": e.code, "class": e.class.as_str(), "meaning": e.meaning, "impact": e.impact, "fix": e.fix});
            let page = docs::family(e.code);
            let live = html! {
                section.panel { h2 { code { (e.code) } } p.big { (e.meaning) } h3 { "What it does" } p { (e.impact) } h3 { "What helps" } p { (e.fix) }
                    p { (parts::command(&format!("tillstream explain {}", e.code))) } }
                @if let Some(page) = page { section.panel { h2 { "What to do: " (page.title()) } pre.page { (page.text) } } }
            };
            View { document, headline: e.meaning.to_owned(), live, still: nothing() }
        }
        None => {
            let rows = codes::ALL.iter().map(|e| vec![parts::code(&Value::from(e.code)), html! { (e.meaning) }]);
            let document = json!({"codes": codes::ALL.iter().map(|e| e.code).collect::<Vec<_>>()});
            let live = parts::table("All codes", &["Code", "Meaning"], &[], rows.collect());
            View { document, headline: "All codes.".to_owned(), live, still: nothing() }
        }
    }
}
