use std::collections::HashMap;

use tillstream_schemas::table::Identity;

use super::*;
use crate::capture::catalog::{ColumnFacts, PublicationFacts, PublishedTable, ServerFacts, SlotFacts, TableFacts};
use crate::capture::wire::Locality;
use crate::ops::doctor::facts::{Files, Grants, Keyless, RoleFacts, Setting, SlotState, State};
use crate::ops::provider::Provider;

fn source() -> config::Source {
    let table = config::SourceTable { schema: "public".to_owned(), table: "t".to_owned(), partition_by: None };
    config::Source {
        name: "pos".to_owned(),
        url: String::from("postgres://u@db.example/pos").into(),
        backfill_url: Some(String::from("postgres://b@db.example/pos").into()),
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        tables: vec![table],
        hold_back: config::HoldBack { time: std::time::Duration::ZERO, bytes: 0 },
        wal_budget: 10 << 30,
        initial_load: false,
        allow_weak_auth: false,
        columns: Default::default(),
        streaming: Default::default(),
        origin: Default::default(),
    }
}

fn slot(json: &str) -> SlotState {
    let slot: SlotFacts = serde_json::from_str(json).expect("a slot");
    SlotState { slot, retained_bytes: Some(1 << 20), ..SlotState::default() }
}

fn role(name: &str) -> RoleFacts {
    RoleFacts { name: name.to_owned(), replication: true, login: true, connection_limit: 8, connect: true, ..RoleFacts::default() }
}

/// Everything as it should be, on a primary of version 17 with one table.
fn good() -> Facts {
    let settings = [
        ("max_replication_slots", "10"),
        ("max_wal_senders", "10"),
        ("max_slot_wal_keep_size", "20480"),
        ("wal_sender_timeout", "60000"),
        ("password_encryption", "scram-sha-256"),
        ("ssl", "on"),
        ("listen_addresses", "*"),
        ("logical_decoding_work_mem", "65536"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("hot_standby_feedback", "on"),
        ("synchronized_standby_slots", ""),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), Setting { value: value.to_owned(), pending: false })).into();
    let column = |name: &str| ColumnFacts {
        name: name.to_owned(),
        type_oid: 23,
        type_modifier: -1,
        type_name: "integer".to_owned(),
        not_null: true,
        generated: false,
    };
    let table = TableFacts {
        oid: 1,
        schema: "public".to_owned(),
        table: "t".to_owned(),
        kind: 'r',
        persistence: 'p',
        is_partition: false,
        row_security: false,
        identity: Identity::Default,
        primary_key: vec!["id".to_owned()],
        identity_columns: vec!["id".to_owned()],
        columns: vec![column("id"), column("n")],
        rows_estimate: 1.0,
        rewrites: 7,
    };
    let published = PublishedTable {
        oid: 1,
        schema: "public".to_owned(),
        table: "t".to_owned(),
        columns: Some(vec!["id".to_owned(), "n".to_owned()]),
        row_filter: None,
        generated: false,
    };
    let publication = PublicationFacts {
        name: "p".to_owned(),
        insert: true,
        update: true,
        delete: true,
        truncate: true,
        tables: vec![published],
        ..PublicationFacts::default()
    };
    Facts {
        server: ServerFacts {
            version_num: 170_006,
            version: "17.6".to_owned(),
            wal_level: "logical".to_owned(),
            in_recovery: false,
            database: "pos".to_owned(),
            encoding: "UTF8".to_owned(),
            user: "u".to_owned(),
        },
        provider: Provider::SelfHosted,
        at: "2026-11-23T12:00:00Z".parse().expect("a moment"),
        settings,
        state: Some(State { sees_activity: true, ..State::default() }),
        slots: Some(vec![slot(r#"{"slot_name":"s","plugin":"pgoutput","slot_type":"logical","database":"pos","wal_status":"reserved"}"#)]),
        tables: vec![(("public".to_owned(), "t".to_owned()), Some(table))],
        publication: Some(publication),
        extra: Vec::new(),
        filters: HashMap::new(),
        schemas: Vec::new(),
        partitions: Vec::new(),
        others: Vec::new(),
        role: Some(role("u")),
        backfill_role: Some(role("b")),
        roles: ("u".to_owned(), Some("b".to_owned())),
        grants: [(1, Grants { usage: true, ..Grants::default() })].into(),
        long_transactions: Vec::new(),
        files: Some(Files::default()),
        locality: Locality::Verified,
        ours: "tillstream/test/capture".to_owned(),
        unread: Vec::new(),
    }
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.settings.insert(name.to_owned(), Setting { value: value.to_owned(), pending: false });
}

fn table(facts: &mut Facts) -> &mut TableFacts {
    facts.tables[0].1.as_mut().expect("there")
}

fn bad(facts: &Facts) -> Vec<(Severity, &'static str)> {
    let left = |f: &&Finding| f.severity != Severity::Ok && f.id != "capture.not_captured";
    judge(&source(), facts).iter().filter(left).map(|f| (f.severity, f.id)).collect()
}

#[test]
fn nothing_is_wrong_with_a_good_server() {
    assert_eq!(bad(&good()), []);
    let all = judge(&source(), &good());
    assert!(all.iter().all(|f| crate::ops::doctor::checks::find(f.id).is_some()), "every finding is a check of the list");
    assert_eq!(unchecked(&good()).len(), 1, "free disk");
}

/// What goes wrong, and what is said of it.
type Case = (fn(&mut Facts), &'static [(Severity, &'static str)]);

#[test]
#[rustfmt::skip] // A table: one line each.
fn each_fault_is_found_and_nothing_else() {
    use Severity::{Fail, Note, Warn};
    const STANDBY: &str = r#"{"slot_name":"standby","slot_type":"physical","active":true,"wal_status":"reserved"}"#;
    let cases: &[Case] = &[
        (|f| (f.server.version_num, f.server.version) = (130_020, "13.20".to_owned()), &[(Fail, "capture.version_unsupported"), (Warn, "capture.version_ends")]),
        (|f| (f.server.version_num, f.server.version) = (140_022, "14.22".to_owned()), &[(Warn, "capture.version_ends")]),
        (|f| (f.server.version_num, f.server.version) = (160_004, "16.4".to_owned()), &[(Fail, "capture.version_minor")]),
        (|f| (f.server.version_num, f.server.version) = (190_000, "19.0".to_owned()), &[(Warn, "capture.version_untested")]),
        (|f| f.at = "2029-09-01T00:00:00Z".parse().expect("a moment"), &[(Note, "capture.version_ends")]),
        (|f| f.provider = Provider::Rds, &[(Note, "capture.provider")]),
        (|f| f.state.as_mut().expect("there").clock_offset = -3.0, &[(Warn, "capture.clock_offset")]),
        (|f| f.state.as_mut().expect("there").frozen_age = 1_200_000_000, &[(Warn, "capture.wraparound_near")]),
        (|f| f.state.as_mut().expect("there").frozen_age = 1_900_000_000, &[(Fail, "capture.wraparound_near")]),
        (|f| f.state.as_mut().expect("there").subtransaction_reads = 1_000_000, &[(Warn, "capture.subtransactions")]),
        (|f| f.state.as_mut().expect("there").wal_written = Some((864_000e6, 86_400.0)), &[(Warn, "capture.wal_little_kept")]),
        (|f| f.slots.as_mut().expect("there")[0].horizon = Some(20_000_000), &[(Warn, "capture.horizon_old")]),
        (|f| f.slots.as_mut().expect("there")[0].retained_bytes = Some(3 << 30), &[(Warn, "capture.wal_warn")]),
        (|f| f.slots.as_mut().expect("there")[0].retained_bytes = Some(7 << 30), &[(Fail, "capture.wal_page")]),
        (|f| f.slots.as_mut().expect("there")[0].retained_bytes = Some(10 << 30), &[(Fail, "capture.wal_shed")]),
        (|f| f.slots.as_mut().expect("there").push(slot(STANDBY)), &[(Warn, "capture.slot_no_failover")]),
        (|f| { f.slots.as_mut().expect("there").push(slot(STANDBY)); f.slots.as_mut().expect("there")[0].slot.failover = Some(true); }, &[(Warn, "capture.slot_ahead_of_standby")]),
        (|f| { f.slots.as_mut().expect("there")[0].slot.failover = Some(true); set(f, "synchronized_standby_slots", "gone"); }, &[(Fail, "capture.standby_slot_absent")]),
        (|f| { f.server.in_recovery = true; set(f, "hot_standby_feedback", "off"); }, &[(Warn, "capture.standby"), (Warn, "capture.standby_feedback")]),
        (|f| f.grants.get_mut(&1).expect("there").pages = 10 << 20, &[(Note, "capture.table_huge")]),
        (|f| f.grants.get_mut(&1).expect("there").hidden = vec!["n".to_owned()], &[(Fail, "capture.backfill_not_permitted")]),
        (|f| f.grants.get_mut(&1).expect("there").writes = true, &[(Warn, "capture.backfill_writes")]),
        (|f| f.backfill_role = None, &[(Fail, "capture.role_missing")]),
        (|f| f.role.as_mut().expect("there").expires_in = Some(-5.0), &[(Fail, "capture.role_expires")]),
        (|f| f.role.as_mut().expect("there").expires_in = Some(86_400.0), &[(Warn, "capture.role_expires")]),
        (|f| f.locality = Locality::Clear, &[(Warn, "capture.tls_unverified")]),
        (|f| set(f, "ssl", "off"), &[(Warn, "capture.tls_off")]),
        (|f| set(f, "full_page_writes", "off"), &[(Fail, "capture.not_durable")]),
        (|f| f.files = Some(Files { settings: (1, "work_mem".to_owned()), hba_faulty: "7".to_owned(), hba_trust: "9".to_owned() }), &[(Fail, "capture.files_invalid"), (Warn, "capture.auth_none")]),
        (|f| f.partitions = vec![Keyless { of: "r".to_owned(), table: "r_1".to_owned(), rewrites: 1 }], &[(Fail, "capture.keyless_partition")]),
        (|f| f.publication.as_mut().expect("there").tables[0].columns = Some(vec!["n".to_owned()]), &[(Fail, "capture.identity_not_published"), (Note, "capture.columns_not_published")]),
        (|f| { f.filters = [(1, vec!["n".to_owned()])].into(); f.publication.as_mut().expect("there").tables[0].row_filter = Some("n > 1".to_owned()); }, &[(Fail, "capture.filter_beyond_identity"), (Warn, "capture.publication_row_filter")]),
        (|f| { table(f).identity = Identity::Nothing; table(f).identity_columns.clear(); }, &[(Fail, "capture.keyless_table")]),
        (|f| table(f).persistence = 'u', &[(Fail, "capture.table_unsupported")]),
        (|f| f.settings.get_mut("max_wal_senders").expect("there").pending = true, &[(Warn, "capture.restart_pending")]),
    ];
    for (n, (fault, expected)) in cases.iter().enumerate() {
        let mut facts = good();
        fault(&mut facts);
        assert_eq!(bad(&facts), *expected, "case {n}");
    }
}
