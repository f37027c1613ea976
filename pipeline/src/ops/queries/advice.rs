//! Which index would help a statement, and whether the planner agrees: hypopg pretends that it is there, and the statement is planned, never run.

use serde::Serialize;
use tokio_postgres::Client;

use super::facts::{Facts, Index, Statement, Table};
use super::statement::{self, Access, Part};
use crate::capture::catalog::{identifier, sql_error};

/// An index to create.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// The statement that it helps, as pg_stat_statements numbers it.
    pub statement: i64,
    /// The table.
    pub table: String,
    /// `CREATE INDEX CONCURRENTLY …;`
    pub ddl: String,
    /// The planner's cost without and with it; `None` where it was not tested.
    pub cost: Option<(f64, f64)>,
    /// Why it was not tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untested: Option<String>,
}

impl Advice {
    /// In words: what to run, and what the planner says to it.
    #[must_use]
    pub fn told(&self) -> String {
        match (&self.cost, &self.untested) {
            (Some((before, after)), _) => {
                format!("{} (tested by hypopg: the planner's cost falls from {before:.0} to {after:.0})", self.ddl)
            }
            (None, Some(why)) => format!("{} (not tested: {why})", self.ddl),
            (None, None) => self.ddl.clone(),
        }
    }
}

/// At most so many columns: more seldom help and cost every write.
const COLUMNS_MAX: usize = 3;

/// A table below this is read as a whole faster than by an index.
pub(super) const ROWS_MIN: i64 = 1_000;

/// The index that would help a statement most, of those that are not there.
pub(super) fn index_for(facts: &Facts, statement: &Statement) -> Option<Advice> {
    let known: Vec<_> = facts.tables.iter().map(|t| t.known.clone()).collect();
    let mut accesses = statement::accesses(&statement.text, &known);
    accesses.sort_by_key(|a| std::cmp::Reverse(facts.tables[a.table].live));
    accesses.iter().find_map(|access| {
        let table = &facts.tables[access.table];
        let parts = wanted(access);
        let there = facts.indexes.iter().filter(|i| i.table == table.oid && i.valid).any(|i| serves(i, &parts, access.equal.len()));
        (table.live >= ROWS_MIN && !parts.is_empty() && !there).then(|| Advice {
            statement: statement.id,
            table: table.name.clone(),
            ddl: ddl(table, &parts),
            cost: None,
            untested: None,
        })
    })
}

/// Columns compared by `=` first, then one that is compared by order.
fn wanted(access: &Access) -> Vec<Part> {
    let range = access.range.first().filter(|part| !access.equal.contains(part));
    access.equal.iter().chain(range).take(COLUMNS_MAX).cloned().collect()
}

/// Whether an index begins with what is wanted, or at least with one column that is compared by `=` and tells rows apart by itself.
fn serves(index: &Index, wanted: &[Part], equal: usize) -> bool {
    let has = |part: &Part| match part {
        Part::Column(column) => index.columns.contains(column),
        Part::Call(function, column) => {
            let text = index.expressions.replace("(", " ").replace(")", " ").replace("::text", " ");
            text.contains(&format!("{function} ")) && text.split_whitespace().any(|word| word.trim_matches('"') == column)
        }
    };
    let leading = |n: usize| index.columns.iter().take(n).all(|c| c.is_empty() || wanted.contains(&Part::Column(c.clone())));
    let covers = wanted.iter().take(equal.max(1)).all(has) && leading(equal.max(1).min(wanted.len()));
    covers
        || (index.unique
            && index.plain
            && index.columns.iter().all(|c| wanted[..equal.min(wanted.len())].contains(&Part::Column(c.clone()))))
}

fn ddl(table: &Table, parts: &[Part]) -> String {
    let part = |part: &Part| match part {
        Part::Column(column) => identifier(column),
        Part::Call(function, column) => format!("{function}({})", identifier(column)),
    };
    format!("CREATE INDEX CONCURRENTLY ON {} ({});", table.name, parts.iter().map(part).collect::<Vec<_>>().join(", "))
}

/// Plans each statement with and without its index.
pub(super) async fn test(client: &Client, facts: &Facts, advice: &mut [Advice]) {
    let known: Vec<_> = facts.tables.iter().map(|t| t.known.clone()).collect();
    for one in advice {
        let text = facts.statements.iter().flatten().find(|s| s.id == one.statement).map(|s| s.text.as_str());
        let outcome = match (&facts.overview.hypopg_in, text) {
            (None, _) if facts.overview.hypopg_available => Err("CREATE EXTENSION hypopg; lets the planner try it".to_owned()),
            (None, _) => Err("the extension hypopg is not installed".to_owned()),
            (_, None) => Err("its statement is not listed".to_owned()),
            (Some(schema), Some(text)) => match statement::plannable(text, &known) {
                Some(text) => compare(client, schema, &text, &one.ddl).await,
                None => Err("its statement is not one that may be planned under another role".to_owned()),
            },
        };
        match outcome {
            Ok(cost) => one.cost = Some(cost),
            Err(why) => one.untested = Some(why),
        }
    }
}

async fn compare(client: &Client, schema: &str, text: &str, ddl: &str) -> Result<(f64, f64), String> {
    let refused = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(db) if db.code().code() == "42501" => "this role may not read the table".to_owned(),
        _ => format!("the statement cannot be planned here: {}", sql_error(error)),
    };
    // A generic plan is the one for any values, and folds no function of them.
    client.batch_execute("SET plan_cache_mode = force_generic_plan").await.map_err(refused)?;
    let done = async {
        client.batch_execute(&format!("PREPARE tillstream_probe AS {text}")).await?;
        let before = cost(client, text).await?;
        let without = ddl.trim_end_matches(';').replace(" CONCURRENTLY", "");
        client.query(&format!("SELECT FROM {schema}.hypopg_create_index($1)"), &[&without]).await?;
        client.batch_execute("DEALLOCATE tillstream_probe").await?;
        client.batch_execute(&format!("PREPARE tillstream_probe AS {text}")).await?;
        Ok((before, cost(client, text).await?))
    };
    let outcome: Result<(f64, f64), tokio_postgres::Error> = done.await;
    // Each is tried by itself, and nothing of it outlives the session anyway.
    let _ = client.batch_execute(&format!("SELECT {schema}.hypopg_reset()")).await;
    let _ = client.batch_execute("DEALLOCATE ALL; RESET plan_cache_mode").await;
    outcome.map_err(refused)
}

/// What the planner thinks the prepared statement costs.
async fn cost(client: &Client, text: &str) -> Result<f64, tokio_postgres::Error> {
    let values = match statement::parameters(text) {
        0 => String::new(),
        n => format!("({})", vec!["NULL"; n].join(", ")),
    };
    let rows = client.simple_query(&format!("EXPLAIN EXECUTE tillstream_probe{values}")).await?;
    let first = rows.iter().find_map(|m| match m {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let total = first.and_then(|line| line.split("..").nth(1)?.split(' ').next()?.parse().ok());
    Ok(total.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::queries::statement::Known;

    fn facts(indexes: &[(&[&str], &str, bool)]) -> Facts {
        let columns = ["id", "order_id", "sku", "email"].map(str::to_owned).to_vec();
        let known = Known { schema: "public".to_owned(), table: "item".to_owned(), columns };
        let table = Table { oid: 1, name: "public.item".to_owned(), known, live: 50_000, ..Table::default() };
        let index = |(columns, expressions, unique): &(&[&str], &str, bool)| Index {
            table: 1,
            valid: true,
            unique: *unique,
            plain: expressions.is_empty(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            expressions: (*expressions).to_owned(),
            ..Index::default()
        };
        Facts { tables: vec![table], indexes: indexes.iter().map(index).collect(), ..Facts::default() }
    }

    fn advice(text: &str, indexes: &[(&[&str], &str, bool)]) -> Option<String> {
        let statement = Statement { id: 7, text: text.to_owned(), ..Statement::default() };
        index_for(&facts(indexes), &statement).map(|a| a.ddl)
    }

    #[test]
    fn an_index_is_named_that_is_not_there() {
        let text = "SELECT * FROM item WHERE sku = $1 AND order_id = $2";
        let wanted = Some("CREATE INDEX CONCURRENTLY ON public.item (sku, order_id);".to_owned());
        assert_eq!(advice(text, &[]), wanted);
        assert_eq!(advice(text, &[(&["email", "sku", "order_id"], "", false)]), wanted);
        assert_eq!(advice(text, &[(&["order_id", "sku", "email"], "", false)]), None);
        assert_eq!(advice("SELECT * FROM item WHERE id = $1 AND sku = $2", &[(&["id"], "", true)]), None, "a key tells rows apart");
        let lower = "SELECT * FROM item WHERE lower(email) = $1";
        assert_eq!(advice(lower, &[(&["email"], "", false)]).as_deref(), Some("CREATE INDEX CONCURRENTLY ON public.item (lower(email));"));
        assert_eq!(advice(lower, &[(&[""], "lower(email)", false)]), None);
        assert_eq!(advice("SELECT * FROM item", &[]), None);
    }
}
