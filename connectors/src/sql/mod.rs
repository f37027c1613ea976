//! The `sql` sink: rows of a database that follow the source, each guarded by its version, with the lane's mark in the same transaction.
//!
//! ```text
//!  batch ─▶ fold (one row per key, the newest) ─▶ one statement per table and shape ─▶ mark ─▶ COMMIT
//!                                                          │ data error
//!                                                          └─▶ halves, in savepoints, until the row stands alone
//! ```
//!
//! Every target table has two columns of ours: `_version` (text, compared byte by byte) and `_deleted`. A row is
//! written only when its version is higher than the stored one, so a repeat changes nothing. Values travel as text and
//! the database makes of them what their column takes.
//!
//! `dialect` is the seam: `postgres`, `mysql` and `sqlite` implement it, and `sink` knows none of them.
//!
//! Owns one connection per lane; never retries and never decides what becomes of a refused row.

mod compare;
mod config;
mod convert;
mod dialect;
mod fold;
mod mysql;
mod postgres;
mod sink;
mod sqlite;
mod tls;

pub use config::SqlKind;
