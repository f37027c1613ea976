//! `tillstream setup`: what the owner of the point-of-sale database runs once, as SQL to read first.
//!
//! Owns the plan (which statements, in which order, why) and its two uses: printing and applying. Never sets or prints
//! a password, never changes a server setting, never drops anything. Every statement can run twice.

use secrecy::SecretString;

use crate::capture::CaptureError;
use crate::capture::catalog::Catalog;
use crate::capture::wire::application_name;
use crate::config;

mod apply;
mod plan;

pub use apply::{Applied, apply};
pub use plan::{Facts, Plan, Statement, Step};

/// The role that streams: REPLICATION and nothing else.
pub const STREAM_ROLE: &str = "tillstream";

/// The role that reads tables for backfills.
pub const BACKFILL_ROLE: &str = "tillstream_backfill";

/// Reads what the plan depends on, as whoever `admin_url` names (the source's own URL when `None`), and makes the plan.
/// Changes nothing. The connection is for [`apply`].
///
/// # Errors
/// The server cannot be reached or refuses; a configured table is missing; the server can never be captured from.
pub async fn prepare(source: &config::Source, pipeline: &str, admin_url: Option<&SecretString>) -> Result<(Plan, Catalog), CaptureError> {
    let url = admin_url.unwrap_or(&source.url);
    let catalog = Catalog::connect_url(url, &application_name(pipeline, "setup"), source.allow_weak_auth).await?;
    let facts = Facts::read(&catalog, source).await?;
    Ok((plan::plan(source, pipeline, &facts)?, catalog))
}
