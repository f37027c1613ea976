//! Every check: its stable id, what it hurts, what mending it needs, and the SQL by which anybody sees the same.
//!
//! Rules name an id and say what they found; everything that is the same each time stands here.

use serde::Serialize;

/// What a check is about; `--only` takes these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Version of the server.
    Version,
    /// Its settings.
    Settings,
    /// How tables name their rows.
    Identity,
    /// Publications.
    Publication,
    /// Slots and the WAL they keep.
    Slot,
    /// What runs on the server.
    Load,
    /// Roles, authentication, encryption.
    Access,
    /// Standbys and promotion.
    Ha,
    /// Text and clocks.
    Encoding,
    /// The journal.
    Journal,
    /// Targets of connectors.
    Targets,
    /// The database's own load (`doctor queries`).
    Queries,
}

impl Group {
    /// Those about the source.
    pub const SOURCE: [Group; 9] = [
        Group::Version,
        Group::Settings,
        Group::Identity,
        Group::Publication,
        Group::Slot,
        Group::Load,
        Group::Access,
        Group::Ha,
        Group::Encoding,
    ];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Group::Version => "version",
            Group::Settings => "settings",
            Group::Identity => "identity",
            Group::Publication => "publication",
            Group::Slot => "slot",
            Group::Load => "load",
            Group::Access => "access",
            Group::Ha => "ha",
            Group::Encoding => "encoding",
            Group::Journal => "journal",
            Group::Targets => "targets",
            Group::Queries => "queries",
        }
    }
}

/// What suffers, worst first: findings are shown in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hurts {
    /// The point of sale itself.
    PointOfSale,
    /// What targets get: changes are lost, or wrong.
    Data,
    /// The pipeline: it does not start, or stops.
    Pipeline,
    /// Nothing today.
    Care,
}

/// What mending takes of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Needs {
    /// Nothing: it works at once.
    #[default]
    None,
    /// A reload of its configuration.
    Reload,
    /// A restart.
    Restart,
}

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Stable dotted code; where capture would fail with an error, that error's code.
    pub id: &'static str,
    /// What it is about.
    pub group: Group,
    /// What suffers.
    pub hurts: Hurts,
    /// What mending takes.
    pub needs: Needs,
    /// SQL that shows it, to be run by hand; empty where SQL cannot.
    pub evidence: &'static str,
}

const fn check(id: &'static str, group: Group, hurts: Hurts, needs: Needs, evidence: &'static str) -> Check {
    Check { id, group, hurts, needs, evidence }
}

use Group::{Access, Encoding, Ha, Identity, Journal, Load, Publication, Queries, Settings, Slot, Targets, Version};
use Hurts::{Care, Data, Pipeline, PointOfSale};
use Needs::{None as Nothing, Reload, Restart};

const VERSION: &str = "SELECT version();";
const KEYS: &str = "SELECT c.oid::regclass, c.relreplident, i.indexrelid::regclass AS primary_key FROM pg_class c LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indimmediate WHERE c.relkind IN ('r', 'p') AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) ORDER BY 1;";
const PUBLISHED: &str = "SELECT * FROM pg_publication_tables;";
const PUBLICATIONS: &str = "SELECT * FROM pg_publication;";
const SLOTS: &str = "SELECT *, pg_size_pretty(pg_current_wal_lsn() - restart_lsn) AS keeps FROM pg_replication_slots;";
const USED: &str = "SELECT (SELECT count(*) FROM pg_replication_slots) AS slots, current_setting('max_replication_slots'), (SELECT count(*) FROM pg_stat_replication) AS walsenders, current_setting('max_wal_senders');";
const ROLES: &str =
    "SELECT rolname, rolcanlogin, rolreplication, rolsuper, rolconnlimit, rolvaliduntil FROM pg_roles WHERE rolname !~ '^pg_';";
const OPEN: &str = "SELECT pid, usename, application_name, state, now() - xact_start AS open FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start;";
const CLASSES: &str = "SELECT oid::regclass, relkind, relpersistence, relrowsecurity, pg_size_pretty(relpages * 8192::bigint) AS size FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace);";
const STATEMENTS: &str = "SELECT queryid, calls, total_exec_time, mean_exec_time, rows, shared_blks_hit + shared_blks_read AS pages FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 20;";
const SCANS: &str =
    "SELECT relid::regclass, seq_scan, seq_tup_read, idx_scan, n_live_tup FROM pg_stat_user_tables ORDER BY seq_tup_read DESC LIMIT 20;";
const INDEXES: &str = "SELECT indexrelid::regclass, relid::regclass, idx_scan, pg_size_pretty(pg_relation_size(indexrelid)) FROM pg_stat_user_indexes ORDER BY idx_scan, pg_relation_size(indexrelid) DESC;";
const TUPLES: &str = "SELECT relid::regclass, n_live_tup, n_dead_tup, n_mod_since_analyze, last_autovacuum, last_autoanalyze FROM pg_stat_user_tables ORDER BY n_dead_tup DESC;";

/// All of them.
#[rustfmt::skip] // A table: one line each.
pub const ALL: &[Check] = &[
    check("capture.version_unsupported", Version, Pipeline, Restart, VERSION),
    check("capture.version_minor", Version, Data, Restart, VERSION),
    check("capture.version_untested", Version, Care, Nothing, VERSION),
    check("capture.version_ends", Version, Care, Restart, VERSION),
    check("capture.provider", Version, Care, Nothing, "SELECT rolname FROM pg_roles WHERE rolname IN ('rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin', 'supabase_admin', 'neon_superuser');"),
    check("capture.wal_level", Settings, Pipeline, Restart, "SHOW wal_level;"),
    check("capture.restart_pending", Settings, Care, Restart, "SELECT name, setting FROM pg_settings WHERE pending_restart;"),
    check("capture.files_invalid", Settings, PointOfSale, Reload, "SELECT * FROM pg_file_settings WHERE error IS NOT NULL; SELECT * FROM pg_hba_file_rules WHERE error IS NOT NULL;"),
    check("capture.not_durable", Settings, PointOfSale, Reload, "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes');"),
    check("capture.slots_full", Settings, Pipeline, Restart, USED),
    check("capture.senders_full", Settings, Pipeline, Restart, USED),
    check("capture.wal_unlimited", Settings, PointOfSale, Reload, "SHOW max_slot_wal_keep_size;"),
    check("capture.wal_none_kept", Settings, Data, Reload, "SHOW max_slot_wal_keep_size;"),
    check("capture.wal_little_kept", Settings, Data, Reload, "SHOW max_slot_wal_keep_size;"),
    check("capture.wal_budget_above_limit", Settings, Data, Nothing, "SHOW max_slot_wal_keep_size;"),
    check("capture.idle_timeout", Settings, Data, Reload, "SELECT name, setting, unit FROM pg_settings WHERE name = 'idle_replication_slot_timeout';"),
    check("capture.no_sender_timeout", Settings, Pipeline, Reload, "SHOW wal_sender_timeout;"),
    check("capture.sender_timeout_short", Settings, Pipeline, Reload, "SHOW wal_sender_timeout;"),
    check("capture.decoding_memory_small", Settings, PointOfSale, Reload, "SHOW logical_decoding_work_mem;"),
    check("capture.decoding_spills", Settings, PointOfSale, Reload, "SELECT slot_name, spill_txns, spill_bytes, total_txns FROM pg_stat_replication_slots;"),
    check("capture.origin_unsupported", Settings, Pipeline, Restart, VERSION),
    check("capture.keyless_table", Identity, PointOfSale, Nothing, KEYS),
    check("capture.keyless_partition", Identity, PointOfSale, Nothing, KEYS),
    check("capture.identity_not_published", Identity, PointOfSale, Nothing, PUBLISHED),
    check("capture.filter_beyond_identity", Identity, PointOfSale, Nothing, PUBLISHED),
    check("capture.other_publication_keyless", Identity, PointOfSale, Nothing, PUBLISHED),
    check("capture.identity_full", Identity, PointOfSale, Nothing, KEYS),
    check("capture.publication_missing", Publication, Pipeline, Nothing, PUBLICATIONS),
    check("capture.publication_lacks_table", Publication, Pipeline, Nothing, PUBLISHED),
    check("capture.publication_extra_table", Publication, Care, Nothing, PUBLISHED),
    check("capture.publication_partial", Publication, Data, Nothing, PUBLICATIONS),
    check("capture.publication_row_filter", Publication, Data, Nothing, PUBLISHED),
    check("capture.publication_open_ended", Publication, PointOfSale, Nothing, PUBLICATIONS),
    check("capture.table_missing", Publication, Pipeline, Nothing, CLASSES),
    check("capture.table_unsupported", Publication, Data, Nothing, CLASSES),
    check("capture.columns_not_published", Publication, Care, Nothing, PUBLISHED),
    check("capture.not_captured", Publication, Care, Nothing, "SELECT * FROM pg_sequences; SELECT count(*) FROM pg_largeobject_metadata;"),
    check("capture.slot_missing", Slot, Pipeline, Nothing, SLOTS),
    check("capture.slot_lost", Slot, Data, Nothing, SLOTS),
    check("capture.slot_unusable", Slot, Pipeline, Nothing, SLOTS),
    check("capture.slot_active", Slot, Care, Nothing, "SELECT slot_name, pid, usename, application_name, client_addr FROM pg_stat_activity JOIN pg_replication_slots ON pid = active_pid;"),
    check("capture.slot_in_danger", Slot, Data, Nothing, SLOTS),
    check("capture.wal_warn", Slot, PointOfSale, Nothing, SLOTS),
    check("capture.wal_page", Slot, PointOfSale, Nothing, SLOTS),
    check("capture.wal_shed", Slot, PointOfSale, Nothing, SLOTS),
    check("capture.other_slot_idle", Slot, PointOfSale, Nothing, SLOTS),
    check("capture.other_slot_lost", Slot, Care, Nothing, SLOTS),
    check("capture.horizon_old", Slot, PointOfSale, Nothing, "SELECT slot_name, age(xmin), age(catalog_xmin) FROM pg_replication_slots;"),
    check("capture.long_transaction", Load, PointOfSale, Nothing, OPEN),
    check("capture.prepared_transaction", Load, PointOfSale, Nothing, "SELECT gid, prepared, owner, database FROM pg_prepared_xacts ORDER BY prepared;"),
    check("capture.wraparound_near", Load, PointOfSale, Nothing, "SELECT datname, age(datfrozenxid) FROM pg_database ORDER BY 2 DESC;"),
    check("capture.subtransactions", Load, PointOfSale, Nothing, "SELECT * FROM pg_stat_slru WHERE name ILIKE 'subtrans%';"),
    check("capture.table_huge", Load, Care, Nothing, CLASSES),
    check("capture.source_unavailable", Access, Pipeline, Nothing, ""),
    check("capture.auth_refused", Access, Pipeline, Reload, ROLES),
    check("capture.auth_weak", Access, Care, Reload, "SHOW password_encryption;"),
    check("capture.auth_none", Access, PointOfSale, Reload, "SELECT * FROM pg_hba_file_rules WHERE auth_method = 'trust';"),
    check("capture.not_permitted", Access, Pipeline, Nothing, ROLES),
    check("capture.role_missing", Access, Pipeline, Nothing, ROLES),
    check("capture.role_superuser", Access, PointOfSale, Nothing, ROLES),
    check("capture.role_no_connect", Access, Pipeline, Nothing, "SELECT datname, datacl, datallowconn FROM pg_database;"),
    check("capture.role_expires", Access, Pipeline, Nothing, ROLES),
    check("capture.role_connection_limit", Access, Pipeline, Nothing, ROLES),
    check("capture.backfill_not_permitted", Access, Pipeline, Nothing, "SELECT * FROM information_schema.column_privileges WHERE privilege_type = 'SELECT';"),
    check("capture.backfill_writes", Access, PointOfSale, Nothing, "SELECT * FROM information_schema.table_privileges WHERE privilege_type <> 'SELECT';"),
    check("capture.row_security", Access, Data, Nothing, CLASSES),
    check("capture.tls_off", Access, Care, Reload, "SHOW ssl;"),
    check("capture.tls_unverified", Access, Care, Nothing, "SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid();"),
    check("capture.standby", Ha, Pipeline, Nothing, "SELECT pg_is_in_recovery();"),
    check("capture.standby_feedback", Ha, Data, Reload, "SHOW hot_standby_feedback;"),
    check("capture.slot_no_failover", Ha, Data, Nothing, SLOTS),
    check("capture.slot_ahead_of_standby", Ha, Data, Reload, "SELECT name, setting FROM pg_settings WHERE name = 'synchronized_standby_slots';"),
    check("capture.standby_slot_absent", Ha, Pipeline, Reload, "SELECT slot_name, slot_type, active FROM pg_replication_slots WHERE slot_type = 'physical';"),
    check("capture.encoding", Encoding, Data, Nothing, "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database();"),
    check("capture.clock_offset", Encoding, Care, Nothing, "SELECT clock_timestamp();"),
    check("journal.unavailable", Journal, Pipeline, Nothing, ""),
    check("journal.refused", Journal, Pipeline, Nothing, ""),
    check("journal.unusable", Journal, Pipeline, Nothing, ""),
    check("journal.missing", Journal, Data, Nothing, ""),
    check("journal.no_leader", Journal, Pipeline, Nothing, ""),
    check("journal.leaders_together", Journal, Care, Nothing, ""),
    check("journal.one_copy", Journal, Data, Nothing, ""),
    check("journal.segments_coarse", Journal, Data, Nothing, ""),
    check("journal.retention_near", Journal, Data, Nothing, ""),
    check("journal.clock_offset", Journal, Care, Nothing, ""),
    check("journal.expired", Journal, Data, Nothing, ""),
    check("connector.target", Targets, Pipeline, Nothing, ""),
    check("connector.clock_offset", Targets, Care, Nothing, ""),
    check("queries.heavy_statement", Queries, PointOfSale, Nothing, STATEMENTS),
    check("queries.sequential_scan", Queries, PointOfSale, Nothing, SCANS),
    check("queries.unindexed_foreign_key", Queries, PointOfSale, Nothing, "SELECT conname, conrelid::regclass, confrelid::regclass, conkey FROM pg_constraint WHERE contype = 'f';"),
    check("queries.unused_index", Queries, Care, Nothing, INDEXES),
    check("queries.duplicate_index", Queries, Care, Nothing, INDEXES),
    check("queries.invalid_index", Queries, PointOfSale, Nothing, "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid;"),
    check("queries.bloat", Queries, PointOfSale, Nothing, TUPLES),
    check("queries.stale_statistics", Queries, PointOfSale, Nothing, TUPLES),
    check("queries.long_transaction", Queries, PointOfSale, Nothing, OPEN),
    check("queries.idle_in_transaction", Queries, PointOfSale, Nothing, OPEN),
    check("queries.lock_chain", Queries, PointOfSale, Nothing, "SELECT pid, pg_blocking_pids(pid) AS waits_for, now() - state_change AS since FROM pg_stat_activity WHERE wait_event_type = 'Lock';"),
    check("queries.cache_hit", Queries, PointOfSale, Restart, "SELECT blks_hit, blks_read, round(blks_hit * 100.0 / nullif(blks_hit + blks_read, 0), 1) AS percent FROM pg_stat_database WHERE datname = current_database();"),
    check("queries.checkpoints", Queries, PointOfSale, Reload, "SHOW max_wal_size; SHOW checkpoint_timeout;"),
    check("queries.connections", Queries, PointOfSale, Restart, "SELECT state, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY state;"),
    check("queries.temporary_files", Queries, PointOfSale, Reload, "SELECT temp_files, pg_size_pretty(temp_bytes) FROM pg_stat_database WHERE datname = current_database();"),
    check("queries.deadlocks", Queries, PointOfSale, Nothing, "SELECT deadlocks, stats_reset FROM pg_stat_database WHERE datname = current_database();"),
];

/// A check by its id. A code of capture that is no check of its own (an error met on the way) is told as one about access.
#[must_use]
pub fn find(id: &str) -> Option<&'static Check> {
    ALL.iter().find(|check| check.id == id)
}

/// Which findings are wanted: by group, by id, or `source` for everything about the database; empty wants all.
#[derive(Clone, Debug, Default)]
pub struct Only(Vec<String>);

impl Only {
    /// From the words of `--only`.
    ///
    /// # Errors
    /// The first word that names nothing.
    pub fn parse(words: &[String]) -> Result<Only, String> {
        let known = |word: &str| word == "source" || ALL.iter().any(|c| c.id == word || c.group.as_str() == word);
        match words.iter().find(|word| !known(word)) {
            Some(word) => Err(word.clone()),
            None => Ok(Only(words.to_vec())),
        }
    }

    /// Whether a check is wanted.
    #[must_use]
    pub fn wants(&self, id: &str) -> bool {
        let group = find(id).map(|c| c.group);
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|word| word == id || group.is_some_and(|g| g.as_str() == word || (word == "source" && Group::SOURCE.contains(&g))))
    }

    /// Whether anything of these groups is wanted.
    #[must_use]
    pub fn wants_any(&self, groups: &[Group]) -> bool {
        ALL.iter().any(|check| groups.contains(&check.group) && self.wants(check.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::codes;

    #[test]
    fn every_check_is_explained_and_stands_once() {
        for (n, check) in ALL.iter().enumerate() {
            assert!(codes::find(check.id).is_some(), "{} has no explanation", check.id);
            assert!(ALL[..n].iter().all(|other| other.id != check.id), "{} stands twice", check.id);
        }
    }

    #[test]
    fn only_takes_groups_and_ids() {
        let only = |words: &[&str]| Only::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert!(only(&[]).expect("all").wants("journal.missing"));
        let source = only(&["source"]).expect("known");
        assert!(source.wants("capture.wal_level") && !source.wants("journal.missing") && !source.wants_any(&[Group::Targets]));
        let two = only(&["capture.wal_level", "targets"]).expect("known");
        assert!(two.wants("capture.wal_level") && two.wants("connector.target") && !two.wants("capture.encoding"));
        assert!(two.wants_any(&Group::SOURCE) && !two.wants_any(&[Group::Journal]));
        assert_eq!(only(&["wal"]).expect_err("unknown"), "wal");
    }
}
