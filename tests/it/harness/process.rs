//! The program under test as a child process, with its output kept and judged.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use super::program;

/// A running `tillstream`. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `tillstream ARGUMENTS` in `dir`; its output goes to `<name>.out` and `<name>.err` there, appended, so that a
    /// restarted process continues the log of the one before.
    pub(crate) fn start(dir: &Path, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        let open = |end: &str| {
            File::options().create(true).append(true).open(dir.join(format!("{name}.{end}"))).expect("the directory can be written")
        };
        let child = Command::new(program())
            .args(arguments)
            .envs(environment.iter().copied())
            .env("RUST_BACKTRACE", "1")
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(open("out"))
            .stderr(open("err"))
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        Process { child, name: name.to_owned(), stdout: dir.join(format!("{name}.out")), stderr: dir.join(format!("{name}.err")) }
    }

    /// The process id; the process must not have ended.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// Everything it wrote to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// Everything it wrote to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Whether it ended by itself; its status then.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// kill -9.
    pub(crate) async fn kill9(mut self) {
        self.child.kill().await.expect("a child can be killed");
        let status = self.child.wait().await.expect("a child can be waited for");
        assert_eq!(status.signal(), Some(9), "{} ended by itself before the kill: {status}; {}", self.name, tail(&self.stderr()));
    }

    /// kill -9, unless it ended by itself: for a client whose server went away first.
    pub(crate) async fn end(mut self) {
        // A child that has ended cannot be killed; either way there is one to wait for.
        let _ = self.child.start_kill();
        self.child.wait().await.expect("a child can be waited for");
    }

    /// SIGTERM; it has to end within the deadline, in good order.
    pub(crate) async fn terminate(self, within: Duration) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill runs");
        assert!(sent.success(), "{} has ended before the signal", self.name);
        self.finish(within).await;
    }

    /// Waits for a good end.
    pub(crate) async fn finish(self, within: Duration) {
        let (name, stderr) = (self.name.clone(), self.stderr.clone());
        let status = self.wait(within).await;
        let log = std::fs::read_to_string(stderr).unwrap_or_default();
        assert!(status.success(), "{name} ended with {status}; {}", tail(&log));
    }

    /// Waits for any end.
    pub(crate) async fn wait(mut self, within: Duration) -> ExitStatus {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status.expect("a child can be waited for"),
            Err(_) => panic!("{} did not end within {within:?}; {}", self.name, tail(&self.stderr())),
        }
    }

    /// Resident memory at its highest so far, in KiB.
    pub(crate) fn peak_rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_else(|| panic!("{} has ended", self.name))
    }
}

/// What no log may hold unless the test announced it: panics, and lines of level ERROR. `announced` are fragments of lines that
/// the test provoked.
pub(crate) fn judge_log(path: &Path, announced: &[&str]) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let bad = |line: &&str| {
        let shouts = line.contains(" ERROR ")
            || line.contains("\"level\":\"ERROR\"")
            || line.contains("panicked at")
            || line.contains("stack overflow");
        shouts && !announced.iter().any(|a| line.contains(a))
    };
    let lines: Vec<&str> = text.lines().filter(bad).take(5).collect();
    assert!(lines.is_empty(), "{}: {lines:#?}", path.display());
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    format!("the end of its log:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
}
