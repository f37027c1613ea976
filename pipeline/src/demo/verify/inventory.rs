//! Tables of the inventory against the tables of the point of sale that they follow, row by row.

use std::cmp::Ordering;

use tokio_postgres::Client;

use super::oracle::quote;
use crate::demo::DemoError;

/// What the comparison found, over all tables.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Rows of the point of sale.
    pub(super) rows: u64,
    /// Rows that only one side has.
    pub(super) differing: u64,
}

pub(super) async fn compare(source: &Client, inventory: &Client, tables: &[(String, String)]) -> Result<Compared, DemoError> {
    let mut sum = Compared::default();
    for (schema, table) in tables {
        let failed = |error: tokio_postgres::Error| {
            let detail = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
            DemoError::unavailable(&format!("compare table {table} with the inventory"), detail)
        };
        // The inventory keeps the columns it wants; those with an underscore in front are the sink's own.
        let columns = inventory
            .query(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT LIKE '\\_%'
                 ORDER BY attname",
                &[&format!("public.{}", quote(table))],
            )
            .await
            .map_err(failed)?;
        let columns: Vec<String> = columns.iter().map(|row| quote(row.get(0))).collect();
        let select = |schema: &str, condition: &str| {
            format!("SELECT to_jsonb(x)::text FROM (SELECT {} FROM {}.{} {condition}) x", columns.join(", "), quote(schema), quote(table))
        };
        let (ours, theirs) = (select(schema, ""), select("public", "WHERE NOT _deleted"));
        let texts = |rows: Vec<tokio_postgres::Row>| {
            let mut texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            texts.sort_unstable();
            texts
        };
        inventory.batch_execute("SET timezone = 'UTC'").await.map_err(failed)?;
        let ours = texts(source.query(&ours, &[]).await.map_err(failed)?);
        let theirs = texts(inventory.query(&theirs, &[]).await.map_err(failed)?);
        sum.rows += ours.len() as u64;
        let differing = count_differing(&ours, &theirs);
        if differing > 0 {
            eprintln!("differs: {table}: {} rows here, {} in the inventory, {differing} on one side only", ours.len(), theirs.len());
        }
        sum.differing += differing;
    }
    Ok(sum)
}

/// How many entries of two sorted lists stand in one of them only.
fn count_differing(ours: &[String], theirs: &[String]) -> u64 {
    let (mut a, mut b) = (ours.iter().peekable(), theirs.iter().peekable());
    let mut differing = 0;
    loop {
        match (a.peek(), b.peek()) {
            (None, None) => return differing,
            (Some(_), None) => {
                a.next();
                differing += 1;
            }
            (None, Some(_)) => {
                b.next();
                differing += 1;
            }
            (Some(x), Some(y)) => match x.cmp(y) {
                Ordering::Equal => {
                    a.next();
                    b.next();
                }
                Ordering::Less => {
                    a.next();
                    differing += 1;
                }
                Ordering::Greater => {
                    b.next();
                    differing += 1;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::count_differing;

    #[test]
    fn rows_of_one_side_only_are_counted() {
        let list = |text: &str| text.split_terminator(' ').map(str::to_owned).collect::<Vec<_>>();
        for (ours, theirs, expected) in
            [("", "", 0), ("a b", "a b", 0), ("a b", "a", 1), ("a c", "b c", 2), ("a a", "a", 1), ("", "x y", 2)]
        {
            assert_eq!(count_differing(&list(ours), &list(theirs)), expected, "{ours} | {theirs}");
        }
    }
}
