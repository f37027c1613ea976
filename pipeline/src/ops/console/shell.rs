//! What is around every page: head, ways to the others, who is here, what does not work without script.

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::super::admin::Admin;
use super::super::admin::access::Caller;
use super::super::failure::Failure;
use super::pages::Page;
use super::{Fields, View, parts, text};
use crate::control::now_ms;

/// A page that lives is loaded again this often where there is no script, in seconds.
const RELOAD: u32 = 10;

fn head(title: &str, pipeline: &str, reload: bool) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · " (pipeline) " · Tillstream" }
            link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
            link rel="stylesheet" href="/assets/console.css";
            script src="/assets/console.js" defer {}
            @if reload { noscript { meta http-equiv="refresh" content=(RELOAD); } }
        }
    }
}

fn around(admin: &Admin, caller: Option<&Caller>, title: &str, here: Option<Page>, reload: bool, content: &Markup) -> Markup {
    let pipeline = text::inert(&admin.observer.observed.pipeline, 60);
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, &pipeline, reload))
            body {
                a.skip href="#main" { "To the content" }
                (parts::icons())
                header.top {
                    a.brand href="/" { svg class="mark" viewBox="0 0 24 24" aria-hidden="true" { path d="M3 6h18M3 12h12M3 18h7" {} circle cx="19" cy="17" r="3" {} }
                        span { "Tillstream" } }
                    span.pipeline { (pipeline) }
                    @if let Some(caller) = caller {
                        span.who { (text::inert(&caller.name, 40)) span.role { (caller.role.as_str()) }
                            @if !caller.open { form method="post" action="/logout" { button.quiet type="submit" { "Leave" } } } }
                    }
                }
                @if caller.is_some() {
                    nav aria-label="Pages" { ul {
                        @for page in Page::ALL {
                            li { a href=(page.path()) aria-current=[(Some(*page) == here).then_some("page")] { (page.title()) } }
                        }
                    } }
                }
                main id="main" tabindex="-1" { (content) }
                div id="say" class="hear" aria-live="polite" {}
            }
        }
    }
}

/// A page.
pub(super) fn page(admin: &Admin, caller: &Caller, page: Page, fields: &Fields, view: &View) -> Markup {
    let mut parameters: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let twin = super::link(&page.twin(), &parameters);
    parameters.insert(0, ("page", page.path()));
    let live = super::link("/live", &parameters);
    let content = html! {
        div.title {
            h1 { (page.title()) }
            p.meta {
                @if page.lives() { span.age data-age { "as of " (parts::time(&Value::from(now_ms()))) } " · " }
                a href=(twin) { "JSON" }
            }
        }
        p.lead { (page.lead()) }
        @if page.lives() { p.stale hidden data-stale role="alert" { "What is shown here is old: nothing came from the server. Every state is unknown." } }
        @if page.asks_first() { (view.still) }
        div id="live" data-live=[page.lives().then_some(live)] { p hidden data-headline { (view.headline) } (view.live) }
        @if !page.asks_first() { (view.still) }
    };
    around(admin, Some(caller), page.title(), Some(page), page.lives(), &content)
}

/// What came of a request.
pub(super) fn message(admin: &Admin, caller: Option<&Caller>, title: &str, content: &Markup) -> Markup {
    let content = html! { div.title { h1 { (title) } } (content) p { a href="/" { "To the map" } } };
    around(admin, caller, title, None, false, &content)
}

/// Why something was not done.
pub(super) fn failure(failure: &Failure) -> Markup {
    html! {
        section.panel.failure role="alert" {
            p { (parts::code(&Value::from(failure.code.as_str()))) }
            p.big { (text::inert(&failure.what, 600)) }
            @if let Some(why) = &failure.why { p { (text::inert(why, 600)) } }
            @if let Some(fix) = &failure.fix { p { strong { "What helps: " } (text::inert(fix, 600)) } }
        }
    }
}

/// The way in.
pub(super) fn login(admin: &Admin, why: Option<&str>) -> Markup {
    let content = html! {
        div.title { h1 { "Who are you?" } }
        form.panel.login method="post" action="/login" {
            @if let Some(why) = why { p.failure role="alert" { (why) } }
            label { span { "Token" } input type="password" name="token" required autocomplete="current-password" autofocus; }
            button type="submit" { "Come in" }
            p.dim { "One of those below " code { "admin: tokens:" } " in the pipeline's file. It is asked for again after twelve hours." }
        }
    };
    around(admin, None, "Who are you?", None, false, &content)
}
