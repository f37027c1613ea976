//! Settings of the process, not of the pipeline: how it logs and where it keeps what it may lose. Layers, weakest first:
//! defaults, an optional file (`--settings`), environment (`TILLSTREAM__LOG__LEVEL`), flags.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Settings of one process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How it logs.
    pub log: Log,
    /// The admin endpoint.
    pub admin: Admin,
    /// Spans.
    pub telemetry: Telemetry,
}

/// Spans for an OpenTelemetry collector.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Address of a collector that takes OTLP over HTTP, as `http://127.0.0.1:4318`.
    pub otlp: Option<String>,
    /// Part of the batches and calls that has a span, 0 to 1.
    pub sample: f64,
}

/// How the process logs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A filter as `info` or `info,tillstream::capture=debug`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What a process may say about its own admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Overrides the pipeline file's `admin.listen`: two processes of one pipeline need two addresses.
    pub listen: Option<std::net::SocketAddr>,
    /// What commands show at the admin endpoint of a running process; one of its `admin.tokens`.
    pub token: Option<Token>,
}

/// A token of a command.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The token itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Never shows it.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What flags say; they win.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--settings`.
    pub file: Option<PathBuf>,
    /// `--log-level`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
}

/// Settings could not be read; the text names file or variable.
#[derive(Debug, thiserror::Error)]
#[error("settings: {0}")]
pub struct SettingsError(String);

/// Reads the settings.
///
/// # Errors
/// When the file cannot be read, or a key or value is unknown in any layer.
pub fn load(flags: &Flags) -> Result<Settings, SettingsError> {
    let environment = config::Environment::with_prefix("TILLSTREAM").prefix_separator("__").separator("__");
    layered(flags, environment)
}

fn layered(flags: &Flags, environment: config::Environment) -> Result<Settings, SettingsError> {
    let failed = |error: config::ConfigError| SettingsError(error.to_string());
    let mut builder = config::Config::builder()
        .set_default("log.level", "info")
        .and_then(|b| b.set_default("log.format", "human"))
        .and_then(|b| b.set_default("admin.listen", None::<String>))
        .and_then(|b| b.set_default("telemetry.otlp", None::<String>))
        .and_then(|b| b.set_default("telemetry.sample", 1.0))
        .map_err(failed)?;
    if let Some(file) = &flags.file {
        builder = builder.add_source(config::File::from(Path::new(file)).format(config::FileFormat::Yaml));
    }
    builder = builder.add_source(environment);
    let mut settings: Settings = builder.build().and_then(config::Config::try_deserialize).map_err(failed)?;
    if !(0.0..=1.0).contains(&settings.telemetry.sample) {
        return Err(SettingsError("telemetry.sample is a part: 0 to 1".to_owned()));
    }
    if let Some(level) = &flags.log_level {
        settings.log.level.clone_from(level);
    }
    if let Some(format) = flags.log_format {
        settings.log.format = format;
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)], flags: &Flags) -> Result<Settings, SettingsError> {
        let source = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        layered(flags, config::Environment::with_prefix("TILLSTREAM").prefix_separator("__").separator("__").source(Some(source)))
    }

    #[test]
    fn layers_win_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("s.yaml");
        std::fs::write(&file, "log: {level: warn, format: json}\nadmin: {listen: \"127.0.0.1:1\"}\n").expect("written");
        let mut flags = Flags::default();
        assert_eq!(with(&[], &flags).expect("defaults").log, Log { level: "info".to_owned(), format: LogFormat::Human });
        flags.file = Some(file);
        let settings = with(&[("TILLSTREAM__LOG__LEVEL", "debug")], &flags).expect("layers");
        assert_eq!(settings.log, Log { level: "debug".to_owned(), format: LogFormat::Json });
        assert_eq!(settings.admin.listen.map(|a| a.port()), Some(1));
        let told = with(&[("TILLSTREAM__ADMIN__TOKEN", "0123456789abcdef")], &flags).expect("a token");
        assert!(
            told.admin.token.as_ref().is_some_and(|token| token.expose() == "0123456789abcdef") && !format!("{told:?}").contains("0123")
        );
        assert_eq!(settings.telemetry, Telemetry { otlp: None, sample: 1.0 });
        let traced = with(&[("TILLSTREAM__TELEMETRY__OTLP", "http://c:4318"), ("TILLSTREAM__TELEMETRY__SAMPLE", "0.25")], &flags);
        assert_eq!(traced.expect("traced").telemetry, Telemetry { otlp: Some("http://c:4318".to_owned()), sample: 0.25 });
        flags.log_level = Some("error".to_owned());
        assert_eq!(with(&[("TILLSTREAM__LOG__LEVEL", "debug")], &flags).expect("flags").log.level, "error");
    }

    #[test]
    fn misspelt_settings_are_refused() {
        assert!(with(&[("TILLSTREAM__LGO__LEVEL", "debug")], &Flags::default()).is_err());
        assert!(with(&[("TILLSTREAM__TELEMETRY__SAMPLE", "1.5")], &Flags::default()).is_err());
        assert!(with(&[("TILLSTREAM__LOG__FORMAT", "xml")], &Flags::default()).is_err());
        assert!(with(&[], &Flags { file: Some("/nonexistent.yaml".into()), ..Flags::default() }).is_err());
    }
}
