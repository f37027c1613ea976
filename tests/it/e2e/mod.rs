//! From the POS database to the target systems, with real servers.
