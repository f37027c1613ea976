//! The window against a simulated server whose commits become visible late, its single rules, and the hook around it.

use std::sync::Arc;

use tillstream_schemas::table::Identity;
use tillstream_schemas::{Lsn, TableSchema};

use super::window::{Chunk, Marks, Opening, Windows};
use crate::capture::catalog::Snapshot;
use crate::capture::pgoutput::{Message, parse};
use crate::capture::read_rows::ReadRows;
use crate::capture::relations::{ColumnSpec, TableOptions, table_schema};

mod hook;
mod simulation;
mod window;

const OID: u32 = 5;

fn schema_of(columns: &[(&str, bool)]) -> Arc<TableSchema> {
    let columns = columns.iter().map(|(name, in_identity)| ColumnSpec {
        name: (*name).to_owned(),
        type_oid: 25,
        type_modifier: -1,
        in_identity: *in_identity,
    });
    Arc::new(table_schema(1, ("public", "t"), ("public", "t"), Identity::Default, columns, &TableOptions::default()).expect("a table"))
}

fn schema() -> Arc<TableSchema> {
    schema_of(&[("k", true), ("v", false)])
}

/// A value of a tuple: `None` is an unchanged TOASTed one.
type Value<'a> = Option<&'a str>;

fn tuple(mark: u8, values: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = vec![mark];
    bytes.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            None => bytes.push(b'u'),
            Some(text) => {
                bytes.push(b't');
                bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }
    bytes
}

/// One row's change as the server sends it.
fn change_bytes(old: Option<&[Value<'_>]>, new: Option<&[Value<'_>]>) -> Vec<u8> {
    let tag = match (&old, &new) {
        (None, _) if new.as_ref().is_some_and(|n| n.contains(&None)) => b'U',
        (None, _) => b'I',
        (Some(_), Some(_)) => b'U',
        (Some(_), None) => b'D',
    };
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&OID.to_be_bytes());
    bytes.extend(old.map(|o| tuple(b'K', o)).unwrap_or_default());
    bytes.extend(new.map(|n| tuple(b'N', n)).unwrap_or_default());
    bytes
}

fn feed(window: &mut Windows, table: &TableSchema, old: Option<&[Value<'_>]>, new: Option<&[Value<'_>]>) {
    let bytes = change_bytes(old, new);
    match parse(&bytes).expect("a message") {
        Message::Insert { new, .. } => window.change(OID, table, None, Some(&new)),
        Message::Update { old, new, .. } => window.change(OID, table, old.as_ref(), Some(&new)),
        Message::Delete { old, .. } => window.change(OID, table, Some(&old), None),
        _ => unreachable!("a row"),
    }
}

/// The transaction that changes rows inside windows.
const CHANGER: u32 = 7;

/// A snapshot that does not see it.
fn before_changer() -> Snapshot {
    Snapshot { xmin: 7, xmax: 10, in_progress: vec![7] }
}

fn opening(table: &Arc<TableSchema>) -> Opening {
    let marks = Marks::Messages { low: "low".to_owned(), high: "high".to_owned() };
    Opening { oid: OID, table: table.clone(), marks }
}

/// Rows with a key column and, behind it, a column that is NULL.
fn rows(keys: &[&[&str]]) -> Arc<ReadRows> {
    let mut rows = ReadRows::new(keys.first().map_or(2, |k| k.len().max(2)));
    for key in keys {
        rows.push((0..key.len().max(2)).map(|at| key.get(at).copied()));
    }
    Arc::new(rows)
}

fn chunk_with(keys: &[&[&str]], snapshot: Option<Snapshot>) -> Chunk {
    Chunk { rows: rows(keys), gone_from: keys.len(), snapshot, key: Some(Arc::from([0].as_slice())), high: Lsn(0) }
}

fn chunk(keys: &[&str]) -> Chunk {
    chunk_with(&keys.iter().map(std::slice::from_ref).collect::<Vec<_>>(), Some(before_changer()))
}
