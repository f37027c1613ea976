//! Operations: what observes the loops, sends them commands, and says how things stand.

pub mod codes;
pub mod failure;
