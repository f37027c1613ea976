//! `tillstream setup`: what the owner of the point-of-sale database runs once, as SQL to read first, and what takes it back.
//!
//! Owns the plans (which statements, in which order, why) and their uses: printing, applying, the text of a change ticket. Never sets
//! or prints a password, never changes a server setting, drops only when removal is asked for. Every statement can run twice.

use secrecy::SecretString;

use super::provider::Provider;
use crate::capture::CaptureError;
use crate::capture::catalog::Catalog;
use crate::capture::wire::application_name;
use crate::config;

mod apply;
mod clouds;
mod facts;
mod plan;
mod remove;
mod ticket;

pub use apply::{Applied, apply};
pub use facts::{Facts, Granted, Oldest, RoleFacts, columns_shown, hides_columns};
pub(crate) use plan::column_list;
pub use plan::{Plan, Statement, Step};
pub use remove::removable;
pub use ticket::ticket;

/// The role that streams: REPLICATION and nothing else.
pub const STREAM_ROLE: &str = "tillstream";

/// The role that reads tables for backfills.
pub const BACKFILL_ROLE: &str = "tillstream_backfill";

/// What may be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who runs the server; `None`: it is recognised.
    pub provider: Option<Provider>,
    /// The role that streams.
    pub stream_role: String,
    /// The role that reads tables.
    pub backfill_role: String,
    /// List the columns of every table in the publication, so that a later one does not leave the database by itself.
    pub column_lists: bool,
    /// A removal drops the roles although other slots show that another pipeline may use them.
    pub drop_roles: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            provider: None,
            stream_role: STREAM_ROLE.to_owned(),
            backfill_role: BACKFILL_ROLE.to_owned(),
            column_lists: false,
            drop_roles: false,
        }
    }
}

/// A plan with what it was made from; the connection is for [`apply`].
pub struct Prepared {
    /// What the catalogue says.
    pub facts: Facts,
    /// What is to be done.
    pub plan: Plan,
    /// The connection.
    pub catalog: Catalog,
}

/// Reads what the plan depends on, as whoever `admin_url` names (the source's own URL when `None`), and makes the plan. Changes nothing.
///
/// # Errors
/// The server cannot be reached or refuses; a configured table is missing; the server can never be captured from.
pub async fn prepare(
    source: &config::Source,
    pipeline: &str,
    admin_url: Option<&SecretString>,
    options: &Options,
) -> Result<Prepared, CaptureError> {
    let (facts, catalog) = look(source, pipeline, admin_url, options).await?;
    Ok(Prepared { plan: plan::plan(source, pipeline, &facts, options)?, facts, catalog })
}

/// As [`prepare`], for leaving nothing behind.
///
/// # Errors
/// As [`prepare`], but that tables may be missing.
pub async fn prepare_removal(
    source: &config::Source,
    pipeline: &str,
    admin_url: Option<&SecretString>,
    options: &Options,
) -> Result<Prepared, CaptureError> {
    // A configured table that is gone has nothing to take away.
    let without = config::Source { tables: Vec::new(), ..source.clone() };
    let (facts, catalog) = look(&without, pipeline, admin_url, options).await?;
    Ok(Prepared { plan: remove::plan(source, pipeline, &facts, options)?, facts, catalog })
}

async fn look(
    source: &config::Source,
    pipeline: &str,
    admin_url: Option<&SecretString>,
    options: &Options,
) -> Result<(Facts, Catalog), CaptureError> {
    let url = admin_url.unwrap_or(&source.url);
    let catalog = Catalog::connect_url(url, &application_name(pipeline, "setup"), source.allow_weak_auth).await?;
    let facts = Facts::read(&catalog, source, (&options.stream_role, &options.backfill_role), options.provider).await?;
    Ok((facts, catalog))
}

/// What a plan is for, in one line.
fn title(source: &config::Source, pipeline: &str, facts: &Facts) -> String {
    format!(
        "Tillstream: pipeline \"{}\", source \"{}\", PostgreSQL {} ({}), database \"{}\"",
        pipeline,
        source.name,
        facts.server.version,
        facts.provider.name(),
        facts.server.database
    )
}

#[cfg(test)]
pub(crate) mod testing {
    //! A small catalogue for the unit tests of plans.

    use tillstream_schemas::table::Identity;

    use super::{Facts, RoleFacts};
    use crate::capture::catalog::{ColumnFacts, ServerFacts, TableFacts};
    use crate::config;
    use crate::ops::provider::Provider;

    pub(crate) fn table(name: &str, keyed: bool, rewrites: i64) -> TableFacts {
        let column = |name: &str, generated| ColumnFacts {
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            type_name: "text".to_owned(),
            not_null: false,
            generated,
        };
        TableFacts {
            oid: 1,
            schema: "public".to_owned(),
            table: name.to_owned(),
            kind: 'r',
            persistence: 'p',
            is_partition: false,
            row_security: false,
            identity: Identity::Default,
            primary_key: if keyed { vec!["id".to_owned()] } else { Vec::new() },
            identity_columns: if keyed { vec!["id".to_owned()] } else { Vec::new() },
            columns: vec![column("id", false), column("Note", false), column("total", true)],
            rows_estimate: -1.0,
            rewrites,
        }
    }

    /// A server on which nothing was made yet.
    pub(crate) fn facts(version_num: i32) -> Facts {
        let tables = vec![table("order", true, 9), table("audit", false, 0), table("queue", false, 3)];
        let all = |t: &TableFacts| t.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        let role = |name: &str| RoleFacts {
            name: name.to_owned(),
            columns_closed: tables.iter().map(all).collect(),
            connects: true,
            ..RoleFacts::default()
        };
        Facts {
            server: ServerFacts {
                version_num,
                version: "x".to_owned(),
                wal_level: "logical".to_owned(),
                in_recovery: false,
                database: "pos".to_owned(),
                encoding: "UTF8".to_owned(),
                user: "postgres".to_owned(),
            },
            provider: Provider::SelfHosted,
            publication: None,
            slot: None,
            other_slots: Vec::new(),
            slot_keep_mb: -1,
            stream: role("tillstream"),
            backfill: role("tillstream_backfill"),
            tables,
            oldest: None,
        }
    }

    pub(crate) fn source() -> config::Source {
        config::Source {
            name: "pos".to_owned(),
            url: "postgres://u:hunter2@localhost/pos".to_owned().into(),
            backfill_url: None,
            slot: "s".to_owned(),
            publication: "p".to_owned(),
            tables: Vec::new(),
            hold_back: config::HoldBack { time: std::time::Duration::ZERO, bytes: 0 },
            wal_budget: 5 << 30,
            initial_load: false,
            allow_weak_auth: false,
            columns: Default::default(),
            streaming: Default::default(),
            origin: Default::default(),
        }
    }
}
