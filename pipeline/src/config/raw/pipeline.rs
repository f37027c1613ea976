//! A checked pipeline file's blocks as what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tillstream_schemas::{HashKey, Policy};

use crate::config::calendar::{Calendar, Hours};
use crate::config::check::{Block, Checked, Checker, Item, nearest};
use crate::config::document::Span;
use crate::config::report::Code;
use crate::config::{
    Admin, AdminTls, AdminToken, ColumnRules, Compression, HoldBack, InPeak, Journal, LocalJournal, Origin, Protect, RabbitJournal,
    Retention, Role, Source, SourceTable, Streaming,
};

/// What both journals keep when nothing is said: a week covers a long weekend and a day of repair.
pub(super) const RETENTION_DEFAULT: Retention = Retention { age: Some(Duration::from_secs(7 * 86_400)), bytes: None };

/// The admin endpoint; complains where others could reach it unasked.
pub(super) fn admin(checker: &mut Checker<'_>, block: &Block) -> Option<Admin> {
    let (mut tokens, mut names): (Vec<AdminToken>, BTreeSet<String>) = Default::default();
    for item in block.list("tokens") {
        let Checked::Block(entry) = &item.value else { continue };
        let (Some(name), Some(role), Some(token)) = (entry.text("name"), entry.text("role"), entry.secret("token")) else { continue };
        let role = match role.as_str() {
            "admin" => Role::Admin,
            "operator" => Role::Operator,
            _ => Role::Viewer,
        };
        if !names.insert(name.clone()) {
            let help = Some("the audit goes by the name: give each its own".to_owned());
            checker.problem(Code::DuplicateName, item.span, format!("two tokens are named `{name}`"), "the second", help);
        }
        if tokens.iter().any(|other| other.token.expose_secret() == token.expose_secret()) {
            let help = Some("give each its own: `openssl rand -hex 32`".to_owned());
            checker.problem(Code::Conflict, item.span, format!("`{name}` has the token of another one"), "the second", help);
        }
        tokens.push(AdminToken { name, role, token });
    }
    let tls = block.block("tls").and_then(|tls| Some(AdminTls { certificate: tls.path("certificate")?, key: tls.path("key")? }));
    let admin = Admin { listen: block.address("listen")?, tokens, tls };
    if let (Some(why), Some(item)) = (admin.exposed_at(admin.listen), block.get("listen")) {
        let help = Some("listen on 127.0.0.1, or give it both `tokens` and `tls`".to_owned());
        checker.problem(Code::ExposedAdmin, item.span, format!("the admin endpoint is exposed: {why}"), "others reach this address", help);
    }
    Some(admin)
}

/// The source's tables with their partition columns; complains of repeats and of columns for tables that are not listed.
pub(super) fn source_tables(checker: &mut Checker<'_>, source: &Block) -> Vec<SourceTable> {
    let mut tables: Vec<SourceTable> = Vec::new();
    for ((schema, table), span) in source.tables("tables") {
        if tables.iter().any(|t| t.schema == schema && t.table == table) {
            let message = format!("table `{schema}.{table}` is listed twice");
            checker.problem(Code::DuplicateName, span, message, "again", Some("remove one of the two".to_owned()));
            continue;
        }
        tables.push(SourceTable { schema, table, partition_by: None });
    }
    for key in ["partition_by", "changed_at"] {
        let Some(Checked::PerTable(entries)) = source.get(key).map(|item| item.value.clone()) else { continue };
        for (table, columns) in entries {
            let Checked::Table(schema, name) = &table.value else { continue };
            let text = |item: &Item| if let Checked::Text(text) = &item.value { Some(text.clone()) } else { None };
            match (tables.iter_mut().find(|t| t.schema == *schema && t.table == *name), &columns.value) {
                (Some(found), Checked::List(columns)) => found.partition_by = Some(columns.iter().filter_map(text).collect()),
                (Some(_), _) => {}
                (None, _) => unknown_table(checker, schema, name, table.span, &tables, "`source.tables`"),
            }
        }
    }
    tables
}

pub(super) fn unknown_table(checker: &mut Checker<'_>, schema: &str, table: &str, span: Span, tables: &[SourceTable], of: &str) {
    let known: Vec<String> = tables.iter().map(|t| format!("{}.{}", t.schema, t.table)).collect();
    let help = match nearest(&format!("{schema}.{table}"), known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add it to {of}, or choose one of {}", known.join(", ")),
    };
    checker.problem(Code::UnknownTable, span, format!("table `{schema}.{table}` is not in {of}"), "not captured", Some(help));
}

pub(super) fn source(block: &Block, tables: Vec<SourceTable>, columns: ColumnRules, journal: &Journal) -> Option<Source> {
    let hold_back = match (block.block("hold_back"), journal) {
        (Some(block), _) => HoldBack { time: block.duration("time")?, bytes: block.size("bytes")? },
        // Streams confirm before they sync: twice the half minute that an operating system takes to write its cache back.
        (None, Journal::Rabbitmq(_)) => HoldBack { time: Duration::from_secs(60), bytes: 256 << 20 },
        // SQLite syncs before it confirms.
        (None, Journal::Local(_)) => HoldBack { time: Duration::ZERO, bytes: 0 },
    };
    Some(Source {
        name: block.text("name")?,
        url: block.secret("url")?,
        backfill_url: block.secret("backfill_url"),
        slot: block.text("slot")?,
        publication: block.text("publication")?,
        tables,
        hold_back,
        wal_budget: block.size("wal_budget")?,
        initial_load: block.bool("initial_load")?,
        allow_weak_auth: block.bool("allow_weak_auth")?,
        columns,
        streaming: Streaming { on: block.text("streaming")? == "on", spool_max: block.size("spool_max")? },
        origin: if block.text("origin")? == "none" { Origin::None } else { Origin::Any },
    })
}

/// `changed_at` by `schema.table`.
pub(super) fn changed_at(source: &Block) -> BTreeMap<String, String> {
    let Some(Checked::PerTable(entries)) = source.get("changed_at").map(|item| &item.value) else { return BTreeMap::new() };
    let column = |(table, column): &(Item, Item)| match (&table.value, &column.value) {
        (Checked::Table(schema, name), Checked::Text(column)) => Some((format!("{schema}.{name}"), column.clone())),
        _ => None,
    };
    entries.iter().filter_map(column).collect()
}

pub(super) fn protect(checker: &mut Checker<'_>, block: &Block) -> Option<Protect> {
    let mut hours = Vec::new();
    for item in block.list("peak") {
        let Checked::Text(text) = &item.value else { continue };
        match Hours::parse(text) {
            Some(part) => hours.push(part),
            None => {
                let message = "this is no part of the week".to_owned();
                let help = Some("write `Mon-Fri 11:00-14:00`, `Sat,Sun 10:00-15:00` or `daily 17:00-21:30`".to_owned());
                checker.problem(Code::BadChoice, item.span, message, "not understood", help);
            }
        }
    }
    let zone = block.text("timezone")?;
    let calendar = Calendar::new(&zone, hours);
    if calendar.is_none()
        && let Some(item) = block.get("timezone")
    {
        let help = Some("write a name of the time zone database, as `America/Chicago` or `Europe/Berlin`".to_owned());
        checker.problem(Code::BadChoice, item.span, "this time zone is not known".to_owned(), "not a time zone", help);
    }
    Some(Protect {
        peak: Some(calendar?).filter(|c| !c.is_empty()),
        in_peak: if block.text("in_peak")? == "trickle" { InPeak::Trickle } else { InPeak::Pause },
        active_sessions: block.count("active_sessions")?,
        lock_waits: block.count("lock_waits")?,
        replica_lag: block.duration("replica_lag")?,
        wal_budget: block.size("wal_budget")?,
        capture_lag: block.size("capture_lag")?,
        sink_share: block.count("sink_share")?,
    })
}

/// Column policies; complains of tables that are not captured, of hashes without a key, and of tables that nobody has
/// classified although unknown columns are held back.
pub(super) fn column_rules(checker: &mut Checker<'_>, source: &Block, tables: &[SourceTable]) -> ColumnRules {
    let key = source.block("hash_key").and_then(|block| Some((block.text("id")?, block.secret("secret")?)));
    let mut rules = ColumnRules {
        tables: BTreeMap::new(),
        hold_new: source.text("on_new_column").as_deref() == Some("hold"),
        hash_key: key.map(|(id, secret)| Arc::new(HashKey::new(&id, secret.expose_secret().as_bytes()))),
    };
    let entries = match source.get("columns").map(|item| item.value.clone()) {
        Some(Checked::PerTable(entries)) => entries,
        _ => Vec::new(),
    };
    for (table, columns) in entries {
        let (Checked::Table(schema, name), Checked::PerColumn(columns)) = (&table.value, &columns.value) else { continue };
        if !tables.iter().any(|t| t.schema == *schema && t.table == *name) {
            unknown_table(checker, schema, name, table.span, tables, "`source.tables`");
        }
        let policies = rules.tables.entry((schema.clone(), name.clone())).or_default();
        for (column, policy) in columns {
            let (Checked::Text(column), Checked::Policy(word)) = (&column.value, &policy.value) else { continue };
            if *word == Policy::Hash && source.get("hash_key").is_none() {
                let help = Some("add `hash_key: {id: k1, secret: \"${env:COLUMN_KEY}\"}` to `source`".to_owned());
                checker.problem(Code::MissingKey, policy.span, "a hashed column needs `source.hash_key`", "hashed here", help);
            }
            policies.insert(column.clone(), *word);
        }
    }
    if rules.hold_new {
        let span = source.get("on_new_column").map(|item| item.span);
        for table in tables.iter().filter(|t| rules.of(&t.schema, &t.table).is_none()) {
            let (Some(span), name) = (span, format!("{}.{}", table.schema, table.table)) else { continue };
            let help = Some(format!("add `{name}: {{column: pass, …}}` to `source.columns`"));
            let message = format!("`on_new_column: hold` needs `source.columns` of `{name}`: all but its key would be held back");
            checker.problem(Code::MissingKey, span, message, "asked for here", help);
        }
    }
    rules
}

pub(super) fn journal(block: &Block) -> Option<Journal> {
    let retention = |block: &Block| match block.block("retention") {
        Some(retention) => Retention { age: retention.duration("age"), bytes: retention.size("bytes") },
        None => RETENTION_DEFAULT,
    };
    if let Some(local) = block.block("local") {
        return Some(Journal::Local(LocalJournal { dir: local.path("dir")?, partitions: partitions(local)?, retention: retention(local) }));
    }
    let rabbit = block.block("rabbitmq")?;
    let secret = |item: &Item| if let Checked::Secret(secret) = &item.value { Some(secret.clone()) } else { None };
    Some(Journal::Rabbitmq(RabbitJournal {
        urls: rabbit.list("urls").iter().filter_map(secret).collect(),
        stream: rabbit.text("stream")?,
        partitions: partitions(rabbit)?,
        replicas: rabbit.count("replicas"),
        segment_bytes: rabbit.size("segment")?,
        retention: retention(rabbit),
        frame_max: rabbit.size("frame_max")?,
        compression: if rabbit.text("compression")? == "lz4" { Compression::Lz4 } else { Compression::None },
        tls_ca: rabbit.block("tls").and_then(|tls| tls.path("ca")),
    }))
}

fn partitions(block: &Block) -> Option<NonZeroU16> {
    NonZeroU16::new(block.count("partitions")?)
}
