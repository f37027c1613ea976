//! What the doctor looks at, read in a few queries.

use std::collections::HashMap;

use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, ServerFacts, SlotFacts, TableFacts, sql_error};
use crate::capture::wire::application_name;
use crate::config;

/// Settings the rules ask for.
pub(super) const SETTINGS: &str = "SELECT name, setting FROM pg_settings WHERE name IN ('max_replication_slots', 'max_wal_senders', \
     'max_slot_wal_keep_size', 'wal_sender_timeout', 'password_encryption', 'ssl', 'listen_addresses', 'idle_replication_slot_timeout', \
     'synchronized_standby_slots', 'logical_decoding_work_mem')";

/// How many slots and walsenders are taken.
pub(super) const USED: &str = "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication), \
     (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND active)";

/// Transactions that have been open for a while: creating a slot would wait for them, and they hold its WAL.
pub(super) const LONG_TRANSACTIONS: &str = "SELECT pid, coalesce(nullif(application_name, ''), usename, '?'), extract(epoch FROM now() - xact_start)::float8 \
     FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
     AND xact_start < now() - interval '15 minutes' ORDER BY xact_start LIMIT 5";

/// Transactions prepared and forgotten.
pub(super) const PREPARED: &str = "SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - interval '15 minutes'";

/// What the role may do.
pub(super) const ROLE: &str = "SELECT rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' \
     AND pg_has_role(current_user, m.oid, 'MEMBER')), rolsuper, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
     FROM pg_roles r WHERE rolname = current_user";

/// What the server wrote to its disk while it decoded for a slot.
pub(super) const DECODING: &str = "SELECT spill_txns, spill_bytes, total_txns FROM pg_stat_replication_slots WHERE slot_name = $1::text";

/// What the doctor looks at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The server.
    pub server: ServerFacts,
    /// Settings by name; what a version does not have is absent.
    pub settings: HashMap<String, String>,
    /// Replication slots in use.
    pub slots_used: i64,
    /// Walsenders in use.
    pub senders_used: i64,
    /// Standbys that follow by a slot of their own.
    pub standbys: i64,
    /// The configured tables; `None` where there is none.
    pub tables: Vec<((String, String), Option<TableFacts>)>,
    /// The publication.
    pub publication: Option<PublicationFacts>,
    /// Published tables that are not configured.
    pub extra: Vec<TableFacts>,
    /// The slot.
    pub slot: Option<SlotFacts>,
    /// WAL bytes that the slot keeps.
    pub retained_bytes: Option<u64>,
    /// Transactions that the server spilled while decoding, their bytes, and all transactions.
    pub spilled: Option<(i64, i64, i64)>,
    /// `application_name` of whoever streams from the slot; `None` when nobody does, empty when it is hidden from us.
    pub slot_reader: Option<String>,
    /// Whether that is this pipeline's own capture.
    pub slot_reader_is_ours: bool,
    /// Long transactions: process, application, seconds.
    pub long_transactions: Vec<(i32, String, f64)>,
    /// Old prepared transactions.
    pub prepared: i64,
    /// Whether the role may replicate.
    pub can_replicate: bool,
    /// Whether it is a superuser.
    pub superuser: bool,
    /// Whether it sees other roles' activity.
    pub sees_activity: bool,
}

impl Facts {
    /// Reads them.
    pub(super) async fn read(catalog: &Catalog, source: &config::Source, pipeline: &str) -> Result<Facts, CaptureError> {
        let client = catalog.client();
        let settings = client.query(SETTINGS, &[]).await.map_err(sql_error)?;
        let used = client.query_one(USED, &[]).await.map_err(sql_error)?;
        let role = client.query_one(ROLE, &[]).await.map_err(sql_error)?;
        let long = client.query(LONG_TRANSACTIONS, &[]).await.map_err(sql_error)?;
        let prepared = client.query_one(PREPARED, &[]).await.map_err(sql_error)?.get(0);
        let names: Vec<(String, String)> = source.tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
        let tables = names.iter().cloned().zip(catalog.tables(&names).await?).collect();
        let publication = catalog.publication(&source.publication).await?;
        let others: Vec<(String, String)> = publication
            .iter()
            .flat_map(|p| &p.tables)
            .map(|t| (t.schema.clone(), t.table.clone()))
            .filter(|name| !names.contains(name))
            .collect();
        let slot = catalog.slot(&source.slot).await?;
        let slot_reader = match slot.as_ref().and_then(|s| s.active_pid) {
            Some(pid) => {
                let sql = "SELECT coalesce(application_name, '') FROM pg_stat_activity WHERE pid = $1";
                Some(client.query_opt(sql, &[&pid]).await.map_err(sql_error)?.map_or(String::new(), |row| row.get(0)))
            }
            None => None,
        };
        let spilled = client.query_opt(DECODING, &[&source.slot]).await.map_err(sql_error)?;
        let current = catalog.current_wal().await?;
        Ok(Facts {
            server: catalog.server().clone(),
            settings: settings.iter().map(|row| (row.get(0), row.get(1))).collect(),
            slots_used: used.get(0),
            senders_used: used.get(1),
            standbys: used.get(2),
            tables,
            publication,
            extra: catalog.tables(&others).await?.into_iter().flatten().collect(),
            retained_bytes: slot.as_ref().and_then(|s| s.retained_bytes(current)),
            slot,
            spilled: spilled.map(|row| (row.get(0), row.get(1), row.get(2))),
            slot_reader_is_ours: slot_reader.as_deref() == Some(application_name(pipeline, "capture").as_str()),
            slot_reader,
            long_transactions: long.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(),
            prepared,
            can_replicate: role.get(0),
            superuser: role.get(1),
            sees_activity: role.get(2),
        })
    }

    /// A setting as a number, if it is there.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.settings.get(name)?.parse().ok()
    }
}
