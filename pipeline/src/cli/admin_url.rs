//! The URL of whoever may do more at the source than the pipeline may.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

use super::output::End;
use crate::ops::failure::Failure;

/// The source as another role.
#[derive(Debug, Args)]
pub(super) struct AdminUrl {
    /// URL of a role that may create roles, publications and slots; the source's own URL when absent
    #[arg(long, value_name = "URL", alias = "source-url", conflicts_with = "admin_url_file")]
    admin_url: Option<String>,
    /// File with that URL, so that its password stands in no process list
    #[arg(long, value_name = "FILE")]
    admin_url_file: Option<PathBuf>,
}

impl AdminUrl {
    /// The URL, if one is given.
    pub(super) fn read(&self) -> Result<Option<SecretString>, End> {
        Ok(match (&self.admin_url, &self.admin_url_file) {
            (Some(url), _) => Some(SecretString::from(url.clone())),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| Failure::new("config.unreadable_file", format!("{}: {e}", path.display())))?;
                Some(SecretString::from(text.trim().to_owned()))
            }
            (None, None) => None,
        })
    }
}
