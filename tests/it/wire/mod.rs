//! The replication connection against a real server.
