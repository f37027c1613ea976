//! A private PostgreSQL server whose settings, certificates and access rules a test may change.

use std::path::{Path, PathBuf};
use std::process::Command;

use secrecy::SecretString;
use tillstream::config::{HoldBack, Source, SourceTable};

/// A running server; removed when dropped.
pub(super) struct Server {
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts a new server; `settings` are lines of its postgresql.conf.
    pub(super) fn start(settings: &str) -> Server {
        let server = Server { dir: tempfile::tempdir().expect("a directory") };
        server.script("start", &[], settings);
        server
    }

    fn script(&self, command: &str, arguments: &[&str], settings: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/postgres.sh");
        let output = Command::new(script)
            .arg(command)
            .arg(self.dir.path().join("server"))
            .args(arguments)
            .env("POSTGRES_CONF", settings)
            .output()
            .expect("docker/postgres.sh runs");
        assert!(output.status.success(), "postgres.sh {command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(super) fn restart(&self) {
        self.script("restart", &[], "");
    }

    /// Runs SQL as superuser and returns what psql prints, without headings.
    pub(super) fn sql(&self, database: &str, sql: &str) -> String {
        self.psql(database, &["-c", sql])
    }

    /// Runs psql as superuser.
    pub(super) fn psql(&self, database: &str, arguments: &[&str]) -> String {
        self.script("psql", &[&["-d", database, "-v", "ON_ERROR_STOP=1", "-At"], arguments].concat(), "")
    }

    /// Whether SQL succeeds.
    pub(super) fn try_sql(&self, database: &str, sql: &str) -> bool {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/postgres.sh");
        let server = self.dir.path().join("server");
        let output = Command::new(script).arg("psql").arg(server).args(["-d", database, "-c", sql]).output();
        output.expect("docker/postgres.sh runs").status.success()
    }

    pub(super) fn port(&self) -> String {
        let url = self.script("url", &[], "");
        url.rsplit(':').next().and_then(|t| t.split('/').next()).expect("a port").to_owned()
    }

    /// Where its files are.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.path().join("server/data").canonicalize().expect("the data directory")
    }

    /// Writes a file that the server may read, and nobody else.
    pub(super) fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let path = self.data().join(name);
        let owner = std::fs::metadata(self.data()).expect("metadata");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).expect("owner");
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.data().join("server.log")).expect("a log")
    }

    /// `postgres://USER@127.0.0.1:PORT/DATABASE` and a query.
    pub(super) fn url(&self, user: &str, database: &str, query: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}{query}", self.port())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.script("destroy", &[], "");
    }
}

/// A source at a URL, with slot `s` and publication `p` over `public.t`.
pub(crate) fn source(url: &str) -> Source {
    Source {
        name: "pos".to_owned(),
        url: SecretString::from(url.to_owned()),
        backfill_url: None,
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        tables: vec![SourceTable { schema: "public".to_owned(), table: "t".to_owned(), partition_by: None }],
        hold_back: HoldBack { time: std::time::Duration::ZERO, bytes: 0 },
        wal_budget: 5 << 30,
        initial_load: false,
        allow_weak_auth: false,
        columns: Default::default(),
        streaming: Default::default(),
        origin: Default::default(),
    }
}
