//! What the forms of the console do: the same as the API, with the same reasons and the same audit.

use futures_util::future::BoxFuture;
use maud::{Markup, html};
use serde_json::Value;

use super::super::admin::access::{Access, Caller};
use super::super::admin::letters::Asked;
use super::super::admin::{Admin, bad_request, decision, replays};
use super::super::apply::Request as Apply;
use super::super::desk::Decision;
use super::super::failure::Failure;
use super::pages::Page;
use super::{Fields, parts, text};
use crate::backfill::{Change, Request};
use crate::config::Role;
use crate::control::{BackfillOptions, BackfillSpec};
use crate::delivery::edit::Change as Edit;

type Run = for<'a> fn(&'a Admin, &'a Fields, &'a Decision) -> BoxFuture<'a, Result<Markup, Failure>>;

/// One form's deed.
pub(super) struct Deed {
    /// Below `/act/`.
    pub(super) path: &'static str,
    /// Who may.
    pub(super) role: Role,
    run: Run,
}

/// All of them.
pub(super) const DEEDS: &[Deed] = &[
    Deed { path: "redrive", role: Role::Operator, run: |admin, fields, decision| Box::pin(settle(admin, fields, decision, false)) },
    Deed { path: "discard", role: Role::Admin, run: |admin, fields, decision| Box::pin(settle(admin, fields, decision, true)) },
    Deed { path: "edit", role: Role::Admin, run: |admin, fields, decision| Box::pin(edit(admin, fields, decision)) },
    Deed { path: "reveal", role: Role::Admin, run: |admin, fields, decision| Box::pin(reveal(admin, fields, decision)) },
    Deed { path: "replay", role: Role::Admin, run: |admin, fields, decision| Box::pin(replay(admin, fields, decision)) },
    Deed { path: "end-replay", role: Role::Admin, run: |admin, fields, decision| Box::pin(end_replay(admin, fields, decision)) },
    Deed { path: "apply", role: Role::Admin, run: |admin, fields, decision| Box::pin(apply(admin, fields, decision)) },
    Deed { path: "pause-connector", role: Role::Operator, run: |admin, fields, decision| Box::pin(pause(admin, fields, decision)) },
    Deed {
        path: "end-pause",
        role: Role::Operator,
        run: |admin, fields, decision| Box::pin(resume(admin, fields, Role::Operator, decision)),
    },
    Deed {
        path: "resume-connector",
        role: Role::Admin,
        run: |admin, fields, decision| Box::pin(resume(admin, fields, Role::Admin, decision)),
    },
    Deed { path: "backfill-start", role: Role::Operator, run: |admin, fields, decision| Box::pin(start(admin, fields, decision)) },
    Deed { path: "backfill-change", role: Role::Operator, run: |admin, fields, decision| Box::pin(change(admin, fields, decision)) },
];

impl Deed {
    /// Does it.
    ///
    /// # Errors
    /// The form is not one of ours, gives no reason, and what keeps it from being done.
    pub(super) async fn run(&self, admin: &Admin, caller: &Caller, fields: &Fields) -> Result<Markup, Failure> {
        let carried = fields.get("form_token").map_or("", String::as_str);
        if !Access::is_own_form(caller, carried) {
            return Err(Failure::new(
                "admin.cross_site",
                "the form is not one of this console's, or older than the session: load the page again",
            ));
        }
        let reason = fields.get("reason").map_or("", String::as_str);
        let mut decision = decision(caller, "", reason)?;
        if caller.open {
            decision.by = "console".to_owned();
        }
        (self.run)(admin, fields, &decision).await
    }
}

fn field<'f>(fields: &'f Fields, name: &str) -> &'f str {
    fields.get(name).map_or("", |value| value.trim())
}

fn given(fields: &Fields, name: &str) -> Option<String> {
    Some(field(fields, name)).filter(|value| !value.is_empty()).map(str::to_owned)
}

fn is_yes(fields: &Fields, name: &str) -> bool {
    field(fields, name) == "yes"
}

fn number<T: std::str::FromStr>(fields: &Fields, name: &str) -> Result<Option<T>, Failure> {
    given(fields, name).map(|text| text.parse().map_err(|_| bad_request(format!("`{name}` is no number")))).transpose()
}

fn told(sentence: &str, page: Page) -> Markup {
    html! { section.panel { p.big { (text::inert(sentence, 400)) } p { a href=(page.path()) { (page.title()) } } } }
}

async fn settle(admin: &Admin, fields: &Fields, decision: &Decision, discard: bool) -> Result<Markup, Failure> {
    let limit = number(fields, "limit")?;
    let mut asked = Asked {
        connector: given(fields, "connector"),
        code: given(fields, "code"),
        ids: given(fields, "id").into_iter().collect(),
        limit,
        dry_run: true,
        ..Asked::default()
    };
    let meant = admin.settle(asked.clone(), discard, decision).await?["meant"].as_u64().unwrap_or(0);
    if discard && field(fields, "confirm") != meant.to_string() {
        return Err(bad_request(format!("{meant} dead letters are meant; type this number to discard them")));
    }
    asked.dry_run = false;
    let done = admin.settle(asked, discard, decision).await?;
    let sentence = match discard {
        true => text::many(
            done["discarded"].as_u64().unwrap_or(0),
            "dead letter is settled without being delivered.",
            "dead letters are settled without being delivered.",
        ),
        false => {
            let asked =
                text::many(done["requested"].as_u64().unwrap_or(0), "dead letter is asked for again", "dead letters are asked for again");
            format!("{asked}; the process that delivers the connector sends what is asked for.")
        }
    };
    Ok(told(&sentence, Page::Letters))
}

async fn edit(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let text = field(fields, "value");
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let changes = [Edit { path: field(fields, "path").to_owned(), value }];
    admin.edit_letter((field(fields, "connector"), field(fields, "id")), &changes, false, decision).await?;
    Ok(told("The row is changed; redrive it to have it delivered.", Page::Letters))
}

async fn reveal(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let letter = admin.reveal(field(fields, "connector"), field(fields, "id"), decision).await?;
    Ok(super::pages::revealed(&letter))
}

async fn replay(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let asked = replays::Asked {
        connector: field(fields, "connector").to_owned(),
        from: field(fields, "from").to_owned(),
        to: given(fields, "to"),
        key: given(fields, "key"),
        table: given(fields, "table"),
        accept_duplicates: is_yes(fields, "accept_duplicates"),
        accept_older: is_yes(fields, "accept_older"),
        accept_loss: is_yes(fields, "accept_loss"),
        dry_run: field(fields, "what") != "do",
        ..replays::Asked::default()
    };
    let document = admin.replay(&asked, decision).await?;
    let rows = document["partitions"].as_array().into_iter().flatten().map(|p| {
        vec![
            html! { (text::count(&p["partition"])) },
            html! { (text::count(&p["from"])) },
            html! { @if p["to"].is_u64() { (text::count(&p["to"])) } @else { "on" } },
            html! { (text::count(&p["stands"])) },
            html! { (text::count(&p["events"])) },
            html! { (text::count(&p["changed_later"])) },
        ]
    });
    Ok(html! {
        section.panel {
            p.big { @if asked.dry_run { "Nothing was done. " } @else { "The replay is asked for. " } (text::count(&document["events"])) " events would come again, or do." }
            p { "The target: " (text::inert(document["effect"].as_str().unwrap_or_default(), 400)) }
            @for warning in document["warnings"].as_array().into_iter().flatten() { p.why { (text::inert(warning.as_str().unwrap_or_default(), 400)) } }
            @if document["refused"].is_object() { p.why { "Would be refused (" (parts::code(&document["refused"]["code"])) "): " (text::inert(document["refused"]["what"].as_str().unwrap_or_default(), 400)) } }
            (parts::table("By partition", &["Partition", "From", "To", "Stands at", "Events", "Changed later"], &[0, 1, 2, 3, 4, 5], rows.collect()))
            p { a href=(super::link("/connectors", &[("name", &asked.connector)])) { "To the connector" } }
        }
    })
}

async fn end_replay(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    admin.end_replay(field(fields, "connector"), decision).await?;
    Ok(told("The replay ends; the connector goes on where it stood.", Page::Connectors))
}

async fn apply(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let applier = admin.applier.clone().ok_or_else(|| Failure::new("apply.not_here", "this process does not deliver"))?;
    let seconds: u64 = number(fields, "probation")?.unwrap_or(30).min(60);
    let request = Apply {
        connectors: given(fields, "connector").into_iter().collect(),
        probation_ms: seconds * 1000,
        by: decision.by.clone(),
        reason: decision.reason.clone(),
    };
    let applied = applier.apply(request).await?;
    if applied.is_empty() {
        return Ok(told("The process delivers by this file already; nothing was changed.", Page::Connectors));
    }
    Ok(html! { @for a in applied { section.panel {
        p.big { (parts::word(&a.connector)) ": " (a.result.replace('_', " ")) }
        @if let Some(why) = &a.why { p.why { (text::inert(why, 400)) } }
        p { (a.settled) " events settled on trial, " (a.refused) " refused, " (a.redriven) " delivered again by the file before." }
    } } })
}

async fn pause(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let done = admin.pause_connector(field(fields, "connector"), decision).await?;
    let what = match done["result"].as_str() {
        Some("paused") => "The connector is paused: calls in the air finish, then nothing is sent",
        _ => "The connector was paused already; nothing was changed",
    };
    let kept = done["kept"].as_str().unwrap_or_default();
    Ok(told(
        &format!("{what}. The journal keeps what waits for it {kept}; what is not delivered by then is lost to its target."),
        Page::Connectors,
    ))
}

async fn resume(admin: &Admin, fields: &Fields, role: Role, decision: &Decision) -> Result<Markup, Failure> {
    let done = admin.resume_connector(field(fields, "connector"), role, decision).await?;
    let what = match done["result"].as_str() {
        Some("resumed") => "The connector goes on; what has waited is sent, in order.",
        Some("accepted") => "The connector goes on with its tables as they are now.",
        _ => "The connector is not paused; nothing was changed.",
    };
    Ok(told(what, Page::Connectors))
}

async fn start(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let tables = field(fields, "tables").split([',', ' ']).map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
    let dry_run = field(fields, "what") != "do";
    let request = Request {
        id: given(fields, "id"),
        spec: BackfillSpec { tables, filter: given(fields, "filter"), connector: given(fields, "connector"), ..BackfillSpec::default() },
        options: BackfillOptions { max_rate: number(fields, "max_rate")?, ..BackfillOptions::default() },
        dry_run,
        by: decision.by.clone(),
        ..Request::default()
    };
    let started = serde_json::json!(admin.start_backfill(request, decision.clone()).await?);
    if started["result"] != "plan" {
        let id = text::inert(started["backfill"]["id"].as_str().unwrap_or_default(), 80);
        return Ok(told(&format!("Backfill {id}: {}.", started["result"].as_str().unwrap_or_default().replace('_', " ")), Page::Backfills));
    }
    let rows = started["tables"].as_array().into_iter().flatten().map(|t| {
        vec![
            parts::cell(&t["table"]),
            html! { (text::count(&t["rows"])) },
            html! { (text::size(&t["bytes"])) },
            html! { (text::seconds(&t["minutes"].as_f64().map(|m| m * 60.0).into())) },
            html! { @if t["index"].is_string() { (parts::cell(&t["index"])) } @else if t["scans"] == true { "the whole table, along its key" } @else { "its key" } },
        ]
    });
    Ok(html! { section.panel { p.big { "Nothing was done." }
    (parts::table("What it would read, by the server's estimates", &["Table", "Rows", "Bytes", "Time", "By"], &[1, 2, 3], rows.collect()))
    p { a href="/backfills" { "Backfills" } } } })
}

async fn change(admin: &Admin, fields: &Fields, decision: &Decision) -> Result<Markup, Failure> {
    let what = match field(fields, "change") {
        "pause" => Change::Pause,
        "resume" => Change::Resume,
        "cancel" => Change::Cancel,
        _ => return Err(bad_request("a backfill is paused, resumed or cancelled")),
    };
    let id = field(fields, "id");
    let view = admin.change_backfill(id, what, decision).await?;
    Ok(told(&format!("Backfill {} is {}.", text::inert(id, 80), view["state"].as_str().unwrap_or_default()), Page::Backfills))
}
