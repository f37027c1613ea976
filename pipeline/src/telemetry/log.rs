//! Log set-up: one line an event on stderr, for people or as JSON. Control characters that came in with a message are
//! escaped, so that no text from outside can forge a line or drive a terminal.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::settings::{Log, LogFormat};

/// The filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("log level \"{0}\" is not a filter")]
pub struct FilterError(String);

/// The client that declares streams warns of each connection it closes itself. A level given for it still wins.
const QUIET: &str = "rabbitmq_stream_client=error";

/// Starts logging for the rest of the process; later calls change nothing.
///
/// # Errors
/// When the level is no filter (`info`, `tillstream::capture=debug,info`).
pub fn start(settings: &Log) -> Result<(), FilterError> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{}", settings.level)).map_err(|_| FilterError(settings.level.clone()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Stderr);
    let _ = match settings.format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Escaping<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaping(io::stderr())
    }
}

/// Writes one event a call and escapes every control character but the line feed at its end.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end) = match event.split_last() {
            Some((b'\n', line)) => (line, true),
            _ => (event, false),
        };
        if line.iter().any(u8::is_ascii_control) {
            let mut escaped = Vec::with_capacity(line.len() + 16);
            for &byte in line {
                match byte.is_ascii_control() {
                    true => escaped.extend(byte.escape_ascii()),
                    false => escaped.push(byte),
                }
            }
            escaped.extend(end.then_some(b'\n'));
            self.0.write_all(&escaped)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_forge_a_line() {
        let mut out = Escaping(Vec::new());
        out.write_all(b"INFO said \"a\nERROR b\x1b[2J\"\n").expect("written");
        assert_eq!(out.0, b"INFO said \"a\\nERROR b\\x1b[2J\"\n");
        let mut out = Escaping(Vec::new());
        out.write_all("INFO käse\n".as_bytes()).expect("written");
        assert_eq!(out.0, "INFO käse\n".as_bytes());
    }
}
