//! Servers, by the project's own scripts.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use super::{root, scratch, target};

/// Runs a script of `docker/` and returns its standard output.
fn script(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new(root().join("docker").join(name))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .expect("the script runs");
    assert!(output.status.success(), "docker/{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Starts a shared server: several test processes may ask at once.
fn start_shared(name: &str, dir: &Path) {
    let parent = dir.parent().expect("below target/tests");
    std::fs::create_dir_all(parent).expect("target/ can be written");
    let lock = File::create(dir.with_extension("lock")).expect("target/ can be written");
    lock.lock().expect("lockable");
    script(name, &["start", &dir.to_string_lossy()], &[]);
}

/// The version that `POSTGRES_MAJOR` asks for, which the scripts read too; `None` is the installed one.
fn asked_major() -> Option<u32> {
    std::env::var("POSTGRES_MAJOR").ok()?.parse().ok()
}

/// A private PostgreSQL with logical WAL.
#[derive(Debug)]
pub(crate) struct Postgres {
    dir: PathBuf,
    url: String,
    shared: bool,
}

impl Postgres {
    /// The one that all tests share: never stop it, drop your slots.
    pub(crate) async fn shared() -> &'static Postgres {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                tokio::task::spawn_blocking(|| {
                    let name = asked_major().map_or("postgres".to_owned(), |major| format!("postgres-{major}"));
                    let dir = target().join("tests").join(name);
                    start_shared("postgres.sh", &dir);
                    Postgres::at(dir, true)
                })
                .await
                .expect("the script does not panic")
            })
            .await
    }

    /// One of its own for a test that stops or configures it; `settings` are lines of postgresql.conf.
    pub(crate) async fn private(name: &str, settings: &str) -> Postgres {
        Postgres::private_on(None, name, settings).await
    }

    /// As [`Postgres::private`], of a major version, which is fetched when it is not there.
    pub(crate) async fn private_on(major: Option<u32>, name: &str, settings: &str) -> Postgres {
        let (dir, settings) = (scratch(name).join("postgres"), settings.to_owned());
        tokio::task::spawn_blocking(move || {
            let major = major.map(|major| major.to_string());
            let mut environment = vec![("POSTGRES_CONF", settings.as_str())];
            if let Some(major) = &major {
                script("postgres.sh", &["install", major], &[]);
                environment.push(("POSTGRES_MAJOR", major));
            }
            script("postgres.sh", &["start", &dir.to_string_lossy()], &environment);
            Postgres::at(dir, false)
        })
        .await
        .expect("the script does not panic")
    }

    /// The version that the run was asked for by `POSTGRES_MAJOR`.
    pub(crate) fn asked() -> Option<u32> {
        asked_major()
    }

    /// Makes a standby of this server. It is stopped for a moment: the copy is that of its files.
    pub(crate) async fn standby(&self, name: &str) -> Postgres {
        assert!(!self.shared, "a shared server stays up");
        let (dir, of) = (scratch(name).join("postgres"), self.dir.clone());
        tokio::task::spawn_blocking(move || {
            script("postgres.sh", &["standby", &dir.to_string_lossy(), &of.to_string_lossy()], &[]);
            Postgres::at(dir, false)
        })
        .await
        .expect("the script does not panic")
    }

    /// Makes a standby the primary.
    pub(crate) async fn promote(&self) {
        self.control("promote").await;
    }

    /// Cuts a standby off from its primary.
    pub(crate) async fn hear_no_more(&self) {
        let admin = self.connect("postgres").await;
        admin.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.expect("set");
        admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");
        super::wait_for("the standby to be cut off", super::PATIENCE, || async {
            admin.query_opt("SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL", &[]).await.ok()?.is_none().then_some(())
        })
        .await;
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data").canonicalize().expect("the server has data")
    }

    /// Copies the files of a stopped server.
    pub(crate) async fn copy_data(&self) -> PathBuf {
        let backup = self.dir.with_extension("backup");
        copy(&self.data(), &backup).await;
        backup
    }

    /// Puts copied files in the place of a stopped server's own.
    pub(crate) async fn put_data(&self, backup: &Path) {
        let data = self.data();
        for entry in std::fs::read_dir(&data).expect("readable").flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.expect("removed");
        }
        copy(backup, &data).await;
    }

    fn at(dir: PathBuf, shared: bool) -> Postgres {
        let url = script("postgres.sh", &["url", &dir.to_string_lossy()], &[]);
        Postgres { dir, url, shared }
    }

    /// A URL of the superuser for a database.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// A URL for a role (`name` or `name:password`) and a database.
    pub(crate) fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@{}/{database}", self.address())
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("postgres://postgres@").trim_end_matches("/postgres")
    }

    /// A superuser's session.
    pub(crate) async fn connect(&self, database: &str) -> Client {
        connect(&self.url(database)).await
    }

    /// Path of a program that comes with the server.
    pub(crate) async fn program(&self, name: &str) -> PathBuf {
        let bin = async |env: &'static [(&'static str, &'static str)]| {
            let bin = tokio::task::spawn_blocking(move || script("postgres.sh", &["bin"], env)).await.expect("the script does not panic");
            PathBuf::from(bin).join(name)
        };
        let program = bin(&[]).await;
        // Servers of other versions come without clients; the distribution's speak with all of them.
        if program.exists() { program } else { bin(&[("POSTGRES_MAJOR", "")]).await }
    }

    /// From now on these roles need their password (SCRAM-SHA-256).
    pub(crate) async fn require_passwords(&self, roles: &[&str]) {
        assert!(!self.shared, "others connect without one");
        let path = self.dir.join("data").join("pg_hba.conf");
        let rest = std::fs::read_to_string(&path).expect("the server's data are readable");
        let lines: String =
            roles.iter().flat_map(|r| ["all", "replication"].map(|d| format!("host {d} {r} 127.0.0.1/32 scram-sha-256\n"))).collect();
        std::fs::write(&path, lines + &rest).expect("the server's data are writable");
        self.connect("postgres").await.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");
    }

    /// Appends lines to pg_hba.conf, and returns what was there.
    pub(crate) async fn append_hba(&self, lines: &str) -> String {
        let before = std::fs::read_to_string(self.data().join("pg_hba.conf")).expect("the server's data are readable");
        self.write_hba(&(before.clone() + lines)).await;
        before
    }

    /// Writes pg_hba.conf anew.
    pub(crate) async fn write_hba(&self, text: &str) {
        assert!(!self.shared, "others connect by it");
        std::fs::write(self.data().join("pg_hba.conf"), text).expect("the server's data are writable");
        self.connect("postgres").await.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");
    }

    /// Stops, kills, starts: `stop`, `kill9`, `start`, `restart`.
    pub(crate) async fn control(&self, command: &'static str) {
        assert!(!self.shared, "a shared server stays up");
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || script("postgres.sh", &[command, &dir.to_string_lossy()], &[]))
            .await
            .expect("the script does not panic");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if !self.shared {
            script("postgres.sh", &["destroy", &self.dir.to_string_lossy()], &[]);
        }
    }
}

/// Copies what is in a directory, owners and all.
async fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    let copied = tokio::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().await.expect("cp runs");
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}

/// A connection pooler (PgBouncer) in front of a server. Ends with the value.
pub(crate) struct Pooler {
    address: String,
    _process: tokio::process::Child,
}

impl Pooler {
    pub(crate) async fn start(server: &str) -> Pooler {
        let dir = scratch("pooler");
        let port = super::free_port();
        let (host, server_port) = server.split_once(':').expect("an address");
        let text = format!(
            "[databases]\n* = host={host} port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = any\nunix_socket_dir =\n"
        );
        // Its user cannot look into every directory that we can.
        let file = std::env::temp_dir().join(format!("tillstream-pooler-{}.ini", std::process::id()));
        std::fs::write(&file, text).expect("written");
        let log = std::fs::File::create(dir.join("pooler.log")).expect("target/ can be written");
        let mut command = tokio::process::Command::new("pgbouncer");
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        if is_root {
            command.args(["-u", "postgres"]);
        }
        let process = command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn();
        Pooler { address: format!("127.0.0.1:{port}"), _process: process.expect("pgbouncer is installed: tests/run.sh does that") }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

/// A session whose connection lives on a task of its own.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the server accepts");
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// A private RabbitMQ node with streams.
#[derive(Debug)]
pub(crate) struct RabbitMq {
    dir: PathBuf,
    /// `rabbitmq-stream://guest:guest@127.0.0.1:port`.
    pub(crate) url: String,
    shared: bool,
}

/// A private MariaDB.
#[derive(Debug)]
pub(crate) struct MariaDb {
    dir: PathBuf,
    url: String,
    shared: bool,
}

impl MariaDb {
    /// The one that all tests share: never stop it, take a database of your own.
    pub(crate) async fn shared() -> &'static MariaDb {
        static SHARED: OnceCell<MariaDb> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                tokio::task::spawn_blocking(|| {
                    let dir = target().join("tests").join("mariadb");
                    start_shared("mariadb.sh", &dir);
                    MariaDb::at(dir, true)
                })
                .await
                .expect("the script does not panic")
            })
            .await
    }

    /// One of its own, which offers TLS with the files that `certify` puts into the directory (`ca.pem`, `cert.pem`, `key.pem`).
    pub(crate) async fn private(name: &str, certify: impl FnOnce(&Path) + Send + 'static) -> MariaDb {
        let dir = scratch(name).join("mariadb");
        tokio::task::spawn_blocking(move || {
            let tls = dir.join("tls");
            std::fs::create_dir_all(&tls).expect("target/ can be written");
            certify(&tls);
            script("mariadb.sh", &["start", &dir.to_string_lossy()], &[]);
            MariaDb::at(dir, false)
        })
        .await
        .expect("the script does not panic")
    }

    fn at(dir: PathBuf, shared: bool) -> MariaDb {
        let url = script("mariadb.sh", &["url", &dir.to_string_lossy()], &[]);
        MariaDb { dir, url, shared }
    }

    /// A URL of the superuser for a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("{}/{database}", self.url.trim_end_matches("/mysql"))
    }

    /// Stops, kills, starts: `stop`, `kill9`, `start`.
    pub(crate) async fn control(&self, command: &'static str) {
        assert!(!self.shared, "a shared server stays up");
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || script("mariadb.sh", &[command, &dir.to_string_lossy()], &[]))
            .await
            .expect("the script does not panic");
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        if !self.shared {
            script("mariadb.sh", &["destroy", &self.dir.to_string_lossy()], &[]);
        }
    }
}

impl RabbitMq {
    /// The one that all tests share: never stop it, name your streams after the test.
    pub(crate) async fn shared() -> &'static RabbitMq {
        static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                tokio::task::spawn_blocking(|| {
                    let dir = target().join("tests").join("rabbitmq");
                    start_shared("rabbitmq.sh", &dir);
                    RabbitMq::at(dir, true)
                })
                .await
                .expect("the script does not panic")
            })
            .await
    }

    /// One of its own for a test that stops it.
    pub(crate) async fn private(name: &str) -> RabbitMq {
        let dir = scratch(name).join("rabbitmq");
        tokio::task::spawn_blocking(move || {
            script("rabbitmq.sh", &["start", &dir.to_string_lossy()], &[]);
            RabbitMq::at(dir, false)
        })
        .await
        .expect("the script does not panic")
    }

    fn at(dir: PathBuf, shared: bool) -> RabbitMq {
        let url = script("rabbitmq.sh", &["url", &dir.to_string_lossy()], &[]);
        RabbitMq { dir, url, shared }
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stops, kills, starts: `stop`, `kill9`, `start`, `restart`.
    pub(crate) async fn control(&self, command: &'static str) {
        assert!(!self.shared, "a shared server stays up");
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || script("rabbitmq.sh", &[command, &dir.to_string_lossy()], &[]))
            .await
            .expect("the script does not panic");
    }

    /// The node's process.
    pub(crate) async fn pid(&self) -> String {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || script("rabbitmq.sh", &["pid", &dir.to_string_lossy()], &[]))
            .await
            .expect("the script does not panic")
    }

    /// `rabbitmqctl ARGUMENTS`.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> String {
        let dir = self.dir.clone();
        let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let dir = dir.to_string_lossy();
            let mut all = vec!["ctl", &*dir];
            all.extend(arguments.iter().map(String::as_str));
            script("rabbitmq.sh", &all, &[])
        })
        .await
        .expect("the script does not panic")
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        if !self.shared {
            script("rabbitmq.sh", &["destroy", &self.dir.to_string_lossy()], &[]);
        }
    }
}
