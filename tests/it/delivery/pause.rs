//! Pausing a connector: two processes obey, calls in the air finish, a kill and a start change nothing, and when it goes on everything comes once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::pos::{Capture, insert, journal};
use crate::harness::{Level, PATIENCE, Process, free_port, judge_log, scratch, wait_for};

/// The row whose call is kept waiting.
const HELD: u64 = 1_000_000;

const PIPELINE: &str = "version: 1\npipeline: shop\nsource: {name: pos, url: \"postgres://nobody@127.0.0.1:9/pos\", slot: s, publication: p, tables: [public.a]}\n\
     journal: {local: {dir: journal, partitions: 2, retention: {age: 2d}}}\nconnectors: [stock.yaml, other.yaml]\n";

fn connector(name: &str) -> String {
    format!(
        "version: 1\nconnector: {name}\nfrom: {{tables: [public.a], ops: [insert]}}\non_delete: ignore\nmap:\n  id: \"{{{{ idempotency_key }}}}\"\n  \
         row: \"{{{{ after.id }}}}\"\nto:\n  http: {{url: \"${{env:API_URL}}/{name}\", allow_private: true, timeout: 30s}}\nretry: {{base: 10ms, max: 50ms}}\n"
    )
}

/// What came for each connector, when it came.
struct Target {
    came: Mutex<BTreeMap<&'static str, Vec<String>>>,
    /// The held row's call is there.
    holds: AtomicBool,
    let_go: watch::Sender<bool>,
}

impl Target {
    async fn start() -> (Arc<Target>, String) {
        let target = Arc::new(Target { came: Mutex::default(), holds: AtomicBool::new(false), let_go: watch::channel(false).0 });
        let take = |of: &'static str| {
            axum::routing::post(async move |State(target): State<Arc<Target>>, body: axum::Json<Value>| {
                let (id, row) = (body.0["id"].as_str().expect("an id").to_owned(), body.0["row"].to_string());
                target.came.lock().expect("sound").entry(of).or_default().push(id);
                if of == "stock" && row.trim_matches('"') == HELD.to_string() {
                    target.holds.store(true, Ordering::SeqCst);
                    let _ = target.let_go.subscribe().wait_for(|go| *go).await;
                }
                StatusCode::OK
            })
        };
        let router = Router::new().route("/stock", take("stock")).route("/other", take("other")).with_state(target.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (target, url)
    }

    fn came(&self, of: &str) -> usize {
        self.came.lock().expect("sound").get(of).map_or(0, Vec::len)
    }

    fn distinct(&self, of: &str) -> usize {
        self.came.lock().expect("sound").get(of).map_or(0, |came| came.iter().collect::<BTreeSet<_>>().len())
    }

    /// Waits until so many more came for the other connector: time in which the paused one could have had as many.
    async fn other_goes_on(&self) {
        let before = self.distinct("other");
        wait_for("the other connector", PATIENCE, || async { (self.distinct("other") >= before + 60).then_some(()) }).await;
    }
}

/// Rows that are sold one after the other, into both partitions in turn.
struct Sales {
    hold: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Sales {
    fn begin(mut capture: Capture) -> Sales {
        let (hold, stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (held, stopped, counted) = (hold.clone(), stop.clone(), count.clone());
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            for n in 0.. {
                tick.tick().await;
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let row = if held.swap(false, Ordering::SeqCst) { HELD } else { n };
                capture.commit(u16::try_from(n % 2).expect("two"), &[insert("a", row, 1)]).await;
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Sales { hold, stop, count, task }
    }

    /// Ends them; answers how many there were.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("no panic");
        usize::try_from(self.count.load(Ordering::SeqCst)).expect("few")
    }
}

/// A process that delivers.
struct Member {
    process: Process,
    base: String,
}

struct Shop {
    dir: PathBuf,
    url: String,
}

impl Shop {
    fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start(&self.dir, name, arguments, &[("API_URL", &self.url)])
    }

    fn member(&self, name: &str) -> Member {
        let listen = format!("127.0.0.1:{}", free_port());
        Member { process: self.start(name, &["run", "--only", "delivery", "--listen", &listen]), base: format!("http://{listen}") }
    }

    /// Runs a command; answers its exit code, and what it said since.
    async fn command(&self, name: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let process = self.start(name, arguments);
        let before = (process.stdout().len(), process.stderr().len());
        let code = process.wait(PATIENCE).await.code();
        let read =
            |end: &str, from: usize| std::fs::read_to_string(self.dir.join(format!("{name}.{end}"))).unwrap_or_default().split_off(from);
        (code, read("out", before.0) + &read("err", before.1))
    }
}

async fn get(member: &Member, path: &str) -> Option<reqwest::Response> {
    reqwest::get(format!("{}{path}", member.base)).await.ok()
}

async fn stock(member: &Member) -> Option<Value> {
    let status: Value = get(member, "/api/status").await?.json().await.ok()?;
    status["connectors"].as_array()?.iter().find(|c| c["name"] == "stock").cloned()
}

/// Waits until every process says that the connector is so.
async fn until(what: &str, members: &[Member], is: impl Fn(&Value) -> bool) {
    for member in members {
        wait_for(what, PATIENCE, || async { stock(member).await.filter(&is).map(drop) }).await;
    }
}

fn is_at_rest(stock: &Value) -> bool {
    stock["state"] == "paused" && stock["in_flight"] == 0 && stock["why"].as_str().is_some_and(|why| !why.contains("calls in the air"))
}

fn judge(dir: &Path) {
    for name in ["a", "b"] {
        judge_log(&dir.join(format!("{name}.err")), &[]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_that_is_paused_sends_nothing_and_everything_comes_once_when_it_goes_on() {
    let dir = scratch("pause");
    std::fs::write(dir.join("tillstream.yaml"), PIPELINE).expect("written");
    for name in ["stock", "other"] {
        std::fs::write(dir.join(format!("{name}.yaml")), connector(name)).expect("written");
    }
    let journal = journal(&dir.join("journal"), 2).await;
    let (target, url) = Target::start().await;
    let shop = Shop { dir: dir.clone(), url };
    let capture = Capture::new(journal.as_ref(), 1).await;
    let members = [shop.member("a"), shop.member("b")];
    let shared = |stock: &Value| stock["partitions"].as_array().is_some_and(|partitions| partitions.len() == 1);
    until("each to have a partition", &members, |stock| stock["state"] == "healthy" && shared(stock)).await;
    // Processes that start together take partitions from each other for a moment, and repeat what they had sent: sales begin behind that.
    let sales = Sales::begin(capture);
    wait_for("events", PATIENCE, || async { (target.came("stock") > 20).then_some(()) }).await;

    // Paused while a call is in the air that takes longer than a process that ends would grant it.
    sales.hold.store(true, Ordering::SeqCst);
    wait_for("the call that is kept waiting", PATIENCE, || async { target.holds.load(Ordering::SeqCst).then_some(()) }).await;
    let (code, said) = shop.command("pause", &["connector", "pause", "stock", "--reason", "it moves"]).await;
    println!("{said}");
    assert!(code == Some(0) && said.contains("stock: paused; calls in the air finish"), "{code:?} {said}");
    assert!(said.contains("entries do now), which keeps it until 2") && said.contains("(1 d 23 h)"), "{said}");
    until("the pause", &members, |stock| stock["state"] == "paused").await;
    // Not waited for: time has to pass.
    tokio::time::sleep(Level::pick(Duration::from_millis(300), Duration::from_secs(6), Duration::from_secs(6))).await;
    target.let_go.send_replace(true);
    until("everything to be at rest", &members, is_at_rest).await;
    let came = target.came("stock");
    target.other_goes_on().await;
    assert_eq!(target.came("stock"), came, "nothing comes while it is paused");

    // Every surface says it, and calls nothing else wrong.
    let status = stock(&members[0]).await.expect("a status");
    let why = status["why"].as_str().expect("why");
    assert!(why.starts_with("paused by ") && why.contains(": it moves (`tillstream connector resume stock`"), "{status}");
    assert!(status["paused"]["kept"].as_str().is_some_and(|kept| kept.starts_with("until 2")) && status["since"].is_string(), "{status}");
    for member in &members {
        assert!(get(member, "/readyz").await.expect("answers").status().is_success(), "it is ready all the same");
    }
    wait_for("what waits to be told", PATIENCE, || async {
        let metrics = get(&members[0], "/metrics").await?.text().await.ok()?;
        let has =
            |name: &str| metrics.lines().find(|line| line.starts_with(name) && line.contains("connector=\"stock\"")).map(str::to_owned);
        let left: f64 = has("tillstream_journal_seconds_to_retention_loss{")?.rsplit(' ').next()?.parse().ok()?;
        let lag: f64 = has("tillstream_journal_lag_seconds{")?.rsplit(' ').next()?.parse().ok()?;
        let paused = has("tillstream_delivery_paused{")?.ends_with(" 1.0");
        let state = has("tillstream_delivery_state{")?.contains("state=\"paused\"");
        (paused && state && lag > 0.1 && left > 170_000.0 && left < 172_800.0).then_some(())
    })
    .await;
    let scale: Value = get(&members[0], "/api/scale").await.expect("answers").json().await.expect("JSON");
    let advice = scale["connectors"].as_array().and_then(|all| all.iter().find(|c| c["connector"] == "stock")).expect("an advice");
    let because = advice["because"].as_str().expect("because");
    println!("{because}");
    assert!(because.starts_with("stock is paused by ") && because.contains("resume it") && advice["recommended_replicas"] == 1, "{advice}");
    let (_, top) = shop.command("top", &["top", "--once", "--url", &members[0].base]).await;
    assert!(top.contains("paused by ") && top.contains("; the journal keeps what waits until 2"), "{top}");

    // Said twice it changes nothing; a job does not wait for ever; a name that is none is told.
    let (code, said) = shop.command("pause", &["connector", "pause", "stock", "--reason", "again"]).await;
    assert!(
        code == Some(0) && said.contains("was paused already, by ") && said.contains(": it moves; nothing was changed"),
        "{code:?} {said}"
    );
    let (code, said) = shop.command("job", &["run", "--only", "delivery", "--until-caught-up", "--listen", "127.0.0.1:0"]).await;
    assert!(code == Some(75) && said.contains("delivery.paused") && said.contains("connector stock is paused by "), "{code:?} {said}");
    let (code, said) = shop.command("pause", &["connector", "pause", "stok", "--reason", "x"]).await;
    assert!(code == Some(2) && said.contains("did you mean `stock`?"), "{code:?} {said}");

    // Neither a kill nor a start ends it.
    for member in members {
        member.process.kill9().await;
    }
    let members = [shop.member("a"), shop.member("b")];
    until("the pause after a start", &members, is_at_rest).await;
    target.other_goes_on().await;
    assert_eq!(target.came("stock"), came, "nothing comes after a start either");
    let looked_after = |stock: &Value| {
        stock["lag_entries"].as_u64().is_some_and(|lag| lag > 60) && stock["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.1)
    };
    until("what waits to be known", &members, looked_after).await;

    let (code, said) = shop.command("resume", &["connector", "resume", "stock", "--reason", "it has moved"]).await;
    assert!(code == Some(0) && said.contains("stock: goes on; ") && said.contains(": it moves"), "{code:?} {said}");
    until("it to go on", &members, |stock| matches!(stock["state"].as_str(), Some("healthy" | "catching_up"))).await;
    let sold = sales.end().await;
    wait_for("everything", PATIENCE, || async { (target.distinct("stock") >= sold).then_some(()) }).await;
    let (code, said) = shop.command("job", &["run", "--only", "delivery", "--until-caught-up", "--listen", "127.0.0.1:0"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((target.came("stock"), target.distinct("stock")), (sold, sold), "each once");
    println!("{sold} events, each once; {came} before the pause");
    let (code, said) = shop.command("resume", &["connector", "resume", "stock"]).await;
    assert!(code == Some(0) && said.contains("stock: is not paused"), "{code:?} {said}");
    for member in members {
        member.process.terminate(PATIENCE).await;
    }
    judge(&dir);
}
