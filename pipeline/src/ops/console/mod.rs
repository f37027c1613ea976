//! The console: what the API tells, as pages for people. Each page has a JSON twin made of the same document, works without script, and shows to each
//! action the command that does the same.
//!
//! A page has a part that lives (numbers; replaced by the script as the server sends it, or by the browser's reload) and a part that stays (forms), so that
//! nobody's typing is disturbed. Nothing here decides anything: what is shown comes from `status`, the desk and the journal.

mod act;
mod ages;
mod assets;
mod chart;
mod history;
mod live;
mod markdown;
mod marks;
mod pages;
mod parts;
mod shell;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Form, Json, Router};
use maud::{Markup, html};
use serde_json::Value;

use super::admin::access::{COOKIE, Caller};
use super::admin::{Admin, answer, guard, status_of};
use super::failure::Failure;
use super::status;
use crate::config::Role;
use pages::Page;

/// What the console keeps beside what everybody has.
#[derive(Debug, Default)]
pub(crate) struct Console {
    history: history::History,
    ages: ages::Ages,
    files: marks::Files,
    live: live::Streams,
}

/// Parameters of a page's address or fields of a form.
pub(crate) type Fields = BTreeMap<String, String>;

/// Takes a point of each line over time, until it is dropped.
pub(crate) async fn remember(admin: Arc<Admin>) {
    let mut tick = tokio::time::interval(Duration::from_secs(history::STEP));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        admin.console.history.take(&status::document(&admin.observer));
        let now = crate::control::now_ms();
        for stats in admin.observer.observed.delivery.iter().flat_map(|delivery| delivery.connectors()) {
            admin.console.ages.take(stats.name(), now, &stats.end_to_end.read());
        }
        if let Some(applier) = &admin.applier {
            admin.console.files.look(&applier.running());
        }
    }
}

/// The least role for a route of the console; `None` of no route, `Some(None)` for anybody's.
pub(crate) fn role(method: &Method, path: &str) -> Option<Option<Role>> {
    if *method == Method::POST {
        return match path {
            "/login" => Some(None),
            "/logout" => Some(Some(Role::Viewer)),
            _ => act::DEEDS.iter().find(|deed| path.strip_prefix("/act/") == Some(deed.path)).map(|deed| Some(deed.role)),
        };
    }
    let page = Page::ALL.iter().any(|page| page.path() == path || page.twin() == path);
    match path {
        "/login" => Some(None),
        "/live" => Some(Some(Role::Viewer)),
        _ if page => Some(Some(Role::Viewer)),
        _ => assets::ALL.iter().any(|asset| asset.path == path).then_some(None),
    }
}

/// The routes.
pub(crate) fn routes() -> Router<Arc<Admin>> {
    let mut router = Router::new().route("/login", get(ask).post(login)).route("/logout", post(logout)).route("/live", get(live::stream));
    type Asked = Result<Query<Fields>, QueryRejection>;
    for page in Page::ALL {
        let page = *page;
        let html = move |admin: State<Arc<Admin>>, caller: Extension<Caller>, query: Asked| shown(page, admin, caller, query);
        let json = move |admin: State<Arc<Admin>>, caller: Extension<Caller>, query: Asked| twin(page, admin, caller, query);
        router = router.route(page.path(), get(html)).route(&page.twin(), get(json));
    }
    for asset in assets::ALL {
        router = router.route(asset.path, get(async move |headers: HeaderMap| asset.serve(&headers)));
    }
    for deed in act::DEEDS {
        let act = move |admin: State<Arc<Admin>>, caller: Extension<Caller>, form: Result<Form<Fields>, FormRejection>| {
            done(deed, admin, caller, form)
        };
        router = router.route(&format!("/act/{}", deed.path), post(act));
    }
    router
}

/// What a page shows.
struct View {
    /// What its twin says.
    document: Value,
    /// One sentence: how it stands. Told to whoever hears the page rather than sees it.
    headline: String,
    /// What lives.
    live: Markup,
    /// What stays.
    still: Markup,
}

fn page_html(status: StatusCode, page: Markup) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))], page.into_string()).into_response()
}

fn refused(admin: &Admin, caller: Option<&Caller>, failure: &Failure) -> Response {
    page_html(status_of(failure), shell::message(admin, caller, "Not done", &shell::failure(failure)))
}

async fn shown(
    page: Page,
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Fields>, QueryRejection>,
) -> Response {
    let fields = query.map(|Query(fields)| fields).unwrap_or_default();
    match page.view(&admin, &caller, &fields).await {
        Ok(view) => page_html(StatusCode::OK, shell::page(&admin, &caller, page, &fields, &view)),
        Err(failure) => refused(&admin, Some(&caller), &failure),
    }
}

async fn twin(
    page: Page,
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Fields>, QueryRejection>,
) -> Response {
    let fields = query.map(|Query(fields)| fields).unwrap_or_default();
    match page.view(&admin, &caller, &fields).await {
        Ok(view) => Json(view.document).into_response(),
        Err(failure) => answer(&failure),
    }
}

async fn done(
    deed: &'static act::Deed,
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    form: Result<Form<Fields>, FormRejection>,
) -> Response {
    let Ok(Form(fields)) = form else { return StatusCode::BAD_REQUEST.into_response() };
    match deed.run(&admin, &caller, &fields).await {
        Ok(done) => page_html(StatusCode::OK, shell::message(&admin, Some(&caller), "Done", &done)),
        Err(failure) => refused(&admin, Some(&caller), &failure),
    }
}

/// The way in.
async fn ask(State(admin): State<Arc<Admin>>) -> Response {
    if admin.access.is_open() {
        return Redirect::to("/").into_response();
    }
    page_html(StatusCode::OK, shell::login(&admin, None))
}

async fn login(State(admin): State<Arc<Admin>>, request: axum::extract::Request) -> Response {
    let peer = guard::peer(&request);
    let form: Result<Form<Fields>, _> = <Form<Fields> as axum::extract::FromRequest<()>>::from_request(request, &()).await;
    let token = form.ok().and_then(|Form(mut fields)| fields.remove("token")).unwrap_or_default();
    if let Err(response) = guard::may_try(&admin, &peer) {
        return *response;
    }
    match admin.access.open(token.trim()) {
        Some(cookie) => {
            let secure = if admin.secure { "; Secure" } else { "" };
            let cookie = format!("{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200{secure}");
            (StatusCode::SEE_OTHER, [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)]).into_response()
        }
        None => {
            guard::failed(&admin, &peer);
            page_html(StatusCode::UNAUTHORIZED, shell::login(&admin, Some("Nobody has this token.")))
        }
    }
}

async fn logout(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    if let Some(cookie) = guard::cookie(&headers) {
        admin.access.close(cookie);
    }
    let gone = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/login".to_owned()), (header::SET_COOKIE, gone)]).into_response()
}

/// How old what was measured may be before it says nothing any more.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// The status, where what is too old to be believed says `unknown`.
fn trusted(admin: &Admin) -> Value {
    let mut document = status::document(&admin.observer);
    let age = admin.observer.age();
    let follows = admin.observer.observed.control.get().is_none_or(|control| control.follows());
    distrust(&mut document, age, follows, crate::control::now_ms());
    document
}

/// See [`trusted`]. `age` is that of the newest measurement.
fn distrust(document: &mut Value, age: Duration, follows: bool, now_ms: i64) {
    let unknown = |entity: &mut Value, why: String| {
        if entity.is_object() {
            entity["state"] = "unknown".into();
            entity["why"] = why.into();
        }
    };
    if age > STALE_AFTER {
        let why = || format!("nothing was measured for {} s", age.as_secs());
        unknown(&mut document["source"], why());
        unknown(&mut document["journal"], why());
        document["connectors"].as_array_mut().into_iter().flatten().for_each(|connector| unknown(connector, why()));
        document["ready"] = false.into();
        if let Some(bottleneck) = document.get_mut("bottleneck") {
            *bottleneck = Value::Null;
        }
    }
    if !follows {
        let why = "the control journal is not followed any more: checkpoints and dead letters are as they were";
        document["connectors"].as_array_mut().into_iter().flatten().for_each(|connector| unknown(connector, why.to_owned()));
    }
    // A process that does not capture has no source, and gets none by being asked for its slot.
    let Some(slot) = document["source"].get_mut("slot") else { return };
    let seen = slot["at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok()).map(|at| at.as_millisecond());
    if let Some(seen) = seen
        && now_ms - seen > i64::try_from(STALE_AFTER.as_millis()).unwrap_or(i64::MAX)
    {
        // What was kept then is history; how long it lasts nobody knows.
        slot["pressure"] = "unknown".into();
        slot["seconds_to_ceiling"] = Value::Null;
        slot["stale"] = true.into();
        let why = format!("the server did not show its slot for {} s", (now_ms - seen) / 1000);
        if document["source"]["state"] == "healthy" || document["source"]["state"] == "catching_up" {
            unknown(&mut document["source"], why);
        }
    }
}

/// A link that keeps to one page's parameters.
fn link(path: &str, parameters: &[(&str, &str)]) -> String {
    let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().take(2_000).map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Nothing beside what lives.
fn nothing() -> Markup {
    html! {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_not_measured_lately_is_unknown() {
        let document = |at: &str| {
            json!({
                "ready": true, "source": {"state": "healthy", "why": "fine", "slot": {"at": at, "pressure": "calm", "seconds_to_ceiling": 7}},
                "journal": {"state": "healthy"}, "connectors": [{"state": "healthy"}], "bottleneck": {"sentence": "x"},
            })
        };
        let now = "2026-11-22T10:00:00Z".parse::<jiff::Timestamp>().expect("a moment").as_millisecond();
        let after = |at: &str, age: u64, follows: bool| {
            let mut document = document(at);
            distrust(&mut document, Duration::from_secs(age), follows, now);
            document
        };
        let fresh = after("2026-11-22T09:59:55Z", 1, true);
        assert_eq!(fresh, document("2026-11-22T09:59:55Z"));
        let stale = after("2026-11-22T09:59:55Z", 31, true);
        for entity in [&stale["source"], &stale["journal"], &stale["connectors"][0]] {
            assert_eq!((&entity["state"], &entity["why"]), (&json!("unknown"), &json!("nothing was measured for 31 s")));
        }
        assert!(stale["ready"] == false && stale["bottleneck"].is_null());
        assert_eq!(after("2026-11-22T09:59:55Z", 1, false)["connectors"][0]["state"], "unknown");
        let blind = after("2026-11-22T09:59:00Z", 1, true);
        assert_eq!((&blind["source"]["state"], &blind["source"]["slot"]["seconds_to_ceiling"]), (&json!("unknown"), &Value::Null));
        assert_eq!(blind["connectors"][0]["state"], "healthy");
        let mut elsewhere = json!({"source": null, "connectors": []});
        distrust(&mut elsewhere, Duration::from_secs(1), true, now);
        assert!(elsewhere["source"].is_null());
    }

    #[test]
    fn every_route_has_a_role() {
        for page in Page::ALL {
            assert_eq!(role(&Method::GET, page.path()), Some(Some(Role::Viewer)));
            assert_eq!(role(&Method::GET, &page.twin()), Some(Some(Role::Viewer)));
            assert_eq!(role(&Method::POST, page.path()), None);
        }
        for deed in act::DEEDS {
            assert!(role(&Method::POST, &format!("/act/{}", deed.path)).flatten().is_some_and(|role| role > Role::Viewer));
        }
        assert_eq!((role(&Method::GET, "/act/redrive"), role(&Method::POST, "/act/nothing")), (None, None));
        assert_eq!(link("/rows", &[("key", "a b&c=ß")]), "/rows?key=a%20b%26c%3D%C3%9F");
    }

    #[test]
    fn the_first_load_is_small() {
        let assets: usize = assets::ALL.iter().map(|asset| asset.body.len()).sum();
        let script = assets::ALL.iter().find(|asset| asset.path.ends_with(".js")).map_or(0, |asset| asset.body.len());
        println!("assets {assets} bytes, of which the script {script}");
        assert!(assets < 60_000 && script < 15_000);
    }
}
