//! The replication connection.
