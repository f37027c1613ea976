//! The demo: traffic of a restaurant chain, pretend targets, and the comparison of both ends.

/// The commands below `tillstream demo`.
#[derive(Debug, clap::Subcommand)]
pub enum DemoCommand {}

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

/// Runs one command; data goes to stdout, messages to stderr.
///
/// # Errors
/// Whatever ends the command early, and a check that found differences.
pub async fn run(command: DemoCommand) -> Result<(), DemoError> {
    match command {}
}
