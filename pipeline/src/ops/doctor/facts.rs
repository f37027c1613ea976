//! What the doctor looks at, read in fewer than twenty light queries. What a login may not see is left out and said.

use std::collections::HashMap;

use jiff::Timestamp;
use tillstream_schemas::Lsn;

use super::finding::Unchecked;
use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, ServerFacts, SlotFacts, TableFacts, sql_error};
use crate::capture::wire::{Address, Locality, application_name};
use crate::config;
use crate::ops::provider::{Provider, Signs};

/// Whatever happens, nothing is written, nothing waits for a lock, and nothing runs for long.
const HARMLESS: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET statement_timeout = '3s'; SET lock_timeout = '100ms'";

/// Settings the rules ask for, and those by which a service shows itself.
const SETTINGS: &str = "SELECT name, setting, pending_restart FROM pg_settings WHERE pending_restart OR name IN ('max_replication_slots', 'max_wal_senders', \
     'max_slot_wal_keep_size', 'wal_sender_timeout', 'password_encryption', 'ssl', 'listen_addresses', 'idle_replication_slot_timeout', \
     'synchronized_standby_slots', 'logical_decoding_work_mem', 'fsync', 'full_page_writes', 'hot_standby_feedback', 'autovacuum_freeze_max_age') \
     OR name LIKE ANY (ARRAY['rds.%', 'cloudsql.%', 'alloydb.%', 'azure.%', 'neon.%'])";

/// Counters, ages and clocks, at once. The oldest transaction of another role is hidden from a login without pg_read_all_stats.
const STATE: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text, \
     (SELECT count(*) FROM pg_stat_replication), \
     (SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - interval '15 minutes'), \
     extract(epoch FROM clock_timestamp())::float8, \
     (SELECT max(age(datfrozenxid))::int8 FROM pg_database), \
     (SELECT wal_bytes::float8 FROM pg_stat_wal), (SELECT extract(epoch FROM now() - stats_reset)::float8 FROM pg_stat_wal), \
     (SELECT sum(blks_read)::int8 FROM pg_stat_slru WHERE name ILIKE 'subtrans%'), \
     EXISTS (SELECT FROM pg_largeobject_metadata), \
     ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1)), \
     EXISTS (SELECT FROM pg_proc WHERE proname = 'aurora_version'), \
     EXISTS (SELECT FROM pg_stat_activity WHERE application_name ILIKE 'patroni%'), \
     pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')";

/// All slots, who reads them, what the server wrote to its disk while it decoded for them, and how long they are idle.
const SLOTS: &str = "SELECT to_jsonb(s)::text, coalesce(a.application_name, ''), coalesce(a.usename, ''), d.spill_txns, d.spill_bytes, d.total_txns, \
     extract(epoch FROM now() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8, greatest(age(s.xmin), age(s.catalog_xmin))::int8 \
     FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid LEFT JOIN pg_stat_replication_slots d ON d.slot_name = s.slot_name";

/// What the pipeline's roles may do.
const ROLES: &str = "SELECT r.rolname::text, r.rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' \
     AND pg_has_role(r.oid, m.oid, 'MEMBER')), r.rolsuper, r.rolcanlogin, r.rolconnlimit, extract(epoch FROM nullif(r.rolvaliduntil, 'infinity') - now())::float8, \
     r.rolbypassrls, has_database_privilege(r.oid, current_database(), 'CONNECT') FROM pg_roles r WHERE r.rolname = ANY ($1)";

/// Transactions that have been open for a while: creating a slot would wait for them, and they hold its WAL.
const LONG_TRANSACTIONS: &str = "SELECT pid, coalesce(nullif(application_name, ''), usename, '?'), extract(epoch FROM now() - xact_start)::float8 \
     FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
     AND xact_start < now() - interval '15 minutes' ORDER BY xact_start LIMIT 5";

/// Columns in row filters, and whole schemas (15 and later).
const FILTERS: &str = "SELECT r.prrelid, ARRAY(SELECT DISTINCT a.attname::text FROM regexp_matches(to_jsonb(r) ->> 'prqual', ':varattno (\\d+)', 'g') m \
     JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = m[1]::int2) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
     WHERE p.pubname = $1 AND to_jsonb(r) ->> 'prqual' IS NOT NULL UNION ALL \
     SELECT 0::oid, ARRAY(SELECT n.nspname::text FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid \
     JOIN pg_namespace n ON n.oid = s.pnnspid WHERE p.pubname = $1)";

const HAS_IDENTITY: &str = "(c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid \
     AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident ELSE false END))";

/// What the pipeline's role of backfills may do with a table.
const GRANTS: &str = "SELECT c.oid, has_schema_privilege($1::text::name, c.relnamespace, 'USAGE'), \
     has_table_privilege($1::text::name, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'), \
     ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
     AND NOT has_column_privilege($1::text::name, c.oid, a.attnum, 'SELECT')), pg_has_role($1::text::name, c.relowner, 'USAGE'), c.relpages::int8 \
     FROM pg_class c WHERE c.oid = ANY ($2)";

/// The server's own files; a superuser's matter.
const FILES: &str = "SELECT (SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL), \
     (SELECT coalesce(string_agg(DISTINCT name, ', '), '') FROM pg_file_settings WHERE error IS NOT NULL), \
     (SELECT coalesce(string_agg(line_number::text, ', ' ORDER BY line_number), '') FROM pg_hba_file_rules WHERE error IS NOT NULL), \
     (SELECT coalesce(string_agg(line_number::text, ', ' ORDER BY line_number), '') FROM pg_hba_file_rules WHERE auth_method = 'trust' AND type LIKE 'host%' \
      AND coalesce(address, '') NOT IN ('127.0.0.1', '::1', 'localhost', 'samehost'))";

/// A setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Its value, in its own unit.
    pub value: String,
    /// Whether another value waits for a restart.
    pub pending: bool,
}

/// A replication slot, ours or another's.
#[derive(Clone, Debug, Default)]
pub struct SlotState {
    /// What the catalogue says.
    pub slot: SlotFacts,
    /// `application_name` of whoever streams from it; empty when nobody does or it is hidden from us.
    pub reader: String,
    /// That session's role.
    pub reader_role: String,
    /// WAL bytes that it keeps.
    pub retained_bytes: Option<u64>,
    /// Transactions that the server spilled while decoding, their bytes, and all transactions.
    pub spilled: Option<(i64, i64, i64)>,
    /// Seconds since somebody streamed from it (17 and later).
    pub idle_seconds: Option<f64>,
    /// Age of the oldest transaction whose rows it keeps from being cleaned, in transactions.
    pub horizon: Option<i64>,
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoleFacts {
    /// Name.
    pub name: String,
    /// Whether it may replicate.
    pub replication: bool,
    /// Whether it is a superuser.
    pub superuser: bool,
    /// Whether it may log in.
    pub login: bool,
    /// Most sessions; -1 for no limit.
    pub connection_limit: i32,
    /// Seconds until its password ends; `None` for never.
    pub expires_in: Option<f64>,
    /// Whether row security does not concern it.
    pub bypasses_rls: bool,
    /// Whether it may connect to the database.
    pub connect: bool,
}

/// Counters, ages and clocks.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// How far WAL is flushed.
    pub wal: Lsn,
    /// Walsenders in use.
    pub senders: i64,
    /// Old prepared transactions.
    pub prepared: i64,
    /// The server's clock minus ours, seconds.
    pub clock_offset: f64,
    /// Age of the oldest database in transactions.
    pub frozen_age: i64,
    /// WAL bytes written, and in how many seconds.
    pub wal_written: Option<(f64, f64)>,
    /// Pages of subtransactions that had to be read.
    pub subtransaction_reads: i64,
    /// Whether there are large objects.
    pub large_objects: bool,
    /// Whether the login sees other roles' activity.
    pub sees_activity: bool,
}

/// What the role of backfills may do with a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// USAGE on the schema.
    pub usage: bool,
    /// Any right to write.
    pub writes: bool,
    /// Columns that it cannot read.
    pub hidden: Vec<String>,
    /// Whether row security does not concern it because the table is its own.
    pub owner: bool,
    /// Pages of the table.
    pub pages: i64,
}

/// The server's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Faulty settings: how many, and their names.
    pub settings: (i64, String),
    /// Numbers of faulty lines of pg_hba.conf.
    pub hba_faulty: String,
    /// Numbers of lines that let other hosts in without a password.
    pub hba_trust: String,
}

/// Another publication's table that has no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyless {
    /// Publication, or root of the partition.
    pub of: String,
    /// The table, qualified.
    pub table: String,
    /// Updates and deletes seen.
    pub rewrites: i64,
}

/// What the doctor looks at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The server.
    pub server: ServerFacts,
    /// Who runs it.
    pub provider: Provider,
    /// When it was looked at.
    pub at: Timestamp,
    /// Settings by name; what a version does not have is absent.
    pub settings: HashMap<String, Setting>,
    /// Counters, ages and clocks.
    pub state: Option<State>,
    /// All slots; `None` when they could not be read.
    pub slots: Option<Vec<SlotState>>,
    /// The configured tables; `None` where there is none.
    pub tables: Vec<((String, String), Option<TableFacts>)>,
    /// The publication.
    pub publication: Option<PublicationFacts>,
    /// Published tables that are not configured.
    pub extra: Vec<TableFacts>,
    /// Columns that row filters ask for, by table.
    pub filters: HashMap<u32, Vec<String>>,
    /// Schemas that the publication holds as a whole.
    pub schemas: Vec<String>,
    /// Partitions without identity.
    pub partitions: Vec<Keyless>,
    /// Tables without identity that other publications hold.
    pub others: Vec<Keyless>,
    /// The role of the source's URL; `None` when there is none of that name.
    pub role: Option<RoleFacts>,
    /// The role of backfills, where it is another one.
    pub backfill_role: Option<RoleFacts>,
    /// Names of both, as the configuration has them.
    pub roles: (String, Option<String>),
    /// What the role of backfills may do, by table.
    pub grants: HashMap<u32, Grants>,
    /// Long transactions: process, application, seconds.
    pub long_transactions: Vec<(i32, String, f64)>,
    /// The server's own files.
    pub files: Option<Files>,
    /// Whether the connection of the configured URL stays within a host, is verified, or goes in the clear.
    pub locality: Locality,
    /// `application_name` of this pipeline's capture.
    pub ours: String,
    /// What could not be read.
    pub unread: Vec<Unchecked>,
}

/// Collects what could be read.
struct Reading(Vec<Unchecked>);

impl Reading {
    /// The answer, or a word on why there is none. A lost connection is the one thing that ends the reading.
    async fn of<T>(&mut self, what: &str, work: impl Future<Output = Result<T, CaptureError>>) -> Result<Option<T>, CaptureError> {
        match work.await {
            Ok(value) => Ok(Some(value)),
            Err(CaptureError::Unavailable(why)) if why.contains("connection closed") => Err(CaptureError::Unavailable(why)),
            Err(error) => {
                self.0.push(Unchecked::failed(what, &error));
                Ok(None)
            }
        }
    }
}

impl Facts {
    /// Reads them over `catalog`, which may be any login's; they are about the roles that `source` names.
    pub(super) async fn read(catalog: &Catalog, source: &config::Source, pipeline: &str) -> Result<Facts, CaptureError> {
        let client = catalog.client();
        let mut reading = Reading(Vec::new());
        client.batch_execute(HARMLESS).await.map_err(sql_error)?;
        let query = async |sql: &str| client.query(sql, &[]).await.map_err(sql_error);
        let stream = Address::parse(&source.url)?;
        let backfill = source.backfill_url.as_ref().map(Address::parse).transpose()?.map(|a| a.user).filter(|u| *u != stream.user);

        let settings = reading.of("settings", query(SETTINGS)).await?.unwrap_or_default();
        let settings: HashMap<String, Setting> =
            settings.iter().map(|row| (row.get(0), Setting { value: row.get(1), pending: row.get(2) })).collect();

        let asked = Timestamp::now();
        let known: Vec<&str> = Provider::ROLES.to_vec();
        let row = async { client.query_one(STATE, &[&known]).await.map_err(sql_error) };
        let row = reading.of("counters, ages and clocks", row).await?;
        let at = Timestamp::now();
        let middle = (asked.as_microsecond() + at.as_microsecond()) as f64 / 2e6;
        // The answer may have been made at any moment between: only what lies beyond is the clock's.
        let unsure = (at.as_microsecond() - asked.as_microsecond()) as f64 / 2e6;
        let names: Vec<String> = settings.keys().cloned().collect();
        let provider = row.as_ref().map(|row| {
            let roles: Vec<String> = row.get(9);
            Provider::detect(Signs { roles: &roles, settings: &names, aurora: row.get(10), patroni: row.get(11) })
        });
        let state = row.map(|row| State {
            wal: row.get::<_, Option<String>>(0).and_then(|t| t.parse().ok()).unwrap_or_default(),
            senders: row.get(1),
            prepared: row.get(2),
            clock_offset: beyond(row.get::<_, f64>(3) - middle, unsure),
            frozen_age: row.get::<_, Option<i64>>(4).unwrap_or_default(),
            wal_written: row.get::<_, Option<f64>>(5).zip(row.get(6)),
            subtransaction_reads: row.get::<_, Option<i64>>(7).unwrap_or_default(),
            large_objects: row.get(8),
            sees_activity: row.get(12),
        });

        let wal = state.as_ref().map_or(Lsn(0), |s| s.wal);
        let slots = reading.of("replication slots", async { slots(client, wal).await }).await?;
        let names: Vec<&str> = std::iter::once(stream.user.as_str()).chain(backfill.as_deref()).collect();
        let roles = async { client.query(ROLES, &[&names]).await.map_err(sql_error) };
        let mut roles: Vec<RoleFacts> = reading.of("roles", roles).await?.unwrap_or_default().iter().map(role).collect();
        let mut take = |name: &str| roles.iter().position(|r| r.name == name).map(|at| roles.swap_remove(at));
        let (role, backfill_role) = (take(&stream.user), backfill.as_deref().and_then(&mut take));
        let long = reading.of("long transactions", query(LONG_TRANSACTIONS)).await?.unwrap_or_default();
        let files = async {
            client.query_one(FILES, &[]).await.map_err(|_| CaptureError::Unavailable("only a superuser may read them".to_owned()))
        };
        let files = reading.of("errors in postgresql.conf and pg_hba.conf", files).await?;

        let publication = reading.of("the publication", catalog.publication(&source.publication)).await?.flatten();
        let configured: Vec<(String, String)> = source.tables.iter().map(|t| (t.schema.clone(), t.table.clone())).collect();
        let published = publication.iter().flat_map(|p| &p.tables).map(|t| (t.schema.clone(), t.table.clone()));
        let names: Vec<(String, String)> = configured.iter().cloned().chain(published.filter(|name| !configured.contains(name))).collect();
        let mut tables = reading.of("tables", catalog.tables(&names)).await?.unwrap_or_else(|| names.iter().map(|_| None).collect());
        let extra: Vec<TableFacts> = tables.split_off(configured.len()).into_iter().flatten().collect();
        let tables: Vec<_> = configured.into_iter().zip(tables).collect();
        let all: Vec<&TableFacts> = tables.iter().filter_map(|(_, t)| t.as_ref()).chain(&extra).collect();

        let mut filters = HashMap::new();
        let mut schemas = Vec::new();
        if catalog.server().major() >= 15 && publication.is_some() {
            let rows = async { client.query(FILTERS, &[&source.publication]).await.map_err(sql_error) };
            for row in reading.of("row filters", rows).await?.unwrap_or_default() {
                match row.get::<_, u32>(0) {
                    0 => schemas = row.get(1),
                    table => drop(filters.insert(table, row.get(1))),
                }
            }
        }
        let roots: Vec<u32> = all.iter().filter(|t| t.kind == 'p').map(|t| t.oid).collect();
        let mut partitions = Vec::new();
        if !roots.is_empty() {
            partitions = reading.of("partitions", keyless_partitions(client, &roots)).await?.unwrap_or_default();
        }
        let others = reading.of("other publications", keyless_of_others(client, &source.publication)).await?.unwrap_or_default();
        let oids: Vec<u32> = all.iter().map(|t| t.oid).collect();
        let reader = backfill_role.as_ref().or(role.as_ref()).map(|r| r.name.clone());
        let grants = match &reader {
            Some(reader) => reading.of("grants", grants(client, reader, &oids)).await?.unwrap_or_default(),
            None => HashMap::new(),
        };
        Ok(Facts {
            server: catalog.server().clone(),
            provider: provider.unwrap_or_default(),
            at,
            settings,
            state,
            slots,
            tables,
            publication,
            extra,
            filters,
            schemas,
            partitions,
            others,
            role,
            backfill_role,
            roles: (stream.user.clone(), backfill),
            grants,
            long_transactions: long.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(),
            files: files.map(|row| Files { settings: (row.get(0), row.get(1)), hba_faulty: row.get(2), hba_trust: row.get(3) }),
            locality: stream.locality(),
            ours: application_name(pipeline, "capture"),
            unread: reading.0,
        })
    }

    /// A setting's value, if it is there.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        Some(self.settings.get(name)?.value.as_str())
    }

    /// A setting as a number, if it is there.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    /// The slot of a name.
    pub(super) fn slot(&self, name: &str) -> Option<&SlotState> {
        self.slots.iter().flatten().find(|s| s.slot.slot_name == name)
    }

    /// Standbys that follow by a slot of their own.
    pub(super) fn standbys(&self) -> usize {
        self.slots.iter().flatten().filter(|s| s.slot.slot_type == "physical" && s.slot.active).count()
    }

    /// Average WAL bytes per second, where the server has counted for at least a day: an hour says nothing of a peak.
    pub(super) fn wal_rate(&self) -> Option<f64> {
        let (bytes, seconds) = self.state.as_ref()?.wal_written?;
        (seconds >= 86_400.0).then(|| bytes / seconds)
    }
}

/// What is left of an offset beyond what is unsure.
fn beyond(offset: f64, unsure: f64) -> f64 {
    (offset.abs() - unsure).max(0.0).copysign(offset)
}

async fn slots(client: &tokio_postgres::Client, wal: Lsn) -> Result<Vec<SlotState>, CaptureError> {
    let mut found = Vec::new();
    for row in client.query(SLOTS, &[]).await.map_err(sql_error)? {
        let text: String = row.get(0);
        let slot: SlotFacts = serde_json::from_str(&text).map_err(|e| CaptureError::Unavailable(format!("a slot cannot be read: {e}")))?;
        let spilled: Option<i64> = row.get(3);
        found.push(SlotState {
            retained_bytes: slot.retained_bytes(wal),
            slot,
            reader: row.get(1),
            reader_role: row.get(2),
            spilled: spilled.map(|n| (n, row.get::<_, Option<i64>>(4).unwrap_or(0), row.get::<_, Option<i64>>(5).unwrap_or(0))),
            idle_seconds: row.get(6),
            horizon: row.get(7),
        });
    }
    Ok(found)
}

fn role(row: &tokio_postgres::Row) -> RoleFacts {
    RoleFacts {
        name: row.get(0),
        replication: row.get(1),
        superuser: row.get(2),
        login: row.get(3),
        connection_limit: row.get(4),
        expires_in: row.get(5),
        bypasses_rls: row.get(6),
        connect: row.get(7),
    }
}

fn keyless(rows: &[tokio_postgres::Row]) -> Vec<Keyless> {
    let one =
        |row: &tokio_postgres::Row| Keyless { of: row.get(0), table: row.get(1), rewrites: row.get::<_, Option<i64>>(2).unwrap_or(0) };
    rows.iter().map(one).collect()
}

/// Partitions name their rows by themselves: a root's replica identity does not reach those it has already.
async fn keyless_partitions(client: &tokio_postgres::Client, roots: &[u32]) -> Result<Vec<Keyless>, CaptureError> {
    let sql = format!(
        "SELECT root::regclass::text, c.oid::regclass::text, pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid) \
         FROM unnest($1::oid[]) root CROSS JOIN LATERAL pg_partition_tree(root) t JOIN pg_class c ON c.oid = t.relid \
         WHERE t.isleaf AND c.oid <> root AND c.relkind = 'r' AND NOT {HAS_IDENTITY} ORDER BY 2 LIMIT 20"
    );
    Ok(keyless(&client.query(&sql, &[&roots]).await.map_err(sql_error)?))
}

async fn keyless_of_others(client: &tokio_postgres::Client, publication: &str) -> Result<Vec<Keyless>, CaptureError> {
    let sql = format!(
        "SELECT p.pubname::text, c.oid::regclass::text, pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid) \
         FROM pg_publication p JOIN pg_publication_tables t ON t.pubname = p.pubname JOIN pg_namespace n ON n.nspname = t.schemaname \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
         WHERE p.pubname <> $1 AND (p.pubupdate OR p.pubdelete) AND c.relkind = 'r' AND NOT {HAS_IDENTITY} ORDER BY 3 DESC, 2 LIMIT 5"
    );
    Ok(keyless(&client.query(&sql, &[&publication]).await.map_err(sql_error)?))
}

async fn grants(client: &tokio_postgres::Client, role: &str, oids: &[u32]) -> Result<HashMap<u32, Grants>, CaptureError> {
    let rows = client.query(GRANTS, &[&role, &oids]).await.map_err(sql_error)?;
    let one = |row: &tokio_postgres::Row| {
        let grants = Grants { usage: row.get(1), writes: row.get(2), hidden: row.get(3), owner: row.get(4), pages: row.get(5) };
        (row.get(0), grants)
    };
    Ok(rows.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_wrong_clock() {
        assert_eq!([beyond(-3.0, 0.5), beyond(0.4, 0.5), beyond(5.0, 1.0)], [-2.5, 0.0, 4.0]);
    }
}
