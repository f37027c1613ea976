//! A whole pipeline of one test: point of sale, inventory, pretend engagement API, configuration, processes.
//!
//! The configuration is that of the demo (`docker/demo/`), so what the demo shows is what the tests test.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::process::judge_log;
use super::{Database, Postgres, Process, RabbitMq, root, scratch, wait_for};

/// Where a test's pipeline keeps its journal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Journal<'a> {
    Rabbit(&'a RabbitMq),
    Local,
}

/// The pipeline of one test. Its files and logs stay in `dir`.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) dir: PathBuf,
    pub(crate) pos: Database,
    pub(crate) inventory: Database,
    pub(crate) slot: String,
    pub(crate) stream: String,
    environment: Vec<(String, String)>,
    target_port: u16,
}

/// How long anything may take that is not measured: machines of CI are slow and shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

impl Pipeline {
    /// Databases and configuration; nothing is set up in the source and nothing runs. `edit` may change the pipeline's file.
    pub(crate) async fn new(name: &str, server: &Postgres, journal: Journal<'_>, edit: impl FnOnce(String) -> String) -> Pipeline {
        let dir = scratch(name);
        let pos = Database::pos(server, "pos").await;
        let inventory = Database::inventory(server, "inventory").await;
        let slot = format!("slot_{}", pos.name);
        let stream = format!("{name}-{}", pos.name);
        let target_port = free_port();
        let demo = root().join("docker").join("demo");
        for file in ["inventory.yaml", "engagement.yaml"] {
            std::fs::copy(demo.join(file), dir.join(file)).expect("the demo's files are there");
        }
        let text = std::fs::read_to_string(demo.join("tillstream.yaml")).expect("the demo's files are there");
        let text = text.replace("slot: tillstream_demo", &format!("slot: {slot}")).replace("stream: pos", &format!("stream: {stream}"));
        let text = match journal {
            Journal::Rabbit(_) => text,
            Journal::Local => {
                let from = text.find("  rabbitmq:").expect("the demo's journal");
                let to = text.find("connectors:").expect("the demo's connectors");
                format!("{}  local: {{dir: journal}}\n{}", &text[..from], &text[to..])
            }
        };
        std::fs::write(dir.join("tillstream.yaml"), edit(text)).expect("target/ can be written");
        let broker = match journal {
            Journal::Rabbit(broker) => broker.url.clone(),
            Journal::Local => String::new(),
        };
        let environment = [
            ("DEMO_SOURCE_URL", pos.url_as("tillstream")),
            ("DEMO_BACKFILL_URL", pos.url_as("tillstream_backfill")),
            ("DEMO_INVENTORY_URL", inventory.url.clone()),
            ("DEMO_ENGAGEMENT_URL", format!("http://127.0.0.1:{target_port}/v1/events")),
            ("DEMO_RABBITMQ_URL", broker),
        ];
        let environment = environment.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Pipeline { dir, pos, inventory, slot, stream, environment, target_port }
    }

    /// Sets another value in the environment of every later process.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        self.environment.retain(|(n, _)| n != name);
        self.environment.push((name.to_owned(), value));
    }

    /// Starts `tillstream ARGUMENTS` in the pipeline's directory.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Process {
        let environment: Vec<(&str, &str)> = self.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Process::start(&self.dir, name, arguments, &environment)
    }

    /// Runs a command to its good end and returns what it printed.
    pub(crate) async fn command(&self, name: &str, arguments: &[&str]) -> String {
        let process = self.start(name, arguments);
        let before = process.stdout().len();
        let path = self.dir.join(format!("{name}.out"));
        process.finish(PATIENCE).await;
        std::fs::read_to_string(path).unwrap_or_default().split_off(before)
    }

    /// Roles, publication and slot.
    pub(crate) async fn set_up(&self) {
        self.command("setup", &["setup", "--admin-url", &self.pos.url, "--apply"]).await;
    }

    /// `tillstream run`, whole or one loop, with an admin endpoint on a free port.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Running {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut all = vec!["run", "--listen", &listen];
        all.extend(arguments);
        Running { process: self.start(name, &all), admin: format!("http://{listen}") }
    }

    /// Drains: everything up to the server's present position is captured and delivered.
    pub(crate) async fn drain(&self) {
        let running = self.run("drain", &["--until-caught-up"]);
        running.process.finish(PATIENCE * 4).await;
    }

    /// The pretend engagement API.
    pub(crate) async fn target(&self, calm: bool) -> Process {
        let listen = format!("127.0.0.1:{}", self.target_port);
        let mut arguments = vec!["demo", "target", "--listen", &listen, "--log", "applied.log"];
        if calm {
            arguments.push("--calm");
        }
        let process = self.start("target", &arguments);
        wait_for("the engagement API", PATIENCE, || async { tokio::net::TcpStream::connect(&listen).await.ok() }).await;
        process
    }

    /// Traffic for so many seconds; it ends by itself.
    pub(crate) fn traffic(&self, rate: u32, seconds: u64, more: &[&str]) -> Process {
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let mut arguments = vec!["demo", "traffic", "--url", &self.pos.url, "--rate", &rate, "--seconds", &seconds];
        arguments.extend(more);
        self.start("traffic", &arguments)
    }

    /// Compares both ends and returns the line; the comparison has to succeed.
    pub(crate) async fn verify(&self) -> Value {
        let arguments = [
            "demo",
            "verify",
            "--config",
            "tillstream.yaml",
            "--source",
            &self.pos.url,
            "--inventory",
            &self.inventory.url,
            "--engagement",
            "applied.log",
        ];
        let printed = self.command("verify", &arguments).await;
        let line = printed.lines().last().expect("one line");
        println!("{line}");
        serde_json::from_str(line).expect("JSON")
    }

    /// Judges the logs of every process so far; `announced` are fragments of lines that the test provoked.
    pub(crate) fn judge(&self, announced: &[&str]) {
        for entry in std::fs::read_dir(&self.dir).expect("readable").flatten() {
            if entry.path().extension().is_some_and(|e| e == "err") {
                judge_log(&entry.path(), announced);
            }
        }
    }

    /// Drops databases and slot.
    pub(crate) async fn drop(self, server: &Postgres) {
        self.pos.drop(server).await;
        self.inventory.drop(server).await;
    }
}

/// A running `tillstream run`.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) admin: String,
}

impl Running {
    /// The status document; `None` while nobody answers.
    pub(crate) async fn status(&self) -> Option<Value> {
        let answer = reqwest::get(format!("{}/api/status", self.admin)).await.ok()?;
        answer.json().await.ok()
    }

    /// Waits until the process says that bytes are moving.
    pub(crate) async fn ready(&self) -> &Running {
        wait_for("readiness", PATIENCE, || async {
            let answer = reqwest::get(format!("{}/readyz", self.admin)).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        self
    }

    /// Waits until the status satisfies `is`.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || async { self.status().await.filter(&is) }).await
    }
}

/// A loopback port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}
