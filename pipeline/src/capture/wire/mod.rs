//! The replication connection to PostgreSQL, and the way into the server that ordinary SQL shares.
//!
//! Owns: the URL, TLS, authentication, start-up, copy-both and standby status. Never decodes a change, decides what may
//! be acknowledged, or reconnects: a lost connection ends the capture session.
//!
//! ```text
//! address ─▶ connect (TCP, TLS) ─▶ auth ─▶ replication ─▶ frames, lent to the engine
//! ```
//!
//! The common client libraries have no replication mode; the protocol is described in PostgreSQL's manual under
//! "Streaming Replication Protocol" and "Logical Streaming Replication Protocol".

use async_trait::async_trait;
use secrecy::SecretString;

use super::CaptureError;
use super::catalog;
use super::source::{Looked, Replication, Source};
use crate::config;

mod address;
mod auth;
mod connect;
mod errors;
mod frames;
mod replication;
mod socket;
mod tls;

pub use auth::Method;
pub use replication::PgReplication;

pub use address::Locality;
pub(crate) use address::{Address, Endpoint};
pub(crate) use connect::open;
pub(crate) use errors::{
    Asked, ORIGIN_MAJOR, ServerError, definite, origin_unsupported, slot_lost, slot_missing, slot_unusable, wal_level,
};
pub(crate) use socket::Stream;

/// `application_name` of our connections, so that `pg_stat_activity` explains itself: `tillstream/<pipeline>/<purpose>`.
#[must_use]
pub fn application_name(pipeline: &str, purpose: &str) -> String {
    format!("tillstream/{pipeline}/{purpose}")
}

/// How far what a connection by this URL carries can be listened to.
///
/// # Errors
/// The URL cannot be read.
pub(crate) fn locality(url: &SecretString) -> Result<Locality, CaptureError> {
    Ok(Address::parse(url)?.locality())
}

/// A PostgreSQL server to capture from: the real [`Source`].
pub struct PgSource {
    url: SecretString,
    watcher: String,
    names: replication::Names,
}

impl PgSource {
    /// The configured source of a pipeline. Touches nothing.
    #[must_use]
    pub fn new(source: &config::Source, pipeline: &str) -> PgSource {
        PgSource {
            url: source.url.clone(),
            watcher: application_name(pipeline, "watch"),
            names: replication::Names {
                application: application_name(pipeline, "capture"),
                slot: source.slot.clone(),
                publication: source.publication.clone(),
                allow_weak_auth: source.allow_weak_auth,
                streaming: source.streaming.on,
                origin: source.origin,
            },
        }
    }

    /// Connects, trying the URL's hosts in turn; the last host's error is the answer.
    ///
    /// # Errors
    /// As [`Source::connect`].
    pub async fn log_in(&self) -> Result<PgReplication, CaptureError> {
        let address = Address::parse(&self.url)?;
        let mut last = CaptureError::Unavailable("no host".to_owned());
        for host in &address.hosts {
            let attempt = async {
                let stream = connect::open(&address, host).await?;
                PgReplication::log_in(stream, &address, host, self.names.clone()).await
            };
            match attempt.await {
                Ok(connection) if address.primary_only && connection.is_standby() => {
                    last = CaptureError::Unavailable(format!("{host} is a standby"));
                }
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[async_trait]
impl Source for PgSource {
    async fn connect(&self) -> Result<Box<dyn Replication>, CaptureError> {
        Ok(Box::new(self.log_in().await?))
    }

    async fn look(&self) -> Result<Looked, CaptureError> {
        catalog::look(&self.url, &self.watcher, self.names.allow_weak_auth, &self.names.slot).await
    }
}
