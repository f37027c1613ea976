//! The `sql` sink: versioned upserts into PostgreSQL, with the mark in the same transaction.
