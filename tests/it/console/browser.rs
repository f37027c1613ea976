//! The console in a real browser, before a release: headless Chromium, driven over WebDriver. Pictures of every screen (light, dark, on a tablet) are left in
//! `target/tests/console/` for eyes; axe-core finds nothing serious; everything can be done by keys alone; without script nothing is missing.
//!
//! Runs at `TILLSTREAM_TESTS=long`, which installs `chromium`, `chromium-driver` and axe-core (`tests/run.sh`).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::PAGES;
use super::shop::Shop;
use crate::harness::{Journal, Level, PATIENCE, Pipeline, Postgres, free_port, target, wait_for};

/// Name, width in pixels, dark.
const SCREENS: [(&str, u64, bool); 3] = [("light", 1440, false), ("dark", 1440, true), ("tablet", 768, false)];

/// A browser without a window.
struct Browser {
    driver: Child,
    session: String,
    client: reqwest::Client,
}

impl Browser {
    async fn start(script: bool) -> Browser {
        let port = free_port();
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let driver = driver.spawn().expect("chromedriver is installed");
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let base = format!("http://127.0.0.1:{port}");
        wait_for("chromedriver", PATIENCE, || async { client.get(format!("{base}/status")).send().await.ok() }).await;
        let mut options = json!({"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1440,1000"]});
        if !script {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}});
        let answer: Value = client.post(format!("{base}/session")).json(&wanted).send().await.expect("answers").json().await.expect("JSON");
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{answer}"));
        Browser { driver, session: format!("{base}/session/{id}"), client }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.client.post(format!("{}{path}", self.session)).json(&body).send().await.expect("answers");
        let answer: Value = answer.json().await.expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
        answer["value"].clone()
    }

    async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []})).await
    }

    async fn tools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    /// Presses keys one after the other.
    async fn keys(&self, keys: &str) {
        let presses: Vec<Value> =
            keys.chars().flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]).collect();
        self.post("/actions", json!({"actions": [{"type": "key", "id": "keys", "actions": presses}]})).await;
    }

    /// What has the focus: its text, or its name.
    async fn focus(&self) -> String {
        let script = "const a = document.activeElement; return a === document.body ? '' : (a.name || a.getAttribute('aria-label') || a.textContent || a.tagName).trim().slice(0, 60);";
        self.run(script).await.as_str().unwrap_or_default().to_owned()
    }

    /// Presses Tab until that is reached which is wanted.
    async fn reach(&self, wanted: &str) {
        for _ in 0..120 {
            self.keys("\u{e004}").await;
            if self.focus().await.starts_with(wanted) {
                let seen = self.run("const s = getComputedStyle(document.activeElement); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0;").await;
                assert_eq!(seen, true, "`{wanted}` shows that it has the focus");
                return;
            }
        }
        panic!("`{wanted}` is not reached by Tab; the focus is at `{}`", self.focus().await);
    }

    /// A picture of the whole page.
    async fn picture(&self, name: &str, width: u64, dark: bool) {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}, {"name": "prefers-reduced-motion", "value": "reduce"}]});
        self.tools("Emulation.setEmulatedMedia", media).await;
        self.tools("Emulation.setDeviceMetricsOverride", json!({"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": false}))
            .await;
        let wide = self.run("return document.documentElement.scrollWidth;").await.as_u64().unwrap_or(0);
        assert!(wide <= width, "{name} is {wide} wide on a screen of {width}");
        let shot = self.tools("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true})).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("a picture")).expect("base64");
        let dir = target().join("tests/console");
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join(format!("{name}.png")), bytes))
            .expect("target/ can be written");
    }

    async fn end(mut self) {
        let _ = self.client.delete(&self.session).send().await;
        let _ = self.driver.start_kill();
        let _ = self.driver.wait().await;
    }
}

fn axe() -> String {
    let path: PathBuf = target().join("tests/axe/package/axe.min.js");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; tests/run.sh long fetches it", path.display()))
}

/// A name for a file.
fn name(page: &str) -> String {
    let name: String = page.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    match name.trim_matches('_') {
        "" => "map".to_owned(),
        name => name.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_works_for_eyes_keys_and_without_script() {
    if Level::get() < Level::Long {
        return;
    }
    let server = Postgres::shared().await;
    let pipeline = Pipeline::new("browser", server, Journal::Local, |file| file).await;
    pipeline.set_up().await;
    let target = pipeline.target(true).await;
    let running = pipeline.run("run", &[]);
    running.ready().await;
    let traffic = pipeline.traffic(120, 150, &["--plant-refused"]);
    running
        .until("a dead letter", |status| {
            status["connectors"].as_array().into_iter().flatten().any(|c| c["dead_letters"].as_u64() > Some(0))
        })
        .await;
    let base = running.admin.clone();
    let customer = "/rows?table=public.customer&key=1&since=first";
    let pages: Vec<String> =
        PAGES.iter().map(|page| page.replace("name=crm", "name=engagement").replace("connector=crm", "connector=engagement")).collect();
    let pages: Vec<String> = pages.into_iter().map(|page| if page.starts_with("/rows?") { customer.to_owned() } else { page }).collect();

    let browser = Browser::start(true).await;
    let axe = axe();
    let mut serious = Vec::new();
    for page in &pages {
        browser.open(&format!("{base}{page}")).await;
        for (screen, width, dark) in SCREENS {
            browser.picture(&format!("{}-{screen}", name(page)), width, dark).await;
            let found = browser
                .post(
                    "/execute/async",
                    json!({"script": format!("{axe}; const done = arguments[arguments.length - 1]; axe.run(document, {{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}}).then(r => done(r.violations.map(v => ({{id: v.id, impact: v.impact, help: v.help, at: v.nodes.slice(0, 3).map(n => n.html.slice(0, 160) + ' ' + (n.any[0] ? n.any[0].message : ''))}}))));"), "args": []}),
                )
                .await;
            for violation in found.as_array().into_iter().flatten() {
                println!("axe {page} {screen}: {violation}");
                if matches!(violation["impact"].as_str(), Some("serious" | "critical")) {
                    serious.push(format!("{page} {screen}: {violation}"));
                }
            }
        }
    }
    // It would find something if there were something.
    let planted = format!(
        "{axe}; const done = arguments[arguments.length - 1]; document.getElementById('main').innerHTML += '<img src=x><button></button>'; axe.run().then(r => done(r.violations.map(v => v.id)));"
    );
    let planted = browser.post("/execute/async", json!({"script": planted, "args": []})).await.to_string();
    assert!(planted.contains("image-alt") && planted.contains("button-name"), "{planted}");
    println!("axe: {} pages in light, dark and on a tablet, {} serious findings", pages.len(), serious.len());
    assert!(serious.is_empty(), "{serious:#?}");

    // Numbers live, and old ones are never green.
    browser.open(&base).await;
    let moved = || async {
        let text =
            browser.run("return document.querySelector('[data-age] time').dateTime + document.getElementById('live').textContent;").await;
        Some(text.as_str().unwrap_or_default().to_owned())
    };
    let first = moved().await.expect("text");
    wait_for("the numbers to move", PATIENCE, || async { moved().await.filter(|now| *now != first) }).await;

    // By keys alone: past what is around, along the pages, to a dead letter, and its redrive.
    browser.keys("\u{e004}").await;
    assert_eq!(browser.focus().await, "To the content");
    browser.keys("\u{e007}").await;
    assert_eq!(browser.run("return document.activeElement.id;").await, "main");
    browser.open(&base).await;
    browser.reach("Dead letters").await;
    browser.keys("\u{e007}").await;
    wait_for("the page", PATIENCE, || async {
        (browser.run("return document.title;").await.as_str()?.starts_with("Dead letters")).then_some(())
    })
    .await;
    browser.reach("engagement").await;
    browser.keys("\u{e007}").await;
    wait_for("the letters", PATIENCE, || async {
        browser.run("return location.search;").await.as_str()?.contains("engagement").then_some(())
    })
    .await;
    browser.reach("Deliver them again").await;
    browser.keys("\u{e007}").await;
    browser.reach("reason").await;
    browser.keys("by keys alone\u{e007}").await;
    let said = wait_for("the answer", PATIENCE, || async {
        let page = browser.run("const m = document.querySelector('main'); return m ? document.title + '|' + m.textContent : '';").await;
        page.as_str().filter(|page| !page.is_empty() && !page.starts_with("Dead letters")).map(str::to_owned)
    })
    .await;
    assert!(said.contains("asked for again"), "{said}");
    let audit: Value = reqwest::get(format!("{base}/api/audit")).await.expect("answers").json().await.expect("JSON");
    assert_eq!(audit["audit"][0]["why"], "by keys alone");
    println!("keys alone: skip link, map, dead letters, group, redrive; the audit says `{}`", audit["audit"][0]["what"]);

    // Pages that are not empty any more.
    for (screen, width, dark) in SCREENS {
        browser.open(&format!("{base}/audit")).await;
        browser.picture(&format!("audit-after-{screen}"), width, dark).await;
    }
    // Something limits: outlined on the map, and the lines have a shape.
    let mut shop = Shop::open("browser-limit", "").await;
    shop.backlog(3_000).await;
    wait_for("the limit", PATIENCE, || async {
        let fresh = shop.json("/freshness.json", "").await["connectors"][0]["hour"]["events"].as_u64() > Some(0);
        (shop.get("/", "").await.text().await.expect("text").contains("class=\"box limit\"") && fresh).then_some(())
    })
    .await;
    for (page, of) in [("/", "map-limit"), ("/freshness", "freshness-limit"), ("/connectors?name=crm", "connector-limit")] {
        for (screen, width, dark) in SCREENS {
            browser.open(&format!("{}{page}", shop.base)).await;
            browser.picture(&format!("{of}-{screen}"), width, dark).await;
        }
    }
    browser.open(&shop.base).await;
    let outline =
        browser.run("const s = getComputedStyle(document.querySelector('.box.limit')); return s.borderTopWidth + ' ' + s.boxShadow;").await;
    assert!(outline.as_str().is_some_and(|outline| outline.starts_with("2px") && !outline.ends_with("none")), "{outline}");
    shop.end().await;

    // Without the server everything is unknown within half a minute.
    browser.open(&base).await;
    running.process.terminate(PATIENCE).await;
    let states = || async {
        let found = browser.run("return [...document.querySelectorAll('[data-state]')].map(s => s.textContent.trim());").await;
        found.as_array().cloned()
    };
    wait_for("unknown", Duration::from_secs(60), || async {
        states().await.filter(|states| !states.is_empty() && states.iter().all(|s| s == "unknown"))
    })
    .await;
    println!("without the server: every state says unknown");
    browser.end().await;

    let running = pipeline.run("again", &[]);
    running.ready().await;
    let plain = Browser::start(false).await;
    for page in &pages {
        plain.open(&format!("{}{page}", running.admin)).await;
        let text = plain.run("return document.querySelector('main').innerText;").await.as_str().unwrap_or_default().to_owned();
        assert!(text.len() > 80, "{page} without script: {text}");
        let sorts = plain.run("return document.querySelectorAll('th button').length;").await;
        assert_eq!(sorts, 0, "the script did not run");
    }
    plain.open(&running.admin).await;
    plain.picture("map-without-script", 1440, false).await;
    println!("without script: {} pages say what they have to", pages.len());
    plain.end().await;
    traffic.end().await;
    running.process.terminate(PATIENCE).await;
    target.end().await;
    pipeline.drop(server).await;
}
