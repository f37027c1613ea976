//! From facts to findings. Pure: each rule looks at the facts and says fail, warn or fine.

use tillstream_schemas::table::Identity;

use super::facts::{DECODING, Facts, LONG_TRANSACTIONS, PREPARED, ROLE, SETTINGS, USED};
use super::{Finding, Severity};
use crate::capture::catalog::{PublicationFacts, SlotFacts, TableFacts, identifier, identity_warning, literal};
use crate::capture::wire::{ORIGIN_MAJOR, origin_unsupported};
use crate::config::{self, units};

/// The newest major version that Tillstream is tested with.
pub const LAST_MAJOR: i32 = 18;

/// Slots and walsenders that should stay free beside ours: a takeover needs one, a base backup two.
const SPARE: i64 = 2;

const SLOT: &str = "SELECT * FROM pg_replication_slots";
const PUBLICATION: &str = "SELECT * FROM pg_publication_tables";
const IDENTITY: &str =
    "SELECT c.oid::regclass, relreplident, indisprimary FROM pg_class c LEFT JOIN pg_index ON indrelid = c.oid AND indisprimary";

struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        id: &'static str,
        what: impl Into<String>,
        evidence: &'static str,
        impact: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.0.push(Finding { id, severity, what: what.into(), evidence, impact: impact.into(), fix: fix.into(), restart: false });
    }

    fn fail(
        &mut self,
        id: &'static str,
        what: impl Into<String>,
        evidence: &'static str,
        impact: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(Severity::Fail, id, what, evidence, impact, fix);
    }

    fn warn(
        &mut self,
        id: &'static str,
        what: impl Into<String>,
        evidence: &'static str,
        impact: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(Severity::Warn, id, what, evidence, impact, fix);
    }

    fn ok(&mut self, id: &'static str, what: impl Into<String>) {
        self.0.push(Finding::ok(id, what));
    }

    /// The last finding needs a restart to be mended.
    fn needs_restart(&mut self) {
        if let Some(last) = self.0.last_mut() {
            last.restart = true;
        }
    }
}

/// All findings, what can hurt the point of sale first.
#[must_use]
pub fn judge(source: &config::Source, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    identities(&mut found, facts);
    wal_limits(&mut found, facts);
    server(&mut found, facts);
    origin(&mut found, source, facts);
    head_room(&mut found, facts);
    publication(&mut found, source, facts);
    slot(&mut found, source, facts);
    transactions(&mut found, facts);
    access(&mut found, facts);
    found.0
}

/// What this role cannot see.
pub(super) fn unchecked(facts: &Facts) -> Vec<String> {
    if facts.sees_activity {
        return Vec::new();
    }
    vec![format!("long transactions of other roles (GRANT pg_read_all_stats TO {}; shows them)", identifier(&facts.server.user))]
}

fn identities(found: &mut Findings, facts: &Facts) {
    let whole = PublicationFacts { update: true, delete: true, ..PublicationFacts::default() };
    let mut fine = 0;
    for table in facts.tables.iter().filter_map(|(_, t)| t.as_ref()).chain(&facts.extra) {
        let published = facts.publication.as_ref().is_some_and(|p| p.table(&table.schema, &table.table).is_some());
        let effective = if published { facts.publication.as_ref().unwrap_or(&whole) } else { &whole };
        match identity_warning(table, effective) {
            None => fine += 1,
            Some(risk) => {
                let when = if published { "now" } else { "once it is published" };
                let name = table.qualified();
                let impact = format!("UPDATE and DELETE on {name} FAIL in the point of sale {when}; {} seen so far", table.rewrites);
                // A table that is only appended to works as it is; the first correction by hand would not.
                let severity = if table.rewrites > 0 { Severity::Fail } else { Severity::Warn };
                found.add(severity, risk.code, risk.what, IDENTITY, impact, risk.fix);
            }
        }
    }
    found.ok("capture.keyless_table", format!("{fine} tables name their rows by a key or the whole row"));
    full_identities(found, facts);
}

fn full_identities(found: &mut Findings, facts: &Facts) {
    /// From here on a FULL row costs visibly more WAL than its key.
    const WIDE: usize = 30;
    for table in facts.tables.iter().filter_map(|(_, t)| t.as_ref()) {
        if table.identity == Identity::Full && table.columns.len() >= WIDE && !table.primary_key.is_empty() {
            found.warn(
                "capture.identity_full",
                format!("{} has REPLICA IDENTITY FULL, {} columns and a primary key", table.qualified(), table.columns.len()),
                IDENTITY,
                "every UPDATE writes the whole old row to WAL",
                format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT;", table.qualified()),
            );
        }
    }
}

fn wal_limits(found: &mut Findings, facts: &Facts) {
    let set = |value: &str| format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{value}'; SELECT pg_reload_conf();");
    match facts.number("max_slot_wal_keep_size") {
        Some(-1) => found.warn(
            "capture.wal_unlimited",
            "max_slot_wal_keep_size = -1 (no limit)",
            SETTINGS,
            "a pipeline that stands still makes the server keep WAL until the disk is full, and then the point of sale stops",
            set("20GB"),
        ),
        Some(0) => found.fail(
            "capture.wal_none_kept",
            "max_slot_wal_keep_size = 0",
            SETTINGS,
            "the slot is lost at the first checkpoint at which the pipeline is behind",
            set("20GB"),
        ),
        Some(mb @ 1..1024) => found.warn(
            "capture.wal_little_kept",
            format!("max_slot_wal_keep_size = {mb} MB"),
            SETTINGS,
            "a pause of minutes at peak can lose the slot",
            set("20GB"),
        ),
        Some(mb) => found.ok("capture.wal_unlimited", format!("max_slot_wal_keep_size = {mb} MB")),
        None => {}
    }
    match facts.number("idle_replication_slot_timeout") {
        Some(seconds @ 1..86_400) => found.warn(
            "capture.idle_timeout",
            format!("idle_replication_slot_timeout = {seconds} s"),
            SETTINGS,
            "a planned stop of the pipeline that lasts longer loses the slot",
            "ALTER SYSTEM SET idle_replication_slot_timeout = '3d'; SELECT pg_reload_conf();",
        ),
        Some(_) => found.ok("capture.idle_timeout", "an idle slot is kept for at least a day"),
        None => {}
    }
    if facts.number("wal_sender_timeout") == Some(0) {
        found.warn(
            "capture.no_sender_timeout",
            "wal_sender_timeout = 0",
            SETTINGS,
            "after our host dies the slot stays taken for ever, and no successor can have it",
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();",
        );
    } else {
        found.ok("capture.no_sender_timeout", "a dead reader loses the slot after wal_sender_timeout");
    }
}

fn server(found: &mut Findings, facts: &Facts) {
    let server = &facts.server;
    // Corrected in May 2025: a change of a publication or table beside an open transaction could lose that transaction's rows.
    let corrected = match server.major() {
        14 => 140_018,
        15 => 150_013,
        16 => 160_009,
        17 => 170_005,
        _ => 0,
    };
    if server.major() < 14 {
        found.fail(
            "capture.version_unsupported",
            format!("PostgreSQL {}", server.version),
            "SELECT version()",
            "nothing can be captured",
            "upgrade to 14 or newer",
        );
    } else if server.version_num < corrected {
        found.fail(
            "capture.version_minor",
            format!("PostgreSQL {} lacks the correction of {}.{}", server.version, corrected / 10_000, corrected % 10_000),
            "SELECT version()",
            "DDL beside an open transaction can lose that transaction's changes, silently",
            "install the minor update",
        );
        found.needs_restart();
    } else if server.major() > LAST_MAJOR {
        found.warn(
            "capture.version_untested",
            format!("PostgreSQL {} is newer than what Tillstream is tested with ({LAST_MAJOR})", server.version),
            "SELECT version()",
            "it probably works",
            "try it beside production first",
        );
    } else {
        found.ok("capture.version_unsupported", format!("PostgreSQL {}", server.version));
    }
    if server.wal_level == "logical" {
        found.ok("capture.wal_level", "wal_level = logical");
    } else {
        found.fail(
            "capture.wal_level",
            format!("wal_level = {}", server.wal_level),
            "SHOW wal_level",
            "changes cannot be decoded from what the server writes",
            "ALTER SYSTEM SET wal_level = 'logical';",
        );
        found.needs_restart();
    }
    if server.in_recovery {
        let severity = if server.major() < 16 { Severity::Fail } else { Severity::Warn };
        found.add(
            severity,
            "capture.standby",
            "the server is a standby",
            "SELECT pg_is_in_recovery()",
            "before version 16 nothing can be decoded here; since then a conflict with recovery can lose the slot",
            "point the source's URL at the primary",
        );
    } else {
        found.ok("capture.standby", "the server is a primary");
    }
    if server.encoding == "UTF8" {
        found.ok("capture.encoding", "the database is encoded in UTF8");
    } else {
        found.warn(
            "capture.encoding",
            format!("the database's encoding is {}", server.encoding),
            "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()",
            if server.encoding == "SQL_ASCII" {
                "text is not checked by the server; what is not UTF-8 stands as U+FFFD in events"
            } else {
                "the server converts; a character without a counterpart stops the stream"
            },
            "nothing, if all text is known to convert",
        );
    }
}

/// Whether the server can leave out what it replicated from elsewhere, where that is asked for.
fn origin(found: &mut Findings, source: &config::Source, facts: &Facts) {
    if source.origin == config::Origin::Any {
        return;
    }
    if facts.server.major() < ORIGIN_MAJOR.cast_signed() {
        found.0.push(Finding { evidence: "SELECT version()", ..Finding::failed(&origin_unsupported(&facts.server.version)) });
    } else {
        found.ok("capture.origin_unsupported", "the server tells its own changes from replicated ones");
    }
}

fn head_room(found: &mut Findings, facts: &Facts) {
    let ours = i64::from(facts.slot.is_none());
    let streaming = i64::from(facts.slot_reader.is_none());
    for (id, name, used, needed) in [
        ("capture.slots_full", "max_replication_slots", facts.slots_used, ours),
        ("capture.senders_full", "max_wal_senders", facts.senders_used, streaming),
    ] {
        let Some(most) = facts.number(name) else { continue };
        let what = format!("{name} = {most}, {used} in use");
        let fix = format!("ALTER SYSTEM SET {name} = {};", (most + 4).max(10));
        if most < used + needed {
            found.fail(id, what, USED, "the pipeline finds none free", fix);
            found.needs_restart();
        } else if most < used + needed + SPARE {
            found.warn(id, what, USED, "a takeover or a backup may find none free", fix);
            found.needs_restart();
        } else {
            found.ok(id, what);
        }
    }
}

fn publication(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let name = identifier(&source.publication);
    let list = |tables: &[&TableFacts]| tables.iter().map(|t| t.qualified()).collect::<Vec<_>>().join(", ");
    for ((schema, table), _) in facts.tables.iter().filter(|(_, t)| t.is_none()) {
        found.fail(
            "capture.table_missing",
            format!("table {}.{} does not exist", identifier(schema), identifier(table)),
            "SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'p')",
            "it cannot be captured, and the pipeline does not start",
            "mend source.tables, or the database in the source's URL",
        );
    }
    let present: Vec<&TableFacts> = facts.tables.iter().filter_map(|(_, t)| t.as_ref()).collect();
    for table in present.iter().filter(|t| t.persistence != 'p' || !matches!(t.kind, 'r' | 'p')) {
        found.fail(
            "capture.table_unsupported",
            format!("{} is not an ordinary, logged table", table.qualified()),
            "SELECT oid::regclass, relkind, relpersistence FROM pg_class",
            "its changes are not in WAL",
            format!("take it out of source.tables, or ALTER TABLE {} SET LOGGED;", table.qualified()),
        );
    }
    let Some(publication) = &facts.publication else {
        found.fail(
            "capture.publication_missing",
            format!("publication \"{}\" does not exist", source.publication),
            PUBLICATION,
            "nothing is sent",
            format!("CREATE PUBLICATION {name} FOR TABLE {} WITH (publish_via_partition_root = true);", list(&present)),
        );
        return;
    };
    let lacking: Vec<&TableFacts> = present.iter().copied().filter(|t| publication.table(&t.schema, &t.table).is_none()).collect();
    if lacking.is_empty() {
        found.ok("capture.publication_lacks_table", format!("publication \"{}\" holds all configured tables", publication.name));
    } else {
        let via_root = if !publication.via_root && lacking.iter().any(|t| t.kind == 'p') {
            format!(" ALTER PUBLICATION {name} SET (publish_via_partition_root = true);")
        } else {
            String::new()
        };
        found.fail(
            "capture.publication_lacks_table",
            format!("publication \"{}\" does not publish {}", publication.name, list(&lacking)),
            PUBLICATION,
            "changes of these tables would be missed; the pipeline does not start",
            format!("ALTER PUBLICATION {name} ADD TABLE {};{via_root}", list(&lacking)),
        );
    }
    if !facts.extra.is_empty() {
        let extra: Vec<&TableFacts> = facts.extra.iter().collect();
        found.warn(
            "capture.publication_extra_table",
            format!("publication \"{}\" also publishes {}", publication.name, list(&extra)),
            PUBLICATION,
            "their changes are sent and dropped",
            format!("add them to source.tables, or ALTER PUBLICATION {name} DROP TABLE {};", list(&extra)),
        );
    }
    if publication.insert && publication.update && publication.delete && publication.truncate {
        found.ok("capture.publication_partial", "inserts, updates, deletes and truncates are published");
    } else {
        found.warn(
            "capture.publication_partial",
            format!("publication \"{}\" does not publish all of insert, update, delete, truncate", publication.name),
            "SELECT * FROM pg_publication",
            "targets keep rows that the point of sale has changed or removed",
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"),
        );
    }
}

fn slot(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let name = literal(&source.slot);
    let create = format!("SELECT pg_create_logical_replication_slot({name}, 'pgoutput');");
    let Some(slot) = &facts.slot else {
        found.fail(
            "capture.slot_missing",
            format!("slot \"{}\" does not exist", source.slot),
            SLOT,
            "nothing is kept for the pipeline; changes made meanwhile are missed",
            create,
        );
        return;
    };
    if let Some(evidence) = slot.lost() {
        found.fail(
            "capture.slot_lost",
            format!("slot \"{}\" was invalidated: {evidence}", source.slot),
            SLOT,
            "what was committed since cannot be streamed any more; it has to be loaded",
            format!("SELECT pg_drop_replication_slot({name}); {create}"),
        );
        return;
    }
    let strange = match (slot.plugin.as_deref(), slot.database.as_deref()) {
        (Some("pgoutput"), Some(database)) if database == facts.server.database => None,
        (Some("pgoutput"), database) => Some(format!("it belongs to database \"{}\"", database.unwrap_or_default())),
        (plugin, _) => Some(format!("its plugin is {}", plugin.unwrap_or("none: it is a physical slot"))),
    };
    if let Some(evidence) = strange {
        found.fail(
            "capture.slot_unusable",
            format!("slot \"{}\" cannot be used: {evidence}", source.slot),
            SLOT,
            "the pipeline does not start",
            format!("name another slot in source.slot, or take this one: SELECT pg_drop_replication_slot({name}); {create}"),
        );
        return;
    }
    match (&facts.slot_reader, facts.slot_reader_is_ours) {
        (Some(_), true) => found.ok("capture.slot_active", "this pipeline streams from the slot"),
        (Some(reader), false) => found.warn(
            "capture.slot_active",
            format!(
                "slot \"{}\" is taken by pid {} ({})",
                source.slot,
                slot.active_pid.unwrap_or(0),
                if reader.is_empty() { "hidden from this role" } else { reader }
            ),
            "SELECT pid, usename, application_name, client_addr FROM pg_stat_activity JOIN pg_replication_slots ON pid = active_pid",
            "this pipeline waits for it as a standby",
            "nothing, if that is meant; else end the other process",
        ),
        (None, _) => found.ok("capture.slot_active", "the slot is free"),
    }
    failover(found, source, facts, slot);
    spilled(found, facts);
    let kept = facts.retained_bytes.map_or_else(String::new, |bytes| format!(", keeps {} MB of WAL", bytes >> 20));
    match slot.wal_status.as_deref() {
        Some(status @ ("extended" | "unreserved")) => found.add(
            if status == "unreserved" { Severity::Fail } else { Severity::Warn },
            "capture.slot_in_danger",
            format!("slot \"{}\" is {status}{kept}", source.slot),
            SLOT,
            "the server will remove WAL that the pipeline still needs",
            "let the pipeline catch up, or raise max_slot_wal_keep_size",
        ),
        _ => found.ok("capture.slot_in_danger", format!("slot \"{}\" is sound{kept}", source.slot)),
    }
}

/// Whether large transactions take the way over the server's disk.
fn spilled(found: &mut Findings, facts: &Facts) {
    let memory = facts.number("logical_decoding_work_mem").and_then(|kib| u64::try_from(kib).ok());
    let memory = memory.map_or_else(|| "?".to_owned(), |kib| units::show_size(kib << 10));
    match facts.spilled {
        Some((transactions @ 1.., bytes, all)) => found.warn(
            "capture.decoding_spills",
            format!(
                "the server wrote {transactions} of {all} transactions to its disk while decoding, {} in all; logical_decoding_work_mem = {memory}",
                units::show_size(bytes.unsigned_abs())
            ),
            DECODING,
            "a transaction that does not fit is written and read once more at its commit, and comes later for it",
            "ALTER SYSTEM SET logical_decoding_work_mem = '256MB'; SELECT pg_reload_conf(); or set source.streaming: on",
        ),
        _ => found.ok("capture.decoding_spills", format!("what is decoded fits logical_decoding_work_mem ({memory})")),
    }
}

/// Whether a promotion would keep slot and events; before version 17 no slot follows one.
fn failover(found: &mut Findings, source: &config::Source, facts: &Facts, slot: &SlotFacts) {
    if facts.server.major() < 17 || facts.standbys == 0 {
        return;
    }
    let name = literal(&source.slot);
    if slot.failover != Some(true) {
        found.warn(
            "capture.slot_no_failover",
            format!("there are standbys, and slot \"{}\" does not follow a promotion", source.slot),
            SLOT,
            "after a promotion the slot is gone, and the tables have to be loaded again",
            format!("stop the pipeline, SELECT pg_drop_replication_slot({name}); SELECT pg_create_logical_replication_slot({name}, 'pgoutput', false, false, true); then `tillstream epoch bump`; on the standbys sync_replication_slots = on"),
        );
    } else if facts.settings.get("synchronized_standby_slots").is_none_or(String::is_empty) {
        found.warn(
            "capture.slot_ahead_of_standby",
            "synchronized_standby_slots is empty",
            SETTINGS,
            "what a standby has not yet is captured all the same; if it is promoted then, such events never happened there, and capture halts",
            "ALTER SYSTEM SET synchronized_standby_slots = '<the standbys' physical slots>'; SELECT pg_reload_conf();",
        );
    } else {
        found.ok("capture.slot_no_failover", "the slot follows a promotion");
    }
}

fn transactions(found: &mut Findings, facts: &Facts) {
    if facts.long_transactions.is_empty() {
        found.ok("capture.long_transaction", "no transaction is older than 15 minutes");
    }
    for (pid, application, seconds) in &facts.long_transactions {
        found.warn(
            "capture.long_transaction",
            format!("a transaction has been open for {:.0} min (pid {pid}, {application})", seconds / 60.0),
            LONG_TRANSACTIONS,
            "WAL since its begin is kept, and creating a slot waits for its end",
            "end it where it was begun",
        );
    }
    if facts.prepared > 0 {
        found.warn(
            "capture.prepared_transaction",
            format!("{} prepared transactions are older than 15 minutes", facts.prepared),
            PREPARED,
            "WAL since then is kept, and creating a slot waits for them",
            "COMMIT PREPARED or ROLLBACK PREPARED each of pg_prepared_xacts",
        );
    }
}

fn access(found: &mut Findings, facts: &Facts) {
    let user = identifier(&facts.server.user);
    if facts.can_replicate {
        found.ok("capture.not_permitted", "the role may replicate");
    } else {
        found.fail(
            "capture.not_permitted",
            format!("role {user} lacks REPLICATION"),
            ROLE,
            "the pipeline cannot stream",
            format!("ALTER ROLE {user} REPLICATION;"),
        );
    }
    if facts.superuser {
        found.warn(
            "capture.role_superuser",
            format!("role {user} is a superuser"),
            ROLE,
            "whoever learns its password owns the point of sale",
            "stream as the role that `tillstream setup` prints",
        );
    } else {
        found.ok("capture.role_superuser", "the role is no superuser");
    }
    if facts.settings.get("password_encryption").is_some_and(|v| v == "md5") {
        found.warn(
            "capture.auth_weak",
            "password_encryption = md5",
            SETTINGS,
            "new passwords are stored in a form that is refused here by default",
            "ALTER SYSTEM SET password_encryption = 'scram-sha-256'; SELECT pg_reload_conf(); then set the passwords anew",
        );
    } else {
        found.ok("capture.auth_weak", "passwords are stored for SCRAM-SHA-256");
    }
    let local = facts
        .settings
        .get("listen_addresses")
        .is_some_and(|l| l.split(',').all(|a| matches!(a.trim(), "" | "localhost" | "127.0.0.1" | "::1")));
    if facts.settings.get("ssl").is_some_and(|v| v == "off") && !local {
        found.warn(
            "capture.tls_off",
            "ssl = off, and the server listens beyond this host",
            SETTINGS,
            "sales and customers cross the network in the clear",
            "install a certificate; ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();",
        );
    } else {
        found.ok("capture.tls_off", "connections from elsewhere can be encrypted, or there are none");
    }
}
