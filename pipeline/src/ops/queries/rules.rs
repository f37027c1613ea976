//! From counters to findings, each with a suggestion. Pure; whether an index helps was asked before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::advice::{Advice, ROWS_MIN};
use super::facts::{Facts, Index, Session, Statement, Table};
use super::statement::{self, Part};
use crate::capture::catalog::identifier;
use crate::config::units;
use crate::ops::doctor::{Finding, Severity};

/// A statement with a larger share of all time is worth a look by itself.
const SHARE_HEAVY: f64 = 0.15;
/// Below this much time in all, shares say nothing.
const MILLISECONDS_MIN: f64 = 200.0;
/// Rows that a scan has to read before an index would be faster, and how often that has to happen.
const SCAN_ROWS: i64 = 10_000;
const SCANS: i64 = 20;
/// A smaller index costs little, used or not.
const INDEX_BYTES: i64 = 1 << 20;
/// Part of a table that may be dead or changed before it is worth a word.
const DEAD_PART: f64 = 0.2;
const DEAD_ROWS: i64 = 10_000;
/// A register's transaction takes milliseconds.
const OPEN_SECONDS: f64 = 300.0;
const IDLE_SECONDS: f64 = 10.0;
/// A wait that is shorter ends by itself more often than not.
const WAIT_SECONDS: f64 = 1.0;
/// Unused means nothing before a day and a night were counted.
const UNUSED_AFTER: f64 = 86_400.0;

fn show(bytes: i64) -> String {
    units::show_size(u64::try_from(bytes).unwrap_or(0))
}

fn time(seconds: f64) -> String {
    units::show_duration(Duration::from_secs(seconds.max(0.0) as u64))
}

/// What a statement is called for people: its number and, where it may be shown, its text.
pub(super) fn called(statement: &Statement) -> String {
    match statement::shown(&statement.text) {
        Some(text) => format!("{} [{text}]", statement.id),
        None => format!("{} [its text is not shown]", statement.id),
    }
}

/// All findings; `advice` are the indexes that were thought of, by statement.
pub(super) fn judge(facts: &Facts, advice: &[Advice]) -> Vec<Finding> {
    let mut found = Vec::new();
    statements(&mut found, facts, advice);
    scans(&mut found, facts, advice);
    foreign_keys(&mut found, facts);
    indexes(&mut found, facts);
    tables(&mut found, facts);
    sessions(&mut found, facts);
    server(&mut found, facts);
    found
}

/// Statements that take a large share of all time.
pub(super) fn heavy(facts: &Facts) -> impl Iterator<Item = (&Statement, f64)> {
    let all = facts.all_milliseconds.max(1.0);
    let statements = facts.statements.iter().flatten();
    statements.map(move |s| (s, s.milliseconds / all)).filter(|(s, share)| *share >= SHARE_HEAVY && s.milliseconds >= MILLISECONDS_MIN)
}

fn statements(found: &mut Vec<Finding>, facts: &Facts, advice: &[Advice]) {
    if facts.statements.is_none() {
        return;
    }
    let before = found.len();
    for (statement, share) in heavy(facts).filter(|(s, _)| statement::shown(&s.text).is_some()) {
        let calls = statement.calls.max(1);
        let what = format!(
            "{:.0} % of the database's time, {} calls of {:.2} ms, {} pages and {} rows each: statement {}",
            share * 100.0,
            statement.calls,
            statement.milliseconds / calls as f64,
            statement.pages / calls,
            statement.rows / calls,
            called(statement)
        );
        let fix = match advice.iter().find(|a| a.statement == statement.id) {
            Some(advice) => advice.told(),
            None => remedy(facts, statement),
        };
        let impact = "everything else waits behind it, most of all when many registers run it at once";
        found.push(Finding::bad(Severity::Warn, "queries.heavy_statement", what, impact, fix));
    }
    if found.len() == before {
        found.push(Finding::ok("queries.heavy_statement", "no statement takes a large share of the database's time"));
    }
}

/// What helps where no index was thought of.
fn remedy(facts: &Facts, statement: &Statement) -> String {
    let calls = statement.calls.max(1);
    let known: Vec<_> = facts.tables.iter().map(|t| t.known.clone()).collect();
    let accesses = statement::accesses(&statement.text, &known);
    if let Some((table, column)) = accesses.iter().find_map(|a| match a.like.first()? {
        Part::Column(column) => Some((&facts.tables[a.table], column)),
        Part::Call(..) => None,
    }) {
        return format!(
            "a pattern that begins with % uses no ordinary index: CREATE EXTENSION pg_trgm; CREATE INDEX CONCURRENTLY ON {} USING gin ({} gin_trgm_ops); or search by a prefix",
            table.name,
            identifier(column)
        );
    }
    if statement::shown(&statement.text).is_some_and(|text| text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("insert"))) {
        return "each row costs its indexes, triggers and foreign keys: drop indexes that nobody uses, and write several rows by one statement".to_owned();
    }
    if statement.temp_pages > 0 {
        return "it sorts or joins over temporary files: raise work_mem for the role that runs it, or ask for fewer rows".to_owned();
    }
    let (rows, pages) = (statement.rows / calls, statement.pages / calls);
    if pages > 100 && pages > rows.saturating_mul(10) {
        return "it reads many pages for few rows: look at its plan by EXPLAIN (ANALYZE, BUFFERS), for a join or condition that no index serves".to_owned();
    }
    if statement.milliseconds / (calls as f64) < 1.0 {
        return "each call is quick: call it less often (keep its answer for a moment, ask for several rows at once)".to_owned();
    }
    "look at its plan by EXPLAIN (ANALYZE, BUFFERS)".to_owned()
}

fn scans(found: &mut Vec<Finding>, facts: &Facts, advice: &[Advice]) {
    let mut scanned: Vec<&Table> =
        facts.tables.iter().filter(|t| t.scans >= SCANS && t.scanned_rows / t.scans.max(1) >= SCAN_ROWS).collect();
    scanned.sort_by_key(|t| std::cmp::Reverse(t.scanned_rows));
    for table in scanned.iter().take(5) {
        let advised: Vec<String> = advice.iter().filter(|a| a.table == table.name).map(Advice::told).collect();
        let fix = if !advised.is_empty() {
            advised.join(" ")
        } else if facts.statements.is_none() {
            "which statements do so, pg_stat_statements would tell; then an index on what they compare".to_owned()
        } else {
            "see by EXPLAIN which statement on it uses no index; a report that needs all rows is better run on a standby".to_owned()
        };
        found.push(Finding::bad(
            Severity::Warn,
            "queries.sequential_scan",
            format!(
                "{} was read as a whole {} times, {} rows each time; by an index {} times",
                table.name,
                table.scans,
                table.scanned_rows / table.scans.max(1),
                table.index_scans
            ),
            "each such query gets slower as the table grows, and pushes what registers need out of memory",
            fix,
        ));
    }
    if scanned.is_empty() {
        found.push(Finding::ok("queries.sequential_scan", "no large table is read as a whole again and again"));
    }
}

fn foreign_keys(found: &mut Vec<Finding>, facts: &Facts) {
    let table = |oid: u32| facts.tables.iter().find(|t| t.oid == oid);
    let mut bare: Vec<_> =
        facts.foreign_keys.iter().filter_map(|k| Some((k, table(k.table)?))).filter(|(_, t)| t.live >= ROWS_MIN).collect();
    bare.sort_by_key(|(_, t)| std::cmp::Reverse(t.live));
    for (key, table) in bare.iter().take(10) {
        let columns: Vec<String> = key.columns.iter().map(|c| identifier(c)).collect();
        found.push(Finding::bad(
            Severity::Warn,
            "queries.unindexed_foreign_key",
            format!("foreign key {} of {} ({}) has no index; {} rows", key.name, table.name, columns.join(", "), table.live),
            format!(
                "each DELETE or key change in {} reads all of {} and holds its locks meanwhile; {} deletes and updates there so far",
                key.refers_to, table.name, key.changes
            ),
            format!("CREATE INDEX CONCURRENTLY ON {} ({});", table.name, columns.join(", ")),
        ));
    }
    if bare.is_empty() {
        found.push(Finding::ok("queries.unindexed_foreign_key", "foreign keys of tables with more than a thousand rows have an index"));
    }
}

fn indexes(found: &mut Vec<Finding>, facts: &Facts) {
    let mut said = BTreeSet::new();
    let name = |index: &Index| facts.tables.iter().find(|t| t.oid == index.table).map_or_else(String::new, |t| t.name.clone());
    for index in facts.indexes.iter().filter(|i| !i.valid && !i.needed) {
        said.insert(&index.name);
        found.push(Finding::bad(
            Severity::Warn,
            "queries.invalid_index",
            format!("index {} of {} is invalid: its creation was broken off", index.name, name(index)),
            "each write maintains it, and no query uses it",
            format!("DROP INDEX CONCURRENTLY {}; and create it again", index.name),
        ));
    }
    let mut shapes: BTreeMap<(u32, &str), Vec<&Index>> = BTreeMap::new();
    for index in facts.indexes.iter().filter(|i| i.valid) {
        shapes.entry((index.table, &index.shape)).or_default().push(index);
    }
    for same in shapes.values_mut().filter(|same| same.len() > 1) {
        // What something stands on is kept, then what is unique, then what is used most.
        same.sort_by_key(|i| std::cmp::Reverse((i.needed, i.unique, i.scans)));
        for index in same[1..].iter().filter(|i| !i.needed) {
            said.insert(&index.name);
            found.push(Finding::bad(
                Severity::Warn,
                "queries.duplicate_index",
                format!("index {} of {} is the same as {}, {}", index.name, name(index), same[0].name, show(index.bytes)),
                "each write of a register maintains both",
                format!("DROP INDEX CONCURRENTLY {};", index.name),
            ));
        }
    }
    let unused: Vec<&Index> = facts
        .indexes
        .iter()
        .filter(|i| i.valid && i.scans == 0 && !i.unique && !i.needed && i.bytes >= INDEX_BYTES && !said.contains(&i.name))
        .collect();
    // Young counters cannot tell what the month's end needs.
    let young = facts.overview.seconds < UNUSED_AFTER;
    for index in unused.iter().take(10) {
        let since = time(facts.overview.seconds);
        found.push(Finding::bad(
            Severity::Warn,
            "queries.unused_index",
            format!("index {} of {} ({}) was not used in {since}", index.name, name(index), show(index.bytes)),
            "each write of a register maintains it, and its pages take memory",
            format!(
                "{}standbys count for themselves, and a report may run once a month; then DROP INDEX CONCURRENTLY {};",
                if young { "look again when counters are some days old; " } else { "" },
                index.name
            ),
        ));
    }
    if unused.is_empty() {
        found.push(Finding::ok("queries.unused_index", "no large index is without use"));
    }
}

fn tables(found: &mut Vec<Finding>, facts: &Facts) {
    let before = found.len();
    for table in &facts.tables {
        let rows = (table.live + table.dead).max(1) as f64;
        if table.dead >= DEAD_ROWS && table.dead as f64 / rows >= DEAD_PART {
            found.push(Finding::bad(
                Severity::Warn,
                "queries.bloat",
                format!("{} has {} dead rows beside {} living ones ({})", table.name, table.dead, table.live, show(table.bytes)),
                "queries pass over them, and the table takes more disk and memory than it needs",
                format!("see what keeps vacuum away (open transactions, slots), then VACUUM (ANALYZE) {};", table.name),
            ));
        }
        let stale = table.live >= DEAD_ROWS && (!table.analysed || table.changed as f64 / rows >= 0.5);
        if stale {
            let what = if table.analysed {
                format!("{} of {} rows of {} changed since it was analysed", table.changed, table.live, table.name)
            } else {
                format!("{} with {} rows was never analysed", table.name, table.live)
            };
            let impact = "the planner guesses wrong and chooses slow plans, often only at peak";
            found.push(Finding::bad(Severity::Warn, "queries.stale_statistics", what, impact, format!("ANALYZE {};", table.name)));
        }
    }
    if found.len() == before {
        found.push(Finding::ok("queries.bloat", "tables are vacuumed"));
        found.push(Finding::ok("queries.stale_statistics", "tables are analysed"));
    }
}

/// A session for people: never its text, which holds values.
fn who(facts: &Facts, session: &Session) -> String {
    let statement = facts.statements.iter().flatten().find(|s| Some(s.id) == session.statement);
    let text = statement.map_or_else(String::new, |s| format!(", statement {}", called(s)));
    format!("pid {} ({}, {}{text})", session.pid, session.application, session.state)
}

fn sessions(found: &mut Vec<Finding>, facts: &Facts) {
    if !facts.overview.sees_activity {
        return;
    }
    let chains = chains(&facts.sessions);
    for (head, waiting) in &chains {
        let waits = waiting.iter().filter_map(|s| s.waits).fold(0.0, f64::max);
        if waits < WAIT_SECONDS {
            continue;
        }
        let first = facts.sessions.iter().find(|s| s.pid == *head);
        let names: Vec<String> = waiting.iter().take(5).map(|s| format!("pid {} for {}", s.pid, time(s.waits.unwrap_or(0.0)))).collect();
        let more = if waiting.len() > 5 { format!(" and {} more", waiting.len() - 5) } else { String::new() };
        found.push(Finding::bad(
            Severity::Fail,
            "queries.lock_chain",
            format!(
                "{} holds up {}: {}{more}",
                first.map_or_else(|| format!("pid {head}, which is no client or a prepared transaction,"), |s| who(facts, s)),
                if waiting.len() == 1 { "another session".to_owned() } else { format!("{} sessions", waiting.len()) },
                names.join(", ")
            ),
            "whoever waits stands still: a register that does not answer",
            format!("end its transaction where it was begun, or SELECT pg_terminate_backend({head});"),
        ));
    }
    if chains.is_empty() {
        found.push(Finding::ok("queries.lock_chain", "nobody waits for a lock"));
    }
    let idle = |s: &&Session| s.state.starts_with("idle in transaction") && s.in_state >= IDLE_SECONDS;
    for session in facts.sessions.iter().filter(idle) {
        found.push(Finding::bad(
            Severity::Warn,
            "queries.idle_in_transaction",
            format!("{} has done nothing for {} within a transaction", who(facts, session), time(session.in_state)),
            "its locks are held, vacuum cannot clean up, and WAL since its begin is kept for every slot",
            format!(
                "end it where it was begun, or SELECT pg_terminate_backend({}); and ALTER ROLE {} SET idle_in_transaction_session_timeout = '60s';",
                session.pid,
                identifier(&session.role)
            ),
        ));
    }
    let open = |s: &&Session| !idle(s) && s.transaction.is_some_and(|t| t >= OPEN_SECONDS);
    for session in facts.sessions.iter().filter(open) {
        found.push(Finding::bad(
            Severity::Warn,
            "queries.long_transaction",
            format!("{} is in a transaction for {}", who(facts, session), time(session.transaction.unwrap_or(0.0))),
            "vacuum cannot clean up behind it, and WAL since its begin is kept for every slot",
            format!("let reports run on a standby; SELECT pg_cancel_backend({}); ends the statement", session.pid),
        ));
    }
    if !facts.sessions.iter().any(|s| idle(&s) || open(&s)) {
        found.push(Finding::ok("queries.long_transaction", "no transaction is open for long"));
    }
}

/// Who holds others up, with all that wait for it, directly or behind another.
fn chains(sessions: &[Session]) -> Vec<(i32, Vec<&Session>)> {
    let waits_for = |pid: i32| sessions.iter().find(|s| s.pid == pid).map_or(&[][..], |s| &s.waits_for[..]);
    let mut heads: BTreeMap<i32, Vec<&Session>> = BTreeMap::new();
    for session in sessions.iter().filter(|s| !s.waits_for.is_empty()) {
        // The way from here to those who wait for nobody; a deadlock has none and is the server's to end.
        let (mut open, mut seen) = (session.waits_for.clone(), BTreeSet::new());
        while let Some(pid) = open.pop() {
            if !seen.insert(pid) {
                continue;
            }
            match waits_for(pid) {
                [] => heads.entry(pid).or_default().push(session),
                further => open.extend(further),
            }
        }
    }
    heads.into_iter().collect()
}

fn server(found: &mut Vec<Finding>, facts: &Facts) {
    let o = &facts.overview;
    let (asked, percent) = (o.hits + o.reads, 100.0 * o.hits as f64 / (o.hits + o.reads).max(1) as f64);
    if asked > 1_000_000 && percent < 90.0 {
        let what = format!("{percent:.1} % of {asked} pages were found in shared memory");
        let fix = "raise shared_buffers to a quarter of the memory, or index what is read as a whole";
        found.push(Finding::bad(Severity::Warn, "queries.cache_hit", what, "queries wait for the disk or the system's cache", fix));
    } else {
        found.push(Finding::ok("queries.cache_hit", format!("{percent:.1} % of {asked} pages were found in shared memory")));
    }
    if let Some((timed, requested)) = facts.checkpoints {
        if requested > 10 && requested > timed {
            found.push(Finding::bad(
                Severity::Warn,
                "queries.checkpoints",
                format!("{requested} checkpoints came because max_wal_size was reached, {timed} by the clock"),
                "writes come in bursts, and the first change of each page after a checkpoint makes WAL, and what is captured of it, larger",
                "ALTER SYSTEM SET max_wal_size = '8GB'; SELECT pg_reload_conf();",
            ));
        } else {
            found.push(Finding::ok("queries.checkpoints", format!("{timed} checkpoints by the clock, {requested} on request")));
        }
    }
    let used = o.connections as f64 / o.connections_max.max(1) as f64;
    let what = format!("{} of {} connections are in use", o.connections, o.connections_max);
    if used >= 0.8 {
        let severity = if used >= 0.95 { Severity::Fail } else { Severity::Warn };
        let fix = "put a pooler in front of the application (not of the pipeline's stream), or raise max_connections";
        found.push(Finding::bad(severity, "queries.connections", what, "the next register that connects is refused", fix));
    } else {
        found.push(Finding::ok("queries.connections", what));
    }
    if o.temp_bytes > 1 << 30 {
        found.push(Finding::bad(
            Severity::Note,
            "queries.temporary_files",
            format!("{} temporary files took {}", o.temp_files, show(o.temp_bytes)),
            "statements that sort or join over files wait for the disk",
            "raise work_mem for the roles that run reports",
        ));
    }
    if o.deadlocks > 0 {
        found.push(Finding::bad(
            Severity::Note,
            "queries.deadlocks",
            format!("{} deadlocks in {}", o.deadlocks, time(o.seconds)),
            "each time a transaction failed and had to be tried again",
            "let all transactions take rows in the same order",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{ForeignKey, Overview};
    use super::*;

    fn bad(facts: &Facts) -> Vec<&'static str> {
        judge(facts, &[]).iter().filter(|f| f.severity != Severity::Ok).map(|f| f.id).collect()
    }

    #[test]
    fn a_quiet_database_has_nothing_to_mend() {
        let overview = Overview { connections_max: 100, sees_activity: true, ..Overview::default() };
        assert_eq!(bad(&Facts { overview, ..Facts::default() }), [] as [&str; 0]);
    }

    #[test]
    fn counters_become_findings() {
        let table = |oid: u32, name: &str| Table { oid, name: name.to_owned(), live: 50_000, analysed: true, ..Table::default() };
        let index = |name: &str, shape: &str| Index {
            table: 1,
            name: name.to_owned(),
            valid: true,
            shape: shape.to_owned(),
            bytes: 2 << 20,
            ..Index::default()
        };
        let statement = Statement { id: 1, text: "SELECT 1 FROM a".to_owned(), calls: 10, milliseconds: 900.0, ..Statement::default() };
        let facts = Facts {
            overview: Overview {
                connections: 97,
                connections_max: 97,
                deadlocks: 1,
                temp_bytes: 2 << 30,
                sees_activity: true,
                hits: 1,
                reads: 2_000_000,
                ..Overview::default()
            },
            statements: Some(vec![statement]),
            all_milliseconds: 1000.0,
            tables: vec![
                Table { scans: 30, scanned_rows: 3_000_000, ..table(1, "a") },
                Table { dead: 40_000, ..table(2, "b") },
                Table { analysed: false, ..table(3, "c") },
            ],
            indexes: vec![
                index("one", "x"),
                index("two", "x"),
                Index { scans: 0, ..index("three", "y") },
                Index { valid: false, ..index("four", "z") },
            ],
            foreign_keys: vec![ForeignKey { name: "k".to_owned(), table: 1, columns: vec!["b_id".to_owned()], ..ForeignKey::default() }],
            checkpoints: Some((1, 20)),
            ..Facts::default()
        };
        let mut found = bad(&facts);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "queries.bloat",
                "queries.cache_hit",
                "queries.checkpoints",
                "queries.connections",
                "queries.deadlocks",
                "queries.duplicate_index",
                "queries.heavy_statement",
                "queries.invalid_index",
                "queries.sequential_scan",
                "queries.stale_statistics",
                "queries.temporary_files",
                "queries.unindexed_foreign_key",
                "queries.unused_index",
                "queries.unused_index",
            ]
        );
    }

    #[test]
    fn a_chain_is_told_by_its_head() {
        let session = |pid, waits_for: &[i32]| Session {
            pid,
            waits_for: waits_for.to_vec(),
            waits: (!waits_for.is_empty()).then_some(5.0),
            state: if waits_for.is_empty() { "idle in transaction".to_owned() } else { "active".to_owned() },
            in_state: 20.0,
            ..Session::default()
        };
        let sessions = vec![session(1, &[]), session(2, &[1]), session(3, &[2]), session(4, &[5]), session(5, &[4])];
        let told: Vec<(i32, usize)> = chains(&sessions).iter().map(|(head, waiting)| (*head, waiting.len())).collect();
        assert_eq!(told, [(1, 2)], "a deadlock has no head");
        let facts =
            Facts { sessions, overview: Overview { sees_activity: true, connections_max: 9, ..Overview::default() }, ..Facts::default() };
        assert_eq!(bad(&facts), ["queries.lock_chain", "queries.idle_in_transaction"]);
    }
}
