//! Compares rows of the target with what they should be. Reads only.

use std::sync::Arc;

use async_trait::async_trait;

use super::super::config::SqlConfig;
use super::super::dialect::{Layout, definite};
use super::super::fold::{Cell, Change, Translated};
use super::super::sink::translate;
use super::connect::{Address, Connected};
use super::errors::classify;
use super::layout::inspect;
use super::statements;
use crate::sink::{Compare, Item, OnDelete, SinkError};

/// A session of its own that compares.
pub(super) struct SqlCompare {
    config: Arc<SqlConfig>,
    address: Address,
    open: Option<(Connected, Vec<Layout>)>,
}

impl SqlCompare {
    pub(super) fn new(config: Arc<SqlConfig>, address: Address) -> Self {
        SqlCompare { config, address, open: None }
    }

    async fn open(&mut self) -> Result<(&Connected, &[Layout]), SinkError> {
        if self.open.as_ref().is_none_or(|(session, _)| session.client.is_closed()) {
            let session = self.address.connect("tillstream/diff", self.config.timeout).await?;
            session.client.batch_execute("SET default_transaction_read_only = on").await.map_err(|e| classify(&e))?;
            let found = inspect(&session.client, &self.config, OnDelete::Ignore).await?;
            if !found.problems.is_empty() {
                return Err(definite("sql.target_not_ready", found.problems.join("; ")));
            }
            self.open = Some((session, found.layouts));
        }
        match &self.open {
            Some((session, layouts)) => Ok((session, layouts)),
            None => Err(definite("sql.target_not_ready", "there is no session".to_owned())),
        }
    }

    fn index(&self, schema: &str, table: &str) -> Result<usize, SinkError> {
        let found = self.config.index(schema, table);
        found.ok_or_else(|| definite("sql.table_not_mapped", format!("the block lists no table {schema}.{table}")))
    }
}

#[async_trait]
impl Compare for SqlCompare {
    fn columns(&self, schema: &str, table: &str) -> Option<(Vec<String>, Vec<String>)> {
        let table = self.config.tables.get(&(schema.to_owned(), table.to_owned()))?;
        Some((table.key.clone(), table.columns.clone()))
    }

    async fn digest(&mut self, schema: &str, table: &str, keys: &[Vec<String>]) -> Result<String, SinkError> {
        let index = self.index(schema, table)?;
        let (session, layouts) = self.open().await?;
        let layout = &layouts[index];
        let arrays: Vec<Vec<&str>> =
            (0..layout.keys.len()).map(|n| keys.iter().map(|k| k.get(n).map_or("", String::as_str)).collect()).collect();
        let parameters: Vec<_> = arrays.iter().map(|a| a as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
        let row = session.client.query_one(&statements::digest(layout), &parameters).await.map_err(|e| classify(&e))?;
        row.try_get(0).map_err(|e| classify(&e))
    }

    async fn differing(&mut self, items: &[Item]) -> Result<Vec<usize>, SinkError> {
        let config = self.config.clone();
        let (session, layouts) = self.open().await?;
        let mut differing = Vec::new();
        // Items of one call are of one table; those that cannot be translated differ by definition.
        let mut rows = Vec::new();
        for (n, item) in items.iter().enumerate() {
            match translate(item, &config, layouts)? {
                Ok(Translated::Row { table, key, change, .. }) => rows.push((n, table, key, change)),
                Ok(Translated::Truncate { .. }) | Err(_) => differing.push(n),
            }
        }
        for gone in [false, true] {
            let chosen: Vec<_> = rows.iter().filter(|(_, _, _, change)| matches!(change, Change::Delete) == gone).collect();
            let Some((_, table, _, _)) = chosen.first() else { continue };
            let layout = &layouts[*table];
            let mut arrays: Vec<Vec<Option<&str>>> = Vec::new();
            for n in 0..layout.keys.len() {
                arrays.push(chosen.iter().map(|(_, _, key, _)| key.get(n).map(|k| &**k)).collect());
            }
            if !gone {
                for n in 0..layout.columns.len() {
                    arrays.push(
                        chosen
                            .iter()
                            .map(|(_, _, _, change)| match change {
                                Change::Write(cells) => match cells.get(n) {
                                    Some(Cell::Value(value)) => value.as_deref(),
                                    Some(Cell::Unchanged) | None => None,
                                },
                                Change::Delete => None,
                            })
                            .collect(),
                    );
                }
            }
            let sql = if gone { statements::there(layout) } else { statements::unlike(layout) };
            let parameters: Vec<_> = arrays.iter().map(|a| a as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
            for row in session.client.query(&sql, &parameters).await.map_err(|e| classify(&e))? {
                let ordinal: i64 = row.try_get(0).map_err(|e| classify(&e))?;
                let at = usize::try_from(ordinal - 1).ok().and_then(|at| chosen.get(at));
                differing.extend(at.map(|(n, ..)| *n));
            }
        }
        differing.sort_unstable();
        Ok(differing)
    }

    async fn keys_after(&mut self, schema: &str, table: &str, after: Option<&[String]>, limit: u32) -> Result<Vec<Vec<String>>, SinkError> {
        let index = self.index(schema, table)?;
        let (session, layouts) = self.open().await?;
        let layout = &layouts[index];
        let sql = statements::keys_after(layout, after.is_some(), limit);
        let after: Vec<&str> = after.unwrap_or_default().iter().map(String::as_str).collect();
        let parameters: Vec<_> = after.iter().map(|a| a as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
        let rows = session.client.query(&sql, &parameters).await.map_err(|e| classify(&e))?;
        let key = |row: &tokio_postgres::Row| (0..layout.keys.len()).map(|n| row.try_get(n)).collect::<Result<Vec<String>, _>>();
        rows.iter().map(key).collect::<Result<_, _>>().map_err(|e| classify(&e))
    }
}
