//! What a code means, and the pages of the program: alerts, runbooks, guides.

use maud::{Markup, html};
use serde_json::{Value, json};

use super::super::{Fields, View, markdown, nothing, parts, text};
use super::given;
use crate::ops::{codes, docs};

/// The kinds of page in the order in which somebody who is woken wants them.
const KINDS: [(&str, &str); 5] =
    [("alerts", "Alerts"), ("runbooks", "Runbooks"), ("guides", "Guides"), ("codes", "Families of codes"), ("", "About")];

pub(super) fn view(fields: &Fields) -> View {
    let page = given(fields, "page").and_then(|asked| docs::PAGES.iter().find(|page| page.path.strip_suffix(".md") == Some(asked)));
    let code = given(fields, "code").and_then(codes::find);
    match (page, code) {
        (Some(page), _) => {
            let document = json!({"page": page.path, "title": page.title(), "markdown": page.text});
            let live = html! { (back()) (shown(page)) @if page.path != "README.md" { p { (parts::command(&format!("tillstream explain {}", page.name()))) } } };
            View { document, headline: page.title().to_owned(), live, still: nothing() }
        }
        (None, Some(e)) => {
            let document = json!({"code": e.code, "class": e.class.as_str(), "meaning": e.meaning, "impact": e.impact, "fix": e.fix});
            let live = html! {
                (back())
                section.panel { h2 { code { (e.code) } } p.big { (e.meaning) } h3 { "What it does" } p { (e.impact) } h3 { "What helps" } p { (e.fix) }
                    p { (parts::command(&format!("tillstream explain {}", e.code))) } }
                @if let Some(page) = docs::family(e.code) { (shown(page)) }
            };
            View { document, headline: e.meaning.to_owned(), live, still: nothing() }
        }
        (None, None) => index(given(fields, "page").or(given(fields, "code"))),
    }
}

fn back() -> Markup {
    html! { p { a href="/explain" { "All pages and codes" } } }
}

fn shown(page: &docs::Page) -> Markup {
    html! { article.panel.prose { h2 { (page.title()) } (markdown::body(page)) } }
}

fn index(asked: Option<&str>) -> View {
    let rows = codes::ALL.iter().map(|e| vec![parts::code(&Value::from(e.code)), html! { (e.meaning) }]);
    let document = json!({
        "codes": codes::ALL.iter().map(|e| e.code).collect::<Vec<_>>(),
        "pages": docs::PAGES.iter().map(|page| json!({"page": page.path, "title": page.title()})).collect::<Vec<_>>(),
    });
    let of = |kind: &str| docs::PAGES.iter().filter(|page| page.kind() == kind).collect::<Vec<_>>();
    // The title says the name again where it begins with it.
    let told = |page: &docs::Page| page.title().split_once(": ").map_or(page.title(), |(_, what)| what).to_owned();
    let live = html! {
        @if let Some(asked) = asked { p.reason { "There is no page and no code " code { (text::inert(asked, 80)) } "." } }
        div.grid {
            @for (kind, title) in KINDS {
                section.panel { h2 { (title) }
                    ul.pages { @for page in of(kind) { li { a href=(markdown::address(page)) { (page.name().strip_prefix("Tillstream").unwrap_or(page.name())) } " " span.dim { (told(page)) } } } }
                }
            }
        }
        details id="codes" { summary { "All codes (" (codes::ALL.len()) ")" } (parts::table("All codes", &["Code", "Meaning"], &[], rows.collect())) }
    };
    View { document, headline: "All pages and codes.".to_owned(), live, still: nothing() }
}
