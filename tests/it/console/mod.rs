//! The admin API and the console: who is let in, what is written down, what is shown, and that nothing hostile acts in it.

mod browser;
mod fuzz;
mod shop;

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use tillstream_schemas::Op;

use crate::delivery::pos::Change;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, wait_for};
use shop::{CRM, Shop, evil, form, row};

/// Every page that is listed, and those with parameters.
pub(super) const PAGES: [&str; 19] = [
    "/",
    "/freshness",
    "/freshness?window=week",
    "/source",
    "/journal",
    "/connectors",
    "/connectors?name=crm",
    "/rows",
    "/rows?table=public.a&key=1&since=first",
    "/dead-letters",
    "/dead-letters?connector=crm",
    "/dead-letters?connector=crm&diagnose=yes",
    "/tail",
    "/backfills",
    "/incidents",
    "/audit",
    "/explain",
    "/explain?code=capture.slot_lost",
    "/explain?page=runbooks/restore",
];

/// The twin of a page.
fn twin(page: &str) -> String {
    match page.split_once('?') {
        Some((path, query)) => format!("{path}.json?{query}"),
        None if page == "/" => "/index.json".to_owned(),
        None => format!("{page}.json"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_does_what_he_may_not_and_everything_done_is_written_down() {
    let mut shop = Shop::with_people("api").await;
    shop.capture.commit(0, &[row(1, "<a>"), row(2, "<b>"), row(3, "<c>"), row(4, "good")]).await;
    let letters = shop.letters(3, "vera").await;
    let ids: Vec<&str> =
        letters["dead_letters"].as_array().expect("a list").iter().map(|l| l["event_id"].as_str().expect("an id")).collect();

    // What the document says is what is asked of everybody.
    let document = shop.json("/api/openapi.json", "vera").await;
    let paths = document["paths"].as_object().expect("paths");
    let (mut refused, mut changing) = (0, BTreeSet::new());
    for (path, operations) in paths {
        let real = path.replace("{id}", "x").replace("{name}", "crm").replace("{code}", "capture.slot_lost");
        for method in operations.as_object().expect("operations").keys() {
            let of = if method == "get" { Method::GET } else { Method::POST };
            let send = async |who: &str, headers: &[(&str, &str)]| {
                let mut request = shop.request(of.clone(), &real, who);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let request = if of == Method::POST { request.json(&json!({"reason": "x"})) } else { request };
                request.send().await.expect("answers").status().as_u16()
            };
            let open = operations[method]["security"].is_array();
            if !open {
                assert_eq!(send("", &[]).await, 401, "{method} {path} without a token");
                assert_eq!(send("", &[("cookie", "tillstream=guessed")]).await, 401, "{method} {path} with a guessed cookie");
                refused += 2;
            }
            if of == Method::POST {
                changing.insert(path.clone());
                assert_eq!(send("vera", &[]).await, 403, "{path} by a viewer");
                for cross in [
                    ("origin", "https://evil.example"),
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-site", "same-site"),
                    ("origin", "null"),
                ] {
                    assert_eq!(send("dana", &[cross]).await, 403, "{path} from another site: {cross:?}");
                    refused += 1;
                }
                refused += 1;
            }
        }
    }
    assert_eq!(shop.post("/api/dead-letters/discard", "otto", json!({"connector": "crm", "reason": "x"})).await.0, 403);
    assert_eq!(shop.audit("vera").await, Vec::<Value>::new(), "nothing was done by those");
    println!("{refused} requests were refused: without a token, with too small a role, from another site");

    // Each operation that changes something, with the audit that it leaves; a new one has to come here.
    let apply = || std::fs::write(shop.dir.join("crm.yaml"), CRM.replace("max: 50ms", "max: 60ms")).expect("written");
    let why = |n: usize| format!("reason {n}");
    let calls = [
        ("/api/connectors/{name}/pause", "/api/connectors/crm/pause", "otto", json!({})),
        ("/api/dead-letters/redrive", "/api/dead-letters/redrive", "otto", json!({"connector": "crm", "ids": [ids[0]]})),
        (
            "/api/dead-letters/edit",
            "/api/dead-letters/edit",
            "dana",
            json!({"connector": "crm", "id": ids[1], "set": [{"path": "after.name", "value": "mended"}]}),
        ),
        ("/api/dead-letters/reveal", "/api/dead-letters/reveal", "dana", json!({"connector": "crm", "id": ids[1]})),
        ("/api/dead-letters/discard", "/api/dead-letters/discard", "dana", json!({"connector": "crm", "ids": [ids[2]]})),
        ("/api/replays", "/api/replays", "dana", json!({"connector": "crm", "from": "first"})),
        // Nobody takes the replay up while the connector is paused, so there is one to end.
        ("/api/replays/cancel", "/api/replays/cancel", "dana", json!({"connector": "crm"})),
        ("/api/connectors/{name}/resume", "/api/connectors/crm/resume", "otto", json!({})),
        ("/api/connectors/apply", "/api/connectors/apply", "dana", json!({"connectors": ["crm"]})),
    ];
    for (n, (path, real, who, body)) in calls.iter().enumerate() {
        if *path == "/api/connectors/apply" {
            apply();
        }
        let mut body = body.clone();
        if *path != "/api/connectors/apply" {
            let unsaid = shop.post(real, who, body.clone()).await;
            assert_eq!(unsaid.0, 400, "{path} without a reason: {}", unsaid.1);
        }
        body["reason"] = why(n).into();
        body["by"] = "somebody else".into();
        // A replay has to wait for the checkpoint behind which it goes back.
        let done = wait_for("the answer", PATIENCE, || async {
            let (status, answer) = shop.post(real, who, body.clone()).await;
            (answer["error"]["code"] != "replay.nothing").then_some((status, answer))
        });
        let (status, answer) = done.await;
        assert_eq!(status, 200, "{path}: {answer}");
        let found =
            wait_for("the audit", PATIENCE, || async { shop.audit("vera").await.into_iter().find(|a| a["why"] == why(n).as_str()) }).await;
        assert_eq!(found["who"], format!("{who} (somebody else)"), "{path}");
        assert!(found["what"].as_str().is_some_and(|what| what.contains("crm")), "{found}");
        println!("audit: {} | {} | {}", found["who"], found["what"], found["why"]);
        let said = found["what"].as_str().unwrap_or_default();
        match *path {
            "/api/connectors/{name}/pause" => {
                assert!(said == "connector crm: paused" && answer["result"] == "paused" && answer["kept_seconds"].is_u64(), "{answer}");
                let again = shop.post(real, who, body.clone()).await;
                assert!(again.0 == 200 && again.1["result"] == "already_paused" && again.1["pause"]["reason"] == why(n), "{again:?}");
                let status = shop.json("/api/status", "vera").await["connectors"][0].clone();
                assert!(status["state"] == "paused" && status["paused"]["by"] == "otto (somebody else)", "{status}");
            }
            "/api/connectors/{name}/resume" => {
                assert!(said.starts_with("connector crm: resumed, paused by otto (somebody else) since "), "{said}");
                let again = shop.post(real, who, body.clone()).await;
                assert!(answer["result"] == "resumed" && again.0 == 200 && again.1["result"] == "not_paused", "{answer} {again:?}");
            }
            "/api/replays/cancel" => assert_eq!(said, "connector crm: replay ended"),
            _ => {}
        }
        changing.remove(*path);
    }
    // What a connector runs by, beside what it ran by before.
    let running = &shop.json("/connectors.json?name=crm", "vera").await["runs_by"];
    let lines = running["before"]["lines"].as_array().expect("it ran by another file").clone();
    assert!(lines.len() == 2 && lines[0].as_str().is_some_and(|line| line.starts_with("- retry:")), "{running}");
    assert!(shop.get("/connectors?name=crm", "vera").await.text().await.expect("text").contains("+ retry:"));
    // Backfills are looked at where there is a source.
    changing.retain(|path| !path.starts_with("/api/backfills"));
    assert!(changing.is_empty(), "changes something and is not tried here: {changing:?}");

    // What is wrong is told as such.
    for (path, who, body, status) in [
        ("/api/dead-letters/redrive", "otto", json!({"reason": "x"}), 400),
        ("/api/dead-letters/redrive", "otto", json!({"reason": "x", "connector": "crm", "unknown": 1}), 400),
        (
            "/api/dead-letters/edit",
            "dana",
            json!({"connector": "crm", "id": "no", "set": [{"path": "after.x", "value": 1}], "reason": "x"}),
            422,
        ),
        ("/api/replays", "dana", json!({"connector": "no", "from": "first", "reason": "x"}), 422),
        ("/api/connectors/crn/pause", "otto", json!({"reason": "x"}), 422),
        ("/api/replays", "dana", json!({"connector": "crm", "from": "yesterday", "reason": "x"}), 400),
        ("/api/backfills", "otto", json!({"spec": {"tables": ["public.a"]}}), 409),
    ] {
        let (found, answer) = shop.post(path, who, body).await;
        assert!(found == status && answer["error"]["code"].is_string(), "{path}: {found} {answer}");
    }
    assert_eq!(shop.get("/api/nothing", "dana").await.status(), 404);
    assert_eq!(shop.get("/api/dead-letters/redrive", "dana").await.status(), 405);

    // Commands say who they are too.
    let log = shop.dir.join("status.err");
    let status = |token: Option<String>| {
        let mut environment = vec![("API_URL", "http://127.0.0.1:9/".to_owned())];
        environment.extend(token.map(|token| ("TILLSTREAM__ADMIN__TOKEN", token)));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (*k, v.as_str())).collect();
        crate::harness::Process::start(&shop.dir, "status", &["top", "--once", "--url", &shop.base], &environment)
    };
    let code = status(None).wait(PATIENCE).await.code();
    assert!(code == Some(77) && std::fs::read_to_string(&log).is_ok_and(|log| log.contains("admin.unauthenticated")), "{code:?}");
    assert_eq!(status(Some(shop::token("vera"))).wait(PATIENCE).await.code(), Some(0));
    let top = std::fs::read_to_string(shop.dir.join("status.out")).expect("its output");
    assert!(top.contains("CONNECTOR") && top.contains("crm") && !top.contains('\u{1b}'), "{top}");

    // Whoever guesses tokens is made to wait.
    let mut statuses = Vec::new();
    for n in 0..16 {
        let guess = shop.request(Method::GET, "/api/status", "").bearer_auth(format!("guess-{n}")).send().await.expect("answers");
        statuses.push(guess.status().as_u16());
    }
    assert!(statuses.first() == Some(&401) && statuses.last() == Some(&429), "{statuses:?}");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_small_read_without_script_and_hostile_rows_are_inert_in_them() {
    let mut shop = Shop::open("console", "").await;
    let hostile = evil();
    let change = Change {
        op: Op::Insert,
        table: "a",
        key: json!({"id": &hostile[..60]}).to_string(),
        after: Some(json!({"id": &hostile[..60], "name": hostile, "<img src=x onerror=alert(4)>": 1}).to_string()),
    };
    shop.capture.commit(0, &[row(1, "<b>"), change]).await;
    let letters = shop.letters(2, "").await;
    assert!(!letters.to_string().contains("<script>alert(1)"), "masked");

    let mut first = 0;
    for page in PAGES {
        let answer = shop.get(page, "").await;
        assert_eq!(answer.status(), 200, "{page}");
        let policy = answer.headers()["content-security-policy"].to_str().expect("text").to_owned();
        assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers()["x-frame-options"], "DENY");
        // With a stricter one browsers send the console's own forms as coming from nowhere.
        assert_eq!(answer.headers()["referrer-policy"], "same-origin");
        let html = answer.text().await.expect("text");
        let lower = html.to_lowercase();
        assert!(
            !lower.contains("<script>") && !lower.contains("<img") && !html.contains('\u{202e}') && !lower.contains(" style="),
            "{page}"
        );
        assert!(!lower.contains(" onclick") && !lower.contains("http://") || page.contains("explain"), "{page} asks somebody else");
        // Without script the page is whole: it says how things stand, and is loaded again by itself where they move.
        let lives = !page.starts_with("/rows") && !page.starts_with("/explain");
        assert_eq!(html.contains("<noscript><meta http-equiv=\"refresh\""), lives, "{page}");
        assert!(html.contains("<main") && html.contains("aria-current=\"page\"") || page.starts_with("/explain"), "{page}");
        assert!(html.len() < 90_000, "{page}: {} bytes", html.len());
        if page == "/" {
            first = html.len();
            assert!(html.contains("crm") && html.contains("settled"), "the map names its connector");
        }
        let twin = shop.get(&twin(page), "").await;
        assert!(twin.status().is_success() && twin.headers()["content-type"] == "application/json", "{page} has a twin");
        let document: Value = twin.json().await.expect("JSON");
        assert!(document.is_object());
    }
    for asset in ["/assets/console.css", "/assets/console.js", "/assets/icon.svg"] {
        let answer = shop.get(asset, "").await;
        let tag = answer.headers()["etag"].clone();
        first += answer.text().await.expect("text").len();
        let again = shop.request(Method::GET, asset, "").header("if-none-match", tag).send().await.expect("answers");
        assert_eq!(again.status(), 304);
    }
    println!("first load: {first} bytes");
    assert!(first < 100_000);

    // A runbook is a page, not its source.
    let runbook = shop.get("/explain?page=runbooks/restore", "").await.text().await.expect("text");
    assert!(runbook.contains("<h3>Stop the bleeding</h3>") && runbook.contains("<pre><code>tillstream") && !runbook.contains("## "));
    let unknown = shop.get("/explain?page=<script>alert(1)</script>", "").await.text().await.expect("text");
    assert!(unknown.contains("There is no page") && !unknown.contains("<script>alert"));

    // What is shown of values, on purpose, is inert too.
    let page = shop.get("/dead-letters?connector=crm", "").await.text().await.expect("text");
    let form_token = page.split("name=\"form_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a form").to_owned();
    let id = letters["dead_letters"][1]["event_id"].as_str().expect("an id").to_owned();
    let act = async |deed: &str, fields: &[(&str, &str)]| {
        // As a browser sends it.
        let request = shop.request(Method::POST, &format!("/act/{deed}"), "").header("origin", &shop.base);
        let answer = form(request, fields).send().await.expect("answers");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    let fields = [("connector", "crm"), ("id", &*id), ("reason", "it stays refused"), ("form_token", &*form_token)];
    let (status, revealed) = act("reveal", &fields).await;
    assert!(status == 200 && revealed.contains("&lt;script&gt;alert(1)"), "{status}");
    assert!(
        !revealed.contains("<script>alert") && !revealed.contains("<img") && !revealed.contains('\u{202e}') && revealed.len() < 150_000
    );
    // A form without the page's token, or without a reason, does nothing.
    assert_eq!(act("redrive", &[("connector", "crm"), ("reason", "x"), ("form_token", "guessed")]).await.0, 403);
    assert_eq!(act("redrive", &[("connector", "crm"), ("reason", " "), ("form_token", &form_token)]).await.0, 400);
    assert_eq!(act("discard", &[("connector", "crm"), ("reason", "x"), ("confirm", "1"), ("form_token", &form_token)]).await.0, 400);
    let audit = shop.audit("").await;
    assert!(audit.len() == 1 && audit[0]["who"] == "console" && audit[0]["why"] == "it stays refused", "{audit:?}");
    let (status, done) =
        act("discard", &[("connector", "crm"), ("reason", "test rows"), ("confirm", "2"), ("form_token", &form_token)]).await;
    assert!(status == 200 && done.contains("2 dead letters are settled"), "{status} {done}");
    assert_eq!(shop.letters(0, "").await["open"], 0);

    // A connector's page tells how its target answered, and has forms that pause it and have it go on, beside the commands that do the same.
    let page = async || shop.get("/connectors?name=crm", "").await.text().await.expect("text");
    let html = page().await;
    assert!(html.contains("The last calls of this process") && html.contains("http.status_422"), "{html}");
    assert!(html.contains("tillstream connector pause crm --reason") && !html.contains("Have it go on"), "{html}");
    let answers = shop.json("/connectors.json?name=crm", "").await["answers"].clone();
    let last = &answers[0];
    assert!(
        last["items"].as_u64() > Some(0)
            && last["refused"] == last["items"]
            && last["bytes"].as_u64() > Some(10)
            && last["seconds"].is_f64(),
        "{answers}"
    );
    let fields = [("connector", "crm"), ("reason", "it moves"), ("form_token", &*form_token)];
    let (status, said) = act("pause-connector", &fields).await;
    assert!(
        status == 200 && said.contains("The connector is paused") && said.contains("The journal keeps what waits for it until 2"),
        "{said}"
    );
    let html = page().await;
    assert!(html.contains("paused by console: it moves") && html.contains("tillstream connector resume crm --reason"), "{html}");
    assert!(act("pause-connector", &fields).await.1.contains("was paused already"));
    assert!(act("end-pause", &fields).await.1.contains("The connector goes on"));
    assert!(act("end-pause", &fields).await.1.contains("is not paused"));
    assert!(page().await.contains("tillstream connector pause crm --reason"));

    // What lives is sent again as it changes, and somebody else's name for this address is not answered.
    let mut live = shop.get("/live?page=/connectors", "").await;
    assert_eq!(live.headers()["content-type"], "text/event-stream");
    let piece = tokio::time::timeout(PATIENCE, live.chunk()).await.expect("in time").expect("a piece").expect("something");
    assert!(String::from_utf8_lossy(&piece).starts_with("event: live\ndata: <p hidden data-headline>"), "{piece:?}");
    let rebound = shop.request(Method::GET, "/", "").header("host", "pos.evil.example").send().await.expect("answers");
    assert_eq!(rebound.status(), 403);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_map_outlines_what_limits_and_lines_tell_how_old_events_were() {
    if Level::get() < Level::Full {
        return;
    }
    let mut shop = Shop::open("limit", "").await;
    shop.backlog(3_000).await;
    // The target takes so long that the verdict lasts, however quick the machine is.
    let map = wait_for("the limit", PATIENCE, || async {
        let map = shop.get("/", "").await.text().await.expect("text");
        map.contains("class=\"box limit\"").then_some(map)
    })
    .await;
    assert!(
        map.contains("Runs in another process.") && !map.contains("class=\"state s-unknown\""),
        "nothing is told of a capture that is not here: {map}"
    );
    let outlined: Vec<&str> = map.split("class=\"box limit\"").skip(1).collect();
    assert_eq!(outlined.len(), 1, "one box is outlined: {map}");
    let limit = outlined[0].split("class=\"pipe").next().expect("the box");
    assert!(
        limit.contains("name=crm") && limit.contains("<tr class=\"limit\"><th scope=\"row\">deliver <span class=\"tag\">limits</span>"),
        "{limit}"
    );
    let sentence = map.split("<p class=\"sentence\">").nth(1).and_then(|rest| rest.split("</p>").next()).expect("a sentence");
    assert!(map.contains("class=\"verdict limit\"") && sentence.starts_with("crm is limited"), "{sentence}");
    println!("the map says: {sentence}");

    let fresh = wait_for("the histogram", PATIENCE, || async {
        let fresh = shop.json("/freshness.json", "").await;
        fresh["connectors"][0]["week"]["p95_seconds"].is_number().then_some(fresh)
    })
    .await;
    let crm = &fresh["connectors"][0];
    for (window, points) in [("hour", 60), ("day", 96), ("week", 168)] {
        let of = &crm[window];
        let seconds = ["p50_seconds", "p95_seconds", "p99_seconds"].map(|key| of[key].as_f64().expect("a number"));
        // Nothing takes effect sooner than the target answers.
        assert!(of["events"].as_u64() > Some(0) && seconds[0] > 0.2 && seconds.is_sorted(), "{window}: {of}");
        assert_eq!(of["p99"].as_array().map(Vec::len), Some(points));
    }
    assert!(fresh["marks"].as_array().expect("marks").iter().any(|mark| mark["kind"] == "start"), "{fresh}");
    for window in ["hour", "day", "week"] {
        let page = shop.get(&format!("/freshness?window={window}"), "").await.text().await.expect("text");
        assert!(page.contains("<path class=\"p99\" d=\"M") && page.contains("when this process began"), "{window}: {page}");
    }
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_travel_encrypted_and_a_session_is_its_owners() {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let keys = tempfile::tempdir().expect("a directory");
    let (pem, key) = (keys.path().join("server.pem"), keys.path().join("server.key"));
    std::fs::write(&pem, certificate.cert.pem())
        .and_then(|()| std::fs::write(&key, certificate.signing_key.serialize_pem()))
        .expect("written");
    let admin = format!(
        "admin:\n  tokens: [{{name: dana, role: admin, token: {}}}]\n  tls: {{certificate: {}, key: {}}}\n",
        shop::token("dana"),
        pem.display(),
        key.display()
    );
    let shop = Shop::open("tls", &admin).await;
    let page = shop.get("/", "").await;
    assert_eq!((page.status().as_u16(), page.headers()["location"].to_str().expect("text")), (303, "/login"));
    let login = async |token: &str, origin: Option<&str>| {
        let request = form(shop.request(Method::POST, "/login", ""), &[("token", token)]);
        let request = if let Some(origin) = origin { request.header("origin", origin) } else { request };
        request.send().await.expect("answers")
    };
    assert_eq!(login("wrong", None).await.status(), 401);
    assert_eq!(login(&shop::token("dana"), Some("https://evil.example")).await.status(), 403);
    let answer = login(&shop::token("dana"), None).await;
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert_eq!(answer.status(), 303);
    assert!(["HttpOnly", "SameSite=Strict", "Secure"].iter().all(|flag| cookie.contains(flag)) && !cookie.contains("dana"), "{cookie}");
    let cookie = cookie.split(';').next().expect("its value").to_owned();
    let with_cookie =
        async |method: Method, path: &str| shop.request(method, path, "").header("cookie", &cookie).send().await.expect("answers");
    let page = with_cookie(Method::GET, "/").await;
    assert!(page.headers().contains_key("strict-transport-security"));
    assert!(page.text().await.expect("text").contains("dana"));
    assert_eq!(with_cookie(Method::POST, "/logout").await.status(), 303);
    assert_eq!(with_cookie(Method::GET, "/").await.status(), 303, "the session has ended");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_pipeline_shows_its_source_and_backfills_are_written_down() {
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("console", server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    running.until("the initial load", |status| status["initial_load"]["finished"] == true).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for page in PAGES {
        let answer = client.get(format!("{}{}", running.admin, page.replace("crm", "inventory"))).send().await.expect("answers");
        assert!(answer.status().is_success() || page.starts_with("/rows?"), "{page}: {}", answer.status());
    }
    let source = client.get(format!("{}/source", running.admin)).send().await.expect("answers").text().await.expect("text");
    assert!(source.contains("The slot's survival clock") && source.contains("acknowledged"), "{source}");
    // What the doctor found stands there, each with its page, and all slots of the server.
    let looked = wait_for("a look at the source", PATIENCE, || async {
        let source: Value = client.get(format!("{}/source.json", running.admin)).send().await.ok()?.json().await.ok()?;
        (source["source"]["doctor"]["at"].is_string() && source["slots"]["slots"].is_array()).then_some(source)
    })
    .await;
    let page = client.get(format!("{}/source", running.admin)).send().await.expect("answers").text().await.expect("text");
    let findings = looked["source"]["doctor"]["findings"].as_array().expect("a list");
    for finding in findings {
        let id = finding["id"].as_str().expect("an id");
        assert!(page.contains(&format!("href=\"/explain?code={id}\"")), "{id} has its page");
        let explained = client.get(format!("{}/explain?code={id}", running.admin)).send().await.expect("answers");
        assert!(explained.text().await.expect("text").contains("What helps"), "{id}");
    }
    println!("the doctor's findings on the page: {:?}", findings.iter().map(|f| &f["id"]).collect::<Vec<_>>());
    let ours = looked["slots"]["slots"].as_array().expect("a list").iter().find(|slot| slot["ours"] == true).expect("our slot");
    assert!(ours["active_pid"].is_i64() && ours["wal_status"] == "reserved" && ours["catalog_xmin_age"].is_i64(), "{ours}");
    assert!(page.contains("All slots of the server, worst first") && page.contains("(this pipeline's)"));
    let post = async |path: &str, body: Value| -> Value {
        let answer = client.post(format!("{}{path}", running.admin)).json(&body).send().await.expect("answers");
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.expect("text"));
        answer.json().await.expect("JSON")
    };
    let spec = json!({"tables": ["public.customer"]});
    let plan = post("/api/backfills", json!({"spec": spec, "dry_run": true})).await;
    assert_eq!(plan["result"], "plan");
    let started = post("/api/backfills", json!({"id": "guests", "spec": spec, "options": {"max_rate": 1}, "by": "test"})).await;
    assert_eq!(started["result"], "started", "{started}");
    for change in ["pause", "resume", "cancel"] {
        post(&format!("/api/backfills/guests/{change}"), json!({"by": "test", "reason": format!("to {change}")})).await;
    }
    let audit: Value = client.get(format!("{}/audit.json", running.admin)).send().await.expect("answers").json().await.expect("JSON");
    let said: Vec<&str> = audit["audit"].as_array().expect("a list").iter().rev().filter_map(|a| a["what"].as_str()).collect();
    assert_eq!(
        said,
        ["backfill guests: start, of public.customer", "backfill guests: pause", "backfill guests: resume", "backfill guests: cancel"]
    );
    running.process.terminate(PATIENCE).await;
    target.end().await;
    pipeline.drop(server).await;
}
