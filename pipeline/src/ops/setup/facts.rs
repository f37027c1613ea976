//! What a plan depends on, read in a few queries that change nothing.

use tillstream_schemas::Policy;
use tokio_postgres::Client;

use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, PublicationFacts, ServerFacts, SlotFacts, TableFacts, sql_error};
use crate::config;
use crate::ops::provider::Provider;

use super::clouds;

/// A role of the pipeline as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleFacts {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub exists: bool,
    /// Whether it may stream.
    pub replicates: bool,
    /// Its own settings, each as `name=value`.
    pub settings: Vec<String>,
    /// Whether it (or everybody) may connect to the database.
    pub connects: bool,
    /// Schemas of captured tables that neither it nor everybody may use.
    pub schemas_closed: Vec<String>,
    /// Columns of captured tables that neither it nor everybody may read, by the table's place.
    pub columns_closed: Vec<Vec<String>>,
    /// What was given to it in this database.
    pub granted: Granted,
    /// Objects that it owns, and databases beside this one in which it has rights: why it cannot be dropped.
    pub bound_by: Vec<String>,
}

/// What was given to a role in one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// CONNECT on the database.
    pub connect: bool,
    /// USAGE on schemas.
    pub schemas: Vec<String>,
    /// SELECT on whole tables, quoted names.
    pub tables: Vec<String>,
    /// SELECT on columns: quoted table name, columns.
    pub columns: Vec<(String, Vec<String>)>,
}

/// The transaction that has been open for longest.
#[derive(Clone, Debug, PartialEq)]
pub struct Oldest {
    /// Process.
    pub pid: i32,
    /// Application or role; empty when hidden.
    pub who: String,
    /// Seconds.
    pub seconds: f64,
}

/// What the plan depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The server.
    pub server: ServerFacts,
    /// Who runs it.
    pub provider: Provider,
    /// The configured tables, in order.
    pub tables: Vec<TableFacts>,
    /// The publication, if it is there.
    pub publication: Option<PublicationFacts>,
    /// The slot, if it is there.
    pub slot: Option<SlotFacts>,
    /// Other logical slots of pgoutput on the server, each as `name (database)`.
    pub other_slots: Vec<String>,
    /// `max_slot_wal_keep_size` in MB; -1 for no limit.
    pub slot_keep_mb: i64,
    /// The role that streams.
    pub stream: RoleFacts,
    /// The role that reads tables.
    pub backfill: RoleFacts,
    /// What creating the slot would wait for; `None` when nothing is open that this role can see.
    pub oldest: Option<Oldest>,
}

impl Facts {
    /// Reads them; `provider` is what was asked for, or `None` to recognise it.
    ///
    /// # Errors
    /// The server is away or refuses; a configured table is missing.
    pub async fn read(
        catalog: &Catalog,
        source: &config::Source,
        roles: (&str, &str),
        provider: Option<Provider>,
    ) -> Result<Facts, CaptureError> {
        let client = catalog.client();
        let sql = "SELECT (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                   ARRAY(SELECT format('%s (%s)', slot_name, database) FROM pg_replication_slots \
                         WHERE plugin = 'pgoutput' AND slot_name <> $1::text::name ORDER BY 1)";
        let row = client.query_one(sql, &[&source.slot]).await.map_err(sql_error)?;
        let tables = catalog.configured_tables(source).await?;
        let oldest = "SELECT pid, coalesce(nullif(application_name, ''), usename, ''), extract(epoch FROM now() - xact_start)::float8 \
                      FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND xact_start IS NOT NULL \
                      ORDER BY xact_start LIMIT 1";
        let oldest = client.query_opt(oldest, &[]).await.map_err(sql_error)?;
        let provider = match provider {
            Some(provider) => provider,
            None => clouds::recognise(client).await?,
        };
        Ok(Facts {
            server: catalog.server().clone(),
            provider,
            publication: catalog.publication(&source.publication).await?,
            slot: catalog.slot(&source.slot).await?,
            slot_keep_mb: row.get::<_, Option<i64>>(0).unwrap_or(-1),
            other_slots: row.get(1),
            stream: role(client, roles.0, &tables).await?,
            backfill: role(client, roles.1, &tables).await?,
            tables,
            oldest: oldest.map(|row| Oldest { pid: row.get(0), who: row.get(1), seconds: row.get(2) }),
        })
    }
}

const ROLE: &str = "SELECT r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_roles m JOIN pg_auth_members g ON g.roleid = m.oid \
                          WHERE m.rolname = 'rds_replication' AND g.member = r.oid), \
                    coalesce((SELECT setconfig FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0), '{}') \
                    FROM pg_roles r WHERE r.rolname = $1::text::name";

/// What a role (or everybody, by the name `public`) lacks.
const CLOSED: &str = "SELECT has_database_privilege($1::text::name, current_database(), 'CONNECT'), \
     ARRAY(SELECT n.nspname::text FROM pg_namespace n WHERE n.nspname = ANY($2::text[]) \
           AND NOT has_schema_privilege($1::text::name, n.oid, 'USAGE') ORDER BY 1)";

const COLUMNS_CLOSED: &str = "SELECT a.attrelid, a.attname::text FROM pg_attribute a WHERE a.attrelid = ANY($2) AND a.attnum > 0 \
     AND NOT a.attisdropped AND NOT has_column_privilege($1::text::name, a.attrelid, a.attnum, 'SELECT') ORDER BY a.attrelid, a.attnum";

/// What was given to a role: kind, name, column.
const GRANTED: &str = "SELECT 'd', NULL, NULL FROM pg_database d, aclexplode(d.datacl) a, pg_roles r \
     WHERE d.datname = current_database() AND a.grantee = r.oid AND r.rolname = $1::text::name \
     UNION ALL SELECT 's', n.nspname::text, NULL FROM pg_namespace n, aclexplode(n.nspacl) a, pg_roles r \
     WHERE a.grantee = r.oid AND r.rolname = $1::text::name \
     UNION ALL SELECT 't', c.oid::regclass::text, NULL FROM pg_class c, aclexplode(c.relacl) a, pg_roles r \
     WHERE a.grantee = r.oid AND a.privilege_type = 'SELECT' AND r.rolname = $1::text::name \
     UNION ALL SELECT 'c', t.attrelid::regclass::text, t.attname::text FROM pg_attribute t, aclexplode(t.attacl) a, pg_roles r \
     WHERE a.grantee = r.oid AND a.privilege_type = 'SELECT' AND r.rolname = $1::text::name AND NOT t.attisdropped ORDER BY 1, 2, 3";

/// What a role owns anywhere, and in which other databases it has rights.
const BOUND: &str = "SELECT DISTINCT CASE WHEN s.deptype = 'o' THEN 'it owns objects' \
           ELSE format('it has rights in database %s', (SELECT datname FROM pg_database WHERE oid = s.dbid)) END \
     FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid AND s.refclassid = 'pg_authid'::regclass \
     WHERE r.rolname = $1::text::name AND (s.deptype = 'o' \
           OR s.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) ORDER BY 1";

async fn role(client: &Client, name: &str, tables: &[TableFacts]) -> Result<RoleFacts, CaptureError> {
    let mut facts = RoleFacts { name: name.to_owned(), ..RoleFacts::default() };
    if let Some(row) = client.query_opt(ROLE, &[&name]).await.map_err(sql_error)? {
        (facts.exists, facts.replicates, facts.settings) = (true, row.get(0), row.get(1));
    }
    let who = if facts.exists { name } else { "public" };
    let mut schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let row = client.query_one(CLOSED, &[&who, &schemas]).await.map_err(sql_error)?;
    (facts.connects, facts.schemas_closed) = (row.get(0), row.get(1));
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    facts.columns_closed = vec![Vec::new(); tables.len()];
    for row in client.query(COLUMNS_CLOSED, &[&who, &oids]).await.map_err(sql_error)? {
        let oid: u32 = row.get(0);
        for at in (0..oids.len()).filter(|at| oids[*at] == oid) {
            facts.columns_closed[at].push(row.get(1));
        }
    }
    if facts.exists {
        for row in client.query(GRANTED, &[&name]).await.map_err(sql_error)? {
            let (kind, of, column): (&str, Option<String>, Option<String>) = (row.get(0), row.get(1), row.get(2));
            match (kind, of, column) {
                ("d", _, _) => facts.granted.connect = true,
                ("s", Some(schema), _) => facts.granted.schemas.push(schema),
                ("t", Some(table), _) => facts.granted.tables.push(table),
                ("c", Some(table), Some(column)) => match facts.granted.columns.last_mut().filter(|(last, _)| *last == table) {
                    Some((_, columns)) => columns.push(column),
                    None => facts.granted.columns.push((table, vec![column])),
                },
                _ => {}
            }
        }
        facts.bound_by = client.query(BOUND, &[&name]).await.map_err(sql_error)?.iter().map(|row| row.get(0)).collect();
    }
    Ok(facts)
}

/// The columns of a table that events show, in its order: what a policy drops and what is held back is not among them. Generated
/// columns are left out, as a publication leaves them out unless it is told otherwise.
#[must_use]
pub fn columns_shown(source: &config::Source, table: &TableFacts) -> Vec<String> {
    let policies = source.columns.of(&table.schema, &table.table);
    let configured = source.tables.iter().find(|t| t.schema == table.schema && t.table == table.table);
    let needed = |column: &str| {
        let named = |list: &[String]| list.iter().any(|c| c == column);
        named(&table.primary_key) || named(&table.identity_columns) || configured.and_then(|c| c.partition_by.as_deref()).is_some_and(named)
    };
    let shown = |column: &str| match policies.and_then(|p| p.get(column)) {
        Some(policy) => policy.appears(),
        None => !source.columns.hold_new,
    };
    table.columns.iter().filter(|c| !c.generated && (needed(&c.name) || shown(&c.name))).map(|c| c.name.clone()).collect()
}

/// Whether a policy keeps a column of the table out of events: [`Policy::Drop`], or held back because nobody has classified it.
#[must_use]
pub fn hides_columns(source: &config::Source, table: &TableFacts) -> bool {
    let drops = source.columns.of(&table.schema, &table.table).is_some_and(|p| p.values().any(|policy| *policy == Policy::Drop));
    (drops || source.columns.hold_new) && columns_shown(source, table).len() < table.columns.iter().filter(|c| !c.generated).count()
}
