//! Delivery: reads the journal from a checkpoint and brings each event to each connector's target, once and in order
//! per row.

pub mod filter;
