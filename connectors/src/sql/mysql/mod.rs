//! MySQL 8.0 and MariaDB 10.6, and newer. A batch travels as one JSON text, which the server takes apart by `JSON_TABLE`.
//!
//! Not an upsert: `ON DUPLICATE KEY UPDATE` would overwrite a row that shares another unique value. Rows are looked for and locked, then those
//! that are not there are inserted and the older ones updated, all in READ COMMITTED, where looking for a row that is not there locks no gap.

mod connect;
mod errors;
mod layout;
mod session;
mod statements;

pub(super) use connect::Address;
