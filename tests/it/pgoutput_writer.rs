//! An encoder of pgoutput messages, for tests.
