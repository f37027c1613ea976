//! Compares rows of a target with what they should be, by reading them back. Reads only.
//!
//! Texts of one value differ between databases (`2026-11-22 10:00:00+00`, `2026-11-22 10:00:00.000000`), so values are compared by what they mean in
//! their column.

use std::str::FromStr as _;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::civil::DateTime;
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::config::SqlConfig;
use super::convert::Form;
use super::dialect::{Column, Layout, ReadBack, Readable, definite};
use super::fold::{Cell, Change, Translated};
use super::sink::translate;
use crate::sink::{Compare, Item, OnDelete, SinkError};

/// A session of its own that compares.
pub(super) struct ReadCompare {
    config: Arc<SqlConfig>,
    database: Box<dyn Readable>,
    open: Option<(Box<dyn ReadBack>, Vec<Layout>)>,
}

impl ReadCompare {
    pub(super) fn new(config: Arc<SqlConfig>, database: Box<dyn Readable>) -> ReadCompare {
        ReadCompare { config, database, open: None }
    }

    async fn open(&mut self) -> Result<(&mut dyn ReadBack, &[Layout]), SinkError> {
        if self.open.as_ref().is_none_or(|(session, _)| session.is_closed()) {
            let mut session = self.database.read_back(&self.config).await?;
            let found = session.inspect(&self.config, OnDelete::Ignore).await?;
            let lacking: Vec<String> = found.problems.into_iter().chain(found.statements).collect();
            if !lacking.is_empty() {
                return Err(definite("sql.target_not_ready", lacking.join("; ")));
            }
            self.open = Some((session, found.layouts));
        }
        match &mut self.open {
            Some((session, layouts)) => Ok((session.as_mut(), layouts)),
            None => Err(definite("sql.target_not_ready", "there is no session".to_owned())),
        }
    }

    fn index(&self, schema: &str, table: &str) -> Result<usize, SinkError> {
        let found = self.config.index(schema, table);
        found.ok_or_else(|| definite("sql.table_not_mapped", format!("the block lists no table {schema}.{table}")))
    }
}

#[async_trait]
impl Compare for ReadCompare {
    fn columns(&self, schema: &str, table: &str) -> Option<(Vec<String>, Vec<String>)> {
        let table = self.config.tables.get(&(schema.to_owned(), table.to_owned()))?;
        Some((table.key.clone(), table.columns.clone()))
    }

    async fn digest(&mut self, schema: &str, table: &str, keys: &[Vec<String>]) -> Result<String, SinkError> {
        let index = self.index(schema, table)?;
        let (session, layouts) = self.open().await?;
        let mut digest = Sha256::new();
        for row in session.rows(&layouts[index], keys).await? {
            digest.update(if row.is_some() { "+" } else { "-" });
            for text in row.into_iter().flatten() {
                match text {
                    Some(text) => digest.update(format!("{}:{text}", text.len())),
                    None => digest.update("~"),
                }
            }
        }
        Ok(digest.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    async fn differing(&mut self, items: &[Item]) -> Result<Vec<usize>, SinkError> {
        let config = self.config.clone();
        let (session, layouts) = self.open().await?;
        let mut differing = Vec::new();
        // Items of one call are of one table; those that cannot be translated differ by definition.
        let (mut rows, mut keys) = (Vec::new(), Vec::new());
        for (n, item) in items.iter().enumerate() {
            match translate(item, &config, layouts)? {
                Ok(Translated::Row { table, key, change, .. }) => {
                    keys.push(key.into_iter().map(std::borrow::Cow::into_owned).collect());
                    rows.push((n, table, change));
                }
                Ok(Translated::Truncate { .. }) | Err(_) => differing.push(n),
            }
        }
        let Some((_, table, _)) = rows.first() else { return Ok(differing) };
        let layout = &layouts[*table];
        for ((n, _, change), found) in rows.iter().zip(session.rows(layout, &keys).await?) {
            let same = match (change, found) {
                (Change::Delete, found) => found.is_none(),
                (Change::Write(_), None) => false,
                (Change::Write(cells), Some(found)) => {
                    cells.iter().zip(&found).zip(&layout.columns).all(|((cell, found), column)| match cell {
                        Cell::Unchanged => true,
                        Cell::Value(wanted) => same(column, wanted.as_deref(), found.as_deref()),
                    })
                }
            };
            if !same {
                differing.push(*n);
            }
        }
        differing.sort_unstable();
        Ok(differing)
    }

    async fn keys_after(&mut self, schema: &str, table: &str, after: Option<&[String]>, limit: u32) -> Result<Vec<Vec<String>>, SinkError> {
        let index = self.index(schema, table)?;
        let (session, layouts) = self.open().await?;
        session.keys_after(&layouts[index], after, limit).await
    }
}

/// Whether a column that was given one text holds the other.
fn same(column: &Column, wanted: Option<&str>, found: Option<&str>) -> bool {
    let (Some(wanted), Some(found)) = (wanted, found) else { return wanted == found };
    if wanted == found {
        return true;
    }
    match column.form {
        Form::Number | Form::Whole | Form::Rounded => same_number(column, wanted, found),
        Form::Moment => same_moment(wanted, found),
        Form::Json => {
            let parse = |text| serde_json::from_str::<Value>(text).ok();
            parse(wanted).is_some_and(|w| Some(w) == parse(found))
        }
        Form::Base64 => {
            let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            BASE64.decode(wanted).is_ok_and(|bytes| hex(bytes) == found)
        }
        Form::Text | Form::Bytes | Form::Array { .. } => false,
    }
}

fn same_number(column: &Column, wanted: &str, found: &str) -> bool {
    let binary = ["float", "double", "real"].iter().any(|kind| column.exact.contains(kind)) || found.contains('e');
    if binary {
        // A float of four bytes keeps six digits.
        return match (wanted.parse::<f64>(), found.parse::<f64>()) {
            (Ok(w), Ok(f)) => w == f || (column.exact.starts_with("float") && (w - f).abs() <= w.abs() * 1e-6),
            _ => false,
        };
    }
    let (Ok(wanted), Ok(found)) = (Decimal::from_str(wanted), Decimal::from_str(found)) else { return false };
    wanted.round_dp_with_strategy(found.scale(), RoundingStrategy::MidpointAwayFromZero) == found || wanted == found
}

/// Both without zone; the target rounds to the digits that its column keeps.
fn same_moment(wanted: &str, found: &str) -> bool {
    let digits = |text: &str| text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let (Ok(w), Ok(f)) = (wanted.parse::<DateTime>(), found.parse::<DateTime>()) else { return false };
    let Ok(apart) = w.until((jiff::Unit::Second, f)) else { return false };
    let apart = apart.total(jiff::Unit::Nanosecond).unwrap_or(f64::MAX).abs();
    let unit = 1e9 / 10f64.powi(i32::try_from(digits(found)).unwrap_or(9));
    if digits(found) >= digits(wanted) { apart == 0.0 } else { apart * 2.0 <= unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: Form, exact: &str, wanted: &str, found: &str) -> bool {
        let column = Column { name: "c".into(), quoted: "c".into(), cast: String::new(), exact: exact.into(), form };
        same(&column, Some(wanted), Some(found))
    }

    #[test]
    fn values_are_compared_by_what_they_mean() {
        for (form, exact, wanted, found) in [
            (Form::Number, "decimal(10,2)", "12.5", "12.50"),
            (Form::Number, "decimal(10,2)", "12.505", "12.51"),
            (Form::Rounded, "numeric", "12.50", "12.5"),
            (Form::Number, "double", "0.1", "0.10000000000000001"),
            (Form::Moment, "datetime(6)", "2026-11-22 10:00:00", "2026-11-22 10:00:00.000000"),
            (Form::Moment, "datetime", "2026-11-22 10:00:00.6", "2026-11-22 10:00:01"),
            (Form::Json, "json", r#"{"a":1,"b":[2]}"#, r#"{"b": [2], "a": 1}"#),
            (Form::Base64, "blob", "AAH/", "0001ff"),
        ] {
            assert!(check(form, exact, wanted, found), "{wanted} {found}");
        }
        for (form, exact, wanted, found) in [
            (Form::Number, "decimal(10,2)", "12.5", "12.51"),
            (Form::Text, "varchar(9)", "a", "A"),
            (Form::Moment, "datetime(6)", "2026-11-22 10:00:00", "2026-11-22 10:00:00.000001"),
            (Form::Json, "json", "1", "2"),
            (Form::Base64, "blob", "AAH/", "0001fe"),
        ] {
            assert!(!check(form, exact, wanted, found), "{wanted} {found}");
        }
        let column = Column { name: "c".into(), quoted: "c".into(), cast: String::new(), exact: "int".into(), form: Form::Number };
        assert!(same(&column, None, None) && !same(&column, None, Some("0")));
    }
}
