//! Roles, what they may do, and who could listen.

use super::{Facts, Findings};
use crate::capture::catalog::{TableFacts, identifier, sql};
use crate::capture::wire::Locality;
use crate::config;
use crate::ops::doctor::facts::RoleFacts;
use crate::ops::doctor::finding::Severity;

/// A run of the pipeline has a walsender, a look at the slot, a look at the catalogue and a doctor at a time; a takeover has them twice.
const SESSIONS: i32 = 5;

/// A password that ends sooner is worth a word.
const EXPIRES_SOON_SECONDS: f64 = 14.0 * 86_400.0;

pub(super) fn judge(found: &mut Findings, source: &config::Source, facts: &Facts) {
    match &facts.role {
        Some(role) => stream_role(found, facts, role),
        None if facts.unread.iter().any(|u| u.what == "roles") => {}
        None => {
            let user = identifier(&facts.roles.0);
            found.fail(
                "capture.role_missing",
                format!("role {user} of the source's URL does not exist"),
                "the pipeline cannot log in",
                "`tillstream setup` prints the statement that creates it",
            );
        }
    }
    backfill(found, source, facts);
    encryption(found, facts);
}

fn stream_role(found: &mut Findings, facts: &Facts, role: &RoleFacts) {
    let user = identifier(&role.name);
    if role.replication || role.superuser {
        found.ok("capture.not_permitted", "the role may replicate");
    } else {
        found.fail(
            "capture.not_permitted",
            format!("role {user} lacks REPLICATION"),
            "the pipeline cannot stream",
            match facts.provider {
                crate::ops::provider::Provider::Rds | crate::ops::provider::Provider::Aurora => format!("GRANT rds_replication TO {user};"),
                _ => format!("ALTER ROLE {user} REPLICATION;"),
            },
        );
    }
    if role.superuser {
        found.warn(
            "capture.role_superuser",
            format!("role {user} is a superuser"),
            "whoever learns its password owns the point of sale",
            "stream as the role that `tillstream setup` prints",
        );
    } else {
        found.ok("capture.role_superuser", "the role is no superuser");
    }
    if !role.login || !role.connect {
        let (what, fix) = if role.login {
            let database = identifier(&facts.server.database);
            (
                format!("may not connect to database \"{}\"", facts.server.database),
                format!("GRANT CONNECT ON DATABASE {database} TO {user};"),
            )
        } else {
            ("may not log in".to_owned(), format!("ALTER ROLE {user} LOGIN;"))
        };
        found.fail("capture.role_no_connect", format!("role {user} {what}"), "the pipeline does not get in", fix);
    } else {
        found.ok("capture.role_no_connect", "the role may log in and connect");
    }
    if (0..SESSIONS).contains(&role.connection_limit) {
        found.warn(
            "capture.role_connection_limit",
            format!("role {user} may have {} sessions", role.connection_limit),
            "a run needs four at once (the stream, the slot's watch, the catalogue, the doctor), and a takeover needs them beside the former one's",
            format!("ALTER ROLE {user} CONNECTION LIMIT 8;"),
        );
    } else {
        found.ok("capture.role_connection_limit", "the role may have as many sessions as a run needs");
    }
    match role.expires_in {
        Some(seconds) if seconds < EXPIRES_SOON_SECONDS => found.add(
            if seconds < 0.0 { Severity::Fail } else { Severity::Warn },
            "capture.role_expires",
            if seconds < 0.0 {
                format!("the password of role {user} has ended")
            } else {
                format!("the password of role {user} ends in {:.0} days", seconds / 86_400.0)
            },
            "from then on no new session gets in: the pipeline stops at the next network hiccup, not at once",
            format!("set a new one (\\password {user} in psql), then ALTER ROLE {user} VALID UNTIL '…';"),
        ),
        _ => found.ok("capture.role_expires", "the role's password does not end soon"),
    }
}

/// Whether backfills can read what is captured, and nothing else can happen in their name.
fn backfill(found: &mut Findings, source: &config::Source, facts: &Facts) {
    let separate = facts.roles.1.is_some();
    let Some(role) = facts.backfill_role.as_ref().or(facts.role.as_ref().filter(|_| !separate)) else {
        if let Some(name) = &facts.roles.1 {
            found.fail(
                "capture.role_missing",
                format!("role {} of source.backfill_url does not exist", identifier(name)),
                "no table can be loaded",
                "`tillstream setup` prints the statement that creates it",
            );
        }
        return;
    };
    let user = identifier(&role.name);
    let tables: Vec<&TableFacts> = facts.tables.iter().filter_map(|(_, t)| t.as_ref()).collect();
    let published = |table: &TableFacts, column: &String| {
        let entry = facts.publication.as_ref().and_then(|p| p.table(&table.schema, &table.table));
        entry.and_then(|e| e.columns.as_ref()).is_none_or(|list| list.contains(column))
    };
    let mut fixes = Vec::new();
    let mut unread = Vec::new();
    for table in &tables {
        let Some(grants) = facts.grants.get(&table.oid) else { continue };
        let generated = |column: &String| table.columns.iter().any(|c| c.generated && c.name == *column);
        let hidden = grants.hidden.iter().any(|column| published(table, column) && !generated(column));
        if !grants.usage {
            fixes.push(format!("GRANT USAGE ON SCHEMA {} TO {user};", identifier(&table.schema)));
        }
        if hidden {
            let columns = table.columns.iter().filter(|c| !c.generated && published(table, &c.name));
            let columns: Vec<String> = columns.map(|c| c.name.clone()).collect();
            fixes.push(sql::grant_columns(&role.name, &table.qualified(), &columns));
        }
        if !grants.usage || hidden {
            unread.push(table.qualified());
        }
    }
    fixes.sort_by_key(|fix| !fix.starts_with("GRANT USAGE"));
    fixes.dedup();
    if unread.is_empty() {
        found.ok("capture.backfill_not_permitted", format!("role {user} may read what a backfill reads"));
    } else if separate || source.initial_load {
        let what = format!("role {user} may not read all published columns of {}", unread.join(", "));
        found.fail(
            "capture.backfill_not_permitted",
            what,
            "they cannot be loaded: a new target stays without former rows",
            fixes.join(" "),
        );
    } else {
        found.note(
            "capture.backfill_not_permitted",
            format!("role {user} may not read the captured tables, and there is no source.backfill_url"),
            "the stream does not need it; backfills are not possible",
            "name a role that may read them in source.backfill_url: `tillstream setup` prints one",
        );
    }
    let writable: Vec<String> =
        tables.iter().filter(|t| !role.superuser && facts.grants.get(&t.oid).is_some_and(|g| g.writes)).map(|t| t.qualified()).collect();
    if writable.is_empty() {
        found.ok("capture.backfill_writes", format!("role {user} may not write to captured tables, or is a superuser"));
    } else {
        found.warn(
            "capture.backfill_writes",
            format!("role {user} may write to {}", writable.join(", ")),
            "the pipeline never writes to them; whoever learns its password can",
            format!("REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {} FROM {user};", writable.join(", ")),
        );
    }
    let secured: Vec<String> = tables
        .iter()
        .filter(|t| t.row_security && !role.bypasses_rls && !role.superuser && !facts.grants.get(&t.oid).is_some_and(|g| g.owner))
        .map(|t| t.qualified())
        .collect();
    if secured.is_empty() {
        found.ok("capture.row_security", "no row security hides rows from backfills");
    } else {
        found.warn(
            "capture.row_security",
            format!("row security is on for {}", secured.join(", ")),
            "a backfill reads only the rows that the policies show it, while the stream carries all of them",
            format!("ALTER ROLE {user} BYPASSRLS; or a policy FOR SELECT TO {user} USING (true)"),
        );
    }
}

fn encryption(found: &mut Findings, facts: &Facts) {
    if facts.setting("password_encryption") == Some("md5") {
        found.warn(
            "capture.auth_weak",
            "password_encryption = md5",
            "new passwords are stored in a form that is refused here by default",
            format!("{} then set the passwords anew", facts.provider.set("password_encryption", "scram-sha-256")),
        );
    } else {
        found.ok("capture.auth_weak", "passwords are stored for SCRAM-SHA-256");
    }
    let local =
        facts.setting("listen_addresses").is_some_and(|l| l.split(',').all(|a| matches!(a.trim(), "" | "localhost" | "127.0.0.1" | "::1")));
    if facts.setting("ssl") == Some("off") && !local {
        found.warn(
            "capture.tls_off",
            "ssl = off, and the server listens beyond this host",
            "sales and customers cross the network in the clear",
            format!("install a certificate; {}", facts.provider.set("ssl", "on")),
        );
    } else {
        found.ok("capture.tls_off", "connections from elsewhere can be encrypted, or there are none");
    }
    let fix = "set sslmode=verify-full and sslrootcert in the source's URL";
    match facts.locality {
        Locality::Local => found.ok("capture.tls_unverified", "the connection stays within this host"),
        Locality::Verified => found.ok("capture.tls_unverified", "the server proves who it is"),
        Locality::Unverified => found.warn(
            "capture.tls_unverified",
            "the source's URL does not ask the server to prove its name",
            "whoever stands between can read sales and customers, and feed false ones",
            fix,
        ),
        Locality::Clear => found.warn(
            "capture.tls_unverified",
            "the source's URL allows a connection in the clear beyond this host",
            "whoever listens on the way reads sales and customers",
            fix,
        ),
    }
    let Some(files) = &facts.files else { return };
    if files.hba_trust.is_empty() {
        found.ok("capture.auth_none", "pg_hba.conf lets nobody from elsewhere in without a password");
    } else {
        found.warn(
            "capture.auth_none",
            format!("lines of pg_hba.conf that let other hosts in without a password: {}", files.hba_trust),
            "whoever reaches the port can read and change the point of sale under any name",
            "write scram-sha-256 in place of trust there, then SELECT pg_reload_conf();",
        );
    }
}
