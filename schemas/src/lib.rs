//! The data Tillstream moves: positions, event ids, the journal entry's frame, the change event's envelope, table
//! schemas and the partition hash.
//!
//! This crate does no I/O, starts no task and knows no PostgreSQL OID; everything in it is a pure function over bytes,
//! so that any other program (a test, a reader in another process, a tool) can use it.

pub mod amend;
pub mod entry;
pub mod envelope;
pub mod event_id;
pub mod partition;
pub mod policy;
pub mod position;
pub mod table;
pub mod value;

pub use entry::{Entry, Header, Kind};
pub use envelope::{Event, Op};
pub use event_id::EventId;
pub use policy::{HashKey, Policy};
pub use position::{Half, Lineage, Lsn, Position};
pub use table::{Column, Layout, TableSchema, ValueClass};
