//! The database's own counters, read in a dozen light queries. What a login may not see is left out and said.
//!
//! Sizes come from the catalogue (`relpages`): asking the files would wait for a lock that somebody holds.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Client;

use super::statement::Known;
use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, sql_error};
use crate::config;
use crate::ops::doctor::Unchecked;

/// Whatever happens, nothing is written, nothing waits for a lock, and nothing runs for long.
const HARMLESS: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET statement_timeout = '3s'; SET lock_timeout = '100ms'";

const OVERVIEW: &str = "SELECT d.blks_hit, d.blks_read, d.temp_files, d.temp_bytes, d.deadlocks, \
     extract(epoch FROM now() - coalesce(d.stats_reset, pg_postmaster_start_time()))::float8, d.stats_reset IS NULL, \
     (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), \
     current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8, \
     (SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'), \
     (SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'hypopg'), \
     EXISTS (SELECT FROM pg_available_extensions WHERE name = 'hypopg'), \
     pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
     FROM pg_stat_database d WHERE d.datname = current_database()";

const TABLES: &str = "SELECT c.oid, c.oid::regclass::text, n.nspname::text, c.relname::text, coalesce(s.seq_scan, 0), coalesce(s.seq_tup_read, 0), \
     coalesce(s.idx_scan, 0), coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0), coalesce(s.n_mod_since_analyze, 0), \
     coalesce(s.last_analyze, s.last_autoanalyze) IS NOT NULL, c.relpages::int8 * 8192, \
     ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid \
     WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast|^pg_temp' \
     ORDER BY c.relpages DESC LIMIT 2000";

const INDEXES: &str = "SELECT i.indrelid, i.indexrelid::regclass::text, coalesce(s.idx_scan, 0), c.relpages::int8 * 8192, i.indisunique, i.indisvalid, \
     i.indisprimary OR i.indisexclusion OR i.indisreplident OR i.indisclustered OR EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid) \
     OR EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid OR h.inhparent = i.indexrelid), \
     concat_ws(' ', c.relam, i.indkey, i.indclass, i.indcollation, i.indoption, md5(coalesce(i.indexprs::text, '') || coalesce(i.indpred::text, ''))), \
     i.indexprs IS NULL AND i.indpred IS NULL, \
     ARRAY(SELECT coalesce(a.attname::text, '') FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(n, at) \
           LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n WHERE k.at <= i.indnkeyatts ORDER BY k.at), \
     coalesce(pg_get_expr(i.indexprs, i.indrelid), '') \
     FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace \
     LEFT JOIN pg_stat_user_indexes s ON s.indexrelid = i.indexrelid \
     WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast|^pg_temp' ORDER BY c.relpages DESC LIMIT 5000";

/// Foreign keys whose referring side no index begins with. Those of partitions come with their root's.
const FOREIGN_KEYS: &str = "SELECT k.conname::text, k.conrelid, k.confrelid::regclass::text, \
     ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY c(n, at) JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.n ORDER BY c.at), \
     coalesce(pg_stat_get_tuples_deleted(k.confrelid) + pg_stat_get_tuples_updated(k.confrelid), 0) \
     FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0 AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = k.conrelid \
     AND i.indisvalid AND i.indpred IS NULL AND (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey) LIMIT 1000";

const SESSIONS: &str = "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename::text, '?'), a.usename::text, coalesce(a.state, ''), \
     extract(epoch FROM clock_timestamp() - a.xact_start)::float8, extract(epoch FROM clock_timestamp() - a.state_change)::float8, a.query_id, \
     CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}' END, \
     CASE WHEN a.wait_event_type = 'Lock' THEN (SELECT extract(epoch FROM clock_timestamp() - min(l.waitstart))::float8 FROM pg_locks l \
     WHERE l.pid = a.pid AND NOT l.granted) END \
     FROM pg_stat_activity a WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.state IS NOT NULL \
     ORDER BY a.xact_start NULLS LAST LIMIT 1000";

/// What the pipeline's own sessions are about: slot and walsender.
const STREAM: &str = "SELECT (SELECT count(*) FROM pg_stat_replication r WHERE r.pid = s.active_pid), \
     pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, s.restart_lsn)::int8, \
     d.total_bytes, d.spill_bytes FROM pg_replication_slots s LEFT JOIN pg_stat_replication_slots d ON d.slot_name = s.slot_name WHERE s.slot_name = $1";

/// Counters of the whole database.
#[derive(Clone, Debug, Default)]
pub(super) struct Overview {
    pub(super) hits: i64,
    pub(super) reads: i64,
    pub(super) temp_files: i64,
    pub(super) temp_bytes: i64,
    pub(super) deadlocks: i64,
    /// Seconds that the counters are about; since the server's start where they were never reset.
    pub(super) seconds: f64,
    pub(super) never_reset: bool,
    pub(super) connections: i64,
    pub(super) connections_max: i64,
    /// Schemas of the extensions, quoted.
    pub(super) statements_in: Option<String>,
    pub(super) hypopg_in: Option<String>,
    pub(super) hypopg_available: bool,
    pub(super) sees_activity: bool,
}

/// A statement's counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Statement {
    pub(super) id: i64,
    pub(super) text: String,
    pub(super) calls: i64,
    pub(super) milliseconds: f64,
    pub(super) rows: i64,
    pub(super) pages: i64,
    pub(super) temp_pages: i64,
    pub(super) role: String,
}

/// A table's counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) oid: u32,
    /// As SQL names it.
    pub(super) name: String,
    pub(super) known: Known,
    pub(super) scans: i64,
    pub(super) scanned_rows: i64,
    pub(super) index_scans: i64,
    pub(super) live: i64,
    pub(super) dead: i64,
    pub(super) changed: i64,
    pub(super) analysed: bool,
    pub(super) bytes: i64,
}

/// An index.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) table: u32,
    pub(super) name: String,
    pub(super) scans: i64,
    pub(super) bytes: i64,
    pub(super) unique: bool,
    pub(super) valid: bool,
    /// Something stands on it: a constraint, a replica identity, a partitioned index.
    pub(super) needed: bool,
    /// The same text means the same index.
    pub(super) shape: String,
    /// Neither expressions nor a condition.
    pub(super) plain: bool,
    pub(super) columns: Vec<String>,
    pub(super) expressions: String,
}

/// A foreign key without an index.
#[derive(Clone, Debug, Default)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    pub(super) table: u32,
    pub(super) refers_to: String,
    pub(super) columns: Vec<String>,
    /// Deletes and updates of the referred table.
    pub(super) changes: i64,
}

/// A session.
#[derive(Clone, Debug, Default)]
pub(super) struct Session {
    pub(super) pid: i32,
    pub(super) application: String,
    pub(super) role: String,
    pub(super) state: String,
    /// Seconds since its transaction began.
    pub(super) transaction: Option<f64>,
    /// Seconds since it came into its state.
    pub(super) in_state: f64,
    pub(super) statement: Option<i64>,
    /// Whom it waits for, and since when.
    pub(super) waits_for: Vec<i32>,
    pub(super) waits: Option<f64>,
}

/// Our slot and walsender.
#[derive(Clone, Debug, Default)]
pub(super) struct Stream {
    pub(super) streams: bool,
    pub(super) keeps_bytes: Option<i64>,
    pub(super) decoded_bytes: Option<i64>,
    pub(super) spilled_bytes: Option<i64>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) overview: Overview,
    pub(super) statements: Option<Vec<Statement>>,
    /// Milliseconds of all statements, also those that are not listed.
    pub(super) all_milliseconds: f64,
    pub(super) tables: Vec<Table>,
    pub(super) indexes: Vec<Index>,
    pub(super) foreign_keys: Vec<ForeignKey>,
    pub(super) sessions: Vec<Session>,
    /// Timed and requested checkpoints.
    pub(super) checkpoints: Option<(i64, i64)>,
    /// Pages read and written by kind of process (16 and later).
    pub(super) io: Vec<(String, i64, i64)>,
    pub(super) stream: Option<Stream>,
    pub(super) unread: Vec<Unchecked>,
}

/// The answer, or a word on why there is none.
async fn or_said<T>(unread: &mut Vec<Unchecked>, what: &str, work: impl Future<Output = Result<T, CaptureError>>) -> Option<T> {
    match work.await {
        Ok(value) => Some(value),
        Err(error) => {
            unread.push(Unchecked::failed(what, &error));
            None
        }
    }
}

/// Reads everything; `over` asks for what happens within so long, by two looks.
pub(super) async fn read(catalog: &Catalog, source: &config::Source, over: Option<Duration>) -> Result<Facts, CaptureError> {
    let client = catalog.client();
    client.batch_execute(HARMLESS).await.map_err(sql_error)?;
    let mut facts = Facts::default();
    let mut unread = Vec::new();
    let query = async |sql: &str| client.query(sql, &[]).await.map_err(sql_error);
    if let Some(overview) = or_said(&mut unread, "counters of the database", overview(client)).await {
        facts.overview = overview;
    }
    let Some(tables) = or_said(&mut unread, "tables", query(TABLES)).await else { return Ok(Facts { unread, ..facts }) };
    facts.tables = tables.iter().map(table).collect();
    if let Some(schema) = facts.overview.statements_in.clone() {
        if let Some((statements, all)) = or_said(&mut unread, "statements", statements(client, &schema)).await {
            (facts.statements, facts.all_milliseconds) = (Some(statements), all);
        }
    } else {
        unread.push(Unchecked::new(
            "statements",
            "the extension is not in this database: shared_preload_libraries = 'pg_stat_statements' (restart), then CREATE EXTENSION pg_stat_statements;",
        ));
    }
    if let Some(over) = over {
        tokio::time::sleep(over).await;
        subtract(client, &mut facts, over).await?;
    }
    facts.indexes = or_said(&mut unread, "indexes", query(INDEXES)).await.unwrap_or_default().iter().map(index).collect();
    let keys = or_said(&mut unread, "foreign keys", query(FOREIGN_KEYS)).await.unwrap_or_default();
    facts.foreign_keys = keys
        .iter()
        .map(|r| ForeignKey { name: r.get(0), table: r.get(1), refers_to: r.get(2), columns: r.get(3), changes: r.get(4) })
        .collect();
    facts.sessions = or_said(&mut unread, "sessions and locks", query(SESSIONS)).await.unwrap_or_default().iter().map(session).collect();
    let major = catalog.server().major();
    let sql = match major {
        17.. => "SELECT num_timed, num_requested FROM pg_stat_checkpointer",
        _ => "SELECT checkpoints_timed, checkpoints_req FROM pg_stat_bgwriter",
    };
    facts.checkpoints = or_said(&mut unread, "checkpoints", query(sql)).await.and_then(|rows| rows.first().map(|r| (r.get(0), r.get(1))));
    if major >= 16 {
        let sql = "SELECT backend_type::text, coalesce(sum(reads), 0)::int8, coalesce(sum(writes), 0)::int8 FROM pg_stat_io GROUP BY 1";
        let rows = or_said(&mut unread, "reads and writes by process", query(sql)).await.unwrap_or_default();
        facts.io = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    } else {
        unread.push(Unchecked::new("reads and writes by kind of process", "pg_stat_io comes with PostgreSQL 16"));
    }
    let row = async { client.query_opt(STREAM, &[&source.slot]).await.map_err(sql_error) };
    facts.stream = or_said(&mut unread, "our slot", row).await.flatten().map(|r| Stream {
        streams: r.get::<_, i64>(0) > 0,
        keeps_bytes: r.get(1),
        decoded_bytes: r.get(2),
        spilled_bytes: r.get(3),
    });
    facts.unread = unread;
    Ok(facts)
}

async fn overview(client: &Client) -> Result<Overview, CaptureError> {
    let row = client.query_one(OVERVIEW, &[]).await.map_err(sql_error)?;
    Ok(Overview {
        hits: row.get(0),
        reads: row.get(1),
        temp_files: row.get(2),
        temp_bytes: row.get(3),
        deadlocks: row.get(4),
        seconds: row.get(5),
        never_reset: row.get(6),
        connections: row.get(7),
        connections_max: row.get(8),
        statements_in: row.get(9),
        hypopg_in: row.get(10),
        hypopg_available: row.get(11),
        sees_activity: row.get(12),
    })
}

async fn statements(client: &Client, schema: &str) -> Result<(Vec<Statement>, f64), CaptureError> {
    let sql = format!(
        "SELECT s.queryid, s.query, s.calls, s.total_exec_time, s.rows, s.shared_blks_hit + s.shared_blks_read, s.temp_blks_written, \
         coalesce(r.rolname::text, '?'), sum(s.total_exec_time) OVER () FROM {schema}.pg_stat_statements s LEFT JOIN pg_roles r ON r.oid = s.userid \
         WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.toplevel ORDER BY s.total_exec_time DESC LIMIT 300"
    );
    let rows = client.query(&sql, &[]).await.map_err(sql_error)?;
    let all = rows.first().map_or(0.0, |r| r.get(8));
    let one = |r: &tokio_postgres::Row| Statement {
        id: r.get::<_, Option<i64>>(0).unwrap_or(0),
        text: r.get::<_, Option<String>>(1).unwrap_or_default(),
        calls: r.get(2),
        milliseconds: r.get(3),
        rows: r.get(4),
        pages: r.get(5),
        temp_pages: r.get(6),
        role: r.get(7),
    };
    Ok((rows.iter().map(one).collect(), all))
}

fn table(r: &tokio_postgres::Row) -> Table {
    Table {
        oid: r.get(0),
        name: r.get(1),
        known: Known { schema: r.get(2), table: r.get(3), columns: r.get(12) },
        scans: r.get(4),
        scanned_rows: r.get(5),
        index_scans: r.get(6),
        live: r.get(7),
        dead: r.get(8),
        changed: r.get(9),
        analysed: r.get(10),
        bytes: r.get(11),
    }
}

fn index(r: &tokio_postgres::Row) -> Index {
    Index {
        table: r.get(0),
        name: r.get(1),
        scans: r.get(2),
        bytes: r.get(3),
        unique: r.get(4),
        valid: r.get(5),
        needed: r.get(6),
        shape: r.get(7),
        plain: r.get(8),
        columns: r.get(9),
        expressions: r.get(10),
    }
}

fn session(r: &tokio_postgres::Row) -> Session {
    Session {
        pid: r.get(0),
        application: r.get(1),
        role: r.get::<_, Option<String>>(2).unwrap_or_default(),
        state: r.get(3),
        transaction: r.get(4),
        in_state: r.get::<_, Option<f64>>(5).unwrap_or(0.0),
        statement: r.get(6),
        waits_for: r.get(7),
        waits: r.get(8),
    }
}

/// Leaves of the counters what came since they were read.
async fn subtract(client: &Client, facts: &mut Facts, over: Duration) -> Result<(), CaptureError> {
    if let (Some(schema), Some(before)) = (facts.overview.statements_in.clone(), facts.statements.take()) {
        let before: HashMap<(i64, String), Statement> = before.into_iter().map(|s| ((s.id, s.role.clone()), s)).collect();
        let (mut after, all) = statements(client, &schema).await?;
        for s in &mut after {
            if let Some(old) = before.get(&(s.id, s.role.clone())).filter(|old| old.calls <= s.calls) {
                s.calls -= old.calls;
                s.milliseconds -= old.milliseconds;
                s.rows -= old.rows;
                s.pages -= old.pages;
                s.temp_pages -= old.temp_pages;
            }
        }
        after.retain(|s| s.calls > 0);
        after.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        facts.all_milliseconds = (all - facts.all_milliseconds).max(after.iter().map(|s| s.milliseconds).sum());
        facts.statements = Some(after);
    }
    let rows = client.query(TABLES, &[]).await.map_err(sql_error)?;
    let before: HashMap<u32, Table> = std::mem::take(&mut facts.tables).into_iter().map(|t| (t.oid, t)).collect();
    facts.tables = rows.iter().map(table).collect();
    for t in &mut facts.tables {
        if let Some(old) = before.get(&t.oid) {
            t.scans -= old.scans.min(t.scans);
            t.scanned_rows -= old.scanned_rows.min(t.scanned_rows);
            t.index_scans -= old.index_scans.min(t.index_scans);
        }
    }
    let old = std::mem::take(&mut facts.overview);
    let now = overview(client).await?;
    facts.overview = Overview {
        hits: now.hits - old.hits,
        reads: now.reads - old.reads,
        temp_files: now.temp_files - old.temp_files,
        temp_bytes: now.temp_bytes - old.temp_bytes,
        deadlocks: now.deadlocks - old.deadlocks,
        seconds: over.as_secs_f64(),
        ..now
    };
    Ok(())
}
