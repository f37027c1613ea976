//! The seeded model of the writer protocol.
