//! Ordinary SQL on the source: what slot, publication, tables and settings are, and the few things capture asks or
//! tells the server outside the replication stream.
//!
//! Never reads a row of a captured table and never changes a setting. Goes through the same address, TLS and
//! authentication rules as the replication connection; text comes in the same pinned formats.

use std::collections::HashMap;

use secrecy::SecretString;
use tillstream_schemas::Lsn;
use tokio_postgres::Client;

use super::CaptureError;
use super::wire::{Asked, ServerError, application_name};
use crate::config;

mod check;
mod facts;
mod look;
mod session;
mod snapshot;
pub(crate) mod sql;

pub use check::{StartFacts, Warning, check_start};
pub(crate) use check::{identifier, identity_warning, literal};
pub use facts::{ColumnFacts, PublicationFacts, PublishedTable, ServerFacts, SlotFacts, TableFacts};
pub(crate) use look::look;
pub use snapshot::Snapshot;

/// A connection for ordinary SQL. Dropping it closes it.
pub struct Catalog {
    client: Client,
    server: ServerFacts,
}

impl Catalog {
    /// Connects to the configured source as its streaming role; `purpose` becomes part of `application_name`.
    ///
    /// # Errors
    /// As the replication connection's: transient when the server is away, coded when it refuses.
    pub async fn connect(source: &config::Source, pipeline: &str, purpose: &str) -> Result<Catalog, CaptureError> {
        Catalog::connect_url(&source.url, &application_name(pipeline, purpose), source.allow_weak_auth).await
    }

    /// Connects as the role that reads tables for backfills: its own URL, else the stream's.
    ///
    /// # Errors
    /// As [`Catalog::connect`].
    pub async fn connect_backfill(source: &config::Source, pipeline: &str) -> Result<Catalog, CaptureError> {
        let url = source.backfill_url.as_ref().unwrap_or(&source.url);
        Catalog::connect_url(url, &application_name(pipeline, "backfill"), source.allow_weak_auth).await
    }

    /// Connects to any URL.
    ///
    /// # Errors
    /// As [`Catalog::connect`].
    pub async fn connect_url(url: &SecretString, application: &str, allow_weak_auth: bool) -> Result<Catalog, CaptureError> {
        let client = session::open(url, application, allow_weak_auth).await?;
        let server = facts::server(&client).await?;
        Ok(Catalog { client, server })
    }

    /// The connection itself. Names have to be qualified: the search path is empty.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The same, for transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// What the server said of itself when we connected.
    #[must_use]
    pub fn server(&self) -> &ServerFacts {
        &self.server
    }

    /// A replication slot, or `None` when there is none of that name.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn slot(&self, name: &str) -> Result<Option<SlotFacts>, CaptureError> {
        facts::slot(&self.client, name).await
    }

    /// A publication with its tables, or `None`.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn publication(&self, name: &str) -> Result<Option<PublicationFacts>, CaptureError> {
        facts::publication(&self.client, name).await
    }

    /// Tables by (schema, name), in the order asked for; `None` where there is none.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn tables(&self, names: &[(String, String)]) -> Result<Vec<Option<TableFacts>>, CaptureError> {
        facts::tables(&self.client, names).await
    }

    /// The configured tables, in order.
    ///
    /// # Errors
    /// `capture.table_missing`, or the server is away or refuses.
    pub async fn configured_tables(&self, source: &config::Source) -> Result<Vec<TableFacts>, CaptureError> {
        let names: Vec<_> = source.tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
        let found = self.tables(&names).await?;
        names.iter().zip(found).map(|(name, table)| table.ok_or_else(|| check::table_missing(name, &self.server.database))).collect()
    }

    /// One table.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn table(&self, schema: &str, table: &str) -> Result<Option<TableFacts>, CaptureError> {
        let mut found = self.tables(&[(schema.to_owned(), table.to_owned())]).await?;
        Ok(found.pop().flatten())
    }

    /// Primary key columns by (schema, table), in key order; tables without one are absent.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn primary_keys(&self, tables: &[config::SourceTable]) -> Result<HashMap<(String, String), Vec<String>>, CaptureError> {
        let names: Vec<_> = tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
        Ok(facts::primary_keys(self.tables(&names).await?.iter().flatten()))
    }

    /// How far WAL is flushed: what the stream can reach now. On a standby, how far it is replayed.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn current_wal(&self) -> Result<Lsn, CaptureError> {
        let sql = if self.server.in_recovery { "SELECT pg_last_wal_replay_lsn()::text" } else { "SELECT pg_current_wal_flush_lsn()::text" };
        let text: Option<String> = self.client.query_one(sql, &[]).await.map_err(sql_error)?.get(0);
        text.and_then(|t| t.parse().ok()).ok_or_else(|| CaptureError::Unavailable("the server reports no WAL position".to_owned()))
    }

    /// Writes a transactional logical message; the stream brings it back. The prefix of ours is `tillstream/`.
    /// Match it by its content: some hosts return an LSN here that is not the one in the stream.
    ///
    /// # Errors
    /// The server is away or refuses (a standby cannot).
    pub async fn emit_message(&self, prefix: &str, content: &str) -> Result<(), CaptureError> {
        // Execution by name needs a cast: the function is overloaded for text and bytea.
        self.client.execute("SELECT pg_logical_emit_message(true, $1::text, $2::text)", &[&prefix, &content]).await.map_err(sql_error)?;
        Ok(())
    }

    /// The snapshot as of now; inside a REPEATABLE READ transaction, that transaction's.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn snapshot(&self) -> Result<Snapshot, CaptureError> {
        snapshot::current(&self.client).await
    }
}

/// What an error of ordinary SQL means to capture. Never carries a row value.
#[must_use]
pub fn sql_error(error: tokio_postgres::Error) -> CaptureError {
    match error.as_db_error() {
        Some(db) => ServerError { code: db.code().clone(), message: db.message().to_owned() }.explain(Asked::Sql),
        None => CaptureError::Unavailable(session::with_causes(&error)),
    }
}
