//! The demo: traffic of a restaurant chain, a pretend engagement API, and the comparison of both ends.
//!
//! Nothing here is used by the pipeline itself. The tests and `docker/demo.sh` run these commands against private servers.

pub mod progress;
pub mod target;
pub mod traffic;
pub mod verify;

/// The commands below `tillstream demo`.
#[derive(Debug, clap::Subcommand)]
pub enum DemoCommand {
    /// Sell: orders, payments, voids, refunds and everything else a chain of restaurants does to its database.
    Traffic(traffic::Arguments),
    /// A pretend engagement API: honours idempotency keys, answers 429 and 500 now and then.
    Target(target::Arguments),
    /// Tell the pretend engagement API to accept the planted guest.
    Accept(target::AcceptArguments),
    /// One line of progress every few seconds, from the status of both processes.
    Progress(progress::Arguments),
    /// Compare the point of sale's history, the journal and the targets; prints one JSON line.
    Verify(verify::Arguments),
}

/// Why a demo command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DemoError {
    /// Stable dotted code, as `demo.differs`.
    pub code: &'static str,
    /// What happened, without row values.
    pub message: String,
    /// The process's exit code (1: a check found differences; 69: a server is away; 70: our own fault).
    pub exit: u8,
}

impl DemoError {
    fn unavailable(what: &str, error: impl std::fmt::Display) -> Self {
        DemoError { code: "demo.unavailable", message: format!("{what}: {error}"), exit: 69 }
    }

    fn internal(what: &str, error: impl std::fmt::Display) -> Self {
        DemoError { code: "demo.internal", message: format!("{what}: {error}"), exit: 70 }
    }
}

/// Runs one command; data goes to stdout, messages to stderr.
///
/// # Errors
/// Whatever ends the command early, and a check that found differences.
pub async fn run(command: DemoCommand) -> Result<(), DemoError> {
    match command {
        DemoCommand::Traffic(arguments) => traffic::run(arguments).await,
        DemoCommand::Target(arguments) => target::run(arguments).await,
        DemoCommand::Accept(arguments) => target::send_accept(arguments).await,
        DemoCommand::Progress(arguments) => progress::run(arguments).await,
        DemoCommand::Verify(arguments) => verify::run(arguments).await,
    }
}

/// Resolves when the process is asked to end (SIGTERM or Ctrl-C).
pub(crate) async fn terminated() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
