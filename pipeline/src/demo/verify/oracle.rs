//! The journal against the triggers' history, table by table, in the point of sale's own SQL.
//!
//! Rows are compared as the server understands them: the event's JSON and the history's are both read back into the
//! table's row type, so that `1.50` and `"1.50"` or two spellings of a moment are one value, and nothing of our own
//! conversion can agree with itself.

use tokio_postgres::Client;

use crate::config::SourceTable;
use crate::demo::DemoError;

/// What the comparison found, over all tables.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Changes in the history.
    pub(super) changes: i64,
    /// In the history, not in the journal.
    pub(super) lost: i64,
    /// In the journal more often than in the history.
    pub(super) duplicated: i64,
    /// Behind a later change of the same key.
    pub(super) reordered: i64,
    /// With another content.
    pub(super) differing: i64,
    /// Rows older than the history that the journal does not have.
    pub(super) initial_missing: i64,
    /// A few of them, without values.
    pub(super) samples: Vec<String>,
}

impl Compared {
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.reordered == 0 && self.differing == 0 && self.initial_missing == 0
    }
}

fn failed(error: tokio_postgres::Error) -> DemoError {
    let detail = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
    DemoError::unavailable("compare with the history", detail)
}

pub(super) async fn prepare(source: &Client) -> Result<(), DemoError> {
    source
        .batch_execute(
            "SET timezone = 'UTC'; SET work_mem = '256MB'; SET enable_nestloop = off; SET jit = off;
             CREATE TEMP TABLE tillstream_ev (n bigint, id text, tbl text, op text, key jsonb, after jsonb, unchanged text[], xid bigint)",
        )
        .await
        .map_err(failed)
}

pub(super) async fn compare(source: &Client, tables: &[SourceTable]) -> Result<Compared, DemoError> {
    let mut sum = Compared::default();
    for table in tables {
        one(source, table, &mut sum).await?;
    }
    let names: Vec<&str> = tables.iter().map(|t| t.table.as_str()).collect();
    let strange =
        source.query_one("SELECT count(*) FROM tillstream_ev WHERE tbl IS NULL OR NOT tbl = ANY ($1)", &[&names]).await.map_err(failed)?;
    sum.duplicated += strange.get::<_, i64>(0);
    Ok(sum)
}

async fn one(source: &Client, table: &SourceTable, sum: &mut Compared) -> Result<(), DemoError> {
    let name = format!("{}.{}", quote(&table.schema), quote(&table.table));
    let columns = source
        .query_one(
            "SELECT coalesce(array_agg(a.attname::text) FILTER (WHERE i.indexrelid IS NULL), '{}'),
                    coalesce(array_agg(a.attname::text) FILTER (WHERE a.attgenerated <> ''), '{}'), count(i.indexrelid)
             FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey::smallint[])
             WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped",
            &[&name],
        )
        .await
        .map_err(failed)?;
    let (not_key, generated): (Vec<String>, Vec<String>) = (columns.get(0), columns.get(1));
    let keyed = columns.get::<_, i64>(2) > 0;
    let row = |json: &str| format!("(to_jsonb(jsonb_populate_record(NULL::{name}, {json})) - $2::text[])");
    // Without a key a row is known by its content alone.
    let key = |key: &str, json: &str| {
        if keyed { format!("coalesce({key}, 'null')") } else { format!("coalesce({}, 'null')", row(json)) }
    };
    let sql = format!(
        "WITH h AS (
             SELECT seq, op, xid, k, content, row_number() OVER (PARTITION BY k, xid, op ORDER BY seq) AS nth
             FROM (SELECT seq, op, xid, {hk} AS k, {hrow} AS content FROM tillstream_oracle.history WHERE tbl = $1) h),
         e AS (
             SELECT n, id, op, xid, k, content, unchanged, row_number() OVER (PARTITION BY k, xid, op ORDER BY n) AS nth
             FROM (SELECT n, id, op, xid, {ek} AS k, {erow} AS content, unchanged FROM tillstream_ev WHERE tbl = $1 AND op <> 'read') e),
         m AS (
             SELECT h.seq, e.n, k, op, xid, coalesce(e.id, 'seq ' || h.seq) AS what,
                    op IN ('insert', 'update') AND h.content - e.unchanged IS DISTINCT FROM e.content - e.unchanged AS differs
             FROM h FULL JOIN e USING (k, xid, op, nth)),
         o AS (
             SELECT *, seq < max(seq) OVER (PARTITION BY k ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS late
             FROM m WHERE seq IS NOT NULL AND n IS NOT NULL)
         SELECT (SELECT count(*) FROM h), (SELECT count(*) FROM m WHERE n IS NULL), (SELECT count(*) FROM m WHERE seq IS NULL),
                (SELECT count(*) FROM o WHERE late), (SELECT count(*) FROM o WHERE differs),
                (SELECT coalesce(array_agg(word || ' ' || op || ' xid ' || coalesce(xid::text, '?') || ' ' || what), '{{}}') FROM (
                    SELECT CASE WHEN n IS NULL THEN 'lost' ELSE 'extra' END AS word, op, xid, what FROM m WHERE n IS NULL OR seq IS NULL
                    UNION ALL SELECT CASE WHEN late THEN 'late' ELSE 'content' END, op, xid, what FROM o WHERE late OR differs LIMIT 3) s)",
        hk = key("key", "row"),
        hrow = row("row"),
        ek = key("key", "after"),
        erow = row("after"),
    );
    let found = source.query_one(&sql, &[&table.table, &generated]).await.map_err(failed)?;
    sum.changes += found.get::<_, i64>(0);
    sum.lost += found.get::<_, i64>(1);
    sum.duplicated += found.get::<_, i64>(2);
    sum.reordered += found.get::<_, i64>(3);
    sum.differing += found.get::<_, i64>(4);
    sum.samples.extend(found.get::<_, Vec<String>>(5).into_iter().map(|sample| format!("{} {sample}", table.table)));

    if keyed {
        // What the history never touched was there before it, so the initial load has to bring it, as it is.
        let sql = format!(
            "SELECT count(*) FROM (SELECT to_jsonb(t) - $3::text[] AS k, to_jsonb(t) - $2::text[] AS content FROM {name} t) t
             WHERE NOT EXISTS (SELECT FROM tillstream_oracle.history h WHERE h.tbl = $1 AND h.key = t.k)
               AND NOT EXISTS (SELECT FROM tillstream_ev e WHERE e.tbl = $1 AND e.op = 'read' AND e.key = t.k AND {} = t.content)",
            row("e.after")
        );
        let missing: i64 = source.query_one(&sql, &[&table.table, &generated, &not_key]).await.map_err(failed)?.get(0);
        if missing > 0 {
            sum.samples.push(format!("{}: {missing} rows older than the history", table.table));
        }
        sum.initial_missing += missing;
    }
    Ok(())
}

pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
