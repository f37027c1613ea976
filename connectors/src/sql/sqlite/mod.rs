//! SQLite: a file of this machine. Rows are written one by one, because no network lies between.
//!
//! Calls go to a thread that may block; one connection writes at a time, and the others wait up to the block's `timeout`.

mod errors;
mod layout;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::compare::ReadCompare;
use super::config::SqlConfig;
use super::dialect::{Database, ReadBack, Readable, Session};
use crate::sink::{Compare, SinkError};
use session::SqliteSession;

/// A file.
#[derive(Clone, Debug)]
pub(super) struct Address {
    path: PathBuf,
}

impl Address {
    /// Checks a URL: `sqlite:/var/lib/stock.db` or `sqlite:///var/lib/stock.db`.
    pub(super) fn parse(url: &str) -> Result<Address, String> {
        let path = url.strip_prefix("sqlite:").unwrap_or_default();
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.contains('?') {
            return Err("has parameters, and a file takes none".into());
        }
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err("must name the file by its whole path, as sqlite:/var/lib/stock.db".into());
        }
        Ok(Address { path })
    }

    async fn open(&self, timeout: Duration) -> Result<SqliteSession, SinkError> {
        SqliteSession::open(self.path.clone(), timeout).await
    }
}

#[async_trait]
impl Database for Address {
    async fn connect(&self, _name: &str, config: &SqlConfig) -> Result<Box<dyn Session>, SinkError> {
        Ok(Box::new(self.open(config.timeout).await?))
    }

    fn compare(&self, config: Arc<SqlConfig>) -> Box<dyn Compare> {
        Box::new(ReadCompare::new(config, Box::new(self.clone())))
    }
}

#[async_trait]
impl Readable for Address {
    async fn read_back(&self, config: &SqlConfig) -> Result<Box<dyn ReadBack>, SinkError> {
        Ok(Box::new(self.open(config.timeout).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_its_whole_path() {
        for url in ["sqlite:/var/lib/stock.db", "sqlite:///var/lib/stock.db"] {
            assert_eq!(Address::parse(url).expect(url).path, PathBuf::from("/var/lib/stock.db"));
        }
        for url in ["sqlite:stock.db", "sqlite://stock.db", "sqlite:", "sqlite:/a.db?mode=ro"] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
